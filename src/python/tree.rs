//! Nests of dicts, lists and tuples.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList, PyString, PyTuple};

/// Deeper than any model, shallow enough for the stack: a list that contains itself stops here.
const MAX_DEPTH: usize = 100;

enum Node {
    Leaf,
    /// The container, and its keys in sorted order.
    Dict(Py<PyDict>, Vec<(Py<PyAny>, Node)>),
    List(Py<PyList>, Vec<Node>),
    Tuple(Py<PyTuple>, Vec<Node>),
}

/// The structure of a nest of dicts (keys sorted), lists and tuples around leaves, which are all other objects.
#[pyclass(frozen, module = "ironstep._core")]
pub(super) struct Tree {
    root: Node,
    leaves: Vec<Py<PyAny>>,
}

impl Node {
    fn of(object: &Bound<'_, PyAny>, depth: usize, name: &str, leaves: &mut Vec<Py<PyAny>>) -> PyResult<Node> {
        if depth > MAX_DEPTH {
            return Err(PyValueError::new_err(format!(
                "{name} must be nested at most {MAX_DEPTH} deep; does a container contain itself?"
            )));
        }
        if let Ok(dict) = object.cast::<PyDict>() {
            let keys = dict.keys();
            for key in keys.iter() {
                if let Ok(text) = key.cast::<PyString>()
                    && text.to_str().is_err()
                {
                    return Err(PyValueError::new_err(format!(
                        "{name} must have keys of valid Unicode, got {}",
                        key.repr()?
                    )));
                }
                if !key.is_instance_of::<PyString>() && !key.is_instance_of::<PyInt>() {
                    let kind = key.get_type().name()?;
                    return Err(PyTypeError::new_err(format!(
                        "{name} must have strings or integers as keys, got {} ({kind})",
                        key.repr()?
                    )));
                }
            }
            keys.sort().map_err(|_| {
                PyTypeError::new_err(format!("{name} must have keys that can be sorted: all strings or all integers"))
            })?;
            let mut entries = Vec::with_capacity(keys.len());
            for key in keys.iter() {
                let value = dict.as_any().get_item(&key)?;
                let node = Node::of(&value, depth + 1, name, leaves)?;
                entries.push((key.unbind(), node));
            }
            return Ok(Node::Dict(dict.clone().unbind(), entries));
        }
        if let Ok(list) = object.cast::<PyList>() {
            let items = list.iter().map(|item| Node::of(&item, depth + 1, name, leaves)).collect::<PyResult<_>>()?;
            return Ok(Node::List(list.clone().unbind(), items));
        }
        if let Ok(tuple) = object.cast::<PyTuple>() {
            let items = tuple.iter().map(|item| Node::of(&item, depth + 1, name, leaves)).collect::<PyResult<_>>()?;
            return Ok(Node::Tuple(tuple.clone().unbind(), items));
        }
        leaves.push(object.clone().unbind());
        Ok(Node::Leaf)
    }

    /// Appends the leaves of `object`, which must have this structure. Lists and tuples stand for each other.
    fn flatten<'py>(&self, object: Bound<'py, PyAny>, name: &Path, out: &mut Vec<Bound<'py, PyAny>>) -> PyResult<()> {
        let py = object.py();
        match self {
            Node::Leaf => out.push(object),
            Node::Dict(_, entries) => {
                let dict = object.cast::<PyDict>().map_err(|_| name.wrong("a dict", entries.len(), &object))?;
                if dict.len() != entries.len() {
                    return Err(name.wrong_keys(dict, entries, py));
                }
                for (key, node) in entries {
                    let key = key.bind(py);
                    let Some(value) = dict.get_item(key)? else { return Err(name.wrong_keys(dict, entries, py)) };
                    node.flatten(value, &Path::Key(name, key), out)?;
                }
            }
            Node::List(_, nodes) | Node::Tuple(_, nodes) => {
                let wrong = || name.wrong("a list or tuple", nodes.len(), &object);
                if let Ok(list) = object.cast::<PyList>() {
                    if list.len() != nodes.len() {
                        return Err(wrong());
                    }
                    for (i, node) in nodes.iter().enumerate() {
                        node.flatten(list.get_item(i)?, &Path::Index(name, i), out)?;
                    }
                } else {
                    let tuple = object.cast::<PyTuple>().map_err(|_| wrong())?;
                    if tuple.len() != nodes.len() {
                        return Err(wrong());
                    }
                    for (i, node) in nodes.iter().enumerate() {
                        node.flatten(tuple.get_item(i)?, &Path::Index(name, i), out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether each container still holds the same leaves.
    fn is_current(&self, object: &Bound<'_, PyAny>, leaves: &mut std::slice::Iter<'_, Py<PyAny>>) -> bool {
        let py = object.py();
        match self {
            Node::Leaf => leaves.next().is_some_and(|leaf| leaf.is(object)),
            Node::Dict(dict, entries) => {
                object.is(dict)
                    && dict.bind(py).len() == entries.len()
                    && entries.iter().all(|(key, node)| {
                        let value = dict.bind(py).get_item(key.bind(py)).ok().flatten();
                        value.is_some_and(|value| node.is_current(&value, leaves))
                    })
            }
            Node::List(list, nodes) => {
                object.is(list)
                    && list.bind(py).len() == nodes.len()
                    && nodes
                        .iter()
                        .enumerate()
                        .all(|(i, node)| list.bind(py).get_item(i).is_ok_and(|value| node.is_current(&value, leaves)))
            }
            Node::Tuple(tuple, nodes) => {
                object.is(tuple)
                    && nodes
                        .iter()
                        .enumerate()
                        .all(|(i, node)| tuple.bind(py).get_item(i).is_ok_and(|value| node.is_current(&value, leaves)))
            }
        }
    }

    /// A nest of this structure, in new containers, with the given leaves.
    fn build<'py>(
        &self,
        py: Python<'py>,
        leaves: &mut impl Iterator<Item = Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self {
            Node::Leaf => leaves.next().ok_or_else(|| PyValueError::new_err("too few leaves"))?,
            Node::Dict(_, entries) => {
                let dict = PyDict::new(py);
                for (key, node) in entries {
                    dict.set_item(key, node.build(py, leaves)?)?;
                }
                dict.into_any()
            }
            Node::List(_, nodes) => {
                let items = nodes.iter().map(|node| node.build(py, leaves)).collect::<PyResult<Vec<_>>>()?;
                PyList::new(py, items)?.into_any()
            }
            Node::Tuple(_, nodes) => {
                let items = nodes.iter().map(|node| node.build(py, leaves)).collect::<PyResult<Vec<_>>>()?;
                PyTuple::new(py, items)?.into_any()
            }
        })
    }

    /// Calls `f` with the way to each leaf, in order.
    fn for_each_path(&self, py: Python<'_>, path: &Path, f: &mut dyn FnMut(&Path)) {
        match self {
            Node::Leaf => f(path),
            Node::Dict(_, entries) => {
                for (key, node) in entries {
                    node.for_each_path(py, &Path::Key(path, key.bind(py)), f);
                }
            }
            Node::List(_, nodes) | Node::Tuple(_, nodes) => {
                for (i, node) in nodes.iter().enumerate() {
                    node.for_each_path(py, &Path::Index(path, i), f);
                }
            }
        }
    }

    fn object<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        match self {
            Node::Leaf => None,
            Node::Dict(dict, _) => Some(dict.bind(py).as_any().clone()),
            Node::List(list, _) => Some(list.bind(py).as_any().clone()),
            Node::Tuple(tuple, _) => Some(tuple.bind(py).as_any().clone()),
        }
    }

    fn traverse(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        match self {
            Node::Leaf => Ok(()),
            Node::Dict(dict, entries) => {
                visit.call(dict)?;
                entries.iter().try_for_each(|(_, node)| node.traverse(visit))
            }
            Node::List(list, nodes) => {
                visit.call(list)?;
                nodes.iter().try_for_each(|node| node.traverse(visit))
            }
            Node::Tuple(tuple, nodes) => {
                visit.call(tuple)?;
                nodes.iter().try_for_each(|node| node.traverse(visit))
            }
        }
    }
}

/// The way from the root to a node, on the stack.
enum Path<'a, 'py> {
    Root(&'a str),
    Key(&'a Path<'a, 'py>, &'a Bound<'py, PyAny>),
    Index(&'a Path<'a, 'py>, usize),
}

impl Path<'_, '_> {
    /// As one would write it in Python: `params['layers'][0]`.
    fn name(&self) -> String {
        match self {
            Path::Root(name) => (*name).to_string(),
            Path::Key(parent, key) => {
                let key = key.repr().map_or_else(|_| "?".into(), |text| text.to_string());
                format!("{}[{key}]", parent.name())
            }
            Path::Index(parent, i) => format!("{}[{i}]", parent.name()),
        }
    }

    /// As a key of a flat dict: `layers.0`, with `.` and `\` inside a key escaped by `\`; empty for a lone leaf.
    fn key(&self) -> String {
        let (parent, own) = match self {
            Path::Root(_) => return String::new(),
            Path::Key(parent, key) => {
                let text = key.str().map_or_else(|_| "?".into(), |text| text.to_string());
                (parent, text.replace('\\', "\\\\").replace('.', "\\."))
            }
            Path::Index(parent, i) => (parent, i.to_string()),
        };
        match parent {
            Path::Root(_) => own,
            _ => format!("{}.{own}", parent.key()),
        }
    }

    fn wrong(&self, want: &str, len: usize, got: &Bound<'_, PyAny>) -> PyErr {
        let kind = got.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string());
        let got = got.len().map_or_else(|_| kind.clone(), |n| format!("{kind} of length {n}"));
        PyValueError::new_err(format!("{} must be {want} of length {len} like the parameters, got {got}", self.name()))
    }

    fn wrong_keys(&self, got: &Bound<'_, PyDict>, want: &[(Py<PyAny>, Node)], py: Python<'_>) -> PyErr {
        let repr = |key: &Bound<'_, PyAny>| key.repr().map_or_else(|_| "?".into(), |text| text.to_string());
        let missing: Vec<String> = (want.iter().map(|(key, _)| key.bind(py)))
            .filter(|key| !got.contains(key).unwrap_or(false))
            .map(repr)
            .collect();
        let known = |key: &Bound<'_, PyAny>| want.iter().any(|(have, _)| have.bind(py).eq(key).unwrap_or(false));
        let unknown: Vec<String> = got.keys().iter().filter(|key| !known(key)).map(|key| repr(&key)).collect();
        let part = |what: &str, keys: Vec<String>| {
            if keys.is_empty() { String::new() } else { format!("; {what}: {}", keys.join(", ")) }
        };
        PyValueError::new_err(format!(
            "{} must have the keys of the parameters{}{}",
            self.name(),
            part("missing", missing),
            part("unknown", unknown)
        ))
    }
}

impl Tree {
    pub(super) fn leaves(&self) -> &[Py<PyAny>] {
        &self.leaves
    }

    /// The leaves of `object`, appended to `out`.
    pub(super) fn flatten_into<'py>(
        &self,
        object: Bound<'py, PyAny>,
        name: &str,
        out: &mut Vec<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        self.root.flatten(object, &Path::Root(name), out)
    }

    /// Whether the containers still hold these leaves.
    pub(super) fn is_current(&self, py: Python<'_>) -> bool {
        let mut leaves = self.leaves.iter();
        self.root.object(py).is_none_or(|object| self.root.is_current(&object, &mut leaves))
    }

    /// The tree of the same containers as they are now.
    pub(super) fn again(&self, py: Python<'_>, name: &str) -> PyResult<Tree> {
        let object = self.root.object(py).unwrap_or_else(|| self.leaves[0].bind(py).clone());
        Tree::new(&object, name)
    }

    /// What to call leaf `index` in a message.
    pub(super) fn leaf_name(&self, py: Python<'_>, root: &str, index: usize) -> String {
        let (mut i, mut name) = (0, String::new());
        self.root.for_each_path(py, &Path::Root(root), &mut |path| {
            if i == index {
                name = path.name();
            }
            i += 1;
        });
        name
    }
}

#[pymethods]
impl Tree {
    /// Tree(obj, name)
    #[new]
    pub(super) fn new(obj: &Bound<'_, PyAny>, name: &str) -> PyResult<Tree> {
        let mut leaves = Vec::new();
        let root = Node::of(obj, 0, name, &mut leaves)?;
        Ok(Tree { root, leaves })
    }

    #[getter(leaves)]
    fn leaves_list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.leaves.iter().map(|leaf| leaf.bind(py)))
    }

    /// The leaves of another nest, which must have the same structure.
    #[pyo3(signature = (obj, name, /))]
    fn flatten<'py>(&self, obj: Bound<'py, PyAny>, name: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let mut out = Vec::with_capacity(self.leaves.len());
        self.flatten_into(obj, name, &mut out)?;
        Ok(out)
    }

    /// A nest of the same structure with other leaves.
    #[pyo3(signature = (leaves, /))]
    fn build<'py>(&self, leaves: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyAny>> {
        self.root.build(leaves.py(), &mut leaves.iter())
    }

    /// The names of the leaves, as one would write them in Python after `name`.
    #[pyo3(signature = (name, /))]
    pub(super) fn names(&self, py: Python<'_>, name: &str) -> Vec<String> {
        let mut names = Vec::with_capacity(self.leaves.len());
        self.root.for_each_path(py, &Path::Root(name), &mut |path| names.push(path.name()));
        names
    }

    /// The keys of the leaves in a flat dict: `layers.0.w`, with a dot inside a key escaped by a backslash.
    fn keys(&self, py: Python<'_>) -> Vec<String> {
        let mut keys = Vec::with_capacity(self.leaves.len());
        self.root.for_each_path(py, &Path::Root(""), &mut |path| keys.push(path.key()));
        keys
    }

    fn __len__(&self) -> usize {
        self.leaves.len()
    }

    fn __traverse__(&self, visit: pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.visit(&visit)
    }
}

impl Tree {
    /// Visits all that it holds, for the garbage collector.
    pub(super) fn visit(&self, visit: &pyo3::PyVisit<'_>) -> Result<(), pyo3::PyTraverseError> {
        self.leaves.iter().try_for_each(|leaf| visit.call(leaf))?;
        self.root.traverse(visit)
    }
}
