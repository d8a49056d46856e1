//! Any bytes as a form with photos, which comes in two pieces. The first byte says where it is cut.
#![no_main]

#[allow(dead_code, reason = "the server uses the rest")]
#[path = "../../../server/src/routes/upload/form.rs"]
mod form;

use bytes::Bytes;
use form::{MAX_FILES, files};
use futures::{executor::block_on, stream};
use http_body_util::StreamBody;
use hyper::{body::Frame, service::Service as _};
use hyper_util::service::TowerToHyperService;
use libfuzzer_sys::fuzz_target;
use std::convert::Infallible;
use warp::{Filter as _, http::Request, multipart::FormData};

/// What separates the parts in the corpus.
const CONTENT_TYPE: &str = "multipart/form-data; boundary=b";

/// Reads the form as the server does.
async fn read(form: FormData, length: usize) -> &'static str {
    let Ok(files) = files(form).await else { return "malformed" };
    assert!(files.len() <= MAX_FILES + 1, "{} files", files.len());
    let kept: usize =
        files.iter().map(|(_, file)| file.content.len() + file.name.as_ref().map_or(0, String::len)).sum();
    assert!(kept <= length * 3, "{kept} bytes of {length}");
    "read"
}

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, body)) = bytes.split_first() else { return };
    let (first, second) = body.split_at(body.len() * usize::from(*cut) / 256);
    let pieces = [first, second].map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))));
    let length = body.len();
    let form = warp::multipart::form().max_length(None).then(move |form| read(form, length));
    let request = Request::post("/predict")
        .header("content-type", CONTENT_TYPE)
        .body(StreamBody::new(stream::iter(pieces)))
        .expect("a request");
    let Ok(response) = block_on(TowerToHyperService::new(warp::service(form)).call(request));
    assert!(response.status().is_success(), "{}", response.status());
});
