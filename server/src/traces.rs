//! Traces: the W3C context of a request (<https://www.w3.org/TR/trace-context/>), and a span for each request to a collector
//! that speaks OTLP over HTTP, where the standard variables of OpenTelemetry name one.

use std::time::Duration;

use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use warp::http::{HeaderMap, Method, StatusCode};

use crate::engine::Answered;

/// Variables of which one must be set for spans to be sent.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Time for the last spans when the process ends.
const FLUSH: Duration = Duration::from_secs(3);

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// A request that is followed. Its span ends with it, also when the client goes away.
#[derive(Debug, Default)]
pub struct Followed {
    span: Option<Span>,
    trace_id: Option<String>,
}

/// What a route tells of the work for a request.
#[derive(Clone, Copy, Debug)]
pub struct Stages {
    queued: Duration,
    preparing: Duration,
    forward: Duration,
    batch: usize,
}

impl From<&Answered> for Stages {
    fn from(answered: &Answered) -> Self {
        let Answered { queued, preparing, forward, batch, .. } = *answered;
        Self { queued, preparing, forward, batch }
    }
}

impl Traces {
    /// Sends spans where `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` says; nothing where neither
    /// does. Must not be called from asynchronous code, since the exporter's client blocks.
    ///
    /// # Errors
    /// A sentence, when the variables make no sense.
    pub fn from_environment() -> Result<Option<Self>, String> {
        let named = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !ENDPOINTS.iter().any(named) {
            return Ok(None);
        }
        // The exporter's client asks the process which cryptography to use. Fails only where that is already known.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter =
            SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build().map_err(|error| {
                format!("traces cannot be sent: {error}; check the variables {}", ENDPOINTS.join(", "))
            })?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("anneal-server");
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        Ok(Some(Self { tracer: provider.tracer("anneal-server"), provider }))
    }

    /// Sends what is left. Blocks for some seconds at most.
    pub fn end(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }

    fn span(&self, parent: &Context, method: &Method, route: &'static str) -> Span {
        let attributes =
            [KeyValue::new("http.request.method", method.as_str().to_owned()), KeyValue::new("http.route", route)];
        let name = format!("{method} {route}");
        let builder = self.tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes);
        self.tracer.build_with_context(builder, parent)
    }
}

/// Begins to follow a request. Where spans are not sent it still knows the trace that the client named.
pub fn follow(traces: Option<&Traces>, headers: &HeaderMap, method: &Method, route: &'static str) -> Followed {
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers));
    let span = traces.map(|traces| traces.span(&parent, method, route));
    let parent = parent.span().span_context().clone();
    let context = span.as_ref().map_or(parent, |span| opentelemetry::trace::Span::span_context(span).clone());
    Followed { trace_id: id(&context), span }
}

fn id(context: &SpanContext) -> Option<String> {
    context.is_valid().then(|| context.trace_id().to_string())
}

impl Followed {
    /// The trace that the request is part of.
    pub fn trace_id(&self) -> Option<&str> {
        self.trace_id.as_deref()
    }

    /// Ends the span with what came of the request.
    pub fn end(&mut self, status: StatusCode, stages: Option<&Stages>) {
        use opentelemetry::trace::Span as _;
        let Some(mut span) = self.span.take() else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if let Some(stages) = stages {
            for (name, time) in [
                ("anneal.queue.seconds", stages.queued),
                ("anneal.prepare.seconds", stages.preparing),
                ("anneal.forward.seconds", stages.forward),
            ] {
                span.set_attribute(KeyValue::new(name, time.as_secs_f64()));
            }
            span.set_attribute(KeyValue::new("anneal.batch.size", i64::try_from(stages.batch).unwrap_or(i64::MAX)));
        }
        if status.is_server_error() {
            span.set_status(Status::error(status.to_string()));
        }
        span.end();
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(warp::http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    #[test]
    fn the_trace_of_the_client_is_known_where_it_is_well_formed() {
        let known = |value: &'static str| {
            let headers = HeaderMap::from_iter([(
                warp::http::HeaderName::from_static("traceparent"),
                HeaderValue::from_static(value),
            )]);
            follow(None, &headers, &Method::POST, "/predict").trace_id().map(str::to_owned)
        };
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(known("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").as_deref(), Some(id));
        for wrong in ["", "00-0-0-01", "00-00000000000000000000000000000000-b7ad6b7169203331-01", "noise"] {
            assert_eq!(known(wrong), None, "{wrong:?}");
        }
    }
}
