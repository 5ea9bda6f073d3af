//! What goes into one heartbeat, so that no report can cost a lease, neither
//! its own nor another's. When one is sent is decided in `keeper`.

use std::{collections::VecDeque, sync::Arc};

use prost::Message;
use tonic::Status;

use super::held_lease::HeldLease;
use crate::{operation::transition::Report, proto::longrunning::v1::LeaseHeartbeat};

/// The most leases of one heartbeat; the server refuses more.
const MAX_LEASES: usize = 1000;
/// The most bytes of one, unless it has one report only. A server takes 4 MiB,
/// if nobody told it otherwise.
const MAX_BATCH_BYTES: usize = 3 << 20;

/// One heartbeat: leases to renew, and what is new of them.
#[derive(Debug, Default)]
pub(super) struct HeartbeatBatch(Vec<(Arc<HeldLease>, Report)>);

// === impl Beat ===

impl HeartbeatBatch {
    /// The heartbeats that tell all of this, small reports first: renewals do
    /// not wait for what takes long, or is refused.
    pub(super) fn split(reports: Vec<(Arc<HeldLease>, Report)>) -> VecDeque<Self> {
        let mut sized: Vec<_> = (reports.into_iter())
            .map(|(held, report)| (held.lease_heartbeat(&report).encoded_len(), held, report))
            .collect();
        sized.sort_by_key(|(size, ..)| *size);
        let (mut batches, mut batch, mut total_bytes) = (VecDeque::new(), Self::default(), 0);
        for (size, held, report) in sized {
            let is_full = batch.0.len() == MAX_LEASES || MAX_BATCH_BYTES < total_bytes + size;
            if is_full && !batch.0.is_empty() {
                batches.push_back(std::mem::take(&mut batch));
                total_bytes = 0;
            }
            total_bytes += size;
            batch.0.push((held, report));
        }
        if !batch.0.is_empty() {
            batches.push_back(batch);
        }
        batches
    }

    pub(super) fn reports(&self) -> Vec<LeaseHeartbeat> {
        let reports = self
            .0
            .iter()
            .map(|(held, report)| held.lease_heartbeat(report));
        reports.collect()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &Arc<HeldLease>> {
        self.0.iter().map(|(held, _)| held)
    }

    /// What is sent instead of a heartbeat that was too large for the server:
    /// its halves; of one report, a sign of life without it.
    pub(super) fn shrink(mut self, status: &Status) -> Vec<Self> {
        if 1 < self.0.len() {
            let half = self.0.split_off(self.0.len() / 2);
            return vec![self, Self(half)];
        }
        self.0.retain_mut(|(held, report)| {
            held.log_dropped_report(status);
            !std::mem::take(report).is_empty()
        });
        // Not even a sign of life is taken: then the lease runs out.
        vec![self]
    }

    /// Keeps for the next time what did not get through.
    pub(super) fn restore_reports(self) {
        for (held, report) in self.0 {
            held.restore_report(report);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost_types::Any;

    use super::*;
    use crate::operation::{lease::LeaseToken, payload::Payload};

    fn lease_with_report(name: &str, bytes: usize) -> (Arc<HeldLease>, Report) {
        let lease_duration = Duration::from_secs(30);
        let held = HeldLease::new(name, LeaseToken::random(), lease_duration, Arc::default());
        let any = Any {
            type_url: "a.com/b.C".to_owned(),
            value: vec![0; bytes],
        };
        let checkpoint = (0 < bytes).then(|| Payload::new(any).expect("it is proper"));
        let report = Report {
            checkpoint,
            ..Report::default()
        };
        (Arc::new(held), report)
    }

    fn lease_names(batch: &HeartbeatBatch) -> Vec<&str> {
        batch.leases().map(|held| &*held.name).collect()
    }

    #[test]
    fn heartbeat_has_at_most_1000_leases_and_3_mib_except_single_report() {
        let batches = HeartbeatBatch::split((0..2001).map(|_| lease_with_report("x", 0)).collect());
        let counts: Vec<_> = batches.iter().map(|batch| batch.0.len()).collect();
        assert_eq!(counts, [1000, 1000, 1]);

        let mib = 1 << 20;
        let batches = HeartbeatBatch::split(vec![
            lease_with_report("huge", 9 * mib),
            lease_with_report("a", 2 * mib),
            lease_with_report("bare", 0),
            lease_with_report("b", 2 * mib),
        ]);
        let names: Vec<_> = batches.iter().map(lease_names).collect();
        assert_eq!(names, [vec!["bare", "a"], vec!["b"], vec!["huge"]]);
        assert!(HeartbeatBatch::split(Vec::new()).is_empty());
    }

    #[test]
    fn oversized_heartbeat_is_halved_and_finally_sent_without_report() {
        let status = Status::out_of_range("too large");
        let [batch] = <[HeartbeatBatch; 1]>::try_from(Vec::from(HeartbeatBatch::split(vec![
            lease_with_report("a", 1),
            lease_with_report("b", 2),
            lease_with_report("c", 3),
        ])))
        .expect("they fit into one");
        let halves = batch.shrink(&status);
        let all: Vec<_> = halves.iter().flat_map(lease_names).collect();
        assert_eq!((halves.len(), all), (2, vec!["a", "b", "c"]));
        let one = halves.into_iter().find(|half| half.0.len() == 1);
        let without_report = one.expect("an odd number").shrink(&status).remove(0);
        assert!(without_report.0[0].1.is_empty());
        // Even that is refused: nothing is left to send.
        assert!(without_report.shrink(&status).remove(0).is_empty());
    }
}
