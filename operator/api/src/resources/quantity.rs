//! A Kubernetes quantity as people type it: `500m`, `2Gi`, or a bare number.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A quantity of a resource, such as `500m` of CPU or `2Gi` of memory; a bare number is taken too, as in a Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "NumberOrText", into = "String")]
pub struct Quantity(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Integer(i64),
    Text(String),
}

impl From<NumberOrText> for Quantity {
    fn from(value: NumberOrText) -> Self {
        match value {
            NumberOrText::Integer(number) => Self(number.to_string()),
            NumberOrText::Text(text) => Self(text),
        }
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.0
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl Quantity {
    /// The quantity as Kubernetes writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The pattern is that of Kubernetes' own definition of a quantity.
        json_schema!({
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": true,
            "maxLength": 32,
            "pattern": "^([0-9]+|[0-9]*\\.[0-9]+|[0-9]+\\.)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_text_are_both_quantities() {
        let both: Vec<Quantity> = serde_yaml::from_str("[2, 500m]").expect("quantities");
        assert_eq!(both, [Quantity::from("2"), Quantity::from("500m")]);
    }
}
