//! Leader election: one replica runs the controllers, and stops before another one may start.

use std::time::Duration;

use kube::{Client, Config};
use kube_lease_manager::{LeaseCreateMode, LeaseManager, LeaseManagerBuilder, LeaseManagerError};
use tokio::time::Instant;
use tracing::warn;

/// Seconds that a Lease lasts when its holder dies without a word.
const DURATION_SECONDS: u64 = 15;
/// Seconds before its end that the holder renews it.
const RENEW_BEFORE_SECONDS: u64 = 10;
/// How long renewals may fail before the leader gives up: the first failure is known at most 9 s after the last success
/// (5 s of pause, twice the timeout), so that the leader has stopped before the Lease runs out.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longest time to connect, and to wait for an answer; a connection that died in silence must not hold up a renewal.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between tries.
const PAUSE: Duration = Duration::from_secs(1);

/// The Lease cannot be taken or kept.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No client could be made.
    #[error("no client could be made for the Lease: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The Lease cannot be read or written.
    #[error("the Lease cannot be taken or kept: {0}; check the role for leases in coordination.k8s.io")]
    Manager(#[from] LeaseManagerError),
    /// Another replica has the Lease.
    #[error("the Lease was lost to another replica")]
    Lost,
}

/// A place in the line for the Lease.
pub struct Lease(LeaseManager);

impl Lease {
    /// Prepares to take the Lease `name`. It has a client of its own: one that never retries by itself, since a retry
    /// that takes long is worse than a failure here.
    ///
    /// Where the Lease can neither be read nor created, it is tried again: a process that ended instead would sit out
    /// the pauses of a crash loop long after the API server is back.
    ///
    /// # Errors
    /// When no client can be made of the configuration.
    pub async fn prepare(config: &Config, name: &str, namespace: &str, identity: &str) -> Result<Self, LeaseError> {
        let mut config = config.clone();
        config.connect_timeout = Some(CALL_TIMEOUT);
        config.read_timeout = Some(CALL_TIMEOUT);
        config.write_timeout = Some(CALL_TIMEOUT);
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|problem| LeaseError::Client(Box::new(problem)))?;
        loop {
            let manager = LeaseManagerBuilder::new(client.clone(), name)
                .with_namespace(namespace)
                .with_identity(identity)
                .with_field_manager(identity)
                .with_duration(DURATION_SECONDS)
                .with_grace(RENEW_BEFORE_SECONDS)
                .with_create_mode(LeaseCreateMode::AutoCreate)
                .build()
                .await;
            match manager {
                Ok(manager) => return Ok(Self(manager)),
                Err(problem) => {
                    warn!(%problem, "the Lease can neither be read nor made; it is tried again (check the role for leases in coordination.k8s.io)");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Waits for the Lease, through any outage of the API server.
    pub async fn acquired(&self) {
        loop {
            match self.0.changed().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(problem) => {
                    warn!(%problem, "the Lease could not be read; it is tried again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Renews the Lease until it is lost, or cannot be renewed in time.
    pub async fn lost(&self) -> LeaseError {
        let mut failing_since: Option<Instant> = None;
        loop {
            // A renewal that goes through says nothing. After a failure, silence for longer than a call can take is
            // such a renewal.
            let patience = if failing_since.is_some() { 2 * CALL_TIMEOUT + PAUSE } else { Duration::MAX };
            let Ok(news) = tokio::time::timeout(patience, self.0.changed()).await else {
                failing_since = None;
                continue;
            };
            let problem = match news {
                Ok(true) => continue,
                Ok(false) => return LeaseError::Lost,
                Err(problem) => problem,
            };
            let since = *failing_since.get_or_insert_with(Instant::now);
            warn!(%problem, "the Lease could not be renewed");
            if since.elapsed() >= PATIENCE {
                return problem.into();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Gives the Lease back, so that whoever waits for it need not wait until it runs out.
    ///
    /// # Errors
    /// When the API server does not answer; the Lease then runs out by itself.
    pub async fn release(&self) -> Result<(), LeaseError> {
        Ok(self.0.release().await?)
    }
}
