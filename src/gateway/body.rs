//! The body of a request: all of it, but not too much, not too slowly, and only
//! JSON. What it says is read in `json`.

use std::{error::Error as StdError, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::time::timeout;

use super::status::Refusal;
use crate::status;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

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
    // Before anything is read, so that a client that asks first sends nothing.
    if limit < usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) {
        return Err(Refusal::too_large(limit));
    }
    let read = timeout(time, Limited::new(body, limit).collect()).await;
    let body = match read.map_err(|_| Refusal::slow())? {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(Refusal::too_large(limit)),
        Err(error) => return Err(status::malformed(&format!("the body: {error}")).into()),
    };
    // Without a body its type does not matter: some clients always send one.
    if !body.is_empty() && !is_json(headers) {
        return Err(Refusal::content_type());
    }
    Ok(body)
}

/// Refuses a body where none belongs.
pub(super) async fn refuse<B>(body: B, time: Duration) -> Result<(), Refusal>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    match read(&HeaderMap::new(), body, 0, time).await {
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
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
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
        assert!(refuse(Full::<Bytes>::from(""), time).await.is_ok());
        let refused = refuse(Full::<Bytes>::from("{}"), time).await.unwrap_err();
        assert_eq!(refused.code.as_u16(), 400);
        assert!(refused.message().contains("takes no body"));
    }
}
