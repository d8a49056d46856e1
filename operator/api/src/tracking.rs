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
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^https?://[^/@?# ]+(/[^@?# ]*)?$"))]
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

/// Whether this is the address of a server that may be shown.
///
/// # Errors
/// What to write instead.
pub fn check_address(uri: &str) -> Result<(), String> {
    let odd = |c: char| matches!(c, '@' | '?' | '#') || c.is_whitespace();
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://")).unwrap_or_default();
    if rest.is_empty() || rest.starts_with('/') || rest.contains(odd) {
        return Err(format!(
            "uri {uri:?} is no address; write http://HOST:PORT or https://HOST, without a password in it"
        ));
    }
    Ok(())
}

impl Mlflow {
    /// What is wrong with it and what to write instead, for those who have no API server that checks it.
    ///
    /// # Errors
    /// That, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        check_address(&self.uri)?;
        if self.experiment.is_empty() {
            return Err("experiment is empty; name one, or leave it out".to_owned());
        }
        if let Some(name) = self.registered_model.as_ref().filter(|name| name.is_empty() || name.contains(['/', ':'])) {
            return Err(format!("registeredModel {name:?} is no name; MLflow takes any without / and :"));
        }
        let Some(alias) = &self.alias else { return Ok(()) };
        if self.registered_model.is_none() {
            return Err(format!(
                "alias {alias:?} is set on a version of a registered model; name that in registeredModel"
            ));
        }
        let is_letter = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_');
        let is_version =
            alias.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()));
        if !alias.starts_with(|c: char| c.is_ascii_lowercase()) || !alias.chars().all(is_letter) {
            return Err(format!("alias {alias:?} must be a lower-case letter and then a-z, 0-9, - and _"));
        }
        if alias == "latest" || is_version {
            return Err(format!("alias {alias:?} is one of those that MLflow keeps for itself; choose another"));
        }
        Ok(())
    }
}

fn default_experiment() -> String {
    "anneal".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mlflow(with: &Value) -> Mlflow {
        let mut all = json!({"uri": "https://mlflow.example/team"});
        all.as_object_mut().expect("a map").extend(with.as_object().expect("a map").clone());
        serde_json::from_value(all).expect("a server")
    }

    #[test]
    fn a_server_that_makes_no_sense_is_refused_with_what_to_write() {
        for with in [json!({}), json!({"registeredModel": "Cats and dogs", "alias": "champion-2"})] {
            assert_eq!(mlflow(&with).check(), Ok(()));
        }
        for (with, hint) in [
            (json!({"uri": "mlflow:5000"}), "write http://HOST:PORT"),
            (json!({"uri": "http:///mlflow"}), "write http://HOST:PORT"),
            (json!({"uri": "http://me:secret@mlflow"}), "without a password"),
            (json!({"uri": "http://mlflow/a@b"}), "without a password"),
            (json!({"experiment": ""}), "leave it out"),
            (json!({"registeredModel": "a/b"}), "without / and :"),
            (json!({"alias": "champion"}), "name that in registeredModel"),
            (json!({"registeredModel": "a", "alias": "Champion"}), "a lower-case letter"),
            (json!({"registeredModel": "a", "alias": "latest"}), "choose another"),
            (json!({"registeredModel": "a", "alias": "v2"}), "choose another"),
        ] {
            let problem = mlflow(&with).check().expect_err("a refusal");
            assert!(problem.contains(hint), "{problem}");
        }
    }
}
