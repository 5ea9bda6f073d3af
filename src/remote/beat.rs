//! What goes into one heartbeat, so that no report can cost a lease, neither
//! its own nor another's. When one is sent is decided in `keeper`.

use std::{collections::VecDeque, sync::Arc};

use prost::Message;
use tonic::Status;

use super::held::Held;
use crate::{operation::stage::Report, proto::longrunning::v1::LeaseReport};

/// The most leases of one heartbeat; the server refuses more.
const MOST: usize = 1000;
/// The most bytes of one, unless it has one report only. A server takes 4 MiB,
/// if nobody told it otherwise.
const SIZE: usize = 3 << 20;

/// One heartbeat: leases to renew, and what is new of them.
#[derive(Debug, Default)]
pub(super) struct Beat(Vec<(Arc<Held>, Report)>);

// === impl Beat ===

impl Beat {
    /// The heartbeats that tell all of this, small reports first: renewals do
    /// not wait for what takes long, or is refused.
    pub(super) fn split(news: Vec<(Arc<Held>, Report)>) -> VecDeque<Self> {
        let mut sized: Vec<_> = (news.into_iter())
            .map(|(held, report)| (held.report(&report).encoded_len(), held, report))
            .collect();
        sized.sort_by_key(|(size, ..)| *size);
        let (mut beats, mut beat, mut total) = (VecDeque::new(), Self::default(), 0);
        for (size, held, report) in sized {
            let is_full = beat.0.len() == MOST || SIZE < total + size;
            if is_full && !beat.0.is_empty() {
                beats.push_back(std::mem::take(&mut beat));
                total = 0;
            }
            total += size;
            beat.0.push((held, report));
        }
        if !beat.0.is_empty() {
            beats.push_back(beat);
        }
        beats
    }

    pub(super) fn reports(&self) -> Vec<LeaseReport> {
        let reports = self.0.iter().map(|(held, report)| held.report(report));
        reports.collect()
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.0.iter().map(|(held, _)| held)
    }

    /// What is sent instead of a heartbeat that was too large for the server:
    /// its halves; of one report, a sign of life without it.
    pub(super) fn smaller(mut self, status: &Status) -> Vec<Self> {
        if 1 < self.0.len() {
            let half = self.0.split_off(self.0.len() / 2);
            return vec![self, Self(half)];
        }
        self.0.retain_mut(|(held, report)| {
            held.drop_report(status);
            !std::mem::take(report).is_empty()
        });
        // Not even a sign of life is taken: then the lease runs out.
        vec![self]
    }

    /// Keeps for the next time what did not get through.
    pub(super) fn put_back(self) {
        for (held, report) in self.0 {
            held.put_back(report);
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

    fn news(name: &str, bytes: usize) -> (Arc<Held>, Report) {
        let lease = Duration::from_secs(30);
        let held = Held::new(name, LeaseToken::random(), lease, Arc::default());
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

    fn names(beat: &Beat) -> Vec<&str> {
        beat.leases().map(|held| &*held.name).collect()
    }

    #[test]
    fn a_heartbeat_has_at_most_1000_leases_and_3_mib_unless_one_report_has_more() {
        let beats = Beat::split((0..2001).map(|_| news("x", 0)).collect());
        let counts: Vec<_> = beats.iter().map(|beat| beat.0.len()).collect();
        assert_eq!(counts, [1000, 1000, 1]);

        let mib = 1 << 20;
        let beats = Beat::split(vec![
            news("huge", 9 * mib),
            news("a", 2 * mib),
            news("bare", 0),
            news("b", 2 * mib),
        ]);
        let names: Vec<_> = beats.iter().map(names).collect();
        assert_eq!(names, [vec!["bare", "a"], vec!["b"], vec!["huge"]]);
        assert!(Beat::split(Vec::new()).is_empty());
    }

    #[test]
    fn what_is_too_large_is_halved_and_at_last_sent_without_its_report() {
        let status = Status::out_of_range("too large");
        let [beat] = <[Beat; 1]>::try_from(Vec::from(Beat::split(vec![
            news("a", 1),
            news("b", 2),
            news("c", 3),
        ])))
        .expect("they fit into one");
        let halves = beat.smaller(&status);
        let all: Vec<_> = halves.iter().flat_map(names).collect();
        assert_eq!((halves.len(), all), (2, vec!["a", "b", "c"]));
        let one = halves.into_iter().find(|half| half.0.len() == 1);
        let bare = one.expect("an odd number").smaller(&status).remove(0);
        assert!(bare.0[0].1.is_empty());
        // Even that is refused: nothing is left to send.
        assert!(bare.smaller(&status).remove(0).is_empty());
    }
}
