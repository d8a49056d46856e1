//! `kubectl anneal predict`: asks the pods of a deployment what is in photos, through the API server, as
//! `kubectl port-forward` does: no Service need be reachable from here.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anneal_api::{
    names::{REVISION_HEADER, SERVER_PORT, label},
    resources::ModelDeployment,
    termination::cut,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::Cluster,
    options::{Output, PredictOptions},
    output,
    paint::{Paint, table},
    pods::is_ready,
    problem::Problem,
};

/// Time that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest answer that is read.
const MAX_ANSWER: usize = 1024 * 1024;
/// Separates the parts of the form. Long and odd enough not to occur in an image.
const BOUNDARY: &str = "anneal-2f9d6c81e4b7053a-boundary";

/// The fields of a prediction that every server gives.
#[derive(Clone, Debug, Deserialize)]
struct Predicted {
    prediction: String,
    confidence: f64,
    probabilities: BTreeMap<String, f64>,
}

/// What became of a file.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    prediction: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probabilities: Option<BTreeMap<String, f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Asks about every file, prints a table, and gives 1 when one has no prediction.
///
/// # Errors
/// [`Problem`] when there is nobody to ask.
pub async fn run(cluster: &Cluster, options: &PredictOptions) -> Result<ExitCode, Problem> {
    let deployment = cluster.deployment(&options.deployment.target).await?;
    let revision = revision(&deployment, options)?;
    let name = deployment.name_any();
    let labels = format!("{}={name},{}={revision}", label::DEPLOYMENT, label::REVISION);
    let pods: Vec<String> = cluster
        .list::<Pod>(&labels)
        .await?
        .iter()
        .filter(|pod| is_ready(pod))
        .map(kube::ResourceExt::name_any)
        .collect();
    if pods.is_empty() {
        return Err(Problem::Pointless(format!(
            "no pod of revision {revision} is ready; `kubectl anneal diagnose mdep/{name}` says why"
        )));
    }
    let mut lines = Vec::new();
    // One after another, over all pods in turn.
    for (file, pod) in options.files.iter().zip(pods.iter().cycle()) {
        lines.push(line(cluster, file, pod).await?);
    }
    match options.output {
        Output::Json => output::json(&lines)?,
        Output::Text => {
            output::lines(&shown(&lines, Paint::of_stdout()));
            lines
                .iter()
                .filter_map(|line| Some(format!("{}: {}", line.file, line.error.as_ref()?)))
                .for_each(|it| output::note(&it));
        }
    }
    Ok(ExitCode::from(u8::from(lines.iter().any(|line| line.error.is_some()))))
}

/// The revision to ask.
fn revision(deployment: &ModelDeployment, options: &PredictOptions) -> Result<String, Problem> {
    let name = deployment.name_any();
    let status = deployment.status.clone().unwrap_or_default();
    if let Some(revision) = &options.revision {
        return Ok(revision.clone());
    }
    if options.candidate {
        return status.candidate_revision.ok_or_else(|| {
            Problem::Pointless(format!(
                "mdep/{name} has no candidate; without --candidate the revision that serves is asked"
            ))
        });
    }
    status.stable_revision.ok_or_else(|| {
        Problem::Pointless(format!(
            "no revision of mdep/{name} serves yet; `kubectl anneal status mdep/{name} --watch` shows how far it is, and --candidate asks the one on its way"
        ))
    })
}

async fn line(cluster: &Cluster, file: &Path, pod: &str) -> Result<Line, Problem> {
    let mut line = Line {
        file: file.display().to_string(),
        prediction: None,
        confidence: None,
        probabilities: None,
        milliseconds: None,
        revision: None,
        pod: pod.to_owned(),
        error: None,
    };
    let image = match read(file) {
        Ok(image) => image,
        Err(error) => {
            line.error = Some(format!("the file cannot be read: {error}"));
            return Ok(line);
        }
    };
    let api = cluster.api::<Pod>();
    let mut forward = cluster.answer(api.portforward(pod, &[SERVER_PORT])).await?;
    let Some(stream) = forward.take_stream(SERVER_PORT) else {
        return Err(Problem::Refused(format!("port {SERVER_PORT} of pod {pod} was not forwarded")));
    };
    let begun = Instant::now();
    let answer = tokio::time::timeout(TIMEOUT, ask(TokioIo::new(stream), &image)).await;
    let took = begun.elapsed();
    forward.abort();
    match answer.unwrap_or_else(|_| Err(format!("pod {pod} gave no answer within {} s", TIMEOUT.as_secs()))) {
        Ok((predicted, revision)) => {
            line.prediction = Some(predicted.prediction);
            line.confidence = Some(predicted.confidence);
            line.probabilities = Some(predicted.probabilities);
            line.milliseconds = Some((took.as_secs_f64() * 1e4).round() / 10.0);
            line.revision = revision;
        }
        Err(error) => line.error = Some(error),
    }
    Ok(line)
}

/// The prediction, and the revision that says it gave it.
async fn ask<S>(stream: S, image: &[u8]) -> Result<(Predicted, Option<String>), String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| format!("the connection broke off: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::post("/predict")
        .header(header::HOST, "anneal")
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(Full::new(form(image)))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(broken)?;
    let (head, body) = response.into_parts();
    let body =
        Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| format!("the answer broke off: {error}"))?;
    let revision = head.headers.get(REVISION_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    predicted(head.status, &body.to_bytes()).map(|predicted| (predicted, revision))
}

/// The prediction in an answer, or a sentence about the answer that came instead.
fn predicted(status: StatusCode, body: &[u8]) -> Result<Predicted, String> {
    if status == StatusCode::OK {
        return serde_json::from_slice(body).map_err(|error| format!("the answer is no prediction: {error}"));
    }
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let detail = json.and_then(|json| json.get("detail")?.as_str().map(str::to_owned));
    let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    Err(format!("the answer is {status} ({})", cut(detail.trim(), 200)))
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file);
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The form with the image as its only field.
fn form(image: &[u8]) -> Bytes {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"image\"\r\nContent-Type: {}\r\n\r\n",
        content_type(image)
    );
    [head.as_bytes(), image, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat().into()
}

/// The content type that the first bytes tell; a server refuses what does not call itself an image.
fn content_type(image: &[u8]) -> &'static str {
    match image {
        [0xff, 0xd8, ..] => "image/jpeg",
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'B', b'M', ..] => "image/bmp",
        _ => "application/octet-stream",
    }
}

fn shown(lines: &[Line], paint: Paint) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |line: &Line| {
        [
            line.file.clone(),
            paint.bold(&or_none(line.prediction.clone())),
            or_none(line.confidence.map(|confidence| format!("{confidence:.4}"))),
            or_none(line.milliseconds.map(|milliseconds| format!("{milliseconds:.1}"))),
            or_none(line.revision.clone()),
        ]
    };
    let rows: Vec<_> = lines.iter().map(row).collect();
    table(paint, ["FILE", "PREDICTION", "CONFIDENCE", "MS", "REVISION"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_states_the_content_type_that_the_bytes_have() {
        for (bytes, kind) in [
            (&b"\xff\xd8\xff\xe0"[..], "image/jpeg"),
            (b"\x89PNG\r\n", "image/png"),
            (b"RIFF\x01\x02\x03\x04WEBPVP8 ", "image/webp"),
            (b"GIF89a", "image/gif"),
            (b"BM6", "image/bmp"),
            (b"text", "application/octet-stream"),
        ] {
            assert!(String::from_utf8_lossy(&form(bytes)).contains(&format!("Content-Type: {kind}\r\n")), "{kind}");
        }
    }

    #[test]
    fn an_answer_is_a_prediction_or_a_sentence() {
        let answer =
            br#"{"prediction": "cat", "confidence": 0.9, "probabilities": {"cat": 0.9, "dog": 0.1}, "more": 1}"#;
        assert_eq!(predicted(StatusCode::OK, answer).expect("a prediction").prediction, "cat");
        let refused =
            predicted(StatusCode::UNPROCESSABLE_ENTITY, br#"{"detail": "no image"}"#).expect_err("a sentence");
        assert_eq!(refused, "the answer is 422 Unprocessable Entity (no image)");
    }

    #[tokio::test]
    async fn a_server_is_asked_as_a_browser_would_ask_it() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let server = tokio::spawn(async move {
            let mut request = vec![0; 64 * 1024];
            let mut length = 0;
            while !request[..length].ends_with(b"--\r\n") {
                length += theirs.read(&mut request[length..]).await.expect("a request");
            }
            let body = r#"{"prediction": "cat", "confidence": 1.0, "probabilities": {}}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nx-anneal-revision: 4be36a0c\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            theirs.write_all(answer.as_bytes()).await.expect("an answer");
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let (predicted, revision) = ask(TokioIo::new(ours), b"GIF89a").await.expect("a prediction");
        assert_eq!((predicted.prediction.as_str(), revision.as_deref()), ("cat", Some("4be36a0c")));
        assert!(server.await.expect("the request").starts_with("POST /predict HTTP/1.1\r\n"));
    }
}
