//! The half of training that is not matrix multiplication, at memory speed, with the same bits everywhere.
//!
//! The Python package is described in the README. As a Rust crate this is the core under it: optimiser steps over many
//! arrays ([`optim`]), in one call, on all cores, with the instruction set chosen at run time ([`simd`]), and with results
//! that depend neither on it nor on the number of threads ([`parallel`], [`reduce`]).

pub mod array;
pub mod float;
pub mod optim;
pub mod parallel;
pub mod reduce;
mod scheduling;
pub mod simd;

#[cfg(feature = "python")]
mod python;
