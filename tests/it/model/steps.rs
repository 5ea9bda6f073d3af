//! Generates random steps from small domains, so that steps interact and a failure is easy
//! to read.

use std::fmt;

use longrunning::proto::google::rpc::Code;
use proptest::{collection::vec, option, prelude::*, sample::select};

/// The steps of one run.
#[derive(Clone)]
pub(super) struct ModelSteps(pub(super) Vec<ModelStep>);

#[derive(Clone, Debug)]
pub(super) enum ModelStep {
    Create(SpecTemplate),
    /// Repeats an earlier creation, possibly altered or by another worker.
    RepeatCreate {
        nth: usize,
        is_altered: bool,
        worker: &'static str,
    },
    Lease {
        queues: Vec<&'static str>,
        max_leases: i32,
        /// Milliseconds in which the leases must be confirmed.
        confirm_within: Option<i64>,
    },
    Heartbeat(Vec<ReportStep>),
    Finish {
        operation: OperationChoice,
        token: TokenChoice,
        finish: ModelFinish,
        metadata: Option<u8>,
    },
    /// Repeats an earlier finish.
    RepeatFinish(usize),
    Cancel(OperationChoice),
    Delete(OperationChoice),
    /// Waits with timeout 0.
    Wait(OperationChoice),
    /// Advances the time by a number of milliseconds.
    Advance(i64),
    /// Advances the time to one of the next deadlines, plus `offset` milliseconds.
    AdvanceToDeadline {
        nth: usize,
        offset: i64,
    },
}

/// One report of a heartbeat.
#[derive(Clone, Debug)]
pub(super) struct ReportStep {
    pub(super) operation: OperationChoice,
    pub(super) token: TokenChoice,
    pub(super) report: ModelReport,
}

/// A creation whose number and time are not yet determined.
#[derive(Clone, Debug)]
pub(super) struct SpecTemplate {
    /// Reuses the id of an earlier operation.
    pub(super) reused_id: Option<usize>,
    /// Milliseconds from now.
    pub(super) not_before: Option<i64>,
    pub(super) spec: ModelSpec,
}

/// The specification of an operation; times in milliseconds.
#[derive(Clone, Default, PartialEq)]
pub(super) struct ModelSpec {
    pub(super) parent: &'static str,
    pub(super) number: usize,
    /// The creator.
    pub(super) worker: &'static str,
    /// `None` if the operation is self-executed.
    pub(super) queue: Option<&'static str>,
    pub(super) request_id: Option<u8>,
    pub(super) priority: i32,
    pub(super) not_before: Option<i64>,
    pub(super) metadata: Option<u8>,
    pub(super) is_altered: bool,
    pub(super) lease_duration: Option<i64>,
    pub(super) total_timeout: Option<i64>,
    pub(super) attempt_timeout: Option<i64>,
    pub(super) retention: i64,
    pub(super) cancel_grace_period: Option<i64>,
    pub(super) max_attempts: u32,
    pub(super) max_worker_losses: u32,
    pub(super) backoff: ModelBackoff,
}

/// Retry delays in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ModelBackoff {
    pub(super) initial: i64,
    pub(super) max: i64,
    pub(super) multiplier: i64,
}

/// Selects an operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum OperationChoice {
    /// A running operation, if there is any.
    Running(usize),
    /// Any operation created so far.
    Any(usize),
}

/// Selects a lease token.
#[derive(Clone, Copy, Debug)]
pub(super) enum TokenChoice {
    /// The latest token of the operation.
    Latest,
    /// Any token of the operation.
    Stale(usize),
    /// A token of another operation.
    Foreign(usize),
    Unknown,
    Malformed,
    Empty,
}

/// The report of a worker. Unset fields leave values unchanged.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ModelReport {
    pub(super) progress: Option<u8>,
    pub(super) detail: Option<u8>,
    pub(super) checkpoint: Option<u8>,
    pub(super) metadata: Option<u8>,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum ModelFinish {
    Response(u8),
    Failure {
        code: Code,
        message: u8,
        retryable: bool,
        retry_after: Option<i64>,
    },
    Release,
}

pub(super) const QUEUES: [&str; 3] = ["a", "b", "c"];
/// The workers, which also create operations.
pub(super) const WORKERS: [&str; 2] = ["v", "w"];
pub(super) const PARENTS: [&str; 2] = ["", "projects/p"];

// === impl ModelSpec ===

impl ModelSpec {
    pub(super) fn id(&self) -> String {
        format!("op{}", self.number)
    }

    pub(super) fn name(&self) -> String {
        let slash = if self.parent.is_empty() { "" } else { "/" };
        format!("{}{slash}operations/{}", self.parent, self.id())
    }

    /// Returns `true` if the specifications are equal apart from the creator.
    pub(super) fn is_same_request(&self, other: &Self) -> bool {
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

    /// Returns the retry delay after a number of counted attempts.
    pub(super) fn backoff_after(&self, attempts: u32) -> i64 {
        let backoff = &self.backoff;
        let factor = backoff.multiplier.pow(attempts.saturating_sub(1));
        (backoff.initial * factor).min(backoff.max)
    }
}

// === impl ModelReport ===

impl ModelReport {
    /// Replaces the fields that are set in `newer`.
    pub(super) fn update(&mut self, newer: &Self) {
        self.progress = newer.progress.or(self.progress);
        self.detail = newer.detail.or(self.detail);
        self.checkpoint = newer.checkpoint.or(self.checkpoint);
        self.metadata = newer.metadata.or(self.metadata);
    }
}

// === impl ModelSteps ===

impl fmt::Debug for ModelSteps {
    // One line per step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0.iter().enumerate()).try_for_each(|(index, step)| write!(f, "\n  {index}: {step:?}"))
    }
}

impl fmt::Debug for ModelSpec {
    // Only fields that differ from the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default();
        let mut output = f.debug_struct("ModelSpec");
        macro_rules! write_changed {
            ($($field:ident)*) => {
                $(if self.$field != default.$field {
                    output.field(stringify!($field), &self.$field);
                })*
            };
        }
        write_changed!(parent number worker queue request_id priority not_before metadata is_altered lease_duration);
        write_changed!(total_timeout attempt_timeout retention cancel_grace_period max_attempts max_worker_losses backoff);
        output.finish()
    }
}

/// Generates the steps of one run.
pub(super) fn steps() -> impl Strategy<Value = ModelSteps> {
    vec(step(), 1..120).prop_map(ModelSteps)
}

fn step() -> impl Strategy<Value = ModelStep> {
    let leases = (
        vec(select(&QUEUES[..]), 1..4),
        0..5,
        option::of(1..10_000_i64),
    );
    let reports = vec(report_step(), 0..4);
    let finish = (
        operation_choice(),
        token_choice(),
        finish(),
        rarely(any::<u8>()),
    );
    prop_oneof![
        5 => spec_template().prop_map(ModelStep::Create),
        1 => (0..32_usize, any::<bool>(), select(&WORKERS[..]))
            .prop_map(|(nth, is_altered, worker)| ModelStep::RepeatCreate { nth, is_altered, worker }),
        6 => leases
            .prop_map(|(queues, max_leases, confirm_within)| ModelStep::Lease { queues, max_leases, confirm_within }),
        5 => reports.prop_map(ModelStep::Heartbeat),
        5 => finish.prop_map(|(operation, token, finish, metadata)| ModelStep::Finish { operation, token, finish, metadata }),
        1 => (0..32_usize).prop_map(ModelStep::RepeatFinish),
        2 => operation_choice().prop_map(ModelStep::Cancel),
        1 => operation_choice().prop_map(ModelStep::Delete),
        1 => operation_choice().prop_map(ModelStep::Wait),
        4 => advance_millis().prop_map(ModelStep::Advance),
        6 => (0..4_usize, -1..2_i64)
            .prop_map(|(nth, offset)| ModelStep::AdvanceToDeadline { nth, offset }),
    ]
}

fn spec_template() -> impl Strategy<Value = SpecTemplate> {
    let identities = (
        (select(&PARENTS[..]), select(&WORKERS[..])),
        option::weighted(0.8, select(&QUEUES[..])),
        rarely(0..4_u8),
        rarely(0..32_usize),
        option::weighted(0.05, any::<u8>()),
        -2..3_i32,
    );
    let durations = (
        rarely(1..100_000_i64),
        option::of(1_000..60_000_i64),
        rarely(1..120_000_i64),
        rarely(1..60_000_i64),
        select(&[0, 1_000, 600_000, 86_400_000][..]),
        option::of(0..60_000_i64),
    );
    let initial_backoff = select(&[0, 1, 500, 1_000, 20_000][..]);
    let backoff = (initial_backoff, 1..4_i64).prop_map(|(initial, multiplier)| ModelBackoff {
        initial,
        max: 60_000,
        multiplier,
    });
    let retry = (1..5_u32, 0..4_u32, backoff);
    (identities, durations, retry).prop_map(|(identities, durations, retry)| {
        let (max_attempts, max_worker_losses, backoff) = retry;
        let ((parent, worker), queue, request_id, reused_id, metadata, priority) = identities;
        let (
            not_before,
            lease_duration,
            total_timeout,
            attempt_timeout,
            retention,
            cancel_grace_period,
        ) = durations;
        let spec = ModelSpec {
            parent,
            worker,
            queue,
            request_id,
            priority,
            metadata,
            lease_duration,
            total_timeout,
            attempt_timeout,
            retention,
            cancel_grace_period,
            max_attempts,
            max_worker_losses,
            backoff,
            ..ModelSpec::default()
        };
        SpecTemplate {
            reused_id,
            not_before: not_before.filter(|_| queue.is_some()),
            spec,
        }
    })
}

fn operation_choice() -> impl Strategy<Value = OperationChoice> {
    prop_oneof![
        4 => (0..32_usize).prop_map(OperationChoice::Running),
        1 => (0..32_usize).prop_map(OperationChoice::Any),
    ]
}

fn token_choice() -> impl Strategy<Value = TokenChoice> {
    prop_oneof![
        12 => Just(TokenChoice::Latest),
        2 => (0..32_usize).prop_map(TokenChoice::Stale),
        1 => (0..32_usize).prop_map(TokenChoice::Foreign),
        1 => select(&[TokenChoice::Unknown, TokenChoice::Malformed, TokenChoice::Empty][..]),
    ]
}

fn report_step() -> impl Strategy<Value = ReportStep> {
    (operation_choice(), token_choice(), report()).prop_map(|(operation, token, report)| {
        ReportStep {
            operation,
            token,
            report,
        }
    })
}

fn report() -> impl Strategy<Value = ModelReport> {
    let values = (
        option::of(any::<u8>()),
        rarely(any::<u8>()),
        rarely(any::<u8>()),
        option::weighted(0.05, any::<u8>()),
    );
    values.prop_map(|(progress, detail, checkpoint, metadata)| ModelReport {
        progress,
        detail,
        checkpoint,
        metadata,
    })
}

fn finish() -> impl Strategy<Value = ModelFinish> {
    let codes = select(&[Code::Cancelled, Code::Unknown, Code::InvalidArgument][..]);
    let failure = (codes, 0..3_u8, any::<bool>(), rarely(0..100_000_i64));
    prop_oneof![
        2 => (0..3_u8).prop_map(ModelFinish::Response),
        4 => failure.prop_map(|(code, message, retryable, retry_after)| ModelFinish::Failure {
            code,
            message,
            retryable,
            retry_after,
        }),
        2 => Just(ModelFinish::Release),
    ]
}

/// Generates milliseconds, from 1 to many hours.
fn advance_millis() -> impl Strategy<Value = i64> {
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
