//! The client of the API server that all controllers share. Nothing that it asks may wait for ever: an answer that got lost
//! with its connection would stop a controller in silence, while the Lease is renewed over another connection.

use std::time::Duration;

use kube::{Client, Config, client::ClientBuilder};
use tower::timeout::TimeoutLayer;

use crate::controller::WATCH;

/// Longest time until an answer begins, the client's own retries of 429 and 503 included. What a watch tells later is part of
/// its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest silence within an answer. An idle watch ends before.
const SILENCE: Duration = Duration::from_secs(WATCH.as_secs() + 15);

/// Makes the client.
///
/// # Errors
/// When the configuration has credentials that cannot be used.
pub fn client(mut config: Config) -> kube::Result<Client> {
    config.read_timeout = Some(SILENCE);
    // Otherwise the time that a connection was idle would count.
    config.reset_reader_on_write = true;
    Ok(ClientBuilder::try_from(config)?.with_layer(&TimeoutLayer::new(ANSWER)).build())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::{Api, api::ListParams};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_list_that_nobody_answers_fails_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        // It takes connections, and says nothing.
        let silent = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        let mut config = Config::new(format!("http://{address}").parse().expect("an address"));
        // Only the wait for the answer is to end it.
        config.connect_timeout = None;
        let pods: Api<Pod> = Api::all(client(config).expect("a client"));
        tokio::time::pause();
        let asked = tokio::time::timeout(2 * ANSWER, pods.list(&ListParams::default())).await;
        assert!(asked.expect("it ends").is_err());
        silent.abort();
    }
}
