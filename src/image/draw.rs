//! Random numbers of augmentation: a function of seed, sample, epoch and transform, and of nothing else.
//!
//! Each (sample, epoch, transform) has 2^32 blocks of Philox4x32-10 of its own: the first word of the counter counts
//! them, and the other three name the triple ([`counter`]). The blocks of the lower half give the parameters
//! ([`uniforms`], [`beta`]), those of the upper half the numbers of which each element of a picture has one
//! ([`normals`], [`words`]). The batch that a sample is in, the order, the threads and the instruction set cannot
//! change them.

use crate::philox::{GROUP, LANES, ROUNDS, block};

/// The counter that the key is made with, "ironstep augment" in bytes: no other part of the crate has this key, so that
/// the same seed may be used for all of them.
const TAG: [u32; 4] = [0x6e6f_7269, 0x7065_7473, 0x6775_6120, 0x746e_656d];

/// The blocks of single elements have this bit, those of parameters have not.
const ELEMENTS: u32 = 1 << 31;

/// So many elements of a picture have numbers of their own; then they come again. The 2^31 blocks have four each.
pub const MAX_ELEMENTS: u64 = 1 << 33;

/// The key of this seed: two words of the block of a tag.
pub fn key(seed: u64) -> [u32; 2] {
    let [k0, k1, ..] = block(TAG, [seed as u32, (seed >> 32) as u32], ROUNDS);
    [k0, k1]
}

/// The last three words of the counter for the sample with this index in the data set (below 2^48), in this epoch, for
/// this transform of the chain.
pub fn counter(index: u64, epoch: u32, transform: u16) -> [u32; 3] {
    debug_assert!(index < 1 << 48);
    [index as u32, (index >> 32) as u32 | u32::from(transform) << 16, epoch]
}

/// Key and counter from five numbers, as they stand in a row of a table; `None` if these are not words of 32 bits.
pub fn of_numbers(numbers: &[f64]) -> Option<([u32; 2], [u32; 3])> {
    let mut words = [0; 5];
    if numbers.len() != words.len() {
        return None;
    }
    for (word, &number) in words.iter_mut().zip(numbers) {
        // The cast saturates, and makes 0 of NaN.
        *word = number as u32;
        if f64::from(*word) != number {
            return None;
        }
    }
    let [k0, k1, c1, c2, c3] = words;
    Some(([k0, k1], [c1, c2, c3]))
}

/// The block of parameters with this number, as two numbers in [0, 1) of 53 bits each.
fn pair(key: [u32; 2], counter: [u32; 3], number: u32) -> [f64; 2] {
    let [c1, c2, c3] = counter;
    let [w0, w1, w2, w3] = block([number & !ELEMENTS, c1, c2, c3], key, ROUNDS);
    // 27 bits and 26: both steps are exact.
    let unit = |a: u32, b: u32| (f64::from(a >> 5) * 67_108_864.0 + f64::from(b >> 6)) / 9_007_199_254_740_992.0;
    [unit(w0, w1), unit(w2, w3)]
}

/// Numbers `first ..` of the parameters, uniform in [0, 1), with 53 bits. Number `j` is made of the words `2 (j % 2)`
/// and the next one of block `j / 2`: `((w0 >> 5) 2^26 + (w1 >> 6)) 2^-53`.
pub fn uniforms(key: [u32; 2], counter: [u32; 3], first: u32, out: &mut [f64]) {
    let mut both = (u64::MAX, [0.0; 2]);
    for (j, out) in (u64::from(first)..).zip(out) {
        if both.0 != j / 2 {
            both = (j / 2, pair(key, counter, (j / 2) as u32));
        }
        *out = both.1[(j % 2) as usize];
    }
}

/// Attempts of one gamma number. At least 95 of 100 succeed, so that all fail once in 10^20 numbers.
const ATTEMPTS: u32 = 16;

/// How many blocks a number of [`beta`] may read.
pub const BETA_BLOCKS: u32 = 2 * GAMMA_BLOCKS;
const GAMMA_BLOCKS: u32 = 2 * ATTEMPTS;

/// A number in [0, 1] of the beta distribution with these two shapes, which must be above 0, from the blocks
/// `first_block .. first_block + BETA_BLOCKS`.
///
/// `x / (x + y)` of two gamma numbers `x` and `y`. It is taken of their logarithms: for shapes far below 1 both numbers
/// are often too small for an `f64`, and their ratio is not.
pub fn beta(key: [u32; 2], counter: [u32; 3], first_block: u32, a: f64, b: f64) -> f64 {
    let x = ln_gamma_number(key, counter, first_block, a);
    let y = ln_gamma_number(key, counter, first_block.wrapping_add(GAMMA_BLOCKS), b);
    1.0 / (1.0 + libm::exp(y - x))
}

/// The logarithm of a number of the gamma distribution with this shape.
///
/// Marsaglia and Tsang, A simple method for generating gamma variables, 2000: `d v` with `v = (1 + c z)^3`, `d = a -
/// 1/3` and `c = 1 / sqrt(9 d)`, is accepted if `ln u < z^2 / 2 + d (1 - v + ln v)`. For shapes below 1 it is the
/// number for `a + 1` times `u^(1 / a)`. Attempt `k` takes `z` from block `2 k` (Box and Muller) and `u` from block `2
/// k + 1`; the second number of block 1 is the last `u`.
fn ln_gamma_number(key: [u32; 2], counter: [u32; 3], first_block: u32, a: f64) -> f64 {
    // 1 minus a number in [0, 1) is not 0.
    let pair = |k: u32| pair(key, counter, first_block.wrapping_add(k)).map(|u| 1.0 - u);
    let d = if a < 1.0 { a + 1.0 } else { a } - 1.0 / 3.0;
    let c = 1.0 / libm::sqrt(9.0 * d);
    let mut ln_v = 0.0;
    for k in 0..ATTEMPTS {
        let ([radius, angle], [u, _]) = (pair(2 * k), pair(2 * k + 1));
        let z = libm::sqrt(-2.0 * libm::log(radius)) * libm::cos(std::f64::consts::TAU * angle);
        let root = 1.0 + c * z;
        let v = root * root * root;
        if v > 0.0 && libm::log(u) < 0.5 * z * z + d * (1.0 - v + libm::log(v)) {
            ln_v = libm::log(v);
            break;
        }
    }
    let boost = if a < 1.0 { libm::log(pair(1)[1]) / a } else { 0.0 };
    libm::log(d) + ln_v + boost
}

/// Group `group` of the random numbers of elements, 64 words: number `16 w + i` is word `w` of the block
/// `2^31 + 16 group + i`.
#[inline(always)]
pub fn words(key: [u32; 2], counter: [u32; 3], group: u32) -> [u32; GROUP] {
    let [c1, c2, c3] = counter;
    let first = group << 4 | ELEMENTS;
    let mut out = [0; GROUP];
    for i in 0..LANES {
        let words = block([first + i as u32, c1, c2, c3], key, ROUNDS);
        for (w, word) in words.into_iter().enumerate() {
            out[w * LANES + i] = word;
        }
    }
    out
}

/// Standard normal numbers of the elements `64 group .. 64 group + 64`.
///
/// Box and Muller 1958: of two words `r = sqrt(-2 ln u)` and an angle give `r cos` and `r sin`. Words 0 and 1 of the
/// group's 16 blocks make its elements 0 .. 16 and 16 .. 32, words 2 and 3 the other two runs. See `box_muller`.
#[inline(always)]
pub fn normals(key: [u32; 2], counter: [u32; 3], group: u32) -> [f32; GROUP] {
    let words = words(key, counter, group);
    let (mut a, mut b, mut out) = ([0; HALF], [0; HALF], [0.0; GROUP]);
    for i in 0..LANES {
        [a[i], b[i], a[LANES + i], b[LANES + i]] = std::array::from_fn(|w| words[w * LANES + i]);
    }
    let [first, second] = box_muller(&a, &b);
    for i in 0..LANES {
        [out[i], out[LANES + i]] = [first[i], second[i]];
        [out[HALF + i], out[HALF + LANES + i]] = [first[LANES + i], second[LANES + i]];
    }
    out
}

/// Half of a group.
const HALF: usize = GROUP / 2;

/// Two normal numbers of two words each, to 4e-7 of the radius; for small radii to 1e-7 / radius, since `u` is rounded.
///
/// The first word without its last bit, a half, and 2^-31 make `u` in (0, 1]. Of the second word the lower 30 bits are
/// an angle in [-45, 45) degrees; bit 30 exchanges cosine and sine, which turns the quarter circle to the one next to
/// it, and bit 31 changes both signs, which gives the other two.
///
/// Many at once, in three loops: in one, the constants would not fit into the registers.
#[inline(always)]
fn box_muller<const N: usize>(a: &[u32; N], b: &[u32; N]) -> [[f32; N]; 2] {
    let (mut r, mut cos, mut sin) = ([0.0; N], [0.0; N], [0.0; N]);
    for i in 0..N {
        let u = ((a[i] >> 1) as i32 as f32 + 0.5) * (1.0 / 2_147_483_648.0);
        r[i] = (-2.0 * ln(u)).sqrt();
    }
    for i in 0..N {
        [cos[i], sin[i]] = cos_sin((b[i] << 2) as i32 as f32 * (std::f32::consts::FRAC_PI_4 / 2_147_483_648.0));
    }
    let (mut first, mut second) = ([0.0; N], [0.0; N]);
    for i in 0..N {
        let r = f32::from_bits(r[i].to_bits() ^ (b[i] & 0x8000_0000));
        // All ones if bit 30 is set; a choice between elements of two arrays would become one between addresses.
        let swap = ((b[i] << 1) as i32 >> 31) as u32;
        let (x, y) = (cos[i].to_bits(), sin[i].to_bits());
        let change = (x ^ y) & swap;
        first[i] = r * f32::from_bits(x ^ change);
        second[i] = r * f32::from_bits(y ^ change);
    }
    [first, second]
}

/// The natural logarithm of a normal number above 0: `k ln 2` and `f` times a polynomial in `f`, for `2^k (1 + f)` with
/// `1 + f` between the roots of 1/2 and of 2. The polynomial (Chebyshev interpolation) is right to 3e-8.
#[inline(always)]
fn ln(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        1.0,
        -0.499_999_97,
        0.333_341_93,
        -0.250_013_53,
        0.199_559_33,
        -0.165_779_93,
        0.149_774_01,
        -0.142_692_58,
        0.085_333_13,
    ];
    // From the bits of sqrt(1/2) on it is the next power of two.
    let k = x.to_bits().wrapping_sub(0x3f35_04f3) as i32 >> 23;
    let f = f32::from_bits(x.to_bits().wrapping_sub((k << 23) as u32)) - 1.0;
    let mut sum = COEFFICIENTS[8];
    for i in (0..8).rev() {
        sum = sum * f + COEFFICIENTS[i];
    }
    k as f32 * std::f32::consts::LN_2 + f * sum
}

/// Cosine and sine of an angle of at most 45 degrees, in radians, to 1e-7: polynomials in its square (Chebyshev
/// interpolation).
#[inline(always)]
fn cos_sin(x: f32) -> [f32; 2] {
    let s = x * x;
    let cos = ((-0.001_358_578 * s + 0.041_655_015) * s - 0.499_998_57) * s + 1.0;
    let sin = ((-0.000_195_039_04 * s + 0.008_332_035_5) * s - 0.166_666_51) * s + 1.0;
    [cos, sin * x]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel, dispatch};

    struct Groups([u32; 2], [u32; 3], std::ops::Range<u32>);
    impl Kernel for Groups {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run(self) -> Vec<f32> {
            let mut out = Vec::with_capacity(GROUP * self.2.len());
            for group in self.2 {
                out.extend(normals(self.0, self.1, group));
            }
            out
        }
    }

    fn normal_numbers(n: u32) -> Vec<f32> {
        dispatch(Isa::detect(), Groups(key(1), counter(5, 2, 3), 0..n / GROUP as u32))
    }

    /// The largest distance of the empirical distribution from `cdf`, times the root of n: above 1.95 once in 1000
    /// times.
    fn kolmogorov_smirnov(mut x: Vec<f64>, cdf: impl Fn(f64) -> f64) -> f64 {
        x.sort_unstable_by(f64::total_cmp);
        let n = x.len() as f64;
        let mut worst = 0.0;
        for (i, &x) in x.iter().enumerate() {
            let p = cdf(x);
            for distance in [p - i as f64 / n, (i + 1) as f64 / n - p] {
                worst = if distance > worst { distance } else { worst };
            }
        }
        worst * n.sqrt()
    }

    #[test]
    fn numbers_are_philoxs() {
        let (key, counter) = (key(0x0123_4567_89ab_cdef), counter(0xfedc_ba98_7654, 0x1357_9bdf, 0x2468));
        let made = block(TAG, [0x89ab_cdef, 0x0123_4567], 10);
        assert_eq!(key, made[..2]);
        assert_eq!(counter, [0xba98_7654, 0x2468_fedc, 0x1357_9bdf]);
        let mut out = [0.0; 7];
        uniforms(key, counter, 3, &mut out);
        for (j, got) in (3..).zip(out) {
            let words = block([j / 2, counter[0], counter[1], counter[2]], key, 10);
            let at = (j % 2 * 2) as usize;
            let bits = u64::from(words[at] >> 5) << 26 | u64::from(words[at + 1] >> 6);
            assert_eq!(got.to_bits(), (bits as f64 * libm::exp2(-53.0)).to_bits());
        }
        for group in [0, 1, 77, (1 << 27) - 1] {
            for (i, word) in (0..).zip(words(key, counter, group)) {
                let count = (1 << 31) + 16 * group + i % 16;
                assert_eq!(word, block([count, counter[0], counter[1], counter[2]], key, 10)[i as usize / 16]);
            }
        }
        // What the generator gives does not change from version to version. (The test of the block itself is in
        // `philox`.)
        let mut out = [0.0; 3];
        uniforms(super::key(0), super::counter(0, 0, 0), 0, &mut out);
        assert_eq!(super::key(0), KNOWN_KEY);
        assert_eq!(out, KNOWN_UNIFORMS);
        assert_eq!(normals(super::key(0), super::counter(0, 0, 0), 0)[..3], KNOWN_NORMALS);
    }
    const KNOWN_KEY: [u32; 2] = [1_966_795_350, 2_004_055_617];
    const KNOWN_UNIFORMS: [f64; 3] = [0.963_359_537_374_468_8, 0.826_070_130_000_008_2, 0.702_493_812_128_700_5];
    const KNOWN_NORMALS: [f32; 3] = [-0.243_181_66, 0.026_253_285, -0.932_808_2];

    #[test]
    fn words_come_back_from_a_table() {
        assert_eq!(of_numbers(&[1.0, 2.0, 3.0, 4_294_967_295.0, 0.0]), Some(([1, 2], [3, u32::MAX, 0])));
        for wrong in [-1.0, 0.5, 4_294_967_296.0, f64::NAN, f64::INFINITY] {
            assert_eq!(of_numbers(&[1.0, 2.0, 3.0, 4.0, wrong]), None);
        }
        assert_eq!(of_numbers(&[1.0; 4]), None);
    }

    #[test]
    fn uniform_numbers_are_uniform_and_below_one() {
        let (key, mut all) = (key(3), Vec::new());
        for index in 0..2000 {
            let mut some = [0.0; 25];
            uniforms(key, counter(index, 1, 2), 0, &mut some);
            all.extend(some);
        }
        assert!(all.iter().all(|u| (0.0..1.0).contains(u)));
        assert!(kolmogorov_smirnov(all, |u| u) < 1.95);
        // Neighbours in any of the words are other numbers.
        let mut first: Vec<u64> = Vec::new();
        for (index, epoch, transform) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1 << 32, 0, 0), (1 << 47, 0, 0)]
        {
            let mut one = [0.0];
            uniforms(key, counter(index, epoch, transform), 0, &mut one);
            first.push(one[0].to_bits());
        }
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 6);
    }

    #[test]
    fn logarithm_and_angle_are_right() {
        let mut worst = [0.0f64; 3];
        let mut note = |i: usize, error: f64| worst[i] = if error.abs() > worst[i] { error.abs() } else { worst[i] };
        for i in 1..2_000_000u32 {
            let x = f32::from_bits(0x2f80_0000 + i * 139); // 2^-32 .. 1
            if x < 1.0 {
                note(0, f64::from(ln(x)) / libm::log(f64::from(x)) - 1.0);
            }
            let angle = (f64::from(i) / 1e6 - 1.0) * std::f64::consts::FRAC_PI_4;
            let [cos, sin] = cos_sin(angle as f32);
            note(1, f64::from(cos) - libm::cos(f64::from(angle as f32)));
            note(2, f64::from(sin) - libm::sin(f64::from(angle as f32)));
        }
        assert!(worst[0] < 4e-7 && worst[1] < 1.5e-7 && worst[2] < 1.2e-7, "{worst:?}");
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(cos_sin(0.0), [1.0, 0.0]);
    }

    #[test]
    fn normals_are_box_and_mullers_on_every_instruction_set() {
        let (key, counter) = (key(1), counter(5, 2, 3));
        let want = dispatch(Isa::BASELINE, Groups(key, counter, 10..100));
        for isa in Isa::available() {
            let got = dispatch(isa, Groups(key, counter, 10..100));
            assert!(got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
        for group in 10..100 {
            let words = words(key, counter, group);
            for i in 0..32 {
                let (a, b) = (words[i / 16 * 32 + i % 16], words[i / 16 * 32 + 16 + i % 16]);
                let r = libm::sqrt(-2.0 * libm::log((f64::from(a >> 1) + 0.5) / 2_147_483_648.0));
                let turn = f64::from((b << 2) as i32) / 4_294_967_296.0 * std::f64::consts::FRAC_PI_2;
                let (mut x, mut y) = (libm::cos(turn), libm::sin(turn));
                if b >> 30 & 1 == 1 {
                    (x, y) = (y, x);
                }
                if b >> 31 == 1 {
                    (x, y) = (-x, -y);
                }
                let at = (group - 10) as usize * 64 + i / 16 * 32 + i % 16;
                // Near u = 1 the f32 is rounded, which moves small radii.
                assert!((f64::from(want[at]) - r * x).abs() < 4e-7 * r + 1e-6 / (r + 1e-3), "{group} {i}");
                assert!((f64::from(want[at + 16]) - r * y).abs() < 4e-7 * r + 1e-6 / (r + 1e-3));
            }
        }
        // The extremes.
        assert!((6.6..6.7).contains(&box_muller(&[0], &[0])[0][0]));
        for b in [0, 1, u32::MAX, 1 << 30, 1 << 31, 0x1fff_ffff, 0x2000_0000] {
            assert!(box_muller(&[u32::MAX], &[b]).iter().all(|[z]| z.abs() < 1e-3));
            assert!(box_muller(&[0], &[b]).iter().all(|[z]| z.is_finite()));
        }
    }

    #[test]
    fn normals_are_normal() {
        let z: Vec<f64> = normal_numbers(1 << 20).into_iter().map(f64::from).collect();
        let n = z.len() as f64;
        let moment = |k: i32| z.iter().map(|&z| (0..k).fold(1.0, |product, _| product * z)).sum::<f64>() / n;
        // Standard deviations of the moments: 1, sqrt 2, sqrt 15, sqrt 96 over the root of n.
        for (k, want, deviation) in [(1, 0.0, 1.0), (2, 1.0, 1.42), (3, 0.0, 3.88), (4, 3.0, 9.8), (6, 15.0, 101.0)] {
            assert!((moment(k) - want).abs() < 3.5 * deviation / n.sqrt(), "moment {k}: {}", moment(k));
        }
        // Tails beyond 4: 66 of 2^20 are expected.
        let tail = z.iter().filter(|z| z.abs() > 4.0).count();
        assert!((40..95).contains(&tail), "{tail}");
        // Neighbours, and the two of a pair, and those of two pairs are not correlated, nor are their squares.
        for lag in [1, 16, 32, 48, 64] {
            let pairs = || z.iter().zip(&z[lag..]);
            let plain = pairs().map(|(a, b)| a * b).sum::<f64>() / n;
            let squares = pairs().map(|(a, b)| (a * a - 1.0) * (b * b - 1.0)).sum::<f64>() / n;
            assert!(plain.abs() < 3.5 / n.sqrt() && squares.abs() < 7.0 / n.sqrt(), "lag {lag}: {plain} {squares}");
        }
        let cdf = |z: f64| 0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2);
        assert!(kolmogorov_smirnov(z, cdf) < 1.95);
    }

    /// The distribution function of beta: the continued fraction of the incomplete beta function (Lentz).
    fn beta_cdf(x: f64, a: f64, b: f64) -> f64 {
        if x <= 0.0 || x >= 1.0 {
            return x;
        }
        if x > (a + 1.0) / (a + b + 2.0) {
            return 1.0 - beta_cdf(1.0 - x, b, a);
        }
        let ln_front = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * libm::log(x) + b * libm::log1p(-x);
        let (mut c, mut d) = (1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0)));
        let mut fraction = d;
        for m in 1..500 {
            let m = f64::from(m);
            let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
            let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
            for term in [even, odd] {
                d = 1.0 / (1.0 + term * d);
                c = 1.0 + term / c;
                fraction *= c * d;
            }
        }
        libm::exp(ln_front) * fraction / a
    }

    #[test]
    fn beta_is_beta() {
        assert!((beta_cdf(0.3, 2.0, 2.0) - (0.09 * 3.0 - 0.027 * 2.0)).abs() < 1e-12);
        assert!((beta_cdf(0.7, 1.0, 3.0) - (1.0 - 0.027)).abs() < 1e-12);
        let key = key(17);
        let shapes = [(0.2, 0.2), (1.0, 1.0), (2.0, 2.0), (0.2, 2.0), (0.5, 0.5), (0.4, 0.4), (1.0, 0.7), (8.0, 30.0)];
        for (k, (a, b)) in (0..).zip(shapes) {
            let n = 20_000;
            let numbers: Vec<f64> = (0..n).map(|i| beta(key, counter(i, 0, k), 3, a, b)).collect();
            assert!(numbers.iter().all(|x| (0.0..=1.0).contains(x)));
            let n = n as f64;
            let mean = numbers.iter().sum::<f64>() / n;
            let variance = numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let (want, want_variance) = (a / (a + b), a * b / ((a + b) * (a + b) * (a + b + 1.0)));
            assert!((mean - want).abs() < 3.5 * (want_variance / n).sqrt(), "{a} {b}: mean {mean}");
            assert!((variance / want_variance - 1.0).abs() < 0.05, "{a} {b}: variance {variance}");
            let distance = kolmogorov_smirnov(numbers, |x| beta_cdf(x, a, b));
            assert!(distance < 1.95, "{a} {b}: {distance}");
        }
    }

    #[test]
    fn beta_is_finite_for_any_shape() {
        let key = key(17);
        for a in [1e-3, 1e-2, 1.0, 1e3] {
            for b in [1e-3, 1e-2, 1.0, 1e3] {
                let mut sum = 0.0;
                for i in 0..4000 {
                    let x = beta(key, counter(i, 0, 0), 0, a, b);
                    assert!((0.0..=1.0).contains(&x), "{a} {b}: {x}");
                    sum += x;
                }
                let deviation = (a * b / ((a + b) * (a + b) * (a + b + 1.0)) / 4000.0).sqrt();
                assert!((sum / 4000.0 - a / (a + b)).abs() < 4.0 * deviation, "{a} {b}: {}", sum / 4000.0);
            }
        }
    }

    #[test]
    fn beta_reads_the_blocks_that_it_says() {
        // The second gamma number begins in the middle of them, and both are what the same blocks give elsewhere.
        let (key, counter) = (key(1), counter(2, 3, 4));
        let x = ln_gamma_number(key, counter, 100, 0.7);
        let y = ln_gamma_number(key, counter, 100 + BETA_BLOCKS / 2, 1.5);
        let want = libm::exp(x) / (libm::exp(x) + libm::exp(y));
        assert!((beta(key, counter, 100, 0.7, 1.5) - want).abs() < 1e-14);
    }
}
