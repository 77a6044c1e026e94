//! Augmentation, as `python/ironstep/augment` calls it: with the memory of dense arrays as bytes.

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

use super::array::Header;
use crate::float::{Bf16, F16};
use crate::image::chain::{Chain, Stage, Stored, first_outside_unit};
use crate::image::{Shape, Table, draw, mix};
use crate::parallel::ieee;
use crate::simd::Isa;

type Bytes<'a, 'py> = &'a Bound<'py, PyArray1<u8>>;
type Stages<'py> = Vec<(String, PyReadonlyArray1<'py, bool>, PyReadonlyArray2<'py, f64>, Vec<f64>)>;
/// (height, width, channels, planar)
type Size = (usize, usize, usize, bool);

/// The memory of an array: `count` elements of `size` bytes.
#[derive(Clone, Copy)]
struct Memory {
    ptr: *mut u8,
    bytes: usize,
}

// SAFETY: an address and a number; the array is held by the caller's arguments until the call returns.
unsafe impl Send for Memory {}
// SAFETY: likewise.
unsafe impl Sync for Memory {}

impl Memory {
    fn of(array: Bytes<'_, '_>, name: &str, count: Option<usize>, size: usize) -> PyResult<Memory> {
        let memory = Memory { ptr: array.data(), bytes: array.len() };
        let fits = count.and_then(|count| count.checked_mul(size)) == Some(memory.bytes);
        if fits && array.is_contiguous() && (memory.bytes == 0 || memory.ptr.addr().is_multiple_of(size)) {
            return Ok(memory);
        }
        Err(PyValueError::new_err(format!(
            "{name} must be contiguous, aligned, and of the size that its shape says, with axes of at most 2**28"
        )))
    }

    /// What is written: apart from `input`, or the same memory.
    fn output(
        array: Bytes<'_, '_>,
        count: Option<usize>,
        size: usize,
        input: Memory,
        same_type: bool,
    ) -> PyResult<Memory> {
        let memory = Memory::of(array, "out", count, size)?;
        if !Header::of(array.as_any()).is_some_and(|header| header.is_writeable()) {
            return Err(PyValueError::new_err("out must be writeable, because it is written; it is read-only"));
        }
        let (start, other) = (memory.ptr.addr(), input.ptr.addr());
        let same = start == other && memory.bytes == input.bytes && same_type;
        let apart = start + memory.bytes <= other || other + input.bytes <= start;
        if memory.bytes > 0 && input.bytes > 0 && !same && !apart {
            return Err(PyValueError::new_err("out and the input must be apart or the same array, but they overlap"));
        }
        Ok(memory)
    }
}

fn shape((h, w, c, planar): Size) -> Shape {
    Shape { h, w, c, planar }
}

fn elements(n: usize, shape: Shape) -> Option<usize> {
    /// Numbers are kept for each row and column, also of an empty picture.
    const LONGEST: usize = 1 << 28;
    let axes = [n, shape.h, shape.w, shape.c];
    if axes.iter().any(|&axis| axis > LONGEST) {
        return None;
    }
    axes.iter().try_fold(1usize, |all, &axis| all.checked_mul(axis))
}

fn stored(dtype: &str) -> PyResult<Stored> {
    match dtype {
        "uint8" => Ok(Stored::U8),
        "float32" => Ok(Stored::F32),
        "float16" => Ok(Stored::F16),
        "bfloat16" => Ok(Stored::Bf16),
        _ => Err(PyValueError::new_err(format!("dtype must be uint8, float32, float16 or bfloat16, got {dtype}"))),
    }
}

fn chain(stages: &Stages<'_>, n: usize, input: Shape, output: Shape, stored: Stored) -> PyResult<Chain> {
    let mut all = Vec::with_capacity(stages.len());
    for (name, applies, columns, settings) in stages {
        let rows =
            columns.as_slice().map_err(|_| PyValueError::new_err(format!("{name}: columns must be contiguous")))?;
        let [count, width] = columns.as_array().shape().try_into().unwrap_or([0, 0]);
        all.push(Stage {
            name,
            applies: applies.as_array().to_vec(),
            table: Table { n: count, columns: width, rows, settings },
        });
    }
    let chain = ieee(|| Chain::new(all, n, input, output, stored)).map_err(PyValueError::new_err)?;
    if !chain.has_room() {
        return Err(PyMemoryError::new_err("there is no memory for a picture between two transforms"));
    }
    Ok(chain)
}

/// Runs the stages over `n` pictures; `out` may be `images`. With `unit`, floats must lie in 0..1: `False` if one does not, and
/// what is in `out` then has no meaning.
#[pyfunction]
#[pyo3(signature = (images, out, dtype, n, before, after, stages, unit, /))]
pub(super) fn augment(
    py: Python<'_>,
    images: Bytes<'_, '_>,
    out: Bytes<'_, '_>,
    dtype: &str,
    n: usize,
    before: Size,
    after: Size,
    stages: Stages<'_>,
    unit: bool,
) -> PyResult<bool> {
    let (before, after, stored) = (shape(before), shape(after), stored(dtype)?);
    let input = Memory::of(images, "images", elements(n, before), stored.size())?;
    let chain = chain(&stages, n, before, after, stored)?;
    let result = chain.result();
    let same = before == after && result == stored;
    let output = Memory::output(out, elements(n, after), result.size(), input, same)?;
    // SAFETY: the memory was checked: dense, aligned, of that size, apart or the same where it may be; the caller holds it.
    Ok(py.detach(|| unsafe { chain.run({ input }.ptr, { output }.ptr, unit, Isa::current()) }))
}

/// Does the stages that move pixels to masks of `channels` elements of `size` bytes per pixel.
#[pyfunction]
#[pyo3(signature = (masks, out, size, n, before, after, channels, planar, fill, stages, /))]
pub(super) fn augment_masks(
    py: Python<'_>,
    masks: Bytes<'_, '_>,
    out: Bytes<'_, '_>,
    size: usize,
    n: usize,
    before: Size,
    after: Size,
    channels: usize,
    planar: [bool; 2],
    fill: u64,
    stages: Stages<'_>,
) -> PyResult<()> {
    let (before, after) = (shape(before), shape(after));
    let input = Memory::of(masks, "masks", elements(n, Shape { c: channels, ..before }), size)?;
    let same = before == after && planar[0] == planar[1];
    let output = Memory::output(out, elements(n, Shape { c: channels, ..after }), size, input, same)?;
    let chain = chain(&stages, n, before, after, Stored::F32)?;
    macro_rules! run {
        ($E:ty) => {{
            let fill = fill as $E;
            // SAFETY: as in `augment`.
            py.detach(|| unsafe {
                chain.run_masks::<$E>({ input }.ptr.cast(), { output }.ptr.cast(), planar, channels, fill);
            });
        }};
    }
    match size {
        1 => run!(u8),
        2 => run!(u16),
        4 => run!(u32),
        8 => run!(u64),
        _ => return Err(PyValueError::new_err(format!("masks must have elements of 1, 2, 4 or 8 bytes, got {size}"))),
    }
    Ok(())
}

/// Mixes each sample with its partner inside its box.
#[pyfunction]
#[pyo3(signature = (x, out, dtype, n, size, partner, weight, boxes, /))]
pub(super) fn augment_mix(
    py: Python<'_>,
    x: Bytes<'_, '_>,
    out: Bytes<'_, '_>,
    dtype: &str,
    n: usize,
    size: Size,
    partner: PyReadonlyArray1<'_, i64>,
    weight: PyReadonlyArray1<'_, f64>,
    boxes: PyReadonlyArray2<'_, i64>,
) -> PyResult<()> {
    let shape = shape(size);
    let bytes = match dtype {
        "uint8" => 1,
        "float16" | "bfloat16" | "uint16" => 2,
        "float32" | "uint32" => 4,
        "float64" | "uint64" => 8,
        _ => return Err(PyValueError::new_err(format!("dtype must be a float or unsigned type, got {dtype}"))),
    };
    let input = Memory::of(x, "images", elements(n, shape), bytes)?;
    let output = Memory::output(out, elements(n, shape), bytes, input, true)?;
    let (partner, weight, boxes) = (partner.as_array(), weight.as_array(), boxes.as_array());
    if partner.len() != n || weight.len() != n || boxes.shape() != [n, 4] {
        return Err(PyValueError::new_err(format!(
            "partner, weight and boxes must have a row for each of {n} samples"
        )));
    }
    let partner: Vec<usize> = partner.iter().map(|&j| usize::try_from(j).unwrap_or(usize::MAX)).collect();
    let weight = weight.to_vec();
    let limits = [shape.h, shape.w, shape.h, shape.w];
    let mut all = Vec::with_capacity(n);
    for row in boxes.rows() {
        let mut edges = [0; 4];
        for (k, edge) in edges.iter_mut().enumerate() {
            let limit = limits[k];
            *edge = usize::try_from(row[k])
                .ok()
                .filter(|&edge| edge <= limit)
                .ok_or_else(|| PyValueError::new_err("boxes must lie in the picture, as (top, left, bottom, right)"))?;
        }
        all.push(edges);
    }
    if partner.iter().any(|&j| j >= n) || weight.iter().any(|w| !(0.0..=1.0).contains(w)) {
        return Err(PyValueError::new_err(format!("partner must be from 0 to {n} - 1 and weight from 0 to 1")));
    }
    let words = dtype.starts_with("uint") && bytes > 1;
    if words && weight.iter().any(|&w| w != 0.0 && w != 1.0) {
        return Err(PyValueError::new_err("weight must be 0 or 1 for masks of whole numbers"));
    }
    macro_rules! run {
        ($E:ty) => {
            // SAFETY: as in `augment`.
            py.detach(|| unsafe {
                let (x, y) = ({ input }.ptr.cast::<$E>(), { output }.ptr.cast::<$E>());
                mix::mix::<$E>(x, y, n, shape, &partner, &weight, &all, Isa::current());
            })
        };
    }
    match dtype {
        "uint8" => run!(u8),
        "float16" => run!(F16),
        "bfloat16" => run!(Bf16),
        "float32" => run!(f32),
        "float64" => run!(f64),
        "uint16" => run!(u16),
        "uint32" => run!(u32),
        _ => run!(u64),
    }
    Ok(())
}

/// The index of the first element that is not in 0 .. 1.
#[pyfunction]
#[pyo3(signature = (images, dtype, /))]
pub(super) fn outside_unit(py: Python<'_>, images: Bytes<'_, '_>, dtype: &str) -> PyResult<Option<usize>> {
    let size = stored(dtype)?.size();
    let memory = Memory::of(images, "images", Some(images.len() / size), size)?;
    if memory.bytes == 0 {
        return Ok(None);
    }
    macro_rules! look {
        ($E:ty) => {
            // SAFETY: the memory was checked; every bit pattern is a number; the caller holds it.
            py.detach(|| unsafe {
                let memory = { memory };
                let x = std::slice::from_raw_parts(memory.ptr.cast::<$E>(), memory.bytes / size_of::<$E>());
                ieee(|| first_outside_unit(x))
            })
        };
    }
    Ok(match stored(dtype)? {
        Stored::U8 => None,
        Stored::F32 => look!(f32),
        Stored::F16 => look!(F16),
        Stored::Bf16 => look!(Bf16),
    })
}

/// What the numbers of each sample are drawn with.
fn counters(epoch: u64, indices: &PyReadonlyArray1<'_, i64>, transform: u32) -> PyResult<Vec<[u32; 3]>> {
    let (Ok(epoch), Ok(transform)) = (u32::try_from(epoch), u16::try_from(transform)) else {
        return Err(PyValueError::new_err(format!(
            "epoch must be below 2**32 and the number of a transform below 2**16, got {epoch} and {transform}"
        )));
    };
    let counter = |&index: &i64| match u64::try_from(index) {
        Ok(i) if i >> 48 == 0 => Ok(draw::counter(i, epoch, transform)),
        _ => Err(PyValueError::new_err(format!("indices must be from 0 to 2**48 - 1, got {index}"))),
    };
    indices.as_array().iter().map(counter).collect()
}

fn rows(py: Python<'_>, n: usize, width: usize, values: Vec<f64>) -> PyResult<Bound<'_, PyArray2<f64>>> {
    PyArray1::from_vec(py, values).reshape([n, width])
}

/// Numbers `first .. first + count` of each sample, uniform on [0, 1).
#[pyfunction]
#[pyo3(signature = (seed, epoch, indices, transform, first, count, /))]
pub(super) fn uniforms<'py>(
    py: Python<'py>,
    seed: u64,
    epoch: u64,
    indices: PyReadonlyArray1<'py, i64>,
    transform: u32,
    first: u32,
    count: usize,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let counters = counters(epoch, &indices, transform)?;
    let key = draw::key(seed);
    let mut values = vec![0.0; counters.len() * count];
    if count > 0 {
        ieee(|| {
            for (row, &counter) in values.chunks_exact_mut(count).zip(&counters) {
                draw::uniforms(key, counter, first, row);
            }
        });
    }
    rows(py, counters.len(), count, values)
}

/// What the numbers per element are drawn with: two words of the key and three of the counter, of each sample.
#[pyfunction]
#[pyo3(signature = (seed, epoch, indices, transform, /))]
pub(super) fn draw_words<'py>(
    py: Python<'py>,
    seed: u64,
    epoch: u64,
    indices: PyReadonlyArray1<'py, i64>,
    transform: u32,
) -> PyResult<Bound<'py, PyArray2<f64>>> {
    let counters = counters(epoch, &indices, transform)?;
    let key = draw::key(seed);
    let values = counters.iter().flat_map(|counter| key.into_iter().chain(*counter)).map(f64::from).collect();
    rows(py, counters.len(), 5, values)
}

/// A number of the beta distribution for each sample, from its blocks from `first` on.
#[pyfunction]
#[pyo3(signature = (seed, epoch, indices, transform, first, a, b, /))]
pub(super) fn draw_beta<'py>(
    py: Python<'py>,
    seed: u64,
    epoch: u64,
    indices: PyReadonlyArray1<'py, i64>,
    transform: u32,
    first: u32,
    a: f64,
    b: f64,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let counters = counters(epoch, &indices, transform)?;
    let key = draw::key(seed);
    let values = ieee(|| counters.iter().map(|&counter| draw::beta(key, counter, first, a, b)).collect());
    Ok(PyArray1::from_vec(py, values))
}

/// A function of the `libm` crate of each number: the same bits on every platform.
#[pyfunction]
#[pyo3(signature = (name, x, /))]
pub(super) fn elementwise<'py>(
    py: Python<'py>,
    name: &str,
    x: PyReadonlyArray1<'py, f64>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let function = match name {
        "exp" => libm::exp,
        "log" => libm::log,
        "sin" => libm::sin,
        "cos" => libm::cos,
        "tan" => libm::tan,
        _ => return Err(PyValueError::new_err(format!("there is no function {name:?}"))),
    };
    Ok(PyArray1::from_vec(py, ieee(|| x.as_array().iter().map(|&x| function(x)).collect())))
}
