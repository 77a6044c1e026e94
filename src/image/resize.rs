//! A part of a picture, resized: bilinear or nearest.
//!
//! Pixel `j` of `n` covers `[j, j + 1)`, and output pixel `i` of `m` stands for `[i, i + 1) n / m` (torch's
//! `interpolate(align_corners=False)`). Nothing outside of the part is seen.
//!
//! - **Bilinear**: along each axis, pixel `j` has the weight `max(0, r - |(2 j + 1) m - (2 i + 1) n|)`, divided by
//!   the sum of these, with `r = 2 m`; with antialias `r = 2 max(m, n)`, which is torch's triangle as wide as the
//!   scale. The weights are whole numbers, so the quotient of two of them in `f64`, rounded to `f32`, is all that is
//!   rounded.
//! - **Nearest**: pixel `floor((2 i + 1) n / (2 m))` (torch's "nearest-exact").
//!
//! Bilinear sums are `f32`, in the order of the pixels, each product rounded: first down the columns, then along the
//! rows. Columns first, as they go through memory in order, and what is made smaller is small before the rows' turn.
//! A pixel without weight is not in the sum: infinities stay where they are seen.

use super::sample::{Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use crate::simd::{Isa, Kernel, dispatch};

/// Sides up to this, so that the product of two and the channels fits.
const MOST: f64 = 16_777_216.0;

/// Crop, then resize.
///
/// Columns: top, left, height, width of the part, inside the picture. Settings: height, width, interpolation (0
/// nearest, 1 bilinear), antialias (0 or 1).
#[derive(Clone, Debug)]
pub struct Resize {
    parts: Vec<[usize; 4]>,
    h: usize,
    w: usize,
    bilinear: bool,
    antialias: bool,
}

/// `x`, if it is whole and from `least` to 2^24.
pub(super) fn whole(x: f64, least: f64) -> Option<usize> {
    ((least..=MOST).contains(&x) && f64::from(x as u32) == x).then_some(x as usize)
}

impl Op for Resize {
    const NAME: &'static str = "resize";
    const EDITS: bool = false;
    const MOVES: bool = true;

    fn new(table: Table<'_>, _channels: usize) -> Result<Resize, String> {
        let &[h, w, interpolation, antialias] = table.settings else {
            return Err(format!(
                "resize takes 4 settings (h, w, interpolation, antialias), got {}",
                table.settings.len()
            ));
        };
        if table.columns != 4 {
            return Err(format!("resize takes 4 columns (top, left, height, width), got {}", table.columns));
        }
        let side = |name: &str, x: f64| {
            whole(x, 0.0).ok_or_else(|| format!("resize's {name} must be a whole number from 0 to 2^24, got {x}"))
        };
        let choice = |name: &str, x: f64| match x {
            0.0 => Ok(false),
            1.0 => Ok(true),
            _ => Err(format!("resize's {name} must be 0 or 1, got {x}")),
        };
        let (h, w) = (side("h", h)?, side("w", w)?);
        let (bilinear, antialias) = (choice("interpolation", interpolation)?, choice("antialias", antialias)?);
        let part = |i: usize| {
            let mut part = [0; 4];
            for ((name, &x), out) in ["top", "left", "height", "width"].iter().zip(table.row(i)).zip(&mut part) {
                *out = side(name, x).map_err(|error| format!("{error} for sample {i}"))?;
            }
            Ok(part)
        };
        let parts = (0..table.n).map(part).collect::<Result<_, String>>()?;
        Ok(Resize { parts, h, w, bilinear, antialias })
    }

    fn shape(&self, i: usize, input: Shape) -> Result<Shape, String> {
        let [top, left, height, width] = self.parts[i];
        if top + height > input.h || left + width > input.w {
            return Err(format!(
                "resize's part must lie inside the picture of {} x {}, got rows {top} to {} and columns {left} to {} \
                 for sample {i}",
                input.h,
                input.w,
                top + height,
                left + width,
            ));
        }
        let shape = input.sized(self.h, self.w);
        if !shape.is_empty() && (height == 0 || width == 0) {
            return Err(format!(
                "resize's part must have a pixel to make {} x {} of, got {height} x {width} for sample {i}",
                self.h, self.w
            ));
        }
        Ok(shape)
    }

    fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, work: &mut Workspace, isa: Isa) {
        let part = self.parts[i];
        if out.data.is_empty() {
            return;
        }
        if !self.bilinear || part[2..] == [self.h, self.w] {
            // Of the same size, the nearest pixel is the pixel.
            return nearest(part, input, out);
        }
        let rows = Axis::new(part[2], self.h, self.antialias);
        let columns = Axis::new(part[3], self.w, self.antialias);
        let c = out.shape.planes().1;
        let floats = work.floats(Lengths::new(part[3], self.w, c).sum(c));
        dispatch(isa, Bilinear { input, out, part, rows: &rows, columns: &columns, floats });
    }

    fn mask<E: Copy>(&self, i: usize, input: View<'_, E>, out: ViewMut<'_, E>, _fill: E) {
        if !out.data.is_empty() {
            nearest(self.parts[i], input, out);
        }
    }
}

/// The nearest pixel of the part; neither it nor the result is empty.
fn nearest<E: Copy>(part: [usize; 4], input: View<'_, E>, out: ViewMut<'_, E>) {
    let [top, left, height, width] = part;
    let (h, w) = (out.shape.h, out.shape.w);
    let (planes, c) = input.shape.planes();
    let index = |i: usize, n: usize, m: usize| (2 * i + 1) * n / (2 * m);
    let columns: Vec<usize> = (0..w).map(|x| (left + index(x, width, w)) * c).collect();
    let row = input.shape.w * c;
    for plane in 0..planes {
        let source = &input.data[plane * input.shape.h * row..][..input.shape.h * row];
        let out = &mut out.data[plane * h * w * c..][..h * w * c];
        for (y, line) in out.chunks_exact_mut(w * c).enumerate() {
            let source = &source[(top + index(y, height, h)) * row..][..row];
            if width == w {
                line.copy_from_slice(&source[left * c..][..w * c]);
                continue;
            }
            match c {
                1 => pick::<E, 1>(source, &columns, line),
                2 => pick::<E, 2>(source, &columns, line),
                3 => pick::<E, 3>(source, &columns, line),
                4 => pick::<E, 4>(source, &columns, line),
                _ => {
                    for (&x, pixel) in columns.iter().zip(line.chunks_exact_mut(c)) {
                        pixel.copy_from_slice(&source[x..][..c]);
                    }
                }
            }
        }
    }
}

/// The pixels of `C` channels that begin at `columns`.
fn pick<E: Copy, const C: usize>(source: &[E], columns: &[usize], line: &mut [E]) {
    for (&x, pixel) in columns.iter().zip(line.as_chunks_mut::<C>().0) {
        pixel.copy_from_slice(&source[x..][..C]);
    }
}

/// How `m` pixels are made of `n` along an axis.
struct Axis {
    /// Pixels that there are.
    n: usize,
    /// Pixels in each sum: those of the longest.
    taps: usize,
    /// The first pixel of each sum. All of its pixels are inside.
    starts: Vec<usize>,
    /// `taps` for each sum; 0 at the ends for pixels that are not in it.
    weights: Vec<f32>,
}

impl Axis {
    fn new(n: usize, m: usize, antialias: bool) -> Axis {
        let (n, m) = (n as i64, m as i64);
        let radius = 2 * if antialias { n.max(m) } else { m };
        // Sum i is of the pixels j whose weight is above 0. Its first and its last one go up with i.
        let weight = |i: i64, j: i64| radius - ((2 * j + 1) * m - (2 * i + 1) * n).abs();
        let (mut first, mut end) = (0, 0);
        let mut ranges = Vec::with_capacity(m as usize);
        let mut taps = 0;
        for i in 0..m {
            while weight(i, first) <= 0 {
                first += 1;
            }
            end = first.max(end);
            while end < n && weight(i, end) > 0 {
                end += 1;
            }
            ranges.push((first, end));
            taps = taps.max(end - first);
        }
        let mut starts = Vec::with_capacity(m as usize);
        let mut weights = vec![0.0; (m * taps) as usize];
        for ((i, (first, end)), weights) in (0..).zip(ranges).zip(weights.chunks_exact_mut(taps as usize)) {
            let start = first.min(n - taps);
            let sum: i64 = (first..end).map(|j| weight(i, j)).sum();
            starts.push(start as usize);
            for (j, out) in (first..end).zip(&mut weights[(first - start) as usize..]) {
                *out = (weight(i, j) as f64 / sum as f64) as f32;
            }
        }
        Axis { n: n as usize, taps: taps as usize, starts, weights }
    }

    /// The first pixel and the weights of sum `i`, none of them 0.
    #[inline(always)]
    fn sum(&self, i: usize) -> (usize, &[f32]) {
        let weights = &self.weights[i * self.taps..][..self.taps];
        let before = weights.iter().take_while(|&&w| w == 0.0).count();
        let after = weights.iter().rev().take_while(|&&w| w == 0.0).count();
        (self.starts[i] + before, &weights[before..weights.len() - after])
    }
}

/// Four numbers in a register. An array would do, but loads that overlap are then taken apart by the compiler.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Four(std::arch::x86_64::__m128);

#[cfg(target_arch = "x86_64")]
impl Four {
    #[inline(always)]
    fn load(x: &[f32; 4]) -> Four {
        // SAFETY: an array of 4.
        Four(unsafe { std::arch::x86_64::_mm_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; 4]) {
        // SAFETY: an array of 4.
        unsafe { std::arch::x86_64::_mm_storeu_ps(out.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn plus(self, other: Four) -> Four {
        // SAFETY: every x86_64 has SSE.
        Four(unsafe { std::arch::x86_64::_mm_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn times(self, x: f32) -> Four {
        // SAFETY: likewise.
        Four(unsafe { std::arch::x86_64::_mm_mul_ps(std::arch::x86_64::_mm_set1_ps(x), self.0) })
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed(rows: [Four; 4]) -> [Four; 4] {
    use std::arch::x86_64::{_mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
    let [a, b, c, d] = rows.map(|row| row.0);
    // SAFETY: every x86_64 has SSE.
    let columns = unsafe {
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_right, cd_right) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        [
            _mm_movelh_ps(ab, cd),
            _mm_movehl_ps(cd, ab),
            _mm_movelh_ps(ab_right, cd_right),
            _mm_movehl_ps(cd_right, ab_right),
        ]
    };
    columns.map(Four)
}

/// Four numbers.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
struct Four([f32; 4]);

#[cfg(not(target_arch = "x86_64"))]
impl Four {
    #[inline(always)]
    fn load(x: &[f32; 4]) -> Four {
        Four(*x)
    }

    #[inline(always)]
    fn store(self, out: &mut [f32; 4]) {
        *out = self.0;
    }

    #[inline(always)]
    fn plus(self, other: Four) -> Four {
        Four(std::array::from_fn(|l| self.0[l] + other.0[l]))
    }

    #[inline(always)]
    fn times(self, x: f32) -> Four {
        Four(self.0.map(|y| x * y))
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transposed(rows: [Four; 4]) -> [Four; 4] {
    std::array::from_fn(|k| Four(std::array::from_fn(|r| rows[r].0[k])))
}

struct Bilinear<'a, P> {
    input: View<'a, P>,
    out: ViewMut<'a, P>,
    part: [usize; 4],
    rows: &'a Axis,
    columns: &'a Axis,
    /// See `Lengths`.
    floats: &'a mut [f32],
}

/// The numbers that lie between the columns' turn and the result: how many of each kind.
struct Lengths {
    /// A row of the part's width, and 4 more for what is loaded with the last pixel.
    between: usize,
    /// A row of the result, and 4 more for what is stored with the last pixel.
    line: usize,
}

impl Lengths {
    fn new(width: usize, w: usize, c: usize) -> Lengths {
        Lengths { between: (width * c + 4).next_multiple_of(4), line: (w * c + 4).next_multiple_of(4) }
    }

    /// All that is needed. Of one channel, 4 rows are made at once: they lie first apart, then side by side.
    fn sum(&self, c: usize) -> usize {
        if c == 1 { 8 * self.between + 4 * self.line } else { self.between + self.line }
    }
}

impl<P: Pixel> Kernel for Bilinear<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Bilinear { input, out, part: [top, left, _, width], rows, columns, floats } = self;
        let (planes, c) = input.shape.planes();
        let row = input.shape.w * c;
        let (h, w) = (out.shape.h, out.shape.w);
        let lengths = Lengths::new(width, w, c);
        floats.fill(0.0);
        for plane in 0..planes {
            let source = &input.data[plane * input.shape.h * row + top * row..][..(input.shape.h - top) * row];
            let out = &mut out.data[plane * h * w * c..][..h * w * c];
            let source = &source[left * c..];
            if c > 1 {
                let (between, line) = floats.split_at_mut(lengths.between);
                for (y, out) in out.chunks_exact_mut(w * c).enumerate() {
                    let finite = down(source, row, rows.sum(y), &mut between[..width * c]);
                    along_channels(finite, between, columns, c, line);
                    narrow(line, out);
                }
                continue;
            }
            let (apart, rest) = floats.split_at_mut(4 * lengths.between);
            let (beside, line) = rest.split_at_mut(4 * lengths.between);
            for (group, out) in out.chunks_mut(4 * w).enumerate() {
                let mut all = true;
                for (r, between) in apart.chunks_exact_mut(lengths.between).enumerate().take(out.len() / w) {
                    all &= down(source, row, rows.sum(4 * group + r), &mut between[..width]);
                }
                interleave(apart, beside);
                along_channels(all, beside, columns, 4, line);
                separate(line, w, out);
            }
        }
    }
}

/// The sum of rows that begin `row` elements apart, and whether it is finite.
///
/// Whole rows are added, up to four at a time, as that is what compilers make good loops of.
#[inline(always)]
fn down<P: Pixel>(source: &[P], row: usize, sum: (usize, &[f32]), made: &mut [f32]) -> bool {
    let (start, weights) = sum;
    let source = |t: usize| &source[(start + t) * row..];
    let mut t = match *weights {
        [a] => add::<P, 1, true>([source(0)], [a], made),
        [a, b] => add::<P, 2, true>([source(0), source(1)], [a, b], made),
        [a, b, c] => add::<P, 3, true>([source(0), source(1), source(2)], [a, b, c], made),
        [a, b, c, d, ..] => add::<P, 4, true>([source(0), source(1), source(2), source(3)], [a, b, c, d], made),
        [] => 0,
    };
    while t < weights.len() {
        t += match weights[t..] {
            [a, b, c, d, ..] => {
                add::<P, 4, false>([source(t), source(t + 1), source(t + 2), source(t + 3)], [a, b, c, d], made)
            }
            [a, b, ..] => add::<P, 2, false>([source(t), source(t + 1)], [a, b], made),
            _ => add::<P, 1, false>([source(t)], [weights[t]], made),
        };
    }
    // Sums of bytes are.
    P::BYTE || made.iter().fold(true, |all, x| all & x.is_finite())
}

/// Adds `N` rows, one after the other, to nothing or to what is there, and gives `N`.
#[inline(always)]
fn add<P: Pixel, const N: usize, const FIRST: bool>(rows: [&[P]; N], weights: [f32; N], made: &mut [f32]) -> usize {
    let n = made.len();
    let rows = rows.map(|row| &row[..n]);
    for i in 0..n {
        let first = weights[0] * rows[0][i].widen();
        let mut sum = if FIRST { first } else { made[i] + first };
        for k in 1..N {
            sum += weights[k] * rows[k][i].widen();
        }
        made[i] = sum;
    }
    N
}

/// A sum as it is stored. Which zero a sum of zeros is would depend on how many of them were added, so it is made 0.
#[inline(always)]
fn stored<P: Pixel>(sum: f32) -> P {
    P::narrow(sum + 0.0)
}

#[inline(always)]
fn narrow<P: Pixel>(line: &[f32], out: &mut [P]) {
    for (out, &x) in out.iter_mut().zip(line) {
        *out = stored(x);
    }
}

/// Four rows, side by side.
#[inline(always)]
fn interleave(apart: &[f32], beside: &mut [f32]) {
    let length = apart.len() / 4;
    let (a, b, c, d) = (&apart[..length], &apart[length..], &apart[2 * length..], &apart[3 * length..]);
    let rows = [a, b, c, d].map(|row| row.as_chunks::<4>().0.iter());
    let [a, b, c, d] = rows;
    for ((((out, a), b), c), d) in beside.as_chunks_mut::<16>().0.iter_mut().zip(a).zip(b).zip(c).zip(d) {
        let columns = transposed([Four::load(a), Four::load(b), Four::load(c), Four::load(d)]);
        for (out, column) in out.as_chunks_mut::<4>().0.iter_mut().zip(columns) {
            column.store(out);
        }
    }
}

/// And apart: as many as `out` has.
#[inline(always)]
fn separate<P: Pixel>(line: &[f32], w: usize, out: &mut [P]) {
    for (group, pixels) in line.as_chunks::<16>().0.iter().enumerate().take(w.div_ceil(4)) {
        let pixels = pixels.as_chunks::<4>().0;
        let rows = transposed(std::array::from_fn(|i| Four::load(&pixels[i])));
        for (out, row) in out.chunks_exact_mut(w).zip(rows) {
            let mut four = [0.0; 4];
            row.store(&mut four);
            let out = &mut out[4 * group..];
            match out.first_chunk_mut() {
                Some(out) => *out = four.map(stored),
                None => narrow(&four, out),
            }
        }
    }
}

/// The sums along a row.
#[inline(always)]
fn along_channels(finite: bool, row: &[f32], axis: &Axis, c: usize, line: &mut [f32]) {
    if !finite {
        return along_exact(row, axis, c, line);
    }
    match (c, axis.taps) {
        (3, 2) => along::<3, 2>(row, axis, c, line),
        (3, 3) => along::<3, 3>(row, axis, c, line),
        (3, _) => along::<3, 0>(row, axis, c, line),
        (4, 2) => along::<4, 2>(row, axis, c, line),
        (4, 3) => along::<4, 3>(row, axis, c, line),
        (4, _) => along::<4, 0>(row, axis, c, line),
        (2, _) => along::<2, 0>(row, axis, c, line),
        _ => along::<0, 0>(row, axis, c, line),
    }
}

/// The sums along a row of finite numbers, 4 channels at a time: what is too many is overwritten by the next pixel.
/// `C` and `T` are the number of channels and of taps, or 0 for any.
#[inline(always)]
fn along<const C: usize, const T: usize>(row: &[f32], axis: &Axis, c: usize, line: &mut [f32]) {
    let c = if C == 0 { c } else { C };
    let taps = if T == 0 { axis.taps } else { T };
    assert!(row.len() >= axis.n * c + 4 && line.len() >= axis.starts.len() * c + 4 && axis.taps == taps);
    for (i, (&start, weights)) in axis.starts.iter().zip(axis.weights.chunks_exact(taps)).enumerate() {
        for k in (0..c).step_by(4) {
            // SAFETY: `start + taps <= n` by `Axis::new`, `k < c`, and 4 elements are left after the last pixel of
            // both.
            unsafe {
                let first = row.as_ptr().add(start * c + k);
                let mut sum = Four::load(&*first.cast()).times(weights[0]);
                for t in 1..taps {
                    sum = sum.plus(Four::load(&*first.add(t * c).cast()).times(weights[t]));
                }
                sum.store(&mut *line.as_mut_ptr().add(i * c + k).cast());
            }
        }
    }
}

/// The sums along a row of any numbers, without the pixels that are not in them.
#[inline(always)]
fn along_exact(row: &[f32], axis: &Axis, c: usize, line: &mut [f32]) {
    for i in 0..axis.starts.len() {
        let (start, weights) = axis.sum(i);
        for k in 0..c {
            let mut sum = weights[0] * row[start * c + k];
            for t in 1..weights.len() {
                sum += weights[t] * row[(start + t) * c + k];
            }
            line[i * c + k] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random.
    fn noise(n: usize, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 9) as u8
        };
        (0..n).map(|_| next()).collect()
    }

    fn op(part: [usize; 4], h: usize, w: usize, interpolation: f64, antialias: f64) -> Resize {
        let settings = [h as f64, w as f64, interpolation, antialias];
        let rows = part.map(|x| x as f64);
        Resize::new(Table { n: 1, columns: 4, rows: &rows, settings: &settings }, 3).unwrap()
    }

    fn run<P: Pixel>(op: &Resize, data: &[P], shape: Shape, isa: Isa) -> Vec<P> {
        let to = op.shape(0, shape).unwrap();
        // What was there before, in the result and in the workspace, must not be seen.
        let mut out = vec![P::narrow(77.0); to.len()];
        let mut work = Workspace::default();
        work.floats(100_000).fill(f32::NAN);
        op.make(0, View { data, shape }, ViewMut { data: &mut out, shape: to }, &mut work, isa);
        out
    }

    fn at(shape: Shape, y: usize, x: usize, k: usize) -> usize {
        if shape.planar { (k * shape.h + y) * shape.w + x } else { (y * shape.w + x) * shape.c + k }
    }

    /// The weight of each of `n` pixels for pixel `i` of `m`: the triangle in real numbers, and outside its edge the
    /// edge.
    fn triangle(i: usize, n: usize, m: usize, antialias: bool) -> Vec<f64> {
        let scale = n as f64 / m as f64;
        let support = if antialias && scale > 1.0 { scale } else { 1.0 };
        let middle = (i as f64 + 0.5) * scale;
        let weights: Vec<f64> = (0..n)
            .map(|j| {
                let away = ((j as f64 + 0.5 - middle) / support).abs();
                if away < 1.0 { 1.0 - away } else { 0.0 }
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    /// In `f64`, without any order.
    fn naive(op: &Resize, data: &[f64], shape: Shape) -> Vec<f64> {
        let to = op.shape(0, shape).unwrap();
        let [top, left, height, width] = op.parts[0];
        let mut out = vec![0.0; to.len()];
        for y in 0..to.h {
            for x in 0..to.w {
                for k in 0..to.c {
                    let pixel = |j: usize, i: usize| data[at(shape, top + j, left + i, k)];
                    out[at(to, y, x, k)] = if op.bilinear {
                        let columns = triangle(x, width, to.w, op.antialias);
                        let rows = triangle(y, height, to.h, op.antialias);
                        let mut sum = 0.0;
                        for (j, r) in rows.iter().enumerate() {
                            for (i, c) in columns.iter().enumerate() {
                                sum += r * c * pixel(j, i);
                            }
                        }
                        sum
                    } else {
                        let index =
                            |i: usize, n: usize, m: usize| ((i as f64 + 0.5) * n as f64 / m as f64 + 1e-12) as usize;
                        pixel(index(y, height, to.h), index(x, width, to.w))
                    };
                }
            }
        }
        out
    }

    #[test]
    fn it_is_the_naive_sum_on_each_instruction_set() {
        let cases = [
            // The picture, the part, and the result.
            ([1, 1], [0, 0, 1, 1], [1, 1]),
            ([1, 1], [0, 0, 1, 1], [5, 3]),
            ([3, 5], [0, 0, 3, 5], [1, 1]),
            ([7, 9], [1, 2, 4, 5], [4, 5]),
            ([7, 9], [1, 2, 5, 6], [5, 13]),
            ([7, 9], [2, 3, 5, 6], [8, 6]),
            ([13, 17], [0, 0, 13, 17], [19, 23]),
            ([23, 29], [1, 1, 21, 28], [16, 21]),
            ([40, 33], [0, 0, 40, 33], [7, 9]),
            ([31, 2], [0, 1, 31, 1], [64, 40]),
            ([20, 30], [3, 4, 10, 20], [10, 10]),
        ];
        for ([h, w], part, [to_h, to_w]) in cases {
            for (c, planar) in
                [(1, false), (2, false), (3, false), (4, false), (5, false), (7, false), (1, true), (3, true)]
            {
                let shape = Shape { h, w, c, planar };
                let bytes = noise(shape.len(), (h * w + c) as u32);
                let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0 - 0.25).collect();
                for (interpolation, antialias) in [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)] {
                    let op = op(part, to_h, to_w, interpolation, antialias);
                    let wide: Vec<f64> = bytes.iter().map(|&b| f64::from(b)).collect();
                    let want = naive(&op, &wide, shape);
                    let got = run(&op, &bytes, shape, Isa::BASELINE);
                    for (got, want) in got.iter().zip(&want) {
                        assert!(
                            (f64::from(*got) - want).abs() < 0.5001,
                            "{h} {w} {part:?} {to_h} {to_w} {c} {got} {want}"
                        );
                    }
                    let wide: Vec<f64> = floats.iter().map(|&x| f64::from(x)).collect();
                    let want = naive(&op, &wide, shape);
                    let same = run(&op, &floats, shape, Isa::BASELINE);
                    for (got, want) in same.iter().zip(&want) {
                        assert!(
                            (f64::from(*got) - want).abs() < 5e-7,
                            "{h} {w} {part:?} {to_h} {to_w} {c} {got} {want}"
                        );
                    }
                    for isa in Isa::available() {
                        assert_eq!(run(&op, &bytes, shape, isa), got);
                        let floats = run(&op, &floats, shape, isa);
                        assert!(floats.iter().zip(&same).all(|(a, b)| a.to_bits() == b.to_bits()));
                    }
                }
            }
        }
    }

    #[test]
    fn values_by_hand() {
        let shape = Shape { h: 1, w: 4, c: 1, planar: false };
        let x = [0f32, 4.0, 8.0, 16.0];
        let all = [0, 0, 1, 4];
        let cases: [(usize, f64, f64, &[f32]); 5] = [
            (8, 1.0, 0.0, &[0.0, 1.0, 3.0, 5.0, 7.0, 10.0, 14.0, 16.0]),
            (8, 1.0, 1.0, &[0.0, 1.0, 3.0, 5.0, 7.0, 10.0, 14.0, 16.0]),
            (2, 1.0, 0.0, &[2.0, 12.0]),
            // (3 * 0 + 3 * 4 + 8) / 7 and (4 + 3 * 8 + 3 * 16) / 7
            (2, 1.0, 1.0, &[20.0 / 7.0, 76.0 / 7.0]),
            (3, 0.0, 0.0, &[0.0, 8.0, 16.0]),
        ];
        for (w, interpolation, antialias, want) in cases {
            let got = run(&op(all, 1, w, interpolation, antialias), &x, shape, Isa::detect());
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 2e-6), "{got:?} {want:?}");
        }
    }

    #[test]
    fn an_infinity_stays_where_it_is_seen() {
        for (planar, c) in [(false, 1), (false, 3), (true, 3)] {
            let shape = Shape { h: 6, w: 20, c, planar };
            for (w, antialias) in [(31, 0.0), (15, 1.0), (7, 1.0)] {
                let op = op([0, 0, 6, 20], 4, w, 1.0, antialias);
                for (value, isa) in [(f32::INFINITY, Isa::BASELINE), (f32::NAN, Isa::detect())] {
                    let mut x = vec![0.5f32; shape.len()];
                    x[at(shape, 3, 10, c - 1)] = value;
                    let y = run(&op, &x, shape, isa);
                    for i in 0..w {
                        for j in 0..4 {
                            for k in 0..c {
                                let seen = triangle(i, 20, w, antialias == 1.0)[10] > 1e-9
                                    && triangle(j, 6, 4, antialias == 1.0)[3] > 1e-9
                                    && k == c - 1;
                                let got = y[at(shape.sized(4, w), j, i, k)];
                                assert_eq!(!got.is_finite(), seen);
                                assert!(!seen || got.to_bits() << 1 == value.to_bits() << 1);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_part_of_the_same_size_is_a_copy() {
        let shape = Shape { h: 5, w: 6, c: 3, planar: false };
        let x: Vec<f32> = (0..shape.len()).map(|i| if i % 7 == 0 { -0.0 } else { f32::INFINITY }).collect();
        for planar in [false, true] {
            let shape = Shape { planar, ..shape };
            for antialias in [0.0, 1.0] {
                let y = run(&op([0, 0, 5, 6], 5, 6, 1.0, antialias), &x, shape, Isa::detect());
                assert!(x.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    #[test]
    fn masks_take_the_nearest_pixel() {
        fn check<E: Copy + PartialEq + std::fmt::Debug + From<u8>>() {
            for (c, planar) in [(1, false), (3, false), (3, true), (5, false)] {
                let shape = Shape { h: 7, w: 11, c, planar };
                let bytes = noise(shape.len(), 5);
                let mask: Vec<E> = bytes.iter().map(|&b| E::from(b)).collect();
                for [h, w] in [[7, 11], [14, 5], [3, 22], [1, 1]] {
                    let nearest = op([1, 2, 5, 8], h, w, 0.0, 0.0);
                    let want: Vec<E> =
                        run(&nearest, &bytes, shape, Isa::BASELINE).iter().map(|&b| E::from(b)).collect();
                    let bilinear = op([1, 2, 5, 8], h, w, 1.0, 1.0);
                    let to = shape.sized(h, w);
                    let mut out = vec![E::from(0); to.len()];
                    let view = View { data: &mask, shape };
                    bilinear.mask(0, view, ViewMut { data: &mut out, shape: to }, E::from(0));
                    assert_eq!(out, want);
                }
            }
        }
        check::<u8>();
        check::<u32>();
        check::<u64>();
    }

    #[test]
    fn the_nearest_pixel_is_exact() {
        // (i + 0.5) * 3 / 15 is 1 for i = 4.5: in floating point some of these fall below a whole number.
        for (n, m) in [(3, 15), (49, 7), (1000, 3), (7, 49)] {
            let shape = Shape { h: 1, w: n, c: 1, planar: false };
            let x: Vec<f32> = (0..n).map(|j| j as f32).collect();
            let y = run(&op([0, 0, 1, n], 1, m, 0.0, 0.0), &x, shape, Isa::detect());
            let want: Vec<f32> = (0..m).map(|i| ((2 * i + 1) * n / (2 * m)) as f32).collect();
            assert_eq!(y, want);
        }
    }

    #[test]
    fn bytes_of_one_colour_keep_it() {
        let shape = Shape { h: 37, w: 41, c: 3, planar: false };
        for value in [0u8, 1, 127, 254, 255] {
            for antialias in [0.0, 1.0] {
                let op = op([0, 0, 37, 41], 29, 57, 1.0, antialias);
                assert!(run(&op, &vec![value; shape.len()], shape, Isa::detect()).iter().all(|&y| y == value));
            }
        }
    }

    #[test]
    fn nothing_of_nothing() {
        for (h, w) in [(0, 4), (4, 0), (0, 0)] {
            let shape = Shape { h: 3, w: 3, c: 3, planar: false };
            assert!(run(&op([0, 0, 3, 3], h, w, 1.0, 1.0), &[1u8; 27], shape, Isa::detect()).is_empty());
            let empty = shape.sized(h, w);
            assert!(run(&op([0, 0, h, w], h, w, 1.0, 1.0), &[0u8; 0], empty, Isa::detect()).is_empty());
            assert!(op([0, 0, h, w], 2, 2, 1.0, 1.0).shape(0, empty).unwrap_err().contains("must have a pixel"));
        }
        let none = Resize::new(Table { n: 0, columns: 4, rows: &[], settings: &[2.0, 2.0, 1.0, 1.0] }, 3);
        assert!(none.unwrap().parts.is_empty());
    }

    #[test]
    fn bad_numbers_are_named() {
        let new = |rows: &[f64], settings: &[f64]| {
            Resize::new(Table { n: 1, columns: rows.len(), rows, settings }, 3).map(|_| ()).unwrap_err()
        };
        let (good, set) = ([0.0, 0.0, 4.0, 4.0], [2.0, 2.0, 1.0, 0.0]);
        for bad in [-1.0, 0.5, f64::NAN, f64::INFINITY, 2e9] {
            for (i, name) in ["top", "left", "height", "width"].iter().enumerate() {
                let mut rows = good;
                rows[i] = bad;
                assert!(new(&rows, &set).contains(name));
            }
            for (i, name) in ["h", "w", "interpolation", "antialias"].iter().enumerate() {
                let mut settings = set;
                settings[i] = bad;
                assert!(new(&good, &settings).contains(name));
            }
        }
        assert!(new(&good, &set[..3]).contains("4 settings"));
        assert!(new(&good[..3], &set).contains("4 columns"));
        let shape = Shape { h: 5, w: 6, c: 1, planar: false };
        assert!(op([2, 0, 4, 6], 2, 2, 1.0, 0.0).shape(0, shape).unwrap_err().contains("inside the picture of 5 x 6"));
        assert!(op([0, 1, 5, 6], 2, 2, 1.0, 0.0).shape(0, shape).unwrap_err().contains("columns 1 to 7"));
    }
}
