//! Affine maps: rotation, scale, shear and translation in one.
//!
//! Pixel `(x, y)` of the result is what the picture has at `sx = a x + b y + c`, `sy = d x + e y + f`, in coordinates whose whole
//! numbers are the centres of pixels. Positions are whole numbers of steps of 2^-32: each coefficient is rounded once (to nearest
//! even), and everything after that is exact, so that a position depends on nothing but its map and its pixel, and whole
//! shifts and quarter turns move pixels as they are.
//!
//! **Nearest**: the pixel at `floor(sx + 1/2)`, `floor(sy + 1/2)`.
//!
//! **Bilinear**: of the four pixels around the position, `p00` at `(x0, y0) = (floor(sx), floor(sy))`, `p01` right of it, `p10` below
//! and `p11` below right, in `f32` and in this order:
//!
//! ```text
//! fx = floor(2^24 (sx - x0)) / 2^24        fy = floor(2^24 (sy - y0)) / 2^24
//! l = p00 + fy (p10 - p00)                 r = p01 + fy (p11 - p01)                 l + fx (r - l)
//! ```
//!
//! and a byte is then rounded to nearest even. A map whose six coefficients are whole is nearest: that is the same,
//! but for infinity, NaN and the sign of zero, which it moves as they are.
//!
//! Outside of the picture lies what its border says; with a constant one each of the four that is outside is the fill, which is a
//! pixel (rounded, of bytes).

use crate::image::crop::paint;
use crate::image::sample::{Border, Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use crate::simd::{Isa, Kernel, dispatch};

/// Bits of a position after the point.
const POINT: u32 = 32;
/// 1.
const ONE: i64 = 1 << POINT;
/// How far from the picture's corner a position may lie, and what a picture's sides are below.
const LIMIT: i64 = 1 << 30;

/// `a`, `b`, `c`, `d`, `e`, `f` in steps of 2^-32.
type Map = [i64; 6];

/// An affine map: columns `a`, `b`, `c`, `d`, `e`, `f`, settings `interpolation` (0 nearest, 1 bilinear), `border` and one `fill`
/// for each channel (in the picture's own unit: 0 .. 255 of bytes).
#[derive(Debug)]
pub struct Warp {
    maps: Vec<Map>,
    bilinear: bool,
    border: Border,
    fill: Vec<f32>,
}

impl Op for Warp {
    const NAME: &'static str = "warp";
    const EDITS: bool = false;
    const MOVES: bool = true;

    fn new(table: Table<'_>, channels: usize) -> Result<Self, String> {
        let Table { n, columns, settings, .. } = table;
        let &[interpolation, border, ref fill @ ..] = settings else {
            return Err(format!(
                "warp takes the settings interpolation, border and fills, got {} of them",
                settings.len()
            ));
        };
        if columns != 6 || fill.len() != channels {
            let fills = fill.len();
            let got = format!("got {columns} columns and {fills} fills");
            return Err(format!("warp takes 6 columns and one fill for each of {channels} channels, {got}"));
        }
        if interpolation != 0.0 && interpolation != 1.0 {
            return Err(format!("warp: interpolation must be 0 or 1, got {interpolation}"));
        }
        let map = |i: usize| {
            let mut map = [0; 6];
            for ((fixed, &x), name) in map.iter_mut().zip(table.row(i)).zip('a'..) {
                if x.is_nan() || x.abs() > LIMIT as f64 {
                    return Err(format!("warp: {name} of sample {i} must be a number from -2^30 to 2^30, got {x}"));
                }
                *fixed = libm::rint(x * ONE as f64) as i64;
            }
            Ok(map)
        };
        Ok(Warp {
            maps: (0..n).map(map).collect::<Result<_, String>>()?,
            bilinear: interpolation == 1.0,
            border: Border::of(border)
                .ok_or_else(|| format!("warp: border must be a whole number from 0 to 4, got {border}"))?,
            fill: fill.iter().map(|&x| x as f32).collect(),
        })
    }

    fn shape(&self, i: usize, input: Shape) -> Result<Shape, String> {
        let Shape { h, w, .. } = input;
        if h.max(w) >= LIMIT as usize {
            return Err(format!("warp: the sides of a picture must be below 2^30, got {h} x {w}"));
        }
        let [a, b, c, d, e, f] = self.maps[i].map(i128::from);
        for (name, [by_x, by_y, start]) in [("x", [a, b, c]), ("y", [d, e, f])] {
            // The largest and the smallest position are at corners.
            for x in [0, w.saturating_sub(1) as i128] {
                for y in [0, h.saturating_sub(1) as i128] {
                    let at = by_x * x + by_y * y + start;
                    if at.abs() > i128::from(LIMIT) << POINT {
                        let at = at as f64 / ONE as f64;
                        let what = format!("the map of sample {i} takes pixel ({x}, {y}) to {name} = {at}");
                        return Err(format!("warp: positions must be from -2^30 to 2^30, but {what}"));
                    }
                }
            }
        }
        Ok(input)
    }

    fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        let (map, border) = (self.maps[i], self.border);
        let fill = |k: usize| P::narrow(self.fill[k]);
        if self.bilinear && map.iter().any(|&x| x % ONE != 0) {
            dispatch(isa, Bilinear { input, out, map, border, fill });
        } else {
            dispatch(isa, Nearest { input, out, map, border, fill });
        }
    }

    fn mask<E: Copy>(&self, i: usize, input: View<'_, E>, out: ViewMut<'_, E>, fill: E) {
        let fill = |_: usize| fill;
        dispatch(Isa::current(), Nearest { input, out, map: self.maps[i], border: self.border, fill });
    }
}

/// The first pixel of row `y`: where it is. (It does not overflow, by `Warp::shape`.)
#[inline(always)]
fn row_start([_, b, c, _, e, f]: Map, y: usize) -> (i64, i64) {
    let y = y as i64;
    (b.wrapping_mul(y).wrapping_add(c), e.wrapping_mul(y).wrapping_add(f))
}

/// Of the numbers `start + i step` for `i < n`, those in `low .. high`: from which to which `i`.
#[inline(always)]
fn span(start: i64, step: i64, low: i64, high: i64, n: usize) -> [usize; 2] {
    if step < 0 {
        return span_up(-start, -step, 1 - high, 1 - low, n);
    }
    span_up(start, step, low, high, n)
}

#[inline(always)]
fn span_up(start: i64, step: i64, low: i64, high: i64, n: usize) -> [usize; 2] {
    if step == 0 {
        return if (low..high).contains(&start) { [0, n] } else { [0, 0] };
    }
    // The first that is not below.
    [low, high].map(|limit| (-(start - limit).div_euclid(step)).clamp(0, n as i64) as usize)
}

/// Which pixels of a row have `x` in `-margin .. w + margin` and `y` likewise, after `less` from the upper ends: from which to which.
#[inline(always)]
fn inside(map: Map, (sx, sy): (i64, i64), w: [i64; 2], h: [i64; 2], n: usize) -> [usize; 2] {
    let x = span(sx, map[0], w[0] << POINT, w[1] << POINT, n);
    let y = span(sy, map[3], h[0] << POINT, h[1] << POINT, n);
    let start = x[0].max(y[0]);
    [start, x[1].min(y[1]).max(start)]
}

struct Nearest<'a, E, F> {
    input: View<'a, E>,
    out: ViewMut<'a, E>,
    map: Map,
    border: Border,
    fill: F,
}

impl<E: Copy, F: Fn(usize) -> E> Kernel for Nearest<'_, E, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Nearest { input, out, map, border, fill } = self;
        let Shape { h, w, .. } = input.shape;
        if input.shape.is_empty() {
            return;
        }
        let (planes, c) = input.shape.planes();
        for y in 0..h {
            // Half a pixel further, the pixel is the whole part.
            let (sx, sy) = row_start(map, y);
            let at = (sx.wrapping_add(ONE / 2), sy.wrapping_add(ONE / 2));
            let [start, end] = inside(map, at, [0, w as i64], [0, h as i64], w);
            for plane in 0..planes {
                let from = &input.data[plane * h * w * c..][..h * w * c];
                let to = &mut out.data[(plane * h + y) * w * c..][..w * c];
                let fill = |k: usize| fill(plane + k);
                nearest_edges(from, to, 0..start, (map, at), border, [h, w, c], fill);
                let inner = &mut to[start * c..end * c];
                match c {
                    1 => nearest::<E, 1>(from, inner, (map, at), start, w),
                    2 => nearest::<E, 2>(from, inner, (map, at), start, w),
                    3 => nearest::<E, 3>(from, inner, (map, at), start, w),
                    4 => nearest::<E, 4>(from, inner, (map, at), start, w),
                    _ => {
                        for (x, to) in (start..end).zip(inner.chunks_exact_mut(c)) {
                            let (u, v) = position(map, at, x);
                            let pixel = (v >> POINT) as usize * w + (u >> POINT) as usize;
                            to.copy_from_slice(&from[pixel * c..][..c]);
                        }
                    }
                }
                nearest_edges(from, to, end..w, (map, at), border, [h, w, c], fill);
            }
        }
    }
}

/// Where pixel `x` of the row is.
#[inline(always)]
fn position(map: Map, (sx, sy): (i64, i64), x: usize) -> (i64, i64) {
    let x = x as i64;
    (sx.wrapping_add(map[0].wrapping_mul(x)), sy.wrapping_add(map[3].wrapping_mul(x)))
}

/// Pixels from `start` on, all inside.
#[inline(always)]
fn nearest<E: Copy, const C: usize>(from: &[E], to: &mut [E], (map, at): (Map, (i64, i64)), start: usize, w: usize) {
    let (from, to) = (from.as_chunks::<C>().0, to.as_chunks_mut::<C>().0);
    let (mut u, mut v) = position(map, at, start);
    if map[0] == ONE && map[3] == 0 && !to.is_empty() {
        to.copy_from_slice(&from[(v >> POINT) as usize * w + (u >> POINT) as usize..][..to.len()]);
        return;
    }
    for to in to {
        *to = from[(v >> POINT) as usize * w + (u >> POINT) as usize];
        u = u.wrapping_add(map[0]);
        v = v.wrapping_add(map[3]);
    }
}

/// The nearest pixels, some of which may be outside.
#[inline(always)]
fn nearest_edges<E: Copy>(
    from: &[E],
    to: &mut [E],
    range: std::ops::Range<usize>,
    (map, at): (Map, (i64, i64)),
    border: Border,
    [h, w, c]: [usize; 3],
    fill: impl Fn(usize) -> E,
) {
    if border == Border::Constant {
        paint(&mut to[range.start * c..range.end * c], c, fill);
        return;
    }
    for x in range {
        let (u, v) = position(map, at, x);
        let (u, v) = (border.index(u >> POINT, w), border.index(v >> POINT, h));
        if let (Some(u), Some(v)) = (u, v) {
            for k in 0..c {
                to[x * c + k] = from[(v * w + u) * c + k];
            }
        }
    }
}

struct Bilinear<'a, P, F> {
    input: View<'a, P>,
    out: ViewMut<'a, P>,
    map: Map,
    border: Border,
    fill: F,
}

/// The weight of the pixel that is right (or below).
#[inline(always)]
fn fraction(position: i64) -> f32 {
    ((position as u32 >> 8) as i32) as f32 * (1.0 / 16_777_216.0)
}

#[inline(always)]
fn lerp(p00: f32, p01: f32, p10: f32, p11: f32, fx: f32, fy: f32) -> f32 {
    let l = p00 + fy * (p10 - p00);
    let r = p01 + fy * (p11 - p01);
    l + fx * (r - l)
}

impl<P: Pixel, F: Fn(usize) -> P> Kernel for Bilinear<'_, P, F> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        if self.input.shape.is_empty() {
            return;
        }
        // Four channels are computed together; of three, the fourth is what comes next in memory, and is overwritten.
        match self.input.shape.planes().1 {
            1 => self.rows::<1>(),
            2 => self.rows::<2>(),
            _ => self.rows::<4>(),
        }
    }
}

impl<P: Pixel, F: Fn(usize) -> P> Bilinear<'_, P, F> {
    /// All rows, `L` channels at a time.
    #[inline(always)]
    fn rows<const L: usize>(self) {
        let Bilinear { input, out, map, border, fill } = self;
        let Shape { h, w, .. } = input.shape;
        let (planes, c) = input.shape.planes();
        let mut strip = Strip::<P, L>::default();
        for y in 0..h {
            let at = row_start(map, y);
            // Pixels of which some of the four are inside, and pixels of which all are.
            let [first, last] = match border {
                Border::Constant => inside(map, at, [-1, w as i64], [-1, h as i64], w),
                _ => [0, w],
            };
            let [start, end] = inside(map, at, [0, w as i64 - 1], [0, h as i64 - 1], w);
            let [start, end] = if start < end { [start, end] } else { [last, last] };
            // From left to right, because a pixel may spoil the first element of the next one.
            for plane in 0..planes {
                paint(&mut out.data[(plane * h + y) * w * c..][..first * c], c, |k| fill(plane + k));
            }
            edges(input, &mut *out.data, y, [first, start], (map, at), border, &fill);
            for x in (start..end).step_by(STRIP) {
                let n = STRIP.min(end - x);
                strip.place((map, position(map, at, x)), w);
                for plane in 0..planes {
                    let data = &input.data[plane * h * w * c..][..h * w * c];
                    let to = &mut out.data[((plane * h + y) * w + x) * c..(plane + 1) * h * w * c];
                    for k in (0..c).step_by(L) {
                        strip.read(data, n, k, [w, c]);
                        strip.interpolate(n);
                        strip.write(to, n, k, c);
                    }
                }
            }
            edges(input, &mut *out.data, y, [end, last], (map, at), border, &fill);
            for plane in 0..planes {
                let row = &mut out.data[(plane * h + y) * w * c..][..w * c];
                paint(&mut row[last * c..], c, |k| fill(plane + k));
            }
        }
    }
}

/// Pixels of row `y`, of which some of the four may be outside.
#[inline(always)]
fn edges<P: Pixel>(
    input: View<'_, P>,
    out: &mut [P],
    y: usize,
    [start, end]: [usize; 2],
    (map, at): (Map, (i64, i64)),
    border: Border,
    fill: &impl Fn(usize) -> P,
) {
    let Shape { h, w, .. } = input.shape;
    let (planes, c) = input.shape.planes();
    for x in start..end {
        let (u, v) = position(map, at, x);
        let (x0, y0) = (u >> POINT, v >> POINT);
        let (left, right) = (border.index(x0, w), border.index(x0 + 1, w));
        let (above, below) = (border.index(y0, h), border.index(y0 + 1, h));
        for plane in 0..planes {
            for k in 0..c {
                let tap = |y: Option<usize>, x: Option<usize>| match (y, x) {
                    (Some(y), Some(x)) => input.data[((plane * h + y) * w + x) * c + k].widen(),
                    _ => fill(plane + k).widen(),
                };
                let (p00, p01, p10, p11) = (tap(above, left), tap(above, right), tap(below, left), tap(below, right));
                let value = lerp(p00, p01, p10, p11, fraction(u), fraction(v));
                out[((plane * h + y) * w + x) * c + k] = P::narrow(value);
            }
        }
    }
}

/// Pixels that are computed together.
const STRIP: usize = 32;
/// Elements that are interpolated together.
const LANES: usize = 16;

/// Some pixels in a row, of all of which the four are inside, `L` channels of them. First all positions, then all that is read,
/// then the arithmetic: each of these is a plain loop.
struct Strip<P, const L: usize> {
    /// Which pixel is `p00`.
    pixels: [u64; STRIP],
    fx: [[f32; L]; STRIP],
    fy: [[f32; L]; STRIP],
    /// `p00`, `p01`, `p10`, `p11`.
    taps: [[[P; L]; STRIP]; 4],
    values: [[P; L]; STRIP],
}

impl<P: Pixel, const L: usize> Default for Strip<P, L> {
    fn default() -> Self {
        let (weights, elements) = ([[0.0; L]; STRIP], [[P::default(); L]; STRIP]);
        Strip { pixels: [0; STRIP], fx: weights, fy: weights, taps: [elements; 4], values: elements }
    }
}

impl<P: Pixel, const L: usize> Strip<P, L> {
    /// The positions, from the first one on.
    #[inline(always)]
    fn place(&mut self, (map, at): (Map, (i64, i64)), w: usize) {
        let (mut u, mut v) = at;
        for i in 0..STRIP {
            // Both are below 2^32 where they count.
            self.pixels[i] = (v as u64 >> POINT).wrapping_mul(w as u64).wrapping_add(u as u64 >> POINT);
            self.fx[i] = [fraction(u); L];
            self.fy[i] = [fraction(v); L];
            u = u.wrapping_add(map[0]);
            v = v.wrapping_add(map[3]);
        }
    }

    /// Channels from `k` on of `n` pixels.
    #[inline(always)]
    fn read(&mut self, data: &[P], n: usize, k: usize, [w, c]: [usize; 2]) {
        let [p00, p01, p10, p11] = &mut self.taps;
        for i in 0..n {
            let upper = self.pixels[i] as usize * c + k;
            let lower = upper + w * c;
            // The last of the four is the last in memory.
            if let Some(last) = data.get(lower + c..lower + c + L) {
                p00[i].copy_from_slice(&data[upper..upper + L]);
                p01[i].copy_from_slice(&data[upper + c..upper + c + L]);
                p10[i].copy_from_slice(&data[lower..lower + L]);
                p11[i].copy_from_slice(last);
            } else {
                for l in 0..L.min(c - k) {
                    p00[i][l] = data[upper + l];
                    p01[i][l] = data[upper + c + l];
                    p10[i][l] = data[lower + l];
                    p11[i][l] = data[lower + c + l];
                }
            }
        }
    }

    #[inline(always)]
    fn interpolate(&mut self, n: usize) {
        let [p00, p01, p10, p11] = self.taps.each_ref().map(|taps| taps.as_flattened().as_chunks::<LANES>().0);
        let [fx, fy] = [&self.fx, &self.fy].map(|weights| weights.as_flattened().as_chunks::<LANES>().0);
        let values = self.values.as_flattened_mut().as_chunks_mut::<LANES>().0;
        for i in 0..(n * L).div_ceil(LANES) {
            let mut block = [P::default(); LANES];
            for j in 0..LANES {
                let [p00, p01, p10, p11] = [p00[i][j], p01[i][j], p10[i][j], p11[i][j]].map(P::widen);
                block[j] = P::narrow(lerp(p00, p01, p10, p11, fx[i][j], fy[i][j]));
            }
            values[i] = block;
        }
    }

    /// Channels from `k` on of `n` pixels.
    #[inline(always)]
    fn write(&self, to: &mut [P], n: usize, k: usize, c: usize) {
        for i in 0..n {
            let to = &mut to[i * c + k..];
            match to.first_chunk_mut::<L>() {
                // A last group of fewer channels must leave the first ones of the next pixel as they are, but if it is the only one.
                Some(to) if k == 0 || k + L <= c => *to = self.values[i],
                _ => {
                    let count = L.min(c - k);
                    to[..count].copy_from_slice(&self.values[i][..count]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::flip::Turn;
    use std::fmt::Debug;

    const FILL: [f64; 6] = [7.0, 255.0, 0.0, 31.5, 64.0, 99.0];

    fn at(shape: Shape, y: usize, x: usize, k: usize) -> usize {
        let (channel, pixel) = shape.strides();
        (y * shape.w + x) * pixel + k * channel
    }

    /// A rotation with scale about the middle of the picture, and a shift.
    fn rotation(shape: Shape, degrees: f64, scale: f64, shift: f64) -> [f64; 6] {
        let (sin, cos) = libm::sincos(degrees.to_radians());
        let (x, y) = ((shape.w as f64 - 1.0) / 2.0, (shape.h as f64 - 1.0) / 2.0);
        let [a, b, d, e] = [cos * scale, -sin * scale, sin * scale, cos * scale];
        [a, b, x - a * x - b * y + shift, d, e, y - d * x - e * y - shift]
    }

    fn maps(shape: Shape) -> Vec<[f64; 6]> {
        vec![
            [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            [1.0, 0.0, 2.0, 0.0, 1.0, -1.0],
            [1.0, 0.0, 0.25, 0.0, 1.0, -0.75],
            [1.0, 0.0, -0.5, 0.0, 1.0, 0.5],
            [-1.0, 0.0, shape.w as f64 - 1.0, 0.0, -1.0, shape.h as f64 - 1.0],
            rotation(shape, 15.0, 1.0, 0.0),
            rotation(shape, -15.0, 1.0, 0.3),
            rotation(shape, 77.0, 0.7, -1.25),
            rotation(shape, 200.0, 3.0, 5.0),
            [1.0, 0.3, -1.0, 0.0, 1.0, 0.0],
            [0.3, 0.0, 0.0, 0.0, 0.2, 0.1],
            [1e-10, 0.0, 0.5, 1e-9, 0.0, 0.5],
            [0.0, 0.0, -0.25, 0.0, 0.0, 0.0],
            [1e3, -7e2, 10.5, 3e2, 5e5, -1e6],
            [1.0, 0.0, -1e9, 0.0, 1.0, 1e9 + 0.5],
        ]
    }

    fn new(maps: &[[f64; 6]], bilinear: bool, border: usize, channels: usize) -> Warp {
        let settings = [&[f64::from(bilinear), border as f64], &FILL[..channels]].concat();
        let table = Table { n: maps.len(), columns: 6, rows: maps.as_flattened(), settings: &settings };
        Warp::new(table, channels).unwrap()
    }

    /// Where pixel (x, y) is, without any bound.
    fn place(map: &[f64; 6], x: usize, y: usize) -> [i128; 2] {
        let [a, b, c, d, e, f] = map.map(|x| libm::rint(x * 4_294_967_296.0) as i128);
        let (x, y) = (x as i128, y as i128);
        [a * x + b * y + c, d * x + e * y + f]
    }

    fn naive_nearest<E: Copy>(input: &[E], shape: Shape, map: &[f64; 6], border: Border, fill: &[E]) -> Vec<E> {
        let mut out = input.to_vec();
        for y in 0..shape.h {
            for x in 0..shape.w {
                let [u, v] = place(map, x, y).map(|at| (at + (1 << 31)).div_euclid(1 << 32) as i64);
                for k in 0..shape.c {
                    out[at(shape, y, x, k)] = match (border.index(v, shape.h), border.index(u, shape.w)) {
                        (Some(v), Some(u)) => input[at(shape, v, u, k)],
                        _ => fill[k],
                    };
                }
            }
        }
        out
    }

    fn naive_bilinear<P: Pixel>(input: &[P], shape: Shape, map: &[f64; 6], border: Border, fill: &[P]) -> Vec<P> {
        let mut out = input.to_vec();
        for y in 0..shape.h {
            for x in 0..shape.w {
                let position = place(map, x, y);
                let [u, v] = position.map(|at| at.div_euclid(1 << 32) as i64);
                let [fx, fy] = position.map(|at| (at.rem_euclid(1 << 32) / 256) as f32 / 16_777_216.0);
                for k in 0..shape.c {
                    let tap = |v: i64, u: i64| match (border.index(v, shape.h), border.index(u, shape.w)) {
                        (Some(v), Some(u)) => input[at(shape, v, u, k)].widen(),
                        _ => fill[k].widen(),
                    };
                    let l = tap(v, u) + fy * (tap(v + 1, u) - tap(v, u));
                    let r = tap(v, u + 1) + fy * (tap(v + 1, u + 1) - tap(v, u + 1));
                    out[at(shape, y, x, k)] = P::narrow(l + fx * (r - l));
                }
            }
        }
        out
    }

    fn shapes() -> impl Iterator<Item = Shape> {
        let sizes = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (17, 9), (34, 71)];
        sizes
            .into_iter()
            .flat_map(|(h, w)| (1..7).flat_map(move |c| [false, true].map(|planar| Shape { h, w, c, planar })))
    }

    fn elements<E>(shape: Shape, of: impl Fn(u32) -> E) -> Vec<E> {
        (0..shape.len() as u32).map(|i| of((i + 1).wrapping_mul(2_654_435_761) >> 7)).collect()
    }

    fn borders() -> impl Iterator<Item = (usize, Border)> {
        (0..5).map(|k| (k, Border::of(k as f64).unwrap()))
    }

    fn pictures<P: Pixel + Debug>(of: impl Fn(u32) -> P) {
        for shape in shapes() {
            let data = elements(shape, &of);
            let maps = maps(shape);
            let fill: Vec<P> = FILL[..shape.c].iter().map(|&x| P::narrow(x as f32)).collect();
            for (number, border) in borders() {
                for bilinear in [false, true] {
                    let warp = new(&maps, bilinear, number, shape.c);
                    for (i, map) in maps.iter().enumerate() {
                        let want = match bilinear {
                            false => naive_nearest(&data, shape, map, border, &fill),
                            true => naive_bilinear(&data, shape, map, border, &fill),
                        };
                        assert_eq!(warp.shape(i, shape), Ok(shape));
                        for isa in Isa::available() {
                            let mut out = vec![of(1); shape.len()];
                            let (input, view) = (View { data: &data, shape }, ViewMut { data: &mut out, shape });
                            warp.make(i, input, view, &mut Workspace::default(), isa);
                            assert!(out == want, "{i} bilinear {bilinear} {border:?} {shape:?} {isa}");
                        }
                    }
                }
            }
        }
    }

    fn masks<E: Copy + PartialEq + Debug>(of: impl Fn(u32) -> E) {
        for shape in shapes() {
            let data = elements(shape, &of);
            let maps = maps(shape);
            for (number, border) in borders() {
                // Nearest, whatever the picture's interpolation, and with any number of channels.
                let warp = new(&maps, true, number, 2);
                for (i, map) in maps.iter().enumerate() {
                    let mut out = vec![of(1); shape.len()];
                    warp.mask(i, View { data: &data, shape }, ViewMut { data: &mut out, shape }, of(99));
                    let want = naive_nearest(&data, shape, map, border, &[of(99); 6]);
                    assert!(out == want, "{i} {border:?} {shape:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_warped_as_by_the_equations() {
        pictures(|i| i as u8);
    }

    #[test]
    fn floats_are_warped_as_by_the_equations() {
        pictures(|i| (i % 1000) as f32 * 0.37 - 100.0);
    }

    #[test]
    fn masks_take_the_nearest_pixel() {
        masks(|i| i as u8);
        masks(|i| i as u16);
        masks(|i| i);
        masks(|i| u64::from(i) << 20);
    }

    #[test]
    fn a_plane_stays_a_plane() {
        // Bilinear interpolation is exact for x, y -> 2 x - 3 y: what comes out is the position itself.
        let shape = Shape { h: 50, w: 60, c: 1, planar: false };
        let data: Vec<f32> = (0..3000).map(|i| 2.0 * (i % 60) as f32 - 3.0 * (i / 60) as f32).collect();
        let map = rotation(shape, 33.0, 0.5, 0.1);
        let mut out = vec![0.0; 3000];
        let view = ViewMut { data: &mut out, shape };
        new(&[map], true, 1, 1).make(0, View { data: &data, shape }, view, &mut Workspace::default(), Isa::detect());
        for (i, out) in out.into_iter().enumerate() {
            let (x, y) = ((i % 60) as f64, (i / 60) as f64);
            let [a, b, c, d, e, f] = map;
            let want = 2.0 * (a * x + b * y + c) - 3.0 * (d * x + e * y + f);
            assert!((f64::from(out) - want).abs() < 5e-5, "{x} {y}: {out} {want}");
        }
    }

    #[test]
    fn quarter_turns_are_exact() {
        let shape = Shape { h: 37, w: 37, c: 3, planar: false };
        let mut data = elements(shape, |i| i as f32);
        data[5] = f32::NAN;
        data[77] = f32::INFINITY;
        data[800] = -0.0;
        let side = 36.0;
        let maps = [
            [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
            [0.0, -1.0, side, 1.0, 0.0, 0.0],
            [-1.0, 0.0, side, 0.0, -1.0, side],
            [0.0, 1.0, 0.0, -1.0, 0.0, side],
        ];
        let turn = Turn::new(Table { n: 4, columns: 1, rows: &[0.0, 1.0, 2.0, 3.0], settings: &[] }, 3).unwrap();
        let warp = new(&maps, true, 0, 3);
        for i in 0..4 {
            let (mut a, mut b) = (data.clone(), data.clone());
            let mut work = Workspace::default();
            let input = View { data: &data, shape };
            warp.make(i, input, ViewMut { data: &mut a, shape }, &mut work, Isa::detect());
            turn.make(i, input, ViewMut { data: &mut b, shape }, &mut work, Isa::detect());
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "{i}");
        }
    }

    #[test]
    fn an_empty_picture_stays_empty() {
        for (h, w, c) in [(0, 3, 3), (3, 0, 3), (0, 0, 1), (2, 2, 0)] {
            for planar in [false, true] {
                let shape = Shape { h, w, c, planar };
                for (number, _) in borders() {
                    for bilinear in [false, true] {
                        let warp = new(&maps(shape), bilinear, number, c);
                        assert_eq!(warp.shape(5, shape), Ok(shape));
                        let (input, out) = (View { data: &[0u8; 0], shape }, ViewMut { data: &mut [], shape });
                        warp.make(5, input, out, &mut Workspace::default(), Isa::detect());
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_numbers_are_named() {
        let new =
            |rows: &[f64], settings: &[f64]| Warp::new(Table { n: rows.len() / 6, columns: 6, rows, settings }, 1);
        for x in [f64::NAN, f64::INFINITY, -1.1e10] {
            let error = new(&[0.0, 0.0, 0.0, 0.0, x, 0.0], &[1.0, 0.0, 0.0]).unwrap_err();
            assert_eq!(error, format!("warp: e of sample 0 must be a number from -2^30 to 2^30, got {x}"));
        }
        for x in [0.5, 5.0, -1.0, f64::NAN] {
            assert!(new(&[], &[x, 0.0, 0.0]).unwrap_err().contains(&format!("interpolation must be 0 or 1, got {x}")));
            assert!(new(&[], &[0.0, x, 0.0]).unwrap_err().contains("border must be a whole number from 0 to 4"));
        }
        assert!(new(&[], &[0.0, 0.0]).unwrap_err().contains("one fill for each of 1 channels, got 6 columns and 0"));
        assert!(new(&[], &[0.0]).unwrap_err().contains("got 1 of them"));
        let shape = Shape { h: 100, w: 100, c: 1, planar: false };
        let far = new(&[0.0, 0.0, 0.0, 0.0, 2e7, 0.0], &[1.0, 0.0, 0.0]).unwrap();
        let error =
            "warp: positions must be from -2^30 to 2^30, but the map of sample 0 takes pixel (0, 99) to y = 1980000000";
        assert_eq!(far.shape(0, shape).unwrap_err(), error);
        assert!(far.shape(0, shape.sized(1 << 30, 1)).unwrap_err().contains("below 2^30"));
        let limit = f64::from(1 << 30);
        let edge = new(&[0.0, 0.0, limit, 0.0, 0.0, -limit], &[1.0, 2.0, 0.0]).unwrap();
        assert!(edge.shape(0, shape).is_ok());
        let mut out = vec![1u8; 10_000];
        let view = ViewMut { data: &mut out, shape };
        edge.make(0, View { data: &vec![3; 10_000], shape }, view, &mut Workspace::default(), Isa::detect());
        assert!(out.iter().all(|&x| x == 3));
    }
}
