//! The letters of a filter, and the words, strings, comparators and keywords
//! that they make. How these make a filter is the affair of `parse`.

use super::filter::{Column, Comparator, InvalidFilter, Text, is_keyword, is_word_letter};

const VALUE: &str = "a value";

/// A place in the text of a filter.
pub(super) struct Scanner {
    letters: Vec<char>,
    /// The next letter; the parser goes back by it.
    pub(super) at: usize,
}

/// A quoted or bare text as it was written: nothing where an unescaped `*` stood.
pub(super) struct Token {
    pub(super) letters: Vec<Option<char>>,
    pub(super) is_quoted: bool,
    pub(super) column: Column,
}

// === impl Scanner ===

impl Scanner {
    pub(super) fn new(text: &str) -> Self {
        Self {
            letters: text.chars().collect(),
            at: 0,
        }
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    pub(super) fn column(&self) -> Column {
        Column(self.at + 1)
    }

    /// Steps over white space; tells whether there was any.
    pub(super) fn skip_space(&mut self) -> bool {
        let begin = self.at;
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
        begin < self.at
    }

    fn run(&mut self, is_part: impl Fn(char) -> bool) -> Token {
        let length = self.letters[self.at..]
            .iter()
            .take_while(|letter| is_part(**letter))
            .count();
        self.take(self.at + length)
    }

    pub(super) fn take(&mut self, end: usize) -> Token {
        let column = self.column();
        let wildcard = |letter: &char| (*letter != '*').then_some(*letter);
        let letters = self.letters[self.at..end].iter().map(wildcard).collect();
        self.at = end;
        Token {
            letters,
            is_quoted: false,
            column,
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> InvalidFilter {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('\\') => "a backslash, which needs quotes around it".to_owned(),
            Some(first) => {
                let rest = self.letters[self.at..].iter();
                let word: String = rest
                    .take_while(|letter| is_word_letter(**letter))
                    .take(30)
                    .collect();
                let found = if word.is_empty() {
                    first.to_string()
                } else {
                    word
                };
                format!("{found:?}")
            }
        };
        InvalidFilter::expected(self.column(), expected, &found)
    }

    // What letters make.

    pub(super) fn value(&mut self) -> Result<Token, InvalidFilter> {
        let token = match self.peek() {
            Some('"' | '\'') => return self.string(),
            Some(':') | None => return Err(self.unexpected(VALUE)),
            Some(_) => self.run(|letter| is_word_letter(letter) || ".:".contains(letter)),
        };
        if token.letters.is_empty() || token.is_keyword() {
            self.at -= token.letters.len();
            return Err(self.unexpected(VALUE));
        }
        if self.peek() == Some('(') {
            return Err(self.function(token.column));
        }
        Ok(token)
    }

    /// A value or a field in first place: a word that is no keyword, or a string.
    pub(super) fn word(&mut self, expected: &str) -> Result<Token, InvalidFilter> {
        let begin = self.at;
        let token = self.part(expected)?;
        if token.is_keyword() || self.letters[begin] == '-' {
            self.at = begin;
            return Err(self.unexpected(expected));
        }
        Ok(token)
    }

    /// A field in a later place, where a keyword is a name like any other.
    pub(super) fn part(&mut self, expected: &str) -> Result<Token, InvalidFilter> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return self.string();
        }
        let token = self.run(is_word_letter);
        if token.letters.is_empty() {
            return Err(self.unexpected(expected));
        }
        Ok(token)
    }

    fn string(&mut self) -> Result<Token, InvalidFilter> {
        let column = self.column();
        let quote = self.peek();
        let mut letters = Vec::new();
        loop {
            self.at += 1;
            let letter = match self.peek() {
                None => {
                    let problem = "the quote that opens here is never closed";
                    return Err(InvalidFilter::new(column, problem));
                }
                found if found == quote => {
                    self.at += 1;
                    return Ok(Token {
                        letters,
                        is_quoted: true,
                        column,
                    });
                }
                Some('*') => None,
                Some('\\') => {
                    self.at += 1;
                    Some(self.escaped()?)
                }
                letter => letter,
            };
            letters.push(letter);
        }
    }

    fn escaped(&self) -> Result<char, InvalidFilter> {
        match self.peek() {
            Some(letter @ ('"' | '\'' | '\\' | '*')) => Ok(letter),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some('t') => Ok('\t'),
            _ => Err(self.unexpected(r#"one of \ " ' * n r t after the backslash"#)),
        }
    }

    pub(super) fn comparator(&mut self) -> Result<Option<Comparator>, InvalidFilter> {
        let next = self.letters.get(self.at + 1) == Some(&'=');
        let (comparator, length) = match self.peek() {
            Some('=') => (Comparator::Equal, 1),
            Some(':') => (Comparator::Has, 1),
            Some('<') if next => (Comparator::LessEqual, 2),
            Some('<') => (Comparator::Less, 1),
            Some('>') if next => (Comparator::GreaterEqual, 2),
            Some('>') => (Comparator::Greater, 1),
            Some('!') if next => (Comparator::NotEqual, 2),
            Some('!') => return Err(self.unexpected("a comparator such as !=")),
            _ => return Ok(None),
        };
        self.at += length;
        Ok(Some(comparator))
    }

    /// Steps over a keyword, if it is next, and the space that must follow.
    pub(super) fn keyword(&mut self, keyword: &str) -> Result<bool, InvalidFilter> {
        let begin = self.at;
        if !self.run(is_word_letter).is(keyword) {
            self.at = begin;
            return Ok(false);
        }
        if !self.skip_space() {
            return Err(self.unexpected(&format!("a space after {keyword}")));
        }
        Ok(true)
    }

    /// The end of a negative number, if one is next and is not compared with
    /// anything: then its minus is no negation.
    pub(super) fn lone_number(&self) -> Option<usize> {
        if self.peek() != Some('-') {
            return None;
        }
        let rest = &self.letters[self.at..];
        let length = rest
            .iter()
            .take_while(|letter| is_word_letter(**letter) || **letter == '.')
            .count();
        let text: String = rest[..length].iter().collect();
        let is_number = text.parse::<f64>().is_ok() && text.ends_with(|c: char| c.is_ascii_digit());
        let next = rest[length..].iter().find(|letter| !letter.is_whitespace());
        let is_compared = next.is_some_and(|letter| "<>=!:".contains(*letter));
        (is_number && !is_compared).then_some(self.at + length)
    }

    pub(super) fn function(&self, column: Column) -> InvalidFilter {
        InvalidFilter::new(
            column,
            "there are no functions; put a space before the parenthesis, or the text in quotes",
        )
    }
}

// === impl Token ===

impl Token {
    fn is(&self, word: &str) -> bool {
        self.letters.iter().copied().eq(word.chars().map(Some))
    }

    fn is_keyword(&self) -> bool {
        !self.is_quoted && self.letters.len() <= 3 && is_keyword(&self.name())
    }

    /// The letters as a name, in which a star is a star.
    pub(super) fn name(&self) -> String {
        self.letters.iter().map(|l| l.unwrap_or('*')).collect()
    }

    pub(super) fn into_text(self) -> Result<Text, InvalidFilter> {
        let (mut letters, column) = (self.letters.as_slice(), self.column);
        let open_start = letters.first() == Some(&None);
        letters = &letters[usize::from(open_start)..];
        let open_end = letters.last() == Some(&None);
        letters = &letters[..letters.len() - usize::from(open_end)];
        let body: Option<String> = letters.iter().copied().collect();
        let Some(body) = body else {
            let problem = r#"a * is a wildcard at the beginning or the end only; for the star itself write "\*""#;
            return Err(InvalidFilter::new(column, problem));
        };
        Ok(Text {
            body: body.into(),
            open_start,
            open_end,
            column,
        })
    }
}
