//! Unknown fields, missing values and unregistered types.

use super::*;
use crate::{
    operation::outcome::{Outcome, status_with_reason},
    proto::google::rpc::Code,
};

// Rules: FIL-7
#[test]
fn unknown_field_is_rejected_but_evaluates_to_unknown_inside_any() {
    assert_rejected(&[
        (
            "foo = 1",
            1,
            "name, done, error, response, metadata, state, queue, method, create_time",
        ),
        ("done.x = 1", 6, "a field of done, or none, found \"x\""),
        ("done = true AND Foo:*", 17, "found \"Foo\""),
        ("error.nope = 1", 7, "a field of error"),
        ("error.code.x = 1", 12, "a field of error.code"),
        ("labels.a.b = 1", 10, "a field of labels.a"),
        ("labels = 1", 1, "one label is labels.KEY"),
        ("error = 1", 1, "`:`, because it is a message"),
        ("metadata.@type.x = 1", 16, "found \"x\""),
    ]);
    assert_all_unknown(
        &running(),
        &[
            "metadata.nope = 1",
            "metadata.nope != 1",
            "metadata.progress.nope < 1",
        ],
    );
    assert_all_match(&running(), &["NOT metadata.nope:*"]);
    // The fields are known if the filter itself requires a type.
    assert_rejected(&[
        (
            "metadata.@type = \"type.googleapis.com/google.rpc.Status\" AND metadata.nope = 1",
            71,
            "a field of metadata",
        ),
        (
            "metadata.code = x metadata.@type = google.rpc.Status",
            17,
            "an integer for metadata.code",
        ),
        (
            "response.@type = google.rpc.Status (done = true OR response.nope:*)",
            61,
            "a field of response",
        ),
    ]);
    assert_all_match(
        &with_status_metadata(),
        &["metadata.@type = type.googleapis.com/google.rpc.Status AND metadata.code = 10"],
    );
}

// Rules: FIL-8
#[test]
fn missing_or_unregistered_value_is_neither_true_nor_false() {
    assert_all_unknown(
        &running(),
        &[
            "error.code = 5",
            "error.code != 5",
            "end_time > 2020-01-01T00:00:00Z",
            "labels.nope = x",
            "labels.nope != x",
            "error.code:5",
            "error.details.reason:X",
            "response.value = x",
            "metadata.end_time < 2030-01-01T00:00:00Z",
        ],
    );
    assert_all_match(
        &running(),
        &[
            "error.code = 5 OR done = false",
            "NOT (error.code = 5 AND done = true)",
        ],
    );
    assert_all_unknown(
        &with_unknown_metadata(),
        &[
            "metadata.a = 1",
            "metadata.a:*",
            "metadata.a.b:c",
            "metadata.state = RUNNING",
        ],
    );
    assert_all_match(
        &with_unknown_metadata(),
        &[
            "metadata.@type:acme",
            "metadata:*",
            "metadata.@type:*",
            "metadata.a = 1 OR state = RUNNING",
        ],
    );
}

// Rules: FIL-8
#[test]
fn repeated_field_is_unknown_only_for_unregistered_elements() {
    let undecodable = prost_types::Any {
        type_url: "example.com/x/Own".into(),
        value: vec![0xff],
    };
    let failed_with = |details: &[prost_types::Any]| {
        let mut error = status_with_reason(Code::NotFound, "NO_FILE", "m");
        error.details.extend_from_slice(details);
        build_operation(None, Some(Outcome::Error(Box::new(error))))
    };
    let known =
        failed_with(&[prost_types::Any::from_msg(&prost_types::Duration::default()).unwrap()]);
    assert_all_match(
        &known,
        &[
            "error.details.reason:NO_FILE",
            "NOT error.details.reason:OTHER",
            "NOT error.details.nope:1",
            "-error.details.nope:*",
        ],
    );
    let unknown = failed_with(&[undecodable]);
    assert_all_match(
        &unknown,
        &[
            "error.details.reason:NO_FILE",
            "error.details.@type:*Own",
            "error.details:*",
            "NOT error.details.@type:*Nope",
        ],
    );
    assert_all_unknown(
        &unknown,
        &[
            "error.details.reason:OTHER",
            "error.details.nope:1",
            "error.details.nope:*",
        ],
    );
    // An incomparable element is known not to match.
    assert_all_match(
        &with_struct_metadata(),
        &["NOT metadata.list:three", "NOT metadata.deep.er.x:z"],
    );
    assert_all_match(&with_struct_metadata(), &["NOT metadata.deep.er.nope:z"]);
}
