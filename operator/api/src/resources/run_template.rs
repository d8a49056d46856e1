//! The template from which other resources make `TrainingRuns`.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TrainingRunSpec;

/// What the `TrainingRuns` that are made look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunTemplate {
    /// Labels and annotations of the `TrainingRuns` that are made.
    #[serde(default, skip_serializing_if = "TemplateMetadata::is_empty")]
    pub metadata: TemplateMetadata,
    /// Specification of the `TrainingRuns` that are made, as in a `TrainingRun` of your own.
    #[schemars(schema_with = "spec_of_a_template")]
    pub spec: TrainingRunSpec,
}

/// Labels and annotations of the `TrainingRuns` that are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TemplateMetadata {
    /// Labels, beside the operator's own; keys below `anneal.dev/` are the operator's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub labels: BTreeMap<String, String>,
    /// Annotations; keys below `anneal.dev/` are the operator's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: BTreeMap<String, String>,
}

impl TemplateMetadata {
    fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// The specification's schema without the rules about changes: they are about a run, and a template is none.
fn spec_of_a_template(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = TrainingRunSpec::json_schema(generator);
    if let Some(object) = schema.as_object_mut() {
        object.values_mut().for_each(without_transition_rules);
        keep_timeless_rules(object);
    }
    schema
}

fn without_transition_rules(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(without_transition_rules);
            keep_timeless_rules(object);
        }
        Value::Array(all) => all.iter_mut().for_each(without_transition_rules),
        _ => {}
    }
}

fn keep_timeless_rules(schema: &mut serde_json::Map<String, Value>) {
    const RULES: &str = "x-kubernetes-validations";
    let Some(Value::Array(rules)) = schema.get_mut(RULES) else { return };
    rules.retain(|rule| !rule["rule"].as_str().is_some_and(|text| text.contains("oldSelf")));
    if rules.is_empty() {
        schema.remove(RULES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_keeps_the_rules_of_a_run_but_those_about_changes() {
        let schema = schemars::generate::SchemaSettings::openapi3()
            .with(|settings| settings.inline_subschemas = true)
            .into_generator()
            .into_root_schema_for::<RunTemplate>();
        let text = serde_json::to_string(&schema).expect("json");
        assert!(text.contains("model.inputSize must be 224"), "{text}");
        assert!(!text.contains("oldSelf"), "{text}");
    }
}
