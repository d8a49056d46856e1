//! What should be so in the cluster after a step of a rollout. Pure.

use std::{cmp::Reverse, collections::BTreeSet};

use anneal_api::resources::{Autoscaling, Canary, ModelDeploymentStatus};
use jiff::Timestamp;

use super::{
    canary::{self, Share},
    gate::{self, Evidence, Gated, rollout_key},
    objects::Destination,
    observe::{Observed, TestSeen},
    plan::{Step, held, needed, started},
    revision::{Revision, RevisionName},
    smoke::SmokeTest,
    takeover,
    validate::{Size, ValidDeployment},
};

/// What should be so in the cluster.
#[derive(Debug)]
pub struct Desired {
    /// A revision that is to be written down, and its number.
    pub record: Option<(Revision, i64)>,
    /// A revision whose Deployment should exist, and the pods that it starts with.
    pub create: Option<(Revision, i32)>,
    /// The revision that is judged, where its Deployment does not say yet by which gate.
    pub gate: Option<RevisionName>,
    /// Where the Service leads.
    pub traffic: Destination,
    /// Whether the Service comes before everything else.
    pub is_urgent: bool,
    /// What becomes of a Service that was there before.
    pub former: takeover::Wanted,
    /// The revision that the preview shows.
    pub preview: Option<RevisionName>,
    /// Revisions that should have another number of pods.
    pub replicas: Vec<(RevisionName, i32)>,
    /// Revisions that have a disruption budget.
    pub budgets: BTreeSet<RevisionName>,
    /// Revisions that have a Service of their own, for a route to name.
    pub backends: BTreeSet<RevisionName>,
    /// The route from Gateways.
    pub route: Option<Route>,
    /// The autoscaler.
    pub autoscaler: Option<Autoscaler>,
    /// A smoke test to start.
    pub test: Option<SmokeTest>,
    /// Smoke tests that nobody needs any more.
    pub drop_tests: Vec<TestSeen>,
    /// Revisions that nobody needs any more.
    pub drop_revisions: Vec<RevisionName>,
}

/// The route from Gateways.
#[derive(Debug)]
pub struct Route {
    /// Gateways, host names and matches.
    pub canary: Canary,
    /// What the candidate gets.
    pub share: Option<Share>,
}

/// The autoscaler of the revision that has the traffic.
#[derive(Debug)]
pub struct Autoscaler {
    /// Its bounds and aims.
    pub bounds: Autoscaling,
    /// The revision that it sizes.
    pub target: Gated,
    /// Whether it must not take pods away.
    pub hold: bool,
}

/// What should be so after the step; `next` is the status that will be recorded then.
pub fn desired(
    seen: &Observed,
    spec: &ValidDeployment,
    wanted: Option<&Revision>,
    step: &Step,
    next: &ModelDeploymentStatus,
    now: Timestamp,
) -> Desired {
    let live = seen.live();
    let is_kept = |wanted: &&Revision| {
        *step == Step::Pause && seen.status.candidate_revision.as_deref() == Some(wanted.name.as_str())
    };
    let candidate = wanted.filter(|wanted| step.has_candidate() || is_kept(wanted));
    let held = held(seen, spec, now).map(|(held, _)| held);
    let used = used(seen, next, candidate, held.as_ref());
    let is_held = held.is_some() || takeover::until(seen, spec).is_some();
    let drop_revisions = outdated(seen, spec, wanted, &used);
    let running: BTreeSet<_> = used.iter().filter(|name| seen.revisions.contains_key(*name)).cloned().collect();
    Desired {
        record: record(seen, wanted, step),
        create: create(seen, spec, wanted, step),
        gate: judged(wanted, candidate, live.as_ref(), step)
            .filter(|name| seen.revisions.get(name).is_some_and(|this| this.gate.as_deref() != Some(&spec.gate.hash))),
        traffic: match step {
            Step::Switch(to) | Step::SwitchBack(to) => Destination::gated(to),
            Step::Restore(to) => to.as_ref().map_or_else(Destination::none, Destination::gated),
            _ => Destination::unchanged(live.as_ref()),
        },
        is_urgent: step.goes_back(),
        former: takeover::Wanted::of(seen, spec, step, now),
        preview: candidate.map(|candidate| candidate.name.clone()).or(live),
        replicas: replicas(seen, spec, candidate, step, &used),
        budgets: running.clone(),
        // A Service that the route may still name outlives the wish for a route.
        backends: if spec.route.is_some() || seen.status.canary.is_some() { running } else { BTreeSet::new() },
        // By the status as it was written, so that whoever comes after a crash knows of every share that is given.
        route: spec.route.clone().map(|canary| Route { canary, share: canary::share(seen) }),
        autoscaler: autoscaler(spec, next, step, is_held, seen.has_foreign_autoscaler),
        test: candidate.and_then(|candidate| test(seen, spec, candidate, step, now)),
        drop_tests: finished_with(seen, spec, candidate, &drop_revisions, now),
        drop_revisions,
    }
}

/// The revision that the gate of today judges. What is rejected under traffic may have come to it by another one, and would
/// be tried again by the one that rejected it.
fn judged(
    wanted: Option<&Revision>,
    candidate: Option<&Revision>,
    live: Option<&RevisionName>,
    step: &Step,
) -> Option<RevisionName> {
    match step {
        Step::GiveUp { .. } | Step::Withdraw(_) => live.cloned(),
        Step::Reject(_) => wanted.map(|wanted| wanted.name.clone()),
        _ => candidate.map(|candidate| candidate.name.clone()),
    }
}

/// The revisions that have a reason to run.
fn used(
    seen: &Observed,
    next: &ModelDeploymentStatus,
    candidate: Option<&Revision>,
    held: Option<&RevisionName>,
) -> BTreeSet<RevisionName> {
    let promotion = next.promotion.as_ref();
    let by_status = [
        next.stable_revision.as_deref(),
        seen.status.stable_revision.as_deref(),
        promotion.map(|promotion| promotion.to.as_str()),
        // On the way back from a switch that was not confirmed nothing else says that callers may still reach it.
        promotion.and_then(|promotion| promotion.from.as_deref()),
        // Also while its share is taken back: a Gateway may still send requests.
        next.canary.as_ref().map(|canary| canary.revision.as_str()),
        seen.status.canary.as_ref().map(|canary| canary.revision.as_str()),
    ];
    by_status
        .into_iter()
        .flatten()
        .filter_map(RevisionName::parse)
        .chain(candidate.map(|candidate| candidate.name.clone()))
        .chain(held.cloned())
        .chain(seen.live())
        .chain(takeover::lingering(seen).cloned())
        .collect()
}

/// Before its Deployment is made, and again where somebody deleted what was written down.
fn record(seen: &Observed, wanted: Option<&Revision>, step: &Step) -> Option<(Revision, i64)> {
    let revision = wanted.filter(|wanted| !seen.records.contains_key(&wanted.name))?;
    let is_needed = seen.revisions.contains_key(&revision.name) || matches!(step, Step::Load(_) | Step::Settle);
    let newest = seen.records.values().map(|record| record.number).max().unwrap_or_default();
    is_needed.then(|| (revision.clone(), newest + 1))
}

fn create(seen: &Observed, spec: &ValidDeployment, wanted: Option<&Revision>, step: &Step) -> Option<(Revision, i32)> {
    let revision = wanted.filter(|wanted| !seen.revisions.contains_key(&wanted.name))?;
    match step {
        Step::Load(_) => Some((revision.clone(), 1)),
        // Somebody deleted what serves: at its size, for callers wait.
        Step::Settle => Some((revision.clone(), seen.status.replicas.unwrap_or_default().max(spec.size.least()))),
        _ => None,
    }
}

/// The changes of size, growth first, so that capacity comes before it goes.
fn replicas(
    seen: &Observed,
    spec: &ValidDeployment,
    candidate: Option<&Revision>,
    step: &Step,
    used: &BTreeSet<RevisionName>,
) -> Vec<(RevisionName, i32)> {
    let has = |name: &RevisionName| seen.revisions.get(name).map(|revision| revision.replicas);
    let mut changes = Vec::new();
    if let Some(candidate) = candidate
        && let Some(current) = has(&candidate.name)
    {
        let wanted = match step {
            Step::ScaleUp { to, .. } => *to,
            Step::AwaitApproval | Step::Canary { .. } | Step::Announce(_) | Step::Switch(_) => needed(seen, spec),
            Step::Pause => 0,
            _ => 1,
        };
        changes.extend((current < wanted).then(|| (candidate.name.clone(), wanted)));
    }
    if let Step::GiveUp { to, .. } | Step::SwitchBack(to) = step {
        let wanted = needed(seen, spec);
        changes.extend(has(to.name()).filter(|current| *current < wanted).map(|_| (to.name().clone(), wanted)));
    }
    if let Some(live) = seen.live().filter(|_| !step.is_switch())
        && let Some(wanted) = has(&live).and_then(|current| spec.size.correction(current))
    {
        changes.push((live, wanted));
    }
    let idle = seen.revisions.iter().filter(|(name, revision)| revision.replicas != 0 && !used.contains(name));
    changes.extend(idle.map(|(name, _)| (name.clone(), 0)));
    changes
}

fn autoscaler(
    spec: &ValidDeployment,
    next: &ModelDeploymentStatus,
    step: &Step,
    is_held: bool,
    is_foreign: bool,
) -> Option<Autoscaler> {
    let Size::Auto(bounds) = &spec.size else {
        return None;
    };
    if is_foreign {
        return None;
    }
    // Between the commit and the hand-over it would shrink the revision that gets the traffic last, so that it takes
    // no pod away from before the commit until the soak ends.
    // Nor while a share of the requests goes elsewhere: that revision must be able to take them all back.
    let has_share = next.canary.is_some() || matches!(step, Step::Canary { .. });
    let hold = is_held || has_share || step.is_switch() || matches!(step, Step::Smoke { .. } | Step::ScaleUp { .. });
    Some(Autoscaler { bounds: bounds.clone(), target: Gated::stable(next)?, hold })
}

fn test(
    seen: &Observed,
    spec: &ValidDeployment,
    candidate: &Revision,
    step: &Step,
    now: Timestamp,
) -> Option<SmokeTest> {
    let Step::Smoke { start, .. } = step else {
        return None;
    };
    // A test counts for the rollout that its key names. Until the beginning of the rollout is written down, whoever comes
    // after a crash would give it another key, and ask everything again.
    if seen.status.candidate_revision.as_deref() != Some(candidate.name.as_str()) {
        return None;
    }
    let key = rollout_key(spec, started(&seen.status, &candidate.name, now));
    let all = &seen.revisions.get(&candidate.name)?.pods;
    let pods: Vec<_> = all.iter().filter(|pod| start.contains(&pod.uid)).cloned().collect();
    let number = Evidence::of(seen, &candidate.name, &key).next_number;
    (!pods.is_empty()).then(|| SmokeTest {
        revision: candidate.name.clone(),
        number,
        key,
        pods,
        claim: candidate.inputs.model.claim().map(str::to_owned),
    })
}

/// Tests that run for nobody, and all but the last one of each former rollout.
fn finished_with(
    seen: &Observed,
    spec: &ValidDeployment,
    candidate: Option<&Revision>,
    dropped: &[RevisionName],
    now: Timestamp,
) -> Vec<TestSeen> {
    let current =
        candidate.map(|candidate| (&candidate.name, rollout_key(spec, started(&seen.status, &candidate.name, now))));
    let is_current =
        |test: &&TestSeen| current.as_ref().is_some_and(|(name, key)| test.revision == **name && test.key == *key);
    let is_last =
        |test: &TestSeen| !seen.tests.iter().any(|other| other.revision == test.revision && other.number > test.number);
    seen.tests
        .iter()
        .filter(|test| !is_current(test))
        .filter(|test| test.report.is_none() || !is_last(test) || dropped.contains(&test.revision))
        .cloned()
        .collect()
}

/// Former revisions beyond the history limit.
fn outdated(
    seen: &Observed,
    spec: &ValidDeployment,
    wanted: Option<&Revision>,
    used: &BTreeSet<RevisionName>,
) -> Vec<RevisionName> {
    // One that has served is worth more than one that was cancelled: somebody may want it back.
    let worth = |name: &RevisionName| {
        let entry = gate::entry(&seen.status, name);
        let promoted = entry.and_then(|entry| entry.promoted_time.as_ref()).map(|time| time.0);
        let number = seen.records.get(name).map(|record| record.number);
        (promoted, entry.map(|entry| entry.start_time.0), number)
    };
    let all: BTreeSet<&RevisionName> = seen.revisions.keys().chain(seen.records.keys()).collect();
    // The wanted one stays although it was rejected: its Deployment remembers by which gate.
    let is_former = |name: &&RevisionName| !used.contains(*name) && wanted.is_none_or(|wanted| wanted.name != **name);
    let mut former: Vec<_> = all.into_iter().filter(is_former).map(|name| (worth(name), name)).collect();
    former.sort_by_key(|(worth, _)| Reverse(*worth));
    let has_pods = |name: &RevisionName| seen.revisions.get(name).is_some_and(|revision| revision.replicas != 0);
    former.into_iter().skip(spec.history).filter(|(_, name)| !has_pods(name)).map(|(_, name)| name.clone()).collect()
}
