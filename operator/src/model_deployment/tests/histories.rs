//! One law for all histories: only gated revisions serve, and all comes to rest.

use anneal_api::{
    names::request::{ABORT, APPROVE, RESTART, RETRY},
    resources::{
        Approval,
        DeploymentPhase::{self, AwaitingApproval, Degraded, Failed, Pending, Stable},
    },
};
use jiff::SignedDuration;
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::simulation::{World, checkpoint};
use crate::model_deployment::revision::RevisionName;

/// Something that happens.
#[derive(Clone, Debug)]
enum Happening {
    Reconcile,
    KilledAfter(usize),
    Turn,
    Want(char),
    Fixed(i32),
    Auto,
    Gate(i32),
    PodDies(usize),
    AutoscalerGrows(i32),
    AutoscalerShrinks(i32),
    /// How often a checkpoint is right under traffic, in percent.
    Right(char, u8),
    SelectorEdited(bool),
    ServiceDeleted,
    DeploymentDeleted(char),
    RecordDeleted(usize),
    Upgraded,
    Pinned(usize),
    Unpinned,
    Asked(&'static str, bool),
    Paused(bool),
    Approval(bool),
    PodCrashes(usize),
    Strategy(bool),
    RouteTaken(bool),
    Weight(i32),
    Shadow(bool),
    Callers(bool),
    GatewayKnown(bool),
    GatewayAnswers(bool),
    RouteDeleted,
    RouteEdited,
    /// The clock jumps, also back.
    TimePasses(i64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        8 => Just(Happening::Reconcile),
        4 => (0_usize..6).prop_map(Happening::KilledAfter),
        8 => Just(Happening::Turn),
        2 => prop_oneof![Just('a'), Just('b'), Just('c'), Just('d'), Just('e'), Just('f'), Just('9')]
            .prop_map(Happening::Want),
        1 => (0_i32..5).prop_map(Happening::Fixed),
        1 => Just(Happening::Auto),
        1 => (100_i32..103).prop_map(Happening::Gate),
        1 => (0_usize..4).prop_map(Happening::PodDies),
        1 => (1_i32..4).prop_map(Happening::AutoscalerGrows),
        1 => (1_i32..4).prop_map(Happening::AutoscalerShrinks),
        1 => (prop_oneof![Just('a'), Just('b')], prop_oneof![Just(80_u8), Just(95)])
            .prop_map(|(of, percent)| Happening::Right(of, percent)),
        1 => any::<bool>().prop_map(Happening::SelectorEdited),
        1 => Just(Happening::ServiceDeleted),
        1 => prop_oneof![Just('a'), Just('b')].prop_map(Happening::DeploymentDeleted),
        1 => (0_usize..4).prop_map(Happening::RecordDeleted),
        1 => Just(Happening::Upgraded),
        1 => (0_usize..4).prop_map(Happening::Pinned),
        1 => Just(Happening::Unpinned),
        2 => (prop_oneof![Just(APPROVE), Just(ABORT), Just(RETRY), Just(RESTART)], any::<bool>())
            .prop_map(|(request, exact)| Happening::Asked(request, exact)),
        1 => any::<bool>().prop_map(Happening::Paused),
        1 => any::<bool>().prop_map(Happening::Approval),
        1 => (0_usize..4).prop_map(Happening::PodCrashes),
        1 => any::<bool>().prop_map(Happening::Strategy),
        1 => any::<bool>().prop_map(Happening::RouteTaken),
        1 => (1_i32..100).prop_map(Happening::Weight),
        2 => any::<bool>().prop_map(Happening::Shadow),
        1 => any::<bool>().prop_map(Happening::Callers),
        1 => any::<bool>().prop_map(Happening::GatewayKnown),
        1 => any::<bool>().prop_map(Happening::GatewayAnswers),
        1 => Just(Happening::RouteDeleted),
        1 => Just(Happening::RouteEdited),
        1 => (-60_i64..90).prop_map(Happening::TimePasses),
    ];
    proptest::collection::vec(one, 1..120)
}

fn happens(world: &mut World, what: &Happening) {
    match what {
        Happening::Reconcile => {
            world.reconcile(usize::MAX);
        }
        Happening::KilledAfter(writes) => {
            world.reconcile(*writes);
        }
        Happening::Turn => world.turn(),
        Happening::Want(checkpoint) => world.want(*checkpoint),
        Happening::Fixed(replicas) => world.edit(json!({"replicas": replicas})),
        Happening::Auto => world.edit(json!({"replicas": null})),
        Happening::Gate(seconds) => world.edit(json!({"gate": {"smokeTest": {"timeoutSeconds": seconds}}})),
        Happening::PodDies(i) => {
            for revision in world.revisions.values_mut().filter(|revision| *i < revision.pods.len()) {
                revision.pods.remove(*i);
            }
        }
        Happening::AutoscalerGrows(more) => {
            if let Some(live) = world.observe().live().filter(|_| world.autoscaler.is_some())
                && let Some(revision) = world.revisions.get_mut(&live)
            {
                revision.replicas = (revision.replicas + more).min(10);
            }
        }
        Happening::AutoscalerShrinks(fewer) => autoscaler_shrinks(world, *fewer),
        Happening::Right(of, percent) => {
            world.accuracy.insert(*of, f64::from(*percent) / 100.0);
        }
        Happening::SelectorEdited(to_nothing) => edit_selector(world, *to_nothing),
        Happening::ServiceDeleted => {
            world.service = None;
            world.former = None;
        }
        Happening::DeploymentDeleted(of) => world.revisions.retain(|_, revision| checkpoint(revision) != *of),
        Happening::RecordDeleted(i) => {
            let name = world.records.keys().nth(*i).cloned();
            name.and_then(|name| world.records.remove(&name));
        }
        Happening::Upgraded => world.settings.server_image.push('1'),
        Happening::Pinned(i) => {
            let name = world.records.keys().nth(*i).map(ToString::to_string);
            world.pin(name.as_deref());
        }
        Happening::Unpinned => world.pin(None),
        Happening::Asked(request, exact) => {
            let candidate = world.status().candidate_revision.filter(|_| *exact);
            world.ask(request, candidate.as_deref().unwrap_or("true"));
        }
        Happening::Paused(paused) => world.edit(json!({"paused": paused})),
        Happening::Approval(manual) => {
            world.edit(json!({"gate": {"approval": if *manual { "Manual" } else { "Automatic" }}}));
        }
        Happening::PodCrashes(i) => {
            for revision in world.revisions.values_mut() {
                revision.pods.iter_mut().skip(*i).take(1).for_each(|pod| pod.crashed = Some(world.now));
            }
        }
        Happening::Strategy(canary) => {
            let kind = if *canary { "Canary" } else { "BlueGreen" };
            world.edit(json!({"strategy": {"type": kind, "canary": super::canary::steps()}}));
        }
        Happening::RouteTaken(manual) => {
            let mut canary = super::canary::steps();
            canary["steps"][1]["approval"] = json!(if *manual { "Manual" } else { "Automatic" });
            let asked = if *manual { canary } else { Value::Null };
            world.edit(json!({"strategy": {"type": if *manual { "Canary" } else { "BlueGreen" }, "canary": asked}}));
        }
        Happening::Weight(weight) => {
            let mut canary = super::canary::steps();
            canary["steps"][0]["setWeight"] = json!(weight);
            if weight % 2 == 0 {
                canary["matches"] = json!([{"headers": [{"name": "x-tester", "value": "yes"}]}]);
            }
            world.edit(json!({"strategy": {"canary": canary}}));
        }
        Happening::Shadow(asked) => {
            let mut canary = super::canary::steps();
            canary["shadow"] = if *asked { super::shadow::shadow() } else { Value::Null };
            world.edit(json!({"strategy": {"type": "Canary", "canary": canary}}));
        }
        Happening::Callers(come) => world.has_callers = *come,
        Happening::GatewayKnown(known) => {
            world.knows_gateways = *known;
            // With the definition go all objects of the kind.
            world.route = world.route.take().filter(|_| *known);
        }
        Happening::GatewayAnswers(answers) => world.gateway_answers = *answers,
        Happening::RouteDeleted => world.route = None,
        Happening::RouteEdited => {
            if let Some(route) = world.route.as_mut() {
                route.spec.rules.truncate(1);
                route.spec.rules[0].backend_refs.truncate(1);
                route.spec.rules[0].backend_refs[0].weight = 7;
            }
        }
        Happening::TimePasses(seconds) => world.now += SignedDuration::from_secs(*seconds),
    }
}

/// As the real one: what it is pointed at, never below its least, and not at all while it is told to hold.
fn autoscaler_shrinks(world: &mut World, fewer: i32) {
    let spec = world.autoscaler.as_ref().and_then(|autoscaler| autoscaler.spec.clone());
    let policy = spec.as_ref().and_then(|it| it.behavior.clone()?.scale_down?.select_policy);
    if let Some(spec) = spec.filter(|_| policy.as_deref() != Some("Disabled"))
        && let Some(name) = spec.scale_target_ref.name.rsplit('-').next().and_then(RevisionName::parse)
        && let Some(revision) = world.revisions.get_mut(&name)
    {
        let least = spec.min_replicas.unwrap_or(1).min(revision.replicas);
        revision.replicas = (revision.replicas - fewer).max(least);
    }
}

/// Whoever makes an announced switch by hand, or moves the Service while the status is lost, is taken at their word: to the
/// operator it looks like its own work.
fn edit_selector(world: &mut World, to_nothing: bool) {
    let status = world.status();
    let announced = status.promotion.map(|promotion| promotion.to);
    let is_known = |name: &&String| !status.revisions.is_empty() && announced.as_ref() != Some(*name);
    let names: Vec<String> = world.revisions.keys().map(ToString::to_string).collect();
    let other = names.iter().rfind(is_known).filter(|_| !to_nothing).cloned();
    if let Some(spec) = world.service.as_mut().and_then(|service| service.spec.as_mut()) {
        let revision = other.unwrap_or_else(|| "none".to_owned());
        spec.selector.as_mut().expect("a selector").insert("anneal.dev/revision".to_owned(), revision);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    /// Every write is checked by the world itself: the Service leads to gated revisions only, the autoscaler targets
    /// none other, what serves is neither emptied, shrunk by a switch nor deleted; and what gets copies of requests answers
    /// nobody, and gets a share only when it agrees.
    #[test]
    fn whatever_happens_only_gated_revisions_serve_and_all_comes_to_rest(
        history in happenings(),
        was_there_before in any::<bool>(),
    ) {
        let spec = json!({
            "gate": {"soakSeconds": 20}, "progressDeadlineSeconds": 120,
            "feedback": {"minAccuracy": 0.9, "action": "Rollback"}
        });
        let mut world = if was_there_before { World::beside_another(spec) } else { World::new(spec) };
        world.wrong.insert('c');
        world.broken.insert('d');
        world.unclear.insert('e');
        world.failing.insert('f');
        world.disagreeing.insert('9');
        for what in &history {
            happens(&mut world, what);
            let is_edited = matches!(what, Happening::SelectorEdited(_));
            prop_assert!(is_edited || world.is_gated_or_nothing(), "after {:?}", what);
        }
        world.rest();
        let (live, phase) = (world.live(), world.phase());
        let model = world.owner.spec.model.sha256.clone().expect("a digest");
        let wanted = match &world.owner.spec.pinned_revision {
            None => Some(model),
            Some(pinned) => RevisionName::parse(pinned).and_then(|it| Some(world.records.get(&it)?.inputs.model.sha256.clone())),
        };
        let wanted = wanted.map(|wanted| wanted.short(1).to_owned());
        let serves_wanted = wanted.is_some() && live.map(|live| live.to_string()) == wanted;
        match phase {
            Stable => prop_assert!(serves_wanted, "{:?} serves, {:?} is wanted", live, wanted),
            // A pinned revision of the same checkpoint may have been rejected.
            // And so may one that does worse than it has to, where nothing is left to go back to.
            Degraded | Failed => prop_assert!(
                !serves_wanted
                    || world.records.len() > 1
                    || live.and_then(|live| world.rejection(live)).as_deref() == Some("PerformanceDegraded")
            ),
            DeploymentPhase::Paused => prop_assert!(world.owner.spec.paused),
            AwaitingApproval => prop_assert!(
                world.owner.spec.gate.approval == Approval::Manual
                    || world.status().canary.is_some_and(|canary| canary.passed_time.is_some())
            ),
            // Somebody deleted what was written down of the pinned revision, or the Gateway API.
            Pending => prop_assert!(wanted.is_none() || !world.knows_gateways),
            other => prop_assert!(false, "rests in {:?}", other),
        }
        prop_assert!(!matches!(live, Some('c' | 'd' | 'e')), "{:?} serves", live);
        if !matches!(phase, AwaitingApproval | DeploymentPhase::Paused) {
            prop_assert!(world.share().is_none() && world.status().canary.is_none(), "{:?} in {:?}", world.share(), phase);
            prop_assert_eq!(world.copied_to(), None);
        }
        let asks_for_route = world.owner.spec.strategy.canary.is_some() && world.knows_gateways;
        prop_assert_eq!(world.route.is_some(), asks_for_route);
        prop_assert_eq!(world.owner.annotations().get(APPROVE).or(world.owner.annotations().get(ABORT)), None);
    }
}
