//! What a filter means: checked against the fields and types that there are,
//! then asked about one operation after the other. Which operations must be
//! asked at all is decided in `plan`.

use std::cell::Cell;

use prost::Name;
use prost_reflect::MessageDescriptor;

use super::{
    check,
    fields::{Field, NAMES, Own, STATES},
    filter::{Column, Comparator, Filter, InvalidFilter, Path, Restriction, Segment, Text},
    inside::{Inside, TYPE},
    literal::{Held, Literal, Misfit, Scalar, Truth},
    parse::parse,
    subject::{Part, Subject},
    words,
};
use crate::{
    operation::operation::Operation,
    proto::{
        google::rpc,
        longrunning::v1::{OperationMetadata, operation_metadata::State},
    },
    types::Types,
};

/// A filter that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    types: Types,
    pub(crate) root: Node,
    /// How many of its terms look into messages.
    looks: usize,
    /// In which states it is true, if it asks for nothing but the state.
    states: Option<Vec<State>>,
}

/// A part of a filter.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Not(Box<Node>),
    /// A field of the operation itself.
    Own(Own, Comparator, Literal),
    /// A label, or all of them.
    Labels(Box<[Segment]>, Comparator, Literal),
    /// What is inside the error, the response or the metadata.
    Inside(Part, Box<[Segment]>, Comparator, Literal),
    /// A text, wherever it stands.
    Anywhere(Text),
}

/// The types that the parts must have for a filter to be true, as far as it says so.
#[derive(Clone, Default)]
struct Said {
    metadata: Option<MessageDescriptor>,
    response: Option<MessageDescriptor>,
}

// === impl Query ===

impl Query {
    /// Parses a filter and checks it.
    ///
    /// # Errors
    /// [`InvalidFilter`] with the column: the text is no filter, names a field
    /// that is not there, or compares one with what it cannot be.
    pub(crate) fn parse(text: &str, types: &Types) -> Result<Self, InvalidFilter> {
        Self::new(&parse(text)?, types)
    }

    pub(crate) fn new(filter: &Filter, types: &Types) -> Result<Self, InvalidFilter> {
        let root = compile(filter, types, &Said::default())?;
        Ok(Self {
            types: types.clone(),
            looks: root.looks(),
            states: root.states(),
            root,
        })
    }

    /// Whether it is true of an operation. What is not known is not true.
    pub(crate) fn matches(&self, operation: &Operation) -> bool {
        if let Some(states) = &self.states {
            return states.contains(&operation.state());
        }
        let subject = Subject::new(operation, &self.types);
        self.root.truth(&|term| term.about(&subject)) == Truth::True
    }

    /// About how many bytes have to be decoded to ask it about an operation. A
    /// term that looks through them all takes a small part of that again.
    pub(crate) fn work(&self, operation: &Operation) -> usize {
        const PART: usize = 16;
        match self.looks {
            0 => 0,
            looks => {
                let bytes = operation.bytes().len();
                bytes.saturating_add(bytes.saturating_mul(looks) / PART)
            }
        }
    }
}

// === impl Node ===

impl Node {
    /// What follows from what its terms say.
    fn truth(&self, term: &impl Fn(&Self) -> Truth) -> Truth {
        match self {
            Self::All(nodes) => {
                let mut truth = Truth::True;
                for node in nodes {
                    truth = truth.min(node.truth(term));
                    if truth == Truth::False {
                        break;
                    }
                }
                truth
            }
            Self::Any(nodes) => {
                let mut truth = Truth::False;
                for node in nodes {
                    truth = truth.max(node.truth(term));
                    if truth == Truth::True {
                        break;
                    }
                }
                truth
            }
            Self::Not(node) => node.truth(term).not(),
            term_itself => term(term_itself),
        }
    }

    /// What a term says about an operation.
    fn about(&self, subject: &Subject<'_>) -> Truth {
        match self {
            Self::Own(own, comparator, literal) => {
                compare(own.held(subject.operation), *comparator, literal)
            }
            Self::Labels(path, comparator, literal) => {
                labels(subject.operation, path, *comparator, literal)
            }
            Self::Inside(part, path, comparator, literal) => {
                let inside = Inside::new(subject, *comparator, literal);
                ask(*part, inside, path, subject)
            }
            Self::Anywhere(text) => words::is_anywhere(text, subject).into(),
            Self::All(_) | Self::Any(_) | Self::Not(_) => self.truth(&|term| term.about(subject)),
        }
    }

    /// In which states it is true, if it asks for nothing but the state.
    fn states(&self) -> Option<Vec<State>> {
        let asks_else = Cell::new(false);
        let is_true = |state: &State| {
            let term = |term: &Self| match term {
                Self::Own(own @ (Own::Done | Own::State), comparator, literal) => {
                    compare(own.held_in(*state), *comparator, literal)
                }
                _ => {
                    asks_else.set(true);
                    Truth::Unknown
                }
            };
            self.truth(&term) == Truth::True
        };
        let states = STATES.into_iter().filter(is_true).collect();
        (!asks_else.get()).then_some(states)
    }

    /// How many of its terms look into messages.
    fn looks(&self) -> usize {
        match self {
            Self::All(nodes) | Self::Any(nodes) => nodes.iter().map(Self::looks).sum(),
            Self::Not(node) => node.looks(),
            Self::Own(..) | Self::Labels(..) => 0,
            // The type is known without a look into the message.
            Self::Inside(part, path, ..) => {
                let is_type = path.first().is_some_and(|first| &*first.name == TYPE);
                usize::from(!is_type || *part == Part::Error)
            }
            Self::Anywhere(_) => 1,
        }
    }
}

/// How a field's value compares; none is not known.
fn compare(held: Option<Held<'_>>, comparator: Comparator, literal: &Literal) -> Truth {
    if comparator == Comparator::Has && literal.text.is_star() {
        let is_default = matches!(
            held,
            None | Some(Held::Text("") | Held::Bool(false) | Held::Integer(0))
        );
        return (!is_default).into();
    }
    held.map_or(Truth::Unknown, |held| literal.test(comparator, held))
}

fn ask(part: Part, inside: Inside<'_>, path: &[Segment], subject: &Subject<'_>) -> Truth {
    if part == Part::Error {
        let is_there = subject.operation.wire().error().is_some();
        return match subject.error() {
            Some(error) => inside.message(error, path),
            None if is_there => Truth::Unknown,
            None => inside.absent(),
        };
    }
    match subject.any(part) {
        None => inside.absent(),
        Some(any) => inside.any(any.type_url, || subject.message(part), path),
    }
}

fn labels(
    operation: &Operation,
    path: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> Truth {
    let labels = operation.labels();
    let asks_presence = comparator == Comparator::Has && literal.text.is_star();
    let Some(key) = path.first() else {
        let mut labels = labels.iter();
        return labels.any(|(key, _)| literal.text.is(key)).into();
    };
    match labels.get(&key.name) {
        None if asks_presence => Truth::False,
        None => Truth::Unknown,
        Some(_) if asks_presence => Truth::True,
        Some(value) => literal.test(comparator, Held::Text(value)),
    }
}

// === Checking ===

fn compile(filter: &Filter, types: &Types, said: &Said) -> Result<Node, InvalidFilter> {
    let many = |filters: &[Filter], said: &Said| {
        let nodes = filters.iter().map(|filter| compile(filter, types, said));
        nodes.collect::<Result<Vec<_>, _>>()
    };
    Ok(match filter {
        Filter::And(filters) => Node::All(many(filters, &said.with(filters, types))?),
        Filter::Or(filters) => Node::Any(many(filters, said)?),
        Filter::Not(filter) => Node::Not(Box::new(compile(filter, types, said)?)),
        Filter::Compare(restriction) => restrict(restriction, types, said)?,
        Filter::Anywhere(text) => Node::Anywhere(text.clone()),
    })
}

fn restrict(restriction: &Restriction, types: &Types, said: &Said) -> Result<Node, InvalidFilter> {
    let Restriction {
        path,
        comparator,
        value,
    } = restriction;
    let comparator = *comparator;
    let literal = Literal::new(value.clone());
    let (first, rest) = path.0.split_first().ok_or_else(|| no_field(path, 0))?;
    let field = Field::parse(&first.name).ok_or_else(|| no_field(path, 0))?;
    let part = match field {
        Field::Own(own) => {
            if !rest.is_empty() {
                return Err(no_field(path, 1));
            }
            literal
                .check(comparator, &own.scalar())
                .map_err(|misfit| misfit_of(restriction, misfit))?;
            return Ok(Node::Own(own, comparator, literal));
        }
        Field::Labels => {
            check_labels(restriction, rest, &literal)?;
            return Ok(Node::Labels(rest.into(), comparator, literal));
        }
        Field::Error => Part::Error,
        Field::Response => Part::Response,
        Field::Metadata => Part::Metadata,
    };
    let is_type = rest.first().is_some_and(|segment| &*segment.name == TYPE);
    if is_type && part != Part::Error {
        if 1 < rest.len() {
            return Err(no_field(path, 2));
        }
        literal
            .check(comparator, &Scalar::Text)
            .map_err(|misfit| misfit_of(restriction, misfit))?;
    } else if let Some(descriptor) = said.of(part, types) {
        let checked = check::check(&descriptor, rest, comparator, &literal);
        checked.map_err(|misfit| misfit_of(restriction, misfit))?;
    } else if part == Part::Metadata && comparator.is_ordering() {
        // The type may be any. But what has an order in the server's own
        // metadata is hardly meant to be compared with what has none.
        let own = types.descriptor(&OperationMetadata::full_name());
        let checked = own.map(|own| check::check(&own, rest, comparator, &literal));
        if let Some(Err(Misfit::Value(expected))) = checked {
            return Err(unfit(restriction, &expected));
        }
    }
    Ok(Node::Inside(part, rest.into(), comparator, literal))
}

fn check_labels(
    restriction: &Restriction,
    rest: &[Segment],
    literal: &Literal,
) -> Result<(), InvalidFilter> {
    let Restriction {
        path, comparator, ..
    } = restriction;
    match rest {
        [] if *comparator == Comparator::Has => Ok(()),
        [] => Err(misfit_of(
            restriction,
            Misfit::Comparator("`:`, for it is a map; one label is labels.KEY"),
        )),
        [_] => literal
            .check(*comparator, &Scalar::Text)
            .map_err(|misfit| misfit_of(restriction, misfit)),
        _ => Err(no_field(path, 2)),
    }
}

// === impl Said ===

impl Said {
    /// Takes over what the parts of a conjunction say about types.
    fn with(&self, filters: &[Filter], types: &Types) -> Self {
        let mut said = self.clone();
        for filter in filters {
            let Filter::Compare(Restriction {
                path,
                comparator: Comparator::Equal,
                value,
            }) = filter
            else {
                continue;
            };
            let [part, field] = &*path.0 else {
                continue;
            };
            let name = value.exact().and_then(|url| url.rsplit('/').next());
            let Some(name) = name.filter(|_| &*field.name == TYPE) else {
                continue;
            };
            match &*part.name {
                "metadata" => said.metadata = types.descriptor(name),
                "response" => said.response = types.descriptor(name),
                _ => {}
            }
        }
        said
    }

    fn of(&self, part: Part, types: &Types) -> Option<MessageDescriptor> {
        match part {
            Part::Error => types.descriptor(&rpc::Status::full_name()),
            Part::Response => self.response.clone(),
            Part::Metadata => self.metadata.clone(),
        }
    }
}

// === Errors ===

fn no_field(path: &Path, at: usize) -> InvalidFilter {
    let Some(segment) = path.0.get(at) else {
        return InvalidFilter::new(Column(1), "expected a field");
    };
    let found = format!("{:?}", segment.name);
    let expected = match at {
        0 => format!("one of the fields {NAMES}"),
        _ => {
            let parent = Path(path.0[..at].into());
            format!("a field of {parent}, or none")
        }
    };
    InvalidFilter::expected(segment.column, &expected, &found)
}

fn unfit(restriction: &Restriction, expected: &str) -> InvalidFilter {
    let Restriction { path, value, .. } = restriction;
    let found = format!("{:?}", value.as_written());
    InvalidFilter::expected(value.column, &format!("{expected} for {path}"), &found)
}

fn misfit_of(restriction: &Restriction, misfit: Misfit) -> InvalidFilter {
    let Restriction {
        path, comparator, ..
    } = restriction;
    match misfit {
        Misfit::Value(expected) => unfit(restriction, &expected),
        Misfit::NoField(from_end) => no_field(path, path.0.len().saturating_sub(from_end)),
        Misfit::Comparator(expected) => {
            let column = path.0[path.0.len() - 1].column;
            let expected = format!("{path} to be compared with {expected}");
            InvalidFilter::expected(column, &expected, comparator.as_str())
        }
    }
}

#[cfg(test)]
mod tests;
