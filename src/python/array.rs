//! NumPy arrays as the binding reads them: through NumPy's accessors, with the interpreter attached.
//!
//! Not through rust-numpy's borrow tracking, whose cost is quadratic in the views of one base array; overlap is checked once
//! per plan, in `overlap.rs`.

use std::ops::Range;

use numpy::npyffi::{self, PyArray_Check, PyArray_CheckExact, PyArrayObject};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use crate::array::View;
use crate::float::DType;

/// What the header of an array says at one moment.
#[derive(Clone, Copy)]
pub(super) struct Header<'a> {
    pub(super) data: *mut u8,
    pub(super) descr: *mut npyffi::PyArray_Descr,
    pub(super) shape: &'a [isize],
    pub(super) strides: &'a [isize],
    flags: i32,
    base: *mut pyo3::ffi::PyObject,
}

impl<'a> Header<'a> {
    /// `None` if it is not an array.
    #[inline]
    pub(super) fn of(array: &'a Bound<'_, PyAny>) -> Option<Header<'a>> {
        // SAFETY: the interpreter is attached (there is a `Bound`), the object is an array, and shape and strides have as
        // many elements as it has dimensions. They stay until somebody changes the array's metadata, which nobody does
        // between here and the end of the check: no Python code runs meanwhile, and on a free-threaded interpreter
        // changing an array's metadata while it is used is out of contract, as in NumPy.
        unsafe {
            if PyArray_Check(array.py(), array.as_ptr()) == 0 {
                return None;
            }
            let fields = &*npyffi::objects::_PyArray_GET_ITEM_DATA(array.as_ptr().cast::<PyArrayObject>());
            let slice = |ptr: *mut isize| {
                if fields.nd == 0 { &[][..] } else { std::slice::from_raw_parts(ptr, fields.nd as usize) }
            };
            Some(Header {
                data: fields.data.cast(),
                descr: fields.descr,
                shape: slice(fields.dimensions),
                strides: slice(fields.strides),
                flags: fields.flags,
                base: fields.base,
            })
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shape.iter().product::<isize>() as usize
    }

    pub(super) fn shape(&self) -> Vec<usize> {
        self.shape.iter().map(|&n| n as usize).collect()
    }

    pub(super) fn is_c_contiguous(&self) -> bool {
        self.flags & npyffi::flags::NPY_ARRAY_C_CONTIGUOUS != 0
    }

    pub(super) fn is_aligned(&self) -> bool {
        self.flags & npyffi::flags::NPY_ARRAY_ALIGNED != 0
    }

    pub(super) fn is_writeable(&self) -> bool {
        self.flags & npyffi::flags::NPY_ARRAY_WRITEABLE != 0
    }

    /// The flags that a plan depends on.
    pub(super) fn watched_flags(&self) -> i32 {
        self.flags & (npyffi::flags::NPY_ARRAY_WRITEABLE | npyffi::flags::NPY_ARRAY_ALIGNED)
    }

    /// The addresses from the first byte to one past the last; empty for an empty array.
    pub(super) fn bytes(&self, size: usize) -> Range<usize> {
        let start = self.data.addr();
        if self.shape.contains(&0) {
            return start..start;
        }
        let (mut low, mut high) = (start, start + size);
        for (&n, &stride) in self.shape.iter().zip(self.strides) {
            let reach = (n - 1) * stride;
            if reach < 0 {
                low = low.wrapping_add_signed(reach);
            } else {
                high = high.wrapping_add_signed(reach);
            }
        }
        low..high
    }

    /// The strides in elements if every element between the first and the last address is part of the array (in any order
    /// of the axes, in either direction), else `None`. Axes of length 1 count as 0.
    pub(super) fn dense_strides(&self, size: usize) -> Option<Vec<isize>> {
        let mut axes = Vec::with_capacity(self.shape.len());
        let mut strides = Vec::with_capacity(self.shape.len());
        for (&n, &stride) in self.shape.iter().zip(self.strides) {
            let elements = if n == 1 { 0 } else { stride / size as isize };
            if elements * size as isize != stride && n != 1 {
                return None;
            }
            strides.push(elements);
            if n != 1 {
                axes.push((elements.unsigned_abs(), n as usize));
            }
        }
        axes.sort_unstable();
        let mut expected = 1;
        for (stride, n) in axes {
            if stride != expected {
                return None;
            }
            expected *= n;
        }
        Some(strides)
    }

    /// Whether two elements share an address. `None` if that could not be told within reason.
    pub(super) fn overlaps_itself(&self, size: usize) -> Option<bool> {
        if self.len() < 2 {
            return Some(false);
        }
        let mut axes: Vec<(usize, usize)> = (self.shape.iter().zip(self.strides))
            .filter(|&(&n, _)| n > 1)
            .map(|(&n, &stride)| (stride.unsigned_abs(), n as usize))
            .collect();
        axes.sort_unstable();
        // If each axis steps over all that the smaller ones reach, all elements are apart.
        let mut reach = size;
        for &(stride, n) in &axes {
            if stride == 0 {
                return Some(true);
            }
            if stride < reach {
                return self.addresses_repeat(size);
            }
            reach += stride * (n - 1);
        }
        Some(false)
    }

    /// By listing all addresses, up to a million.
    fn addresses_repeat(&self, size: usize) -> Option<bool> {
        if self.len() > 1 << 20 {
            return None;
        }
        let mut offsets = vec![0isize];
        for (&n, &stride) in self.shape.iter().zip(self.strides) {
            offsets = offsets.iter().flat_map(|&offset| (0..n).map(move |i| offset + i * stride)).collect();
        }
        offsets.sort_unstable();
        Some(offsets.windows(2).any(|pair| pair[1] - pair[0] < size as isize))
    }

    /// The view for an operand that is walked in C order of `shape` (which has no axis of length 1), or in memory order if
    /// `flat`.
    pub(super) fn view(&self, kind: Kind, flat: bool) -> View {
        let Kind { dtype, swapped } = kind;
        if flat || self.is_c_contiguous() {
            let ptr = self.data.with_addr(self.bytes(dtype.size()).start);
            return View { ptr, dtype, swapped, strides: None };
        }
        let strides = (self.shape.iter().zip(self.strides)).filter(|&(&n, _)| n != 1).map(|(_, &stride)| stride);
        View { ptr: self.data, dtype, swapped, strides: Some(strides.collect()) }
    }

    /// The root of a chain of views with its header, if it is an array and not this one.
    pub(super) fn root<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let mut base = self.base;
        let mut root = None;
        while !base.is_null() {
            // SAFETY: `base` is a live object: the array that has it as its base holds a reference.
            let object = unsafe { Bound::from_borrowed_ptr(py, base) };
            let Some(header) = Header::of(&object) else { break };
            base = header.base;
            root = Some(object);
        }
        root
    }
}

/// Element type and byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind {
    pub(super) dtype: DType,
    pub(super) swapped: bool,
}

impl Kind {
    /// `None` if the type is none of ours.
    pub(super) fn of(py: Python<'_>, header: &Header) -> Option<Kind> {
        // SAFETY: the array's dtype is a live object, and the interpreter is attached.
        let (number, order) = unsafe {
            let fields = &*npyffi::objects::_PyDataType_GET_ITEM_DATA(header.descr);
            (fields.type_num, fields.byteorder as u8)
        };
        let dtype = match number {
            11 => DType::F32,
            12 => DType::F64,
            23 => DType::F16,
            // Over a tensor of torch's.
            4 if bfloat16(py).is_ok_and(|dtype| dtype.as_ptr().addr() == header.descr.addr()) => DType::Bf16,
            // NumPy's own types end at 26; types from elsewhere are known by name.
            0..=26 => return None,
            _ => {
                // SAFETY: as above.
                let dtype = unsafe { Bound::from_borrowed_ptr(py, header.descr.cast()) };
                let is_bfloat16 = dtype.getattr("name").and_then(|name| name.eq("bfloat16")).unwrap_or(false)
                    && dtype.getattr("itemsize").and_then(|size| size.eq(2)).unwrap_or(false);
                if !is_bfloat16 {
                    return None;
                }
                DType::Bf16
            }
        };
        let foreign = if cfg!(target_endian = "little") { b'>' } else { b'<' };
        Some(Kind { dtype, swapped: order == foreign })
    }
}

/// The dtype of arrays over bfloat16 tensors: two bytes, and the mark that tells them from integers. Real bfloat16 arrays
/// need `ml_dtypes`, which users of torch need not have.
pub(super) fn bfloat16(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    static BFLOAT16: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    BFLOAT16.get_or_try_init(py, || {
        let metadata = PyDict::new(py);
        metadata.set_item("ironstep", "bfloat16")?;
        let keywords = PyDict::new(py);
        keywords.set_item("metadata", metadata)?;
        Ok(py.import("numpy")?.getattr("dtype")?.call(("=u2",), Some(&keywords))?.unbind())
    })
}

/// `float32`, for messages.
pub(super) fn dtype_name(array: &Bound<'_, PyAny>) -> String {
    let kind = Header::of(array).and_then(|header| Kind::of(array.py(), &header));
    if kind.is_some_and(|kind| kind.dtype == DType::Bf16) {
        return "bfloat16".into();
    }
    array.getattr("dtype").and_then(|dtype| Ok(dtype.str()?.to_string())).unwrap_or_else(|_| "?".into())
}

/// `(64, 10)`, for messages.
pub(super) fn shape_text(shape: &[isize]) -> String {
    let inner: Vec<String> = shape.iter().map(ToString::to_string).collect();
    if inner.len() == 1 { format!("({},)", inner[0]) } else { format!("({})", inner.join(", ")) }
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().fully_qualified_name().map_or_else(|_| "?".into(), |name| name.to_string())
}

/// An array that is to be written: header and element type, or the error that says what is wrong with it.
pub(super) fn output<'a>(array: &'a Bound<'_, PyAny>, name: &dyn Fn() -> String) -> PyResult<(Header<'a>, Kind)> {
    let Some(header) = Header::of(array) else {
        return Err(PyTypeError::new_err(format!(
            "{} must be a NumPy array, which is updated in place, got {}",
            name(),
            type_name(array)
        )));
    };
    refuse_masked(array, name)?;
    let kind = kind_of(array, &header, name)?;
    if !header.is_writeable() {
        return Err(PyValueError::new_err(format!(
            "{} must be writeable, because it is updated in place; it is read-only (make a copy)",
            name()
        )));
    }
    match header.overlaps_itself(kind.dtype.size()) {
        Some(false) => {}
        Some(true) => {
            return Err(PyValueError::new_err(format!(
                "{} has several elements at the same address (strides {}), so it cannot be updated in place; make a copy",
                name(),
                shape_text(header.strides)
            )));
        }
        None => {
            return Err(PyValueError::new_err(format!(
                "{} has strides {} of which it cannot be told in reasonable time whether two elements share an address; \
                 make a copy",
                name(),
                shape_text(header.strides)
            )));
        }
    }
    refuse_dangling(array, &header, kind, &mut None, name)?;
    Ok((header, kind))
}

/// The element type, or the error.
pub(super) fn kind_of(array: &Bound<'_, PyAny>, header: &Header, name: &dyn Fn() -> String) -> PyResult<Kind> {
    Kind::of(array.py(), header).ok_or_else(|| {
        PyTypeError::new_err(format!(
            "{} must be float32, float64, float16 or bfloat16, got {}",
            name(),
            dtype_name(array)
        ))
    })
}

/// A masked array's mask would be ignored.
pub(super) fn refuse_masked(array: &Bound<'_, PyAny>, name: &dyn Fn() -> String) -> PyResult<()> {
    static MASKED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = array.py();
    // SAFETY: the interpreter is attached.
    if unsafe { PyArray_CheckExact(py, array.as_ptr()) } != 0 {
        return Ok(());
    }
    let masked = MASKED
        .get_or_try_init(py, || py.import("numpy.ma").and_then(|ma| ma.getattr("MaskedArray")).map(Bound::unbind))?;
    if array.is_instance(masked.bind(py))? {
        return Err(PyTypeError::new_err(format!(
            "{} is a masked array, whose mask would be ignored; pass its .data, or fill it first",
            name()
        )));
    }
    Ok(())
}

/// A view whose base was resized behind its back points to memory that is gone.
///
/// `seen`: a base and its memory, from the last call and for the next: views of one buffer come one after the other.
pub(super) fn refuse_dangling(
    array: &Bound<'_, PyAny>,
    header: &Header,
    kind: Kind,
    seen: &mut Option<(*mut pyo3::ffi::PyObject, Range<usize>)>,
    name: &dyn Fn() -> String,
) -> PyResult<()> {
    if header.base.is_null() {
        return Ok(());
    }
    let bytes = header.bytes(kind.dtype.size());
    let within = |memory: &Range<usize>| memory.start <= bytes.start && bytes.end <= memory.end;
    if bytes.is_empty() || seen.as_ref().is_some_and(|(base, memory)| *base == header.base && within(memory)) {
        return Ok(());
    }
    let Some(root) = header.root(array.py()) else { return Ok(()) };
    let Some(owner) = Header::of(&root) else { return Ok(()) };
    // SAFETY: the root's dtype is a live object, and the interpreter is attached.
    let size = unsafe { npyffi::objects::PyDataType_ELSIZE(array.py(), owner.descr) };
    let memory = owner.bytes(size as usize);
    if within(&memory) {
        *seen = Some((header.base, memory));
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "{} is a view that reaches outside its base array, which was resized or replaced; take the view again",
        name()
    )))
}

/// What NumPy makes of a gradient that is no array (JAX arrays and other objects with `__array__`).
pub(super) fn gradient<'py>(object: &Bound<'py, PyAny>, name: &dyn Fn() -> String) -> PyResult<Bound<'py, PyAny>> {
    static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = object.py();
    if !object.hasattr("__array__")? {
        let hint = if object.is_none() {
            "; to leave a parameter alone, take it out of the optimiser or pass zeros"
        } else {
            ""
        };
        return Err(PyTypeError::new_err(format!(
            "{} must be a NumPy array, or an object that NumPy can take as one, got {}{hint}",
            name(),
            type_name(object)
        )));
    }
    let asarray =
        ASARRAY.get_or_try_init(py, || py.import("numpy").and_then(|np| np.getattr("asarray")).map(Bound::unbind))?;
    asarray.bind(py).call1((object,))
}
