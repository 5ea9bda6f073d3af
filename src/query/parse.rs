//! The parser of filters: the grammar of AIP-160, by recursive descent, with
//! the column of what is wrong. What it makes is in `filter`.
//!
//! ```text
//! expression  : factor {WS [AND WS] factor}          OR binds tighter than AND
//! factor      : term {WS OR WS term}
//! term        : [NOT WS | MINUS] simple
//! simple      : field [comparator value] | "(" expression ")"
//! value       : TEXT | STRING | "(" values with AND, OR and NOT ")"
//! ```

use super::filter::{
    Column, Comparator, Filter, InvalidFilter, Path, Restriction, Segment, Text, is_keyword,
    is_word_letter,
};

/// The most bytes of a filter.
pub(crate) const MAX_BYTES: usize = 8192;
/// The most parentheses inside each other.
pub(crate) const MAX_DEPTH: usize = 50;
/// The most fields inside each other.
pub(crate) const MAX_PATH: usize = 50;
/// The most comparisons and words.
pub(crate) const MAX_TERMS: usize = 250;

const VALUE: &str = "a value";
const TERM: &str = "a field or a word";
const GOES_ON: &str = "a space, AND, OR or the end";

/// Where in a text the parser is.
struct Parser {
    letters: Vec<char>,
    at: usize,
    depth: usize,
    terms: usize,
}

/// What the values in the parentheses behind a comparator are compared with.
type Subject<'a> = Option<(&'a Path, Comparator)>;

/// A quoted or bare text as it was written: nothing where an unescaped `*` stood.
struct Token {
    letters: Vec<Option<char>>,
    is_quoted: bool,
    column: Column,
}

/// Parses a filter; a blank one is an empty [`Filter::And`].
///
/// # Errors
/// [`InvalidFilter`] with the column, what was expected and what was found, or
/// the limit that is passed: 8192 bytes, 50 parentheses deep, 250 terms.
pub(crate) fn parse(text: &str) -> Result<Filter, InvalidFilter> {
    if MAX_BYTES < text.len() {
        let problem = format!(
            "the filter has {} bytes; at most {MAX_BYTES} are allowed",
            text.len()
        );
        return Err(InvalidFilter::new(Column(1), problem));
    }
    let mut parser = Parser {
        letters: text.chars().collect(),
        at: 0,
        depth: 0,
        terms: 0,
    };
    parser.skip_space();
    if parser.peek().is_none() {
        return Ok(Filter::And(Vec::new()));
    }
    let filter = parser.expression(None)?;
    match parser.peek() {
        None => Ok(filter),
        Some(_) => Err(parser.unexpected(GOES_ON)),
    }
}

// === impl Parser ===

impl Parser {
    fn expression(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        let mut all = vec![self.factor(subject)?];
        loop {
            let spaced = self.skip_space();
            if matches!(self.peek(), None | Some(')')) {
                return Ok(Filter::all(all));
            }
            if !spaced {
                return Err(self.unexpected(GOES_ON));
            }
            self.keyword("AND")?;
            all.push(self.factor(subject)?);
        }
    }

    fn factor(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        let mut any = vec![self.term(subject)?];
        loop {
            let end = self.at;
            if !self.skip_space() || !self.keyword("OR")? {
                self.at = end;
                return Ok(Filter::any(any));
            }
            any.push(self.term(subject)?);
        }
    }

    fn term(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        if self.keyword("NOT")? {
            let inner = self.simple(subject)?;
            return Ok(Filter::Not(Box::new(inner)));
        }
        let is_minus = self.peek() == Some('-') && subject.is_none();
        if is_minus && self.lone_number().is_none() {
            self.at += 1;
            let inner = self.simple(subject)?;
            return Ok(Filter::Not(Box::new(inner)));
        }
        self.simple(subject)
    }

    fn simple(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        if self.peek() == Some('(') {
            return self.composite(subject);
        }
        if let Some((path, comparator)) = subject {
            let value = self.value()?;
            return self.compare(path.clone(), comparator, value);
        }
        if let Some(end) = self.lone_number() {
            let token = self.take(end);
            return self.anywhere(token);
        }
        self.restriction()
    }

    fn composite(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        if self.depth == MAX_DEPTH {
            let problem = format!("more than {MAX_DEPTH} parentheses inside each other");
            return Err(InvalidFilter::new(self.column(), problem));
        }
        self.depth += 1;
        self.at += 1;
        self.skip_space();
        let inner = self.expression(subject)?;
        if self.peek() != Some(')') {
            return Err(self.unexpected("a closing parenthesis, AND or OR"));
        }
        self.at += 1;
        self.depth -= 1;
        Ok(inner)
    }

    fn restriction(&mut self) -> Result<Filter, InvalidFilter> {
        let mut tokens = vec![self.word(TERM)?];
        while self.peek() == Some('.') {
            self.at += 1;
            tokens.push(self.part("a field after the dot")?);
        }
        if self.peek() == Some('(') {
            return Err(self.function(tokens[0].column));
        }
        let end = self.at;
        self.skip_space();
        if let Some(comparator) = self.comparator()? {
            let path = path(tokens)?;
            self.skip_space();
            return self.argument(path, comparator);
        }
        self.at = end;
        if 1 < tokens.len() && tokens.iter().any(|token| token.is_quoted) {
            return Err(self.unexpected("a comparator after the field"));
        }
        let (column, is_quoted) = (tokens[0].column, tokens[0].is_quoted);
        let letters: Vec<_> = tokens.into_iter().map(|token| token.letters).collect();
        let letters = letters.join(&Some('.'));
        self.anywhere(Token {
            letters,
            column,
            is_quoted,
        })
    }

    fn argument(&mut self, path: Path, comparator: Comparator) -> Result<Filter, InvalidFilter> {
        if self.peek() != Some('(') {
            let value = self.value()?;
            return self.compare(path, comparator, value);
        }
        let column = self.column();
        let filter = self.composite(Some((&path, comparator)))?;
        if comparator == Comparator::NotEqual && !matches!(filter, Filter::Compare(_)) {
            let problem = format!("!= takes one value; write NOT {path} = (... OR ...)");
            return Err(InvalidFilter::new(column, problem));
        }
        Ok(filter)
    }

    fn value(&mut self) -> Result<Token, InvalidFilter> {
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
    fn word(&mut self, expected: &str) -> Result<Token, InvalidFilter> {
        let begin = self.at;
        let token = self.part(expected)?;
        if token.is_keyword() || self.letters[begin] == '-' {
            self.at = begin;
            return Err(self.unexpected(expected));
        }
        Ok(token)
    }

    /// A field in a later place, where a keyword is a name like any other.
    fn part(&mut self, expected: &str) -> Result<Token, InvalidFilter> {
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

    fn comparator(&mut self) -> Result<Option<Comparator>, InvalidFilter> {
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
    fn keyword(&mut self, keyword: &str) -> Result<bool, InvalidFilter> {
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
    fn lone_number(&self) -> Option<usize> {
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

    // What the parser makes.

    fn anywhere(&mut self, token: Token) -> Result<Filter, InvalidFilter> {
        self.count(token.column)?;
        Ok(Filter::Anywhere(token.into_text()?))
    }

    fn compare(
        &mut self,
        path: Path,
        comparator: Comparator,
        value: Token,
    ) -> Result<Filter, InvalidFilter> {
        self.count(value.column)?;
        let value = value.into_text()?;
        Ok(Filter::Compare(Restriction {
            path,
            comparator,
            value,
        }))
    }

    fn count(&mut self, column: Column) -> Result<(), InvalidFilter> {
        self.terms += 1;
        if MAX_TERMS < self.terms {
            let problem = format!("more than {MAX_TERMS} terms");
            return Err(InvalidFilter::new(column, problem));
        }
        Ok(())
    }

    fn function(&self, column: Column) -> InvalidFilter {
        InvalidFilter::new(
            column,
            "there are no functions; put a space before the parenthesis, or the text in quotes",
        )
    }

    // Letters.

    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn column(&self) -> Column {
        Column(self.at + 1)
    }

    /// Steps over white space; tells whether there was any.
    fn skip_space(&mut self) -> bool {
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

    fn take(&mut self, end: usize) -> Token {
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

    fn unexpected(&self, expected: &str) -> InvalidFilter {
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
    fn name(&self) -> String {
        self.letters.iter().map(|l| l.unwrap_or('*')).collect()
    }

    fn into_text(self) -> Result<Text, InvalidFilter> {
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

fn path(tokens: Vec<Token>) -> Result<Path, InvalidFilter> {
    if let Some(token) = tokens.get(MAX_PATH) {
        let problem = format!("more than {MAX_PATH} fields inside each other");
        return Err(InvalidFilter::new(token.column, problem));
    }
    let mut segments = Vec::with_capacity(tokens.len());
    for token in tokens {
        let (name, column) = (token.name(), token.column);
        if !token.is_quoted && name.ends_with(']') && name.contains('[') {
            let problem = "there is no indexing; a repeated field is asked with `:`";
            return Err(InvalidFilter::new(column, problem));
        }
        let name = name.into();
        segments.push(Segment { name, column });
    }
    Ok(Path(segments.into()))
}

#[cfg(test)]
mod tests;
