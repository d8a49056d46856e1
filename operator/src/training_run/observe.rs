//! What the cluster says about one run at one instant. Reads only.

use std::sync::Arc;

use anneal_api::{dataset::DatasetUri, names::label, progress::Progress, resources::TrainingRun};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};

use super::claim::{self, Claim, Use};
use crate::{
    children::is_controlled_by,
    cluster::{self, ClusterError},
    context::Context,
};

/// What the cluster says about one run at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The run itself.
    pub run: Arc<TrainingRun>,
    /// The claim for checkpoints and models.
    pub output: Claim,
    /// The claim with the dataset, where the dataset is on one.
    pub dataset: Option<Claim>,
    /// The run's own Jobs, by attempt.
    pub jobs: Vec<AttemptJob>,
    /// The run's pods that have not ended: each of them may still write.
    pub writers: Vec<String>,
    /// The newest that the training pod said.
    pub progress: Option<Progress>,
}

/// The Job of one attempt, with its newest pod.
#[derive(Clone, Debug)]
pub struct AttemptJob {
    /// Number of the attempt, counted from 1.
    pub number: i32,
    /// The Job.
    pub job: Job,
    /// Its newest pod, where there is one.
    pub pod: Option<Pod>,
}

/// Looks at everything that belongs to a run. The run itself is read again: the watch may lag behind the status that was
/// just written, and a run that looks unfinished although it has ended would start once more. `None` where it is gone
/// or on its way out.
///
/// # Errors
/// When the API server does not answer.
pub async fn observe(context: &Context, known: &TrainingRun) -> Result<Option<Observed>, ClusterError> {
    let namespace = known.namespace().unwrap_or_default();
    let client = &context.client;
    let run: Option<TrainingRun> = cluster::get(client, &namespace, &known.name_any()).await?;
    let Some(run) = run.filter(|run| run.uid() == known.uid() && run.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let labels = format!("{}={}", label::RUN, run.name_any());
    let dataset_claim = match run.spec.dataset.uri.parse() {
        Ok(DatasetUri::Pvc { claim, .. }) => Some(claim),
        _ => None,
    };
    let output_claim = run.output_claim();
    let (jobs, output) = tokio::try_join!(
        cluster::list::<Job>(client, &namespace, &labels),
        claim(context, &namespace, &output_claim),
    )?;
    // After the Jobs: the pod of a Job that is over has its last words by then.
    let pods = cluster::list::<Pod>(client, &namespace, &labels).await?;
    let dataset = match &dataset_claim {
        Some(name) => {
            let found = claim(context, &namespace, name).await?;
            Some(claim::given(&run, name, found.as_ref(), Use::Read))
        }
        None => None,
    };
    let output = claim::output(&run, output.as_ref());
    let progress = context.progress.latest(&ObjectRef::from(&run));
    let uid = run.uid().unwrap_or_default();
    let writers = writers(&uid, &pods);
    let jobs = by_attempt(&uid, jobs, &pods);
    Ok(Some(Observed { run: Arc::new(run), output, dataset, jobs, writers, progress }))
}

async fn claim(context: &Context, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ClusterError> {
    cluster::get(&context.client, namespace, name).await
}

/// The pods of the run with this UID that have not ended, also those whose Job is gone: a pod outlives its deleted Job
/// by its grace period, and writes a checkpoint in it.
fn writers(uid: &str, pods: &[Pod]) -> Vec<String> {
    let ended = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    pods.iter()
        .filter(|pod| pod.labels().get(label::RUN_UID).map(String::as_str) == Some(uid) && !ended(pod))
        .map(ResourceExt::name_any)
        .collect()
}

/// The Jobs that the run with this UID controls, in the order of their attempts, each with its newest pod.
fn by_attempt(uid: &str, jobs: Vec<Job>, pods: &[Pod]) -> Vec<AttemptJob> {
    let mut own: Vec<AttemptJob> = jobs
        .into_iter()
        .filter(|job| is_controlled_by(job, uid))
        .filter_map(|job| {
            let number = job.labels().get(label::ATTEMPT)?.parse().ok()?;
            let job_uid = job.uid().unwrap_or_default();
            let pod = pods
                .iter()
                .filter(|pod| is_controlled_by(*pod, &job_uid))
                .max_by_key(|pod| pod.creation_timestamp())
                .cloned();
            Some(AttemptJob { number, job, pod })
        })
        .collect();
    own.sort_by_key(|attempt| attempt.number);
    own
}
