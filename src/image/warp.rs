//! Affine maps: rotation, scale, shear and translation in one.
//!
//! Pixel `(x, y)` of the result is what the picture has at `sx = a x + b y + c`, `sy = d x + e y + f`, in coordinates
//! whose whole numbers are the centres of pixels. Positions are whole numbers of steps of 2^-32: each coefficient is
//! rounded once (to nearest even), and everything after that is exact, so that a position depends on nothing but its
//! map and its pixel, and whole shifts and quarter turns move pixels as they are.
//!
//! **Nearest**: the pixel at `floor(sx + 1/2)`, `floor(sy + 1/2)`.
//!
//! **Bilinear**: of the four pixels around the position, `p00` at `(x0, y0) = (floor(sx), floor(sy))`, `p01` right of
//! it, `p10` below and `p11` below right, in `f32` and in this order:
//!
//! ```text
//! fx = floor(2^24 (sx - x0)) / 2^24        fy = floor(2^24 (sy - y0)) / 2^24
//! l = p00 + fy (p10 - p00)                 r = p01 + fy (p11 - p01)                 l + fx (r - l)
//! ```
//!
//! and a byte is then rounded to nearest even. A map whose six coefficients are whole is nearest: that is the same,
//! but for infinity, NaN and the sign of zero, which it moves as they are.
//!
//! Outside of the picture lies what its border says; with a constant one each of the four that is outside is the fill,
//! which is a pixel (rounded, of bytes).

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

/// An affine map: columns `a`, `b`, `c`, `d`, `e`, `f`, settings `interpolation` (0 nearest, 1 bilinear), `border` and
/// one `fill` for each channel (in the picture's own unit: 0 .. 255 of bytes).
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
    // The first that is not below, as -floor(-x) = ceil(x).
    let first = |limit: i64| (-(start - limit).div_euclid(step)).clamp(0, n as i64) as usize;
    [first(low), first(high)]
}

/// From which to which pixel of a row `x` is in the range `w` of pixels, and `y` in the range `h`.
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

/// [`Border::index`], but without a division where that is not far outside.
#[inline(always)]
fn index(border: Border, i: i64, n: usize) -> Option<usize> {
    let (last, size) = (n as i64 - 1, n as i64);
    if (0..size).contains(&i) {
        return Some(i as usize);
    }
    let near = match (border, i < 0) {
        (Border::Constant, _) => return None,
        (Border::Edge, _) => i.clamp(0, last),
        (Border::Reflect, true) => -i,
        (Border::Reflect, false) => 2 * last - i,
        (Border::Symmetric, true) => -1 - i,
        (Border::Symmetric, false) => 2 * last + 1 - i,
        (Border::Wrap, true) => i + size,
        (Border::Wrap, false) => i - size,
    };
    if (0..size).contains(&near) { Some(near as usize) } else { border.index(i, n) }
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
        let (u, v) = (index(border, u >> POINT, w), index(border, v >> POINT, h));
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
        // Four channels are computed together; where there are fewer, the others are what comes next in memory, and are
        // overwritten.
        match self.input.shape.planes().1 {
            1 => self.rows::<1, 1>(),
            3 => self.rows::<3, 4>(),
            _ => self.rows::<0, 4>(),
        }
    }
}

impl<P: Pixel, F: Fn(usize) -> P> Bilinear<'_, P, F> {
    /// All rows, of pixels of `C` channels (0: of any number), `L` of them at a time.
    #[inline(always)]
    fn rows<const C: usize, const L: usize>(self) {
        let Bilinear { input, out, map, border, fill } = self;
        let Shape { h, w, .. } = input.shape;
        let (planes, c) = input.shape.planes();
        let c = if C == 0 { c } else { C };
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
            for (from, to, whole) in [(first, start, false), (start, end, true), (end, last, false)] {
                for x in (from..to).step_by(STRIP) {
                    let (n, at) = (STRIP.min(to - x), position(map, at, x));
                    strip.place((map, at), n, w);
                    if !whole {
                        strip.look_around((map, at), n, border, [h, w]);
                    }
                    for plane in 0..planes {
                        let data = &input.data[plane * h * w * c..][..h * w * c];
                        let to = &mut out.data[((plane * h + y) * w + x) * c..(plane + 1) * h * w * c];
                        for k in (0..c).step_by(L) {
                            if whole {
                                strip.read(data, n, k, [w, c]);
                            } else {
                                strip.read_around(data, n, k, c, |k| fill(plane + k));
                            }
                            strip.interpolate(n);
                            strip.write(to, n, k, c);
                        }
                    }
                }
            }
            for plane in 0..planes {
                let row = &mut out.data[(plane * h + y) * w * c..][..w * c];
                paint(&mut row[last * c..], c, |k| fill(plane + k));
            }
        }
    }
}

/// Pixels that are computed together.
const STRIP: usize = 32;
/// In place of a pixel's number.
const FILL: usize = usize::MAX;
/// Elements that are interpolated together.
const LANES: usize = 16;

/// Some pixels in a row, `L` channels of them. First all positions, then all that is read, then the arithmetic: each of
/// these is a plain loop.
struct Strip<P, const L: usize> {
    /// Which pixel is `p00`.
    pixels: [u64; STRIP],
    /// The largest of these that count.
    last: usize,
    fx: [[f32; L]; STRIP],
    fy: [[f32; L]; STRIP],
    /// `p00`, `p01`, `p10`, `p11`.
    taps: [[[P; L]; STRIP]; 4],
    /// Which pixels these are, where some may be outside; [`FILL`] for the fill.
    around: [[usize; 4]; STRIP],
    values: [[P; L]; STRIP],
}

impl<P: Pixel, const L: usize> Default for Strip<P, L> {
    fn default() -> Self {
        let (weights, elements) = ([[0.0; L]; STRIP], [[P::default(); L]; STRIP]);
        Strip {
            pixels: [0; STRIP],
            last: 0,
            fx: weights,
            fy: weights,
            taps: [elements; 4],
            around: [[0; 4]; STRIP],
            values: elements,
        }
    }
}

impl<P: Pixel, const L: usize> Strip<P, L> {
    /// The positions, from the first one on, of which `n` count.
    #[inline(always)]
    fn place(&mut self, (map, at): (Map, (i64, i64)), n: usize, w: usize) {
        let (mut u, mut v) = at;
        for i in 0..n.next_multiple_of(8) {
            // Both are below 2^32 where they count.
            self.pixels[i] = (v as u64 >> POINT).wrapping_mul(w as u64).wrapping_add(u as u64 >> POINT);
            self.fx[i] = [fraction(u); L];
            self.fy[i] = [fraction(v); L];
            u = u.wrapping_add(map[0]);
            v = v.wrapping_add(map[3]);
        }
        let larger = |last: u64, &pixel: &u64| if pixel > last { pixel } else { last };
        self.last = self.pixels[..n].iter().fold(0, larger) as usize;
    }

    /// Which pixels are around `n` positions.
    #[inline(always)]
    fn look_around(&mut self, (map, at): (Map, (i64, i64)), n: usize, border: Border, [h, w]: [usize; 2]) {
        for i in 0..n {
            let (u, v) = position(map, at, i);
            let (u, v) = (u >> POINT, v >> POINT);
            let (left, right) = (index(border, u, w), index(border, u + 1, w));
            let (above, below) = (index(border, v, h), index(border, v + 1, h));
            let pixels = [(above, left), (above, right), (below, left), (below, right)];
            self.around[i] = pixels.map(|(y, x)| if let (Some(y), Some(x)) = (y, x) { y * w + x } else { FILL });
        }
    }

    /// Channels from `k` on of the pixels that are around `n` positions.
    #[inline(always)]
    fn read_around(&mut self, data: &[P], n: usize, k: usize, c: usize, fill: impl Fn(usize) -> P) {
        let count = L.min(c - k);
        for i in 0..n {
            for (taps, pixel) in self.taps.iter_mut().zip(self.around[i]) {
                for l in 0..count {
                    taps[i][l] = if pixel == FILL { fill(k + l) } else { data[pixel * c + k + l] };
                }
            }
        }
    }

    /// Channels from `k` on of `n` pixels, of all of which the four are inside.
    #[inline(always)]
    fn read(&mut self, data: &[P], n: usize, k: usize, [w, c]: [usize; 2]) {
        let [p00, p01, p10, p11] = &mut self.taps;
        let row = w * c;
        let last = self.last;
        // The last element of all is the last one of the last pixel's `p11`.
        if last < data.len() / c && last * c + k + row + c + L <= data.len() {
            if L == 1 && c == 1 {
                // Two of the four side by side are one copy.
                let mut pairs = [[[P::default(); 2]; STRIP]; 2];
                for i in 0..n {
                    // SAFETY: none of these is further than that of the last pixel, which was looked at.
                    unsafe {
                        let first = data.as_ptr().add(self.pixels[i] as usize);
                        pairs[0][i] = *first.cast();
                        pairs[1][i] = *first.add(row).cast();
                    }
                }
                for i in 0..STRIP {
                    [p00[i], p01[i], p10[i], p11[i]] =
                        [[pairs[0][i][0]; L], [pairs[0][i][1]; L], [pairs[1][i][0]; L], [pairs[1][i][1]; L]];
                }
                return;
            }
            for i in 0..n {
                // SAFETY: none of these is further than that of the last pixel, which was looked at.
                unsafe {
                    let first = data.as_ptr().add(self.pixels[i] as usize * c + k);
                    p00[i] = *first.cast();
                    p01[i] = *first.add(c).cast();
                    p10[i] = *first.add(row).cast();
                    p11[i] = *first.add(row + c).cast();
                }
            }
            return;
        }
        for i in 0..n {
            let first = self.pixels[i] as usize * c + k;
            let count = L.min(c - k);
            p00[i][..count].copy_from_slice(&data[first..][..count]);
            p01[i][..count].copy_from_slice(&data[first + c..][..count]);
            p10[i][..count].copy_from_slice(&data[first + row..][..count]);
            p11[i][..count].copy_from_slice(&data[first + row + c..][..count]);
        }
    }

    #[inline(always)]
    fn interpolate(&mut self, n: usize) {
        // So many that nothing is left over. Some of them may be what was there before.
        let n = (n * L).next_multiple_of(LANES);
        let [p00, p01, p10, p11] = self.taps.each_ref().map(|taps| &taps.as_flattened()[..n]);
        let [fx, fy] = [&self.fx, &self.fy].map(|weights| &weights.as_flattened()[..n]);
        let values = &mut self.values.as_flattened_mut()[..n];
        for i in 0..n {
            let [p00, p01, p10, p11] = [p00[i].widen(), p01[i].widen(), p10[i].widen(), p11[i].widen()];
            values[i] = P::narrow(lerp(p00, p01, p10, p11, fx[i], fy[i]));
        }
    }

    /// Channels from `k` on of `n` pixels.
    #[inline(always)]
    fn write(&self, to: &mut [P], n: usize, k: usize, c: usize) {
        if c == L {
            to[..n * L].copy_from_slice(&self.values.as_flattened()[..n * L]);
            return;
        }
        // A last group of fewer channels must leave the first ones of the next pixel as they are, unless it is the only
        // one: then these are yet to come.
        if (k == 0 || k + L <= c) && (n - 1) * c + k + L <= to.len() {
            for i in 0..n {
                // SAFETY: `L` elements, none of them further than those of the last pixel, which was looked at.
                unsafe { *to.as_mut_ptr().add(i * c + k).cast() = self.values[i] };
            }
            return;
        }
        let count = L.min(c - k);
        for i in 0..n {
            to[i * c + k..][..count].copy_from_slice(&self.values[i][..count]);
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
                        let naive = if bilinear { naive_bilinear } else { naive_nearest };
                        let want = naive(&data, shape, map, border, &fill);
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
