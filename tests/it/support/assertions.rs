//! Assertions about failed operations and elapsed time.

use std::time::Duration;

use longrunning::proto::google::longrunning::Operation;
use tonic::Code;

use super::{error_reason, expect_error};

/// Asserts that an operation failed with this code.
#[track_caller]
pub(crate) fn assert_error_code(operation: &Operation, code: impl Into<i32>) {
    let error = expect_error(operation);
    assert_eq!(
        Code::from(error.code),
        Code::from(code.into()),
        "{}",
        error.message
    );
}

/// Asserts that an operation failed with this code and reason.
#[track_caller]
pub(crate) fn assert_failed_with(operation: &Operation, code: impl Into<i32>, reason: &str) {
    assert_error_code(operation, code);
    assert_eq!(error_reason(&expect_error(operation)), reason);
}

/// Asserts that `elapsed` is `seconds`, or longer by no more than timers may be late.
///
/// The server rounds a deadline up by about 1/128 of its distance, at most 67 ms; the
/// bound allows for two timers in a row.
#[track_caller]
pub(crate) fn assert_within_timer_slack(elapsed: Duration, seconds: u64) {
    let exact = Duration::from_secs(seconds);
    let latest = exact + exact / 64 + Duration::from_millis(70);
    assert!(
        (exact..=latest).contains(&elapsed),
        "expected {exact:?} to {latest:?}, but {elapsed:?} passed"
    );
}
