//! The demo: an API with one slow method, as a service of one's own might have
//! it. It uses the library as any guest would.

pub(crate) mod checksum;
pub(crate) mod service;
