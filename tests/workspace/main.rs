//! The house's own rules: which crate may know which, and that the tick is what ARCHITECTURE.md says.

mod tick;
