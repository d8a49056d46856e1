//! What the operator may do, as the API server judges it: exactly what stands here, in each of the chart's modes. A right that the
//! chart grants beyond it fails, and so does one that it lacks.

use std::collections::{BTreeMap, BTreeSet};

use anneal_tests::{Context as _, Namespace, Outcome, Result, ensure, in_namespace, kubectl};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::process::Command;

/// The chart.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/anneal");
/// Name of the objects of an installation that is there for its rights alone.
const CONFINED: &str = "confined";

/// What it may do to objects where it watches: group, resource and verbs.
const WATCHED: &[(&str, &str, &str)] = &[
    ("anneal.dev", "trainingruns", "create delete get list patch watch"),
    ("anneal.dev", "trainingruns/status", "update"),
    ("anneal.dev", "trainingruns/finalizers", "update"),
    ("anneal.dev", "modeldeployments", "get list patch watch"),
    ("anneal.dev", "modeldeployments/status", "update"),
    ("anneal.dev", "modeldeployments/finalizers", "update"),
    ("anneal.dev", "trainingsweeps", "delete get list watch"),
    ("anneal.dev", "trainingsweeps/status", "update"),
    ("anneal.dev", "trainingsweeps/finalizers", "update"),
    ("anneal.dev", "crontrainingruns", "get list watch"),
    ("anneal.dev", "crontrainingruns/status", "update"),
    ("anneal.dev", "crontrainingruns/finalizers", "update"),
    ("", "configmaps", "create delete get patch"),
    ("", "persistentvolumeclaims", "create delete get list watch"),
    ("", "pods", "list watch"),
    ("", "services", "create delete get list patch watch"),
    ("apps", "controllerrevisions", "create delete get list"),
    ("apps", "deployments", "create delete get list patch watch"),
    ("apps", "deployments/scale", "patch"),
    ("autoscaling", "horizontalpodautoscalers", "create delete get list patch watch"),
    ("batch", "jobs", "create delete get list watch"),
    ("discovery.k8s.io", "endpointslices", "list"),
    ("events.k8s.io", "events", "create patch"),
    ("gateway.networking.k8s.io", "httproutes", "create delete get list patch watch"),
    ("policy", "poddisruptionbudgets", "create delete get list patch watch"),
];
/// What `failureLogs.enabled` adds.
const LOGS: (&str, &str, &str) = ("", "pods/log", "get");

/// What it may not do anywhere, in words of `kubectl auth can-i`.
const NEVER: &[&[&str]] = &[
    &["get", "secrets"],
    &["list", "secrets"],
    &["watch", "secrets"],
    &["create", "pods"],
    &["delete", "pods"],
    &["create", "pods", "--subresource=exec"],
    &["create", "pods", "--subresource=attach"],
    &["create", "pods", "--subresource=portforward"],
    &["get", "pods", "--subresource=proxy"],
    &["get", "services", "--subresource=proxy"],
    &["update", "pods", "--subresource=ephemeralcontainers"],
    &["create", "serviceaccounts", "--subresource=token"],
    &["impersonate", "serviceaccounts"],
    &["impersonate", "users"],
    &["create", "roles.rbac.authorization.k8s.io"],
    &["escalate", "roles.rbac.authorization.k8s.io"],
    &["bind", "clusterroles.rbac.authorization.k8s.io"],
    &["create", "rolebindings.rbac.authorization.k8s.io"],
    &["create", "clusterrolebindings.rbac.authorization.k8s.io"],
    &["get", "nodes"],
    &["patch", "nodes"],
    &["get", "nodes", "--subresource=proxy"],
    &["create", "namespaces"],
    &["list", "namespaces"],
    &["create", "persistentvolumes"],
    &["update", "trainingruns.anneal.dev"],
    &["create", "modeldeployments.anneal.dev"],
    &["delete", "modeldeployments.anneal.dev"],
    &["patch", "customresourcedefinitions.apiextensions.k8s.io"],
    &["patch", "validatingadmissionpolicies.admissionregistration.k8s.io"],
];

/// Verbs by resource; of resources that are named, the names are in brackets.
type Rights = BTreeMap<String, BTreeSet<String>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    verbs: Vec<String>,
    #[serde(default)]
    api_groups: Vec<String>,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

fn rights(rules: impl IntoIterator<Item = Rule>) -> Rights {
    let mut rights = Rights::new();
    for rule in rules {
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let names =
                    if rule.resource_names.is_empty() { String::new() } else { format!("{:?}", rule.resource_names) };
                let dot = if group.is_empty() { "" } else { "." };
                rights.entry(format!("{resource}{dot}{group}{names}")).or_default().extend(rule.verbs.iter().cloned());
            }
        }
    }
    rights
}

fn expected<'a>(table: impl IntoIterator<Item = &'a (&'a str, &'a str, &'a str)>) -> Rights {
    let rule = |(group, resource, verbs): &(&str, &str, &str)| Rule {
        verbs: verbs.split(' ').map(str::to_owned).collect(),
        api_groups: vec![(*group).to_owned()],
        resources: vec![(*resource).to_owned()],
        resource_names: Vec::new(),
    };
    rights(table.into_iter().map(rule))
}

/// The rights to its Lease, where the chart is installed.
fn with_lease(mut all: Rights, name: &str) -> Rights {
    all.insert("leases.coordination.k8s.io".to_owned(), BTreeSet::from(["create".to_owned()]));
    let named = format!("leases.coordination.k8s.io[\"{name}\"]");
    all.insert(named, ["get", "patch"].map(str::to_owned).into());
    all
}

/// What a user may do in a namespace, as the API server tells the user.
async fn told(user: &str, namespace: &str) -> Result<Rights> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}
    });
    // What kubectl validates by, only few may read.
    let args = ["create", "--filename=-", "--output=json", "--validate=false", "--as", user];
    let said = kubectl(&args, Some(&review.to_string())).await?.ok()?;
    let answer: Value = serde_json::from_str(&said.out)?;
    let rules: Vec<Rule> = serde_json::from_value(answer["status"]["resourceRules"].clone())?;
    Ok(rights(rules))
}

/// The same without what every service account may do.
async fn own(user: &str, namespace: &str) -> Result<Rights> {
    let everybodys = told("system:serviceaccount:default:nobody-in-particular", namespace).await?;
    let mut own = told(user, namespace).await?;
    for (resource, verbs) in &everybodys {
        if let Some(mine) = own.get_mut(resource) {
            mine.retain(|verb| !verbs.contains(verb));
        }
    }
    own.retain(|_, verbs| !verbs.is_empty());
    Ok(own)
}

/// Fails with what is too much and what is missing.
fn compare(place: &str, found: &Rights, expected: &Rights) -> Result<()> {
    let flat = |rights: &Rights| -> BTreeSet<String> {
        rights.iter().flat_map(|(resource, verbs)| verbs.iter().map(move |verb| format!("{verb} {resource}"))).collect()
    };
    let (found, expected) = (flat(found), flat(expected));
    let more: Vec<_> = found.difference(&expected).collect();
    let less: Vec<_> = expected.difference(&found).collect();
    ensure!(more.is_empty() && less.is_empty(), "{place}: the operator may also {more:?}, and may not {less:?}");
    Ok(())
}

/// Whether a user may do something in a namespace.
async fn may(user: &str, namespace: &str, what: &[&str]) -> Result<bool> {
    let said = kubectl(&[&["auth", "can-i", "--namespace", namespace, "--as", user], what].concat(), None).await?;
    let answer = said.out.trim();
    ensure!(matches!(answer, "yes" | "no"), "`{}` said {answer:?} and {:?}", said.command, said.err);
    Ok(answer == "yes")
}

/// Makes the chart's account and its rights, and nothing else of it. Returns the account's user.
async fn install(ns: &Namespace, more: &[&str]) -> Result<String> {
    let name = format!("fullnameOverride={CONFINED}");
    let templates = ["rbac", "serviceaccount"].map(|name| format!("templates/{name}.yaml"));
    let mut args = vec![
        "template",
        CONFINED,
        CHART,
        "--namespace",
        &ns.name,
        "--set",
        &name,
        "--set",
        "rbac.aggregate=false",
        // The newest that a helm knows may be older than the chart's oldest.
        "--kube-version",
        "1.34.0",
    ];
    args.extend(templates.iter().flat_map(|template| ["--show-only", template]));
    args.extend(more.iter().flat_map(|value| ["--set", *value]));
    let rendered = Command::new("helm").args(&args).output().await.context("helm cannot be run")?;
    ensure!(rendered.status.success(), "helm: {}", String::from_utf8_lossy(&rendered.stderr));
    kubectl(&["apply", "--filename=-"], Some(&String::from_utf8_lossy(&rendered.stdout))).await?.ok()?;
    Ok(format!("system:serviceaccount:{}:{CONFINED}", ns.name))
}

#[tokio::test]
async fn an_operator_of_all_namespaces_may_do_what_stands_here_and_nothing_else() -> Outcome {
    in_namespace(async |ns| {
        let operator = &ns.cluster.operator;
        for place in [ns.name.as_str(), "kube-system", "default"] {
            compare(place, &own(&operator.user, place).await?, &expected(WATCHED))?;
            for what in NEVER.iter().chain([&["get", "pods", "--subresource=log"][..]].iter()) {
                ensure!(!may(&operator.user, place, what).await?, "it may {} in {place}", what.join(" "));
            }
        }
        let home = with_lease(expected(WATCHED), &operator.lease);
        compare(&operator.namespace, &own(&operator.user, &operator.namespace).await?, &home)
    })
    .await
}

#[tokio::test]
async fn an_operator_of_one_namespace_may_do_it_there_and_only_hold_its_lease_at_home() -> Outcome {
    in_namespace(async |ns| {
        let watched = format!("{}-watched", ns.name);
        kubectl(&["create", "namespace", &watched], None).await?.ok()?;
        let looked_at = confined(ns, &watched).await;
        kubectl(&["delete", "namespace", &watched, "--wait=false"], None).await?.ok()?;
        looked_at
    })
    .await
}

async fn confined(ns: &Namespace, watched: &str) -> Result<()> {
    let mode = format!("watchNamespace={watched}");
    let user = install(ns, &[&mode]).await?;
    compare(watched, &own(&user, watched).await?, &expected(WATCHED))?;
    compare(&ns.name, &own(&user, &ns.name).await?, &with_lease(Rights::new(), CONFINED))?;
    for elsewhere in ["default", "kube-system", &ns.cluster.operator.namespace] {
        compare(elsewhere, &own(&user, elsewhere).await?, &Rights::new())?;
    }
    for what in NEVER {
        ensure!(!may(&user, watched, what).await?, "it may {} in {watched}", what.join(" "));
    }
    ensure!(
        !may(&user, watched, &["list", "trainingruns.anneal.dev", "--all-namespaces"]).await?,
        "it may list all runs"
    );

    install(ns, &[&mode, "failureLogs.enabled=true"]).await?;
    compare("with failureLogs", &own(&user, watched).await?, &expected(WATCHED.iter().chain([&LOGS])))
}

#[tokio::test]
async fn the_operator_that_these_tests_talk_to_runs_with_the_charts_account() -> Outcome {
    in_namespace(async |ns| {
        let operator = &ns.cluster.operator;
        let chosen = "--selector=app.kubernetes.io/name=anneal,app.kubernetes.io/component=operator";
        let args = ["--namespace", &operator.namespace, "get", "pods", chosen, "--output=json"];
        let pods: Value = serde_json::from_str(&kubectl(&args, None).await?.ok()?.out)?;
        let accounts: BTreeSet<&str> = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pod| pod["spec"]["serviceAccountName"].as_str())
            .collect();
        let own = operator.user.rsplit(':').next().unwrap_or_default();
        ensure!(accounts == BTreeSet::from([own]), "the operator's pods run as {accounts:?}");
        // Nobody bound the account to anything beside the chart.
        let args = ["get", "clusterrolebindings,rolebindings", "--all-namespaces", "--output=json"];
        let bindings: Value = serde_json::from_str(&kubectl(&args, None).await?.ok()?.out)?;
        let is_bound = |binding: &&Value| {
            let subjects = binding["subjects"].as_array().into_iter().flatten();
            subjects.into_iter().any(|it| it["name"] == own && it["namespace"] == operator.namespace.as_str())
        };
        let others: Vec<&Value> = bindings["items"].as_array().into_iter().flatten().filter(is_bound).collect();
        let is_the_charts = |binding: &&Value| binding["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm";
        ensure!(others.len() == 2 && others.iter().all(is_the_charts), "it is bound by {others:#?}");
        Ok(())
    })
    .await
}
