//! Layer and RMS normalisation: each row of a matrix by itself.
//!
//! - Layer: `y = (x - mean) rstd weight + bias`, Ba, Kiros & Hinton 2016 (arXiv 1607.06450).
//! - RMS: `y = x rstd weight` with `rstd = 1 / sqrt(mean(x^2) + eps)`, Zhang & Sennrich 2019 (arXiv 1910.07467).
//!
//! Backward, with `xh` the normalised row and `g = weight dy`: `dx = rstd (g - mean(g) - xh mean(g xh))`, for RMS without
//! the first mean. A row may be several sets side by side (`groups`): group normalisation of a matrix.

use std::array;
use std::ops::Range;

use super::{BLOCK, Center, Moments, halve, in_memory, map, merged, moments, rstd, squares, zip};
use crate::array::Shared;
use crate::float::{Element, Real};
use crate::parallel::{self, CHUNK};
use crate::reduce::{self, LANES};
use crate::simd::{Isa, Kernel, dispatch, prefetch};

/// `rows` rows of `groups` sets of `size` elements.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Sets in a row.
    pub groups: usize,
    /// Elements of a set.
    pub size: usize,
}

impl Shape {
    /// Elements of a row.
    pub fn row(&self) -> usize {
        self.groups * self.size
    }

    /// Sets in all.
    pub fn sets(&self) -> usize {
        self.rows * self.groups
    }

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.rows * self.row()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Rows whose parts of the gradients of weight and bias are added up in the type that is computed in.
const ROWS: usize = 16;

/// The arrays of a forward call. All have the elements of the shape, but `weight` and `bias`, which have those of a row.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a, E: Element> {
    /// What is normalised.
    pub x: *const E,
    /// What is added to it first, and where the sum goes.
    pub residual: Option<(*const E, *mut E)>,
    /// The result; may be `x`.
    pub y: *mut E,
    /// Ones if there is none.
    pub weight: &'a [E::Acc],
    /// -0 if there is none. Layer normalisation only.
    pub bias: &'a [E::Acc],
    /// Added to the variance.
    pub eps: f64,
}

// SAFETY: addresses; what `forward` requires makes their use sound.
unsafe impl<E: Element> Send for Forward<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Element> Sync for Forward<'_, E> {}

/// Layer normalisation, or with `CENTER = false` RMS normalisation. `mean` (layer only) and `var`, the variance or the mean
/// square, get a value for each set.
///
/// # Safety
/// The arrays of `f` are valid for what they say, aligned, and nobody else uses them meanwhile; those that are written are
/// apart from all others, but that `y` may be `x` or the residual's sum.
pub unsafe fn forward<E: Element, const CENTER: bool>(
    f: Forward<'_, E>,
    shape: Shape,
    mean: &mut [f64],
    var: &mut [f64],
    isa: Isa,
) {
    let row = shape.row();
    if shape.is_empty() {
        return;
    }
    let (mean, var) = (Shared::new(mean), Shared::new(var));
    let rows_per_task = (CHUNK / row).max(1);
    parallel::share(shape.len(), shape.rows.div_ceil(rows_per_task), |task| {
        let rows = task * rows_per_task..shape.rows.min((task + 1) * rows_per_task);
        dispatch(isa, ForwardRows::<E, CENTER> { f, shape, rows, mean, var });
    });
}

/// [`forward`] for some rows.
struct ForwardRows<'a, E: Element, const CENTER: bool> {
    f: Forward<'a, E>,
    shape: Shape,
    rows: Range<usize>,
    mean: Shared<'a, f64>,
    var: Shared<'a, f64>,
}

impl<E: Element, const CENTER: bool> Kernel for ForwardRows<'_, E, CENTER> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let ForwardRows { f, shape, rows, mean, var } = self;
        let blocks = shape.size.div_ceil(BLOCK);
        let mut partials = vec![Moments::default(); if CENTER { blocks } else { 0 }];
        let mut sums = vec![0.0; if CENTER { 0 } else { blocks }];
        for set in rows.start * shape.groups..rows.end * shape.groups {
            let (first, column) = (set * shape.size, set % shape.groups * shape.size);
            // SAFETY: `forward` requires the arrays to be valid; no other task has set `set`.
            unsafe {
                let (mut x, y) = (f.x.add(first), f.y.add(first));
                // The result of this set, and the next one, half of it now and half of it later: too many requests at once
                // would hold up this one.
                let half = shape.size / 2;
                prefetch(x.wrapping_add(shape.size), half);
                prefetch(y.cast_const(), shape.size);
                if let Some((residual, hidden)) = f.residual {
                    zip(x, residual.add(first), hidden.add(first), shape.size, |_, x, r| x + r);
                    x = hidden.add(first);
                }
                let weight = f.weight.as_ptr().add(column);
                if CENTER {
                    for (b, partial) in partials.iter_mut().enumerate() {
                        *partial = moments(x.add(b * BLOCK), BLOCK.min(shape.size - b * BLOCK));
                    }
                    let all = merged(&mut partials);
                    *mean.at(set) = all.mean;
                    *var.at(set) = all.var();
                    let center = Center::<E::Acc>::new(all.mean, rstd(all.var(), f.eps));
                    let bias = f.bias.as_ptr().add(column);
                    prefetch(x.wrapping_add(shape.size + half), shape.size - half);
                    map(x, y, shape.size, |j, x| center.normalise(x) * *weight.add(j) + *bias.add(j));
                } else {
                    for (b, sum) in sums.iter_mut().enumerate() {
                        *sum = squares(x.add(b * BLOCK), BLOCK.min(shape.size - b * BLOCK));
                    }
                    let square = reduce::tree(&mut sums) / shape.size as f64;
                    *var.at(set) = square;
                    let r = E::Acc::from_f64(rstd(square, f.eps));
                    prefetch(x.wrapping_add(shape.size + half), shape.size - half);
                    map(x, y, shape.size, |j, x| (x * r) * *weight.add(j));
                }
            }
        }
    }
}

/// The arrays of a backward call.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a, E: Element> {
    /// What was normalised.
    pub x: *const E,
    /// The gradient of the result.
    pub dy: *const E,
    /// The gradient of the residual's sum, which is added to that of `x`.
    pub dh: Option<*const E>,
    /// The gradient of `x`; may be `dy`, `dh` or `x`.
    pub dx: *mut E,
    /// Ones if there is none.
    pub weight: &'a [E::Acc],
    /// Of each set; layer normalisation only.
    pub mean: &'a [f64],
    /// Of each set.
    pub rstd: &'a [f64],
}

// SAFETY: addresses; what `backward` requires makes their use sound.
unsafe impl<E: Element> Send for Backward<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Element> Sync for Backward<'_, E> {}

/// The backward call of [`forward`]: writes `dx` and returns the gradients of weight and bias, one pair for each column.
///
/// # Safety
/// As for [`forward`].
pub unsafe fn backward<E: Element, const CENTER: bool>(b: Backward<'_, E>, shape: Shape, isa: Isa) -> Vec<[f64; 2]> {
    let row = shape.row();
    if shape.is_empty() {
        return vec![[0.0; 2]; row];
    }
    let rows_per_task = ROWS * (4096 / row).max(1);
    let tasks = shape.rows.div_ceil(rows_per_task);
    let mut params = vec![[0.0; 2]; tasks * row];
    let shared = Shared::new(&mut params);
    parallel::share(shape.len(), tasks, |task| {
        let rows = task * rows_per_task..shape.rows.min((task + 1) * rows_per_task);
        // SAFETY: each task has its part.
        let total = unsafe { shared.slice(task * row, row) };
        dispatch(isa, BackwardRows::<E, CENTER> { b, shape, rows, total });
    });
    // The tasks' parts by the tree, all columns at once.
    let mut n = tasks;
    while n > 1 {
        for i in 0..n / 2 {
            for j in 0..row {
                let (a, b) = (params[2 * i * row + j], params[(2 * i + 1) * row + j]);
                params[i * row + j] = [a[0] + b[0], a[1] + b[1]];
            }
        }
        if n % 2 == 1 {
            params.copy_within((n - 1) * row..n * row, n / 2 * row);
        }
        n = n.div_ceil(2);
    }
    params.truncate(row);
    params
}

/// [`backward`] for some rows.
struct BackwardRows<'a, E: Element, const CENTER: bool> {
    b: Backward<'a, E>,
    shape: Shape,
    rows: Range<usize>,
    total: &'a mut [[f64; 2]],
}

impl<E: Element, const CENTER: bool> Kernel for BackwardRows<'_, E, CENTER> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let BackwardRows { b, shape, rows, total } = self;
        let row = shape.row();
        let mut partials = vec![[0.0; 2]; shape.size.div_ceil(BLOCK)];
        let (mut for_weight, mut for_bias) = (vec![E::Acc::ZERO; row], vec![E::Acc::ZERO; row]);
        for first in rows.clone().step_by(ROWS) {
            for_weight.fill(E::Acc::ZERO);
            for_bias.fill(E::Acc::ZERO);
            for set in first * shape.groups..rows.end.min(first + ROWS) * shape.groups {
                let column = set % shape.groups * shape.size;
                let params = [&mut for_weight, &mut for_bias].map(|part| part[column..][..shape.size].as_mut_ptr());
                // SAFETY: `backward` requires the arrays to be valid; no other task has set `set`.
                unsafe { backward_of_set::<E, CENTER>(&b, set, column, shape.size, params, &mut partials) };
            }
            for ((total, weight), bias) in total.iter_mut().zip(&for_weight).zip(&for_bias) {
                total[0] += weight.to_f64();
                total[1] += bias.to_f64();
            }
        }
    }
}

/// One set of [`backward`].
///
/// # Safety
/// As for [`backward`]; `params` are apart from everything else.
#[inline(always)]
unsafe fn backward_of_set<E: Element, const CENTER: bool>(
    b: &Backward<'_, E>,
    set: usize,
    column: usize,
    size: usize,
    [for_weight, for_bias]: [*mut E::Acc; 2],
    partials: &mut [[f64; 2]],
) {
    let first = set * size;
    // SAFETY: as required.
    unsafe {
        let (x, dy, dx) = (b.x.add(first), b.dy.add(first), b.dx.add(first));
        // The result of this set, and the next one: one array of it now and the other later.
        prefetch(dx.cast_const(), size);
        prefetch(x.wrapping_add(size), size);
        let weight = b.weight.as_ptr().add(column);
        let center = Center::<E::Acc>::new(if CENTER { b.mean[set] } else { 0.0 }, b.rstd[set]);
        let normalise = |x| if CENTER { center.normalise(x) } else { x * center.rstd };

        for (block, partial) in partials.iter_mut().enumerate() {
            let start = block * BLOCK;
            let n = BLOCK.min(size - start);
            let (x, dy, weight) = (x.add(start), dy.add(start), weight.add(start));
            let (for_weight, for_bias) = (for_weight.add(start), for_bias.add(start));
            let (mut for_g, mut for_gx) = ([E::Acc::ZERO; LANES], [E::Acc::ZERO; LANES]);
            let term = |i: usize| {
                let (xh, dy) = (normalise((*x.add(i)).widen()), (*dy.add(i)).widen());
                (xh, dy, *weight.add(i) * dy)
            };
            let whole = n / LANES * LANES;
            let mut i = 0;
            while i < whole {
                // All of a group is read before any of it is written.
                let mut terms = [[E::Acc::ZERO; LANES]; 2];
                for l in 0..LANES {
                    let (xh, dy, g) = term(i + l);
                    for_g[l] = for_g[l] + g;
                    for_gx[l] = for_gx[l] + g * xh;
                    terms[0][l] = *for_weight.add(i + l) + dy * xh;
                    terms[1][l] = *for_bias.add(i + l) + dy;
                }
                for l in 0..LANES {
                    *for_weight.add(i + l) = terms[0][l];
                }
                for l in 0..LANES {
                    *for_bias.add(i + l) = terms[1][l];
                }
                i += LANES;
            }
            let (mut for_g, mut for_gx) = (in_memory(for_g), in_memory(for_gx));
            for l in 0..n - whole {
                let (xh, dy, g) = term(whole + l);
                for_g[l] = for_g[l] + g;
                for_gx[l] = for_gx[l] + g * xh;
                *for_weight.add(whole + l) = *for_weight.add(whole + l) + dy * xh;
                *for_bias.add(whole + l) = *for_bias.add(whole + l) + dy;
            }
            *partial = [halve(for_g).to_f64(), halve(for_gx).to_f64()];
        }
        let sums = reduce::tree_of(partials);
        let [c1, c2] = array::from_fn(|k| E::Acc::from_f64(sums[k] / size as f64));
        let r = center.rstd;
        prefetch(b.dy.wrapping_add(first + size), size);
        let gradient = |i: usize, x, dy| {
            let (xh, g) = (normalise(x), *weight.add(i) * dy);
            if CENTER { r * ((g - c1) - xh * c2) } else { r * (g - xh * c2) }
        };
        match b.dh {
            None => zip(x, dy, dx, size, gradient),
            Some(dh) => {
                let dh = dh.add(first);
                zip(x, dy, dx, size, |i, x, dy| gradient(i, x, dy) + (*dh.add(i)).widen());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_finite_differences() {
        let shape = Shape { rows: 3, groups: 2, size: 5 };
        let value = |i: usize, k: usize| ((i * 7919 + k * 104_729) % 1000) as f64 / 500.0 - 1.0;
        let x: Vec<f64> = (0..30).map(|i| value(i, 1)).collect();
        let dy: Vec<f64> = (0..30).map(|i| value(i, 2)).collect();
        let weight: Vec<f64> = (0..10).map(|i| value(i, 3)).collect();
        let bias = vec![0.25; 10];
        let loss = |x: &[f64], weight: &[f64]| {
            let (mut y, mut mean, mut var) = (vec![0.0; 30], vec![0.0; 6], vec![0.0; 6]);
            let f = Forward { x: x.as_ptr(), residual: None, y: y.as_mut_ptr(), weight, bias: &bias, eps: 1e-3 };
            // SAFETY: all arrays have the sizes of the shape.
            unsafe { forward::<f64, true>(f, shape, &mut mean, &mut var, Isa::detect()) };
            let rstds: Vec<f64> = var.iter().map(|&var| rstd(var, 1e-3)).collect();
            (y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>(), mean, rstds)
        };
        let (_, mean, rstds) = loss(&x, &weight);
        let mut dx = vec![0.0; 30];
        let b = Backward {
            x: x.as_ptr(),
            dy: dy.as_ptr(),
            dh: None,
            dx: dx.as_mut_ptr(),
            weight: &weight,
            mean: &mean,
            rstd: &rstds,
        };
        // SAFETY: likewise.
        let params = unsafe { backward::<f64, true>(b, shape, Isa::detect()) };
        for i in 0..30 {
            let at = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                loss(&x, &weight).0
            };
            assert!(((at(1e-5) - at(-1e-5)) / 2e-5 - dx[i]).abs() < 1e-8);
        }
        for (j, param) in params.iter().enumerate() {
            let at = |h: f64| {
                let mut weight = weight.clone();
                weight[j] += h;
                loss(&x, &weight).0
            };
            assert!(((at(1e-5) - at(-1e-5)) / 2e-5 - param[0]).abs() < 1e-8);
            assert!((param[1] - (dy[j] + dy[j + 10] + dy[j + 20])).abs() < 1e-12);
        }
    }
}
