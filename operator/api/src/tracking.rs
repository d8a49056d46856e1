//! Where a run is recorded beside its own volume.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::SecretRef;

/// Where a run is recorded beside its own volume. Training never waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracking {
    /// An MLflow tracking server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<Mlflow>,
}

/// An MLflow tracking server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mlflow {
    /// Its address, such as `http://mlflow:5000`.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^https?://[^/@?# ]+(/[^?# ]*)?$"))]
    pub uri: String,
    /// The experiment; it is made where it does not exist.
    #[serde(default = "default_experiment")]
    #[schemars(length(min = 1, max = 250))]
    pub experiment: String,
    /// Name in the model registry under which each success becomes a version; none is registered without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 250), regex(pattern = "^[^/:]+$"))]
    pub registered_model: Option<String>,
    /// Alias that is set on that version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 100), regex(pattern = "^[a-z][-a-z0-9_]*$"))]
    pub alias: Option<String>,
    /// A Secret in the run's namespace with `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and
    /// `MLFLOW_TRACKING_PASSWORD`. Each of its keys becomes an environment variable of the trainer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

fn default_experiment() -> String {
    "anneal".to_owned()
}
