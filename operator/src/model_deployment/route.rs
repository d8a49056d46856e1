//! The `HTTPRoute` from Gateways to a deployment: its stable Service, and beside it the candidate's own one while a canary
//! is under way. Only what is needed of the Gateway API's type is here: the published crate of all its types is made for
//! another version of the client.

use anneal_api::resources::{Canary, HeaderMatch, ModelDeployment, ParentRef, RequestMatch};
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{CustomResource, ResourceExt};
use serde::{Deserialize, Serialize};

use super::{
    canary::{Part, Share},
    objects::{BACKEND_PORT, plain_service, revision_labels, revision_name},
    revision::RevisionName,
    validate::ValidDeployment,
};
use crate::children;

/// What an `HTTPRoute` says, as far as the operator writes it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "HTTPRoute",
    plural = "httproutes",
    namespaced,
    status = "RouteStatus",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec {
    /// Gateways that it hangs on.
    pub parent_refs: Vec<Parent>,
    /// Host names that it answers to.
    pub hostnames: Vec<String>,
    /// Which requests go where.
    pub rules: Vec<Rule>,
}

/// Fields that the operator does not write: the API server's defaults, and what users add, as timeouts and filters.
pub type Others = serde_json::Map<String, serde_json::Value>;

/// A Gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parent {
    /// As the spec names it.
    #[serde(flatten)]
    pub gateway: ParentRef,
    /// What else is said.
    #[serde(flatten)]
    pub others: Others,
}

/// Requests, and where they go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Which requests.
    pub matches: Vec<Match>,
    /// What else becomes of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Where they go.
    pub backend_refs: Vec<BackendRef>,
    /// What else is said.
    #[serde(flatten)]
    pub others: Others,
}

/// What makes a request one of a rule's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// Its path.
    pub path: Path,
    /// Its headers, all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// What else a request must have.
    #[serde(flatten)]
    pub others: Others,
}

/// A path; the default is every path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: String,
    /// With what.
    pub value: String,
}

impl Default for Path {
    fn default() -> Self {
        Self { kind: "PathPrefix".to_owned(), value: "/".to_owned() }
    }
}

/// Something that becomes of requests on their way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Filter {
    /// Which of the next fields it is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// Copies of them go elsewhere, and what is answered to these to nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// What else it is about.
    #[serde(flatten)]
    pub others: Others,
}

/// Where copies of requests go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// The Service.
    pub backend_ref: ServiceRef,
    /// How many of a hundred are copied. Always written: where it is absent, the cluster does not know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// What else is said.
    #[serde(flatten)]
    pub others: Others,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceRef {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: i32,
    /// What else is said.
    #[serde(flatten)]
    pub others: Others,
}

/// A Service with its share of a rule's requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendRef {
    /// Name of the Service.
    pub name: String,
    /// Its port.
    pub port: i32,
    /// Its share, in proportion to those of the others.
    pub weight: i32,
    /// What else is said.
    #[serde(flatten)]
    pub others: Others,
}

/// What the Gateways' controllers say about a route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStatus {
    /// What each one says for each Gateway.
    pub parents: Vec<ParentStatus>,
}

/// What a controller says about a route for one Gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentStatus {
    /// `Accepted` and `ResolvedRefs`, among others.
    pub conditions: Vec<Condition>,
}

/// What the cluster has of the route.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteSeen {
    /// The cluster does not know the kind, for the Gateway API is not installed, or the operator has no right to it.
    NotServed,
    /// A route of this name belongs to somebody else.
    Foreign,
    /// The route, where there is one.
    Served(Option<Box<HTTPRoute>>),
}

impl RouteSeen {
    /// The route.
    pub fn route(&self) -> Option<&HTTPRoute> {
        match self {
            Self::Served(route) => route.as_deref(),
            Self::NotServed | Self::Foreign => None,
        }
    }
}

/// The route as it should be; with a share, the candidate's own Service is beside the stable one, or gets copies.
pub fn route(owner: &ModelDeployment, spec: &ValidDeployment, canary: &Canary, share: Option<&Share>) -> HTTPRoute {
    let others = Others::new;
    let stable = |weight| BackendRef { name: spec.name.clone(), port: spec.service.port, weight, others: others() };
    let candidate = |share: &Share, weight| BackendRef {
        name: revision_name(&spec.name, share.to.name()),
        port: BACKEND_PORT,
        weight,
        others: others(),
    };
    let chosen = |share: &Share| Rule {
        matches: canary
            .matches
            .iter()
            .map(|RequestMatch { headers }| Match { headers: headers.clone(), ..Match::default() })
            .collect(),
        filters: Vec::new(),
        backend_refs: vec![candidate(share, 1)],
        others: others(),
    };
    let every_request = |filters: Vec<Filter>, backend_refs: Vec<BackendRef>| Rule {
        matches: vec![Match::default()],
        filters,
        backend_refs,
        others: others(),
    };
    let rules = match share.map(|share| (share, share.part)) {
        None => vec![every_request(Vec::new(), vec![stable(1)])],
        // Nobody is a tester yet: what it answers is for nobody.
        Some((share, Part::Copies(percent))) => {
            let BackendRef { name, port, .. } = candidate(share, 1);
            let backend_ref = ServiceRef { name, port, others: others() };
            vec![every_request(vec![copies(backend_ref, percent)], vec![stable(1)])]
        }
        Some((share, Part::Requests(weight))) => {
            let testers = Some(share).filter(|_| !canary.matches.is_empty()).map(chosen);
            let shared = vec![stable(100 - weight), candidate(share, weight)];
            testers.into_iter().chain([every_request(Vec::new(), shared)]).collect()
        }
    };
    let name = owner.name_any();
    HTTPRoute {
        metadata: children::metadata(owner, name.clone(), revision_labels("route", &name, None)),
        spec: RouteSpec {
            parent_refs: canary
                .parent_refs
                .iter()
                .map(|gateway| Parent { gateway: gateway.clone(), others: others() })
                .collect(),
            hostnames: canary.hostnames.clone(),
            rules,
        },
        status: None,
    }
}

fn copies(backend_ref: ServiceRef, percent: i32) -> Filter {
    let request_mirror = RequestMirror { backend_ref, percent: Some(percent), others: Others::new() };
    Filter { kind: "RequestMirror".to_owned(), request_mirror: Some(request_mirror), others: Others::new() }
}

/// The Service of one revision, to which a route gives its share. A preview would move with the candidate.
pub fn backend(owner: &ModelDeployment, revision: &RevisionName) -> Service {
    let name = owner.name_any();
    let chosen = super::objects::selector(&name, revision.as_str());
    let mut service = plain_service(owner, revision_name(&name, revision), "backend", chosen);
    service.metadata.labels = Some(revision_labels("backend", &name, Some(revision)));
    service
}

/// Fields that decide where requests go, with the values that the operator's own have by default.
const PLACES: [(&str, Option<&str>); 3] = [("group", Some("")), ("kind", Some("Service")), ("namespace", None)];

/// What the route should say, given what it says: fields and filters that others added to a rule, a backend or a Gateway stay
/// with it, and it says what the cluster's Gateway API can hold.
pub fn beside(mut wanted: RouteSpec, existing: &RouteSpec) -> RouteSpec {
    for parent in &mut wanted.parent_refs {
        let same = existing.parent_refs.iter().find(|it| it.gateway == parent.gateway);
        parent.others = same.map(|it| it.others.clone()).unwrap_or_default();
    }
    // The last rule is for every request, and leads to the Service first.
    let service = wanted.rules.last().and_then(|rule| rule.backend_refs.first()).map(|it| it.name.clone());
    let service = service.unwrap_or_default();
    for rule in &mut wanted.rules {
        let Some(same) = existing.rules.iter().find(|it| it.matches == rule.matches) else { continue };
        rule.others.clone_from(&same.others);
        for backend in &mut rule.backend_refs {
            let same = same.backend_refs.iter().find(|it| it.name == backend.name);
            backend.others = same.map(|it| placed(&it.others)).unwrap_or_default();
        }
        for mirror in rule.filters.iter_mut().filter_map(|filter| filter.request_mirror.as_mut()) {
            mirror_beside(mirror, &same.filters);
        }
        let of_others = same.filters.iter().filter(|filter| !is_own(filter, &service)).cloned();
        rule.filters = of_others.chain(std::mem::take(&mut rule.filters)).collect();
    }
    wanted
}

/// What others say of a backend, but where it is.
fn placed(others: &Others) -> Others {
    let mut others = others.clone();
    for (field, own) in PLACES {
        let is_said = others.remove(field).is_some();
        others.extend(own.filter(|_| is_said).map(|own| (field.to_owned(), own.into())));
    }
    others
}

/// The same copies, as they are there. Before version 1.3 the Gateway API knows no percentage, and all requests are copied.
fn mirror_beside(mirror: &mut RequestMirror, existing: &[Filter]) {
    let is_same = |it: &&RequestMirror| {
        (&it.backend_ref.name, it.backend_ref.port) == (&mirror.backend_ref.name, mirror.backend_ref.port)
    };
    let Some(same) = existing.iter().filter_map(|filter| filter.request_mirror.as_ref()).find(is_same) else { return };
    mirror.others.clone_from(&same.others);
    mirror.backend_ref.others = placed(&same.backend_ref.others);
    mirror.percent = mirror.percent.filter(|_| same.percent.is_some());
}

/// Whether a filter copies requests to a revision of the deployment with this Service.
fn is_own(filter: &Filter, service: &str) -> bool {
    let revision = |mirror: &RequestMirror| {
        let hash = mirror.backend_ref.name.strip_prefix(service)?.strip_prefix('-')?;
        RevisionName::parse(hash)
    };
    filter.request_mirror.as_ref().and_then(revision).is_some()
}

/// Whether the route says just this, and the Gateways have taken it as it is now.
pub fn is_taken(wanted: &HTTPRoute, existing: &HTTPRoute) -> bool {
    beside(wanted.spec.clone(), &existing.spec) == existing.spec && verdict(existing) == Verdict::Accepted
}

/// What the Gateways make of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Requests go by it.
    Accepted,
    /// Requests go by what it said before; what it says now is on its way.
    Stale,
    /// Not every Gateway's controller has looked at it.
    Pending,
    /// One of them does not take it: its reason, and its words.
    Refused(String, String),
}

/// What the Gateways make of a route as it is now.
pub fn verdict(route: &HTTPRoute) -> Verdict {
    let parents = route.status.as_ref().map(|status| status.parents.as_slice()).unwrap_or_default();
    let of = |parent: &ParentStatus, kind: &str| parent.conditions.iter().find(|it| it.type_ == kind).cloned();
    let found: Vec<_> =
        parents.iter().flat_map(|parent| ["Accepted", "ResolvedRefs"].map(|kind| of(parent, kind))).collect();
    if let Some(refused) = found.iter().flatten().find(|it| it.status == "False") {
        return Verdict::Refused(refused.reason.clone(), refused.message.clone());
    }
    let is_taken = |it: &Option<Condition>| it.as_ref().is_some_and(|it| it.status == "True");
    if parents.len() < route.spec.parent_refs.len() || parents.is_empty() || !found.iter().all(is_taken) {
        return Verdict::Pending;
    }
    let is_current = |it: &Condition| it.observed_generation >= route.metadata.generation;
    if found.iter().flatten().all(is_current) { Verdict::Accepted } else { Verdict::Stale }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model_deployment::{tests::fixtures::deployment, validate::validate};

    fn spec(canary: &Value) -> (ModelDeployment, ValidDeployment) {
        let owner = deployment(&json!({
            "model": {"trainingRunRef": {"name": "run"}}, "strategy": {"type": "Canary", "canary": canary}
        }));
        let valid = validate(&owner).expect("valid");
        (owner, valid)
    }

    fn rules(canary: &Value, share: Option<&Share>) -> Value {
        let (owner, spec) = spec(canary);
        let route = route(&owner, &spec, spec.route.as_ref().expect("a route"), share);
        serde_json::to_value(route.spec.rules).expect("json")
    }

    fn share(weight: i32) -> Share {
        given(Part::Requests(weight))
    }

    fn given(part: Part) -> Share {
        Share { to: crate::model_deployment::gate::Gated::of_tests("0123abcd"), part }
    }

    #[test]
    fn at_rest_every_request_goes_to_the_service() {
        let canary = json!({"parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}]});
        let every = json!({"path": {"type": "PathPrefix", "value": "/"}});
        let stable = json!({"name": "cats", "port": 80, "weight": 1});
        assert_eq!(rules(&canary, None), json!([{"matches": [every], "backendRefs": [stable]}]));
    }

    #[test]
    fn copies_go_to_the_candidate_and_every_request_to_the_service_also_a_testers() {
        let canary = json!({
            "parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 0}],
            "matches": [{"headers": [{"name": "x-tester", "value": "yes"}]}],
        });
        let mirror = json!({"backendRef": {"name": "cats-0123abcd", "port": 80}, "percent": 10});
        let found = rules(&canary, Some(&given(Part::Copies(10))));
        assert_eq!(found.as_array().map(Vec::len), Some(1));
        assert_eq!(found[0]["backendRefs"], json!([{"name": "cats", "port": 80, "weight": 1}]));
        assert_eq!(found[0]["filters"], json!([{"type": "RequestMirror", "requestMirror": mirror}]));
    }

    #[test]
    fn a_filter_of_somebody_else_stays_when_copies_begin_and_end() {
        let (owner, spec) = spec(&json!({"parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}]}));
        let route = |share: Option<&Share>| route(&owner, &spec, spec.route.as_ref().expect("a route"), share).spec;
        let theirs: Filter = serde_json::from_value(json!({
            "type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-team", "value": "pets"}]}
        }))
        .expect("a filter");
        let mut existing = route(None);
        existing.rules[0].filters.push(theirs.clone());
        let copying = beside(route(Some(&given(Part::Copies(10)))), &existing);
        assert_eq!((copying.rules[0].filters.len(), &copying.rules[0].filters[0]), (2, &theirs));
        assert_eq!(beside(route(None), &copying), existing);
    }

    #[test]
    fn a_gateway_api_that_knows_no_percentage_is_not_written_to_again_and_again() {
        let (owner, spec) = spec(&json!({"parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}]}));
        let route = |part| route(&owner, &spec, spec.route.as_ref().expect("a route"), Some(&given(part)));
        let as_dropped = |part| {
            let mut existing = route(part);
            let mirrors = existing.spec.rules.iter_mut().flat_map(|rule| &mut rule.filters);
            mirrors.filter_map(|filter| filter.request_mirror.as_mut()).for_each(|mirror| mirror.percent = None);
            existing
        };
        let is_held = |existing: &HTTPRoute| beside(route(Part::Copies(10)).spec, &existing.spec) == existing.spec;
        assert!(is_held(&route(Part::Copies(10))) && is_held(&as_dropped(Part::Copies(10))));
        assert!(!is_held(&route(Part::Copies(100))) && !is_held(&route(Part::Requests(10))));
    }

    #[test]
    fn testers_get_the_candidate_and_all_others_their_share() {
        let tester = json!({"name": "x-tester", "value": "yes"});
        let canary = json!({
            "parentRefs": [{"name": "edge"}], "matches": [{"headers": [tester]}], "steps": [{"setWeight": 0}]
        });
        let found = rules(&canary, Some(&share(10)));
        assert_eq!(found[0]["matches"][0]["headers"], json!([{"type": "Exact", "name": "x-tester", "value": "yes"}]));
        assert_eq!(found[0]["backendRefs"], json!([{"name": "cats-0123abcd", "port": 80, "weight": 1}]));
        let weights = json!([
            {"name": "cats", "port": 80, "weight": 90}, {"name": "cats-0123abcd", "port": 80, "weight": 10}
        ]);
        assert_eq!(found[1]["backendRefs"], weights);
        assert_eq!(rules(&canary, None).as_array().map(Vec::len), Some(1), "nobody is a tester of nothing");
    }

    /// The route as the API server keeps it, with these fields set on its only rule.
    fn kept(rule: &Value) -> HTTPRoute {
        let mut all = json!({
            "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
            "backendRefs": [{"group": "", "kind": "Service", "name": "cats", "port": 80, "weight": 1}],
        });
        crate::model_deployment::tests::simulation::merge(&mut all, rule.clone());
        let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"});
        let spec = json!({"parentRefs": [gateway], "rules": [all]});
        serde_json::from_value(json!({"metadata": {"name": "cats"}, "spec": spec})).expect("a route")
    }

    /// What would be written over it.
    fn written(canary: &Value, existing: &HTTPRoute, share: Option<&Share>) -> Option<Value> {
        let (owner, spec) = spec(canary);
        let wanted = route(&owner, &spec, spec.route.as_ref().expect("a route"), share);
        let wanted = beside(wanted.spec, &existing.spec);
        (wanted != existing.spec).then(|| serde_json::to_value(wanted).expect("json"))
    }

    #[test]
    fn what_users_add_to_a_rule_stays_with_it() {
        let canary = json!({"parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}]});
        let timeouts = json!({"request": "30s"});
        let existing = kept(&json!({"timeouts": timeouts}));
        assert_eq!(written(&canary, &existing, None), None, "nor is it a reason to write");
        let found = written(&canary, &existing, Some(&share(10))).expect("a share");
        assert_eq!(found["rules"][0]["timeouts"], timeouts);
        assert_eq!(found["rules"][0]["backendRefs"][0]["kind"], "Service");
        assert_eq!(found["parentRefs"][0]["kind"], "Gateway");
    }

    #[test]
    fn where_requests_go_is_the_operators_alone() {
        let canary = json!({"parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 10}]});
        let backend = json!({"name": "cats", "port": 80, "weight": 1, "kind": "Other", "namespace": "b"});
        let found = written(&canary, &kept(&json!({"backendRefs": [backend]})), None).expect("it is set back");
        let own = json!([{"name": "cats", "port": 80, "weight": 1, "kind": "Service"}]);
        assert_eq!(found["rules"][0]["backendRefs"], own);
        let fewer = json!([{"path": {"type": "PathPrefix", "value": "/"}, "method": "POST"}]);
        let found = written(&canary, &kept(&json!({"matches": fewer})), None).expect("it is set back");
        assert_eq!(found["rules"][0]["matches"], json!([{"path": {"type": "PathPrefix", "value": "/"}}]));
    }

    #[test]
    fn what_is_taken_out_of_the_spec_is_taken_out_of_the_route() {
        let parent = |more: Value| {
            let mut parent = json!({"name": "edge"});
            crate::model_deployment::tests::simulation::merge(&mut parent, more);
            json!({"parentRefs": [parent], "steps": [{"setWeight": 10}]})
        };
        let mut existing = kept(&json!({}));
        existing.spec.parent_refs[0].gateway.section_name = Some("https".to_owned());
        assert_eq!(written(&parent(json!({"sectionName": "https"})), &existing, None), None);
        let found = written(&parent(json!({})), &existing, None).expect("any listener");
        assert_eq!(found["parentRefs"], json!([{"name": "edge"}]));
        let mut existing = kept(&json!({}));
        existing.spec.hostnames = vec!["cats.example.com".to_owned()];
        assert_eq!(written(&parent(json!({})), &existing, None).expect("any host")["hostnames"], json!([]));
        let headers = json!({"matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [{"name": "a", "value": "b"}]}]});
        assert!(written(&parent(json!({})), &kept(&headers), None).is_some(), "every request");
    }

    #[test]
    fn a_route_is_taken_when_every_gateway_has_looked_at_what_it_says_now() {
        let condition = |kind: &str, status: &str, generation: i64| {
            json!({"type": kind, "status": status, "reason": "NoMatchingParent", "message": "why", "observedGeneration": generation,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let judged = |parents: &[Value]| {
            let parents: Vec<_> = parents.iter().map(|conditions| json!({"conditions": conditions})).collect();
            let route = serde_json::from_value(json!({
                "metadata": {"name": "cats", "generation": 2}, "spec": {"parentRefs": [{"name": "edge"}]},
                "status": {"parents": parents},
            }));
            verdict(&route.expect("a route"))
        };
        let both = |status: &str, generation| {
            json!([condition("Accepted", status, generation), condition("ResolvedRefs", "True", generation)])
        };
        assert_eq!(judged(&[]), Verdict::Pending);
        assert_eq!(judged(&[both("True", 1)]), Verdict::Stale, "that was about another share");
        assert_eq!(judged(&[both("True", 2)]), Verdict::Accepted);
        assert_eq!(judged(&[both("False", 2)]), Verdict::Refused("NoMatchingParent".into(), "why".into()));
        assert_eq!(
            judged(&[json!([condition("Accepted", "True", 2)])]),
            Verdict::Pending,
            "its backends may be unknown"
        );
    }
}
