//! A window of a picture, which may reach over its edges.

use crate::image::sample::{Border, Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use crate::simd::Isa;

/// How far a window's corner may lie from the picture's, and how large it may be.
const LIMIT: f64 = (1u32 << 30) as f64;

/// Cuts out a window: columns `top` and `left`, whole numbers that may lie outside, settings `h`, `w`, `border` and one
/// `fill` for each channel (in the picture's own unit: 0 .. 255 of bytes).
///
/// What lies outside of the picture is what `numpy.pad` puts there, as far as it may be.
#[derive(Debug)]
pub struct Crop {
    corners: Vec<[i64; 2]>,
    h: usize,
    w: usize,
    border: Border,
    fill: Vec<f32>,
}

impl Op for Crop {
    const NAME: &'static str = "crop";
    const EDITS: bool = false;
    const MOVES: bool = true;

    fn new(table: Table<'_>, channels: usize) -> Result<Self, String> {
        let Table { n, columns, settings, .. } = table;
        let &[h, w, border, ref fill @ ..] = settings else {
            return Err(format!("crop takes the settings h, w, border and fills, got {} of them", settings.len()));
        };
        if columns != 2 || fill.len() != channels {
            let fills = fill.len();
            let got = format!("got {columns} columns and {fills} fills");
            return Err(format!("crop takes 2 columns and one fill for each of {channels} channels, {got}"));
        }
        let whole = |x: f64| (x.abs() <= LIMIT && libm::rint(x) == x).then_some(x as i64);
        let size = |name: &str, x: f64| match whole(x) {
            Some(n) if n >= 0 => Ok(n as usize),
            _ => Err(format!("crop: {name} must be a whole number from 0 to 2^30, got {x}")),
        };
        let corner = |i: usize, column: usize| {
            let x = table.row(i)[column];
            let name = ["top", "left"][column];
            let error = || format!("crop: {name} of sample {i} must be a whole number from -2^30 to 2^30, got {x}");
            whole(x).ok_or_else(error)
        };
        Ok(Crop {
            corners: (0..n).map(|i| Ok([corner(i, 0)?, corner(i, 1)?])).collect::<Result<_, String>>()?,
            h: size("h", h)?,
            w: size("w", w)?,
            border: Border::of(border)
                .ok_or_else(|| format!("crop: border must be a whole number from 0 to 4, got {border}"))?,
            fill: fill.iter().map(|&x| x as f32).collect(),
        })
    }

    fn shape(&self, _i: usize, input: Shape) -> Result<Shape, String> {
        let Crop { h, w, border, .. } = *self;
        // As many bytes as elements of 8 bytes may have in memory.
        let most = isize::MAX as usize / 8;
        if h.checked_mul(w).and_then(|n| n.checked_mul(input.c)).is_none_or(|n| n > most) {
            return Err(format!("crop: a picture of {h} x {w} with {} channels does not fit into memory", input.c));
        }
        let out = input.sized(h, w);
        if input.is_empty() && !out.is_empty() && border != Border::Constant {
            let size = format!("{} x {}", input.h, input.w);
            return Err(format!("crop: a picture of {size} has no pixel to continue with; use a constant border"));
        }
        Ok(out)
    }

    fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, _work: &mut Workspace, _isa: Isa) {
        crop(input, out, self.corners[i], self.border, |k| P::narrow(self.fill[k]));
    }

    fn mask<E: Copy>(&self, i: usize, input: View<'_, E>, out: ViewMut<'_, E>, fill: E) {
        crop(input, out, self.corners[i], self.border, |_| fill);
    }
}

fn crop<E: Copy>(
    input: View<'_, E>,
    out: ViewMut<'_, E>,
    [top, left]: [i64; 2],
    border: Border,
    fill: impl Fn(usize) -> E,
) {
    let (Shape { h, w, .. }, to) = (input.shape, out.shape);
    if to.is_empty() {
        return;
    }
    let (_, c) = to.planes();
    // Columns `start .. end` of the result are columns of the picture, the others are continued from these.
    let start = (-left).clamp(0, to.w as i64) as usize;
    let end = (w as i64 - left).clamp(start as i64, to.w as i64) as usize;
    let first = (left + start as i64) as usize;
    let outside = (0..start).chain(end..to.w);
    let continued: Vec<_> = outside.filter_map(|x| Some((x, border.index(left + x as i64, w)?))).collect();
    for (i, out) in out.data.chunks_exact_mut(to.w * c).enumerate() {
        let (plane, y) = (i / to.h, i % to.h);
        let fill = |k: usize| fill(plane + k);
        let Some(y) = border.index(top + y as i64, h) else {
            paint(out, c, fill);
            continue;
        };
        let row = &input.data[(plane * h + y) * w * c..][..w * c];
        if start < end {
            out[start * c..end * c].copy_from_slice(&row[first * c..][..(end - start) * c]);
        }
        if border == Border::Constant {
            paint(&mut out[..start * c], c, fill);
            paint(&mut out[end * c..], c, fill);
        }
        for &(x, u) in &continued {
            for k in 0..c {
                out[x * c + k] = row[u * c + k];
            }
        }
    }
}

/// Pixels of one colour: the first by element, the others as copies of what is there, twice as many each time.
pub(super) fn paint<E: Copy>(out: &mut [E], c: usize, fill: impl Fn(usize) -> E) {
    if out.is_empty() {
        return;
    }
    for (k, out) in out[..c].iter_mut().enumerate() {
        *out = fill(k);
    }
    let mut done = c;
    while done < out.len() {
        let more = done.min(out.len() - done);
        out.copy_within(..more, done);
        done += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    const BORDERS: [Border; 5] = [Border::Constant, Border::Edge, Border::Reflect, Border::Symmetric, Border::Wrap];
    const CORNERS: [f64; 18] =
        [0.0, 0.0, 1.0, 2.0, -1.0, -2.0, -3.0, 1.0, 2.0, -5.0, 40.0, -61.0, -1000.0, 1001.0, 5.0, 6.0, -1e9, 1e9];

    fn at(shape: Shape, y: usize, x: usize, k: usize) -> usize {
        let (channel, pixel) = shape.strides();
        (y * shape.w + x) * pixel + k * channel
    }

    fn new(h: usize, w: usize, border: usize, fill: &[f64]) -> Crop {
        let settings = [&[h as f64, w as f64, border as f64], fill].concat();
        Crop::new(Table { n: CORNERS.len() / 2, columns: 2, rows: &CORNERS, settings: &settings }, fill.len()).unwrap()
    }

    /// Which of `n` pixels is at `i`, by walking there from pixel 0 step by step as the border says.
    fn walk(border: usize, i: i64, n: i64) -> Option<i64> {
        if (0..n).contains(&i) {
            return Some(i);
        }
        // A whole number of periods is left out: walking 10^9 steps takes too long.
        let period = [1, 1, 2 * n - 2, 2 * n, n][border].max(1);
        let (mut at, mut step) = (0, i.signum());
        for _ in 0..if border < 2 { i.abs().min(2 * n) } else { i.abs() % period } {
            let next = at + step;
            if (0..n).contains(&next) {
                at = next;
                continue;
            }
            match border {
                0 => return None,
                1 => {}
                2 if n == 1 => {}
                2 => {
                    step = -step;
                    at += step;
                }
                3 => step = -step,
                _ => at = (next + n) % n,
            }
        }
        Some(at)
    }

    fn naive<E: Copy>(input: &[E], from: Shape, to: Shape, corner: &[f64], border: usize, fill: &[E]) -> Vec<E> {
        let mut out = vec![fill[0]; to.len()];
        for y in 0..to.h {
            for x in 0..to.w {
                let v = walk(border, corner[0] as i64 + y as i64, from.h as i64);
                let u = walk(border, corner[1] as i64 + x as i64, from.w as i64);
                for k in 0..to.c {
                    out[at(to, y, x, k)] = match (v, u) {
                        (Some(v), Some(u)) => input[at(from, v as usize, u as usize, k)],
                        _ => fill[k],
                    };
                }
            }
        }
        out
    }

    fn cases() -> impl Iterator<Item = (Shape, usize, usize)> {
        let sizes = [(1, 1), (2, 1), (1, 3), (5, 7), (8, 6), (13, 17)];
        let windows = [(1, 1), (5, 7), (3, 2), (9, 20), (20, 40), (0, 3), (3, 0)];
        sizes.into_iter().flat_map(move |(h, w)| {
            (1..6).flat_map(move |c| {
                [false, true]
                    .into_iter()
                    .flat_map(move |planar| windows.into_iter().map(move |(a, b)| (Shape { h, w, c, planar }, a, b)))
            })
        })
    }

    fn elements<E>(shape: Shape, of: impl Fn(u32) -> E) -> Vec<E> {
        (0..shape.len() as u32).map(|i| of((i + 1).wrapping_mul(2_654_435_761) >> 7)).collect()
    }

    fn pictures<P: Pixel + Debug>(of: impl Fn(u32) -> P) {
        let fill = [7.0, 255.0, 0.0, 31.0, 64.0];
        for (shape, h, w) in cases() {
            let data = elements(shape, &of);
            let fill = &fill[..shape.c];
            let fills: Vec<P> = fill.iter().map(|&x| P::narrow(x as f32)).collect();
            for (border, &name) in BORDERS.iter().enumerate() {
                let crop = new(h, w, border, fill);
                assert_eq!(crop.border, name);
                for i in 0..CORNERS.len() / 2 {
                    let to = crop.shape(i, shape).unwrap();
                    assert_eq!(to, shape.sized(h, w));
                    let want = naive(&data, shape, to, &CORNERS[2 * i..], border, &fills);
                    for isa in Isa::available() {
                        let mut out = vec![of(1); to.len()];
                        let (input, view) = (View { data: &data, shape }, ViewMut { data: &mut out, shape: to });
                        crop.make(i, input, view, &mut Workspace::default(), isa);
                        assert_eq!(out, want, "{i} {name:?} {shape:?} {isa}");
                    }
                }
            }
        }
    }

    fn masks<E: Copy + PartialEq + Debug>(of: impl Fn(u32) -> E) {
        for (shape, h, w) in cases() {
            let data = elements(shape, &of);
            for border in 0..5 {
                let crop = new(h, w, border, &[0.0, 0.0, 0.0]);
                for i in 0..CORNERS.len() / 2 {
                    let to = crop.shape(i, shape).unwrap();
                    let want = naive(&data, shape, to, &CORNERS[2 * i..], border, &[of(99); 5]);
                    let mut out = vec![of(1); to.len()];
                    crop.mask(i, View { data: &data, shape }, ViewMut { data: &mut out, shape: to }, of(99));
                    assert_eq!(out, want, "{i} {border} {shape:?}");
                }
            }
        }
    }

    #[test]
    fn pictures_are_cut_element_by_element() {
        pictures(|i| i as u8);
        pictures(|i| i as f32);
    }

    #[test]
    fn masks_are_cut_element_by_element() {
        masks(|i| i as u8);
        masks(|i| i as u16);
        masks(|i| i);
        masks(|i| u64::from(i) << 20);
    }

    #[test]
    fn an_empty_picture_has_only_a_constant_border() {
        for (h, w) in [(0, 3), (3, 0), (0, 0)] {
            let shape = Shape { h, w, c: 2, planar: false };
            let mut out = [1u8; 8];
            let crop = new(2, 2, 0, &[5.0, 6.0]);
            let to = crop.shape(0, shape).unwrap();
            let view = ViewMut { data: &mut out, shape: to };
            crop.make(0, View { data: &[], shape }, view, &mut Workspace::default(), Isa::BASELINE);
            assert_eq!(out, [5, 6, 5, 6, 5, 6, 5, 6]);
            for border in 1..5 {
                assert!(new(2, 2, border, &[5.0, 6.0]).shape(0, shape).unwrap_err().contains("constant border"));
                assert!(new(0, 2, border, &[5.0, 6.0]).shape(0, shape).is_ok());
            }
        }
    }

    #[test]
    fn wrong_numbers_are_named() {
        let new = |rows: &[f64], settings: &[f64]| {
            Crop::new(Table { n: rows.len() / 2, columns: 2, rows, settings }, 1).unwrap_err()
        };
        for x in [0.5, f64::NAN, f64::INFINITY, -1.1e10] {
            assert!(
                new(&[0.0, x], &[1.0, 1.0, 0.0, 0.0])
                    .contains(&format!("left of sample 0 must be a whole number from -2^30 to 2^30, got {x}"))
            );
            assert!(
                new(&[0.0, 0.0], &[1.0, x, 0.0, 0.0])
                    .contains(&format!("w must be a whole number from 0 to 2^30, got {x}"))
            );
            assert!(
                new(&[0.0, 0.0], &[1.0, 1.0, x, 0.0])
                    .contains(&format!("border must be a whole number from 0 to 4, got {x}"))
            );
        }
        assert!(new(&[], &[-1.0, 1.0, 0.0, 0.0]).contains("h must be"));
        assert!(new(&[], &[1.0, 1.0, 0.0]).contains("one fill for each of 1 channels, got 2 columns and 0 fills"));
        assert!(new(&[], &[1.0]).contains("got 1 of them"));
        let large = Crop::new(Table { n: 0, columns: 2, rows: &[], settings: &[1e9, 1e9, 0.0, 0.0] }, 1).unwrap();
        let shape = Shape { h: 1, w: 1, c: 3, planar: false };
        assert!(large.shape(0, shape).unwrap_err().contains("does not fit into memory"));
    }
}
