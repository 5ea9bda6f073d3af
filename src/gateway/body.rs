//! The body of a request: all of it, but not too much, not too slowly, and only
//! JSON. What it says is read in `json`.

use std::{
    error::Error as StdError,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::status::Refusal;
use crate::status;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// The largest body that any call takes, in bytes: room for a name and a
/// duration, and so little that its JSON is read in no time.
pub(super) const LARGEST: usize = 64 << 10;

/// How much of a body that is too large is thrown away, and for how long, so that
/// a client that sends first and reads then still gets the answer.
const DISCARD: usize = 4 << 20;
const LINGER: Duration = Duration::from_secs(1);

/// Reads a whole JSON body of at most `limit` bytes.
pub(super) async fn read<B>(
    headers: &HeaderMap,
    body: B,
    limit: usize,
    time: Duration,
) -> Result<Bytes, Refusal>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let mut body = pin!(body);
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let read = if announced <= limit {
        let read = timeout(time, collect(body.as_mut(), limit)).await;
        let read = read.map_err(|_| Refusal::slow())?;
        read.map_err(|error| status::malformed(&format!("the body: {}", error.into())))?
    } else if DISCARD < announced || headers.contains_key(header::EXPECT) {
        // A client that asks first is answered before anything is read, and
        // sends nothing then.
        return Err(Refusal::too_large(limit));
    } else {
        None
    };
    let Some(body) = read else {
        let _ = timeout(LINGER, discard(body)).await;
        return Err(Refusal::too_large(limit));
    };
    // Without a body its type does not matter: some clients always send one.
    if !body.is_empty() && !is_json(headers) {
        return Err(Refusal::content_type());
    }
    Ok(body)
}

/// All of a body; nothing as soon as it is larger than `limit`.
async fn collect<B: Body>(mut body: Pin<&mut B>, limit: usize) -> Result<Option<Bytes>, B::Error> {
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if limit - all.len() < data.remaining() {
            return Ok(None);
        }
        all.put(data);
    }
    Ok(Some(all.freeze()))
}

/// Reads the rest of a body for nothing.
async fn discard<B: Body>(mut body: Pin<&mut B>) {
    let mut left = DISCARD;
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Buf::remaining);
        if left < size {
            return;
        }
        left -= size;
    }
}

/// Refuses a body where none belongs.
pub(super) async fn refuse<B>(headers: &HeaderMap, body: B, time: Duration) -> Result<(), Refusal>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    match read(headers, body, 0, time).await {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.code == http::StatusCode::PAYLOAD_TOO_LARGE => Err(Refusal::body()),
        Err(refusal) => Err(refusal),
    }
}

/// Whether the content type is JSON, or left out.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let kind = kind.to_str().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    // The messages of gRPC have a frame around them, also if they are JSON.
    let is_grpc = kind.starts_with("application/grpc");
    let is_some_json = kind.starts_with("application/") && kind.ends_with("+json");
    kind == "application/json" || (is_some_json && !is_grpc)
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn headers(kind: &'static str) -> HeaderMap {
        [(header::CONTENT_TYPE, http::HeaderValue::from_static(kind))]
            .into_iter()
            .collect()
    }

    async fn code(headers: &HeaderMap, body: &'static str) -> Result<Bytes, u16> {
        let read = read(
            headers,
            Full::<Bytes>::from(body),
            8,
            Duration::from_secs(1),
        )
        .await;
        read.map_err(|refusal| refusal.code.as_u16())
    }

    #[tokio::test]
    async fn a_body_is_json_of_a_limited_size_or_nothing() {
        let none = HeaderMap::new();
        assert_eq!(code(&none, "{}").await.unwrap(), "{}");
        assert_eq!(code(&none, "").await.unwrap(), "");
        assert_eq!(code(&none, "123456789").await, Err(413));
        for kind in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/merge-patch+json",
        ] {
            assert!(code(&headers(kind), "{}").await.is_ok(), "{kind}");
        }
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "",
            "json",
            "application/grpc+json",
        ] {
            assert_eq!(code(&headers(kind), "{}").await, Err(415), "{kind}");
            assert!(code(&headers(kind), "").await.is_ok(), "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let never = StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<Bytes>, std::convert::Infallible>,
        >());
        let read = read(&HeaderMap::new(), never, 8, Duration::from_secs(1)).await;
        assert_eq!(read.unwrap_err().code.as_u16(), 408);
    }

    #[tokio::test]
    async fn a_body_where_none_belongs_is_refused() {
        let time = Duration::from_secs(1);
        let none = HeaderMap::new();
        let refused = refuse(&none, Full::<Bytes>::from(""), time).await;
        assert!(refused.is_ok());
        let refused = refuse(&none, Full::<Bytes>::from("{}"), time).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code.as_u16(), 400);
        assert!(refused.message().contains("takes no body"));
    }
}
