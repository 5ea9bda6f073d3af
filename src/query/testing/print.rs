//! Prints a filter as text that parses to the same filter.

use crate::query::{
    fields::Field,
    filter::{Filter, Pattern, Restriction, escape, is_bare_word, is_keyword, is_word_char},
};

/// Returns text that parses to the same filter, with parentheses only where the grammar needs
/// them, so that the text is never nested deeper than the original.
pub(crate) fn print_filter(filter: &Filter) -> String {
    let print_all = |filters: &[Filter], print: fn(&Filter) -> String, separator: &str| {
        let texts: Vec<String> = filters.iter().map(print).collect();
        texts.join(separator)
    };
    match filter {
        Filter::And(filters) => print_all(filters, print_filter, " AND "),
        Filter::Or(filters) => {
            let print_disjunct = |filter: &Filter| match filter {
                Filter::And(_) => format!("({})", print_filter(filter)),
                _ => print_filter(filter),
            };
            print_all(filters, print_disjunct, " OR ")
        }
        Filter::Not(inner) => match &**inner {
            Filter::Restriction(_) | Filter::Global(_) => format!("NOT {}", print_filter(inner)),
            _ => format!("NOT ({})", print_filter(inner)),
        },
        Filter::Restriction(Restriction {
            path,
            comparator,
            value,
        }) => {
            let value = print_pattern(value, is_bare_value);
            format!("{path} {} {value}", comparator.as_str())
        }
        Filter::Global(pattern) => print_pattern(pattern, |text| {
            is_bare_word(text) && Field::parse(text).is_none()
        }),
    }
}

fn print_pattern(pattern: &Pattern, is_bare: fn(&str) -> bool) -> String {
    let source = pattern.to_source_text();
    if !pattern.body.contains('*') && is_bare(&source) {
        return source;
    }
    let wildcard = |is_wildcard| if is_wildcard { "*" } else { "" };
    let (leading, trailing) = (pattern.leading_wildcard, pattern.trailing_wildcard);
    let body = escape(&pattern.body);
    format!("\"{}{body}{}\"", wildcard(leading), wildcard(trailing))
}

/// Returns whether a text needs no quotes after a comparator.
fn is_bare_value(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|character| is_word_char(character) || ".:".contains(character))
        && !text.starts_with(':')
        && !is_keyword(text)
}
