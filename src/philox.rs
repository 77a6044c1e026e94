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
pub fn block(counter: [u32; 4], key: [u32; 2], rounds: u32) -> [u32; 4] {
    let mut words = counter.map(|word| [u64::from(word)]);
    scramble(&mut words, key, rounds);
    words.map(|[word]| word as u32)
}

/// The rounds, over `N` blocks at once. Only the lower half of each number counts: that is what the vector instruction for
/// 32 by 32 bits multiplies.
#[inline(always)]
fn scramble<const N: usize>(words: &mut [[u64; N]; 4], mut key: [u32; 2], rounds: u32) {
    for _ in 0..rounds {
        let [k0, k1] = key.map(u64::from);
        for i in 0..N {
            let a = (words[0][i] & 0xffff_ffff) * MULTIPLIERS[0];
            let b = (words[2][i] & 0xffff_ffff) * MULTIPLIERS[1];
            words[0][i] = (b >> 32) ^ words[1][i] ^ k0;
            words[2][i] = (a >> 32) ^ words[3][i] ^ k1;
            words[1][i] = b & 0xffff_ffff;
            words[3][i] = a & 0xffff_ffff;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
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
        const SIDE: usize = 8;
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let (low, high) = (self.stream & 0xffff_ffff, self.stream >> 32);
        let mut out = [0; GROUP];
        for first in (0..LANES).step_by(SIDE) {
            let mut words = [[0u64; SIDE], [0; SIDE], [low; SIDE], [high; SIDE]];
            for i in 0..SIDE {
                let block = (group << 4) + (first + i) as u64;
                words[0][i] = block & 0xffff_ffff;
                words[1][i] = block >> 32;
            }
            scramble(&mut words, key, ROUNDS);
            for (word, numbers) in words.iter().zip(out.chunks_exact_mut(LANES)) {
                for i in 0..SIDE {
                    numbers[first + i] = word[i] as u32;
                }
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
