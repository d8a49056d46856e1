//! The operator in the cluster: what it was installed with, which of its pods leads, and how it is killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anneal_api::names::label;
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    kubectl,
    processes::{processes_of, signal},
    watch::Watch,
};

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
    deployment: String,
    /// Name of the Lease that the pod which leads holds.
    pub lease: String,
    client: Client,
}

impl Operator {
    /// Finds the operator by its labels.
    ///
    /// # Errors
    /// When there is none, or it does not look as the chart makes it.
    pub async fn find(client: &Client) -> Result<Self> {
        let labels = labels();
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
            deployment: deployment.name_any(),
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

    /// How often containers of the operator were started again.
    ///
    /// # Errors
    /// When its pods cannot be listed.
    pub async fn restarts(&self) -> Result<i32> {
        let pods =
            self.pods().list(&ListParams::default().labels(&labels())).await.context("no pods of the operator")?;
        let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        Ok(statuses.flatten().map(|container| container.restart_count).sum())
    }

    /// The most memory that the process which leads has had, in KiB; nothing where its node is another machine.
    ///
    /// # Errors
    /// When no pod leads, or its process cannot be looked at.
    pub async fn peak_memory(&self) -> Result<Option<u64>> {
        let Some(process) = processes_of(&self.leader().await?)?.pop() else { return Ok(None) };
        let status = fs::read_to_string(format!("/proc/{process}/status")).context("the operator's process is gone")?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        Ok(Some(peak.context("the kernel tells no peak")?))
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

    /// Takes the operator that the chart installed away, so that one that the test starts works alone.
    ///
    /// # Errors
    /// When it does not go, or its program is not to be had.
    pub async fn stand_aside(&self) -> Result<Absence> {
        let folder = TempDir::new().context("no temporary folder")?;
        let program = self.program(folder.path()).await?;
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = deployments.get_scale(&self.deployment).await.context("the operator cannot be scaled")?;
        let replicas = found.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let (namespace, deployment) = (self.namespace.clone(), self.deployment.clone());
        let absence = Absence { program, token: self.token().await?, namespace, deployment, replicas, _folder: folder };
        let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
        deployments.patch_scale(&self.deployment, &PatchParams::default(), &none).await?;
        let chosen = ListParams::default().labels(&labels());
        let begin = Instant::now();
        while !self.pods().list(&chosen).await?.items.is_empty() {
            ensure!(begin.elapsed() < Duration::from_mins(1), "the operator's pods do not go");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(absence)
    }

    /// A token of the operator's own service account, good for a day.
    async fn token(&self) -> Result<String> {
        let account = self.user.rsplit(':').next().unwrap_or_default();
        let args = ["--namespace", &self.namespace, "create", "token", account, "--duration=24h"];
        Ok(kubectl::run(&args, None).await?.ok()?.out.trim().to_owned())
    }

    /// The operator's program: the one that `ANNEAL_OPERATOR_PROGRAM` names, otherwise a copy of the one that runs.
    async fn program(&self, folder: &Path) -> Result<PathBuf> {
        if let Some(program) = std::env::var_os("ANNEAL_OPERATOR_PROGRAM").filter(|it| !it.is_empty()) {
            return Ok(program.into());
        }
        let leader = self.leader().await?;
        let processes = processes_of(&leader)?;
        let process = processes.first().context("the operator does not run on this machine")?;
        let program = folder.join("anneal-operator");
        fs::copy(format!("/proc/{process}/exe"), &program).context("the operator's program cannot be copied")?;
        Ok(program)
    }

    /// Who has the Lease; an empty name where nobody has.
    ///
    /// # Errors
    /// When there is no Lease.
    pub async fn holder(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let lease = leases.get(&self.lease).await.context("the Lease cannot be read")?;
        Ok(holder(&lease).unwrap_or_default())
    }

    /// Takes the Lease from whoever has it, for as long as it lasts.
    ///
    /// # Errors
    /// When there is no Lease.
    pub async fn steal_lease(&self, thief: &str) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        let now = MicroTime(Timestamp::now());
        let spec = json!({"holderIdentity": thief, "renewTime": now, "acquireTime": now, "leaseDurationSeconds": 15});
        let theft = Patch::Merge(json!({"spec": spec}));
        leases.patch(&self.lease, &PatchParams::default(), &theft).await.context("the Lease cannot be taken")?;
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

fn labels() -> String {
    format!("{}=anneal,{}=operator", label::NAME, label::COMPONENT)
}

/// The operator that the chart installed is away for as long as this lives.
pub struct Absence {
    /// Its program.
    pub program: PathBuf,
    /// A token of its service account.
    pub token: String,
    namespace: String,
    deployment: String,
    replicas: i32,
    _folder: TempDir,
}

impl Drop for Absence {
    fn drop(&mut self) {
        let replicas = format!("--replicas={}", self.replicas);
        // The test may have been told to stop: nothing is left that could wait.
        let back = Command::new("kubectl")
            .args(["--namespace", &self.namespace, "scale", "deployment", &self.deployment, &replicas])
            .status();
        if !back.is_ok_and(|status| status.success()) {
            eprintln!("the operator of the chart did not come back; run scripts/install");
        }
    }
}

fn holder(lease: &Lease) -> Option<String> {
    lease.spec.as_ref()?.holder_identity.clone().filter(|holder| !holder.is_empty())
}
