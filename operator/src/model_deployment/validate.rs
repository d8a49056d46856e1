//! A spec that the planner need not doubt: defaults resolved, contradictions refused with a word on what to do.

use std::collections::BTreeMap;

use anneal_api::resources::{
    Approval, Autoscaling, Canary, CanaryStep, Feedback, FeedbackAction, ModelDeployment, ModelDeploymentSpec,
    ModelSource, PodTemplate, ServiceSpec, Shadow, SmokeTest, Strategy, StrategyType,
};
use jiff::SignedDuration;
use k8s_openapi::ByteString;
use kube::ResourceExt;
use serde_json::json;

use super::revision::{ModelFile, Place, RevisionName, short_hash};
use crate::{children::reserved_key, performance::Bounds, signals::Limits};

/// Longest name; the names of Deployments, Services and Jobs are made from it.
const MAX_NAME: usize = 40;

/// What a spec asks for, checked. Only [`validate`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidDeployment {
    /// Name of the resource.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Where the checkpoint comes from.
    pub model: Model,
    /// What a revision must pass.
    pub gate: ValidGate,
    /// The route from Gateways, where one is asked for.
    pub route: Option<Canary>,
    /// The shares that a revision gets through it before all of the traffic; none: everything at once.
    pub steps: Vec<CanaryStep>,
    /// Copies of requests before the first share, where there are steps.
    pub shadow: Option<Shadow>,
    /// How well it has to do once it serves.
    pub feedback: Option<Bounds>,
    /// How many pods.
    pub size: Size,
    /// The Service in front of them.
    pub service: ServiceSpec,
    /// What the user says about the pods.
    pub pods: PodTemplate,
    /// Whether no rollout goes on.
    pub paused: bool,
    /// The revision that is to serve, whatever the model says.
    pub pinned: Option<RevisionName>,
    /// Former revisions that are kept.
    pub history: usize,
    /// Time that a rollout may take.
    pub deadline: SignedDuration,
}

/// Where the checkpoint comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// What this `TrainingRun` published.
    Run(String),
    /// What the `TrainingRun` of these labels published that succeeded last.
    Newest(BTreeMap<String, String>),
    /// A file on a claim or at a server.
    File(ModelFile),
}

/// What a revision must pass before it gets traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidGate {
    /// Least accuracy of the training run.
    pub min_accuracy: Option<f64>,
    /// By how much it may be less accurate than what serves.
    pub max_accuracy_drop: Option<f64>,
    /// Questions to the pods.
    pub smoke: SmokeTest,
    /// Whether a person has the last word.
    pub approval: Approval,
    /// Bounds under real traffic.
    pub limits: Limits,
    /// Time that the former revision is held.
    pub soak: SignedDuration,
    /// Changes with everything that may turn a rejection into a promotion.
    pub hash: String,
}

/// How many pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// This many.
    Fixed(i32),
    /// As many as the load asks for.
    Auto(Autoscaling),
}

impl Size {
    /// Least number of pods that a revision needs to take the traffic. A gate needs a pod, also where none is wanted.
    pub fn least(&self) -> i32 {
        match self {
            Self::Fixed(replicas) => (*replicas).max(1),
            Self::Auto(autoscaling) => autoscaling.min_replicas,
        }
    }

    /// The number that the serving revision must be brought to; `None` where it may stay as it is.
    pub fn correction(&self, replicas: i32) -> Option<i32> {
        match self {
            Self::Fixed(wanted) => Some(*wanted).filter(|wanted| *wanted != replicas),
            // Everything above is the autoscaler's; at zero it would never start.
            Self::Auto(autoscaling) => Some(autoscaling.min_replicas).filter(|least| replicas < *least),
        }
    }
}

/// The spec cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The name is too long for the names made from it.
    #[error("metadata.name {0:?} has more than {MAX_NAME} characters; create the ModelDeployment under a shorter name")]
    Name(String),
    /// No checkpoint, or two.
    #[error(
        "spec.model must name either trainingRunRef, or trainingRunSelector, or claimName with path and sha256, or uri with sha256"
    )]
    Model,
    /// The path leaves the claim.
    #[error("spec.model.path {0:?} must be relative to the claim's root and without `..` parts")]
    Path(String),
    /// Two ways of sizing.
    #[error("spec has both replicas and autoscaling; remove one of them")]
    Size,
    /// No pods fit between the bounds.
    #[error("spec.autoscaling.minReplicas {least} is above maxReplicas {most}; lower the one or raise the other")]
    Bounds {
        /// The lower bound.
        least: i32,
        /// The upper bound.
        most: i32,
    },
    /// The accuracy of a file is not known.
    #[error(
        "spec.gate.{0} needs spec.model.trainingRunRef or trainingRunSelector: nothing is known about the accuracy of a file"
    )]
    Accuracy(&'static str),
    /// Nothing that a former revision would do better.
    #[error(
        "spec.feedback.action Rollback needs minAccuracy or maxCalibrationError: drift is about the photos, and a former revision sees the same ones"
    )]
    Feedback,
    /// Nothing to send, or two things.
    #[error(
        "spec.gate.smokeTest.cases {0:?} must have either an image or tensors, by configMapKeyRef, inline, or by a path on the model's claim: one of the three"
    )]
    Question(String),
    /// A path on a claim that there is not, or that leaves it.
    #[error(
        "spec.gate.smokeTest.cases {0:?} has a path, which must be relative to the root of the model's claim and without `..` parts, and needs a model on a claim"
    )]
    QuestionPath(String),
    /// The tensors are no JSON.
    #[error(
        "spec.gate.smokeTest.cases {0:?} has inline tensors that are no JSON; write {{\"inputs\": [{{\"name\": …, \"datatype\": …, \"shape\": […], \"data\": […]}}]}}"
    )]
    Tensors(String),
    /// Two expectations of one number.
    #[error("spec.gate.smokeTest.cases {0:?} has both minProbability and probability; remove one of them")]
    Probability(String),
    /// The picture is no Base64.
    #[error("spec.gate.smokeTest.cases {0:?} has an inline image that is no Base64; `base64 -w0 FILE` writes it")]
    Base64(String),
    /// No revision can have that name.
    #[error(
        "spec.pinnedRevision {0:?} is no revision; status.revisions lists their names, eight hexadecimal digits each"
    )]
    Pinned(String),
    /// A canary that goes through nothing.
    #[error(
        "spec.strategy.type is Canary without strategy.canary; name its Gateways in parentRefs and its steps, or set type to BlueGreen"
    )]
    Canary,
    /// A step that gives nothing to anybody.
    #[error(
        "spec.strategy.canary.steps has setWeight 0, and canary.matches is empty; raise it, or say whose requests the candidate gets"
    )]
    NoShare,
    /// Two cases of one name could not be told apart in the report.
    #[error("spec.gate.smokeTest.cases has two cases named {0:?}; give each its own name")]
    Case(String),
    /// A user's label or annotation would speak for the operator.
    #[error("podTemplate sets {0}: labels and annotations under anneal.dev/ are the operator's; remove it")]
    ReservedKey(String),
}

impl SpecError {
    /// One word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        "InvalidSpec"
    }
}

/// Checks a spec and resolves its defaults.
///
/// # Errors
/// The first thing in the spec that cannot be used.
pub fn validate(deployment: &ModelDeployment) -> Result<ValidDeployment, SpecError> {
    let spec = &deployment.spec;
    let name = deployment.name_any();
    if name.len() > MAX_NAME {
        return Err(SpecError::Name(name));
    }
    if let Some(reserved) = reserved_key(&spec.pod_template) {
        return Err(SpecError::ReservedKey(reserved.clone()));
    }
    let model = model(&spec.model)?;
    let bars = [("minAccuracy", spec.gate.min_accuracy), ("maxAccuracyDrop", spec.gate.max_accuracy_drop)];
    if let Some((bar, _)) = bars.into_iter().find(|(_, bar)| bar.is_some() && matches!(model, Model::File(_))) {
        return Err(SpecError::Accuracy(bar));
    }
    let is_canary = spec.strategy.kind == StrategyType::Canary;
    Ok(ValidDeployment {
        name,
        namespace: deployment.namespace().unwrap_or_default(),
        model: model.clone(),
        gate: ValidGate {
            min_accuracy: spec.gate.min_accuracy,
            max_accuracy_drop: spec.gate.max_accuracy_drop,
            smoke: smoke(&spec.gate.smoke_test, &model)?,
            approval: spec.gate.approval,
            limits: Limits {
                error_percentage: spec.gate.soak_test.max_error_percentage.into(),
                p95_milliseconds: spec.gate.soak_test.max_p95_milliseconds.map(f64::from),
            },
            soak: SignedDuration::from_secs(spec.gate.soak_seconds.max(0).into()),
            hash: hash(spec),
        },
        shadow: spec.strategy.canary.as_ref().filter(|_| is_canary).and_then(|canary| canary.shadow.clone()),
        steps: steps(&spec.strategy)?,
        route: spec.strategy.canary.clone(),
        feedback: feedback(spec.feedback.as_ref())?,
        size: size(spec.replicas, spec.autoscaling.as_ref())?,
        service: spec.service.clone(),
        pods: spec.pod_template.clone(),
        paused: spec.paused,
        pinned: pinned(spec.pinned_revision.as_deref())?,
        history: usize::try_from(spec.revision_history_limit).unwrap_or_default(),
        deadline: SignedDuration::from_secs(spec.progress_deadline_seconds.max(1).into()),
    })
}

/// What changes with everything that may turn a rejection into a promotion.
fn hash(spec: &ModelDeploymentSpec) -> String {
    let gate = &spec.gate;
    let mut all =
        vec![json!(gate.min_accuracy), json!(gate.max_accuracy_drop), json!(gate.smoke_test), json!(gate.soak_test)];
    all.push(json!(spec.progress_deadline_seconds));
    let rejects = spec.feedback.as_ref().filter(|feedback| feedback.action == FeedbackAction::Rollback);
    all.extend(rejects.map(|it| json!([it.min_accuracy, it.max_calibration_error, it.min_count])));
    // Whatever the type: who sets it to BlueGreen in the midst of a canary wants no gate anew.
    let shadow = spec.strategy.canary.as_ref().and_then(|canary| canary.shadow.as_ref());
    all.extend(shadow.map(|it| json!({"shadow": [it.min_agreement, it.min_requests, it.timeout_seconds]})));
    short_hash(&json!(all))
}

fn feedback(feedback: Option<&Feedback>) -> Result<Option<Bounds>, SpecError> {
    let is_about_the_model = |it: &Feedback| it.min_accuracy.is_some() || it.max_calibration_error.is_some();
    match feedback {
        Some(it) if it.action == FeedbackAction::Rollback && !is_about_the_model(it) => Err(SpecError::Feedback),
        feedback => Ok(feedback.map(Bounds::of)),
    }
}

fn model(source: &ModelSource) -> Result<Model, SpecError> {
    if let Some(selector) = &source.training_run_selector {
        let alone = source.training_run_ref.is_none() && source.claim_name.is_none() && source.uri.is_none();
        // No label at all would follow every run of the namespace.
        let labels = Some(&selector.match_labels).filter(|labels| alone && !labels.is_empty());
        return labels.map(|labels| Model::Newest(labels.clone())).ok_or(SpecError::Model);
    }
    match (&source.training_run_ref, &source.claim_name, &source.path, &source.uri, &source.sha256) {
        (Some(run), None, None, None, None) => Ok(Model::Run(run.name.clone())),
        (None, None, None, Some(uri), Some(sha256)) => {
            let credentials_secret = source.credentials_secret_ref.as_ref().map(|secret| secret.name.clone());
            let place = Place::Server { uri: uri.clone(), credentials_secret };
            Ok(Model::File(ModelFile { place, sha256: sha256.clone() }))
        }
        (None, Some(claim_name), Some(path), None, Some(sha256)) => {
            if leaves(path) {
                return Err(SpecError::Path(path.clone()));
            }
            Ok(Model::File(ModelFile::on_claim(claim_name, path, sha256.clone())))
        }
        _ => Err(SpecError::Model),
    }
}

/// Whether a path leads out of the claim that it is relative to.
fn leaves(path: &str) -> bool {
    path.starts_with('/') || path.split('/').any(|part| part == "..")
}

fn pinned(name: Option<&str>) -> Result<Option<RevisionName>, SpecError> {
    name.map(|name| RevisionName::parse(name).ok_or_else(|| SpecError::Pinned(name.to_owned()))).transpose()
}

fn size(replicas: Option<i32>, autoscaling: Option<&Autoscaling>) -> Result<Size, SpecError> {
    let autoscaling = match (replicas, autoscaling) {
        (Some(_), Some(_)) => return Err(SpecError::Size),
        (Some(replicas), None) => return Ok(Size::Fixed(replicas.max(0))),
        (None, autoscaling) => autoscaling.cloned().unwrap_or_default(),
    };
    if autoscaling.min_replicas > autoscaling.max_replicas {
        return Err(SpecError::Bounds { least: autoscaling.min_replicas, most: autoscaling.max_replicas });
    }
    Ok(Size::Auto(autoscaling))
}

fn steps(strategy: &Strategy) -> Result<Vec<CanaryStep>, SpecError> {
    let canary = match (strategy.kind, &strategy.canary) {
        (StrategyType::BlueGreen, _) => return Ok(Vec::new()),
        (StrategyType::Canary, canary) => canary.as_ref().filter(|it| !it.steps.is_empty()).ok_or(SpecError::Canary)?,
    };
    let gives_nothing = |step: &CanaryStep| step.set_weight <= 0 && canary.matches.is_empty();
    if canary.steps.iter().any(gives_nothing) { Err(SpecError::NoShare) } else { Ok(canary.steps.clone()) }
}

fn smoke(test: &SmokeTest, model: &Model) -> Result<SmokeTest, SpecError> {
    for (i, case) in test.cases.iter().enumerate() {
        if test.cases[..i].iter().any(|other| other.name == case.name) {
            return Err(SpecError::Case(case.name.clone()));
        }
        let (name, image, tensors) = (|| case.name.clone(), case.image.as_ref(), case.tensors.as_ref());
        let given = [
            image.map(|it| (it.config_map_key_ref.is_some(), it.inline.as_deref(), it.path.as_deref())),
            tensors.map(|it| (it.config_map_key_ref.is_some(), it.inline.as_deref(), it.path.as_deref())),
        ];
        let [(key, inline, path)] = given.into_iter().flatten().collect::<Vec<_>>()[..] else {
            return Err(SpecError::Question(name()));
        };
        if usize::from(key) + usize::from(inline.is_some()) + usize::from(path.is_some()) != 1 {
            return Err(SpecError::Question(name()));
        }
        let has_claim = !matches!(model, Model::File(ModelFile { place: Place::Server { .. }, .. }));
        if path.is_some_and(|path| leaves(path) || !has_claim) {
            return Err(SpecError::QuestionPath(name()));
        }
        if image.is_some() && inline.is_some_and(|text| decoded(text).is_none()) {
            return Err(SpecError::Base64(name()));
        }
        let is_json = |text: &str| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok();
        if tensors.is_some() && inline.is_some_and(|text| !is_json(text)) {
            return Err(SpecError::Tensors(name()));
        }
        if case.min_probability.is_some() && case.probability.is_some() {
            return Err(SpecError::Probability(name()));
        }
    }
    Ok(test.clone())
}

/// The bytes of an inline image; `None` where it is no Base64.
pub fn decoded(text: &str) -> Option<ByteString> {
    serde_json::from_value(json!(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_deployment::tests::fixtures::deployment;

    fn refuses(spec: &serde_json::Value, what: &str) {
        let problem = validate(&deployment(spec)).expect_err("refused").to_string();
        assert!(problem.contains(what), "{problem}");
    }

    #[test]
    fn a_spec_that_says_nothing_about_size_gets_two_to_ten_pods() {
        let valid = validate(&deployment(&serde_json::json!({"model": {"trainingRunRef": {"name": "run"}}})));
        assert_eq!(valid.expect("valid").size, Size::Auto(Autoscaling::default()));
    }

    #[test]
    fn contradictions_are_refused_with_what_to_do() {
        let file = serde_json::json!({"claimName": "c", "path": "m.pth", "sha256": "a".repeat(64)});
        refuses(&serde_json::json!({"model": {}}), "either trainingRunRef");
        refuses(&serde_json::json!({"model": {"trainingRunRef": {"name": "r"}, "claimName": "c"}}), "either");
        refuses(&serde_json::json!({"model": file, "replicas": 1, "autoscaling": {}}), "remove one");
        refuses(&serde_json::json!({"model": file, "gate": {"minAccuracy": 0.9}}), "trainingRunRef");
        refuses(&serde_json::json!({"model": file, "pinnedRevision": "first"}), "eight hexadecimal");
        refuses(&serde_json::json!({"model": file, "gate": {"maxAccuracyDrop": 0.1}}), "maxAccuracyDrop needs");
        refuses(&serde_json::json!({"model": {"trainingRunSelector": {"matchLabels": {}}}}), "either trainingRunRef");
        let drawn =
            |image: serde_json::Value| serde_json::json!({"smokeTest": {"cases": [{"name": "cat", "image": image}]}});
        refuses(&serde_json::json!({"model": file, "gate": drawn(serde_json::json!({}))}), "one of the three");
        refuses(&serde_json::json!({"model": file, "gate": drawn(serde_json::json!({"inline": "%%%%"}))}), "no Base64");
        refuses(
            &serde_json::json!({"model": file, "gate": drawn(serde_json::json!({"path": "../a.png"}))}),
            "relative",
        );
        let server = serde_json::json!({"uri": "https://models/cats.pth", "sha256": "a".repeat(64)});
        refuses(
            &serde_json::json!({"model": server, "gate": drawn(serde_json::json!({"path": "a.png"}))}),
            "on a claim",
        );
        let asked =
            |case: serde_json::Value| serde_json::json!({"model": file, "gate": {"smokeTest": {"cases": [case]}}});
        refuses(&asked(serde_json::json!({"name": "cat", "tensors": {"inline": "[1]"}})), "no JSON");
        let both = serde_json::json!({"name": "cat", "tensors": {"inline": "{}"}, "image": {"path": "a.png"}});
        refuses(&asked(both), "either an image or tensors");
        let twice = serde_json::json!({"name": "cat", "image": {"path": "a.png"}, "minProbability": 0.5, "probability": {"value": 0.9}});
        refuses(&asked(twice), "remove one of them");
        let mut outside = file.clone();
        outside["path"] = "../m.pth".into();
        refuses(&serde_json::json!({"model": outside}), "relative");
        refuses(&serde_json::json!({"model": {"uri": "https://models/cats.pth"}}), "uri with sha256");
        let case = serde_json::json!({"name": "cat", "image": {"configMapKeyRef": {"name": "c", "key": "k"}}});
        refuses(&serde_json::json!({"model": file, "gate": {"smokeTest": {"cases": [case, case]}}}), "two cases");
        refuses(&serde_json::json!({"model": file, "strategy": {"type": "Canary"}}), "parentRefs");
        let nobody = serde_json::json!({"parentRefs": [{"name": "edge"}], "steps": [{"setWeight": 0}]});
        refuses(&serde_json::json!({"model": file, "strategy": {"type": "Canary", "canary": nobody}}), "setWeight 0");
    }

    #[test]
    fn a_longer_soak_gives_a_rejected_revision_no_second_chance() {
        let hash = |gate: serde_json::Value| {
            let spec = serde_json::json!({"model": {"trainingRunRef": {"name": "r"}}, "gate": gate});
            validate(&deployment(&spec)).expect("valid").gate.hash
        };
        let plain = hash(serde_json::json!({}));
        assert_eq!(plain, hash(serde_json::json!({"soakSeconds": 5})));
        assert_ne!(plain, hash(serde_json::json!({"minAccuracy": 0.5})));
        assert_ne!(plain, hash(serde_json::json!({"smokeTest": {"retries": 5}})));
        assert_ne!(plain, hash(serde_json::json!({"soakTest": {"maxErrorPercentage": 50}})));
        assert_eq!(plain, "eaa15232", "another version of the operator tries nothing again");
    }

    #[test]
    fn another_bound_on_the_agreement_gives_a_second_chance_and_another_share_of_copies_does_not() {
        let hash = |kind: &str, shadow: serde_json::Value| {
            let steps = serde_json::json!([{"setWeight": 10}]);
            let canary = serde_json::json!({"parentRefs": [{"name": "edge"}], "steps": steps, "shadow": shadow});
            let spec = serde_json::json!({"model": {"trainingRunRef": {"name": "r"}}, "strategy": {"type": kind, "canary": canary}});
            validate(&deployment(&spec)).expect("valid").gate.hash
        };
        let plain = hash("Canary", serde_json::json!({"minAgreement": 0.9}));
        assert_ne!(plain, hash("Canary", serde_json::json!({"minAgreement": 0.8})));
        assert_ne!(plain, hash("Canary", serde_json::json!({"minAgreement": 0.9, "minRequests": 50})));
        assert_eq!(plain, hash("Canary", serde_json::json!({"minAgreement": 0.9, "percent": 10})));
        assert_eq!(plain, hash("BlueGreen", serde_json::json!({"minAgreement": 0.9})), "nobody is asked again");
        assert_eq!(hash("Canary", serde_json::Value::Null), "eaa15232");
    }

    #[test]
    fn only_feedback_that_rejects_may_give_a_second_chance() {
        let hash = |feedback: serde_json::Value| {
            let spec = serde_json::json!({"model": {"trainingRunRef": {"name": "r"}}, "feedback": feedback});
            validate(&deployment(&spec)).expect("valid").gate.hash
        };
        let told = hash(serde_json::json!({"minAccuracy": 0.9}));
        assert_eq!(told, hash(serde_json::json!({"minAccuracy": 0.8, "maxDrift": 0.25})));
        let rejected = |least: f64| hash(serde_json::json!({"minAccuracy": least, "action": "Rollback"}));
        assert_ne!(rejected(0.9), rejected(0.8));
        let drift = serde_json::json!({"maxDrift": 0.25, "action": "Rollback"});
        refuses(&serde_json::json!({"model": {"trainingRunRef": {"name": "r"}}, "feedback": drift}), "the same ones");
    }

    #[test]
    fn the_autoscaler_is_corrected_only_below_its_least() {
        let auto = Size::Auto(Autoscaling::default());
        assert_eq!((auto.correction(1), auto.correction(5), auto.correction(50)), (Some(2), None, None));
        assert_eq!((Size::Fixed(3).correction(5), Size::Fixed(3).correction(3)), (Some(3), None));
    }
}
