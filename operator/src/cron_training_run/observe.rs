//! What the cluster says about one schedule at one instant. Reads only.

use std::{collections::BTreeSet, sync::Arc};

use anneal_api::{
    names::label,
    resources::{CronTrainingRun, TrainingRun},
};
use kube::ResourceExt;

use crate::{
    cluster::{self, ClusterError},
    context::Context,
    runs,
};

/// What the cluster says about one schedule at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The schedule itself.
    pub cron: Arc<CronTrainingRun>,
    /// Its own runs, oldest first: the minute is part of the name.
    pub runs: Vec<TrainingRun>,
    /// Names of runs that are over and that something needs.
    pub in_use: BTreeSet<String>,
}

/// Looks at a schedule and its runs. The schedule itself is read again: the watch may lag behind the status that was
/// just written, and a start that has its run would be due once more. `None` where it is gone or on its way out.
///
/// # Errors
/// When the API server does not answer.
pub async fn observe(context: &Context, known: &CronTrainingRun) -> Result<Option<Observed>, ClusterError> {
    let namespace = known.namespace().unwrap_or_default();
    let cron: Option<CronTrainingRun> = cluster::get(&context.client, &namespace, &known.name_any()).await?;
    let Some(cron) = cron.filter(|it| it.uid() == known.uid() && it.metadata.deletion_timestamp.is_none()) else {
        return Ok(None);
    };
    let runs = runs::of(context, &cron, label::CRON).await?;
    let in_use = runs::in_use(context, &namespace, runs.iter()).await?.into_keys().collect();
    Ok(Some(Observed { cron: Arc::new(cron), runs, in_use }))
}
