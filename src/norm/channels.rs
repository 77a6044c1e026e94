//! Batch, group and instance normalisation: sets made of channels.
//!
//! The array is seen as `n` samples of `c` channels of `s` places, and is stored channels first (`n, c, s`) or channels last
//! (`n, s, c`). A set is one channel of all samples (batch; Ioffe & Szegedy 2015, arXiv 1502.03167), or some channels of one
//! sample (group; Wu & He 2018, arXiv 1803.08494), or one (instance; Ulyanov et al. 2016, arXiv 1607.08022). The order of
//! all sums is that of the samples, channels and places, so the two ways to store give the same bits.
//!
//! Channels first, a block is a piece of a plane and goes through the loops of [`super`]. Channels last, the same blocks of
//! many channels lie side by side, and the loops here keep 16 lanes for each of a strip of channels.

use std::array;
use std::ops::Range;

pub use super::Moments;
use super::{BLOCK, Center, in_range, map, merged, moments, rstd, totals, zip};
use crate::array::Shared;
use crate::float::{Element, Real};
use crate::parallel;
use crate::reduce::{LANES, tree_of};
use crate::simd::{Isa, Kernel, dispatch, prefetch};

/// What is normalised together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sets {
    /// Each channel over all samples.
    Batch,
    /// In each sample, this many groups of neighbouring channels.
    Groups(usize),
}

/// The shape of the array, how it is stored, and what is normalised together.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Samples.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// Places.
    pub s: usize,
    /// Stored channels last.
    pub last: bool,
    /// The sets.
    pub sets: Sets,
}

impl Shape {
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.n * self.c * self.s
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of sets.
    pub fn count(&self) -> usize {
        match self.sets {
            Sets::Batch => self.c,
            Sets::Groups(groups) => self.n * groups,
        }
    }

    /// Elements in a set.
    pub fn set_len(&self) -> usize {
        match self.sets {
            Sets::Batch => self.n * self.s,
            Sets::Groups(groups) => self.c / groups * self.s,
        }
    }

    /// The set of channel `c` of sample `n`.
    fn set(&self, n: usize, c: usize) -> usize {
        match self.sets {
            Sets::Batch => c,
            Sets::Groups(groups) => n * groups + c / (self.c / groups),
        }
    }

    /// The number of coefficients: one for each channel, or for each channel of each sample.
    fn coefficients(&self) -> usize {
        if self.sets == Sets::Batch { self.c } else { self.n * self.c }
    }

    /// The sample (0 for a batch) and the channels of a set.
    fn channels(&self, set: usize) -> (usize, Range<usize>) {
        match self.sets {
            Sets::Batch => (0, set..set + 1),
            Sets::Groups(groups) => {
                let size = self.c / groups;
                (set / groups, set % groups * size..(set % groups + 1) * size)
            }
        }
    }
}

/// How the channels of a shape that is not empty are cut into blocks: several small planes together (of a batch), or each
/// plane into parts.
#[derive(Clone, Copy)]
struct Cut {
    shape: Shape,
    /// Samples whose planes make one block.
    joined: usize,
    /// Blocks of a plane.
    parts: usize,
    /// Groups of joined samples.
    groups: usize,
}

/// Some blocks: those of these groups of samples, and of these parts of the planes.
#[derive(Clone)]
struct Blocks {
    groups: Range<usize>,
    parts: Range<usize>,
}

impl Blocks {
    /// Each of them.
    #[inline(always)]
    fn each(self) -> impl DoubleEndedIterator<Item = (usize, usize)> {
        let parts = self.parts;
        self.groups.flat_map(move |group| parts.clone().map(move |part| (group, part)))
    }
}

impl Cut {
    fn new(shape: Shape) -> Cut {
        let joined = if shape.sets == Sets::Batch { (BLOCK / shape.s).max(1) } else { 1 };
        Cut { shape, joined, parts: shape.s.div_ceil(BLOCK), groups: shape.n.div_ceil(joined) }
    }

    /// Blocks of a channel over all samples.
    fn blocks(&self) -> usize {
        self.groups * self.parts
    }

    /// Where the partial sums of a block of channel `c` are kept: those of a set lie together, in order.
    #[inline(always)]
    fn slot(&self, (group, part): (usize, usize), c: usize) -> usize {
        match self.shape.sets {
            Sets::Batch => c * self.blocks() + group * self.parts + part,
            Sets::Groups(_) => (group * self.shape.c + c) * self.parts + part,
        }
    }

    /// Partial sums of a set.
    fn partials(&self) -> usize {
        match self.shape.sets {
            Sets::Batch => self.blocks(),
            Sets::Groups(groups) => self.shape.c / groups * self.parts,
        }
    }

    /// The coefficient of channel `c` for a group of samples.
    #[inline(always)]
    fn coefficient(&self, group: usize, c: usize) -> usize {
        if self.shape.sets == Sets::Batch { c } else { group * self.shape.c + c }
    }

    /// The samples of a group.
    #[inline(always)]
    fn samples(&self, group: usize) -> Range<usize> {
        group * self.joined..self.shape.n.min((group + 1) * self.joined)
    }

    /// The places of a part.
    #[inline(always)]
    fn places(&self, part: usize) -> Range<usize> {
        part * BLOCK..self.shape.s.min((part + 1) * BLOCK)
    }

    /// The runs of elements that follow each other in a block of channel `c`, stored channels first: first and length.
    #[inline(always)]
    fn planes(&self, (group, part): (usize, usize), c: usize) -> impl Iterator<Item = (usize, usize)> {
        let (shape, places) = (self.shape, self.places(part));
        self.samples(group).map(move |n| ((n * shape.c + c) * shape.s + places.start, places.len()))
    }

    /// The one run of a block that is not of joined planes.
    #[inline(always)]
    fn plane(&self, (group, part): (usize, usize), c: usize) -> (usize, usize) {
        let places = self.places(part);
        ((group * self.shape.c + c) * self.shape.s + places.start, places.len())
    }

    /// The rows of a block, stored channels last.
    #[inline(always)]
    fn rows(&self, (group, part): (usize, usize)) -> Range<usize> {
        let (samples, places) = (self.samples(group), self.places(part));
        let first = samples.start * self.shape.s + places.start;
        first..first + samples.len() * places.len()
    }

    /// The runs of elements of some blocks of channel `c`, stored channels first, whole planes where they are: the group of
    /// samples, the first and the length. The last come first: they are still in cache.
    #[inline(always)]
    fn runs(&self, blocks: &Blocks, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let (cut, shape) = (*self, self.shape);
        let places = blocks.parts.start * BLOCK..shape.s.min(blocks.parts.end * BLOCK);
        blocks.groups.clone().rev().flat_map(move |group| {
            let places = places.clone();
            let first = move |n: usize| (n * shape.c + c) * shape.s + places.start;
            let len = places.len();
            cut.samples(group).rev().map(move |n| (group, first(n), len))
        })
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The order of the work
// ---------------------------------------------------------------------------------------------------------------------

/// Two sweeps over an array with something between them that needs the first sweep over a whole set.
trait Sweep: Sync {
    /// The sums of some blocks of some channels.
    fn measure(&self, blocks: Blocks, channels: Range<usize>);
    /// What follows from the sums of a set.
    fn finish(&self, set: usize);
    /// The second sweep.
    fn apply(&self, blocks: Blocks, channels: Range<usize>);
}

/// Blocks of a task, stored channels first.
const BLOCKS: usize = 16;

/// Runs the sweeps, set by set while it is in cache if there are enough sets, else one sweep after the other. The results
/// do not depend on which.
fn run(cut: &Cut, sweep: &impl Sweep, measure: bool, apply: bool) {
    let shape = cut.shape;
    let (elements, all, parts) = (shape.len(), 0..shape.c, 0..cut.parts);
    // What can be done by itself: some blocks and channels, which are those of some sets.
    let units = match (shape.sets, shape.last) {
        (Sets::Batch, true) => 1,
        (Sets::Groups(_), true) => shape.n,
        (_, false) => shape.count(),
    };
    if measure && apply && units >= 2 * parallel::num_threads() {
        return parallel::share(elements, units, |u| {
            let (groups, channels, sets) = match (shape.sets, shape.last) {
                (Sets::Batch, true) => (0..cut.groups, all.clone(), all.clone()),
                (Sets::Batch, false) => (0..cut.groups, u..u + 1, u..u + 1),
                (Sets::Groups(groups), true) => (u..u + 1, all.clone(), u * groups..(u + 1) * groups),
                (Sets::Groups(_), false) => {
                    let (n, channels) = shape.channels(u);
                    (n..n + 1, channels, u..u + 1)
                }
            };
            let blocks = Blocks { groups, parts: parts.clone() };
            sweep.measure(blocks.clone(), channels.clone());
            sets.for_each(|set| sweep.finish(set));
            sweep.apply(blocks, channels);
        });
    }
    // A task is one block of all channels if they lie side by side; else some blocks that follow each other in memory.
    let (parts_each, channels_each) =
        if shape.last { (1, shape.c) } else { (BLOCKS, (BLOCKS * BLOCK / (cut.joined * shape.s)).clamp(1, shape.c)) };
    let (strips, pieces) = (shape.c.div_ceil(channels_each), cut.parts.div_ceil(parts_each));
    let piece = |t: usize| {
        let (group, strip, piece) = (t / (strips * pieces), t / pieces % strips, t % pieces);
        let parts = piece * parts_each..cut.parts.min((piece + 1) * parts_each);
        let channels = strip * channels_each..shape.c.min((strip + 1) * channels_each);
        (Blocks { groups: group..group + 1, parts }, channels)
    };
    let tasks = cut.groups * strips * pieces;
    if measure {
        parallel::share(elements, tasks, |t| {
            let (blocks, channels) = piece(t);
            sweep.measure(blocks, channels);
        });
        parallel::share(elements, shape.count(), |set| sweep.finish(set));
    }
    if apply {
        parallel::share(elements, tasks, |t| {
            let (blocks, channels) = piece(t);
            sweep.apply(blocks, channels);
        });
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Sums over a block, channels last
// ---------------------------------------------------------------------------------------------------------------------

/// Runs the body for strips of channels that are summed side by side, as wide as there are: memory is read fastest in long
/// pieces. `$c` is the first channel of a strip and at the end the first of those that are left, `$W` its width.
macro_rules! for_each_strip {
    ($c:ident of $channels:expr, $W:ident => $body:expr) => {
        for_each_strip!(@ 64, $c, $channels, $W, $body);
        for_each_strip!(@ 32, $c, $channels, $W, $body);
        for_each_strip!(@ 8, $c, $channels, $W, $body);
    };
    (@ $width:literal, $c:ident, $channels:expr, $W:ident, $body:expr) => {
        while $c + $width <= $channels.end {
            const $W: usize = $width;
            $body;
            $c += $width;
        }
    };
}

/// For each of `W` columns, the sum of `f(element, column)` over `rows` rows that are `pitch` apart: the lanes and additions
/// of [`total`].
#[inline(always)]
fn column_total<T: Real, const W: usize>(rows: usize, pitch: usize, f: impl Fn(usize, usize) -> T) -> [f64; W] {
    let mut lanes = [[T::ZERO; W]; LANES];
    for row in 0..rows {
        let lane = &mut lanes[row % LANES];
        for j in 0..W {
            lane[j] = lane[j] + f(row * pitch + j, j);
        }
    }
    halve_columns(lanes)
}

/// Two such sums.
#[inline(always)]
fn column_totals<T: Real, const W: usize>(
    rows: usize,
    pitch: usize,
    f: impl Fn(usize, usize) -> [T; 2],
) -> [[f64; W]; 2] {
    let (mut a, mut b) = ([[T::ZERO; W]; LANES], [[T::ZERO; W]; LANES]);
    for row in 0..rows {
        let (a, b) = (&mut a[row % LANES], &mut b[row % LANES]);
        for j in 0..W {
            let [x, y] = f(row * pitch + j, j);
            a[j] = a[j] + x;
            b[j] = b[j] + y;
        }
    }
    [halve_columns(a), halve_columns(b)]
}

/// [`super::halve`] for all columns at once.
#[inline(always)]
fn halve_columns<T: Real, const W: usize>(mut lanes: [[T; W]; LANES]) -> [f64; W] {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            for j in 0..W {
                lanes[l][j] = lanes[l][j] + lanes[l + width][j];
            }
        }
        width /= 2;
    }
    lanes[0].map(Real::to_f64)
}

/// Copies a column to `out`.
///
/// # Safety
/// As many elements as `out` has can be read at `x`, `pitch` apart.
#[inline(always)]
unsafe fn column<E: Element>(x: *const E, pitch: usize, out: &mut [E::Acc]) {
    for (row, out) in out.iter_mut().enumerate() {
        // SAFETY: as required.
        *out = unsafe { (*x.add(row * pitch)).widen() };
    }
}

/// The moments of `W` columns of a block.
///
/// # Safety
/// `W` elements can be read at each of `rows` rows.
#[inline(always)]
unsafe fn column_moments<E: Element, const W: usize>(
    x: *const E,
    rows: usize,
    pitch: usize,
    mut put: impl FnMut(usize, Moments),
) {
    // SAFETY: as required.
    let at = |i| unsafe { (*x.add(i)).widen() };
    let sums = column_total::<E::Acc, W>(rows, pitch, |i, _| at(i));
    let mut centers = [E::Acc::ZERO; W];
    for j in 0..W {
        centers[j] = E::Acc::from_f64(sums[j] / rows as f64);
    }
    let [s1, s2] = column_totals::<E::Acc, W>(rows, pitch, |i, j| {
        let d = at(i) - centers[j];
        [d, d * d]
    });
    for j in 0..W {
        if size_of::<E::Acc>() == 8 || in_range(s2[j]) {
            put(j, Moments::around(centers[j].to_f64(), rows, [s1[j], s2[j]]));
        } else {
            // SAFETY: a column of the rows.
            unsafe { one_column_moments(x.add(j), rows, pitch, |moments| put(j, moments)) };
        }
    }
}

/// The moments of one column of a block.
///
/// # Safety
/// An element can be read at each of `rows` rows, of which there are at most [`BLOCK`].
#[inline(always)]
unsafe fn one_column_moments<E: Element>(x: *const E, rows: usize, pitch: usize, put: impl FnOnce(Moments)) {
    let mut copy = [E::Acc::ZERO; BLOCK];
    // SAFETY: as required.
    unsafe {
        column(x, pitch, &mut copy[..rows]);
        put(moments::<E::Acc>(copy.as_ptr(), rows));
    }
}

/// `sum(dy)` and `sum(dy xh)` of `W` columns of a block, with a center for each.
///
/// # Safety
/// `W` elements can be read at each of `rows` rows of both arrays.
#[inline(always)]
unsafe fn column_sums<E: Element, const W: usize>(
    (x, dy): (*const E, *const E),
    rows: usize,
    pitch: usize,
    centers: &[Center<E::Acc>],
) -> [[f64; W]; 2] {
    let (mut hi, mut lo, mut rstd) = ([E::Acc::ZERO; W], [E::Acc::ZERO; W], [E::Acc::ZERO; W]);
    for (j, center) in centers[..W].iter().enumerate() {
        [hi[j], lo[j], rstd[j]] = [center.hi, center.lo, center.rstd];
    }
    column_totals::<E::Acc, W>(rows, pitch, |i, j| {
        // SAFETY: as required.
        let (x, dy) = unsafe { ((*x.add(i)).widen(), (*dy.add(i)).widen()) };
        [dy, dy * (((x - hi[j]) - lo[j]) * rstd[j])]
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------------------------------

/// `y = ((x - hi) - lo) * a + b`
#[derive(Clone, Copy, Debug, Default)]
struct Affine<T> {
    hi: T,
    lo: T,
    a: T,
    b: T,
}

impl<T: Real> Affine<T> {
    fn new(mean: f64, rstd: f64, weight: T, bias: T) -> Affine<T> {
        let Center { hi, lo, .. } = Center::<T>::new(mean, rstd);
        Affine { hi, lo, a: T::from_f64(rstd * weight.to_f64()), b: bias }
    }

    #[inline(always)]
    fn apply(&self, x: T) -> T {
        ((x - self.hi) - self.lo) * self.a + self.b
    }
}

/// Rows of channels that the second sweep takes in one loop, which costs something to begin: short ones together.
fn rows_at_once(rows: usize, channels: usize) -> usize {
    (512 / channels).min(rows / 4).max(1)
}

/// The fields of structures side by side, several times over: how the loop over some rows of channels reads them.
fn columns<T: Real, S, const K: usize>(all: &[S], times: usize, fields: impl Fn(&S) -> [T; K]) -> [Vec<T>; K] {
    let mut columns = array::from_fn(|_| Vec::with_capacity(times * all.len()));
    for one in all {
        for (column, value) in columns.iter_mut().zip(fields(one)) {
            column.push(value);
        }
    }
    for column in &mut columns {
        for _ in 1..times {
            column.extend_from_within(..all.len());
        }
    }
    columns
}

/// The arrays of a forward call.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a, E: Element> {
    /// What is normalised.
    pub x: *const E,
    /// The result; may be `x`. Not used by [`stats`].
    pub y: *mut E,
    /// For each channel; ones if there is none.
    pub weight: &'a [E::Acc],
    /// For each channel; -0 if there is none.
    pub bias: &'a [E::Acc],
    /// Added to the variance.
    pub eps: f64,
}

// SAFETY: addresses; what the functions below require makes their use sound.
unsafe impl<E: Element> Send for Forward<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Element> Sync for Forward<'_, E> {}

struct ForwardSweep<'a, E: Element> {
    f: Forward<'a, E>,
    cut: Cut,
    partials: Shared<'a, Moments>,
    /// Of each set.
    moments: Shared<'a, Moments>,
    coefficients: Shared<'a, Affine<E::Acc>>,
    isa: Isa,
}

impl<E: Element> ForwardSweep<'_, E> {
    fn set_coefficients(&self, set: usize, mean: f64, rstd: f64) {
        let (n, channels) = self.cut.shape.channels(set);
        for c in channels {
            // SAFETY: only this call has the channels of this set.
            unsafe {
                *self.coefficients.at(self.cut.coefficient(n, c)) =
                    Affine::new(mean, rstd, self.f.weight[c], self.f.bias[c]);
            }
        }
    }
}

impl<E: Element> Sweep for ForwardSweep<'_, E> {
    fn measure(&self, blocks: Blocks, channels: Range<usize>) {
        let (x, cut, partials) = (self.f.x, self.cut, self.partials);
        dispatch(self.isa, MeasureMoments { x, cut, blocks, channels, partials });
    }

    fn finish(&self, set: usize) {
        let k = self.cut.partials();
        // SAFETY: the partial sums of this set and its result, which no other call has.
        let all = unsafe {
            let all = merged(self.partials.slice(set * k, k));
            *self.moments.at(set) = all;
            all
        };
        if !self.f.weight.is_empty() {
            self.set_coefficients(set, all.mean, rstd(all.var(), self.f.eps));
        }
    }

    fn apply(&self, blocks: Blocks, channels: Range<usize>) {
        let (f, cut, coefficients) = (self.f, self.cut, self.coefficients);
        dispatch(self.isa, ApplyForward { f, cut, blocks, channels, coefficients });
    }
}

/// The moments of some blocks of some channels.
struct MeasureMoments<'a, E: Element> {
    x: *const E,
    cut: Cut,
    blocks: Blocks,
    channels: Range<usize>,
    partials: Shared<'a, Moments>,
}

impl<E: Element> Kernel for MeasureMoments<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let MeasureMoments { x, cut, blocks, channels, partials } = self;
        let pitch = cut.shape.c;
        let mut joined = [E::Acc::ZERO; BLOCK];
        // SAFETY: the array has the elements of the shape; no other task has these slots.
        unsafe {
            if cut.shape.last {
                for block in blocks.each() {
                    let rows = cut.rows(block);
                    let put = |c: usize, moments| *partials.at(cut.slot(block, c)) = moments;
                    let start = |c: usize| x.add(rows.start * pitch + c);
                    let mut c = channels.start;
                    for_each_strip!(c of channels, WIDTH => {
                        column_moments::<E, WIDTH>(start(c), rows.len(), pitch, |j, moments| put(c + j, moments));
                    });
                    for c in c..channels.end {
                        one_column_moments(start(c), rows.len(), pitch, |moments| put(c, moments));
                    }
                }
                return;
            }
            for c in channels {
                for block in blocks.clone().each() {
                    *partials.at(cut.slot(block, c)) = if cut.joined == 1 {
                        let (first, n) = cut.plane(block, c);
                        // What follows in memory is mostly the next block.
                        prefetch(x.wrapping_add(first + n), n);
                        moments(x.add(first), n)
                    } else {
                        let n = join(&cut, block, c, x, &mut joined);
                        moments(joined.as_ptr(), n)
                    };
                }
            }
        }
    }
}

/// Copies the small planes of a block of channel `c`, stored channels first; returns how many elements they are.
///
/// # Safety
/// The array has the elements of the shape.
#[inline(always)]
unsafe fn join<E: Element>(
    cut: &Cut,
    block: (usize, usize),
    c: usize,
    x: *const E,
    out: &mut [E::Acc; BLOCK],
) -> usize {
    let mut n = 0;
    for (first, len) in cut.planes(block, c) {
        for (i, out) in out[n..n + len].iter_mut().enumerate() {
            // SAFETY: as required.
            *out = unsafe { (*x.add(first + i)).widen() };
        }
        n += len;
    }
    n
}

/// The second sweep over some blocks of some channels.
struct ApplyForward<'a, E: Element> {
    f: Forward<'a, E>,
    cut: Cut,
    blocks: Blocks,
    channels: Range<usize>,
    coefficients: Shared<'a, Affine<E::Acc>>,
}

impl<E: Element> Kernel for ApplyForward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let ApplyForward { f, cut, blocks, channels, coefficients } = self;
        let pitch = cut.shape.c;
        // SAFETY: the arrays have the elements of the shape; no other task has this part of `y`; nobody writes the
        // coefficients now. The blocks come in reverse: the last ones are still in cache.
        unsafe {
            if cut.shape.last {
                for block in blocks.each().rev() {
                    let of_sample = coefficients.slice(cut.coefficient(block.0, 0), pitch);
                    let rows = cut.rows(block);
                    let at_once = rows_at_once(rows.len(), pitch);
                    let columns = columns(of_sample, at_once, |c| [c.hi, c.lo, c.a, c.b]);
                    let [hi, lo, a, bias] = columns.each_ref().map(Vec::as_ptr);
                    for row in rows.clone().step_by(at_once) {
                        let (first, n) = (row * pitch, at_once.min(rows.end - row) * pitch);
                        map(f.x.add(first), f.y.add(first), n, |j, x| {
                            ((x - *hi.add(j)) - *lo.add(j)) * *a.add(j) + *bias.add(j)
                        });
                    }
                }
                return;
            }
            for c in channels.rev() {
                for (group, first, n) in cut.runs(&blocks, c) {
                    let affine = *coefficients.at(cut.coefficient(group, c));
                    map(f.x.add(first), f.y.add(first), n, |_, x| affine.apply(x));
                }
            }
        }
    }
}

/// The moments of each set.
///
/// # Safety
/// `x` has the elements of the shape, aligned, and nobody writes them meanwhile.
pub unsafe fn stats<E: Element>(x: *const E, shape: Shape, isa: Isa) -> Vec<Moments> {
    let f = Forward { x, y: std::ptr::null_mut(), weight: &[], bias: &[], eps: 0.0 };
    // SAFETY: passed on; `y` is not used.
    unsafe { sweep_forward(f, shape, None, false, isa) }
}

/// Normalises and returns the moments of each set.
///
/// # Safety
/// `x` and `y` have the elements of the shape, aligned, nobody else uses them meanwhile, and they are the same or apart.
pub unsafe fn forward<E: Element>(f: Forward<'_, E>, shape: Shape, isa: Isa) -> Vec<Moments> {
    // SAFETY: passed on.
    unsafe { sweep_forward(f, shape, None, true, isa) }
}

/// Normalises with given statistics, one mean and one `1 / sqrt(var + eps)` for each set.
///
/// # Safety
/// As for [`forward`].
pub unsafe fn apply<E: Element>(f: Forward<'_, E>, shape: Shape, mean: &[f64], rstd: &[f64], isa: Isa) {
    // SAFETY: passed on.
    unsafe { sweep_forward(f, shape, Some((mean, rstd)), true, isa) };
}

/// # Safety
/// As for [`forward`]; `y` is used only if `write`.
unsafe fn sweep_forward<E: Element>(
    f: Forward<'_, E>,
    shape: Shape,
    given: Option<(&[f64], &[f64])>,
    write: bool,
    isa: Isa,
) -> Vec<Moments> {
    let mut moments = vec![Moments::default(); if given.is_none() { shape.count() } else { 0 }];
    if shape.is_empty() {
        return moments;
    }
    let cut = Cut::new(shape);
    let mut partials = vec![Moments::default(); if given.is_none() { cut.blocks() * shape.c } else { 0 }];
    let mut coefficients = vec![Affine::default(); if write { shape.coefficients() } else { 0 }];
    let sweep = ForwardSweep {
        f,
        cut,
        partials: Shared::new(&mut partials),
        moments: Shared::new(&mut moments),
        coefficients: Shared::new(&mut coefficients),
        isa,
    };
    if let Some((mean, rstd)) = given {
        for set in 0..shape.count() {
            sweep.set_coefficients(set, mean[set], rstd[set]);
        }
    }
    run(&cut, &sweep, given.is_none(), write);
    moments
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------------------------------

/// `dx = (p dy - q) - xh t`, with `xh = ((x - hi) - lo) rstd`
#[derive(Clone, Copy, Debug, Default)]
struct Slope<T> {
    hi: T,
    lo: T,
    rstd: T,
    p: T,
    q: T,
    t: T,
}

impl<T: Real> Slope<T> {
    /// From the mean and `1 / sqrt(var + eps)` of the set, the weight, and the means over the set of `g` and `g xh`
    /// times `scale`, `scale` being the weight where it is the same for the whole set.
    fn new(mean: f64, rstd: f64, weight: T, scale: f64, [k1, k2]: [f64; 2]) -> Slope<T> {
        let Center { hi, lo, rstd: r } = Center::<T>::new(mean, rstd);
        Slope {
            hi,
            lo,
            rstd: r,
            p: T::from_f64(rstd * weight.to_f64()),
            q: T::from_f64((rstd * scale) * k1),
            t: T::from_f64((rstd * scale) * k2),
        }
    }
}

/// How the gradient depends on the statistics.
#[derive(Clone, Copy, Debug)]
pub enum Through<'a> {
    /// They are those of the input.
    Own,
    /// They are those of these and other inputs, over which the sums of `dy` and `dy xh` of each channel are these, from so
    /// many elements.
    Shared(&'a [[f64; 2]], f64),
    /// They are constants.
    Constant,
}

/// The arrays of a backward call.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a, E: Element> {
    /// What was normalised.
    pub x: *const E,
    /// The gradient of the result.
    pub dy: *const E,
    /// The gradient of `x`; may be `dy` or `x`. Not used by [`sums`].
    pub dx: *mut E,
    /// For each channel; ones if there is none.
    pub weight: &'a [E::Acc],
    /// Of each set.
    pub mean: &'a [f64],
    /// Of each set.
    pub rstd: &'a [f64],
    /// How the gradient depends on them.
    pub through: Through<'a>,
}

// SAFETY: addresses; what the functions below require makes their use sound.
unsafe impl<E: Element> Send for Backward<'_, E> {}
// SAFETY: likewise.
unsafe impl<E: Element> Sync for Backward<'_, E> {}

struct BackwardSweep<'a, E: Element> {
    b: Backward<'a, E>,
    cut: Cut,
    /// One for each coefficient.
    centers: &'a [Center<E::Acc>],
    partials: Shared<'a, [f64; 2]>,
    /// The sums over the blocks, one for each coefficient.
    sums: Shared<'a, [f64; 2]>,
    slopes: Shared<'a, Slope<E::Acc>>,
    write: bool,
    isa: Isa,
}

impl<E: Element> Sweep for BackwardSweep<'_, E> {
    fn measure(&self, blocks: Blocks, channels: Range<usize>) {
        let BackwardSweep { b, centers, cut, partials, .. } = *self;
        dispatch(self.isa, MeasureSums { b, centers, cut, blocks, channels, partials });
    }

    fn finish(&self, set: usize) {
        let BackwardSweep { b, cut, .. } = self;
        let shape = cut.shape;
        let (n, channels) = shape.channels(set);
        let first = cut.coefficient(n, channels.start);
        let per_channel = cut.partials() / channels.len();
        // SAFETY: the partial sums of this set and the sums and slopes of its channels, which no other call has.
        let (partials, sums) = unsafe {
            (self.partials.slice(set * cut.partials(), cut.partials()), self.sums.slice(first, channels.len()))
        };
        for (sum, partials) in sums.iter_mut().zip(partials.chunks_mut(per_channel)) {
            *sum = tree_of(partials);
        }
        if !self.write {
            return;
        }
        let (mean, rstd) = (b.mean[set], b.rstd[set]);
        let means = |[s1, s2]: [f64; 2], m: f64| [s1 / m, s2 / m];
        // Over a group the weight differs, and goes into the sums.
        let of_group = if let Sets::Groups(_) = shape.sets {
            let mut weighted: Vec<[f64; 2]> =
                sums.iter().zip(&b.weight[channels.clone()]).map(|(s, w)| s.map(|s| w.to_f64() * s)).collect();
            Some(means(tree_of(&mut weighted), shape.set_len() as f64))
        } else {
            None
        };
        for (k, c) in channels.enumerate() {
            let weight = b.weight[c];
            let slope = match (of_group, b.through) {
                (Some(k), _) => Slope::new(mean, rstd, weight, 1.0, k),
                (None, Through::Own) => {
                    Slope::new(mean, rstd, weight, weight.to_f64(), means(sums[k], shape.set_len() as f64))
                }
                (None, Through::Shared(sums, m)) => Slope::new(mean, rstd, weight, weight.to_f64(), means(sums[c], m)),
                (None, Through::Constant) => Slope::new(mean, rstd, weight, 0.0, [0.0; 2]),
            };
            // SAFETY: as above.
            unsafe { *self.slopes.at(first + k) = slope };
        }
    }

    fn apply(&self, blocks: Blocks, channels: Range<usize>) {
        let BackwardSweep { b, cut, slopes, .. } = *self;
        dispatch(self.isa, ApplyBackward { b, cut, blocks, channels, slopes });
    }
}

/// `sum(dy)` and `sum(dy xh)` of some blocks of some channels.
struct MeasureSums<'a, E: Element> {
    b: Backward<'a, E>,
    centers: &'a [Center<E::Acc>],
    cut: Cut,
    blocks: Blocks,
    channels: Range<usize>,
    partials: Shared<'a, [f64; 2]>,
}

impl<E: Element> Kernel for MeasureSums<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let MeasureSums { b: Backward { x, dy, .. }, centers, cut, blocks, channels, partials } = self;
        let pitch = cut.shape.c;
        let (mut xs, mut dys) = ([E::Acc::ZERO; BLOCK], [E::Acc::ZERO; BLOCK]);
        // SAFETY: the arrays have the elements of the shape; no other task has these slots.
        unsafe {
            if cut.shape.last {
                for block in blocks.each() {
                    let centers = &centers[cut.coefficient(block.0, 0)..][..pitch];
                    let rows = cut.rows(block);
                    let n = rows.len();
                    let put = |c: usize, sums| *partials.at(cut.slot(block, c)) = sums;
                    let start = |c: usize| (x.add(rows.start * pitch + c), dy.add(rows.start * pitch + c));
                    let mut c = channels.start;
                    for_each_strip!(c of channels, WIDTH => {
                        let [a, b] = column_sums::<E, WIDTH>(start(c), n, pitch, &centers[c..]);
                        (0..WIDTH).for_each(|j| put(c + j, [a[j], b[j]]));
                    });
                    for c in c..channels.end {
                        let (x, dy) = start(c);
                        column(x, pitch, &mut xs[..n]);
                        column(dy, pitch, &mut dys[..n]);
                        put(c, block_sums(xs.as_ptr(), dys.as_ptr(), n, centers[c]));
                    }
                }
                return;
            }
            for c in channels {
                for block in blocks.clone().each() {
                    let center = centers[cut.coefficient(block.0, c)];
                    *partials.at(cut.slot(block, c)) = if cut.joined == 1 {
                        let (first, n) = cut.plane(block, c);
                        block_sums(x.add(first), dy.add(first), n, center)
                    } else {
                        join(&cut, block, c, x, &mut xs);
                        let n = join(&cut, block, c, dy, &mut dys);
                        block_sums(xs.as_ptr(), dys.as_ptr(), n, center)
                    };
                }
            }
        }
    }
}

/// # Safety
/// `n` elements can be read at both.
#[inline(always)]
unsafe fn block_sums<E: Element>(x: *const E, dy: *const E, n: usize, center: Center<E::Acc>) -> [f64; 2] {
    totals(n, |i| {
        // SAFETY: as required.
        let (x, dy) = unsafe { ((*x.add(i)).widen(), (*dy.add(i)).widen()) };
        [dy, dy * center.normalise(x)]
    })
}

/// The second sweep over some blocks of some channels.
struct ApplyBackward<'a, E: Element> {
    b: Backward<'a, E>,
    cut: Cut,
    blocks: Blocks,
    channels: Range<usize>,
    slopes: Shared<'a, Slope<E::Acc>>,
}

impl<E: Element> Kernel for ApplyBackward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let ApplyBackward { b: Backward { x, dy, dx, through, .. }, cut, blocks, channels, slopes } = self;
        let pitch = cut.shape.c;
        let constant = matches!(through, Through::Constant);
        // SAFETY: the arrays have the elements of the shape; no other task has this part of `dx`; nobody writes the slopes
        // now. The blocks come in reverse: the last ones are still in cache.
        unsafe {
            if cut.shape.last {
                for block in blocks.each().rev() {
                    let of_sample = slopes.slice(cut.coefficient(block.0, 0), pitch);
                    let rows = cut.rows(block);
                    let at_once = rows_at_once(rows.len(), pitch);
                    let columns = columns(of_sample, at_once, |c| [c.hi, c.lo, c.rstd, c.p, c.q, c.t]);
                    let [hi, lo, rstd, p, q, t] = columns.each_ref().map(Vec::as_ptr);
                    for row in rows.clone().step_by(at_once) {
                        let (first, n) = (row * pitch, at_once.min(rows.end - row) * pitch);
                        if constant {
                            map(dy.add(first), dx.add(first), n, |j, dy| *p.add(j) * dy);
                        } else {
                            zip(x.add(first), dy.add(first), dx.add(first), n, |j, x, dy| {
                                let xh = ((x - *hi.add(j)) - *lo.add(j)) * *rstd.add(j);
                                (*p.add(j) * dy - *q.add(j)) - xh * *t.add(j)
                            });
                        }
                    }
                }
                return;
            }
            for c in channels.rev() {
                for (group, first, n) in cut.runs(&blocks, c) {
                    let Slope { hi, lo, rstd, p, q, t } = *slopes.at(cut.coefficient(group, c));
                    let (x, dy, dx) = (x.add(first), dy.add(first), dx.add(first));
                    if constant {
                        map(dy, dx, n, |_, dy| p * dy);
                    } else {
                        zip(x, dy, dx, n, |_, x, dy| (p * dy - q) - (((x - hi) - lo) * rstd) * t);
                    }
                }
            }
        }
    }
}

/// `sum(dy)` and `sum(dy xh)` of each channel.
///
/// # Safety
/// `x` and `dy` have the elements of the shape, aligned, and nobody writes them meanwhile.
pub unsafe fn sums<E: Element>(b: Backward<'_, E>, shape: Shape, isa: Isa) -> Vec<[f64; 2]> {
    // SAFETY: passed on; `dx` is not used.
    unsafe { sweep_backward(b, shape, false, isa) }
}

/// Writes `dx` and returns [`sums`]: the gradients of bias and weight.
///
/// # Safety
/// `x`, `dy` and `dx` have the elements of the shape, aligned, nobody else uses them meanwhile, and `dx` is the same as, or
/// apart from, each of the other two.
pub unsafe fn backward<E: Element>(b: Backward<'_, E>, shape: Shape, isa: Isa) -> Vec<[f64; 2]> {
    // SAFETY: passed on.
    unsafe { sweep_backward(b, shape, true, isa) }
}

/// # Safety
/// As for [`backward`]; `dx` is used only if `write`.
unsafe fn sweep_backward<E: Element>(b: Backward<'_, E>, shape: Shape, write: bool, isa: Isa) -> Vec<[f64; 2]> {
    if shape.is_empty() {
        return vec![[0.0; 2]; shape.c];
    }
    let k = shape.coefficients();
    let centers: Vec<Center<E::Acc>> = (0..k)
        .map(|i| {
            let set = shape.set(i / shape.c, i % shape.c);
            Center::new(b.mean[set], b.rstd[set])
        })
        .collect();
    let cut = Cut::new(shape);
    let mut partials = vec![[0.0; 2]; cut.blocks() * shape.c];
    let mut sums = vec![[0.0; 2]; k];
    let mut slopes = vec![Slope::default(); if write { k } else { 0 }];
    let sweep = BackwardSweep {
        b,
        cut,
        centers: &centers,
        partials: Shared::new(&mut partials),
        sums: Shared::new(&mut sums),
        slopes: Shared::new(&mut slopes),
        write,
        isa,
    };
    run(&cut, &sweep, true, write);
    if shape.sets == Sets::Batch {
        return sums;
    }
    // Over the samples.
    (0..shape.c)
        .map(|c| {
            let mut of_channel: Vec<[f64; 2]> = (0..shape.n).map(|n| sums[n * shape.c + c]).collect();
            tree_of(&mut of_channel)
        })
        .collect()
}
