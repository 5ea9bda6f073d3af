//! The handler trait that users of the library implement.

use std::{future::Future, pin::Pin, time::Duration};

use prost_types::Any;

use super::context::Context;
use crate::operation::outcome::Failure;

/// Executes the operations of a queue.
///
/// A handler may run more than once for one operation, because a worker can
/// crash. Pass [`Context::attempt`] to other systems as a fencing token. Exactly
/// one outcome is recorded.
///
/// Async functions and closures that take a [`Context`] are handlers:
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
    /// Executes one attempt. The returned `Any` becomes the operation's
    /// `response`; an `Any` without a type URL becomes `google.protobuf.Empty`. A
    /// [`Failure`] becomes its `error`, or causes a retry. A panic is recorded as
    /// INTERNAL.
    ///
    /// The future is dropped at its next await point when the lease is lost or
    /// the shutdown timeout expires.
    fn run(&self, context: Context) -> impl Future<Output = Result<Any, Failure>> + Send;

    /// Returns the time that the future gets for cleanup between
    /// [`Context::cancelled`] and being dropped. The default is zero. The actual
    /// time is at most 1 s after a lost lease, at most the last quarter of the
    /// shutdown timeout in a remote worker, and at most 1 s after the shutdown
    /// timeout in a server.
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

/// The result of one attempt.
pub(crate) type HandlerResult = Result<Any, Failure>;

/// The boxed future of a [`DynHandler`].
pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = HandlerResult> + Send>>;

/// The dyn-compatible form of [`Handler`].
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
