//! Asks pods over HTTP: bounded in time and size, by their address inside the cluster and through the API server's proxy
//! outside.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use crate::context::{Context, Reach};

/// Longest time that one read may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A pod to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Address of the pod.
    pub address: String,
}

/// What is asked of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Port that it listens on.
    pub port: u16,
    /// Path, with its first slash.
    pub path: &'static str,
    /// Longest answer that is read.
    pub max_bytes: usize,
}

/// Keeps the connections to pods.
pub struct PodClient(Client<HttpConnector, Empty<Bytes>>);

impl Default for PodClient {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }
}

impl PodClient {
    /// Reads what a pod answers.
    ///
    /// # Errors
    /// When it does not answer in time, with anything but success, or at too great a length.
    pub async fn get(&self, context: &Context, target: &Target, question: Question) -> Result<String, String> {
        let answer = async {
            match context.settings.reach {
                Reach::Address => self.by_address(target, question).await,
                Reach::Proxy => by_proxy(context, target, question).await,
            }
        };
        tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    async fn by_address(&self, target: &Target, question: Question) -> Result<String, String> {
        let Question { port, path, max_bytes } = question;
        let host = if target.address.contains(':') { format!("[{}]", target.address) } else { target.address.clone() };
        let uri = format!("http://{host}:{port}{path}").parse().map_err(|problem| format!("{problem}"))?;
        let answer = self.0.get(uri).await.map_err(|problem| problem.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()));
        }
        let body =
            Limited::new(answer.into_body(), max_bytes).collect().await.map_err(|problem| problem.to_string())?;
        String::from_utf8(body.to_bytes().to_vec()).map_err(|problem| problem.to_string())
    }
}

async fn by_proxy(context: &Context, target: &Target, question: Question) -> Result<String, String> {
    let Question { port, path, max_bytes } = question;
    let path = format!("/api/v1/namespaces/{}/pods/{}:{port}/proxy{path}", target.namespace, target.pod);
    let request = hyper::Request::get(path).body(Vec::new()).map_err(|problem| problem.to_string())?;
    let text = context.client.request_text(request).await.map_err(|problem| problem.to_string())?;
    if text.len() > max_bytes { Err("the answer is too long".to_owned()) } else { Ok(text) }
}
