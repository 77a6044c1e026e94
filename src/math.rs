//! Transcendental functions with the same bits on every platform and instruction set, in a form that vectorises: plain
//! arithmetic, no branches, no table, no FMA.

use crate::float::Real;

/// `e^x`, to 1 unit in the last place (2 where the result is subnormal).
///
/// `x = k ln 2 + r` with `|r| <= ln 2 / 2`; the Taylor series of `e^r` ends where its terms are below half a unit; the two
/// halves of `2^k` are multiplied on one after the other, so that results below the normal range are rounded, not lost.
#[inline(always)]
pub fn exp<T: Real>(x: T) -> T {
    let c = T::from_f64;
    // Below, the result is 0; above, infinity. NaN fails both comparisons and passes.
    let (low, high) = if size_of::<T>() == 8 { (-746.0, 710.0) } else { (-104.0, 89.0) };
    let x = if x < c(low) { c(low) } else { x };
    let x = if x > c(high) { c(high) } else { x };
    // 1.5 times 2^52 or 2^23: the last bit of the sum is worth 1, so the sum is rounded to a whole number.
    let shift = c(if size_of::<T>() == 8 { 6_755_399_441_055_744.0 } else { 12_582_912.0 });
    let shifted = x * c(std::f64::consts::LOG2_E) + shift;
    let k = shifted - shift;
    // ln 2 in two parts; k times the first is exact.
    let (ln2_hi, ln2_lo) = if size_of::<T>() == 8 {
        (6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10)
    } else {
        (0.693_145_751_953_125, 1.428_606_820_309_417_2e-6)
    };
    let r = (x - k * c(ln2_hi)) - k * c(ln2_lo);
    let terms = if size_of::<T>() == 8 { 13 } else { 7 };
    let mut sum = c(RECIPROCAL_FACTORIALS[terms]);
    for i in (0..terms).rev() {
        sum = sum * r + c(RECIPROCAL_FACTORIALS[i]);
    }
    let [first, second] = T::powers_of_two(shifted, k * c(0.5) + shift, shift);
    sum * first * second
}

/// `1 / i!`
const RECIPROCAL_FACTORIALS: [f64; 14] = {
    let mut table = [1.0; 14];
    let mut i = 1;
    while i < 14 {
        table[i] = table[i - 1] / i as f64;
        i += 1;
    }
    table
};

/// `ln(1 + u)` for `0 <= u <= 1`, to 2 units in the last place: twice the series of `atanh(u / (2 + u))`.
#[inline(always)]
pub fn ln_1p_of_unit<T: Real>(u: T) -> T {
    let c = T::from_f64;
    let z = u / (c(2.0) + u);
    let w = z * z;
    let terms = if size_of::<T>() == 8 { 17 } else { 8 };
    let mut sum = c(1.0 / (2 * terms + 1) as f64);
    for i in (0..terms).rev() {
        sum = sum * w + c(1.0 / (2 * i + 1) as f64);
    }
    (z + z) * sum
}

/// `e^(z^2) erfc(z)` of each `z >= 0`, to a few units in the last place: `t = 4 / (4 + z)` times a polynomial in `t`, shifted
/// and scaled from `[1/8, 1]` to `[-1, 1]` (the Chebyshev interpolation of degree 20, relative error 2e-16; one coefficient is five
/// units larger, so that the rounded value at 0 is 1).
///
/// Many at once, one coefficient after the other: the compiler does not vectorise the other way round.
#[inline(always)]
pub fn erfcx<const N: usize>(z: &[f64; N]) -> [f64; N] {
    let (mut t, mut x, mut sum) = ([0.0; N], [0.0; N], [ERFCX[20]; N]);
    for i in 0..N {
        t[i] = 4.0 / (4.0 + z[i]);
        x[i] = t[i] * (16.0 / 7.0) - 9.0 / 7.0;
    }
    for coefficient in ERFCX[..20].iter().rev() {
        for i in 0..N {
            sum[i] = sum[i] * x[i] + coefficient;
        }
    }
    for i in 0..N {
        sum[i] *= t[i];
    }
    sum
}

const ERFCX: [f64; 21] = [
    0.307_822_095_566_532_8,
    0.262_065_854_569_595_3,
    0.193_462_364_662_292_55,
    0.123_380_905_964_639,
    0.067_325_617_361_540_88,
    0.030_854_432_599_150_123,
    0.011_461_066_792_160_655,
    0.003_192_548_292_846_219_4,
    0.000_519_841_210_132_714_5,
    -3.290_858_478_690_762e-5,
    -4.540_631_817_424_423e-5,
    -9.007_287_106_828_84e-6,
    1.614_945_591_541_396_7e-6,
    1.051_982_514_380_161_2e-6,
    2.401_855_529_829_886e-8,
    -9.253_605_958_391_451e-8,
    -1.179_818_832_223_935e-8,
    7.616_493_216_269_571e-9,
    1.530_722_398_182_237_3e-9,
    -4.741_418_267_438_988e-10,
    -1.143_091_660_302_405_9e-10,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_a_unit() {
        let mut worst = 0.0f64;
        for i in -20_700..18_000 {
            let x = i as f32 / 200.0 + 1e-3;
            let want = libm::exp(f64::from(x));
            let got = exp(x);
            if want > f64::from(f32::MAX) {
                assert_eq!(got, f32::INFINITY);
                continue;
            }
            let unit = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max_of((f64::from(got) - want).abs() / unit);
        }
        assert!(worst < 1.5, "{worst} units");
        let mut worst = 0.0f64;
        for i in -74_000..70_900 {
            let x = f64::from(i) / 100.0 + 1e-3;
            let want = libm::exp(x);
            let unit = f64::from_bits(want.to_bits() + 1) - want;
            worst = worst.max_of((exp(x) - want).abs() / unit);
        }
        assert!(worst < 2.0, "{worst} units");
        assert_eq!([exp(f32::NEG_INFINITY), exp(f32::INFINITY), exp(0f32)], [0.0, f32::INFINITY, 1.0]);
        assert_eq!([exp(-1e4f64), exp(1e4f64), exp(-0f64)], [0.0, f64::INFINITY, 1.0]);
        assert!(exp(f32::NAN).is_nan() && exp(f64::NAN).is_nan());
    }

    trait MaxOf {
        fn max_of(self, other: f64) -> f64;
    }
    impl MaxOf for f64 {
        fn max_of(self, other: f64) -> f64 {
            Real::maximum(self, other)
        }
    }

    #[test]
    fn erfcx_times_the_bell_is_erfc() {
        for i in 0..26_000 {
            let z = f64::from(i) / 1000.0;
            let want = libm::erfc(z);
            let got = erfcx(&[z])[0] * libm::exp(-z * z);
            // The square of z is rounded, and the bell makes that many units of it.
            assert!((got - want).abs() <= (10.0 + 2.0 * z * z) * f64::EPSILON * want, "{z}: {got} {want}");
        }
        assert_eq!(erfcx(&[f64::INFINITY, 0.0]), [0.0, 1.0]);
    }

    #[test]
    fn ln_1p_is_within_two_units() {
        for i in 0..=100_000 {
            let u = f64::from(i) / 100_000.0;
            let want = libm::log1p(u);
            assert!((ln_1p_of_unit(u) - want).abs() <= 2.0 * f64::EPSILON * want);
            let want = libm::log1p(f64::from(u as f32));
            assert!((f64::from(ln_1p_of_unit(u as f32)) - want).abs() <= 2.0 * f64::from(f32::EPSILON) * want);
        }
        assert!(ln_1p_of_unit(f32::NAN).is_nan());
    }
}
