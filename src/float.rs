//! Stored element types and the types they are computed in.
//!
//! `f32` and `f64` are computed as they are. [`F16`] and [`Bf16`] are storage only: they widen to `f32` (exact), are
//! computed there, and narrow with one rounding to nearest even. The conversions are branch-free integer code, so they
//! vectorise on every instruction set and give the same bits as the F16C instructions (checked exhaustively in the tests;
//! NaN payloads are not promised).

use std::fmt::Debug;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A type that arithmetic is done in: `f32` or `f64`.
///
/// Only operations that IEEE 754 defines to the last bit are offered. What is missing here (`mul_add`, `exp`, `max`, ...)
/// is missing on purpose: see `clippy.toml`.
pub trait Real:
    Element<Acc = Self>
    + Default
    + PartialOrd
    + Debug
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// The `f64` rounded once to this type, as NumPy does with a Python float (NEP 50).
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// Correctly rounded square root.
    fn sqrt(self) -> Self;
    /// |x|
    fn abs(self) -> Self;
    /// `2^h` and `2^(k - h)` from `shift + k` and `shift + h`, where the last bit of `shift` is worth 1 (see
    /// [`crate::math::exp`]). Both must be normal numbers; of NaN the result is any number.
    fn powers_of_two(shifted_k: Self, shifted_h: Self, shift: Self) -> [Self; 2];
    /// The larger of the two, NaN if either is (`numpy.maximum`).
    #[inline(always)]
    fn maximum(self, other: Self) -> Self {
        // A NaN in `self` fails the first comparison and is caught by the second; a NaN in `other` wins by `else`.
        if self > other || self.is_nan() { self } else { other }
    }
    /// -1, 0 or 1; NaN for NaN (`numpy.sign`).
    #[inline(always)]
    fn sign(self) -> Self {
        let unit = if self > Self::ZERO { Self::ONE } else { -Self::ONE };
        // `self + 0` is 0 for both zeros and NaN for NaN.
        if self == Self::ZERO || self.is_nan() { self + Self::ZERO } else { unit }
    }
    /// x != x
    #[inline(always)]
    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }
    /// x is neither infinite nor NaN.
    #[inline(always)]
    #[allow(clippy::eq_op, reason = "that is the test")]
    fn is_finite(self) -> bool {
        // inf - inf and NaN - NaN are NaN, everything else gives 0.
        !(self - self).is_nan()
    }
}

/// A type that arrays are stored in.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type that this element is computed in.
    type Acc: Real;
    /// Its bits.
    type Bits: Bits;
    /// The element with these bits.
    fn from_bits(bits: Self::Bits) -> Self;
    /// The bits of this element.
    fn to_bits(self) -> Self::Bits;
    /// Exact.
    fn widen(self) -> Self::Acc;
    /// One rounding to nearest even.
    fn narrow(x: Self::Acc) -> Self;
}

/// An unsigned integer that holds an element's bits.
pub trait Bits: Copy {
    /// The bytes in the opposite order.
    fn swap(self) -> Self;
}

macro_rules! bits {
    ($($t:ty),*) => {$(
        impl Bits for $t {
            #[inline(always)]
            fn swap(self) -> $t {
                self.swap_bytes()
            }
        }
    )*};
}
bits!(u16, u32, u64);

macro_rules! real {
    ($t:ty, $bits:ty) => {
        impl Element for $t {
            type Acc = $t;
            type Bits = $bits;
            #[inline(always)]
            fn from_bits(bits: $bits) -> $t {
                <$t>::from_bits(bits)
            }
            #[inline(always)]
            fn to_bits(self) -> $bits {
                <$t>::to_bits(self)
            }
            #[inline(always)]
            fn widen(self) -> $t {
                self
            }
            #[inline(always)]
            fn narrow(x: $t) -> $t {
                x
            }
        }
        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            #[inline(always)]
            fn from_f64(x: f64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> $t {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn powers_of_two(shifted_k: $t, shifted_h: $t, shift: $t) -> [$t; 2] {
                const BIAS: $bits = <$t>::MAX_EXP as $bits - 1;
                let [k, h] = [shifted_k, shifted_h].map(|x| x.to_bits().wrapping_sub(shift.to_bits()));
                let power = |k: $bits| <$t>::from_bits(k.wrapping_add(BIAS) << (<$t>::MANTISSA_DIGITS - 1));
                [power(h), power(k.wrapping_sub(h))]
            }
        }
    };
}
real!(f32, u32);
real!(f64, u64);

/// IEEE 754 binary16, as stored (`numpy.float16`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

impl Element for F16 {
    type Acc = f32;
    type Bits = u16;

    #[inline(always)]
    fn from_bits(bits: u16) -> F16 {
        F16(bits)
    }

    #[inline(always)]
    fn to_bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        let h = self.0 as u32;
        let exponent = h & 0x7c00;
        let shifted = (h & 0x7fff) << 13;
        // Normal numbers: move the exponent from bias 15 to bias 127. Infinity and NaN: to 255.
        let normal = shifted + (112 << 23);
        let special = shifted + (224 << 23);
        // Subnormal numbers (and 0): the mantissa counts steps of 2^-24.
        let subnormal = ((h & 0x03ff) as i32 as f32 * f32::from_bits(0x3380_0000)).to_bits();
        let magnitude = if exponent == 0x7c00 { special } else { normal };
        let magnitude = if exponent == 0 { subnormal } else { magnitude };
        f32::from_bits(magnitude | ((h & 0x8000) << 16))
    }

    #[inline(always)]
    fn narrow(x: f32) -> F16 {
        let bits = x.to_bits();
        let sign = (bits >> 16) & 0x8000;
        let a = bits & 0x7fff_ffff;
        // Normal results: round the 13 dropped bits to nearest even, then move the exponent to bias 15. A carry out of
        // 65504 gives 0x7c00, infinity, by itself.
        let normal = (a.wrapping_add(0x0fff + ((a >> 13) & 1)).wrapping_sub(112 << 23)) >> 13;
        // Below 2^-14: the ulp of 0.5 is 2^-24, the step of subnormal numbers, so the addition rounds for us.
        let subnormal = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let magnitude = if a < 0x3880_0000 { subnormal } else { normal };
        let magnitude = if a >= 0x4780_0000 { 0x7c00 } else { magnitude };
        let magnitude = if a > 0x7f80_0000 { 0x7e00 | ((a >> 13) & 0x03ff) } else { magnitude };
        F16((magnitude | sign) as u16)
    }
}

/// bfloat16: the upper half of an `f32`, as stored (`ml_dtypes.bfloat16`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Element for Bf16 {
    type Acc = f32;
    type Bits = u16;

    #[inline(always)]
    fn from_bits(bits: u16) -> Bf16 {
        Bf16(bits)
    }

    #[inline(always)]
    fn to_bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Bf16 {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x0040;
        Bf16(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded } as u16)
    }
}

/// The element types by value, for code that learns the type at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DType {
    /// `numpy.float32`
    F32,
    /// `numpy.float64`
    F64,
    /// `numpy.float16`
    F16,
    /// `ml_dtypes.bfloat16`
    Bf16,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// The type that arrays of this type are computed in, and that their state has by default.
    pub const fn compute(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }

    /// NumPy's name.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F64 => "float64",
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of binary16, in f64, one case after the other: the oracle.
    fn f16_value(h: u16) -> f64 {
        let (e, m) = ((h >> 10) & 31, (h & 1023) as f64);
        let magnitude = match e {
            0 => m * libm::exp2(-24.0),
            31 if m == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + m / 1024.0) * libm::exp2(e as f64 - 15.0),
        };
        if h >> 15 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn f16_widens_every_value() {
        for h in 0..=u16::MAX {
            let (got, want) = (F16(h).widen(), f16_value(h));
            assert!(got.to_bits() == (want as f32).to_bits() || (got.is_nan() && want.is_nan()), "{h:#06x}");
        }
    }

    #[test]
    fn f16_narrow_inverts_widen_and_rounds_to_nearest_even() {
        for h in 0..=u16::MAX {
            let x = F16(h).widen();
            if x.is_nan() {
                assert!(F16::narrow(x).widen().is_nan());
                continue;
            }
            assert_eq!(F16::narrow(x).0, h);
        }
        for h in 0..0x7bffu16 {
            // The midpoint of two neighbours goes to the even one, the next f32 on either side to the nearer one.
            let (low, high) = (F16(h).widen(), F16(h + 1).widen());
            let middle = low + (high - low) / 2.0;
            assert_eq!(F16::narrow(middle).0, h + (h & 1), "{h:#06x}");
            assert_eq!(F16::narrow(f32::from_bits(middle.to_bits() - 1)).0, h);
            assert_eq!(F16::narrow(f32::from_bits(middle.to_bits() + 1)).0, h + 1);
            assert_eq!(F16::narrow(-middle).0, 0x8000 | (h + (h & 1)));
        }
        assert_eq!(F16::narrow(65519.996).0, 0x7bff);
        assert_eq!(F16::narrow(65520.0).0, 0x7c00);
        assert_eq!(F16::narrow(f32::MAX).0, 0x7c00);
    }

    #[test]
    fn bf16_narrow_inverts_widen_and_rounds_to_nearest_even() {
        for h in 0..=u16::MAX {
            let x = Bf16(h).widen();
            if x.is_nan() {
                assert!(Bf16::narrow(x).widen().is_nan());
                continue;
            }
            assert_eq!(Bf16::narrow(x).0, h);
            if x.is_finite() {
                let bits = (h as u32) << 16;
                assert_eq!(Bf16::narrow(f32::from_bits(bits | 0x7fff)).0, h);
                assert_eq!(Bf16::narrow(f32::from_bits(bits | 0x8000)).0, h + (h & 1));
                assert_eq!(Bf16::narrow(f32::from_bits(bits | 0x8001)).0, h + 1);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn f16_agrees_with_the_instruction() {
        #[target_feature(enable = "f16c,avx")]
        fn instruction(x: f32) -> u16 {
            use std::arch::x86_64::{_MM_FROUND_TO_NEAREST_INT, _mm_cvtps_ph, _mm_cvtsi128_si32, _mm_set1_ps};
            _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set1_ps(x))) as u16
        }
        if !std::is_x86_feature_detected!("f16c") {
            return;
        }
        // Every 251st of the 2^32 values: all exponents, all roundings, in under a second.
        for bits in (0..=u32::MAX).step_by(251) {
            let x = f32::from_bits(bits);
            // SAFETY: the feature was detected above.
            let want = unsafe { instruction(x) };
            assert!(F16::narrow(x).0 == want || x.is_nan(), "{bits:#010x}");
        }
    }

    #[test]
    fn maximum_and_sign_are_numpys() {
        assert!(Real::maximum(f32::NAN, 1.0).is_nan() && Real::maximum(1.0, f32::NAN).is_nan());
        assert_eq!([Real::maximum(2.0, 3.0), Real::maximum(3.0, 2.0)], [3.0, 3.0]);
        assert_eq!([(-2f32).sign(), 0f32.sign(), (-0f32).sign(), 5f32.sign()], [-1.0, 0.0, 0.0, 1.0]);
        assert!(f64::NAN.sign().is_nan());
        assert!(Real::is_finite(f32::MAX) && !Real::is_finite(f32::INFINITY) && !Real::is_finite(f64::NAN));
    }
}
