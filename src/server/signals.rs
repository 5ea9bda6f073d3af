//! Converts process signals to futures: the first SIGTERM or SIGINT drains the
//! server, the second aborts the drain, SIGHUP reloads the message types. SIGXFSZ is
//! ignored.

use std::{future::Future, io};

use rustix::process::Signal;
use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Installs handlers for SIGTERM and SIGINT. The first future resolves at the first
/// signal of either kind, the second future at the second signal.
///
/// # Errors
/// The system cannot register the handlers.
pub fn shutdown_signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let tokens = (first.clone(), second.clone());
    Tasks::default().spawn("shutdown signals", async move {
        for token in [tokens.0, tokens.1] {
            select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok((first.cancelled_owned(), second.cancelled_owned()))
}

/// Installs a handler for SIGXFSZ that does nothing, so that a write beyond the file size
/// limit fails, and does not end the process. Child processes do not inherit it.
///
/// # Errors
/// The system cannot register the handler.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // The handler outlives the stream.
    signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).map(drop)
}

/// Installs a handler for SIGHUP. The channel receives a value for each signal; signals
/// in quick succession may be merged.
///
/// # Errors
/// The system cannot register the handler.
pub fn reload_signals() -> io::Result<mpsc::Receiver<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(1);
    Tasks::default().spawn("reload signals", async move {
        while hangup.recv().await.is_some() {
            if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                return;
            }
        }
    });
    Ok(receiver)
}
