//! What a command says: on standard output its response, between lines that
//! report; on standard error what helps people when it fails. What becomes of
//! it is decided in `command`.

use std::collections::VecDeque;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::context::Context;
use crate::{proto::longrunning::v1::Progress, types::Types};

/// The largest response, in bytes.
pub(super) const MAX_OUTPUT: usize = 2 << 20;
/// How much of standard error is kept: so many lines, together so many bytes.
const MAX_LINES: usize = 20;
const MAX_TAIL: usize = 4096;

/// The response so far.
#[derive(Debug, Default)]
pub(super) struct Output {
    response: Vec<u8>,
    rest: Vec<u8>,
}

/// The last lines of standard error.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<String>,
    bytes: usize,
    rest: Vec<u8>,
}

/// The response is larger than [`MAX_OUTPUT`].
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLarge;

/// A line that reports and is no part of the response.
#[derive(Debug, PartialEq)]
enum Remark<'a> {
    /// `::progress 0.4 message`, `::progress 40% message`, `::progress 3/10 files message`.
    Progress(Progress),
    /// `::checkpoint TEXT-or-JSON`.
    Checkpoint(&'a str),
}

// === impl Output ===

impl Output {
    /// Reads to the end and passes reports on. What was read stays if the
    /// future is dropped.
    pub(super) async fn read(
        &mut self,
        pipe: impl AsyncRead + Unpin,
        context: &Context,
        types: &Types,
    ) -> Result<(), TooLarge> {
        let Self { response, rest } = self;
        let take = |line: &[u8]| {
            match Remark::parse(line) {
                Some(Remark::Progress(progress)) => context.progress(progress),
                Some(Remark::Checkpoint(text)) => context
                    .keep_checkpoint(types.of_text(text))
                    .expect("the types of `of_text` are proper"),
                None => response.extend_from_slice(line),
            }
            if MAX_OUTPUT < response.len() {
                return Err(TooLarge);
            }
            Ok(())
        };
        each_line(pipe, rest, MAX_OUTPUT + 1, take).await
    }

    /// The response without the newline at its end.
    pub(super) fn into_text(mut self) -> String {
        self.response.append(&mut self.rest);
        let mut text = String::from_utf8_lossy(&self.response).into_owned();
        if text.ends_with('\n') {
            text.pop();
        }
        text
    }
}

// === impl Tail ===

impl Tail {
    /// Reads to the end and shows each line. What was read stays if the future
    /// is dropped.
    pub(super) async fn read(
        &mut self,
        pipe: impl AsyncRead + Unpin,
        mut show: impl FnMut(&str),
    ) -> Result<(), TooLarge> {
        let Self { lines, bytes, rest } = self;
        let take = |line: &[u8]| {
            let line = String::from_utf8_lossy(line).trim_end().to_owned();
            show(&line);
            *bytes += line.len() + 1;
            lines.push_back(line);
            while MAX_LINES < lines.len() || MAX_TAIL < *bytes {
                *bytes -= lines.pop_front().map_or(0, |line| line.len() + 1);
            }
            Ok(())
        };
        // A replaced byte of bad UTF-8 takes three.
        each_line(pipe, rest, MAX_TAIL / 3 - 1, take).await
    }

    /// The lines, joined again; none if there is nothing to say.
    pub(super) fn into_text(self) -> Option<String> {
        let mut text = Vec::from(self.lines).join("\n");
        if !self.rest.is_empty() {
            text = format!("{text}\n{}", String::from_utf8_lossy(&self.rest));
        }
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }
}

/// Hands on line after line, each with its newline; one above `longest` bytes
/// comes in pieces. A line that is not at its end yet stays in `rest`.
async fn each_line(
    pipe: impl AsyncRead + Unpin,
    rest: &mut Vec<u8>,
    longest: usize,
    mut take: impl FnMut(&[u8]) -> Result<(), TooLarge>,
) -> Result<(), TooLarge> {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut limited = (&mut pipe).take(longest as u64);
        // A pipe that cannot be read is at its end.
        if limited.read_until(b'\n', rest).await.unwrap_or(0) == 0 {
            return Ok(());
        }
        take(rest)?;
        rest.clear();
    }
}

// === impl Remark ===

impl<'a> Remark<'a> {
    /// Reads a line; none if it is ordinary output.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = str::from_utf8(line).ok()?.trim_end_matches(['\n', '\r']);
        if let Some(text) = line.strip_prefix("::checkpoint ") {
            return Some(Self::Checkpoint(text));
        }
        progress(line.strip_prefix("::progress ")?).map(Self::Progress)
    }
}

fn progress(text: &str) -> Option<Progress> {
    let (amount, words) = word(text);
    let Some((done, total)) = amount.split_once('/') else {
        let fraction: f64 = match amount.strip_suffix('%') {
            Some(percent) => percent.parse::<f64>().ok()? / 100.0,
            None => amount.parse().ok()?,
        };
        return (0.0..=1.0).contains(&fraction).then(|| Progress {
            fraction: Some(fraction),
            message: words.to_owned(),
            ..Progress::default()
        });
    };
    let (unit, message) = word(words);
    let units = |text: &str| i64::try_from(text.parse::<u64>().ok()?).ok();
    Some(Progress {
        done_units: units(done)?,
        total_units: units(total)?,
        unit: unit.to_owned(),
        message: message.to_owned(),
        ..Progress::default()
    })
}

/// The first word, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let (word, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    (word, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Progress> {
        match Remark::parse(line.as_bytes()) {
            Some(Remark::Progress(progress)) => Some(progress),
            _ => None,
        }
    }

    #[test]
    fn progress_is_a_fraction_a_percentage_or_done_units_of_a_total() {
        let part = |fraction, message: &str| {
            Some(Progress {
                fraction: Some(fraction),
                message: message.to_owned(),
                ..Progress::default()
            })
        };
        assert_eq!(
            parsed("::progress 0.4 reading it\n"),
            part(0.4, "reading it")
        );
        assert_eq!(
            parsed("::progress 40% reading it\r\n"),
            part(0.4, "reading it")
        );
        assert_eq!(parsed("::progress 1"), part(1.0, ""));
        let units = |unit: &str, message: &str| {
            Some(Progress {
                done_units: 3,
                total_units: 10,
                unit: unit.to_owned(),
                message: message.to_owned(),
                ..Progress::default()
            })
        };
        assert_eq!(parsed("::progress 3/10"), units("", ""));
        assert_eq!(parsed("::progress 3/10 files"), units("files", ""));
        assert_eq!(
            parsed("::progress  3/10  files  in a/b"),
            units("files", "in a/b")
        );
    }

    #[test]
    fn a_malformed_report_is_ordinary_output() {
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
            assert_eq!(Remark::parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(Remark::parse(b"::progress 0.5 \xff"), None);
    }

    #[tokio::test]
    async fn of_standard_error_the_last_lines_are_kept_within_4_kib() {
        let mut tail = Tail::default();
        let mut shown = 0;
        let text: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        tail.read(text.as_bytes(), |_| shown += 1)
            .await
            .expect("no limit");
        let kept = tail.into_text().expect("there is something");
        assert!(kept.starts_with("line 11\n") && kept.ends_with("\nline 30"));
        assert_eq!(shown, 30);

        let mut tail = Tail::default();
        let long = [b"\xff".repeat(10_000), b"\nthe end".to_vec()].concat();
        tail.read(long.as_slice(), |_| {}).await.expect("no limit");
        let kept = tail.into_text().expect("there is something");
        assert!(kept.len() <= MAX_TAIL && kept.ends_with("the end"));
        assert_eq!(Tail::default().into_text(), None);
    }
}
