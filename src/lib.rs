pub mod proto;
#[cfg(feature = "server")]
#[expect(dead_code, reason = "the program around it is being written")]
mod server;
