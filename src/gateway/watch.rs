//! The states of an operation as server-sent events (the HTML standard's
//! `text/event-stream`), which a browser reads with `EventSource`.
//!
//! Each state is one event with the JSON of the operation. The done one has the
//! id `done`: a browser that comes back after it says so, and is sent away.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{select, time::sleep};
use tonic::body::Body;

use super::{json::Form, status::Refusal};
use crate::{operations::watch::Watch, types::Types};

pub(super) const KIND: &str = "text/event-stream";

/// A comment, which readers pass over: it tells proxies that the stream is
/// alive, and the server whether its reader is.
const HEARTBEAT: &[u8] = b":\n\n";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Whether the client has had the done state already.
pub(super) fn has_seen_the_end(headers: &HeaderMap) -> bool {
    headers.get(LAST_EVENT_ID).is_some_and(|id| id == "done")
}

/// The stream of events, with a sign of life after each silence of `heartbeat`.
pub(super) fn events(watch: Watch, types: Types, form: Form, heartbeat: Duration) -> Body {
    // An event ends at an empty line.
    let form = Form {
        pretty: false,
        ..form
    };
    let events = stream::unfold(Some(watch), move |watch| {
        let types = types.clone();
        async move {
            let mut watch = watch?;
            let next = select! {
                next = watch.next() => next?,
                () = sleep(heartbeat) => return sent(Bytes::from_static(HEARTBEAT), Some(watch)),
            };
            match next {
                Ok(operation) => {
                    let front = if operation.is_done() {
                        "id: done\n"
                    } else {
                        ""
                    };
                    let json = form.operation(&types, operation).await;
                    sent(event(front, &json), Some(watch))
                }
                Err(error) => {
                    let envelope = form.write(&Refusal::from(error).envelope(&types));
                    sent(event("event: error\n", &envelope), None)
                }
            }
        }
    });
    Body::new(StreamBody::new(events))
}

type Sent = Option<(Result<Frame<Bytes>, Infallible>, Option<Watch>)>;

fn sent(event: Bytes, watch: Option<Watch>) -> Sent {
    Some((Ok(Frame::data(event)), watch))
}

fn event(front: &str, json: &[u8]) -> Bytes {
    [front.as_bytes(), b"data: ", json, b"\n\n"].concat().into()
}
