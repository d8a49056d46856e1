//! What the schema cannot check about a sweep: its parameters become trials, once.

use std::collections::BTreeMap;

use anneal_api::resources::{
    MAX_TRIALS, Parameter, Search, TrainingRunSpec, TrainingSweep, TrainingSweepSpec, field_value, tunable,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::search::{self, Dimension, Parameters};
use crate::runs::{self, TemplateError};

/// A sweep whose specification makes sense. Only [`validate`] makes one.
#[derive(Clone, Debug)]
pub struct ValidSweep {
    /// Name of the sweep.
    pub name: String,
    /// Everything that needs no parsing.
    pub spec: TrainingSweepSpec,
    /// The parameters of each trial; trial 1 is the first.
    pub trials: Vec<Parameters>,
}

/// A specification cannot be used.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SweepError {
    /// The template makes no sense.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A parameter's values are not what its field takes.
    #[error("parameters: {0}")]
    Parameter(String),
    /// There are more combinations than trials.
    #[error(
        "search: Grid has {} combinations, and {limit} trials are allowed; take values away, {}use search: Random",
        combinations.map_or_else(|| "countless".to_owned(), |count| count.to_string()),
        if combinations.is_some_and(|count| count <= MAX_TRIALS) { "raise maxTrials in a new TrainingSweep, or " } else { "or " }
    )]
    TooMany {
        /// How many there are, where they can be counted.
        combinations: Option<usize>,
        /// How many are allowed.
        limit: usize,
    },
}

impl SweepError {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Template(problem) => problem.reason(),
            Self::Parameter(_) => "InvalidParameter",
            Self::TooMany { .. } => "TooManyCombinations",
        }
    }
}

/// Parses a sweep.
///
/// # Errors
/// [`SweepError`], with what to write instead.
pub fn validate(sweep: &TrainingSweep) -> Result<ValidSweep, SweepError> {
    let spec = sweep.spec.clone();
    runs::check(&spec.template)?;
    let mut dimensions = BTreeMap::new();
    for parameter in &spec.parameters {
        dimensions.insert(parameter.name.clone(), dimension(parameter).map_err(SweepError::Parameter)?);
    }
    let limit = spec.max_trials.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(MAX_TRIALS).min(MAX_TRIALS);
    let trials = match spec.search {
        Search::Grid => match search::combinations(&dimensions) {
            Some(count) if count <= limit => search::grid(&dimensions),
            combinations => return Err(SweepError::TooMany { combinations, limit }),
        },
        Search::Random => search::random(&dimensions, spec.seed, limit),
    };
    Ok(ValidSweep { name: sweep.name_any(), spec, trials })
}

fn dimension(parameter: &Parameter) -> Result<Dimension, String> {
    let path = &parameter.name;
    if let Some(range) = parameter.range {
        for bound in [range.min, range.max] {
            field_value(path, &json!(bound))?;
        }
        let whole = tunable().get(path).is_some_and(|schema| schema.type_.as_deref() == Some("integer"));
        return Ok(Dimension::Range { range, whole });
    }
    let numbers = parameter.values.iter().map(|number| json!(number));
    let words = parameter.choices.iter().map(|word| json!(word));
    let mut values: Vec<Value> = Vec::new();
    for given in numbers.chain(words) {
        let value = field_value(path, &given)?;
        if values.contains(&value) {
            return Err(format!("{path} has {} twice; remove one of them", search::word(&value)));
        }
        values.push(value);
    }
    Ok(Dimension::Values(values))
}

impl ValidSweep {
    /// Name of the run of a trial.
    pub fn run_name(&self, trial: i32) -> String {
        format!("{}-{trial}", self.name)
    }

    /// The parameters of a trial as they are shown; none where there is no such trial.
    pub fn shown(&self, trial: i32) -> BTreeMap<String, String> {
        let shown = |(path, value): (&String, &Value)| (path.clone(), search::word(value));
        self.parameters(trial).into_iter().flatten().map(shown).collect()
    }

    fn parameters(&self, trial: i32) -> Option<&Parameters> {
        self.trials.get(usize::try_from(trial).ok()?.checked_sub(1)?)
    }

    /// The template's specification with the parameters of a trial put over it.
    ///
    /// # Errors
    /// When a field does not take its value; values were checked one by one before, so this does not happen.
    pub fn run_spec(&self, trial: i32) -> Result<TrainingRunSpec, serde_json::Error> {
        let mut spec = serde_json::to_value(&self.spec.template.spec)?;
        for (path, value) in self.parameters(trial).into_iter().flatten() {
            let pointer = format!("/{}", path.replace('.', "/"));
            let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", &pointer));
            if let Some(Value::Object(parent)) = spec.pointer_mut(parent) {
                parent.insert(field.to_owned(), value.clone());
            }
        }
        serde_json::from_value(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(spec: &Value) -> TrainingSweep {
        let mut all = json!({
            "template": {"spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}},
            "parameters": [{"name": "hyperparameters.learningRate", "values": [0.001, 0.01]}]
        });
        for (key, value) in spec.as_object().expect("an object") {
            all[key] = value.clone();
        }
        TrainingSweep::new("rates", serde_json::from_value(all).expect("a spec"))
    }

    #[test]
    fn a_trial_is_the_template_with_its_parameters() {
        let parameters = json!([
            {"name": "hyperparameters.augmentation.hue", "values": [0]},
            {"name": "hyperparameters.optimizer", "choices": ["Adam", "SGD"]},
            {"name": "model.inputSize", "values": [64]}
        ]);
        let valid = validate(&sweep(&json!({"parameters": parameters}))).expect("valid");
        let second = valid.run_spec(2).expect("a spec");
        assert_eq!(valid.run_name(2), "rates-2");
        assert_eq!(second.model.input_size, 64);
        assert!(second.hyperparameters.augmentation.hue.abs() < f64::EPSILON);
        assert_eq!(valid.shown(2)["hyperparameters.optimizer"], "SGD");
        assert_eq!(serde_json::to_value(second.hyperparameters.optimizer).expect("json"), "SGD");
        assert_eq!(second.dataset, valid.spec.template.spec.dataset);
    }

    #[test]
    fn a_sweep_that_makes_no_sense_says_what_to_write() {
        let many: Vec<f64> = (1..=20).map(f64::from).collect();
        for (spec, reason, hint) in [
            (
                json!({"parameters": [{"name": "hyperparameters.epochs", "values": many}, {"name": "hyperparameters.batchSize", "values": many}]}),
                "TooManyCombinations",
                "400 combinations",
            ),
            (json!({"maxTrials": 1}), "TooManyCombinations", "raise maxTrials"),
            (
                json!({"parameters": [{"name": "hyperparameters.epochs", "values": [1, 1]}]}),
                "InvalidParameter",
                "has 1 twice",
            ),
            (
                json!({"parameters": [{"name": "hyperparameters.learningRate", "values": [1000]}]}),
                "InvalidParameter",
                "1000.0 is not in it",
            ),
            (
                json!({"search": "Random", "maxTrials": 3, "parameters": [{"name": "hyperparameters.epochs", "range": {"min": 1.5, "max": 3}}]}),
                "InvalidParameter",
                "whole numbers",
            ),
            (
                json!({"template": {"metadata": {"labels": {"anneal.dev/x": "y"}}, "spec": {"dataset": {"uri": "synthetic://"}, "output": {"claimName": "models"}}}}),
                "ReservedKey",
                "anneal.dev/x",
            ),
        ] {
            let problem = validate(&sweep(&spec)).expect_err(hint);
            assert_eq!(problem.reason(), reason);
            assert!(problem.to_string().contains(hint), "{problem}");
        }
    }
}
