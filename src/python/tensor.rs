//! torch's CPU tensors as NumPy arrays over the same memory.
//!
//! Not by `Tensor.numpy()`: that makes the storage impossible to resize for ever, refuses bfloat16, and for a thousand
//! small tensors costs more than a step. torch's `DLPack` exchange functions say in 30 ns where a tensor is; torch before
//! 2.10, which has none, is asked through Python.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::sync::Mutex;

use numpy::PyUntypedArray;
use numpy::npyffi::{self, PY_ARRAY_API, PyArrayObject};
use pyo3::PyTypeInfo;
use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi::PyObject_TypeCheck;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyCapsuleMethods, PyList, PyType};

use super::array::bfloat16;
use crate::float::DType;

/// `DLTensor` of `DLPack` 1.
#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

/// `DLPackExchangeAPI` of `DLPack` 1. Functions that are not used are addresses.
#[repr(C)]
struct ExchangeApi {
    major: u32,
    minor: u32,
    previous: *const ExchangeApi,
    allocate: *const c_void,
    to_managed: *const c_void,
    from_managed: *const c_void,
    look: Option<Look>,
    stream: *const c_void,
}

/// Fills in what it knows of a tensor; -1 with an exception if it cannot.
type Look = unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int;

const CPU: i32 = 1;

/// torch, as far as it is asked for anything.
struct Torch {
    tensor: Py<PyType>,
    look: Option<Look>,
}

fn torch(py: Python<'_>) -> PyResult<&Torch> {
    static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
    TORCH.get_or_try_init(py, || {
        let tensor = py.import("torch")?.getattr("Tensor")?.cast_into::<PyType>()?;
        let look = tensor.getattr("__dlpack_c_exchange_api__").ok().and_then(|capsule| exchange_function(&capsule));
        Ok(Torch { tensor: tensor.unbind(), look })
    })
}

fn exchange_function(capsule: &Bound<'_, PyAny>) -> Option<Look> {
    let mut api: *const ExchangeApi =
        capsule.cast::<PyCapsule>().ok()?.pointer_checked(Some(c"dlpack_exchange_api")).ok()?.as_ptr().cast();
    while !api.is_null() {
        // SAFETY: DLPack promises that a capsule of this name holds such a structure, which lives as long as the process;
        // the two version numbers and the link are at its beginning whatever the version.
        unsafe {
            if (*api).major == 1 {
                return (*api).look;
            }
            api = (*api).previous;
        }
    }
    None
}

/// What torch says of a tensor at one moment. Strides are in elements.
struct Seen<'a> {
    data: *mut u8,
    on_cpu: bool,
    dtype: Option<DType>,
    shape: Cow<'a, [i64]>,
    strides: Cow<'a, [i64]>,
}

/// Gives `f` what can be seen of a tensor.
fn see<R>(tensor: &Bound<'_, PyAny>, name: &str, plain: bool, f: impl FnOnce(Seen<'_>) -> PyResult<R>) -> PyResult<R> {
    let py = tensor.py();
    let torch = torch(py)?;
    // Not `isinstance`, which goes through a metaclass.
    // SAFETY: two live objects, the second a type, and the interpreter is attached.
    if unsafe { PyObject_TypeCheck(tensor.as_ptr(), torch.tensor.as_ptr().cast()) } == 0 {
        return Err(PyTypeError::new_err(format!(
            "{name} must be a torch.Tensor, got {}",
            tensor.get_type().fully_qualified_name()?
        )));
    }
    let Some(look) = torch.look.filter(|_| !plain) else {
        return f(see_in_python(tensor, name)?);
    };
    let mut out = std::mem::MaybeUninit::<DlTensor>::uninit();
    // SAFETY: the interpreter is attached, the object is a tensor of the type that the function belongs to, and it fills
    // in the structure unless it returns an error.
    let out = unsafe {
        if look(tensor.as_ptr().cast(), out.as_mut_ptr()) != 0 {
            let error = PyErr::take(py);
            refuse_kind(tensor, name)?;
            return Err(error.unwrap_or_else(|| PyRuntimeError::new_err(format!("{name} cannot be read"))));
        }
        out.assume_init()
    };
    let numbers = |ptr: *const i64| -> Cow<'_, [i64]> {
        if out.ndim == 0 || ptr.is_null() {
            return Cow::Borrowed(&[]);
        }
        // SAFETY: shape and strides have `ndim` elements, which belong to the tensor; nothing that runs before `f` returns
        // changes its metadata.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(ptr, out.ndim as usize) })
    };
    let dtype = match (out.code, out.bits, out.lanes) {
        (2, 32, 1) => Some(DType::F32),
        (2, 64, 1) => Some(DType::F64),
        (2, 16, 1) => Some(DType::F16),
        (4, 16, 1) => Some(DType::Bf16),
        _ => None,
    };
    f(Seen {
        data: out.data.cast::<u8>().wrapping_add(out.byte_offset as usize),
        on_cpu: out.device_type == CPU,
        dtype,
        shape: numbers(out.shape),
        strides: numbers(out.strides),
    })
}

/// The same by Python's attributes, ten times slower.
fn see_in_python(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<Seen<'static>> {
    refuse_kind(tensor, name)?;
    let dtype = match &*tensor.getattr("dtype")?.str()?.to_string_lossy() {
        "torch.float32" => Some(DType::F32),
        "torch.float64" => Some(DType::F64),
        "torch.float16" => Some(DType::F16),
        "torch.bfloat16" => Some(DType::Bf16),
        _ => None,
    };
    Ok(Seen {
        data: std::ptr::without_provenance_mut(tensor.call_method0("data_ptr")?.extract()?),
        on_cpu: true,
        dtype,
        shape: Cow::Owned(tensor.getattr("shape")?.extract()?),
        strides: Cow::Owned(tensor.call_method0("stride")?.extract()?),
    })
}

/// Refuses what is not a plain tensor in the memory of this machine.
fn refuse_kind(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<()> {
    let layout = tensor.getattr("layout")?.str()?.to_string();
    if layout != "torch.strided" {
        return Err(PyTypeError::new_err(format!(
            "{name} must be a dense tensor, got layout {layout}; make it dense with .to_dense()"
        )));
    }
    let device = tensor.getattr("device")?;
    if device.getattr("type")?.ne("cpu")? {
        return Err(PyValueError::new_err(format!("{name} must be in the memory of the CPU, got device {device}")));
    }
    Ok(())
}

fn refuse_dtype(tensor: &Bound<'_, PyAny>, name: &str) -> PyErr {
    let dtype = tensor.getattr("dtype").map_or_else(|_| "?".to_string(), |dtype| dtype.to_string());
    PyTypeError::new_err(format!("{name} must be float32, float64, float16 or bfloat16, got {dtype}"))
}

/// A new array over what was seen. `base` is kept alive by it.
fn array<'py>(
    tensor: &Bound<'py, PyAny>,
    seen: &Seen<'_>,
    name: &str,
    written: bool,
    base: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = tensor.py();
    if !seen.on_cpu {
        refuse_kind(tensor, name)?;
    }
    let Some(dtype) = seen.dtype else { return Err(refuse_dtype(tensor, name)) };
    let empty = seen.shape.contains(&0);
    if seen.data.is_null() && !empty || !seen.on_cpu {
        return Err(PyTypeError::new_err(format!(
            "{name} must have memory of its own, which a {} does not; pass the plain tensor that is behind it",
            tensor.get_type().fully_qualified_name()?
        )));
    }
    let size = dtype.size() as isize;
    let mut shape: Vec<isize> = seen.shape.iter().map(|&n| n as isize).collect();
    let mut strides: Vec<isize> = seen.strides.iter().map(|&n| n as isize * size).collect();
    // SAFETY: the interpreter is attached. The reference to the dtype goes over to the new array. Shape and strides have as
    // many elements as there are dimensions and are copied. The memory is the tensor's; whoever uses the array keeps that
    // alive. An empty array has none: NumPy gives it some.
    unsafe {
        let descr = match dtype {
            DType::Bf16 => bfloat16(py)?.clone_ref(py).into_ptr().cast(),
            DType::F32 => PY_ARRAY_API.PyArray_DescrFromType(py, 11),
            DType::F64 => PY_ARRAY_API.PyArray_DescrFromType(py, 12),
            DType::F16 => PY_ARRAY_API.PyArray_DescrFromType(py, 23),
        };
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            PyUntypedArray::type_object_raw(py),
            descr,
            shape.len() as c_int,
            shape.as_mut_ptr(),
            if empty { std::ptr::null_mut() } else { strides.as_mut_ptr() },
            if empty { std::ptr::null_mut() } else { seen.data.cast() },
            if written || empty { npyffi::flags::NPY_ARRAY_WRITEABLE } else { 0 },
            std::ptr::null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if let Some(base) = base
            && !empty
            && PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), base.clone().into_ptr()) != 0
        {
            return Err(PyErr::fetch(py));
        }
        Ok(array)
    }
}

/// A tensor that says minus what is in its memory (`Tensor.is_neg`) is a view of a complex one, and has a stride, unless it
/// has a single element.
fn refuse_negated(tensor: &Bound<'_, PyAny>, seen: &Seen<'_>, name: &str) -> PyResult<()> {
    let single = seen.shape.iter().all(|&n| n == 1);
    let mut expected = 1;
    let contiguous = seen.shape.iter().zip(&*seen.strides).rev().all(|(&n, &stride)| {
        let fits = n == 1 || stride == expected;
        expected *= n;
        fits
    });
    if (single || !contiguous) && tensor.call_method0("is_neg")?.extract()? {
        return Err(PyValueError::new_err(format!(
            "{name} is a lazily negated view of a complex tensor; make a copy with .resolve_neg()"
        )));
    }
    Ok(())
}

/// What a tensor was like when its array was made.
struct Slot {
    data: *mut u8,
    dtype: Option<DType>,
    ndim: u32,
    /// Where shape and strides are in [`Slots::numbers`], and how many numbers have room there.
    first: u32,
    room: u32,
    array: Option<Py<PyAny>>,
}

// SAFETY: the address is compared, and handed on to the array, never followed.
unsafe impl Send for Slot {}

impl Slot {
    /// Lets the array point to another address, if it can.
    fn moves_to(&mut self, data: *mut u8) -> bool {
        let size = self.dtype.map_or(1, DType::size);
        let aligned = self.data.addr().is_multiple_of(size) && data.addr().is_multiple_of(size);
        let Some(array) = self.array.as_ref().filter(|_| aligned && !data.is_null() && !self.data.is_null()) else {
            return false;
        };
        // SAFETY: the array was made in `array`, is known to nobody but the optimiser that looks through it, owns no memory,
        // and is not empty. Address and flags go on to fit: both addresses are aligned.
        unsafe {
            let fields = npyffi::objects::_PyArray_GET_ITEM_DATA(array.as_ptr().cast::<PyArrayObject>());
            (*fields).data = data.cast();
        }
        self.data = data;
        true
    }
}

/// All slots, in as few pieces of memory as will do: for a thousand tensors that are not in the cache, each piece more
/// costs a tenth of a step.
struct Slots {
    all: Vec<Slot>,
    /// Shapes and strides, in elements.
    numbers: Vec<i64>,
    /// Something has changed since the last look that succeeded.
    changed: bool,
}

impl Slots {
    fn new(n: usize) -> Slots {
        let empty = || Slot { data: std::ptr::null_mut(), dtype: None, ndim: 0, first: 0, room: 0, array: None };
        Slots { all: std::iter::repeat_with(empty).take(n).collect(), numbers: Vec::new(), changed: true }
    }

    /// Whether the array of tensor `i` fits but for its address.
    fn is_like(&self, i: usize, seen: &Seen<'_>) -> bool {
        let slot = &self.all[i];
        let (first, n) = (slot.first as usize, slot.ndim as usize);
        slot.array.is_some()
            && slot.dtype == seen.dtype
            && seen.on_cpu
            && self.numbers[first..first + n] == *seen.shape
            && self.numbers[first + n..first + 2 * n] == *seen.strides
    }

    fn put(&mut self, i: usize, seen: &Seen<'_>, array: Py<PyAny>) {
        let slot = &mut self.all[i];
        let n = seen.shape.len();
        if slot.room < 2 * n as u32 {
            slot.room = 2 * n as u32;
            slot.first = self.numbers.len() as u32;
            self.numbers.resize(self.numbers.len() + 2 * n, 0);
        }
        slot.ndim = n as u32;
        (slot.data, slot.dtype, slot.array) = (seen.data, seen.dtype, Some(array));
        let numbers = &mut self.numbers[slot.first as usize..][..2 * n];
        numbers[..n].copy_from_slice(&seen.shape);
        numbers[n..].copy_from_slice(&seen.strides);
    }
}

/// TensorViews(names, *, written, plain=False)
///
/// NumPy arrays over the memory of tensors, kept from call to call. They do not keep the tensors alive.
#[pyclass(frozen, module = "ironstep._core")]
pub(super) struct TensorViews {
    names: Vec<String>,
    written: bool,
    plain: bool,
    list: Py<PyList>,
    slots: Mutex<Slots>,
}

#[pymethods]
impl TensorViews {
    #[new]
    #[pyo3(signature = (names, *, written, plain=false))]
    fn new(py: Python<'_>, names: Vec<String>, written: bool, plain: bool) -> PyResult<TensorViews> {
        let slots = Mutex::new(Slots::new(names.len()));
        let list = PyList::new(py, names.iter().map(|_| py.None()))?.unbind();
        Ok(TensorViews { names, written, plain, list, slots })
    }

    /// The arrays over these tensors, in the list that all calls return, and whether anything has changed since the last
    /// call.
    fn look<'py>(&self, tensors: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyList>, bool)> {
        let py = tensors.py();
        let tensors = tensors.cast::<PyList>()?;
        if tensors.len() != self.names.len() {
            return Err(PyValueError::new_err(format!(
                "there must be {} tensors, got {}",
                self.names.len(),
                tensors.len()
            )));
        }
        // Not `lock`: who waits here with the interpreter attached may wait for ever.
        let Ok(mut slots) = self.slots.try_lock() else {
            return Err(PyRuntimeError::new_err("another thread looks at these tensors; one step at a time"));
        };
        let slots = &mut *slots;
        let list = self.list.bind(py);
        for (i, (tensor, name)) in tensors.iter().zip(&self.names).enumerate() {
            see(&tensor, name, self.plain, |seen| {
                refuse_negated(&tensor, &seen, name)?;
                if slots.is_like(i, &seen) {
                    let slot = &mut slots.all[i];
                    if slot.data == seen.data {
                        return Ok(());
                    }
                    slots.changed = true;
                    if slot.moves_to(seen.data) {
                        return Ok(());
                    }
                }
                slots.changed = true;
                let array = array(&tensor, &seen, name, self.written, None)?;
                list.set_item(i, &array)?;
                slots.put(i, &seen, array.unbind());
                Ok(())
            })?;
        }
        Ok((list.clone(), std::mem::replace(&mut slots.changed, false)))
    }
}

/// A NumPy array over the memory of a tensor, which it keeps alive.
#[pyfunction]
#[pyo3(signature = (tensor, name, *, written, plain=false))]
pub(super) fn tensor_view<'py>(
    tensor: &Bound<'py, PyAny>,
    name: &str,
    written: bool,
    plain: bool,
) -> PyResult<Bound<'py, PyAny>> {
    see(tensor, name, plain, |seen| {
        refuse_negated(tensor, &seen, name)?;
        array(tensor, &seen, name, written, Some(tensor))
    })
}
