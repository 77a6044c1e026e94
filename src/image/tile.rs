//! Pixels taken apart into channels, and put together again.

/// Pixels that are taken apart at a time: few enough that all their channels stay in L1, and a length that the compiler
/// knows, since only then it finds the shuffles for three channels. It divides [`CHUNK`](crate::parallel::CHUNK).
pub const TILE: usize = 128;

/// The channels of `TILE` pixels, and `f` of each value.
#[inline(always)]
pub fn split<P: Copy, Q, const C: usize>(pixels: &[[P; C]; TILE], planes: &mut [[Q; TILE]; C], f: impl Fn(P) -> Q) {
    for j in 0..TILE {
        for k in 0..C {
            planes[k][j] = f(pixels[j][k]);
        }
    }
}

/// The pixels of these channels.
#[inline(always)]
pub fn join<P, Q: Copy, const C: usize>(planes: &[[Q; TILE]; C], pixels: &mut [[P; C]; TILE], f: impl Fn(Q) -> P) {
    for j in 0..TILE {
        for k in 0..C {
            pixels[j][k] = f(planes[k][j]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apart_and_together() {
        let pixels: [[u16; 3]; TILE] = std::array::from_fn(|j| std::array::from_fn(|k| (3 * j + k) as u16));
        let mut planes = [[0; TILE]; 3];
        split(&pixels, &mut planes, u32::from);
        assert!((0..TILE).all(|j| (0..3).all(|k| planes[k][j] == u32::from(pixels[j][k]))));
        let mut again = [[0; 3]; TILE];
        join(&planes, &mut again, |x| x as u16);
        assert_eq!(again, pixels);
    }
}
