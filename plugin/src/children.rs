//! What the operator made for a resource, as the cluster has it now.

use anneal_api::{names::label, resources::TrainingRun};
use k8s_openapi::api::{apps::v1::Deployment, autoscaling::v2::HorizontalPodAutoscaler, batch::v1::Job, core::v1::Pod};

use crate::{
    cluster::{Cluster, Object},
    pods::label_of,
    problem::Problem,
    target::{Found, Kind},
};

/// What was made for a resource.
#[derive(Clone, Debug, Default)]
pub struct Children {
    /// Runs of a sweep or a schedule.
    pub runs: Vec<TrainingRun>,
    /// Attempts of a run, smoke tests of a deployment.
    pub jobs: Vec<Job>,
    /// Pods of all of them.
    pub pods: Vec<Pod>,
    /// Deployments of revisions.
    pub deployments: Vec<Deployment>,
    /// What sizes the revision that has the traffic.
    pub autoscalers: Vec<HorizontalPodAutoscaler>,
    /// What the user may not list.
    pub hidden: Vec<&'static str>,
}

/// The labels that everything carries which was made for the resource.
pub fn selector(found: &Found) -> String {
    let key = match found.kind() {
        Kind::Run => label::RUN,
        Kind::Deployment => label::DEPLOYMENT,
        Kind::Sweep => label::SWEEP,
        Kind::Schedule => label::CRON,
    };
    format!("{key}={}", found.name())
}

impl Children {
    /// What was made for the resource.
    ///
    /// # Errors
    /// [`Problem`] when it cannot be listed for another reason than that the user may not.
    pub async fn of(cluster: &Cluster, found: &Found) -> Result<Self, Problem> {
        let labels = selector(found);
        let mut hidden = Vec::new();
        let mut all = match found.kind() {
            Kind::Run => {
                let (jobs, pods) =
                    futures::try_join!(visible(cluster, &labels, "jobs"), visible(cluster, &labels, "pods"))?;
                Self { jobs: open(jobs, &mut hidden), pods: open(pods, &mut hidden), ..Self::default() }
            }
            Kind::Deployment => {
                let (jobs, pods, deployments, autoscalers) = futures::try_join!(
                    visible(cluster, &labels, "jobs"),
                    visible(cluster, &labels, "pods"),
                    visible(cluster, &labels, "deployments"),
                    visible(cluster, &labels, "horizontalpodautoscalers")
                )?;
                Self {
                    jobs: open(jobs, &mut hidden),
                    pods: open(pods, &mut hidden),
                    deployments: open(deployments, &mut hidden),
                    autoscalers: open(autoscalers, &mut hidden),
                    ..Self::default()
                }
            }
            Kind::Sweep | Kind::Schedule => Self { runs: cluster.list(&labels).await?, ..Self::default() },
        };
        if let Found::Run(run) = found {
            // A deleted namesake's pods may still be there.
            let uid = run.metadata.uid.as_deref();
            all.jobs.retain(|job| label_of(job, label::RUN_UID) == uid);
            all.pods.retain(|pod| label_of(pod, label::RUN_UID) == uid);
        }
        all.jobs.sort_by_key(|job| job.metadata.creation_timestamp.clone());
        all.pods.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
        all.runs.sort_by_key(|run| run.metadata.creation_timestamp.clone());
        all.hidden = hidden;
        Ok(all)
    }
}

/// The objects, or the word for what the user may not list.
async fn visible<K: Object>(
    cluster: &Cluster,
    labels: &str,
    what: &'static str,
) -> Result<Result<Vec<K>, &'static str>, Problem> {
    match cluster.list(labels).await {
        Ok(found) => Ok(Ok(found)),
        Err(problem) if problem.is_forbidden() => Ok(Err(what)),
        Err(problem) => Err(problem),
    }
}

fn open<K>(visible: Result<Vec<K>, &'static str>, hidden: &mut Vec<&'static str>) -> Vec<K> {
    visible.unwrap_or_else(|what| {
        hidden.push(what);
        Vec::new()
    })
}
