//! Validation of `longrunning.v1.Progress`.

use crate::{clock, proto::longrunning::v1::Progress};

/// A [`Progress`] with a value out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidProgress(&'static str);

/// # Errors
/// [`InvalidProgress`] for the first value out of range.
pub(super) fn check(progress: &Progress) -> Result<(), InvalidProgress> {
    let is_out_of_range = |fraction: f64| !(0.0..=1.0).contains(&fraction);
    let is_invalid_time = |eta: &_| !clock::is_valid_timestamp(eta);
    let problem = if progress.fraction.is_some_and(is_out_of_range) {
        "fraction must be from 0 to 1"
    } else if progress.done_units < 0 || progress.total_units < 0 {
        "done_units and total_units must not be negative; 0 means unknown"
    } else if progress.eta.as_ref().is_some_and(is_invalid_time) {
        "eta must be in the years 1 to 9999, with nanos from 0 to 999999999"
    } else {
        return Ok(());
    };
    Err(InvalidProgress(problem))
}

/// Returns the last progress of an operation that succeeded: complete.
pub(super) fn completed(progress: &Progress) -> Progress {
    let mut completed = progress.clone();
    completed.fraction = Some(1.0);
    if completed.total_units > 0 {
        completed.done_units = completed.total_units;
    }
    completed.eta = None;
    completed
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: HEARTBEAT-4
    #[test]
    fn out_of_range_progress_is_rejected() {
        let valid = Progress {
            fraction: Some(1.0),
            done_units: i64::MAX,
            total_units: 3,
            eta: Some(prost_types::Timestamp::default()),
            ..Progress::default()
        };
        assert_eq!(check(&valid), Ok(()));
        assert_eq!(check(&Progress::default()), Ok(()));
        for fraction in [f64::NAN, f64::INFINITY, -0.1, 1.000_001] {
            let fraction = Some(fraction);
            assert!(
                check(&Progress {
                    fraction,
                    ..valid.clone()
                })
                .is_err()
            );
        }
        assert!(
            check(&Progress {
                done_units: -1,
                ..valid.clone()
            })
            .is_err()
        );
        assert!(
            check(&Progress {
                total_units: -1,
                ..valid.clone()
            })
            .is_err()
        );
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
            let eta = Some(prost_types::Timestamp { seconds, nanos });
            assert!(
                check(&Progress {
                    eta,
                    ..valid.clone()
                })
                .is_err()
            );
        }
    }
}
