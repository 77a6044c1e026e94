//! Dropout, inverted: `y = x / (1 - p)` where a random number keeps the element, else 0.
//!
//! Srivastava et al. 2014. The numbers come from [`crate::philox`], so the backward call makes the same mask again from the
//! seed and nothing is stored. What is dropped is dropped by selection: an infinity or NaN does not come through.

use crate::float::{Element, Real};
use crate::parallel::{self, CHUNK};
use crate::philox::{GROUP, Stream};
use crate::simd::{Isa, Kernel, dispatch};

/// The numbers that decide, and the probability to drop.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Where the numbers come from.
    pub stream: Stream,
    /// Which of them is the first.
    pub offset: u64,
    /// The probability to drop.
    pub p: f64,
}

impl Draw {
    /// A number below this drops. (The cast saturates: a `p` that is nearly 1 leaves one number of 2^32 that keeps.)
    fn threshold(&self) -> u32 {
        libm::round(self.p * 4_294_967_296.0) as u32
    }

    /// Whether each of `n` units is kept: 1, or 0.
    pub fn mask(&self, n: usize) -> Vec<u8> {
        let threshold = self.threshold();
        let group = GROUP as u64;
        let mut mask = Vec::with_capacity(n);
        for i in (self.offset / group..).take(if n == 0 { 0 } else { n / GROUP + 2 }) {
            mask.extend(self.stream.group(i).map(|number| u8::from(number >= threshold)));
        }
        let skip = (self.offset % group) as usize;
        mask.drain(..skip.min(mask.len()));
        mask.truncate(n);
        mask
    }
}

/// What a kept element is multiplied by.
pub fn scale<T: Real>(p: f64) -> T {
    T::from_f64(1.0 / (1.0 - p))
}

/// Drops single elements of `n`.
///
/// # Safety
/// `n` elements can be read at `x` and written at `y`, aligned, nobody else uses them meanwhile, and the two are the same or
/// apart.
pub unsafe fn elements<E: Element>(x: *const E, y: *mut E, n: usize, draw: Draw, isa: Isa) {
    let (x, y) = (Addresses(x.cast_mut()), Addresses(y));
    parallel::share(n, n.div_ceil(CHUNK), |task| {
        let start = task * CHUNK;
        let (x, y) = (x, y);
        let kernel = Elements {
            x: x.0.wrapping_add(start),
            y: y.0.wrapping_add(start),
            n: CHUNK.min(n - start),
            draw: Draw { offset: draw.offset + start as u64, ..draw },
        };
        dispatch(isa, kernel);
    });
}

/// An address that goes to other threads.
#[derive(Clone, Copy)]
struct Addresses<E>(*mut E);

// SAFETY: what is done with it is sound by what the `unsafe` functions here require.
unsafe impl<E: Send> Send for Addresses<E> {}
// SAFETY: likewise.
unsafe impl<E: Send> Sync for Addresses<E> {}

struct Elements<E> {
    x: *const E,
    y: *mut E,
    n: usize,
    draw: Draw,
}

impl<E: Element> Kernel for Elements<E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Elements { x, y, n, draw } = self;
        let scale = scale::<E::Acc>(draw.p);
        let threshold = draw.threshold();
        let zero = E::narrow(E::Acc::ZERO);
        // The first group may begin before the first element.
        let mut skip = (draw.offset % GROUP as u64) as usize;
        let mut group = draw.offset / GROUP as u64;
        let mut done = 0;
        while done < n {
            let numbers = draw.stream.group(group);
            let len = (GROUP - skip).min(n - done);
            // SAFETY: elements `done .. done + len` of both; all are read before any is written.
            unsafe {
                if len == GROUP {
                    let mut values = [zero; GROUP];
                    for j in 0..GROUP {
                        let kept = E::narrow((*x.add(done + j)).widen() * scale);
                        values[j] = if numbers[j] >= threshold { kept } else { zero };
                    }
                    for j in 0..GROUP {
                        *y.add(done + j) = values[j];
                    }
                } else {
                    for j in 0..len {
                        let kept = E::narrow((*x.add(done + j)).widen() * scale);
                        *y.add(done + j) = if numbers[skip + j] >= threshold { kept } else { zero };
                    }
                }
            }
            done += len;
            skip = 0;
            group += 1;
        }
    }
}

/// Which unit an element belongs to: element `i` to unit `i / inner` if the units are runs, or else, with `units` columns,
/// to `i / (inner * units) * units + i % units`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// Runs of so many elements.
    Runs(usize),
    /// Columns: `(samples, inner, units)` in memory, one unit for each sample and column.
    Columns {
        /// Rows of a sample.
        inner: usize,
        /// Columns.
        units: usize,
    },
}

/// Drops whole units, given which are kept: those whose mask is not 0.
///
/// # Safety
/// As for [`elements`].
pub unsafe fn units<E: Element>(x: *const E, y: *mut E, n: usize, mask: &[u8], units: Units, p: f64, isa: Isa) {
    let (x, y) = (Addresses(x.cast_mut()), Addresses(y));
    parallel::share(n, n.div_ceil(CHUNK), |task| {
        let start = task * CHUNK;
        let (x, y) = (x, y);
        dispatch(isa, UnitsKernel { x: x.0, y: y.0, start, end: n.min(start + CHUNK), mask, units, scale: scale(p) });
    });
}

struct UnitsKernel<'a, E: Element> {
    x: *const E,
    y: *mut E,
    start: usize,
    end: usize,
    mask: &'a [u8],
    units: Units,
    scale: E::Acc,
}

impl<E: Element> Kernel for UnitsKernel<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let UnitsKernel { x, y, start, end, mask, units, scale } = self;
        let zero = E::narrow(E::Acc::ZERO);
        // SAFETY: elements of this task's chunk, each read before it is written.
        let select = |i: usize, keep: bool| unsafe {
            let kept = E::narrow((*x.add(i)).widen() * scale);
            *y.add(i) = if keep { kept } else { zero };
        };
        match units {
            Units::Runs(inner) => {
                let mut i = start;
                while i < end {
                    let keep = mask[i / inner] != 0;
                    let stop = end.min((i / inner + 1) * inner);
                    for i in i..stop {
                        select(i, keep);
                    }
                    i = stop;
                }
            }
            Units::Columns { inner, units } => {
                let mut i = start;
                while i < end {
                    let column = i % units;
                    let stop = end.min(i + units - column);
                    let mask = &mask[i / (inner * units) * units + column..][..stop - i];
                    for (j, &keep) in mask.iter().enumerate() {
                        select(i + j, keep != 0);
                    }
                    i = stop;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_offsets_do_not_change_the_mask() {
        let draw = Draw { stream: Stream { seed: 7, stream: 3 }, offset: 100, p: 0.3 };
        let n = 3 * CHUNK + 77;
        let x = vec![1f32; n];
        let mask = draw.mask(n);
        assert_eq!(mask.len(), n);
        for isa in Isa::available() {
            let mut y = vec![0f32; n];
            // SAFETY: both have `n` elements.
            unsafe { elements(x.as_ptr(), y.as_mut_ptr(), n, draw, isa) };
            assert!(y.iter().zip(&mask).all(|(&y, &keep)| y == if keep != 0 { 1.0 / 0.7 } else { 0.0 }));
            let later = Draw { offset: draw.offset + 1234, ..draw };
            let mut rest = x[1234..].to_vec();
            // SAFETY: in place.
            unsafe { elements(rest.as_ptr(), rest.as_mut_ptr(), n - 1234, later, isa) };
            assert_eq!(rest, y[1234..]);
        }
        let kept = mask.iter().filter(|&&keep| keep != 0).count() as f64 / n as f64;
        assert!((kept - 0.7).abs() < 0.01);
    }
}
