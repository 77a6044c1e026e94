//! Mirrored pictures, and quarter turns.

use crate::image::sample::{Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use crate::simd::{Isa, Kernel, dispatch};

/// Mirrors: columns `horizontal` and `vertical`, each 0 or 1. With both it is a half turn.
#[derive(Debug)]
pub struct Flip {
    /// Horizontal, vertical.
    rows: Vec<[bool; 2]>,
}

impl Op for Flip {
    const NAME: &'static str = "flip";
    const EDITS: bool = true;
    const MAKES: bool = true;
    const MOVES: bool = true;

    fn new(table: Table<'_>, _channels: usize) -> Result<Self, String> {
        let Table { n, columns, settings, .. } = table;
        if columns != 2 || !settings.is_empty() {
            let given = settings.len();
            return Err(format!("flip takes 2 columns and no settings, got {columns} columns and {given} settings"));
        }
        let flag = |i: usize, column: usize| match table.row(i)[column] {
            0.0 => Ok(false),
            1.0 => Ok(true),
            x => Err(format!("flip: {} of sample {i} must be 0 or 1, got {x}", ["horizontal", "vertical"][column])),
        };
        let rows = (0..n).map(|i| Ok([flag(i, 0)?, flag(i, 1)?])).collect::<Result<_, String>>()?;
        Ok(Flip { rows })
    }

    fn edit<P: Pixel>(&self, i: usize, image: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        dispatch(isa, Edit { image, flip: self.rows[i] });
    }

    fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        dispatch(isa, Make { input, out, flip: self.rows[i] });
    }

    fn mask<E: Copy>(&self, i: usize, input: View<'_, E>, out: ViewMut<'_, E>, _fill: E) {
        dispatch(Isa::current(), Make { input, out, flip: self.rows[i] });
    }
}

/// Turns by quarters: column `k` of 0, 1, 2, 3 quarters, counter-clockwise (`numpy.rot90`).
#[derive(Debug)]
pub struct Turn {
    quarters: Vec<u8>,
}

impl Op for Turn {
    const NAME: &'static str = "turn";
    const EDITS: bool = false;
    const MOVES: bool = true;

    fn new(table: Table<'_>, _channels: usize) -> Result<Self, String> {
        let Table { n, columns, settings, .. } = table;
        if columns != 1 || !settings.is_empty() {
            let given = settings.len();
            return Err(format!("turn takes 1 column and no settings, got {columns} columns and {given} settings"));
        }
        let quarter = |i: usize| {
            let x = table.row(i)[0];
            let k = (0..4).find(|&k| f64::from(k) == x);
            k.ok_or_else(|| format!("turn: k of sample {i} must be 0, 1, 2 or 3, got {x}"))
        };
        Ok(Turn { quarters: (0..n).map(quarter).collect::<Result<_, String>>()? })
    }

    fn shape(&self, i: usize, input: Shape) -> Result<Shape, String> {
        Ok(if self.quarters[i] % 2 == 1 { input.sized(input.w, input.h) } else { input })
    }

    fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, _work: &mut Workspace, isa: Isa) {
        turn(self.quarters[i], input, out, isa);
    }

    fn mask<E: Copy>(&self, i: usize, input: View<'_, E>, out: ViewMut<'_, E>, _fill: E) {
        turn(self.quarters[i], input, out, Isa::current());
    }
}

fn turn<E: Copy>(quarters: u8, input: View<'_, E>, out: ViewMut<'_, E>, isa: Isa) {
    match quarters {
        1 => dispatch(isa, Quarter { input, out, clockwise: false }),
        3 => dispatch(isa, Quarter { input, out, clockwise: true }),
        k => dispatch(isa, Make { input, out, flip: [k == 2; 2] }),
    }
}

/// Mirrors one picture into another.
struct Make<'a, E> {
    input: View<'a, E>,
    out: ViewMut<'a, E>,
    flip: [bool; 2],
}

impl<E: Copy> Kernel for Make<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let shape = self.input.shape;
        if shape.is_empty() {
            return;
        }
        let (planes, c) = shape.planes();
        let (plane, row) = (shape.len() / planes, shape.w * c);
        for (from, to) in self.input.data.chunks_exact(plane).zip(self.out.data.chunks_exact_mut(plane)) {
            match self.flip {
                [false, false] => to.copy_from_slice(from),
                [false, true] => {
                    for (from, to) in from.chunks_exact(row).rev().zip(to.chunks_exact_mut(row)) {
                        to.copy_from_slice(from);
                    }
                }
                [true, false] => {
                    for (from, to) in from.chunks_exact(row).zip(to.chunks_exact_mut(row)) {
                        reverse(from, to, c);
                    }
                }
                // All pixels in the opposite order.
                [true, true] => reverse(from, to, c),
            }
        }
    }
}

/// Mirrors one picture in place.
struct Edit<'a, P> {
    image: ViewMut<'a, P>,
    flip: [bool; 2],
}

/// Elements that [`Edit`] sets aside.
const ASIDE: usize = 960;

impl<P: Pixel> Kernel for Edit<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let ViewMut { data, shape } = self.image;
        if shape.is_empty() {
            return;
        }
        let (planes, c) = shape.planes();
        let (plane, row) = (shape.len() / planes, shape.w * c);
        let mut aside = [P::default(); ASIDE];
        match self.flip {
            [false, false] => {}
            [false, true] => {
                for plane in data.chunks_exact_mut(plane) {
                    let (upper, lower) = plane.split_at_mut(shape.h / 2 * row);
                    for (a, b) in upper.chunks_exact_mut(row).zip(lower.chunks_exact_mut(row).rev()) {
                        a.swap_with_slice(b);
                    }
                }
            }
            [true, both] => {
                for piece in data.chunks_exact_mut(if both { plane } else { row }) {
                    reverse_in_place(piece, c, &mut aside);
                }
            }
        }
    }
}

/// Pixels of `c` elements in the opposite order. From both ends inwards: the left piece is set aside, the right one is
/// reversed into its place, then the left one into the right one's.
#[inline(always)]
fn reverse_in_place<P: Pixel>(mut rest: &mut [P], c: usize, aside: &mut [P; ASIDE]) {
    loop {
        // Pixels with more channels than can be set aside are swapped whole.
        let n = (rest.len() / c / 2).min((ASIDE / c).max(1)) * c;
        if n == 0 {
            return;
        }
        let end = rest.len() - n;
        let (left, others) = rest.split_at_mut(n);
        let (middle, right) = others.split_at_mut(end - n);
        if n > ASIDE {
            left.swap_with_slice(right);
        } else {
            let aside = &mut aside[..n];
            aside.copy_from_slice(left);
            reverse(right, left, c);
            reverse(aside, right, c);
        }
        rest = middle;
    }
}

/// Pixels of `c` elements in the opposite order, from one piece of memory to another of the same length.
#[inline(always)]
fn reverse<E: Copy>(from: &[E], to: &mut [E], c: usize) {
    match c {
        1 => reverse_of::<E, 1>(from, to),
        2 => reverse_of::<E, 2>(from, to),
        3 => reverse_of::<E, 3>(from, to),
        4 => reverse_of::<E, 4>(from, to),
        _ => {
            for (from, to) in from.chunks_exact(c).rev().zip(to.chunks_exact_mut(c)) {
                to.copy_from_slice(from);
            }
        }
    }
}

/// Elements that are permuted at once.
const BLOCK: usize = 16;

#[inline(always)]
fn reverse_of<E: Copy, const C: usize>(from: &[E], to: &mut [E]) {
    // As many pixels as fit into a block. Of three channels one element of the block is left over: the first of what is
    // read is put last, where the next block writes over it.
    let used = BLOCK / C * C;
    let n = from.len().min(to.len());
    let (mut from, mut to) = (&from[..n], &mut to[..n]);
    while let (Some(source), Some(target)) = (from.last_chunk::<BLOCK>(), to.first_chunk_mut::<BLOCK>()) {
        let mut block = *source;
        for j in 0..BLOCK {
            block[j] = source[if j < used { BLOCK - C - j / C * C + j % C } else { j - used }];
        }
        *target = block;
        from = &from[..from.len() - used];
        to = &mut std::mem::take(&mut to)[used..];
    }
    for (from, to) in from.as_chunks::<C>().0.iter().rev().zip(to.as_chunks_mut::<C>().0) {
        *to = *from;
    }
}

/// A quarter turn.
struct Quarter<'a, E> {
    input: View<'a, E>,
    out: ViewMut<'a, E>,
    clockwise: bool,
}

impl<E: Copy> Kernel for Quarter<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Quarter { input, out, clockwise } = self;
        let shape = input.shape;
        if shape.is_empty() {
            return;
        }
        let (planes, c) = shape.planes();
        let plane = shape.len() / planes;
        let size = (shape.h, shape.w);
        for (from, to) in input.data.chunks_exact(plane).zip(out.data.chunks_exact_mut(plane)) {
            match c {
                1 => quarter_of::<E, 1>(from, to, size, clockwise),
                2 => quarter_of::<E, 2>(from, to, size, clockwise),
                3 => quarter_of::<E, 3>(from, to, size, clockwise),
                4 => quarter_of::<E, 4>(from, to, size, clockwise),
                _ => tiles(size, clockwise, |start, n, first, step| {
                    for (i, to) in to[start * c..][..n * c].chunks_exact_mut(c).enumerate() {
                        to.copy_from_slice(&from[first.wrapping_add(i.wrapping_mul(step)) * c..][..c]);
                    }
                }),
            }
        }
    }
}

#[inline(always)]
fn quarter_of<E: Copy, const C: usize>(from: &[E], to: &mut [E], size: (usize, usize), clockwise: bool) {
    let (from, to) = (from.as_chunks::<C>().0, to.as_chunks_mut::<C>().0);
    tiles(size, clockwise, |start, n, first, step| {
        for (i, to) in to[start..][..n].iter_mut().enumerate() {
            *to = from[first.wrapping_add(i.wrapping_mul(step))];
        }
    });
}

/// Side of a tile: its rows and columns stay in the first cache.
const TILE: usize = 16;

/// Which pixels of the result (w, h) are which ones of the picture (h, w), tile by tile: `copy(start, n, first, step)`
/// for `n` of them in a row from `start` on, which are `first`, `first + step`, ... (A step back is one that wraps.)
#[inline(always)]
fn tiles((h, w): (usize, usize), clockwise: bool, mut copy: impl FnMut(usize, usize, usize, usize)) {
    for top in (0..w).step_by(TILE) {
        for left in (0..h).step_by(TILE) {
            let n = TILE.min(h - left);
            for i in top..(top + TILE).min(w) {
                if clockwise {
                    copy(i * h + left, n, (h - 1 - left) * w + i, w.wrapping_neg());
                } else {
                    copy(i * h + left, n, left * w + w - 1 - i, w);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    const CHANNELS: [usize; 6] = [1, 2, 3, 4, 5, 1000];

    fn shapes() -> impl Iterator<Item = Shape> {
        let sizes = [(1, 1), (1, 2), (2, 1), (3, 2), (2, 3), (5, 7), (6, 33), (17, 31), (40, 48), (3, 700), (700, 2)];
        let empty = [(0, 3), (3, 0), (0, 0)];
        sizes.into_iter().chain(empty).flat_map(|(h, w)| {
            let channels = CHANNELS.into_iter().filter(move |c| *c < 6 || h * w < 40);
            channels.flat_map(move |c| [false, true].map(|planar| Shape { h, w, c, planar }))
        })
    }

    fn at(shape: Shape, y: usize, x: usize, k: usize) -> usize {
        let (channel, pixel) = shape.strides();
        (y * shape.w + x) * pixel + k * channel
    }

    fn elements<E>(shape: Shape, of: impl Fn(u32) -> E) -> Vec<E> {
        (0..shape.len() as u32).map(|i| of((i + 1).wrapping_mul(2_654_435_761) >> 7)).collect()
    }

    /// Element by element: (y, x) of the result comes from `source(y, x)`.
    fn naive<E: Copy>(input: &[E], from: Shape, to: Shape, source: impl Fn(usize, usize) -> (usize, usize)) -> Vec<E> {
        let mut out = input.to_vec();
        for y in 0..to.h {
            for x in 0..to.w {
                for k in 0..to.c {
                    let (v, u) = source(y, x);
                    out[at(to, y, x, k)] = input[at(from, v, u, k)];
                }
            }
        }
        out
    }

    fn flip(rows: &[f64]) -> Result<Flip, String> {
        Flip::new(Table { n: rows.len() / 2, columns: 2, rows, settings: &[] }, 3)
    }

    fn turn(rows: &[f64]) -> Result<Turn, String> {
        Turn::new(Table { n: rows.len(), columns: 1, rows, settings: &[] }, 3)
    }

    const FLIPS: [f64; 8] = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0];

    fn flipped<E: Copy>(i: usize, input: &[E], shape: Shape) -> Vec<E> {
        naive(input, shape, shape, |y, x| {
            let v = if i % 2 == 1 { shape.h - 1 - y } else { y };
            (v, if i / 2 == 1 { shape.w - 1 - x } else { x })
        })
    }

    fn turned<E: Copy>(k: usize, input: &[E], shape: Shape, to: Shape) -> Vec<E> {
        let Shape { h, w, .. } = shape;
        naive(input, shape, to, |y, x| match k {
            0 => (y, x),
            1 => (x, w - 1 - y),
            2 => (h - 1 - y, w - 1 - x),
            _ => (h - 1 - x, y),
        })
    }

    fn pictures<P: Pixel + Debug>(of: impl Fn(u32) -> P) {
        let (flip, turn) = (flip(&FLIPS).unwrap(), turn(&[0.0, 1.0, 2.0, 3.0]).unwrap());
        let mut work = Workspace::default();
        for shape in shapes() {
            let data = elements(shape, &of);
            let input = View { data: &data, shape };
            for i in 0..4 {
                for isa in Isa::available() {
                    let want = flipped(i, &data, shape);
                    let mut out = vec![of(0); shape.len()];
                    flip.make(i, input, ViewMut { data: &mut out, shape }, &mut work, isa);
                    assert_eq!(out, want, "make {i} {shape:?} {isa}");
                    let mut out = data.clone();
                    flip.edit(i, ViewMut { data: &mut out, shape }, &mut work, isa);
                    assert_eq!(out, want, "edit {i} {shape:?} {isa}");

                    let to = turn.shape(i, shape).unwrap();
                    assert_eq!((to.h, to.w), if i % 2 == 1 { (shape.w, shape.h) } else { (shape.h, shape.w) });
                    let mut out = vec![of(0); shape.len()];
                    turn.make(i, input, ViewMut { data: &mut out, shape: to }, &mut work, isa);
                    assert_eq!(out, turned(i, &data, shape, to), "turn {i} {shape:?} {isa}");
                }
            }
        }
    }

    fn masks<E: Copy + PartialEq + Debug>(of: impl Fn(u32) -> E) {
        let (flip, turn) = (flip(&FLIPS).unwrap(), turn(&[0.0, 1.0, 2.0, 3.0]).unwrap());
        for shape in shapes() {
            let data = elements(shape, &of);
            let input = View { data: &data, shape };
            for i in 0..4 {
                let mut out = vec![of(0); shape.len()];
                flip.mask(i, input, ViewMut { data: &mut out, shape }, of(9));
                assert_eq!(out, flipped(i, &data, shape), "flip {i} {shape:?}");
                let to = turn.shape(i, shape).unwrap();
                turn.mask(i, input, ViewMut { data: &mut out, shape: to }, of(9));
                assert_eq!(out, turned(i, &data, shape, to), "turn {i} {shape:?}");
            }
        }
    }

    #[test]
    fn pictures_are_moved_element_by_element() {
        pictures(|i| i as u8);
        pictures(|i| i as f32);
    }

    #[test]
    fn masks_are_moved_element_by_element() {
        masks(|i| i as u8);
        masks(|i| i as u16);
        masks(|i| i);
        masks(|i| u64::from(i) << 20);
    }

    #[test]
    fn one_turn_is_numpys() {
        // numpy.rot90([[0, 1, 2], [3, 4, 5]])
        let shape = Shape { h: 2, w: 3, c: 1, planar: false };
        let mut out = [0u8; 6];
        let turn = turn(&[1.0]).unwrap();
        let to = turn.shape(0, shape).unwrap();
        turn.mask(0, View { data: &[0, 1, 2, 3, 4, 5], shape }, ViewMut { data: &mut out, shape: to }, 0);
        assert_eq!(out, [2, 5, 1, 4, 0, 3]);
    }

    #[test]
    fn wrong_numbers_are_named() {
        for x in [2.0, 0.5, -1.0, f64::NAN, f64::INFINITY] {
            let error = flip(&[0.0, 1.0, 0.0, x]).unwrap_err();
            assert_eq!(error, format!("flip: vertical of sample 1 must be 0 or 1, got {x}"));
        }
        for x in [4.0, 0.5, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(turn(&[0.0, x]).unwrap_err(), format!("turn: k of sample 1 must be 0, 1, 2 or 3, got {x}"));
        }
        let table = Table { n: 1, columns: 1, rows: &[0.0], settings: &[1.0] };
        assert!(Flip::new(table, 3).unwrap_err().contains("2 columns and no settings, got 1 columns and 1 settings"));
        assert!(Turn::new(table, 3).unwrap_err().contains("1 column and no settings"));
        assert!(flip(&[]).is_ok() && turn(&[]).is_ok());
    }
}
