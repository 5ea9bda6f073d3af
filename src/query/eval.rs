//! Evaluates a compiled filter for one operation.

use std::cell::Cell;

use super::{
    decoded::{DecodedOperation, MessageField},
    fields::{STATES, ScalarField},
    filter::{Pattern, Segment},
    full_text,
    literal::{Comparison, FieldValue, TruthValue},
    message_eval::{MessageEvaluator, TYPE_FIELD},
};
use crate::{operation::Operation, proto::longrunning::v1::operation_metadata::State};

/// A node of a compiled filter.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    /// Compares a scalar field of the operation.
    Field {
        field: ScalarField,
        comparison: Comparison,
    },
    /// Compares one label, or tests which keys exist if there is no key.
    Label {
        key: Option<Box<str>>,
        comparison: Comparison,
    },
    /// Compares a field inside the error, the response or the metadata.
    Message {
        field: MessageField,
        path: Box<[Segment]>,
        comparison: Comparison,
    },
    /// Searches all texts of the operation.
    Text(Pattern),
}

// === impl Expr ===

impl Expr {
    /// Returns whether the expression is true of an operation.
    pub(super) fn matches(&self, decoded: &DecodedOperation<'_>) -> bool {
        self.evaluate(&|leaf| leaf.evaluate_leaf(decoded)) == TruthValue::True
    }

    /// Combines the truth values of the leaves; evaluates no more of them than needed.
    fn evaluate(&self, evaluate_leaf: &impl Fn(&Self) -> TruthValue) -> TruthValue {
        match self {
            // By De Morgan.
            Self::And(nodes) => {
                TruthValue::any(nodes.iter().map(|node| node.evaluate(evaluate_leaf).not())).not()
            }
            Self::Or(nodes) => {
                TruthValue::any(nodes.iter().map(|node| node.evaluate(evaluate_leaf)))
            }
            Self::Not(node) => node.evaluate(evaluate_leaf).not(),
            leaf => evaluate_leaf(leaf),
        }
    }

    fn evaluate_leaf(&self, decoded: &DecodedOperation<'_>) -> TruthValue {
        match self {
            Self::Field { field, comparison } => {
                compare_field(field.value(decoded.operation), comparison)
            }
            Self::Label { key, comparison } => {
                evaluate_label(decoded.operation, key.as_deref(), comparison)
            }
            Self::Message {
                field,
                path,
                comparison,
            } => evaluate_message(*field, path, comparison, decoded),
            Self::Text(pattern) => full_text::matches_any_text(pattern, decoded).into(),
            Self::And(_) | Self::Or(_) | Self::Not(_) => {
                self.evaluate(&|leaf| leaf.evaluate_leaf(decoded))
            }
        }
    }

    /// Returns the states in which the expression is true, or `None` if it depends on
    /// more than the state.
    pub(super) fn matching_states(&self) -> Option<Vec<State>> {
        let has_other_terms = Cell::new(false);
        let is_true = |state: &State| {
            let evaluate_leaf = |leaf: &Self| match leaf {
                Self::Field {
                    field: field @ (ScalarField::Done | ScalarField::State),
                    comparison,
                } => compare_field(field.value_in_state(*state), comparison),
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

    /// Returns the number of terms that need decoded messages.
    pub(super) fn decoded_terms(&self) -> usize {
        match self {
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().map(Self::decoded_terms).sum(),
            Self::Not(node) => node.decoded_terms(),
            Self::Field { .. } | Self::Label { .. } => 0,
            // `@type` is known without decoding the message.
            Self::Message { field, path, .. } => {
                let is_type = path.first().is_some_and(|first| &*first.name == TYPE_FIELD);
                usize::from(!is_type || *field == MessageField::Error)
            }
            Self::Text(_) => 1,
        }
    }
}

/// Compares the value of a scalar field; a missing value is `Unknown`.
pub(super) fn compare_field(value: Option<FieldValue<'_>>, comparison: &Comparison) -> TruthValue {
    if comparison.is_presence_test() {
        let is_default = matches!(
            value,
            None | Some(FieldValue::Text("") | FieldValue::Bool(false) | FieldValue::Integer(0))
        );
        return (!is_default).into();
    }
    value.map_or(TruthValue::Unknown, |value| comparison.evaluate(value))
}

fn evaluate_message(
    field: MessageField,
    path: &[Segment],
    comparison: &Comparison,
    decoded: &DecodedOperation<'_>,
) -> TruthValue {
    let evaluator = MessageEvaluator::new(decoded, comparison);
    if field == MessageField::Error {
        return match decoded.message(field) {
            Some(error) => evaluator.evaluate_message(error, path),
            None if decoded.operation.encoded().error().is_some() => TruthValue::Unknown,
            None => evaluator.truth_if_missing(),
        };
    }
    match decoded.any(field) {
        None => evaluator.truth_if_missing(),
        Some(any) => evaluator.evaluate_any(any.type_url, || decoded.message(field), path),
    }
}

fn evaluate_label(operation: &Operation, key: Option<&str>, comparison: &Comparison) -> TruthValue {
    let labels = operation.labels();
    let Some(key) = key else {
        let pattern = &comparison.literal.pattern;
        return labels.iter().any(|(key, _)| pattern.is_match(key)).into();
    };
    let value = labels.get(key);
    if comparison.is_presence_test() {
        return value.is_some().into();
    }
    value.map_or(TruthValue::Unknown, |value| {
        comparison.evaluate(FieldValue::Text(value))
    })
}
