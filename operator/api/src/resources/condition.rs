//! Conditions in the way of Kubernetes' API conventions: one entry a type, a time that moves only with the status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::termination::cut;

/// Makes a condition. Its transition time is set when it is merged with the former ones by [`set_condition`].
pub fn condition(kind: &str, status: bool, reason: &str, message: &str, generation: Option<i64>) -> Condition {
    Condition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: cut(message, 2048),
        observed_generation: generation,
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}

/// Makes a condition of which nobody can tell yet whether it is so.
pub fn unknown(kind: &str, reason: &str, message: &str, generation: Option<i64>) -> Condition {
    Condition { status: "Unknown".to_owned(), ..condition(kind, false, reason, message, generation) }
}

/// Puts `new` into `conditions`, sorted by type. The transition time moves to `now` only when the status changed.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition, now: Timestamp) {
    if let Some(old) = conditions.iter_mut().find(|old| old.type_ == new.type_) {
        new.last_transition_time = if old.status == new.status { old.last_transition_time.clone() } else { Time(now) };
        *old = new;
    } else {
        new.last_transition_time = Time(now);
        conditions.push(new);
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    }
}

/// The schema of `status.conditions`: a map by type, so that server-side apply merges entries.
pub fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "description": "What is true of the object, by type; kstatus reads Ready and Stalled.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "description": "Name of the condition, in CamelCase.", "maxLength": 316},
                "status": {"type": "string", "description": "Whether it holds: True, False or Unknown.", "enum": ["True", "False", "Unknown"]},
                "reason": {"type": "string", "description": "One CamelCase word for why.", "maxLength": 1024},
                "message": {"type": "string", "description": "What happened, and what to do.", "maxLength": 32768},
                "observedGeneration": {"type": "integer", "format": "int64", "description": "The generation of the spec that it is about."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When its status last changed."}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let mut all = Vec::new();
        set_condition(&mut all, condition("Ready", false, "Waiting", "", Some(1)), at(10));
        set_condition(&mut all, condition("Ready", false, "StillWaiting", "longer", Some(1)), at(20));
        assert_eq!(all[0].last_transition_time, Time(at(10)));
        assert_eq!(all[0].reason, "StillWaiting");
        set_condition(&mut all, condition("Ready", true, "Done", "", Some(1)), at(30));
        assert_eq!(all[0].last_transition_time, Time(at(30)));
        assert_eq!(all.len(), 1);
    }
}
