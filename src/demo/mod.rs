//! The demo: an API with one slow method, as a service of one's own might have
//! it. It works only through the handle, as a guest would.

pub(crate) mod checksum;
pub(crate) mod service;
