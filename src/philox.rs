//! Philox4x32-10: random numbers as a function of a key and a counter, without state.
//!
//! Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011.

/// The multipliers of a round.
const MULTIPLIERS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// What the key grows by from round to round.
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
/// Rounds of the standard generator.
pub const ROUNDS: u32 = 10;

/// Blocks that are computed side by side, and so the length of a run of numbers that take the same word of their blocks.
pub const LANES: usize = 16;
/// Numbers in a group: the four words of [`LANES`] blocks.
pub const GROUP: usize = 4 * LANES;

/// The four words of the block with this counter.
#[inline(always)]
pub fn block(counter: [u32; 4], mut key: [u32; 2], rounds: u32) -> [u32; 4] {
    // 64 bits each, of which the lower half counts and the upper one is left as it comes: that is what the vector
    // instruction for 32 by 32 bits multiplies.
    let mut words = counter.map(u64::from);
    for _ in 0..rounds {
        let [k0, k1] = key.map(u64::from);
        let a = (words[0] & 0xffff_ffff) * MULTIPLIERS[0];
        let b = (words[2] & 0xffff_ffff) * MULTIPLIERS[1];
        words = [(b >> 32) ^ words[1] ^ k0, b, (a >> 32) ^ words[3] ^ k1, a];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    words.map(|word| word as u32)
}

/// The words of [`LANES`] blocks: number `16 w + i` is word `w` of the block whose counter is `first + i` and then `rest`.
/// The lowest 4 bits of `first` are 0.
///
/// The same as [`block`], but each step for all blocks before the next: what can be computed at the same time then stands
/// close together, where the CPU sees it. For seven rounds that takes 2/3 of the time; in dropout, with ten, no gain was
/// measured, so [`Stream::group`] goes block by block.
#[inline(always)]
pub fn blocks(first: u32, rest: [u32; 3], mut key: [u32; 2], rounds: u32) -> [u32; GROUP] {
    const LOW: u64 = 0xffff_ffff;
    let [c1, c2, c3] = rest.map(u64::from);
    let (mut w0, mut w1, mut w2, mut w3) = ([0; LANES], [c1; LANES], [c2; LANES], [c3; LANES]);
    for i in 0..LANES {
        w0[i] = u64::from(first | i as u32);
    }
    for _ in 0..rounds {
        let [k0, k1] = key.map(u64::from);
        for i in 0..LANES {
            let (a, b) = ((w0[i] & LOW) * MULTIPLIERS[0], (w2[i] & LOW) * MULTIPLIERS[1]);
            [w0[i], w1[i], w2[i], w3[i]] = [(b >> 32) ^ w1[i] ^ k0, b, (a >> 32) ^ w3[i] ^ k1, a];
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    let mut out = [0; GROUP];
    for i in 0..LANES {
        [out[i], out[LANES + i]] = [w0[i] as u32, w1[i] as u32];
        [out[2 * LANES + i], out[3 * LANES + i]] = [w2[i] as u32, w3[i] as u32];
    }
    out
}

/// A sequence of 2^64 random numbers of 32 bits for each seed and stream.
///
/// Number `i` is word `i / 16 % 4` of the block with the counter `i / 64 * 16 + i % 16`: 16 numbers in a row take the same
/// word of 16 blocks, which is the order in which vectors hold them.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// The key.
    pub seed: u64,
    /// The upper half of the counter.
    pub stream: u64,
}

impl Stream {
    /// Numbers `64 group ..` of the stream.
    #[inline(always)]
    pub fn group(self, group: u64) -> [u32; GROUP] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let (low, high) = (self.stream as u32, (self.stream >> 32) as u32);
        // The numbers of a group's blocks differ in the lowest 4 bits.
        let first = group << 4;
        let mut out = [0; GROUP];
        for i in 0..LANES {
            let words = block([first as u32 + i as u32, (first >> 32) as u32, low, high], key, ROUNDS);
            for (w, word) in words.into_iter().enumerate() {
                out[w * LANES + i] = word;
            }
        }
        out
    }
}

/// The upper half of the counter of [`shuffle`] has this bit, so that its numbers are not those of dropout.
const SHUFFLES: u64 = 1 << 63;

/// Brings a list into random order: each order is as likely as any other, and it is a function of seed and stream.
///
/// Fisher and Yates, from the last place to the first. The place that changes with `i` is a number below `i + 1` that is made
/// without bias of the stream's next number of 32 bits (two of them for `i` from 2^32 on), after Lemire, Fast random integer
/// generation in an interval, 2019: the upper half of its product with `i + 1`, and the next one if the lower half is one of
/// the few that would make some numbers likelier.
pub fn shuffle<T>(order: &mut [T], seed: u64, stream: u64) {
    let mut words = Words { stream: Stream { seed, stream: stream | SHUFFLES }, at: 0, group: [0; GROUP] };
    for i in (1..order.len()).rev() {
        order.swap(i, words.below(i as u64 + 1) as usize);
    }
}

/// The numbers of a stream one after the other.
struct Words {
    stream: Stream,
    at: u64,
    group: [u32; GROUP],
}

impl Words {
    fn next(&mut self) -> u32 {
        let i = (self.at % GROUP as u64) as usize;
        if i == 0 {
            self.group = self.stream.group(self.at / GROUP as u64);
        }
        self.at += 1;
        self.group[i]
    }

    /// A number below `n`, all as likely.
    fn below(&mut self, n: u64) -> u64 {
        if let Ok(n) = u32::try_from(n) {
            loop {
                let product = u64::from(self.next()) * u64::from(n);
                let low = product as u32;
                // The remainder is seldom needed: it is below `n`.
                if low >= n || low >= n.wrapping_neg() % n {
                    return product >> 32;
                }
            }
        }
        loop {
            let word = u64::from(self.next()) | u64::from(self.next()) << 32;
            let product = u128::from(word) * u128::from(n);
            let low = product as u64;
            if low >= n || low >= n.wrapping_neg() % n {
                return (product >> 64) as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // Random123, tests/kat_vectors.
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], 10, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], 10, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                10,
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
            ([0; 4], [0; 2], 7, [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]),
        ];
        for (counter, key, rounds, want) in cases {
            assert_eq!(block(counter, key, rounds), want);
        }
    }

    #[test]
    fn a_shuffle_is_fisher_and_yates() {
        let (seed, stream) = (7, 3);
        let numbers = Stream { seed, stream: stream | SHUFFLES };
        let mut order: Vec<u32> = (0..100).collect();
        shuffle(&mut order, seed, stream);
        let mut want: Vec<u32> = (0..100).collect();
        for (k, i) in (1..100).rev().enumerate() {
            let word = numbers.group(k as u64 / 64)[k % 64];
            want.swap(i, ((u64::from(word) * (i as u64 + 1)) >> 32) as usize);
        }
        assert_eq!(order, want); // no number here is one of the few that are left out
        order.sort_unstable();
        assert!(order.iter().zip(0..).all(|(a, b)| *a == b));
    }

    #[test]
    fn below_is_without_bias() {
        // Of 2^32 numbers 2^32 mod n would be too many; for this n that is a third.
        let n = 3 << 30;
        let mut words = Words { stream: Stream { seed: 1, stream: 2 }, at: 0, group: [0; GROUP] };
        let mut thirds = [0; 3];
        for _ in 0..30_000 {
            thirds[(words.below(n) / (1 << 30)) as usize] += 1;
        }
        assert!(thirds.iter().all(|count| (9_700..10_300).contains(count)), "{thirds:?}");
        assert!(words.at > 30_000 * 5 / 4);
        let n = 5_u64 << 61;
        let mut fifths = [0; 5];
        for _ in 0..10_000 {
            fifths[(words.below(n) >> 61) as usize] += 1;
        }
        assert!(fifths.iter().all(|count| (1_850..2_150).contains(count)), "{fifths:?}");
    }

    #[test]
    fn every_order_is_as_likely() {
        let mut counts = std::collections::HashMap::new();
        for stream in 0..24_000 {
            let mut order = [0, 1, 2, 3];
            shuffle(&mut order, 9, stream);
            *counts.entry(order).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_group_is_words_of_blocks() {
        let stream = Stream { seed: 0x0123_4567_89ab_cdef, stream: 0xfedc_ba98_7654_3210 };
        for group in [0, 1, (1 << 28) - 1, 1 << 28, (1 << 58) - 1] {
            for (i, number) in stream.group(group).into_iter().enumerate() {
                let counter = (group << 4) + (i % 16) as u64;
                let counter = [counter as u32, (counter >> 32) as u32, 0x7654_3210, 0xfedc_ba98];
                assert_eq!(number, block(counter, [0x89ab_cdef, 0x0123_4567], 10)[i / 16]);
            }
        }
    }
}
