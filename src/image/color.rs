//! Brightness, contrast, saturation and hue ([`Jitter`]), and no colour at all ([`Gray`]).
//!
//! The formulas are torchvision's (`transforms.v2.functional`, version 0.29), in `f32`, without fused multiplications. A byte
//! is a number from 0 to 255 that loses its fraction after every step; an `f32` is clamped to 0 .. 1. With the gray of a pixel,
//! `gray = (0.2989 r + 0.587 g) + 0.114 b` (bytes: without its fraction), and a factor `f`:
//!
//! ```text
//! brightness    x f
//! contrast      x f + mean (1 - f)      mean of the gray of the whole picture as it is at that moment
//! saturation    x f + gray (1 - f)
//! hue           to hue, saturation and value; hue + f, in turns of the whole circle; and back
//! ```
//!
//! Pictures have one channel (the value is the gray; saturation and hue leave it), three, or four (the fourth is alpha and
//! stays as it is).

use super::tile::{self, TILE};
use super::{Op, Pixel, Shape, Table, ViewMut, Workspace};
use crate::parallel::CHUNK;
use crate::reduce::{Lanes, tree};
use crate::simd::{self, Isa, Kernel};

/// Shares of red, green and blue in the gray.
const GRAY: [f32; 3] = [0.2989, 0.587, 0.114];

/// Changes brightness, contrast, saturation and hue, each sample by its own factors and in its own order.
///
/// Columns: the factors of brightness, contrast, saturation (at least 0; 1 changes nothing) and hue (-0.5 .. 0.5; 0 changes
/// nothing), NaN for one that is not done; then which of them (0 .. 3) comes first, second, third and last.
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
                if factor < 0.0 || (factor as f32).is_infinite() {
                    return Err(format!("{name} must be finite and at least 0, got {factor} for sample {i}"));
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
            let sum = simd::dispatch(isa, Pass { data: &mut *data, shape, steps: &steps[..at], sums: true });
            let mean = (sum / (shape.h * shape.w) as f64) as f32;
            steps[at] = Step::Linear(factor, mean * rest);
            steps.drain(..at);
        }
        if !steps.is_empty() {
            simd::dispatch(isa, Pass { data, shape, steps: &steps, sums: false });
        }
    }
}

impl Op for Gray {
    const NAME: &'static str = "gray";
    const EDITS: bool = true;

    fn new(_table: Table<'_>, channels: usize) -> Result<Gray, String> {
        check_channels("grayscale", channels).map(|()| Gray)
    }

    fn edit<P: Pixel>(&self, _i: usize, image: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        let ViewMut { data, shape } = image;
        if shape.c > 1 {
            simd::dispatch(isa, Pass { data, shape, steps: &[Step::Gray], sums: false });
        }
    }
}

/// One pass over a picture: does all steps to each pixel, and gives the sum of the gray that comes out if that is wanted.
struct Pass<'a, P> {
    data: &'a mut [P],
    shape: Shape,
    steps: &'a [Step],
    sums: bool,
}

/// One channel of a tile.
type Plane = [f32; TILE];

impl<P: Pixel> Kernel for Pass<'_, P> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Pass { data, shape, steps, sums } = self;
        let pixels = shape.h * shape.w;
        let mut planes = [[0.0; TILE]; 4];
        let mut apart = [[P::default(); TILE]; 4];
        let mut grays = [0.0; TILE];
        let mut partials = Vec::new();
        let mut lanes = Lanes::default();
        for start in (0..pixels).step_by(TILE) {
            let n = TILE.min(pixels - start);
            load(data, shape, start, n, &mut apart, &mut planes);
            let [r, g, b, _] = &mut planes;
            for &step in steps {
                match step {
                    Step::Brightness(f) => {
                        for plane in [&mut *r, g, b].into_iter().take(shape.c) {
                            for x in plane {
                                *x = hold::<P>(*x * f);
                            }
                        }
                    }
                    Step::Linear(f, c) => {
                        for plane in [&mut *r, g, b].into_iter().take(shape.c) {
                            for x in plane {
                                *x = hold::<P>(*x * f + c);
                            }
                        }
                    }
                    Step::Saturation(f, rest) => {
                        for ((r, g), b) in r.iter_mut().zip(&mut *g).zip(&mut *b) {
                            let c = gray::<P>(*r, *g, *b) * rest;
                            *r = hold::<P>(*r * f + c);
                            *g = hold::<P>(*g * f + c);
                            *b = hold::<P>(*b * f + c);
                        }
                    }
                    Step::Hue(turns) => {
                        // Two loops: so long a chain of operations is bound by their latency, and with two halves twice as many
                        // pixels are under way.
                        for ((r, g), b) in r.iter_mut().zip(&mut *g).zip(&mut *b) {
                            [*r, *g, *b] = to_hsv::<P>([*r, *g, *b]);
                        }
                        for ((r, g), b) in r.iter_mut().zip(&mut *g).zip(&mut *b) {
                            [*r, *g, *b] = from_hsv::<P>([*r, *g, *b], turns);
                        }
                    }
                    Step::Gray => {
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
                if shape.c > 1 {
                    for (((x, r), g), b) in grays.iter_mut().zip(&*r).zip(&*g).zip(&*b) {
                        *x = gray::<P>(*r, *g, *b);
                    }
                }
                lanes.add(&(if shape.c > 1 { &grays } else { &*r })[..n], f64::from);
                if (start + n) % CHUNK == 0 || start + n == pixels {
                    partials.push(std::mem::take(&mut lanes).total());
                }
            }
            if !steps.is_empty() {
                store(data, shape, start, n, &mut apart, &planes);
            }
        }
        tree(&mut partials)
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
            for k in 0..C {
                for j in 0..TILE {
                    planes[k][j] = apart[k][j].widen();
                }
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

/// The other way.
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
        for (k, plane) in planes.iter().take(shape.c.min(3)).enumerate() {
            let to = &mut data[k * shape.h * shape.w + start..][..n];
            for (p, &x) in to.iter_mut().zip(plane) {
                *p = narrow(x);
            }
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
            for k in 0..C {
                for j in 0..TILE {
                    apart[k][j] = narrow(planes[k][j]);
                }
            }
            tile::join(apart, tile, |p| p);
        }
        Some(tile) => tile::join(planes, tile, narrow),
        None => {
            for (j, pixel) in pixels.iter_mut().enumerate() {
                for k in 0..C {
                    pixel[k] = narrow(planes[k][j]);
                }
            }
        }
    }
}

/// `P::narrow` of a number that `hold` has made: nothing to clamp or round.
#[inline(always)]
fn narrow<P: Pixel>(x: f32) -> P {
    P::narrow(x)
}

/// What a pixel can hold of `x`.
#[inline(always)]
fn hold<P: Pixel>(x: f32) -> f32 {
    if P::BYTE { whole(x) } else { unit(x) }
}

/// Clamped to 0 .. 255 (NaN: 0) and without its fraction.
#[inline(always)]
fn whole(x: f32) -> f32 {
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < 255.0 { x } else { 255.0 };
    // `floor` is a call where the instruction set is old, and the checks of `as` cost more than the conversion.
    // SAFETY: x is within 0 .. 255.
    (unsafe { x.to_int_unchecked::<i32>() }) as f32
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

/// The larger one. NaN if an `f32` is; bytes have none.
#[inline(always)]
fn larger<P: Pixel>(a: f32, b: f32) -> f32 {
    if a > b || (!P::BYTE && a.is_nan()) { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Hue (0 .. 1, without 1), saturation and value of a colour.
#[inline(always)]
fn to_hsv<P: Pixel>(rgb: [f32; 3]) -> [f32; 3] {
    let [r, g, b] = if P::BYTE { rgb.map(|x| x * (1.0 / 255.0)) } else { rgb };
    let value = larger::<P>(larger::<P>(r, g), b);
    let range = value - smaller(smaller(r, g), b);
    let one = |x: f32| if range == 0.0 { 1.0 } else { x };
    let saturation = range / one(value);
    // Twice 60 degrees for the green, four times for the blue; then how much nearer to one neighbour than to the other.
    let (is_r, is_g) = (value == r, value == g);
    let base = if is_r {
        0.0
    } else if is_g {
        2.0
    } else {
        4.0
    };
    let one_side = if is_r {
        b
    } else if is_g {
        r
    } else {
        g
    };
    let other_side = if is_r {
        g
    } else if is_g {
        b
    } else {
        r
    };
    let h = (value - one_side) / one(range) + base - (value - other_side) / one(range);
    let h = h * (1.0 / 6.0) + 1.0;
    [if h >= 1.0 { h - 1.0 } else { h }, saturation, value]
}

/// The colour with this hue, turned by -0.5 .. 0.5 of the circle, saturation and value.
#[inline(always)]
fn from_hsv<P: Pixel>([h, saturation, value]: [f32; 3], turns: f32) -> [f32; 3] {
    let h = h + turns;
    let h = if h < 0.0 { h + 1.0 } else { h };
    let h = if h >= 1.0 { h - 1.0 } else { h };
    // And back. `h` may have been rounded up to 6, which is 0; NaN becomes 0 as well, and is found again in the saturation.
    let h = h * 6.0;
    let h = if h < 6.0 { h } else { 0.0 };
    // SAFETY: h is within 0 .. 6: neither sum above leaves 0 .. 1.
    let sextant = unsafe { h.to_int_unchecked::<i32>() };
    let i = sextant as f32;
    let part = saturation * (h - i);
    let low = 1.0 - saturation;
    let middle = if sextant & 1 != 0 { 1.0 - part } else { part + low };
    let [low, middle] = [low * value, middle * value].map(|x| if P::BYTE { x } else { unit(x) });
    // How far a sextant is from the middle of those where the channel is low (red) or full (green, blue).
    let [from_r, from_g, from_b] = [2.5, 1.5, 3.5].map(|centre| (i - centre).abs());
    let rgb = [
        if from_r < 1.0 {
            low
        } else if from_r < 2.0 {
            middle
        } else {
            value
        },
        if from_g < 1.0 {
            value
        } else if from_g < 2.0 {
            middle
        } else {
            low
        },
        if from_b < 1.0 {
            value
        } else if from_b < 2.0 {
            middle
        } else {
            low
        },
    ];
    if P::BYTE { rgb.map(|x| whole(x * 255.999)) } else { rgb }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    #[ignore = "timing"]
    #[allow(clippy::print_stdout, reason = "timing")]
    fn speed() {
        fn time<P: Pixel>(name: &str, image: &[P], shape: Shape, op: &impl Op) {
            let mut best = f64::MAX;
            let mut data = image.to_vec();
            for _ in 0..200 {
                data.copy_from_slice(image);
                let start = Instant::now();
                op.edit(0, ViewMut { data: &mut data, shape }, &mut Workspace::default(), Isa::detect());
                best = f64::min(best, start.elapsed().as_secs_f64());
            }
            println!("{name}: {:.3} ns/element", best * 1e9 / shape.len() as f64);
        }
        let nan = f64::NAN;
        for (c, planar) in [(3, false), (3, true), (4, false), (1, false)] {
            let shape = Shape { h: 224, w: 224, c, planar };
            let bytes: Vec<u8> =
                (0..shape.len()).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
            let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0).collect();
            let rows = [
                ("all, contrast second", [0.9, 1.1, 1.2, 0.1, 0.0, 1.0, 2.0, 3.0]),
                ("all, contrast first", [0.9, 1.1, 1.2, 0.1, 1.0, 0.0, 2.0, 3.0]),
                ("all, contrast last", [0.9, 1.1, 1.2, 0.1, 3.0, 0.0, 2.0, 1.0]),
                ("brightness", [0.9, nan, nan, nan, 0.0, 1.0, 2.0, 3.0]),
                ("contrast", [nan, 0.9, nan, nan, 0.0, 1.0, 2.0, 3.0]),
                ("saturation", [nan, nan, 0.9, nan, 0.0, 1.0, 2.0, 3.0]),
                ("hue", [nan, nan, nan, 0.1, 0.0, 1.0, 2.0, 3.0]),
            ];
            for (name, row) in rows {
                let op = Jitter::new(Table { n: 1, columns: 8, rows: &row, settings: &[] }, c).unwrap();
                time(&format!("u8  {c} {planar} {name}"), &bytes, shape, &op);
                time(&format!("f32 {c} {planar} {name}"), &floats, shape, &op);
            }
            time(&format!("u8  {c} {planar} gray"), &bytes, shape, &Gray);
            time(&format!("f32 {c} {planar} gray"), &floats, shape, &Gray);
        }
    }
}
