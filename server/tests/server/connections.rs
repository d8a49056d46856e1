//! How long a connection lives.

use std::time::{Duration, Instant};

use crate::{
    process::{Server, dogs, eventually},
    wire::{Connection, get},
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
