//! What a word means for whoever looks: good, busy, waiting for somebody, bad, or nothing to look at.

use anneal_api::resources::{DeploymentPhase, RunPhase, SweepPhase, TrialPhase};
use serde::Serialize;

/// What a state means for whoever looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Tone {
    /// As it should be.
    Good,
    /// It moves by itself.
    Busy,
    /// It waits for somebody or something.
    Waiting,
    /// It failed, or is in trouble.
    Bad,
    /// Nothing to look at.
    Idle,
}

impl Tone {
    /// The sign before a word, one cell wide.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Good => "✔",
            Self::Busy => "◌",
            Self::Waiting => "‖",
            Self::Bad => "✖",
            Self::Idle => "○",
        }
    }
}

/// A word with its tone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// The word.
    pub word: String,
    /// What it means.
    pub tone: Tone,
}

impl State {
    /// A word with its tone.
    pub fn new(tone: Tone, word: impl Into<String>) -> Self {
        Self { word: word.into(), tone }
    }
}

/// The word for what the operator has not said anything about.
pub const UNSEEN: &str = "not seen by the operator";

/// Where a run stands.
pub fn of_run(phase: Option<RunPhase>) -> State {
    let Some(phase) = phase else { return State::new(Tone::Waiting, UNSEEN) };
    let tone = match phase {
        RunPhase::Succeeded => Tone::Good,
        RunPhase::Preparing | RunPhase::Running | RunPhase::Suspending => Tone::Busy,
        RunPhase::Pending | RunPhase::Suspended | RunPhase::Retrying => Tone::Waiting,
        RunPhase::Failed => Tone::Bad,
    };
    State::new(tone, phase.as_str())
}

/// Where a rollout stands.
pub fn of_deployment(phase: Option<DeploymentPhase>) -> State {
    let Some(phase) = phase else { return State::new(Tone::Waiting, UNSEEN) };
    let tone = match phase {
        DeploymentPhase::Stable => Tone::Good,
        DeploymentPhase::Pending | DeploymentPhase::AwaitingApproval | DeploymentPhase::Paused => Tone::Waiting,
        DeploymentPhase::Degraded | DeploymentPhase::Failed | DeploymentPhase::RollingBack => Tone::Bad,
        _ => Tone::Busy,
    };
    State::new(tone, phase.as_str())
}

/// Where a sweep stands.
pub fn of_sweep(phase: Option<SweepPhase>) -> State {
    match phase {
        None => State::new(Tone::Waiting, UNSEEN),
        Some(SweepPhase::Pending) => State::new(Tone::Waiting, "Pending"),
        Some(SweepPhase::Running) => State::new(Tone::Busy, "Running"),
        Some(SweepPhase::Suspended) => State::new(Tone::Waiting, "Suspended"),
        Some(SweepPhase::Succeeded) => State::new(Tone::Good, "Succeeded"),
        Some(SweepPhase::Failed) => State::new(Tone::Bad, "Failed"),
    }
}

/// Where a trial stands.
pub fn of_trial(phase: TrialPhase) -> State {
    match phase {
        TrialPhase::Pending => State::new(Tone::Waiting, "Pending"),
        TrialPhase::Running => State::new(Tone::Busy, "Running"),
        TrialPhase::Succeeded => State::new(Tone::Good, "Succeeded"),
        TrialPhase::Failed => State::new(Tone::Bad, "Failed"),
        TrialPhase::Stopped => State::new(Tone::Idle, "Stopped"),
    }
}
