//! Asks pods over HTTP: bounded in time and size, by their address inside the cluster and through the API server's proxy
//! outside.

use std::{collections::HashSet, fmt::Display, hash::Hash, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{StatusCode, body::Bytes, http::uri::InvalidUri};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::Body;

use crate::{
    context::{Context, Reach},
    turns::Turns,
};

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

/// A pod gave no answer that could be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// There is nothing of the kind: no such path, or nobody listens at the port. An image may do without.
    #[error("{0}")]
    Absent(String),
    /// Anything else: no answer in time, another status, too much, a connection that broke.
    #[error("{0}")]
    Failed(String),
}

/// How long a connection that nobody uses is kept: until the pod is read the next time.
const IDLE: Duration = Duration::from_secs(15);

/// Begins at each tick what is due, for ever: so much side by side, nothing twice at once, and namespaces in turn. Pods that
/// never answer take their own namespace's time. What is due has a key, a namespace, and the work.
pub async fn in_turn<K, W>(pause: Duration, at_once: usize, mut due: impl FnMut() -> Vec<(K, String, W)>)
where
    K: Clone + Eq + Hash,
    W: Future<Output = ()>,
{
    let turns = Turns::new(at_once);
    let mut tick = tokio::time::interval(pause);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut begun, mut under_way) = (HashSet::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            _ = tick.tick() => {
                for (key, namespace, work) in due() {
                    if !begun.insert(key.clone()) {
                        continue;
                    }
                    let turns = turns.clone();
                    under_way.push(async move {
                        let _turn = turns.take(&namespace).await;
                        work.await;
                        key
                    });
                }
            }
            Some(key) = under_way.next() => {
                begun.remove(&key);
            }
        }
    }
}

/// Keeps the connections to pods.
pub struct PodClient(Client<HttpConnector, Empty<Bytes>>);

impl Default for PodClient {
    fn default() -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        // Without a timer the connections to pods that went without a word would never be closed.
        client.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE);
        Self(client.build_http())
    }
}

impl PodClient {
    /// Reads what a pod answers.
    ///
    /// # Errors
    /// When it does not answer in time, with anything but success, or at too great a length.
    pub async fn get(&self, context: &Context, target: &Target, question: Question) -> Result<String, NoAnswer> {
        let answer = async {
            match context.settings.reach {
                Reach::Address => self.by_address(target, question).await,
                Reach::Proxy => by_proxy(context, target, question).await,
            }
        };
        tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|_| Err(failed(&"no answer in time")))
    }

    async fn by_address(&self, target: &Target, question: Question) -> Result<String, NoAnswer> {
        let Question { port, path, max_bytes } = question;
        let host = if target.address.contains(':') { format!("[{}]", target.address) } else { target.address.clone() };
        let uri = format!("http://{host}:{port}{path}").parse().map_err(|problem: InvalidUri| failed(&problem))?;
        let answer = self.0.get(uri).await.map_err(|problem| {
            if is_refused(&problem) { NoAnswer::Absent(problem.to_string()) } else { failed(&problem) }
        })?;
        succeeded(answer.status())?;
        text(answer.into_body(), max_bytes).await
    }
}

fn failed(problem: &dyn Display) -> NoAnswer {
    NoAnswer::Failed(problem.to_string())
}

fn succeeded(status: StatusCode) -> Result<(), NoAnswer> {
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::NOT_FOUND => Err(NoAnswer::Absent(format!("status {status}"))),
        status => Err(failed(&format_args!("status {status}"))),
    }
}

/// Whether nobody listens. A policy that keeps the operator out lets its questions vanish instead.
fn is_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// A body of at most so many bytes, as text.
async fn text<B>(body: B, max_bytes: usize) -> Result<String, NoAnswer>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let body = Limited::new(body, max_bytes).collect().await.map_err(|problem| failed(&problem))?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|problem| failed(&problem))
}

async fn by_proxy(context: &Context, target: &Target, question: Question) -> Result<String, NoAnswer> {
    let Question { port, path, max_bytes } = question;
    let path = format!("/api/v1/namespaces/{}/pods/{}:{port}/proxy{path}", target.namespace, target.pod);
    let request = hyper::Request::get(path).body(Body::empty()).map_err(|problem| failed(&problem))?;
    let answer = context.client.send(request).await.map_err(|problem| failed(&problem))?;
    succeeded(answer.status())?;
    text(answer.into_body(), max_bytes).await
}
