//! POST /feedback: what the true class of an image was.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use warp::{http::StatusCode, reply::Response};

use super::{
    Context,
    upload::{self, Body},
};
use crate::{
    answer::{Problem, json_response, not_loaded},
    feedback::IdError,
};

/// What a client sends.
#[derive(Debug, Deserialize)]
struct Given {
    /// The answer's X-Prediction-Id.
    id: String,
    /// The true class.
    class: String,
}

/// Longest body: two short strings.
const MAX_BODY: usize = 4096;

pub(super) async fn answer(context: Arc<Context>, body: Body) -> Response {
    let body = upload::short(body, MAX_BODY, context.request_timeout).await;
    body.and_then(|body| count(&context, &body)).unwrap_or_else(|problem| problem.response())
}

fn count(context: &Context, body: &[u8]) -> Result<Response, Problem> {
    let serving = context.life.serving().ok_or_else(|| not_loaded(&context.life))?;
    let unprocessable = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
    let given: Given = serde_json::from_slice(body)
        .map_err(|error| unprocessable(format!("Send JSON such as {{\"id\": \"…\", \"class\": \"cat\"}}: {error}")))?;
    let (said, mac) = serving.feedback.read(&given.id).map_err(|error| {
        let status =
            if error == IdError::OtherCheckpoint { StatusCode::CONFLICT } else { StatusCode::UNPROCESSABLE_ENTITY };
        Problem::new(status, error.to_string())
    })?;
    let classes = &serving.facts.classes;
    let Some(actual) = classes.iter().position(|class| *class == given.class) else {
        return Err(unprocessable(format!(
            "The model has no class {:?}; its classes are {}",
            given.class,
            classes.join(", ")
        )));
    };
    let predicted_word = classes.get(said.class).map_or("", String::as_str);
    let correct = said.class == actual;
    let accuracy = serving.feedback.count(mac, said, correct);
    if let Some(accuracy) = accuracy {
        context.metrics.feedback(predicted_word, &classes[actual], accuracy);
    }
    let answer = json!({"counted": accuracy.is_some(), "predicted": predicted_word, "correct": correct});
    Ok(json_response(StatusCode::OK, &answer))
}
