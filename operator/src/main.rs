//! `anneal-operator`: runs the controllers.
fn main() {}
