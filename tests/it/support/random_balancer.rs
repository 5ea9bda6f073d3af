//! A tower service that sends each call to a random one of several services.

use std::task::{Context, Poll};

use http::Request;
use tower::Service;
use uuid::Uuid;

/// Balances calls between services at random.
#[derive(Clone)]
pub(crate) struct RandomBalancer<S>(Vec<S>);

// === impl RandomBalancer ===

impl<S> RandomBalancer<S> {
    pub(crate) fn new(services: impl IntoIterator<Item = S>) -> Self {
        Self(services.into_iter().collect())
    }

    fn choose(&mut self) -> &mut S {
        let index = Uuid::new_v4().as_u128() % self.0.len() as u128;
        &mut self.0[usize::try_from(index).unwrap()]
    }
}

impl<S, B> Service<Request<B>> for RandomBalancer<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    // The services of this crate are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        self.choose().call(request)
    }
}
