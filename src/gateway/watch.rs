//! Streams the states of an operation as server-sent events (`text/event-stream`).
//!
//! Each event contains the JSON of the operation. The done event has the id `done`;
//! `EventSource` sends it when it reconnects, and the server then ends the stream.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{select, time::sleep};
use tonic::body::Body;

use super::{http_error::HttpError, json::JsonFormat};
use crate::{service::watch::Watch, types::TypeRegistry};

pub(super) const EVENT_STREAM_CONTENT_TYPE: &str = "text/event-stream";

/// A comment, which clients ignore. It keeps proxies from closing an idle stream, and
/// lets the server detect a dead client.
const KEEPALIVE_COMMENT: &[u8] = b":\n\n";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Returns `true` if the client has received the done event before.
pub(super) fn has_received_final_event(headers: &HeaderMap) -> bool {
    headers.get(LAST_EVENT_ID).is_some_and(|id| id == "done")
}

/// Returns the body of the event stream, with a comment after each `keepalive_interval`
/// without an event.
pub(super) fn event_stream_body(
    watch: Watch,
    types: TypeRegistry,
    format: JsonFormat,
    keepalive_interval: Duration,
) -> Body {
    // An event ends at an empty line.
    let format = JsonFormat {
        pretty: false,
        ..format
    };
    let events = stream::unfold(Some(watch), move |watch| {
        let types = types.clone();
        async move {
            let mut watch = watch?;
            let next = select! {
                next = watch.next() => next?,
                () = sleep(keepalive_interval) => return stream_item(Bytes::from_static(KEEPALIVE_COMMENT), Some(watch)),
            };
            match next {
                Ok(operation) => {
                    let is_done = operation.is_done();
                    let fields = if is_done { "id: done\n" } else { "" };
                    let json = format.serialize_operation(&types, operation).await;
                    stream_item(format_event(fields, &json), Some(watch))
                }
                Err(error) => {
                    let json = format.serialize(&HttpError::from(error).envelope(&types));
                    stream_item(format_event("event: error\n", &json), None)
                }
            }
        }
    });
    Body::new(StreamBody::new(events))
}

type StreamItem = Option<(Result<Frame<Bytes>, Infallible>, Option<Watch>)>;

fn stream_item(event: Bytes, watch: Option<Watch>) -> StreamItem {
    Some((Ok(Frame::data(event)), watch))
}

fn format_event(fields: &str, json: &[u8]) -> Bytes {
    [fields.as_bytes(), b"data: ", json, b"\n\n"]
        .concat()
        .into()
}
