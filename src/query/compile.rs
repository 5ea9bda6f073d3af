//! Compiles a parsed filter: checks it against the fields of an operation and the
//! registered message types, and prepares it for evaluation.

use prost::Name;
use prost_reflect::MessageDescriptor;

use super::{
    check::check_path,
    decoded::{DecodedOperation, MessageField},
    eval::Expr,
    fields::{FIELD_NAMES, Field},
    filter::{Column, Comparator, Filter, InvalidFilter, Path, Restriction, Segment},
    literal::{Comparison, Literal, ScalarType, TypeError},
    message_eval::TYPE_FIELD,
    parse::parse,
};
use crate::{
    operation::Operation,
    proto::{
        google::rpc,
        longrunning::v1::{OperationMetadata, operation_metadata::State},
    },
    types::{TypeRegistry, message_name},
};

/// A filter that can be evaluated.
#[derive(Clone, Debug)]
pub(crate) struct CompiledFilter {
    types: TypeRegistry,
    pub(super) root: Expr,
    /// The number of terms that need decoded messages.
    decoded_terms: usize,
    /// The states in which the filter is true, if it depends on the state only.
    matching_states: Option<Vec<State>>,
}

/// The types that the conjuncts of a filter require of the messages, as far as known.
#[derive(Clone, Default)]
struct TypeConstraints {
    metadata: Option<MessageDescriptor>,
    response: Option<MessageDescriptor>,
}

// === impl CompiledFilter ===

impl CompiledFilter {
    /// Parses and compiles a filter.
    ///
    /// # Errors
    /// [`InvalidFilter`] with the column if the text is no filter, names an unknown
    /// field, or compares a field with a value of another type.
    pub(crate) fn parse(text: &str, types: &TypeRegistry) -> Result<Self, InvalidFilter> {
        Self::new(&parse(text)?, types)
    }

    /// Compiles a parsed filter; fails as [`CompiledFilter::parse`].
    pub(crate) fn new(filter: &Filter, types: &TypeRegistry) -> Result<Self, InvalidFilter> {
        let root = compile(filter, types, &TypeConstraints::default())?;
        Ok(Self {
            types: types.clone(),
            decoded_terms: root.decoded_terms(),
            matching_states: root.matching_states(),
            root,
        })
    }

    /// Returns whether the filter is true of an operation; `Unknown` counts as false.
    pub(crate) fn matches(&self, operation: &Operation) -> bool {
        match &self.matching_states {
            Some(states) => states.contains(&operation.state()),
            None => self
                .root
                .matches(&DecodedOperation::new(operation, &self.types)),
        }
    }

    /// Estimates the work of `matches` in decoded bytes. Each further term that searches
    /// the decoded messages adds a fraction of it.
    pub(crate) fn decode_cost(&self, operation: &Operation) -> usize {
        const TERM_COST_DIVISOR: usize = 16;
        if self.decoded_terms == 0 {
            return 0;
        }
        let bytes = operation.bytes().len();
        bytes.saturating_add(bytes.saturating_mul(self.decoded_terms) / TERM_COST_DIVISOR)
    }
}

fn compile(
    filter: &Filter,
    types: &TypeRegistry,
    constraints: &TypeConstraints,
) -> Result<Expr, InvalidFilter> {
    let compile_all = |filters: &[Filter], constraints: &TypeConstraints| {
        let compile_one = |filter| compile(filter, types, constraints);
        filters.iter().map(compile_one).collect::<Result<_, _>>()
    };
    Ok(match filter {
        Filter::And(filters) => {
            let constraints = constraints.with_conjuncts(filters, types);
            Expr::And(compile_all(filters, &constraints)?)
        }
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
    let path = &restriction.path;
    let comparison = Comparison {
        comparator: restriction.comparator,
        literal: Literal::new(restriction.value.clone()),
    };
    let invalid = |error| to_invalid_filter(restriction, error);
    let (first, rest) = path.0.split_first().ok_or_else(|| unknown_field(path, 0))?;
    let field = match Field::parse(&first.name).ok_or_else(|| unknown_field(path, 0))? {
        Field::Scalar(field) => {
            if !rest.is_empty() {
                return Err(unknown_field(path, 1));
            }
            let scalar_type = field.scalar_type();
            comparison.check_type(&scalar_type).map_err(invalid)?;
            return Ok(Expr::Field { field, comparison });
        }
        Field::Labels => {
            let key = check_label(rest, &comparison).map_err(invalid)?;
            return Ok(Expr::Label { key, comparison });
        }
        Field::Error => MessageField::Error,
        Field::Response => MessageField::Response,
        Field::Metadata => MessageField::Metadata,
    };
    let is_type = matches!(rest, [first, ..] if &*first.name == TYPE_FIELD);
    if is_type && field != MessageField::Error {
        if rest.len() > 1 {
            return Err(unknown_field(path, 2));
        }
        comparison.check_type(&ScalarType::Text).map_err(invalid)?;
    } else if let Some(descriptor) = constraints.descriptor_for(field, types) {
        check_path(&descriptor, rest, &comparison).map_err(invalid)?;
    } else if field == MessageField::Metadata && comparison.comparator.is_ordering() {
        // The metadata may be of any type. But a literal without an order is almost
        // certainly a mistake if the field has one in the server's own metadata.
        let server_metadata = types.descriptor(&OperationMetadata::full_name());
        let checked = server_metadata.map(|descriptor| check_path(&descriptor, rest, &comparison));
        if let Some(Err(error @ TypeError::ExpectedValue(_))) = checked {
            return Err(invalid(error));
        }
    }
    Ok(Expr::Message {
        field,
        path: rest.into(),
        comparison,
    })
}

/// Returns the key of a label restriction, or `None` if it restricts the whole map.
fn check_label(rest: &[Segment], comparison: &Comparison) -> Result<Option<Box<str>>, TypeError> {
    match rest {
        [] if comparison.comparator == Comparator::Has => Ok(None),
        [] => {
            let expected = "`:`, because it is a map; one label is labels.KEY";
            Err(TypeError::ExpectedComparator(expected))
        }
        [key] => {
            comparison.check_type(&ScalarType::Text)?;
            Ok(Some(key.name.clone()))
        }
        _ => Err(TypeError::UnknownField {
            remaining_segments: rest.len() - 1,
        }),
    }
}

// === impl TypeConstraints ===

impl TypeConstraints {
    /// Adds the types that restrictions of `@type` among these conjuncts require.
    fn with_conjuncts(&self, filters: &[Filter], types: &TypeRegistry) -> Self {
        let mut constraints = self.clone();
        for filter in filters {
            if let Filter::Restriction(restriction) = filter
                && let [root, field] = &*restriction.path.0
                && &*field.name == TYPE_FIELD
                && restriction.comparator == Comparator::Equal
                && let Some(url) = restriction.value.exact()
            {
                match &*root.name {
                    "metadata" => constraints.metadata = types.descriptor(message_name(url)),
                    "response" => constraints.response = types.descriptor(message_name(url)),
                    _ => {}
                }
            }
        }
        constraints
    }

    /// Returns the type of a message, or `None` if it may be any.
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
    let parent = Path(path.0[..index].into());
    let expected = match index {
        0 => format!("one of the fields {FIELD_NAMES}"),
        _ => format!("a field of {parent}, or none"),
    };
    InvalidFilter::expected(segment.column, &expected, &found)
}

fn to_invalid_filter(restriction: &Restriction, error: TypeError) -> InvalidFilter {
    let (path, value) = (&restriction.path, &restriction.value);
    match error {
        TypeError::UnknownField { remaining_segments } => {
            unknown_field(path, path.0.len().saturating_sub(remaining_segments))
        }
        TypeError::ExpectedValue(expected) => {
            let found = format!("{:?}", value.to_source_text());
            InvalidFilter::expected(value.column, &format!("{expected} for {path}"), &found)
        }
        TypeError::ExpectedComparator(expected) => {
            let column = path.0[path.0.len() - 1].column;
            let expected = format!("{path} to be compared with {expected}");
            InvalidFilter::expected(column, &expected, restriction.comparator.as_str())
        }
    }
}
