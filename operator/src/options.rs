//! Command line and environment of the operator.

use std::net::SocketAddr;

/// Runs the controllers of `TrainingRun`, `TrainingSweep`, `CronTrainingRun` and `ModelDeployment`.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "anneal-operator", version, about)]
pub struct Options {
    /// Image of training pods where a run names none.
    #[arg(long, env = "ANNEAL_TRAINER_IMAGE")]
    pub trainer_image: String,
    /// Image of inference and smoke test pods where a deployment names none.
    #[arg(long, env = "ANNEAL_SERVER_IMAGE")]
    pub server_image: String,
    /// Pull policy of both images: Always, `IfNotPresent` or Never. The cluster's default where it is absent.
    #[arg(long, env = "ANNEAL_IMAGE_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,
    /// Put the end of failed attempts' logs into the status of runs that ask for it. Needs the right to get pods/log.
    #[arg(long, env = "ANNEAL_FAILURE_LOGS", action = clap::ArgAction::Set, default_value_t = false)]
    pub failure_logs: bool,
    /// Only namespace to watch; all of them where it is absent.
    #[arg(long, env = "ANNEAL_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Name of the leader election Lease: one for each installation.
    #[arg(long, env = "ANNEAL_LEASE_NAME", default_value = "anneal-operator")]
    pub lease_name: String,
    /// Namespace of the leader election Lease.
    #[arg(long, env = "ANNEAL_LEASE_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Name of this replica in the Lease and in Events; the host's name and the process's number where it is absent. Two
    /// replicas of one name would both lead.
    #[arg(long, env = "ANNEAL_IDENTITY", default_value_t = unique_name())]
    pub identity: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "ANNEAL_HEALTH_ADDRESS", default_value = "0.0.0.0:8080")]
    pub health_address: SocketAddr,
    /// Reconciles of one kind that run side by side.
    #[arg(long, env = "ANNEAL_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Ask the installation of these options to look after a run, instead of running one, and end: 0 when it does. The run is
    /// made in the watched namespace, or in the Lease's.
    #[arg(long)]
    pub check: bool,
}

fn unique_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    format!("{}-{}", if host.is_empty() { "anneal-operator" } else { host }, std::process::id())
}
