//! The `longrunning` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    longrunning::cli::main()
}
