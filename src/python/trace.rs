//! Rules as programs for other machines: `crate::optim::trace` for Python.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::plan::Values;
use crate::optim::trace::{Op, Program};
use crate::optim::{self, Engine, Group, Passes, Traced};

/// Trace(rule, values, step, scalars)
///
/// A rule at one step, counted from 1, as a program for other machines; see `optim::trace`. `scalars` is the scalar state
/// before the step.
#[pyclass(frozen, module = "ironstep._core")]
pub(super) struct Trace {
    engine: &'static dyn Engine,
    hyper: Vec<f64>,
    step: u64,
    before: Vec<f64>,
    after: Vec<f64>,
    program: Program,
}

impl Trace {
    fn program(
        engine: &'static dyn Engine,
        hyper: &[f64],
        step: u64,
        scalars: &mut [f64],
        what: Traced,
    ) -> PyResult<Program> {
        engine.trace(&mut Group { step, maximize: false, hyper, scalars }, what).ok_or_else(|| {
            PyRuntimeError::new_err(format!("the rule {} is no straight line of operations", engine.name()))
        })
    }

    fn one_pass(&self) -> bool {
        self.engine.passes() == Passes::One
    }
}

/// Operations, outputs, constants.
type PyProgram<'py> = (Bound<'py, PyTuple>, Bound<'py, PyTuple>, Vec<f64>);

fn program_to_python<'py>(py: Python<'py>, program: &Program) -> PyResult<PyProgram<'py>> {
    let ops = program.ops.iter().map(|op| match *op {
        Op::Param => ("p",).into_pyobject(py),
        Op::Gradient => ("g",).into_pyobject(py),
        Op::State(k) => ("state", k).into_pyobject(py),
        Op::Constant(k) => ("constant", k).into_pyobject(py),
        Op::Zero => ("zero",).into_pyobject(py),
        Op::One => ("one",).into_pyobject(py),
        Op::Unary(name, a) => (name, a).into_pyobject(py),
        Op::Binary(name, a, b) => (name, a, b).into_pyobject(py),
    });
    let ops = PyTuple::new(py, ops.collect::<PyResult<Vec<_>>>()?)?;
    Ok((ops, PyTuple::new(py, &program.outputs)?, program.constants.clone()))
}

#[pymethods]
impl Trace {
    #[new]
    fn new(rule: &str, values: &Bound<'_, Values>, step: u64, scalars: Vec<f64>) -> PyResult<Trace> {
        let engine = optim::rule(rule).ok_or_else(|| PyValueError::new_err(format!("no rule named {rule:?}")))?;
        let hyper = values.get().0.clone();
        if hyper.len() != engine.hyper().len() || scalars.len() != engine.scalars().len() {
            return Err(PyValueError::new_err(format!("the hyperparameters must be {:?}", engine.hyper())));
        }
        let what = if engine.passes() == Passes::One { Traced::Update(None) } else { Traced::Measure };
        let mut after = scalars.clone();
        let program = Trace::program(engine, &hyper, step, &mut after, what)?;
        Ok(Trace { engine, hyper, step, before: scalars, after, program })
    }

    /// How many times the rule goes over the arrays, and when it writes its state.
    #[getter]
    fn passes(&self) -> &'static str {
        match self.engine.passes() {
            Passes::One => "one",
            Passes::StateThenParam => "state_then_param",
            Passes::MeasureThenBoth => "measure_then_both",
        }
    }

    /// The scalar state after the step.
    #[getter]
    fn scalars(&self) -> Vec<f64> {
        self.after.clone()
    }

    /// What a step does to an element, of a rule with one pass.
    #[getter]
    fn update<'py>(&self, py: Python<'py>) -> PyResult<Option<PyProgram<'py>>> {
        self.one_pass().then(|| program_to_python(py, &self.program)).transpose()
    }

    /// The first pass of a rule with two.
    #[getter]
    fn measure<'py>(&self, py: Python<'py>) -> PyResult<Option<PyProgram<'py>>> {
        (!self.one_pass()).then(|| program_to_python(py, &self.program)).transpose()
    }

    /// The second pass over a leaf with these norms.
    fn second<'py>(&self, py: Python<'py>, param_norm: f64, measured_norm: f64) -> PyResult<PyProgram<'py>> {
        let mut scalars = self.before.clone();
        let norms = Traced::Update(Some([param_norm, measured_norm]));
        program_to_python(py, &Trace::program(self.engine, &self.hyper, self.step, &mut scalars, norms)?)
    }
}
