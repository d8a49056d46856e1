//! What a server does when it is told to stop.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    process::{Server, dogs, eventually, picture},
    wire::{Connection, get, predict},
};

#[test]
fn a_request_under_way_is_answered_before_the_server_ends() {
    // Only a second signal ends a delay this long.
    let mut server = Server::ready(dogs(), |command| {
        command.args(["--shutdown-delay", "10m"]);
    });
    let request = predict("image/png", &picture());
    let (first, second) = request.split_at(request.len() / 2);
    let mut under_way = Connection::open(server.port);
    under_way.send(first);
    // The scrape itself is one of the two.
    eventually("the request is active", || {
        server.ask(&get("/metrics")).text().contains("\nactive_requests 2\n").then_some(())
    });

    server.signal("TERM");
    until_unready(&server);
    let late = server.ask(&predict("image/png", &picture()));
    assert_eq!(
        (late.status, late.header("connection")),
        (200, Some("close")),
        "requests are taken while endpoints move"
    );

    server.signal("TERM");
    eventually("the server accepts no more", || TcpStream::connect(("127.0.0.1", server.port)).is_err().then_some(()));
    under_way.send(second);
    let answer = under_way.receive();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{}", answer.text());
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn who_is_sent_to_a_server_that_stops_after_its_delay_is_answered_until_nobody_comes() {
    let mut server = Server::ready(dogs(), |command| {
        command.args(["--shutdown-delay", "10s", "--drain-timeout", "10m"]);
    });
    let request = predict("image/png", &picture());
    server.signal("TERM");
    let told = Instant::now();
    until_unready(&server);
    while told.elapsed() < Duration::from_secs(12) {
        let answer = server.ask(&request);
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{:?}", told.elapsed());
    }
    // Probes and scrapes are no clients.
    // Probes and scrapes are no clients: they would hold it for minutes.
    until_closed(&server, &get("/readyz"));
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn clients_that_never_learn_do_not_hold_the_server() {
    let mut server = Server::ready(dogs(), |command| {
        command.args(["--shutdown-delay", "500ms", "--drain-timeout", "2s"]);
    });
    let request = predict("image/png", &picture());
    server.signal("TERM");
    until_closed(&server, &request);
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn a_request_that_never_ends_does_not_hold_the_server() {
    let mut server = Server::ready(dogs(), |command| {
        command.args(["--drain-timeout", "100ms"]);
    });
    let request = predict("image/png", &picture());
    let mut stuck = Connection::open(server.port);
    stuck.send(&request[..request.len() / 2]);
    eventually("the request is active", || {
        server.ask(&get("/metrics")).text().contains("\nactive_requests 2\n").then_some(())
    });
    server.signal("INT");
    assert_eq!(server.ended().code(), Some(0));
    assert!(stuck.is_closed());
}

#[test]
fn an_idle_connection_does_not_hold_the_server() {
    let mut server = Server::ready(dogs(), |_| {});
    let mut idle = Connection::open(server.port);
    idle.send(&get("/livez"));
    assert_eq!(idle.receive().status, 200);
    server.signal("TERM");
    assert!(idle.is_closed());
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn whoever_waited_at_the_door_is_answered_when_the_server_ends() {
    let mut server = Server::ready(dogs(), |command| {
        command.args(["--max-connections", "1", "--shutdown-delay", "0s"]);
    });
    let request = predict("image/png", &picture());
    let (first, second) = request.split_at(request.len() / 2);
    let mut inside = Connection::open(server.port);
    inside.send(first);
    // As many as the kernel keeps waiting, nearly.
    let mut outside: Vec<Connection> = (0..100)
        .map(|_| {
            let mut connection = Connection::open(server.port);
            connection.send(&get("/livez"));
            connection
        })
        .collect();
    server.signal("TERM");
    for (number, connection) in outside.iter_mut().enumerate() {
        assert_eq!(connection.receive().status, 200, "connection {number}");
    }
    inside.send(second);
    assert_eq!(inside.receive().status, 200);
    assert_eq!(server.ended().code(), Some(0));
}

/// Waits until the server has heard that it is to stop.
fn until_unready(server: &Server) {
    eventually("the server is not ready any more", || (server.ask(&get("/readyz")).status == 503).then_some(()));
}

/// Asks again and again until nobody listens any more. What is on its way just then may get no answer.
fn until_closed(server: &Server, request: &[u8]) {
    eventually("the server accepts no more", || {
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", server.port)) else { return Some(()) };
        let _ = connection.write_all(request);
        let _ = connection.read_to_end(&mut Vec::new());
        None
    });
}
