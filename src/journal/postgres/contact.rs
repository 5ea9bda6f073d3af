//! Since when the database has been within reach. Who could not reach it cannot
//! have renewed a lease, so that leases are judged by this.

use std::{mem, time::Duration};

use parking_lot::Mutex;
use tracing::warn;

use crate::{
    clock::{Clock, Timestamp},
    journal::journal::Reach,
};

/// It is asked what is new at least every second. If nothing was heard for longer
/// than this, the database was silent, or we were paused.
const BREAK: Duration = Duration::from_secs(5);

/// How far our clock may be ahead of that of the database before it is said.
const AHEAD: Duration = Duration::from_secs(1);

/// When the database was within reach.
#[derive(Debug)]
pub(super) struct Contact {
    clock: Clock,
    heard: Mutex<Heard>,
}

#[derive(Debug)]
struct Heard {
    /// Without a break.
    since: Timestamp,
    /// When the last answer came.
    last: Timestamp,
    /// Up to when all that was changed has been read.
    read: Timestamp,
    /// It was said that our clock is ahead.
    is_ahead: bool,
    /// Why what was asked last got no answer.
    trouble: Option<String>,
}

// === impl Contact ===

impl Contact {
    /// It begins now.
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock.now();
        Self {
            clock,
            heard: Mutex::new(Heard {
                since: now,
                last: now,
                read: now,
                is_ahead: false,
                trouble: None,
            }),
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// It said what was new when it was asked at that time; tells whether it had
    /// been out of reach.
    pub(super) fn answered(&self, asked: Timestamp) -> bool {
        let (mut heard, now) = (self.heard.lock(), self.now());
        heard.since = heard.since_at(now);
        heard.last = now;
        heard.read = asked;
        heard.trouble.take().is_some()
    }

    /// Its clock showed `theirs` after it was asked: ours cannot be behind that, and
    /// was ahead if it showed more when we asked.
    pub(super) fn told_time(&self, asked: Timestamp, theirs: Timestamp) {
        self.clock.put_forward(theirs);
        let mut heard = self.heard.lock();
        let ahead = asked.since(theirs);
        if AHEAD < ahead && !mem::replace(&mut heard.is_ahead, true) {
            warn!(
                seconds = ahead.as_secs_f64(),
                "the clock goes faster here than at the database, so that leases may end early; \
                 restart this server"
            );
        }
    }

    /// It did not answer, for this reason; tells whether it had until then.
    pub(super) fn broke(&self, trouble: String) -> bool {
        self.heard.lock().trouble.replace(trouble).is_none()
    }

    /// It takes changes again.
    pub(super) fn begin(&self) {
        self.heard.lock().since = self.now();
    }

    /// Since when there was no break, if there is none now; and up to when all that
    /// was changed has been read.
    pub(super) fn reach(&self) -> Reach {
        let heard = self.heard.lock();
        Reach {
            since: heard.since_at(self.now()),
            read: heard.read,
        }
    }

    /// Why it cannot be read at present.
    pub(super) fn trouble(&self) -> Option<String> {
        self.heard.lock().trouble.clone()
    }
}

// === impl Heard ===

impl Heard {
    fn since_at(&self, now: Timestamp) -> Timestamp {
        if self.trouble.is_some() || BREAK < now.since(self.last) {
            now
        } else {
            self.since
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_answer_after_none_begins_anew_and_one_after_another_does_not() {
        let clock = Clock::system();
        let contact = Contact::new(clock);
        let begun = clock.now();
        for _ in 0..10 {
            advance(SECOND).await;
            assert!(!contact.answered(clock.now()));
        }
        assert_eq!(contact.reach().since, begun);
        assert!(contact.broke("gone".to_owned()));
        advance(SECOND).await;
        assert!(!contact.broke("still gone".to_owned()));
        assert_eq!(contact.reach().since, clock.now(), "it is not over");
        assert_eq!(contact.trouble().as_deref(), Some("still gone"));
        assert!(contact.answered(clock.now()));
        assert_eq!(contact.trouble(), None);
        let again = clock.now();
        advance(SECOND).await;
        assert!(!contact.answered(again));
        assert_eq!(contact.reach().since, again);
        assert_eq!(contact.reach().read, again);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_a_break_though_nothing_failed() {
        let clock = Clock::system();
        let contact = Contact::new(clock);
        advance(2 * BREAK).await;
        assert_eq!(contact.reach().since, clock.now());
        contact.answered(clock.now());
        assert_eq!(contact.reach().since, clock.now());
    }
}
