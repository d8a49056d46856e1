//! The Open Inference Protocol, version 2, as `KServe` and Triton speak it, with the extension for binary tensors.
//!
//! The model takes one of two inputs: `image`, uint8 [N, size, size, 3], which is normalised here, or `input`, float32
//! [N, 3, size, size], which is. It gives `probabilities` and `logits`, float32 [N, classes].

mod tensor;

use std::{sync::Arc, time::Instant};

use serde_json::json;
use warp::{
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    reply::{Reply as _, Response},
};

use super::{
    Context, predict,
    upload::{self, Body},
};
use crate::{
    answer::{Problem, json_response, not_loaded},
    engine::Answered,
    life::Serving,
    model::Facts,
};
use tensor::{Invalid, Request, Wanted};

/// Length of the JSON in front of binary tensors.
const HEAD: HeaderName = HeaderName::from_static("inference-header-content-length");

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::new(StatusCode::BAD_REQUEST, invalid.to_string())
    }
}

/// What a path below /v2 means.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Server,
    Live,
    Ready,
    Model(Named<'a>),
    ModelReady(Named<'a>),
    Infer(Named<'a>),
}

#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    model: &'a str,
    version: Option<&'a str>,
}

/// The path as the list of routes has it, so that metrics have few labels.
pub(super) fn known_path(path: &str) -> Option<&'static str> {
    Some(match asked(path)? {
        Asked::Server => "/v2",
        Asked::Live => "/v2/health/live",
        Asked::Ready => "/v2/health/ready",
        Asked::Model(_) => "/v2/models/{model}",
        Asked::ModelReady(_) => "/v2/models/{model}/ready",
        Asked::Infer(_) => "/v2/models/{model}/infer",
    })
}

fn asked(path: &str) -> Option<Asked<'_>> {
    let below = path.strip_prefix("/v2").filter(|below| below.is_empty() || below.starts_with('/'))?;
    let parts: Vec<&str> = below.split('/').skip(1).collect();
    let (names, rest) = match parts.as_slice() {
        [] => return Some(Asked::Server),
        ["health", "live"] => return Some(Asked::Live),
        ["health", "ready"] => return Some(Asked::Ready),
        ["models", model, "versions", version, rest @ ..] => (Named { model, version: Some(version) }, rest),
        ["models", model, rest @ ..] => (Named { model, version: None }, rest),
        _ => return None,
    };
    match rest {
        [] => Some(Asked::Model(names)),
        ["ready"] => Some(Asked::ModelReady(names)),
        ["infer"] => Some(Asked::Infer(names)),
        _ => None,
    }
}

pub(super) async fn answer(
    context: Arc<Context>,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some(asked) = asked(&path) else { return refuse(&Problem::new(StatusCode::NOT_FOUND, "Not Found")) };
    let result = match (asked, method) {
        (Asked::Infer(named), Method::POST) => infer(&context, &named, &headers, body).await,
        (asked, method) if matches!(asked, Asked::Infer(_)) || method != Method::GET => {
            Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        }
        (Asked::Server, _) => Ok(server()),
        (Asked::Live, _) => Ok(json_response(StatusCode::OK, &json!({"live": true}))),
        (Asked::Ready, _) => Ok(ready(&context, None)),
        (Asked::ModelReady(named), _) => {
            find(&context, &named).map(|serving| ready(&context, Some(&serving.facts.name)))
        }
        (Asked::Model(named) | Asked::Infer(named), _) => {
            find(&context, &named).map(|serving| metadata(&serving.facts))
        }
    };
    result.unwrap_or_else(|problem| refuse(&problem))
}

/// An error in the protocol's shape.
pub(super) fn refuse(problem: &Problem) -> Response {
    let text = problem.detail.as_str().map_or_else(|| problem.detail.to_string(), str::to_owned);
    let mut response = json_response(problem.status, &json!({ "error": text }));
    problem.say_how(response.headers_mut());
    response
}

fn server() -> Response {
    let about =
        json!({"name": "anneal-server", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]});
    json_response(StatusCode::OK, &about)
}

fn ready(context: &Context, name: Option<&str>) -> Response {
    let ready = context.life.unready().is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let answer = name.map_or_else(|| json!({"ready": ready}), |name| json!({"name": name, "ready": ready}));
    json_response(status, &answer)
}

/// The model by its name and version.
fn find<'a>(context: &'a Context, named: &Named<'_>) -> Result<&'a Serving, Problem> {
    let serving = context.life.serving().ok_or_else(|| not_loaded(&context.life))?;
    let Facts { name, .. } = &serving.facts;
    let version = version(&serving.facts);
    if named.model != name {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!("There is no model {:?}; this server has {name:?}", named.model),
        ));
    }
    match named.version {
        Some(other) if other != version => Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!(
                "There is no version {other:?}; {name:?} is served in version {version:?}, the checkpoint's SHA-256 in short"
            ),
        )),
        _ => Ok(serving),
    }
}

fn version(facts: &Facts) -> &str {
    facts.sha256.short(12)
}

fn metadata(facts: &Facts) -> Response {
    let (size, classes) = (facts.preprocessing.size, facts.classes.len());
    let about = json!({
        "name": facts.name,
        "versions": [version(facts)],
        "platform": "anneal_libtorch",
        "inputs": [
            {"name": "image", "datatype": "UINT8", "shape": [-1, size, size, 3], "optional": true},
            {"name": "input", "datatype": "FP32", "shape": [-1, 3, size, size], "optional": true},
        ],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
        ],
        "classes": facts.classes,
    });
    json_response(StatusCode::OK, &about)
}

async fn infer(context: &Context, named: &Named<'_>, headers: &HeaderMap, body: Body) -> Result<Response, Problem> {
    let (admitted, body) = upload::admit(context, headers, Instant::now(), body).await?;
    let bytes = admitted.bytes(body).await?;
    let serving = find(context, named)?;
    let head = match headers.get(&HEAD) {
        None => None,
        Some(length) => Some(length.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            tensor::invalid("Inference-Header-Content-Length is no number; send the length of the JSON in bytes")
        })?),
    };
    let Request { id, inputs, outputs } = tensor::read(&bytes, head, serving.facts.preprocessing.size)?;
    // The tensors are copies; nothing else needs the body.
    drop(bytes);
    let answers = predict::ask(context, serving, inputs, &admitted).await?;
    let mut response = respond(&serving.facts, id, &outputs, &answers);
    response.extensions_mut().insert(predict::said(serving, &answers));
    Ok(response)
}

fn respond(facts: &Facts, id: Option<String>, wanted: &[Wanted], answers: &[Answered]) -> Response {
    let mut outputs = Vec::new();
    let mut binary = Vec::new();
    for output in wanted {
        let rows = answers.iter().flat_map(|answer| match output.name {
            tensor::Output::Logits => answer.prediction.logits.clone(),
            tensor::Output::Probabilities => answer.prediction.rounded(),
        });
        let shape = [answers.len(), facts.classes.len()];
        let mut about = json!({"name": output.name.word(), "datatype": "FP32", "shape": shape});
        if output.binary {
            let bytes: Vec<u8> = rows.flat_map(f32::to_le_bytes).collect();
            about["parameters"] = json!({"binary_data_size": bytes.len()});
            binary.extend(bytes);
        } else {
            about["data"] = rows.collect::<Vec<f32>>().into();
        }
        outputs.push(about);
    }
    let mut answer = json!({"model_name": facts.name, "model_version": version(facts), "outputs": outputs});
    if let Some(id) = id {
        answer["id"] = id.into();
    }
    if binary.is_empty() {
        return json_response(StatusCode::OK, &answer);
    }
    let mut bytes = answer.to_string().into_bytes();
    let length = bytes.len();
    bytes.extend(binary);
    let mut response = bytes.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(HEAD, HeaderValue::from(length));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_protocol_has_a_bounded_label() {
        for (path, known) in [
            ("/v2", Some("/v2")),
            ("/v2/health/live", Some("/v2/health/live")),
            ("/v2/models/cats", Some("/v2/models/{model}")),
            ("/v2/models/cats/versions/1/ready", Some("/v2/models/{model}/ready")),
            ("/v2/models/cats/infer", Some("/v2/models/{model}/infer")),
            ("/v2/models", None),
            ("/v2/models/cats/explain", None),
            ("/v2x", None),
            ("/v2/", None),
        ] {
            assert_eq!(known_path(path), known, "{path}");
        }
    }
}
