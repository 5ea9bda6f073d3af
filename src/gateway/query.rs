//! The query of a URL: the fields of a request that have no place in the path,
//! and the system parameters of Google's APIs. Unknown ones are refused, so
//! that a misspelt `fliter` does not list everything.

use super::{
    json::Form,
    routes::Action,
    status::Refusal,
    url::{Part, decode},
};
use crate::{
    error::Error, proto::google::longrunning::ListOperationsRequest, status, types::Enums,
};

/// What a query says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Query {
    /// The fields of a list; its name is in the path.
    pub(super) list: ListOperationsRequest,
    /// How the answer is to be written.
    pub(super) form: Form,
}

/// Parameters of every Google API that say nothing to this server. So do all
/// whose name begins with `$`.
const SYSTEM: [&str; 13] = [
    "access_token",
    "apiVersion",
    "callback",
    "fields",
    "key",
    "oauth_token",
    "passwd",
    "quotaUser",
    "uploadType",
    "upload_protocol",
    "userIp",
    "userProject",
    "user",
];

/// Reads the query of a call.
pub(super) fn parse(action: Action, query: &str) -> Result<Query, Refusal> {
    let mut parsed = Query::default();
    let mut seen: Vec<&'static str> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = decode(key, Part::Query)?;
        let value = decode(value, Part::Query)?;
        if parsed.form.take(action, &key, &value)? || is_system(&key) {
            continue;
        }
        let Some(field) = field(action, &key) else {
            return Err(unknown(action, &key));
        };
        if seen.contains(&field) {
            return Err(refuse(&key, "it is there twice; give it once"));
        }
        seen.push(field);
        parsed.set(field, value)?;
    }
    Ok(parsed)
}

/// The field that a key stands for, in the JSON form or as in the proto.
fn field(action: Action, key: &str) -> Option<&'static str> {
    if action != Action::List {
        return None;
    }
    Some(match key {
        "filter" => "filter",
        "pageSize" | "page_size" => "page_size",
        "pageToken" | "page_token" => "page_token",
        "returnPartialSuccess" | "return_partial_success" => "return_partial_success",
        _ => return None,
    })
}

fn is_system(key: &str) -> bool {
    key.starts_with('$') || SYSTEM.contains(&key)
}

fn unknown(action: Action, key: &str) -> Refusal {
    let rule = match (action, key) {
        (_, "name") => "the name is in the path, and must not be in the query too",
        (Action::Wait, "timeout") => r#"it belongs into the body, as {"timeout": "30s"}"#,
        (Action::List, _) => {
            "there is no such parameter; there are filter, pageSize, pageToken and returnPartialSuccess"
        }
        _ => "there is no such parameter; this call has none",
    };
    refuse(key, rule)
}

fn refuse(key: &str, rule: &str) -> Refusal {
    status::invalid(key, "INVALID_PARAMETER", rule).into()
}

// === impl Query ===

impl Query {
    fn set(&mut self, field: &'static str, value: String) -> Result<(), Refusal> {
        let list = &mut self.list;
        match field {
            "filter" => list.filter = value,
            "page_token" => list.page_token = value,
            // Clients send the fields that they leave unset, too.
            _ if value.is_empty() => {}
            "page_size" => {
                list.page_size = integer(&value).ok_or_else(|| {
                    let rule = "it must be a whole number of 32 bits";
                    Error::invalid("page_size", "INVALID_PAGE_SIZE", rule)
                })?;
            }
            _ => {
                list.return_partial_success = match value.as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(refuse("return_partial_success", "it must be true or false")),
                };
            }
        }
        Ok(())
    }
}

/// Digits with or without a minus, and nothing else.
fn integer(text: &str) -> Option<i32> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

// === impl Form ===

impl Form {
    /// Takes a parameter that says how the answer is written; whether it did.
    fn take(&mut self, action: Action, key: &str, value: &str) -> Result<bool, Refusal> {
        match key {
            "alt" | "$alt" => {
                let mut parts = value.split(';');
                let kind = parts.next().unwrap_or_default();
                let is_known =
                    matches!(kind, "" | "json") || (kind == "sse" && action == Action::Watch);
                let rule = "it must be json, or json;enum-encoding=int";
                if !is_known {
                    return Err(refuse(key, rule));
                }
                for part in parts {
                    match part {
                        "enum-encoding=int" => self.enums = Enums::Numbers,
                        _ => return Err(refuse(key, rule)),
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

    fn list(query: &str) -> Query {
        parse(Action::List, query).unwrap_or_else(|refusal| panic!("{query}: {refusal:?}"))
    }

    fn refused(action: Action, query: &str) -> String {
        parse(action, query).expect_err(query).message().to_owned()
    }

    #[test]
    fn fields_are_known_by_their_json_and_their_proto_names() {
        let wanted = Query {
            list: ListOperationsRequest {
                filter: "a = \"b c\"".into(),
                page_size: 2,
                page_token: "t".into(),
                return_partial_success: true,
                ..ListOperationsRequest::default()
            },
            form: Form::default(),
        };
        let json = "filter=a+%3D+%22b%20c%22&pageSize=2&pageToken=t&returnPartialSuccess=true";
        let proto = "filter=a%20=%20%22b+c%22&page_size=2&page_token=t&return_partial_success=true";
        assert_eq!(list(json), wanted);
        assert_eq!(list(proto), wanted);
    }

    #[test]
    fn empty_values_are_unset_fields() {
        for query in [
            "",
            "&",
            "filter=&pageToken=&pageSize=0&returnPartialSuccess=false",
            "pageSize=&returnPartialSuccess=&filter",
        ] {
            assert_eq!(list(query), Query::default(), "{query}");
        }
    }

    #[test]
    fn numbers_and_truth_values_are_read_strictly() {
        for bad in [
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
            let query = format!("pageSize={bad}");
            assert!(refused(Action::List, &query).contains("page_size"), "{bad}");
        }
        assert_eq!(list("pageSize=-1").list.page_size, -1);
        for bad in ["1", "TRUE", "yes"] {
            let query = format!("returnPartialSuccess={bad}");
            assert!(
                refused(Action::List, &query).contains("true or false"),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_unknown_misplaced_or_twice_is_refused_by_its_name() {
        for (action, query, said) in [
            (
                Action::List,
                "fliter=x",
                "fliter: there is no such parameter",
            ),
            (
                Action::List,
                "Filter=x",
                "Filter: there is no such parameter",
            ),
            (
                Action::List,
                "name=operations",
                "name: the name is in the path",
            ),
            (Action::Get, "filter=x", "this call has none"),
            (Action::Wait, "timeout=3s", "belongs into the body"),
            (
                Action::List,
                "pageSize=1&page_size=2",
                "page_size: it is there twice",
            ),
            (Action::List, "filter=%zz", "two hexadecimal digits"),
            (Action::List, "%ff=1", "not UTF-8"),
        ] {
            let message = refused(action, query);
            assert!(message.contains(said), "{query}: {message}");
        }
    }

    #[test]
    fn system_parameters_are_none_of_the_calls_business() {
        let query = "$fields=name&fields=a&key=k&access_token=t&quotaUser=u&$.xgafv=2&callback=c\
            &%24apiVersion=1&uploadType=x&$unknown=1";
        for action in Action::ALL {
            assert_eq!(parse(action, query).unwrap(), Query::default());
        }
    }

    #[test]
    fn the_form_of_the_answer_can_be_chosen() {
        let form = |query: &str| parse(Action::Get, query).unwrap().form;
        for query in [
            "%24alt=json%3Benum-encoding%3Dint",
            "$alt=json;enum-encoding=int",
            "alt=json%3benum-encoding=int",
        ] {
            assert_eq!(form(query).enums, Enums::Numbers, "{query}");
        }
        for query in ["alt=json", "$alt=", "prettyPrint=false"] {
            assert_eq!(form(query), Form::default(), "{query}");
        }
        assert!(form("prettyPrint=true").pretty && form("$prettyPrint=1").pretty);
        for bad in [
            "alt=proto",
            "alt=media",
            "$alt=json;enum-encoding=hex",
            "alt=sse",
        ] {
            assert!(refused(Action::Get, bad).contains("json"), "{bad}");
        }
        assert!(parse(Action::Watch, "alt=sse").is_ok());
    }
}
