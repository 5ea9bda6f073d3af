//! Comparison operators, literals and wildcards.

use super::*;

// Rules: FIL-4
#[test]
fn values_compare_by_type_and_bools_and_states_have_no_order() {
    assert_all_match(
        &running(),
        &[
            "done = false",
            "done != true",
            "state = RUNNING",
            "state != PENDING",
            "attempt = 1",
            "attempt >= 1",
            "attempt < 2",
            "attempt != 0",
            "name > a",
            "name <= z",
            "queue = thumbs",
            "create_time >= 2026-09-21T14:13:20Z",
        ],
    );
    assert_none_match(
        &running(),
        &[
            "attempt > 1",
            "done = true",
            "state = PENDING",
            "queue != thumbs",
        ],
    );
    assert_rejected(&[
        (
            "done < true",
            1,
            "done to be compared with = or !=, because it has no order, found <",
        ),
        ("state >= RUNNING", 1, "no order"),
        ("cancel_requested > false", 1, "no order"),
        ("name < \"a*\"", 8, "a text without *"),
        ("1 = attempt", 1, "expected one of the fields"),
    ]);
}

// Rules: FIL-5
#[test]
fn has_operator_tests_presence_keys_elements_and_text() {
    assert_all_match(
        &failed(),
        &[
            "error:*",
            "error.details:*",
            "error.code:5",
            "error.code:*",
            "error.message:file",
            "done:true",
            "error.details.reason:NO_FILE",
            "error.details.@type:*ErrorInfo",
            "metadata:*",
            "labels:env",
            "labels:*",
            "labels.env:*",
            "labels.note:*",
            "labels.env:prod",
            "labels.env:pro",
            "labels:e*",
            "NOT response:*",
            "NOT error.details.reason:OTHER",
            "metadata.labels:env",
            "metadata.progress:*",
            "metadata.progress:stage",
            "error:code",
            "NOT error.details.reason:NO",
        ],
    );
    assert_none_match(
        &failed(),
        &[
            "response:*",
            "labels:nope",
            "labels.nope:*",
            "error.details.reason:NO_",
        ],
    );
    assert_all_match(
        &running(),
        &[
            "NOT error:*",
            "NOT error.details:*",
            "NOT error.code:*",
            "NOT done:*",
            "start_time:*",
            "NOT end_time:*",
        ],
    );
    assert_all_match(
        &with_struct_metadata(),
        &[
            "metadata:size",
            "metadata.list:1",
            "metadata.list:two",
            "metadata.deep.er.x:y",
            "metadata.none:*",
            "metadata.list:*",
        ],
    );
    assert_none_match(
        &with_struct_metadata(),
        &[
            "metadata.list:3",
            "metadata.deep.er.x:z",
            "metadata:nope",
            "metadata.list:tw",
        ],
    );
}

// Rules: FIL-5, FIL-9
#[test]
fn has_operator_on_message_takes_name_of_field_only() {
    assert_rejected(&[
        (
            "error:5",
            7,
            "one of the fields code, message, details, or * for error, found \"5\"",
        ),
        ("error:co*", 7, "one of the fields"),
        (
            "metadata:nope metadata.@type = google.rpc.Status",
            10,
            "one of the fields code, message, details, or *",
        ),
    ]);
    assert_all_match(&failed(), &["error:code", "error:message", "error:*"]);
}

// Rules: FIL-6
#[test]
fn repeated_field_accepts_only_has_operator() {
    assert_rejected(&[
        (
            "error.details.reason = X",
            15,
            "`:`, because it is a repeated field, found =",
        ),
        (
            "error.details = X",
            7,
            "`:`, because it is a repeated field",
        ),
    ]);
    assert_rejected(&[
        ("e.0.foo=1", 1, "expected one of the fields"),
        ("e[0].foo=1", 1, "indexing is not supported"),
    ]);
}

// Rules: FIL-9
#[test]
fn literal_must_match_field_type() {
    assert_rejected(&[
        ("done = maybe", 8, "true or false for done, found \"maybe\""),
        (
            "error.code = x",
            14,
            "an integer for error.code, found \"x\"",
        ),
        ("error.code = 1.5", 14, "an integer"),
        (
            "metadata.create_time > \"yesterday\"",
            24,
            "an RFC 3339 time",
        ),
        (
            "create_time > yesterday",
            15,
            "such as 2026-11-21T15:04:05Z",
        ),
        ("create_time > 2026-11-21", 15, "an RFC 3339 time"),
        (
            "state = running",
            9,
            "one of PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED",
        ),
        ("state = RUN*", 9, "one of PENDING"),
        ("attempt = \"\"", 11, "an integer"),
        ("attempt = 5*", 11, "found \"5*\""),
        ("attempt = 1.5", 11, "an integer"),
        ("state = \"FOO\"", 9, "one of PENDING"),
        ("done = \"x\"", 8, "true or false"),
    ]);
    assert_all_match(
        &failed(),
        &[
            "error.code = 5e0",
            "error.code = 5.0",
            "attempt = 1.0",
            "error.code < 18446744073709551615",
            "error.code > -9223372036854775808",
            "error.code = \"5\"",
            "create_time = \"2026-09-21T14:13:20Z\"",
            "create_time = 2026-09-21T16:13:20+02:00",
            "end_time > 2026-09-21T14:13:20.5Z",
            "expire_time = 2026-09-22T14:14:20Z",
            "state = \"FAILED\"",
            "metadata.progress.fraction = 0.5",
            "metadata.progress.fraction < 6e-1",
            "metadata.state = FAILED",
        ],
    );
    assert_all_match(
        &with_duration_metadata(),
        &[
            "metadata = 90s",
            "metadata > 89.5s",
            "metadata.seconds = 90",
        ],
    );
    assert_all_match(
        &with_struct_metadata(),
        &[
            "metadata.size = 3.5",
            "metadata.size > 3",
            "metadata.ok = true",
            "metadata.none = null",
            "metadata.text = abc",
            "metadata.size != null",
        ],
    );
    assert_all_unknown(
        &with_struct_metadata(),
        &[
            "metadata.size = x",
            "metadata.ok = 1",
            "metadata.ok < true",
            "metadata.none = 1",
        ],
    );
    assert_all_match(
        &succeeded(),
        &[
            "response.value = \"done well\"",
            "response = \"done well\"",
            "response:well",
        ],
    );
}

// Rules: FIL-10
#[test]
fn text_pattern_has_wildcards_at_its_ends() {
    assert_all_match(
        &running(),
        &[
            "name = \"projects/p/operations/exp*\"",
            "name = \"*-7\"",
            "name = *export*",
            "name:export",
            "method = *Export",
        ],
    );
    assert_none_match(
        &running(),
        &["name = \"exp*\"", "name = export-7", "name:exp*"],
    );
    assert_all_match(
        &failed(),
        &[r#"error.message = "*a\*b""#, r#"error.message:"\*""#],
    );
    assert_none_match(&running(), &[r#"name = "projects\*""#]);
}

// Rules: FIL-11
#[test]
fn bare_word_search_over_operation_texts_is_case_sensitive() {
    assert_all_match(
        &failed(),
        &[
            "export",
            "thumbs",
            "prod",
            "Shop",
            "hashing",
            "file",
            "two",
            "*export-7",
            "NOT nothing",
            "prod -dev",
        ],
    );
    assert_none_match(&failed(), &["EXPORT", "NO_FILE", "RUNNING", "export*"]);
    assert_all_match(&with_struct_metadata(), &["abc", "two", "y"]);
    assert_all_match(&with_unknown_metadata(), &["export-7", "NOT acme"]);
}

// Rules: FIL-15
#[test]
fn true_and_false_are_bools_only_for_bool_fields() {
    assert_none_match(&failed(), &["true", "false", "null", "labels.env = true"]);
    assert_all_match(&failed(), &["done = true"]);
}
