//! Random numbers of augmentation: a function of seed, sample, epoch and transform, and of nothing else.
//!
//! Each (sample, epoch, transform) has 2^32 blocks of Philox4x32 of its own: the first word of the counter counts them,
//! and the other three name the triple ([`counter`]). The blocks of the lower half, of ten rounds, give the parameters
//! ([`uniforms`], [`beta`]), those of the upper half, of seven, the numbers of which each element of a picture has one
//! ([`normals`], [`words`]). The batch that a sample is in, the order, the threads and the instruction set cannot
//! change them.

use crate::philox::{GROUP, LANES, ROUNDS, block, blocks};

/// The counter that the key is made with, "ironstep augment" in bytes: no other part of the crate has this key, so that
/// the same seed may be used for all of them.
const TAG: [u32; 4] = [0x6e6f_7269, 0x7065_7473, 0x6775_6120, 0x746e_656d];

/// The blocks of single elements have this bit, those of parameters have not.
const ELEMENTS: u32 = 1 << 31;

/// So many elements of a picture have numbers of their own, also if each takes a word: the 2^31 blocks have four each.
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

/// Rounds of the numbers of elements. Seven are the fewest with which Philox4x32 passes all of `BigCrush` (Salmon et al.
/// 2011, table 2); the standard ten, which the parameters have, are these and a margin.
const ELEMENT_ROUNDS: u32 = 7;

/// Group `group` of the random numbers of elements, 64 words: number `16 w + i` is word `w` of the block
/// `2^31 + 16 group + i` of Philox4x32-7.
#[inline(always)]
pub fn words(key: [u32; 2], counter: [u32; 3], group: u32) -> [u32; GROUP] {
    blocks(group << 4 | ELEMENTS, counter, key, ELEMENT_ROUNDS)
}

/// Normal numbers of a group: two of each word.
pub const NORMALS: usize = 2 * GROUP;
/// Normal numbers of [`LANES`] words.
pub const RUN: usize = 2 * LANES;

/// Standard normal numbers of the elements from `128 group` on, of `N` groups: `f` gets their runs of 32, one after the
/// other, each with its index.
///
/// Box and Muller 1958: a word gives `r cos` and `r sin`, words `16 w .. 16 w + 16` of a group the elements
/// `32 w .. 32 w + 16` and the 16 after these. The radius is `r = sqrt(-2 ln u)` with `u = (k + 1/2) / 2^16`, `k` the
/// lower 16 bits of the word (`radii`). The upper bit is half a turn, the sign of `r`; the others, as a number with sign,
/// are -1/4 .. 1/4 of a turn (`cos_sin`). So the upper 16 bits choose one of 2^16 angles, which are equally far from each
/// other for each radius; the lower ones move all of them by less than that.
///
/// What 2^16 radii change: the largest number is 4.8546 (of 800 000 one should be larger), the distribution function is
/// off by 5e-7 at most, the moments 2, 4 and 6 are too small by 5e-6, 2e-4 and 7e-3. The numbers are those of the exact
/// functions to 4e-6.
///
/// In two loops: in one, the constants would not fit into the registers. And many groups, that the compiler leaves them
/// loops, for the same reason.
#[inline(always)]
pub fn normals<const N: usize>(key: [u32; 2], counter: [u32; 3], group: u32, mut f: impl FnMut(usize, [f32; RUN])) {
    let (mut all, mut r) = ([[0; GROUP]; N], [[0.0; GROUP]; N]);
    for (group, all) in (group..).zip(&mut all) {
        *all = words(key, counter, group);
    }
    let words = all.as_flattened().as_chunks().0;
    let r = r.as_flattened_mut().as_chunks_mut::<LANES>().0;
    for (r, words) in r.iter_mut().zip(words) {
        *r = radii(words);
    }
    for (run, (words, r)) in words.iter().zip(r).enumerate() {
        let [cos, sin] = cos_sin(words);
        let mut z = [0.0; RUN];
        for i in 0..LANES {
            [z[i], z[LANES + i]] = [r[i] * cos[i], r[i] * sin[i]];
        }
        f(run, z);
    }
}

/// The polynomial with these coefficients, the constant one first, by Horner's rule.
#[inline(always)]
fn polynomial<const N: usize>(x: &[f32; LANES], coefficients: [f32; N]) -> [f32; LANES] {
    let mut sum = [coefficients[N - 1]; LANES];
    for k in (0..N - 1).rev() {
        for i in 0..LANES {
            sum[i] = sum[i] * x[i] + coefficients[k];
        }
    }
    sum
}

/// The radii of these words, to 2.5e-6, with the sign of the upper bit.
///
/// For `x = k + 1/2`, the difference of the bits of 2^16 and of `x` is `(n + v) 2^23`, where `u = 2^-n (1 - v / 2)`, `v`
/// in [0, 1). So `-2 ln u = 2 ln 2 (n + v) + v q(v)` with the bounded function `q(v) = -2 ln(1 - v / 2) / v - 2 ln 2`,
/// for which there is a polynomial, the best one for the error of `r` if `n = 0`. Its even and odd parts are computed
/// side by side: `((2 ln 2 (n + v)) + v even(v^2)) + v^2 odd(v^2)`.
#[inline(always)]
fn radii(words: &[u32; LANES]) -> [f32; LANES] {
    const EVEN: [f32; 3] = [-0.386_345_8, 0.073_348_82, -0.031_075_563];
    const ODD: [f32; 3] = [0.251_350_22, 0.062_032_36, 0.030_685_153];
    /// By how much the bits of a float grow if it is doubled.
    const OCTAVE: u32 = 1 << 23;
    let (mut linear, mut v, mut s) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        let x = (words[i] & 0xffff) as i32 as f32 + 0.5;
        let bits = 65_536_f32.to_bits() - x.to_bits();
        linear[i] = bits as i32 as f32 * (2.0 * std::f32::consts::LN_2 / OCTAVE as f32);
        v[i] = f32::from_bits(bits & (OCTAVE - 1) | 1_f32.to_bits()) - 1.0;
        s[i] = v[i] * v[i];
    }
    let (even, odd) = (polynomial(&s, EVEN), polynomial(&s, ODD));
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        let r = ((linear[i] + v[i] * even[i]) + s[i] * odd[i]).sqrt();
        out[i] = f32::from_bits(r.to_bits() | words[i] & 1 << 31);
    }
    out
}

/// Cosine and sine of these words, to 7.5e-7: without the upper bit, and of the others as a number with sign, `a` quarter
/// turns for `2^31 a = 2 word`. Polynomials in `a^2`, the best ones for the error.
#[inline(always)]
fn cos_sin(words: &[u32; LANES]) -> [[f32; LANES]; 2] {
    const COS: [f32; 5] = [0.999_999_95, -1.233_698_2, 0.253_650_75, -0.020_810_628, 0.000_858_190_6];
    const SIN: [f32; 4] = [1.570_791, -0.645_892_85, 0.079_434_34, -0.004_333_1];
    let (mut a, mut s) = ([0.0; LANES], [0.0; LANES]);
    for i in 0..LANES {
        a[i] = (words[i] << 1) as i32 as f32 * (1.0 / 2_147_483_648.0);
        s[i] = a[i] * a[i];
    }
    let (cos, mut sin) = (polynomial(&s, COS), polynomial(&s, SIN));
    for i in 0..LANES {
        sin[i] *= a[i];
    }
    [cos, sin]
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
            let mut out = Vec::with_capacity(NORMALS * self.2.len());
            for group in self.2 {
                normals::<1>(self.0, self.1, group, |_, z| out.extend(z));
            }
            out
        }
    }

    fn normal_numbers(n: u32) -> Vec<f32> {
        dispatch(Isa::detect(), Groups(key(1), counter(5, 2, 3), 0..n / NORMALS as u32))
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
                assert_eq!(word, block([count, counter[0], counter[1], counter[2]], key, 7)[i as usize / 16]);
            }
        }
        // What the generator gives does not change from version to version. (The test of the block itself is in
        // `philox`.)
        let mut out = [0.0; 3];
        uniforms(super::key(0), super::counter(0, 0, 0), 0, &mut out);
        assert_eq!(super::key(0), KNOWN_KEY);
        assert_eq!(out, KNOWN_UNIFORMS);
        let first = Groups(super::key(0), super::counter(0, 0, 0), 0..1).run();
        assert_eq!(first[..3], KNOWN_NORMALS);
    }
    const KNOWN_KEY: [u32; 2] = [1_966_795_350, 2_004_055_617];
    const KNOWN_UNIFORMS: [f64; 3] = [0.963_359_537_374_468_8, 0.826_070_130_000_008_2, 0.702_493_812_128_700_5];
    const KNOWN_NORMALS: [f32; 3] = [0.021_233_711, 1.325_322_7, -0.312_212_62];

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
    fn radii_and_angles_are_right() {
        let (mut worst, mut last) = ([0.0; 3], f32::INFINITY);
        let mut note = |i: usize, error: f64| worst[i] = if error.abs() > worst[i] { error.abs() } else { worst[i] };
        for k in 0..1 << 16 {
            let [r, negative] = [k, k | 0xfe1d_0000].map(|word| radii(&[word; LANES])[0]);
            note(0, f64::from(r) - libm::sqrt(-2.0 * libm::log((f64::from(k) + 0.5) / 65_536.0)));
            assert!(r < last && r > 0.0 && negative == -r);
            last = r;
            for word in [k << 16, k << 16 | 0x9e37] {
                let [cos, sin] = cos_sin(&[word; LANES]).map(|x| x[0]);
                let angle = f64::from((word << 1) as i32) / 4_294_967_296.0 * std::f64::consts::PI;
                note(1, f64::from(cos) - libm::cos(angle));
                note(2, f64::from(sin) - libm::sin(angle));
            }
        }
        assert!(worst[0] < 2.5e-6 && worst[1] < 2.5e-7 && worst[2] < 7.5e-7, "{worst:?}");
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
            for (i, word) in words(key, counter, group).into_iter().enumerate() {
                let r = libm::sqrt(-2.0 * libm::log((f64::from(word & 0xffff) + 0.5) / 65_536.0));
                let quarters = f64::from((word << 1) as i32) / 2_147_483_648.0;
                let turn = quarters * std::f64::consts::FRAC_PI_2;
                let r = if word >> 31 == 1 { -r } else { r };
                let at = (group - 10) as usize * NORMALS + i / LANES * RUN + i % LANES;
                assert!((f64::from(want[at]) - r * libm::cos(turn)).abs() < 4e-6, "{group} {i}");
                assert!((f64::from(want[at + LANES]) - r * libm::sin(turn)).abs() < 4e-6, "{group} {i}");
            }
        }
    }

    /// Moments, tails, correlations, and the distribution.
    fn check_normal(n: u32) {
        let z: Vec<f64> = normal_numbers(n).into_iter().map(f64::from).collect();
        let n = z.len() as f64;
        let moment = |k: i32| z.iter().map(|&z| (0..k).fold(1.0, |product, _| product * z)).sum::<f64>() / n;
        // Standard deviations of the moments: 1, sqrt 2, sqrt 15, sqrt 96, ... over the root of n.
        let moments = [(1, 0.0, 1.0), (2, 1.0, 1.42), (3, 0.0, 3.88), (4, 3.0, 9.8), (5, 0.0, 30.8), (6, 15.0, 101.0)];
        for (k, want, deviation) in moments {
            assert!((moment(k) - want).abs() < 3.5 * deviation / n.sqrt(), "moment {k}: {}", moment(k));
        }
        for beyond in [2.0, 3.0, 3.5, 4.0, 4.5] {
            let tail = z.iter().filter(|z| z.abs() > beyond).count() as f64;
            let want = n * libm::erfc(beyond * std::f64::consts::FRAC_1_SQRT_2);
            assert!((tail - want).abs() < 3.5 * want.sqrt() + 1.0, "beyond {beyond}: {tail}, {want}");
        }
        assert!(z.iter().all(|z| z.abs() < 4.8547));
        // Neighbours, and the two of a word, and those of two words are not correlated, nor are their squares.
        for lag in [1, 2, 3, 8, 15, 16, 17, 32, 48, 64, 96, 128] {
            let pairs = || z.iter().zip(&z[lag..]);
            let plain = pairs().map(|(a, b)| a * b).sum::<f64>() / n;
            let squares = pairs().map(|(a, b)| (a * a - 1.0) * (b * b - 1.0)).sum::<f64>() / n;
            assert!(plain.abs() < 3.5 / n.sqrt() && squares.abs() < 7.0 / n.sqrt(), "lag {lag}: {plain} {squares}");
        }
        // The two of a word, by 64 x 64 cells of the same probability.
        let cdf = |z: f64| 0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2);
        let mut cells = vec![0.0; 64 * 64];
        for run in z.as_chunks::<RUN>().0 {
            for i in 0..LANES {
                cells[(64.0 * cdf(run[i])) as usize * 64 + (64.0 * cdf(run[LANES + i])) as usize] += 1.0;
            }
        }
        let want = n / 2.0 / 4096.0;
        let chi_squared = cells.iter().map(|count| (count - want) * (count - want) / want).sum::<f64>();
        assert!((chi_squared - 4095.0).abs() < 3.5 * 90.5, "{chi_squared}");
        let distance = kolmogorov_smirnov(z, cdf);
        assert!(distance < 1.95, "{distance}");
    }

    #[test]
    fn normals_are_normal() {
        check_normal(1 << 20);
    }

    #[test]
    #[ignore = "takes seconds"]
    fn many_normals_are_normal() {
        check_normal(10_000_000 / 128 * 128);
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
