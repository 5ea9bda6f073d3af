//! What a filter means: checked against the fields and types that there are,
//! then asked about one operation after the other. Which operations must be
//! asked at all is decided in `plan`.

use std::cell::Cell;

use prost::Name;
use prost_reflect::MessageDescriptor;

use super::{
    check,
    decoded::{DecodedOperation, MessageField},
    fields::{FIELD_NAMES, Field, STATES, ScalarField},
    filter::{Column, Comparator, Filter, InvalidFilter, Path, Pattern, Restriction, Segment},
    full_text,
    literal::{FieldValue, Literal, ScalarType, TruthValue, TypeError},
    message_eval::{MessageEvaluator, TYPE_FIELD},
    parse::parse,
};
use crate::{
    operation::Operation,
    proto::{
        google::rpc,
        longrunning::v1::{OperationMetadata, operation_metadata::State},
    },
    types::TypeRegistry,
};

/// A filter that can be asked.
#[derive(Clone, Debug)]
pub(crate) struct CompiledFilter {
    types: TypeRegistry,
    pub(crate) root: Expr,
    /// How many of its terms look into messages.
    decoded_terms: usize,
    /// In which states it is true, if it asks for nothing but the state.
    matching_states: Option<Vec<State>>,
}

/// A part of a filter.
#[derive(Clone, Debug)]
pub(crate) enum Expr {
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    /// A field of the operation itself.
    Field(ScalarField, Comparator, Literal),
    /// A label, or all of them.
    Label(Box<[Segment]>, Comparator, Literal),
    /// What is inside the error, the response or the metadata.
    Message(MessageField, Box<[Segment]>, Comparator, Literal),
    /// A text, wherever it stands.
    Text(Pattern),
}

/// The types that the parts must have for a filter to be true, as far as it says so.
#[derive(Clone, Default)]
struct TypeConstraints {
    metadata: Option<MessageDescriptor>,
    response: Option<MessageDescriptor>,
}

// === impl Query ===

impl CompiledFilter {
    /// Parses a filter and checks it.
    ///
    /// # Errors
    /// [`InvalidFilter`] with the column: the text is no filter, names a field
    /// that is not there, or compares one with what it cannot be.
    pub(crate) fn parse(text: &str, types: &TypeRegistry) -> Result<Self, InvalidFilter> {
        Self::new(&parse(text)?, types)
    }

    pub(crate) fn new(filter: &Filter, types: &TypeRegistry) -> Result<Self, InvalidFilter> {
        let root = compile(filter, types, &TypeConstraints::default())?;
        Ok(Self {
            types: types.clone(),
            decoded_terms: root.decoded_terms(),
            matching_states: root.matching_states(),
            root,
        })
    }

    /// Whether it is true of an operation. What is not known is not true.
    pub(crate) fn matches(&self, operation: &Operation) -> bool {
        if let Some(states) = &self.matching_states {
            return states.contains(&operation.state());
        }
        let decoded = DecodedOperation::new(operation, &self.types);
        self.root.evaluate(&|leaf| leaf.evaluate_leaf(&decoded)) == TruthValue::True
    }

    /// About how many bytes have to be decoded to ask it about an operation. A
    /// term that looks through them all takes a small part of that again.
    pub(crate) fn decode_cost(&self, operation: &Operation) -> usize {
        const TERM_COST_DIVISOR: usize = 16;
        match self.decoded_terms {
            0 => 0,
            terms => {
                let bytes = operation.bytes().len();
                bytes.saturating_add(bytes.saturating_mul(terms) / TERM_COST_DIVISOR)
            }
        }
    }
}

// === impl Node ===

impl Expr {
    /// What follows from what its terms say.
    fn evaluate(&self, evaluate_leaf: &impl Fn(&Self) -> TruthValue) -> TruthValue {
        match self {
            Self::And(nodes) => {
                let mut truth = TruthValue::True;
                for node in nodes {
                    truth = truth.min(node.evaluate(evaluate_leaf));
                    if truth == TruthValue::False {
                        break;
                    }
                }
                truth
            }
            Self::Or(nodes) => {
                let mut truth = TruthValue::False;
                for node in nodes {
                    truth = truth.max(node.evaluate(evaluate_leaf));
                    if truth == TruthValue::True {
                        break;
                    }
                }
                truth
            }
            Self::Not(node) => node.evaluate(evaluate_leaf).not(),
            leaf => evaluate_leaf(leaf),
        }
    }

    /// What a term says about an operation.
    fn evaluate_leaf(&self, decoded: &DecodedOperation<'_>) -> TruthValue {
        match self {
            Self::Field(field, comparator, literal) => {
                compare_field(field.value(decoded.operation), *comparator, literal)
            }
            Self::Label(path, comparator, literal) => {
                evaluate_label(decoded.operation, path, *comparator, literal)
            }
            Self::Message(field, path, comparator, literal) => {
                let evaluator = MessageEvaluator::new(decoded, *comparator, literal);
                evaluate_message(*field, evaluator, path, decoded)
            }
            Self::Text(pattern) => full_text::matches_any_text(pattern, decoded).into(),
            Self::And(_) | Self::Or(_) | Self::Not(_) => {
                self.evaluate(&|leaf| leaf.evaluate_leaf(decoded))
            }
        }
    }

    /// In which states it is true, if it asks for nothing but the state.
    fn matching_states(&self) -> Option<Vec<State>> {
        let has_other_terms = Cell::new(false);
        let is_true = |state: &State| {
            let evaluate_leaf = |leaf: &Self| match leaf {
                Self::Field(
                    field @ (ScalarField::Done | ScalarField::State),
                    comparator,
                    literal,
                ) => compare_field(field.value_in_state(*state), *comparator, literal),
                _ => {
                    has_other_terms.set(true);
                    TruthValue::Unknown
                }
            };
            self.evaluate(&evaluate_leaf) == TruthValue::True
        };
        let states = STATES.into_iter().filter(is_true).collect();
        (!has_other_terms.get()).then_some(states)
    }

    /// How many of its terms look into messages.
    fn decoded_terms(&self) -> usize {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().map(Self::decoded_terms).sum(),
            Self::Not(node) => node.decoded_terms(),
            Self::Field(..) | Self::Label(..) => 0,
            // The type is known without a look into the message.
            Self::Message(field, path, ..) => {
                let is_type = path.first().is_some_and(|first| &*first.name == TYPE_FIELD);
                usize::from(!is_type || *field == MessageField::Error)
            }
            Self::Text(_) => 1,
        }
    }
}

/// How a field's value compares; none is not known.
fn compare_field(
    value: Option<FieldValue<'_>>,
    comparator: Comparator,
    literal: &Literal,
) -> TruthValue {
    if comparator == Comparator::Has && literal.pattern.is_wildcard() {
        let is_default = matches!(
            value,
            None | Some(FieldValue::Text("") | FieldValue::Bool(false) | FieldValue::Integer(0))
        );
        return (!is_default).into();
    }
    value.map_or(TruthValue::Unknown, |value| {
        literal.evaluate(comparator, value)
    })
}

fn evaluate_message(
    field: MessageField,
    evaluator: MessageEvaluator<'_>,
    path: &[Segment],
    decoded: &DecodedOperation<'_>,
) -> TruthValue {
    if field == MessageField::Error {
        let has_error = decoded.operation.encoded().error().is_some();
        return match decoded.error() {
            Some(error) => evaluator.evaluate_message(error, path),
            None if has_error => TruthValue::Unknown,
            None => evaluator.truth_if_missing(),
        };
    }
    match decoded.any(field) {
        None => evaluator.truth_if_missing(),
        Some(any) => evaluator.evaluate_any(any.type_url, || decoded.message(field), path),
    }
}

fn evaluate_label(
    operation: &Operation,
    path: &[Segment],
    comparator: Comparator,
    literal: &Literal,
) -> TruthValue {
    let labels = operation.labels();
    let is_presence_test = comparator == Comparator::Has && literal.pattern.is_wildcard();
    let Some(key) = path.first() else {
        let mut labels = labels.iter();
        return labels.any(|(key, _)| literal.pattern.is_match(key)).into();
    };
    match labels.get(&key.name) {
        None if is_presence_test => TruthValue::False,
        None => TruthValue::Unknown,
        Some(_) if is_presence_test => TruthValue::True,
        Some(value) => literal.evaluate(comparator, FieldValue::Text(value)),
    }
}

// === Checking ===

fn compile(
    filter: &Filter,
    types: &TypeRegistry,
    constraints: &TypeConstraints,
) -> Result<Expr, InvalidFilter> {
    let compile_all = |filters: &[Filter], constraints: &TypeConstraints| {
        let nodes = filters
            .iter()
            .map(|filter| compile(filter, types, constraints));
        nodes.collect::<Result<Vec<_>, _>>()
    };
    Ok(match filter {
        Filter::And(filters) => Expr::And(compile_all(
            filters,
            &constraints.with_conjuncts(filters, types),
        )?),
        Filter::Or(filters) => Expr::Or(compile_all(filters, constraints)?),
        Filter::Not(filter) => Expr::Not(Box::new(compile(filter, types, constraints)?)),
        Filter::Restriction(restriction) => compile_restriction(restriction, types, constraints)?,
        Filter::Global(pattern) => Expr::Text(pattern.clone()),
    })
}

fn compile_restriction(
    restriction: &Restriction,
    types: &TypeRegistry,
    constraints: &TypeConstraints,
) -> Result<Expr, InvalidFilter> {
    let Restriction {
        path,
        comparator,
        value,
    } = restriction;
    let comparator = *comparator;
    let literal = Literal::new(value.clone());
    let (first, rest) = path.0.split_first().ok_or_else(|| unknown_field(path, 0))?;
    let field = Field::parse(&first.name).ok_or_else(|| unknown_field(path, 0))?;
    let message_field = match field {
        Field::Scalar(scalar_field) => {
            if !rest.is_empty() {
                return Err(unknown_field(path, 1));
            }
            literal
                .check_type(comparator, &scalar_field.scalar_type())
                .map_err(|error| to_invalid_filter(restriction, error))?;
            return Ok(Expr::Field(scalar_field, comparator, literal));
        }
        Field::Labels => {
            check_labels(restriction, rest, &literal)?;
            return Ok(Expr::Label(rest.into(), comparator, literal));
        }
        Field::Error => MessageField::Error,
        Field::Response => MessageField::Response,
        Field::Metadata => MessageField::Metadata,
    };
    let is_type = rest
        .first()
        .is_some_and(|segment| &*segment.name == TYPE_FIELD);
    if is_type && message_field != MessageField::Error {
        if 1 < rest.len() {
            return Err(unknown_field(path, 2));
        }
        literal
            .check_type(comparator, &ScalarType::Text)
            .map_err(|error| to_invalid_filter(restriction, error))?;
    } else if let Some(descriptor) = constraints.descriptor_for(message_field, types) {
        let checked = check::check_path(&descriptor, rest, comparator, &literal);
        checked.map_err(|error| to_invalid_filter(restriction, error))?;
    } else if message_field == MessageField::Metadata && comparator.is_ordering() {
        // The type may be any. But what has an order in the server's own
        // metadata is hardly meant to be compared with what has none.
        let server_metadata = types.descriptor(&OperationMetadata::full_name());
        let checked = server_metadata
            .map(|descriptor| check::check_path(&descriptor, rest, comparator, &literal));
        if let Some(Err(TypeError::ExpectedValue(expected))) = checked {
            return Err(type_mismatch(restriction, &expected));
        }
    }
    Ok(Expr::Message(
        message_field,
        rest.into(),
        comparator,
        literal,
    ))
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
        [] => Err(to_invalid_filter(
            restriction,
            TypeError::ExpectedComparator("`:`, for it is a map; one label is labels.KEY"),
        )),
        [_] => literal
            .check_type(*comparator, &ScalarType::Text)
            .map_err(|misfit| to_invalid_filter(restriction, misfit)),
        _ => Err(unknown_field(path, 2)),
    }
}

// === impl Said ===

impl TypeConstraints {
    /// Takes over what the parts of a conjunction say about types.
    fn with_conjuncts(&self, filters: &[Filter], types: &TypeRegistry) -> Self {
        let mut constraints = self.clone();
        for filter in filters {
            let Filter::Restriction(Restriction {
                path,
                comparator: Comparator::Equal,
                value,
            }) = filter
            else {
                continue;
            };
            let [root, field] = &*path.0 else {
                continue;
            };
            let name = value.exact().and_then(|url| url.rsplit('/').next());
            let Some(name) = name.filter(|_| &*field.name == TYPE_FIELD) else {
                continue;
            };
            match &*root.name {
                "metadata" => constraints.metadata = types.descriptor(name),
                "response" => constraints.response = types.descriptor(name),
                _ => {}
            }
        }
        constraints
    }

    fn descriptor_for(
        &self,
        field: MessageField,
        types: &TypeRegistry,
    ) -> Option<MessageDescriptor> {
        match field {
            MessageField::Error => types.descriptor(&rpc::Status::full_name()),
            MessageField::Response => self.response.clone(),
            MessageField::Metadata => self.metadata.clone(),
        }
    }
}

// === Errors ===

fn unknown_field(path: &Path, index: usize) -> InvalidFilter {
    let Some(segment) = path.0.get(index) else {
        return InvalidFilter::new(Column(1), "expected a field");
    };
    let found = format!("{:?}", segment.name);
    let expected = match index {
        0 => format!("one of the fields {FIELD_NAMES}"),
        _ => {
            let parent = Path(path.0[..index].into());
            format!("a field of {parent}, or none")
        }
    };
    InvalidFilter::expected(segment.column, &expected, &found)
}

fn type_mismatch(restriction: &Restriction, expected: &str) -> InvalidFilter {
    let Restriction { path, value, .. } = restriction;
    let found = format!("{:?}", value.to_source_text());
    InvalidFilter::expected(value.column, &format!("{expected} for {path}"), &found)
}

fn to_invalid_filter(restriction: &Restriction, error: TypeError) -> InvalidFilter {
    let Restriction {
        path, comparator, ..
    } = restriction;
    match error {
        TypeError::ExpectedValue(expected) => type_mismatch(restriction, &expected),
        TypeError::UnknownField(from_end) => {
            unknown_field(path, path.0.len().saturating_sub(from_end))
        }
        TypeError::ExpectedComparator(expected) => {
            let column = path.0[path.0.len() - 1].column;
            let expected = format!("{path} to be compared with {expected}");
            InvalidFilter::expected(column, &expected, comparator.as_str())
        }
    }
}

#[cfg(test)]
mod tests;
