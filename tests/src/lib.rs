//! What the end-to-end tests are written with: a namespace for each test, waiting that names what it waits for, and
//! kubectl, the door that users take.
//!
//! A test fails with the sentence that did not come true; objects, Events and logs of its namespace follow.

mod audit;
mod cluster;
mod file_server;
mod history;
mod kubectl;
pub mod manifest;
mod namespace;
mod node;
mod operator;
mod pods;
mod processes;
mod report;
mod table;
mod watch;

pub use anyhow::{Context, Result, bail, ensure};
pub use audit::{Audit, Request};
pub use cluster::Cluster;
pub use file_server::FileServer;
pub use history::History;
pub use kubectl::Said;
pub use namespace::{Failure, Namespace, Outcome, in_namespace};
pub use node::Node;
pub use operator::Operator;
pub use processes::signal;
pub use table::Table;
pub use watch::{Object, Watch};
