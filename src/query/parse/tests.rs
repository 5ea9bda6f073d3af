//! The grammar and the lexical decisions, each named after its rule in the
//! conformance checklist.

use proptest::prelude::*;

use super::*;
use crate::query::filter::{Filter, Text};

fn shown(text: &str) -> String {
    match parse(text) {
        Ok(filter) => filter.to_string(),
        Err(error) => format!("! {error}"),
    }
}

/// Asserts what each text means, written in full.
#[track_caller]
fn means(table: &[(&str, &str)]) {
    for (text, expected) in table {
        assert_eq!(shown(text), *expected, "{text}");
    }
}

#[track_caller]
fn is_refused(table: &[(&str, usize, &str)]) {
    for (text, column, problem) in table {
        let error = parse(text).expect_err(text);
        assert_eq!(error.column, *column, "{text}: {error}");
        assert!(error.problem.contains(problem), "{text}: {error}");
    }
}

#[test]
fn fil_1_a_blank_filter_is_the_conjunction_of_nothing() {
    for blank in ["", " \n", "\t"] {
        assert_eq!(parse(blank), Ok(Filter::And(Vec::new())));
    }
}

#[test]
fn fil_2_or_binds_tighter_than_and_and_a_sequence_is_a_conjunction() {
    means(&[
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

#[test]
fn fil_3_not_and_minus_negate_once_and_keywords_are_upper_case() {
    means(&[
        ("NOT (a OR b)", "NOT (a OR b)"),
        ("-(a OR b)", "NOT (a OR b)"),
        ("-file:\".java\"", "NOT file : .java"),
        ("not a", "not AND a"),
        ("a and b", "a AND and AND b"),
        ("NOTa", "NOTa"),
        ("NOT a.NOT = 1", "NOT a.\"NOT\" = 1"),
        ("ANDROID", "ANDROID"),
    ]);
    is_refused(&[
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

#[test]
fn fil_6_there_is_no_indexing() {
    is_refused(&[
        ("e[0].foo = 1", 1, "no indexing"),
        ("a.e[0] = 1", 3, "no indexing"),
    ]);
    assert_eq!(shown("\"e[0]\".foo = 1"), "\"e[0]\".foo = 1");
}

#[test]
fn fil_10_a_star_is_a_wildcard_at_either_end_and_escaped_in_quotes_a_star() {
    let text = |filter: &str| match parse(filter).unwrap() {
        Filter::Compare(restriction) => restriction.value,
        other => panic!("{other:?}"),
    };
    let value = text("a = \"ab*\"");
    assert!(value.is("abc") && value.is("ab") && !value.is("xab"));
    assert_eq!(value, text("a = ab*"));
    let value = text("a = '*.foo'");
    assert!(value.is("x.foo") && !value.is("x.foo.y"));
    let value = text("a = *b*");
    assert!(value.is("abc") && value.is("b") && !value.is("ac"));
    let value = text(r#"a = "\*b\*""#);
    assert!(value.is("*b*") && !value.is("b"));
    assert!(text("a:*").is_star() && !text(r#"a:"\*""#).is_star());
    is_refused(&[(
        "a = b*c",
        5,
        "a * is a wildcard at the beginning or the end",
    )]);
    means(&[(r#"a = "\*b*""#, r#"a = "\*b*""#), ("*x", "*x")]);
}

#[test]
fn fil_13_there_are_no_functions() {
    is_refused(&[
        ("regex(name, '.*')", 1, "there are no functions"),
        ("a.b(c)", 1, "there are no functions"),
        ("a = f(b)", 5, "there are no functions"),
    ]);
    assert_eq!(shown("a (b)"), "a AND b");
}

#[test]
fn fil_14_length_depth_terms_and_paths_have_limits() {
    let nested = |depth| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    for depth in [MAX_DEPTH + 1, 4000] {
        let error = parse(&nested(depth)).unwrap_err();
        assert_eq!(
            (error.column, &*error.problem),
            (51, "more than 50 parentheses inside each other")
        );
    }
    let values = format!("a = {}", nested(MAX_DEPTH + 1));
    assert!(parse(&values).unwrap_err().problem.contains("parentheses"));
    assert!(parse(&"(".repeat(8000)).is_err());
    assert!(parse(&"a ".repeat(MAX_TERMS)).is_ok());
    let error = parse(&"a ".repeat(MAX_TERMS + 1)).unwrap_err();
    assert_eq!(
        (error.column, &*error.problem),
        (501, "more than 250 terms")
    );
    assert!(parse(&"a".repeat(MAX_BYTES)).is_ok());
    let error = parse(&"é".repeat(MAX_BYTES / 2 + 1)).unwrap_err();
    assert_eq!(
        error.problem,
        "the filter has 8194 bytes; at most 8192 are allowed"
    );
    assert!(parse(&format!("{}=1", ["a"; MAX_PATH].join("."))).is_ok());
    assert!(parse(&format!("{}=1", ["a"; MAX_PATH + 1].join("."))).is_err());
    assert!(parse(&"-".repeat(8000)).is_err());
    assert!(parse(&"NOT ".repeat(2000)).is_err());
}

#[test]
fn fil_15_true_false_and_null_alone_are_words() {
    for word in ["true", "false", "null"] {
        assert!(matches!(parse(word), Ok(Filter::Anywhere(text)) if &*text.body == word));
    }
}

#[test]
fn space_may_stand_around_comparators_and_inside_parentheses() {
    for text in [
        "a=b", "a = b", "a =b", "a\n=\tb", "(a = b)", "( a=b )", "(a=b )",
    ] {
        assert_eq!(shown(text), "a = b", "{text}");
    }
    means(&[
        ("a!=b", "a != b"),
        ("a<=b", "a <= b"),
        ("a<b", "a < b"),
        ("a>b", "a > b"),
        ("a>=b", "a >= b"),
        ("a:b", "a : b"),
    ]);
}

#[test]
fn words_hold_at_signs_slashes_and_dashes() {
    means(&[
        ("metadata.@type = x/y-z", "metadata.@type = x/y-z"),
        ("projects/a", "projects/a"),
        ("a-b = c-d", "a-b = c-d"),
    ]);
}

#[test]
fn a_minus_in_front_of_a_lone_number_or_of_a_value_belongs_to_it() {
    means(&[
        ("-30", "\"-30\""),
        ("-2.5 x", "\"-2.5\" AND x"),
        ("NOT -30", "NOT \"-30\""),
        ("foo >= -2.4", "foo >= -2.4"),
        ("foo >= (-2.4)", "foo >= -2.4"),
        ("-2.5 >= -2.4", "NOT 2.5 >= -2.4"),
        ("-30a", "NOT 30a"),
        ("a = -b", "a = -b"),
    ]);
    is_refused(&[(
        "(-2.5) >= -2.4",
        8,
        "expected a field or a word, found \">\"",
    )]);
}

#[test]
fn a_value_without_quotes_runs_over_dots_and_colons() {
    means(&[
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

#[test]
fn strings_have_either_quote_and_backslash_escapes() {
    means(&[
        (r#"a = "b c""#, r#"a = "b c""#),
        ("a = 'b c'", r#"a = "b c""#),
        (r#"a = 'say "x"'"#, r#"a = "say \"x\"""#),
        (r#"a = "x\\y\"\n""#, r#"a = "x\\y\"\n""#),
        (r#"a = """#, r#"a = """#),
        (r#""a b""#, r#""a b""#),
        (r#"labels."a.b" = c"#, r#"labels."a.b" = c"#),
        (r#"a = "AND""#, r#"a = "AND""#),
    ]);
    is_refused(&[
        (r#"a = "b"#, 5, "the quote that opens here is never closed"),
        ("a = 'b\"", 5, "never closed"),
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

#[test]
fn several_values_in_parentheses_are_compared_one_by_one() {
    means(&[
        ("a = (b OR c)", "a = b OR a = c"),
        ("a = (b c)", "a = b AND a = c"),
        ("a : (b AND NOT c)", "a : b AND NOT a : c"),
        ("NOT a = (b OR c)", "NOT (a = b OR a = c)"),
        ("a = ((b c) OR d)", "(a = b AND a = c) OR a = d"),
        ("a != (b)", "a != b"),
    ]);
    is_refused(&[
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

#[test]
fn what_is_wrong_is_told_with_its_column_in_characters() {
    is_refused(&[
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

/// A text, with what makes trouble.
fn any_text() -> impl Strategy<Value = Text> {
    let body = prop_oneof![
        "[a-z0-9._:@/-]{1,8}",
        "[ab\"'*\\\\(),=<>! \n\té-]{0,6}",
        Just("AND".to_owned()),
        Just("NOT".to_owned()),
    ];
    (body, any::<bool>(), any::<bool>()).prop_map(|(body, open_start, open_end)| Text {
        // A star alone is open at its start; at both ends it takes two.
        open_end: open_end && (open_start || !body.is_empty()),
        body: body.into(),
        open_start,
        column: Column(0),
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
    (path, comparator, any_text()).prop_map(|(path, comparator, value)| {
        let column = Column(0);
        let segment = |name: String| Segment {
            name: name.into(),
            column,
        };
        Filter::Compare(Restriction {
            path: Path(path.into_iter().map(segment).collect()),
            comparator,
            value,
        })
    })
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let leaf = prop_oneof![any_restriction(), any_text().prop_map(Filter::Anywhere)];
    leaf.prop_recursive(6, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::all),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(Filter::any),
            inner.prop_map(|filter| Filter::Not(Box::new(filter))),
        ]
    })
}

proptest! {
    #[test]
    fn a_filter_prints_as_what_parses_to_the_same_filter(filter in any_filter()) {
        let text = filter.to_string();
        prop_assert_eq!(parse(&text), Ok(filter), "{}", text);
    }

    #[test]
    fn what_parses_prints_and_parses_to_the_same(text in "[abAND ORNT()\"'*:=.<>!-]{0,40}") {
        if let Ok(filter) = parse(&text) {
            prop_assert_eq!(parse(&filter.to_string()), Ok(filter));
        }
    }

    #[test]
    fn any_text_is_parsed_without_panic(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_tokens_are_parsed_without_panic_and_errors_have_a_column_of_the_text(
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
