//! Gaussian noise.

use crate::image::draw::{self, NORMALS, RUN, normals};
use crate::image::tile::{TILE, split};
use crate::image::{Op, Pixel, Shape, Table, ViewMut, Workspace};
use crate::simd::{Isa, Kernel, dispatch};

/// `x_i + (mean + sigma z_i)` with standard normal `z_i`; mean and sigma are parts of the largest value
/// ([`Pixel::FULL`]).
///
/// Element `i` counts in the order (h, w, c), however the picture lies in memory, and `z_i` is number `i % 128` of
/// [`normals`]' group `i / 128`. In `f32`: `x + (FULL * mean + (FULL * sigma) * z)`; a byte is then rounded and clamped,
/// an `f32` clamped to 0 .. 1 if that is asked for (NaN passes).
#[derive(Clone, Debug)]
pub struct Noise {
    samples: Vec<Sample>,
    clip: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    mean: f32,
    sigma: f32,
    key: [u32; 2],
    counter: [u32; 3],
}

impl Op for Noise {
    const NAME: &'static str = "noise";
    const EDITS: bool = true;

    /// Columns: mean, sigma, and the five words of key and counter. Settings: whether to clamp (0 or 1).
    fn new(table: Table<'_>, _channels: usize) -> Result<Noise, String> {
        let &[clip] = table.settings else {
            return Err(format!("noise takes one setting, clip, got {}", table.settings.len()));
        };
        if clip != 0.0 && clip != 1.0 {
            return Err(format!("clip must be 0 or 1, got {clip}"));
        }
        if table.columns != 7 {
            return Err(format!("noise takes 7 numbers for each sample, got {}", table.columns));
        }
        let sample = |i: usize| {
            let row = table.row(i);
            let (mean, sigma) = (row[0] as f32, row[1] as f32);
            // What is times 255 finite too.
            if !(-1e36..=1e36).contains(&mean) {
                return Err(format!("mean must be finite, of at most 1e36, got {} for sample {i}", row[0]));
            }
            if !(0.0..=1e36).contains(&sigma) {
                return Err(format!("sigma must be at least 0 and at most 1e36, got {} for sample {i}", row[1]));
            }
            let (key, counter) = draw::of_numbers(&row[2..]).ok_or_else(|| {
                format!("the words of sample {i} must be whole numbers of 32 bits, got {:?}", &row[2..])
            })?;
            Ok(Sample { mean, sigma, key, counter })
        };
        Ok(Noise { samples: (0..table.n).map(sample).collect::<Result<_, String>>()?, clip: clip == 1.0 })
    }

    fn shape(&self, _i: usize, input: Shape) -> Result<Shape, String> {
        if input.len() as u64 > draw::MAX_ELEMENTS {
            return Err(format!("noise is for pictures of at most 2^33 elements, got {}", input.len()));
        }
        Ok(input)
    }

    fn edit<P: Pixel>(&self, i: usize, image: ViewMut<'_, P>, work: &mut Workspace, isa: Isa) {
        let kernel = Add { sample: self.samples[i], clip: self.clip && !P::BYTE, data: image.data };
        match image.shape {
            shape if shape.is_empty() => {}
            Shape { planar: false, .. } | Shape { c: 1, .. } => dispatch(isa, kernel),
            Shape { c: 3, .. } => dispatch(isa, AddToThree(kernel)),
            Shape { c, .. } => dispatch(isa, AddToPlanes { kernel, c, buffer: work.floats(c * NORMALS) }),
        }
    }
}

/// Groups at a time where elements lie in the order of their numbers.
const GROUPS: usize = 4;

/// To elements in the order of their numbers.
struct Add<'a, P> {
    sample: Sample,
    clip: bool,
    data: &'a mut [P],
}

impl<P: Pixel> Kernel for Add<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Add { sample, clip, data } = self;
        let mut z = [0.0; GROUPS * NORMALS];
        for (tile, data) in (0..).zip(data.chunks_mut(GROUPS * NORMALS)) {
            let runs = z.as_chunks_mut().0;
            normals::<GROUPS>(sample.key, sample.counter, GROUPS as u32 * tile, |run, z| runs[run] = z);
            add(data, &z, sample, clip);
        }
    }
}

/// To at most `N` elements that lie side by side.
#[inline(always)]
fn add<P: Pixel, const N: usize>(data: &mut [P], z: &[f32; N], sample: Sample, clip: bool) {
    let (mean, sigma) = (P::FULL * sample.mean, P::FULL * sample.sigma);
    let noisy = |x: P, z: f32| {
        let y = x.widen() + (mean + sigma * z);
        let low = if y < 0.0 { 0.0 } else { y };
        let high = if low > 1.0 { 1.0 } else { low };
        P::narrow(if clip { high } else { y })
    };
    if let Ok(data) = <&mut [P; N]>::try_from(&mut *data) {
        for (data, z) in data.as_chunks_mut::<RUN>().0.iter_mut().zip(z.as_chunks::<RUN>().0) {
            let mut out = *data;
            for j in 0..RUN {
                out[j] = noisy(out[j], z[j]);
            }
            *data = out;
        }
    } else {
        for (x, &z) in data.iter_mut().zip(z) {
            *x = noisy(*x, z);
        }
    }
}

/// To three planes: 128 pixels at a time have three groups.
struct AddToThree<'a, P>(Add<'a, P>);

impl<P: Pixel> Kernel for AddToThree<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let AddToThree(Add { sample, clip, data }) = self;
        let area = data.len() / 3;
        let mut pixels = [[0.0; 3]; TILE];
        let mut planes = [[0.0; TILE]; 3];
        for (tile, first) in (0..).zip((0..area).step_by(TILE)) {
            let runs = pixels.as_flattened_mut().as_chunks_mut().0;
            normals::<3>(sample.key, sample.counter, 3 * tile, |run, z| runs[run] = z);
            split(&pixels, &mut planes, |z| z);
            for (k, z) in planes.iter().enumerate() {
                let start = k * area + first;
                add(&mut data[start..start + TILE.min(area - first)], z, sample, clip);
            }
        }
    }
}

/// To planes: 128 pixels at a time have as many groups as there are channels.
struct AddToPlanes<'a, P> {
    kernel: Add<'a, P>,
    c: usize,
    /// 128 numbers for each channel.
    buffer: &'a mut [f32],
}

impl<P: Pixel> Kernel for AddToPlanes<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let AddToPlanes { kernel: Add { sample, clip, data }, c, buffer } = self;
        let area = data.len() / c;
        let buffer = &mut buffer[..c * NORMALS];
        for (tile, first) in (0..).zip((0..area).step_by(NORMALS)) {
            for (group, out) in (tile * c as u32..).zip(buffer.chunks_exact_mut(NORMALS)) {
                let runs = out.as_chunks_mut().0;
                normals::<1>(sample.key, sample.counter, group, |run, z| runs[run] = z);
            }
            for channel in 0..c {
                let mut z = [0.0; NORMALS];
                for (z, pixel) in z.iter_mut().zip(buffer.chunks_exact(c)) {
                    *z = pixel[channel];
                }
                let start = channel * area + first;
                add(&mut data[start..start + NORMALS.min(area - first)], &z, sample, clip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[f64], settings: &[f64]) -> Result<Noise, String> {
        Noise::new(Table { n: rows.len() / 7, columns: 7, rows, settings }, 3)
    }

    /// One element after the other.
    fn naive<P: Pixel>(image: &[P], s: Shape, sample: Sample, clip: bool) -> Vec<P> {
        let (by_channel, by_pixel) = s.strides();
        let mut out = image.to_vec();
        let mut numbers = Vec::new();
        for group in 0..s.len().div_ceil(128) {
            normals::<1>(sample.key, sample.counter, group as u32, |_, z| numbers.extend(z));
        }
        for i in 0..s.len() {
            let at = i / s.c * by_pixel + i % s.c * by_channel;
            let mut y = image[at].widen() + (P::FULL * sample.mean + P::FULL * sample.sigma * numbers[i]);
            if clip && !P::BYTE {
                y = if y < 0.0 { 0.0 } else { y };
                y = if y > 1.0 { 1.0 } else { y };
            }
            out[at] = P::narrow(y);
        }
        out
    }

    fn check<P: Pixel + std::fmt::Debug>(of: impl Fn(usize) -> P) {
        for (h, w, c) in [
            (1, 1, 1),
            (1, 1, 3),
            (5, 7, 3),
            (8, 8, 3),
            (9, 13, 4),
            (31, 5, 1),
            (16, 9, 3),
            (3, 50, 7),
            (6, 11, 2),
            (33, 32, 3),
        ] {
            for clip in [false, true] {
                let rows = [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.05, 0.3, 1.0, 2.0, 3.0, 4.0, 6.0];
                let op = table(&rows, &[f64::from(u8::from(clip))]).unwrap();
                let interleaved = Shape { h, w, c, planar: false };
                let planar = Shape { planar: true, ..interleaved };
                let image: Vec<P> = (0..interleaved.len()).map(&of).collect();
                let mut planes = image.clone();
                for i in 0..image.len() {
                    planes[i % c * h * w + i / c] = image[i];
                }
                let want = naive(&image, interleaved, op.samples[1], clip);
                let want_planes = naive(&planes, planar, op.samples[1], clip);
                assert!((0..want.len()).all(|i| want_planes[i % c * h * w + i / c] == want[i]));
                for isa in Isa::available() {
                    for (shape, image, want) in [(interleaved, &image, &want), (planar, &planes, &want_planes)] {
                        let mut out = image.clone();
                        op.edit(1, ViewMut { data: &mut out, shape }, &mut Workspace::default(), isa);
                        assert_eq!(&out, want, "{shape:?} {isa}");
                        let mut out = image.clone();
                        op.edit(0, ViewMut { data: &mut out, shape }, &mut Workspace::default(), isa);
                        assert_eq!(&out, image, "no noise");
                    }
                }
            }
        }
    }

    #[test]
    fn it_is_the_equation() {
        check(|i| (i * 37 % 256) as u8);
        check(|i| (i * 37 % 256) as f32 / 255.0);
    }

    #[test]
    fn it_has_mean_and_deviation() {
        let op = table(&[0.1, 0.02, 1.0, 2.0, 3.0, 4.0, 5.0], &[1.0]).unwrap();
        let shape = Shape { h: 300, w: 300, c: 3, planar: false };
        let (mut bytes, mut floats) = (vec![100_u8; shape.len()], vec![0.4_f32; shape.len()]);
        op.edit(0, ViewMut { data: &mut bytes, shape }, &mut Workspace::default(), Isa::detect());
        op.edit(0, ViewMut { data: &mut floats, shape }, &mut Workspace::default(), Isa::detect());
        let moments = |x: Vec<f64>| {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            (mean, (x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64).sqrt())
        };
        let (mean, deviation) = moments(bytes.into_iter().map(f64::from).collect());
        assert!((mean - 125.5).abs() < 0.05 && (deviation - (5.1_f64 * 5.1 + 1.0 / 12.0).sqrt()).abs() < 0.05);
        let (mean, deviation) = moments(floats.into_iter().map(f64::from).collect());
        assert!((mean - 0.5).abs() < 2e-4 && (deviation - 0.02).abs() < 2e-4);
    }

    #[test]
    fn it_clamps_if_asked_and_lets_nan_pass() {
        let shape = Shape { h: 1, w: 4, c: 1, planar: false };
        for (clip, want) in [(0.0, [-0.5, 1.5]), (1.0, [0.0, 1.0])] {
            let op = table(&[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[clip]).unwrap();
            let mut data = [-0.5_f32, 1.5, f32::NAN, 0.5];
            op.edit(0, ViewMut { data: &mut data, shape }, &mut Workspace::default(), Isa::detect());
            assert!(data[..2] == want && data[2].is_nan() && data[3] == 0.5);
        }
    }

    #[test]
    fn nothing_is_no_problem() {
        let op = table(&[0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[1.0]).unwrap();
        for (h, w) in [(0, 3), (3, 0)] {
            for planar in [false, true] {
                let shape = Shape { h, w, c: 3, planar };
                op.edit(0, ViewMut::<u8> { data: &mut [], shape }, &mut Workspace::default(), Isa::detect());
            }
        }
        let shape = Shape { h: 3, w: 3, c: 0, planar: true };
        op.edit(0, ViewMut::<f32> { data: &mut [], shape }, &mut Workspace::default(), Isa::detect());
    }

    #[test]
    fn bad_numbers_are_named() {
        let row = [0.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let with = |at: usize, x: f64| {
            let mut row = row;
            row[at] = x;
            table(&row, &[1.0]).unwrap_err()
        };
        assert!(with(0, f64::NAN).contains("mean must be finite, of at most 1e36, got NaN for sample 0"));
        assert!(with(0, 1e300).contains("mean"));
        assert!(with(1, -0.1).contains("sigma must be at least 0 and at most 1e36, got -0.1"));
        assert!(with(1, f64::INFINITY).contains("sigma"));
        assert!(with(3, 0.5).contains("words of sample 0"));
        assert!(with(6, -1.0).contains("words of sample 0"));
        assert!(table(&row, &[2.0]).unwrap_err().contains("clip must be 0 or 1, got 2"));
        assert!(table(&row, &[]).unwrap_err().contains("clip"));
        assert!(Noise::new(Table { n: 1, columns: 6, rows: &row[..6], settings: &[0.0] }, 1).is_err());
        let large = Shape { h: 1 << 20, w: 1 << 13, c: 2, planar: false };
        assert!(table(&row, &[1.0]).unwrap().shape(0, large).unwrap_err().contains("2^33"));
    }
}
