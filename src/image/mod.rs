//! Augmentation: random changes of pictures, where each sample of a batch has numbers of its own.
//!
//! A transform is an [`Op`]: it says what it does to one sample, given row `i` of a table of numbers. Where these numbers come
//! from is [`draw`]'s matter, and what is done in which order to which batch is [`chain`]'s.
//!
//! Everything is computed in `f32` from pixels that are bytes or `f32`; a byte that is stored is rounded to nearest (even)
//! and clamped. Nothing here depends on the instruction set, the number of threads, or the other samples of the batch.

pub mod sample;

pub use sample::{Border, Op, Pixel, Shape, Table, View, ViewMut, Workspace};
