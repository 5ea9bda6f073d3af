//! Frequent mistakes that are rejected with a hint, and the valid filters next to them.

use super::*;

// Rules: FIL-3, FIL-17
#[test]
fn lower_case_keyword_before_term_is_rejected_with_hint() {
    assert_rejected(&[
        (
            "a and b",
            3,
            "write AND in upper case, or quote \"and\" to search for it",
        ),
        ("a or b", 3, "write OR in upper case"),
        ("a And b", 3, "write AND in upper case, or quote \"And\""),
        ("not a", 1, "write NOT in upper case"),
        ("a AND not b", 7, "write NOT in upper case"),
        ("a OR not b", 6, "write NOT in upper case"),
        ("(a = b) and (c = d)", 9, "write AND in upper case"),
        ("(a and b)", 4, "write AND in upper case"),
        ("a = b and c = d", 7, "write AND in upper case"),
        ("a = (b or c)", 8, "write OR in upper case"),
        ("a = (not b)", 6, "write NOT in upper case"),
        ("a and not b", 3, "write AND in upper case"),
    ]);
    // Where no term follows, and quoted, it is a word as any other.
    assert_parses_as(&[
        ("and", "and"),
        ("(not)", "not"),
        ("a or", "a AND or"),
        ("a \"and\" b", "a AND and AND b"),
        ("a AND and AND b", "a AND and AND b"),
        ("a OR or OR b", "a OR or OR b"),
        ("not AND a", "not AND a"),
        ("NOT not", "NOT not"),
        ("and = b", "and = b"),
        ("a and:b", "a AND and : b"),
        ("a = not", "a = not"),
        ("a = and b", "a = and AND b"),
        ("android order notes", "android AND order AND notes"),
    ]);
}

// Rules: FIL-3, FIL-17
#[test]
fn operators_of_other_languages_are_rejected_with_hint() {
    assert_rejected(&[
        ("a && b", 3, "write AND for &&, or quote the text"),
        ("a || b", 3, "write OR for ||, or quote the text"),
        ("a = b && c = d", 7, "write AND for &&"),
        ("a = (b || c)", 8, "write OR for ||"),
        ("a=b&&c:d", 4, "write AND for &&"),
        ("a||b", 2, "write OR for ||"),
        ("a.b||c = 1", 4, "write OR for ||"),
        ("&& a", 1, "write AND for &&"),
    ]);
    assert_parses_as(&[
        ("a = \"b && c\"", "a = \"b && c\""),
        ("\"||\"", "\"||\""),
        ("a = b&c|d", "a = b&c|d"),
        ("a & b", "a AND & AND b"),
    ]);
}

// Rules: FIL-11, FIL-17
#[test]
fn field_name_alone_is_rejected_with_example_of_condition() {
    assert_rejected(&[
        (
            "done",
            1,
            "done alone is no condition; write done = true, or quote \"done\" to search for it",
        ),
        ("NOT done", 5, "write done = true"),
        ("-done", 2, "write done = true"),
        ("a OR (state)", 7, "write state = RUNNING"),
        ("queue a", 1, "write queue:TEXT"),
        ("attempt", 1, "write attempt > 0"),
        ("endTime", 1, "write endTime > 2026-11-21T15:04:05Z"),
        ("labels", 1, "write labels.KEY = VALUE"),
        ("error AND a", 1, "write error:*"),
    ]);
    assert_parses_as(&[
        ("'done'", "\"done\""),
        ("done*", "done*"),
        ("error.csv", "\"error.csv\""),
        ("Done names", "Done AND names"),
        ("a = done", "a = done"),
    ]);
}
