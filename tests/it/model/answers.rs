//! What calls are answered, in the words of the model: times in milliseconds,
//! leases by number, refusals by reason.

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Response(u8),
    /// An error in the words of its worker.
    Said {
        code: i32,
        message: u8,
    },
    /// An error in the server's own words.
    Server(i32, &'static str),
}

/// What comes with a word of a worker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Proof {
    /// The token of this lease.
    Grant(usize),
    /// A token that nobody ever had.
    Unknown,
    /// What no token looks like.
    Malformed,
    /// Nothing.
    Empty,
}

/// A refusal, by the reason that the client is told.
pub(super) type Refused = &'static str;

/// What a call is answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Nothing,
    Refused(Refused),
    Operation(Shown),
    Created {
        operation: Shown,
        lease: Option<Lease>,
        reused: bool,
    },
    Leases(Vec<Lease>),
    Directives {
        directives: Vec<Directive>,
        next: i64,
    },
}

/// An operation as clients see it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) metadata: Metadata,
    pub(super) outcome: Option<Outcome>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Metadata {
    /// In a type of the worker's own.
    Own(u8),
    Ours {
        state: &'static str,
        created: i64,
        started: Option<i64>,
        updated: i64,
        ended: Option<i64>,
        progress: Option<u8>,
        detail: Option<u8>,
        attempt: i32,
        asked: bool,
        queue: String,
    },
}

/// A lease as its worker sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lease {
    pub(super) name: String,
    pub(super) grant: usize,
    pub(super) attempt: i32,
    pub(super) remaining: i64,
    pub(super) attempt_remaining: Option<i64>,
    pub(super) checkpoint: Option<u8>,
    pub(super) asked: bool,
    pub(super) queue: String,
    pub(super) grace: Option<i64>,
}

/// What a heartbeat is answered about one lease.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Directive {
    pub(super) kind: &'static str,
    pub(super) remaining: Option<i64>,
    pub(super) grace_remaining: Option<i64>,
    pub(super) error: Option<Refused>,
}
