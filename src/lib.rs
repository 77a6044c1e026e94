//! The half of training that is not matrix multiplication, at memory speed, with the same bits everywhere.
//!
//! The Python package is described in the README. As a Rust crate this is the core under it: optimiser steps over many
//! arrays ([`optim`]), in one call, on all cores, with the instruction set chosen at run time ([`simd`]), and with results
//! that depend neither on it nor on the number of threads ([`parallel`], [`reduce`]).

pub mod activation;
pub mod array;
pub mod dropout;
pub mod float;
pub mod image;
pub mod loss;
pub mod math;
pub mod norm;
pub mod optim;
pub mod parallel;
pub mod philox;
pub mod reduce;
pub mod schedule;
mod scheduling;
pub mod simd;

#[cfg(feature = "python")]
mod python;
