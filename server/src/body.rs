//! A request body that ends with an error where it grows over a limit.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

/// How much of a refused body is read and thrown away, in multiples of the limit.
const LINGER_FACTOR: u64 = 2;
/// How long a refused body is read.
pub const LINGER: Duration = Duration::from_secs(2);

/// Error of anything that reads a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Tells whether the body it belongs to went over its limit.
#[derive(Clone, Debug, Default)]
pub struct Overflow(Arc<AtomicBool>);

impl Overflow {
    /// Whether the limit was passed.
    pub fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A body of at most so many bytes.
#[derive(Debug)]
pub struct Capped<B> {
    inner: B,
    left: u64,
    overflow: Overflow,
}

impl<B> Capped<B> {
    /// Caps the body. The second value tells afterwards whether that was needed.
    pub fn new(inner: B, limit: u64) -> (Self, Overflow) {
        let overflow = Overflow::default();
        (Self { inner, left: limit, overflow: overflow.clone() }, overflow)
    }
}

#[derive(Debug)]
struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body is longer than its limit")
    }
}

impl std::error::Error for TooLong {}

impl<B> Body for Capped<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        let length = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref().map(Buf::remaining)).unwrap_or(0) as u64;
        if length > this.left {
            this.left = 0;
            this.overflow.0.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(TooLong.into())));
        }
        this.left -= length;
        Poll::Ready(frame.map(|f| f.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Reads a refused body for a while. A client that still writes when the connection closes sees a reset instead of the
/// answer that explains it.
pub async fn linger<B>(body: B, limit: u64)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let (mut body, _) = Capped::new(body, limit.saturating_mul(LINGER_FACTOR));
    let _ = tokio::time::timeout(LINGER, async { while let Some(Ok(_)) = body.frame().await {} }).await;
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn a_body_may_reach_its_limit_but_not_pass_it() {
        for (limit, fits) in [(4, true), (3, false), (5, true)] {
            let (body, overflow) = Capped::new(Full::new(Bytes::from_static(b"four")), limit);
            assert_eq!(body.collect().await.is_ok(), fits, "limit {limit}");
            assert_eq!(overflow.happened(), !fits, "limit {limit}");
        }
    }
}
