//! The real binary, on real checkpoints and real connections.
#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

mod process;
mod wire;

mod access;
mod clients;
mod connections;
mod hostile;
mod routes;
mod shutdown;
mod smoke;
mod startup;
mod traces;
