//! Schedules, and the order of a data set, for Python.

use std::cell::Cell;

use numpy::{IntoPyArray, PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::{PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::parallel::ieee;
use crate::philox;
use crate::schedule::{After, Cycle, PastEnd, Schedule, Shape};

impl From<PastEnd> for PyErr {
    fn from(past: PastEnd) -> PyErr {
        PyValueError::new_err(past.to_string())
    }
}

/// A schedule, from a nested tuple whose first part is its kind. The Python side checks the numbers.
#[pyclass(frozen, name = "Schedule", module = "ironstep._core")]
pub(super) struct PySchedule(Schedule);

#[pymethods]
impl PySchedule {
    #[new]
    fn new(spec: &Bound<'_, PyTuple>) -> PyResult<PySchedule> {
        parse(spec, DEPTH, &Cell::new(NODES)).map(PySchedule)
    }

    /// The value at a step.
    #[pyo3(signature = (step, /))]
    fn at(&self, step: f64) -> PyResult<f64> {
        Ok(ieee(|| self.0.at(step))?)
    }

    /// The values at many steps.
    #[pyo3(signature = (steps, out, /))]
    fn fill(
        &self,
        py: Python<'_>,
        steps: PyReadonlyArray1<'_, f64>,
        mut out: PyReadwriteArray1<'_, f64>,
    ) -> PyResult<()> {
        let (steps, out) = (steps.as_slice()?, out.as_slice_mut()?);
        if steps.len() != out.len() {
            return Err(PyValueError::new_err("steps and out must have the same length"));
        }
        Ok(py.detach(|| self.0.fill(steps, out))?)
    }
}

fn unknown(what: &str, text: &str) -> PyErr {
    PyValueError::new_err(format!("no {what} {text}"))
}

fn after(text: &str) -> PyResult<After> {
    Ok(match text {
        "hold" => After::Hold,
        "raise" => After::Raise,
        "extend" => After::Extend,
        _ => return Err(unknown("after", text)),
    })
}

fn shape(text: &str) -> PyResult<Shape> {
    Ok(match text {
        "linear" => Shape::Linear,
        "cosine" => Shape::Cosine,
        "sqrt" => Shape::Sqrt,
        "exponential" => Shape::Exponential,
        _ => return Err(unknown("shape", text)),
    })
}

fn cycle(text: &str) -> PyResult<Cycle> {
    Ok(match text {
        "triangular" => Cycle::Triangular,
        "triangular2" => Cycle::Triangular2,
        "exp_range" => Cycle::ExpRange,
        _ => return Err(unknown("mode", text)),
    })
}

/// How deep schedules may lie in each other: each level takes some of the stack.
const DEPTH: usize = 100;
/// How many schedules may be in one: `s * s`, again and again, doubles them each time.
const NODES: usize = 10_000;

fn parse(spec: &Bound<'_, PyTuple>, depth: usize, nodes: &Cell<usize>) -> PyResult<Schedule> {
    let left = nodes
        .get()
        .checked_sub(1)
        .ok_or_else(|| PyValueError::new_err(format!("a schedule must not be made of more than {NODES} others")))?;
    nodes.set(left);
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| PyValueError::new_err(format!("schedules must not lie more than {DEPTH} deep in each other")))?;
    let kind: String = spec.get_item(0)?.extract()?;
    let part = spec.get_slice(1, spec.len());
    let one = |i: usize| parse(part.get_item(i)?.cast::<PyTuple>()?, depth, nodes);
    let many = |i: usize| -> PyResult<Vec<Schedule>> {
        part.get_item(i)?.try_iter()?.map(|item| parse(item?.cast::<PyTuple>()?, depth, nodes)).collect()
    };
    Ok(match kind.as_str() {
        "constant" => Schedule::Constant(part.extract::<(f64,)>()?.0),
        "ramp" => {
            let (start, end, span, way, power, warp, then) =
                part.extract::<(f64, f64, f64, String, f64, f64, String)>()?;
            Schedule::Ramp { start, end, span, shape: shape(&way)?, power, warp, after: after(&then)? }
        }
        "decay" => {
            let (value, gamma, steps, staircase, limit) = part.extract()?;
            Schedule::Decay { value, gamma, steps, staircase, limit }
        }
        "steps" => {
            let (boundaries, values): (Vec<f64>, Vec<f64>) = part.extract()?;
            if values.len() != boundaries.len() + 1 {
                return Err(PyValueError::new_err("there must be one more value than boundaries"));
            }
            Schedule::Steps { boundaries, values }
        }
        "restarts" => {
            let (start, end, t_0, t_mult, decay, cycles, warp, endpoint, then) =
                part.extract::<(f64, f64, f64, f64, f64, u32, f64, bool, String)>()?;
            Schedule::Restarts { start, end, t_0, t_mult, decay, cycles, warp, endpoint, after: after(&then)? }
        }
        "inverse_power" => {
            let (value, timescale, power) = part.extract()?;
            Schedule::InversePower { value, timescale, power }
        }
        "cyclic" => {
            let (base, max, up, down, mode, gamma) = part.extract::<(f64, f64, f64, f64, String, f64)>()?;
            Schedule::Cyclic { base, max, up, down, cycle: cycle(&mode)?, gamma }
        }
        "join" => {
            let (schedules, boundaries): (_, Vec<f64>) = (many(0)?, part.get_item(1)?.extract()?);
            if schedules.len() != boundaries.len() + 1 {
                return Err(PyValueError::new_err("there must be one more schedule than boundaries"));
            }
            Schedule::Join { schedules, boundaries }
        }
        "product" => Schedule::Product(many(0)?),
        "sum" => Schedule::Sum(many(0)?),
        "shift" => Schedule::Shift(Box::new(one(0)?), part.get_item(1)?.extract()?),
        "per_epoch" => Schedule::PerEpoch(Box::new(one(0)?), part.get_item(1)?.extract()?),
        "warmup" => Schedule::Warmup {
            schedule: Box::new(one(0)?),
            steps: part.get_item(1)?.extract()?,
            start: part.get_item(2)?.extract()?,
            skip_start: part.get_item(3)?.extract()?,
            within: part.get_item(4)?.extract()?,
        },
        _ => return Err(unknown("schedule", &kind)),
    })
}

/// The numbers below `n` in random order, a function of seed and stream: uint32, or int64 if that is too small.
#[pyfunction]
#[pyo3(signature = (n, seed, stream, /))]
pub(super) fn permutation(py: Python<'_>, n: i64, seed: u64, stream: u64) -> PyResult<Bound<'_, PyAny>> {
    /// In the order of counting.
    fn count<T>(n: usize, to: impl Fn(usize) -> T) -> PyResult<Vec<T>> {
        let mut order = Vec::new();
        order.try_reserve_exact(n).map_err(|error| PyMemoryError::new_err(error.to_string()))?;
        order.extend((0..n).map(to));
        Ok(order)
    }
    let len = usize::try_from(n).map_err(|_| PyTypeError::new_err(format!("n must be at least 0, got {n}")))?;
    if u32::try_from(n).is_ok() {
        let mut order = count(len, |i| i as u32)?;
        py.detach(|| philox::shuffle(&mut order, seed, stream));
        return Ok(order.into_pyarray(py).into_any());
    }
    let mut order = count(len, |i| i as i64)?;
    py.detach(|| philox::shuffle(&mut order, seed, stream));
    Ok(order.into_pyarray(py).into_any())
}
