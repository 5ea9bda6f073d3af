//! Recursive-descent parser of the filter grammar of AIP-160.
//!
//! ```text
//! expression  : factor {WS [AND WS] factor}          OR binds tighter than AND
//! factor      : term {WS OR WS term}
//! term        : [NOT WS | MINUS] simple
//! simple      : field [comparator value] | "(" expression ")"
//! value       : TEXT | STRING | "(" values with AND, OR and NOT ")"
//! ```

use super::{
    fields::Field,
    filter::{Column, Comparator, Filter, InvalidFilter, Path, Restriction, Segment},
    lexer::{Lexer, Token},
};

pub(crate) const MAX_FILTER_BYTES: usize = 8192;
/// The maximum nesting of parentheses.
pub(crate) const MAX_PAREN_DEPTH: usize = 50;
pub(crate) const MAX_PATH_SEGMENTS: usize = 50;
/// The maximum number of restrictions and words.
pub(crate) const MAX_TERMS: usize = 250;

const EXPECTED_TERM: &str = "a field or a word";
const EXPECTED_CONTINUATION: &str = "a space, AND, OR or the end";

struct Parser {
    lexer: Lexer,
    paren_depth: usize,
    term_count: usize,
}

/// The field and comparator that apply to each value of `field = (a OR b)`.
type LeftHandSide<'a> = Option<(&'a Path, Comparator)>;

/// Parses a filter; a blank text is an empty [`Filter::And`].
///
/// # Errors
/// [`InvalidFilter`] with the column of the error, for a syntax error or an exceeded limit
/// ([`MAX_FILTER_BYTES`], [`MAX_PAREN_DEPTH`], [`MAX_PATH_SEGMENTS`], [`MAX_TERMS`]).
pub(crate) fn parse(text: &str) -> Result<Filter, InvalidFilter> {
    if text.len() > MAX_FILTER_BYTES {
        let bytes = text.len();
        let problem =
            format!("the filter has {bytes} bytes; at most {MAX_FILTER_BYTES} are allowed");
        return Err(InvalidFilter::new(Column(1), problem));
    }
    let mut parser = Parser {
        lexer: Lexer::new(text),
        paren_depth: 0,
        term_count: 0,
    };
    parser.lexer.skip_whitespace();
    if parser.lexer.peek().is_none() {
        return Ok(Filter::And(Vec::new()));
    }
    let filter = parser.parse_expression(None)?;
    match parser.lexer.peek() {
        None => Ok(filter),
        Some(_) => Err(parser.lexer.unexpected(EXPECTED_CONTINUATION)),
    }
}

// === impl Parser ===

impl Parser {
    fn parse_expression(&mut self, left: LeftHandSide<'_>) -> Result<Filter, InvalidFilter> {
        let mut conjuncts = vec![self.parse_factor(left)?];
        loop {
            let had_space = self.lexer.skip_whitespace();
            if matches!(self.lexer.peek(), None | Some(')')) {
                return Ok(Filter::conjunction(conjuncts));
            }
            if !had_space {
                return Err(self.lexer.unexpected(EXPECTED_CONTINUATION));
            }
            if !self.lexer.accept_keyword("AND")?
                && let Some(keyword @ ("AND" | "OR")) = self.lexer.lower_case_keyword()
            {
                return Err(self.lexer.lower_case_keyword_error(keyword));
            }
            conjuncts.push(self.parse_factor(left)?);
        }
    }

    fn parse_factor(&mut self, left: LeftHandSide<'_>) -> Result<Filter, InvalidFilter> {
        let mut disjuncts = vec![self.parse_term(left)?];
        loop {
            let end = self.lexer.pos;
            if !self.lexer.skip_whitespace() || !self.lexer.accept_keyword("OR")? {
                self.lexer.pos = end;
                return Ok(Filter::disjunction(disjuncts));
            }
            disjuncts.push(self.parse_term(left)?);
        }
    }

    fn parse_term(&mut self, left: LeftHandSide<'_>) -> Result<Filter, InvalidFilter> {
        let is_minus = self.lexer.peek() == Some('-') && left.is_none();
        if is_minus && self.lexer.bare_number_end().is_none() {
            self.lexer.pos += 1;
        } else if !self.lexer.accept_keyword("NOT")? {
            return match self.lexer.lower_case_keyword() {
                Some(keyword @ "NOT") => Err(self.lexer.lower_case_keyword_error(keyword)),
                _ => self.parse_simple(left),
            };
        }
        let inner = self.parse_simple(left)?;
        Ok(Filter::Not(Box::new(inner)))
    }

    fn parse_simple(&mut self, left: LeftHandSide<'_>) -> Result<Filter, InvalidFilter> {
        if self.lexer.peek() == Some('(') {
            return self.parse_composite(left);
        }
        if let Some((path, comparator)) = left {
            let value = self.lexer.read_value()?;
            return self.build_restriction(path.clone(), comparator, value);
        }
        if let Some(end) = self.lexer.bare_number_end() {
            let token = self.lexer.take_until(end);
            return self.build_global(token);
        }
        self.parse_restriction()
    }

    fn parse_composite(&mut self, left: LeftHandSide<'_>) -> Result<Filter, InvalidFilter> {
        if self.paren_depth == MAX_PAREN_DEPTH {
            let problem = format!("more than {MAX_PAREN_DEPTH} nested parentheses");
            return Err(InvalidFilter::new(self.lexer.column(), problem));
        }
        self.paren_depth += 1;
        self.lexer.pos += 1;
        self.lexer.skip_whitespace();
        let inner = self.parse_expression(left)?;
        if self.lexer.peek() != Some(')') {
            return Err(self.lexer.unexpected("a closing parenthesis, AND or OR"));
        }
        self.lexer.pos += 1;
        self.paren_depth -= 1;
        Ok(inner)
    }

    fn parse_restriction(&mut self) -> Result<Filter, InvalidFilter> {
        let mut tokens = vec![self.lexer.read_word(EXPECTED_TERM)?];
        while self.lexer.peek() == Some('.') {
            self.lexer.pos += 1;
            tokens.push(self.lexer.read_path_segment("a field after the dot")?);
        }
        if self.lexer.peek() == Some('(') {
            return Err(self.lexer.unsupported_function(tokens[0].column));
        }
        let end = self.lexer.pos;
        self.lexer.skip_whitespace();
        if let Some(comparator) = self.lexer.read_comparator()? {
            let path = build_path(tokens)?;
            self.lexer.skip_whitespace();
            return self.parse_argument(path, comparator);
        }
        self.lexer.pos = end;
        if tokens.len() > 1 && tokens.iter().any(|token| token.is_quoted) {
            return Err(self.lexer.unexpected("a comparator after the field"));
        }
        if let [token] = tokens.as_slice() {
            token.reject_field_name()?;
        }
        let (column, is_quoted) = (tokens[0].column, tokens[0].is_quoted);
        let parts: Vec<_> = tokens.into_iter().map(|token| token.chars).collect();
        let chars = parts.join(&Some('.'));
        self.build_global(Token {
            chars,
            column,
            is_quoted,
        })
    }

    fn parse_argument(
        &mut self,
        path: Path,
        comparator: Comparator,
    ) -> Result<Filter, InvalidFilter> {
        if self.lexer.peek() != Some('(') {
            let value = self.lexer.read_value()?;
            return self.build_restriction(path, comparator, value);
        }
        let column = self.lexer.column();
        let filter = self.parse_composite(Some((&path, comparator)))?;
        if comparator == Comparator::NotEqual && !matches!(filter, Filter::Restriction(_)) {
            let problem = format!("!= takes one value; write NOT {path} = (... OR ...)");
            return Err(InvalidFilter::new(column, problem));
        }
        Ok(filter)
    }

    fn build_global(&mut self, token: Token) -> Result<Filter, InvalidFilter> {
        self.count_term(token.column)?;
        Ok(Filter::Global(token.into_pattern()?))
    }

    fn build_restriction(
        &mut self,
        path: Path,
        comparator: Comparator,
        value: Token,
    ) -> Result<Filter, InvalidFilter> {
        self.count_term(value.column)?;
        let value = value.into_pattern()?;
        Ok(Filter::Restriction(Restriction {
            path,
            comparator,
            value,
        }))
    }

    fn count_term(&mut self, column: Column) -> Result<(), InvalidFilter> {
        self.term_count += 1;
        if self.term_count > MAX_TERMS {
            let problem = format!("more than {MAX_TERMS} terms");
            return Err(InvalidFilter::new(column, problem));
        }
        Ok(())
    }
}

// === impl Token ===

impl Token {
    /// Rejects the unquoted name of a field where a condition is expected: `done` alone would
    /// search for a text that no operation has.
    fn reject_field_name(&self) -> Result<(), InvalidFilter> {
        let name = self.to_name();
        match Field::parse(&name) {
            Some(field) if !self.is_quoted => {
                let condition = field.example_condition(&name);
                let problem = format!(
                    "{name} alone is no condition; write {condition}, or quote \"{name}\" to search for it"
                );
                Err(InvalidFilter::new(self.column, problem))
            }
            _ => Ok(()),
        }
    }
}

// === Paths ===

fn build_path(tokens: Vec<Token>) -> Result<Path, InvalidFilter> {
    if let Some(token) = tokens.get(MAX_PATH_SEGMENTS) {
        let problem = format!("more than {MAX_PATH_SEGMENTS} nested fields");
        return Err(InvalidFilter::new(token.column, problem));
    }
    let mut segments = Vec::with_capacity(tokens.len());
    for token in tokens {
        let (name, column) = (token.to_name(), token.column);
        if !token.is_quoted && name.ends_with(']') && name.contains('[') {
            let problem = "indexing is not supported; test a repeated field with `:`";
            return Err(InvalidFilter::new(column, problem));
        }
        let name = name.into();
        segments.push(Segment { name, column });
    }
    Ok(Path(segments.into()))
}

#[cfg(test)]
mod tests;
