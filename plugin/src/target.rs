//! Which resource is meant: KIND/NAME, or a name alone where it says enough.

use std::{fmt, str::FromStr};

use anneal_api::resources::{CronTrainingRun, ModelDeployment, TrainingRun, TrainingSweep};
use kube::ResourceExt as _;

use crate::problem::Problem;

/// The kinds of Anneal's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `TrainingRun`.
    Run,
    /// `ModelDeployment`.
    Deployment,
    /// `TrainingSweep`.
    Sweep,
    /// `CronTrainingRun`.
    Schedule,
}

impl Kind {
    /// Every kind, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Run, Self::Deployment, Self::Sweep, Self::Schedule];

    /// The word, as manifests have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "TrainingRun",
            Self::Deployment => "ModelDeployment",
            Self::Sweep => "TrainingSweep",
            Self::Schedule => "CronTrainingRun",
        }
    }

    /// The word that kubectl takes for short.
    pub fn short(self) -> &'static str {
        match self {
            Self::Run => "trun",
            Self::Deployment => "mdep",
            Self::Sweep => "tsweep",
            Self::Schedule => "ctrun",
        }
    }

    /// The kind that a word means, as kubectl takes it: singular, plural, short, with the group.
    fn parse(word: &str) -> Option<Self> {
        let word = word.to_lowercase();
        let word = word.strip_suffix(".anneal.dev").unwrap_or(&word);
        Self::ALL.into_iter().find(|kind| {
            let singular = kind.as_str().to_lowercase();
            word == kind.short() || word == singular || word.strip_suffix('s') == Some(&singular)
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was typed for a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The kind, where one was said.
    pub kind: Option<Kind>,
    /// The name.
    pub name: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, name) = match text.split_once('/') {
            None => (None, text),
            Some((word, name)) => {
                let kind = Kind::parse(word).ok_or_else(|| {
                    format!("{word:?} is none of Anneal's kinds; write trainingrun, modeldeployment, trainingsweep or crontrainingrun, or trun, mdep, tsweep, ctrun")
                })?;
                (Some(kind), name)
            }
        };
        if name.is_empty() {
            return Err("the name is missing; write NAME or KIND/NAME".to_owned());
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

/// A resource that was found.
#[derive(Clone, Debug)]
pub enum Found {
    /// A training run.
    Run(Box<TrainingRun>),
    /// A deployment.
    Deployment(Box<ModelDeployment>),
    /// A sweep.
    Sweep(Box<TrainingSweep>),
    /// A schedule.
    Schedule(Box<CronTrainingRun>),
}

impl Found {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Run(_) => Kind::Run,
            Self::Deployment(_) => Kind::Deployment,
            Self::Sweep(_) => Kind::Sweep,
            Self::Schedule(_) => Kind::Schedule,
        }
    }

    /// What every object has.
    pub fn metadata(&self) -> &kube::api::ObjectMeta {
        match self {
            Self::Run(it) => &it.metadata,
            Self::Deployment(it) => &it.metadata,
            Self::Sweep(it) => &it.metadata,
            Self::Schedule(it) => &it.metadata,
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Self::Run(it) => it.name_any(),
            Self::Deployment(it) => it.name_any(),
            Self::Sweep(it) => it.name_any(),
            Self::Schedule(it) => it.name_any(),
        }
    }

    /// Its kind and name, as kubectl takes and prints them.
    pub fn path(&self) -> String {
        format!("{}/{}", self.kind().short(), self.name())
    }
}

/// The one resource that a command is for, of all that have the name.
///
/// # Errors
/// When there is none of these kinds, or more than one.
pub fn only(target: &Target, found: Vec<Found>, wanted: &[Kind], namespace: &str) -> Result<Found, Problem> {
    let (mut fits, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|it| wanted.contains(&it.kind()));
    match (fits.pop(), fits.is_empty(), others.first()) {
        (Some(one), true, _) => Ok(one),
        (Some(one), false, _) => {
            fits.push(one);
            Err(Problem::Ambiguous { name: target.name.clone(), paths: fits.iter().map(Found::path).collect() })
        }
        (None, _, Some(other)) => {
            Err(Problem::WrongKind { name: target.name.clone(), kind: other.kind(), wanted: wanted.to_vec() })
        }
        (None, ..) => Err(Problem::not_found(target, namespace)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_taken_as_kubectl_takes_them() {
        for word in ["trun", "trainingrun", "TrainingRun", "trainingruns", "trainingruns.anneal.dev"] {
            let target: Target = format!("{word}/cats").parse().expect("a target");
            assert_eq!(target, Target { kind: Some(Kind::Run), name: "cats".to_owned() });
        }
        assert_eq!("cats".parse(), Ok(Target { kind: None, name: "cats".to_owned() }));
        for wrong in ["pod/cats", "trun/", ""] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong} was taken");
        }
    }

    fn run() -> Found {
        Found::Run(Box::new(crate::fixtures::run(&serde_json::json!({}))))
    }

    fn deployment() -> Found {
        Found::Deployment(Box::new(crate::fixtures::deployment(&serde_json::json!({}))))
    }

    #[test]
    fn a_name_that_two_kinds_have_is_no_name_and_a_kind_that_does_not_fit_is_named() {
        let target: Target = "cats".parse().expect("a target");
        let told = |found: Vec<Found>, wanted: &[Kind]| match only(&target, found, wanted, "demo") {
            Ok(found) => found.path(),
            Err(problem) => problem.to_string(),
        };
        assert_eq!(told(vec![run(), deployment()], &[Kind::Deployment]), "mdep/cats");
        assert_eq!(
            told(vec![run(), deployment()], &Kind::ALL),
            "more than one resource is named cats; write trun/cats or mdep/cats"
        );
        assert_eq!(
            told(vec![run()], &[Kind::Deployment]),
            "cats is a TrainingRun, and this command is for a ModelDeployment; `kubectl anneal status` lists what there is"
        );
        assert_eq!(
            told(vec![], &[Kind::Deployment]),
            "there is no resource named cats in namespace demo; `kubectl anneal status --namespace demo` lists what there is"
        );
    }
}
