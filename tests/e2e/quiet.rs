//! When all is done, nothing moves.

use std::{collections::BTreeMap, time::Duration};

use anneal_api::resources::{ModelDeployment, TrainingRun};
use anneal_tests::{Audit, Namespace, Object, Outcome, Request, Result, bail, ensure, in_namespace, manifest};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{ConfigMap, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::ResourceExt as _;
use serde_json::json;

use crate::scenario::{GENERATED, trained, until_stable};

/// Seconds for which the operator must be quiet.
const QUIET: i64 = 60;

/// Generation and resource version of every object of a kind, by its name.
async fn versions<K: Object>(ns: &Namespace, labels: &str, all: &mut BTreeMap<String, (i64, String)>) -> Result<()> {
    for object in ns.list::<K>(labels).await? {
        let generation = object.meta().generation.unwrap_or_default();
        let version = object.resource_version().unwrap_or_default();
        all.insert(format!("{} {}", K::kind(&()), object.name_any()), (generation, version));
    }
    Ok(())
}

/// Of both resources and of all their children but the autoscaler, whose status follows the load.
async fn all_versions(ns: &Namespace) -> Result<BTreeMap<String, (i64, String)>> {
    let mut all = BTreeMap::new();
    versions::<TrainingRun>(ns, "", &mut all).await?;
    versions::<ModelDeployment>(ns, "", &mut all).await?;
    versions::<Job>(ns, GENERATED, &mut all).await?;
    versions::<Pod>(ns, GENERATED, &mut all).await?;
    versions::<ConfigMap>(ns, GENERATED, &mut all).await?;
    versions::<Deployment>(ns, GENERATED, &mut all).await?;
    versions::<Service>(ns, GENERATED, &mut all).await?;
    versions::<PodDisruptionBudget>(ns, GENERATED, &mut all).await?;
    Ok(all)
}

/// What the operator wrote in the test's namespace and, Leases aside, in its own.
fn writes(ns: &Namespace, audit: &Audit, since: Timestamp) -> Result<Vec<Request>> {
    let operator = &ns.cluster.operator;
    let mut writes = audit.writes(&operator.user, since)?;
    writes.retain(|write| {
        write.namespace == ns.name || (write.namespace == operator.namespace && write.resource != "leases")
    });
    Ok(writes)
}

/// Waits until the operator has written nothing for ten seconds: the last Event may come after the last status.
async fn settle(ns: &Namespace, audit: &Audit) -> Result<()> {
    for _ in 0..60 {
        let since = Timestamp::now() - SignedDuration::from_secs(10);
        if writes(ns, audit, since)?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    bail!("the operator did not come to rest within a minute")
}

#[tokio::test]
async fn a_settled_namespace_stays_as_it_is_and_the_operator_writes_nothing() -> Outcome {
    in_namespace(async |ns| {
        let run = manifest::training_run("cats", json!({}));
        trained(ns, "cats", json!({})).await?;
        // Bounds that nothing reaches, so that only the operator could move anything.
        let spec = json!({
            "model": {"trainingRunRef": {"name": "cats"}},
            "replicas": null,
            "autoscaling": {
                "minReplicas": 1, "targetCPUUtilizationPercentage": 1000, "targetMemoryUtilizationPercentage": 1000
            }
        });
        let deployment = manifest::model_deployment("cats", spec);
        ns.apply(&deployment).await?;
        until_stable(&mut ns.watch::<ModelDeployment>("cats")).await?;
        let audit = Audit::of_cluster();
        match &audit {
            Some(audit) => settle(ns, audit).await?,
            None => eprintln!("ANNEAL_AUDIT_LOG names no audit log, so what the operator writes is not looked at"),
        }

        let before = all_versions(ns).await?;
        let since = Timestamp::now();
        ns.apply(&run).await?;
        ns.apply(&deployment).await?;
        if let Some(audit) = &audit {
            while Timestamp::now().duration_since(since) < SignedDuration::from_secs(QUIET) {
                let writes = writes(ns, audit, since)?;
                ensure!(writes.is_empty(), "an idle operator wrote:\n{}", lines(&writes));
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // A log that shows nobody's writes would prove nothing.
            let leases = audit.writes(&ns.cluster.operator.user, since)?;
            ensure!(
                leases.iter().any(|write| write.resource == "leases"),
                "the audit log shows no Lease of the operator"
            );
        }
        let after = all_versions(ns).await?;
        ensure!(before == after, "applying the same again changed something:\n{before:#?}\n{after:#?}");
        Ok(())
    })
    .await
}

fn lines(writes: &[Request]) -> String {
    writes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
