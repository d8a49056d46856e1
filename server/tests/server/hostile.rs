//! Uploads and connections that mean no good: each is refused or closed, and the server stays well for everybody else.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    process::{Server, dogs, picture},
    wire::{get, predict, request},
};

/// A JPEG of a radial gradient, 24 x 16.
const JPEG: &str = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAQABgDASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABgAF/8QAHRAAAQQCAwAAAAAAAAAAAAAAAAECAwUSIhMWIf/EABQBAQAAAAAAAAAAAAAAAAAAAAD/xAAUEQEAAAAAAAAAAAAAAAAAAAAA/9oADAMBAAIRAxEAPwDTuLiSNXbKGuyu58M/RJcU8kiu1UNdadz54egJae4kkVuykVPTyRq3VSA//9k=";

fn jpeg() -> Vec<u8> {
    STANDARD.decode(JPEG).expect("base64")
}

/// A small picture that says it has this many pixels, in each format.
fn bombs(width: u16, height: u16) -> Vec<(&'static str, Vec<u8>)> {
    let mut png = picture();
    png[16..20].copy_from_slice(&u32::from(width).to_be_bytes());
    png[20..24].copy_from_slice(&u32::from(height).to_be_bytes());
    let checksum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());

    let mut jpeg = jpeg();
    let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).expect("a frame");
    jpeg[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());

    let gif = [
        b"GIF89a".as_slice(),
        &width.to_le_bytes(),
        &height.to_le_bytes(),
        &[0x80, 0, 0, 0, 0, 0, 255, 255, 255, 0x2C, 0, 0, 0, 0],
        &width.to_le_bytes(),
        &height.to_le_bytes(),
        &[0, 2, 2, 0x4C, 1, 0, 0x3B],
    ]
    .concat();
    let mut bmp = b"BM".to_vec();
    for number in [54 + 4, 0, 54, 40, u32::from(width), u32::from(height), 1 | 24 << 16, 0, 4, 0, 0, 0, 0, 0] {
        bmp.extend(number.to_le_bytes());
    }
    vec![("PNG", png), ("JPEG", jpeg), ("GIF", gif), ("BMP", bmp)]
}

/// The checksum of a PNG's chunk (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}

/// Sends bytes as they are, and gives the status of the answer, or nothing where the connection was closed without one.
fn send(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

/// The server answers a photo, and has not grown by much.
fn assert_well(server: &Server, after: &str) {
    let begun = Instant::now();
    let answer = server.ask(&predict("image/png", &picture()));
    assert_eq!(answer.status, 200, "after {after}: {}", answer.text());
    assert!(begun.elapsed() < Duration::from_secs(10), "after {after} an answer took {:?}", begun.elapsed());
}

fn resident(server: &Server) -> u64 {
    let text = server.ask(&get("/metrics")).text();
    let line = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    line.expect("the metric").parse().expect("a number")
}

#[test]
fn files_that_are_no_whole_image_are_refused_with_a_sentence_wherever_they_break_off() {
    let server = Server::ready(dogs(), |_| {});
    let (png, jpeg) = (picture(), jpeg());
    assert_eq!(server.ask(&predict("image/jpeg", &jpeg)).status, 200, "the JPEG itself is well");
    let documents: [&[u8]; 6] = [
        b"%PDF-1.7\n%\xE2\xE3\xCF\xD3\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x7FELF\x02\x01\x01",
        b"PK\x03\x04",
        b"<html>",
        b"\0",
    ];
    let cut = |whole: &[u8]| -> Vec<Vec<u8>> {
        (1..whole.len() * 3 / 4).step_by(whole.len() / 24).map(|at| whole[..at].to_vec()).collect()
    };
    let broken = [cut(&png), cut(&jpeg), documents.map(<[u8]>::to_vec).to_vec()].concat();
    for bytes in broken {
        let answer = server.ask(&predict("image/png", &bytes));
        assert_eq!(answer.status, 422, "{} bytes {:?}: {}", bytes.len(), bytes.get(..8), answer.text());
        assert!(answer.json()["detail"].as_str().is_some_and(|detail| detail.len() > 20), "{}", answer.text());
    }
    assert_well(&server, "broken files");
}

#[test]
fn a_flipped_byte_anywhere_in_a_file_never_ends_the_server() {
    let server = Server::ready(dogs(), |_| {});
    for (content_type, whole) in [("image/png", picture()), ("image/jpeg", jpeg())] {
        for at in (0..whole.len()).step_by(1 + whole.len() / 150) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xA5;
            let status = server.ask(&predict(content_type, &bytes)).status;
            assert!(matches!(status, 200 | 422), "byte {at} of the {content_type}: {status}");
        }
    }
    assert_well(&server, "damaged files");
}

#[test]
fn an_image_that_says_it_is_huge_costs_neither_memory_nor_time() {
    let server = Server::ready(dogs(), |_| {});
    assert_well(&server, "nothing");
    let before = resident(&server);
    for _ in 0..3 {
        for (format, bytes) in bombs(60_000, 60_000) {
            let begun = Instant::now();
            let answer = server.ask(&predict("image/png", &bytes));
            assert_eq!(answer.status, 422, "{format}: {}", answer.text());
            assert!(begun.elapsed() < Duration::from_secs(5), "{format} took {:?}", begun.elapsed());
        }
        // Within the limit on pixels, and nearly all of them missing.
        for (format, bytes) in bombs(4900, 4900) {
            let status = server.ask(&predict("image/png", &bytes)).status;
            assert!(matches!(status, 200 | 422), "{format}: {status}");
        }
    }
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < 400 << 20, "the server grew by {} MiB", grown >> 20);
    assert_well(&server, "bombs");
}

#[test]
fn a_file_that_is_two_things_is_taken_for_an_image_or_refused() {
    let server = Server::ready(dogs(), |_| {});
    for (name, bytes) in [
        ("a PNG with a page behind it", [picture(), b"<script>alert(1)</script>".to_vec()].concat()),
        ("a JPEG with an archive behind it", [jpeg(), b"PK\x05\x06".to_vec(), vec![0; 18]].concat()),
        ("a JPEG named a PNG", jpeg()),
        ("a page before a JPEG", [b"<html>".to_vec(), jpeg()].concat()),
        ("a GIF that is a script", b"GIF89a=1;alert(1)//".to_vec()),
    ] {
        let answer = server.ask(&predict("image/png", &bytes));
        assert!(matches!(answer.status, 200 | 422), "{name}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"), "{name}");
    }
}

#[test]
fn requests_that_are_no_http_or_no_form_are_refused_or_closed() {
    let server = Server::ready(dogs(), |_| {});
    let form = "Content-Type: multipart/form-data; boundary=b\r\n";
    let many = "X-Another: one\r\n".repeat(2000);
    let parts: Vec<u8> = (0..500)
        .flat_map(|n| format!("--b\r\nContent-Disposition: form-data; name=\"{n}\"\r\n\r\nx\r\n").into_bytes())
        .collect();
    let long_head = format!(
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\n\r\nx\r\n--b--\r\n",
        "n".repeat(1 << 20)
    );
    let twice = b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_vec();
    let both =
        b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX"
            .to_vec();
    for (name, bytes) in [
        ("noise", vec![0xFF; 4096]),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xFC\x03\x03".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("an endless path", format!("GET /{} HTTP/1.1\r\nHost: t\r\n\r\n", "a".repeat(1 << 20)).into_bytes()),
        ("an endless header", format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(1 << 20)).into_bytes()),
        ("too many headers", format!("GET / HTTP/1.1\r\n{many}\r\n").into_bytes()),
        ("two lengths", twice),
        ("a negative length", b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n".to_vec()),
        ("a length beyond all numbers", b"POST /predict HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec()),
        ("a length and chunks", both),
        ("a chunk of a wrong size", b"POST /predict HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n".to_vec()),
        ("a form without a boundary", request("POST", "/predict", "Content-Type: multipart/form-data\r\n", b"x")),
        ("a form that never ends", request("POST", "/predict", form, b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx")),
        ("a form without parts", request("POST", "/predict", form, b"--b--\r\n")),
        ("a form of 500 parts", request("POST", "/predict", form, &parts)),
        ("a part with an endless head", request("POST", "/predict", form, long_head.as_bytes())),
        ("JSON that is deep", request("POST", "/v2/models/cats/infer", "", "[".repeat(100_000).as_bytes())),
        ("tensors of a size beyond all numbers", request("POST", "/v2/models/improved/infer", "", br#"{"inputs":[{"name":"image","datatype":"UINT8","shape":[9223372036854775807,9223372036854775807,3,3],"data":[]}]}"#)),
        ("a binary tensor that is not there", request("POST", "/v2/models/improved/infer", "Inference-Header-Content-Length: 99999999\r\n", b"{}")),
    ] {
        let status = send(&server, &bytes);
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{name}: {status:?}");
        assert_well(&server, name);
    }
}

#[test]
fn thousands_of_connections_without_a_request_keep_nobody_out() {
    let server = Server::ready(dogs(), |command| {
        command.args(["--max-connections", "200"]);
    });
    let half_open: Vec<TcpStream> = (0..1500)
        .map(|number| {
            let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
            if number % 2 == 0 {
                // Those that were closed to make room take no more bytes.
                let _ = stream.write_all(b"POST /predict HTTP/1.1\r\nHost: t\r\nX-Slow: ");
            }
            if number % 100 == 99 {
                assert_well(&server, &format!("{} idle connections", number + 1));
            }
            stream
        })
        .collect();
    assert_well(&server, "all idle connections");
    drop(half_open);
}

#[test]
fn slow_senders_keep_nobody_waiting() {
    let server = Server::ready(dogs(), |command| {
        command.args(["--request-timeout", "2s"]);
    });
    let request = predict("image/png", &picture());
    let (head, rest) = request.split_at(request.len() / 2);
    let mut slow: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
            stream.write_all(head).expect("the server reads");
            stream
        })
        .collect();
    assert_well(&server, "100 uploads that stand still");
    for stream in &mut slow {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408", "an upload that takes too long is told so");
        // The rest may meet a closed connection.
        let _ = stream.write_all(rest);
    }
    assert_well(&server, "uploads that took too long");
}

#[test]
fn numbers_that_are_none_are_refused_and_the_model_stays_ready() {
    let server = Server::ready(dogs(), |_| {});
    let infer = |head: &str, body: &[u8]| server.ask(&request("POST", "/v2/models/ImprovedCNN/infer", head, body));
    let tensor = r#"{"name": "input", "datatype": "FP32", "shape": [1, 3, 32, 32]"#;
    let head = format!(r#"{{"inputs": [{tensor}, "parameters": {{"binary_data_size": 12288}}}}]}}"#);
    let body = [head.as_bytes(), &f32::NAN.to_le_bytes().repeat(3 * 32 * 32)].concat();
    let answer = infer(&format!("Inference-Header-Content-Length: {}\r\n", head.len()), &body);
    assert_eq!(answer.status, 400, "{}", answer.text());

    assert_eq!(server.ask(&get("/readyz")).status, 200, "the client's numbers say nothing about the model");
    assert_well(&server, "numbers that are none");
}

#[test]
fn feedback_is_short_and_in_time() {
    let server = Server::ready(dogs(), |command| {
        command.args(["--request-timeout", "1s"]);
    });
    let answer = server.ask(&request("POST", "/feedback", "", &vec![b' '; 100_000]));
    assert_eq!(answer.status, 413, "{}", answer.text());

    let mut slow = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
    slow.write_all(b"POST /feedback HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n{").expect("the server reads");
    slow.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}

#[test]
fn clients_that_keep_every_connection_make_room_with_their_next_answer() {
    let server = Server::ready(dogs(), |command| {
        command.args(["--max-connections", "2", "--max-connection-age", "1h", "--request-timeout", "20s"]);
    });
    // Both have a request under way: its body is on its way.
    let bytes = predict("image/png", &picture());
    let (head, rest) = bytes.split_at(bytes.len() / 2);
    let mut busy: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
            stream.write_all(head).expect("the server reads");
            stream
        })
        .collect();
    let mut third = TcpStream::connect(("127.0.0.1", server.port)).expect("the server listens");
    third.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
    third.write_all(&get("/livez")).expect("the backlog takes it");
    busy[0].write_all(rest).expect("the server reads");
    let mut answer = [0; 12];
    third.read_exact(&mut answer).expect("room, long before idle connections are closed");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 200");
}

#[test]
fn refusals_below_v2_are_in_the_protocols_shape() {
    let server = Server::ready(dogs(), |_| {});
    let too_long = "Expect: 100-continue\r\nContent-Length: 99999999\r\n";
    let head = format!("POST /v2/models/ImprovedCNN/infer HTTP/1.1\r\nHost: t\r\n{too_long}\r\n");
    for (sent, status) in [(head.into_bytes(), 413), (request("PUT", "/v2/health/live", "", b""), 405)] {
        let answer = server.ask(&sent);
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.json()["error"].is_string(), "{}", answer.text());
    }
}
