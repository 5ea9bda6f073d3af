//! Why a server cannot be reached, in the words of the system: the errors of the
//! transport themselves say little.

/// What is behind an error of the transport.
pub(crate) fn root_cause(error: &tonic::transport::Error) -> String {
    let first = std::error::Error::source(error);
    let last = std::iter::successors(first, |error| error.source()).last();
    last.map_or_else(|| error.to_string(), ToString::to_string)
}
