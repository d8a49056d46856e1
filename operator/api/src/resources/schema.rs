//! The definitions as the API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::CustomResourceExt;

use super::{CronTrainingRun, ModelDeployment, TrainingRun, TrainingSweep};

/// The `CustomResourceDefinition` of every kind, ready for the API server.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![TrainingRun::crd(), ModelDeployment::crd(), TrainingSweep::crd(), CronTrainingRun::crd()]
}

/// The schema of a kind, as the API server has it.
pub fn schema_of(definition: &CustomResourceDefinition) -> Option<&JSONSchemaProps> {
    definition.spec.versions.first()?.schema.as_ref()?.open_api_v3_schema.as_ref()
}

/// The schemas of a list's elements and of a map's values, where it is one; otherwise the schema itself.
pub fn element(schema: &JSONSchemaProps) -> &JSONSchemaProps {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaPropsOrArray::Schema, JSONSchemaPropsOrBool,
    };
    match (&schema.items, &schema.additional_properties) {
        (Some(Schema(items)), _) => element(items),
        (_, Some(JSONSchemaPropsOrBool::Schema(values))) => element(values),
        _ => schema,
    }
}

/// Whether a field, by its path, has one of Kubernetes' own types: those are explained in Kubernetes' own reference, by
/// the name of the type.
pub fn kubernetes_type(path: &str) -> Option<&'static str> {
    let field = path.rsplit('.').next().unwrap_or(path).trim_end_matches("[]");
    Some(match field {
        "affinity" => "Affinity",
        "conditions" => "Condition",
        "configMap" => "ConfigMapVolumeSource",
        "csi" => "CSIVolumeSource",
        "downwardAPI" => "DownwardAPIVolumeSource",
        "emptyDir" => "EmptyDirVolumeSource",
        "env" => "EnvVar",
        "envFrom" => "EnvFromSource",
        "persistentVolumeClaim" => "PersistentVolumeClaimVolumeSource",
        "projected" => "ProjectedVolumeSource",
        "secret" => "SecretVolumeSource",
        "tolerations" => "Toleration",
        "topologySpreadConstraints" => "TopologySpreadConstraint",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_yaml::Value;

    use super::*;

    /// Every field of a schema, by its path, with its schema.
    fn fields(path: &str, schema: &JSONSchemaProps, into: &mut Vec<(String, JSONSchemaProps)>) {
        for (name, field) in element(schema).properties.iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            fields(&path, field, into);
            into.push((path, field.clone()));
        }
    }

    #[test]
    fn kubectl_explains_every_field_in_words() {
        let mut poor = Vec::new();
        for definition in definitions() {
            let kind = &definition.spec.names.kind;
            let schema = schema_of(&definition).expect("a schema");
            assert!(schema.description.as_ref().is_some_and(|text| text.split(' ').count() > 3), "{kind}");
            let mut all = Vec::new();
            fields("", schema, &mut all);
            for (path, field) in all {
                let text = field.description.unwrap_or_default();
                // A link of rustdoc's is no word to a user.
                if text.split_whitespace().count() < 3 || text.contains("[`") {
                    poor.push(format!("{kind} {path}: {text:?}"));
                }
            }
        }
        assert!(poor.is_empty(), "{}", poor.join("\n"));
    }

    /// What a manifest says at a path: of a list and a map, what each of their elements says.
    fn said<'a>(value: &'a Value, path: &[&str]) -> Vec<&'a Value> {
        match (value, path) {
            (Value::Sequence(all), _) => all.iter().flat_map(|element| said(element, path)).collect(),
            (_, []) => vec![value],
            (Value::Mapping(map), [first, rest @ ..]) => map.get(*first).map_or_else(Vec::new, |it| said(it, rest)),
            _ => Vec::new(),
        }
    }

    /// The paths of a manifest that its schema does not know.
    fn unknown(path: &str, value: &Value, schema: &JSONSchemaProps, into: &mut Vec<String>) {
        let properties = element(schema).properties.as_ref();
        match value {
            Value::Sequence(all) => all.iter().for_each(|one| unknown(path, one, schema, into)),
            // A map and a type of Kubernetes' own take keys of all sorts.
            Value::Mapping(map) if properties.is_some() && kubernetes_type(path).is_none() => {
                for (key, value) in map {
                    let name = key.as_str().unwrap_or_default();
                    let path = format!("{path}.{name}");
                    match properties.and_then(|all| all.get(name)) {
                        Some(field) => unknown(&path, value, field, into),
                        None => into.push(path),
                    }
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_reference_examples_have_every_field_and_no_other() {
        let examples = [
            ("TrainingRun", include_str!("../../../../examples/trainingrun-reference.yaml")),
            ("ModelDeployment", include_str!("../../../../examples/modeldeployment-reference.yaml")),
        ];
        for definition in definitions() {
            let Some((kind, text)) = examples.iter().find(|(kind, _)| *kind == definition.spec.names.kind) else {
                continue;
            };
            let documents: Vec<Value> =
                serde_yaml::Deserializer::from_str(text).map(|it| Value::deserialize(it).expect("YAML")).collect();
            let spec = &schema_of(&definition).and_then(|schema| schema.properties.as_ref()).expect("a schema")["spec"];
            let mut all = Vec::new();
            fields("spec", spec, &mut all);
            for (path, _) in all {
                let parts: Vec<&str> = path.split('.').collect();
                let is_within_kubernetes =
                    (1..parts.len()).any(|end| kubernetes_type(&parts[..end].join(".")).is_some());
                let is_there = documents.iter().any(|document| !said(document, &parts).is_empty());
                assert!(is_there || is_within_kubernetes, "{path} is to be added to the reference example of {kind}");
            }
            for document in &documents {
                let mut surplus = Vec::new();
                unknown("spec", &document["spec"], spec, &mut surplus);
                assert!(surplus.is_empty(), "{kind} has no field {surplus:?}");
                let taken = match *kind {
                    "TrainingRun" => serde_yaml::from_value::<TrainingRun>(document.clone()).map(|_| ()),
                    _ => serde_yaml::from_value::<ModelDeployment>(document.clone()).map(|_| ()),
                };
                taken.expect("what the operator reads");
            }
        }
    }
}
