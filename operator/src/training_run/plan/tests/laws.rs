//! What holds over every history. The laws themselves stand in the world, which checks each pass.

use anneal_api::{
    failure::{Failure, FailureClass},
    resources::RunPhase,
    termination::TerminationMessage,
};
use proptest::prelude::*;
use serde_json::json;

use super::world::{World, checkpoint, interrupted, published};
use crate::{
    progress::Reading,
    training_run::{claim::Claim, init::Init},
};

/// What may happen to a run between two looks at it.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Claim(bool),
    Init(bool),
    Schedule,
    Starts,
    Blocked,
    Ends(i32, Words),
    Evicted,
    Preempted,
    NodesAnswer(bool),
    PodsStop(Words, bool),
    JobDeleted,
    PodDeleted,
    Held(bool),
    Suspend(bool),
    Template(u8),
    /// The specification makes sense, or not.
    Spoilt(bool),
    Says(i64),
    Silent,
    Time(i64),
    /// The operator dies after it has written its children and before it writes the status.
    Crash,
}

#[derive(Clone, Copy, Debug)]
enum Words {
    None,
    Published,
    Interrupted,
    Diverged,
    /// What only an image of a stranger's says.
    Absurd,
}

impl Words {
    fn message(self) -> Option<TerminationMessage> {
        match self {
            Self::None => None,
            Self::Published => Some(published()),
            Self::Interrupted => Some(interrupted(10)),
            Self::Diverged => Some(TerminationMessage::Failure(Failure::new(FailureClass::Diverged, "NaN"))),
            Self::Absurd => Some(TerminationMessage::Failure(Failure {
                step: Some(i64::MIN),
                checkpoint_step: Some(i64::MAX),
                resumed_from_step: Some(i64::MIN),
                ..Failure::new(FailureClass::AppError, "")
            })),
        }
    }
}

fn words() -> impl Strategy<Value = Words> {
    prop_oneof![
        4 => Just(Words::None),
        1 => Just(Words::Published),
        3 => Just(Words::Interrupted),
        1 => Just(Words::Diverged),
        1 => Just(Words::Absurd)
    ]
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => any::<bool>().prop_map(Happening::Claim),
        1 => any::<bool>().prop_map(Happening::Init),
        3 => Just(Happening::Schedule),
        5 => Just(Happening::Starts),
        1 => Just(Happening::Blocked),
        3 => (prop_oneof![Just(1), Just(70), Just(137), Just(143)], words()).prop_map(|(c, w)| Happening::Ends(c, w)),
        2 => Just(Happening::Evicted),
        2 => Just(Happening::Preempted),
        1 => any::<bool>().prop_map(Happening::NodesAnswer),
        5 => (words(), any::<bool>()).prop_map(|(words, seen)| Happening::PodsStop(words, seen)),
        1 => Just(Happening::JobDeleted),
        1 => Just(Happening::PodDeleted),
        2 => any::<bool>().prop_map(Happening::Held),
        3 => any::<bool>().prop_map(Happening::Suspend),
        1 => (0..3_u8).prop_map(Happening::Template),
        1 => any::<bool>().prop_map(Happening::Spoilt),
        2 => prop_oneof![0..100_i64, Just(i64::MAX)].prop_map(Happening::Says),
        1 => Just(Happening::Silent),
        5 => (-4000..4000_i64).prop_map(Happening::Time),
        2 => Just(Happening::Crash),
    ]
}

fn happens(world: &mut World, event: Happening) {
    let newest = world.jobs.keys().next_back().copied();
    match event {
        Happening::Claim(true) => world.claim = Claim::Present,
        Happening::Claim(false) => world.claim = Claim::Missing("models".into()),
        Happening::Init(true) => world.init = Init::Found(checkpoint()),
        Happening::Init(false) => world.init = Init::Waiting("InitRunNotReady", "wait".into()),
        Happening::Schedule => {
            world.schedule();
        }
        Happening::Starts => {
            world.starts();
        }
        Happening::Blocked => {
            let waiting = json!({"waiting": {"reason": "ImagePullBackOff"}});
            let container = json!({
                "name": "trainer", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": waiting
            });
            world.blocked(&json!({"phase": "Pending", "containerStatuses": [container]}));
        }
        Happening::Ends(_, Words::Published) => {
            world.ends(0, "Completed", Some(&published()));
        }
        Happening::Ends(code, words) => {
            world.ends(code, "Error", words.message().as_ref());
        }
        Happening::Evicted => {
            world.disrupt("EvictionByEvictionAPI");
        }
        Happening::Preempted => {
            world.disrupt("PreemptionByScheduler");
        }
        Happening::NodesAnswer(answer) => world.nodes_answer = answer,
        Happening::PodsStop(words, seen) => {
            world.pods_stop(words.message().as_ref(), seen);
        }
        Happening::JobDeleted => {
            if let Some(number) = newest {
                world.delete_job(number);
            }
        }
        Happening::PodDeleted => {
            world.delete_pods(|_| true);
        }
        Happening::Held(held) => {
            world.hold(held);
        }
        Happening::Suspend(suspend) => {
            world.suspend(suspend);
        }
        Happening::Template(number) => {
            world.edit(|run| run.spec.pod_template.image = Some(format!("trainer:{number}")));
        }
        Happening::Spoilt(true) => {
            world.spoil();
        }
        Happening::Spoilt(false) => {
            world.edit(|run| run.spec.pod_template.labels.clear());
        }
        Happening::Says(step) => {
            world.says(step, Some(step / 2), None);
        }
        Happening::Silent => world.reading = Reading::Silent,
        Happening::Time(seconds) => {
            world.wait(seconds);
        }
        Happening::Crash => {
            let plan = world.plan();
            world.carry_out(&plan, false);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Over any history, with any jump of the clock: a run that has ended stays ended, at most one Job is live and one
    /// pod writes, no attempt runs twice or is lost, budgets never grow, whoever is not at the end is woken, and phase and
    /// conditions agree. The world checks it all at each pass.
    #[test]
    fn every_history_keeps_the_laws(
        history in prop::collection::vec(happening(), 1..80),
        retries in 0..4_i32,
        deadlines in any::<[bool; 3]>(),
    ) {
        let mut spec = json!({"maxRetries": retries});
        for (wanted, name) in deadlines.into_iter()
            .zip(["activeDeadlineSeconds", "progressDeadlineSeconds", "startDeadlineSeconds"]) {
            if wanted {
                spec[name] = json!(1000);
            }
        }
        let mut world = World::new(spec);
        for event in history {
            happens(&mut world, event);
            world.pass();
        }
        // What is used up stays so: attempts are at most what the failures, the suspensions and the first one allow.
        let costs = |class: FailureClass| !matches!(class, FailureClass::Evicted | FailureClass::Preempted | FailureClass::NodeLost);
        let costly: i32 = world.status().failures.iter().filter(|it| costs(it.class)).map(|it| it.count).sum();
        prop_assert!(costly <= retries + 1, "{costly} failures with {retries} retries");
    }

    /// From wherever a history has led: once the cluster is well again and stays so, the run comes to its end.
    #[test]
    fn every_history_can_still_come_to_an_end(history in prop::collection::vec(happening(), 1..60)) {
        let mut world = World::new(json!({"maxRetries": 2}));
        for event in history {
            happens(&mut world, event);
            world.pass();
        }
        world.claim = Claim::Present;
        world.init = Init::Random;
        world.nodes_answer = true;
        world.suspend(false).edit(|run| run.spec.pod_template.labels.clear());
        for _ in 0..20 {
            world.pods_stop(None, true).wait(700).settle();
            world.hold(false);
            world.starts().settle();
            world.ends(0, "Completed", Some(&published())).settle();
        }
        prop_assert!(world.phase().is_some_and(RunPhase::is_terminal), "{:?}", world.status());
    }
}
