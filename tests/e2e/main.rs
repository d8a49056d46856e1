//! What Anneal promises its users, on a real cluster. `make e2e` brings one up and runs this.

mod begin;
mod campaign;
mod claims;
mod crash;
mod deletion;
mod delivery;
mod happy;
mod images;
mod lifecycle;
mod nodes;
mod others;
mod plugin;
mod progress;
mod quiet;
mod remote_model;
mod restarts;
mod rollout;
mod rollouts;
mod scaling;
mod scenario;
mod schedules;
mod schema;
mod steering;
mod sweeps;
mod traffic;
mod training;
