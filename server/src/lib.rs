//! Serves an image classifier over HTTP, and the clients that test and load such a server.
//!
//! The way of a request: [`listener`] accepts the connection, [`frame`] counts, times and labels the exchange,
//! [`routes`] decides what was asked, and [`engine`] computes the answer on threads of its own.

pub mod answer;
pub mod answers;
pub mod body;
pub mod client;
pub mod door;
pub mod drift;
pub mod engine;
pub mod feedback;
pub mod frame;
pub mod healthcheck;
pub mod input;
pub mod journal;
pub mod last_words;
pub mod life;
pub mod lifecycle;
pub mod listener;
pub mod load;
pub mod logging;
pub mod metrics;
pub mod model;
pub mod options;
pub mod percentile;
pub mod picture;
pub mod predict;
pub mod prediction;
pub mod queue;
pub mod routes;
pub mod smoke;
pub mod table;
pub mod tls;
pub mod token;
pub mod traces;
pub mod track;
pub mod tune;
pub mod watched;
