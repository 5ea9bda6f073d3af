//! Tests of whole filters: which operations they match, and which are rejected.

mod fixtures;
mod operators;
mod unknown;

use proptest::prelude::*;

use self::fixtures::*;
use super::{compile::CompiledFilter, testing::*};
use crate::operation::Operation;

fn matches(filter: &str, operation: &Operation) -> bool {
    let compiled = CompiledFilter::parse(filter, built_in_types());
    compiled
        .unwrap_or_else(|error| panic!("{filter}: {error}"))
        .matches(operation)
}

#[track_caller]
fn assert_all_match(operation: &Operation, filters: &[&str]) {
    for filter in filters {
        assert!(matches(filter, operation), "{filter}");
    }
}

#[track_caller]
fn assert_none_match(operation: &Operation, filters: &[&str]) {
    for filter in filters {
        assert!(!matches(filter, operation), "{filter}");
    }
}

/// Asserts that neither the filters nor their negations match.
#[track_caller]
fn assert_all_unknown(operation: &Operation, filters: &[&str]) {
    assert_none_match(operation, filters);
    for filter in filters {
        assert!(
            !matches(&format!("NOT ({filter})"), operation),
            "NOT {filter}"
        );
    }
}

#[track_caller]
fn assert_rejected(cases: &[(&str, usize, &str)]) {
    for (filter, column, problem) in cases {
        let error = CompiledFilter::parse(filter, built_in_types()).expect_err(filter);
        assert_eq!(error.column, *column, "{filter}: {error}");
        assert!(error.problem.contains(problem), "{filter}: {error}");
    }
}

// Rules: FIL-1
#[test]
fn blank_filter_matches_every_operation() {
    for operation in [running(), failed(), with_unknown_metadata()] {
        assert_all_match(&operation, &["", " \n"]);
    }
}

// Rules: FIL-12
#[test]
fn field_names_accept_snake_case_and_camel_case() {
    assert_all_match(
        &failed(),
        &[
            "metadata.createTime = 2026-09-21T14:13:20Z",
            "metadata.create_time = 2026-09-21T14:13:20Z",
            "createTime = 2026-09-21T14:13:20Z",
            "cancelRequested = false",
            "metadata.progress.doneUnits = 7",
        ],
    );
}

// Rules: FIL-11
#[test]
fn server_metadata_search_includes_nested_any_and_maps() {
    assert_all_match(
        &running(),
        &[
            "metadata.labels.env = prod",
            "metadata.detail.part = two",
            "metadata.detail.@type:Struct",
            "metadata.detail:part",
            "metadata.queue = thumbs",
            "metadata.attempt = 1",
            "metadata.detail:*",
        ],
    );
    assert_all_unknown(
        &running(),
        &["metadata.labels.nope = x", "metadata.detail.nope = x"],
    );
    let nested = with_status_metadata();
    assert_all_match(
        &nested,
        &[
            "metadata.details.reason:R",
            "metadata.details.@type:*ErrorInfo",
            "metadata.message = m",
        ],
    );
    assert_none_match(&nested, &["metadata.details.reason = R"]);
}

// Rules: FIL-5, FIL-16
#[test]
fn spanner_restore_filter_is_accepted() {
    let filter = "(metadata.@type=type.googleapis.com/google.spanner.admin.database.v1.RestoreDatabaseMetadata) \
         AND (metadata.source_type:BACKUP) AND (metadata.progress.start_time < \"2018-03-28T14:50:00Z\") AND (error:*)";
    assert_none_match(&failed(), &[filter]);
}

proptest! {
    // Rules: FIL-2, FIL-8
    #[test]
    fn evaluation_agrees_with_naive_interpreter(
        samples in proptest::collection::vec(any_sample_operation(), 1..8),
        filters in proptest::collection::vec(any_sample_filter(), 1..8),
    ) {
        for filter in &filters {
            let compiled = CompiledFilter::new(filter, built_in_types()).map_err(|error| TestCaseError::fail(format!("{}: {error}", print_filter(filter))))?;
            for sample in &samples {
                let operation = sample.to_operation(1);
                let expected = evaluate_naively(filter, sample) == Some(true);
                prop_assert_eq!(compiled.matches(&operation), expected, "{} of {:?}", print_filter(filter), sample);
            }
        }
    }
}
