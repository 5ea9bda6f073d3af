//! Handlers whose start and end a test observes.

use std::sync::Arc;

use longrunning::{Any, Context, Failure, Handler};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

/// Sends a message when it is dropped, for example because its handler was stopped.
struct DropNotifier(Option<oneshot::Sender<()>>);

impl Drop for DropNotifier {
    fn drop(&mut self) {
        if let Some(dropped_tx) = self.0.take() {
            let _ = dropped_tx.send(());
        }
    }
}

/// Returns a handler that sends the context of each attempt and then never ends.
///
/// `dropped_tx` fires when the future of the first attempt is dropped.
pub(crate) fn never_ending_handler(
    started_tx: mpsc::Sender<Context>,
    dropped_tx: oneshot::Sender<()>,
) -> impl Handler {
    let dropped_tx = Arc::new(Mutex::new(Some(dropped_tx)));
    move |context: Context| {
        let (started_tx, dropped_tx) = (started_tx.clone(), dropped_tx.clone());
        async move {
            let _notifier = DropNotifier(dropped_tx.lock().take());
            started_tx.send(context).await.unwrap();
            std::future::pending::<Result<Any, Failure>>().await
        }
    }
}
