//! The whole behaviour again, over each store that keeps more than memory does:
//! what clients see must not depend on where operations are kept.

use std::process::Command;

use crate::support::stores::SQLITE;

/// Tests that say themselves what keeps the operations, or that are about a
/// program which is told so by its flags.
const OTHERS: [&str; 4] = ["over_stores", "durability", "recovery", "program"];

#[test]
fn the_behaviour_is_the_same_over_a_sqlite_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.env(SQLITE, directory.path()).arg("--quiet");
    for other in OTHERS {
        again.arg("--skip").arg(other);
    }
    let output = again.output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
