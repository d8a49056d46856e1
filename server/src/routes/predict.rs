//! POST /predict: an image in, the classes' probabilities out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::TryStreamExt as _;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use warp::{
    Filter,
    filters::BoxedFilter,
    http::{HeaderMap, StatusCode, header},
    multipart::{FormData, Part},
    reply::Response,
};

use super::{Context, UPLOAD_UNIT};
use crate::{
    answer::{Problem, json_response, not_loaded, timestamp},
    body::LINGER,
    engine::PredictError,
    life::Serving,
    prediction::Prediction,
};

/// Name of the form's field.
const FIELD: &str = "file";

#[derive(Debug, Serialize)]
struct Answer<'a> {
    prediction: &'a str,
    confidence: f64,
    probabilities: BTreeMap<&'a str, f64>,
    timestamp: String,
    processing_time_ms: f64,
}

/// The request's form; none where the body is no form.
pub(super) fn form() -> BoxedFilter<(Option<FormData>,)> {
    // warp's own limit demands a Content-Length, which a streaming client does not send: crate::body caps the body.
    warp::multipart::form()
        .max_length(None)
        .map(Some)
        .or_else(|_| async { Ok::<_, std::convert::Infallible>((None,)) })
        .boxed()
}

pub(super) async fn answer(context: Arc<Context>, headers: HeaderMap, form: Option<FormData>) -> Response {
    predict(&context, &headers, form).await.unwrap_or_else(|problem| problem.response())
}

async fn predict(context: &Context, headers: &HeaderMap, form: Option<FormData>) -> Result<Response, Problem> {
    let begun = Instant::now();
    let deadline = begun + context.request_timeout;
    let (serving, _room) = match admit(context, headers) {
        Ok(admitted) => admitted,
        Err(problem) => {
            discard(form).await;
            return Err(problem);
        }
    };
    let form = form.ok_or_else(Problem::missing_file)?;
    let uploaded = tokio::time::timeout_at(deadline.into(), upload(form)).await;
    let uploaded = uploaded.map_err(|_| too_slow(context.request_timeout))?.map_err(|error| malformed(&error))?;
    let image = image(uploaded)?;
    let prediction = serving.engine.predict(image, deadline).await.map_err(|error| refusal(context, &error))?;
    Ok(respond(context, serving, &prediction, begun))
}

/// Lets a request in when there is a model to ask and memory for its body.
fn admit<'a>(context: &'a Context, headers: &HeaderMap) -> Result<(&'a Serving, OwnedSemaphorePermit), Problem> {
    let serving = context.life.serving().ok_or_else(|| not_loaded(&context.life))?;
    Ok((serving, room(context, headers)?))
}

/// Room for the body in memory. Without a length it may become as long as the longest.
fn room(context: &Context, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let units = declared.unwrap_or(context.max_upload_bytes).div_ceil(UPLOAD_UNIT);
    u32::try_from(units)
        .ok()
        .and_then(|units| Arc::clone(&context.uploads).try_acquire_many_owned(units).ok())
        .ok_or_else(|| {
            Problem::busy("The server holds as many uploads as it can; ask again in a second, or add replicas")
        })
}

/// A file of a form.
#[derive(Debug)]
struct Upload {
    content_type: Option<String>,
    content: Bytes,
}

/// The form's field `file`, if it has one. Reads the form to its end even after that: a client that still writes when
/// the connection closes sees a reset instead of the answer.
async fn upload(mut form: FormData) -> Result<Option<Upload>, warp::Error> {
    let mut found = None;
    while let Some(part) = form.try_next().await? {
        let wanted = found.is_none() && part.name() == FIELD;
        let content_type = part.content_type().map(str::to_owned);
        let mut content = BytesMut::new();
        let mut chunks = std::pin::pin!(part.stream());
        while let Some(mut chunk) = chunks.try_next().await? {
            if wanted {
                content.extend_from_slice(&chunk.copy_to_bytes(chunk.remaining()));
            }
        }
        if wanted {
            found = Some(Upload { content_type, content: content.freeze() });
        }
    }
    Ok(found)
}

/// The bytes of the upload, if it says that it is an image.
fn image(upload: Option<Upload>) -> Result<Bytes, Problem> {
    let upload = upload.ok_or_else(Problem::missing_file)?;
    check_content_type(upload.content_type.as_deref())?;
    Ok(upload.content)
}

/// Reads a form that is refused, for a while and without keeping it.
async fn discard(form: Option<FormData>) {
    let Some(mut form) = form else { return };
    let all = async {
        while let Ok(Some(part)) = form.try_next().await {
            drain(part).await;
        }
    };
    let _ = tokio::time::timeout(LINGER, all).await;
}

async fn drain(part: Part) {
    let mut chunks = std::pin::pin!(part.stream());
    while let Ok(Some(_)) = chunks.try_next().await {}
}

fn check_content_type(content_type: Option<&str>) -> Result<(), Problem> {
    match content_type {
        Some(given) if given.to_ascii_lowercase().starts_with("image/") => Ok(()),
        given => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!(
                "File must be an image: its content type is {:?}; send image/jpeg or image/png",
                given.unwrap_or("missing")
            ),
        )),
    }
}

fn malformed(error: &warp::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, format!("The form cannot be read: {error}"))
}

fn too_slow(limit: Duration) -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, format!("The upload took longer than {} s", limit.as_secs_f64()))
}

fn refusal(context: &Context, error: &PredictError) -> Problem {
    match error {
        PredictError::Undecodable(_) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
        PredictError::Busy | PredictError::Expired => Problem::busy(error.to_string()),
        PredictError::Failed(_) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        PredictError::NotFinite => {
            context.life.broken(error.to_string());
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        }
    }
}

fn respond(context: &Context, serving: &Serving, prediction: &Prediction, begun: Instant) -> Response {
    let classes = &serving.facts.classes;
    let word = classes.get(prediction.class).map_or("", String::as_str);
    context.metrics.predicted(word, prediction.confidence());
    let answer = Answer {
        prediction: word,
        confidence: prediction.confidence(),
        probabilities: classes.iter().map(String::as_str).zip(prediction.probabilities.iter().copied()).collect(),
        timestamp: timestamp(),
        processing_time_ms: begun.elapsed().as_secs_f64() * 1e3,
    };
    json_response(StatusCode::OK, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_are_taken() {
        for taken in ["image/png", "image/jpeg", "IMAGE/JPEG", "image/jpeg; q=1"] {
            assert_eq!(check_content_type(Some(taken)), Ok(()), "{taken}");
        }
        for refused in [None, Some("text/plain"), Some("application/octet-stream"), Some("imagepng"), Some("")] {
            let problem = check_content_type(refused).expect_err("no image");
            assert_eq!(problem.status, StatusCode::BAD_REQUEST, "{refused:?}");
        }
    }
}
