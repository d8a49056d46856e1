//! Spans, as a collector receives them.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;

use crate::{
    process::{Server, dogs, picture},
    wire::request,
};

/// Takes what exporters send, as a collector does, and hands on the spans.
fn collector() -> (String, Receiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let (sender, spans) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|read| read > 2) {}
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).expect("the whole body");
            assert!(head.starts_with("POST /v1/traces "), "{head}");
            let sent = ExportTraceServiceRequest::decode(&*body).expect("the protocol");
            let all = sent.resource_spans.into_iter().flat_map(|one| one.scope_spans).flat_map(|one| one.spans);
            all.for_each(|span| drop(sender.send(span)));
            let _ = reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (url, spans)
}

fn attribute(span: &Span, name: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
}

#[test]
fn a_request_is_a_span_of_its_clients_trace_and_the_last_ones_are_sent_at_the_end() {
    let (url, spans) = collector();
    let mut server = Server::ready(dogs(), |command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url);
    });
    let headers = "Content-Type: image/png\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n";
    assert_eq!(server.ask(&request("POST", "/predict", headers, &picture())).status, 200);
    server.signal("TERM");
    assert!(server.ended().success());

    let prediction = std::iter::from_fn(|| spans.recv_timeout(Duration::from_secs(10)).ok())
        .find(|span| span.name == "POST /predict")
        .expect("a span of the prediction");
    assert_eq!(prediction.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(prediction.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(attribute(&prediction, "http.response.status_code"), Some(Value::IntValue(200)));
    assert_eq!(attribute(&prediction, "anneal.batch.size"), Some(Value::IntValue(1)));
    let forward = attribute(&prediction, "anneal.forward.seconds");
    assert!(matches!(forward, Some(Value::DoubleValue(seconds)) if seconds > 0.0), "{forward:?}");
}

#[test]
fn a_collector_that_is_not_there_costs_nothing() {
    let mut server = Server::ready(dogs(), |command| {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    });
    let answer = server.ask(&request("POST", "/predict", "Content-Type: image/png\r\n", &picture()));
    assert_eq!(answer.status, 200);
    server.signal("TERM");
    assert!(server.ended().success());
}
