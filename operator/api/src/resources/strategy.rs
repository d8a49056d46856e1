//! How a revision that has passed its gate gets the traffic: all of it at once, or share by share through a Gateway.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Approval;

/// How a revision that has passed its gate gets the traffic.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.type != 'Canary' || has(self.canary)").message("strategy.type Canary needs strategy.canary: parentRefs name the Gateways, steps the shares"))]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    /// `BlueGreen` moves all requests at once; `Canary` gives the candidate a growing share of those that come through a
    /// Gateway first.
    #[serde(rename = "type", default)]
    pub kind: StrategyType,
    /// The `HTTPRoute` from the Gateways to the model, and the steps of a canary. The route is there as long as this is,
    /// whatever the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// Ways to the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StrategyType {
    /// All at once.
    #[default]
    BlueGreen,
    /// Share by share.
    Canary,
}

/// A share of the requests that come through a Gateway, step by step. Callers of the Service inside the cluster stay with
/// the stable revision until the promotion.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.matches) || self.steps.all(step, step.setWeight > 0)").message("a step of setWeight 0 gives the candidate no requests; raise it, or say in matches whose requests the candidate gets"))]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Gateways that the `HTTPRoute` hangs on; its name is that of the `ModelDeployment`.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// Host names that the route answers to; absent: whatever the Gateways' listeners allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    pub hostnames: Vec<String>,
    /// Requests that go to the candidate whatever its weight, from the first step until the promotion: those of testers,
    /// or one side of an A/B test. One match of several is enough.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8))]
    pub matches: Vec<RequestMatch>,
    /// Copies of requests for the candidate before its first share: what it answers is compared with what callers got, and
    /// thrown away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// Shares that the candidate gets, one after the other. After the last one it gets the Service, too.
    #[schemars(length(min = 1, max = 20))]
    pub steps: Vec<CanaryStep>,
}

/// A Gateway, as an `HTTPRoute` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Name of the Gateway.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace; absent: that of the `ModelDeployment`. The Gateway's `allowedRoutes` must let the route in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// One of its listeners; absent: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// Port of its listeners; absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// Requests that carry all of these headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// Headers that a request must carry, all of them.
    #[schemars(length(min = 1, max = 16))]
    pub headers: Vec<HeaderMatch>,
}

/// A header with its value, as an `HTTPRoute` matches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchType,
    /// Name of the header, in any case.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_|~-]+$"))]
    pub name: String,
    /// The value that it must have.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// How the value of a header is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HeaderMatchType {
    /// It is the same text.
    #[default]
    Exact,
    /// It matches the expression, in the syntax of the Gateway's implementation.
    RegularExpression,
}

/// A share of the requests, and how long the candidate is judged by what it makes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStep {
    /// Percent of the requests through the Gateways that go to the candidate.
    #[schemars(range(min = 0, max = 100))]
    pub set_weight: i32,
    /// Seconds that the share is left so, counted from when the Gateway has taken it. Meanwhile the bounds of
    /// `gate.soakTest` and crashes decide whether the candidate keeps it.
    #[serde(default = "default_pause")]
    #[schemars(range(min = 0, max = 604_800))]
    pub pause_seconds: i32,
    /// Who decides that the next step comes once the pause is over; a person does it by the annotation
    /// `anneal.dev/approve`.
    #[serde(default)]
    pub approval: Approval,
}

fn default_pause() -> i32 {
    60
}

/// Copies of the requests through the Gateways, answered by the candidate for nobody. By the answers' digests the operator
/// finds how often it agrees with the revision that serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// Percent of the requests through the Gateways that are copied.
    #[serde(default = "default_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub percent: i32,
    /// Least share of the compared requests for which the candidate must predict the classes that the revision predicts
    /// which serves, 0 to 1. One that agrees on fewer is rejected.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_agreement: f64,
    /// Requests that must have been compared before the candidate is judged.
    #[serde(default = "default_min_requests")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min_requests: i32,
    /// Seconds within which so many must have been compared, counted from when the Gateway has taken the copies. A
    /// candidate about which too little is known then is rejected.
    #[serde(default = "default_timeout")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: i32,
}

fn default_percent() -> i32 {
    100
}

fn default_min_requests() -> i32 {
    100
}

fn default_timeout() -> i32 {
    600
}

/// The share of the requests that the candidate is to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// Hash of the revision.
    #[schemars(length(max = 63))]
    pub revision: String,
    /// Number of the step, counted from 1; 0 while the candidate gets copies of requests, and absent while what it has is
    /// taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Percent of the requests through the Gateways: written here before the `HTTPRoute` is touched.
    pub weight: i32,
    /// When that was decided.
    pub start_time: Time,
    /// When the Gateway had taken it. The step's pause counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_time: Option<Time>,
    /// When the step's pause was over and it began to wait for approval, where that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed_time: Option<Time>,
    /// What became of the copies, with `strategy.canary.shadow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
}

/// How often the candidate agrees with the revision that serves. Written with each tenth of `minRequests`, and once it is
/// judged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ShadowStatus {
    /// Percent of the requests through the Gateways that are copied: written here before the `HTTPRoute` is touched.
    pub percent: i32,
    /// Requests whose answers by both revisions are known.
    pub compared: i64,
    /// Those among them for which both predicted the same classes.
    pub agreed: i64,
    /// Their share, 0 to 1; absent while nothing was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
}
