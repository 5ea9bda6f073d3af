//! Tests of the grammar and of the lexical rules.

mod mistakes;

use proptest::prelude::*;

use super::*;
use crate::query::{
    filter::{Filter, Pattern},
    testing::print_filter,
};

fn parse_and_print(text: &str) -> String {
    match parse(text) {
        Ok(filter) => print_filter(&filter),
        Err(error) => format!("! {error}"),
    }
}

/// Asserts that each text is parsed and printed as expected.
#[track_caller]
fn assert_parses_as(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        assert_eq!(parse_and_print(text), *expected, "{text}");
    }
}

#[track_caller]
fn assert_rejected(cases: &[(&str, usize, &str)]) {
    for (text, column, problem) in cases {
        let error = parse(text).expect_err(text);
        assert_eq!(error.column, *column, "{text}: {error}");
        assert!(error.problem.contains(problem), "{text}: {error}");
    }
}

// Rules: FIL-1
#[test]
fn blank_filter_is_empty_conjunction() {
    for blank in ["", " \n", "\t"] {
        assert_eq!(parse(blank), Ok(Filter::And(Vec::new())));
    }
}

// Rules: FIL-2
#[test]
fn or_binds_tighter_than_and_and_sequence_is_conjunction() {
    assert_parses_as(&[
        ("a AND b OR c", "a AND b OR c"),
        ("(a AND b) OR c", "(a AND b) OR c"),
        ("a b OR c", "a AND b OR c"),
        ("((a)) ((b))", "a AND b"),
    ]);
    for (one, other) in [
        ("a AND b OR c", "a AND (b OR c)"),
        ("a OR b AND c", "(a OR b) AND c"),
        ("a b AND c AND d", "(a b) AND c AND d"),
        ("a\nb\tAND  c", "a AND b AND c"),
        ("New York Giants OR Yankees", "New York (Giants OR Yankees)"),
    ] {
        assert_eq!(parse(one).unwrap(), parse(other).unwrap(), "{one}");
    }
    assert_ne!(parse("a AND b OR c"), parse("(a AND b) OR c"));
}

// Rules: FIL-3
#[test]
fn not_and_minus_negate_once_and_keywords_are_upper_case() {
    assert_parses_as(&[
        ("NOT (a OR b)", "NOT (a OR b)"),
        ("-(a OR b)", "NOT (a OR b)"),
        ("-file:\".java\"", "NOT file : .java"),
        ("NOTa", "NOTa"),
        ("NOT a.NOT = 1", "NOT a.\"NOT\" = 1"),
        ("ANDROID", "ANDROID"),
    ]);
    assert_rejected(&[
        ("NOT NOT a", 5, "found \"NOT\""),
        ("--a", 2, "found \"-a\""),
        ("NOT", 4, "a space after NOT, found the end"),
        ("NOT ", 5, "found the end"),
        ("-", 2, "found the end"),
        ("- a", 2, "expected a field or a word"),
        ("NOT(a)", 4, "a space after NOT"),
        ("NOT -a", 5, "expected a field or a word"),
        ("a AND", 6, "a space after AND"),
        ("a AND AND b", 7, "found \"AND\""),
        ("AND a", 1, "found \"AND\""),
        ("a OR", 5, "a space after OR"),
        ("a OR(b)", 5, "a space after OR"),
    ]);
}

// Rules: FIL-6
#[test]
fn indexing_is_rejected() {
    assert_rejected(&[
        ("e[0].foo = 1", 1, "indexing is not supported"),
        ("a.e[0] = 1", 3, "indexing is not supported"),
    ]);
    assert_eq!(parse_and_print("\"e[0]\".foo = 1"), "\"e[0]\".foo = 1");
}

// Rules: FIL-10
#[test]
fn star_is_wildcard_at_either_end_and_literal_if_escaped() {
    let parse_value = |filter: &str| match parse(filter).unwrap() {
        Filter::Restriction(restriction) => restriction.value,
        other => panic!("{other:?}"),
    };
    let value = parse_value("a = \"ab*\"");
    assert!(value.is_match("abc") && value.is_match("ab") && !value.is_match("xab"));
    assert_eq!(value, parse_value("a = ab*"));
    let value = parse_value("a = '*.foo'");
    assert!(value.is_match("x.foo") && !value.is_match("x.foo.y"));
    let value = parse_value("a = *b*");
    assert!(value.is_match("abc") && value.is_match("b") && !value.is_match("ac"));
    let value = parse_value(r#"a = "\*b\*""#);
    assert!(value.is_match("*b*") && !value.is_match("b"));
    assert!(parse_value("a:*").is_wildcard() && !parse_value(r#"a:"\*""#).is_wildcard());
    assert_rejected(&[("a = b*c", 5, "a * is a wildcard at the start or the end")]);
    assert_parses_as(&[(r#"a = "\*b*""#, r#"a = "\*b*""#), ("*x", "*x")]);
}

// Rules: FIL-13
#[test]
fn function_call_is_rejected() {
    assert_rejected(&[
        ("regex(name, '.*')", 1, "functions are not supported"),
        ("a.b(c)", 1, "functions are not supported"),
        ("a = f(b)", 5, "functions are not supported"),
    ]);
    assert_eq!(parse_and_print("a (b)"), "a AND b");
}

// Rules: FIL-14
#[test]
fn filter_length_depth_terms_and_paths_are_limited() {
    let nested = |depth| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(parse(&nested(MAX_PAREN_DEPTH)).is_ok());
    for depth in [MAX_PAREN_DEPTH + 1, 4000] {
        let error = parse(&nested(depth)).unwrap_err();
        assert_eq!(
            (error.column, &*error.problem),
            (51, "more than 50 nested parentheses")
        );
    }
    let values = format!("a = {}", nested(MAX_PAREN_DEPTH + 1));
    assert!(parse(&values).unwrap_err().problem.contains("parentheses"));
    assert!(parse(&"(".repeat(8000)).is_err());
    assert!(parse(&"a ".repeat(MAX_TERMS)).is_ok());
    let error = parse(&"a ".repeat(MAX_TERMS + 1)).unwrap_err();
    assert_eq!(
        (error.column, &*error.problem),
        (501, "more than 250 terms")
    );
    assert!(parse(&"a".repeat(MAX_FILTER_BYTES)).is_ok());
    let error = parse(&"é".repeat(MAX_FILTER_BYTES / 2 + 1)).unwrap_err();
    assert_eq!(
        error.problem,
        "the filter has 8194 bytes; at most 8192 are allowed"
    );
    assert!(parse(&format!("{}=1", ["a"; MAX_PATH_SEGMENTS].join("."))).is_ok());
    assert!(parse(&format!("{}=1", ["a"; MAX_PATH_SEGMENTS + 1].join("."))).is_err());
    assert!(parse(&"-".repeat(8000)).is_err());
    assert!(parse(&"NOT ".repeat(2000)).is_err());
}

// Rules: FIL-15
#[test]
fn bare_true_false_and_null_are_words() {
    for word in ["true", "false", "null"] {
        assert!(matches!(parse(word), Ok(Filter::Global(text)) if &*text.body == word));
    }
}

// Rules: FIL-16
#[test]
fn whitespace_is_allowed_around_comparators_and_in_parentheses() {
    for text in [
        "a=b", "a = b", "a =b", "a\n=\tb", "(a = b)", "( a=b )", "(a=b )",
    ] {
        assert_eq!(parse_and_print(text), "a = b", "{text}");
    }
    assert_parses_as(&[
        ("a!=b", "a != b"),
        ("a<=b", "a <= b"),
        ("a<b", "a < b"),
        ("a>b", "a > b"),
        ("a>=b", "a >= b"),
        ("a:b", "a : b"),
    ]);
}

// Rules: FIL-16
#[test]
fn words_may_contain_at_signs_slashes_and_dashes() {
    assert_parses_as(&[
        ("metadata.@type = x/y-z", "metadata.@type = x/y-z"),
        ("projects/a", "projects/a"),
        ("a-b = c-d", "a-b = c-d"),
    ]);
}

// Rules: FIL-16
#[test]
fn leading_minus_is_part_of_number_or_value() {
    assert_parses_as(&[
        ("-30", "\"-30\""),
        ("-2.5 x", "\"-2.5\" AND x"),
        ("NOT -30", "NOT \"-30\""),
        ("foo >= -2.4", "foo >= -2.4"),
        ("foo >= (-2.4)", "foo >= -2.4"),
        ("-2.5 >= -2.4", "NOT 2.5 >= -2.4"),
        ("-30a", "NOT 30a"),
        ("a = -b", "a = -b"),
    ]);
    assert_rejected(&[(
        "(-2.5) >= -2.4",
        8,
        "expected a field or a word, found \">\"",
    )]);
}

// Rules: FIL-16
#[test]
fn unquoted_value_includes_dots_and_colons() {
    assert_parses_as(&[
        ("package=com.google", "package = com.google"),
        ("a = 2.5", "a = 2.5"),
        (
            "metadata.@type=type.googleapis.com/google.x.Y)",
            "! column 46: expected a space, AND, OR or the end, found \")\"",
        ),
        ("t > 2026-11-21T15:04:05.5Z", "t > 2026-11-21T15:04:05.5Z"),
        (
            "t > 2026-11-21T15:04:05+02:00",
            "t > 2026-11-21T15:04:05+02:00",
        ),
        ("com.google", "\"com.google\""),
        ("2.5", "\"2.5\""),
    ]);
}

// Rules: FIL-16
#[test]
fn strings_accept_either_quote_and_backslash_escapes() {
    assert_parses_as(&[
        (r#"a = "b c""#, r#"a = "b c""#),
        ("a = 'b c'", r#"a = "b c""#),
        (r#"a = 'say "x"'"#, r#"a = "say \"x\"""#),
        (r#"a = "x\\y\"\n""#, r#"a = "x\\y\"\n""#),
        (r#"a = """#, r#"a = """#),
        (r#""a b""#, r#""a b""#),
        (r#"labels."a.b" = c"#, r#"labels."a.b" = c"#),
        (r#"a = "AND""#, r#"a = "AND""#),
    ]);
    assert_rejected(&[
        (r#"a = "b"#, 5, "this quote is not closed"),
        ("a = 'b\"", 5, "not closed"),
        (r#"a = "b\"#, 8, "found the end"),
        (r#"a = "b\x""#, 8, "after the backslash"),
        (r"a\b", 2, "a backslash, which needs quotes"),
        (
            "\"a\" \"b\".c",
            10,
            "a comparator after the field, found the end",
        ),
        ("\"a\"b", 4, "expected a space"),
        ("a = b\"c\"", 6, "expected a space"),
    ]);
}

// Rules: FIL-16
#[test]
fn parenthesized_values_are_compared_one_by_one() {
    assert_parses_as(&[
        ("a = (b OR c)", "a = b OR a = c"),
        ("a = (b c)", "a = b AND a = c"),
        ("a : (b AND NOT c)", "a : b AND NOT a : c"),
        ("NOT a = (b OR c)", "NOT (a = b OR a = c)"),
        ("a = ((b c) OR d)", "(a = b AND a = c) OR a = d"),
        ("a != (b)", "a != b"),
    ]);
    assert_rejected(&[
        ("a != (b OR c)", 6, "!= takes one value; write NOT a = "),
        ("a = (b = c)", 8, "expected a value"),
        ("a = ()", 6, "expected a value"),
        (
            "a = (b",
            7,
            "a closing parenthesis, AND or OR, found the end",
        ),
    ]);
}

// Rules: FIL-17
#[test]
fn syntax_error_reports_column_in_characters() {
    assert_rejected(&[
        ("done = = true", 8, "expected a value, found \"=\""),
        ("done == true", 7, "expected a value, found \"=\""),
        ("done : : true", 8, "expected a value, found \":\""),
        ("done =", 7, "expected a value, found the end"),
        ("é = = 1", 5, "found \"=\""),
        ("a ! b", 3, "a comparator such as !="),
        ("a. = 1", 3, "a field after the dot"),
        (".a = 1", 1, "a field or a word, found \".\""),
        (
            "a = b, c",
            6,
            "expected a space, AND, OR or the end, found \",\"",
        ),
        ("(a", 3, "a closing parenthesis"),
        ("()", 2, "a field or a word, found \")\""),
        ("a)", 2, "expected a space, AND, OR or the end, found \")\""),
        ("(a)(b)", 4, "expected a space"),
        ("= 1", 1, "a field or a word"),
        ("a = AND", 5, "expected a value, found \"AND\""),
    ]);
}

/// Generates texts with quotes, escapes, wildcards and keywords.
fn any_pattern() -> impl Strategy<Value = Pattern> {
    let body = prop_oneof![
        "[a-z0-9._:@/-]{1,8}",
        "[ab\"'*\\\\(),=<>! \n\té-]{0,6}",
        Just("AND".to_owned()),
        Just("NOT".to_owned()),
    ];
    (body, any::<bool>(), any::<bool>()).prop_map(|(body, leading_wildcard, trailing_wildcard)| {
        Pattern {
            // `*` alone is a leading wildcard; only `**` has both.
            trailing_wildcard: trailing_wildcard && (leading_wildcard || !body.is_empty()),
            body: body.into(),
            leading_wildcard,
            column: Column(0),
        }
    })
}

fn any_restriction() -> impl Strategy<Value = Filter> {
    use Comparator::{Equal, Greater, GreaterEqual, Has, Less, LessEqual, NotEqual};
    let segment = prop_oneof![4 => "[a-z@_]{1,6}", 1 => "[ab\"*\\\\.:\\[\\] -]{0,5}", 1 => Just("OR".to_owned())];
    let path = proptest::collection::vec(segment, 1..4);
    let comparator = proptest::sample::select(vec![
        Equal,
        NotEqual,
        Less,
        LessEqual,
        Greater,
        GreaterEqual,
        Has,
    ]);
    (path, comparator, any_pattern()).prop_map(|(path, comparator, value)| {
        let column = Column(0);
        let segment = |name: String| Segment {
            name: name.into(),
            column,
        };
        Filter::Restriction(Restriction {
            path: Path(path.into_iter().map(segment).collect()),
            comparator,
            value,
        })
    })
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let leaf = prop_oneof![any_restriction(), any_pattern().prop_map(Filter::Global)];
    leaf.prop_recursive(6, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::conjunction),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::disjunction),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}

proptest! {
    #[test]
    fn printed_filter_parses_to_same_filter(filter in any_filter()) {
        let text = print_filter(&filter);
        prop_assert_eq!(parse(&text), Ok(filter), "{}", text);
    }

    #[test]
    fn parsed_text_survives_print_and_parse(text in "[abAND ORNT()\"'*:=.<>!-]{0,40}") {
        if let Ok(filter) = parse(&text) {
            prop_assert_eq!(parse(&print_filter(&filter)), Ok(filter));
        }
    }

    // Rules: FIL-14
    #[test]
    fn filter_parser_never_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    // Rules: FIL-17
    #[test]
    fn filter_error_column_is_within_text(
        tokens in proptest::collection::vec(proptest::sample::select(vec![
            "a", "b.c", "AND", "OR", "NOT", "-", "(", ")", "=", "!=", "<", ":", "\"", "'", "\\", "*", " ", " ", ".", ",", "1.5", "é",
        ]), 0..60),
    ) {
        let text = tokens.concat();
        if let Err(error) = parse(&text) {
            prop_assert!((1..=text.chars().count() + 1).contains(&error.column), "{}: {}", text, error);
        }
    }
}
