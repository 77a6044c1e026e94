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
