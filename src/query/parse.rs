//! The parser of filters: the grammar of AIP-160, by recursive descent, with
//! the column of what is wrong. What it makes is in `filter`, the letters are
//! read in `scan`.
//!
//! ```text
//! expression  : factor {WS [AND WS] factor}          OR binds tighter than AND
//! factor      : term {WS OR WS term}
//! term        : [NOT WS | MINUS] simple
//! simple      : field [comparator value] | "(" expression ")"
//! value       : TEXT | STRING | "(" values with AND, OR and NOT ")"
//! ```

use super::{
    filter::{Column, Comparator, Filter, InvalidFilter, Path, Restriction, Segment},
    scan::{Scanner, Token},
};

/// The most bytes of a filter.
pub(crate) const MAX_BYTES: usize = 8192;
/// The most parentheses inside each other.
pub(crate) const MAX_DEPTH: usize = 50;
/// The most fields inside each other.
pub(crate) const MAX_PATH: usize = 50;
/// The most comparisons and words.
pub(crate) const MAX_TERMS: usize = 250;

const TERM: &str = "a field or a word";
const GOES_ON: &str = "a space, AND, OR or the end";

/// Where in a text the parser is, and how much it has found.
struct Parser {
    scan: Scanner,
    depth: usize,
    terms: usize,
}

/// What the values in the parentheses behind a comparator are compared with.
type Subject<'a> = Option<(&'a Path, Comparator)>;

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
        scan: Scanner::new(text),
        depth: 0,
        terms: 0,
    };
    parser.scan.skip_space();
    if parser.scan.peek().is_none() {
        return Ok(Filter::And(Vec::new()));
    }
    let filter = parser.expression(None)?;
    match parser.scan.peek() {
        None => Ok(filter),
        Some(_) => Err(parser.scan.unexpected(GOES_ON)),
    }
}

// === impl Parser ===

impl Parser {
    fn expression(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        let mut all = vec![self.factor(subject)?];
        loop {
            let spaced = self.scan.skip_space();
            if matches!(self.scan.peek(), None | Some(')')) {
                return Ok(Filter::all(all));
            }
            if !spaced {
                return Err(self.scan.unexpected(GOES_ON));
            }
            self.scan.keyword("AND")?;
            all.push(self.factor(subject)?);
        }
    }

    fn factor(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        let mut any = vec![self.term(subject)?];
        loop {
            let end = self.scan.at;
            if !self.scan.skip_space() || !self.scan.keyword("OR")? {
                self.scan.at = end;
                return Ok(Filter::any(any));
            }
            any.push(self.term(subject)?);
        }
    }

    fn term(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        if self.scan.keyword("NOT")? {
            let inner = self.simple(subject)?;
            return Ok(Filter::Not(Box::new(inner)));
        }
        let is_minus = self.scan.peek() == Some('-') && subject.is_none();
        if is_minus && self.scan.lone_number().is_none() {
            self.scan.at += 1;
            let inner = self.simple(subject)?;
            return Ok(Filter::Not(Box::new(inner)));
        }
        self.simple(subject)
    }

    fn simple(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        if self.scan.peek() == Some('(') {
            return self.composite(subject);
        }
        if let Some((path, comparator)) = subject {
            let value = self.scan.value()?;
            return self.compare(path.clone(), comparator, value);
        }
        if let Some(end) = self.scan.lone_number() {
            let token = self.scan.take(end);
            return self.anywhere(token);
        }
        self.restriction()
    }

    fn composite(&mut self, subject: Subject<'_>) -> Result<Filter, InvalidFilter> {
        if self.depth == MAX_DEPTH {
            let problem = format!("more than {MAX_DEPTH} parentheses inside each other");
            return Err(InvalidFilter::new(self.scan.column(), problem));
        }
        self.depth += 1;
        self.scan.at += 1;
        self.scan.skip_space();
        let inner = self.expression(subject)?;
        if self.scan.peek() != Some(')') {
            return Err(self.scan.unexpected("a closing parenthesis, AND or OR"));
        }
        self.scan.at += 1;
        self.depth -= 1;
        Ok(inner)
    }

    fn restriction(&mut self) -> Result<Filter, InvalidFilter> {
        let mut tokens = vec![self.scan.word(TERM)?];
        while self.scan.peek() == Some('.') {
            self.scan.at += 1;
            tokens.push(self.scan.part("a field after the dot")?);
        }
        if self.scan.peek() == Some('(') {
            return Err(self.scan.function(tokens[0].column));
        }
        let end = self.scan.at;
        self.scan.skip_space();
        if let Some(comparator) = self.scan.comparator()? {
            let path = path(tokens)?;
            self.scan.skip_space();
            return self.argument(path, comparator);
        }
        self.scan.at = end;
        if 1 < tokens.len() && tokens.iter().any(|token| token.is_quoted) {
            return Err(self.scan.unexpected("a comparator after the field"));
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
        if self.scan.peek() != Some('(') {
            let value = self.scan.value()?;
            return self.compare(path, comparator, value);
        }
        let column = self.scan.column();
        let filter = self.composite(Some((&path, comparator)))?;
        if comparator == Comparator::NotEqual && !matches!(filter, Filter::Compare(_)) {
            let problem = format!("!= takes one value; write NOT {path} = (... OR ...)");
            return Err(InvalidFilter::new(column, problem));
        }
        Ok(filter)
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
