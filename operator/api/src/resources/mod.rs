//! The custom resources in `anneal.dev/v1alpha1`, and the YAML of their definitions.

mod condition;
mod cron_training_run;
mod init_from;
mod model_deployment;
mod output;
mod parameter;
mod pod_template;
mod pod_volume;
mod quantity;
mod retry;
mod run_template;
mod schema;
mod strategy;
mod training_run;
mod training_status;
mod training_sweep;

pub use condition::{condition, conditions_schema, set_condition, unknown};
pub use cron_training_run::*;
pub use init_from::{InitCheckpoint, InitFrom};
pub use model_deployment::*;
pub use output::{
    AccessMode, ClaimMetadata, ClaimRequests, ClaimResources, ClaimSpec, ClaimTemplate, Output, WhenDeleted,
};
pub use parameter::{field_value, parameter_name, tunable};
pub use pod_template::{
    FsGroupChangePolicy, ImagePullPolicy, LocalReference, PodSecurity, PodTemplate, Resources, RunPodTemplate,
};
pub use pod_volume::{PodMount, PodVolume};
pub use quantity::Quantity;
pub use retry::{RetryAction, RetryRule};
pub use run_template::{RunTemplate, TemplateMetadata};
pub use schema::{definitions, element, kubernetes_type, schema_of};
pub use strategy::{
    Canary, CanaryStatus, CanaryStep, HeaderMatch, HeaderMatchType, ParentRef, RequestMatch, Shadow, ShadowStatus,
    Strategy, StrategyType,
};
pub use training_run::*;
pub use training_status::*;
pub use training_sweep::*;
