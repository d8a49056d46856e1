//! `anneal-server healthcheck`: asks a server whether it takes requests. The image has no shell and no curl for it.

use warp::http::StatusCode;

use crate::{client::Client, options::HealthcheckOptions};

/// Asks, and gives 1 where the server is not ready or does not answer.
pub async fn run(options: &HealthcheckOptions) -> i32 {
    match ask(options).await {
        Ok(()) => 0,
        Err(why) => {
            tracing::error!("{why}");
            1
        }
    }
}

async fn ask(options: &HealthcheckOptions) -> Result<(), String> {
    let client = Client::new(options.timeout, &options.access)?;
    let url = format!("{}/readyz", options.url.trim_end_matches('/'));
    let answer = client.get(&url).await.map_err(|error| error.to_string())?;
    if answer.status == StatusCode::OK {
        Ok(())
    } else {
        Err(format!("{url} answers {} ({})", answer.status, answer.detail()))
    }
}
