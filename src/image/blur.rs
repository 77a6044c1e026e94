//! Gaussian blur.
//!
//! Along each axis a pixel becomes the sum of its neighbours `k` = -r .. r away, `r` the half of the kernel's size,
//! with weights `exp(-(k / sigma)^2 / 2)` divided by their sum: computed in `f64` with the same bits everywhere,
//! rounded to `f32`. (This is what torchvision does.) Outside, the picture is mirrored at the middle of its last
//! pixels ([`Border::Reflect`](super::Border)).
//!
//! Sums are `f32`, first down the columns, then along the rows: `w[0] x[0]`, then for k = 1, 2, ... r plus
//! `w[k] (x[-k] + x[k])`, each operation rounded. So a mirrored picture has the mirrored blur, to the bit. A weight
//! that is 0 in `f32` is not in the sum.

use super::resize::whole;
use super::sample::{Border, Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use crate::simd::{Isa, Kernel, dispatch};

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
            _ => Err(format!("blur's {name} must be an odd whole number from 1 to 2^24, got {x}")),
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
                    "blur's {name} must be at most 2 {side} - 1 = {}, as the picture is mirrored once at its borders, \
                     got {}",
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
        let row = input.shape.w * c;
        let floats = work.floats(2 * row + 2 * (horizontal.len() - 1) * c);
        dispatch(isa, Gauss { input, out, vertical, horizontal, floats });
    }
}

/// The weights of a Gauss curve from its middle on, without those at the end that are 0.
fn weights(sigma: f64, half: usize) -> Vec<f32> {
    let curve: Vec<f64> = (0..=half)
        .map(|k| {
            let z = k as f64 / sigma;
            libm::exp(-0.5 * z * z)
        })
        .collect();
    // All of them from left to right.
    let sum: f64 = curve[1..].iter().rev().chain(&curve).sum();
    curve.iter().map(|x| (x / sum) as f32).take_while(|&x| x != 0.0).collect()
}

struct Gauss<'a, P> {
    input: View<'a, P>,
    out: ViewMut<'a, P>,
    vertical: &'a [f32],
    horizontal: &'a [f32],
    /// A row between mirrored borders, and a row of the result.
    floats: &'a mut [f32],
}

impl<P: Pixel> Kernel for Gauss<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Gauss { input, out, vertical, horizontal, floats } = self;
        let Shape { h, w, .. } = input.shape;
        let (planes, c) = input.shape.planes();
        let row = w * c;
        let border = (horizontal.len() - 1) * c;
        let (line, made) = floats.split_at_mut(row + 2 * border);
        for plane in 0..planes {
            let source = &input.data[plane * h * row..][..h * row];
            let out = &mut out.data[plane * h * row..][..h * row];
            for (y, out) in out.chunks_exact_mut(row).enumerate() {
                // All of these are inside, as the kernel is not larger than the picture allows.
                let above = |k: isize| Border::Reflect.index((y as isize + k) as i64, h).unwrap_or(0) * row;
                sums(source, above, vertical, &mut line[border..border + row]);
                mirror(line, w, c, border);
                sums(line, |k| border.wrapping_add_signed(k * c as isize), horizontal, made);
                for (out, &x) in out.iter_mut().zip(made.iter()) {
                    *out = P::narrow(x);
                }
            }
        }
    }
}

/// The sums of `row` elements each, where pixels at the same distance lie at `place(-k)` and `place(k)` of `source`.
///
/// Whole rows are added, four distances at a time, as that is what compilers make good loops of.
#[inline(always)]
fn sums<P: Pixel>(source: &[P], place: impl Fn(isize) -> usize, weights: &[f32], made: &mut [f32]) {
    let n = made.len();
    for (out, x) in made.iter_mut().zip(&source[place(0)..][..n]) {
        *out = weights[0] * x.widen();
    }
    let pair = |k: usize| {
        let k = k as isize;
        [&source[place(-k)..][..n], &source[place(k)..][..n]]
    };
    let mut k = 1;
    while k < weights.len() {
        k += match weights.len() - k {
            1 => add([pair(k)], [weights[k]], made),
            2 | 3 => add([pair(k), pair(k + 1)], [weights[k], weights[k + 1]], made),
            _ => {
                let pairs = [pair(k), pair(k + 1), pair(k + 2), pair(k + 3)];
                add(pairs, [weights[k], weights[k + 1], weights[k + 2], weights[k + 3]], made)
            }
        };
    }
}

/// Adds `N` pairs of rows, one after the other, and gives `N`.
#[inline(always)]
fn add<P: Pixel, const N: usize>(pairs: [[&[P]; 2]; N], weights: [f32; N], made: &mut [f32]) -> usize {
    let n = made.len();
    let pairs = pairs.map(|[a, b]| [&a[..n], &b[..n]]);
    for i in 0..n {
        let mut sum = made[i];
        for k in 0..N {
            sum += weights[k] * both(pairs[k][0][i], pairs[k][1][i]);
        }
        made[i] = sum;
    }
    N
}

/// The sum of two. Of bytes as whole numbers, as that needs only one conversion.
#[inline(always)]
fn both<P: Pixel>(a: P, b: P) -> f32 {
    let (a, b) = (a.widen(), b.widen());
    if P::BYTE {
        // SAFETY: each is from 0 to 255.
        let (a, b) = unsafe { (a.to_int_unchecked::<u16>(), b.to_int_unchecked::<u16>()) };
        return f32::from(a + b);
    }
    a + b
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
        let pass = |from: &[f32], weights: &[f32], vertical: bool| -> Vec<f32> {
            let pixel = |y: usize, x: usize, away: i64, k: usize| {
                let (j, i) = if vertical { (away, 0) } else { (0, away) };
                let row = Border::Reflect.index(y as i64 + j, 6).unwrap();
                from[at(shape, row, Border::Reflect.index(x as i64 + i, 9).unwrap(), k)]
            };
            let sum = |i: usize| {
                let (y, x, k) = (i / 27, i / 3 % 9, i % 3);
                let mut sum = weights[0] * pixel(y, x, 0, k);
                for (away, weight) in (1..).zip(&weights[1..]) {
                    sum += weight * (pixel(y, x, -away, k) + pixel(y, x, away, k));
                }
                sum
            };
            (0..from.len()).map(sum).collect()
        };
        let want = pass(&pass(&data, &weights(sigmas[1], 2), true), &weights(sigmas[0], 3), false);
        assert_eq!(run(&op(sigmas, [5, 7]), &data, shape, Isa::detect()), want);
    }

    #[test]
    fn values_by_hand() {
        // exp(-1 / 2) = 0.6065...: the weights of sigma 1 and 3 pixels.
        let side = 0.606_530_66 / (1.0 + 2.0 * 0.606_530_66);
        let w = weights(1.0, 1);
        assert!((f64::from(w[1]) - side).abs() < 1e-7 && w.len() == 2);
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
        assert_eq!(weights(1e300, 2), [0.2; 3]);
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
