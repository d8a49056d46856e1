//! What the cluster says about one sweep at one instant. Reads only.

use std::sync::Arc;

use anneal_api::{
    names::label,
    resources::{TrainingRun, TrainingSweep},
};
use kube::ResourceExt;

use super::status::is_finished;
use crate::{
    cluster::{self, ClusterError},
    context::Context,
    runs,
};

/// What the cluster says about one sweep at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The sweep itself.
    pub sweep: Arc<TrainingSweep>,
    /// The sweep's own runs, by number of their trial.
    pub runs: Vec<TrialRun>,
    /// Whether something needs one of the runs. Looked for only where the sweep could go.
    pub in_use: bool,
}

/// The run of one trial.
#[derive(Clone, Debug)]
pub struct TrialRun {
    /// Number of the trial, counted from 1.
    pub number: i32,
    /// The run.
    pub run: TrainingRun,
}

/// Looks at a sweep and its runs. The sweep itself is read again: the watch may lag behind the status that was just
/// written, and a trial that is recorded as over would be taken for one that never was. `None` where the sweep is gone
/// or on its way out.
///
/// # Errors
/// When the API server does not answer.
pub async fn observe(context: &Context, known: &TrainingSweep) -> Result<Option<Observed>, ClusterError> {
    let namespace = known.namespace().unwrap_or_default();
    let sweep: Option<TrainingSweep> = cluster::get(&context.client, &namespace, &known.name_any()).await?;
    let Some(sweep) = sweep.filter(|it| it.uid() == known.uid() && it.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let all = runs::of(context, &sweep, label::SWEEP).await?;
    let number = |run: &TrainingRun| run.labels().get(label::TRIAL)?.parse().ok();
    let mut runs: Vec<TrialRun> =
        all.into_iter().filter_map(|run| Some(TrialRun { number: number(&run)?, run })).collect();
    runs.sort_by_key(|trial| trial.number);
    let may_go = sweep.spec.ttl_seconds_after_finished.is_some() && sweep.status.as_ref().is_some_and(is_finished);
    let in_use = may_go && !runs::in_use(context, &namespace, runs.iter().map(|trial| &trial.run)).await?.is_empty();
    Ok(Some(Observed { sweep: Arc::new(sweep), runs, in_use }))
}
