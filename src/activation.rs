//! Functions of single elements: the activations, and multiplication by a number.
//!
//! GELU is computed in `f64` for every element type.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::float::{Element, Real};
use crate::math::{erfcx, exp};
use crate::norm::{map, zip};
use crate::parallel::{self, CHUNK};
use crate::simd::{Isa, Kernel, dispatch};

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x` where it is not below 0, else 0; -0 and NaN stay.
    Relu,
    /// The Gaussian error linear unit, `x Phi(x)`. Hendrycks & Gimpel 2016 (arXiv 1606.08415).
    Gelu,
    /// The same with `(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2` for `Phi(x)`.
    GeluTanh,
    /// `x` times a number.
    Scale(f64),
}

/// The coefficient of the cube.
const CUBE: f64 = 0.044_715;
/// `sqrt(2 / pi)`
const INNER: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

/// Elements that are computed side by side where that does not come by itself.
const TILE: usize = 64;

/// `Phi(x)` and `x` times the normal density, of each.
#[inline(always)]
fn normal(x: &[f64; TILE]) -> [[f64; 2]; TILE] {
    let (mut z, mut bell) = ([0.0; TILE], [0.0; TILE]);
    for i in 0..TILE {
        z[i] = x[i].abs() * FRAC_1_SQRT_2;
    }
    for i in 0..TILE {
        bell[i] = exp(-(z[i] * z[i]));
    }
    let scaled = erfcx(&z);
    let mut out = [[0.0; 2]; TILE];
    for i in 0..TILE {
        let tail = 0.5 * scaled[i] * bell[i];
        let share = if x[i] < 0.0 { tail } else { 1.0 - tail };
        out[i] = [share, if bell[i] == 0.0 { 0.0 } else { x[i] * bell[i] * (0.5 * INNER) }];
    }
    out
}

/// [`Activation::Gelu`], a tile at a time.
///
/// # Safety
/// As for [`apply`].
#[inline(always)]
unsafe fn gelu<E: Element>(x: *const E, dy: Option<*const E>, y: *mut E, n: usize) {
    let mut tile = [0.0; TILE];
    for first in (0..n).step_by(TILE) {
        let len = TILE.min(n - first);
        // SAFETY: as required; a tile is read before it is written.
        unsafe {
            for (i, value) in tile.iter_mut().enumerate().take(len) {
                *value = (*x.add(first + i)).widen().to_f64();
            }
            for (i, both) in normal(&tile).into_iter().enumerate().take(len) {
                let value = match dy {
                    None => share_of(tile[i], both),
                    Some(dy) => (*dy.add(first + i)).widen().to_f64() * (both[0] + both[1]),
                };
                *y.add(first + i) = E::narrow(E::Acc::from_f64(value));
            }
        }
    }
}

/// `(1 + tanh(u)) / 2 = 1 / (1 + e^(-2u))`, and `x` times its derivative.
#[inline(always)]
fn logistic(x: f64) -> [f64; 2] {
    let square = x * x;
    let u = INNER * (x + CUBE * square * x);
    let e = exp(-2.0 * u.abs());
    let (near, far) = (1.0 / (1.0 + e), e / (1.0 + e));
    let slope = 2.0 * INNER * (1.0 + 3.0 * CUBE * square);
    let below = u < 0.0;
    [if below { far } else { near }, if far == 0.0 { 0.0 } else { x * (near * far) * slope }]
}

/// `x share`, also where the share has gone to 0.
#[inline(always)]
fn share_of(x: f64, [share, _]: [f64; 2]) -> f64 {
    if share == 0.0 { -0.0 } else { x * share }
}

/// Addresses that go to other threads.
#[derive(Clone, Copy)]
struct Addresses<E>(*const E, Option<*const E>, *mut E);

// SAFETY: what is done with them is sound by what `apply` requires.
unsafe impl<E: Send> Send for Addresses<E> {}
// SAFETY: likewise.
unsafe impl<E: Send> Sync for Addresses<E> {}

/// `y = f(x)`, or with `dy` the gradient `y = dy f'(x)` (of [`Activation::Relu`]: 0 where `x <= 0`).
///
/// # Safety
/// `n` elements can be read at `x` and `dy` and written at `y`, aligned, nobody else uses them meanwhile, and `y` is the
/// same as, or apart from, each of the others.
pub unsafe fn apply<E: Element>(f: Activation, x: *const E, dy: Option<*const E>, y: *mut E, n: usize, isa: Isa) {
    let all = Addresses(x, dy, y);
    parallel::share(n, n.div_ceil(CHUNK), |task| {
        dispatch(isa, Chunk { f, all, first: task * CHUNK, n: CHUNK.min(n - task * CHUNK) });
    });
}

struct Chunk<E> {
    f: Activation,
    all: Addresses<E>,
    first: usize,
    n: usize,
}

impl<E: Element> Kernel for Chunk<E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Chunk { f, all: Addresses(x, dy, y), first, n } = self;
        let zero = E::Acc::ZERO;
        let rounded = E::Acc::from_f64;
        // SAFETY: a chunk of the arrays that `apply` requires, which no other task has.
        unsafe {
            let (x, y) = (x.add(first), y.add(first));
            let Some(dy) = dy else {
                return match f {
                    Activation::Relu => map(x, y, n, |_, x| if x < zero { zero } else { x }),
                    Activation::Gelu => gelu(x, None, y, n),
                    Activation::GeluTanh => map(x, y, n, |_, x| rounded(share_of(x.to_f64(), logistic(x.to_f64())))),
                    Activation::Scale(factor) => map(x, y, n, |_, x| rounded(factor) * x),
                };
            };
            let dy = dy.add(first);
            match f {
                Activation::Relu => zip(x, dy, y, n, |_, x, dy| if x <= zero { zero } else { dy }),
                Activation::Gelu => gelu(x, Some(dy), y, n),
                Activation::GeluTanh => zip(x, dy, y, n, |_, x, dy| {
                    let [share, slope] = logistic(x.to_f64());
                    rounded(dy.to_f64() * (share + slope))
                }),
                Activation::Scale(factor) => map(dy, y, n, |_, dy| rounded(factor) * dy),
            }
        }
    }
}
