//! Who hears of it when a run comes to another phase, so that nobody needs a watch of all runs beside the controller's own.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anneal_api::resources::{RunPhase, TrainingRun};
use futures::{
    Stream,
    channel::mpsc::{self, UnboundedSender},
};
use kube::{
    ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher::Event,
    },
};

/// A run that is new, gone, or has another phase or other labels than before: whoever labels a run that has succeeded means a
/// deployment to follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turned {
    /// The run.
    pub run: ObjectRef<TrainingRun>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl From<&TrainingRun> for Turned {
    fn from(run: &TrainingRun) -> Self {
        Self { run: ObjectRef::from(run), labels: run.labels().clone() }
    }
}

/// Those who want to hear.
#[derive(Debug, Default)]
pub struct Phases(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    listeners: Vec<UnboundedSender<Turned>>,
    /// What the list has that is under way.
    listed: HashSet<ObjectRef<TrainingRun>>,
}

impl Phases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every run that turns from now on.
    pub fn listen(&self) -> impl Stream<Item = Turned> + Send + use<> {
        let (sender, turned) = mpsc::unbounded();
        self.state().listeners.push(sender);
        turned
    }

    /// Tells of what the watch told, where `before` does not have it yet.
    pub fn tell(&self, before: &Store<TrainingRun>, event: &Event<TrainingRun>) {
        let mut state = self.state();
        for turned in state.turned(before, event) {
            // A receiver is gone only when its controller ended, and with it the process.
            state.listeners.retain(|listener| listener.unbounded_send(turned.clone()).is_ok());
        }
    }
}

impl State {
    fn turned(&mut self, before: &Store<TrainingRun>, event: &Event<TrainingRun>) -> Vec<Turned> {
        if let Event::InitApply(run) = event {
            self.listed.insert(ObjectRef::from(run));
        }
        match event {
            Event::Apply(run) | Event::InitApply(run) => {
                let same = |before: &TrainingRun| phase(before) == phase(run) && before.labels() == run.labels();
                let is_known = before.get(&ObjectRef::from(run)).is_some_and(|before| same(&before));
                if is_known { Vec::new() } else { vec![Turned::from(run)] }
            }
            Event::Delete(run) => vec![Turned::from(run)],
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            // What went while nobody watched is told of by nobody else.
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listed);
                let gone = before.state().into_iter().filter(|run| !listed.contains(&ObjectRef::from(run.as_ref())));
                gone.map(|run| Turned::from(run.as_ref())).collect()
            }
        }
    }
}

fn phase(run: &TrainingRun) -> Option<RunPhase> {
    run.status.as_ref()?.phase
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use kube::runtime::reflector;
    use serde_json::json;

    use super::*;
    use crate::training_run::fixtures;

    fn run(phase: &str, image: &str) -> TrainingRun {
        let mut run = fixtures::run(&json!({}));
        run.status = serde_json::from_value(json!({"phase": phase, "imageId": image})).expect("a status");
        run
    }

    #[test]
    fn one_hears_of_each_phase_once_and_of_the_end_but_of_nothing_else() {
        let (phases, (store, mut writer)) = (Phases::default(), reflector::store());
        let mut heard = phases.listen();
        let mut told = |event: Event<TrainingRun>| {
            phases.tell(&store, &event);
            writer.apply_watcher_event(&event);
            heard.next().now_or_never().flatten()
        };
        let cats = Turned::from(&run("Running", "a"));
        assert_eq!(told(Event::Apply(run("Running", "a"))).as_ref(), Some(&cats));
        assert_eq!(told(Event::Apply(run("Running", "b"))), None);
        assert_eq!(told(Event::Apply(run("Succeeded", "b"))).as_ref(), Some(&cats));
        assert_eq!(told(Event::Delete(run("Succeeded", "b"))).as_ref(), Some(&cats));
        assert_eq!(told(Event::Apply(run("Running", "c"))).as_ref(), Some(&cats));
        assert_eq!(told(Event::Init), None);
        assert_eq!(told(Event::InitDone).as_ref(), Some(&cats), "it went while nobody watched");
    }
}
