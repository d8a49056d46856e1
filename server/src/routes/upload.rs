//! From a request to the images in it: who is let in, for how long, and what is read.

mod form;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tokio::sync::OwnedSemaphorePermit;
use warp::{
    Filter,
    filters::BoxedFilter,
    http::{HeaderMap, StatusCode, header},
    multipart::FormData,
};

use self::form::{all, take};
use super::{Context, UPLOAD_UNIT};
use crate::{
    answer::{Problem, not_loaded},
    body::LINGER,
    life::Serving,
};

pub(super) use self::form::{File, MAX_FILES};

/// How long the client will wait: seconds such as `2.5`, or `500ms`.
pub(super) const TIMEOUT: &str = "x-request-timeout";

/// A request's body before it is read.
pub(super) enum Body {
    Form(FormData),
    Raw(BoxStream<'static, Result<Bytes, warp::Error>>),
}

/// What a request that was let in holds on to.
pub(super) struct Admitted<'a> {
    pub(super) serving: &'a Serving,
    pub(super) deadline: Instant,
    limit: Duration,
    pub(super) room: Arc<OwnedSemaphorePermit>,
}

/// The request's body: a form, or whatever else it is.
pub(super) fn body() -> BoxedFilter<(Body,)> {
    // warp's own limit demands a Content-Length, which a streaming client does not send: crate::body caps the body.
    let form = warp::multipart::form().max_length(None).map(Body::Form);
    let raw = warp::body::stream().map(raw);
    form.or(raw).unify().boxed()
}

fn raw<S, B>(stream: S) -> Body
where
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
    B: Buf,
{
    Body::Raw(stream.map_ok(|mut chunk| take(&mut chunk)).boxed())
}

/// Lets a request in when there is a model to ask, time to ask it and memory for its body. The body of one that is refused
/// is read for a while: a client that still writes when the connection closes sees a reset instead of the answer.
pub(super) async fn admit<'a>(
    context: &'a Context,
    headers: &HeaderMap,
    begun: Instant,
    body: Body,
) -> Result<(Admitted<'a>, Body), Problem> {
    match admitted(context, headers, begun) {
        Ok(admitted) => Ok((admitted, body)),
        Err(problem) => {
            discard(body).await;
            Err(problem)
        }
    }
}

fn admitted<'a>(context: &'a Context, headers: &HeaderMap, begun: Instant) -> Result<Admitted<'a>, Problem> {
    let serving = context.life.serving().ok_or_else(|| not_loaded(&context.life))?;
    let limit = time_limit(headers, context.request_timeout)?;
    let deadline = begun + limit;
    serving.engine.admits(deadline).map_err(|error| super::predict::refusal(context, &error))?;
    Ok(Admitted { serving, deadline, limit, room: Arc::new(room(context, headers)?) })
}

/// The time that the client gives, at most the server's.
fn time_limit(headers: &HeaderMap, most: Duration) -> Result<Duration, Problem> {
    let Some(given) = headers.get(TIMEOUT) else { return Ok(most) };
    let text = given.to_str().unwrap_or_default().trim();
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let spelt = || text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    seconds.or_else(spelt).map(|limit| limit.min(most)).ok_or_else(|| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("X-Request-Timeout {text:?} is no time; send seconds such as 2.5, or 500ms"),
        )
    })
}

/// Room for the body in memory. Without a length it may become as long as the longest.
fn room(context: &Context, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let units = declared.unwrap_or(context.max_upload_bytes).div_ceil(UPLOAD_UNIT);
    let permit =
        u32::try_from(units).ok().and_then(|units| Arc::clone(&context.uploads).try_acquire_many_owned(units).ok());
    permit.ok_or_else(|| {
        context.metrics.refused("memory");
        Problem::busy("The server holds as many uploads as it can; ask again in a second, or add replicas")
    })
}

impl Admitted<'_> {
    /// The images of the request, at least one.
    pub(super) async fn files(&self, headers: &HeaderMap, body: Body) -> Result<Vec<File>, Problem> {
        let read = async {
            match body {
                Body::Form(form) => form::files(form).await,
                Body::Raw(stream) => {
                    let content = all(stream).await?;
                    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                    Ok(match content_type {
                        Some(given) if is_image(given) => {
                            vec![(content_type.map(str::to_owned), File { name: None, content })]
                        }
                        _ => Vec::new(),
                    })
                }
            }
        };
        let files = self.in_time(read).await?;
        if files.len() > MAX_FILES {
            let detail = format!("The form has {} files; send at most {MAX_FILES} at a time", files.len());
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        if files.is_empty() {
            return Err(Problem::missing_file());
        }
        files
            .into_iter()
            .map(|(content_type, file)| check_content_type(content_type.as_deref()).map(|()| file))
            .collect()
    }

    /// The whole body.
    pub(super) async fn bytes(&self, body: Body) -> Result<Bytes, Problem> {
        match body {
            Body::Raw(stream) => self.in_time(all(stream)).await,
            form @ Body::Form(_) => {
                discard(form).await;
                Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Send JSON, not a form"))
            }
        }
    }

    async fn in_time<T>(&self, read: impl Future<Output = Result<T, warp::Error>>) -> Result<T, Problem> {
        match tokio::time::timeout_at(self.deadline.into(), read).await {
            Ok(read) => read.map_err(|error| malformed(&error)),
            Err(_) => Err(slow(self.limit)),
        }
    }
}

/// The whole of a body that is to be short, within this time.
pub(super) async fn short(body: Body, most: usize, limit: Duration) -> Result<Vec<u8>, Problem> {
    let Body::Raw(mut stream) = body else {
        discard(body).await;
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Send JSON, not a form"));
    };
    let read = async {
        let mut content = Vec::new();
        while let Some(chunk) = stream.try_next().await.map_err(|error| malformed(&error))? {
            if content.len() + chunk.len() > most {
                return Err(Problem::too_large(most as u64));
            }
            content.extend_from_slice(&chunk);
        }
        Ok(content)
    };
    let read = tokio::time::timeout(limit, read).await.unwrap_or_else(|_| Err(slow(limit)));
    if read.as_ref().is_err_and(|problem| problem.status == StatusCode::PAYLOAD_TOO_LARGE) {
        discard(Body::Raw(stream)).await;
    }
    read
}

fn slow(limit: Duration) -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, format!("The upload took longer than {} s", limit.as_secs_f64()))
}

/// Reads a body that is refused, for a while and without keeping it.
async fn discard(body: Body) {
    let all = async {
        match body {
            Body::Form(mut form) => {
                while let Ok(Some(part)) = form.try_next().await {
                    form::drain(part).await;
                }
            }
            Body::Raw(mut stream) => while let Ok(Some(_)) = stream.try_next().await {},
        }
    };
    let _ = tokio::time::timeout(LINGER, all).await;
}

fn is_image(content_type: &str) -> bool {
    content_type.to_ascii_lowercase().starts_with("image/")
}

fn check_content_type(content_type: Option<&str>) -> Result<(), Problem> {
    match content_type {
        Some(given) if is_image(given) => Ok(()),
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
    Problem::new(StatusCode::BAD_REQUEST, format!("The body cannot be read: {error}"))
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

    #[test]
    fn a_client_may_ask_for_less_time_but_not_for_more() {
        let limit = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, warp::http::HeaderValue::from_static(text));
            time_limit(&headers, Duration::from_secs(30)).map_err(|problem| problem.status)
        };
        assert_eq!(limit("2.5"), Ok(Duration::from_millis(2500)));
        assert_eq!(limit("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(limit("3600"), Ok(Duration::from_secs(30)));
        for wrong in ["", "-1", "soon", "NaN", "1e400"] {
            assert_eq!(limit(wrong), Err(StatusCode::BAD_REQUEST), "{wrong}");
        }
        assert_eq!(time_limit(&HeaderMap::new(), Duration::from_secs(30)), Ok(Duration::from_secs(30)));
    }
}
