//! The pages for people: GET /, /docs and /redoc. They load nothing from anywhere else.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};
use warp::{
    http::{HeaderValue, StatusCode, header},
    reply::Response,
};

use super::{ROUTES, Route};
use crate::{
    answer::{json_response, text_response},
    life::Life,
};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
code,pre{font:14px ui-monospace,monospace;background:#f4f4f4;border-radius:4px;padding:.1em .3em}pre{padding:1em;overflow:auto}\
dt{margin-top:1em}dd{margin:0 0 0 1.5em}";

/// Sends the chosen file and shows the answer.
const TRY: &str = r#"<h2>Try it</h2>
<form id="try"><input type="file" name="file" accept="image/*" required aria-label="Image"> <button>Classify</button></form>
<pre id="answer" hidden aria-live="polite"></pre>
<script>
document.getElementById("try").addEventListener("submit", async (event) => {
  event.preventDefault();
  const shown = document.getElementById("answer");
  shown.hidden = false;
  shown.textContent = "…";
  try {
    const response = await fetch("predict", {method: "POST", body: new FormData(event.target)});
    shown.textContent = response.status + " " + JSON.stringify(await response.json(), null, 2);
  } catch (error) {
    shown.textContent = String(error);
  }
});
</script>"#;

/// A page to drop a photo on.
const PAGE: &str = include_str!("page.html");

/// GET /: a page for browsers, and for everybody else the reference's fields.
pub(super) fn root(life: &Life, accept: Option<&str>) -> Response {
    let browser = accept.is_some_and(|accept| accept.contains("text/html"));
    let mut response = if browser { text_response("text/html; charset=utf-8", PAGE.to_owned()) } else { about(life) };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn about(life: &Life) -> Response {
    let endpoints: Map<String, Value> = ROUTES
        .iter()
        .filter(|route| route.path != "/")
        .map(|route| (route.path.trim_start_matches('/').replace('/', "_"), route.path.into()))
        .collect();
    let model = life.serving().map(|serving| {
        let facts = &serving.facts;
        json!({"type": facts.model_type, "classes": facts.classes, "input_size": facts.input_size(), "accuracy": facts.accuracy})
    });
    json_response(
        StatusCode::OK,
        &json!({
            "message": "Anneal inference server: POST an image to /predict as the multipart field `file`",
            "version": env!("CARGO_PKG_VERSION"),
            "status": "running",
            "endpoints": endpoints,
            "model_info": model,
        }),
    )
}

/// GET /docs: the interface, and a form to try it with.
pub(super) fn docs() -> Response {
    html(&format!("{}{TRY}", reference()))
}

/// GET /redoc: the interface.
pub(super) fn redoc() -> Response {
    html(&reference())
}

fn reference() -> String {
    let mut text = String::from(
        "<h1>Anneal inference server</h1><p>As an OpenAPI document: <a href=\"openapi.json\">openapi.json</a></p><dl>",
    );
    for Route { method, path, summary } in ROUTES {
        // Writing to a String cannot fail.
        let _ = write!(text, "<dt><code>{method} {path}</code></dt><dd>{summary}</dd>");
    }
    text.push_str("</dl><h2>Classify an image</h2><pre>curl -F file=@cat.jpg http://HOST/predict</pre>");
    text
}

fn html(content: &str) -> Response {
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<title>Anneal inference server</title><link rel=\"icon\" href=\"data:,\"><style>{STYLE}</style></head><body>{content}</body></html>"
    );
    text_response("text/html; charset=utf-8", page)
}
