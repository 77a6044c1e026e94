//! Arrays as the layers take them: dense in memory, in the machine's own byte order, aligned. The Python side makes a copy of
//! whatever is not; here all of it is checked again, because the loops trust it.

use std::ops::Range;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use super::array::{Header, kind_of, output, refuse_dangling, refuse_masked};
use crate::float::{DType, Real};
use crate::parallel::ieee;
use crate::simd::Isa;

/// A dense array: its address, element type and number of elements.
#[derive(Clone)]
pub(super) struct Dense {
    pub(super) ptr: *mut u8,
    pub(super) dtype: DType,
    pub(super) len: usize,
    name: &'static str,
}

// SAFETY: an address and numbers; the array is held by the caller's arguments until the call returns.
unsafe impl Send for Dense {}
// SAFETY: likewise.
unsafe impl Sync for Dense {}

impl Dense {
    /// An input of `len` elements, of the given type if one is given.
    pub(super) fn input(
        array: &Bound<'_, PyAny>,
        name: &'static str,
        len: usize,
        dtype: Option<DType>,
    ) -> PyResult<Dense> {
        let name_of = || name.to_string();
        let Some(header) = Header::of(array) else {
            return Err(PyTypeError::new_err(format!("{name} must be a NumPy array")));
        };
        refuse_masked(array, &name_of)?;
        let kind = kind_of(array, &header, &name_of)?;
        refuse_dangling(array, &header, kind, &mut None, &name_of)?;
        let size = kind.dtype.size();
        let dense = header.is_c_contiguous() || header.dense_strides(size).is_some();
        if !dense
            || kind.swapped
            || !header.is_aligned()
            || header.len() != len
            || dtype.is_some_and(|d| d != kind.dtype)
        {
            return Err(PyValueError::new_err(format!(
                "{name} must be dense and aligned, in native byte order, with {len} elements{}",
                dtype.map_or(String::new(), |dtype| format!(" of {}", dtype.name()))
            )));
        }
        let ptr = header.data.with_addr(header.bytes(size).start);
        Ok(Dense { ptr, dtype: kind.dtype, len, name })
    }

    /// An array that is written, likewise.
    pub(super) fn output(
        array: &Bound<'_, PyAny>,
        name: &'static str,
        len: usize,
        dtype: Option<DType>,
    ) -> PyResult<Dense> {
        output(array, &|| name.to_string())?;
        Dense::input(array, name, len, dtype)
    }

    fn bytes(&self) -> Range<usize> {
        let start = self.ptr.addr();
        start..start + self.len * self.dtype.size()
    }

    pub(super) fn as_ptr<E>(&self) -> *const E {
        self.ptr.cast()
    }

    pub(super) fn as_mut_ptr<E>(&self) -> *mut E {
        self.ptr.cast()
    }

    /// Refuses an output that overlaps another array of the call, unless it may be that array and is.
    pub(super) fn apart_from<'a>(&self, others: impl IntoIterator<Item = &'a Dense>, or_same: bool) -> PyResult<()> {
        let own = self.bytes();
        for other in others {
            let bytes = other.bytes();
            let meet = !own.is_empty() && !bytes.is_empty() && own.start < bytes.end && bytes.start < own.end;
            if meet && !(or_same && own == bytes && self.dtype == other.dtype) {
                let same = if or_same { " or the same array" } else { "" };
                return Err(PyValueError::new_err(format!(
                    "{} and {} must be apart{same}, because {} is written, but they overlap in memory; make a copy of one",
                    self.name, other.name, self.name
                )));
            }
        }
        Ok(())
    }
}

/// The elements of an array of any type and layout, converted; `absent` if there is no array.
pub(super) fn values<T: Real>(
    array: Option<&Bound<'_, PyAny>>,
    name: &'static str,
    len: usize,
    absent: f64,
) -> PyResult<Vec<T>> {
    let Some(array) = array else {
        return Ok(vec![T::from_f64(absent); len]);
    };
    let name_of = || name.to_string();
    let Some(header) = Header::of(array) else {
        return Err(PyTypeError::new_err(format!("{name} must be a NumPy array")));
    };
    refuse_masked(array, &name_of)?;
    let kind = kind_of(array, &header, &name_of)?;
    refuse_dangling(array, &header, kind, &mut None, &name_of)?;
    if header.len() != len {
        return Err(PyValueError::new_err(format!("{name} must have {len} elements, got {}", header.len())));
    }
    let mut out = vec![T::ZERO; len];
    if len > 0 {
        let shape: Vec<usize> = header.shape().into_iter().filter(|&n| n != 1).collect();
        // SAFETY: the header is that of a live array, and the interpreter is attached.
        ieee(|| unsafe { header.view(kind, false).load(Isa::current(), &shape, 0, &mut out) });
    }
    Ok(out)
}

/// Where some numbers are to be stored: an array of any type and layout that may be written.
pub(super) struct Store<'a, 'py> {
    array: &'a Bound<'py, PyAny>,
    name: &'static str,
}

impl<'a, 'py> Store<'a, 'py> {
    pub(super) fn new(array: &'a Bound<'py, PyAny>, name: &'static str, len: usize) -> PyResult<Store<'a, 'py>> {
        let (header, _) = output(array, &|| name.to_string())?;
        if header.len() != len {
            return Err(PyValueError::new_err(format!("{name} must have {len} elements, got {}", header.len())));
        }
        Ok(Store { array, name })
    }

    /// Stores them.
    pub(super) fn put<T: Real>(&self, numbers: impl Iterator<Item = f64>) -> PyResult<()> {
        let (header, kind) = output(self.array, &|| self.name.to_string())?;
        let numbers: Vec<T> = ieee(|| numbers.map(T::from_f64).collect());
        if header.len() == numbers.len() && !numbers.is_empty() {
            let shape: Vec<usize> = header.shape().into_iter().filter(|&n| n != 1).collect();
            // SAFETY: the header is that of a live array that may be written, and the interpreter is attached.
            ieee(|| unsafe { header.view(kind, false).store(Isa::current(), &shape, 0, &numbers) });
        }
        Ok(())
    }
}
