//! The network policies of the examples, against the connections that runs and deployments need. No cluster of the tests
//! enforces policies, so that they are read here as Kubernetes describes them.

use std::collections::BTreeMap;

use anneal_api::names::{PROGRESS_PORT, SERVER_PORT, label};
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use serde::Deserialize as _;

use crate::{children, model_deployment::objects::revision_labels, training_run::nodes::MASTER_PORT};

/// Where the example's objects are.
const TEAM: &str = "team";

/// A pod at one end of a connection.
struct End {
    namespace: &'static str,
    labels: BTreeMap<String, String>,
}

fn trainer() -> End {
    End { namespace: TEAM, labels: children::labels("trainer", label::RUN, "cats") }
}

fn server() -> End {
    End { namespace: TEAM, labels: revision_labels("server", "cats", None) }
}

fn smoke() -> End {
    End { namespace: TEAM, labels: revision_labels("smoke", "cats", None) }
}

fn operator() -> End {
    let labels = [(label::NAME, "anneal"), (label::COMPONENT, "operator")];
    End { namespace: "anneal-system", labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into() }
}

fn stranger(namespace: &'static str) -> End {
    End { namespace, labels: BTreeMap::new() }
}

fn chooses(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    assert!(selector.match_expressions.is_none(), "this test does not read expressions");
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_peer(peer: &NetworkPolicyPeer, end: &End) -> bool {
    let namespace = BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), end.namespace.to_owned())]);
    let is_there = peer.namespace_selector.as_ref().map_or(end.namespace == TEAM, |it| chooses(it, &namespace));
    is_there && peer.pod_selector.as_ref().is_none_or(|it| chooses(it, &end.labels))
}

fn allows(
    ports: Option<&Vec<NetworkPolicyPort>>,
    peers: Option<&Vec<NetworkPolicyPeer>>,
    end: &End,
    port: u16,
) -> bool {
    let is_port = |it: &NetworkPolicyPort| it.port == Some(IntOrString::Int(port.into()));
    ports.is_none_or(|all| all.iter().any(is_port)) && peers.is_none_or(|all| all.iter().any(|peer| is_peer(peer, end)))
}

/// Whether a connection is let through: out of one end and into the other, where a policy chooses that end's pod.
fn is_open(from: &End, to: &End, port: u16) -> bool {
    let text = include_str!("../../examples/networkpolicies.yaml");
    let policies: Vec<NetworkPolicy> = serde_yaml::Deserializer::from_str(text)
        .map(|it| NetworkPolicy::deserialize(it).expect("a network policy"))
        .collect();
    assert!(!policies.is_empty());
    let of = |end: &End, direction: &str| {
        let specs = policies.iter().filter_map(|policy| policy.spec.as_ref());
        let here = specs.filter(|spec| {
            let is_chosen = spec.pod_selector.as_ref().is_none_or(|selector| chooses(selector, &end.labels));
            end.namespace == TEAM && is_chosen && spec.policy_types.iter().flatten().any(|it| it == direction)
        });
        here.cloned().collect::<Vec<_>>()
    };
    let (out, into) = (of(from, "Egress"), of(to, "Ingress"));
    let leaves = out.iter().flat_map(|spec| spec.egress.iter().flatten());
    let enters = into.iter().flat_map(|spec| spec.ingress.iter().flatten());
    let (mut leaves, mut enters) = (
        leaves.map(|rule| allows(rule.ports.as_ref(), rule.to.as_ref(), to, port)),
        enters.map(|rule| allows(rule.ports.as_ref(), rule.from.as_ref(), from, port)),
    );
    (out.is_empty() || leaves.any(|it| it)) && (into.is_empty() || enters.any(|it| it))
}

#[test]
fn what_the_operator_and_the_pods_need_is_open() {
    for (what, from, to, port) in [
        ("progress", operator(), trainer(), PROGRESS_PORT),
        ("a run's metrics", stranger("monitoring"), trainer(), PROGRESS_PORT),
        ("the first pod of several", trainer(), trainer(), MASTER_PORT),
        ("gradients", trainer(), trainer(), 41_287),
        ("soak, canary and feedback", operator(), server(), SERVER_PORT),
        ("the smoke test", smoke(), server(), SERVER_PORT),
        ("a server's metrics", stranger("monitoring"), server(), SERVER_PORT),
        ("names", server(), stranger("kube-system"), 53),
        ("the file of model.uri", server(), stranger("anywhere"), 443),
        ("traces", server(), stranger("monitoring"), 4318),
        ("data and MLflow", trainer(), stranger("anywhere"), 443),
    ] {
        assert!(is_open(&from, &to, port), "{what}: nothing gets through at port {port}");
    }
}

#[test]
fn what_nobody_needs_is_closed() {
    for (what, from, to, port) in [
        ("a stranger's question for progress", stranger("other"), trainer(), PROGRESS_PORT),
        ("a stranger among the pods of a run", stranger("other"), trainer(), MASTER_PORT),
        ("a pod beside the operator", stranger("anneal-system"), server(), SERVER_PORT),
        ("a stranger's prediction", stranger("other"), server(), SERVER_PORT),
        ("a server at a trainer", server(), trainer(), PROGRESS_PORT),
        ("a server at the API server", server(), stranger("kube-system"), 6443),
    ] {
        assert!(!is_open(&from, &to, port), "{what} gets through at port {port}");
    }
}
