//! The operator's process where there is no cluster to talk to.
#![allow(clippy::expect_used, clippy::panic, reason = "this is how a test fails")]

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// An operator whose API server is at a port where nobody listens.
fn start(folder: &TempDir, health_address: &str) -> Child {
    let config = folder.path().join("kubeconfig");
    let text = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]}"#;
    std::fs::write(&config, text).expect("a file");
    Command::new(env!("CARGO_BIN_EXE_anneal-operator"))
        .args(["--trainer-image", "t", "--server-image", "s", "--health-address", health_address])
        .env("KUBECONFIG", config)
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("LOG_LEVEL")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs")
}

#[test]
fn an_operator_that_starts_while_the_api_server_is_away_waits_for_it_and_can_be_stopped() {
    let folder = TempDir::new().expect("a folder");
    let mut operator = start(&folder, "127.0.0.1:0");
    let lines = BufReader::new(operator.stderr.take().expect("its log")).lines().map_while(Result::ok);
    let tries = lines.filter(|line| line.contains("it is tried again")).take(3).count();
    assert_eq!(tries, 3, "it ended: {:?}", operator.try_wait());
    let status = Command::new("kill").arg(operator.id().to_string()).status().expect("kill runs");
    assert!(status.success());
    assert!(operator.wait().expect("a status").success());
}

#[test]
fn a_health_port_that_is_taken_ends_the_operator_at_once() {
    let folder = TempDir::new().expect("a folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let mut operator = start(&folder, &address);
    let mut log = BufReader::new(operator.stderr.take().expect("its log")).lines().map_while(Result::ok);
    assert!(log.any(|line| line.contains("the health port cannot be served")));
    assert!(!operator.wait().expect("a status").success());
}
