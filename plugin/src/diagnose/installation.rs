//! The installation: whether the cluster knows Anneal's resources, and whether an operator looks after the namespace.

use anneal_api::names::{GROUP, VERSION, label};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt as _, api::ListParams};

use super::{Finding, Topic};
use crate::{
    cluster::Cluster,
    pods,
    problem::{INSTALL, Problem},
    state::Tone,
};

/// The plural names that the API server should know.
const PLURALS: [&str; 4] = ["trainingruns", "modeldeployments", "trainingsweeps", "crontrainingruns"];
/// The group of the API that an autoscaler asks.
const METRICS: &str = "metrics.k8s.io";

/// What there is of the installation.
#[derive(Clone, Debug, Default)]
pub struct Installation {
    /// Plural names that the API server knows.
    kinds: Vec<String>,
    /// Whether metrics of pods are served.
    pub has_metrics: bool,
    /// The operators; `None` where the user may not list them.
    operators: Option<Vec<Operator>>,
}

/// An operator.
#[derive(Clone, Debug)]
struct Operator {
    namespace: String,
    name: String,
    ready: i32,
    /// The only namespace that it watches.
    watches: Option<String>,
    /// What is in the way of its pods.
    trouble: Option<String>,
}

/// Looks at the installation.
///
/// # Errors
/// [`Problem`] when the cluster does not answer.
pub async fn look(cluster: &Cluster) -> Result<Installation, Problem> {
    let groups = cluster.answer(cluster.client.list_api_groups()).await?;
    let has = |name: &str| groups.groups.iter().any(|group| group.name == name);
    let kinds = if has(GROUP) {
        let known = cluster.answer(cluster.client.list_api_group_resources(&format!("{GROUP}/{VERSION}"))).await?;
        known.resources.into_iter().map(|resource| resource.name).collect()
    } else {
        Vec::new()
    };
    let operators = match operators(cluster).await {
        Ok(operators) => Some(operators),
        Err(problem) if problem.is_forbidden() => None,
        Err(problem) => return Err(problem),
    };
    Ok(Installation { kinds, has_metrics: has(METRICS), operators })
}

async fn operators(cluster: &Cluster) -> Result<Vec<Operator>, Problem> {
    let labels = format!("{}=operator", label::COMPONENT);
    let all = Api::<Deployment>::all(cluster.client.clone());
    let found = cluster.answer(all.list(&ListParams::default().labels(&labels))).await?;
    let mut operators = Vec::new();
    for deployment in found.items.into_iter().filter(is_ours) {
        let mut operator = operator(&deployment);
        if operator.ready == 0 {
            // Whoever may see the Deployment mostly may see its pods; if not, it is told without them.
            let pods = cluster.within(&operator.namespace).list::<Pod>(&labels).await.unwrap_or_default();
            operator.trouble = pods.iter().filter(|pod| is_ours(*pod)).find_map(trouble);
        }
        operators.push(operator);
    }
    Ok(operators)
}

/// Whether it is an operator of Anneal's, whatever the chart was told to call it. Charts before 0.2 said so by the name alone.
fn is_ours(object: &impl kube::Resource) -> bool {
    [label::PART_OF, label::NAME].iter().any(|key| object.labels().get(*key).is_some_and(|value| value == "anneal"))
}

fn operator(deployment: &Deployment) -> Operator {
    let containers = deployment.spec.iter().flat_map(|spec| spec.template.spec.iter().flat_map(|pod| &pod.containers));
    let mut variables = containers.flat_map(|container| container.env.iter().flatten());
    let watches = variables.find(|variable| variable.name == "ANNEAL_WATCH_NAMESPACE").and_then(|it| it.value.clone());
    Operator {
        namespace: deployment.namespace().unwrap_or_default(),
        name: deployment.name_any(),
        ready: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default(),
        watches: watches.filter(|namespace| !namespace.is_empty()),
        trouble: None,
    }
}

fn trouble(pod: &Pod) -> Option<String> {
    let seen = pods::seen(pod);
    let is_in_trouble = matches!(seen.state.tone, Tone::Bad | Tone::Waiting);
    is_in_trouble.then(|| format!("pod {} is {}: {}", pod.name_any(), seen.state.word, seen.message))
}

impl Installation {
    /// Whether the API server knows any of the resources.
    pub fn has_definitions(&self) -> bool {
        !self.kinds.is_empty()
    }

    /// What is wrong with it for whoever works in the namespace.
    pub fn findings(&self, namespace: &str) -> Vec<Finding> {
        self.definitions().into_iter().chain(self.operator(namespace)).collect()
    }

    fn definitions(&self) -> Option<Finding> {
        let missing: Vec<&str> =
            PLURALS.into_iter().filter(|plural| !self.kinds.iter().any(|it| it == plural)).collect();
        match missing.len() {
            0 => None,
            4 => Some(Finding::problem(
                Topic::Definitions,
                "the cluster does not know Anneal's resources: the definitions are not installed",
                vec![INSTALL.to_owned()],
            )),
            _ => Some(Finding::problem(
                Topic::Definitions,
                format!("the cluster does not know {}: the definitions are older than this plugin", missing.join(", ")),
                vec![format!("{INSTALL} --reset-then-reuse-values   # the chart brings the definitions")],
            )),
        }
    }

    fn operator(&self, namespace: &str) -> Option<Finding> {
        let Some(operators) = &self.operators else {
            let what = "whether the operator runs is not known: you may not list Deployments in all namespaces";
            return Some(Finding::note(Topic::Operator, what, vec![]));
        };
        let Some(first) = operators.first() else {
            return Some(Finding::problem(
                Topic::Operator,
                "no operator is installed: nothing that is applied has any effect (one outside the cluster is not seen here)",
                vec![INSTALL.to_owned()],
            ));
        };
        let serves = |it: &&Operator| it.watches.as_deref().is_none_or(|watched| watched == namespace);
        let Some(operator) = operators.iter().find(serves) else {
            let watched = first.watches.clone().unwrap_or_default();
            return Some(Finding::problem(
                Topic::Operator,
                format!(
                    "the operator in namespace {} watches namespace {watched} only, not {namespace}",
                    first.namespace
                ),
                vec![format!(
                    "work in namespace {watched}, or install another operator with --set watchNamespace={namespace}"
                )],
            ));
        };
        if operator.ready > 0 {
            return None;
        }
        let why = operator.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
        let (name, home) = (&operator.name, &operator.namespace);
        Some(Finding::problem(
            Topic::Operator,
            format!("the operator does not run: Deployment {name} in namespace {home} has no ready pod{why}"),
            vec![
                format!("kubectl -n {home} get deployment,pods -l {}=operator", label::COMPONENT),
                format!("kubectl -n {home} logs deployment/{name} --tail=20"),
            ],
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn installation(ready: i32, watches: &str) -> Installation {
        let deployment = json!({
            "metadata": {"name": "anneal", "namespace": "anneal-system"}, "status": {"readyReplicas": ready},
            "spec": {"selector": {}, "template": {"spec": {"containers": [
                {"name": "operator", "env": [{"name": "ANNEAL_WATCH_NAMESPACE", "value": watches}]}
            ]}}}
        });
        let deployment: Deployment = serde_json::from_value(deployment).expect("a Deployment");
        let kinds = PLURALS.map(str::to_owned).to_vec();
        Installation { kinds, has_metrics: true, operators: Some(vec![operator(&deployment)]) }
    }

    fn told(installation: &Installation) -> Vec<String> {
        installation.findings("demo").into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn an_installation_that_works_has_nothing_to_tell() {
        assert_eq!(told(&installation(2, "")), Vec::<String>::new());
        assert_eq!(told(&installation(2, "demo")), Vec::<String>::new());
    }

    #[test]
    fn an_operator_is_found_whatever_the_chart_was_told_to_call_it() {
        let labelled = |labels: serde_json::Value| -> Deployment {
            serde_json::from_value(json!({"metadata": {"labels": labels}})).expect("a Deployment")
        };
        assert!(is_ours(&labelled(json!({label::NAME: "trainings", label::PART_OF: "anneal"}))));
        assert!(is_ours(&labelled(json!({label::NAME: "anneal"}))));
        assert!(!is_ours(&labelled(json!({label::NAME: "kuberay-operator", label::PART_OF: "ml"}))));
        assert!(!is_ours(&Deployment::default()));
    }

    #[test]
    fn what_to_do_can_be_done_without_a_checkout() {
        let mut old = installation(1, "");
        old.kinds.pop();
        let nothing = Installation { operators: Some(vec![]), ..Installation::default() };
        let todo: Vec<String> =
            [old, nothing].iter().flat_map(|it| it.findings("demo")).flat_map(|finding| finding.todo).collect();
        assert_eq!(todo.len(), 3);
        let chart = format!("oci://ghcr.io/anneal-dev/charts/anneal --version {} ", env!("CARGO_PKG_VERSION"));
        assert!(todo.iter().all(|it| it.contains(&chart)), "{todo:?}");
    }

    #[test]
    fn what_keeps_everything_from_working_is_told() {
        assert_eq!(
            told(&installation(0, "")),
            ["the operator does not run: Deployment anneal in namespace anneal-system has no ready pod"]
        );
        assert_eq!(
            told(&installation(1, "ml")),
            ["the operator in namespace anneal-system watches namespace ml only, not demo"]
        );
        let nothing = Installation { operators: Some(vec![]), ..Installation::default() };
        assert_eq!(
            told(&nothing),
            [
                "the cluster does not know Anneal's resources: the definitions are not installed",
                "no operator is installed: nothing that is applied has any effect (one outside the cluster is not seen here)"
            ]
        );
        let mut old = installation(1, "");
        old.kinds.pop();
        assert_eq!(
            told(&old),
            ["the cluster does not know crontrainingruns: the definitions are older than this plugin"]
        );
    }
}
