//! What is done about failures of a class.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::failure::FailureClass;

/// What to do about failures of one class, in place of the default.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("!has(self.maxRetries) || self.action == 'Retry'").message("maxRetries goes with action Retry; remove it, or write action: Retry"),
    validation = Rule::new("self.action == 'Fail' || !(self.class in ['ActiveDeadline', 'Suspended'])").message("ActiveDeadline ends the run as a whole and Suspended is no failure: neither can be retried; raise activeDeadlineSeconds, or remove the rule")
)]
#[serde(rename_all = "camelCase")]
pub struct RetryRule {
    /// The failure class that the rule is about.
    pub class: FailureClass,
    /// Whether failures of the class are retried or end the run.
    pub action: RetryAction,
    /// How many failures of the class are retried. They are then counted apart and cost nothing of `spec.maxRetries`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_retries: Option<i32>,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RetryAction {
    /// The run is tried again, as often as it may be.
    Retry,
    /// The run fails at once.
    Fail,
}
