//! What the server answers, as warp filters. Everything that is the same for all routes is in [`crate::frame`].

mod answers;
mod feedback;
mod model_info;
mod openapi;
mod pages;
mod predict;
mod probes;
#[cfg(test)]
mod tests;
mod upload;
mod v2;

use std::{convert::Infallible, sync::Arc, time::Duration};

use anneal_api::shadow;
use tokio::sync::Semaphore;
use warp::{
    Filter, Rejection,
    filters::BoxedFilter,
    http::{Method, StatusCode},
    reject::MethodNotAllowed,
    reply::Response,
};

use crate::{
    answer::{Problem, text_response},
    life::Life,
    metrics::{self, Metrics},
};

/// Bytes that one permit of [`Context::uploads`] stands for.
pub const UPLOAD_UNIT: u64 = 1024;

/// What the routes need to know.
#[derive(Clone, Debug)]
pub struct Context {
    /// The server's life and its model.
    pub life: Life,
    /// The process' metrics.
    pub metrics: Metrics,
    /// Room for request bodies, in units of [`UPLOAD_UNIT`].
    pub uploads: Arc<Semaphore>,
    /// Largest body of a request.
    pub max_upload_bytes: u64,
    /// Time within which a request must be uploaded and answered.
    pub request_timeout: Duration,
}

/// A route that the server knows.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// One line about it.
    pub summary: &'static str,
}

const fn post(path: &'static str, summary: &'static str) -> Route {
    Route { method: "POST", path, summary }
}

const fn get(path: &'static str, summary: &'static str) -> Route {
    Route { method: "GET", path, summary }
}

/// Every route. Metrics, the pages and the OpenAPI document are made from this list.
pub const ROUTES: [Route; 19] = [
    get("/", "What this server is and where to go on"),
    get("/health", "Whether predictions can be had"),
    post("/predict", "Classify an image, or several"),
    post("/feedback", "Say what the true class of an image was"),
    get("/model/info", "What is known about the model"),
    get("/metrics", "Metrics in Prometheus' text format"),
    get(shadow::PATH, "Digests of the newest answers, to be compared with those of another revision"),
    get("/docs", "This interface, to read and to try"),
    get("/redoc", "This interface, to read"),
    get("/openapi.json", "This interface as an OpenAPI document"),
    get("/livez", "Whether the process is alive"),
    get("/readyz", "Whether the server should get traffic"),
    get("/healthz", "The same as /livez"),
    get("/v2", "Open Inference Protocol: the server"),
    get("/v2/health/live", "Open Inference Protocol: whether the process is alive"),
    get("/v2/health/ready", "Open Inference Protocol: whether the server should get traffic"),
    get("/v2/models/{model}", "Open Inference Protocol: the model's inputs and outputs"),
    get("/v2/models/{model}/ready", "Open Inference Protocol: whether the model can be asked"),
    post("/v2/models/{model}/infer", "Open Inference Protocol: ask the model with tensors"),
];

/// The path as the list has it, if it is in the list.
pub fn known_path(path: &str) -> Option<&'static str> {
    ROUTES.iter().map(|route| route.path).find(|known| *known == path).or_else(|| v2::known_path(path))
}

/// Whether the path is one that probes, scrapers and the operator ask every few seconds.
pub fn is_probe(path: &str) -> bool {
    matches!(
        path,
        "/livez"
            | "/readyz"
            | "/healthz"
            | "/health"
            | "/metrics"
            | shadow::PATH
            | "/v2/health/live"
            | "/v2/health/ready"
    )
}

/// Whether a request to this route, as the list has it, is a question to the model.
pub fn predicts(method: &Method, route: &str) -> bool {
    *method == Method::POST && matches!(route, "/predict" | "/v2/models/{model}/infer")
}

/// A refusal in the words of whoever speaks on this path.
pub fn refusal(path: &str, problem: &Problem) -> Response {
    let below = path.strip_prefix("/v2").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if below { v2::refuse(problem) } else { problem.response() }
}

/// All routes; every request gets an answer.
pub fn all(context: Context) -> BoxedFilter<(Response,)> {
    let context = Arc::new(context);
    let with = {
        let context = Arc::clone(&context);
        warp::any().map(move || Arc::clone(&context))
    };
    let at = |path: &'static str| exactly(path).and(warp::get()).boxed();

    let root = at("/")
        .and(with.clone())
        .and(warp::header::optional("accept"))
        .map(|c: Arc<Context>, accept: Option<String>| pages::root(&c.life, accept.as_deref()));
    let health = at("/health").and(with.clone()).map(|c: Arc<Context>| probes::health(&c.life));
    let live = at("/livez").or(at("/healthz")).unify().map(probes::live);
    let ready = at("/readyz").and(with.clone()).map(|c: Arc<Context>| probes::ready(&c.life));
    let info = at("/model/info").and(with.clone()).map(|c: Arc<Context>| model_info::answer(&c.life));
    let metrics = at("/metrics").and(with.clone()).map(|c: Arc<Context>| scrape(&c));
    let answers = at(shadow::PATH).and(with.clone()).map(|c: Arc<Context>| answers::list(&c.life));
    let docs = at("/docs").map(pages::docs);
    let redoc = at("/redoc").map(pages::redoc);
    let openapi = at("/openapi.json").map(openapi::answer);

    let predict = exactly("/predict")
        .and(warp::post())
        .and(with.clone())
        .and(warp::header::headers_cloned())
        .and(upload::body())
        .then(predict::answer);
    let feedback = exactly("/feedback").and(warp::post()).and(with.clone()).and(upload::body()).then(feedback::answer);
    let v2 = warp::path("v2")
        .and(with)
        .and(warp::method())
        .and(warp::path::full().map(|path: warp::path::FullPath| path.as_str().to_owned()))
        .and(warp::header::headers_cloned())
        .and(upload::body())
        .then(v2::answer);

    let fixed = root.or(health).unify().or(live).unify().or(ready).unify().or(info).unify().or(metrics).unify().boxed();
    let pages = docs.or(redoc).unify().or(openapi).unify().or(answers).unify().boxed();
    let asking = predict.boxed().or(feedback.boxed()).unify().or(v2.boxed()).unify().boxed();
    asking.or(fixed).unify().or(pages).unify().recover(refuse).unify().boxed()
}

/// Matches this path and no other.
fn exactly(path: &'static str) -> BoxedFilter<()> {
    warp::path::full()
        .and_then(move |full: warp::path::FullPath| async move {
            if full.as_str() == path { Ok(()) } else { Err(warp::reject::not_found()) }
        })
        .untuple_one()
        .boxed()
}

fn scrape(context: &Context) -> Response {
    let serving = context.life.serving();
    let queued = serving.map_or(0, |serving| serving.engine.queued());
    if let Some(serving) = serving {
        context.metrics.newest_feedback(&serving.feedback.newest());
        if let Some(drift) = &serving.drift {
            context.metrics.newest_predictions(&serving.facts.classes, &drift.newest());
        }
    }
    match context.metrics.text(queued) {
        Ok(text) => text_response(metrics::CONTENT_TYPE, text),
        Err(error) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("The metrics cannot be written: {error}"))
                .response()
        }
    }
}

/// The answer to what no route took.
async fn refuse(rejection: Rejection) -> Result<Response, Infallible> {
    let problem = if rejection.find::<MethodNotAllowed>().is_some() {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
    } else if rejection.is_not_found() {
        Problem::new(StatusCode::NOT_FOUND, "Not Found")
    } else {
        Problem::new(StatusCode::BAD_REQUEST, format!("The request cannot be understood: {rejection:?}"))
    };
    Ok(problem.response())
}
