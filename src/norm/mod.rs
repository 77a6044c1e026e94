//! Normalisation: statistics of sets of elements, and what is done with them, forward and backward.
//!
//! [`rows`] has layer and RMS normalisation, whose sets lie in a row; [`channels`] has batch, group and instance
//! normalisation, whose sets are made of channels, stored first or last.
//!
//! A set is cut into blocks of at most [`BLOCK`] elements. Within a block the sums run in 16 lanes of the type that is
//! computed in; across blocks they are `f64`, combined by a binary tree. The mean of a block is subtracted before its
//! squares are taken, so a large mean costs no accuracy, and blocks are merged as Chan, Golub and `LeVeque` (1979) merge
//! samples. The mean of a set is kept in `f64` and subtracted in two parts, `(x - hi) - lo`.

use crate::float::{Element, Real};
use crate::reduce::{LANES, tree_by};

pub mod channels;
pub mod rows;

/// Elements in a block of the sums here.
pub const BLOCK: usize = 1024;

// ---------------------------------------------------------------------------------------------------------------------
// Sums over a block
// ---------------------------------------------------------------------------------------------------------------------

/// The sum of `f(i)` over `0 .. n`, in 16 lanes added up by halving.
#[inline(always)]
pub(crate) fn total<T: Real>(n: usize, f: impl Fn(usize) -> T) -> f64 {
    let mut lanes = [T::ZERO; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for l in 0..LANES {
            lanes[l] = lanes[l] + f(i + l);
        }
        i += LANES;
    }
    let mut lanes = in_memory(lanes);
    for l in 0..n - whole {
        lanes[l] = lanes[l] + f(whole + l);
    }
    halve(lanes).to_f64()
}

/// Two such sums.
#[inline(always)]
pub(crate) fn totals<T: Real>(n: usize, f: impl Fn(usize) -> [T; 2]) -> [f64; 2] {
    let (mut a, mut b) = ([T::ZERO; LANES], [T::ZERO; LANES]);
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for l in 0..LANES {
            let [x, y] = f(i + l);
            a[l] = a[l] + x;
            b[l] = b[l] + y;
        }
        i += LANES;
    }
    let (mut a, mut b) = (in_memory(a), in_memory(b));
    for l in 0..n - whole {
        let [x, y] = f(whole + l);
        a[l] = a[l] + x;
        b[l] = b[l] + y;
    }
    [halve(a).to_f64(), halve(b).to_f64()]
}

/// The lanes after a loop over whole groups, as they are. That they must be stored side by side here is what makes the
/// compiler keep them in vectors in the loop; it would often take 16 scalars.
#[inline(always)]
pub(crate) fn in_memory<L>(lanes: L) -> L {
    std::hint::black_box(lanes)
}

/// The sum of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
#[inline(always)]
fn halve<T: Real>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] = lanes[l] + lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

// ---------------------------------------------------------------------------------------------------------------------
// Moments
// ---------------------------------------------------------------------------------------------------------------------

/// Number of elements, their mean, and the sum of the squares of their distances from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// How many.
    pub n: f64,
    /// Their mean.
    pub mean: f64,
    /// The sum of `(x - mean)^2`.
    pub m2: f64,
}

impl Moments {
    /// Of both samples together (Chan et al.).
    pub fn merge(a: Moments, b: Moments) -> Moments {
        let n = a.n + b.n;
        let delta = b.mean - a.mean;
        Moments { n, mean: a.mean + delta * (b.n / n), m2: (a.m2 + b.m2) + (delta * delta) * ((a.n * b.n) / n) }
    }

    /// The biased variance.
    pub fn var(self) -> f64 {
        self.m2 / self.n
    }

    /// From the sum of the distances from `center` and of their squares.
    #[inline(always)]
    fn around(center: f64, n: usize, [s1, s2]: [f64; 2]) -> Moments {
        let n = n as f64;
        let m2 = s2 - (s1 * s1) / n;
        Moments { n, mean: center + s1 / n, m2: if m2 < 0.0 { 0.0 } else { m2 } }
    }
}

/// The moments of all blocks of a set.
fn merged(partials: &mut [Moments]) -> Moments {
    tree_by(partials, Moments::merge)
}

/// Whether a sum of squares of `f32` has neither overflowed nor lost its smallest terms.
#[inline(always)]
fn in_range(squares: f64) -> bool {
    (1e-30..=1e30).contains(&squares)
}

/// `1 / sqrt(var + eps)`
pub fn rstd(var: f64, eps: f64) -> f64 {
    1.0 / (var + eps).sqrt()
}

/// The moments of a block, with sums in `T`.
///
/// # Safety
/// `n` elements can be read at `x`.
#[inline(always)]
unsafe fn moments_in<E: Element, T: Real>(x: *const E, n: usize) -> (Moments, f64) {
    // SAFETY: as required.
    let at = |i| unsafe { T::from_f64((*x.add(i)).widen().to_f64()) };
    let s = total(n, at);
    let center = T::from_f64(s / n as f64);
    let sums = totals(n, |i| {
        let d = at(i) - center;
        [d, d * d]
    });
    (Moments::around(center.to_f64(), n, sums), sums[1])
}

/// The moments of a block. `f32` squares that leave their range are taken again in `f64`.
///
/// # Safety
/// `n` elements can be read at `x`.
#[inline(always)]
unsafe fn moments<E: Element>(x: *const E, n: usize) -> Moments {
    // SAFETY: passed on.
    let (moments, squares) = unsafe { moments_in::<E, E::Acc>(x, n) };
    if size_of::<E::Acc>() == 8 || in_range(squares) {
        return moments;
    }
    // SAFETY: passed on.
    unsafe { moments_in::<E, f64>(x, n).0 }
}

/// The sum of the squares of a block, likewise.
///
/// # Safety
/// `n` elements can be read at `x`.
#[inline(always)]
unsafe fn squares<E: Element>(x: *const E, n: usize) -> f64 {
    // SAFETY: as required.
    let at = |i| unsafe { (*x.add(i)).widen() };
    let sum = total(n, |i| at(i) * at(i));
    if size_of::<E::Acc>() == 8 || in_range(sum) {
        return sum;
    }
    total(n, |i| at(i).to_f64() * at(i).to_f64())
}

/// A mean in two parts of the type that is computed in, and `1 / sqrt(var + eps)`: `x` is normalised to
/// `((x - hi) - lo) * rstd`.
#[derive(Clone, Copy, Debug, Default)]
struct Center<T> {
    hi: T,
    lo: T,
    rstd: T,
}

impl<T: Real> Center<T> {
    #[inline(always)]
    fn new(mean: f64, rstd: f64) -> Center<T> {
        let hi = T::from_f64(mean);
        Center { hi, lo: T::from_f64(mean - hi.to_f64()), rstd: T::from_f64(rstd) }
    }

    #[inline(always)]
    fn normalise(&self, x: T) -> T {
        ((x - self.hi) - self.lo) * self.rstd
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Element-wise loops whose output may be an input
// ---------------------------------------------------------------------------------------------------------------------

/// `y[i] = f(i, x[i])` for `0 .. n`. `y` may be `x`.
///
/// # Safety
/// `n` elements can be read at `x` and written at `y`; the two are the same or apart.
#[inline(always)]
pub(crate) unsafe fn map<E: Element>(x: *const E, y: *mut E, n: usize, f: impl Fn(usize, E::Acc) -> E::Acc) {
    // SAFETY: passed on.
    unsafe { map_into(x, y, n, f) }
}

/// `y[i] = f(i, x[i])` for `0 .. n`, stored as another type. `y` may be `x` if the elements are of one size.
///
/// # Safety
/// `n` elements can be read at `x` and written at `y`; the two are the same or apart.
#[inline(always)]
pub(crate) unsafe fn map_into<A, B>(x: *const A, y: *mut B, n: usize, f: impl Fn(usize, A::Acc) -> B::Acc)
where
    A: Element,
    B: Element,
{
    // SAFETY: as required. Two loops, because the compiler vectorises each only if it sees which case it is.
    unsafe {
        if x.addr() == y.addr() {
            for i in 0..n {
                *y.add(i) = B::narrow(f(i, (*y.cast::<A>().add(i)).widen()));
            }
        } else {
            for i in 0..n {
                *y.add(i) = B::narrow(f(i, (*x.add(i)).widen()));
            }
        }
    }
}

/// `y[i] = f(i, a[i], b[i])` for `0 .. n`. `y` may be `a` or `b`.
///
/// # Safety
/// `n` elements can be read at `a` and `b` and written at `y`; `y` is the same as, or apart from, each.
#[inline(always)]
pub(crate) unsafe fn zip<E: Element>(
    a: *const E,
    b: *const E,
    y: *mut E,
    n: usize,
    f: impl Fn(usize, E::Acc, E::Acc) -> E::Acc,
) {
    // SAFETY: as required. Three loops for the same reason.
    unsafe {
        if a.addr() == y.addr() {
            for i in 0..n {
                *y.add(i) = E::narrow(f(i, (*y.add(i)).widen(), (*b.add(i)).widen()));
            }
        } else if b.addr() == y.addr() {
            for i in 0..n {
                *y.add(i) = E::narrow(f(i, (*a.add(i)).widen(), (*y.add(i)).widen()));
            }
        } else {
            for i in 0..n {
                *y.add(i) = E::narrow(f(i, (*a.add(i)).widen(), (*b.add(i)).widen()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(x: &[f32]) -> Moments {
        let n = x.len() as f64;
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        Moments { n, mean, m2: x.iter().map(|&x| (f64::from(x) - mean) * (f64::from(x) - mean)).sum() }
    }

    fn close(a: f64, b: f64, relative: f64) -> bool {
        (a - b).abs() <= relative * b.abs()
    }

    #[test]
    fn a_large_mean_or_scale_costs_no_accuracy() {
        for (offset, scale) in [(0.0, 1.0), (1e4, 1.0), (1e6, 1.0), (-3.0, 1e-22), (0.0, 1e-22), (0.0, 1e30)] {
            for n in [1usize, 5, 16, 17, 511, 512] {
                let x: Vec<f32> = (0..n).map(|i| offset + scale * ((i * 7919 % 1000) as f32 / 500.0 - 1.0)).collect();
                // SAFETY: `x` has `n` elements.
                let got = unsafe { moments(x.as_ptr(), n) };
                let want = naive(&x);
                assert!(close(got.mean, want.mean, 1e-6) || (got.mean - want.mean).abs() < 1e-6 * f64::from(scale));
                assert!(close(got.m2, want.m2, 1e-5) || want.m2 < 1e-12 * want.mean * want.mean, "{got:?} {want:?}");
            }
        }
    }

    #[test]
    fn merged_blocks_are_the_whole() {
        let x: Vec<f32> = (0..5000).map(|i| ((i * 7919 % 1000) as f32) - 300.0).collect();
        // SAFETY: each block lies in `x`.
        let mut blocks: Vec<Moments> = x.chunks(BLOCK).map(|x| unsafe { moments(x.as_ptr(), x.len()) }).collect();
        let (got, want) = (merged(&mut blocks), naive(&x));
        assert_eq!(got.n, want.n);
        assert!(close(got.mean, want.mean, 1e-7) && close(got.m2, want.m2, 1e-6), "{got:?} {want:?}");
    }

    #[test]
    fn maps_in_place() {
        let x: Vec<f32> = (0..100u8).map(f32::from).collect();
        let (mut y, mut z) = (x.clone(), vec![0f32; 100]);
        // SAFETY: 100 elements each.
        unsafe {
            map(y.as_ptr(), y.as_mut_ptr(), 100, |i, x| x + i as f32);
            zip(x.as_ptr(), x.as_ptr(), z.as_mut_ptr(), 100, |_, a, b| a + b);
        }
        assert_eq!(y, z);
    }
}
