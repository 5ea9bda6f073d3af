//! A bounded queue of log lines with a thread that writes them, so that a reader of the log
//! that stops blocks nothing else.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, LazyLock},
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing::{Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// The maximum size of the lines that wait. As much again may be in the hands of the thread.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;

/// The dropped lines of this process, which has one standard error.
static DROPPED_LINES: LazyLock<Counter> = LazyLock::new(Counter::default);

/// A queue of log lines. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct LogQueue(Arc<Shared>);

/// Writes one line into the queue by each call of `write`.
#[derive(Debug)]
pub(super) struct LineWriter<'a> {
    queue: &'a LogQueue,
    is_limited: bool,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<QueuedLines>,
    /// Notified when a line is queued.
    queued: Condvar,
    /// Notified when all lines are written.
    written: Condvar,
    dropped_lines: Counter,
}

#[derive(Debug, Default)]
struct QueuedLines {
    text: Vec<u8>,
    count: u64,
    /// Whether the thread has lines that it took and has not written yet.
    is_writing: bool,
    /// Dropped lines that are not in the log yet, as a number.
    unreported: u64,
}

/// Returns the counter of the log lines that were dropped.
pub(super) fn dropped_lines() -> Counter {
    DROPPED_LINES.clone()
}

// === impl LogQueue ===

impl LogQueue {
    /// Creates a queue and starts the thread that writes its lines to standard error.
    ///
    /// # Errors
    /// The system cannot start the thread.
    pub(super) fn start() -> io::Result<Self> {
        Self::start_with(io::stderr(), dropped_lines())
    }

    fn start_with(output: impl Write + Send + 'static, dropped_lines: Counter) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared {
            lines: Mutex::default(),
            queued: Condvar::new(),
            written: Condvar::new(),
            dropped_lines,
        }));
        let writer = queue.clone();
        // A thread, not a task: the log works without a runtime and after its end.
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || writer.write_lines(output))?;
        Ok(queue)
    }

    /// Appends a line to the queue, or drops it if the queue is full and `is_limited`.
    /// Does not block.
    pub(super) fn push(&self, line: &[u8], is_limited: bool) {
        let mut lines = self.0.lines.lock();
        let is_full = !lines.text.is_empty() && lines.text.len() + line.len() > MAX_QUEUED_BYTES;
        if is_full && is_limited {
            lines.unreported += 1;
            self.0.dropped_lines.inc();
            return;
        }
        lines.text.extend_from_slice(line);
        lines.count += 1;
        drop(lines);
        self.0.queued.notify_one();
    }

    /// Waits until all lines are written, but no longer than `timeout`. Returns whether they are.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let mut lines = self.0.lines.lock();
        let is_pending = |lines: &mut QueuedLines| lines.is_writing || !lines.text.is_empty();
        let wait = self
            .0
            .written
            .wait_while_for(&mut lines, is_pending, timeout);
        !wait.timed_out()
    }

    /// Writes lines as they come. Never returns.
    fn write_lines(&self, mut output: impl Write) {
        let mut text = Vec::new();
        loop {
            let mut lines = self.0.lines.lock();
            lines.is_writing = false;
            if lines.text.is_empty() {
                self.0.written.notify_all();
            }
            self.0
                .queued
                .wait_while(&mut lines, |lines| lines.text.is_empty());
            lines.is_writing = true;
            text.clear();
            mem::swap(&mut text, &mut lines.text);
            let count = mem::take(&mut lines.count);
            drop(lines);
            // The lock is free: here the thread waits for a reader that has stopped.
            match output.write_all(&text) {
                Ok(()) => self.report_dropped_lines(),
                // After a hangup every write fails; the next may succeed if only the disk was full.
                Err(_) => self.record_lost_lines(count),
            }
        }
    }

    /// Logs how many lines were dropped since the last report.
    fn report_dropped_lines(&self) {
        let lines = mem::take(&mut self.0.lines.lock().unreported);
        if lines > 0 {
            warn!(
                lines,
                "log lines were dropped, because standard error was not read or failed"
            );
        }
    }

    fn record_lost_lines(&self, count: u64) {
        self.0.lines.lock().unreported += count;
        self.0.dropped_lines.inc_by(count);
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter {
            queue: self,
            is_limited: true,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> LineWriter<'a> {
        // The report of dropped lines comes while the queue may be full again.
        LineWriter {
            queue: self,
            is_limited: metadata.target() != module_path!(),
        }
    }
}

// === impl LineWriter ===

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(line, self.is_limited);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// An output whose `write` waits for a result, and then passes on what was written.
    struct GatedOutput {
        results: Receiver<io::Result<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for GatedOutput {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            // A test that has ended wants no more.
            self.results.recv().unwrap_or(Ok(()))?;
            let _ = self.written.send(text.to_vec());
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start_gated() -> (LogQueue, Counter, Sender<io::Result<()>>, Receiver<Vec<u8>>) {
        let ((gate, results), (written, output)) = (channel(), channel());
        let dropped = Counter::default();
        let gated = GatedOutput { results, written };
        let queue = LogQueue::start_with(gated, dropped.clone()).unwrap();
        (queue, dropped, gate, output)
    }

    // Rules: ADM-3
    #[test]
    fn lines_beyond_full_queue_are_dropped_and_counted_without_blocking() {
        let (queue, dropped, gate, output) = start_gated();
        let line = vec![b'x'; MAX_QUEUED_BYTES / 4];
        for _ in 0..20 {
            queue.push(&line, true);
        }
        // The thread may have taken some lines already, at most as much as the queue holds.
        let kept = 20 - dropped.get();
        assert!((4..=8).contains(&kept), "{kept}");
        queue.push(b"unlimited\n", false);
        assert_eq!(dropped.get(), 20 - kept);
        drop(gate);
        assert!(queue.flush(Duration::from_secs(60)));
        let text: Vec<u8> = output.try_iter().flatten().collect();
        assert_eq!(
            text.len(),
            usize::try_from(kept).unwrap() * line.len() + b"unlimited\n".len()
        );
        assert!(text.ends_with(b"unlimited\n"));
    }

    // Rules: ADM-3
    #[test]
    fn flush_waits_for_all_lines_but_no_longer_than_its_timeout() {
        let (queue, dropped, gate, output) = start_gated();
        queue.push(b"one\n", true);
        assert!(!queue.flush(Duration::from_millis(1)));
        drop(gate);
        assert!(queue.flush(Duration::from_secs(60)));
        assert_eq!(output.recv().unwrap(), b"one\n");
        assert_eq!(dropped.get(), 0);
    }

    // Rules: ADM-3
    #[test]
    fn lines_of_failed_write_are_counted_and_later_lines_written() {
        let (queue, dropped, gate, output) = start_gated();
        gate.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        queue.push(b"lost\n", true);
        assert!(queue.flush(Duration::from_secs(60)));
        assert_eq!(dropped.get(), 1);
        gate.send(Ok(())).unwrap();
        queue.push(b"written\n", true);
        assert_eq!(output.recv().unwrap(), b"written\n");
    }
}
