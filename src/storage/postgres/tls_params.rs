//! Extracts the TLS parameters from a database URL. tokio-postgres supports three of libpq's modes and none of its
//! files, so these parameters are removed before it parses the rest, by its own rules for parameters.

use std::{borrow::Cow, mem};

use percent_encoding::percent_decode_str;

/// The TLS parameters as written. As in libpq, an empty file name is `None`, and the last of several parameters with
/// one key counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsParams {
    pub(super) sslmode: Option<String>,
    pub(super) sslrootcert: Option<String>,
    pub(super) sslcert: Option<String>,
    pub(super) sslkey: Option<String>,
}

/// Splits a URL, or `key=value` pairs, into the text without TLS parameters and these parameters.
pub(super) fn split_tls_params(url: &str) -> (String, TlsParams) {
    match url.split_once("://") {
        Some(("postgres" | "postgresql", _)) => split_url(url),
        _ => split_key_values(url),
    }
}

fn split_url(url: &str) -> (String, TlsParams) {
    let mut params = TlsParams::default();
    // A password may contain a question mark.
    let host = url.find('@').unwrap_or(0);
    let Some(query) = url[host..].find('?').map(|at| host + at) else {
        return (url.to_owned(), params);
    };
    let (mut remaining, mut rest) = (Vec::new(), &url[query + 1..]);
    while !rest.is_empty() {
        let tail = mem::take(&mut rest);
        let Some((key, value)) = tail.split_once('=') else {
            remaining.push(tail);
            break;
        };
        let end = value.find('&').unwrap_or(value.len());
        let length = key.len() + 1 + end;
        rest = tail.get(length + 1..).unwrap_or_default();
        let decode = |text| -> Cow<'_, str> { percent_decode_str(text).decode_utf8_lossy() };
        if !params.try_set(&decode(key), || decode(&value[..end]).into_owned()) {
            remaining.push(&tail[..length]);
        }
    }
    let (url, remaining) = (&url[..query], remaining.join("&"));
    let separator = if remaining.is_empty() { "" } else { "?" };
    (format!("{url}{separator}{remaining}"), params)
}

fn split_key_values(mut rest: &str) -> (String, TlsParams) {
    let (mut params, mut remaining) = (TlsParams::default(), String::new());
    while let Some((key, value, length)) = parse_pair(rest) {
        let (matched, next) = rest.split_at(length);
        if !params.try_set(key, || value) {
            remaining.push_str(matched);
        }
        rest = next;
    }
    // tokio-postgres reports text that is not a pair.
    (remaining + rest, params)
}

/// Returns the key and the value of the first `key = value`, and its length with the surrounding whitespace. Values may
/// be quoted, and a backslash escapes the next character.
fn parse_pair(text: &str) -> Option<(&str, String, usize)> {
    let trimmed = text.trim_start();
    let end = trimmed.find(|c: char| c == '=' || c.is_whitespace())?;
    let (key, rest) = trimmed.split_at(end);
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

// === impl TlsParams ===

impl TlsParams {
    /// Sets a parameter. Returns `false` if it is not about TLS.
    fn try_set(&mut self, key: &str, value: impl FnOnce() -> String) -> bool {
        let slot = match key {
            "sslmode" => {
                self.sslmode = Some(value());
                return true;
            }
            "sslrootcert" => &mut self.sslrootcert,
            "sslcert" => &mut self.sslcert,
            "sslkey" => &mut self.sslkey,
            _ => return false,
        };
        *slot = Some(value()).filter(|file| !file.is_empty());
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_postgres::Config;

    use super::*;

    fn tls_params(sslmode: &str, sslrootcert: &str) -> TlsParams {
        let non_empty = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        TlsParams {
            sslmode: non_empty(sslmode),
            sslrootcert: non_empty(sslrootcert),
            ..Default::default()
        }
    }

    #[test]
    fn tls_params_are_removed_from_urls_and_key_value_pairs() {
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
            // Not parameters: a part of a password, and a key without a value.
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
        for (url, remaining, sslmode, sslrootcert) in cases {
            assert_eq!(
                split_tls_params(url),
                (remaining.to_owned(), tls_params(sslmode, sslrootcert)),
                "{url}"
            );
        }
    }

    /// Encodes a value for a URL and for a pair.
    fn encode_value(value: &str) -> (String, String) {
        let escaped = percent_encoding::NON_ALPHANUMERIC;
        let url = percent_encoding::utf8_percent_encode(value, escaped).to_string();
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        (url, format!("'{quoted}'"))
    }

    proptest! {
        #[test]
        fn removing_tls_params_keeps_the_rest_equivalent(
            password in "[ -~]{0,12}", root in "[ -~é]{1,12}", options in "[ -~]{0,12}", position in 0..3usize,
        ) {
            let [(password_url, password), (root_url, root_quoted), (options_url, options)] =
                [&password, &root, &options].map(|text| encode_value(text));
            let with_and_without_tls = |other_params: [String; 2], tls_param: String| {
                let mut all: Vec<String> = other_params.to_vec();
                let without = all.clone();
                all.insert(position, tls_param);
                (all, without)
            };
            let (all, without) = with_and_without_tls(
                [format!("password={password_url}"), format!("options={options_url}")],
                format!("sslrootcert={root_url}"),
            );
            let url = |all: &[String]| format!("postgres://u@h:1/d?{}", all.join("&"));
            let pairs = |all: &[String]| format!("host=h user=u {}", all.join(" "));
            prop_assert_eq!(split_tls_params(&url(&all)), (url(&without), tls_params("", &root)));

            let (all, without) = with_and_without_tls(
                [format!("password={password}"), format!("options={options}")],
                format!("sslrootcert={root_quoted}"),
            );
            let (remaining, params) = split_tls_params(&pairs(&all));
            prop_assert_eq!(params, tls_params("", &root));
            let (remaining, without): (Config, Config) =
                (remaining.parse().unwrap(), pairs(&without).parse().unwrap());
            prop_assert_eq!(remaining, without);
        }

        #[test]
        fn any_text_is_parsed_and_unchanged_without_tls_params(text in "(postgres://)?[a-z=&?@'\\\\ %é]{0,40}") {
            let (remaining, params) = split_tls_params(&text);
            if params == TlsParams::default() {
                prop_assert_eq!(remaining.parse::<Config>().ok(), text.parse::<Config>().ok());
            }
        }
    }
}
