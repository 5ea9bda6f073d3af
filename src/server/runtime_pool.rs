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
pub(crate) struct RuntimePool {
    runtimes: Arc<[ConnectionRuntime]>,
    _stop_guard: Arc<DropGuard>,
}

struct ConnectionRuntime {
    handle: Handle,
    open_connections: Arc<AtomicUsize>,
}

/// A connection's place in a lane; the lane counts it until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    handle: Handle,
    open_connections: Arc<AtomicUsize>,
}

// === impl Lanes ===

impl RuntimePool {
    /// Starts `count` lanes as threads `lane-0`, `lane-1`, …; 0 is one for each
    /// processor that the process may use.
    ///
    /// # Errors
    ///
    /// When the system refuses a thread or what its runtime needs.
    pub(crate) fn start(thread_count: usize) -> io::Result<Self> {
        let thread_count = match thread_count {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let stop_token = CancellationToken::new();
        // Dropped on the way out of an error, it ends the lanes already started.
        let guard = Arc::new(stop_token.clone().drop_guard());
        let runtimes: io::Result<Arc<[ConnectionRuntime]>> = (0..thread_count)
            .map(|index| ConnectionRuntime::start(index, stop_token.clone()))
            .collect();
        Ok(Self {
            runtimes: runtimes?,
            _stop_guard: guard,
        })
    }

    /// A place in the lane with the fewest open connections.
    pub(super) fn assign(&self) -> ConnectionSlot {
        let least_loaded = self
            .runtimes
            .iter()
            .min_by_key(|lane| lane.open_connections.load(Ordering::Relaxed))
            .expect("there is at least one lane");
        least_loaded
            .open_connections
            .fetch_add(1, Ordering::Relaxed);
        ConnectionSlot {
            handle: least_loaded.handle.clone(),
            open_connections: Arc::clone(&least_loaded.open_connections),
        }
    }
}

impl fmt::Debug for RuntimePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open_connections = self
            .runtimes
            .iter()
            .map(|lane| lane.open_connections.load(Ordering::Relaxed));
        f.debug_list().entries(open_connections).finish()
    }
}

// === impl Lane ===

impl ConnectionRuntime {
    fn start(index: usize, stop_token: CancellationToken) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name(format!("lane-{index}"))
            .spawn(move || runtime.block_on(stop_token.cancelled_owned()))?;
        Ok(Self {
            handle,
            open_connections: Arc::default(),
        })
    }
}

// === impl Place ===

impl ConnectionSlot {
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.open_connections.fetch_sub(1, Ordering::Relaxed);
    }
}
