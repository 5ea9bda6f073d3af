//! Splits the text of a filter into words, strings, comparators and keywords.

use std::slice;

use super::filter::{
    Column, Comparator, InvalidFilter, KEYWORDS, Pattern, is_keyword, is_word_char,
};

const EXPECTED_VALUE: &str = "a value";

/// The text of a filter with the current position.
pub(super) struct Lexer {
    chars: Vec<char>,
    /// The index of the next character; the parser resets it to backtrack.
    pub(super) pos: usize,
}

/// A quoted or bare text.
pub(super) struct Token {
    /// The characters without escapes; `None` is an unescaped `*`.
    pub(super) chars: Vec<Option<char>>,
    pub(super) is_quoted: bool,
    pub(super) column: Column,
}

// === impl Lexer ===

impl Lexer {
    pub(super) fn new(text: &str) -> Self {
        Self {
            chars: text.chars().collect(),
            pos: 0,
        }
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.chars.get(self.pos).copied()
    }

    pub(super) fn column(&self) -> Column {
        Column(self.pos + 1)
    }

    /// Skips white space; returns whether there was any.
    pub(super) fn skip_whitespace(&mut self) -> bool {
        let start = self.pos;
        self.pos = self.find_end(char::is_whitespace);
        self.pos > start
    }

    /// Returns the end of the characters from here for which `is_included` is true.
    fn find_end(&self, is_included: impl Fn(char) -> bool) -> usize {
        self.find_end_from(self.pos, is_included)
    }

    fn find_end_from(&self, start: usize, is_included: impl Fn(char) -> bool) -> usize {
        let mut rest = self.chars[start..].iter();
        let length = rest.position(|character| !is_included(*character));
        length.map_or(self.chars.len(), |length| start + length)
    }

    fn take_while(&mut self, is_included: impl Fn(char) -> bool) -> Token {
        self.take_until(self.find_end(is_included))
    }

    pub(super) fn take_until(&mut self, end: usize) -> Token {
        let column = self.column();
        let wildcard = |character: &char| (*character != '*').then_some(*character);
        let chars = self.chars[self.pos..end].iter().map(wildcard).collect();
        self.pos = end;
        Token {
            chars,
            is_quoted: false,
            column,
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> InvalidFilter {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('\\') => "a backslash, which needs quotes around it".to_owned(),
            Some(first) => {
                let word = &self.chars[self.pos..self.find_end(is_word_char)];
                let word = if word.is_empty() {
                    slice::from_ref(&first)
                } else {
                    word
                };
                format!("{:?}", word.iter().take(30).collect::<String>())
            }
        };
        InvalidFilter::expected(self.column(), expected, &found)
    }

    pub(super) fn read_value(&mut self) -> Result<Token, InvalidFilter> {
        let token = match self.peek() {
            Some('"' | '\'') => return self.read_string(),
            Some(':') | None => return Err(self.unexpected(EXPECTED_VALUE)),
            Some(_) => {
                self.take_while(|character| is_word_char(character) || ".:".contains(character))
            }
        };
        if token.chars.is_empty() || token.is_keyword() {
            self.pos -= token.chars.len();
            return Err(self.unexpected(EXPECTED_VALUE));
        }
        token.reject_foreign_operator()?;
        if self.peek() == Some('(') {
            return Err(self.unsupported_function(token.column));
        }
        Ok(token)
    }

    /// Reads the first segment of a path: a string, or a word that is not a keyword.
    pub(super) fn read_word(&mut self, expected: &str) -> Result<Token, InvalidFilter> {
        let start = self.pos;
        let token = self.read_path_segment(expected)?;
        if token.is_keyword() || self.chars[start] == '-' {
            self.pos = start;
            return Err(self.unexpected(expected));
        }
        Ok(token)
    }

    /// Reads a later segment of a path, where keywords are allowed.
    pub(super) fn read_path_segment(&mut self, expected: &str) -> Result<Token, InvalidFilter> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return self.read_string();
        }
        let token = self.take_while(is_word_char);
        if token.chars.is_empty() {
            return Err(self.unexpected(expected));
        }
        token.reject_foreign_operator()?;
        Ok(token)
    }

    fn read_string(&mut self) -> Result<Token, InvalidFilter> {
        let column = self.column();
        let quote = self.peek();
        let mut chars = Vec::new();
        loop {
            self.pos += 1;
            let character = match self.peek() {
                None => return Err(InvalidFilter::new(column, "this quote is not closed")),
                found if found == quote => {
                    self.pos += 1;
                    return Ok(Token {
                        chars,
                        is_quoted: true,
                        column,
                    });
                }
                Some('*') => None,
                Some('\\') => {
                    self.pos += 1;
                    Some(self.escaped_char()?)
                }
                other => other,
            };
            chars.push(character);
        }
    }

    fn escaped_char(&self) -> Result<char, InvalidFilter> {
        match self.peek() {
            Some(character @ ('"' | '\'' | '\\' | '*')) => Ok(character),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            _ => Err(self.unexpected(r#"one of \ " ' * n r t after the backslash"#)),
        }
    }

    pub(super) fn read_comparator(&mut self) -> Result<Option<Comparator>, InvalidFilter> {
        let has_equals_after = self.chars.get(self.pos + 1) == Some(&'=');
        let (comparator, length) = match self.peek() {
            Some('=') => (Comparator::Equal, 1),
            Some(':') => (Comparator::Has, 1),
            Some('<') if has_equals_after => (Comparator::LessEqual, 2),
            Some('<') => (Comparator::Less, 1),
            Some('>') if has_equals_after => (Comparator::GreaterEqual, 2),
            Some('>') => (Comparator::Greater, 1),
            Some('!') if has_equals_after => (Comparator::NotEqual, 2),
            Some('!') => return Err(self.unexpected("a comparator such as !=")),
            _ => return Ok(None),
        };
        self.pos += length;
        Ok(Some(comparator))
    }

    /// Skips a keyword and the white space that must follow it; returns whether the keyword
    /// was next.
    pub(super) fn accept_keyword(&mut self, keyword: &str) -> Result<bool, InvalidFilter> {
        let start = self.pos;
        if !self.take_while(is_word_char).is_exactly(keyword) {
            self.pos = start;
            return Ok(false);
        }
        if !self.skip_whitespace() {
            return Err(self.unexpected(&format!("a space after {keyword}")));
        }
        Ok(true)
    }

    /// Returns the keyword that is next in lower case, with a term after it, or `None`. Between
    /// terms, and before one, such a word is far more likely a keyword than a text to search.
    pub(super) fn lower_case_keyword(&self) -> Option<&'static str> {
        let end = self.find_end(is_word_char);
        let word: String = self.chars[self.pos..end].iter().collect();
        let is_keyword = |keyword: &&&str| **keyword != word && keyword.eq_ignore_ascii_case(&word);
        let keyword = KEYWORDS.iter().find(is_keyword)?;
        let next_start = self.find_end_from(end, char::is_whitespace);
        let next_end = self.find_end_from(next_start, is_word_char);
        let next: String = self.chars[next_start..next_end].iter().collect();
        let is_term_next = match self.chars.get(next_start) {
            None => false,
            Some(first) => !")<>=!:".contains(*first) && !matches!(&*next, "AND" | "OR"),
        };
        (next_start > end && is_term_next).then_some(*keyword)
    }

    /// Returns the error for a keyword in lower case.
    pub(super) fn lower_case_keyword_error(&self, keyword: &str) -> InvalidFilter {
        let word: String = self.chars[self.pos..self.pos + keyword.len()]
            .iter()
            .collect();
        let problem =
            format!("write {keyword} in upper case, or quote \"{word}\" to search for it");
        InvalidFilter::new(self.column(), problem)
    }

    /// Returns the end of a negative number that is next and is no operand of a comparison,
    /// else `None`. The minus of such a number is not a negation.
    pub(super) fn bare_number_end(&self) -> Option<usize> {
        if self.peek() != Some('-') {
            return None;
        }
        let end = self.find_end(|character| is_word_char(character) || character == '.');
        let text: String = self.chars[self.pos..end].iter().collect();
        let is_number = text.parse::<f64>().is_ok() && text.ends_with(|c: char| c.is_ascii_digit());
        let mut rest = self.chars[end..].iter();
        let next = rest.find(|character| !character.is_whitespace());
        let is_compared = next.is_some_and(|character| "<>=!:".contains(*character));
        (is_number && !is_compared).then_some(end)
    }

    pub(super) fn unsupported_function(&self, column: Column) -> InvalidFilter {
        InvalidFilter::new(
            column,
            "functions are not supported; put a space before the parenthesis, or quote the text",
        )
    }
}

// === impl Token ===

impl Token {
    fn is_exactly(&self, word: &str) -> bool {
        self.chars.iter().copied().eq(word.chars().map(Some))
    }

    /// Rejects `&&` and `||`, which other languages have for AND and OR.
    fn reject_foreign_operator(&self) -> Result<(), InvalidFilter> {
        let operators = [(['&'; 2], "AND"), (['|'; 2], "OR")];
        for (operator, keyword) in operators {
            let is_operator = |pair: &[Option<char>]| pair == operator.map(Some);
            if let Some(index) = self.chars.windows(2).position(is_operator) {
                let [character, _] = operator;
                let problem =
                    format!("write {keyword} for {character}{character}, or quote the text");
                return Err(InvalidFilter::new(Column(self.column.0 + index), problem));
            }
        }
        Ok(())
    }

    fn is_keyword(&self) -> bool {
        !self.is_quoted && self.chars.len() <= 3 && is_keyword(&self.to_name())
    }

    /// Returns the text as a field name, in which `*` is no wildcard.
    pub(super) fn to_name(&self) -> String {
        let chars = self.chars.iter();
        chars.map(|character| character.unwrap_or('*')).collect()
    }

    pub(super) fn into_pattern(self) -> Result<Pattern, InvalidFilter> {
        let (mut chars, column) = (self.chars.as_slice(), self.column);
        let leading_wildcard = chars.first() == Some(&None);
        chars = &chars[usize::from(leading_wildcard)..];
        let trailing_wildcard = chars.last() == Some(&None);
        chars = &chars[..chars.len() - usize::from(trailing_wildcard)];
        let body: Option<String> = chars.iter().copied().collect();
        let Some(body) = body else {
            let problem =
                r#"a * is a wildcard at the start or the end only; write "\*" for a literal star"#;
            return Err(InvalidFilter::new(column, problem));
        };
        Ok(Pattern {
            body: body.into(),
            leading_wildcard,
            trailing_wildcard,
            column,
        })
    }
}
