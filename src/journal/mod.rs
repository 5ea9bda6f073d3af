//! Where changes are kept before they are shown: one narrow trait, and the
//! journal that keeps nothing. Nobody below `operations` names a concrete one.

pub(crate) mod journal;
pub(crate) mod memory;
