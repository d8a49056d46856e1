//! The `TrainingRuns` that a sweep or a schedule makes from its template.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use anneal_api::{
    names::{OPERATOR, label},
    resources::{ModelDeployment, RunPhase, RunTemplate, TrainingRun, TrainingRunSpec},
};
use jiff::Timestamp;
use kube::{Resource, ResourceExt};

use crate::{
    children::{is_controlled_by, metadata},
    cluster::{self, ClusterError, Object},
    context::Context,
    training_run::validate::{SpecError, validate},
    uses::Users,
};

/// A template cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A label or annotation would speak for the operator.
    #[error("template.metadata sets {0}: labels and annotations under anneal.dev/ are the operator's; remove it")]
    ReservedKey(String),
    /// The run's specification makes no sense.
    #[error("template.spec: {0}")]
    Spec(#[from] SpecError),
}

impl TemplateError {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ReservedKey(_) => "ReservedKey",
            Self::Spec(problem) => problem.reason(),
        }
    }
}

/// Checks what the schema could not check about a template.
///
/// # Errors
/// [`TemplateError`], with what to write instead.
pub fn check(template: &RunTemplate) -> Result<(), TemplateError> {
    let keys = template.metadata.labels.keys().chain(template.metadata.annotations.keys());
    if let Some(reserved) = keys.into_iter().find(|key| key.starts_with(label::PREFIX)) {
        return Err(TemplateError::ReservedKey(reserved.clone()));
    }
    validate(&TrainingRun::new("template", template.spec.clone()))?;
    Ok(())
}

/// A run that `owner` makes, with labels of the owner's beside the template's.
pub fn run<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: String,
    template: &RunTemplate,
    own: &[(&str, String)],
    spec: TrainingRunSpec,
) -> TrainingRun {
    let mut labels = template.metadata.labels.clone();
    labels.insert(label::MANAGED_BY.to_owned(), OPERATOR.to_owned());
    labels.extend(own.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let mut made = metadata(owner, name, labels);
    made.annotations = Some(template.metadata.annotations.clone()).filter(|annotations| !annotations.is_empty());
    TrainingRun { metadata: made, spec, status: None }
}

/// The runs that `owner` controls, by name. Those of a deleted namesake are not its own.
///
/// # Errors
/// When the API server does not answer.
pub async fn of<K: Object>(context: &Context, owner: &K, owner_label: &str) -> Result<Vec<TrainingRun>, ClusterError> {
    let namespace = owner.namespace().unwrap_or_default();
    let labels = format!("{owner_label}={}", owner.name_any());
    let uid = owner.uid().unwrap_or_default();
    let mut runs: Vec<TrainingRun> = cluster::list(&context.client, &namespace, &labels).await?;
    runs.retain(|run| is_controlled_by(run, &uid));
    runs.sort_by_key(ResourceExt::name_any);
    Ok(runs)
}

/// Those of the runs of a namespace that are over, but that something needs: a deployment that names one or has a revision
/// of its model, or a run that is to begin with it. Each with who that is.
///
/// # Errors
/// When the API server does not answer.
pub async fn in_use<'a>(
    context: &Context,
    namespace: &str,
    runs: impl Iterator<Item = &'a TrainingRun>,
) -> Result<BTreeMap<String, String>, ClusterError> {
    let over: Vec<&TrainingRun> = runs.filter(|run| is_over(run)).collect();
    if over.is_empty() {
        return Ok(BTreeMap::new());
    }
    let deployments: Vec<ModelDeployment> = cluster::list(&context.client, namespace, "").await?;
    let others = context.runs_of(namespace).await?;
    let users = Users { deployments: &deployments, runs: &others };
    Ok(over.into_iter().filter_map(|run| Some((run.name_any(), users.of_run(run).pop()?))).collect())
}

/// The run that succeeded last and published a model.
pub fn newest_success<R: Borrow<TrainingRun>>(runs: impl IntoIterator<Item = R>) -> Option<R> {
    let published = |run: &R| run.borrow().status.as_ref().is_some_and(|status| status.result.is_some());
    runs.into_iter().filter(published).max_by_key(|run| (completed(run.borrow()), run.borrow().name_any()))
}

/// When a run was over.
pub fn completed(run: &TrainingRun) -> Option<Timestamp> {
    Some(run.status.as_ref()?.completion_time.as_ref()?.0)
}

/// Where a run stands.
pub fn phase(run: &TrainingRun) -> Option<RunPhase> {
    run.status.as_ref()?.phase
}

/// Whether a run is over.
pub fn is_over(run: &TrainingRun) -> bool {
    phase(run).is_some_and(RunPhase::is_terminal)
}

/// Whether a run is being deleted.
pub fn is_leaving(run: &TrainingRun) -> bool {
    run.metadata.deletion_timestamp.is_some()
}

/// Creates runs one after the other, until one cannot be created. Returns the names of those that exist now and, where
/// it is something that a user can mend, why the next one does not.
///
/// # Errors
/// When the API server does not answer.
pub async fn create(
    context: &Context,
    namespace: &str,
    runs: &[TrainingRun],
) -> Result<(BTreeSet<String>, Option<ClusterError>), ClusterError> {
    let mut created = BTreeSet::new();
    for run in runs {
        match cluster::create(&context.client, namespace, run).await {
            Ok(_) => created.insert(run.name_any()),
            Err(problem) if problem.is_users() => return Ok((created, Some(problem))),
            Err(problem) => return Err(problem),
        };
    }
    Ok((created, None))
}

/// The sentence of the first condition of `kind` that is true.
pub fn message_of(run: &TrainingRun, kind: &str) -> String {
    let conditions = run.status.iter().flat_map(|status| &status.conditions);
    let found = conditions.into_iter().find(|condition| condition.type_ == kind && condition.status == "True");
    found.map(|condition| format!("{}: {}", condition.reason, condition.message)).unwrap_or_default()
}
