//! The demo API: a service with one slow method, built only on the public
//! `Operations` handle.

pub(crate) mod checksum;
pub(crate) mod service;
