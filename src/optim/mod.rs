//! Optimiser steps: what a rule is, the one loop that runs every rule, and the list of rules.
//!
//! A rule is the arithmetic for one element, five to fifteen lines, in a file of its own ([`adam`], [`lion`], ...). All the
//! rest is here and is written once: the vector loop ([`Update`]), tiles for whatever is not stored plainly
//! ([`step_tiled`]), the work list over all arrays of a call ([`Work`]), the norms, clipping and the average of the weights
//! ([`step`]).
//!
//! To add a rule: its file, and a line in [`rules!`](self#the-list) at the end of this one.

use std::marker::PhantomData;

use crate::array::{TILE, View};
use crate::float::{Bf16, DType, Element, F16, Real};
use crate::parallel::{self, CHUNK};
use crate::reduce::{self, LANES, Lanes};
use crate::simd::{Isa, Kernel, dispatch};
use trace::{Program, Symbol};

pub mod adadelta;
pub mod adagrad;
pub mod adam;
pub mod adamax;
pub mod lamb;
pub mod lars;
pub mod lion;
pub mod nadam;
pub mod radam;
pub mod rmsprop;
pub mod sgd;
pub mod trace;

// ---------------------------------------------------------------------------------------------------------------------
// What a rule is
// ---------------------------------------------------------------------------------------------------------------------

/// The hyperparameters of a rule: a struct of `f64`s, made by [`hyper!`]. A switch is 0 or 1.
pub trait Hyper: Copy {
    /// The names of the fields, in order.
    const NAMES: &'static [&'static str];
    /// From the values in that order.
    ///
    /// # Panics
    /// If there are not as many values as names.
    fn from_values(values: &[f64]) -> Self;
}

/// Declares the hyperparameters of a rule.
macro_rules! hyper {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name { $($(#[$field_doc])* pub $field: f64,)* }
        impl $crate::optim::Hyper for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
            fn from_values(values: &[f64]) -> Self {
                assert_eq!(values.len(), Self::NAMES.len(), "one value per hyperparameter");
                let mut values = values.iter().copied();
                $name { $($field: values.next().unwrap_or(f64::NAN),)* }
            }
        }
    };
}
pub(crate) use hyper;

/// How many times a rule goes over the arrays, and when it writes its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// One: [`Rule::update`] does it all.
    One,
    /// Two, for a step that depends on norms over the whole array: [`Rule::measure`], norms, [`Rule::update`]. The state
    /// is written in the first pass, the parameter in the second (LAMB).
    StateThenParam,
    /// Likewise, but the first pass writes nothing (LARS).
    MeasureThenBoth,
}

/// One optimiser's arithmetic on one element, in the type `T`, with `N` state arrays.
///
/// The value itself holds the step's scalars, which [`Rule::new`] derives in `f64` and rounds once to `T`.
pub trait Rule<T: Real, const N: usize>: Copy + Send + Sync + 'static {
    /// What the caller chooses.
    type Hyper: Hyper;
    /// The name in the list of rules.
    const NAME: &'static str;
    /// The names of the state arrays, torch's where torch has them.
    const STATES: [&'static str; N];
    /// Scalar state, kept in `f64` from step to step: name and first value.
    const SCALARS: &'static [(&'static str, f64)] = &[];
    /// One pass or two.
    const PASSES: Passes = Passes::One;

    /// The scalars of step `step`, counted from 1. Advances the scalar state.
    fn new(hyper: &Self::Hyper, step: u64, scalars: &mut [f64]) -> Self;

    /// New parameter and state from parameter `p`, gradient `g` and state `s`.
    fn update(&self, p: T, g: T, s: [T; N]) -> (T, [T; N]);

    /// [`Rule::update`] for a rule that must know which element it is given (its index in memory order of the leaf).
    #[inline(always)]
    fn update_at(&self, _index: u64, p: T, g: T, s: [T; N]) -> (T, [T; N]) {
        self.update(p, g, s)
    }

    /// First of two passes: the elements of the two vectors whose norms decide the step (the parameter, and what it moves
    /// by), and the new state.
    #[inline(always)]
    fn measure(&self, p: T, g: T, s: [T; N]) -> ([T; 2], [T; N]) {
        ([p, g], s)
    }

    /// The rule for the second of two passes over one array, given the norms of what [`Rule::measure`] gave.
    #[must_use]
    fn with_norms(self, _norms: [f64; 2]) -> Self {
        self
    }
}

/// Weight decay as most rules have it: coupled (L2: `g + weight_decay * p` before everything) or decoupled
/// (`p * (1 - lr * weight_decay)` before the step).
#[derive(Clone, Copy, Debug)]
pub struct Decay<T> {
    coupled: bool,
    weight_decay: T,
    shrink: T,
}

impl<T: Real> Decay<T> {
    /// The scalars of one step.
    pub fn new(lr: f64, weight_decay: f64, decoupled: f64) -> Decay<T> {
        let decoupled = decoupled != 0.0;
        Decay {
            coupled: !decoupled && weight_decay != 0.0,
            weight_decay: T::from_f64(weight_decay),
            // Times 1 is exact, so an absent term changes nothing.
            shrink: if decoupled { T::from_f64(1.0 - lr * weight_decay) } else { T::ONE },
        }
    }

    /// The parameter and the gradient that the rule goes on with.
    #[inline(always)]
    pub fn apply(&self, p: T, g: T) -> (T, T) {
        // Not `g + 0 * p`, which would change -0 and make NaN of an infinite p.
        (p * self.shrink, if self.coupled { g + self.weight_decay * p } else { g })
    }
}

/// The two moments of Adam and its kin: `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) (g g)`.
#[derive(Clone, Copy, Debug)]
pub struct Moments<T> {
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
}

impl<T: Real> Moments<T> {
    /// The scalars.
    pub fn new(beta1: f64, beta2: f64) -> Moments<T> {
        Moments {
            beta1: T::from_f64(beta1),
            rest1: T::from_f64(1.0 - beta1),
            beta2: T::from_f64(beta2),
            rest2: T::from_f64(1.0 - beta2),
        }
    }

    /// The new moments.
    #[inline(always)]
    pub fn apply(&self, g: T, [m, v]: [T; 2]) -> [T; 2] {
        [self.beta1 * m + self.rest1 * g, self.beta2 * v + self.rest2 * (g * g)]
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What a call is
// ---------------------------------------------------------------------------------------------------------------------

/// More state arrays than any rule has.
pub const MAX_STATES: usize = 4;

/// One parameter with its gradient and state, all of `len` elements.
#[derive(Debug)]
pub struct Leaf {
    /// Elements.
    pub len: usize,
    /// Which of the call's rules it follows.
    pub rule: u32,
    /// How its operands lie in memory.
    pub operands: Operands,
}

/// See [`Leaf::operands`].
#[derive(Debug)]
pub enum Operands {
    /// Parameter and gradient of the same dtype, state of the type that is computed in, all plain slices in the same
    /// order, and nothing else wanted: the fast way.
    Direct {
        /// Of parameter and gradient.
        dtype: DType,
        /// The parameter.
        p: *mut u8,
        /// The gradient.
        g: *const u8,
        /// The state arrays; the first N are used.
        s: [*mut u8; MAX_STATES],
    },
    /// Everything else.
    Tiled(Box<Tiled>),
}

// SAFETY: addresses, as in `View`; the duties are those of `step`, which is unsafe.
unsafe impl Send for Leaf {}
// SAFETY: likewise.
unsafe impl Sync for Leaf {}

/// The operands of a leaf that goes through tiles.
#[derive(Clone, Debug)]
pub struct Tiled {
    /// The shape in whose C order the operands are walked.
    pub shape: Box<[usize]>,
    /// The parameter.
    pub param: View,
    /// The gradient.
    pub grad: View,
    /// The state arrays.
    pub state: Vec<View>,
    /// The parameter at full precision, of which `param` is then the rounded copy.
    pub master: Option<View>,
    /// The moving average of the parameter.
    pub ema: Option<View>,
}

impl Leaf {
    fn gradient(&self) -> (Option<&Tiled>, DType, *const u8) {
        match &self.operands {
            Operands::Direct { dtype, g, .. } => (None, *dtype, *g),
            Operands::Tiled(tiled) => (Some(tiled), tiled.param.dtype, tiled.grad.ptr),
        }
    }

    fn dtype(&self) -> DType {
        self.gradient().1
    }
}

/// The cutting of all leaves of a call into chunks, and of the chunks into tasks of about [`CHUNK`] elements. It depends on
/// the lengths alone.
#[derive(Debug, Default)]
pub struct Work {
    chunks: Vec<Chunk>,
    tasks: Vec<std::ops::Range<usize>>,
    elements: usize,
}

#[derive(Clone, Copy, Debug)]
struct Chunk {
    leaf: u32,
    len: u32,
    start: usize,
}

impl Work {
    /// The work for leaves of these lengths.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Work {
        let mut work = Work::default();
        let (mut first, mut load) = (0, 0);
        for (leaf, len) in lengths.into_iter().enumerate() {
            for start in (0..len).step_by(CHUNK) {
                let n = CHUNK.min(len - start);
                if load + n > CHUNK {
                    work.tasks.push(first..work.chunks.len());
                    (first, load) = (work.chunks.len(), 0);
                }
                work.chunks.push(Chunk { leaf: leaf as u32, len: n as u32, start });
                load += n;
            }
            work.elements += len;
        }
        if first < work.chunks.len() {
            work.tasks.push(first..work.chunks.len());
        }
        work
    }

    /// Runs `body(index of the chunk, chunk)` for each chunk, in parallel if there is enough to do.
    fn for_each(&self, threads: usize, body: impl Fn(usize, Chunk) + Sync) {
        let threads = if self.elements < parallel::SMALL { 1 } else { threads };
        let wake = self.elements >= parallel::WORTH_WAKING;
        parallel::for_each(self.tasks.len(), threads, wake, |task| {
            for i in self.tasks[task].clone() {
                body(i, self.chunks[i]);
            }
        });
    }

    /// One sum per leaf from one sum per chunk, by [`reduce::tree`].
    fn per_leaf(&self, leaves: usize, partials: &mut [f64]) -> Vec<f64> {
        let mut sums = vec![0.0; leaves];
        let mut first = 0;
        while first < self.chunks.len() {
            let leaf = self.chunks[first].leaf;
            let n = self.chunks[first..].iter().take_while(|chunk| chunk.leaf == leaf).count();
            sums[leaf as usize] = reduce::tree(&mut partials[first..first + n]);
            first += n;
        }
        sums
    }
}

/// What to do when a gradient has an infinite or NaN element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinite {
    /// Compute with it, as torch does.
    Propagate,
    /// Leave everything as it is and say so.
    Skip,
    /// Leave everything as it is and name the leaf.
    Raise,
}

/// What is wanted of a call besides the rule.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The gradients are multiplied by it first.
    pub grad_scale: f64,
    /// Then each element is limited to `-clip_value ..= clip_value`; infinity for no limit.
    pub clip_value: f64,
    /// Then all are scaled so that their joint norm is at most this; infinity for no limit.
    pub max_norm: f64,
    /// The norm of these gradients and those of other calls together, if it is known: it counts instead of their own.
    pub joint_norm: Option<f64>,
    /// What to do with infinities and NaN.
    pub nonfinite: NonFinite,
    /// `ema = ema_decay * ema + (1 - ema_decay) * p` for leaves that have an average.
    pub ema_decay: f64,
    /// Report the norm of the gradients even if nothing else needs it.
    pub grad_norm: bool,
    /// Report the norm of the change of the parameters. Only leaves that go through tiles are counted.
    pub update_norm: bool,
    /// The instruction set.
    pub isa: Isa,
    /// Threads at most.
    pub threads: usize,
}

impl Options {
    /// Whether there is nothing to do to a gradient before the rule, given the clipping coefficient and the sign.
    fn leaves_gradients_as_they_are(&self, coefficient: f64) -> bool {
        self.grad_scale == 1.0 && self.clip_value == f64::INFINITY && coefficient == 1.0
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            grad_scale: 1.0,
            clip_value: f64::INFINITY,
            max_norm: f64::INFINITY,
            joint_norm: None,
            nonfinite: NonFinite::Propagate,
            ema_decay: 0.0,
            grad_norm: false,
            update_norm: false,
            isa: Isa::detect(),
            threads: parallel::num_threads(),
        }
    }
}

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// The norm of all gradients after `grad_scale` and `clip_value`, if it was computed.
    pub grad_norm: Option<f64>,
    /// The norm of the change of all parameters, if it was wanted.
    pub update_norm: Option<f64>,
    /// The first leaf whose gradient has an infinite or NaN element, if that was looked for. Nothing was changed then.
    pub nonfinite: Option<usize>,
}

// ---------------------------------------------------------------------------------------------------------------------
// The step loop
// ---------------------------------------------------------------------------------------------------------------------

/// What happens to each element of a gradient before the rule sees it.
trait Prepare<T>: Copy {
    fn apply(&self, g: T) -> T;
}

/// Nothing, which is the usual and worth its own copy of the loop: the arithmetic of [`Limited`] costs half as much as a
/// rule's.
#[derive(Clone, Copy, Debug)]
struct AsItIs;

impl<T> Prepare<T> for AsItIs {
    #[inline(always)]
    fn apply(&self, g: T) -> T {
        g
    }
}

/// Scaled, limited, and multiplied by the clipping coefficient. An absent part is exact: times 1, limit infinity.
#[derive(Clone, Copy, Debug)]
struct Limited<T> {
    scale: T,
    limit: T,
    coefficient: T,
}

impl<T: Real> Prepare<T> for Limited<T> {
    #[inline(always)]
    fn apply(&self, g: T) -> T {
        self.limited(g) * self.coefficient
    }
}

impl<T: Real> Limited<T> {
    fn new(options: &Options, coefficient: f64) -> Limited<T> {
        Limited {
            scale: T::from_f64(options.grad_scale),
            limit: T::from_f64(options.clip_value),
            coefficient: T::from_f64(coefficient),
        }
    }

    /// Whether [`Limited::limited`] is the identity.
    fn changes_nothing(&self) -> bool {
        self.scale == T::ONE && self.limit == T::from_f64(f64::INFINITY)
    }

    /// Scaled and limited: what the norm is taken of. NaN fails both comparisons and passes.
    #[inline(always)]
    fn limited(&self, g: T) -> T {
        let g = g * self.scale;
        let g = if g > self.limit { self.limit } else { g };
        if g < -self.limit { -self.limit } else { g }
    }
}

/// THE loop: one rule over plain slices. `P` and `G` are how parameter and gradient are stored; the state is stored as it is
/// computed.
#[derive(Clone, Copy)]
struct Update<'a, R, Q, P: Element, G, const N: usize> {
    rule: &'a R,
    prepare: Q,
    p: *mut P,
    g: *const G,
    s: [*mut P::Acc; N],
    len: usize,
    index: u64,
}

impl<'a, R, P: Element, G, const N: usize> Update<'a, R, AsItIs, P, G, N> {
    /// The same with gradients that are prepared first.
    fn with<Q>(self, prepare: Q) -> Update<'a, R, Q, P, G, N> {
        let Update { rule, p, g, s, len, index, .. } = self;
        Update { rule, prepare, p, g, s, len, index }
    }
}

impl<T, R, Q, P, G, const N: usize> Kernel for Update<'_, R, Q, P, G, N>
where
    T: Real,
    R: Rule<T, N>,
    Q: Prepare<T>,
    P: Element<Acc = T>,
    G: Element<Acc = T>,
{
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Update { rule, prepare, p, g, s, len, index } = self;
        let rule = *rule;
        for i in 0..len {
            // SAFETY: whoever makes an `Update` vouches for `len` elements at each address, aligned, and that nothing
            // else writes them or reads `p` and `s` meanwhile (see `step`).
            unsafe {
                let state = s.map(|s| *s.add(i));
                let gradient = prepare.apply((*g.add(i)).widen());
                let (param, state) = rule.update_at(index + i as u64, (*p.add(i)).widen(), gradient, state);
                *p.add(i) = P::narrow(param);
                if R::PASSES != Passes::StateThenParam {
                    for k in 0..N {
                        *s[k].add(i) = state[k];
                    }
                }
            }
        }
    }
}

/// The first of two passes: sums of squares of the parameter and of what the rule measures.
struct Measure<'a, R, Q, P: Element, G, const N: usize> {
    update: Update<'a, R, Q, P, G, N>,
    sums: &'a mut [Lanes; 2],
}

impl<T, R, Q, P, G, const N: usize> Kernel for Measure<'_, R, Q, P, G, N>
where
    T: Real,
    R: Rule<T, N>,
    Q: Prepare<T>,
    P: Element<Acc = T>,
    G: Element<Acc = T>,
{
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Measure { update: Update { rule, prepare, p, g, s, len, .. }, sums } = self;
        let rule = *rule;
        // A multiple of the lanes, small enough for the L1 cache, large enough for the vector loop to get going.
        const BLOCK: usize = 16 * LANES;
        let mut params = [T::ZERO; BLOCK];
        let mut measured = [T::ZERO; BLOCK];
        for first in (0..len).step_by(BLOCK) {
            let n = BLOCK.min(len - first);
            for (j, (param, measured)) in params.iter_mut().zip(&mut measured).enumerate().take(n) {
                let i = first + j;
                // SAFETY: as in `Update`.
                unsafe {
                    let state = s.map(|s| *s.add(i));
                    let gradient = prepare.apply((*g.add(i)).widen());
                    let (normed, state) = rule.measure((*p.add(i)).widen(), gradient, state);
                    [*param, *measured] = normed;
                    if R::PASSES == Passes::StateThenParam {
                        for k in 0..N {
                            *s[k].add(i) = state[k];
                        }
                    }
                }
            }
            sums[0].add(&params[..n], square);
            sums[1].add(&measured[..n], square);
        }
    }
}

#[inline(always)]
fn square<T: Real>(x: T) -> f64 {
    x.to_f64() * x.to_f64()
}

/// Adds the squares of a slice to the lanes of a block.
struct SumSquares<'a, E: Element> {
    x: &'a [E],
    prepare: Limited<E::Acc>,
    /// A power of two that keeps the squares in range.
    unit: f64,
    sum: &'a mut Lanes,
}

impl<T: Real, E: Element<Acc = T>> Kernel for SumSquares<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let SumSquares { x, prepare, unit, sum } = self;
        if prepare.changes_nothing() && unit == 1.0 {
            sum.add(x, |x| square(x.widen()));
        } else {
            sum.add(x, |x| square(prepare.limited(x.widen()).to_f64() * unit));
        }
    }
}

/// Whether all elements are finite once they are scaled.
struct AllFinite<'a, E: Element> {
    x: &'a [E],
    scale: E::Acc,
}

impl<E: Element> Kernel for AllFinite<'_, E> {
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        let scale = self.scale;
        self.x.iter().fold(true, |all, &x| all & (x.widen() * scale).is_finite())
    }
}

/// `ema = decay * ema + (1 - decay) * p`
struct Average<'a, T> {
    ema: &'a mut [T],
    p: &'a [T],
    decay: T,
    rest: T,
}

impl<T: Real> Kernel for Average<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (ema, &p) in self.ema.iter_mut().zip(self.p) {
            *ema = self.decay * *ema + self.rest * p;
        }
    }
}

/// Adds the squares of `new - old` to the lanes of a block.
struct SumSquaredChange<'a, T> {
    new: &'a [T],
    old: &'a mut [T],
    sum: &'a mut Lanes,
}

impl<T: Real> Kernel for SumSquaredChange<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (old, &new) in self.old.iter_mut().zip(self.new) {
            *old = new - *old;
        }
        self.sum.add(self.old, square);
    }
}

/// Which pass over a chunk is meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Measure,
    Update,
}

/// What a pass over a chunk adds up: squares of parameters, of what the rule measures, and of the change.
#[derive(Clone, Copy, Default)]
struct Sums {
    norms: [Lanes; 2],
    change: Lanes,
}

/// One pass over one chunk of a leaf.
///
/// # Safety
/// As [`step`] requires.
unsafe fn step_chunk<R32, R64, const N: usize>(
    rule: &Ruled<R32, R64>,
    leaf: &Leaf,
    (start, len): (usize, usize),
    (options, coefficient): (&Options, f64),
    pass: Pass,
    sums: &mut Sums,
) where
    R32: Rule<f32, N>,
    R64: Rule<f64, N>,
{
    let coefficient = rule.sign * coefficient;
    match (&leaf.operands, leaf.dtype().compute()) {
        (Operands::Direct { dtype, p, g, s }, _) => {
            macro_rules! direct {
                ($stored:ty, $computed:ty, $rule:expr) => {{
                    let update = Update::<_, _, $stored, $stored, N> {
                        rule: $rule,
                        prepare: AsItIs,
                        p: p.cast::<$stored>().wrapping_add(start),
                        g: g.cast::<$stored>().wrapping_add(start),
                        s: std::array::from_fn(|k| s[k].cast::<$computed>().wrapping_add(start)),
                        len,
                        index: start as u64,
                    };
                    if options.leaves_gradients_as_they_are(coefficient) {
                        run(options.isa, update, pass, sums);
                    } else {
                        run(options.isa, update.with(Limited::new(options, coefficient)), pass, sums);
                    }
                }};
            }
            match dtype {
                DType::F32 => direct!(f32, f32, &rule.f32),
                DType::F64 => direct!(f64, f64, &rule.f64),
                DType::F16 => direct!(F16, f32, &rule.f32),
                DType::Bf16 => direct!(Bf16, f32, &rule.f32),
            }
        }
        // SAFETY: passed on.
        (Operands::Tiled(tiled), DType::F64) => unsafe {
            step_tiled::<f64, _, N>(&rule.f64, tiled, DType::F64, (start, len), (options, coefficient), pass, sums);
        },
        // SAFETY: passed on.
        (Operands::Tiled(tiled), _) => unsafe {
            step_tiled::<f32, _, N>(&rule.f32, tiled, DType::F32, (start, len), (options, coefficient), pass, sums);
        },
    }
}

#[inline(always)]
fn run<T, R, Q, P, G, const N: usize>(isa: Isa, update: Update<'_, R, Q, P, G, N>, pass: Pass, sums: &mut Sums)
where
    T: Real,
    R: Rule<T, N>,
    Q: Prepare<T>,
    P: Element<Acc = T>,
    G: Element<Acc = T>,
{
    match pass {
        Pass::Update => dispatch(isa, update),
        Pass::Measure if R::PASSES == Passes::One => {}
        Pass::Measure => dispatch(isa, Measure { update, sums: &mut sums.norms }),
    }
}

/// [`step_chunk`] for operands that are not all plain slices of `T`: those that are not are copied to tiles in the L1 cache
/// and back, and what else is wanted of the new parameters is done while they are there.
///
/// # Safety
/// As [`step`] requires.
unsafe fn step_tiled<T: Real, R: Rule<T, N>, const N: usize>(
    rule: &R,
    leaf: &Tiled,
    dtype: DType,
    (start, len): (usize, usize),
    (options, coefficient): (&Options, f64),
    pass: Pass,
    sums: &mut Sums,
) {
    let isa = options.isa;
    let working = leaf.master.as_ref().unwrap_or(&leaf.param);
    let prepare = Limited::new(options, coefficient);
    // State that is stored rounded must not be read back by the second pass, which goes on from the unrounded: so the first
    // pass leaves it as it is, and the second computes it again.
    let again = R::PASSES == Passes::StateThenParam && leaf.state.iter().any(|view| view.dtype != dtype);
    let mut tiles = [[T::ZERO; TILE]; MAX_STATES + 2];
    let mut old = [T::ZERO; TILE];
    for first in (start..start + len).step_by(TILE) {
        let n = TILE.min(start + len - first);
        let [p_tile, g_tile, s_tiles @ ..] = &mut tiles;
        // SAFETY: `step` requires the views to be valid and to overlap nowhere; a tile is used by one operand.
        let place = |view: &View, tile: &mut [T; TILE]| unsafe { place(view, dtype, isa, &leaf.shape, first, n, tile) };
        let p = place(working, p_tile);
        let g = place(&leaf.grad, g_tile);
        let mut s = [p; N];
        for (k, s) in s.iter_mut().enumerate() {
            *s = place(&leaf.state[k], &mut s_tiles[k]);
            if again && !std::ptr::eq(*s, s_tiles[k].as_ptr()) {
                // SAFETY: `place` gave `n` elements where they lie; the tile is another place.
                unsafe { s_tiles[k].as_mut_ptr().copy_from_nonoverlapping(*s, n) };
                *s = s_tiles[k].as_mut_ptr();
            }
        }
        if options.update_norm && pass == Pass::Update {
            // SAFETY: `place` gave `n` elements.
            old[..n].copy_from_slice(unsafe { std::slice::from_raw_parts(p, n) });
        }
        let update = Update { rule, prepare, p, g, s, len: n, index: first as u64 };
        if again && pass == Pass::Update {
            run(isa, update, Pass::Measure, &mut Sums::default());
        }
        run(isa, update, pass, sums);
        for (k, &s) in s.iter().enumerate() {
            if again && pass == Pass::Measure {
                break;
            }
            // SAFETY: as above.
            unsafe { put_back(&leaf.state[k], s, &s_tiles[k], isa, &leaf.shape, first, n) };
        }
        if pass == Pass::Measure {
            continue;
        }
        // SAFETY: `place` gave `n` elements, and the kernel is done with them.
        let new = unsafe { std::slice::from_raw_parts(p, n) };
        // SAFETY: as above.
        unsafe { put_back(working, p, p_tile, isa, &leaf.shape, first, n) };
        if leaf.master.is_some() {
            // SAFETY: as above; the master is another array than the parameter.
            unsafe { leaf.param.store(isa, &leaf.shape, first, new) };
        }
        if options.update_norm {
            dispatch(isa, SumSquaredChange { new, old: &mut old[..n], sum: &mut sums.change });
        }
        if let Some(view) = &leaf.ema {
            let ema = place(view, g_tile);
            let (decay, rest) = (T::from_f64(options.ema_decay), T::from_f64(1.0 - options.ema_decay));
            // SAFETY: `place` gave `n` elements, which are not those of `new`: the gradient's tile is free again.
            let slice = unsafe { std::slice::from_raw_parts_mut(ema, n) };
            dispatch(isa, Average { ema: slice, p: new, decay, rest });
            // SAFETY: as above.
            unsafe { put_back(view, ema, g_tile, isa, &leaf.shape, first, n) };
        }
    }
}

/// Where elements `first .. first + n` of the operand can be used as `T`s: where they lie if they are stored so, else in the
/// tile, which then holds a copy.
///
/// # Safety
/// The view is valid for reads, and nobody writes it meanwhile.
unsafe fn place<T: Real>(
    view: &View,
    dtype: DType,
    isa: Isa,
    shape: &[usize],
    first: usize,
    n: usize,
    tile: &mut [T; TILE],
) -> *mut T {
    if view.is_slice_of(dtype) {
        return view.at(first).cast();
    }
    // SAFETY: passed on.
    unsafe { view.load(isa, shape, first, &mut tile[..n]) };
    tile.as_mut_ptr()
}

/// Copies the tile back, if [`place`] put the operand there.
///
/// # Safety
/// The view is valid for writes, and nobody else uses it meanwhile.
unsafe fn put_back<T: Real>(
    view: &View,
    placed: *mut T,
    tile: &[T; TILE],
    isa: Isa,
    shape: &[usize],
    first: usize,
    n: usize,
) {
    if std::ptr::eq(placed, tile.as_ptr()) {
        // SAFETY: passed on.
        unsafe { view.store(isa, shape, first, &tile[..n]) };
    }
}

/// The sum of squares of a chunk of a gradient, after scaling and limiting, in units of `1 / unit` squared.
///
/// # Safety
/// As [`step`] requires.
unsafe fn grad_sum_squares(leaf: &Leaf, start: usize, len: usize, options: &Options, unit: f64) -> f64 {
    let mut sum = Lanes::default();
    // SAFETY: passed on.
    unsafe {
        for_each_gradient_slice(leaf, start, len, options.isa, |slice| match slice {
            Slice::F32(x) => dispatch(options.isa, sum_squares(x, options, unit, &mut sum)),
            Slice::F64(x) => dispatch(options.isa, sum_squares(x, options, unit, &mut sum)),
            Slice::F16(x) => dispatch(options.isa, sum_squares(x, options, unit, &mut sum)),
            Slice::Bf16(x) => dispatch(options.isa, sum_squares(x, options, unit, &mut sum)),
        });
    }
    sum.total()
}

fn sum_squares<'a, E: Element>(x: &'a [E], options: &Options, unit: f64, sum: &'a mut Lanes) -> SumSquares<'a, E> {
    SumSquares { x, prepare: Limited::new(options, 1.0), unit, sum }
}

/// Whether a chunk of a gradient has neither infinities nor NaN.
///
/// # Safety
/// As [`step`] requires.
unsafe fn grad_is_finite(leaf: &Leaf, start: usize, len: usize, options: &Options) -> bool {
    let isa = options.isa;
    let scale = options.grad_scale;
    let mut all = true;
    // SAFETY: passed on.
    unsafe {
        for_each_gradient_slice(leaf, start, len, isa, |slice| {
            all &= match slice {
                Slice::F32(x) => dispatch(isa, AllFinite { x, scale: scale as f32 }),
                Slice::F64(x) => dispatch(isa, AllFinite { x, scale }),
                Slice::F16(x) => dispatch(isa, AllFinite { x, scale: scale as f32 }),
                Slice::Bf16(x) => dispatch(isa, AllFinite { x, scale: scale as f32 }),
            };
        });
    }
    all
}

/// A piece of a gradient as it is stored, or as it is computed with.
enum Slice<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    F16(&'a [F16]),
    Bf16(&'a [Bf16]),
}

/// Gives `f` the elements `start .. start + len` of the leaf's gradient: where they lie, or tile by tile.
///
/// # Safety
/// As [`step`] requires.
unsafe fn for_each_gradient_slice(leaf: &Leaf, start: usize, len: usize, isa: Isa, mut f: impl FnMut(Slice)) {
    let (tiled, dtype, g) = leaf.gradient();
    if tiled.is_none_or(|tiled| tiled.grad.is_slice_of(dtype)) {
        let at = g.wrapping_add(start * dtype.size());
        // SAFETY: the gradient has these elements, they are aligned (`is_slice_of`, or the leaf would not be direct), and
        // nobody writes them.
        unsafe {
            return f(match dtype {
                DType::F32 => Slice::F32(std::slice::from_raw_parts(at.cast(), len)),
                DType::F64 => Slice::F64(std::slice::from_raw_parts(at.cast(), len)),
                DType::F16 => Slice::F16(std::slice::from_raw_parts(at.cast(), len)),
                DType::Bf16 => Slice::Bf16(std::slice::from_raw_parts(at.cast(), len)),
            });
        }
    }
    let Some(Tiled { shape, grad, .. }) = tiled else { return };
    for first in (start..start + len).step_by(TILE) {
        let n = TILE.min(start + len - first);
        // SAFETY: passed on.
        unsafe {
            if dtype == DType::F64 {
                let mut tile = [0f64; TILE];
                grad.load(isa, shape, first, &mut tile[..n]);
                f(Slice::F64(&tile[..n]));
            } else {
                let mut tile = [0f32; TILE];
                grad.load(isa, shape, first, &mut tile[..n]);
                f(Slice::F32(&tile[..n]));
            }
        }
    }
}

/// A place per chunk for its sum, filled from several threads.
struct Partials<'a>(*mut f64, PhantomData<&'a mut [f64]>);

// SAFETY: each element is written by the one thread that has that chunk.
unsafe impl Sync for Partials<'_> {}

impl<'a> Partials<'a> {
    fn new(values: &'a mut [f64]) -> Partials<'a> {
        Partials(values.as_mut_ptr(), PhantomData)
    }

    /// # Safety
    /// `i` is in range, and no other thread sets it.
    unsafe fn set(&self, i: usize, value: f64) {
        // SAFETY: required of the caller.
        unsafe { *self.0.add(i) = value };
    }
}

/// The sum of squares of each gradient (after scaling and limiting), in units of `1 / unit` squared.
///
/// # Safety
/// As [`step`] requires.
unsafe fn grad_sums(leaves: &[Leaf], work: &Work, options: &Options, unit: f64) -> Vec<f64> {
    let mut partials = vec![0.0; work.chunks.len()];
    let out = Partials::new(&mut partials);
    work.for_each(options.threads, |i, chunk| {
        // SAFETY: passed on; each chunk is visited once.
        unsafe {
            let leaf = &leaves[chunk.leaf as usize];
            out.set(i, grad_sum_squares(leaf, chunk.start, chunk.len as usize, options, unit));
        }
    });
    work.per_leaf(leaves.len(), &mut partials)
}

/// The norm of all gradients (after scaling and limiting).
///
/// # Safety
/// As [`step`] requires.
unsafe fn grad_norm(leaves: &[Leaf], work: &Work, options: &Options) -> f64 {
    // SAFETY: passed on.
    let sum = |unit: f64| reduce::tree(&mut unsafe { grad_sums(leaves, work, options, unit) });
    // Only squares of f64 can leave the range of f64; a power of two brings them back exactly.
    let (up, down) = (libm::exp2(512.0), libm::exp2(-512.0));
    let total = sum(1.0);
    if total >= libm::exp2(-900.0) && total < f64::INFINITY || leaves.iter().all(|leaf| leaf.dtype() != DType::F64) {
        total.sqrt()
    } else if total < 1.0 {
        sum(up).sqrt() * down
    } else {
        sum(down).sqrt() * up
    }
}

/// The first leaf whose gradient is not finite.
///
/// # Safety
/// As [`step`] requires.
unsafe fn first_nonfinite(leaves: &[Leaf], work: &Work, options: &Options) -> Option<usize> {
    let mut found = vec![0.0; work.chunks.len()];
    let out = Partials::new(&mut found);
    work.for_each(options.threads, |i, chunk| {
        // SAFETY: passed on; each chunk is visited once.
        unsafe {
            let finite = grad_is_finite(&leaves[chunk.leaf as usize], chunk.start, chunk.len as usize, options);
            out.set(i, if finite { 0.0 } else { 1.0 });
        }
    });
    found.iter().position(|&x| x != 0.0).map(|i| work.chunks[i].leaf as usize)
}

/// The rule of a leaf at one step, in both types, and the sign of the gradient.
#[derive(Clone, Copy)]
struct Ruled<R32, R64> {
    f32: R32,
    f64: R64,
    sign: f64,
}

/// One step over all leaves.
///
/// # Safety
/// Every address of every leaf is valid for `len` elements of its dtype and layout until the call returns. Parameters,
/// state, masters and averages are writable, have no element twice, and overlap neither each other nor a gradient; nobody
/// else writes any of them, or reads the writable ones, meanwhile. The addresses of a direct leaf are aligned.
unsafe fn step<R32, R64, const N: usize>(
    rules: &[Ruled<R32, R64>],
    leaves: &[Leaf],
    work: &Work,
    options: &Options,
) -> Report
where
    R32: Rule<f32, N>,
    R64: Rule<f64, N>,
{
    let mut report = Report::default();
    let threads = options.threads;
    let mut coefficient = 1.0;
    if options.grad_norm || options.max_norm < f64::INFINITY {
        // SAFETY: passed on.
        let norm = options.joint_norm.unwrap_or_else(|| unsafe { grad_norm(leaves, work, options) });
        report.grad_norm = Some(norm);
        // To report a norm must change nothing, even where it is infinite or NaN.
        if options.max_norm < f64::INFINITY {
            // torch's clip_grad_norm_: max_norm / (norm + 1e-6), at most 1; NaN stays NaN.
            let ratio = options.max_norm / (norm + 1e-6);
            coefficient = if ratio > 1.0 { 1.0 } else { ratio };
        }
    }
    // A finite norm says that all is finite, unless the limit has hidden an infinity.
    let known_finite = report.grad_norm.is_some_and(Real::is_finite) && options.clip_value == f64::INFINITY;
    if options.nonfinite != NonFinite::Propagate && !known_finite {
        // SAFETY: passed on.
        report.nonfinite = unsafe { first_nonfinite(leaves, work, options) };
        if report.nonfinite.is_some() {
            return report;
        }
    }
    let with = (options, coefficient);

    // Two passes: the norms of each leaf first, then a rule of its own for each.
    let own: Option<Vec<Ruled<R32, R64>>> = (R32::PASSES != Passes::One).then(|| {
        let mut partials = [vec![0.0; work.chunks.len()], vec![0.0; work.chunks.len()]];
        let [params, measured] = &mut partials;
        let (out_params, out_measured) = (Partials::new(params), Partials::new(measured));
        work.for_each(threads, |i, chunk| {
            let leaf = &leaves[chunk.leaf as usize];
            let rule = &rules[leaf.rule as usize];
            let mut sums = Sums::default();
            // SAFETY: passed on; chunks do not overlap, and each is visited once.
            unsafe {
                step_chunk(rule, leaf, (chunk.start, chunk.len as usize), with, Pass::Measure, &mut sums);
                out_params.set(i, sums.norms[0].total());
                out_measured.set(i, sums.norms[1].total());
            }
        });
        let norms = partials.map(|mut partials| work.per_leaf(leaves.len(), &mut partials));
        let own = |(i, leaf): (usize, &Leaf)| {
            let rule = rules[leaf.rule as usize];
            let norms = [norms[0][i].sqrt(), norms[1][i].sqrt()];
            Ruled { f32: rule.f32.with_norms(norms), f64: rule.f64.with_norms(norms), ..rule }
        };
        leaves.iter().enumerate().map(own).collect()
    });

    let mut partials = vec![0.0; if options.update_norm { work.chunks.len() } else { 0 }];
    let out = Partials::new(&mut partials);
    work.for_each(threads, |i, chunk| {
        let leaf = &leaves[chunk.leaf as usize];
        let rule = own.as_ref().map_or_else(|| &rules[leaf.rule as usize], |own| &own[chunk.leaf as usize]);
        let mut sums = Sums::default();
        // SAFETY: passed on; chunks do not overlap, and each is visited once.
        unsafe {
            step_chunk(rule, leaf, (chunk.start, chunk.len as usize), with, Pass::Update, &mut sums);
            if options.update_norm {
                out.set(i, sums.change.total());
            }
        }
    });
    if options.update_norm {
        let total = reduce::tree(&mut work.per_leaf(leaves.len(), &mut partials));
        report.update_norm = Some(total.sqrt());
    }
    report
}

// ---------------------------------------------------------------------------------------------------------------------
// The list
// ---------------------------------------------------------------------------------------------------------------------

/// A rule as a value, for callers that learn its name at run time.
pub trait Engine: Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// The names of its hyperparameters, in the order in which [`Engine::step`] takes them.
    fn hyper(&self) -> &'static [&'static str];
    /// The names of its state arrays.
    fn states(&self) -> &'static [&'static str];
    /// Its scalar state: names and first values.
    fn scalars(&self) -> &'static [(&'static str, f64)];
    /// Whether the step depends on norms over whole arrays, so that leaves must be walked in logical order.
    fn takes_norms(&self) -> bool;
    /// One step over all leaves. `groups` has, for each rule number that a leaf may have, the step (from 1), the
    /// hyperparameters and the scalar state, which is advanced.
    ///
    /// # Safety
    /// Every address of every leaf is valid for `len` elements of its dtype and layout until the call returns. Parameters,
    /// state, masters and averages are writable, have no element twice, and overlap neither each other nor a gradient;
    /// nobody else writes any of them, or reads the writable ones, meanwhile. The addresses of a direct leaf are aligned.
    /// `work` was made for these leaves, and each leaf has the rule's number of state arrays.
    unsafe fn step(&self, groups: &mut [Group<'_>], leaves: &[Leaf], work: &Work, options: &Options) -> Report;
    /// What a step does to an element, as a program for other machines; advances the scalar state of the group. `None` if
    /// that is no straight line of operations.
    ///
    /// The outputs are the new parameter and the new state; of [`Traced::Measure`] the two numbers whose norms are taken,
    /// and the new state.
    fn trace(&self, group: &mut Group<'_>, what: Traced) -> Option<Program>;
    /// One pass or two.
    fn passes(&self) -> Passes;
}

/// Which part of a rule is traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Traced {
    /// [`Rule::measure`]
    Measure,
    /// [`Rule::update`], of a rule with two passes after these norms.
    Update(Option<[f64; 2]>),
}

/// The sums of squares of the gradients of each leaf, after scaling and limiting, in units of `1 / unit` squared, and the
/// first leaf whose gradient is not finite.
///
/// # Safety
/// As for [`Engine::step`], of the gradients alone.
pub unsafe fn inspect(leaves: &[Leaf], work: &Work, options: &Options, unit: f64) -> (Vec<f64>, Option<usize>) {
    // SAFETY: passed on.
    parallel::ieee(|| unsafe { (grad_sums(leaves, work, options, unit), first_nonfinite(leaves, work, options)) })
}

/// What the leaves of one rule number share.
#[derive(Debug)]
pub struct Group<'a> {
    /// The step, counted from 1.
    pub step: u64,
    /// Climb instead of descend: the gradient changes sign after clipping.
    pub maximize: bool,
    /// The hyperparameters, in the order of [`Engine::hyper`].
    pub hyper: &'a [f64],
    /// The scalar state, in the order of [`Engine::scalars`].
    pub scalars: &'a mut [f64],
}

struct Of<R32, R64, S, const N: usize>(PhantomData<fn(R32, R64, S)>);

impl<H, R32, R64, S, const N: usize> Engine for Of<R32, R64, S, N>
where
    H: Hyper,
    R32: Rule<f32, N, Hyper = H>,
    R64: Rule<f64, N, Hyper = H>,
    S: Rule<Symbol, N, Hyper = H>,
{
    fn name(&self) -> &'static str {
        R32::NAME
    }
    fn hyper(&self) -> &'static [&'static str] {
        H::NAMES
    }
    fn states(&self) -> &'static [&'static str] {
        &R32::STATES
    }
    fn scalars(&self) -> &'static [(&'static str, f64)] {
        R32::SCALARS
    }
    fn takes_norms(&self) -> bool {
        R32::PASSES != Passes::One
    }
    unsafe fn step(&self, groups: &mut [Group<'_>], leaves: &[Leaf], work: &Work, options: &Options) -> Report {
        // In the IEEE environment too: the scalars are arithmetic like any other.
        parallel::ieee(|| {
            let rules = groups.iter_mut().map(|group| {
                let hyper = H::from_values(group.hyper);
                let mut scalars = group.scalars.to_vec();
                Ruled {
                    f32: R32::new(&hyper, group.step, &mut scalars),
                    f64: R64::new(&hyper, group.step, group.scalars),
                    sign: if group.maximize { -1.0 } else { 1.0 },
                }
            });
            // SAFETY: the same duties.
            unsafe { step(&rules.collect::<Vec<_>>(), leaves, work, options) }
        })
    }
    fn trace(&self, group: &mut Group<'_>, what: Traced) -> Option<Program> {
        parallel::ieee(|| {
            trace::trace(|p, g, s| {
                let rule = S::new(&H::from_values(group.hyper), group.step, group.scalars);
                match what {
                    Traced::Measure => {
                        let (measured, s) = rule.measure(p, g, s);
                        measured.into_iter().chain(s).collect()
                    }
                    Traced::Update(norms) => {
                        let rule = norms.map_or(rule, |norms| rule.with_norms(norms));
                        let (p, s) = rule.update(p, g, s);
                        std::iter::once(p).chain(s).collect()
                    }
                }
            })
        })
    }
    fn passes(&self) -> Passes {
        R32::PASSES
    }
}

macro_rules! rules {
    ($($rule:ident :: $name:ident [$n:literal],)*) => {
        /// All rules.
        pub static RULES: &[&dyn Engine] = &[$(&Of::<$rule::$name<f32>, $rule::$name<f64>, $rule::$name<Symbol>, $n>(PhantomData)),*];
    };
}

rules! {
    sgd::Sgd[0],
    sgd::Momentum[1],
    sgd::Lookahead[1],
    adagrad::Adagrad[1],
    rmsprop::RmsProp[1],
    rmsprop::RmsPropMomentum[2],
    rmsprop::CenteredRmsProp[2],
    rmsprop::CenteredRmsPropMomentum[3],
    adadelta::Adadelta[2],
    adam::Adam[2],
    adam::AmsGrad[3],
    adamax::Adamax[2],
    nadam::NAdam[2],
    radam::RAdam[2],
    lion::Lion[1],
    lamb::Lamb[2],
    lars::Lars[1],
}

/// The rule of that name.
pub fn rule(name: &str) -> Option<&'static dyn Engine> {
    RULES.iter().copied().find(|rule| rule.name() == name)
}
