//! Signals: the first SIGTERM or SIGINT drains, the second aborts; SIGHUP
//! reloads. What a drain is, is decided in `app`, and what is reloaded in `types`.

use std::{future::Future, io};

use tokio::{
    select,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::tasks::Tasks;

/// Listens for signals from now on. The first future resolves at the first
/// signal, the second one at the second.
///
/// # Errors
/// If the system refuses to hand out signals.
pub fn shutdown_signals() -> io::Result<(impl Future<Output = ()>, impl Future<Output = ()>)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let tokens = (first.clone(), second.clone());
    Tasks::default().spawn("signals", async move {
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

/// Receives a word for each SIGHUP from now on; several at once may be one.
///
/// # Errors
/// If the system refuses to hand out signals.
pub fn reload_signals() -> io::Result<mpsc::Receiver<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::channel(1);
    Tasks::default().spawn("hangups", async move {
        while hangup.recv().await.is_some() {
            if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                return;
            }
        }
    });
    Ok(receiver)
}
