//! Reads the output of a command: the response and output directives on standard
//! output, and the last lines of standard error.

use std::collections::VecDeque;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::context::Context;
use crate::{proto::longrunning::v1::Progress, types::TypeRegistry};

/// The maximum size of a response.
pub(super) const MAX_OUTPUT_BYTES: usize = 2 << 20;
/// The maximum number of lines, and their total size, kept of standard error.
const MAX_TAIL_LINES: usize = 20;
const MAX_TAIL_BYTES: usize = 4096;

/// The response read so far.
#[derive(Debug, Default)]
pub(super) struct CommandOutput {
    response: Vec<u8>,
    partial_line: Vec<u8>,
}

/// The last lines of standard error.
#[derive(Debug, Default)]
pub(super) struct StderrTail {
    lines: VecDeque<String>,
    bytes: usize,
    partial_line: Vec<u8>,
}

/// The response exceeds [`MAX_OUTPUT_BYTES`].
#[derive(Clone, Copy, Debug)]
pub(super) struct OutputTooLargeError;

/// A line of standard output that is not part of the response.
#[derive(Debug, PartialEq)]
enum OutputDirective<'a> {
    /// `::progress 0.4 message`, `::progress 40% message`, `::progress 3/10 files message`.
    Progress(Progress),
    /// `::checkpoint TEXT-or-JSON`.
    Checkpoint(&'a str),
}

// === impl CommandOutput ===

impl CommandOutput {
    /// Reads until end of file and applies directives to `context`. Cancel safe:
    /// output already read is kept.
    pub(super) async fn read(
        &mut self,
        pipe: impl AsyncRead + Unpin,
        context: &Context,
        types: &TypeRegistry,
    ) -> Result<(), OutputTooLargeError> {
        let response = &mut self.response;
        let handle_line = |line: &[u8]| {
            match OutputDirective::parse(line) {
                Some(OutputDirective::Progress(progress)) => context.report_progress(progress),
                Some(OutputDirective::Checkpoint(text)) => context
                    .save_checkpoint(types.parse_output(text))
                    .expect("parse_output returns a valid type URL"),
                None => response.extend_from_slice(line),
            }
            if response.len() > MAX_OUTPUT_BYTES {
                return Err(OutputTooLargeError);
            }
            Ok(())
        };
        for_each_line(
            pipe,
            &mut self.partial_line,
            MAX_OUTPUT_BYTES + 1,
            handle_line,
        )
        .await
    }

    /// Returns the response without its final newline.
    pub(super) fn into_text(mut self) -> String {
        self.response.append(&mut self.partial_line);
        let mut text = String::from_utf8_lossy(&self.response).into_owned();
        if text.ends_with('\n') {
            text.pop();
        }
        text
    }
}

// === impl StderrTail ===

impl StderrTail {
    /// Reads until end of file and passes each line to `on_line`. Cancel safe:
    /// lines already read are kept.
    pub(super) async fn read(
        &mut self,
        pipe: impl AsyncRead + Unpin,
        mut on_line: impl FnMut(&str),
    ) -> Result<(), OutputTooLargeError> {
        let (lines, bytes) = (&mut self.lines, &mut self.bytes);
        let handle_line = |line: &[u8]| {
            let line = String::from_utf8_lossy(line).trim_end().to_owned();
            on_line(&line);
            *bytes += line.len() + 1;
            lines.push_back(line);
            while lines.len() > MAX_TAIL_LINES || *bytes > MAX_TAIL_BYTES {
                *bytes -= lines.pop_front().map_or(0, |line| line.len() + 1);
            }
            Ok(())
        };
        // Each invalid byte becomes U+FFFD, which takes three bytes.
        let max_line_bytes = MAX_TAIL_BYTES / 3 - 1;
        for_each_line(pipe, &mut self.partial_line, max_line_bytes, handle_line).await
    }

    /// Joins the lines. Returns `None` if they are blank.
    pub(super) fn into_text(self) -> Option<String> {
        let mut text = Vec::from(self.lines).join("\n");
        if !self.partial_line.is_empty() {
            text = format!("{text}\n{}", String::from_utf8_lossy(&self.partial_line));
        }
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Passes each line with its newline to `on_line`. A line above `max_line_bytes`
/// is passed in pieces. An incomplete line stays in `partial_line`.
async fn for_each_line(
    pipe: impl AsyncRead + Unpin,
    partial_line: &mut Vec<u8>,
    max_line_bytes: usize,
    mut on_line: impl FnMut(&[u8]) -> Result<(), OutputTooLargeError>,
) -> Result<(), OutputTooLargeError> {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut limited = (&mut pipe).take(max_line_bytes as u64);
        // A read error is treated as end of file.
        if limited.read_until(b'\n', partial_line).await.unwrap_or(0) == 0 {
            return Ok(());
        }
        on_line(partial_line)?;
        partial_line.clear();
    }
}

// === impl OutputDirective ===

impl<'a> OutputDirective<'a> {
    /// Parses a line. Returns `None` for ordinary output.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = str::from_utf8(line).ok()?.trim_end_matches(['\n', '\r']);
        if let Some(text) = line.strip_prefix("::checkpoint ") {
            return Some(Self::Checkpoint(text));
        }
        parse_progress(line.strip_prefix("::progress ")?).map(Self::Progress)
    }
}

fn parse_progress(text: &str) -> Option<Progress> {
    let (amount, rest) = split_first_word(text);
    let Some((done, total)) = amount.split_once('/') else {
        let fraction: f64 = match amount.strip_suffix('%') {
            Some(percent) => percent.parse::<f64>().ok()? / 100.0,
            None => amount.parse().ok()?,
        };
        return (0.0..=1.0).contains(&fraction).then(|| Progress {
            fraction: Some(fraction),
            message: rest.to_owned(),
            ..Progress::default()
        });
    };
    let (unit, message) = split_first_word(rest);
    let parse_units = |text: &str| i64::try_from(text.parse::<u64>().ok()?).ok();
    Some(Progress {
        done_units: parse_units(done)?,
        total_units: parse_units(total)?,
        unit: unit.to_owned(),
        message: message.to_owned(),
        ..Progress::default()
    })
}

/// Splits a text into its first word and the rest.
fn split_first_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    (word, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_progress_line(line: &str) -> Option<Progress> {
        match OutputDirective::parse(line.as_bytes()) {
            Some(OutputDirective::Progress(progress)) => Some(progress),
            _ => None,
        }
    }

    // Rules: COMMAND-2
    #[test]
    fn progress_line_accepts_fraction_percentage_and_done_units() {
        let fraction_progress = |fraction, message: &str| {
            Some(Progress {
                fraction: Some(fraction),
                message: message.to_owned(),
                ..Progress::default()
            })
        };
        assert_eq!(
            parse_progress_line("::progress 0.4 reading it\n"),
            fraction_progress(0.4, "reading it")
        );
        assert_eq!(
            parse_progress_line("::progress 40% reading it\r\n"),
            fraction_progress(0.4, "reading it")
        );
        assert_eq!(
            parse_progress_line("::progress 1"),
            fraction_progress(1.0, "")
        );
        let units_progress = |unit: &str, message: &str| {
            Some(Progress {
                done_units: 3,
                total_units: 10,
                unit: unit.to_owned(),
                message: message.to_owned(),
                ..Progress::default()
            })
        };
        assert_eq!(
            parse_progress_line("::progress 3/10"),
            units_progress("", "")
        );
        assert_eq!(
            parse_progress_line("::progress 3/10 files"),
            units_progress("files", "")
        );
        assert_eq!(
            parse_progress_line("::progress  3/10  files  in a/b"),
            units_progress("files", "in a/b")
        );
    }

    // Rules: COMMAND-2
    #[test]
    fn malformed_output_directive_is_plain_output() {
        for line in [
            "::progress",
            "::progress ",
            "::progress soon",
            "::progress 1.1",
            "::progress -1%",
            "::progress NaN",
            "::progress 3/",
            "::progress -3/10",
            "::progress 0x3/10",
            " ::progress 0.5",
            "::checkpoint",
            "progress 0.5",
        ] {
            assert_eq!(OutputDirective::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(OutputDirective::parse(b"::progress 0.5 \xff"), None);
    }

    // Rules: COMMAND-3
    #[tokio::test]
    async fn stderr_tail_keeps_last_20_lines_within_4_kib() {
        let mut tail = StderrTail::default();
        let mut line_count = 0;
        let text: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        tail.read(text.as_bytes(), |_| line_count += 1)
            .await
            .expect("stderr has no limit");
        let tail_text = tail.into_text().expect("tail is not empty");
        assert!(tail_text.starts_with("line 11\n") && tail_text.ends_with("\nline 30"));
        assert_eq!(line_count, 30);

        let mut tail = StderrTail::default();
        let oversized_line = [b"\xff".repeat(10_000), b"\nthe end".to_vec()].concat();
        tail.read(oversized_line.as_slice(), |_| {})
            .await
            .expect("stderr has no limit");
        let tail_text = tail.into_text().expect("tail is not empty");
        assert!(tail_text.len() <= MAX_TAIL_BYTES && tail_text.ends_with("the end"));
        assert_eq!(StderrTail::default().into_text(), None);
    }
}
