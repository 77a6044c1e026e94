//! Gaussian blur.
//!
//! Along each axis a pixel becomes the sum of its neighbours `k` = -r .. r away, `r` the half of the kernel's size, with
//! weights `exp(-(k / sigma)^2 / 2)` divided by their sum: computed in `f64` with the same bits everywhere, rounded to `f32`.
//! (This is what torchvision does.) Outside, the picture is mirrored at the middle of its last pixels
//! ([`Border::Reflect`](super::Border)).
//!
//! Sums are `f32`, from 0 on, in the order of the pixels, each product rounded: first down the columns, then along the rows. A
//! weight that is 0 in `f32` is not in the sum.

use super::resize::{BLOCK, load, whole};
use super::sample::{Border, Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use crate::simd::{Isa, Kernel, dispatch};

/// Rows that are made at once: what is loaded is used for all of them.
const ROWS: usize = 4;

/// Gaussian blur.
///
/// Columns: sigma of x and of y, above 0. Settings: height and width of the kernel, odd.
#[derive(Clone, Debug)]
pub struct Blur {
    sigmas: Vec<[f64; 2]>,
    /// Half of the kernel's height and width.
    half: [usize; 2],
}

impl Op for Blur {
    const NAME: &'static str = "blur";
    const EDITS: bool = false;

    fn new(table: Table<'_>, _channels: usize) -> Result<Blur, String> {
        let &[height, width] = table.settings else {
            return Err(format!("blur takes 2 settings (kernel_h, kernel_w), got {}", table.settings.len()));
        };
        if table.columns != 2 {
            return Err(format!("blur takes 2 columns (sigma_x, sigma_y), got {}", table.columns));
        }
        let half = |name: &str, x: f64| match whole(x, 1.0) {
            Some(size) if size % 2 == 1 => Ok(size / 2),
            _ => Err(format!("blur's {name} must be an odd whole number from 1 to 2^30, got {x}")),
        };
        let half = [half("kernel_h", height)?, half("kernel_w", width)?];
        let sigma = |i: usize| {
            for (name, &x) in ["sigma_x", "sigma_y"].iter().zip(table.row(i)) {
                if !(x > 0.0 && x.is_finite()) {
                    return Err(format!("blur's {name} must be above 0 and finite, got {x} for sample {i}"));
                }
            }
            Ok([table.row(i)[0], table.row(i)[1]])
        };
        Ok(Blur { sigmas: (0..table.n).map(sigma).collect::<Result<_, _>>()?, half })
    }

    fn shape(&self, _i: usize, input: Shape) -> Result<Shape, String> {
        let sides = [("kernel_h", "height", self.half[0], input.h), ("kernel_w", "width", self.half[1], input.w)];
        for (name, side, half, n) in sides {
            if half >= n && !input.is_empty() {
                return Err(format!(
                    "blur's {name} must be at most 2 {side} - 1 = {}, as the picture is mirrored once at its borders, got {}",
                    2 * n - 1,
                    2 * half + 1
                ));
            }
        }
        Ok(input)
    }

    fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, work: &mut Workspace, isa: Isa) {
        if input.shape.is_empty() {
            return;
        }
        let [x, y] = self.sigmas[i];
        let (vertical, horizontal) = (&weights(y, self.half[0])[..], &weights(x, self.half[1])[..]);
        if vertical.len() == 1 && horizontal.len() == 1 {
            return out.data.copy_from_slice(input.data);
        }
        let c = input.shape.planes().1;
        let line = (input.shape.w * c).next_multiple_of(LINE);
        let lines = work.floats(ROWS * (line + (horizontal.len() - 1) * c));
        let rows = &mut vec![0; vertical.len() + ROWS - 1][..];
        dispatch(isa, Gauss { input, out, vertical, horizontal, rows, lines });
    }
}

/// The weights of a Gauss curve, without those at the ends that are 0: an odd number of them.
fn weights(sigma: f64, half: usize) -> Vec<f32> {
    let curve: Vec<f64> = (0..=half)
        .map(|k| {
            let z = k as f64 / sigma;
            libm::exp(-0.5 * z * z)
        })
        .collect();
    // All of them from left to right.
    let sum: f64 = curve[1..].iter().rev().chain(&curve).sum();
    let side: Vec<f32> = curve.iter().map(|x| (x / sum) as f32).take_while(|&x| x != 0.0).collect();
    side[1..].iter().rev().chain(&side).copied().collect()
}

struct Gauss<'a, P> {
    input: View<'a, P>,
    out: ViewMut<'a, P>,
    vertical: &'a [f32],
    horizontal: &'a [f32],
    /// Where the rows begin that `ROWS` rows are made of.
    rows: &'a mut [usize],
    /// `ROWS` of them, each with a mirrored border, rounded up to whole `LINE`s.
    lines: &'a mut [f32],
}

/// Elements of a row that are made at once.
const LINE: usize = 2 * BLOCK;

impl<P: Pixel> Kernel for Gauss<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Gauss { input, out, vertical, horizontal, rows, lines } = self;
        let Shape { h, w, .. } = input.shape;
        let (planes, c) = input.shape.planes();
        let row = w * c;
        let border = horizontal.len() / 2 * c;
        lines.fill(0.0);
        let length = lines.len() / ROWS;
        for plane in 0..planes {
            let source = &input.data[plane * h * row..][..h * row];
            let out = &mut out.data[plane * h * row..][..h * row];
            let mut y = 0;
            while y < h {
                let count = if h - y >= ROWS { ROWS } else { 1 };
                let first = y as i64 - (vertical.len() / 2) as i64;
                for (k, start) in rows.iter_mut().enumerate() {
                    // Of one row, the last ones are not needed; all others are inside, as the kernel is not too large.
                    *start = Border::Reflect.index(first + k as i64, h).unwrap_or(0) * row;
                }
                let lines_of_it = &mut lines[border..];
                if count == ROWS {
                    down::<P, ROWS>(source, rows, row, vertical, lines_of_it, length);
                } else {
                    down::<P, 1>(source, rows, row, vertical, lines_of_it, length);
                }
                for r in 0..count {
                    let line = &mut lines[r * length..][..length];
                    mirror(line, w, c, border);
                    along(line, horizontal, c, &mut out[(y + r) * row..][..row]);
                }
                y += count;
            }
        }
    }
}

/// `R` rows blurred down the columns, `length` apart, of rows of `row` elements that begin at `rows`.
#[inline(always)]
fn down<P: Pixel, const R: usize>(
    source: &[P],
    rows: &[usize],
    row: usize,
    weights: &[f32],
    lines: &mut [f32],
    length: usize,
) {
    let taps = weights.len();
    for block in (0..row).step_by(BLOCK) {
        let mut sums = [[0.0; BLOCK]; R];
        for (k, start) in rows[..taps + R - 1].iter().enumerate() {
            let x = load(source, start + block);
            if k + 1 >= R && k < taps {
                for r in 0..R {
                    add(&mut sums[r], weights[k - r], x);
                }
            } else {
                for r in 0..R {
                    if (r..r + taps).contains(&k) {
                        add(&mut sums[r], weights[k - r], x);
                    }
                }
            }
        }
        for r in 0..R {
            let n = BLOCK.min(row - block);
            lines[r * length + block..][..n].copy_from_slice(&sums[r][..n]);
        }
    }
}

#[inline(always)]
fn add(sum: &mut [f32; BLOCK], weight: f32, x: [f32; BLOCK]) {
    for l in 0..BLOCK {
        sum[l] += weight * x[l];
    }
}

/// Fills the `border` elements before and after the `w` pixels of a line.
#[inline(always)]
fn mirror(line: &mut [f32], w: usize, c: usize, border: usize) {
    for k in 1..=border / c {
        for channel in 0..c {
            line[border - k * c + channel] = line[border + k * c + channel];
            line[border + (w - 1 + k) * c + channel] = line[border + (w - 1 - k) * c + channel];
        }
    }
}

/// The sums along a line that begins with a border.
#[inline(always)]
fn along<P: Pixel>(line: &[f32], weights: &[f32], c: usize, out: &mut [P]) {
    for (block, out) in out.chunks_mut(LINE).enumerate() {
        let mut sum = [0.0; LINE];
        for (k, &weight) in weights.iter().enumerate() {
            let x = &line[block * LINE + k * c..][..LINE];
            for l in 0..LINE {
                sum[l] += weight * x[l];
            }
        }
        let mut made = [P::default(); LINE];
        for l in 0..LINE {
            made[l] = P::narrow(sum[l]);
        }
        out.copy_from_slice(&made[..out.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(sigmas: [f64; 2], kernel: [usize; 2]) -> Blur {
        let settings = kernel.map(|x| x as f64);
        Blur::new(Table { n: 1, columns: 2, rows: &sigmas, settings: &settings }, 3).unwrap()
    }

    fn run<P: Pixel>(op: &Blur, data: &[P], shape: Shape, isa: Isa) -> Vec<P> {
        assert_eq!(op.shape(0, shape), Ok(shape));
        // What was there before, in the result and in the workspace, must not be seen.
        let mut out = vec![P::narrow(77.0); shape.len()];
        let mut work = Workspace::default();
        work.floats(100_000).fill(f32::NAN);
        op.make(0, View { data, shape }, ViewMut { data: &mut out, shape }, &mut work, isa);
        out
    }

    fn at(shape: Shape, y: usize, x: usize, k: usize) -> usize {
        if shape.planar { (k * shape.h + y) * shape.w + x } else { (y * shape.w + x) * shape.c + k }
    }

    /// In `f64`, as a sum over the square.
    fn naive(sigmas: [f64; 2], half: [usize; 2], data: &[f64], shape: Shape) -> Vec<f64> {
        let [half_h, half_w] = half.map(|x| x as i64);
        let curve = |k: i64, sigma: f64| libm::exp(-0.5 * (k as f64 / sigma) * (k as f64 / sigma));
        let mut out = vec![0.0; shape.len()];
        for y in 0..shape.h {
            for x in 0..shape.w {
                for c in 0..shape.c {
                    let (mut sum, mut total) = (0.0, 0.0);
                    for j in -half_h..=half_h {
                        for i in -half_w..=half_w {
                            let weight = curve(j, sigmas[1]) * curve(i, sigmas[0]);
                            let row = Border::Reflect.index(y as i64 + j, shape.h).unwrap();
                            let column = Border::Reflect.index(x as i64 + i, shape.w).unwrap();
                            sum += weight * data[at(shape, row, column, c)];
                            total += weight;
                        }
                    }
                    out[at(shape, y, x, c)] = sum / total;
                }
            }
        }
        out
    }

    #[test]
    fn it_is_the_naive_sum_on_each_instruction_set() {
        let cases = [
            ([1, 1], [1, 1], [1.0, 1.0]),
            ([2, 2], [3, 3], [0.8, 2.0]),
            ([1, 9], [1, 5], [1.5, 1.0]),
            ([9, 1], [17, 1], [1.0, 3.0]),
            ([5, 7], [3, 13], [4.0, 0.3]),
            ([13, 11], [5, 5], [1.1, 1.3]),
            ([12, 40], [23, 23], [3.0, 100.0]),
            ([17, 37], [3, 1], [1.0, 1e-3]),
            ([8, 33], [1, 9], [2.0, 1.0]),
        ];
        for ([h, w], kernel, sigmas) in cases {
            let op = op(sigmas, kernel);
            for (c, planar) in [(1, false), (2, false), (3, false), (4, false), (5, false), (1, true), (3, true)] {
                let shape = Shape { h, w, c, planar };
                let bytes: Vec<u8> = (0..shape.len()).map(|i| (i * i * 31 + i * 7 + i / 5) as u8).collect();
                let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 255.0 - 0.25).collect();
                let wide: Vec<f64> = bytes.iter().map(|&b| f64::from(b)).collect();
                let want = naive(sigmas, op.half, &wide, shape);
                let got = run(&op, &bytes, shape, Isa::BASELINE);
                for (got, want) in got.iter().zip(&want) {
                    assert!((f64::from(*got) - want).abs() < 0.5001, "{h} {w} {kernel:?} {c} {got} {want}");
                }
                let wide: Vec<f64> = floats.iter().map(|&x| f64::from(x)).collect();
                let want = naive(sigmas, op.half, &wide, shape);
                let same = run(&op, &floats, shape, Isa::BASELINE);
                for (got, want) in same.iter().zip(&want) {
                    assert!((f64::from(*got) - want).abs() < 1e-6, "{h} {w} {kernel:?} {c} {got} {want}");
                }
                for isa in Isa::available() {
                    assert_eq!(run(&op, &bytes, shape, isa), got);
                    let floats = run(&op, &floats, shape, isa);
                    assert!(floats.iter().zip(&same).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_sums_is_as_documented() {
        let shape = Shape { h: 6, w: 9, c: 3, planar: false };
        let data: Vec<f32> = (0..shape.len()).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
        let sigmas = [1.3, 0.9];
        let (vertical, horizontal) = (weights(sigmas[1], 2), weights(sigmas[0], 3));
        let mut down = vec![0f32; shape.len()];
        let mut want = down.clone();
        for (from, to, kernel, axis) in [(&data.clone(), 0, &vertical, 0), (&vec![], 1, &horizontal, 1)] {
            let from = if to == 0 { from.clone() } else { down.clone() };
            for y in 0..6 {
                for x in 0..9 {
                    for k in 0..3 {
                        let mut sum = 0f32;
                        for (j, weight) in kernel.iter().enumerate() {
                            let away = j as i64 - (kernel.len() / 2) as i64;
                            let (mut yy, mut xx) = (y, x);
                            if axis == 0 {
                                yy = Border::Reflect.index(y as i64 + away, 6).unwrap();
                            } else {
                                xx = Border::Reflect.index(x as i64 + away, 9).unwrap();
                            }
                            sum += weight * from[at(shape, yy, xx, k)];
                        }
                        if to == 0 { down[at(shape, y, x, k)] = sum } else { want[at(shape, y, x, k)] = sum }
                    }
                }
            }
        }
        assert_eq!(run(&op(sigmas, [5, 7]), &data, shape, Isa::detect()), want);
    }

    #[test]
    fn values_by_hand() {
        // exp(-1 / 2) = 0.6065...: the weights of sigma 1 and 3 pixels.
        let side = 0.606_530_66 / (1.0 + 2.0 * 0.606_530_66);
        let w = weights(1.0, 1);
        assert!((f64::from(w[0]) - side).abs() < 1e-7 && w[0] == w[2] && w.len() == 3);
        let shape = Shape { h: 1, w: 3, c: 1, planar: false };
        let y = run(&op([1.0, 1.0], [1, 3]), &[1f32, 0.0, 0.0], shape, Isa::detect());
        let want = [1.0 - 2.0 * side, side, 0.0];
        assert!(y.iter().zip(want).all(|(&y, want)| (f64::from(y) - want).abs() < 1e-7));
    }

    #[test]
    fn a_sigma_of_nearly_nothing_is_a_copy() {
        let shape = Shape { h: 5, w: 4, c: 2, planar: false };
        let x: Vec<f32> = (0..shape.len()).map(|i| if i % 3 == 0 { f32::INFINITY } else { -0.0 }).collect();
        for sigma in [1e-3, 1e-200, f64::MIN_POSITIVE / 4.0] {
            let y = run(&op([sigma, sigma], [3, 7]), &x, shape, Isa::detect());
            assert!(x.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        // And a very large one is the mean.
        assert_eq!(weights(1e300, 2), [0.2; 5]);
    }

    #[test]
    fn bytes_of_one_colour_keep_it() {
        let shape = Shape { h: 30, w: 31, c: 3, planar: false };
        for value in [0u8, 1, 128, 255] {
            let y = run(&op([5.0, 3.0], [23, 11]), &vec![value; shape.len()], shape, Isa::detect());
            assert!(y.iter().all(|&y| y == value));
        }
    }

    #[test]
    fn bad_numbers_are_named() {
        let new = |rows: &[f64], settings: &[f64]| {
            Blur::new(Table { n: 1, columns: rows.len(), rows, settings }, 3).map(|_| ()).unwrap_err()
        };
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(new(&[bad, 1.0], &[3.0, 3.0]).contains("sigma_x"));
            assert!(new(&[1.0, bad], &[3.0, 3.0]).contains("sigma_y"));
        }
        for bad in [0.0, 2.0, 1.5, -3.0, f64::NAN, f64::INFINITY, 4e9 + 1.0] {
            assert!(new(&[1.0, 1.0], &[bad, 3.0]).contains("kernel_h"));
            assert!(new(&[1.0, 1.0], &[3.0, bad]).contains("kernel_w"));
        }
        assert!(new(&[1.0], &[3.0, 3.0]).contains("2 columns"));
        assert!(new(&[1.0, 1.0], &[3.0]).contains("2 settings"));
        let shape = Shape { h: 3, w: 9, c: 1, planar: false };
        assert_eq!(op([1.0, 1.0], [5, 17]).shape(0, shape), Ok(shape));
        assert!(
            op([1.0, 1.0], [7, 3]).shape(0, shape).unwrap_err().contains("kernel_h must be at most 2 height - 1 = 5")
        );
        assert!(op([1.0, 1.0], [3, 19]).shape(0, shape).unwrap_err().contains("kernel_w"));
        for (h, w) in [(0, 5), (5, 0)] {
            assert!(run(&op([1.0, 1.0], [5, 5]), &[0u8; 0], shape.sized(h, w), Isa::detect()).is_empty());
        }
    }
}
