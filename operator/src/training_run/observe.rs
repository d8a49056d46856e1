//! What the cluster says about one run at one instant. Reads only, and of what the watches tell only what is in doubt.

use std::sync::Arc;

use anneal_api::{
    dataset::DatasetUri,
    names::label,
    resources::{ModelDeployment, TrainingRun},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::{
    claim::{self, Claim, Use},
    failure::job_has_ended,
    init::{self, Init},
    log,
    plan::{is_over, retention},
};
use crate::{
    children::is_controlled_by,
    cluster::{self, ClusterError},
    context::Context,
    progress::Reading,
    uses::Users,
};

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// At what the watches told. They may lag behind, so that nothing may follow from it that cannot be taken back.
    Known,
    /// At what the API server says.
    Afresh,
}

/// What the cluster says about one run at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The run itself.
    pub run: Arc<TrainingRun>,
    /// The claim for checkpoints and models.
    pub output: Claim,
    /// The claim with the dataset, where the dataset is on one.
    pub dataset: Option<Claim>,
    /// The checkpoint that the run begins with.
    pub init: Init,
    /// The run's own Jobs, by attempt.
    pub jobs: Vec<AttemptJob>,
    /// The run's pods, those that have just gone included, newest first.
    pub pods: Vec<AttemptPod>,
    /// What the training pod said, as far as it was asked.
    pub reading: Reading,
    /// When it was asked last.
    pub asked: Option<Timestamp>,
    /// The end of the log of the attempt that has just ended, where the user asks for it.
    pub log: Option<String>,
    /// Who needs the run; looked at only when it is to be deleted.
    pub needed_by: Vec<String>,
}

/// The Job of one attempt.
#[derive(Clone, Debug)]
pub struct AttemptJob {
    /// Number of the attempt, counted from 1.
    pub number: i32,
    /// The Job.
    pub job: Job,
}

/// A pod of one attempt.
#[derive(Clone, Debug)]
pub struct AttemptPod {
    /// Number of the attempt, counted from 1.
    pub number: i32,
    /// The pod, or the last that was seen of it.
    pub pod: Pod,
    /// Whether it is gone from the API server.
    pub gone: bool,
}

impl AttemptPod {
    /// Whether its containers have ended, so that it writes no more.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase(), Some("Succeeded" | "Failed"))
    }

    /// The phase that the kubelet reports.
    pub fn phase(&self) -> Option<&str> {
        self.pod.status.as_ref()?.phase.as_deref()
    }

    /// Whether it may still write.
    pub fn is_writer(&self) -> bool {
        !self.gone && !self.has_ended()
    }
}

impl Observed {
    /// Whether an attempt was made before, as far as anything tells: its pods may still write.
    pub fn has_begun(&self) -> bool {
        has_begun(&self.run, &self.jobs, &self.pods)
    }

    /// The Job of an attempt.
    pub fn job(&self, number: i32) -> Option<&Job> {
        self.jobs.iter().find(|attempt| attempt.number == number).map(|attempt| &attempt.job)
    }

    /// The pods of an attempt, newest first. Of a Job that was made a second time under its name, only the newer pods.
    pub fn pods(&self, number: i32) -> impl Iterator<Item = &AttemptPod> {
        let job = self.job(number).and_then(ResourceExt::uid);
        self.pods.iter().filter(move |attempt| {
            attempt.number == number && job.as_ref().is_none_or(|uid| is_controlled_by(&attempt.pod, uid))
        })
    }

    /// Names of the pods that may still write.
    pub fn writers(&self) -> Vec<String> {
        self.pods.iter().filter(|attempt| attempt.is_writer()).map(|attempt| attempt.pod.name_any()).collect()
    }
}

/// Looks at everything that belongs to a run. `None` where it is gone, on its way out, or another's to bring about.
///
/// # Errors
/// When the API server does not answer.
pub async fn observe(
    context: &Context,
    known: &TrainingRun,
    look: Look,
    now: Timestamp,
) -> Result<Option<Observed>, ClusterError> {
    let namespace = known.namespace().unwrap_or_default();
    let client = &context.client;
    let run = newest(context, known, look).await?;
    let is_ours =
        |run: &Arc<TrainingRun>| run.uid() == known.uid() && run.metadata.deletion_timestamp.is_none() && run.is_ours();
    let Some(run) = run.filter(is_ours) else { return Ok(None) };
    let is_over = is_over(&run.status.clone().unwrap_or_default());
    let (jobs, pods) = if is_over { (Vec::new(), Vec::new()) } else { children(context, &run, look).await? };
    let begins = !is_over && (look == Look::Afresh || !has_begun(&run, &jobs, &pods));
    let (output, dataset) = if begins { claims(context, &run, look).await? } else { (Claim::Present, None) };
    let init = if is_over { Init::Random } else { init::observe(context, &run).await? };
    let needed_by = if retention::is_due(&run, now) {
        let deployments = cluster::list::<ModelDeployment>(client, &namespace, "").await?;
        let runs = context.runs_of(&namespace).await?;
        Users { deployments: &deployments, runs: &runs }.of_run(&run)
    } else {
        Vec::new()
    };
    let reference = ObjectRef::from(run.as_ref());
    let (reading, asked) = (context.progress.reading(&reference), context.progress.asked(&reference));
    let mut seen = Observed { reading, asked, jobs, pods, run, output, dataset, init, log: None, needed_by };
    seen.log = log::tail(context, &seen).await;
    Ok(Some(seen))
}

/// The run as the watch tells it, or as the API server has it where the watch lags behind what was just written: a run
/// that looks unfinished although it has ended would start once more.
async fn newest(context: &Context, known: &TrainingRun, look: Look) -> Result<Option<Arc<TrainingRun>>, ClusterError> {
    let told = context.runs.get().and_then(|runs| runs.get(&ObjectRef::from(known)));
    if let Some(told) = told.filter(|told| look == Look::Known && context.written.is_in(told)) {
        return Ok(Some(told));
    }
    let run: Option<TrainingRun> =
        cluster::get(&context.client, &known.namespace().unwrap_or_default(), &known.name_any()).await?;
    Ok(run.map(|run| {
        context.written.note(&run.metadata);
        Arc::new(run)
    }))
}

/// The run's own Jobs and pods. What the watches told of them is enough, unless it cannot be all.
async fn children(
    context: &Context,
    run: &TrainingRun,
    look: Look,
) -> Result<(Vec<AttemptJob>, Vec<AttemptPod>), ClusterError> {
    let (namespace, uid, reference) =
        (run.namespace().unwrap_or_default(), run.uid().unwrap_or_default(), ObjectRef::from(run));
    if look == Look::Known && context.known.complete().await {
        let jobs = by_attempt(&uid, context.known.jobs.of(&reference));
        let pods = own_pods(&uid, context.known.pods.of(&reference), context.last_words.of(&reference));
        if !is_doubtful(run, &jobs, &pods) {
            return Ok((jobs, pods));
        }
    }
    let labels = format!("{}={}", label::RUN, run.name_any());
    let jobs = cluster::list::<Job>(&context.client, &namespace, &labels).await?;
    // After the Jobs: the pod of a Job that is over has its last words by then.
    let pods = cluster::list::<Pod>(&context.client, &namespace, &labels).await?;
    Ok((by_attempt(&uid, jobs), own_pods(&uid, pods, context.last_words.of(&reference))))
}

/// Whether the watches cannot have told everything yet: the Job of the attempt under way is not there, or one has ended of
/// whose pods nobody has heard the last words.
fn is_doubtful(run: &TrainingRun, jobs: &[AttemptJob], pods: &[AttemptPod]) -> bool {
    let Some(status) = &run.status else { return false };
    let current = status.current_attempt.as_ref().map(|current| current.number);
    let is_missing = |number: i32| status.attempt >= Some(number) && jobs.iter().all(|job| job.number != number);
    let recorded = status.attempts.last().map_or(0, |attempt| attempt.number);
    let is_silent = |job: &&AttemptJob| {
        let mut own = pods.iter().filter(|pod| pod.number == job.number).peekable();
        own.peek().is_none() || own.any(AttemptPod::is_writer)
    };
    let mut ended = jobs.iter().filter(|job| job.number > recorded && job_has_ended(&job.job));
    current.is_some_and(is_missing) || ended.any(|job| is_silent(&job))
}

fn has_begun(run: &TrainingRun, jobs: &[AttemptJob], pods: &[AttemptPod]) -> bool {
    let is_recorded = run.status.as_ref().is_some_and(|status| status.attempt.is_some());
    is_recorded || !jobs.is_empty() || !pods.is_empty()
}

/// The claims that a run needs to begin.
async fn claims(context: &Context, run: &TrainingRun, look: Look) -> Result<(Claim, Option<Claim>), ClusterError> {
    let namespace = run.namespace().unwrap_or_default();
    let output = ObjectRef::new(&run.output_claim()).within(&namespace);
    let output = claim(context, &output, look, |found| claim::output(run, found)).await?;
    let dataset = match run.spec.dataset.uri.parse() {
        Ok(DatasetUri::Pvc { claim: name, .. }) => {
            let dataset = ObjectRef::new(&name).within(&namespace);
            Some(claim(context, &dataset, look, |found| claim::given(run, &name, found, Use::Read)).await?)
        }
        _ => None,
    };
    Ok((output, dataset))
}

/// What a claim is to a run: as the watch told it, or, where something is in the way, as the API server has it, so that
/// nobody hears of a missing claim that is merely new.
async fn claim(
    context: &Context,
    claim: &ObjectRef<PersistentVolumeClaim>,
    look: Look,
    judge: impl Fn(Option<&PersistentVolumeClaim>) -> Claim,
) -> Result<Claim, ClusterError> {
    if look == Look::Known && judge(context.known.claims.of(claim).first()) == Claim::Present {
        return Ok(Claim::Present);
    }
    let namespace = claim.namespace.as_deref().unwrap_or_default();
    Ok(judge(cluster::get(&context.client, namespace, &claim.name).await?.as_ref()))
}

fn number(object: &impl ResourceExt) -> Option<i32> {
    object.labels().get(label::ATTEMPT)?.parse().ok()
}

/// The pods of the run with this UID, also those whose Job is gone: a pod outlives its deleted Job by its grace period,
/// and writes a checkpoint in it. `gone` are pods that the watch saw leave; they are listed where nothing else is left
/// of them.
fn own_pods(uid: &str, listed: Vec<Pod>, gone: Vec<Pod>) -> Vec<AttemptPod> {
    let of_run = |pod: &Pod| pod.labels().get(label::RUN_UID).map(String::as_str) == Some(uid);
    let is_listed = |pod: &Pod| listed.iter().any(|other| other.uid() == pod.uid());
    let gone: Vec<Pod> = gone.into_iter().filter(|pod| !is_listed(pod)).collect();
    let all = listed.into_iter().map(|pod| (pod, false)).chain(gone.into_iter().map(|pod| (pod, true)));
    let mut own: Vec<AttemptPod> = all
        .filter(|(pod, _)| of_run(pod))
        .filter_map(|(pod, gone)| Some(AttemptPod { number: number(&pod)?, pod, gone }))
        .collect();
    own.sort_by_key(|attempt| std::cmp::Reverse(attempt.pod.creation_timestamp()));
    own
}

/// The Jobs that the run with this UID controls, in the order of their attempts.
fn by_attempt(uid: &str, jobs: Vec<Job>) -> Vec<AttemptJob> {
    let mut own: Vec<AttemptJob> = jobs
        .into_iter()
        .filter(|job| is_controlled_by(job, uid))
        .filter_map(|job| Some(AttemptJob { number: number(&job)?, job }))
        .collect();
    own.sort_by_key(|attempt| attempt.number);
    own
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An object of attempt 1 of run `cats`, with the UID of that run.
    fn of<K: serde::de::DeserializeOwned>(uid: &str) -> K {
        serde_json::from_value(json!({"metadata": {
            "name": "cats-1", "uid": format!("object-of-{uid}"),
            "labels": {label::RUN: "cats", label::RUN_UID: uid, label::ATTEMPT: "1"},
            "ownerReferences": [
                {"apiVersion": "anneal.dev/v1alpha1", "kind": "TrainingRun", "name": "cats", "uid": uid, "controller": true}
            ]
        }}))
        .expect("an object")
    }

    #[test]
    fn jobs_and_pods_of_a_deleted_namesake_are_not_the_runs_own() {
        assert!(by_attempt("new", vec![of("old")]).is_empty());
        assert_eq!(by_attempt("new", vec![of("old"), of("new")]).len(), 1);
        assert!(own_pods("new", vec![of("old")], vec![of("older")]).is_empty());
        assert_eq!(own_pods("new", vec![of("new")], Vec::new()).len(), 1);
    }

    #[test]
    fn a_pod_that_was_seen_to_leave_is_taken_for_gone_only_where_it_is() {
        let still_there = own_pods("new", vec![of("new")], vec![of("new")]);
        assert_eq!(still_there.iter().map(|pod| pod.gone).collect::<Vec<_>>(), [false]);
        let gone = own_pods("new", Vec::new(), vec![of("new")]);
        assert_eq!(gone.iter().map(|pod| pod.gone).collect::<Vec<_>>(), [true]);
    }
}
