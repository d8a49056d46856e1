//! POST /predict: images in, the classes' probabilities out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use serde::Serialize;
use warp::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    reply::Response,
};

use super::{
    Context,
    upload::{self, Admitted, Body, File},
};
use crate::{
    answer::{Problem, json_response, timestamp},
    answers::Said,
    engine::{Answered, PredictError},
    input::Input,
    life::Serving,
    traces::Stages,
};

/// What POST /feedback wants to know of an answer.
pub(super) const ID: HeaderName = HeaderName::from_static("x-prediction-id");

/// The answer to one image: the reference's fields.
#[derive(Debug, Serialize)]
struct One<'a> {
    #[serde(flatten)]
    predicted: Predicted<'a>,
    timestamp: String,
    processing_time_ms: f64,
}

/// The answer to several.
#[derive(Debug, Serialize)]
struct Many<'a> {
    predictions: Vec<Entry<'a>>,
    timestamp: String,
    processing_time_ms: f64,
}

#[derive(Debug, Serialize)]
struct Entry<'a> {
    filename: Option<String>,
    id: String,
    #[serde(flatten)]
    predicted: Predicted<'a>,
}

#[derive(Debug, Serialize)]
struct Predicted<'a> {
    prediction: &'a str,
    confidence: f64,
    probabilities: BTreeMap<&'a str, f64>,
}

pub(super) async fn answer(context: Arc<Context>, headers: HeaderMap, body: Body) -> Response {
    predict(&context, &headers, body).await.unwrap_or_else(|problem| problem.response())
}

async fn predict(context: &Context, headers: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let begun = Instant::now();
    let (admitted, body) = upload::admit(context, headers, begun, body).await?;
    let files = admitted.files(headers, body).await?;
    let serving = admitted.serving;
    let (names, inputs): (Vec<_>, Vec<_>) =
        files.into_iter().map(|File { name, content }| (name, Input::File(content))).unzip();
    let answers = ask(context, serving, inputs, &admitted).await?;
    let mut entries: Vec<_> =
        names.into_iter().zip(&answers).map(|(name, answer)| entry(serving, name, answer)).collect();
    let (timestamp, processing_time_ms) = (timestamp(), begun.elapsed().as_secs_f64() * 1e3);
    let said = said(serving, &answers);
    let Some(Entry { id, predicted, .. }) = entries.pop_if(|_| answers.len() == 1) else {
        let mut response = json_response(StatusCode::OK, &Many { predictions: entries, timestamp, processing_time_ms });
        response.extensions_mut().insert(said);
        return Ok(response);
    };
    let mut response = json_response(StatusCode::OK, &One { predicted, timestamp, processing_time_ms });
    response.extensions_mut().insert(said);
    if let Some(answer) = answers.first() {
        response.extensions_mut().insert(Stages::from(answer));
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(ID, id);
    }
    Ok(response)
}

/// What the model says about all inputs of a request, or the first error.
pub(super) async fn ask(
    context: &Context,
    serving: &Serving,
    inputs: Vec<Input>,
    admitted: &Admitted<'_>,
) -> Result<Vec<Answered>, Problem> {
    // The first error ends the wait, and nobody wants the others any more.
    let ask = |input| serving.engine.predict_within(input, admitted.deadline, Some(Arc::clone(&admitted.room)));
    let asked = try_join_all(inputs.into_iter().map(ask));
    let answers = asked.await.map_err(|error| refusal(context, &error))?;
    for answer in &answers {
        context.metrics.predicted(word(serving, answer), answer);
        let prediction = &answer.prediction;
        let moved = serving.drift.as_ref().and_then(|drift| drift.add(prediction.class, prediction.confidence()));
        if let Some(moved) = moved {
            context.metrics.moved(moved);
        }
    }
    Ok(answers)
}

pub(super) fn refusal(context: &Context, error: &PredictError) -> Problem {
    let busy = |reason, wait: Duration| {
        context.metrics.refused(reason);
        Problem::busy_for(error.to_string(), wait)
    };
    match error {
        PredictError::OutOfRange => Problem::new(StatusCode::BAD_REQUEST, error.to_string()),
        PredictError::Undecodable(_) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
        PredictError::Full(wait) => busy("full", *wait),
        PredictError::Late(wait) => busy("late", *wait),
        PredictError::Expired => busy("expired", Duration::ZERO),
        PredictError::Failed(_) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        PredictError::NotFinite => {
            context.life.broken(error.to_string());
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        }
    }
}

/// What was predicted, for whoever compares it with another revision.
pub(super) fn said(serving: &Serving, answers: &[Answered]) -> Said {
    Said::of(answers.iter().map(|answer| word(serving, answer)))
}

fn word<'a>(serving: &'a Serving, answer: &Answered) -> &'a str {
    serving.facts.classes.get(answer.prediction.class).map_or("", String::as_str)
}

fn entry<'a>(serving: &'a Serving, filename: Option<String>, answer: &Answered) -> Entry<'a> {
    let prediction = &answer.prediction;
    let classes = serving.facts.classes.iter().map(String::as_str);
    let predicted = Predicted {
        prediction: word(serving, answer),
        confidence: prediction.confidence(),
        probabilities: classes.zip(prediction.probabilities.iter().copied()).collect(),
    };
    Entry { filename, id: serving.feedback.id(prediction.class, prediction.confidence()), predicted }
}
