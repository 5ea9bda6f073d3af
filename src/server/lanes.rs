//! The lanes: one thread and one current-thread runtime for each core.
//!
//! A call served on a work-stealing runtime costs a quarter more than on one
//! that never moves a task. A connection therefore stays in the lane it is
//! given, and lanes share nothing but the service. Accepting, and everything
//! that is not a connection, runs on the runtime of the caller.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::{self, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

#[cfg(test)]
mod tests;

/// A set of lanes, cheap to clone. They end when the last clone is dropped, and
/// every task still in them is dropped with them.
#[derive(Clone)]
pub(crate) struct Lanes {
    lanes: Arc<[Lane]>,
    _end: Arc<DropGuard>,
}

struct Lane {
    runtime: Handle,
    open: Arc<AtomicUsize>,
}

/// A connection's place in a lane; the lane counts it until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    runtime: Handle,
    open: Arc<AtomicUsize>,
}

// === impl Lanes ===

impl Lanes {
    /// Starts `count` lanes as threads `lane-0`, `lane-1`, …; 0 is one for each
    /// processor that the process may use.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread or what its runtime needs.
    pub(crate) fn start(count: usize) -> io::Result<Self> {
        let count = match count {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let end = CancellationToken::new();
        // Dropped on the way out of an error, it ends the lanes already started.
        let guard = Arc::new(end.clone().drop_guard());
        let lanes: io::Result<Arc<[Lane]>> = (0..count)
            .map(|index| Lane::start(index, end.clone()))
            .collect();
        Ok(Self {
            lanes: lanes?,
            _end: guard,
        })
    }

    /// A place in the lane with the fewest open connections.
    pub(super) fn place(&self) -> Place {
        let lane = self
            .lanes
            .iter()
            .min_by_key(|lane| lane.open.load(Ordering::Relaxed))
            .expect("there is at least one lane");
        lane.open.fetch_add(1, Ordering::Relaxed);
        Place {
            runtime: lane.runtime.clone(),
            open: Arc::clone(&lane.open),
        }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self
            .lanes
            .iter()
            .map(|lane| lane.open.load(Ordering::Relaxed));
        f.debug_list().entries(open).finish()
    }
}

// === impl Lane ===

impl Lane {
    fn start(index: usize, end: CancellationToken) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name(format!("lane-{index}"))
            .spawn(move || runtime.block_on(end.cancelled_owned()))?;
        Ok(Self {
            runtime: handle,
            open: Arc::default(),
        })
    }
}

// === impl Place ===

impl Place {
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
