//! The words that the operator and its pods share: environment variables, ports, paths, headers, labels.

/// API group of the custom resources.
pub const GROUP: &str = "anneal.dev";
/// API version of the custom resources.
pub const VERSION: &str = "v1alpha1";

/// Environment variables that every training container gets, whatever its image.
pub mod env {
    /// Name of the `TrainingRun`.
    pub const RUN: &str = "ANNEAL_RUN";
    /// Number of the attempt, counted from 1.
    pub const ATTEMPT: &str = "ANNEAL_ATTEMPT";
    /// Directory that belongs to this run alone; it survives the pod.
    pub const OUTPUT_DIR: &str = "ANNEAL_OUTPUT_DIR";
    /// Directory of the immutable published models, `<sha256>.pth` each.
    pub const MODELS_DIR: &str = "ANNEAL_MODELS_DIR";
    /// Checkpoint directory to continue from. Empty on the first attempt.
    pub const RESUME_FROM: &str = "ANNEAL_RESUME_FROM";
    /// Image that the trainer runs in, for its records.
    pub const IMAGE: &str = "ANNEAL_IMAGE";
    /// Path of the checkpoint that the server loads.
    pub const MODEL_PATH: &str = "MODEL_PATH";
    /// SHA-256 that the checkpoint at `MODEL_PATH` must have.
    pub const MODEL_SHA256: &str = "MODEL_SHA256";
    /// Model name that the server reports.
    pub const MODEL_NAME: &str = "MODEL_NAME";
    /// Name of the revision that the server states in every answer.
    pub const REVISION: &str = "ANNEAL_REVISION";
}

/// Header by which every answer of a server names the revision that gave it.
pub const REVISION_HEADER: &str = "x-anneal-revision";

/// Port on which a training pod serves `/progress` and `/metrics`.
pub const PROGRESS_PORT: u16 = 9090;
/// Port on which the inference server listens.
pub const SERVER_PORT: u16 = 8000;

/// Where the volumes and files of a training pod are mounted.
pub mod path {
    /// The output claim's root.
    pub const OUTPUT: &str = "/output";
    /// The dataset claim's root.
    pub const DATASET: &str = "/dataset";
    /// Root of the claim with the checkpoint that a run begins with, where it is not the output claim.
    pub const INIT: &str = "/init";
    /// Directory of the mounted configuration.
    pub const CONFIG_DIR: &str = "/etc/anneal";
    /// The trainer's configuration file, of the pod's own annotation.
    pub const RUN_CONFIG: &str = "/etc/anneal/run.yaml";
    /// The smoke client's configuration file, mounted from a `ConfigMap`.
    pub const SMOKE_CONFIG: &str = "/etc/anneal/smoke.json";
    /// Root of the claim that holds the model, mounted read-only into inference pods.
    pub const MODELS: &str = "/models";
    /// Directory of immutable published models below an output claim's root.
    pub const PUBLISHED: &str = "models";
    /// Where the kubelet reads a container's termination message.
    pub const TERMINATION_LOG: &str = "/dev/termination-log";
}

/// Annotations by which people ask something of a `ModelDeployment`'s rollout. The value is the name of the revision that
/// is meant, or `true`; the operator acts on each once and removes it.
pub mod request {
    /// Lets the revision that waits for approval get the traffic.
    pub const APPROVE: &str = "anneal.dev/approve";
    /// Ends a rollout; while the former revision is held, it gets the traffic back.
    pub const ABORT: &str = "anneal.dev/abort";
    /// Tries a rejected revision again.
    pub const RETRY: &str = "anneal.dev/retry";
    /// Makes a new revision of the same inputs, so that every pod is made anew, through the gate. The value tells one
    /// request from another, as the time does.
    pub const RESTART: &str = "anneal.dev/restart";
    /// On a Service that was there before, of the deployment's name: its owner hands it over. The value is `true`.
    pub const TAKE_OVER: &str = "anneal.dev/take-over";
}

/// Labels of generated objects.
pub mod label {
    /// What every label and annotation of Anneal's begins with; users may not set such keys.
    pub const PREFIX: &str = "anneal.dev/";
    /// Name of the owning `TrainingRun`.
    pub const RUN: &str = "anneal.dev/training-run";
    /// UID of the owning `TrainingRun`: a recreated namesake is another run.
    pub const RUN_UID: &str = "anneal.dev/training-run-uid";
    /// Number of the attempt.
    pub const ATTEMPT: &str = "anneal.dev/attempt";
    /// Name of the owning `TrainingSweep`.
    pub const SWEEP: &str = "anneal.dev/training-sweep";
    /// Number of the trial in its sweep.
    pub const TRIAL: &str = "anneal.dev/trial";
    /// Name of the owning `CronTrainingRun`.
    pub const CRON: &str = "anneal.dev/cron-training-run";
    /// Name of the owning `ModelDeployment`.
    pub const DEPLOYMENT: &str = "anneal.dev/model-deployment";
    /// Hash of the revision, the value that a Service's selector chooses by.
    pub const REVISION: &str = "anneal.dev/revision";
    /// Annotation of a `TrainingRun` that its sweep suspended: what people suspend by hand stays so.
    pub const SUSPENDED_BY_SWEEP: &str = "anneal.dev/suspended-by-sweep";
    /// Kubernetes' recommended label for the tool that manages an object.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Kubernetes' recommended label for the part an object plays.
    pub const COMPONENT: &str = "app.kubernetes.io/component";
    /// Kubernetes' recommended label for the application's name.
    pub const NAME: &str = "app.kubernetes.io/name";
    /// Kubernetes' recommended label for the application that an object is a part of, whatever the object's own is named.
    pub const PART_OF: &str = "app.kubernetes.io/part-of";
}

/// Value of [`label::MANAGED_BY`] and the field manager of every write.
pub const OPERATOR: &str = "anneal-operator";
