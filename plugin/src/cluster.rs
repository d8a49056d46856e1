//! The cluster that the kubeconfig names, as kubectl would reach it.

use std::{fmt::Debug, time::Duration};

use anneal_api::resources::{CronTrainingRun, ModelDeployment, TrainingRun, TrainingSweep};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Config, Resource,
    api::{ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

use crate::{
    options::Access,
    problem::Problem,
    target::{Found, Kind, Target, only},
};

/// Whom people wait for at most until an address turns out to be dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a namespaced type must be able to do here.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// A cluster and the namespace that is meant in it.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
    server: String,
}

impl Cluster {
    /// Prepares to ask the cluster that the options and the kubeconfig name.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used. Whether the cluster answers is seen with the first question.
    pub async fn connect(access: &Access) -> Result<Self, Problem> {
        let config = config(access).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| Problem::Kubeconfig(error.to_string()))?;
        Ok(Self { client, namespace, server })
    }

    /// The same in another namespace.
    pub fn within(&self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self.clone() }
    }

    /// Objects of a kind in the namespace.
    pub fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The answer, or what its absence means to whoever asked.
    ///
    /// # Errors
    /// [`Problem`] when there is none.
    pub async fn answer<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, Problem> {
        request.await.map_err(|error| Problem::of(&error, &self.server))
    }

    /// The objects of a kind that carry the labels.
    ///
    /// # Errors
    /// [`Problem`] when they cannot be listed.
    pub async fn list<K: Object>(&self, labels: &str) -> Result<Vec<K>, Problem> {
        Ok(self.answer(self.api::<K>().list(&ListParams::default().labels(labels))).await?.items)
    }

    /// An object, where it is there.
    ///
    /// # Errors
    /// [`Problem`] when nobody says.
    pub async fn get<K: Object>(&self, name: &str) -> Result<Option<K>, Problem> {
        match self.api::<K>().get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 && status.details.is_some() => Ok(None),
            Err(error) => Err(Problem::of(&error, &self.server)),
        }
    }

    /// Changes a resource as `kubectl patch --type=merge` does.
    ///
    /// # Errors
    /// [`Problem`] when it is refused.
    pub async fn merge(&self, found: &Found, patch: &serde_json::Value) -> Result<(), Problem> {
        async fn of<K: Object>(cluster: &Cluster, name: &str, patch: &serde_json::Value) -> Result<(), Problem> {
            let params = PatchParams { field_manager: Some("kubectl-anneal".to_owned()), ..PatchParams::default() };
            cluster.answer(cluster.api::<K>().patch(name, &params, &Patch::Merge(patch))).await.map(|_| ())
        }
        let name = found.name();
        match found.kind() {
            Kind::Run => of::<TrainingRun>(self, &name, patch).await,
            Kind::Deployment => of::<ModelDeployment>(self, &name, patch).await,
            Kind::Sweep => of::<TrainingSweep>(self, &name, patch).await,
            Kind::Schedule => of::<CronTrainingRun>(self, &name, patch).await,
        }
    }

    /// Every resource of Anneal's that has the name, and the kind where one was said.
    ///
    /// # Errors
    /// [`Problem`] when there is none, or nobody says.
    pub async fn find(&self, target: &Target) -> Result<Vec<Found>, Problem> {
        let found = self.named(target).await?;
        if found.is_empty() { Err(Problem::not_found(target, &self.namespace)) } else { Ok(found) }
    }

    /// The one resource of these kinds that has the name.
    ///
    /// # Errors
    /// [`Problem`] when there is none or more than one, or nobody says.
    pub async fn find_one(&self, target: &Target, wanted: &[Kind]) -> Result<Found, Problem> {
        if let Some(kind) = target.kind.filter(|kind| !wanted.contains(kind)) {
            return Err(Problem::WrongKind { name: target.name.clone(), kind, wanted: wanted.to_vec() });
        }
        only(target, self.named(target).await?, wanted, &self.namespace)
    }

    /// The deployment of that name.
    ///
    /// # Errors
    /// [`Problem`] when there is none, or nobody says.
    pub async fn deployment(&self, target: &Target) -> Result<ModelDeployment, Problem> {
        match self.find_one(target, &[Kind::Deployment]).await? {
            Found::Deployment(deployment) => Ok(*deployment),
            _ => Err(Problem::not_found(target, &self.namespace)),
        }
    }

    async fn named(&self, target: &Target) -> Result<Vec<Found>, Problem> {
        let name = &target.name;
        let (mut found, mut hidden) = (Vec::new(), None);
        for kind in Kind::ALL.into_iter().filter(|kind| target.kind.is_none_or(|wanted| wanted == *kind)) {
            match self.get_kind(kind, name).await {
                Ok(resource) => found.extend(resource),
                // Somebody may see some of the kinds only.
                Err(problem) if problem.is_forbidden() => hidden = Some(problem),
                Err(problem) => return Err(problem),
            }
        }
        match hidden {
            Some(problem) if found.is_empty() => Err(problem),
            _ => Ok(found),
        }
    }

    /// A resource of a kind, where it is there.
    ///
    /// # Errors
    /// [`Problem`] when nobody says.
    pub async fn get_kind(&self, kind: Kind, name: &str) -> Result<Option<Found>, Problem> {
        Ok(match kind {
            Kind::Run => self.get(name).await?.map(|it| Found::Run(Box::new(it))),
            Kind::Deployment => self.get(name).await?.map(|it| Found::Deployment(Box::new(it))),
            Kind::Sweep => self.get(name).await?.map(|it| Found::Sweep(Box::new(it))),
            Kind::Schedule => self.get(name).await?.map(|it| Found::Schedule(Box::new(it))),
        })
    }

    /// All resources of Anneal's in the namespace, or in all of them.
    ///
    /// # Errors
    /// [`Problem`] when they cannot be listed.
    pub async fn all(&self, everywhere: bool) -> Result<Vec<Found>, Problem> {
        async fn of<K: Object>(cluster: &Cluster, everywhere: bool) -> Result<Vec<K>, Problem> {
            let api = if everywhere { Api::all(cluster.client.clone()) } else { cluster.api() };
            Ok(cluster.answer(api.list(&ListParams::default())).await?.items)
        }
        let runs = of::<TrainingRun>(self, everywhere).await?.into_iter().map(|it| Found::Run(Box::new(it)));
        let deployments = of::<ModelDeployment>(self, everywhere).await?;
        let deployments = deployments.into_iter().map(|it| Found::Deployment(Box::new(it)));
        let sweeps = of::<TrainingSweep>(self, everywhere).await?.into_iter().map(|it| Found::Sweep(Box::new(it)));
        let schedules = of::<CronTrainingRun>(self, everywhere).await?;
        let schedules = schedules.into_iter().map(|it| Found::Schedule(Box::new(it)));
        Ok(runs.chain(deployments).chain(sweeps).chain(schedules).collect())
    }
}

async fn config(access: &Access) -> Result<Config, Problem> {
    let unusable = |error: &dyn std::error::Error| Problem::Kubeconfig(error.to_string());
    let options = KubeConfigOptions {
        context: access.context.clone(),
        cluster: access.cluster.clone(),
        user: access.user.clone(),
    };
    let from_file = match &access.kubeconfig {
        Some(file) => {
            let read = Kubeconfig::read_from(file).map_err(|error| unusable(&error))?;
            Config::from_custom_kubeconfig(read, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    // In a pod there is no file, as for kubectl.
    let says_where = access.kubeconfig.is_some() || access.context.is_some();
    let mut config = match from_file {
        Ok(config) => config,
        Err(error) if says_where => return Err(unusable(&error)),
        Err(error) => Config::incluster().map_err(|_| unusable(&error))?,
    };
    if let Some(namespace) = &access.namespace {
        config.default_namespace.clone_from(namespace);
    }
    if let Some(user) = &access.impersonate {
        config.auth_info.impersonate = Some(user.clone());
    }
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}
