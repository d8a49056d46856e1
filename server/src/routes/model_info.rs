//! GET /model/info: what is known about the model.

use anneal_api::{Sha256, checkpoint::Preprocessing, hyperparameters::Precision, termination::DatasetResult};
use serde::Serialize;
use warp::{http::StatusCode, reply::Response};

use super::probes::DEVICE;
use crate::{
    answer::{json_response, not_loaded},
    life::Life,
};

/// The reference's fields first, then where the model came from.
#[derive(Debug, Serialize)]
struct ModelInfo<'a> {
    model_loaded: bool,
    model_type: &'a str,
    num_parameters: usize,
    device: &'a str,
    classes: &'a [String],
    input_size: String,
    test_accuracy: Option<f64>,
    model_name: &'a str,
    sha256: &'a Sha256,
    run: Option<&'a str>,
    dataset: Option<&'a DatasetResult>,
    preprocessing: &'a Preprocessing,
    workers: usize,
    precision: Precision,
    golden_set: Option<usize>,
}

pub(super) fn answer(life: &Life) -> Response {
    let Some(serving) = life.serving() else { return not_loaded(life).response() };
    let facts = &serving.facts;
    let info = ModelInfo {
        model_loaded: true,
        model_type: facts.model_type,
        num_parameters: facts.parameters,
        device: DEVICE,
        classes: &facts.classes,
        input_size: facts.input_size(),
        test_accuracy: facts.accuracy,
        model_name: &facts.name,
        sha256: &facts.sha256,
        run: facts.run.as_deref(),
        dataset: facts.dataset.as_ref(),
        preprocessing: &facts.preprocessing,
        workers: facts.workers,
        precision: facts.precision,
        golden_set: facts.golden,
    };
    json_response(StatusCode::OK, &info)
}
