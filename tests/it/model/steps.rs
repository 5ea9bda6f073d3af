//! What can be done to a server: random, but in small numbers, so that steps
//! meet each other and a failure is easy to read.

use std::fmt;

use proptest::{collection::vec, option, prelude::*, sample::select};

/// The steps of one life of a server.
#[derive(Clone)]
pub(super) struct Steps(pub(super) Vec<Step>);

/// One step.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Create(Wish),
    /// The same call as an earlier one, or almost, perhaps by another instance.
    CreateAgain {
        nth: usize,
        altered: bool,
        worker: &'static str,
    },
    Lease {
        queues: Vec<&'static str>,
        most: i32,
    },
    Heartbeat(Vec<(Pick, Token, Report)>),
    Finish {
        pick: Pick,
        token: Token,
        end: End,
        metadata: Option<u8>,
    },
    /// The same call as an earlier one.
    FinishAgain(usize),
    Cancel(Pick),
    Delete(Pick),
    /// A wait that does not wait.
    Wait(Pick),
    /// So many milliseconds pass.
    Jump(i64),
    /// Time passes up to one of the next moments at which something is due, or
    /// a millisecond less or more.
    JumpToDeadline {
        nth: usize,
        offset: i64,
    },
}

/// An operation to be: what is in `Spec`, but not yet with a name and a time.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    /// Takes the id of an earlier one.
    pub(super) id_of: Option<usize>,
    /// Milliseconds from now.
    pub(super) not_before: Option<i64>,
    pub(super) spec: Spec,
}

/// Everything that a creator says; times in milliseconds.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Spec {
    pub(super) parent: &'static str,
    pub(super) id: usize,
    /// Who creates it.
    pub(super) worker: &'static str,
    /// None: its creator executes it.
    pub(super) queue: Option<&'static str>,
    pub(super) request: Option<u8>,
    pub(super) priority: i32,
    pub(super) not_before: Option<i64>,
    pub(super) metadata: Option<u8>,
    pub(super) altered: bool,
    pub(super) lease: Option<i64>,
    pub(super) total_timeout: Option<i64>,
    pub(super) attempt_timeout: Option<i64>,
    pub(super) retention: i64,
    pub(super) grace: Option<i64>,
    pub(super) attempts: u32,
    pub(super) backoff: (i64, i64, i64),
}

/// Which operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pick {
    /// One that somebody holds, if there is any.
    Held(usize),
    /// Any name that ever was.
    Any(usize),
}

/// Whose token comes with it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Token {
    /// The latest of the operation.
    Latest,
    /// An earlier one of the operation.
    Stale(usize),
    /// One of another operation.
    Foreign(usize),
    Unknown,
    Short,
    Empty,
}

/// What a worker tells; what it leaves out stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    pub(super) progress: Option<u8>,
    pub(super) detail: Option<u8>,
    pub(super) checkpoint: Option<u8>,
    pub(super) metadata: Option<u8>,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Response(u8),
    Failure {
        code: i32,
        message: u8,
        retryable: bool,
        retry_after: Option<i64>,
    },
    Release,
}

/// The queues.
pub(super) const QUEUES: [&str; 3] = ["a", "b", "c"];
/// Who creates and works.
pub(super) const WORKERS: [&str; 2] = ["v", "w"];
/// What operations live under.
pub(super) const PARENTS: [&str; 2] = ["", "projects/p"];

// === impl Spec ===

impl Spec {
    pub(super) fn id(&self) -> String {
        format!("op{}", self.id)
    }

    pub(super) fn name(&self) -> String {
        let slash = if self.parent.is_empty() { "" } else { "/" };
        format!("{}{slash}operations/{}", self.parent, self.id())
    }

    /// Whether it asks for the same, whoever asks.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let worker = self.worker;
        *self
            == Self {
                worker,
                ..other.clone()
            }
    }

    pub(super) fn is_in(&self, queues: &[&str]) -> bool {
        self.queue.is_some_and(|queue| queues.contains(&queue))
    }

    /// The pause after so many attempts that count.
    pub(super) fn pause(&self, attempts: u32) -> i64 {
        let (first, longest, times) = self.backoff;
        (first * times.pow(attempts.saturating_sub(1))).min(longest)
    }
}

// === impl Report ===

impl Report {
    /// Takes over what is said; what is left out stays.
    pub(super) fn update(&mut self, newer: &Self) {
        self.progress = newer.progress.or(self.progress);
        self.detail = newer.detail.or(self.detail);
        self.checkpoint = newer.checkpoint.or(self.checkpoint);
        self.metadata = newer.metadata.or(self.metadata);
    }
}

// === impl Steps ===

impl fmt::Debug for Steps {
    /// One line for each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0.iter().enumerate()).try_for_each(|(at, step)| write!(f, "\n  {at}: {step:?}"))
    }
}

impl fmt::Debug for Spec {
    /// Only what was said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = Self::default();
        let mut said = f.debug_struct("Spec");
        macro_rules! say {
            ($($field:ident)*) => {
                $(if self.$field != usual.$field {
                    said.field(stringify!($field), &self.$field);
                })*
            };
        }
        say!(parent id worker queue request priority not_before metadata altered lease);
        say!(total_timeout attempt_timeout retention grace attempts backoff);
        said.finish()
    }
}

/// The steps of one life of a server.
pub(super) fn steps() -> impl Strategy<Value = Steps> {
    vec(step(), 1..120).prop_map(Steps)
}

fn step() -> impl Strategy<Value = Step> {
    let lease = (vec(select(&QUEUES[..]), 1..4), 0..5);
    let reports = vec((pick(), token(), report()), 0..4);
    let finish = (pick(), token(), end(), rarely(any::<u8>()));
    prop_oneof![
        5 => wish().prop_map(Step::Create),
        1 => (0..32_usize, any::<bool>(), select(&WORKERS[..]))
            .prop_map(|(nth, altered, worker)| Step::CreateAgain { nth, altered, worker }),
        6 => lease.prop_map(|(queues, most)| Step::Lease { queues, most }),
        5 => reports.prop_map(Step::Heartbeat),
        5 => finish.prop_map(|(pick, token, end, metadata)| Step::Finish { pick, token, end, metadata }),
        1 => (0..32_usize).prop_map(Step::FinishAgain),
        2 => pick().prop_map(Step::Cancel),
        1 => pick().prop_map(Step::Delete),
        1 => pick().prop_map(Step::Wait),
        4 => jump().prop_map(Step::Jump),
        6 => (0..4_usize, -1..2_i64)
            .prop_map(|(nth, offset)| Step::JumpToDeadline { nth, offset }),
    ]
}

fn wish() -> impl Strategy<Value = Wish> {
    let who = (
        (select(&PARENTS[..]), select(&WORKERS[..])),
        option::weighted(0.8, select(&QUEUES[..])),
        rarely(0..4_u8),
        rarely(0..32_usize),
        option::weighted(0.05, any::<u8>()),
        -2..3_i32,
    );
    let times = (
        rarely(1..100_000_i64),
        option::of(1_000..60_000_i64),
        rarely(1..120_000_i64),
        rarely(1..60_000_i64),
        select(&[0, 1_000, 600_000, 86_400_000][..]),
        option::of(0..60_000_i64),
    );
    let first = select(&[0, 1, 500, 1_000, 20_000][..]);
    let retry = (1..5_u32, (first, 1..4_i64));
    (who, times, retry).prop_map(|(who, times, (attempts, (first, growth)))| {
        let ((parent, worker), queue, request, id_of, metadata, priority) = who;
        let (not_before, lease, total_timeout, attempt_timeout, retention, grace) = times;
        let spec = Spec {
            parent,
            worker,
            queue,
            request,
            priority,
            metadata,
            lease,
            total_timeout,
            attempt_timeout,
            retention,
            grace,
            attempts,
            backoff: (first, 60_000, growth),
            ..Spec::default()
        };
        Wish {
            id_of,
            not_before: not_before.filter(|_| queue.is_some()),
            spec,
        }
    })
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        4 => (0..32_usize).prop_map(Pick::Held),
        1 => (0..32_usize).prop_map(Pick::Any),
    ]
}

fn token() -> impl Strategy<Value = Token> {
    prop_oneof![
        12 => Just(Token::Latest),
        2 => (0..32_usize).prop_map(Token::Stale),
        1 => (0..32_usize).prop_map(Token::Foreign),
        1 => select(&[Token::Unknown, Token::Short, Token::Empty][..]),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    let values = (
        option::of(any::<u8>()),
        rarely(any::<u8>()),
        rarely(any::<u8>()),
        option::weighted(0.05, any::<u8>()),
    );
    values.prop_map(|(progress, detail, checkpoint, metadata)| Report {
        progress,
        detail,
        checkpoint,
        metadata,
    })
}

fn end() -> impl Strategy<Value = End> {
    let failure = (1..4_i32, 0..3_u8, any::<bool>(), rarely(0..100_000_i64));
    prop_oneof![
        2 => (0..3_u8).prop_map(End::Response),
        4 => failure.prop_map(|(code, message, retryable, retry_after)| End::Failure {
            code,
            message,
            retryable,
            retry_after,
        }),
        2 => Just(End::Release),
    ]
}

/// Milliseconds: from 1 to many hours.
fn jump() -> impl Strategy<Value = i64> {
    prop_oneof![
        1..100_i64,
        100..10_000_i64,
        10_000..200_000_i64,
        200_000..100_000_000_i64,
    ]
}

fn rarely<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    option::weighted(0.15, value)
}
