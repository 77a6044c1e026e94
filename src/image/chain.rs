//! Several transforms over a batch: each sample goes through all of them while it is in the cache.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::blur::Blur;
use super::color::{Gray, Jitter};
use super::crop::Crop;
use super::erase::Erase;
use super::flip::{Flip, Turn};
use super::noise::Noise;
use super::normalize::Normalize;
use super::resize::Resize;
use super::sample::{Op, Pixel, Shape, Table, View, ViewMut, Workspace};
use super::warp::Warp;
use crate::float::{Bf16, Element, F16, Real};
use crate::parallel;
use crate::simd::{Isa, Kernel, dispatch};

/// The list of transforms: from it come what a stage can be, and what it does.
macro_rules! transforms {
    ($($Op:ident),*) => {
        enum Transform {
            $($Op($Op),)*
            Normalize(Normalize),
        }

        impl Transform {
            fn new(name: &str, table: Table<'_>, channels: usize) -> Result<Transform, String> {
                $(if name == $Op::NAME {
                    return Ok(Transform::$Op($Op::new(table, channels)?));
                })*
                if name == "normalize" {
                    return Ok(Transform::Normalize(Normalize::new(table.settings, channels)?));
                }
                Err(format!("there is no transform of the name {name:?}"))
            }

            fn edits(&self, byte: bool) -> bool {
                match self {
                    $(Transform::$Op(_) => $Op::EDITS,)*
                    Transform::Normalize(_) => !byte,
                }
            }

            fn makes(&self) -> bool {
                match self {
                    $(Transform::$Op(_) => $Op::MAKES,)*
                    Transform::Normalize(_) => true,
                }
            }

            fn moves(&self) -> bool {
                match self {
                    $(Transform::$Op(_) => $Op::MOVES,)*
                    Transform::Normalize(_) => false,
                }
            }

            fn shape(&self, i: usize, input: Shape) -> Result<Shape, String> {
                match self {
                    $(Transform::$Op(op) => op.shape(i, input),)*
                    Transform::Normalize(_) => Ok(input),
                }
            }

            fn edit<P: Pixel>(&self, i: usize, image: ViewMut<'_, P>, work: &mut Workspace, isa: Isa) {
                match self {
                    $(Transform::$Op(op) => op.edit(i, image, work, isa),)*
                    Transform::Normalize(_) => unreachable!("has a way of its own"),
                }
            }

            fn make<P: Pixel>(&self, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, work: &mut Workspace, isa: Isa) {
                match self {
                    $(Transform::$Op(op) => op.make(i, input, out, work, isa),)*
                    Transform::Normalize(_) => unreachable!("has a way of its own"),
                }
            }

            fn mask<E: Copy>(&self, i: usize, input: View<'_, E>, out: ViewMut<'_, E>, fill: E) {
                match self {
                    $(Transform::$Op(op) => op.mask(i, input, out, fill),)*
                    Transform::Normalize(_) => unreachable!("moves nothing"),
                }
            }
        }
    };
}
transforms!(Flip, Turn, Crop, Warp, Resize, Blur, Jitter, Gray, Noise, Erase);

/// What the pictures of a batch are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// `numpy.uint8`
    U8,
    /// `numpy.float32`
    F32,
    /// `numpy.float16`, computed in `f32`.
    F16,
    /// `ml_dtypes.bfloat16`, computed in `f32`.
    Bf16,
}

impl Stored {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            Stored::U8 => 1,
            Stored::F16 | Stored::Bf16 => 2,
            Stored::F32 => 4,
        }
    }

    const fn is_half(self) -> bool {
        matches!(self, Stored::F16 | Stored::Bf16)
    }
}

/// A transform of a chain, as it comes from the caller.
pub struct Stage<'a> {
    /// Which transform.
    pub name: &'a str,
    /// To which samples it is applied.
    pub applies: Vec<bool>,
    /// Its numbers.
    pub table: Table<'a>,
}

/// Transforms one after the other, checked for a batch of pictures.
pub struct Chain {
    stages: Vec<(Transform, Vec<bool>)>,
    n: usize,
    input: Shape,
    output: Shape,
    stored: Stored,
    /// Elements of the largest picture on the way.
    largest: usize,
}

impl Chain {
    /// For `n` pictures that are stored so and have the shape `input`, and shall have the shape `output` afterwards.
    ///
    /// # Errors
    /// Which stage cannot be done, or does not give that shape.
    pub fn new(stages: Vec<Stage<'_>>, n: usize, input: Shape, output: Shape, stored: Stored) -> Result<Chain, String> {
        let mut checked = Vec::with_capacity(stages.len());
        for stage in stages {
            let name = stage.name;
            let short = stage.table.rows.len() != n * stage.table.columns || stage.table.n != n;
            if short || stage.applies.len() != n {
                return Err(format!("{name} must have a row of numbers for each of {n} samples"));
            }
            let op = Transform::new(name, stage.table, input.c)?;
            if stored == Stored::U8 && matches!(op, Transform::Normalize(_)) && stage.applies.contains(&false) {
                return Err(format!("{name} changes the type of the images, so it must be applied to all samples"));
            }
            checked.push((op, stage.applies));
        }
        let mut chain = Chain { stages: checked, n, input, output, stored, largest: 0 };
        let mut largest = input.len();
        for i in 0..n {
            let mut shape = input;
            for op in chain.applied(i) {
                shape = op.shape(i, shape).map_err(|error| format!("sample {i}: {error}"))?;
                largest = largest.max(shape.len());
            }
            if shape.sized(output.h, output.w) != shape || shape.c != output.c {
                let Shape { h, w, c, .. } = shape;
                return Err(format!(
                    "sample {i} must come out with {} x {} pixels of {} channels like the others, but has {h} x {w} of {c}",
                    output.h, output.w, output.c
                ));
            }
        }
        chain.largest = largest;
        Ok(chain)
    }

    /// Whether there is memory for the pictures on the way.
    pub fn has_room(&self) -> bool {
        Vec::<f32>::new().try_reserve_exact(self.largest).is_ok()
    }

    /// What the pictures are stored as afterwards.
    pub fn result(&self) -> Stored {
        let normalizes = self.stages.iter().any(|(op, _)| matches!(op, Transform::Normalize(_)));
        if normalizes && self.stored == Stored::U8 { Stored::F32 } else { self.stored }
    }

    fn applied(&self, i: usize) -> impl Iterator<Item = &Transform> {
        self.stages.iter().filter(move |(_, applies)| applies[i]).map(|(op, _)| op)
    }

    /// Runs it. The result depends neither on the threads nor on the instruction set.
    ///
    /// With `unit`, numbers that are no bytes must lie in 0 .. 1. `false` if one does not; what is at `output` then has no
    /// meaning.
    ///
    /// # Safety
    /// At `input` are the pictures, dense, of that type and aligned, at `output` is room for the results, and nobody else uses
    /// either meanwhile. The two are apart, or the same (then shapes and types before and after are the same too).
    pub unsafe fn run(&self, input: *const u8, output: *mut u8, unit: bool, isa: Isa) -> bool {
        let from = Addresses(input.cast_mut(), self.input.len() * self.stored.size());
        let to = Addresses(output, self.output.len() * self.result().size());
        let pool = Scratches::default();
        let outside = AtomicBool::new(false);
        parallel::for_each_long(self.n, self.n * self.input.len().max(self.output.len()), |i| {
            // SAFETY: sample `i`, which nobody writes before this task does.
            if unit && unsafe { self.is_outside_unit(from.at(i), isa) } {
                outside.store(true, Ordering::Relaxed);
                return;
            }
            pool.with(|scratch| {
                // SAFETY: sample `i` of both, which only this task uses.
                unsafe { self.sample(i, from.at(i), to.at(i), scratch, isa) };
            });
        });
        !outside.into_inner()
    }

    /// Whether a number of a sample is not in 0 .. 1.
    ///
    /// # Safety
    /// There is a sample at this address.
    unsafe fn is_outside_unit(&self, sample: *const u8, isa: Isa) -> bool {
        use std::slice::from_raw_parts as slice;
        let n = self.input.len();
        // SAFETY: the caller's.
        unsafe {
            match self.stored {
                Stored::U8 => false,
                Stored::F32 => dispatch(isa, Outside(slice(sample.cast::<f32>(), n))),
                Stored::F16 => dispatch(isa, Outside(slice(sample.cast::<F16>(), n))),
                Stored::Bf16 => dispatch(isa, Outside(slice(sample.cast::<Bf16>(), n))),
            }
        }
    }

    /// Does the transforms that move pixels to masks of the same height and width, whose elements have as many bytes as `E`.
    ///
    /// # Safety
    /// As for [`Chain::run`], with masks of `channels` elements per pixel.
    pub unsafe fn run_masks<E: Copy + Default + Send + Sync>(
        &self,
        input: *const E,
        output: *mut E,
        [in_planar, out_planar]: [bool; 2],
        channels: usize,
        fill: E,
    ) {
        let before = Shape { c: channels, planar: in_planar, ..self.input };
        let after = Shape { c: channels, planar: out_planar, ..self.output };
        let from = Addresses(input.cast_mut().cast(), before.len() * size_of::<E>());
        let to = Addresses(output.cast(), after.len() * size_of::<E>());
        let pool = Scratches::default();
        parallel::for_each_long(self.n, self.n * before.len().max(after.len()), |i| {
            pool.with(|scratch| {
                // SAFETY: sample `i` of both, which only this task uses.
                unsafe { self.mask(i, from.at(i).cast::<E>(), to.at(i).cast::<E>(), before, after, fill, scratch) };
            });
        });
    }

    /// One sample through the chain. Each transform that makes a new picture writes it to one of two places by turns, so that the
    /// last one writes it where it belongs.
    ///
    /// # Safety
    /// As for [`Chain::run`].
    unsafe fn sample(&self, i: usize, input: *mut u8, output: *mut u8, scratch: &mut Scratch, isa: Isa) {
        let half = self.stored.is_half();
        let room = if half { 0 } else { self.output.len() * self.result().size() };
        let mut places = Places { input, output, room, at: Place::Input, left: 0 };
        if input == output {
            places.at = Place::Output;
        }
        let mut byte = self.stored == Stored::U8;
        let mut shape = self.input;
        let turn =
            |op: &Transform, shape: Shape| matches!(op, Transform::Normalize(_)) && shape.planar != self.output.planar;
        // How many will make a new picture?
        let mut writable = half || input == output;
        let (mut bytes, mut planar) = (byte, shape.planar);
        for op in self.applied(i) {
            if !writable || !op.edits(bytes) || turn(op, Shape { planar, ..shape }) {
                places.left += 1;
                writable = true;
            }
            if matches!(op, Transform::Normalize(_)) {
                (bytes, planar) = (false, self.output.planar);
            }
        }
        places.left += usize::from(planar != self.output.planar);
        // SAFETY: each view is of a place that has room for it: `Places::next` sees to that, and a picture in a place has the
        // shape and type that this loop keeps account of. A picture that is written is never the one that is read.
        unsafe {
            if half {
                let to = places.next(shape.len() * 4, scratch);
                widen(self.stored, input, View::<f32>::mutable(to, shape), isa);
            }
            for op in self.applied(i) {
                let from = places.ptr(scratch);
                if places.at != Place::Input && op.edits(byte) && !turn(op, shape) {
                    match op {
                        Transform::Normalize(op) => op.edit(View::mutable(from, shape), isa),
                        _ if byte => op.edit(i, View::<u8>::mutable(from, shape), &mut scratch.work, isa),
                        _ => op.edit(i, View::<f32>::mutable(from, shape), &mut scratch.work, isa),
                    }
                    continue;
                }
                let mut after = op.shape(i, shape).unwrap_or(shape);
                places.left -= 1;
                if let Transform::Normalize(op) = op {
                    after.planar = self.output.planar;
                    let to = places.next(after.len() * 4, scratch);
                    let out = View::<f32>::mutable(to, after);
                    if byte {
                        op.run(View::<u8>::new(from, shape), out, isa);
                    } else {
                        op.run(View::<f32>::new(from, shape), out, isa);
                    }
                    byte = false;
                } else if byte {
                    let to = places.next(after.len(), scratch);
                    step(op, i, View::<u8>::new(from, shape), View::mutable(to, after), &mut scratch.work, isa);
                } else {
                    let to = places.next(after.len() * 4, scratch);
                    step(op, i, View::<f32>::new(from, shape), View::mutable(to, after), &mut scratch.work, isa);
                }
                shape = after;
            }
            if shape.planar != self.output.planar {
                let after = Shape { planar: self.output.planar, ..shape };
                places.left -= 1;
                let from = places.ptr(scratch);
                if byte {
                    let to = places.next(after.len(), scratch);
                    transpose(View::<u8>::new(from, shape), View::mutable(to, after));
                } else {
                    let to = places.next(after.len() * 4, scratch);
                    transpose(View::<f32>::new(from, shape), View::mutable(to, after));
                }
                shape = after;
            }
            let from = places.ptr(scratch);
            if half {
                narrow(self.stored, View::<f32>::new(from, shape), output, isa);
            } else if places.at != Place::Output {
                copy(from, output, room);
            }
        }
    }

    /// # Safety
    /// As for [`Chain::run_masks`].
    unsafe fn mask<E: Copy + Default>(
        &self,
        i: usize,
        input: *mut E,
        output: *mut E,
        before: Shape,
        after: Shape,
        fill: E,
        scratch: &mut Scratch,
    ) {
        let room = after.len() * size_of::<E>();
        let mut places = Places { input: input.cast(), output: output.cast(), room, at: Place::Input, left: 0 };
        if input == output {
            places.at = Place::Output;
        }
        places.left = self.applied(i).filter(|op| op.moves()).count() + usize::from(before.planar != after.planar);
        let mut shape = before;
        // SAFETY: as in `sample`.
        unsafe {
            for op in self.applied(i) {
                let next = op.shape(i, Shape { c: self.input.c, ..shape }).unwrap_or(shape);
                if op.moves() {
                    places.left -= 1;
                    let next = shape.sized(next.h, next.w);
                    let from = places.ptr(scratch);
                    let to = places.next(next.len() * size_of::<E>(), scratch);
                    op.mask(i, View::<E>::new(from, shape), View::mutable(to, next), fill);
                    shape = next;
                }
            }
            if shape.planar != after.planar {
                transpose(View::<E>::new(places.ptr(scratch), shape), View::mutable(output.cast(), after));
            } else if places.at != Place::Output {
                copy(places.ptr(scratch), output.cast(), room);
            }
        }
    }
}

/// A transform that makes a new picture: by itself, or in a copy.
fn step<P: Pixel>(op: &Transform, i: usize, input: View<'_, P>, out: ViewMut<'_, P>, work: &mut Workspace, isa: Isa) {
    if op.makes() {
        op.make(i, input, out, work, isa);
    } else {
        out.data.copy_from_slice(input.data);
        op.edit(i, out, work, isa);
    }
}

/// Where the picture of a sample is just now.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Input,
    Output,
    First,
    Second,
}

/// The places of one sample.
struct Places {
    input: *mut u8,
    output: *mut u8,
    /// The bytes of the output that may be used meanwhile.
    room: usize,
    at: Place,
    /// How many more transforms make a new picture.
    left: usize,
}

impl Places {
    /// Where the picture is.
    fn ptr(&self, scratch: &mut Scratch) -> *mut u8 {
        match self.at {
            Place::Input => self.input,
            Place::Output => self.output,
            Place::First => scratch.first.as_mut_ptr().cast(),
            Place::Second => scratch.second.as_mut_ptr().cast(),
        }
    }

    /// Another place, with room for so many bytes, which is the new one.
    fn next(&mut self, bytes: usize, scratch: &mut Scratch) -> *mut u8 {
        let output = self.left.is_multiple_of(2) && bytes <= self.room && self.at != Place::Output;
        self.at = match self.at {
            _ if output => Place::Output,
            Place::First => Place::Second,
            _ => Place::First,
        };
        let buffer = match self.at {
            Place::First => &mut scratch.first,
            Place::Second => &mut scratch.second,
            _ => return self.output,
        };
        let words = bytes.div_ceil(size_of::<u64>());
        if buffer.len() < words {
            buffer.resize(words, 0);
        }
        buffer.as_mut_ptr().cast()
    }
}

/// Memory of one thread: for the picture between two transforms (the second only where a result is larger than the output, or
/// is a half), and for a transform's own needs.
#[derive(Default)]
struct Scratch {
    first: Vec<u64>,
    second: Vec<u64>,
    work: Workspace,
}

/// As many as there are threads at work, for one call.
#[derive(Default)]
struct Scratches(Mutex<Vec<Scratch>>);

impl Scratches {
    fn with(&self, f: impl FnOnce(&mut Scratch)) {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = lock().pop();
        let mut scratch = taken.unwrap_or_default();
        f(&mut scratch);
        lock().push(scratch);
    }
}

/// The samples of a batch, by their addresses: the first, and bytes from one to the next.
#[derive(Clone, Copy)]
struct Addresses(*mut u8, usize);

impl Addresses {
    fn at(&self, i: usize) -> *mut u8 {
        self.0.wrapping_add(i * self.1)
    }
}

// SAFETY: an address and a number; `Chain::run` requires what makes its use sound.
unsafe impl Send for Addresses {}
// SAFETY: likewise.
unsafe impl Sync for Addresses {}

/// # Safety
/// So many bytes can be read and written, and the two are apart.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
}

impl<'a, P> View<'a, P> {
    /// # Safety
    /// There are as many elements, aligned, and nobody writes them.
    unsafe fn new(ptr: *const u8, shape: Shape) -> View<'a, P> {
        // SAFETY: the caller's.
        View { data: unsafe { std::slice::from_raw_parts(ptr.cast(), shape.len()) }, shape }
    }

    /// # Safety
    /// There is room for as many elements, aligned, that hold numbers, and nobody else uses them.
    unsafe fn mutable(ptr: *mut u8, shape: Shape) -> ViewMut<'a, P> {
        // SAFETY: the caller's.
        ViewMut { data: unsafe { std::slice::from_raw_parts_mut(ptr.cast(), shape.len()) }, shape }
    }
}

/// From pixel by pixel to channel by channel, or back.
fn transpose<E: Copy>(input: View<'_, E>, out: ViewMut<'_, E>) {
    let Shape { h, w, c, .. } = input.shape;
    let pixels = h * w;
    // (rows, columns) of the matrix that is read in order.
    let (rows, columns) = if input.shape.planar { (c, pixels) } else { (pixels, c) };
    if rows * columns == 0 {
        return;
    }
    if input.shape.planar {
        for (k, pixel) in out.data.chunks_exact_mut(rows).enumerate() {
            for (j, x) in pixel.iter_mut().enumerate() {
                *x = input.data[j * columns + k];
            }
        }
    } else {
        for (j, plane) in out.data.chunks_exact_mut(rows).enumerate() {
            for (x, pixel) in plane.iter_mut().zip(input.data.chunks_exact(columns)) {
                *x = pixel[j];
            }
        }
    }
}

/// A stored half to `f32`.
///
/// # Safety
/// At `from` are as many halves.
unsafe fn widen(stored: Stored, from: *const u8, to: ViewMut<'_, f32>, isa: Isa) {
    // SAFETY: the caller's.
    unsafe {
        match stored {
            Stored::F16 => dispatch(isa, Widen(std::slice::from_raw_parts(from.cast::<F16>(), to.data.len()), to.data)),
            _ => dispatch(isa, Widen(std::slice::from_raw_parts(from.cast::<Bf16>(), to.data.len()), to.data)),
        }
    }
}

/// # Safety
/// At `to` is room for as many halves.
unsafe fn narrow(stored: Stored, from: View<'_, f32>, to: *mut u8, isa: Isa) {
    let n = from.data.len();
    // SAFETY: the caller's.
    unsafe {
        match stored {
            Stored::F16 => dispatch(isa, Narrow(from.data, std::slice::from_raw_parts_mut(to.cast::<F16>(), n))),
            _ => dispatch(isa, Narrow(from.data, std::slice::from_raw_parts_mut(to.cast::<Bf16>(), n))),
        }
    }
}

struct Widen<'a, E>(&'a [E], &'a mut [f32]);

impl<E: Element<Acc = f32>> Kernel for Widen<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (y, x) in self.1.iter_mut().zip(self.0) {
            *y = x.widen();
        }
    }
}

struct Narrow<'a, E>(&'a [f32], &'a mut [E]);

impl<E: Element<Acc = f32>> Kernel for Narrow<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (y, &x) in self.1.iter_mut().zip(self.0) {
            *y = E::narrow(x);
        }
    }
}

/// Whether a number is not in 0 .. 1.
struct Outside<'a, E>(&'a [E]);

impl<E: Element> Kernel for Outside<'_, E> {
    type Output = bool;
    #[inline(always)]
    fn run(self) -> bool {
        let mut outside = false;
        for &x in self.0 {
            let x = x.widen();
            outside |= !(x >= E::Acc::ZERO && x <= E::Acc::ONE);
        }
        outside
    }
}

/// The first of the numbers that is not in 0 .. 1, if there is one.
pub fn first_outside_unit<E: Element>(x: &[E]) -> Option<usize> {
    let isa = Isa::current();
    let found = Mutex::new(Vec::new());
    parallel::share(x.len(), x.len().div_ceil(parallel::CHUNK), |task| {
        let start = task * parallel::CHUNK;
        let chunk = &x[start..x.len().min(start + parallel::CHUNK)];
        if dispatch(isa, Outside(chunk)) {
            found.lock().unwrap_or_else(PoisonError::into_inner).push(start);
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let start = found.into_iter().min()?;
    let inside = |x: &E| {
        let x = x.widen().to_f64();
        (0.0..=1.0).contains(&x)
    };
    x[start..].iter().position(|x| !inside(x)).map(|i| start + i)
}
