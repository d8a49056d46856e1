//! The few calls of MLflow's REST API that recording a run takes.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::spool::Metric;
use crate::data::remote::store::{chain, provide_tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Weights are large and networks slow.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(10);
/// Most entries of one batch, and the longest values, that the server takes.
pub(super) const METRICS: usize = 1000;
const PARAMS: usize = 100;
const LONGEST_PARAM: usize = 6000;
const LONGEST_TAG: usize = 5000;

/// A call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It may succeed later.
    #[error("{0}")]
    Later(String),
    /// It will never succeed.
    #[error("{0}")]
    Never(String),
    /// The file that it is about cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A server.
pub(super) struct Server {
    client: Client,
    uri: String,
}

/// A run at the server.
pub(super) struct Run {
    pub(super) id: String,
    pub(super) artifact_uri: String,
}

impl Server {
    pub(super) fn new(uri: &str) -> Result<Self, CallError> {
        provide_tls();
        let client = Client::builder()
            .user_agent(concat!("anneal-trainer/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .build();
        let client = client.map_err(|error| CallError::Later(chain(&error)))?;
        Ok(Self { client, uri: uri.trim_end_matches('/').to_owned() })
    }

    /// The run with this key, or a new one of this name.
    pub(super) async fn run(&self, experiment: &str, name: &str, start_time: i64, key: &str) -> Result<Run, CallError> {
        let experiment = self.experiment(experiment).await?;
        let filter = format!("tags.\"anneal.key\" = '{key}'");
        let found = self.post("runs/search", &json!({"experiment_ids": [experiment], "filter": filter})).await?;
        let run = if found["runs"][0].is_object() {
            found["runs"][0].clone()
        } else {
            let tags = json!([{"key": "mlflow.runName", "value": name}, {"key": "anneal.key", "value": key}]);
            let body = json!({
                "experiment_id": experiment, "run_name": name, "start_time": start_time, "tags": tags,
            });
            self.post("runs/create", &body).await?["run"].clone()
        };
        let text = |field: &str| run["info"][field].as_str().map(str::to_owned);
        match (text("run_id"), text("artifact_uri")) {
            (Some(id), Some(artifact_uri)) => Ok(Run { id, artifact_uri }),
            _ => Err(CallError::Later("the server's answer names no run".to_owned())),
        }
    }

    async fn experiment(&self, name: &str) -> Result<String, CallError> {
        for _ in 0..2 {
            let request = self.request(Method::GET, "experiments/get-by-name");
            match answer(request.query(&[("experiment_name", name)])).await {
                Ok(found) => {
                    let id = found["experiment"]["experiment_id"].as_str();
                    return id.map(str::to_owned).ok_or_else(|| CallError::Later("no experiment_id".to_owned()));
                }
                Err(CallError::Never(problem)) if problem.contains("RESOURCE_DOES_NOT_EXIST") => {}
                Err(error) => return Err(error),
            }
            match self.post("experiments/create", &json!({"name": name})).await {
                // Somebody else made it in between.
                Err(CallError::Never(problem)) if problem.contains("RESOURCE_ALREADY_EXISTS") => {}
                made => {
                    made?;
                }
            }
        }
        Err(CallError::Later(format!("the experiment {name:?} is neither there nor can it be made; is it deleted?")))
    }

    pub(super) async fn params(&self, run: &str, params: &[(String, String)]) -> Result<(), CallError> {
        for part in params.chunks(PARAMS) {
            let params: Vec<Value> = part.iter().map(|(key, value)| pair(key, value, LONGEST_PARAM)).collect();
            self.post("runs/log-batch", &json!({"run_id": run, "params": params})).await?;
        }
        Ok(())
    }

    pub(super) async fn tags(&self, run: &str, tags: &[(String, String)]) -> Result<(), CallError> {
        for part in tags.chunks(PARAMS) {
            let tags: Vec<Value> = part.iter().map(|(key, value)| pair(key, value, LONGEST_TAG)).collect();
            self.post("runs/log-batch", &json!({"run_id": run, "tags": tags})).await?;
        }
        Ok(())
    }

    pub(super) async fn metrics(&self, run: &str, metrics: &[Metric]) -> Result<(), CallError> {
        for part in metrics.chunks(METRICS) {
            self.post("runs/log-batch", &json!({"run_id": run, "metrics": part})).await?;
        }
        Ok(())
    }

    pub(super) async fn update(&self, run: &str, status: &str, end_time: Option<i64>) -> Result<(), CallError> {
        let mut body = json!({"run_id": run, "status": status});
        if let Some(end_time) = end_time {
            body["end_time"] = json!(end_time);
        }
        self.post("runs/update", &body).await.map(drop)
    }

    /// Puts a file among the run's artifacts.
    pub(super) async fn upload(&self, artifact_uri: &str, file: &Path, path: &str) -> Result<(), CallError> {
        let Some(root) = artifact_uri.strip_prefix("mlflow-artifacts:") else {
            return Err(CallError::Never(format!(
                "the server keeps artifacts at {artifact_uri} and does not pass them on; start it with --serve-artifacts"
            )));
        };
        // Some servers write their own address between: mlflow-artifacts://host:port/experiment/run/artifacts.
        let root = root.strip_prefix("//").map_or(root, |rest| rest.split_once('/').map_or("", |(_, path)| path));
        let content = fs::read(file).map_err(|source| CallError::File { path: file.to_owned(), source })?;
        let url = format!("{}/api/2.0/mlflow-artifacts/artifacts/{}/{path}", self.uri, root.trim_matches('/'));
        let request = authorise(self.client.put(url)).timeout(UPLOAD_TIMEOUT).body(content);
        answer(request).await.map(drop)
    }

    /// Makes a version of a registered model, with an alias where one is named.
    pub(super) async fn register(
        &self,
        run: &str,
        artifact_uri: &str,
        name: &str,
        alias: Option<&str>,
        path: &str,
    ) -> Result<(), CallError> {
        match self.post("registered-models/create", &json!({"name": name})).await {
            Err(CallError::Never(problem)) if problem.contains("RESOURCE_ALREADY_EXISTS") => {}
            made => {
                made?;
            }
        }
        let source = format!("{artifact_uri}/{path}");
        // After a lost answer the version is there already.
        let filter = format!("name = '{}' and run_id = '{run}'", name.replace('\'', "''"));
        let request = self.request(Method::GET, "model-versions/search").query(&[("filter", filter.as_str())]);
        let found = answer(request).await?;
        let version = if found["model_versions"][0].is_object() {
            found["model_versions"][0]["version"].clone()
        } else {
            let body = json!({"name": name, "source": source, "run_id": run});
            self.post("model-versions/create", &body).await?["model_version"]["version"].clone()
        };
        if let Some(alias) = alias {
            let body = json!({"name": name, "alias": alias, "version": version});
            self.post("registered-models/alias", &body).await?;
        }
        Ok(())
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, CallError> {
        answer(self.request(Method::POST, path).json(body)).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}/api/2.0/mlflow/{path}", self.uri));
        authorise(request).timeout(TIMEOUT)
    }
}

/// By the variables of MLflow's own client.
fn authorise(request: RequestBuilder) -> RequestBuilder {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(user) = variable("MLFLOW_TRACKING_USERNAME") {
        request.basic_auth(user, variable("MLFLOW_TRACKING_PASSWORD"))
    } else if let Some(token) = variable("MLFLOW_TRACKING_TOKEN") {
        request.bearer_auth(token)
    } else {
        request
    }
}

async fn answer(request: RequestBuilder) -> Result<Value, CallError> {
    let answer = request.send().await.map_err(|error| CallError::Later(chain(&error)))?;
    let status = answer.status();
    let text = answer.text().await.map_err(|error| CallError::Later(chain(&error)))?;
    if status.is_success() {
        // Uploads are answered with nothing.
        return Ok(serde_json::from_str(&text).unwrap_or_default());
    }
    let problem = format!("{status}: {}", text.chars().take(500).collect::<String>());
    let may_pass = status.is_server_error()
        || [
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::TOO_EARLY,
            // Whoever mends the credentials or the address wants the records.
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
        ]
        .contains(&status)
        || (status == StatusCode::NOT_FOUND && !text.contains("error_code"));
    Err(if may_pass { CallError::Later(problem) } else { CallError::Never(problem) })
}

fn pair(key: &str, value: &str, longest: usize) -> Value {
    // The server refuses the whole batch for one value that is too long, and counts characters.
    let value: String = value.chars().take(longest).collect();
    json!({"key": key, "value": value})
}
