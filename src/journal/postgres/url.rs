//! What the URL of a database says of TLS. tokio-postgres knows three of libpq's
//! modes and none of its files, so these parameters are taken out before it reads
//! the rest, by its own rules of what is a parameter.

use std::{borrow::Cow, mem};

use percent_encoding::percent_decode_str;

/// The parameters about TLS, as they were written. An empty name of a file is
/// none, and of two with the same key the last counts: both as in libpq.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) sslmode: Option<String>,
    pub(super) sslrootcert: Option<String>,
    pub(super) sslcert: Option<String>,
    pub(super) sslkey: Option<String>,
}

/// A URL, or `key=value …`, without the parameters about TLS; and these.
pub(super) fn take_tls(url: &str) -> (String, Parameters) {
    match url.split_once("://") {
        Some(("postgres" | "postgresql", _)) => of_url(url),
        _ => of_pairs(url),
    }
}

fn of_url(url: &str) -> (String, Parameters) {
    let mut found = Parameters::default();
    // The password may have a question mark.
    let host = url.find('@').unwrap_or(0);
    let Some(query) = url[host..].find('?').map(|at| host + at) else {
        return (url.to_owned(), found);
    };
    let (mut left, mut rest) = (Vec::new(), &url[query + 1..]);
    while !rest.is_empty() {
        let all = mem::take(&mut rest);
        let Some((key, value)) = all.split_once('=') else {
            left.push(all);
            break;
        };
        let end = value.find('&').unwrap_or(value.len());
        let length = key.len() + 1 + end;
        rest = all.get(length + 1..).unwrap_or_default();
        let decoded = |text| -> Cow<'_, str> { percent_decode_str(text).decode_utf8_lossy() };
        if !found.take(&decoded(key), || decoded(&value[..end]).into_owned()) {
            left.push(&all[..length]);
        }
    }
    let (url, left) = (&url[..query], left.join("&"));
    let mark = if left.is_empty() { "" } else { "?" };
    (format!("{url}{mark}{left}"), found)
}

fn of_pairs(mut rest: &str) -> (String, Parameters) {
    let (mut found, mut left) = (Parameters::default(), String::new());
    while let Some((key, value, length)) = pair(rest) {
        let (this, next) = rest.split_at(length);
        if !found.take(key, || value) {
            left.push_str(this);
        }
        rest = next;
    }
    // What is no pair is for tokio-postgres to complain of.
    (left + rest, found)
}

/// The first `key = value` of a text, and how long it is with what is around it.
/// Values may be quoted, and a backslash makes the next character a plain one.
fn pair(text: &str) -> Option<(&str, String, usize)> {
    let begin = text.trim_start();
    let end = begin.find(|c: char| c == '=' || c.is_whitespace())?;
    let (key, rest) = begin.split_at(end);
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let quoted = rest.strip_prefix('\'');
    let (mut chars, mut value) = (quoted.unwrap_or(rest).chars(), String::new());
    loop {
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted.is_some() => break,
            Some(c) if quoted.is_none() && c.is_whitespace() => break,
            Some(c) => value.push(c),
            None if quoted.is_some() || value.is_empty() => return None,
            None => break,
        }
    }
    Some((key, value, text.len() - chars.as_str().len()))
}

// === impl Parameters ===

impl Parameters {
    /// Whether a parameter is one of these, which it then is.
    fn take(&mut self, key: &str, value: impl FnOnce() -> String) -> bool {
        let place = match key {
            "sslmode" => {
                self.sslmode = Some(value());
                return true;
            }
            "sslrootcert" => &mut self.sslrootcert,
            "sslcert" => &mut self.sslcert,
            "sslkey" => &mut self.sslkey,
            _ => return false,
        };
        *place = Some(value()).filter(|file| !file.is_empty());
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_postgres::Config;

    use super::*;

    fn found(mode: &str, root: &str) -> Parameters {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Parameters {
            sslmode: given(mode),
            sslrootcert: given(root),
            ..Default::default()
        }
    }

    #[test]
    fn parameters_about_tls_are_taken_out_of_both_forms() {
        let cases = [
            ("postgres://h/d", "postgres://h/d", "", ""),
            (
                "postgres://h/d?sslmode=require",
                "postgres://h/d",
                "require",
                "",
            ),
            (
                "postgresql://u:p?w@h/d?sslmode=verify-full&sslrootcert=%2Fa%20b%3F.pem&options=-c%20x",
                "postgresql://u:p?w@h/d?options=-c%20x",
                "verify-full",
                "/a b?.pem",
            ),
            (
                "postgres://h?a=1&sslmode=disable&b=2&sslmode=prefer&sslrootcert=/+.pem",
                "postgres://h?a=1&b=2",
                "prefer",
                "/+.pem",
            ),
            (
                "postgres://h?ssl%6dode=require&",
                "postgres://h",
                "require",
                "",
            ),
            ("postgres://h?sslrootcert=&x=", "postgres://h?x=", "", ""),
            // Not parameters: a password, and what has no value.
            (
                "postgres://u:?sslmode=disable@h/d",
                "postgres://u:?sslmode=disable@h/d",
                "",
                "",
            ),
            ("postgres://h/d?sslmode", "postgres://h/d?sslmode", "", ""),
            (
                "host=h sslmode=require user=u",
                "host=h user=u",
                "require",
                "",
            ),
            (
                "host=h password='a sslmode=disable \\'' sslrootcert = '/a b\\'.pem'port=5",
                "host=h password='a sslmode=disable \\''port=5",
                "",
                "/a b'.pem",
            ),
            (r"sslrootcert=/a\ b.pem host=h", "host=h", "", "/a b.pem"),
            (
                "host=h password='open sslmode=require",
                "host=h password='open sslmode=require",
                "",
                "",
            ),
            ("host=h sslmode=", "host=h sslmode=", "", ""),
            ("host=h sslrootcert='' ", "host=h  ", "", ""),
        ];
        for (url, left, mode, root) in cases {
            assert_eq!(take_tls(url), (left.to_owned(), found(mode, root)), "{url}");
        }
    }

    /// A value as both forms write it.
    fn encoded(value: &str) -> (String, String) {
        let all = percent_encoding::NON_ALPHANUMERIC;
        let url = percent_encoding::utf8_percent_encode(value, all).to_string();
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        (url, format!("'{quoted}'"))
    }

    proptest! {
        #[test]
        fn what_is_left_means_what_it_meant(
            password in "[ -~]{0,12}", root in "[ -~é]{1,12}", options in "[ -~]{0,12}", place in 0..3usize,
        ) {
            let [(password_url, password), (root_url, root_quoted), (options_url, options)] =
                [&password, &root, &options].map(|text| encoded(text));
            let of_all = |own: [String; 2], ssl: String| {
                let mut all: Vec<String> = own.to_vec();
                let without = all.clone();
                all.insert(place, ssl);
                (all, without)
            };
            let (all, without) = of_all(
                [format!("password={password_url}"), format!("options={options_url}")],
                format!("sslrootcert={root_url}"),
            );
            let url = |all: &[String]| format!("postgres://u@h:1/d?{}", all.join("&"));
            let pairs = |all: &[String]| format!("host=h user=u {}", all.join(" "));
            prop_assert_eq!(take_tls(&url(&all)), (url(&without), found("", &root)));

            let (all, without) = of_all(
                [format!("password={password}"), format!("options={options}")],
                format!("sslrootcert={root_quoted}"),
            );
            let (left, taken) = take_tls(&pairs(&all));
            prop_assert_eq!(taken, found("", &root));
            let (left, without): (Config, Config) =
                (left.parse().unwrap(), pairs(&without).parse().unwrap());
            prop_assert_eq!(left, without);
        }

        #[test]
        fn no_text_is_too_strange(text in "(postgres://)?[a-z=&?@'\\\\ %é]{0,40}") {
            let (left, taken) = take_tls(&text);
            if taken == Parameters::default() {
                prop_assert_eq!(left.parse::<Config>().ok(), text.parse::<Config>().ok());
            }
        }
    }
}
