//! The custom resources in `anneal.dev/v1alpha1`, and the YAML of their definitions.

mod condition;
mod model_deployment;
mod pod_template;
mod quantity;
mod schema;
mod training_run;

pub use condition::{condition, conditions_schema, set_condition};
pub use model_deployment::*;
pub use pod_template::{LocalReference, PodTemplate, Resources};
pub use quantity::Quantity;
pub use schema::definitions;
pub use training_run::*;
