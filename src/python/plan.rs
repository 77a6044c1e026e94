//! The plan of an optimiser: its arrays, checked once, and the quick look before each step that they are still what they
//! were.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Mutex, TryLockError};

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::array::{self, Header, Kind};
use super::overlap::{self, Outputs};
use super::tree::Tree;
use crate::float::DType;
use crate::optim::{self, Engine, Group, Leaf, MAX_STATES, NonFinite, Operands, Options, Tiled, Work};
use crate::parallel;
use crate::simd::Isa;

/// What an array's header said when it was checked.
struct Watch {
    array: Py<PyAny>,
    data: *mut u8,
    /// Kept alive, or another dtype could come to its address.
    descr: Py<PyAny>,
    flags: i32,
    /// Where shape and strides are in [`Watches::numbers`]; both have `ndim` elements.
    first: usize,
    ndim: usize,
}

// SAFETY: the address is compared, never followed.
unsafe impl Send for Watch {}
// SAFETY: likewise.
unsafe impl Sync for Watch {}

/// Arrays whose headers are compared before each step. Shapes and strides are in one vector, in the order of the look.
#[derive(Default)]
struct Watches {
    all: Vec<Watch>,
    numbers: Vec<isize>,
}

impl Watches {
    fn add(&mut self, array: &Bound<'_, PyAny>, header: &Header) {
        self.all.push(Watch {
            array: array.clone().unbind(),
            data: header.data,
            // SAFETY: the array's dtype is a live object, and the interpreter is attached.
            descr: unsafe { Bound::from_borrowed_ptr(array.py(), header.descr.cast()) }.unbind(),
            flags: header.watched_flags(),
            first: self.numbers.len(),
            ndim: header.shape.len(),
        });
        self.numbers.extend_from_slice(header.shape);
        self.numbers.extend_from_slice(header.strides);
    }

    fn are_current(&self, py: Python<'_>) -> bool {
        self.all.iter().all(|watch| {
            Header::of(watch.array.bind(py)).is_some_and(|header| {
                header.data == watch.data
                    && header.descr.addr() == watch.descr.as_ptr().addr()
                    && header.watched_flags() == watch.flags
                    && *header.shape == self.numbers[watch.first..watch.first + watch.ndim]
                    && *header.strides == self.numbers[watch.first + watch.ndim..watch.first + 2 * watch.ndim]
            })
        })
    }

    fn traverse(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.all.iter().try_for_each(|watch| {
            visit.call(&watch.array)?;
            visit.call(&watch.descr)
        })
    }
}

/// What the arrays of one leaf have in common, apart from the gradient.
struct Facts {
    len: usize,
    kind: Kind,
    /// As NumPy has it, for comparison with the gradient's.
    full_shape: Box<[isize]>,
    /// Without axes of length 1.
    shape: Box<[usize]>,
    /// All are C contiguous.
    c_contiguous: bool,
    /// All are aligned, in the machine's byte order, the state of the type that is computed in, and there is neither a
    /// master nor an average: if the gradient fits too, the leaf is a direct one.
    plain: bool,
    /// The strides that all have, in elements, if all are dense.
    dense: Option<Vec<isize>>,
    group: u32,
}

/// The arrays that belong to a parameter.
struct Companions {
    states: Vec<Vec<Py<PyAny>>>,
    /// For each leaf; `None` where the parameter needs none.
    master: Option<Vec<Option<Py<PyAny>>>>,
    ema: Option<Vec<Py<PyAny>>>,
    groups: Vec<u32>,
}

impl Companions {
    /// All arrays of leaf `i` but the parameter, with the name of what they are.
    fn of(&self, engine: &dyn Engine, i: usize) -> impl Iterator<Item = (&'static str, &Py<PyAny>)> {
        let states = engine.states().iter().zip(&self.states).map(move |(&name, arrays)| (name, &arrays[i]));
        let master = self.master(i).map(|array| ("master", array));
        let ema = self.ema.iter().map(move |arrays| ("ema", &arrays[i]));
        states.chain(master).chain(ema)
    }

    fn master(&self, i: usize) -> Option<&Py<PyAny>> {
        self.master.as_ref().and_then(|arrays| arrays[i].as_ref())
    }
}

struct Inner {
    tree: Tree,
    companions: Companions,
    facts: Vec<Facts>,
    params: Watches,
    /// State, masters and averages, looked at only once the caller has seen them.
    others: Watches,
    others_are_visible: bool,
    /// The owners of the memory of parameters that are views.
    roots: Watches,
    outputs: Outputs,
    /// For each output its leaf, and its number there: 0 for the parameter, then the companions.
    owners: Vec<(usize, usize)>,
    leaves: Vec<Leaf>,
    work: Work,
}

/// The arrays of an optimiser, checked once, and its steps.
#[pyclass(frozen, module = "ironstep._core")]
pub(super) struct Plan {
    engine: &'static dyn Engine,
    groups: usize,
    inner: Mutex<Inner>,
}

impl Inner {
    /// Checks everything. Nothing is changed.
    fn new(py: Python<'_>, engine: &dyn Engine, tree: Tree, companions: Companions) -> PyResult<Inner> {
        let n = tree.leaves().len();
        let mut inner = Inner {
            tree,
            companions,
            facts: Vec::with_capacity(n),
            params: Watches::default(),
            others: Watches::default(),
            others_are_visible: false,
            roots: Watches::default(),
            outputs: Outputs::default(),
            owners: Vec::with_capacity(n * (1 + engine.states().len())),
            leaves: Vec::with_capacity(n),
            work: Work::default(),
        };
        let mut intervals = Vec::with_capacity(n * (1 + engine.states().len()));
        let mut roots = HashSet::new();
        for i in 0..n {
            inner.add_leaf(py, engine, i, &mut intervals, &mut roots)?;
        }
        inner.work = Work::new(inner.facts.iter().map(|facts| facts.len));
        let outputs = Outputs::new(intervals.iter().map(|(bytes, _)| bytes.clone()), |a, b| {
            let (a_array, a_name) = inner.output(py, engine, a);
            let (b_array, b_name) = inner.output(py, engine, b);
            overlap::refuse_shared((&a_array, intervals[a].1), (&b_array, intervals[b].1), &a_name, &b_name)
        })?;
        inner.outputs = outputs;
        Ok(inner)
    }

    fn add_leaf(
        &mut self,
        py: Python<'_>,
        engine: &dyn Engine,
        i: usize,
        intervals: &mut Vec<(Range<usize>, usize)>,
        roots: &mut HashSet<*mut pyo3::ffi::PyObject>,
    ) -> PyResult<()> {
        let param = self.tree.leaves()[i].clone_ref(py).into_bound(py);
        let name = || self.tree.leaf_name(py, "params", i);
        let (header, kind) = array::output(&param, &name)?;
        let dense = header.dense_strides(kind.dtype.size());
        let mut facts = Facts {
            len: header.len(),
            kind,
            full_shape: header.shape.into(),
            shape: header.shape().into_iter().filter(|&n| n != 1).collect(),
            c_contiguous: header.is_c_contiguous(),
            plain: !kind.swapped
                && header.is_aligned()
                && self.companions.master(i).is_none()
                && self.companions.ema.is_none(),
            dense,
            group: self.companions.groups[i],
        };
        self.params.add(&param, &header);
        if let Some(root) = header.root(py)
            && roots.insert(root.as_ptr())
            && let Some(header) = Header::of(&root)
        {
            self.roots.add(&root, &header);
        }
        intervals.push((header.bytes(kind.dtype.size()), kind.dtype.size()));
        self.owners.push((i, 0));
        let compute = kind.dtype.compute();
        for (which, (what, array)) in self.companions.of(engine, i).enumerate() {
            let array = array.bind(py);
            let own_name = || self.tree.leaf_name(py, what, i);
            let (own, own_kind) = array::output(array, &own_name)?;
            let narrow =
                compute == DType::F64 && own_kind.dtype.compute() != DType::F64 && own_kind.dtype != DType::F32;
            if own.shape != header.shape || narrow || (what == "master" && own_kind.dtype != compute) {
                return Err(PyValueError::new_err(format!(
                    "{} must be {} of shape {} like {}, got {} of shape {}",
                    own_name(),
                    compute.name(),
                    array::shape_text(header.shape),
                    name(),
                    array::dtype_name(array),
                    array::shape_text(own.shape)
                )));
            }
            facts.c_contiguous &= own.is_c_contiguous();
            facts.plain &= own_kind == (Kind { dtype: compute, swapped: false }) && own.is_aligned();
            if facts.dense.is_some() && own.dense_strides(own_kind.dtype.size()) != facts.dense {
                facts.dense = None;
            }
            self.others.add(array, &own);
            intervals.push((own.bytes(own_kind.dtype.size()), own_kind.dtype.size()));
            self.owners.push((i, 1 + which));
        }
        self.leaves.push(Leaf {
            len: facts.len,
            rule: facts.group,
            // Replaced before the first step, when the gradient is known.
            operands: Operands::Direct {
                dtype: kind.dtype,
                p: header.data,
                g: std::ptr::null(),
                s: [std::ptr::null_mut(); MAX_STATES],
            },
        });
        self.facts.push(facts);
        Ok(())
    }

    /// An output by its number, and a function that gives its name.
    fn output<'py>(
        &self,
        py: Python<'py>,
        engine: &dyn Engine,
        output: usize,
    ) -> (Bound<'py, PyAny>, impl Fn() -> String) {
        let (leaf, which) = self.owners[output];
        let (what, array) = match which.checked_sub(1).and_then(|k| self.companions.of(engine, leaf).nth(k)) {
            Some((what, array)) => (what, array),
            None => ("params", &self.tree.leaves()[leaf]),
        };
        (array.bind(py).clone(), move || self.tree.leaf_name(py, what, leaf))
    }

    fn is_current(&self, py: Python<'_>) -> bool {
        self.tree.is_current(py)
            && self.params.are_current(py)
            && self.roots.are_current(py)
            && (!self.others_are_visible || self.others.are_current(py))
    }

    /// The plan for the arrays that the containers hold now, which must be like the old ones.
    fn again(&self, py: Python<'_>, engine: &dyn Engine) -> PyResult<Inner> {
        let clone = |arrays: &Vec<Py<PyAny>>| arrays.iter().map(|array| array.clone_ref(py)).collect::<Vec<_>>();
        let tree = self.tree.again(py, "params")?;
        let (old, new) = (self.tree.names(py, "params"), tree.names(py, "params"));
        if old != new {
            let differing =
                old.iter().find(|name| !new.contains(name)).or_else(|| new.iter().find(|name| !old.contains(name)));
            return Err(PyValueError::new_err(format!(
                "params must keep the structure that the optimiser was made for, but {} was added or removed; make a new \
                 optimiser, or use add_param_group",
                differing.map_or("a container", String::as_str)
            )));
        }
        for (i, facts) in self.facts.iter().enumerate() {
            let array = tree.leaves()[i].bind(py);
            let like = Header::of(array).is_some_and(|header| {
                *header.shape == *facts.full_shape
                    && Kind::of(py, &header).is_some_and(|kind| kind.dtype == facts.kind.dtype)
            });
            if !like {
                let got = Header::of(array).map_or_else(
                    || "something that is not an array".into(),
                    |header| format!("{} of shape {}", array::dtype_name(array), array::shape_text(header.shape)),
                );
                return Err(PyValueError::new_err(format!(
                    "{} must stay {} of shape {}, for which the optimiser was made, got {got}; put the old array back, or \
                     make a new optimiser",
                    new[i],
                    facts.kind.dtype.name(),
                    array::shape_text(&facts.full_shape)
                )));
            }
            if self.companions.master(i).is_some() && !array.is(&self.tree.leaves()[i]) {
                return Err(PyValueError::new_err(format!(
                    "{} was replaced by another array, which the next step would overwrite from the float32 copy of the old \
                     one; write into the old array and call sync_master() instead",
                    new[i]
                )));
            }
        }
        let companions = Companions {
            states: self.companions.states.iter().map(clone).collect(),
            master: self
                .companions
                .master
                .as_ref()
                .map(|arrays| arrays.iter().map(|array| array.as_ref().map(|array| array.clone_ref(py))).collect()),
            ema: self.companions.ema.as_ref().map(clone),
            groups: self.companions.groups.clone(),
        };
        let mut inner = Inner::new(py, engine, tree, companions)?;
        inner.others_are_visible = self.others_are_visible;
        Ok(inner)
    }

    /// The gradients of a step as arrays, with the plan as the arrays are then.
    fn gradients<'py>(
        &mut self,
        py: Python<'py>,
        engine: &dyn Engine,
        grads: Bound<'py, PyAny>,
    ) -> PyResult<Vec<Bound<'py, PyAny>>> {
        if !self.is_current(py) {
            *self = self.again(py, engine)?;
        }
        let mut arrays = Vec::with_capacity(self.facts.len());
        self.tree.flatten_into(grads, "grads", &mut arrays)?;
        // What is no array becomes one by Python code, which may do anything; so look again after it.
        if self.convert(py, &mut arrays)? && !self.is_current(py) {
            *self = self.again(py, engine)?;
        }
        Ok(arrays)
    }

    /// Makes arrays of gradients that are none. Says whether there was one.
    fn convert<'py>(&self, py: Python<'py>, grads: &mut [Bound<'py, PyAny>]) -> PyResult<bool> {
        let mut any = false;
        for (i, slot) in grads.iter_mut().enumerate() {
            if Header::of(slot).is_none() {
                *slot = array::gradient(slot, &|| self.tree.leaf_name(py, "grads", i))?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Checks the gradients and puts them beside the parameters. `logical`: the step takes norms, so elements must be walked
    /// in C order. `tiles`: more is wanted than a direct leaf can do.
    fn place_gradients<'py>(
        &mut self,
        py: Python<'py>,
        engine: &dyn Engine,
        grads: &[Bound<'py, PyAny>],
        logical: bool,
        tiles: bool,
    ) -> PyResult<()> {
        let (mut hint, mut seen) = (0, None);
        for (i, slot) in grads.iter().enumerate() {
            let name = || self.tree.leaf_name(py, "grads", i);
            let facts = &self.facts[i];
            let watch = &self.params.all[i];
            let Some(header) = Header::of(slot) else {
                return Err(PyTypeError::new_err(format!("{} must be a NumPy array", name())));
            };
            array::refuse_masked(slot, &name)?;
            let same_dtype = header.descr.addr() == watch.descr.as_ptr().addr();
            let kind = if same_dtype { facts.kind } else { array::kind_of(slot, &header, &name)? };
            if *header.shape != *facts.full_shape {
                return Err(PyValueError::new_err(format!(
                    "{} must have shape {} like {}, got {}",
                    name(),
                    array::shape_text(&facts.full_shape),
                    self.tree.leaf_name(py, "params", i),
                    array::shape_text(header.shape)
                )));
            }
            array::refuse_dangling(slot, &header, kind, &mut seen, &name)?;
            let size = kind.dtype.size();
            let flat = header.is_c_contiguous();
            let bytes =
                if flat { header.data.addr()..header.data.addr() + facts.len * size } else { header.bytes(size) };
            self.outputs.meets(&bytes, &mut hint, |output| {
                let (array, output_name) = self.output(py, engine, output);
                let output_size =
                    Header::of(&array).and_then(|header| Kind::of(py, &header)).map_or(1, |kind| kind.dtype.size());
                overlap::refuse_shared((&array, output_size), (slot, size), &output_name, &name)
            })?;

            // In C order if all are so; in memory order if all share another dense one and no sum is taken; else by strides.
            let c_order = flat && facts.c_contiguous;
            let shared = !c_order && !logical && facts.dense.is_some() && header.dense_strides(size) == facts.dense;
            let fits = kind == facts.kind && header.is_aligned();
            let leaf = &mut self.leaves[i];
            if (c_order || shared) && facts.plain && fits && !tiles {
                if let (true, Operands::Direct { g, s, .. }) = (c_order, &mut leaf.operands)
                    && (!g.is_null() && (engine.states().is_empty() || !s[0].is_null()))
                {
                    *g = header.data;
                    continue;
                }
                let start = |array: &Py<PyAny>| {
                    let array = array.bind(py);
                    let header = Header::of(array)?;
                    let kind = Kind::of(py, &header)?;
                    Some(header.view(kind, true).ptr)
                };
                let mut s = [std::ptr::null_mut(); MAX_STATES];
                for (s, (_, array)) in s.iter_mut().zip(self.companions.of(engine, i)) {
                    *s = start(array).unwrap_or(std::ptr::null_mut());
                }
                let p = start(&self.tree.leaves()[i]).unwrap_or(std::ptr::null_mut());
                let g: *const u8 = header.view(kind, true).ptr;
                leaf.operands = Operands::Direct { dtype: facts.kind.dtype, p, g, s };
                continue;
            }
            if let (true, Operands::Tiled(tiled)) = (c_order, &mut leaf.operands)
                && tiled.shape.len() == 1
                && tiled.param.strides.is_none()
            {
                // As in the last step, but for the gradient.
                tiled.grad = header.view(kind, true);
                continue;
            }
            let flat = c_order || shared;
            let view = |array: &Py<PyAny>| {
                let array = array.bind(py);
                let header = Header::of(array)?;
                Some(header.view(Kind::of(py, &header)?, flat))
            };
            let missing = || PyRuntimeError::new_err("an array of the optimiser is no array any more");
            let param = view(&self.tree.leaves()[i]).ok_or_else(missing)?;
            let mut rest = self.companions.of(engine, i).map(|(_, array)| view(array).ok_or_else(missing));
            let state = rest.by_ref().take(engine.states().len()).collect::<PyResult<_>>()?;
            let master = if self.companions.master(i).is_some() { rest.next().transpose()? } else { None };
            let ema = if self.companions.ema.is_some() { rest.next().transpose()? } else { None };
            let shape = if flat { [facts.len].into() } else { facts.shape.clone() };
            leaf.operands =
                Operands::Tiled(Box::new(Tiled { shape, param, grad: header.view(kind, flat), state, master, ema }));
        }
        Ok(())
    }
}

/// Hyperparameters of a group in the order of the rule, converted once.
#[pyclass(frozen, module = "ironstep._core")]
pub(super) struct Values(pub(super) Vec<f64>);

#[pymethods]
impl Values {
    /// Values(numbers)
    #[new]
    fn new(numbers: Vec<f64>) -> Values {
        Values(numbers)
    }
}

/// What Python gives for each group: step, maximize, hyperparameters, scalar state.
type GroupArguments<'py> = (u64, bool, Bound<'py, Values>, Vec<f64>);

#[pymethods]
impl Plan {
    /// Plan(rule, tree, states, groups, master=None, ema=None)
    ///
    /// Checks the arrays for the rule of that name: the parameters are the leaves of `tree`, `states` has one list of arrays
    /// per state name of the rule, `groups` the group number of each leaf.
    #[new]
    #[pyo3(signature = (rule, tree, states, groups, master=None, ema=None))]
    fn new(
        py: Python<'_>,
        rule: &str,
        tree: &Bound<'_, Tree>,
        states: Vec<Vec<Py<PyAny>>>,
        groups: Vec<u32>,
        master: Option<Vec<Option<Py<PyAny>>>>,
        ema: Option<Vec<Py<PyAny>>>,
    ) -> PyResult<Plan> {
        let engine = optim::rule(rule).ok_or_else(|| PyValueError::new_err(format!("no rule named {rule:?}")))?;
        let tree = tree.get().again(py, "params")?;
        let n = tree.leaves().len();
        let counts = states.iter().chain(&ema).all(|arrays| arrays.len() == n)
            && master.as_ref().is_none_or(|arrays| arrays.len() == n);
        if states.len() != engine.states().len() || groups.len() != n || !counts {
            return Err(PyValueError::new_err(format!("rule {rule:?} takes the states {:?}", engine.states())));
        }
        let groups_len = groups.iter().max().map_or(0, |&last| last as usize + 1);
        let companions = Companions { states, master, ema, groups };
        Ok(Plan { engine, groups: groups_len, inner: Mutex::new(Inner::new(py, engine, tree, companions)?) })
    }

    /// The parameters that the containers hold now, checked.
    fn params<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut inner = self.lock()?;
        if !inner.is_current(py) {
            *inner = inner.again(py, self.engine)?;
        }
        Ok(inner.tree.leaves().iter().map(|leaf| leaf.bind(py).clone()).collect())
    }

    /// From now on the caller may change the metadata of the state: look at it before each step too.
    fn watch_state(&self) -> PyResult<()> {
        self.lock()?.others_are_visible = true;
        Ok(())
    }

    /// One step. `groups` has a tuple (step, maximize, hyperparameters, scalar state) for each group.
    ///
    /// Returns the name of the first gradient that is not finite, if that was looked for and stopped the step, the norm of
    /// the gradients, the norm of the change, and the new scalar state of each group if the rule has any.
    #[pyo3(signature = (grads, groups, grad_scale, clip_value, max_norm, check_finite, ema_decay, grad_norm, update_norm, isa, /, joint_norm=None))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        grads: Bound<'py, PyAny>,
        groups: Vec<GroupArguments<'py>>,
        grad_scale: f64,
        clip_value: f64,
        max_norm: f64,
        check_finite: bool,
        ema_decay: f64,
        grad_norm: bool,
        update_norm: bool,
        isa: Option<&str>,
        joint_norm: Option<f64>,
    ) -> PyResult<(Option<String>, Option<f64>, Option<f64>, Vec<Vec<f64>>)> {
        let isa = isa_named(isa)?;
        let engine = self.engine;
        let mut inner = self.lock()?;
        for (_, _, hyper, scalars) in &groups {
            if hyper.get().0.len() != engine.hyper().len() || scalars.len() != engine.scalars().len() {
                return Err(PyValueError::new_err(format!("the hyperparameters must be {:?}", engine.hyper())));
            }
        }
        if groups.len() != self.groups {
            return Err(PyValueError::new_err(format!("there must be {} groups, got {}", self.groups, groups.len())));
        }
        let arrays = inner.gradients(py, engine, grads)?;
        let options = Options {
            grad_scale,
            clip_value,
            max_norm,
            joint_norm,
            nonfinite: if check_finite { NonFinite::Skip } else { NonFinite::Propagate },
            ema_decay,
            grad_norm,
            update_norm,
            isa,
            threads: parallel::num_threads(),
        };
        let logical = engine.takes_norms() || grad_norm || update_norm || max_norm < f64::INFINITY;
        let tiles = update_norm || inner.companions.master.is_some() || inner.companions.ema.is_some();
        inner.place_gradients(py, engine, &arrays, logical, tiles)?;

        let mut scalars: Vec<Vec<f64>> = Vec::with_capacity(groups.len());
        scalars.extend(groups.iter().map(|(_, _, _, scalars)| scalars.clone()));
        let mut described: Vec<Group<'_>> = (groups.iter().zip(&mut scalars))
            .map(|((step, maximize, hyper, _), scalars)| Group {
                step: *step,
                maximize: *maximize,
                hyper: &hyper.get().0,
                scalars,
            })
            .collect();
        let Inner { leaves, work, .. } = &mut *inner;
        let (leaves, work) = (&leaves[..], &*work);
        let report = py.detach(|| {
            // SAFETY: `Inner::new` and `place_gradients` checked that every array has the shape and element type that its
            // leaf says, that outputs are writable, have no element twice and overlap neither each other nor a gradient,
            // and that direct leaves are aligned; `is_current` that nothing of this has changed since. The arrays are kept
            // alive by `inner` and `arrays`. `inner` is locked, so no other step of this plan runs.
            unsafe { engine.step(&mut described, leaves, work, &options) }
        });
        drop(arrays);
        let nonfinite = report.nonfinite.map(|leaf| inner.tree.leaf_name(py, "grads", leaf));
        if engine.scalars().is_empty() {
            scalars.clear();
        }
        Ok((nonfinite, report.grad_norm, report.update_norm, scalars))
    }

    /// Per leaf the sum of squares of the gradient after `grad_scale` and `clip_value`, in units of `1 / unit` squared, and
    /// the number of the first leaf whose gradient is not finite. Changes nothing.
    #[pyo3(signature = (grads, grad_scale, clip_value, unit, isa, /))]
    fn inspect<'py>(
        &self,
        py: Python<'py>,
        grads: Bound<'py, PyAny>,
        grad_scale: f64,
        clip_value: f64,
        unit: f64,
        isa: Option<&str>,
    ) -> PyResult<(Vec<f64>, Option<usize>)> {
        let options = Options { grad_scale, clip_value, isa: isa_named(isa)?, ..Options::default() };
        let mut inner = self.lock()?;
        let arrays = inner.gradients(py, self.engine, grads)?;
        inner.place_gradients(py, self.engine, &arrays, true, false)?;
        let Inner { leaves, work, .. } = &mut *inner;
        let (leaves, work) = (&leaves[..], &*work);
        let found = py.detach(|| {
            // SAFETY: as in `step`; only the gradients are read.
            unsafe { optim::inspect(leaves, work, &options, unit) }
        });
        drop(arrays);
        Ok(found)
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        // A step that runs keeps everything alive anyway.
        if let Ok(inner) = self.inner.try_lock() {
            inner.tree.visit(&visit)?;
            let own = &inner.companions;
            own.states.iter().chain(&own.ema).flatten().try_for_each(|array| visit.call(array))?;
            own.master.iter().flatten().flatten().try_for_each(|array| visit.call(array))?;
            inner.params.traverse(&visit)?;
            inner.others.traverse(&visit)?;
            inner.roots.traverse(&visit)?;
        }
        Ok(())
    }
}

impl Plan {
    fn lock(&self) -> PyResult<std::sync::MutexGuard<'_, Inner>> {
        match self.inner.try_lock() {
            Ok(inner) => Ok(inner),
            // A panic in a step leaves the plan as it was: it is only read there.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(PyRuntimeError::new_err(
                "this optimiser is in a step on another thread; one optimiser takes one step at a time",
            )),
        }
    }
}

/// The instruction set of that name, or the best one.
fn isa_named(name: Option<&str>) -> PyResult<Isa> {
    name.map_or_else(
        || Ok(Isa::detect()),
        |name| {
            Isa::named(name).ok_or_else(|| {
                let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
                PyValueError::new_err(format!("_isa must be one of {available:?} on this machine, got {name:?}"))
            })
        },
    )
}
