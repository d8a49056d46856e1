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
}
