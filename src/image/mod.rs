//! Augmentation: random changes of pictures, where each sample of a batch has numbers of its own.
//!
//! A transform is an [`Op`]: it says what it does to one sample, given row `i` of a table of numbers. Where these numbers come
//! from is [`draw`]'s matter, and what is done in which order to which batch is [`chain`]'s; [`mix`] mixes samples with each
//! other.
//!
//! Everything is computed in `f32` from pixels that are bytes or `f32`; a byte that is stored is clamped and rounded to nearest
//! even, unless a transform says otherwise. Nothing here depends on the instruction set, the number of threads, or the other
//! samples of the batch.

pub mod blur;
pub mod chain;
pub mod color;
pub mod crop;
pub mod draw;
pub mod erase;
pub mod flip;
pub mod mix;
pub mod noise;
pub mod normalize;
pub mod resize;
pub mod sample;
pub mod tile;
pub mod warp;

pub use sample::{Border, Op, Pixel, Shape, Table, View, ViewMut, Workspace};
