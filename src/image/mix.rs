//! Pairs of samples: Mixup and `CutMix`.
//!
//! Mixup: Zhang, Cissé, Dauphin & Lopez-Paz 2018 (arXiv 1710.09412), a weighted mean of two samples. `CutMix`: Yun et
//! al. 2019 (arXiv 1905.04899), a box of the one put into the other. Here both are one thing: inside a box of sample
//! `i`
//!
//! ```text
//! y_i = w_i x_i + (1 - w_i) x_partner(i)
//! ```
//!
//! and outside of it `y_i = x_i`. Mixup's box is the whole picture; `CutMix`'s weight is 0.
//!
//! In place, a sample must not be changed while another one still needs it. So the samples are gone through with each
//! reader before what it reads, and of each circle of readers one sample is copied first; all this block by block of
//! rows, so that the copy is small, and what was read as a partner is still in the cache when its turn comes.

use crate::float::{Bf16, Element, F16};
use crate::image::Shape;
use crate::parallel;
use crate::simd::{Isa, Kernel, dispatch};

/// What pairs can be mixed of.
pub trait Mixed: Copy + Send + Sync + 'static {
    /// Whether other weights than 0 and 1 can be had. Words (of masks, where a number is a name) cannot be mixed.
    const BLENDS: bool;
    /// What weights are computed in.
    type Weight: Copy + Send + Sync;
    /// The weights of the sample and of its partner: `w` and `1 - w`, each rounded once.
    fn weights(w: f64) -> [Self::Weight; 2];
    /// `w x + v partner`, rounded once to this type.
    fn blend(self, partner: Self, weights: [Self::Weight; 2]) -> Self;
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Mixed for $t {
            const BLENDS: bool = true;
            type Weight = <$t as Element>::Acc;
            #[inline(always)]
            fn weights(w: f64) -> [Self::Weight; 2] {
                [w as Self::Weight, (1.0 - w) as Self::Weight]
            }
            #[inline(always)]
            fn blend(self, partner: $t, [w, v]: [Self::Weight; 2]) -> $t {
                <$t>::narrow(w * self.widen() + v * partner.widen())
            }
        }
    )*};
}
floats!(f32, f64, F16, Bf16);

impl Mixed for u8 {
    const BLENDS: bool = true;
    type Weight = f32;
    #[inline(always)]
    fn weights(w: f64) -> [f32; 2] {
        [w as f32, (1.0 - w) as f32]
    }
    /// Rounded to nearest even.
    #[inline(always)]
    fn blend(self, partner: u8, [w, v]: [f32; 2]) -> u8 {
        // Of weights that are 1 together the mean is in 0 .. 255 after rounding, so nothing must be clamped. The last
        // bit of the sum is worth 1, so the sum is rounded to a whole number, which is in its last bits.
        (w * f32::from(self) + v * f32::from(partner) + 8_388_608.0).to_bits() as u8
    }
}

macro_rules! words {
    ($($t:ty),*) => {$(
        impl Mixed for $t {
            const BLENDS: bool = false;
            type Weight = f32;
            #[inline(always)]
            fn weights(w: f64) -> [f32; 2] {
                [w as f32, (1.0 - w) as f32]
            }
            /// The one that weighs more.
            #[inline(always)]
            fn blend(self, partner: $t, [w, v]: [f32; 2]) -> $t {
                if w < v { partner } else { self }
            }
        }
    )*};
}
words!(u16, u32, u64);

/// Bytes of a sample's block of rows: three of them fit well into the second cache, and often into the first.
const BLOCK: usize = 1 << 14;

/// With fewer blocks than this the samples too are cut into runs, if there are several threads.
const TASKS: usize = 64;

/// The fewest samples of such a run: each needs a copy of about one sample, made before.
const RUN: usize = 16;

/// Mixes `n` samples of this shape, from `x` to `y`: inside the box (top, left, bottom, right) of sample `i`, which is
/// clipped to the picture, `weight[i]` times the sample and `1 - weight[i]` times sample `partner[i]`; outside the
/// sample.
///
/// Weight 0 copies the partner and 1 leaves the sample, bit for bit. Partners may be any samples, each other's, their
/// own or all the same one.
///
/// # Safety
/// `n * shape.len()` elements can be read at `x` and written at `y`, aligned, nobody else uses them meanwhile, and the
/// two are the same or apart.
///
/// # Panics
/// If `partner`, `weight` and `boxes` have not `n` elements each, a partner is not below `n`, or a weight not in 0 ..
/// 1.
pub unsafe fn mix<E: Mixed>(
    x: *const E,
    y: *mut E,
    n: usize,
    shape: Shape,
    partner: &[usize],
    weight: &[f64],
    boxes: &[[usize; 4]],
    isa: Isa,
) {
    assert!(
        partner.len() == n && weight.len() == n && boxes.len() == n,
        "a partner, a weight and a box for each sample"
    );
    assert!(partner.iter().all(|&p| p < n), "each partner must be a sample");
    assert!(weight.iter().all(|w| (0.0..=1.0).contains(w)), "each weight must be in 0 .. 1");
    if n == 0 || shape.is_empty() {
        return;
    }
    let (planes, inner) = shape.planes();
    let row = shape.w * inner;
    let rows = (BLOCK / (row * size_of::<E>())).clamp(1, shape.h);
    let (down, elements) = (shape.h.div_ceil(rows), n * shape.len());
    let blocks = planes * down;
    let in_place = x == y.cast_const();
    let runs =
        if elements < parallel::SMALL || parallel::num_threads() == 1 { 1 } else { (n / RUN).min(TASKS / blocks) };
    let plan = Plan::new(partner, in_place, runs);
    let (x, y) = (Address(x.cast_mut()), Address(y));

    // What is read from another run is copied before any run begins.
    let mut kept: Vec<E> = Vec::with_capacity(plan.kept.len() * shape.len());
    let copies = Address(kept.as_mut_ptr());
    parallel::share(plan.kept.len() * shape.len(), plan.kept.len(), |k| {
        let (x, copies) = (x, copies);
        // SAFETY: sample `kept[k]` of `x`, which nobody writes yet, to the `k`-th place of the copies.
        unsafe { x.add(plan.kept[k] * shape.len()).copy_to_nonoverlapping(copies.add(k * shape.len()), shape.len()) };
    });
    parallel::share(elements, blocks * plan.runs(), |task| {
        let (x, y, copies) = (x, y, copies);
        let (run, block) = (task / blocks, task % blocks);
        let first = block % down * rows;
        let part = Part { plane: block / down, first, last: shape.h.min(first + rows) };
        let kernel =
            Run { x: x.0, y: y.0, copies: copies.0, in_place, shape, part, steps: plan.run(run), weight, boxes };
        // SAFETY (of what the kernel does): a task reads and writes its block of rows of its run's samples, and of
        // others reads what nobody writes: in place these are the copies.
        dispatch(isa, kernel);
    });
}

/// An address that goes to other threads.
struct Address<E>(*mut E);

impl<E> Clone for Address<E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Address<E> {}

impl<E> Address<E> {
    /// # Safety
    /// As for pointers.
    unsafe fn add(self, i: usize) -> *mut E {
        // SAFETY: by the caller.
        unsafe { self.0.add(i) }
    }
}

// SAFETY: what is done with it is sound by what `mix` requires.
unsafe impl<E: Send> Send for Address<E> {}
// SAFETY: likewise.
unsafe impl<E: Send> Sync for Address<E> {}

/// Where a sample's partner is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Where it always was.
    Sample(usize),
    /// Among the copies that were made before.
    Kept(usize),
    /// In the copy that was saved for it in the same run.
    Saved,
}

/// What is done to one sample.
#[derive(Clone, Copy, Debug)]
struct Step {
    sample: usize,
    source: Source,
    /// Before it is changed it is saved, for this other sample.
    save_for: Option<usize>,
}

/// In which order the samples are mixed.
struct Plan {
    steps: Vec<Step>,
    /// Steps of a run.
    length: usize,
    /// The samples that are copied before.
    kept: Vec<usize>,
}

impl Plan {
    /// In up to so many runs, fewer if that would need many copies.
    fn new(partner: &[usize], in_place: bool, runs: usize) -> Plan {
        let n = partner.len();
        let order = readers_first(partner);
        if !in_place {
            // Any order is right; in this one partners are read while they are in the cache.
            let step = |&sample: &usize| Step { sample, source: Source::Sample(partner[sample]), save_for: None };
            return Plan { steps: order.iter().map(step).collect(), length: n.div_ceil(runs.max(1)), kept: Vec::new() };
        }
        // Even, so that pairs stay together.
        let length = n.div_ceil(runs.max(1)).next_multiple_of(2);
        let plan = Plan::of(partner, &order, length);
        if plan.kept.len() > n / RUN + 1 { Plan::of(partner, &order, n) } else { plan }
    }

    fn of(partner: &[usize], order: &[usize], length: usize) -> Plan {
        let mut at = vec![0; order.len()];
        for (step, &sample) in order.iter().enumerate() {
            at[sample] = step;
        }
        let mut plan = Plan { steps: Vec::with_capacity(order.len()), length, kept: Vec::new() };
        let mut copy_of = vec![None; order.len()];
        for (step, &sample) in order.iter().enumerate() {
            let read = partner[sample];
            let source = if at[read] / length != step / length {
                Source::Kept(*copy_of[read].get_or_insert_with(|| {
                    plan.kept.push(read);
                    plan.kept.len() - 1
                }))
            } else if at[read] < step {
                // The end of a circle. It lies in one piece in the order, so that no other copy is needed until then.
                plan.steps[at[read]].save_for = Some(sample);
                Source::Saved
            } else {
                Source::Sample(read)
            };
            plan.steps.push(Step { sample, source, save_for: None });
        }
        plan
    }

    fn runs(&self) -> usize {
        self.steps.len().div_ceil(self.length)
    }

    fn run(&self, i: usize) -> &[Step] {
        &self.steps[i * self.length..self.steps.len().min((i + 1) * self.length)]
    }
}

/// The samples in an order in which each comes before its partner, but for the last one of each circle; circles lie in
/// one piece.
fn readers_first(partner: &[usize]) -> Vec<usize> {
    let n = partner.len();
    let mut readers = vec![0_usize; n];
    for (i, &p) in partner.iter().enumerate() {
        readers[p] += usize::from(p != i);
    }
    let (mut order, mut done) = (Vec::with_capacity(n), vec![false; n]);
    for leaf in (0..n).filter(|&i| readers[i] == 0).collect::<Vec<_>>() {
        // From a sample that nobody reads on, as long as the last reader is done.
        let mut i = leaf;
        while readers[i] == 0 && !done[i] {
            done[i] = true;
            order.push(i);
            let p = partner[i];
            readers[p] -= usize::from(p != i);
            i = p;
        }
    }
    for start in 0..n {
        let mut i = start;
        while !done[i] {
            done[i] = true;
            order.push(i);
            i = partner[i];
        }
    }
    order
}

/// Some rows of one plane.
#[derive(Clone, Copy)]
struct Part {
    plane: usize,
    first: usize,
    last: usize,
}

/// The same rows of several samples, one after the other.
struct Run<'a, E> {
    x: *const E,
    y: *mut E,
    copies: *const E,
    in_place: bool,
    shape: Shape,
    part: Part,
    steps: &'a [Step],
    weight: &'a [f64],
    boxes: &'a [[usize; 4]],
}

impl<E: Mixed> Kernel for Run<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Run { x, y, copies, in_place, shape, part, steps, weight, boxes } = self;
        let (_, inner) = shape.planes();
        let row = shape.w * inner;
        // Of a whole sample, where the block begins; the saved copy holds the block alone.
        let start = (part.plane * shape.h + part.first) * row;
        let len = (part.last - part.first) * row;
        let at = |sample: usize| sample * shape.len() + start;
        let mut saved: Vec<E> = Vec::new();
        for &Step { sample, source, save_for } in steps {
            // SAFETY: the block of rows of samples that are below `n`, in arrays that hold them; what `pieces` gives
            // lies in the block. A piece is written after it was read, and by no other thread.
            unsafe {
                let (x, y) = (x.add(at(sample)), y.add(at(sample)));
                if let Some(reader) = save_for {
                    saved.reserve(len);
                    let copy = saved.as_mut_ptr();
                    for (offset, len) in Pieces::new(boxes[reader], part, shape.w, inner) {
                        x.add(offset).copy_to_nonoverlapping(copy.add(offset), len);
                    }
                }
                let p = match source {
                    Source::Sample(i) => self.x.add(at(i)),
                    Source::Kept(k) => copies.add(at(k)),
                    Source::Saved => saved.as_ptr(),
                };
                let pieces = Pieces::new(boxes[sample], part, shape.w, inner);
                let w = weight[sample];
                if w == 1.0 {
                    if !in_place {
                        x.copy_to_nonoverlapping(y, len);
                    }
                    continue;
                }
                let weights = E::weights(w);
                let mut done = 0;
                for (offset, len) in pieces {
                    if !in_place {
                        x.add(done).copy_to_nonoverlapping(y.add(done), offset - done);
                        done = offset + len;
                    }
                    let (x, p, y) = (x.add(offset), p.add(offset), y.add(offset));
                    if w != 0.0 {
                        blend(x, p, y, len, weights);
                    } else if p != y.cast_const() {
                        p.copy_to_nonoverlapping(y, len);
                    }
                }
                if !in_place {
                    x.add(done).copy_to_nonoverlapping(y.add(done), len - done);
                }
            }
        }
    }
}

/// Elements that are loaded before any is stored.
const GROUP: usize = 32;

/// `y = w x + v p` for `n` elements.
///
/// # Safety
/// They can be read and written, and `y` is the same as `x` or `p` or apart.
#[inline(always)]
unsafe fn blend<E: Mixed>(x: *const E, p: *const E, y: *mut E, n: usize, weights: [E::Weight; 2]) {
    // SAFETY: elements below `n`. An array of elements is aligned as they are.
    unsafe {
        let whole = n - n % GROUP;
        for i in (0..whole).step_by(GROUP) {
            let (a, b) = (*x.add(i).cast::<[E; GROUP]>(), *p.add(i).cast::<[E; GROUP]>());
            let mut out = a;
            for j in 0..GROUP {
                out[j] = a[j].blend(b[j], weights);
            }
            *y.add(i).cast::<[E; GROUP]>() = out;
        }
        for i in whole..n {
            *y.add(i) = (*x.add(i)).blend(*p.add(i), weights);
        }
    }
}

/// The runs of memory that a box covers in a block of rows, as offset from the block's first element and length.
struct Pieces {
    next: usize,
    end: usize,
    step: usize,
    len: usize,
}

impl Pieces {
    #[inline(always)]
    fn new([top, left, bottom, right]: [usize; 4], part: Part, w: usize, inner: usize) -> Pieces {
        let (first, last) = (top.max(part.first), bottom.min(part.last));
        let right = right.min(w);
        if first >= last || left >= right {
            return Pieces { next: 0, end: 0, step: 0, len: 0 };
        }
        let row = w * inner;
        let (next, rows) = ((first - part.first) * row + left * inner, last - first);
        if left == 0 && right == w {
            // Rows that follow each other without a gap.
            return Pieces { next, end: next + 1, step: 1, len: rows * row };
        }
        Pieces { next, end: next + rows * row, step: row, len: (right - left) * inner }
    }
}

impl Iterator for Pieces {
    type Item = (usize, usize);
    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        if self.next >= self.end {
            return None;
        }
        let offset = self.next;
        self.next += self.step;
        Some((offset, self.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    struct Numbers(u64);
    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 33
        }
        fn below(&mut self, n: usize) -> usize {
            self.next() as usize % n
        }
    }

    fn maps(n: usize, numbers: &mut Numbers) -> Vec<Vec<usize>> {
        let mut shuffled: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            shuffled.swap(i, numbers.below(i + 1));
        }
        vec![
            (0..n).map(|i| (i + n - 1) % n).collect(),
            (0..n).map(|i| (i + 1) % n).collect(),
            (0..n).rev().collect(),
            (0..n).collect(),
            vec![n / 2; n],
            (0..n).map(|i| i / 2).collect(),
            (0..n).map(|i| if i < 3 { (i + 1) % n.min(3) } else { i / 3 }).collect(),
            (0..n).map(|i| (i + 1).min(n - 1)).collect(),
            (0..n).map(|_| numbers.below(n)).collect(),
            shuffled,
        ]
    }

    /// One element after the other, as the module's equation says it.
    fn naive<E: Mixed>(
        x: &[E],
        n: usize,
        s: Shape,
        partner: &[usize],
        weight: &[f64],
        boxes: &[[usize; 4]],
        mean: impl Fn(E, E, f64) -> E,
    ) -> Vec<E> {
        let mut y = x.to_vec();
        let (by_channel, by_pixel) = s.strides();
        for i in 0..n {
            let [top, left, bottom, right] = boxes[i];
            for (row, column) in (top..bottom.min(s.h)).flat_map(|row| (left..right.min(s.w)).map(move |c| (row, c))) {
                for c in 0..s.c {
                    let at = (row * s.w + column) * by_pixel + c * by_channel;
                    let (own, other) = (x[i * s.len() + at], x[partner[i] * s.len() + at]);
                    y[i * s.len() + at] = match weight[i] {
                        0.0 => other,
                        1.0 => own,
                        w => mean(own, other, w),
                    };
                }
            }
        }
        y
    }

    fn check<E: Mixed + PartialEq + Debug>(of: impl Fn(u64) -> E, mean: impl Fn(E, E, f64) -> E + Copy) {
        let mut numbers = Numbers(1);
        for (n, h, w, c) in [(1, 1, 1, 1), (2, 3, 5, 3), (7, 9, 70, 3), (64, 5, 4, 2), (131, 2, 3, 1), (9, 130, 67, 3)]
        {
            for planar in [false, true] {
                let s = Shape { h, w, c, planar };
                let x: Vec<E> = (0..n * s.len()).map(|_| of(numbers.next())).collect();
                for partner in maps(n, &mut numbers) {
                    let kinds = numbers.below(4);
                    let weight: Vec<f64> = (0..n)
                        .map(|_| match (if E::BLENDS { kinds } else { 2 }, numbers.below(3)) {
                            (0, _) | (1, 0) => numbers.below(1000) as f64 / 1000.0,
                            (1 | 2, 1) => 1.0,
                            _ => 0.0,
                        })
                        .collect();
                    let boxes: Vec<[usize; 4]> = (0..n)
                        .map(|_| match numbers.below(3) {
                            0 => [0, 0, h, w],
                            1 => [0, 0, usize::MAX, usize::MAX],
                            _ => [h, w, h + 2, w + 2].map(|end| numbers.below(end + 1)),
                        })
                        .collect();
                    let want = naive(&x, n, s, &partner, &weight, &boxes, mean);
                    for isa in Isa::available() {
                        let mut apart = vec![of(0); x.len()];
                        // SAFETY: both have the elements.
                        unsafe { mix(x.as_ptr(), apart.as_mut_ptr(), n, s, &partner, &weight, &boxes, isa) };
                        assert!(apart == want, "apart, {s:?}, {partner:?}, {isa}");
                        let mut y = x.clone();
                        // SAFETY: in place.
                        unsafe { mix(y.as_ptr(), y.as_mut_ptr(), n, s, &partner, &weight, &boxes, isa) };
                        assert!(y == want, "in place, {s:?}, {partner:?}, {isa}");
                    }
                }
            }
        }
    }

    fn mean(a: f32, b: f32, w: f64) -> f32 {
        (w as f32) * a + ((1.0 - w) as f32) * b
    }

    #[test]
    fn it_is_the_equation_for_every_type() {
        check(|k| (k % 1000) as f32 / 300.0 - 1.0, mean);
        check(|k| (k % 1000) as f64 / 300.0 - 1.0, |a, b, w| w * a + (1.0 - w) * b);
        check(|k| k as u8, |a, b, w| mean(a.into(), b.into(), w).round_ties_even() as u8);
        check(|k| F16::narrow((k % 1000) as f32 / 300.0), |a, b, w| F16::narrow(mean(a.widen(), b.widen(), w)));
        check(|k| Bf16::narrow((k % 1000) as f32 / 300.0), |a, b, w| Bf16::narrow(mean(a.widen(), b.widen(), w)));
        check(|k| k as u16, |a, _, _| a);
        check(|k| k as u32, |a, _, _| a);
        check(|k| k, |a, _, _| a);
    }

    #[test]
    fn the_extremes_of_bytes_stay_in_range() {
        for i in 0..=10_000 {
            let weights = u8::weights(f64::from(i) / 10_000.0);
            assert_eq!([255_u8.blend(255, weights), 0_u8.blend(0, weights)], [255, 0]);
        }
    }

    #[test]
    fn zero_and_one_do_not_touch_what_they_ignore() {
        let x = [f32::NAN, 2.0];
        let shape = Shape { h: 1, w: 1, c: 1, planar: false };
        let mut y = [0.0; 2];
        // SAFETY: both have 2 elements.
        unsafe { mix(x.as_ptr(), y.as_mut_ptr(), 2, shape, &[1, 0], &[0.0, 1.0], &[[0, 0, 1, 1]; 2], Isa::BASELINE) };
        assert_eq!(y, [2.0, 2.0]);
    }

    #[test]
    fn nothing_is_no_problem() {
        for (n, h, w) in [(0, 2, 2), (2, 0, 2), (2, 2, 0)] {
            let shape = Shape { h, w, c: 3, planar: false };
            let (x, mut y): ([f32; 0], [f32; 0]) = ([], []);
            let partner: Vec<usize> = (0..n).collect();
            // SAFETY: there is no element.
            unsafe {
                mix(x.as_ptr(), y.as_mut_ptr(), n, shape, &partner, &vec![0.5; n], &vec![[0; 4]; n], Isa::BASELINE);
            };
        }
    }

    #[test]
    fn threads_do_not_change_it() {
        let (n, s) = (150, Shape { h: 32, w: 31, c: 3, planar: false });
        let mut numbers = Numbers(7);
        let x: Vec<f32> = (0..n * s.len()).map(|_| numbers.below(1000) as f32 / 999.0).collect();
        let weight: Vec<f64> = (0..n).map(|_| numbers.below(1000) as f64 / 1000.0).collect();
        let boxes: Vec<[usize; 4]> = (0..n).map(|i| [[0, 0, 32, 31], [3, 5, 31, 20]][i % 2]).collect();
        for partner in maps(n, &mut numbers) {
            let want = naive(&x, n, s, &partner, &weight, &boxes, mean);
            for threads in [1, 2, 3, 8] {
                parallel::set_num_threads(threads);
                let (mut apart, mut y) = (vec![0.0; x.len()], x.clone());
                // SAFETY: both have the elements.
                unsafe {
                    mix(x.as_ptr(), apart.as_mut_ptr(), n, s, &partner, &weight, &boxes, Isa::detect());
                    mix(y.as_ptr(), y.as_mut_ptr(), n, s, &partner, &weight, &boxes, Isa::detect());
                };
                assert!(apart == want && y == want, "{threads} threads, {partner:?}");
            }
            parallel::set_num_threads(0);
        }
    }

    #[test]
    fn every_plan_reads_what_was_not_changed() {
        let mut numbers = Numbers(3);
        for n in [1, 2, 3, 16, 17, 33, 100, 257] {
            for partner in maps(n, &mut numbers) {
                for runs in [0, 1, 2, 3, 5, 16] {
                    let plan = Plan::new(&partner, true, runs);
                    assert!(plan.kept.len() <= n / RUN + 1);
                    // Runs in any order; here the last first.
                    let (mut values, mut saved) = (vec![0; n], usize::MAX);
                    for step in (0..plan.runs()).rev().flat_map(|run| plan.run(run)) {
                        let unchanged = |i: usize| (values[i] == 0).then_some(i);
                        if step.save_for.is_some() {
                            saved = unchanged(step.sample).unwrap();
                        }
                        let read = match step.source {
                            Source::Sample(i) => unchanged(i).unwrap(),
                            Source::Kept(k) => plan.kept[k],
                            Source::Saved => saved,
                        };
                        assert_eq!(read, partner[step.sample]);
                        values[step.sample] += 1;
                    }
                    assert!(values.iter().all(|&times| times == 1));
                    // And no run reads a sample of another one where it was.
                    for run in 0..plan.runs() {
                        let own: Vec<usize> = plan.run(run).iter().map(|step| step.sample).collect();
                        let foreign = |step: &Step| matches!(step.source, Source::Sample(i) if !own.contains(&i));
                        assert!(!plan.run(run).iter().any(foreign));
                    }
                }
            }
        }
        // What is usual needs little: one saved sample, or one for each pair.
        let roll: Vec<usize> = (0..64).map(|i| (i + 63) % 64).collect();
        assert_eq!(Plan::new(&roll, true, 4).kept.len(), 4);
        assert_eq!(Plan::new(&(0..64).rev().collect::<Vec<_>>(), true, 4).kept.len(), 0);
    }
}
