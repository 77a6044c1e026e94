//! Losses, with their gradients in the same pass.

use crate::array::Shared;
use crate::float::{Element, Real};
use crate::math::{exp, ln_1p_of_unit};
use crate::norm::{BLOCK, in_memory, map_into, total, totals};
use crate::parallel::{self, CHUNK};
use crate::reduce::{self, LANES, Lanes};
use crate::simd::{Isa, Kernel, dispatch};

// ---------------------------------------------------------------------------------------------------------------------
// Softmax cross-entropy
// ---------------------------------------------------------------------------------------------------------------------

/// What the rows are compared with.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a, E> {
    /// The class of each row, and the class that says that a row does not count.
    Classes(&'a [i64], i64),
    /// Probabilities, one row of them for each row.
    Probabilities(*const E),
}

/// A softmax cross-entropy over `rows` rows of `classes` logits.
///
/// With `t` the target distribution of a row (1 for its class and 0 for the others, if classes are given), `w` the class
/// weights and `q = w (on t + off)`: `loss = sum q (logsumexp(x) - x)`, and its gradient is `softmax(x) sum(q) - q`.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a, E: Element> {
    /// Logits.
    pub x: *const E,
    /// Rows.
    pub rows: usize,
    /// Logits of a row.
    pub classes: usize,
    /// The target.
    pub target: Target<'a, E::Acc>,
    /// For each class.
    pub weight: Option<&'a [E::Acc]>,
    /// What the target is multiplied by in smoothing, 1 without.
    pub on: f64,
    /// What is then added, 0 without.
    pub off: f64,
    /// Where the gradient goes, if it is wanted; may be `x`.
    pub dx: Option<*mut E>,
    /// The gradient of the result, by which that of each row is multiplied: one for all, or one for each row.
    pub scale: &'a [f64],
}

// SAFETY: addresses; what `cross_entropy` requires makes their use sound.
unsafe impl<E: Element> Send for CrossEntropy<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Element> Sync for CrossEntropy<'_, E> {}

/// Computes the loss of each row, and writes the gradient.
///
/// # Safety
/// The arrays have what the fields say, aligned, and nobody else uses them meanwhile; `dx` is the same as `x` or apart from
/// both inputs. Each class is below `classes` or the ignored one.
///
/// # Panics
/// If a slice does not have the length that the fields say.
pub unsafe fn cross_entropy<E: Element>(c: CrossEntropy<'_, E>, isa: Isa) -> Vec<f64> {
    let mut losses = vec![0.0; c.rows];
    if c.rows * c.classes == 0 {
        return losses;
    }
    assert!(c.scale.len() == 1 || c.scale.len() == c.rows, "a scale for all rows or for each");
    assert!(c.weight.is_none_or(|weight| weight.len() == c.classes), "a weight for each class");
    if let Target::Classes(classes, _) = c.target {
        assert!(classes.len() == c.rows, "a class for each row");
    }
    let shared = Shared::new(&mut losses);
    let rows_per_task = (CHUNK / c.classes).max(1);
    parallel::share(c.rows * c.classes, c.rows.div_ceil(rows_per_task), |task| {
        let first = task * rows_per_task;
        let rows = rows_per_task.min(c.rows - first);
        // SAFETY: each task has its rows.
        let losses = unsafe { shared.slice(first, rows) };
        dispatch(isa, CrossEntropyRows { c, first, losses });
    });
    losses
}

struct CrossEntropyRows<'a, E: Element> {
    c: CrossEntropy<'a, E>,
    first: usize,
    losses: &'a mut [f64],
}

impl<E: Element> Kernel for CrossEntropyRows<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let CrossEntropyRows { c, first, losses } = self;
        let mut exps = vec![E::Acc::ZERO; c.classes];
        let blocks = c.classes.div_ceil(BLOCK);
        let (mut parts, mut sums) = (vec![Part::default(); blocks], vec![[0.0; 3]; blocks]);
        for (row, loss) in (first..).zip(losses) {
            let scale = c.scale[if c.scale.len() == 1 { 0 } else { row }];
            // SAFETY: row `row` of the arrays, which no other task has.
            unsafe {
                *loss = match c.target {
                    Target::Classes(classes, ignored) if classes[row] == ignored => {
                        if let Some(dx) = c.dx {
                            let dx = dx.add(row * c.classes);
                            (0..c.classes).for_each(|j| *dx.add(j) = E::narrow(E::Acc::ZERO));
                        }
                        0.0
                    }
                    _ => cross_entropy_row(&c, row, scale, &mut exps, (&mut parts, &mut sums)),
                };
            }
        }
    }
}

/// One row that counts.
///
/// # Safety
/// As for [`cross_entropy`].
#[inline(always)]
unsafe fn cross_entropy_row<E: Element>(
    c: &CrossEntropy<'_, E>,
    row: usize,
    scale: f64,
    exps: &mut [E::Acc],
    (parts, sums): (&mut [Part], &mut [[f64; 3]]),
) -> f64 {
    let number = E::Acc::from_f64;
    let n = c.classes;
    // SAFETY: row `row` of the arrays, as required.
    unsafe {
        let x = c.x.add(row * n);
        let at = |j: usize| (*x.add(j)).widen();
        let weight = |j: usize| c.weight.map_or(E::Acc::ONE, |weight| *weight.get_unchecked(j));

        // Each block is read once, relative to its own maximum: exponentials into `exps`, and their sum, sum(q (max - x))
        // and sum(q); of the latter two only what is not one class.
        for (b, (part, sums)) in parts.iter_mut().zip(sums.iter_mut()).enumerate() {
            let first = b * BLOCK;
            let len = BLOCK.min(n - first);
            let (x, exps) = (x.add(first), exps.as_mut_ptr().add(first));
            let largest = maximum(x, len);
            // A block of -infinity has no part in the sum.
            let max = if largest == -E::Acc::ONE / E::Acc::ZERO { E::Acc::ZERO } else { largest };
            map_into(x, exps, len, |_, x| exp(x - max));
            let sum = total(len, |j| *exps.add(j));
            let [distance, share] = match c.target {
                Target::Classes(..) if c.off == 0.0 => [0.0; 2],
                Target::Classes(..) if c.weight.is_none() => [total(len, |j| max - (*x.add(j)).widen()), len as f64],
                Target::Classes(..) => totals(len, |j| {
                    let w = weight(first + j);
                    [w * (max - (*x.add(j)).widen()), w]
                }),
                Target::Probabilities(t) => {
                    let t = t.add(row * n + first);
                    let (on, off) = (number(c.on), number(c.off));
                    totals(len, |j| {
                        let q = weight(first + j) * (on * *t.add(j) + off);
                        let distance = max - (*x.add(j)).widen();
                        // An impossible class with probability 0 adds nothing.
                        [if q == E::Acc::ZERO { q } else { q * distance }, q]
                    })
                }
            };
            *part = Part { largest: largest.to_f64(), max: max.to_f64(), factor: 1.0 };
            *sums = [sum, distance, share];
        }
        // Then relative to the maximum of the row.
        let max = parts.iter().fold(f64::NEG_INFINITY, |max, part| Real::maximum(max, part.largest));
        let max = if max == f64::INFINITY { f64::NAN } else { max };
        for (part, sums) in parts.iter_mut().zip(sums.iter_mut()) {
            let [sum, distance, share] = *sums;
            let impossible = part.largest == f64::NEG_INFINITY;
            part.factor = if impossible && !max.is_nan() { 0.0 } else { libm::exp(part.max - max) };
            let further = if share == 0.0 { 0.0 } else { (max - part.max) * share };
            *sums = [sum * part.factor, distance + further, share];
        }
        let [all, mut distance, mut share] = reduce::tree_of(sums);
        let log = libm::log(all);
        let mut true_class = None;
        if let Target::Classes(classes, _) = c.target {
            let t = classes[row] as usize;
            let on = c.on * weight(t).to_f64();
            let to_true = on * (max - at(t).to_f64());
            (distance, share) =
                if c.off == 0.0 { (to_true, on) } else { (to_true + c.off * distance, on + c.off * share) };
            true_class = Some((t, on));
        }

        if let Some(dx) = c.dx {
            let dx = dx.add(row * n);
            for (b, part) in parts.iter().enumerate() {
                let first = b * BLOCK;
                let len = BLOCK.min(n - first);
                let (exps, dx) = (exps.as_ptr().add(first), dx.add(first));
                let k = number(scale * share / all * part.factor);
                let off = number(scale * c.off);
                match c.target {
                    Target::Classes(..) if c.off == 0.0 => map_into(exps, dx, len, |_, e| e * k),
                    Target::Classes(..) if c.weight.is_none() => map_into(exps, dx, len, |_, e| e * k - off),
                    Target::Classes(..) => map_into(exps, dx, len, |j, e| e * k - off * weight(first + j)),
                    Target::Probabilities(t) => {
                        let t = t.add(row * n + first);
                        let (on, off, scale) = (number(c.on), number(c.off), number(scale));
                        map_into(exps, dx, len, |j, e| e * k - scale * (weight(first + j) * (on * *t.add(j) + off)));
                    }
                }
            }
            if let Some((t, on)) = true_class {
                let e = exps[t] * number(scale * share / all * parts[t / BLOCK].factor);
                let others = if c.off == 0.0 { e } else { e - number(scale * c.off) * weight(t) };
                *dx.add(t) = E::narrow(others - number(scale * on));
            }
        }
        share * log + distance
    }
}

/// What is known of a block of a row.
#[derive(Clone, Copy, Default)]
struct Part {
    /// Its largest logit.
    largest: f64,
    /// What its logits are taken relative to.
    max: f64,
    /// `exp(max)` relative to the maximum of the row.
    factor: f64,
}

/// The largest of `n > 0` elements, NaN if one is.
///
/// # Safety
/// They can be read at `x`.
#[inline(always)]
unsafe fn maximum<E: Element>(x: *const E, n: usize) -> E::Acc {
    // SAFETY: as required.
    let at = |i| unsafe { (*x.add(i)).widen() };
    let mut lanes = [at(0); LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane = lane.maximum(at(i + l));
        }
        i += LANES;
    }
    let mut lanes = in_memory(lanes);
    for i in whole..n {
        lanes[0] = lanes[0].maximum(at(i));
    }
    lanes.into_iter().fold(at(0), Real::maximum)
}

// ---------------------------------------------------------------------------------------------------------------------
// Losses of one element and its target
// ---------------------------------------------------------------------------------------------------------------------

/// A loss that is a sum over the elements.
pub trait Pointwise<T>: Copy + Send + Sync {
    /// The loss of an element with its target and the weight of the positive class, and its derivative.
    fn value_and_slope(&self, x: T, target: T, pos_weight: T) -> (T, T);
    /// Whether the value is to be squared in `f64`: it is a distance then.
    const SQUARED: bool;
}

/// `(x - target)^2`; the value is the distance, and so is the derivative: the 2 belongs into the scale, where it cannot
/// overflow.
#[derive(Clone, Copy, Debug)]
pub struct SquaredError;

impl<T: Real> Pointwise<T> for SquaredError {
    #[inline(always)]
    fn value_and_slope(&self, x: T, target: T, _pos_weight: T) -> (T, T) {
        let d = x - target;
        (d, d)
    }
    const SQUARED: bool = true;
}

/// `(pos_weight t) softplus(-x) + (1 - t) softplus(x)` with `t = on target + off`: the binary cross-entropy of the logit `x`.
#[derive(Clone, Copy, Debug)]
pub struct BinaryCrossEntropy<T> {
    /// 1 without smoothing.
    pub on: T,
    /// 0 without smoothing.
    pub off: T,
}

impl<T: Real> Pointwise<T> for BinaryCrossEntropy<T> {
    #[inline(always)]
    fn value_and_slope(&self, x: T, target: T, pos_weight: T) -> (T, T) {
        let t = self.on * target + self.off;
        let positive = pos_weight * t;
        let rest = T::ONE - t;
        let factor = rest + positive;
        // From the exponential that cannot overflow, without cancellation on either side: for a negative `x`,
        // softplus(-x) = ln_1p(e^x) - x and sigmoid(x) = e^x / (1 + e^x).
        let e = exp(-x.abs());
        let negative = x < T::ZERO;
        let slope = if negative { -positive } else { rest };
        let linear = if slope == T::ZERO { slope } else { slope * x };
        let far = factor * (e / (T::ONE + e));
        (linear + factor * ln_1p_of_unit(e), if negative { far - positive } else { rest - far })
    }
    const SQUARED: bool = false;
}

/// The arrays of a pointwise loss, `n` elements each.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<E: Element> {
    /// What is compared.
    pub x: *const E,
    /// With what.
    pub target: *const E::Acc,
    /// What each loss is multiplied by.
    pub weight: Option<*const E::Acc>,
    /// Of the positive class.
    pub pos_weight: Option<*const E::Acc>,
    /// What the gradient of each is multiplied by.
    pub upstream: Option<*const E::Acc>,
    /// And all of them.
    pub scale: f64,
    /// Where the loss of each goes, if it is wanted.
    pub losses: Option<*mut E::Acc>,
    /// Where the gradient goes, if it is wanted; may be `x` or `target`.
    pub dx: Option<*mut E>,
    /// Elements.
    pub n: usize,
}

// SAFETY: addresses; what `pointwise` requires makes their use sound.
unsafe impl<E: Element> Send for Pairs<E> {}
// SAFETY: likewise.
unsafe impl<E: Element> Sync for Pairs<E> {}

/// The sum of a pointwise loss; writes what is wanted.
///
/// # Safety
/// The arrays have `n` elements, aligned, and nobody else uses them meanwhile; those that are written are apart from all
/// others, but that `dx` may be `x` or `target`.
pub unsafe fn pointwise<E: Element, L: Pointwise<E::Acc>>(loss: L, pairs: Pairs<E>, isa: Isa) -> f64 {
    let mut sums = vec![0.0; pairs.n.div_ceil(BLOCK)];
    let shared = Shared::new(&mut sums);
    parallel::share(pairs.n, pairs.n.div_ceil(CHUNK), |task| {
        let first = task * CHUNK;
        let n = CHUNK.min(pairs.n - first);
        // SAFETY: each task has its blocks.
        let sums = unsafe { shared.slice(first / BLOCK, n.div_ceil(BLOCK)) };
        dispatch(isa, PointwiseChunk { loss, pairs, first, n, sums });
    });
    reduce::tree(&mut sums)
}

struct PointwiseChunk<'a, E: Element, L> {
    loss: L,
    pairs: Pairs<E>,
    first: usize,
    n: usize,
    sums: &'a mut [f64],
}

impl<E: Element, L: Pointwise<E::Acc>> Kernel for PointwiseChunk<'_, E, L> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let PointwiseChunk { loss, pairs, first, n, sums } = self;
        let one = E::Acc::ONE;
        let scale = E::Acc::from_f64(pairs.scale);
        let (mut values, mut slopes) = ([E::Acc::ZERO; BLOCK], [E::Acc::ZERO; BLOCK]);
        for (b, sum) in sums.iter_mut().enumerate() {
            let start = first + b * BLOCK;
            let n = BLOCK.min(n - b * BLOCK);
            // SAFETY: block `b` of the chunk, which no other task has. All of it is read before any is written.
            unsafe {
                let (x, target) = (pairs.x.add(start), pairs.target.add(start));
                for j in 0..n {
                    let pos_weight = pairs.pos_weight.map_or(one, |p| *p.add(start + j));
                    (values[j], slopes[j]) = loss.value_and_slope((*x.add(j)).widen(), *target.add(j), pos_weight);
                }
                let weight = |j: usize| pairs.weight.map_or(one, |w| *w.add(start + j));
                *sum = total(n, |j| {
                    let value = values[j].to_f64();
                    (if L::SQUARED { value * value } else { value }) * weight(j).to_f64()
                });
                if let Some(losses) = pairs.losses {
                    for j in 0..n {
                        let value = if L::SQUARED { values[j] * values[j] } else { values[j] };
                        *losses.add(start + j) = value * weight(j);
                    }
                }
                if let Some(dx) = pairs.dx {
                    for j in 0..n {
                        let upstream = pairs.upstream.map_or(one, |g| *g.add(start + j));
                        *dx.add(start + j) = E::narrow(slopes[j] * weight(j) * upstream * scale);
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Penalty
// ---------------------------------------------------------------------------------------------------------------------

/// The sum of the squares of `n` elements, in `f64`.
///
/// # Safety
/// They can be read at `x`, aligned, and nobody writes them meanwhile.
pub unsafe fn sum_of_squares<E: Element>(x: *const E, n: usize, isa: Isa) -> f64 {
    let mut sums = vec![0.0; n.div_ceil(CHUNK)];
    let shared = Shared::new(&mut sums);
    // SAFETY: as required.
    let x = unsafe { if n == 0 { &[][..] } else { std::slice::from_raw_parts(x, n) } };
    parallel::share(n, n.div_ceil(CHUNK), |task| {
        let x = &x[task * CHUNK..n.min((task + 1) * CHUNK)];
        // SAFETY: each task has its sum.
        unsafe { *shared.at(task) = dispatch(isa, Squares(x)) };
    });
    reduce::tree(&mut sums)
}

struct Squares<'a, E>(&'a [E]);

impl<E: Element> Kernel for Squares<'_, E> {
    type Output = f64;
    #[inline(always)]
    fn run(self) -> f64 {
        let mut lanes = Lanes::default();
        lanes.add(self.0, |x| x.widen().to_f64() * x.widen().to_f64());
        lanes.total()
    }
}
