//! Safetensors files, written so that a crash leaves the old file or the new one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, View};

use super::array::{Header, dtype_name};

/// The files' types and NumPy's names for them.
const DTYPES: &[(Dtype, &str)] = &[
    (Dtype::F32, "float32"),
    (Dtype::F64, "float64"),
    (Dtype::F16, "float16"),
    (Dtype::BF16, "bfloat16"),
    (Dtype::I64, "int64"),
    (Dtype::I32, "int32"),
    (Dtype::I16, "int16"),
    (Dtype::I8, "int8"),
    (Dtype::U64, "uint64"),
    (Dtype::U32, "uint32"),
    (Dtype::U16, "uint16"),
    (Dtype::U8, "uint8"),
    (Dtype::BOOL, "bool"),
];

/// The key of the JSON text among the file's metadata.
const METADATA_KEY: &str = "ironstep";

struct Tensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The shape of a C-contiguous array, its first byte, and how many there are.
fn memory(array: &Bound<'_, PyAny>) -> PyResult<(Vec<usize>, *mut u8, usize)> {
    let size: usize = array.getattr("itemsize")?.extract()?;
    let header = Header::of(array)
        .filter(Header::is_c_contiguous)
        .ok_or_else(|| PyValueError::new_err("a C-contiguous array is needed"))?;
    Ok((header.shape(), header.data, header.len() * size))
}

/// Writes `path`: the arrays (C-contiguous, little-endian), and a text as metadata. The file appears whole or not at all.
#[pyfunction]
#[pyo3(signature = (path, arrays, metadata, /))]
pub(super) fn save_safetensors(
    py: Python<'_>,
    path: PathBuf,
    arrays: Vec<(String, Bound<'_, PyAny>)>,
    metadata: String,
) -> PyResult<()> {
    let mut tensors = Vec::with_capacity(arrays.len());
    for (name, array) in &arrays {
        let numpy_name = dtype_name(array);
        let dtype = DTYPES.iter().find(|(_, name)| *name == numpy_name).map(|&(dtype, _)| dtype).ok_or_else(|| {
            PyValueError::new_err(format!("{name} has dtype {numpy_name}, which the file format does not have"))
        })?;
        let (shape, first, len) = memory(array)?;
        // SAFETY: the array is contiguous and not null, so these are its bytes; `arrays` keeps it alive. The Python side made
        // it for this call and shares it with nobody.
        let bytes = unsafe { std::slice::from_raw_parts(first, len) };
        tensors.push((name.as_str(), Tensor { dtype, shape, bytes }));
    }
    let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let metadata = HashMap::from([(METADATA_KEY.to_string(), metadata)]);
    py.detach(|| replace(&path, tensors, metadata))
        .map_err(|error| os_error(&error, "was not written, and is as it was before", &path))
}

/// An `OSError` of the kind that the number says (`FileNotFoundError`, ...), with the file's name.
fn os_error(error: &io::Error, what: &str, path: &Path) -> PyErr {
    let text = format!("{what}: {error}");
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, text, path.display().to_string())),
        None => PyOSError::new_err(format!("{} {text}", path.display())),
    }
}

/// Writes to a file beside `path`, brings it to the disk, and puts it in the place of `path`.
fn replace(path: &Path, tensors: Vec<(&str, &Tensor)>, metadata: HashMap<String, String>) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    /// Two threads may save at once, and a file's name may be as long as names can be.
    static SAVES: AtomicU64 = AtomicU64::new(0);
    let save = SAVES.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".ironstep-{}-{save}.tmp", std::process::id()));
    let write = || {
        // An empty file first: it has the permissions that the umask gives; the crate's own temporary file is 0600.
        let permissions = File::create(&temporary)?.metadata()?.permissions();
        safetensors::serialize_to_file(tensors, Some(metadata), &temporary).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            error => io::Error::other(error),
        })?;
        fs::set_permissions(&temporary, permissions)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename is in the folder.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Reads a file: the arrays by name, each with its dtype's name (a bfloat16 array comes as uint16), and the metadata text
/// that [`save_safetensors`] wrote, if there is one.
#[pyfunction]
#[pyo3(signature = (path, /))]
pub(super) fn load_safetensors(
    py: Python<'_>,
    path: PathBuf,
) -> PyResult<(Vec<(String, &'static str, Bound<'_, PyAny>)>, Option<String>)> {
    let broken = |why: &dyn std::fmt::Display| {
        PyValueError::new_err(format!("{} must be a whole safetensors file: {why}", path.display()))
    };
    let unreadable = |error: io::Error| os_error(&error, "could not be read", &path);
    let mut file = File::open(&path).map_err(unreadable)?;
    let file_len = file.metadata().map_err(unreadable)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => broken(&error),
        _ => unreadable(error),
    })?;
    let header_len = u64::from_le_bytes(length);
    if header_len > file_len.saturating_sub(8) {
        return Err(broken(&"the header is longer than the file"));
    }
    let mut header = vec![0; header_len as usize];
    file.read_exact(&mut header).map_err(|error| broken(&error))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|error| broken(&error))?;
    if 8 + header_len + header.data_len() as u64 != file_len {
        return Err(broken(&"its length is not what the header says; was it cut off?"));
    }
    let mut end = 0;
    for name in header.offset_keys() {
        let info = header.info(&name).ok_or_else(|| broken(&name))?;
        let elements = info.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let size = elements.and_then(|n| n.checked_mul(info.dtype.bitsize())).map(|bits| bits / 8);
        let (from, to) = info.data_offsets;
        if from != end || size != to.checked_sub(from) {
            return Err(broken(&format!("{name} is not where the header says")));
        }
        end = to;
    }
    let empty = py.import("numpy")?.getattr("empty")?;
    let mut arrays = Vec::new();
    // In the order of their place in the file, which has no gaps.
    for name in header.offset_keys() {
        let Some(info) = header.info(&name) else { continue };
        let &(_, dtype) = (DTYPES.iter().find(|(dtype, _)| *dtype == info.dtype))
            .ok_or_else(|| broken(&format!("{name} has the type {:?}", info.dtype)))?;
        let stored = if dtype == "bfloat16" { "uint16" } else { dtype };
        let array = empty.call1((info.shape.clone(), stored))?;
        let (_, first, len) = memory(&array)?;
        // SAFETY: a new, contiguous array that nobody else has seen.
        let bytes = unsafe { std::slice::from_raw_parts_mut(first, len) };
        file.read_exact(bytes).map_err(|error| broken(&error))?;
        arrays.push((name, dtype, array));
    }
    let metadata = header.metadata().as_ref().and_then(|metadata| metadata.get(METADATA_KEY).cloned());
    Ok((arrays, metadata))
}
