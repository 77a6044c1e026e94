//! Boxes that are filled: random erasing and Cutout.

use crate::image::draw::{self, NORMALS, normals, words};
use crate::image::{Op, Pixel, Shape, Table, ViewMut, Workspace};
use crate::philox::GROUP;
use crate::simd::{Isa, Kernel, dispatch};

/// Boxes of a picture, filled with one value for each channel or with random numbers.
///
/// Random erasing: Zhong, Zheng, Kang, Li & Yang 2020 (arXiv 1708.04896). Cutout: `DeVries` & Taylor 2017 (arXiv
/// 1708.04552).
///
/// A random `f32` is a standard normal number, as torch's: element `i` of the picture in the order (h, w, c) has number
/// `i % 128` of [`normals`]' group `i / 128`. A random byte is any of the 256: element `i` has byte `i % 256` of group
/// `i / 256` of [`words`], each word's lowest byte first. So boxes that overlap agree, whatever their order.
#[derive(Clone, Debug)]
pub struct Erase {
    samples: Vec<Sample>,
    values: Vec<f32>,
    random: bool,
}

#[derive(Clone, Debug)]
struct Sample {
    key: [u32; 2],
    counter: [u32; 3],
    /// Top, left, bottom, right.
    boxes: Vec<[usize; 4]>,
}

impl Op for Erase {
    const NAME: &'static str = "erase";
    const EDITS: bool = true;

    /// Columns: the five words of key and counter, then top, left, bottom and right of each box, which is clipped to
    /// the picture and empty if bottom <= top or right <= left. Settings: whether to fill with random numbers (0 or 1),
    /// and the value of each channel, in units of the picture's pixel.
    fn new(table: Table<'_>, channels: usize) -> Result<Erase, String> {
        let [random, values @ ..] = table.settings else {
            return Err("erase takes the settings random and a value for each channel, got none".into());
        };
        if *random != 0.0 && *random != 1.0 {
            return Err(format!("random must be 0 or 1, got {random}"));
        }
        if values.len() != channels {
            return Err(format!("value must have one number for each of {channels} channels, got {}", values.len()));
        }
        if let Some(value) = values.iter().find(|&&value| !(value as f32).is_finite()) {
            return Err(format!("value must be finite, got {value}"));
        }
        if table.columns < 5 || !(table.columns - 5).is_multiple_of(4) {
            return Err(format!("erase takes 5 numbers for each sample and 4 for each box, got {}", table.columns));
        }
        let sample = |i: usize| {
            let (numbers, boxes) = table.row(i).split_at(5);
            let (key, counter) = draw::of_numbers(numbers)
                .ok_or_else(|| format!("the words of sample {i} must be whole numbers of 32 bits, got {numbers:?}"))?;
            if let Some(end) = boxes.iter().find(|end| libm::trunc(**end) != **end || !end.is_finite()) {
                return Err(format!("a box must have whole numbers, got {end} for sample {i}"));
            }
            // What is below 0 becomes 0.
            let boxes = boxes.as_chunks::<4>().0.iter().map(|ends| ends.map(|end| end as usize)).collect();
            Ok(Sample { key, counter, boxes })
        };
        let samples = (0..table.n).map(sample).collect::<Result<_, String>>()?;
        Ok(Erase { samples, values: values.iter().map(|&value| value as f32).collect(), random: *random == 1.0 })
    }

    fn shape(&self, _i: usize, input: Shape) -> Result<Shape, String> {
        if self.random && input.len() as u64 > draw::MAX_ELEMENTS {
            return Err(format!("random values are for pictures of at most 2^33 elements, got {}", input.len()));
        }
        Ok(input)
    }

    fn edit<P: Pixel>(&self, i: usize, image: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        let ViewMut { data, shape } = image;
        let Sample { key, counter, boxes } = &self.samples[i];
        for &[top, left, bottom, right] in boxes {
            let (bottom, right) = (bottom.min(shape.h), right.min(shape.w));
            if top >= bottom || left >= right || shape.c == 0 {
                continue;
            }
            let area = [top, left, bottom, right];
            if self.random {
                dispatch(isa, Random { key: *key, counter: *counter, data: &mut *data, shape, area });
            } else {
                fill(data, shape, area, &self.values);
            }
        }
    }
}

/// One value for each channel.
fn fill<P: Pixel>(data: &mut [P], shape: Shape, [top, left, bottom, right]: [usize; 4], values: &[f32]) {
    if shape.planar {
        for (plane, &value) in data.chunks_exact_mut(shape.h * shape.w).zip(values) {
            for row in plane.chunks_exact_mut(shape.w).take(bottom).skip(top) {
                row[left..right].fill(P::narrow(value));
            }
        }
        return;
    }
    // The first row pixel by pixel, the others as it.
    let row = shape.w * shape.c;
    let first = top * row + left * shape.c..top * row + right * shape.c;
    for pixel in data[first.clone()].chunks_exact_mut(shape.c) {
        for (x, &value) in pixel.iter_mut().zip(values) {
            *x = P::narrow(value);
        }
    }
    for below in 1..bottom - top {
        data.copy_within(first.clone(), first.start + below * row);
    }
}

/// Random numbers in a box that is not empty and lies inside.
struct Random<'a, P> {
    key: [u32; 2],
    counter: [u32; 3],
    data: &'a mut [P],
    shape: Shape,
    area: [usize; 4],
}

/// The most elements of a group.
const MOST: usize = 4 * GROUP;

/// The numbers of group `group`: of `MOST` bytes, or of `NORMALS` floats.
#[inline(always)]
fn random<P: Pixel>(key: [u32; 2], counter: [u32; 3], group: usize) -> [P; MOST] {
    let mut out = [P::default(); MOST];
    if P::BYTE {
        let mut bytes = [0; MOST];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words(key, counter, group as u32)) {
            *bytes = word.to_le_bytes();
        }
        for i in 0..MOST {
            out[i] = P::narrow(f32::from(bytes[i]));
        }
    } else {
        let mut z = [0.0; NORMALS];
        let runs = z.as_chunks_mut().0;
        normals::<1>(key, counter, group as u32, |run, z| runs[run] = z);
        for (out, z) in out.iter_mut().zip(z) {
            *out = P::narrow(z);
        }
    }
    out
}

impl<P: Pixel> Kernel for Random<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Random { key, counter, data, shape, area: [top, left, bottom, right] } = self;
        let length = if P::BYTE { MOST } else { NORMALS };
        let (by_channel, _) = shape.strides();
        for y in top..bottom {
            let (mut i, end) = ((y * shape.w + left) * shape.c, (y * shape.w + right) * shape.c);
            while i < end {
                let numbers = random::<P>(key, counter, i / length);
                let skip = i % length;
                let numbers = &numbers[skip..length.min(skip + end - i)];
                if shape.planar {
                    for first in 0..shape.c.min(numbers.len()) {
                        let at = (i + first) % shape.c * by_channel + (i + first) / shape.c;
                        for (out, &number) in data[at..].iter_mut().zip(numbers[first..].iter().step_by(shape.c)) {
                            *out = number;
                        }
                    }
                } else {
                    data[i..i + numbers.len()].copy_from_slice(numbers);
                }
                i += numbers.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [f64; 5] = [1.0, 2.0, 3.0, 4.0, 5.0];

    fn op(boxes: &[f64], random: bool, values: &[f64]) -> Result<Erase, String> {
        let rows: Vec<f64> = WORDS.iter().chain(boxes).copied().collect();
        let settings: Vec<f64> = [f64::from(u8::from(random))].iter().chain(values).copied().collect();
        Erase::new(Table { n: 1, columns: rows.len(), rows: &rows, settings: &settings }, values.len())
    }

    fn naive<P: Pixel>(image: &[P], s: Shape, boxes: &[f64], random: bool, values: &[f64]) -> Vec<P> {
        let (by_channel, by_pixel) = s.strides();
        let mut out = image.to_vec();
        for i in 0..s.len() {
            let (y, x, c) = ((i / s.c / s.w) as f64, (i / s.c % s.w) as f64, i % s.c);
            if boxes.chunks(4).any(|b| (b[0] <= y && y < b[2]) && (b[1] <= x && x < b[3])) {
                let number = if !random {
                    values[c] as f32
                } else if P::BYTE {
                    (words([1, 2], [3, 4, 5], (i / 256) as u32)[i % 256 / 4] >> (i % 4 * 8) & 255) as f32
                } else {
                    let mut z = Vec::new();
                    normals::<1>([1, 2], [3, 4, 5], (i / 128) as u32, |_, run| z.extend(run));
                    z[i % 128]
                };
                out[i / s.c * by_pixel + c * by_channel] = P::narrow(number);
            }
        }
        out
    }

    fn check<P: Pixel + std::fmt::Debug>(of: impl Fn(usize) -> P) {
        let values = [7.0, 200.4, 3.5, -2.0];
        for (h, w, c) in [(1, 1, 1), (1, 1, 3), (9, 13, 3), (30, 41, 4), (16, 16, 1), (40, 100, 3), (5, 300, 2)] {
            let (bottom, right) = (h as f64, w as f64);
            let all: [&[f64]; 6] = [
                &[],
                &[0.0, 0.0, bottom, right],
                &[3.0, 3.0, 3.0, 9.0, 4.0, 9.0, 9.0, 2.0],
                &[-5.0, -1e15, 2.0, 3.0, bottom - 1.0, right - 2.0, 1e300, 1e18],
                &[2.0, 3.0, 7.0, 11.0, 4.0, 1.0, 9.0, 6.0],
                &[-5.0, -5.0, -1.0, -1.0, bottom, right, bottom + 4.0, right + 4.0],
            ];
            for (boxes, random) in all.into_iter().flat_map(|boxes| [(boxes, false), (boxes, true)]) {
                for planar in [false, true] {
                    let shape = Shape { h, w, c, planar };
                    let image: Vec<P> = (0..shape.len()).map(&of).collect();
                    let op = op(boxes, random, &values[..c]).unwrap();
                    let want = naive(&image, shape, boxes, random, &values);
                    for isa in Isa::available() {
                        let mut out = image.clone();
                        op.edit(0, ViewMut { data: &mut out, shape }, &mut Workspace::default(), isa);
                        assert_eq!(out, want, "{shape:?} {boxes:?} {random} {isa}");
                    }
                }
            }
        }
    }

    #[test]
    fn boxes_are_filled() {
        check(|i| (i * 37 % 256) as u8);
        check(|i| (i * 37 % 256) as f32 / 255.0);
    }

    #[test]
    fn random_bytes_are_uniform() {
        let shape = Shape { h: 256, w: 256, c: 3, planar: false };
        let mut data = vec![0_u8; shape.len()];
        let op = op(&[0.0, 0.0, 256.0, 256.0], true, &[0.0; 3]).unwrap();
        op.edit(0, ViewMut { data: &mut data, shape }, &mut Workspace::default(), Isa::detect());
        let mut counts = [0.0; 256];
        for byte in data {
            counts[usize::from(byte)] += 1.0;
        }
        let want = shape.len() as f64 / 256.0;
        let chi_squared: f64 = counts.iter().map(|count| (count - want) * (count - want) / want).sum();
        assert!((180.0..340.0).contains(&chi_squared), "{chi_squared}");
    }

    #[test]
    fn nothing_is_no_problem() {
        for random in [false, true] {
            let op = op(&[0.0, 0.0, 9.0, 9.0], random, &[0.0; 3]).unwrap();
            for (h, w, planar) in [(0, 3, false), (3, 0, false), (0, 3, true), (3, 0, true)] {
                let shape = Shape { h, w, c: 3, planar };
                op.edit(0, ViewMut::<u8> { data: &mut [], shape }, &mut Workspace::default(), Isa::detect());
            }
        }
    }

    #[test]
    fn bad_numbers_are_named() {
        assert!(op(&[0.0, 0.5, 1.0, 1.0], false, &[0.0]).unwrap_err().contains("whole numbers, got 0.5 for sample 0"));
        assert!(op(&[0.0, f64::NAN, 1.0, 1.0], false, &[0.0]).unwrap_err().contains("got NaN"));
        assert!(op(&[f64::INFINITY, 0.0, 1.0, 1.0], false, &[0.0]).is_err());
        assert!(op(&[0.0, 0.0, 1.0], false, &[0.0]).unwrap_err().contains("4 for each box, got 8"));
        assert!(op(&[], false, &[f64::NAN]).unwrap_err().contains("value must be finite"));
        assert!(op(&[], false, &[1e300]).is_err());
        let new =
            |row: &[f64], settings: &[f64]| Erase::new(Table { n: 1, columns: row.len(), rows: row, settings }, 3);
        assert!(new(&WORDS, &[]).is_err());
        assert!(new(&WORDS, &[0.5, 0.0, 0.0, 0.0]).unwrap_err().contains("random must be 0 or 1, got 0.5"));
        assert!(new(&WORDS, &[1.0, 0.0]).unwrap_err().contains("3 channels, got 1"));
        assert!(new(&WORDS[..4], &[1.0, 0.0, 0.0, 0.0]).is_err());
        assert!(new(&[1.0, 2.0, 3.0, 4.0, -1.0], &[1.0, 0.0, 0.0, 0.0]).unwrap_err().contains("words of sample 0"));
    }
}
