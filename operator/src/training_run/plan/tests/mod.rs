//! The plan, case by case and over random histories.

mod complaints;
mod init;
mod laws;
mod life;
mod world;
