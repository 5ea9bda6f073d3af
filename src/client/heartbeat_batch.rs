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

/// The leases that one heartbeat renews, with their reports.
#[derive(Debug, Default)]
pub(super) struct HeartbeatBatch {
    renewals: Vec<Renewal>,
}

/// A lease to renew and its report, which may be empty.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) held: Arc<HeldLease>,
    pub(super) report: Report,
}

// === impl HeartbeatBatch ===

impl HeartbeatBatch {
    /// Splits renewals into heartbeats, small reports first, so that a slow or
    /// rejected large report does not delay the other renewals.
    pub(super) fn split(renewals: Vec<Renewal>) -> VecDeque<Self> {
        let mut sized: Vec<_> = (renewals.into_iter())
            .map(|renewal| (renewal.to_proto().encoded_len(), renewal))
            .collect();
        sized.sort_by_key(|(size, _)| *size);
        let (mut batches, mut batch, mut total_bytes) = (VecDeque::new(), Self::default(), 0);
        for (size, renewal) in sized {
            let is_full =
                batch.renewals.len() == MAX_LEASES || total_bytes + size > MAX_BATCH_BYTES;
            if is_full && !batch.is_empty() {
                batches.push_back(std::mem::take(&mut batch));
                total_bytes = 0;
            }
            total_bytes += size;
            batch.renewals.push(renewal);
        }
        if !batch.is_empty() {
            batches.push_back(batch);
        }
        batches
    }

    pub(super) fn reports(&self) -> Vec<LeaseHeartbeat> {
        self.renewals.iter().map(Renewal::to_proto).collect()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &Arc<HeldLease>> {
        self.renewals.iter().map(|renewal| &renewal.held)
    }

    /// Returns what to send instead of a heartbeat that the server rejected as too
    /// large: its two halves, or a single lease without its report. Returns an
    /// empty batch if the report was already empty; the lease then expires.
    pub(super) fn shrink(mut self, status: &Status) -> Vec<Self> {
        if self.renewals.len() > 1 {
            let renewals = self.renewals.split_off(self.renewals.len() / 2);
            return vec![self, Self { renewals }];
        }
        self.renewals.retain_mut(|Renewal { held, report }| {
            held.log_dropped_report(status);
            !std::mem::take(report).is_empty()
        });
        vec![self]
    }

    /// Puts the reports back for the next heartbeat.
    pub(super) fn restore_reports(self) {
        for Renewal { held, report } in self.renewals {
            held.restore_report(report);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.renewals.is_empty()
    }
}

// === impl Renewal ===

impl Renewal {
    fn to_proto(&self) -> LeaseHeartbeat {
        self.held.lease_heartbeat(&self.report)
    }
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

    fn lease_names(batch: &HeartbeatBatch) -> Vec<&str> {
        batch.leases().map(|held| &*held.name).collect()
    }

    // Rules: CLIENT-5
    #[test]
    fn heartbeat_has_at_most_1000_leases_and_3_mib_except_single_report() {
        let batches =
            HeartbeatBatch::split((0..2001).map(|_| renewal_with_report("x", 0)).collect());
        let counts: Vec<_> = batches.iter().map(|batch| batch.renewals.len()).collect();
        assert_eq!(counts, [1000, 1000, 1]);

        let mib = 1 << 20;
        let batches = HeartbeatBatch::split(vec![
            renewal_with_report("huge", 9 * mib),
            renewal_with_report("a", 2 * mib),
            renewal_with_report("bare", 0),
            renewal_with_report("b", 2 * mib),
        ]);
        let names: Vec<_> = batches.iter().map(lease_names).collect();
        assert_eq!(names, [vec!["bare", "a"], vec!["b"], vec!["huge"]]);
        assert!(HeartbeatBatch::split(Vec::new()).is_empty());
    }

    // Rules: CLIENT-5
    #[test]
    fn oversized_heartbeat_is_halved_and_finally_sent_without_report() {
        let status = Status::out_of_range("too large");
        let [batch] = <[HeartbeatBatch; 1]>::try_from(Vec::from(HeartbeatBatch::split(vec![
            renewal_with_report("a", 1),
            renewal_with_report("b", 2),
            renewal_with_report("c", 3),
        ])))
        .expect("the reports fit into one batch");
        let halves = batch.shrink(&status);
        let all: Vec<_> = halves.iter().flat_map(lease_names).collect();
        assert_eq!((halves.len(), all), (2, vec!["a", "b", "c"]));
        let one = halves.into_iter().find(|half| half.renewals.len() == 1);
        let without_report = one
            .expect("three renewals are split into one and two")
            .shrink(&status)
            .remove(0);
        assert!(without_report.renewals[0].report.is_empty());
        // Nothing is left to send after a second rejection.
        assert!(without_report.shrink(&status).remove(0).is_empty());
    }
}
