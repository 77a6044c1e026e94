//! Normalisation (temporary).
use super::sample::{Pixel, View, ViewMut};
use crate::simd::Isa;
/// x
pub struct Normalize {
    mean: Vec<f32>,
    std: Vec<f32>,
}
impl Normalize {
    /// x
    pub const NAME: &'static str = "normalize";
    /// # Errors
    /// x
    pub fn new(settings: &[f64], channels: usize) -> Result<Normalize, String> {
        if settings.len() != 2 * channels {
            return Err("mean and std must have a number for each channel".into());
        }
        let f = |s: &[f64]| s.iter().map(|&x| x as f32).collect();
        Ok(Normalize { mean: f(&settings[..channels]), std: f(&settings[channels..]) })
    }
    /// x
    pub fn run<P: Pixel>(&self, input: View<'_, P>, out: ViewMut<'_, f32>, _isa: Isa) {
        let s = input.shape;
        let (ic, ip) = s.strides();
        let (oc, op) = out.shape.strides();
        for p in 0..s.h * s.w {
            for k in 0..s.c {
                let x = input.data[p * ip + k * ic].widen();
                let x = if P::BYTE { x / 255.0 } else { x };
                out.data[p * op + k * oc] = (x - self.mean[k]) / self.std[k];
            }
        }
    }
    /// x
    pub fn edit(&self, image: ViewMut<'_, f32>, _isa: Isa) {
        let s = image.shape;
        let (ic, ip) = s.strides();
        for p in 0..s.h * s.w {
            for k in 0..s.c {
                let x = &mut image.data[p * ip + k * ic];
                *x = (*x - self.mean[k]) / self.std[k];
            }
        }
    }
}
