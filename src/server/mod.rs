//! The `longrunning serve` program as a library: listeners, configuration, signals,
//! logging and drain.
//!
//! Start with [`Config`]; [`Config::bind_and_start`] returns an [`App`], and
//! [`App::run`] serves until a signal.
//!
//! ```text
//! socket (TCP or Unix)          listener, accept: assigned to a connection thread
//!   └ BufferedSocket            write_coalescer: one send per poll
//!       └ ErrorBodyRewriter     http1_error_body: JSON bodies for hyper's own errors
//!           └ TokioIo           hyper-util adapter
//!               └ hyper         connection: HTTP/1.1 or HTTP/2, timeouts;
//!                   │           inline_executor polls each HTTP/2 call
//!                   ├ GrpcMetrics           grpc::metrics_layer
//!                   │   └ ServiceRouter     services: by path
//!                   │       ├ tonic servers     Operations, OperationWatch, OperationWorker, …
//!                   │       └ Gateway           HTTP/JSON
//!                   └ AdminService          admin listener: probes, metrics
//! ```

mod accept;
mod admin;
mod app;
mod config;
mod connection;
mod http1_error_body;
mod inline_executor;
mod listener;
mod log_queue;
mod runtime_pool;
mod services;
mod signals;
mod store_config;
mod telemetry;
mod type_reload;
mod write_coalescer;

pub use app::{App, AppError, ShutdownOutcome};
pub use config::{Config, QueueConfig};
pub use connection::ConnectionOptions;
pub use listener::{InvalidListenAddress, ListenAddress};
pub use signals::{ignore_file_size_signal, reload_signals, shutdown_signals};
pub use store_config::{InvalidStoreConfig, StoreConfig};
pub use telemetry::{LogFormat, LogGuard, init as init_telemetry, log_panics};
pub use type_reload::TypeReloadError;
