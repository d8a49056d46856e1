//! Completion, as kubectl asks for it: the executable `kubectl_complete-anneal` gets the words behind `kubectl anneal`
//! and prints a candidate a line, then a directive for the shell. That executable is a link to this program.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use anneal_api::resources::{ModelDeployment, TrainingRun};
use clap::{CommandFactory as _, Parser as _};
use clap_complete::CompletionCandidate;
use kube::{ResourceExt as _, config::Kubeconfig};

use crate::{
    cluster::{Cluster, Object},
    options::{Access, Cli},
    output,
    target::Found,
};

/// Name under which kubectl asks for completions.
pub const PROGRAM: &str = "kubectl_complete-anneal";
/// Time that a cluster has to answer somebody who pressed a key.
const PATIENCE: Duration = Duration::from_secs(2);
/// Cobra's directive that leaves it to the shell, which then offers files.
const FILES: &str = ":0";
/// Cobra's directive that offers nothing but what was printed.
const NO_FILES: &str = ":4";

/// Prints the candidates for the last of the words.
pub fn run(words: Vec<OsString>) {
    output::write(&answer(&mut Cli::command(), words));
}

fn answer(command: &mut clap::Command, words: Vec<OsString>) -> String {
    let current = words.last().cloned().unwrap_or_default();
    let wants_files = takes_files(&words);
    let all: Vec<OsString> = std::iter::once(PROGRAM.into()).chain(words).collect();
    let index = all.len().saturating_sub(1).max(1);
    let found = clap_complete::engine::complete(command, all, index, None).unwrap_or_default();
    // Options are offered to whoever began to type one.
    let is_wanted = |candidate: &&CompletionCandidate| {
        let is_option = candidate.get_value().as_encoded_bytes().starts_with(b"-");
        !candidate.is_hide_set() && (!is_option || current.as_encoded_bytes().starts_with(b"-"))
    };
    let mut text = String::new();
    for candidate in found.iter().filter(is_wanted).filter(|_| !wants_files) {
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.lines().next().unwrap_or_default();
        text.push_str(&candidate.get_value().to_string_lossy());
        text.extend(if help.is_empty() { ["", "", "\n"] } else { ["\t", help, "\n"] });
    }
    text.push_str(if wants_files { FILES } else { NO_FILES });
    text.push('\n');
    text
}

/// Whether the last word names a file: the shell knows better how to complete these.
fn takes_files(words: &[OsString]) -> bool {
    let Some((current, before)) = words.split_last() else { return false };
    let follows = before.last().is_some_and(|word| word == "--kubeconfig");
    let is_option = current.as_encoded_bytes().starts_with(b"-") && current != "-";
    let positions = before.iter().filter(|word| !word.as_encoded_bytes().starts_with(b"-")).count();
    follows || !is_option && before.first().is_some_and(|word| word == "predict") && positions > 1
}

/// The options of kubectl among the words on the command line, as far as they make sense.
fn access() -> Access {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    access_in(&words)
}

fn access_in(words: &[OsString]) -> Access {
    // The command line is not complete yet; what precedes the word under completion mostly is.
    let before = words.len().saturating_sub(1);
    let mut options = vec![OsString::from(PROGRAM)];
    let mut rest = words[..before].iter();
    while let Some(word) = rest.next() {
        let text = word.to_string_lossy();
        let known = ["-n", "--namespace", "--context", "--cluster", "--user", "--kubeconfig", "--as"];
        if known.contains(&text.as_ref()) {
            options.extend([word.clone()].into_iter().chain(rest.next().cloned()));
        } else if known.iter().any(|option| text.starts_with(&format!("{option}="))) {
            options.push(word.clone());
        }
    }
    options.push("status".into());
    Cli::try_parse_from(options).map(|cli| cli.access).unwrap_or_default()
}

/// What the cluster says within the time that somebody waits for it.
fn asked<T>(question: impl AsyncFnOnce(Cluster) -> Option<T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let answer = async { question(Cluster::connect(&access()).await.ok()?).await };
        tokio::time::timeout(PATIENCE, answer).await.ok().flatten()
    })
}

fn beginning_with(current: &OsStr, all: impl IntoIterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let fits = all.into_iter().filter(|(name, _)| name.starts_with(current.as_ref()));
    fits.map(|(name, help)| CompletionCandidate::new(name).help(Some(help).filter(|it| !it.is_empty()).map(Into::into)))
        .collect()
}

fn names<K: Object>(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |cluster| cluster.list::<K>("").await.ok()).unwrap_or_default();
    beginning_with(current, found.iter().map(|it| (it.name_any(), String::new())))
}

/// Names of deployments.
pub fn deployments(current: &OsStr) -> Vec<CompletionCandidate> {
    names::<ModelDeployment>(current)
}

/// Names of runs.
pub fn runs(current: &OsStr) -> Vec<CompletionCandidate> {
    names::<TrainingRun>(current)
}

/// Resources of all kinds: by name alone where one kind has it, by kind and name where more have it or a kind is typed.
pub fn resources(current: &OsStr) -> Vec<CompletionCandidate> {
    let found = asked(async |cluster| cluster.all(false).await.ok()).unwrap_or_default();
    beginning_with(current, spelled(&found, current.to_string_lossy().contains('/')))
}

fn spelled(found: &[Found], by_path: bool) -> Vec<(String, String)> {
    let is_taken = |name: &str| found.iter().filter(|other| other.name() == name).count() > 1;
    let spell = |it: &Found| if by_path || is_taken(&it.name()) { it.path() } else { it.name() };
    found.iter().map(|it| (spell(it), it.kind().to_string())).collect()
}

/// Names of namespaces.
pub fn namespaces(current: &OsStr) -> Vec<CompletionCandidate> {
    use k8s_openapi::api::core::v1::Namespace;
    let found = asked(async |cluster| {
        let api = kube::Api::<Namespace>::all(cluster.client.clone());
        api.list(&kube::api::ListParams::default()).await.ok()
    });
    let names = found.into_iter().flat_map(|list| list.items).map(|it| (it.name_any(), String::new()));
    beginning_with(current, names)
}

/// Contexts of the kubeconfig.
pub fn contexts(current: &OsStr) -> Vec<CompletionCandidate> {
    let access = access();
    let read = access.kubeconfig.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let all = read.into_iter().flat_map(|config| config.contexts).map(|context| (context.name, String::new()));
    beginning_with(current, all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn words(line: &[&str]) -> Vec<OsString> {
        line.iter().map(OsString::from).collect()
    }

    fn completed(line: &[&str]) -> String {
        answer(&mut Cli::command(), words(line))
    }

    #[test]
    fn commands_are_offered_with_what_they_do() {
        let all = completed(&[""]);
        assert!(all.contains("status\tShow how things stand"), "{all}");
        assert!(!all.contains("--namespace") && all.ends_with(":4\n"), "{all}");
        assert_eq!(completed(&["appr"]), "approve\tLet the candidate that waits for approval have the traffic\n:4\n");
    }

    #[test]
    fn options_are_offered_to_whoever_begins_one() {
        assert!(completed(&["logs", "cats", "--fol"]).starts_with("--follow\t"));
        assert_eq!(completed(&["status", "--output", "j"]), "json\tFor programs\n:4\n");
    }

    #[test]
    fn files_are_left_to_the_shell() {
        assert_eq!(completed(&["predict", "cats", "ph"]), ":0\n");
        assert_eq!(completed(&["status", "--kubeconfig", ""]), ":0\n");
    }

    #[test]
    fn the_cluster_that_is_typed_is_the_one_that_is_asked() {
        let access = access_in(&words(&["status", "-n", "demo", "--context=other", "ca"]));
        assert_eq!((access.namespace.as_deref(), access.context.as_deref()), (Some("demo"), Some("other")));
    }

    #[test]
    fn a_name_that_two_kinds_have_is_offered_with_its_kind() {
        let run = Found::Run(Box::new(fixtures::run(&serde_json::json!({}))));
        let deployment = Found::Deployment(Box::new(fixtures::deployment(&serde_json::json!({}))));
        let names =
            |found: &[Found], by_path| spelled(found, by_path).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&[run.clone(), deployment], false), ["trun/cats", "mdep/cats"]);
        assert_eq!(names(std::slice::from_ref(&run), false), ["cats"]);
        assert_eq!(names(&[run], true), ["trun/cats"]);
    }
}
