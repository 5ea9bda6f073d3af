//! Reads request bodies with limits on size, time and content type.

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

use super::http_error::HttpError;
use crate::error_status;

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;

/// Maximum size of any request body. A body is a name and a duration; at this size,
/// parsing its JSON does not delay other connections.
pub(super) const MAX_BODY_BYTES: usize = 64 << 10;

/// Limits for discarding a body that is too large, so that a client that sends the
/// whole body before it reads still gets the response.
const MAX_DRAIN_BYTES: usize = 4 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads a whole JSON body of at most `max_bytes`; with `None`, the call takes no body. An
/// empty body may have any content type.
///
/// # Errors
/// The body is unexpected, too large, too slow, cut off or not JSON.
pub(super) async fn read<B>(
    headers: &HeaderMap,
    body: B,
    max_bytes: Option<usize>,
    read_timeout: Duration,
) -> Result<Bytes, HttpError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let (mut body, limit) = (pin!(body), max_bytes.unwrap_or(0));
    let too_large = || max_bytes.map_or_else(HttpError::unexpected_body, HttpError::body_too_large);
    let declared_len = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let collected = if declared_len <= limit {
        let result = timeout(read_timeout, read_limited(body.as_mut(), limit)).await;
        let result = result.map_err(|_| HttpError::body_timeout())?;
        result.map_err(|error| {
            error_status::malformed_request(&format!("failed to read the body: {}", error.into()))
        })?
    } else if declared_len > MAX_DRAIN_BYTES || headers.contains_key(header::EXPECT) {
        // A client that expects 100-continue sends no body after an error.
        return Err(too_large());
    } else {
        None
    };
    let Some(body) = collected else {
        let _ = timeout(DRAIN_TIMEOUT, drain(body)).await;
        return Err(too_large());
    };
    // Some clients send a content type without a body.
    if !body.is_empty() && !is_json(headers) {
        return Err(HttpError::unsupported_media_type());
    }
    Ok(body)
}

/// Reads a whole body. Returns `None` as soon as it exceeds `limit` bytes.
async fn read_limited<B: Body>(
    mut body: Pin<&mut B>,
    limit: usize,
) -> Result<Option<Bytes>, B::Error> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        if data.remaining() > limit - buffer.len() {
            return Ok(None);
        }
        buffer.put(data);
    }
    Ok(Some(buffer.freeze()))
}

/// Reads and discards the rest of a body, up to [`MAX_DRAIN_BYTES`].
async fn drain<B: Body>(mut body: Pin<&mut B>) {
    let mut remaining_bytes = MAX_DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Buf::remaining);
        if size > remaining_bytes {
            return;
        }
        remaining_bytes -= size;
    }
}

/// Returns `true` if the content type is JSON or missing.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else {
        return true;
    };
    let content_type = content_type.to_str().unwrap_or_default();
    let content_type = content_type.to_ascii_lowercase();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    // gRPC messages are framed, also with JSON encoding.
    let is_grpc = media_type.starts_with("application/grpc");
    let has_json_suffix = media_type.starts_with("application/") && media_type.ends_with("+json");
    media_type == "application/json" || (has_json_suffix && !is_grpc)
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn headers(content_type: &'static str) -> HeaderMap {
        [(
            header::CONTENT_TYPE,
            http::HeaderValue::from_static(content_type),
        )]
        .into_iter()
        .collect()
    }

    async fn read_or_status_code(headers: &HeaderMap, body: &'static str) -> Result<Bytes, u16> {
        let result = read(
            headers,
            Full::<Bytes>::from(body),
            Some(8),
            Duration::from_secs(1),
        )
        .await;
        result.map_err(|error| error.code.as_u16())
    }

    // Rules: HTTP-10, HTTP-19, HTTP-20
    #[tokio::test]
    async fn body_must_be_json_within_the_size_limit_or_empty() {
        let no_headers = HeaderMap::new();
        assert_eq!(read_or_status_code(&no_headers, "{}").await.unwrap(), "{}");
        assert_eq!(read_or_status_code(&no_headers, "").await.unwrap(), "");
        assert_eq!(
            read_or_status_code(&no_headers, "123456789").await,
            Err(413)
        );
        for content_type in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/merge-patch+json",
        ] {
            assert!(
                read_or_status_code(&headers(content_type), "{}")
                    .await
                    .is_ok(),
                "{content_type}"
            );
        }
        for content_type in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "",
            "json",
            "application/grpc+json",
        ] {
            assert_eq!(
                read_or_status_code(&headers(content_type), "{}").await,
                Err(415),
                "{content_type}"
            );
            assert!(
                read_or_status_code(&headers(content_type), "")
                    .await
                    .is_ok(),
                "{content_type}"
            );
        }
    }

    // Rules: HTTP-19
    #[tokio::test(start_paused = true)]
    async fn stalled_request_body_times_out_with_408() {
        let never = StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<Bytes>, std::convert::Infallible>,
        >());
        let result = read(&HeaderMap::new(), never, Some(8), Duration::from_secs(1)).await;
        assert_eq!(result.unwrap_err().code.as_u16(), 408);
    }

    // Rules: HTTP-9
    #[tokio::test]
    async fn body_of_a_bodyless_method_is_rejected() {
        let read_timeout = Duration::from_secs(1);
        let no_headers = HeaderMap::new();
        let result = read(&no_headers, Full::<Bytes>::from(""), None, read_timeout).await;
        assert!(result.is_ok());
        let result = read(&no_headers, Full::<Bytes>::from("{}"), None, read_timeout).await;
        let error = result.unwrap_err();
        assert_eq!(error.code.as_u16(), 400);
        assert!(error.message().contains("takes no body"));
    }
}
