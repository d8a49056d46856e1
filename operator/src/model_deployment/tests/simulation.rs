//! A small cluster in memory, in which plans are carried out. Every write is checked against the laws of a rollout.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anneal_api::{
    names::{env, label},
    resources::{DeploymentPhase, ModelDeployment, ModelDeploymentStatus, TrainingRun},
    smoke::{SmokeReport, Verdict},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{autoscaling::v2::HorizontalPodAutoscaler, core::v1::Service, policy::v1::PodDisruptionBudget};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::fixtures::deployment;
use crate::{
    context::Settings,
    controller::Wake,
    model_deployment::{
        apply::{Write, writes},
        objects::annotation,
        observe::{ClaimUse, Observed, RevisionSeen, TestSeen},
        plan::{Plan, plan, refuse},
        pods::{PodSeen, Trouble},
        record::{self, Records},
        revision::{ModelFile, RevisionName},
        route::{HTTPRoute, RouteSeen, ServiceRef},
        takeover::{self, Before, Former, Stage},
        validate::validate,
    },
    performance::Measured,
    shadow::{
        Counts,
        board::{Compared, Pair},
    },
    signals::{Signals, Window},
};

/// The cluster. Checkpoints are told apart by the first digit of their digest.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the cluster")]
pub struct World {
    pub owner: ModelDeployment,
    pub run: Option<TrainingRun>,
    pub records: Records,
    pub revisions: BTreeMap<RevisionName, RevisionSeen>,
    /// Version of the operator.
    pub settings: Settings,
    pub tests: Vec<TestSeen>,
    pub service: Option<Service>,
    /// A Service that was there before.
    pub former: Option<Former>,
    pub preview: Option<Service>,
    /// Whether a Service of the preview's name belongs to somebody else.
    pub has_foreign_preview: bool,
    pub has_foreign_autoscaler: bool,
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    pub budgets: Vec<PodDisruptionBudget>,
    pub route: Option<HTTPRoute>,
    pub backends: Vec<Service>,
    /// Whether the cluster knows the Gateway API.
    pub knows_gateways: bool,
    /// Whether a route of the deployment's name belongs to somebody else.
    pub has_foreign_route: bool,
    /// Whether the Gateways' controllers answer.
    pub gateway_answers: bool,
    pub missing_claim: Option<String>,
    pub claim_use: ClaimUse,
    pub missing_images: Vec<String>,
    pub now: Timestamp,
    /// Checkpoints whose answers are wrong.
    pub wrong: BTreeSet<char>,
    /// Checkpoints that cannot be loaded.
    pub broken: BTreeSet<char>,
    /// Checkpoints whose tests come to no verdict.
    pub unclear: BTreeSet<char>,
    /// Checkpoints that answer well when they are asked, and fail under traffic.
    pub failing: BTreeSet<char>,
    /// How often checkpoints are right under traffic, of 200 predictions whose true class is known.
    pub accuracy: BTreeMap<char, f64>,
    /// Checkpoints that predict other classes than the others, for every second request.
    pub disagreeing: BTreeSet<char>,
    /// Whether requests come through the Gateway: ten a turn.
    pub has_callers: bool,
    /// Reasons of the Events, oldest first.
    pub events: Vec<&'static str>,
    /// Whether the world's endpoints controller keeps up.
    pub endpoints_follow: bool,
    /// UIDs of the pods behind the Service.
    pub endpoints: BTreeSet<String>,
    backend_pods: BTreeSet<String>,
    answered: BTreeSet<String>,
    served: BTreeSet<RevisionName>,
    /// Who gets copies, and how many of the answers the operator's process has compared.
    compared: Option<(RevisionName, i64)>,
    counter: u32,
}

impl World {
    /// A deployment of checkpoint `a`, that nothing has happened to yet. `spec` is merged into the default.
    pub fn new(spec: Value) -> Self {
        let mut all = json!({"model": file('a')});
        merge(&mut all, spec);
        Self {
            owner: deployment(&all),
            run: None,
            records: Records::new(),
            revisions: BTreeMap::new(),
            settings: Settings::of_tests(),
            tests: Vec::new(),
            service: None,
            former: None,
            preview: None,
            has_foreign_preview: false,
            has_foreign_autoscaler: false,
            autoscaler: None,
            budgets: Vec::new(),
            route: None,
            backends: Vec::new(),
            knows_gateways: true,
            has_foreign_route: false,
            gateway_answers: true,
            missing_claim: None,
            claim_use: ClaimUse::default(),
            missing_images: Vec::new(),
            now: Timestamp::from_second(1_800_000_000).expect("in range"),
            wrong: BTreeSet::new(),
            broken: BTreeSet::new(),
            unclear: BTreeSet::new(),
            failing: BTreeSet::new(),
            accuracy: BTreeMap::new(),
            disagreeing: BTreeSet::new(),
            has_callers: true,
            events: Vec::new(),
            endpoints_follow: true,
            endpoints: BTreeSet::new(),
            backend_pods: BTreeSet::new(),
            answered: BTreeSet::new(),
            served: BTreeSet::new(),
            compared: None,
            counter: 0,
        }
    }

    /// The same, once checkpoint `a` has the traffic.
    pub fn serving(spec: Value) -> Self {
        let mut world = Self::new(spec);
        world.until(DeploymentPhase::Stable);
        world.rest();
        world.events.clear();
        world
    }

    /// The same beside a Service of its name that leads to two pods, and that its owner hands over.
    pub fn beside_another(spec: Value) -> Self {
        let mut world = Self::new(spec);
        let selector = BTreeMap::from([("app".to_owned(), "cats".to_owned())]);
        let ports = serde_json::from_value(json!([{"port": 80, "targetPort": 8000}])).expect("ports");
        let before = Before { labels: BTreeMap::new(), kind: "ClusterIP".to_owned(), ports, selector };
        let pods = ["old-1", "old-2"].map(|name| PodSeen { ready: true, ..pod(name, "10.0.1.1") }).to_vec();
        let stage = Stage::Offered(Box::new(offered(&before)));
        world.former = Some(Former { stage, before, pods });
        world
    }

    /// Whether the Service leads to nobody, to what it led to before, or to a revision that has passed; or to where somebody
    /// else has just moved it.
    pub fn is_gated_or_nothing(&self) -> bool {
        let live = self.observe().live();
        live.is_none_or(|live| {
            self.served.contains(&live) || self.status().stable_revision.as_deref() != Some(live.as_str())
        })
    }

    /// Whether the Service is still, or again, what it was before.
    pub fn is_untouched(&self) -> bool {
        self.service.is_none() && matches!(&self.former, Some(Former { stage: Stage::Offered(_), .. }))
    }

    /// Changes the spec.
    pub fn edit(&mut self, change: Value) {
        let mut spec = serde_json::to_value(&self.owner.spec).expect("json");
        merge(&mut spec, change);
        self.owner.spec = serde_json::from_value(spec).expect("a spec");
        self.owner.metadata.generation = self.owner.metadata.generation.map(|generation| generation + 1);
    }

    /// Asks for another checkpoint.
    pub fn want(&mut self, checkpoint: char) {
        self.edit(json!({"model": file(checkpoint)}));
    }

    /// Asks something of the rollout, by an annotation.
    pub fn ask(&mut self, request: &str, value: &str) {
        self.owner.annotations_mut().insert(request.to_owned(), value.to_owned());
    }

    /// Asks for a revision by its name, or no longer.
    pub fn pin(&mut self, revision: Option<&str>) {
        self.edit(json!({"pinnedRevision": revision}));
    }

    /// Name of the revision of a checkpoint.
    pub fn name(&self, of: char) -> String {
        let found = self.revisions.iter().find(|(_, revision)| checkpoint(revision) == of);
        found.expect("a revision").0.to_string()
    }

    pub fn status(&self) -> ModelDeploymentStatus {
        self.owner.status.clone().unwrap_or_default()
    }

    pub fn phase(&self) -> DeploymentPhase {
        self.status().phase.expect("a phase")
    }

    /// The checkpoint behind the Service.
    pub fn live(&self) -> Option<char> {
        let live = self.observe().live()?;
        self.revisions.get(&live).map(checkpoint)
    }

    /// The revision of a checkpoint.
    pub fn revision(&self, of: char) -> &RevisionSeen {
        self.revisions.values().find(|revision| checkpoint(revision) == of).expect("a revision")
    }

    pub fn revision_mut(&mut self, of: char) -> &mut RevisionSeen {
        self.revisions.values_mut().find(|revision| checkpoint(revision) == of).expect("a revision")
    }

    /// Why the checkpoint was rejected.
    pub fn rejection(&self, of: char) -> Option<String> {
        let digest = of.to_string().repeat(64);
        let entry = self.status().revisions.into_iter().find(|entry| entry.sha256.as_str() == digest)?;
        entry.rejection.map(|rejection| rejection.reason)
    }

    pub fn observe(&self) -> Observed {
        let promotes = self.owner.status.as_ref().is_some_and(|status| status.promotion.is_some());
        let looks = promotes || self.former.is_some();
        Observed {
            owner: Arc::new(self.owner.clone()),
            status: self.status(),
            run: self.run.clone(),
            missing_claim: self.missing_claim.clone(),
            claim_use: self.claim_use,
            missing_images: self.missing_images.clone(),
            records: self.records.clone(),
            revisions: self.revisions.clone(),
            tests: self.tests.clone(),
            service: self.service.clone(),
            former: self.former.clone(),
            has_foreign_preview: self.has_foreign_preview,
            has_foreign_autoscaler: self.has_foreign_autoscaler,
            preview: self.preview.clone(),
            autoscaler: self.autoscaler.clone(),
            budgets: self.budgets.clone(),
            route: match (self.knows_gateways, self.has_foreign_route) {
                (false, _) => RouteSeen::NotServed,
                (true, true) => RouteSeen::Foreign,
                (true, false) => RouteSeen::Served(self.route.clone().map(Box::new)),
            },
            backend_services: self.backends.clone(),
            backends: self.backend_pods.clone(),
            signals: self.signals(),
            performance: self.performance(),
            shadow: self.shadow(),
            endpoints: if looks { self.endpoints.clone() } else { BTreeSet::new() },
        }
    }

    /// What the pods of the revision count that has the traffic, or a share of it.
    fn signals(&self) -> Option<(Window, Signals)> {
        let selector = self.service.as_ref().and_then(|service| service.spec.as_ref()?.selector.as_ref());
        let live = selector.and_then(|it| RevisionName::parse(it.get(label::REVISION)?));
        let canary =
            self.status().canary.and_then(|canary| Some((RevisionName::parse(&canary.revision)?, canary.step?)));
        let (revision, step) = canary.or_else(|| Some((live?, 0)))?;
        let counted = self.revisions.get(&revision);
        let errors = if counted.is_some_and(|it| self.failing.contains(&checkpoint(it))) { 50.0 } else { 0.0 };
        Some((Window { revision, step }, Signals { answers: 100.0, errors, ..Signals::default() }))
    }

    /// The checkpoint that has a share by the route, and how much.
    pub fn share(&self) -> Option<(char, i32)> {
        let shared = &self.route.as_ref()?.spec.rules.last()?.backend_refs;
        let backend = shared.iter().find(|backend| backend.name != "cats")?;
        let name = RevisionName::parse(backend.name.rsplit('-').next()?)?;
        self.revisions.get(&name).map(|revision| (checkpoint(revision), backend.weight))
    }

    /// The checkpoint that gets copies of requests by the route.
    pub fn copied_to(&self) -> Option<char> {
        let name = mirrored(self.route.as_ref()?).next().map(|to| revision_of(&to.name))?;
        self.revisions.get(&name).map(checkpoint)
    }

    /// What the operator's process has found of the answers to copies.
    fn shadow(&self) -> Option<Compared> {
        let (candidate, compared) = self.compared.clone()?;
        let live = self.service.as_ref().and_then(|service| service.spec.as_ref()?.selector.as_ref());
        let stable = live.and_then(|it| RevisionName::parse(it.get(label::REVISION)?))?;
        let disagrees = self.revisions.get(&candidate).is_some_and(|it| self.disagreeing.contains(&checkpoint(it)));
        let agreed = if disagrees { compared / 2 } else { compared };
        Some(Compared { pair: Pair { stable, candidate }, counts: Counts { compared, agreed }, silent: None })
    }

    /// Requests come, and some of them are copied.
    fn callers_turn(&mut self) {
        let to = self.route.as_ref().and_then(|route| mirrored(route).next().map(|to| revision_of(&to.name)));
        let Some(to) = to else { return };
        let before = self.compared.take().filter(|(of, _)| *of == to).map_or(0, |(_, compared)| compared);
        self.compared = Some((to, before + if self.has_callers { 10 } else { 0 }));
    }

    /// The Gateway's controller takes the route as it is now.
    fn gateway_turns(&mut self) {
        let Some(route) = self.route.as_mut().filter(|_| self.gateway_answers) else { return };
        let condition = |kind: &str| {
            json!({"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
                "observedGeneration": route.metadata.generation})
        };
        let parents = json!({"parents": [{"conditions": [condition("Accepted"), condition("ResolvedRefs")]}]});
        route.status = Some(serde_json::from_value(parents).expect("a status"));
    }

    /// How well the revision does that has the traffic.
    fn performance(&self) -> Option<Measured> {
        let live = self.service.as_ref().and_then(|service| service.spec.as_ref()?.selector.as_ref());
        let live = live.and_then(|it| RevisionName::parse(it.get(label::REVISION)?))?;
        let accuracy = *self.accuracy.get(&checkpoint(self.revisions.get(&live)?))?;
        let (revision, accuracy) = (live.to_string(), Some(accuracy));
        Some(Measured { revision, accuracy, feedback_count: 200, pods: 2, ..Measured::default() })
    }

    /// What the planner says now, and the writes that it takes.
    pub fn plan(&self) -> (Plan, Vec<Write>) {
        let seen = self.observe();
        match validate(&self.owner) {
            Ok(spec) => {
                let plan = plan(&seen, &spec, self.now);
                let writes = plan.desired.iter().flat_map(|it| writes(&seen, &spec, it, &self.settings)).collect();
                (plan, writes)
            }
            Err(problem) => (refuse(&seen, &problem, self.now), Vec::new()),
        }
    }

    /// One reconcile. A process that is killed after `survives` writes records nothing.
    pub fn reconcile(&mut self, survives: usize) -> bool {
        let (plan, writes) = self.plan();
        let held = plan.desired.as_ref().and_then(|it| takeover::finalizers(&self.observe(), it.former));
        if let Some(finalizers) = held {
            self.owner.metadata.finalizers = Some(finalizers);
            return true;
        }
        let is_killed = survives < writes.len();
        // With its process goes what it has compared.
        self.compared = self.compared.take().filter(|_| !is_killed);
        let changes = !writes.is_empty() || self.owner.status.as_ref() != Some(&plan.status);
        for write in writes.into_iter().take(survives) {
            self.write(write);
        }
        if !is_killed {
            // The way through the API server: whole seconds.
            let status = serde_json::to_value(&plan.status).expect("json");
            self.owner.status = Some(serde_json::from_value(status).expect("a status"));
            self.events.extend(plan.events.iter().map(|event| event.reason));
            for request in plan.answered {
                assert!(self.owner.annotations_mut().remove(request).is_some(), "what is answered was asked");
            }
        }
        changes
    }

    /// Another process of the operator, which has compared nothing yet.
    pub fn restart_operator(&mut self) {
        self.compared = None;
    }

    /// One step of everything but the operator.
    pub fn turn(&mut self) {
        self.now += SignedDuration::from_secs(1);
        let broken = self.broken.clone();
        for revision in self.revisions.values_mut() {
            let model = checkpoint(revision);
            for pod in &mut revision.pods {
                pod.ready = !broken.contains(&model);
                pod.trouble = (!pod.ready).then(|| Trouble {
                    reason: "LoadFailed",
                    message: "the checkpoint cannot be loaded".to_owned(),
                    fatal: true,
                });
            }
            revision.pods.truncate(usize::try_from(revision.replicas).unwrap_or_default());
            while revision.pods.len() < usize::try_from(revision.replicas).unwrap_or_default() {
                self.counter += 1;
                revision.pods.push(pod(&format!("pod-{}", self.counter), &format!("10.0.0.{}", self.counter)));
            }
        }
        for i in 0..self.tests.len() {
            if self.tests[i].report.is_none() {
                self.finish(i);
            }
        }
        self.callers_turn();
        self.gateway_turns();
        if self.endpoints_follow {
            let behind = |service: &Service| RevisionName::parse(service.labels().get(label::REVISION)?);
            let revisions = self.backends.iter().filter_map(behind).filter_map(|name| self.revisions.get(&name));
            let ready = revisions.flat_map(|revision| &revision.pods).filter(|pod| pod.ready);
            self.backend_pods = ready.map(|pod| pod.uid.clone()).collect();
            let live = self.observe().live();
            let pods = live.and_then(|live| self.revisions.get(&live)).map(|revision| &revision.pods);
            let former = self.former.iter().filter(|former| matches!(former.stage, Stage::Offered(_)));
            let pods = pods.into_iter().flatten().chain(former.flat_map(|former| &former.pods));
            self.endpoints = pods.map(|pod| pod.uid.clone()).collect();
        }
    }

    fn finish(&mut self, test: usize) {
        let TestSeen { revision, pods, .. } = self.tests[test].clone();
        let Some(revision) = self.revisions.get(&revision) else {
            return;
        };
        let model = checkpoint(revision);
        let all_there = pods.iter().all(|uid| revision.pods.iter().any(|pod| pod.uid == *uid && pod.ready));
        let verdict = if !all_there || self.unclear.contains(&model) {
            Verdict::Inconclusive
        } else if self.wrong.contains(&model) {
            Verdict::Failed
        } else {
            self.answered.extend(pods);
            Verdict::Passed
        };
        let message = format!("checkpoint {model}");
        let report = SmokeReport { verdict, passed: 1, failed: 0, p95_milliseconds: Some(3.0), message };
        self.tests[test].report = Some(report);
    }

    /// Lets time pass until the phase is reached.
    pub fn until(&mut self, phase: DeploymentPhase) {
        for _ in 0..400 {
            self.reconcile(usize::MAX);
            if self.phase() == phase {
                return;
            }
            self.turn();
        }
        panic!("{phase:?} was not reached; the status is {:#?}", self.status());
    }

    /// Lets time pass until nothing happens and the operator does not mean to look again at a certain time.
    pub fn rest(&mut self) {
        let mut quiet = 0;
        for _ in 0..2000 {
            quiet = if self.reconcile(usize::MAX) { 0 } else { quiet + 1 };
            // Three turns finish what the world has under way.
            if quiet > 3 {
                match self.plan().0.wake {
                    Wake::At(time) => self.now = self.now.max(time),
                    Wake::OnChange | Wake::Never => return,
                }
            }
            self.turn();
        }
        panic!("no rest was found; the status is {:#?}", self.status());
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Record(object) => {
                self.counter += 1;
                let mut object = *object;
                object.metadata.uid = Some(format!("record-{}", self.counter));
                let (name, record) = record::read(&object).expect("a record");
                assert!(self.records.values().all(|other| other.number < record.number), "records are counted");
                assert!(self.records.insert(name, record).is_none(), "a revision is written down once");
            }
            Write::DropRecord { revision, .. } => {
                assert_ne!(self.observe().live().as_ref(), Some(&revision), "what serves is never forgotten");
                self.records.remove(&revision);
            }
            Write::CreateDeployment(deployment) => {
                let name = RevisionName::parse(&deployment.labels()[label::REVISION]).expect("a revision");
                let template = &deployment.spec.as_ref().expect("a spec").template;
                assert_eq!(&self.records[&name].template, template, "a Deployment is what was written down");
                self.counter += 1;
                let revision = RevisionSeen {
                    uid: format!("deployment-{}", self.counter),
                    replicas: deployment.spec.as_ref().and_then(|spec| spec.replicas).expect("replicas"),
                    gate: deployment.annotations().get(annotation::GATE).cloned(),
                    template: deployment.spec.as_ref().expect("a spec").template.clone(),
                    created: self.now,
                    pods: Vec::new(),
                    refused: None,
                };
                assert!(self.revisions.insert(name, revision).is_none(), "a Deployment is created once");
            }
            Write::NoteGate { revision, gate } => {
                self.revisions.get_mut(&revision).expect("a revision").gate = Some(gate);
            }
            Write::Scale { revision, replicas } => {
                let had = self.revisions[&revision].replicas;
                assert!(
                    replicas >= had
                        || self.observe().live().as_ref() != Some(&revision)
                        || self.owner.spec.replicas == Some(replicas),
                    "what serves never loses a pod that the spec does not take away"
                );
                let of = self.share().map(|(of, _)| of).or(self.copied_to());
                let has_share = of == Some(checkpoint(&self.revisions[&revision]));
                assert!(replicas > 0 || !has_share, "what gets requests through the Gateway never loses its pods");
                let revision = self.revisions.get_mut(&revision).expect("a revision");
                assert_ne!(revision.replicas, replicas, "nothing is written that is so already");
                revision.replicas = replicas;
            }
            Write::Service(change) if change.wanted.name_any() == "cats" => {
                assert_eq!(change.patch.is_some(), self.service.is_some());
                self.moves_to(&change.wanted);
                self.service = Some(*change.wanted);
            }
            Write::TakeOver(write) => self.take_over(&write),
            Write::Service(change) if change.wanted.name_any() == "cats-preview" => {
                assert!(!self.has_foreign_preview, "what belongs to somebody else is left alone");
                self.preview = Some(*change.wanted);
            }
            Write::Service(change) => {
                self.backends.retain(|other| other.name_any() != change.wanted.name_any());
                self.backends.push(*change.wanted);
            }
            Write::DropBackend(service) => {
                let is_named = self.route.as_ref().is_some_and(|route| leads_to(route, &service.name_any()));
                assert!(!is_named, "a route never names what is gone");
                self.backends.retain(|other| other.name_any() != service.name_any());
            }
            Write::Route(change) => self.take_route(*change.wanted),
            Write::DropRoute(_) => self.route = None,
            Write::Budget(change) => {
                self.budgets.retain(|other| other.name_any() != change.wanted.name_any());
                self.budgets.push(*change.wanted);
            }
            Write::Autoscaler(change) => {
                let spec = change.wanted.spec.as_ref().expect("a spec");
                let target = spec.scale_target_ref.name.rsplit('-').next().and_then(RevisionName::parse);
                let served = target.is_some_and(|target| self.served.contains(&target));
                assert!(served, "the autoscaler never targets an ungated revision");
                self.autoscaler = Some(*change.wanted);
            }
            Write::StartTest(config, job) => {
                assert_eq!(config.name_any(), job.name_any());
                self.counter += 1;
                self.tests.push(TestSeen {
                    uid: format!("job-{}", self.counter),
                    revision: RevisionName::parse(&job.labels()[label::REVISION]).expect("a revision"),
                    number: job.name_any().rsplit('-').next().expect("a number").parse().expect("a number"),
                    key: job.annotations()[annotation::ROLLOUT].clone(),
                    pods: job.annotations()[annotation::PODS].split(',').map(str::to_owned).collect(),
                    report: None,
                    trouble: None,
                });
            }
            Write::DropTest { uid, .. } => self.tests.retain(|test| test.uid != uid),
            Write::DropBudget(budget) => self.budgets.retain(|other| other.name_any() != budget.name_any()),
            Write::DropAutoscaler(_) => self.autoscaler = None,
            Write::DropDeployment { revision, .. } => {
                assert_ne!(self.observe().live().as_ref(), Some(&revision), "what serves is never deleted");
                self.revisions.remove(&revision);
            }
        }
    }

    fn take_route(&mut self, mut route: HTTPRoute) {
        assert!(self.knows_gateways && !self.has_foreign_route);
        self.shares_by(&route);
        let former = self.route.take();
        let generation = former.as_ref().and_then(|route| route.metadata.generation).unwrap_or_default() + 1;
        (route.metadata.generation, route.status) = (Some(generation), former.and_then(|route| route.status));
        self.route = Some(route);
    }

    /// The law of the canary: a share goes only to a revision that has answered rightly, stands behind a Service of its own
    /// with pods that take requests, and was written down with just this share before.
    fn shares_by(&self, route: &HTTPRoute) {
        let backends: Vec<_> = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs).collect();
        assert!(backends.iter().any(|backend| backend.name == "cats"), "the stable Service is always there");
        let of_rule = &route.spec.rules.last().expect("a rule").backend_refs;
        assert!(of_rule.len() == 1 || of_rule.iter().map(|it| it.weight).sum::<i32>() == 100);
        let status = self.status();
        for backend in backends.iter().filter(|backend| backend.name != "cats") {
            let name = revision_of(&backend.name);
            let written = status.canary.as_ref().filter(|it| it.revision == name.as_str() && it.step >= Some(1));
            let weight = of_rule.iter().find(|it| it.name == backend.name).map(|it| it.weight);
            assert_eq!(written.map(|it| it.weight), weight, "no share is given that is not written down");
            self.answers_well(&name, &backend.name);
            let disagrees = self.disagreeing.contains(&checkpoint(&self.revisions[&name]));
            let is_compared = written.is_some_and(|it| it.shadow.is_some());
            let bounds = self.owner.spec.strategy.canary.as_ref().and_then(|canary| canary.shadow.as_ref());
            let is_bad = disagrees && bounds.is_some_and(|bounds| bounds.min_agreement > 0.5);
            assert!(!(is_compared && is_bad), "what disagrees gets a share");
        }
        for to in mirrored(route) {
            let name = revision_of(&to.name);
            let is_written =
                status.canary.as_ref().is_some_and(|it| it.revision == name.as_str() && it.step == Some(0));
            assert!(is_written, "nothing is copied that is not written down");
            assert!(backends.iter().all(|backend| backend.name == "cats"), "what gets copies answers nobody");
            let is_served = status.stable_revision.as_deref() == Some(name.as_str());
            assert!(!is_served, "answers to copies count as served");
            self.answers_well(&name, &to.name);
        }
    }

    /// A revision that has passed its gate, with pods behind a Service of its own.
    fn answers_well(&self, name: &RevisionName, service: &str) {
        let entry = self.status().revisions.into_iter().find(|entry| entry.revision == name.as_str());
        assert!(entry.is_some_and(|entry| entry.rejection.is_none()), "what was rejected gets no share");
        let revision = &self.revisions[name];
        let model = checkpoint(revision);
        let bad = [&self.wrong, &self.broken, &self.unclear].iter().any(|bad| bad.contains(&model));
        assert!(!bad, "{model} gets a share");
        let takes = |pod: &&PodSeen| pod.ready && self.backend_pods.contains(&pod.uid);
        assert!(revision.pods.iter().any(|pod| takes(&pod)), "no share without a pod that takes it");
        assert!(self.backends.iter().any(|it| it.name_any() == service), "its Service is there");
    }

    /// A write to a Service that was there before, as the API server merges it.
    fn take_over(&mut self, write: &takeover::Write) {
        let former = self.former.clone().expect("a Service that was there before");
        match write {
            takeover::Write::Take(patch) => {
                assert!(!self.owner.finalizers().is_empty(), "who deletes the deployment gets the Service back");
                let Stage::Offered(service) = &former.stage else { panic!("it is taken already") };
                let service = merged(service, patch);
                self.moves_to(&service);
                self.service = Some(service);
                let ready = self.revisions[&self.observe().live().expect("a revision")].pods.iter();
                let ready = ready.filter(|pod| pod.ready).count();
                assert!(ready >= former.pods.len(), "the revision has fewer pods than served before");
                self.former = Some(Former { stage: Stage::Taken, ..former });
            }
            takeover::Write::GiveBack(patch) => {
                let back = merged(self.service.as_ref().expect("a Service"), patch);
                assert_eq!(back.spec, offered(&former.before).spec, "it is what it was");
                self.former = Some(Former { stage: Stage::Offered(Box::new(offered(&former.before))), ..former });
                self.service = None;
            }
            takeover::Write::Release(_) => {
                assert!(self.service.is_some(), "what it was is forgotten only once that is not needed");
                self.former = None;
            }
        }
    }

    /// The law of the gate: the Service leads to what served before, or to pods that have all given right answers, and
    /// to no fewer of them than served before.
    fn moves_to(&mut self, service: &Service) {
        let before = self.observe().live();
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).expect("a selector");
        let Some(to) = RevisionName::parse(&selector[label::REVISION]) else {
            // Where somebody set it to is no loss.
            let stable = self.status().stable_revision;
            let serves = before.is_some_and(|before| stable.as_deref() == Some(before.as_str()));
            assert!(!serves, "the Service is never emptied");
            return;
        };
        if !self.served.contains(&to) {
            let revision = &self.revisions[&to];
            let ready: Vec<_> = revision.pods.iter().filter(|pod| pod.ready).collect();
            assert!(ready.iter().all(|pod| self.answered.contains(&pod.uid)), "an unasked pod gets traffic");
            let served = before.as_ref().and_then(|before| self.revisions.get(before)).map_or(1, |it| it.replicas);
            assert!(i32::try_from(ready.len()).expect("few") >= served, "the new revision has fewer pods");
            assert!(!self.wrong.contains(&checkpoint(revision)), "wrong answers get traffic");
        }
        if before.as_ref() != Some(&to) {
            self.served.insert(to);
        }
    }
}

/// The Services that copies of requests go to.
fn mirrored(route: &HTTPRoute) -> impl Iterator<Item = &ServiceRef> {
    let filters = route.spec.rules.iter().flat_map(|rule| &rule.filters);
    filters.filter_map(|filter| filter.request_mirror.as_ref()).map(|mirror| &mirror.backend_ref)
}

/// Whether requests, or copies of them, go to the Service.
fn leads_to(route: &HTTPRoute, service: &str) -> bool {
    let backends = route.spec.rules.iter().flat_map(|rule| &rule.backend_refs);
    backends.map(|backend| &backend.name).chain(mirrored(route).map(|to| &to.name)).any(|name| name == service)
}

/// The revision of a Service's name.
fn revision_of(service: &str) -> RevisionName {
    service.rsplit('-').next().and_then(RevisionName::parse).expect("a revision")
}

fn merged(service: &Service, patch: &Value) -> Service {
    let mut json = serde_json::to_value(service).expect("json");
    merge(&mut json, patch.clone());
    serde_json::from_value(json).expect("a Service")
}

/// The Service of somebody else.
fn offered(before: &Before) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": "cats", "resourceVersion": "1", "annotations": {"anneal.dev/take-over": "true"}},
        "spec": {"type": before.kind, "ports": before.ports, "selector": before.selector}
    }))
    .expect("a Service")
}

/// A pod that starts.
fn pod(name: &str, address: &str) -> PodSeen {
    PodSeen {
        name: name.to_owned(),
        uid: name.to_owned(),
        address: Some(address.to_owned()),
        node: Some("node-1".to_owned()),
        ready: false,
        image_id: Some("server@sha256:1".to_owned()),
        trouble: None,
        crashed: None,
    }
}

/// The first digit of a revision's digest.
pub fn checkpoint(revision: &RevisionSeen) -> char {
    let container = &revision.template.spec.as_ref().expect("a pod").containers[0];
    let digest = container.env.iter().flatten().find(|variable| variable.name == env::MODEL_SHA256);
    digest.and_then(|digest| digest.value.as_ref()?.chars().next()).expect("a checkpoint")
}

/// The spec of a checkpoint.
pub fn file(checkpoint: char) -> Value {
    let sha256 = checkpoint.to_string().repeat(64);
    let path = format!("models/{sha256}.pth");
    serde_json::to_value(ModelFile::on_claim("models", path, sha256.parse().expect("a digest"))).expect("json")
}

/// A merge patch (RFC 7386).
pub fn merge(into: &mut Value, from: Value) {
    let Value::Object(from) = from else {
        *into = from;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let Value::Object(into) = into else { return };
    for (key, value) in from {
        if value.is_null() {
            into.remove(&key);
        } else {
            merge(into.entry(key).or_insert(Value::Null), value);
        }
    }
}
