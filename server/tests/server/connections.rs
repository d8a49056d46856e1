//! How long a connection lives.

use std::time::{Duration, Instant};

use crate::{
    process::{Server, dogs, eventually, picture},
    wire::{Connection, get, predict},
};

#[test]
fn a_connection_is_kept_until_its_age_and_then_closed_with_an_answer() {
    let server = Server::ready(dogs(), |command| {
        command.args(["--max-connection-age", "300ms"]);
    });
    let mut connection = Connection::open(server.port);
    let opened = Instant::now();
    let mut answers = 0;
    eventually("an answer says that it is the last", || {
        connection.send(&get("/livez"));
        let answer = connection.receive();
        assert_eq!(answer.status, 200);
        answers += 1;
        (answer.header("connection") == Some("close")).then_some(())
    });
    assert!(opened.elapsed() >= Duration::from_millis(290), "closed after {:?}", opened.elapsed());
    assert!(answers > 1, "the connection was not kept");
    assert!(connection.is_closed());
}

#[test]
fn an_upload_that_breaks_off_is_over() {
    let server = Server::ready(dogs(), |_| {});
    let request = predict("image/png", &picture());
    let mut connection = Connection::open(server.port);
    connection.send(&request[..request.len() / 2]);
    let active = |count: u8| server.ask(&get("/metrics")).text().contains(&format!("\nactive_requests {count}\n"));
    // The scrape itself is one of them.
    eventually("the upload is active", || active(2).then_some(()));
    drop(connection);
    eventually("the upload is over", || active(1).then_some(()));
}
