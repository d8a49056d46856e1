//! The operator in the cluster: what it was installed with, which of its pods leads, and how it is killed.

use anneal_api::names::label;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
};

use crate::watch::Watch;

/// Name of the Lease that the leading pod holds.
const LEASE: &str = "anneal-operator";

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
            namespace,
            client: client.clone(),
        })
    }

    fn lease(&self) -> Watch<Lease> {
        Watch::new(Api::namespaced(self.client.clone(), &self.namespace), LEASE)
    }

    /// Kills the pod that leads, as a power cut would, and returns its name.
    ///
    /// # Errors
    /// When no pod leads.
    pub async fn kill_leader(&self) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let held = self.lease().until("a pod of the operator leads", 60, |lease| holder(lease).is_some()).await?;
        let leader = holder(&held).unwrap_or_default();
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete(&leader, &now).await.with_context(|| format!("pod {leader}, which leads, cannot be killed"))?;
        eprintln!("          killed the operator's pod {leader}");
        Ok(leader)
    }

    /// Waits until another pod than the killed one leads.
    ///
    /// # Errors
    /// When none does within a minute.
    pub async fn until_led_by_another(&self, killed: &str) -> Result<()> {
        let led = |lease: &Lease| holder(lease).is_some_and(|holder| holder != killed);
        let lease = self.lease().until("another pod of the operator leads", 60, led).await?;
        ensure!(holder(&lease).is_some(), "the Lease {LEASE} has no holder");
        Ok(())
    }
}

fn holder(lease: &Lease) -> Option<String> {
    lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())
}
