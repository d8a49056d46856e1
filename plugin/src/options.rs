//! The command line: kubectl's own words for what kubectl has, one word for each thing that people do.

use std::{path::PathBuf, str::FromStr as _};

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCompleter;

use crate::{completion, target::Target};

/// Shows, steers and diagnoses trainings and rollouts.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-anneal",
    bin_name = "kubectl anneal",
    version,
    after_help = "Exit codes: 0 done, and nothing is wrong; 1 done, and what was asked about failed or is in trouble; \
                  2 it could not be done.\nColours are for terminals only; NO_COLOR=1 takes them away there, too."
)]
pub struct Cli {
    /// Which cluster, as whom.
    #[command(flatten)]
    pub access: Access,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Which cluster, as whom: the words of kubectl.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of kubectl")]
pub struct Access {
    /// Namespace; by default that of the kubeconfig's context.
    #[arg(short, long, global = true, value_name = "NAME", add = ArgValueCompleter::new(completion::namespaces))]
    pub namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME", add = ArgValueCompleter::new(completion::contexts))]
    pub context: Option<String>,
    /// Cluster of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// User of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// The kubeconfig; by default what KUBECONFIG names, or ~/.kube/config.
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kubeconfig: Option<PathBuf>,
    /// User to impersonate.
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// In a cluster.
    #[command(flatten)]
    InCluster(Errand),
    /// Print the plugin's version.
    Version,
}

/// What people do in a cluster.
#[derive(Debug, Subcommand)]
pub enum Errand {
    /// Show how things stand: a tree of a resource with its attempts, revisions and pods, or a list of all.
    Status(StatusOptions),
    /// Print the log that matters: of the newest attempt, of the smoke test that failed, of the revision that serves.
    Logs(LogsOptions),
    /// List the revisions of a ModelDeployment, newest first.
    Rollout(RolloutOptions),
    /// Move a rollout on: end its pause, approve of the candidate that waits.
    Promote(DeploymentOptions),
    /// Let the candidate that waits for approval have the traffic.
    Approve(DeploymentOptions),
    /// End a rollout; within the soak, give the traffic back.
    Abort(DeploymentOptions),
    /// Try a rejected revision again.
    Retry(DeploymentOptions),
    /// Make every pod anew, through the gate.
    Restart(DeploymentOptions),
    /// Go back to a former revision and stay there, whatever the model says.
    Rollback(RollbackOptions),
    /// Follow the model again, after a rollback.
    Unpin(DeploymentOptions),
    /// Stop a training at its next checkpoint, a sweep or a schedule; pause a rollout.
    #[command(alias = "pause")]
    Suspend(ResourceOptions),
    /// Go on with what was suspended or paused.
    Resume(ResourceOptions),
    /// Ask a ModelDeployment what is in photos, through its own pods.
    Predict(PredictOptions),
    /// Compare training runs: what was set differently, and what came of it.
    Compare(CompareOptions),
    /// Say what is wrong and what to do, of one resource or of all in the namespace.
    Diagnose(DiagnoseOptions),
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct StatusOptions {
    /// KIND/NAME, or NAME where the name says enough; by default all in the namespace.
    #[arg(value_name = "NAME", value_parser = Target::from_str, add = ArgValueCompleter::new(completion::resources))]
    pub target: Option<Target>,
    /// Redraw until the training is over or the rollout has come to rest.
    #[arg(short, long, requires = "target", conflicts_with = "output")]
    pub watch: bool,
    /// List all namespaces.
    #[arg(short = 'A', long, conflicts_with = "target")]
    pub all_namespaces: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct LogsOptions {
    /// KIND/NAME, or NAME where the name says enough.
    #[arg(value_name = "NAME", value_parser = Target::from_str, add = ArgValueCompleter::new(completion::resources))]
    pub target: Target,
    /// Go on as the log grows; waits for a pod that has not started yet.
    #[arg(short, long)]
    pub follow: bool,
    /// Lines from the end.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub tail: Option<u32>,
    /// A former attempt of a run.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..), conflicts_with_all = ["smoke", "revision"])]
    pub attempt: Option<i32>,
    /// The newest smoke test of a deployment: the table of all answers.
    #[arg(long)]
    pub smoke: bool,
    /// A revision of a deployment, by its hash.
    #[arg(long, value_name = "HASH")]
    pub revision: Option<String>,
}

/// Options of `rollout`.
#[derive(Debug, Args)]
pub struct RolloutOptions {
    /// Which deployment.
    #[command(flatten)]
    pub deployment: DeploymentOptions,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Options of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackOptions {
    /// Which deployment.
    #[command(flatten)]
    pub deployment: DeploymentOptions,
    /// Revision to go back to, by its hash; by default the one that had the traffic before.
    #[arg(long, value_name = "HASH")]
    pub to: Option<String>,
}

/// A ModelDeployment.
#[derive(Debug, Args)]
pub struct DeploymentOptions {
    /// Name of the ModelDeployment.
    #[arg(value_name = "NAME", value_parser = Target::from_str, add = ArgValueCompleter::new(completion::deployments))]
    pub target: Target,
}

/// A resource.
#[derive(Debug, Args)]
pub struct ResourceOptions {
    /// KIND/NAME, or NAME where the name says enough.
    #[arg(value_name = "NAME", value_parser = Target::from_str, add = ArgValueCompleter::new(completion::resources))]
    pub target: Target,
}

/// Options of `predict`.
#[derive(Debug, Args)]
pub struct PredictOptions {
    /// Which deployment.
    #[command(flatten)]
    pub deployment: DeploymentOptions,
    /// Image files; `-` is the standard input.
    #[arg(required = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Ask this revision, by its hash; by default the one that has the traffic.
    #[arg(long, value_name = "HASH", conflicts_with = "candidate")]
    pub revision: Option<String>,
    /// Ask the revision that is on its way.
    #[arg(long)]
    pub candidate: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Options of `compare`.
#[derive(Debug, Args)]
pub struct CompareOptions {
    /// Names of the training runs.
    #[arg(required = true, num_args = 2.., value_name = "RUN", value_parser = Target::from_str, add = ArgValueCompleter::new(completion::runs))]
    pub targets: Vec<Target>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// Options of `diagnose`.
#[derive(Debug, Args)]
pub struct DiagnoseOptions {
    /// KIND/NAME, or NAME where the name says enough; by default all in the namespace.
    #[arg(value_name = "NAME", value_parser = Target::from_str, add = ArgValueCompleter::new(completion::resources))]
    pub target: Option<Target>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_words_of_kubectl_may_stand_anywhere_behind_the_plugins_name() {
        for line in [["kubectl-anneal", "-n", "demo", "status"], ["kubectl-anneal", "status", "--namespace", "demo"]] {
            let cli = Cli::try_parse_from(line).expect("valid");
            assert_eq!(cli.access.namespace.as_deref(), Some("demo"));
        }
    }

    #[test]
    fn two_runs_are_compared_and_one_is_not() {
        assert!(Cli::try_parse_from(["kubectl-anneal", "compare", "a"]).is_err());
        assert!(Cli::try_parse_from(["kubectl-anneal", "compare", "a", "b"]).is_ok());
    }
}
