//! Test support: random operations, random filters, and a naive interpreter that decides
//! which filters are true of which operations.

mod generators;
mod naive_eval;
mod print;
mod sample_operation;

use std::sync::LazyLock;

pub(crate) use self::{
    generators::{any_sample_filter, any_sample_operation},
    naive_eval::evaluate_naively,
    print::print_filter,
    sample_operation::{SampleMetadata, SampleOperation, SampleState},
};
use crate::types::TypeRegistry;

/// Returns a shared registry of the built-in types.
pub(crate) fn built_in_types() -> &'static TypeRegistry {
    static TYPES: LazyLock<TypeRegistry> = LazyLock::new(TypeRegistry::built_in);
    &TYPES
}
