//! `TrainingSweep`: many trainings over one template, to find the best hyperparameters.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RunTemplate, conditions_schema, parameter_name};

/// Trials that a sweep may have, and keeps in its status.
pub const MAX_TRIALS: usize = 200;

/// Many trainings over one template, to find the best hyperparameters.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "anneal.dev",
    version = "v1alpha1",
    kind = "TrainingSweep",
    namespaced,
    status = "TrainingSweepStatus",
    derive = "PartialEq",
    shortname = "tsweep",
    category = "anneal",
    doc = "Many trainings over one template, to find the best hyperparameters.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Trials", type_ = "integer", json_path = ".status.counts.total"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.counts.running"),
    printcolumn(name = "Succeeded", type_ = "integer", json_path = ".status.counts.succeeded"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.counts.failed"),
    printcolumn(name = "Stopped", type_ = "integer", json_path = ".status.counts.stopped"),
    printcolumn(name = "Best", type_ = "number", json_path = ".status.best.value"),
    printcolumn(name = "Best-Run", type_ = "string", json_path = ".status.best.run"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 36").message("metadata.name must be at most 36 characters: the names of its TrainingRuns are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must start with a letter and hold only a-z, 0-9 and -: the names of its TrainingRuns are made from it")
)]
#[x_kube(
    validation = Rule::new("self.search != 'Grid' || self.parameters.all(p, !has(p.range))").message("search: Grid tries every combination, so each parameter needs values or choices; write those, or use search: Random"),
    validation = Rule::new("self.search != 'Random' || has(self.maxTrials)").message("search: Random needs maxTrials: how many trials to draw"),
    validation = Rule::new("!has(self.template.spec.ttlSecondsAfterFinished)").message("template.spec.ttlSecondsAfterFinished would delete trials that the sweep still compares; remove it, and set ttlSecondsAfterFinished of the sweep, which deletes them all together"),
    validation = Rule::new("self.parameters == oldSelf.parameters").message("parameters are immutable; create a new TrainingSweep"),
    validation = Rule::new("self.search == oldSelf.search && self.seed == oldSelf.seed").message("search and seed are immutable; create a new TrainingSweep"),
    validation = Rule::new("has(self.maxTrials) == has(oldSelf.maxTrials) && (!has(self.maxTrials) || self.maxTrials == oldSelf.maxTrials)").message("maxTrials is immutable; create a new TrainingSweep"),
    validation = Rule::new("self.objective == oldSelf.objective").message("objective is immutable; create a new TrainingSweep"),
    validation = Rule::new("self.template.spec.model == oldSelf.template.spec.model && self.template.spec.dataset == oldSelf.template.spec.dataset && self.template.spec.hyperparameters == oldSelf.template.spec.hyperparameters && self.template.spec.output == oldSelf.template.spec.output && self.template.spec.numNodes == oldSelf.template.spec.numNodes && has(self.template.spec.initFrom) == has(oldSelf.template.spec.initFrom) && (!has(self.template.spec.initFrom) || self.template.spec.initFrom == oldSelf.template.spec.initFrom)").message("model, initFrom, dataset, hyperparameters, output and numNodes of the template are immutable: trials that differ in more than their parameters cannot be compared; create a new TrainingSweep")
)]
#[serde(rename_all = "camelCase")]
pub struct TrainingSweepSpec {
    /// What every trial has in common; the parameters of a trial are put over it.
    pub template: RunTemplate,
    /// What the trials differ in.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub parameters: Vec<Parameter>,
    /// How parameters are chosen: `Grid` tries every combination, `Random` draws `maxTrials` of them.
    #[serde(default)]
    pub search: Search,
    /// The most trials. A Grid of more combinations is refused; Random draws as many as this.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 200))]
    pub max_trials: Option<i32>,
    /// Seed of search Random: the same seed draws the same trials.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: i64,
    /// Trials that may run at the same time.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub parallelism: i32,
    /// By which number trials are compared.
    #[serde(default)]
    pub objective: Objective,
    /// Stops trials that do worse than the others half-way. Absent: every trial trains to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Trials that may fail. One more, and no further trial starts; the sweep fails when those that run are over.
    #[serde(default = "three")]
    #[schemars(range(min = 0, max = 200))]
    pub max_failed_trials: i32,
    /// While true, no trial starts, and those under way are suspended: each writes a checkpoint and ends. False again, they
    /// go on from there.
    #[serde(default)]
    pub suspend: bool,
    /// Seconds after its end when the sweep is deleted, with its `TrainingRuns`. Published models stay on the claim. It
    /// is put off for as long as a `ModelDeployment` refers to one of the runs. Absent: it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub ttl_seconds_after_finished: Option<i64>,
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

/// A field of the template that trials differ in, and what it may be.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("[has(self.values), has(self.choices), has(self.range)].filter(given, given).size() == 1").message("give a parameter exactly one of values (a list of numbers), choices (a list of words) and range (with min and max)")
)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// The field, as a path below `template.spec`: `hyperparameters.learningRate`, `model.inputSize`.
    #[schemars(schema_with = "parameter_name")]
    pub name: String,
    /// Numbers to choose from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub values: Vec<f64>,
    /// Words to choose from, for fields such as `hyperparameters.optimizer`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    pub choices: Vec<String>,
    /// Numbers to draw from, with search Random. A field of whole numbers gets whole numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
}

/// Numbers between two bounds, which belong to it.
#[derive(KubeSchema, Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.min < self.max").message("range.min must be below range.max"),
    validation = Rule::new("self.scale != 'Log' || self.min > 0.0").message("range.min must be above 0 with scale: Log")
)]
#[serde(rename_all = "camelCase")]
pub struct Range {
    /// The smallest number.
    pub min: f64,
    /// The largest number.
    pub max: f64,
    /// Whether numbers (`Linear`) or their logarithms (`Log`) are equally likely. Log suits learning rates.
    #[serde(default)]
    pub scale: Scale,
}

/// How the numbers of a range are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Scale {
    /// All numbers are equally likely.
    #[default]
    Linear,
    /// All orders of magnitude are equally likely.
    Log,
}

/// How parameters are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Search {
    /// Every combination, the last parameter by name fastest.
    #[default]
    Grid,
    /// Combinations drawn by `seed`, each at most once.
    Random,
}

/// By which number trials are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Objective {
    /// `Accuracy`: the best validation accuracy of the run. `Loss`: its lowest training loss.
    pub metric: ObjectiveMetric,
    /// Whether the largest or the smallest is best. Absent: `Maximize` for Accuracy, `Minimize` for Loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

/// A number that a run reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ObjectiveMetric {
    /// The best validation accuracy.
    #[default]
    Accuracy,
    /// The training loss.
    Loss,
}

/// Which of two numbers is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Goal {
    /// The larger one.
    Maximize,
    /// The smaller one.
    Minimize,
}

impl Objective {
    /// The goal: what the user says, else what the metric stands for.
    pub fn goal(self) -> Goal {
        self.goal.unwrap_or(match self.metric {
            ObjectiveMetric::Accuracy => Goal::Maximize,
            ObjectiveMetric::Loss => Goal::Minimize,
        })
    }
}

/// When a trial is stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EarlyStopping {
    /// `Median`: a trial whose best is worse than the median of the others' at the same epoch is stopped.
    #[serde(default)]
    pub rule: StoppingRule,
    /// Epochs that every trial may train before it is compared; then again after twice, four times … as many.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 10_000))]
    pub grace_epochs: i32,
    /// Other trials that must have come as far before a trial is compared with them.
    #[serde(default = "three")]
    #[schemars(range(min = 1, max = 200))]
    pub min_trials: i32,
}

/// How trials are compared half-way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StoppingRule {
    /// With the median of the others at the same epoch.
    #[default]
    Median,
}

/// Where a sweep stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SweepPhase {
    /// No trial has started yet.
    Pending,
    /// Trials run or are about to.
    Running,
    /// `spec.suspend` is true, and no trial runs.
    Suspended,
    /// All trials are over, and at least one of them succeeded.
    Succeeded,
    /// Too many trials failed, or none succeeded.
    Failed,
}

impl SweepPhase {
    /// Whether the sweep is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What the operator knows about a sweep.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct TrainingSweepStatus {
    /// Where the sweep stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<SweepPhase>,
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions: Ready, Progressing, Stalled, Suspended, Complete, Failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// How many trials there are, and where they stand; each is counted once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counts: Option<TrialCounts>,
    /// The best of the trials that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<BestTrial>,
    /// Every trial that was started, by number.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub trials: Vec<TrialStatus>,
    /// When the first trial was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the sweep was over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
}

/// How many trials there are, and where they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialCounts {
    /// All trials of the sweep, those that are not started yet included.
    pub total: i32,
    /// Trials that are not started yet, or whose pod is not running yet.
    pub pending: i32,
    /// Trials that train.
    pub running: i32,
    /// Trials whose model is published.
    pub succeeded: i32,
    /// Trials that failed for good.
    pub failed: i32,
    /// Trials that were stopped early, or whose `TrainingRun` was deleted before its end.
    pub stopped: i32,
}

/// The best of the trials that succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BestTrial {
    /// Name of its `TrainingRun`, for `model.trainingRunRef` of a `ModelDeployment`.
    #[schemars(length(max = 253))]
    pub run: String,
    /// Its value of the objective's metric.
    pub value: f64,
    /// Its parameters, by path.
    #[schemars(extend("maxProperties" = 16))]
    pub parameters: BTreeMap<String, String>,
}

/// Where a trial stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TrialPhase {
    /// Its pod is not running yet.
    Pending,
    /// It trains.
    Running,
    /// Its model is published.
    Succeeded,
    /// It failed for good.
    Failed,
    /// It was stopped early, or its `TrainingRun` was deleted before its end.
    Stopped,
}

impl TrialPhase {
    /// Whether the trial is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Stopped)
    }
}

/// A trial that was started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrialStatus {
    /// Number of the trial, counted from 1.
    pub number: i32,
    /// Name of its `TrainingRun`.
    #[schemars(length(max = 253))]
    pub run: String,
    /// Where it stands.
    pub phase: TrialPhase,
    /// Its parameters, by path.
    #[schemars(extend("maxProperties" = 16))]
    pub parameters: BTreeMap<String, String>,
    /// Its value of the objective's metric: the final one, or the newest that it was compared by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// What it was compared by on its way, by epoch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub milestones: Vec<Milestone>,
    /// Why it failed or was stopped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub message: String,
}

/// How good a trial was when it came to an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Milestone {
    /// Epochs that were done.
    pub epoch: i32,
    /// The objective's metric then.
    pub value: f64,
}
