//! The examples of `docs/http.md`, run as written, except for the address: port 8470
//! may be in use.

use serde_json::Value;
use tokio::process::Command;

use crate::support::serve_process::ServeProcess;

const HTTP_DOC: &str = include_str!("../../../docs/http.md");

/// Returns language and text of each code block of the page.
fn code_blocks() -> Vec<(&'static str, &'static str)> {
    let pieces: Vec<_> = HTTP_DOC.split("```").collect();
    let inside = pieces.iter().skip(1).step_by(2);
    inside.filter_map(|block| block.split_once('\n')).collect()
}

/// Returns `true` if `actual` has every value of `expected`; `…` matches any string.
fn matches_example(expected: &Value, actual: &Value) -> bool {
    match (expected, actual) {
        (Value::String(expected), Value::String(_)) if expected == "…" => true,
        (Value::Object(expected), Value::Object(actual)) => {
            expected.iter().all(|(key, expected)| {
                actual
                    .get(key)
                    .is_some_and(|actual| matches_example(expected, actual))
            })
        }
        (Value::Array(expected), Value::Array(actual)) => {
            expected.len() == actual.len()
                && expected
                    .iter()
                    .zip(actual)
                    .all(|(expected, actual)| matches_example(expected, actual))
        }
        (expected, actual) => expected == actual,
    }
}

// Rules: HTTP-21
#[tokio::test]
async fn http_doc_examples_produce_documented_output() {
    let has_curl = Command::new("curl").arg("--version").output().await.is_ok();
    if !has_curl {
        eprintln!("skipped: curl is not installed");
        return;
    }
    let program = ServeProcess::serve(&[]).await;
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_longrunning"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", binary.parent().unwrap().display());
    let mut stdout = String::new();
    let (mut ran, mut compared) = (0, 0);
    for (language, text) in code_blocks() {
        match language {
            "console" => {
                // The test has started the server already.
                let script = text
                    .replace("longrunning serve &", "")
                    .replace("127.0.0.1:8470", &program.client_address);
                let output = Command::new("bash")
                    .args(["-euo", "pipefail", "-c", &script])
                    .env("PATH", &path)
                    .env("LONGRUNNING_ENDPOINT", program.endpoint())
                    .env(
                        "LONGRUNNING_WORKER_ENDPOINT",
                        format!("http://{}", program.worker_address),
                    )
                    .output()
                    .await
                    .unwrap();
                assert!(output.status.success(), "{text}: {output:?}");
                stdout = String::from_utf8(output.stdout).unwrap();
                ran += 1;
            }
            "json" => {
                let expected: Value = serde_json::from_str(text).expect(text);
                // The page shows the output of the last command of a block.
                let outputs =
                    serde_json::Deserializer::from_str(&stdout[stdout.find('{').unwrap()..]);
                let outputs: Result<Vec<Value>, _> = outputs.into_iter().collect();
                let all_outputs = outputs.unwrap_or_else(|error| panic!("{error}: {stdout}"));
                let actual = all_outputs.last().unwrap();
                assert!(
                    matches_example(&expected, actual),
                    "{expected:#}\n{actual:#}"
                );
                compared += 1;
            }
            "text" => {
                let expected_lines: Vec<_> = text
                    .lines()
                    .map(|line| line.trim_end_matches('…'))
                    .collect();
                let lines: Vec<_> = stdout.lines().collect();
                for (expected_line, line) in expected_lines.iter().zip(&lines) {
                    assert!(line.starts_with(expected_line), "{expected_line}\n{line}");
                }
                compared += 1;
            }
            _ => {}
        }
    }
    assert!(ran >= 7 && compared >= 6, "{ran} ran, {compared} compared");
}
