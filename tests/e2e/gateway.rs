//! Canaries through a Gateway: Envoy Gateway, as `tests/cluster/cluster gateway` installs it. `make test-gateway` runs this.

mod shadow;

use std::collections::BTreeMap;

use anneal_api::{
    names::{REVISION_HEADER, label},
    resources::{CanaryStatus, DeploymentPhase, ModelDeployment, RevisionStatus},
};
use anneal_tests::{Context as _, Namespace, Outcome, Result, Watch, bail, ensure, in_namespace, manifest};
use jiff::Timestamp;
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Pod};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};

use crate::{
    scenario::{PATIENCE, chosen_by, condition, is_observed, rollout, stable_revision, trained, until_stable},
    traffic::{Told, start, told_by},
};

/// Seconds of a step: enough answers for a share to be told from another one.
const PAUSE: i32 = 30;
/// By how many percent a share that was counted may be off: more than three times its standard deviation.
const TOLERANCE: f64 = 9.0;
/// Header of requests that get the candidate.
const TESTER: &str = "x-tester";

fn deployment(run: &str, steps: &Value, gate: &Value) -> Value {
    let mut spec = json!({
        "model": {"trainingRunRef": {"name": run}},
        "gate": {"soakSeconds": 5},
        "strategy": {"type": "Canary", "canary": {
            "parentRefs": [{"name": "edge"}],
            "matches": [{"headers": [{"name": TESTER, "value": "yes"}]}],
            "steps": steps,
        }},
        "replicas": null,
        "autoscaling": {
            "minReplicas": 2, "maxReplicas": 4,
            "targetCPUUtilizationPercentage": 1000, "targetMemoryUtilizationPercentage": 1000
        },
    });
    manifest::merge(&mut spec, json!({"gate": gate}));
    manifest::model_deployment("cats", spec)
}

fn two_steps() -> Value {
    json!([{"setWeight": 20, "pauseSeconds": PAUSE}, {"setWeight": 50, "pauseSeconds": PAUSE}])
}

/// Opens a Gateway in the test's namespace, and returns its address.
async fn gateway(ns: &Namespace) -> Result<String> {
    ns.apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "edge"},
        "spec": {"gatewayClassName": "envoy", "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}]}
    }))
    .await?;
    let wait = ["wait", "gateway/edge", "--for=condition=Programmed", "--timeout=180s"];
    ns.kubectl(&wait).await?.ok().context("the Gateway is not programmed")?;
    let address = ["get", "gateway", "edge", "--output=jsonpath={.status.addresses[0].value}"];
    Ok(ns.kubectl(&address).await?.ok()?.out)
}

/// The revision that answers a request through the Gateway.
async fn asked(gateway: &str, header: &str) -> Result<String> {
    let mut stream = TcpStream::connect((gateway, 80)).await.context("the Gateway takes no connection")?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: cats\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let named = answer.lines().find_map(|line| line.strip_prefix(REVISION_HEADER)?.strip_prefix(": "));
    named.map(|name| name.trim().to_owned()).with_context(|| format!("an answer without its revision: {answer}"))
}

/// The rule of the route that is about all requests.
async fn rule(ns: &Namespace) -> Result<Value> {
    let text = ns.kubectl(&["get", "httproute", "cats", "--output=json"]).await?.ok()?.out;
    let route: Value = serde_json::from_str(&text)?;
    route["spec"]["rules"].as_array().and_then(|rules| rules.last()).cloned().context("a route without rules")
}

/// The Services that the route names, with their weights; the rule of the testers left out.
async fn weights(ns: &Namespace) -> Result<BTreeMap<String, i64>> {
    let rule = rule(ns).await?;
    let backends = rule["backendRefs"].as_array().context("a rule without backends")?;
    let weight = |backend: &Value| Some((backend["name"].as_str()?.to_owned(), backend["weight"].as_i64()?));
    Ok(backends.iter().filter_map(weight).collect())
}

fn canary(it: &ModelDeployment) -> Option<&CanaryStatus> {
    it.status.as_ref()?.canary.as_ref()
}

fn entry<'a>(it: &'a ModelDeployment, revision: &str) -> Option<&'a RevisionStatus> {
    it.status.as_ref()?.revisions.iter().find(|entry| entry.revision == revision)
}

/// Waits for a step whose share the Gateway has taken.
async fn until_step(cats: &mut Watch<ModelDeployment>, number: i32) -> Result<(String, Timestamp)> {
    let taken = |it: &ModelDeployment| {
        is_observed(it) && canary(it).is_some_and(|it| it.step == Some(number) && it.effective_time.is_some())
    };
    let found = cats.until(&format!("step {number} is in effect"), PATIENCE, taken).await?;
    let canary = canary(&found).context("no canary")?;
    let since = canary.effective_time.as_ref().context("not in effect")?.0;
    Ok((canary.revision.clone(), since))
}

/// Percent of the answers between two moments that a revision gave.
fn share(told: &Told, revision: &str, from: Timestamp, to: Timestamp) -> Result<f64> {
    // Whole seconds are kept of a step's beginning; what was counted in the first ones may be about the step before.
    let from = from.checked_add(jiff::SignedDuration::from_secs(2))?;
    let within: Vec<_> = told.counts.iter().filter(|(at, _)| *at >= from && *at <= to).collect();
    let (first, last) = (within.first().context("nothing was counted")?, within.last().context("nothing was counted")?);
    let count = |counts: &BTreeMap<String, u64>, of: &str| counts.get(of).copied().unwrap_or_default();
    let all: u64 = last.1.keys().map(|of| count(&last.1, of) - count(&first.1, of)).sum();
    let own = count(&last.1, revision) - count(&first.1, revision);
    ensure!(all >= 100, "only {all} answers between {from} and {to}");
    let [own, all] = [own, all].map(|count| f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
    Ok(100.0 * own / all)
}

fn none_failed(who: &str, told: &Told) -> Result<()> {
    println!("{who}: {} answers, {} failures, longest gap {:.2} s", told.answers, told.failures, told.max_gap_seconds);
    ensure!(told.failures == 0, "{who}: {} of {} requests failed: {:?}", told.failures, told.answers, told.reasons);
    Ok(())
}

/// Leaves the deployment of the first run behind.
async fn nobody_elses_route_is_taken_over(ns: &Namespace, cats: &mut Watch<ModelDeployment>) -> Result<()> {
    ns.apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "cats"},
        "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [{"name": "dogs", "port": 80}]}]}
    }))
    .await?;
    ns.apply(&deployment("first", &two_steps(), &json!({}))).await?;
    let is_told = |it: &ModelDeployment| {
        let conditions = it.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        conditions.iter().any(|it| it.type_ == "RouteAccepted" && it.status == "False" && it.reason == "NameTaken")
    };
    cats.until("it says that the name is taken", PATIENCE, is_told).await?;
    // The first revision has nobody to share the traffic with.
    cats.until("it serves nevertheless", PATIENCE, |it| stable_revision(it).is_some()).await?;
    ensure!(weights(ns).await?.into_keys().eq(["dogs".to_owned()]), "somebody else's route was changed");
    ns.kubectl(&["delete", "httproute", "cats"]).await?.ok().map(|_| ())
}

#[tokio::test]
async fn a_canary_goes_through_its_steps_under_load_and_a_bad_one_goes_back() -> Outcome {
    in_namespace(async |ns| {
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        let address = gateway(ns).await?;
        let mut cats = ns.watch::<ModelDeployment>("cats");
        nobody_elses_route_is_taken_over(ns, &mut cats).await?;
        let first = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();
        cats.until("the Gateway takes the route", PATIENCE, |it| condition(it, "RouteAccepted").is_some()).await?;
        ensure!(asked(&address, "").await? == first, "another revision answers");
        start(ns, "outside", &format!("http://{address}"), &[], None).await?;
        start(ns, "inside", &format!("http://cats.{}.svc", ns.name), &[], None).await?;

        // A good one.
        ns.apply(&deployment("second", &two_steps(), &json!({}))).await?;
        let (second, began) = until_step(&mut cats, 1).await?;
        ensure!(weights(ns).await?.get(&format!("cats-{second}")) == Some(&20), "{:?}", weights(ns).await?);
        for _ in 0..10 {
            let tester = asked(&address, &format!("{TESTER}: yes\r\n")).await?;
            ensure!(tester == second, "a tester got {tester}");
        }
        ensure!(chosen_by(ns, "cats").await? == first, "the Service has moved before its time");
        let scaler: HorizontalPodAutoscaler = ns.get("cats").await?;
        let target = scaler.spec.map(|spec| spec.scale_target_ref.name).unwrap_or_default();
        ensure!(target == format!("cats-{first}"), "the autoscaler sizes {target}");
        let (_, half) = until_step(&mut cats, 2).await?;
        let promoted = until_stable(&mut cats).await?;
        ensure!(stable_revision(&promoted) == Some(&second), "another revision is stable");
        let switched = entry(&promoted, &second).and_then(|it| it.promoted_time.clone()).context("not promoted")?.0;
        ensure!(weights(ns).await?.into_keys().eq(["cats".to_owned()]), "{:?}", weights(ns).await?);
        ensure!(asked(&address, "").await? == second, "another revision answers");

        let (outside, inside) = (told_by(ns, "outside").await?, told_by(ns, "inside").await?);
        for (expected, from, to) in [(20.0, began, half), (50.0, half, switched)] {
            let found = share(&outside, &second, from, to)?;
            println!("RESULT {}", json!({"bench": "canary", "weight": expected, "share_percent": found}));
            ensure!((found - expected).abs() <= TOLERANCE, "{found:.1} % of the answers at a weight of {expected}");
        }
        let met = inside.begun.iter().find(|(_, revision)| *revision == second).context("nobody inside met it")?.0;
        // The switch is written down in whole seconds once it is over.
        ensure!(
            met >= switched - jiff::SignedDuration::from_secs(3),
            "callers of the Service met it {met}, it moved {switched}"
        );

        // A bad one: its answers are right, and come too late for its bound.
        ns.apply(&deployment("first", &two_steps(), &json!({"soakTest": {"maxP95Milliseconds": 1}}))).await?;
        let degraded = |it: &ModelDeployment| is_observed(it) && rollout(it) == Some(DeploymentPhase::Degraded);
        let rejected = cats.until("it is Degraded", PATIENCE, degraded).await?;
        let (reason, message) = condition(&rejected, "Degraded").context("it is not Degraded")?;
        ensure!(reason == "CanaryFailed" && message.contains("20 %"), "{reason}: {message}");
        ensure!(stable_revision(&rejected) == Some(&second), "another revision is stable");
        cats.until("its share is taken back", 60, |it| canary(it).is_none()).await?;
        ensure!(weights(ns).await?.into_keys().eq(["cats".to_owned()]), "{:?}", weights(ns).await?);
        let of_second = format!("{}={second}", label::REVISION);
        let serving = ns.list::<Pod>(&of_second).await?.len();
        ensure!(serving == 2, "{serving} pods serve");
        let only_these = |pods: &[Pod]| pods.len() == 2;
        let servers = format!("{}=cats,{}", label::DEPLOYMENT, label::REVISION);
        ns.until_all::<Pod>(&servers, "only the pods that serve are left", PATIENCE, only_these).await?;
        ensure!(asked(&address, &format!("{TESTER}: yes\r\n")).await? == second, "a tester got what was rejected");

        // What goes last has requests under way.
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        none_failed("through the Gateway", &told_by(ns, "outside").await?)?;
        none_failed("inside the cluster", &told_by(ns, "inside").await?)
    })
    .await
}

#[tokio::test]
async fn without_the_gateway_api_the_service_serves_on_and_a_canary_begins_once_it_is_there() -> Outcome {
    in_namespace(async |ns| {
        let kinds = ns.kubectl(&["api-resources", "--api-group=gateway.networking.k8s.io"]).await?.ok()?.out;
        ensure!(
            !kinds.contains("HTTPRoute"),
            "the Gateway API is there already; this test is for a cluster without it"
        );
        trained(ns, "first", json!({})).await?;
        trained(ns, "second", json!({"hyperparameters": {"seed": 2}})).await?;
        let steps = json!([{"setWeight": 50, "pauseSeconds": 5}]);
        let mut cats = ns.watch::<ModelDeployment>("cats");
        ns.apply(&deployment("first", &steps, &json!({}))).await?;
        let first = stable_revision(&until_stable(&mut cats).await?).context("no revision is stable")?.to_owned();
        ns.apply(&deployment("second", &steps, &json!({}))).await?;
        let waits = |it: &ModelDeployment| {
            is_observed(it) && condition(it, "Stalled").is_some_and(|(reason, _)| reason == "GatewayApiNotInstalled")
        };
        let waiting = cats.until("it says what to install", PATIENCE, waits).await?;
        ensure!(stable_revision(&waiting) == Some(&first), "another revision is stable");
        ensure!(chosen_by(ns, "cats").await? == first, "the Service has moved");
        let version = waiting.metadata.resource_version;
        tokio::time::sleep(std::time::Duration::from_secs(40)).await;
        let later: ModelDeployment = ns.get("cats").await?;
        ensure!(later.metadata.resource_version == version, "something was written while nothing changed");

        let installed =
            Command::new("cluster/cluster").arg("gateway").status().await.context("no tests/cluster/cluster")?;
        if !installed.success() {
            bail!("`tests/cluster/cluster gateway` failed");
        }
        gateway(ns).await?;
        let moved = |it: &ModelDeployment| {
            rollout(it) == Some(DeploymentPhase::Stable) && stable_revision(it).is_some_and(|stable| stable != first)
        };
        let done = cats.until("the canary has gone through", PATIENCE, moved).await?;
        ensure!(condition(&done, "RouteAccepted").is_some(), "the route is not accepted: {:?}", done.status);
        Ok(())
    })
    .await
}
