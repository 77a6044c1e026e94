//! Sums whose shape is fixed: the same bits on every instruction set and thread count.
//!
//! An array is read in logical C order, in blocks of [`CHUNK`](crate::parallel::CHUNK) elements. Within a block, element
//! `i` is added to lane `i % 16`; the lanes are added up by halving. The sums of the blocks, and then those of the arrays,
//! are added up by [`tree`]. Nothing of this depends on how wide a vector is or who computes which block.
//!
//! Squares are taken and added in `f64`: an `f32` square overflows at 2e19.

/// The accumulators of a block.
pub const LANES: usize = 16;

/// The running sum of one block.
#[derive(Clone, Copy, Default)]
pub struct Lanes([f64; LANES]);

impl Lanes {
    /// Adds `f(x[i])` for each `i` to the lane `i % 16`. A block may come in several pieces, all but the last a multiple
    /// of 16 long.
    #[inline(always)]
    pub fn add<T: Copy>(&mut self, x: &[T], f: impl Fn(T) -> f64) {
        let (groups, rest) = x.as_chunks::<LANES>();
        let mut lanes = self.0;
        for group in groups {
            for (lane, &x) in lanes.iter_mut().zip(group) {
                *lane += f(x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f(x);
        }
        self.0 = lanes;
    }

    /// The sum of the lanes, by halving: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
    #[inline(always)]
    pub fn total(self) -> f64 {
        let mut lanes = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// The sum of `partials` by a binary tree over their index: neighbours are added, an odd last one moves up as it is,
/// until one is left. 0 for none. The slice is used up.
pub fn tree(partials: &mut [f64]) -> f64 {
    tree_by(partials, |a, b| a + b)
}

/// The same tree with another way to combine two.
pub fn tree_by<T: Copy + Default>(partials: &mut [T], combine: impl Fn(T, T) -> T) -> T {
    let mut n = partials.len();
    while n > 1 {
        for i in 0..n / 2 {
            partials[i] = combine(partials[2 * i], partials[2 * i + 1]);
        }
        if n % 2 == 1 {
            partials[n / 2] = partials[n - 1];
        }
        n = n.div_ceil(2);
    }
    partials.first().copied().unwrap_or_default()
}

/// Several sums by the tree at once.
pub fn tree_of<const K: usize>(partials: &mut [[f64; K]]) -> [f64; K]
where
    [f64; K]: Default,
{
    tree_by(partials, |a, b| std::array::from_fn(|k| a[k] + b[k]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_change_a_block() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32).sqrt()).collect();
        let mut whole = Lanes::default();
        whole.add(&x, f64::from);
        let mut pieces = Lanes::default();
        for piece in x.chunks(48) {
            pieces.add(piece, f64::from);
        }
        assert_eq!(whole.total().to_bits(), pieces.total().to_bits());
        let naive: f64 = x.iter().map(|&x| f64::from(x)).sum();
        assert!((whole.total() - naive).abs() < 1e-9 * naive);
    }

    #[test]
    fn the_tree_adds_neighbours() {
        assert_eq!(tree(&mut []), 0.0);
        assert_eq!(tree(&mut [3.0]), 3.0);
        // (1e16 + 1) + (1 - 1e16) loses both ones; any other shape keeps one of them.
        assert_eq!(tree(&mut [1e16, 1.0, 1.0, -1e16]), 0.0);
        assert_eq!(tree(&mut [1.0, 2.0, 4.0, 8.0, 16.0]), 31.0);
    }
}
