//! One picture, and what a transform is.

use crate::simd::Isa;

/// What a picture is made of: a byte, where 255 is full, or an `f32`, where 1 is.
pub trait Pixel: Copy + Default + PartialEq + Send + Sync + 'static {
    /// The largest value.
    const FULL: f32;
    /// Whether it is a byte.
    const BYTE: bool;
    /// Exact.
    fn widen(self) -> f32;
    /// A byte: clamped to 0 .. 255 and rounded to nearest even (NaN to 0). An `f32`: as it is.
    fn narrow(x: f32) -> Self;
    /// The pixel of that value.
    fn of_byte(byte: u8) -> Self;
}

impl Pixel for u8 {
    const FULL: f32 = 255.0;
    const BYTE: bool = true;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    fn narrow(x: f32) -> u8 {
        let x = if x > 0.0 { x } else { 0.0 };
        let x = if x < 255.0 { x } else { 255.0 };
        // The last bit of the sum is worth 1, so the sum is rounded to a whole number, which is in its last bits.
        (x + 8_388_608.0).to_bits() as u8
    }
    #[inline(always)]
    fn of_byte(byte: u8) -> u8 {
        byte
    }
}

impl Pixel for f32 {
    const FULL: f32 = 1.0;
    const BYTE: bool = false;
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn of_byte(byte: u8) -> f32 {
        f32::from(byte)
    }
}

/// Of one picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
    /// Channels.
    pub c: usize,
    /// In memory one channel after the other (c, h, w), not pixel by pixel (h, w, c).
    pub planar: bool,
}

impl Shape {
    /// Elements of the picture.
    pub const fn len(self) -> usize {
        self.h * self.w * self.c
    }

    /// Whether it has no element.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The planes that lie in memory one after the other, and the channels side by side in each of them: (c, 1) or (1, c).
    pub const fn planes(self) -> (usize, usize) {
        if self.planar { (self.c, 1) } else { (1, self.c) }
    }

    /// Elements from channel to channel, and from pixel to pixel of a row. A row follows the other without a gap.
    pub const fn strides(self) -> (usize, usize) {
        if self.planar { (self.h * self.w, 1) } else { (1, self.c) }
    }

    /// The same with another size.
    pub const fn sized(self, h: usize, w: usize) -> Shape {
        Shape { h, w, ..self }
    }
}

/// A picture that is read. `data` has `shape.len()` elements.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, P> {
    /// Its elements.
    pub data: &'a [P],
    /// Its shape.
    pub shape: Shape,
}

/// A picture that is written.
#[derive(Debug)]
pub struct ViewMut<'a, P> {
    /// Its elements.
    pub data: &'a mut [P],
    /// Its shape.
    pub shape: Shape,
}

/// The numbers that a transform is given: a row for each sample, and some that all samples share.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// Samples.
    pub n: usize,
    /// Numbers of each sample.
    pub columns: usize,
    /// `n` rows of them.
    pub rows: &'a [f64],
    /// What all samples share.
    pub settings: &'a [f64],
}

impl<'a> Table<'a> {
    /// The numbers of sample `i`.
    pub fn row(&self, i: usize) -> &'a [f64] {
        &self.rows[i * self.columns..(i + 1) * self.columns]
    }
}

/// What lies outside of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// One value.
    Constant,
    /// The nearest pixel: `aaa|abcd|ddd`.
    Edge,
    /// Mirrored at the middle of the last pixel: `dcb|abcd|cba` (`numpy.pad`'s "reflect").
    Reflect,
    /// Mirrored at its edge: `cba|abcd|dcb` (`numpy.pad`'s "symmetric").
    Symmetric,
    /// The other side: `bcd|abcd|abc`.
    Wrap,
}

impl Border {
    /// By its number: the order above.
    pub fn of(number: f64) -> Option<Border> {
        use Border::{Constant, Edge, Reflect, Symmetric, Wrap};
        let all = [Constant, Edge, Reflect, Symmetric, Wrap];
        all.into_iter().zip(0..).find(|&(_, k)| f64::from(k) == number).map(|(border, _)| border)
    }

    /// Which of `n` > 0 pixels lies at `i`; `None` for a constant one outside.
    #[inline(always)]
    pub fn index(self, i: i64, n: usize) -> Option<usize> {
        if (0..n as i64).contains(&i) {
            return Some(i as usize);
        }
        self.outside(i, n as i64)
    }

    fn outside(self, i: i64, n: i64) -> Option<usize> {
        let inside = match self {
            Border::Constant => return None,
            Border::Edge => i.clamp(0, n - 1),
            Border::Wrap => i.rem_euclid(n),
            Border::Symmetric => {
                let k = i.rem_euclid(2 * n);
                if k < n { k } else { 2 * n - 1 - k }
            }
            Border::Reflect if n == 1 => 0,
            Border::Reflect => {
                let k = i.rem_euclid(2 * n - 2);
                if k < n { k } else { 2 * n - 2 - k }
            }
        };
        Some(inside as usize)
    }
}

/// Memory that a thread uses for one sample after the other.
#[derive(Debug, Default)]
pub struct Workspace {
    floats: Vec<f32>,
}

impl Workspace {
    /// `n` numbers, of any value.
    pub fn floats(&mut self, n: usize) -> &mut [f32] {
        if self.floats.len() < n {
            self.floats.resize(n, 0.0);
        }
        &mut self.floats[..n]
    }
}

/// A transform: what is done to sample `i`.
///
/// It **edits** a picture in place ([`Op::EDITS`]), or makes a new one ([`Op::MAKES`]), perhaps of another size; some can do both.
/// One that **moves** pixels ([`Op::MOVES`]) does the same to masks. `Op::new` and `Op::shape` check everything, so that nothing
/// later can fail.
pub trait Op: Sized + Send + Sync {
    /// Its name in the binding.
    const NAME: &'static str;
    /// Whether `edit` does it.
    const EDITS: bool;
    /// Whether `make` does it.
    const MAKES: bool = !Self::EDITS;
    /// Whether it moves pixels.
    const MOVES: bool = false;

    /// From its numbers, for pictures with so many channels.
    ///
    /// # Errors
    /// Which number is wrong.
    fn new(table: Table<'_>, channels: usize) -> Result<Self, String>;

    /// The shape that sample `i` has afterwards.
    ///
    /// # Errors
    /// Why it cannot be done to this shape.
    fn shape(&self, _i: usize, input: Shape) -> Result<Shape, String> {
        Ok(input)
    }

    /// In place.
    fn edit<P: Pixel>(&self, _i: usize, _image: ViewMut<'_, P>, _work: &mut Workspace, _isa: Isa) {}

    /// Apart: `out` has the shape that `shape` said. Every element of it is written.
    fn make<P: Pixel>(&self, _i: usize, _input: View<'_, P>, _out: ViewMut<'_, P>, _work: &mut Workspace, _isa: Isa) {}

    /// The same for a mask, apart, with the nearest pixel; `fill` for what comes from outside.
    fn mask<E: Copy>(&self, _i: usize, _input: View<'_, E>, _out: ViewMut<'_, E>, _fill: E) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_rounded_to_even_and_clamped() {
        let cases = [(-1.0, 0), (0.5, 0), (1.5, 2), (2.5, 2), (254.5, 254), (254.51, 255), (1e9, 255), (f32::NAN, 0)];
        for (x, want) in cases {
            assert_eq!(u8::narrow(x), want, "{x}");
        }
        assert!((0..=255).all(|b| u8::narrow(b.widen()) == b));
    }

    #[test]
    fn borders_are_numpys_pads() {
        // numpy.pad([0, 1, 2, 3], 6, mode)
        let cases = [
            (Border::Edge, [0, 0, 0, 0, 0, 0], [3, 3, 3, 3, 3, 3]),
            (Border::Reflect, [0, 1, 2, 3, 2, 1], [2, 1, 0, 1, 2, 3]),
            (Border::Symmetric, [2, 3, 3, 2, 1, 0], [3, 2, 1, 0, 0, 1]),
            (Border::Wrap, [2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1]),
        ];
        for (border, before, after) in cases {
            assert_eq!([-6, -5, -4, -3, -2, -1].map(|i| border.index(i, 4).unwrap()), before);
            assert_eq!([4, 5, 6, 7, 8, 9].map(|i| border.index(i, 4).unwrap()), after);
            assert_eq!(border.index(-3, 1), Some(0));
        }
        assert_eq!(Border::Constant.index(-1, 4), None);
        assert_eq!(Border::of(3.0), Some(Border::Symmetric));
        assert_eq!(Border::of(0.5), None);
    }
}
