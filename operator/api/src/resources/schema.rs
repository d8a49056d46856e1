//! The definitions as the API server takes them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{ModelDeployment, TrainingRun};

/// The `CustomResourceDefinition` of every kind, ready for the API server.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![TrainingRun::crd(), ModelDeployment::crd()]
}
