//! Functions of single elements: the activations, and multiplication by a number.
//!
//! GELU is computed in `f64` by the `libm` crate for every element type, for the sake of equal bits.

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::float::{Element, Real};
use crate::norm::{map, zip};
use crate::parallel::{self, CHUNK};
use crate::simd::{Isa, Kernel, dispatch};

/// The Gaussian error linear unit, `x Phi(x)`. Hendrycks & Gimpel 2016 (arXiv 1606.08415).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the normal distribution function.
    Exact,
    /// With `tanh(sqrt(2 / pi) (x + 0.044715 x^3))` in its place.
    Tanh,
}

/// The coefficient of the cube.
const CUBE: f64 = 0.044_715;
/// `sqrt(2 / pi)`
const INNER: f64 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;

impl Gelu {
    fn value(self, x: f64) -> f64 {
        match self {
            Gelu::Exact => 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2)),
            Gelu::Tanh => 0.5 * x * (1.0 + libm::tanh(INNER * (x + CUBE * x * x * x))),
        }
    }

    fn slope(self, x: f64) -> f64 {
        match self {
            Gelu::Exact => {
                let density = libm::exp(-0.5 * x * x) * (0.5 * INNER);
                0.5 * (1.0 + libm::erf(x * FRAC_1_SQRT_2)) + if density == 0.0 { 0.0 } else { x * density }
            }
            Gelu::Tanh => {
                let t = libm::tanh(INNER * (x + CUBE * x * x * x));
                let rest = 1.0 - t * t;
                let inner = if rest == 0.0 { 0.0 } else { rest * x * (INNER * (1.0 + 3.0 * CUBE * x * x)) };
                0.5 * (1.0 + t) + 0.5 * inner
            }
        }
    }
}

/// Addresses that go to other threads.
#[derive(Clone, Copy)]
struct Addresses<E>(*const E, Option<*const E>, *mut E);

// SAFETY: what is done with them is sound by what `gelu` requires.
unsafe impl<E: Send> Send for Addresses<E> {}
// SAFETY: likewise.
unsafe impl<E: Send> Sync for Addresses<E> {}

/// `y = gelu(x)`, or with `dy` its gradient `y = dy gelu'(x)`.
///
/// # Safety
/// `n` elements can be read at `x` and `dy` and written at `y`, aligned, nobody else uses them meanwhile, and `y` is the
/// same as, or apart from, each of the others.
pub unsafe fn gelu<E: Element>(form: Gelu, x: *const E, dy: Option<*const E>, y: *mut E, n: usize) {
    let all = Addresses(x, dy, y);
    // An element costs as much as many of a plain loop.
    parallel::share(8 * n, n.div_ceil(CHUNK / 8), |task| {
        let Addresses(x, dy, y) = { all };
        for i in task * (CHUNK / 8)..n.min((task + 1) * (CHUNK / 8)) {
            // SAFETY: element `i`, which no other task has.
            unsafe {
                let at = (*x.add(i)).widen().to_f64();
                let value = match dy {
                    None => form.value(at),
                    Some(dy) => (*dy.add(i)).widen().to_f64() * form.slope(at),
                };
                *y.add(i) = E::narrow(E::Acc::from_f64(value));
            }
        }
    });
}

/// A function that is a few instructions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Plain {
    /// `x` where it is not below 0, else 0; -0 and NaN stay.
    Relu,
    /// `x` times a number.
    Scale(f64),
}

/// `y = f(x)`, or with `dy` its gradient `y = dy f'(x)`, for [`Plain::Relu`]: 0 where `x <= 0`.
///
/// # Safety
/// As for [`gelu`].
pub unsafe fn plain<E: Element>(f: Plain, x: *const E, dy: Option<*const E>, y: *mut E, n: usize, isa: Isa) {
    let all = Addresses(x, dy, y);
    parallel::share(n, n.div_ceil(CHUNK), |task| {
        dispatch(isa, PlainChunk { f, all, first: task * CHUNK, n: CHUNK.min(n - task * CHUNK) });
    });
}

struct PlainChunk<E> {
    f: Plain,
    all: Addresses<E>,
    first: usize,
    n: usize,
}

impl<E: Element> Kernel for PlainChunk<E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let PlainChunk { f, all: Addresses(x, dy, y), first, n } = self;
        let zero = E::Acc::ZERO;
        // SAFETY: a chunk of the arrays that `plain` requires, which no other task has.
        unsafe {
            let (x, y) = (x.add(first), y.add(first));
            match (f, dy) {
                (Plain::Relu, None) => map(x, y, n, |_, x| if x < zero { zero } else { x }),
                (Plain::Relu, Some(dy)) => zip(x, dy.add(first), y, n, |_, x, dy| if x <= zero { zero } else { dy }),
                (Plain::Scale(factor), _) => {
                    let factor = E::Acc::from_f64(factor);
                    map(x, y, n, |_, x| factor * x);
                }
            }
        }
    }
}
