//! Brightness, contrast, saturation and hue ([`Jitter`]), and no colour at all ([`Gray`]).
//!
//! The formulas are torchvision's (`transforms.v2.functional`, version 0.29), in `f32`, without fused multiplications.
//! A byte is a number from 0 to 255 that loses its fraction after every step; an `f32` is clamped to 0 .. 1. With the
//! gray of a pixel, `gray = (0.2989 r + 0.587 g) + 0.114 b` (bytes: without its fraction), and a factor `f`:
//!
//! ```text
//! brightness    x f
//! contrast      x f + mean (1 - f)      mean of the gray of the whole picture as it is at that moment
//! saturation    x f + gray (1 - f)
//! hue           to hue, saturation and value; hue + f, in turns of the whole circle; and back
//! ```
//!
//! Pictures have one channel (the value is the gray; saturation and hue leave it), three, or four (the fourth is alpha
//! and stays as it is).

use super::tile::{self, TILE};
use super::{Op, Pixel, Shape, Table, ViewMut, Workspace};
use crate::parallel::CHUNK;
use crate::reduce::{Lanes, tree};
use crate::simd::{self, Isa, Kernel};

/// Shares of red, green and blue in the gray.
const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Changes brightness, contrast, saturation and hue, each sample by its own factors and in its own order.
///
/// Columns: the factors of brightness, contrast, saturation (0 .. 1e36; 1 changes nothing) and hue (-0.5 .. 0.5; 0
/// changes nothing), NaN for one that is not done; then which of them (0 .. 3) comes first, second, third and last.
#[derive(Debug)]
pub struct Jitter {
    steps: Vec<Vec<Step>>,
}

/// Replaces the colours by their gray. No columns.
#[derive(Debug)]
pub struct Gray;

/// What is done to every pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// x f
    Brightness(f32),
    /// x f + mean (1 - f); f and 1 - f
    Contrast(f32, f32),
    /// x f + gray (1 - f); f and 1 - f
    Saturation(f32, f32),
    /// By so many turns.
    Hue(f32),
    /// x f + c
    Linear(f32, f32),
    /// The gray in place of the colours.
    Gray,
}

impl Step {
    /// Factor number `kind` of a row; `None` if it is not done.
    fn of(kind: usize, factor: f64) -> Option<Step> {
        let [f, rest] = [factor as f32, (1.0 - factor) as f32];
        let step = [Step::Brightness(f), Step::Contrast(f, rest), Step::Saturation(f, rest), Step::Hue(f)][kind];
        (!factor.is_nan()).then_some(step)
    }
}

/// Whether there are colours, and they can be told.
fn check_channels(what: &str, channels: usize) -> Result<(), String> {
    match channels {
        1 | 3 | 4 => Ok(()),
        _ => Err(format!("{what} takes images of 1 (gray), 3 (RGB) or 4 channels (RGB and alpha), got {channels}")),
    }
}

impl Op for Jitter {
    const NAME: &'static str = "jitter";
    const EDITS: bool = true;

    fn new(table: Table<'_>, channels: usize) -> Result<Jitter, String> {
        check_channels("colour jitter", channels)?;
        if table.columns != 8 {
            return Err(format!("colour jitter takes 8 numbers a sample, got {}", table.columns));
        }
        let steps = |i| {
            let (factors, order) = table.row(i).split_at(4);
            for (name, &factor) in ["brightness", "contrast", "saturation"].iter().zip(factors) {
                // More than the largest may overflow, and no picture is left by much less.
                if !(factor.is_nan() || (0.0..=1e36).contains(&factor)) {
                    return Err(format!("{name} must lie within 0 .. 1e36, got {factor} for sample {i}"));
                }
            }
            if !(factors[3].is_nan() || (-0.5..=0.5).contains(&factors[3])) {
                return Err(format!("hue must lie within -0.5 .. 0.5, got {} for sample {i}", factors[3]));
            }
            let order: Vec<_> = order.iter().map(|&o| (0..4).find(|&kind| kind as f64 == o)).collect();
            if !(0..4).all(|kind| order.contains(&Some(kind))) {
                let got = &table.row(i)[4..];
                return Err(format!("order must name each of 0, 1, 2, 3 once, got {got:?} for sample {i}"));
            }
            let steps = order.into_iter().flatten().filter_map(|kind| Step::of(kind, factors[kind]));
            let colours = |step: &Step| !matches!(step, Step::Saturation(..) | Step::Hue(_));
            Ok(steps.filter(|step| channels > 1 || colours(step)).collect())
        };
        Ok(Jitter { steps: (0..table.n).map(steps).collect::<Result<_, _>>()? })
    }

    fn edit<P: Pixel>(&self, i: usize, image: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        let ViewMut { data, shape } = image;
        if shape.is_empty() {
            return;
        }
        let mut steps = self.steps[i].clone();
        // Contrast has to know the whole picture first: two passes.
        let contrast = steps.iter().position(|step| matches!(step, Step::Contrast(..)));
        if let Some(at) = contrast
            && let Step::Contrast(factor, rest) = steps[at]
        {
            // To do a step again costs less than to write the picture, but for hue.
            let write = steps[..at].iter().any(|step| matches!(step, Step::Hue(_)));
            let sum = simd::dispatch(isa, Pass { data: &mut *data, shape, steps: &steps[..at], sums: true, write });
            let mean = (sum / (shape.h * shape.w) as f64) as f32;
            steps[at] = Step::Linear(factor, mean * rest);
            if write {
                steps.drain(..at);
            }
        }
        if !steps.is_empty() {
            simd::dispatch(isa, Pass { data, shape, steps: &steps, sums: false, write: true });
        }
    }
}

impl Op for Gray {
    const NAME: &'static str = "gray";
    const EDITS: bool = true;

    fn new(_table: Table<'_>, channels: usize) -> Result<Gray, String> {
        check_channels("gray", channels).map(|()| Gray)
    }

    fn edit<P: Pixel>(&self, _i: usize, image: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        let ViewMut { data, shape } = image;
        if shape.c > 1 {
            simd::dispatch(isa, Pass { data, shape, steps: &[Step::Gray], sums: false, write: true });
        }
    }
}

/// One pass over a picture: does all steps to each pixel, gives the sum of the gray that comes out if that is wanted, and
/// writes the pixels if that is.
struct Pass<'a, P> {
    data: &'a mut [P],
    shape: Shape,
    steps: &'a [Step],
    sums: bool,
    write: bool,
}

/// One channel of a tile.
type Plane = [f32; TILE];

impl<P: Pixel> Kernel for Pass<'_, P> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Pass { data, shape, steps, sums, write } = self;
        let pixels = shape.h * shape.w;
        let colours = shape.c.min(3);
        let mut planes = [[0.0; TILE]; 4];
        let mut apart = [[P::default(); TILE]; 4];
        let mut scratch = [0.0; TILE];
        let mut partials = Vec::new();
        let mut lanes = Lanes::default();
        // Of bytes. Exact, so that the order does not matter.
        let mut total = 0;
        for start in (0..pixels).step_by(TILE) {
            let n = TILE.min(pixels - start);
            load(data, shape, start, n, &mut apart, &mut planes);
            for &step in steps {
                match step {
                    Step::Brightness(f) => {
                        for x in planes[..colours].as_flattened_mut() {
                            *x = if P::BYTE { whole(less(*x * f, 255.0)) } else { unit(*x * f) };
                        }
                    }
                    Step::Linear(f, c) => {
                        for x in planes[..colours].as_flattened_mut() {
                            *x = hold::<P>(*x * f + c);
                        }
                    }
                    Step::Saturation(f, rest) => {
                        let [r, g, b, _] = &mut planes;
                        for (((c, r), g), b) in scratch.iter_mut().zip(&*r).zip(&*g).zip(&*b) {
                            *c = gray::<P>(*r, *g, *b) * rest;
                        }
                        for plane in &mut planes[..colours] {
                            for (x, c) in plane.iter_mut().zip(&scratch) {
                                *x = hold::<P>(*x * f + c);
                            }
                        }
                    }
                    Step::Hue(turns) => {
                        let [r, g, b, _] = &mut planes;
                        let turn = Turn::new(turns);
                        // Short loops: of a long chain of operations too few pixels are under way at once. No result may
                        // go to the place of a channel that is one of its cases (the least to b), or it would be written
                        // with a mask, which is slow.
                        for (((r, g), b), value) in r.iter_mut().zip(&mut *g).zip(&mut *b).zip(&mut scratch) {
                            [*value, *b, *g, *r] = sort::<P>([*r, *g, *b]);
                        }
                        for (((r, g), b), value) in r.iter_mut().zip(&mut *g).zip(&mut *b).zip(&scratch) {
                            [*r, *g, *b] = to_hsv::<P>([*value, *b, *g, *r]);
                        }
                        for h in &mut *r {
                            *h = turn.turn(*h);
                        }
                        for (((r, g), b), v) in r.iter_mut().zip(&mut *g).zip(&mut *b).zip(&scratch) {
                            [*r, *g, *b] = from_hsv::<P>([*r, *g, *v, *b]);
                        }
                    }
                    Step::Gray => {
                        let [r, g, b, _] = &mut planes;
                        for ((r, g), b) in r.iter_mut().zip(&mut *g).zip(&mut *b) {
                            let c = gray::<P>(*r, *g, *b);
                            [*r, *g, *b] = [c; 3];
                        }
                    }
                    // Has become `Linear`.
                    Step::Contrast(..) => {}
                }
            }
            if sums {
                let [r, g, b, _] = &planes;
                if shape.c > 1 {
                    for (((x, r), g), b) in scratch.iter_mut().zip(r).zip(g).zip(b) {
                        *x = gray::<P>(*r, *g, *b);
                    }
                }
                let grays = &(if shape.c > 1 { &scratch } else { r })[..n];
                if P::BYTE {
                    total += grays.iter().map(|&x| integer(x)).sum::<i32>() as u64;
                } else {
                    lanes.add(grays, f64::from);
                    if (start + n) % CHUNK == 0 || start + n == pixels {
                        partials.push(std::mem::take(&mut lanes).total());
                    }
                }
            }
            if write {
                store(data, shape, start, n, &mut apart, &planes);
            }
        }
        if P::BYTE { total as f64 } else { tree(&mut partials) }
    }
}

/// Pixels `start .. start + n` of a picture into planes.
#[inline(always)]
fn load<P: Pixel>(
    data: &[P],
    shape: Shape,
    start: usize,
    n: usize,
    apart: &mut [[P; TILE]; 4],
    planes: &mut [Plane; 4],
) {
    if shape.planar || shape.c == 1 {
        for (k, plane) in planes.iter_mut().take(shape.c).enumerate() {
            let from = &data[k * shape.h * shape.w + start..][..n];
            for (x, &p) in plane.iter_mut().zip(from) {
                *x = p.widen();
            }
        }
    } else if shape.c == 3 {
        load_pixels(
            &data.as_chunks::<3>().0[start..][..n],
            apart.first_chunk_mut().unwrap(),
            planes.first_chunk_mut().unwrap(),
        );
    } else {
        load_pixels(&data.as_chunks::<4>().0[start..][..n], apart, planes);
    }
}

#[inline(always)]
fn load_pixels<P: Pixel, const C: usize>(pixels: &[[P; C]], apart: &mut [[P; TILE]; C], planes: &mut [Plane; C]) {
    match pixels.first_chunk() {
        // Bytes are taken apart as bytes: other shuffles.
        Some(tile) if P::BYTE => {
            tile::split(tile, apart, |p| p);
            for (x, p) in planes.as_flattened_mut().iter_mut().zip(apart.as_flattened()) {
                *x = p.widen();
            }
        }
        Some(tile) => tile::split(tile, planes, P::widen),
        None => {
            for (j, pixel) in pixels.iter().enumerate() {
                for k in 0..C {
                    planes[k][j] = pixel[k].widen();
                }
            }
        }
    }
}

/// The other way. Bytes are whole numbers by now.
#[inline(always)]
fn store<P: Pixel>(
    data: &mut [P],
    shape: Shape,
    start: usize,
    n: usize,
    apart: &mut [[P; TILE]; 4],
    planes: &[Plane; 4],
) {
    if shape.planar || shape.c == 1 {
        // Alpha is not touched.
        let planes = planes.iter().zip(apart).take(shape.c.min(3)).enumerate();
        for (k, (plane, apart)) in planes {
            narrow(plane, apart);
            data[k * shape.h * shape.w + start..][..n].copy_from_slice(&apart[..n]);
        }
    } else if shape.c == 3 {
        store_pixels(
            &mut data.as_chunks_mut::<3>().0[start..][..n],
            apart.first_chunk_mut().unwrap(),
            planes.first_chunk().unwrap(),
        );
    } else {
        store_pixels(&mut data.as_chunks_mut::<4>().0[start..][..n], apart, planes);
    }
}

#[inline(always)]
fn store_pixels<P: Pixel, const C: usize>(pixels: &mut [[P; C]], apart: &mut [[P; TILE]; C], planes: &[Plane; C]) {
    match pixels.first_chunk_mut() {
        Some(tile) if P::BYTE => {
            narrow(planes.as_flattened(), apart.as_flattened_mut());
            tile::join(apart, tile, |p| p);
        }
        Some(tile) => tile::join(planes, tile, P::narrow),
        None => {
            for (j, pixel) in pixels.iter_mut().enumerate() {
                for k in 0..C {
                    pixel[k] = P::narrow(planes[k][j]);
                }
            }
        }
    }
}

/// `P::narrow` of what a pixel can hold: nothing is left to round.
#[inline(always)]
fn narrow<P: Pixel>(planes: &[f32], to: &mut [P]) {
    for (p, &x) in to.iter_mut().zip(planes) {
        // With a clamp, though there is nothing to clamp either, this is an instruction.
        *p = if P::BYTE { P::of_byte(integer(x).clamp(0, 255) as u8) } else { P::narrow(x) };
    }
}

/// What a pixel can hold of `x`.
#[inline(always)]
fn hold<P: Pixel>(x: f32) -> f32 {
    // The second operand of `more` is what NaN becomes.
    if P::BYTE { whole(less(more(x, 0.0), 255.0)) } else { unit(x) }
}

/// `x` of 0 .. 255 without its fraction.
#[inline(always)]
fn whole(x: f32) -> f32 {
    integer(x) as f32
}

/// As [`whole`].
#[inline(always)]
fn integer(x: f32) -> i32 {
    debug_assert!((0.0..256.0).contains(&x));
    // `floor` is a call where the instruction set is old, and the checks of `as` cost more than the conversion.
    // SAFETY: x is within 0 .. 255.
    unsafe { x.to_int_unchecked::<i32>() }
}

/// Clamped to 0 .. 1; NaN stays.
#[inline(always)]
fn unit(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    if x > 1.0 { 1.0 } else { x }
}

#[inline(always)]
fn gray<P: Pixel>(r: f32, g: f32, b: f32) -> f32 {
    let gray = r * GRAY[0] + g * GRAY[1] + b * GRAY[2];
    if P::BYTE { whole(gray) } else { gray }
}

/// The larger one; `b` if one is NaN. An instruction, unlike `f32::max`.
#[inline(always)]
fn more(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The smaller one; `b` if one is NaN.
#[inline(always)]
fn less(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// By which torchvision multiplies a byte.
const BYTE: f32 = 1.0 / 255.0;

/// Whether `x` has a sign. Where `x = a - b` this is `a < b`, unless both are zeros or one is NaN, and it relieves the
/// units of a CPU that do comparisons as well as blends and multiplications: a blend looks at the sign alone.
#[inline(always)]
fn negative(x: f32) -> bool {
    (x.to_bits() as i32) < 0
}

/// `a < b`
#[inline(always)]
fn below<P: Pixel>(a: f32, b: f32) -> bool {
    if P::BYTE { negative(a - b) } else { a < b }
}

/// The value of a colour (its largest channel), the middle and the least one, and where the largest is on the circle of
/// hues, in steps of 60 degrees; with a minus sign if the least is the one after it.
#[inline(always)]
fn sort<P: Pixel>([r, g, b]: [f32; 3]) -> [f32; 4] {
    let (higher, lower) = (more(r, g), less(r, g));
    let value = more(higher, b);
    let nan = !P::BYTE && (r.is_nan() || g.is_nan() || b.is_nan());
    let value = if nan { f32::NAN } else { value };
    let middle = more(lower, less(higher, b));
    let least = less(lower, b);
    let place = if value == r {
        0.0
    } else if below::<P>(g, value) {
        4.0
    } else {
        2.0
    };
    let after = below::<P>(g, b) ^ below::<P>(r, g) ^ below::<P>(r, b);
    [value, middle, least, if after { -place } else { place }]
}

/// Hue (in steps of 60 degrees, -1 .. 5), saturation and value, where full is 1, of what [`sort`] gives.
#[inline(always)]
fn to_hsv<P: Pixel>([value, middle, least, place]: [f32; 4]) -> [f32; 3] {
    let [v, m, l] = if P::BYTE { [value, middle, least].map(|x| x * BYTE) } else { [value, middle, least] };
    let range = v - l;
    // (value - channel) / range: for the least this is 1 without a division.
    let (saturation, near, far);
    if P::BYTE {
        // Nothing is changed by so little, but a zero. The hue of a gray does not matter.
        saturation = range / (v + 1e-30);
        near = (v - m) / (range + 1e-30);
        far = 1.0;
    } else {
        let gray = range == 0.0;
        saturation = range / if gray { 1.0 } else { v };
        near = (v - m) / if gray { 1.0 } else { range };
        // Neither that of an infinite range.
        far = if gray { 0.0 } else { 1.0 } + range * 0.0;
    }
    let (one, other) = if negative(place) { (near, far) } else { (far, near) };
    [one + place.abs() - other, saturation, v]
}

/// Turns a hue by -0.5 .. 0.5 of the circle.
#[derive(Clone, Copy)]
struct Turn {
    turns: f32,
    /// Below this, `below` is added to come back to 0 .. 1, else `above`.
    limit: f32,
    below: f32,
    above: f32,
}

impl Turn {
    #[inline(always)]
    fn new(turns: f32) -> Turn {
        let [limit, below, above] = if turns < 0.0 { [0.0, 1.0, 0.0] } else { [1.0, 0.0, -1.0] };
        Turn { turns, limit, below, above }
    }

    /// In steps of 60 degrees, 0 .. 6 without 6.
    #[inline(always)]
    fn turn(self, h: f32) -> f32 {
        let h = h * (1.0 / 6.0) + 1.0;
        let h = if negative(h - 1.0) { h } else { h - 1.0 } + self.turns;
        let h = (h + if negative(h - self.limit) { self.below } else { self.above }) * 6.0;
        // It may have been rounded up to 6, which is 0. NaN becomes 0 as well, and is found again in the saturation.
        if h < 6.0 { h } else { 0.0 }
    }
}

/// The colour with this hue (0 .. 6 without 6), saturation and value.
#[inline(always)]
fn from_hsv<P: Pixel>([h, saturation, value, v]: [f32; 4]) -> [f32; 3] {
    // SAFETY: within 0 .. 6, as `turn` gives it.
    let sextant = unsafe { h.to_int_unchecked::<i32>() };
    let odd = sextant << 31 < 0;
    let part = saturation * (h - sextant as f32);
    let low = 1.0 - saturation;
    let middle = if odd { 1.0 - part } else { part + low };
    let [low, middle] = if P::BYTE {
        // Both are within 0 .. 1.
        [low, middle].map(|x| whole(x * v * 255.999))
    } else {
        [low, middle].map(|x| unit(x * value))
    };
    // Red and green, green and blue, blue and red are above the least.
    let (x, y) = if odd { (middle, value) } else { (value, middle) };
    let (first, second) = (negative(h - 2.0), negative(h - 4.0));
    [
        if first {
            x
        } else if second {
            low
        } else {
            y
        },
        if first {
            y
        } else if second {
            x
        } else {
            low
        },
        if first {
            low
        } else if second {
            y
        } else {
            x
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byte(i: usize) -> u8 {
        let word = (i as u32).wrapping_mul(2_654_435_761) >> 5;
        // Some are equal to their neighbours, or 0, or 255: hue has cases.
        match word % 7 {
            0 => 0,
            1 => 255,
            2 => 77,
            _ => (word >> 8) as u8,
        }
    }

    /// What a picture is after `factors` in this order: torchvision's formulas, pixel by pixel. Pixels are RGB.
    fn naive(pixels: &mut [[f32; 3]], bytes: bool, colours: bool, factors: [f64; 4], order: [usize; 4]) {
        let full = if bytes { 255.0 } else { 1.0 };
        let store = |x: f32| {
            let x = if x < 0.0 {
                0.0
            } else if x > full {
                full
            } else {
                x
            };
            if bytes { x.trunc() } else { x }
        };
        let gray = |[r, g, b]: [f32; 3]| {
            let gray = r * 0.2989 + g * 0.587 + b * 0.114;
            if !colours {
                r
            } else if bytes {
                gray.floor()
            } else {
                gray
            }
        };
        for kind in order {
            let factor = factors[kind];
            let (f, rest) = (factor as f32, (1.0 - factor) as f32);
            if factor.is_nan() || (kind > 1 && !colours) {
                continue;
            }
            let mut sums = Vec::new();
            for block in pixels.chunks(CHUNK) {
                let mut lanes = [0f64; 16];
                for (i, &pixel) in block.iter().enumerate() {
                    lanes[i % 16] += f64::from(gray(pixel));
                }
                for width in [8, 4, 2, 1] {
                    for i in 0..width {
                        lanes[i] += lanes[i + width];
                    }
                }
                sums.push(lanes[0]);
            }
            let mean = (tree(&mut sums) / pixels.len() as f64) as f32;
            for pixel in pixels.iter_mut() {
                let gray = gray(*pixel);
                *pixel = match kind {
                    0 => pixel.map(|x| store(x * f)),
                    1 => pixel.map(|x| store(x * f + mean * rest)),
                    2 => pixel.map(|x| store(x * f + gray * rest)),
                    _ => {
                        let unit = pixel.map(|x| if bytes { x * (1.0 / 255.0) } else { x });
                        let turned = naive_hue(unit, f);
                        turned.map(|x| if bytes { (x * 255.999).trunc() } else { x })
                    }
                };
            }
        }
    }

    fn naive_hue([r, g, b]: [f32; 3], turns: f32) -> [f32; 3] {
        let mut sorted = [r, g, b];
        sorted.sort_by(f32::total_cmp);
        let [min, _, max] = sorted;
        if [r, g, b].iter().any(|x| x.is_nan()) {
            return [f32::NAN; 3];
        }
        let s = if max == min { 0.0 } else { (max - min) / max };
        let [rc, gc, bc] = [r, g, b].map(|x| if max == min { 0.0 } else { (max - x) / (max - min) });
        let h = if max == r {
            bc - gc
        } else if max == g {
            rc + 2.0 - bc
        } else {
            gc + 4.0 - rc
        };
        let h = (h * (1.0 / 6.0) + 1.0) % 1.0 + turns;
        let h = h % 1.0;
        let h = if h < 0.0 { h + 1.0 } else { h };
        let i = (h * 6.0).floor();
        let f = h * 6.0 - i;
        let [p, q, t] = [1.0 - s, 1.0 - s * f, s * f + (1.0 - s)].map(|x| x * max).map(unit);
        [[max, t, p], [q, max, p], [p, max, t], [p, q, max], [t, p, max], [max, p, q]][i as usize % 6]
    }

    fn orders() -> Vec<[usize; 4]> {
        let mut all = Vec::new();
        for code in 0..256 {
            let order = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6];
            if (0..4).all(|kind| order.contains(&kind)) {
                all.push(order);
            }
        }
        assert_eq!(all.len(), 24);
        all
    }

    /// The colours of a picture, pixel by pixel.
    fn pixels<P: Pixel>(data: &[P], shape: Shape) -> Vec<[f32; 3]> {
        let (across, along) = shape.strides();
        let channel = |k: usize| if shape.c == 1 { 0 } else { k * across };
        (0..shape.h * shape.w).map(|i| [0, 1, 2].map(|k| data[channel(k) + i * along].widen())).collect()
    }

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    /// Whether `op` makes `want` of a picture on every instruction set, and leaves alpha.
    fn check<P: Pixel>(data: &[P], shape: Shape, op: &impl Op, want: &[[f32; 3]], about: &str) {
        for isa in Isa::available() {
            let mut image = data.to_vec();
            op.edit(0, ViewMut { data: &mut image, shape }, &mut Workspace::default(), isa);
            for (i, (got, want)) in pixels(&image, shape).iter().zip(want).enumerate() {
                assert!((0..3).all(|k| same(got[k], want[k])), "{isa} {shape:?} {about} {i}: {got:?}, not {want:?}");
            }
            if shape.c == 4 {
                let (across, along) = shape.strides();
                assert!((0..want.len()).all(|i| {
                    let at = 3 * across + i * along;
                    same(image[at].widen(), data[at].widen())
                }));
            }
        }
    }

    fn check_jitter<P: Pixel>(data: &[P], shape: Shape, factors: [f64; 4], order: [usize; 4]) {
        let mut want = pixels(data, shape);
        naive(&mut want, P::BYTE, shape.c > 1, factors, order);
        let row: Vec<f64> = factors.into_iter().chain(order.map(|o| o as f64)).collect();
        let op = Jitter::new(Table { n: 1, columns: 8, rows: &row, settings: &[] }, shape.c).unwrap();
        check(data, shape, &op, &want, &format!("{row:?}"));
    }

    #[test]
    fn all_steps_in_all_orders_as_the_naive_ones() {
        let nan = f64::NAN;
        for c in [1, 3, 4] {
            for planar in [false, true] {
                for (h, w) in [(1, 1), (1, 7), (5, 3), (8, 16), (9, 43), (0, 3)] {
                    let shape = Shape { h, w, c, planar };
                    let bytes: Vec<u8> = (0..shape.len()).map(byte).collect();
                    let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
                    for factors in [[0.7, 1.4, 1.3, 0.37], [1.6, 0.3, 0.4, -0.21]] {
                        for order in orders() {
                            check_jitter(&bytes, shape, factors, order);
                            check_jitter(&floats, shape, factors, order);
                        }
                        for kind in 0..16 {
                            let some = std::array::from_fn(|k| if kind >> k & 1 != 0 { factors[k] } else { nan });
                            check_jitter(&bytes, shape, some, [2, 1, 3, 0]);
                            check_jitter(&floats, shape, some, [2, 1, 3, 0]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_factors() {
        let shape = Shape { h: 13, w: 29, c: 3, planar: false };
        let bytes: Vec<u8> = (0..shape.len()).map(byte).collect();
        let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
        for strong in [0.0, 1.0, 1e36] {
            for hue in [-0.5, -1e-30, 0.0, 0.5] {
                for order in [[0, 1, 2, 3], [3, 2, 1, 0]] {
                    check_jitter(&bytes, shape, [strong, strong, strong, hue], order);
                }
                check_jitter(&floats, shape, [strong, 1.0, 1.0, hue], [0, 1, 2, 3]);
            }
        }
    }

    #[test]
    fn hue_of_many_colours() {
        // The value of a byte is taken as it is.
        assert!((0..=255u8).map(f32::from).all(|x| whole(x * BYTE * 255.999) == x));
        let level = |i: usize| [0, 1, 2, 3, 42, 43, 84, 85, 127, 128, 170, 171, 200, 213, 254, 255][i & 15];
        let bytes: Vec<u8> = (0..1 << 12).flat_map(|i| [level(i), level(i >> 4), level(i >> 8)]).collect();
        let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
        let shape = Shape { h: 64, w: 64, c: 3, planar: false };
        for k in -16..=16 {
            let factors = [f64::NAN, f64::NAN, f64::NAN, f64::from(k) / 32.0];
            check_jitter(&bytes, shape, factors, [0, 1, 2, 3]);
            check_jitter(&floats, shape, factors, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn a_large_picture_has_blocks() {
        for planar in [false, true] {
            let shape = Shape { h: 173, w: 211, c: 3, planar };
            let bytes: Vec<u8> = (0..shape.len()).map(byte).collect();
            let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
            check_jitter(&bytes, shape, [0.7, 1.4, 1.3, 0.37], [3, 0, 1, 2]);
            check_jitter(&floats, shape, [0.7, 1.4, 1.3, 0.37], [3, 0, 1, 2]);
        }
    }

    #[test]
    fn nan_and_what_lies_outside_stay_where_they_are() {
        let shape = Shape { h: 3, w: 5, c: 3, planar: false };
        let odd = [f32::NAN, 0.5, 0.25, 0.5, f32::NAN, 0.25, 0.5, 0.25, f32::NAN, -2.0, 3.0, 0.5, -0.0, 0.0, -1.0];
        let floats: Vec<f32> = (0..shape.len()).map(|i| if i < odd.len() { odd[i] } else { 0.3 }).collect();
        let nan = f64::NAN;
        check_jitter(&floats, shape, [0.5, nan, 1.5, nan], [0, 1, 2, 3]);
        check_jitter(&floats, shape, [nan, nan, nan, 0.3], [0, 1, 2, 3]);
        // The mean is NaN, and so is everything.
        check_jitter(&floats, shape, [nan, 0.5, nan, nan], [0, 1, 2, 3]);
    }

    #[test]
    fn gray_is_in_all_colours() {
        for c in [1, 3, 4] {
            for (h, w) in [(1, 1), (5, 3), (9, 43), (0, 0)] {
                for planar in [false, true] {
                    let shape = Shape { h, w, c, planar };
                    let bytes: Vec<u8> = (0..shape.len()).map(byte).collect();
                    let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
                    let op = Gray::new(Table { n: 1, columns: 0, rows: &[], settings: &[] }, c).unwrap();
                    let gray = |[r, g, b]: [f32; 3]| if c == 1 { r } else { r * 0.2989 + g * 0.587 + b * 0.114 };
                    let want: Vec<_> = pixels(&bytes, shape).into_iter().map(|x| [gray(x).floor(); 3]).collect();
                    check(&bytes, shape, &op, &want, "gray");
                    let want: Vec<_> = pixels(&floats, shape).into_iter().map(|x| [gray(x); 3]).collect();
                    check(&floats, shape, &op, &want, "gray");
                }
            }
        }
    }

    #[test]
    fn what_is_refused() {
        let new = |row: &[f64], c| {
            Jitter::new(Table { n: 1, columns: row.len(), rows: row, settings: &[] }, c).map(|_| ()).unwrap_err()
        };
        let good = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 3.0];
        for c in [0, 2, 5] {
            assert!(new(&good, c).contains(&format!("got {c}")));
            assert!(Gray::new(Table { n: 0, columns: 0, rows: &[], settings: &[] }, c).is_err());
        }
        assert!(new(&good[..7], 3).contains("8 numbers"));
        let name = ["brightness", "contrast", "saturation", "hue", "order", "order", "order", "order"];
        for k in 0..8 {
            for bad in [-1.0, f64::INFINITY, 1e37, 0.7] {
                if bad == 0.7 && k < 3 {
                    continue;
                }
                let mut row = good;
                row[k] = bad;
                let error = new(&row, 3);
                assert!(error.contains(name[k]) && error.contains("sample 0"), "{error}");
            }
        }
        assert!(new(&[1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 2.0, 2.0], 3).contains("order"));
        let none = Jitter::new(Table { n: 0, columns: 8, rows: &[], settings: &[] }, 3).unwrap();
        assert!(none.steps.is_empty());
    }
}
