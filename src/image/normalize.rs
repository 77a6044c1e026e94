//! To the mean 0 and the standard deviation 1 of a data set, channel by channel: [`Normalize`].

use super::tile::{self, TILE};
use super::{Pixel, Shape, View, ViewMut};
use crate::simd::{self, Isa, Kernel};

/// Pixels whose channels are written out in the tables, so that a vector of them fits at every place.
const REPEATED: usize = 16;

/// `(x - mean) / std` of an `f32`, `(x / 255 - mean) / std` of a byte, exactly this in `f32`.
#[derive(Clone, Debug)]
pub struct Normalize {
    /// Of channel `k` at `k`, `k + channels`, ...: [`REPEATED`] times over.
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Normalize {
    /// From the means of all channels and then their standard deviations, in units where a full byte is 1.
    ///
    /// # Errors
    /// Which number is wrong.
    pub fn new(settings: &[f64], channels: usize) -> Result<Normalize, String> {
        if settings.len() != 2 * channels {
            let n = settings.len();
            return Err(format!("mean and std must have one number for each of {channels} channels, got {n} together"));
        }
        let (mean, std) = settings.split_at(channels);
        for (k, &x) in mean.iter().enumerate() {
            if !(x as f32).is_finite() {
                return Err(format!("mean[{k}] must be a finite float32, got {x}"));
            }
        }
        for (k, &x) in std.iter().enumerate() {
            if !(x as f32).is_finite() || x as f32 == 0.0 {
                return Err(format!("std[{k}] must be a finite float32 other than 0, got {x}"));
            }
        }
        let repeated = |x: &[f64]| x.repeat(REPEATED).into_iter().map(|x| x as f32).collect();
        Ok(Normalize { mean: repeated(mean), std: repeated(std) })
    }

    /// Apart. `out` has the size of `input` but may have the other layout.
    ///
    /// # Panics
    /// If the sizes differ, or the channels from those of `new`.
    pub fn run<P: Pixel>(&self, input: View<'_, P>, out: ViewMut<'_, f32>, isa: Isa) {
        let planar = out.shape.planar;
        assert_eq!(Shape { planar, ..input.shape }, out.shape);
        assert_eq!(input.shape.c * REPEATED, self.mean.len());
        simd::dispatch(isa, Run { normalize: self, input, out });
    }

    /// In place.
    ///
    /// # Panics
    /// If the channels differ from those of `new`.
    pub fn edit(&self, image: ViewMut<'_, f32>, isa: Isa) {
        assert_eq!(image.shape.c * REPEATED, self.mean.len());
        simd::dispatch(isa, Edit { normalize: self, image });
    }
}

/// A pixel's value where full is 1, to the last bit of `x / 255`.
#[inline(always)]
fn unit<P: Pixel>(x: P) -> f32 {
    // 1 / 255 in two parts. A byte times the first, of 16 bits, is exact, and the sum rounds as the quotient does (of
    // all bytes: see the tests); this costs a third of a division.
    const HIGH: f32 = f32::from_bits(0x3b80_8100);
    const LOW: f32 = (1.0 / 255.0 - HIGH as f64) as f32;
    let x = x.widen();
    if P::BYTE { x * HIGH + x * LOW } else { x }
}

struct Edit<'a> {
    normalize: &'a Normalize,
    image: ViewMut<'a, f32>,
}

impl Kernel for Edit<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Edit { normalize: Normalize { mean, std }, image: ViewMut { data, shape } } = self;
        let pixels = shape.h * shape.w;
        if shape.is_empty() {
            return;
        }
        if shape.planar || shape.c == 1 {
            for ((plane, &mean), &std) in data.chunks_exact_mut(pixels).zip(mean).zip(std) {
                for x in plane {
                    *x = (*x - mean) / std;
                }
            }
        } else {
            for piece in data.chunks_mut(mean.len()) {
                for ((x, &mean), &std) in piece.iter_mut().zip(mean).zip(std) {
                    *x = (*x - mean) / std;
                }
            }
        }
    }
}

struct Run<'a, P> {
    normalize: &'a Normalize,
    input: View<'a, P>,
    out: ViewMut<'a, f32>,
}

impl<P: Pixel> Kernel for Run<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Run {
            normalize: Normalize { mean, std },
            input: View { data, shape },
            out: ViewMut { data: out, shape: to },
        } = self;
        let pixels = shape.h * shape.w;
        if shape.is_empty() {
            return;
        }
        match (shape.planar || shape.c == 1, to.planar || shape.c == 1) {
            (true, true) => {
                let planes = out.chunks_exact_mut(pixels).zip(data.chunks_exact(pixels));
                for (((out, data), &mean), &std) in planes.zip(mean).zip(std) {
                    for (y, &x) in out.iter_mut().zip(data) {
                        *y = (unit(x) - mean) / std;
                    }
                }
            }
            (false, false) => {
                for (out, data) in out.chunks_mut(mean.len()).zip(data.chunks(mean.len())) {
                    for (((y, &x), &mean), &std) in out.iter_mut().zip(data).zip(mean).zip(std) {
                        *y = (unit(x) - mean) / std;
                    }
                }
            }
            (false, true) if shape.c == 3 => apart(data.as_chunks::<3>().0, out, mean, std),
            (false, true) if shape.c == 4 => apart(data.as_chunks::<4>().0, out, mean, std),
            (true, false) if shape.c == 3 => together(data, out.as_chunks_mut::<3>().0, mean, std),
            (true, false) if shape.c == 4 => together(data, out.as_chunks_mut::<4>().0, mean, std),
            (_, planar) => {
                // Elements from channel to channel and from pixel to pixel.
                let strides = if planar { [pixels, 1] } else { [1, shape.c] };
                let (channel, step) = shape.strides();
                for k in 0..shape.c {
                    for i in 0..pixels {
                        out[k * strides[0] + i * strides[1]] = (unit(data[k * channel + i * step]) - mean[k]) / std[k];
                    }
                }
            }
        }
    }
}

/// Pixels to planes.
#[inline(always)]
fn apart<P: Pixel, const C: usize>(data: &[[P; C]], out: &mut [f32], mean: &[f32], std: &[f32]) {
    let mut planes = [[P::default(); TILE]; C];
    for (t, piece) in data.chunks(TILE).enumerate() {
        if let Some(whole) = piece.first_chunk() {
            tile::split(whole, &mut planes, |p| p);
        } else {
            for (j, pixel) in piece.iter().enumerate() {
                for k in 0..C {
                    planes[k][j] = pixel[k];
                }
            }
        }
        for k in 0..C {
            let out = &mut out[k * data.len() + t * TILE..][..piece.len()];
            for (y, &x) in out.iter_mut().zip(&planes[k]) {
                *y = (unit(x) - mean[k]) / std[k];
            }
        }
    }
}

/// Planes to pixels.
#[inline(always)]
fn together<P: Pixel, const C: usize>(data: &[P], out: &mut [[f32; C]], mean: &[f32], std: &[f32]) {
    let pixels = out.len();
    let mut planes = [[0.0; TILE]; C];
    for (t, piece) in out.chunks_mut(TILE).enumerate() {
        for k in 0..C {
            let data = &data[k * pixels + t * TILE..][..piece.len()];
            for (y, &x) in planes[k].iter_mut().zip(data) {
                *y = (unit(x) - mean[k]) / std[k];
            }
        }
        if let Some(whole) = piece.first_chunk_mut() {
            tile::join(&planes, whole, |x| x);
        } else {
            for (j, pixel) in piece.iter_mut().enumerate() {
                for k in 0..C {
                    pixel[k] = planes[k][j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> u8 {
        (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]
    }

    /// Element (pixel, channel) of a picture.
    fn at<P: Copy>(data: &[P], shape: Shape, pixel: usize, channel: usize) -> P {
        let (across, along) = shape.strides();
        data[channel * across + pixel * along]
    }

    fn check<P: Pixel>(data: &[P], shape: Shape, full: f32) {
        let mean = [0.485, 0.456, 0.406, 0.5, 0.25];
        let std = [0.229, 0.224, 0.225, 0.25, 0.3];
        let settings: Vec<f64> = [&mean[..shape.c], &std[..shape.c]].concat();
        let normalize = Normalize::new(&settings, shape.c).unwrap();
        for isa in Isa::available() {
            for planar in [false, true] {
                let to = Shape { planar, ..shape };
                let mut out = vec![f32::NAN; shape.len()];
                normalize.run(View { data, shape }, ViewMut { data: &mut out, shape: to }, isa);
                for pixel in 0..shape.h * shape.w {
                    for k in 0..shape.c {
                        let x = at(data, shape, pixel, k).widen();
                        let want = (x / full - mean[k] as f32) / std[k] as f32;
                        assert_eq!(
                            at(&out, to, pixel, k).to_bits(),
                            want.to_bits(),
                            "{isa} {shape:?} {planar} {pixel} {k}"
                        );
                    }
                }
                if !P::BYTE && planar == shape.planar {
                    let mut image: Vec<f32> = data.iter().map(|x| x.widen()).collect();
                    normalize.edit(ViewMut { data: &mut image, shape }, isa);
                    assert!(image.iter().zip(&out).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }

    #[test]
    fn the_formula_to_the_last_bit() {
        for c in 1..=5 {
            for (h, w) in [(0, 3), (1, 1), (1, 7), (5, 3), (8, 16), (9, 43), (20, 13), (16, 16)] {
                for planar in [false, true] {
                    let shape = Shape { h, w, c, planar };
                    let bytes: Vec<u8> = (0..shape.len()).map(value).collect();
                    let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 199.0 - 0.1).collect();
                    check(&bytes, shape, 255.0);
                    check(&floats, shape, 1.0);
                }
            }
        }
    }

    #[test]
    fn a_255th_without_a_division() {
        assert!((0..=255u8).all(|x| unit(x) == f32::from(x) / 255.0));
    }

    #[test]
    fn what_is_refused() {
        for (settings, message) in [
            (&[0.5, 0.5, 0.5][..], "one number for each of 2 channels, got 3"),
            (&[0.5, f64::NAN, 1.0, 1.0], "mean[1] must be"),
            (&[0.5, 1e39, 1.0, 1.0], "mean[1] must be"),
            (&[0.5, 0.5, 0.0, 1.0], "std[0] must be"),
            (&[0.5, 0.5, 1.0, 1e-50], "std[1] must be"),
            (&[0.5, 0.5, 1.0, f64::INFINITY], "std[1] must be"),
        ] {
            let error = Normalize::new(settings, 2).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
