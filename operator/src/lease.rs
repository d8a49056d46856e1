//! Leader election: one replica runs the controllers, and stops before another one may start.
//!
//! As Kubernetes' own controllers do it. Nobody trusts another one's clock: a Lease is free where it names nobody, or where
//! it has not changed for its length by the clock of whoever waits, which never jumps. And each write names the version that
//! was read, so that of two that take it at one time one fails.

use std::{future::Future, time::Duration};

use anneal_api::names::OPERATOR;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as KubeLease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

/// How long a Lease lasts when its holder dies without a word.
const DURATION: Duration = Duration::from_secs(15);
/// How long after its last renewal the holder stops: well before anybody else may start.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pause between renewals. Two may fail.
const RENEWAL: Duration = Duration::from_secs(3);
/// Longest time that a try takes; a connection that died in silence must not hold up the next one.
const TRY: Duration = Duration::from_secs(3);
/// Pause between tries.
const PAUSE: Duration = Duration::from_secs(1);

/// The Lease cannot be taken or kept.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No client could be made.
    #[error("no client could be made for the Lease: {0}")]
    Client(#[source] Box<kube::Error>),
    /// The API server did not do as asked.
    #[error("the Lease can neither be read nor written: {0}; check the role for leases in coordination.k8s.io")]
    Api(#[from] kube::Error),
    /// The API server did not answer.
    #[error("the API server said nothing about the Lease for {} s", TRY.as_secs())]
    Silence,
    /// Another replica has the Lease.
    #[error("the Lease was lost to another replica")]
    Lost,
    /// The Lease could not be renewed for so long that another replica may soon have it.
    #[error("the Lease could not be renewed for {} s: {problem}", DEADLINE.as_secs())]
    NotRenewed {
        /// What became of the last try.
        problem: String,
    },
}

/// A place in the line for the Lease.
pub struct Lease {
    api: Api<KubeLease>,
    name: String,
    identity: String,
    known: Option<Known>,
    /// When the last write that succeeded began.
    renewed: Instant,
}

/// A version of the Lease, and since when this process knows it.
#[derive(Clone, Debug)]
struct Known {
    version: Option<String>,
    since: Instant,
}

impl Known {
    /// The same where the Lease has not changed, otherwise the new version.
    fn update(former: Option<Self>, version: Option<String>, now: Instant) -> Self {
        former.filter(|known| known.version == version).unwrap_or(Self { version, since: now })
    }
}

impl Lease {
    /// Prepares to take the Lease `name`, which is made where it does not exist. It has a client of its own: one that never
    /// retries by itself, since a retry that takes long is worse than a failure here.
    ///
    /// Where the Lease can neither be read nor made, it is tried again: a process that ended instead would sit out the pauses
    /// of a crash loop long after the API server is back.
    ///
    /// # Errors
    /// When no client can be made of the configuration.
    pub async fn prepare(config: &Config, name: &str, namespace: &str, identity: &str) -> Result<Self, LeaseError> {
        let mut config = config.clone();
        config.connect_timeout = Some(TRY);
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|problem| LeaseError::Client(Box::new(problem)))?;
        let lease = Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            known: None,
            renewed: Instant::now(),
        };
        while let Err(problem) = lease.read().await {
            warn!(%problem, "the Lease could not be had; it is tried again");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(lease)
    }

    /// Waits for the Lease, through any outage of the API server.
    pub async fn acquired(&mut self) {
        loop {
            match self.take().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(problem) => warn!(%problem, "the Lease could not be had; it is tried again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Renews the Lease until it is lost, or cannot be renewed in time.
    pub async fn lost(&mut self) -> LeaseError {
        loop {
            tokio::time::sleep_until(self.renewed + RENEWAL).await;
            let (deadline, mut last) = (self.renewed + DEADLINE, None);
            let renewal = async {
                loop {
                    match self.take().await {
                        Ok(holds) => return holds,
                        Err(problem) => {
                            warn!(%problem, "the Lease could not be renewed");
                            last = Some(problem.to_string());
                        }
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            };
            match tokio::time::timeout_at(deadline, renewal).await {
                Ok(true) => {}
                Ok(false) => return LeaseError::Lost,
                Err(_) => {
                    let problem = last.unwrap_or_else(|| LeaseError::Silence.to_string());
                    return LeaseError::NotRenewed { problem };
                }
            }
        }
    }

    /// Gives the Lease back, so that whoever waits for it need not wait until it runs out.
    ///
    /// # Errors
    /// When the API server does not answer; the Lease then runs out by itself.
    pub async fn release(&mut self) -> Result<(), LeaseError> {
        let found = self.read().await?;
        if found.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) == Some(&self.identity) {
            self.write(&found, &json!({"holderIdentity": null})).await?;
        }
        Ok(())
    }

    /// Takes or renews the Lease, unless another replica has it. Whether this one has it now.
    async fn take(&mut self) -> Result<bool, LeaseError> {
        let began = Instant::now();
        let found = self.read().await?;
        let known = Known::update(self.known.take(), found.resource_version(), Instant::now());
        let unchanged_for = known.since.elapsed();
        self.known = Some(known);
        let spec = found.spec.clone().unwrap_or_default();
        if !is_free(&spec, &self.identity, unchanged_for) {
            return Ok(false);
        }
        let now = MicroTime(Timestamp::now());
        let mut wanted = json!({
            "holderIdentity": self.identity, "renewTime": now, "leaseDurationSeconds": DURATION.as_secs()
        });
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            wanted["acquireTime"] = json!(now);
            wanted["leaseTransitions"] = json!(spec.lease_transitions.unwrap_or_default() + 1);
        }
        // Where somebody else was faster this fails, and the next try reads what they wrote.
        self.write(&found, &wanted).await?;
        self.renewed = began;
        Ok(true)
    }

    async fn read(&self) -> Result<KubeLease, LeaseError> {
        if let Some(found) = bounded(self.api.get_opt(&self.name)).await? {
            return Ok(found);
        }
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let lease = KubeLease { metadata, spec: None };
        let params = PostParams { field_manager: Some(OPERATOR.to_owned()), ..PostParams::default() };
        match bounded(self.api.create(&params, &lease)).await {
            Err(LeaseError::Api(kube::Error::Api(status))) if status.is_already_exists() => {
                bounded(self.api.get(&self.name)).await
            }
            other => other,
        }
    }

    /// Changes the Lease, if it is still as it was found.
    async fn write(&self, found: &KubeLease, spec: &serde_json::Value) -> Result<(), LeaseError> {
        let patch = json!({"metadata": {"resourceVersion": found.resource_version()}, "spec": spec});
        let params = PatchParams { field_manager: Some(OPERATOR.to_owned()), ..PatchParams::default() };
        bounded(self.api.patch(&self.name, &params, &Patch::Merge(&patch))).await.map(|_| ())
    }
}

/// Whether the Lease may be taken by `identity`, which has seen it unchanged for so long.
fn is_free(spec: &LeaseSpec, identity: &str, unchanged_for: Duration) -> bool {
    let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    match spec.holder_identity.as_deref() {
        None | Some("") => true,
        // A replica that was started again under its name goes on.
        Some(holder) if holder == identity => true,
        Some(_) => unchanged_for >= lasts.unwrap_or(DURATION),
    }
}

async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, LeaseError> {
    match tokio::time::timeout(TRY, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LeaseError::Silence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            // Its holder's clock is an hour ahead.
            renew_time: Some(MicroTime(Timestamp::now() + jiff::SignedDuration::from_hours(1))),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_that_names_nobody_or_oneself_is_free_at_once() {
        assert!(is_free(&LeaseSpec::default(), "one", Duration::ZERO));
        assert!(is_free(&held_by(""), "one", Duration::ZERO));
        assert!(is_free(&held_by("one"), "one", Duration::ZERO));
    }

    #[test]
    fn a_dead_holders_lease_is_free_after_its_length_whatever_its_clock_said() {
        assert!(!is_free(&held_by("two"), "one", Duration::from_secs(14)));
        assert!(is_free(&held_by("two"), "one", Duration::from_secs(15)));
    }

    #[test]
    fn a_renewal_starts_the_wait_anew_and_a_look_does_not() {
        let (begin, later) = (Instant::now(), Instant::now() + Duration::from_secs(10));
        let first = Known::update(None, Some("7".to_owned()), begin);
        let same = Known::update(Some(first.clone()), Some("7".to_owned()), later);
        assert_eq!(same.since, begin);
        let renewed = Known::update(Some(first), Some("8".to_owned()), later);
        assert_eq!(renewed.since, later);
    }

    #[test]
    fn a_holder_stops_before_another_one_may_start() {
        assert!(DEADLINE < DURATION);
        // Two tries fit between a renewal and the end.
        assert!(RENEWAL + 2 * (TRY + PAUSE) <= DEADLINE + PAUSE);
    }
}
