//! The fields of a run that a sweep may vary: what the run's own schema calls a number, a word or a switch.

use std::{collections::BTreeMap, sync::LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Number, Value, json};

use super::TrainingRun;

/// The fields of a run's spec below which a sweep may vary something.
const ROOTS: [&str; 2] = ["hyperparameters", "model"];

static TUNABLE: LazyLock<BTreeMap<String, JSONSchemaProps>> = LazyLock::new(|| {
    let spec = TrainingRun::crd()
        .spec
        .versions
        .into_iter()
        .find_map(|version| version.schema?.open_api_v3_schema?.properties?.remove("spec"));
    let mut fields = BTreeMap::new();
    for (name, schema) in spec.and_then(|spec| spec.properties).unwrap_or_default() {
        if ROOTS.contains(&name.as_str()) {
            collect(&name, schema, &mut fields);
        }
    }
    fields
});

fn collect(path: &str, schema: JSONSchemaProps, into: &mut BTreeMap<String, JSONSchemaProps>) {
    match schema.type_.as_deref() {
        Some("integer" | "number" | "string" | "boolean") => {
            into.insert(path.to_owned(), schema);
        }
        _ => {
            for (name, field) in schema.properties.unwrap_or_default() {
                collect(&format!("{path}.{name}"), field, into);
            }
        }
    }
}

/// The schema of each field that a sweep may vary, by its path below a run's `spec`.
pub fn tunable() -> &'static BTreeMap<String, JSONSchemaProps> {
    &TUNABLE
}

/// The schema of a parameter's name: one of the paths, so that the API server refuses all others.
pub fn parameter_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "maxLength": 128, "enum": tunable().keys().collect::<Vec<_>>()})
}

/// A number or a word as the field at `path` takes it.
///
/// # Errors
/// A sentence that says what the field takes.
pub fn field_value(path: &str, given: &Value) -> Result<Value, String> {
    let Some(schema) = tunable().get(path) else {
        let known: Vec<&str> = tunable().keys().map(String::as_str).collect();
        return Err(format!("a run has no field {path}; use one of {}", known.join(", ")));
    };
    match (schema.type_.as_deref(), given) {
        (Some("integer" | "number"), Value::Number(number)) => in_range(path, schema, number),
        (Some("integer" | "number"), _) => {
            Err(format!("{path} takes numbers, not {given}; write them under values or range"))
        }
        (Some("boolean"), Value::String(word)) if word == "true" || word == "false" => Ok(json!(word == "true")),
        (Some("boolean"), _) => Err(format!("{path} takes the choices \"true\" and \"false\", not {given}")),
        (_, Value::String(word)) => one_of(path, schema, word),
        _ => Err(format!("{path} takes words, not {given}; write them under choices")),
    }
}

fn in_range(path: &str, schema: &JSONSchemaProps, number: &Number) -> Result<Value, String> {
    let Some(value) = number.as_f64() else { return Err(format!("{path}: {number} is too large")) };
    let below = schema.minimum.is_some_and(|minimum| value < minimum);
    let above = schema.maximum.is_some_and(|maximum| value > maximum);
    if below || above {
        let bound = |bound: Option<f64>, none: &str| bound.map_or_else(|| none.to_owned(), |bound| bound.to_string());
        let (least, most) = (bound(schema.minimum, "-∞"), bound(schema.maximum, "∞"));
        return Err(format!("{path} takes {least} to {most}, and {number} is not in it"));
    }
    if schema.type_.as_deref() != Some("integer") {
        return Ok(json!(value));
    }
    // Whole numbers below 2^53 have exactly one text without a fraction.
    match format!("{value:.0}").parse::<i64>() {
        Ok(whole) if value.fract() == 0.0 => Ok(json!(whole)),
        _ => Err(format!("{path} takes whole numbers, not {number}")),
    }
}

fn one_of(path: &str, schema: &JSONSchemaProps, word: &str) -> Result<Value, String> {
    let value = json!(word);
    match &schema.enum_ {
        Some(known) if !known.iter().any(|known| known.0 == value) => {
            let known: Vec<String> = known.iter().filter_map(|known| Some(known.0.as_str()?.to_owned())).collect();
            Err(format!("{path} takes {}, not {word:?}", known.join(", ")))
        }
        _ => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_words_and_switches_can_be_varied_and_nothing_else() {
        let paths: Vec<&str> = tunable().keys().map(String::as_str).collect();
        for path in ["hyperparameters.learningRate", "hyperparameters.augmentation.hue", "model.inputSize"] {
            assert!(paths.contains(&path), "{paths:?}");
        }
        assert!(!paths.contains(&"hyperparameters.augmentation") && !paths.contains(&"dataset.uri"), "{paths:?}");
    }

    #[test]
    fn a_value_becomes_what_its_field_takes() {
        assert_eq!(field_value("hyperparameters.batchSize", &json!(32.0)), Ok(json!(32)));
        assert_eq!(field_value("hyperparameters.learningRate", &json!(1)), Ok(json!(1.0)));
        assert_eq!(field_value("hyperparameters.optimizer", &json!("SGD")), Ok(json!("SGD")));
    }

    #[test]
    fn a_value_that_its_field_does_not_take_is_refused_with_what_it_takes() {
        for (path, given, hint) in [
            ("hyperparameters.lerningRate", json!(1), "use one of hyperparameters."),
            ("hyperparameters.batchSize", json!(32.5), "whole numbers"),
            ("hyperparameters.batchSize", json!(0), "1 to 4096"),
            ("hyperparameters.batchSize", json!("many"), "takes numbers"),
            ("hyperparameters.optimizer", json!("Adm"), "takes Adam, AdamW, SGD"),
            ("hyperparameters.optimizer", json!(1), "under choices"),
        ] {
            let problem = field_value(path, &given).expect_err(path);
            assert!(problem.contains(hint), "{problem}");
        }
    }
}
