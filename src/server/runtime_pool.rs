//! The connection threads, each with a current-thread runtime.
//!
//! A call on a work-stealing runtime costs a quarter more CPU (measured), so a
//! connection stays on the thread it is assigned to.

use std::{
    io,
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

/// A pool of connection runtimes. Clones share it. Dropping the last clone stops the
/// threads and drops their tasks.
#[derive(Clone, Debug)]
pub(crate) struct RuntimePool {
    runtimes: Arc<[Arc<ConnectionRuntime>]>,
    _stop_guard: Arc<DropGuard>,
}

#[derive(Debug)]
struct ConnectionRuntime {
    handle: Handle,
    open_connections: AtomicUsize,
}

/// Assignment of a connection to a runtime, which counts it until this is dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot(Arc<ConnectionRuntime>);

// === impl RuntimePool ===

impl RuntimePool {
    /// Starts `thread_count` threads named `longrun-io-0` and so on. 0 is one per
    /// available processor.
    ///
    /// # Errors
    /// The system cannot create a thread or the IO driver of its runtime.
    pub(crate) fn start(thread_count: usize) -> io::Result<Self> {
        let thread_count = match thread_count {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let stop_token = CancellationToken::new();
        // On an error, dropping the guard stops the threads already started.
        let guard = Arc::new(stop_token.clone().drop_guard());
        let runtimes: io::Result<Arc<[_]>> = (0..thread_count)
            .map(|index| ConnectionRuntime::start(index, stop_token.clone()).map(Arc::new))
            .collect();
        Ok(Self {
            runtimes: runtimes?,
            _stop_guard: guard,
        })
    }

    /// Assigns a connection to the runtime with the fewest open connections.
    pub(super) fn assign(&self) -> ConnectionSlot {
        let least_loaded = self
            .runtimes
            .iter()
            .min_by_key(|runtime| runtime.open_connections.load(Ordering::Relaxed))
            .expect("the pool has at least one runtime");
        least_loaded
            .open_connections
            .fetch_add(1, Ordering::Relaxed);
        ConnectionSlot(Arc::clone(least_loaded))
    }
}

// === impl ConnectionRuntime ===

impl ConnectionRuntime {
    fn start(index: usize, stop_token: CancellationToken) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name(format!("longrun-io-{index}"))
            .spawn(move || runtime.block_on(stop_token.cancelled_owned()))?;
        let open_connections = AtomicUsize::new(0);
        Ok(Self {
            handle,
            open_connections,
        })
    }
}

// === impl ConnectionSlot ===

impl ConnectionSlot {
    pub(super) fn handle(&self) -> &Handle {
        &self.0.handle
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, Ordering::Relaxed);
    }
}
