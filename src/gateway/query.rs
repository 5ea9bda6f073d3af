//! Parses the query of a URL: request fields and the system parameters of Google's
//! APIs. Unknown parameters are rejected, so that a misspelt `fliter` does not list
//! everything.

use super::{
    http_error::HttpError,
    json::JsonFormat,
    routes::Action,
    url::{UrlPart, percent_decode},
};
use crate::{
    error::Error, error_status, proto::google::longrunning::ListOperationsRequest,
    types::EnumFormat,
};

/// The parameters of a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct QueryParams {
    /// Fields of a list request, without the name.
    pub(super) list_request: ListOperationsRequest,
    /// Format of the response.
    pub(super) format: JsonFormat,
}

/// Parses the query of a call.
///
/// # Errors
/// A parameter is unknown, repeated or malformed. The error names it.
pub(super) fn parse(action: Action, query: &str) -> Result<QueryParams, HttpError> {
    let mut parsed = QueryParams::default();
    let mut seen: Vec<&'static str> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode(key, UrlPart::Query)?;
        let value = percent_decode(value, UrlPart::Query)?;
        if parsed.format.apply_parameter(action, &key, &value)? || is_system_parameter(&key) {
            continue;
        }
        let field = match key.as_str() {
            _ if action != Action::List => return Err(unknown_parameter(action, &key)),
            "filter" => "filter",
            "pageSize" | "page_size" => "page_size",
            "pageToken" | "page_token" => "page_token",
            "returnPartialSuccess" | "return_partial_success" => "return_partial_success",
            _ => return Err(unknown_parameter(action, &key)),
        };
        if seen.contains(&field) {
            return Err(invalid_parameter(&key, "repeated; give it once"));
        }
        seen.push(field);
        parsed.set_field(field, value)?;
    }
    Ok(parsed)
}

/// Returns `true` for parameters of every Google API that this server ignores.
fn is_system_parameter(key: &str) -> bool {
    match key {
        "access_token" | "apiVersion" | "callback" | "fields" | "key" | "oauth_token"
        | "passwd" | "quotaUser" | "uploadType" | "upload_protocol" | "userIp" | "userProject"
        | "user" => true,
        _ => key.starts_with('$'),
    }
}

fn unknown_parameter(action: Action, key: &str) -> HttpError {
    let message = match (action, key) {
        (_, "name") => "the name is in the path; omit it in the query",
        (Action::Wait, "timeout") => r#"send it in the body, as {"timeout": "30s"}"#,
        (Action::List, _) => {
            "unknown parameter; available: filter, pageSize, pageToken, returnPartialSuccess"
        }
        _ => "unknown parameter; this call has none",
    };
    invalid_parameter(key, message)
}

fn invalid_parameter(key: &str, message: &str) -> HttpError {
    error_status::invalid_argument(key, "INVALID_PARAMETER", message).into()
}

// === impl QueryParams ===

impl QueryParams {
    fn set_field(&mut self, field: &'static str, value: String) -> Result<(), HttpError> {
        let list_request = &mut self.list_request;
        match field {
            "filter" => list_request.filter = value,
            "page_token" => list_request.page_token = value,
            // Some clients send unset fields with empty values.
            _ if value.is_empty() => {}
            "page_size" => {
                let message = "must be a 32-bit integer";
                let invalid = || Error::invalid("page_size", "INVALID_PAGE_SIZE", message);
                list_request.page_size = parse_i32(&value).ok_or_else(invalid)?;
            }
            _ => {
                let invalid = |_| invalid_parameter(field, "must be true or false");
                list_request.return_partial_success = value.parse().map_err(invalid)?;
            }
        }
        Ok(())
    }
}

/// Parses digits with an optional minus. A plus sign is rejected.
fn parse_i32(text: &str) -> Option<i32> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_all_digits.then(|| text.parse().ok()).flatten()
}

// === impl JsonFormat ===

impl JsonFormat {
    /// Applies a parameter of the response format. Returns `false` for any other
    /// parameter.
    fn apply_parameter(
        &mut self,
        action: Action,
        key: &str,
        value: &str,
    ) -> Result<bool, HttpError> {
        match key {
            "alt" | "$alt" => {
                for (index, part) in value.split(';').enumerate() {
                    match (index, part) {
                        (0, "" | "json") => {}
                        (0, "sse") if action == Action::Watch => {}
                        (1.., "enum-encoding=int") => self.enum_encoding = EnumFormat::Numbers,
                        _ => {
                            let message = "must be json, or json;enum-encoding=int";
                            return Err(invalid_parameter(key, message));
                        }
                    }
                }
            }
            "prettyPrint" | "$prettyPrint" => self.pretty = matches!(value, "true" | "1"),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_list(query: &str) -> QueryParams {
        parse(Action::List, query).unwrap_or_else(|error| panic!("{query}: {error:?}"))
    }

    fn parse_error(action: Action, query: &str) -> String {
        parse(action, query).expect_err(query).message().to_owned()
    }

    // Rules: HTTP-6
    #[test]
    fn list_fields_accept_json_and_proto_names() {
        let expected = QueryParams {
            list_request: ListOperationsRequest {
                filter: "a = \"b c\"".into(),
                page_size: 2,
                page_token: "t".into(),
                return_partial_success: true,
                ..ListOperationsRequest::default()
            },
            format: JsonFormat::default(),
        };
        let json = "filter=a+%3D+%22b%20c%22&pageSize=2&pageToken=t&returnPartialSuccess=true";
        let proto = "filter=a%20=%20%22b+c%22&page_size=2&page_token=t&return_partial_success=true";
        assert_eq!(parse_list(json), expected);
        assert_eq!(parse_list(proto), expected);
    }

    // Rules: HTTP-8
    #[test]
    fn empty_query_values_are_unset_fields() {
        for query in [
            "",
            "&",
            "filter=&pageToken=&pageSize=0&returnPartialSuccess=false",
            "pageSize=&returnPartialSuccess=&filter",
        ] {
            assert_eq!(parse_list(query), QueryParams::default(), "{query}");
        }
    }

    // Rules: HTTP-6
    #[test]
    fn integers_and_booleans_are_parsed_strictly() {
        for invalid in [
            "1.5",
            "x",
            "+1",
            "%2B1",
            "1e2",
            "0x1",
            "2147483648",
            "--1",
            "-",
        ] {
            let query = format!("pageSize={invalid}");
            assert!(
                parse_error(Action::List, &query).contains("page_size"),
                "{invalid}"
            );
        }
        assert_eq!(parse_list("pageSize=-1").list_request.page_size, -1);
        for invalid in ["1", "TRUE", "yes"] {
            let query = format!("returnPartialSuccess={invalid}");
            assert!(
                parse_error(Action::List, &query).contains("true or false"),
                "{invalid}"
            );
        }
    }

    // Rules: HTTP-6
    #[test]
    fn unknown_misplaced_or_repeated_parameter_is_rejected_by_name() {
        for (action, query, expected) in [
            (Action::List, "fliter=x", "fliter: unknown parameter"),
            (Action::List, "Filter=x", "Filter: unknown parameter"),
            (
                Action::List,
                "name=operations",
                "name: the name is in the path",
            ),
            (Action::Get, "filter=x", "this call has none"),
            (Action::Wait, "timeout=3s", "send it in the body"),
            (
                Action::List,
                "pageSize=1&page_size=2",
                "page_size: repeated",
            ),
            (Action::List, "filter=%zz", "two hexadecimal digits"),
            (Action::List, "%ff=1", "not UTF-8"),
        ] {
            let message = parse_error(action, query);
            assert!(message.contains(expected), "{query}: {message}");
        }
    }

    // Rules: HTTP-6
    #[test]
    fn system_parameters_are_ignored() {
        let query = "$fields=name&fields=a&key=k&access_token=t&quotaUser=u&$.xgafv=2&callback=c\
            &%24apiVersion=1&uploadType=x&$unknown=1";
        for action in Action::ALL {
            assert_eq!(parse(action, query).unwrap(), QueryParams::default());
        }
    }

    // Rules: HTTP-6, HTTP-7
    #[test]
    fn alt_and_pretty_print_select_the_response_format() {
        let parse_format = |query: &str| parse(Action::Get, query).unwrap().format;
        for query in [
            "%24alt=json%3Benum-encoding%3Dint",
            "$alt=json;enum-encoding=int",
            "alt=json%3benum-encoding=int",
        ] {
            assert_eq!(
                parse_format(query).enum_encoding,
                EnumFormat::Numbers,
                "{query}"
            );
        }
        for query in ["alt=json", "$alt=", "prettyPrint=false"] {
            assert_eq!(parse_format(query), JsonFormat::default(), "{query}");
        }
        assert!(parse_format("prettyPrint=true").pretty && parse_format("$prettyPrint=1").pretty);
        for invalid in [
            "alt=proto",
            "alt=media",
            "$alt=json;enum-encoding=hex",
            "alt=sse",
        ] {
            assert!(
                parse_error(Action::Get, invalid).contains("json"),
                "{invalid}"
            );
        }
        assert!(parse(Action::Watch, "alt=sse").is_ok());
    }
}
