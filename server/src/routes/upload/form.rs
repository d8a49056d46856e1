//! The files of a form.

use std::pin::pin;

use bytes::{Buf, Bytes};
use futures::{Stream, TryStreamExt as _};
use warp::multipart::{FormData, Part};

/// Name of the form's field.
const FIELD: &str = "file";
/// Most images of one request.
pub(crate) const MAX_FILES: usize = 32;

/// An uploaded file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) name: Option<String>,
    pub(crate) content: Bytes,
}

/// The files of a form with their content types, and one more at most than a request may have. Reads the form to its end
/// also then: a client that still writes when the connection closes sees a reset instead of the answer.
pub(super) async fn files(mut form: FormData) -> Result<Vec<(Option<String>, File)>, warp::Error> {
    let mut files = Vec::new();
    while let Some(part) = form.try_next().await? {
        if part.name() != FIELD || files.len() > MAX_FILES {
            drain(part).await;
            continue;
        }
        let (name, content_type) = (part.filename().map(str::to_owned), part.content_type().map(str::to_owned));
        let content = all(part.stream().map_ok(|mut chunk| take(&mut chunk))).await?;
        files.push((content_type, File { name, content }));
    }
    Ok(files)
}

/// The bytes of a stream, in memory of just their size. The chunks are slices of the connection's buffers, which are
/// larger, and a request in the queue would hold on to those.
pub(super) async fn all(stream: impl Stream<Item = Result<Bytes, warp::Error>>) -> Result<Bytes, warp::Error> {
    let mut stream = pin!(stream);
    let mut content = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        content.extend_from_slice(&chunk);
    }
    Ok(content.into_boxed_slice().into())
}

/// The bytes of a chunk.
pub(super) fn take(chunk: &mut impl Buf) -> Bytes {
    chunk.copy_to_bytes(chunk.remaining())
}

/// Reads a part without keeping it.
pub(super) async fn drain(part: Part) {
    let mut chunks = pin!(part.stream());
    while let Ok(Some(_)) = chunks.try_next().await {}
}
