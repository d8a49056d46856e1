//! GET /model/info: what is known about the model.

use serde_json::json;
use warp::{http::StatusCode, reply::Response};

use super::probes::DEVICE;
use crate::{
    answer::{json_response, not_loaded},
    life::Life,
};

/// The reference's fields, and where the model came from.
pub(super) fn answer(life: &Life) -> Response {
    let Some(serving) = life.serving() else {
        return not_loaded(life).response();
    };
    let facts = &serving.facts;
    json_response(
        StatusCode::OK,
        &json!({
            "model_loaded": true,
            "model_type": facts.model_type,
            "num_parameters": facts.parameters,
            "device": DEVICE,
            "classes": facts.classes,
            "input_size": facts.input_size(),
            "test_accuracy": facts.accuracy,
            "model_name": facts.name,
            "sha256": facts.sha256,
            "run": facts.run,
            "dataset": facts.dataset,
            "preprocessing": facts.preprocessing,
            "workers": facts.workers,
        }),
    )
}
