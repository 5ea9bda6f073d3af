//! The examples of `docs/http.md`, run as they stand there. Only the address is
//! another one, because the test has no say over port 8470.

use serde_json::Value;
use tokio::process::Command;

use crate::support::program::Program;

const PAGE: &str = include_str!("../../docs/http.md");

/// The blocks of code on the page: their language and their text.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let pieces: Vec<_> = PAGE.split("```").collect();
    let inside = pieces.iter().skip(1).step_by(2);
    inside.filter_map(|block| block.split_once('\n')).collect()
}

/// Whether the answer has everything that the page shows; `…` is anything.
fn shows(page: &Value, answer: &Value) -> bool {
    match (page, answer) {
        (Value::String(page), Value::String(_)) if page == "…" => true,
        (Value::Object(page), Value::Object(answer)) => page
            .iter()
            .all(|(key, page)| answer.get(key).is_some_and(|answer| shows(page, answer))),
        (Value::Array(page), Value::Array(answer)) => {
            page.len() == answer.len()
                && page
                    .iter()
                    .zip(answer)
                    .all(|(page, answer)| shows(page, answer))
        }
        (page, answer) => page == answer,
    }
}

#[tokio::test]
async fn the_examples_of_the_page_do_what_the_page_says() {
    let has_curl = Command::new("curl").arg("--version").output().await.is_ok();
    if !has_curl {
        eprintln!("skipped: there is no curl");
        return;
    }
    let program = Program::serve(&[]).await;
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_longrunning"));
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", own.parent().unwrap().display());
    let mut said = String::new();
    let (mut ran, mut compared) = (0, 0);
    for (language, text) in blocks() {
        match language {
            "console" => {
                // The server is there already.
                let script = text
                    .replace("longrunning serve &", "")
                    .replace("127.0.0.1:8470", &program.clients);
                let output = Command::new("bash")
                    .args(["-euo", "pipefail", "-c", &script])
                    .env("PATH", &path)
                    .env("LONGRUNNING_ENDPOINT", program.endpoint())
                    .env(
                        "LONGRUNNING_WORKER_ENDPOINT",
                        format!("http://{}", program.workers),
                    )
                    .output()
                    .await
                    .unwrap();
                assert!(output.status.success(), "{text}: {output:?}");
                said = String::from_utf8(output.stdout).unwrap();
                ran += 1;
            }
            "json" => {
                let page: Value = serde_json::from_str(text).expect(text);
                // The page shows what the last command of a block says.
                let answers = serde_json::Deserializer::from_str(&said[said.find('{').unwrap()..]);
                let answers: Result<Vec<Value>, _> = answers.into_iter().collect();
                let answer = answers.unwrap_or_else(|error| panic!("{error}: {said}"));
                let answer = answer.last().unwrap();
                assert!(shows(&page, answer), "{page:#}\n{answer:#}");
                compared += 1;
            }
            "text" => {
                let page: Vec<_> = text
                    .lines()
                    .map(|line| line.trim_end_matches('…'))
                    .collect();
                let said: Vec<_> = said.lines().collect();
                for (page, said) in page.iter().zip(&said) {
                    assert!(said.starts_with(page), "{page}\n{said}");
                }
                compared += 1;
            }
            _ => {}
        }
    }
    assert!(7 <= ran && 6 <= compared, "{ran} ran, {compared} compared");
}
