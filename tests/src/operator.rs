//! The operator in the cluster: what it was installed with, which of its pods leads, and how it is killed.

use std::time::{Duration, Instant};

use anneal_api::names::label;
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
};

use crate::{processes::signal, watch::Watch};

/// Name of the Lease that the leading pod holds.
const LEASE: &str = "anneal";

/// The operator as the chart installed it.
#[derive(Clone)]
pub struct Operator {
    /// Its namespace.
    pub namespace: String,
    /// Its user name, as the audit log has it.
    pub user: String,
    /// The image of training pods.
    pub trainer_image: String,
    /// The image of inference pods, which has the clients, too.
    pub server_image: String,
    lease: String,
    client: Client,
}

impl Operator {
    /// Finds the operator by its labels.
    ///
    /// # Errors
    /// When there is none, or it does not look as the chart makes it.
    pub async fn find(client: &Client) -> Result<Self> {
        let labels = format!("{}=anneal,{}=operator", label::NAME, label::COMPONENT);
        let found = Api::<Deployment>::all(client.clone()).list(&ListParams::default().labels(&labels)).await?;
        let deployment = found.items.first().with_context(|| format!("no Deployment has the labels {labels}"))?;
        let namespace = deployment.namespace().unwrap_or_default();
        let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).context("it has no pods")?;
        let account = pod.service_account_name.clone().context("it has no service account")?;
        let variable = |name: &str| {
            let all = pod.containers.iter().flat_map(|container| container.env.iter().flatten());
            let value = all.filter(|variable| variable.name == name).find_map(|variable| variable.value.clone());
            value.with_context(|| format!("its Deployment does not set {name}"))
        };
        Ok(Self {
            user: format!("system:serviceaccount:{namespace}:{account}"),
            trainer_image: variable("ANNEAL_TRAINER_IMAGE")?,
            server_image: variable("ANNEAL_SERVER_IMAGE")?,
            lease: variable("ANNEAL_LEASE_NAME").unwrap_or_else(|_| LEASE.to_owned()),
            namespace,
            client: client.clone(),
        })
    }

    fn lease(&self) -> Watch<Lease> {
        Watch::new(Api::namespaced(self.client.clone(), &self.namespace), &self.lease)
    }

    async fn leader(&self) -> Result<Pod> {
        let begin = Instant::now();
        loop {
            let held = self.lease().until("a pod of the operator leads", 60, |lease| holder(lease).is_some()).await?;
            let name = holder(&held).unwrap_or_default();
            let found = self.pods().get_opt(&name).await;
            if let Some(pod) = found.with_context(|| format!("pod {name}, which leads, cannot be read"))? {
                return Ok(pod);
            }
            // The Lease of a pod that was deleted holds until it runs out.
            ensure!(begin.elapsed() < Duration::from_mins(1), "pod {name} leads and does not exist");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Kills the process that leads with SIGKILL, so that it can neither finish a write nor give the Lease back; its
    /// container starts again. Where the node is another machine, its pod is deleted at once instead.
    ///
    /// # Errors
    /// When no pod leads, or the process cannot be killed.
    pub async fn crash(&self) -> Result<()> {
        let leader = self.leader().await?;
        if signal(&leader, "KILL").await? { Ok(()) } else { self.delete(&leader).await }
    }

    /// Deletes the pod that leads, without grace.
    ///
    /// # Errors
    /// When no pod leads, or it cannot be deleted.
    pub async fn delete_leader(&self) -> Result<()> {
        self.delete(&self.leader().await?).await
    }

    async fn delete(&self, pod: &Pod) -> Result<()> {
        let name = pod.name_any();
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.pods().delete(&name, &now).await.with_context(|| format!("pod {name} cannot be deleted"))?;
        eprintln!("          deleted the operator's pod {name}");
        Ok(())
    }

    /// Waits until a process of the operator has taken or renewed the Lease after that time.
    ///
    /// # Errors
    /// When none does within a minute.
    pub async fn until_led_again(&self, since: Timestamp) -> Result<()> {
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
        let led = |lease: &Lease| holder(lease).is_some() && renewed(lease).is_some_and(|at| at > since);
        self.lease().until("the operator leads again", 60, led).await.map(|_| ())
    }
}

fn holder(lease: &Lease) -> Option<String> {
    lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())
}
