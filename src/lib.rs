pub mod proto;
#[cfg(feature = "server")]
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "its caller is being written"))]
mod server;
