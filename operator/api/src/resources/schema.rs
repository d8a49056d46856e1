//! The definitions as the API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSONSchemaProps};
use kube::CustomResourceExt;

use super::{ModelDeployment, TrainingRun};

/// The `CustomResourceDefinition` of every kind, ready for the API server.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [TrainingRun::crd(), ModelDeployment::crd()].into_iter().map(structural).collect()
}

/// The contract types refuse unknown fields, which a laptop's YAML needs; a structural schema must not say so beside
/// `properties`. The API server prunes unknown fields, and kubectl warns or refuses by itself.
fn structural(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            rewrite(schema);
        }
    }
    definition
}

fn rewrite(schema: &mut JSONSchemaProps) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    };
    if matches!(schema.additional_properties, Some(JSONSchemaPropsOrBool::Bool(false))) {
        schema.additional_properties = None;
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        rewrite(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => rewrite(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(rewrite),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(item)) = &mut schema.additional_properties {
        rewrite(item);
    }
}
