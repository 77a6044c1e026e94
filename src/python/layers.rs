//! Normalisation, dropout, losses and activations, as `python/ironstep/functional` calls them: with dense arrays.

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::array::output;
use super::dense::{Dense, Store, values};
use crate::activation::Activation;
use crate::dropout::{self, Draw, Units};
use crate::float::{Bf16, DType, Element, F16, Real};
use crate::loss::{self, BinaryCrossEntropy, CrossEntropy, Pairs, SquaredError, Target};
use crate::norm::channels::{self, Sets, Through};
use crate::norm::rows;
use crate::parallel;
use crate::philox::{self, Stream};
use crate::reduce;
use crate::simd::Isa;

/// Runs the body with `$E` as the element type of that name.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $E = f32;
                $body
            }
            DType::F64 => {
                type $E = f64;
                $body
            }
            DType::F16 => {
                type $E = F16;
                $body
            }
            DType::Bf16 => {
                type $E = Bf16;
                $body
            }
        }
    };
}

type Array<'a, 'py> = &'a Bound<'py, PyAny>;
type Numbers<'py> = Bound<'py, PyArray1<f64>>;

/// Without the interpreter, in the IEEE floating-point environment.
fn native<R: Send>(py: Python<'_>, f: impl FnOnce() -> R + Send) -> R {
    py.detach(|| parallel::ieee(f))
}

fn product(shape: &[usize], what: &str) -> PyResult<usize> {
    /// An empty array has no memory that would limit its axes; what is kept for each set or column still needs some.
    const EMPTY: usize = 1 << 28;
    let axes = shape.iter().try_fold(1usize, |all, &n| all.checked_mul(n.max(1)));
    let empty = shape.contains(&0);
    match axes {
        Some(axes) if !empty => Ok(axes),
        Some(axes) if axes <= EMPTY => Ok(0),
        _ => Err(PyValueError::new_err(format!("{what} has axes that are too long, {shape:?}"))),
    }
}

fn slice<'a>(array: &'a PyReadonlyArray1<'_, f64>, name: &str, len: usize) -> PyResult<&'a [f64]> {
    array
        .as_slice()
        .ok()
        .filter(|slice| slice.len() == len)
        .ok_or_else(|| PyValueError::new_err(format!("{name} must be a contiguous float64 array of {len} elements")))
}

/// What a weight in memory is to the kernels: `offset + weight`, in the type that is computed in.
fn weights<T: Real>(weight: Option<Array<'_, '_>>, len: usize, offset: f64) -> PyResult<Vec<T>> {
    let mut values = values::<T>(weight, "weight", len, 1.0)?;
    if offset != 0.0 && weight.is_some() {
        let offset = T::from_f64(offset);
        parallel::ieee(|| {
            for w in &mut values {
                *w = offset + *w;
            }
        });
    }
    Ok(values)
}

/// Layer (`center`) or RMS normalisation of rows; returns the means (if `center`) and the variances or mean squares.
#[pyfunction]
#[pyo3(signature = (x, residual, hidden, y, shape, weight, bias, offset, eps, center, /))]
pub(super) fn norm_rows<'py>(
    py: Python<'py>,
    x: Array<'_, 'py>,
    residual: Option<Array<'_, 'py>>,
    hidden: Option<Array<'_, 'py>>,
    y: Array<'_, 'py>,
    shape: [usize; 3],
    weight: Option<Array<'_, 'py>>,
    bias: Option<Array<'_, 'py>>,
    offset: f64,
    eps: f64,
    center: bool,
) -> PyResult<(Option<Numbers<'py>>, Numbers<'py>)> {
    let len = product(&shape, "input")?;
    let shape = rows::Shape { rows: shape[0], groups: shape[1], size: shape[2] };
    let x = Dense::input(x, "input", len, None)?;
    let dtype = Some(x.dtype);
    let y = Dense::output(y, "out", len, dtype)?;
    let residual = residual.map(|r| Dense::input(r, "residual", len, dtype)).transpose()?;
    let hidden = hidden.map(|h| Dense::output(h, "hidden", len, dtype)).transpose()?;
    y.apart_from([&x].into_iter().chain(&residual), true)?;
    if let Some(hidden) = &hidden {
        hidden.apart_from([&x].into_iter().chain(&residual), true)?;
        y.apart_from([hidden], false)?;
    }
    with_element!(x.dtype, E => {
        let weight = weights::<<E as Element>::Acc>(weight, shape.row(), offset)?;
        let bias = values::<<E as Element>::Acc>(bias, "bias", shape.row(), -0.0)?;
        let mut mean = vec![0.0; if center { shape.sets() } else { 0 }];
        let mut var = vec![0.0; shape.sets()];
        native(py, || {
            let f = rows::Forward::<E> {
                x: x.as_ptr(),
                residual: residual.as_ref().zip(hidden.as_ref()).map(|(r, h)| (r.as_ptr(), h.as_mut_ptr())),
                y: y.as_mut_ptr(),
                weight: &weight,
                bias: &bias,
                eps,
            };
            // SAFETY: all arrays were checked: dense, of that type and size, apart or the same where they may be; the
            // caller holds them.
            unsafe {
                if center {
                    rows::forward::<E, true>(f, shape, &mut mean, &mut var, Isa::current());
                } else {
                    rows::forward::<E, false>(f, shape, &mut mean, &mut var, Isa::current());
                }
            }
        });
        Ok((center.then(|| PyArray1::from_vec(py, mean)), PyArray1::from_vec(py, var)))
    })
}

/// The backward call of [`norm_rows`]: writes `dx`, and `dweight` and `dbias` where given.
#[pyfunction]
#[pyo3(signature = (x, dy, dh, dx, shape, weight, offset, mean, rstd, dweight, dbias, /))]
pub(super) fn norm_rows_backward<'py>(
    py: Python<'py>,
    x: Array<'_, 'py>,
    dy: Array<'_, 'py>,
    dh: Option<Array<'_, 'py>>,
    dx: Array<'_, 'py>,
    shape: [usize; 3],
    weight: Option<Array<'_, 'py>>,
    offset: f64,
    mean: Option<PyReadonlyArray1<'py, f64>>,
    rstd: PyReadonlyArray1<'py, f64>,
    dweight: Option<Array<'_, 'py>>,
    dbias: Option<Array<'_, 'py>>,
) -> PyResult<()> {
    let len = product(&shape, "input")?;
    let shape = rows::Shape { rows: shape[0], groups: shape[1], size: shape[2] };
    let x = Dense::input(x, "input", len, None)?;
    let dtype = Some(x.dtype);
    let dy = Dense::input(dy, "grad_output", len, dtype)?;
    let dh = dh.map(|dh| Dense::input(dh, "grad_hidden", len, dtype)).transpose()?;
    let dx = Dense::output(dx, "out.input", len, dtype)?;
    let dweight = dweight.map(|d| Store::new(d, "out.weight", shape.row())).transpose()?;
    let dbias = dbias.map(|d| Store::new(d, "out.bias", shape.row())).transpose()?;
    let inputs = || [&x, &dy].into_iter().chain(&dh);
    dx.apart_from(inputs(), true)?;
    let mean_values = mean.as_ref().map(|mean| slice(mean, "mean", shape.sets())).transpose()?;
    let rstd = slice(&rstd, "rstd", shape.sets())?;
    with_element!(x.dtype, E => {
        type T = <E as Element>::Acc;
        let weight = weights::<T>(weight, shape.row(), offset)?;
        let params = native(py, || {
            let b = rows::Backward::<E> {
                x: x.as_ptr(),
                dy: dy.as_ptr(),
                dh: dh.as_ref().map(Dense::as_ptr),
                dx: dx.as_mut_ptr(),
                weight: &weight,
                mean: mean_values.unwrap_or_default(),
                rstd,
            };
            // SAFETY: as in `norm_rows`.
            unsafe {
                if mean_values.is_some() {
                    rows::backward::<E, true>(b, shape, Isa::current())
                } else {
                    rows::backward::<E, false>(b, shape, Isa::current())
                }
            }
        });
        put_params::<T>(dweight.as_ref(), dbias.as_ref(), params.iter().map(|p| p[0]), params.iter().map(|p| p[1]))
    })
}

fn put_params<T: Real>(
    dweight: Option<&Store<'_, '_>>,
    dbias: Option<&Store<'_, '_>>,
    weight: impl Iterator<Item = f64>,
    bias: impl Iterator<Item = f64>,
) -> PyResult<()> {
    if let Some(store) = dweight {
        store.put::<T>(weight)?;
    }
    if let Some(store) = dbias {
        store.put::<T>(bias)?;
    }
    Ok(())
}

/// (samples, channels, places), channels last, groups or 0 for a batch.
type ChannelShape = ([usize; 3], bool, usize);

fn channel_shape((shape, last, groups): ChannelShape) -> PyResult<channels::Shape> {
    product(&shape, "input")?;
    let [n, c, s] = shape;
    if groups != 0 && c % groups != 0 {
        return Err(PyValueError::new_err(format!("the {c} channels must be a multiple of num_groups, got {groups}")));
    }
    let sets = if groups == 0 { Sets::Batch } else { Sets::Groups(groups) };
    Ok(channels::Shape { n, c, s, last, sets })
}

/// Batch (`groups` 0) or group normalisation, or the statistics alone (no `y`); returns mean and m2 of each set. With given
/// statistics (mean and `1 / sqrt(var + eps)`) it normalises with those and returns nothing.
#[pyfunction]
#[pyo3(signature = (x, y, shape, weight, bias, eps, given, /))]
pub(super) fn norm_channels<'py>(
    py: Python<'py>,
    x: Array<'_, 'py>,
    y: Option<Array<'_, 'py>>,
    shape: ChannelShape,
    weight: Option<Array<'_, 'py>>,
    bias: Option<Array<'_, 'py>>,
    eps: f64,
    given: Option<(PyReadonlyArray1<'py, f64>, PyReadonlyArray1<'py, f64>)>,
) -> PyResult<Option<(Numbers<'py>, Numbers<'py>)>> {
    let shape = channel_shape(shape)?;
    let x = Dense::input(x, "input", shape.len(), None)?;
    let y = y.map(|y| Dense::output(y, "out", shape.len(), Some(x.dtype))).transpose()?;
    if let Some(y) = &y {
        y.apart_from([&x], true)?;
    }
    let given = given
        .as_ref()
        .map(|(mean, rstd)| Ok::<_, PyErr>((slice(mean, "mean", shape.count())?, slice(rstd, "rstd", shape.count())?)))
        .transpose()?;
    with_element!(x.dtype, E => {
        let weight = weights::<<E as Element>::Acc>(weight, shape.c, 0.0)?;
        let bias = values::<<E as Element>::Acc>(bias, "bias", shape.c, -0.0)?;
        let moments = native(py, || {
            let isa = Isa::current();
            // SAFETY: as in `norm_rows`.
            unsafe {
                let Some(y) = y else {
                    return Some(channels::stats::<E>(x.as_ptr(), shape, isa));
                };
                let f = channels::Forward::<E> { x: x.as_ptr(), y: y.as_mut_ptr(), weight: &weight, bias: &bias, eps };
                if let Some((mean, rstd)) = given {
                    channels::apply(f, shape, mean, rstd, isa);
                    return None;
                }
                Some(channels::forward(f, shape, isa))
            }
        });
        Ok(moments.map(|moments| {
            let numbers = |f: fn(&channels::Moments) -> f64| PyArray1::from_iter(py, moments.iter().map(f));
            (numbers(|m| m.mean), numbers(|m| m.m2))
        }))
    })
}

/// The backward call of [`norm_channels`]; returns sum(dy) and sum(dy xh) of each channel. No `dx`: those alone.
///
/// `shared`: the sums of all inputs and the number of their elements; `constant`: the statistics do not depend on `x`.
#[pyfunction]
#[pyo3(signature = (x, dy, dx, shape, weight, mean, rstd, constant, shared, dweight, dbias, /))]
pub(super) fn norm_channels_backward<'py>(
    py: Python<'py>,
    x: Array<'_, 'py>,
    dy: Array<'_, 'py>,
    dx: Option<Array<'_, 'py>>,
    shape: ChannelShape,
    weight: Option<Array<'_, 'py>>,
    mean: PyReadonlyArray1<'py, f64>,
    rstd: PyReadonlyArray1<'py, f64>,
    constant: bool,
    shared: Option<(PyReadonlyArray1<'py, f64>, PyReadonlyArray1<'py, f64>, f64)>,
    dweight: Option<Array<'_, 'py>>,
    dbias: Option<Array<'_, 'py>>,
) -> PyResult<(Numbers<'py>, Numbers<'py>)> {
    let shape = channel_shape(shape)?;
    let x = Dense::input(x, "input", shape.len(), None)?;
    let dtype = Some(x.dtype);
    let dy = Dense::input(dy, "grad_output", shape.len(), dtype)?;
    let dx = dx.map(|dx| Dense::output(dx, "out.input", shape.len(), dtype)).transpose()?;
    let dweight = dweight.map(|d| Store::new(d, "out.weight", shape.c)).transpose()?;
    let dbias = dbias.map(|d| Store::new(d, "out.bias", shape.c)).transpose()?;
    let inputs = || [&x, &dy].into_iter();
    if let Some(dx) = &dx {
        dx.apart_from(inputs(), true)?;
    }
    let (mean, rstd) = (slice(&mean, "mean", shape.count())?, slice(&rstd, "rstd", shape.count())?);
    let shared = shared
        .as_ref()
        .map(|(grad, grad_xhat, count)| {
            let (grad, grad_xhat) = (slice(grad, "sums.grad", shape.c)?, slice(grad_xhat, "sums.grad_xhat", shape.c)?);
            let pairs: Vec<[f64; 2]> = grad.iter().zip(grad_xhat).map(|(&a, &b)| [a, b]).collect();
            Ok::<_, PyErr>((pairs, *count))
        })
        .transpose()?;
    let through = match &shared {
        _ if constant => Through::Constant,
        Some((pairs, count)) => Through::Shared(pairs, *count),
        None => Through::Own,
    };
    with_element!(x.dtype, E => {
        type T = <E as Element>::Acc;
        let weight = weights::<T>(weight, shape.c, 0.0)?;
        let sums = native(py, || {
            let b = channels::Backward::<E> {
                x: x.as_ptr(),
                dy: dy.as_ptr(),
                dx: dx.as_ref().map_or(std::ptr::null_mut(), Dense::as_mut_ptr),
                weight: &weight,
                mean,
                rstd,
                through,
            };
            // SAFETY: as in `norm_rows`.
            unsafe {
                if dx.is_some() {
                    channels::backward(b, shape, Isa::current())
                } else {
                    channels::sums(b, shape, Isa::current())
                }
            }
        });
        put_params::<T>(dweight.as_ref(), dbias.as_ref(), sums.iter().map(|s| s[1]), sums.iter().map(|s| s[0]))?;
        let numbers = |k: usize| PyArray1::from_iter(py, sums.iter().map(|s| s[k]));
        Ok((numbers(0), numbers(1)))
    })
}

/// Dropout of single elements (`units` `None`), or of units: `(units, inner, columns)`, see [`Units`].
#[pyfunction]
#[pyo3(signature = (x, y, p, seed, stream, offset, units, /))]
pub(super) fn dropout_draw(
    py: Python<'_>,
    x: Array<'_, '_>,
    y: Array<'_, '_>,
    p: f64,
    seed: u64,
    stream: u64,
    offset: u64,
    units: Option<(usize, usize, usize)>,
) -> PyResult<()> {
    let (x, y) = one_to_one(x, y)?;
    let draw = Draw { stream: Stream { seed, stream }, offset, p };
    let count = units.map_or(x.len, |(count, ..)| count);
    if u128::from(offset) + count as u128 > 1 << 64 {
        return Err(PyValueError::new_err(format!(
            "offset must leave room for {count} random numbers below 2**64, got {offset}"
        )));
    }
    if x.len == 0 {
        return Ok(());
    }
    if let Some((count, inner, columns)) = units
        && (count.checked_mul(inner) != Some(x.len) || columns == 0 || count % columns != 0)
    {
        return Err(PyValueError::new_err("the units must make up the array"));
    }
    native(py, || {
        let isa = Isa::current();
        with_element!(x.dtype, E => {
            // SAFETY: as in `norm_rows`.
            unsafe {
                match units {
                    None => dropout::elements::<E>(x.as_ptr(), y.as_mut_ptr(), x.len, draw, isa),
                    Some((count, inner, columns)) => {
                        let mask = draw.mask(count);
                        let units =
                            if columns == 1 { Units::Runs(inner) } else { Units::Columns { inner, units: columns } };
                        dropout::units::<E>(x.as_ptr(), y.as_mut_ptr(), x.len, &mask, units, p, isa);
                    }
                }
            }
        });
    });
    Ok(())
}

/// Dropout by a given mask, one byte for each element.
#[pyfunction]
#[pyo3(signature = (x, y, p, mask, /))]
pub(super) fn dropout_mask(
    py: Python<'_>,
    x: Array<'_, '_>,
    y: Array<'_, '_>,
    p: f64,
    mask: PyReadonlyArray1<'_, u8>,
) -> PyResult<()> {
    let (x, y) = one_to_one(x, y)?;
    let mask = mask.as_slice().ok().filter(|mask| mask.len() == x.len);
    let Some(mask) = mask else {
        return Err(PyValueError::new_err(format!("mask must be contiguous, with {} elements", x.len)));
    };
    native(py, || {
        with_element!(x.dtype, E => {
            // SAFETY: as in `norm_rows`.
            unsafe { dropout::units::<E>(x.as_ptr(), y.as_mut_ptr(), x.len, mask, Units::Runs(1), p, Isa::current()) }
        });
    });
    Ok(())
}

fn one_to_one(x: Array<'_, '_>, y: Array<'_, '_>) -> PyResult<(Dense, Dense)> {
    let len = len_of(x)?;
    let x = Dense::input(x, "input", len, None)?;
    let y = Dense::output(y, "out", len, Some(x.dtype))?;
    y.apart_from([&x], true)?;
    Ok((x, y))
}

/// `array.size`
fn len_of(array: Array<'_, '_>) -> PyResult<usize> {
    array.getattr("size")?.extract()
}

/// Softmax cross-entropy; returns the loss of each row, and writes the gradient where given.
#[pyfunction]
#[pyo3(signature = (x, shape, classes, probabilities, weight, ignore_index, on, off, scale, dx, /))]
pub(super) fn cross_entropy<'py>(
    py: Python<'py>,
    x: Array<'_, 'py>,
    shape: [usize; 2],
    classes: Option<PyReadonlyArray1<'py, i64>>,
    probabilities: Option<Array<'_, 'py>>,
    weight: Option<Array<'_, 'py>>,
    ignore_index: i64,
    on: f64,
    off: f64,
    scale: PyReadonlyArray1<'py, f64>,
    dx: Option<Array<'_, 'py>>,
) -> PyResult<Numbers<'py>> {
    let len = product(&shape, "input")?;
    let [rows, n] = shape;
    let x = Dense::input(x, "input", len, None)?;
    let dx = dx.map(|dx| Dense::output(dx, "out", len, Some(x.dtype))).transpose()?;
    let wide = Some(x.dtype.compute());
    let probabilities = probabilities.map(|t| Dense::input(t, "target", len, wide)).transpose()?;
    if let Some(dx) = &dx {
        dx.apart_from([&x], true)?;
        dx.apart_from(&probabilities, false)?;
    }
    let scale = scale
        .as_slice()
        .ok()
        .filter(|scale| scale.len() == 1 || scale.len() == rows)
        .ok_or_else(|| PyValueError::new_err("grad_output must be one number or one for each row"))?;
    // A copy: another thread may write the array while the core relies on the check.
    let classes = classes.map(|classes| classes.as_slice().map(<[i64]>::to_vec)).transpose()?;
    if let Some(classes) = &classes {
        let valid = |&t: &i64| t == ignore_index || usize::try_from(t).is_ok_and(|t| t < n);
        if classes.len() != rows {
            return Err(PyValueError::new_err(format!("target must have {rows} elements, got {}", classes.len())));
        }
        if let Some(i) = classes.iter().position(|t| !valid(t)) {
            return Err(PyValueError::new_err(format!(
                "target must be from 0 to {} (the number of classes less one) or ignore_index = {ignore_index}, got {} at \
                 index {i}",
                n as i64 - 1,
                classes[i]
            )));
        }
    }
    with_element!(x.dtype, E => {
        type T = <E as Element>::Acc;
        let weight = weight.map(|weight| values::<T>(Some(weight), "weight", n, 1.0)).transpose()?;
        let target = match (&classes, &probabilities) {
            (Some(classes), _) => Target::Classes(classes, ignore_index),
            (None, Some(t)) => Target::Probabilities(t.as_ptr::<T>()),
            (None, None) => return Err(PyValueError::new_err("target must be given")),
        };
        let call = CrossEntropy::<E> {
            x: x.as_ptr(),
            rows,
            classes: n,
            target,
            weight: weight.as_deref(),
            on,
            off,
            dx: dx.as_ref().map(Dense::as_mut_ptr),
            scale,
        };
        // SAFETY: as in `norm_rows`; the classes were checked.
        Ok(PyArray1::from_vec(py, native(py, || unsafe { loss::cross_entropy(call, Isa::current()) })))
    })
}

/// A loss that is a sum over elements: "mse" or "bce". Returns the sum; writes the losses and the gradient where given.
#[pyfunction]
#[pyo3(signature = (kind, x, target, weight, pos_weight, upstream, scale, on, off, losses, dx, /))]
pub(super) fn pointwise_loss(
    py: Python<'_>,
    kind: &str,
    x: Array<'_, '_>,
    target: Array<'_, '_>,
    weight: Option<Array<'_, '_>>,
    pos_weight: Option<Array<'_, '_>>,
    upstream: Option<Array<'_, '_>>,
    scale: f64,
    on: f64,
    off: f64,
    losses: Option<Array<'_, '_>>,
    dx: Option<Array<'_, '_>>,
) -> PyResult<f64> {
    let len = len_of(x)?;
    let x = Dense::input(x, "input", len, None)?;
    let compute = Some(x.dtype.compute());
    let target = Dense::input(target, "target", len, compute)?;
    let wide = |array: Option<Array<'_, '_>>, name| array.map(|a| Dense::input(a, name, len, compute)).transpose();
    let (weight, pos_weight) = (wide(weight, "weight")?, wide(pos_weight, "pos_weight")?);
    let upstream = wide(upstream, "grad_output")?;
    let losses = losses.map(|a| Dense::output(a, "the losses", len, compute)).transpose()?;
    let dx = dx.map(|dx| Dense::output(dx, "out", len, Some(x.dtype))).transpose()?;
    let wides = || [&weight, &pos_weight, &upstream].into_iter().flatten();
    if let Some(dx) = &dx {
        dx.apart_from([&x, &target], true)?;
        dx.apart_from(wides().chain(&losses), false)?;
    }
    if let Some(losses) = &losses {
        losses.apart_from([&x, &target].into_iter().chain(wides()), false)?;
    }
    with_element!(x.dtype, E => {
        type T = <E as Element>::Acc;
        let pairs = Pairs::<E> {
            x: x.as_ptr(),
            target: target.as_ptr(),
            weight: weight.as_ref().map(Dense::as_ptr),
            pos_weight: pos_weight.as_ref().map(Dense::as_ptr),
            upstream: upstream.as_ref().map(Dense::as_ptr),
            scale,
            losses: losses.as_ref().map(Dense::as_mut_ptr),
            dx: dx.as_ref().map(Dense::as_mut_ptr),
            n: len,
        };
        let isa = Isa::current();
        // SAFETY: as in `norm_rows`.
        native(py, || unsafe {
            match kind {
                "mse" => Ok(loss::pointwise(SquaredError, Pairs { scale: 2.0 * pairs.scale, ..pairs }, isa)),
                "bce" => {
                    let rule = BinaryCrossEntropy { on: T::from_f64(on), off: T::from_f64(off) };
                    Ok(loss::pointwise(rule, pairs, isa))
                }
                _ => Err(PyValueError::new_err(format!("no loss {kind}"))),
            }
        })
    })
}

/// The sum of the squares of all elements.
#[pyfunction]
#[pyo3(signature = (x, /))]
pub(super) fn sum_of_squares(py: Python<'_>, x: Array<'_, '_>) -> PyResult<f64> {
    let x = Dense::input(x, "params", len_of(x)?, None)?;
    // SAFETY: as in `norm_rows`.
    Ok(native(py, || {
        with_element!(x.dtype, E => {
            // SAFETY: as in `norm_rows`.
            unsafe { loss::sum_of_squares::<E>(x.as_ptr(), x.len, Isa::current()) }
        })
    }))
}

/// The sum of some numbers by the binary tree over their index.
#[pyfunction]
#[pyo3(signature = (numbers, /))]
pub(super) fn tree_sum(numbers: PyReadonlyArray1<'_, f64>) -> PyResult<f64> {
    Ok(reduce::tree(&mut numbers.as_slice()?.to_vec()))
}

/// An activation (`relu`, `gelu`, `gelu_tanh`) of `x` into `y`, or with `dy` its gradient.
#[pyfunction]
#[pyo3(signature = (name, x, dy, y, /))]
pub(super) fn activation(
    py: Python<'_>,
    name: &str,
    x: Array<'_, '_>,
    dy: Option<Array<'_, '_>>,
    y: Array<'_, '_>,
) -> PyResult<()> {
    let f = match name {
        "relu" => Activation::Relu,
        "gelu" => Activation::Gelu,
        "gelu_tanh" => Activation::GeluTanh,
        _ => return Err(PyValueError::new_err(format!("no activation {name}"))),
    };
    apply(py, f, x, dy, y)
}

/// `factor * x` into `y`.
#[pyfunction]
#[pyo3(signature = (x, y, factor, /))]
pub(super) fn scale(py: Python<'_>, x: Array<'_, '_>, y: Array<'_, '_>, factor: f64) -> PyResult<()> {
    apply(py, Activation::Scale(factor), x, None, y)
}

fn apply(py: Python<'_>, f: Activation, x: Array<'_, '_>, dy: Option<Array<'_, '_>>, y: Array<'_, '_>) -> PyResult<()> {
    let (x, y) = one_to_one(x, y)?;
    let dy = dy.map(|dy| Dense::input(dy, "grad_output", x.len, Some(x.dtype))).transpose()?;
    y.apart_from(&dy, true)?;
    native(py, || {
        with_element!(x.dtype, E => {
            // SAFETY: as in `norm_rows`.
            unsafe {
                let dy = dy.as_ref().map(Dense::as_ptr);
                crate::activation::apply::<E>(f, x.as_ptr(), dy, y.as_mut_ptr(), x.len, Isa::current());
            }
        });
    });
    Ok(())
}

/// Refuses an array that cannot be written as a whole.
#[pyfunction]
#[pyo3(signature = (array, name, /))]
pub(super) fn check_output(array: Array<'_, '_>, name: &str) -> PyResult<()> {
    output(array, &|| name.to_string()).map(|_| ())
}

/// The four words of a block of Philox4x32.
#[pyfunction]
#[pyo3(name = "philox", signature = (counter, key, rounds = philox::ROUNDS))]
pub(super) fn philox_block(counter: [u32; 4], key: [u32; 2], rounds: u32) -> [u32; 4] {
    philox::block(counter, key, rounds)
}

/// The instruction set of all calls that are not told one; `None` for the best. For tests.
#[pyfunction]
#[pyo3(signature = (name, /))]
pub(super) fn use_instruction_set(name: Option<&str>) -> PyResult<()> {
    let isa = match name {
        None => None,
        Some(name) => Some(Isa::named(name).ok_or_else(|| {
            let all: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
            PyValueError::new_err(format!("the instruction set must be one of {}, got {name}", all.join(", ")))
        })?),
    };
    Isa::select(isa);
    Ok(())
}
