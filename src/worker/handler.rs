//! Handlers: the work itself, as the user of the library writes it.

use std::{future::Future, pin::Pin, time::Duration};

use prost_types::Any;

use super::context::Context;
use crate::operation::outcome::Failure;

/// Executes the operations of a queue.
///
/// A handler may run more than once for one operation, if a worker is lost; use
/// [`Context::attempt`] as a fencing number towards other systems. Exactly one
/// outcome is recorded.
///
/// Async closures and functions from [`Context`] to a result are handlers:
///
/// ```
/// use longrunning::{Any, Context, Failure, Operations};
///
/// # async fn start() -> Result<(), longrunning::StartError> {
/// async fn greet(context: Context) -> Result<Any, Failure> {
///     Ok(context.input().cloned().unwrap_or_default())
/// }
/// let operations = Operations::builder().handler("greetings", 4, greet).start().await?;
/// # Ok(())
/// # }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Does the work. The `Any` becomes the operation's `response`; an `Any`
    /// without a type becomes `google.protobuf.Empty`. A [`Failure`] becomes its
    /// `error`, or leads to another attempt. A panic is recorded as INTERNAL.
    ///
    /// The future is dropped when the lease is lost, and when the grace of a
    /// shutdown is over.
    fn run(&self, context: Context) -> impl Future<Output = Result<Any, Failure>> + Send;

    /// How long the future should go on after [`Context::cancelled`] before it
    /// is dropped, so that it can tidy up. Zero without it. After a lost lease
    /// it gets 1 s at most; of the grace of a remote worker the last quarter at
    /// most, and 1 s after that of a server.
    fn shutdown_grace(&self) -> Duration {
        Duration::ZERO
    }
}

impl<F, Fut> Handler for F
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Any, Failure>> + Send,
{
    fn run(&self, context: Context) -> impl Future<Output = Result<Any, Failure>> + Send {
        self(context)
    }
}

/// What comes of a handler.
pub(crate) type HandlerResult = Result<Any, Failure>;

/// The running work of a handler that is known only at run time.
pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

/// A handler that is known only at run time.
pub(crate) trait DynHandler: Send + Sync {
    fn start(self: std::sync::Arc<Self>, context: Context) -> HandlerFuture;
    fn shutdown_grace(&self) -> Duration;
}

impl<H: Handler> DynHandler for H {
    fn start(self: std::sync::Arc<Self>, context: Context) -> HandlerFuture {
        Box::pin(async move { self.run(context).await })
    }

    fn shutdown_grace(&self) -> Duration {
        Handler::shutdown_grace(self)
    }
}
