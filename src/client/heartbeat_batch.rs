//! Splits reports into heartbeats within the server's limits, so that an oversized
//! report cannot cost a lease.

use std::{collections::VecDeque, sync::Arc};

use prost::Message;
use tonic::Status;

use super::held_lease::HeldLease;
use crate::{operation::transition::Report, proto::longrunning::v1::LeaseHeartbeat};

/// The maximum number of leases in one heartbeat; the server rejects more.
const MAX_LEASES: usize = 1000;
/// The maximum size of a heartbeat with several leases. By default, a server accepts
/// messages of 4 MiB.
const MAX_BATCH_BYTES: usize = 3 << 20;

/// A lease to renew and its report, which may be empty.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) held: Arc<HeldLease>,
    pub(super) report: Report,
}

impl Renewal {
    pub(super) fn to_proto(&self) -> LeaseHeartbeat {
        self.held.lease_heartbeat(&self.report)
    }
}

/// Splits renewals into heartbeats, small reports first, so that a slow or rejected large
/// report does not delay the other renewals.
pub(super) fn split_into_batches(renewals: Vec<Renewal>) -> VecDeque<Vec<Renewal>> {
    let mut sized: Vec<_> = (renewals.into_iter())
        .map(|renewal| (renewal.to_proto().encoded_len(), renewal))
        .collect();
    sized.sort_by_key(|(size, _)| *size);
    let (mut batches, mut total_bytes) = (VecDeque::<Vec<Renewal>>::new(), 0);
    for (size, renewal) in sized {
        match batches.back_mut() {
            Some(batch) if batch.len() < MAX_LEASES && total_bytes + size <= MAX_BATCH_BYTES => {
                batch.push(renewal);
                total_bytes += size;
            }
            _ => {
                batches.push_back(vec![renewal]);
                total_bytes = size;
            }
        }
    }
    batches
}

/// Returns what to send instead of a heartbeat that the server rejected as too large: its two
/// halves, or a single lease without its report. Returns an empty batch if the report was
/// already empty; the lease then expires.
pub(super) fn shrink_batch(mut batch: Vec<Renewal>, status: &Status) -> Vec<Vec<Renewal>> {
    if batch.len() > 1 {
        let second_half = batch.split_off(batch.len() / 2);
        return vec![batch, second_half];
    }
    batch.retain_mut(|Renewal { held, report }| {
        held.log_dropped_report(status);
        !std::mem::take(report).is_empty()
    });
    vec![batch]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Any;

    use super::*;
    use crate::operation::{lease::LeaseToken, payload::Payload};

    fn renewal_with_report(name: &str, bytes: usize) -> Renewal {
        let lease_duration = Duration::from_secs(30);
        let held = Arc::new(HeldLease::new(
            name,
            LeaseToken::random(),
            lease_duration,
            None,
            false,
            Arc::default(),
        ));
        let any = Any {
            type_url: "a.com/b.C".to_owned(),
            value: vec![0; bytes],
        };
        let checkpoint = (bytes > 0).then(|| Payload::new(any).expect("valid type URL"));
        let report = Report {
            checkpoint,
            ..Report::default()
        };
        Renewal { held, report }
    }

    fn lease_names(batch: &[Renewal]) -> Vec<&str> {
        batch.iter().map(|renewal| &*renewal.held.name).collect()
    }

    // Rules: CLIENT-5
    #[test]
    fn heartbeat_has_at_most_1000_leases_and_3_mib_except_single_report() {
        let batches = split_into_batches((0..2001).map(|_| renewal_with_report("x", 0)).collect());
        let counts: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(counts, [1000, 1000, 1]);

        let mib = 1 << 20;
        let batches = split_into_batches(vec![
            renewal_with_report("huge", 9 * mib),
            renewal_with_report("a", 2 * mib),
            renewal_with_report("bare", 0),
            renewal_with_report("b", 2 * mib),
        ]);
        let names: Vec<_> = batches.iter().map(|batch| lease_names(batch)).collect();
        assert_eq!(names, [vec!["bare", "a"], vec!["b"], vec!["huge"]]);
        assert!(split_into_batches(Vec::new()).is_empty());
    }

    // Rules: CLIENT-5
    #[test]
    fn oversized_heartbeat_is_halved_and_finally_sent_without_report() {
        let status = Status::out_of_range("too large");
        let [batch] = <[Vec<Renewal>; 1]>::try_from(Vec::from(split_into_batches(vec![
            renewal_with_report("a", 1),
            renewal_with_report("b", 2),
            renewal_with_report("c", 3),
        ])))
        .expect("the reports fit into one batch");
        let halves = shrink_batch(batch, &status);
        let all: Vec<_> = halves.iter().flat_map(|half| lease_names(half)).collect();
        assert_eq!((halves.len(), all), (2, vec!["a", "b", "c"]));
        let one = halves.into_iter().find(|half| half.len() == 1);
        let one = one.expect("three renewals are split into one and two");
        let without_report = shrink_batch(one, &status).remove(0);
        assert!(without_report[0].report.is_empty());
        // Nothing is left to send after a second rejection.
        assert!(shrink_batch(without_report, &status).remove(0).is_empty());
    }
}
