//! Arrays by address: what the step loop knows of a NumPy array, and the conversion of any layout and dtype to tiles.
//!
//! The kernels work on plain slices of the type that is computed in. An operand that is not stored so (another dtype, a
//! stride, a foreign byte order, an odd address) is copied to a [`TILE`], which stays in the L1 cache, and back.

use std::marker::PhantomData;

use crate::float::{Bf16, Bits, DType, Element, F16, Real};
use crate::simd::{Isa, Kernel, dispatch};

/// Elements in a tile. A multiple of the 16 lanes of [`crate::reduce`]; seven tiles of `f32` fit a 32 KiB L1 cache.
pub const TILE: usize = 1024;

/// An array that somebody else owns and keeps alive: an address, an element type and a layout.
///
/// Its shape is that of the leaf that it belongs to.
#[derive(Clone, Debug)]
pub struct View {
    /// The first element in the order that it is walked in.
    pub ptr: *mut u8,
    /// The element type.
    pub dtype: DType,
    /// Stored in the byte order that is not this machine's.
    pub swapped: bool,
    /// Bytes from one element to the next along each axis. `None`: the elements follow each other.
    pub strides: Option<Box<[isize]>>,
}

// SAFETY: a `View` is an address and numbers. That it is valid, and that no two threads write the same element, is what
// the `unsafe` functions that take one require.
unsafe impl Send for View {}
// SAFETY: likewise.
unsafe impl Sync for View {}

impl View {
    /// Whether its elements can be used where they lie, as a slice of `dtype`.
    pub fn is_slice_of(&self, dtype: DType) -> bool {
        self.dtype == dtype && !self.swapped && self.strides.is_none() && self.ptr.addr().is_multiple_of(dtype.size())
    }

    /// The address of element `index`, for a view without strides.
    #[inline(always)]
    pub fn at(&self, index: usize) -> *mut u8 {
        self.ptr.wrapping_add(index * self.dtype.size())
    }

    /// Copies elements `start ..` in C order of `shape` to `out`, widened.
    ///
    /// # Safety
    /// The view is valid for reads of that many elements of that shape, and nobody writes them meanwhile.
    pub unsafe fn load<T: Real>(&self, isa: Isa, shape: &[usize], start: usize, out: &mut [T]) {
        let mut done = 0;
        for_each_run(shape, self.strides.as_deref(), self.dtype.size(), start, out.len(), |offset, stride, n| {
            let (ptr, swapped, out) = (self.ptr.wrapping_offset(offset), self.swapped, &mut out[done..done + n]);
            match self.dtype {
                DType::F32 => dispatch(isa, Load::<f32, T> { ptr: ptr.cast(), stride, swapped, out }),
                DType::F64 => dispatch(isa, Load::<f64, T> { ptr: ptr.cast(), stride, swapped, out }),
                DType::F16 => dispatch(isa, Load::<F16, T> { ptr: ptr.cast(), stride, swapped, out }),
                DType::Bf16 => dispatch(isa, Load::<Bf16, T> { ptr: ptr.cast(), stride, swapped, out }),
            }
            done += n;
        });
    }

    /// Copies `values` to elements `start ..` in C order of `shape`, narrowed with one rounding.
    ///
    /// # Safety
    /// The view is valid for writes of that many elements of that shape, no two of them are the same memory, and nobody
    /// else reads or writes them meanwhile.
    pub unsafe fn store<T: Real>(&self, isa: Isa, shape: &[usize], start: usize, values: &[T]) {
        let mut done = 0;
        for_each_run(shape, self.strides.as_deref(), self.dtype.size(), start, values.len(), |offset, stride, n| {
            let (ptr, swapped, values) = (self.ptr.wrapping_offset(offset), self.swapped, &values[done..done + n]);
            match self.dtype {
                DType::F32 => dispatch(isa, Store::<f32, T> { ptr: ptr.cast(), stride, swapped, values }),
                DType::F64 => dispatch(isa, Store::<f64, T> { ptr: ptr.cast(), stride, swapped, values }),
                DType::F16 => dispatch(isa, Store::<F16, T> { ptr: ptr.cast(), stride, swapped, values }),
                DType::Bf16 => dispatch(isa, Store::<Bf16, T> { ptr: ptr.cast(), stride, swapped, values }),
            }
            done += n;
        });
    }
}

/// A slice that several threads write, each its own elements.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: an address and a number; the `unsafe` functions require that no two threads use the same element.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: likewise.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Of a slice.
    pub fn new(slice: &'a mut [T]) -> Shared<'a, T> {
        Shared { ptr: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// Nobody else uses them while the result lives.
    ///
    /// # Panics
    /// If there are not as many.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "that is its purpose")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "a part of the slice");
        // SAFETY: within the slice that this was made of, and nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }

    /// Element `i`.
    ///
    /// # Safety
    /// As for [`Shared::slice`].
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "that is its purpose")]
    pub unsafe fn at(&self, i: usize) -> &mut T {
        // SAFETY: passed on.
        unsafe { &mut self.slice(i, 1)[0] }
    }
}

/// Calls `f(byte offset, byte stride, length)` for each straight run of the elements `start .. start + n` in C order.
fn for_each_run(
    shape: &[usize],
    strides: Option<&[isize]>,
    size: usize,
    start: usize,
    n: usize,
    mut f: impl FnMut(isize, isize, usize),
) {
    let Some(strides) = strides else {
        return f((start * size) as isize, size as isize, n);
    };
    let (Some((&inner, outer)), Some((&stride, outer_strides))) = (shape.split_last(), strides.split_last()) else {
        return f(0, size as isize, n);
    };
    let (mut at, end) = (start, start + n);
    while at < end {
        let (mut rest, column) = (at / inner, at % inner);
        let mut offset = column as isize * stride;
        for (&dim, &stride) in outer.iter().zip(outer_strides).rev() {
            offset += (rest % dim) as isize * stride;
            rest /= dim;
        }
        let run = (inner - column).min(end - at);
        f(offset, stride, run);
        at += run;
    }
}

/// Between the types that are computed in: exact upwards, one rounding downwards.
#[inline(always)]
fn convert<A: Real, B: Real>(x: A) -> B {
    // Through `f64`, which holds both exactly: the compiler drops the detour.
    B::from_f64(x.to_f64())
}

/// A run of stored elements `E` to a slice.
struct Load<'a, E: Element, T> {
    ptr: *const E::Bits,
    stride: isize,
    swapped: bool,
    out: &'a mut [T],
}

impl<E: Element, T: Real> Kernel for Load<'_, E, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Load { ptr, stride, swapped, out } = self;
        if stride == size_of::<E>() as isize && !swapped {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: `View::load` requires the elements to be readable; any address will do.
                let bits = unsafe { ptr.wrapping_add(i).read_unaligned() };
                *out = convert(E::from_bits(bits).widen());
            }
        } else {
            for (i, out) in out.iter_mut().enumerate() {
                // SAFETY: likewise.
                let bits = unsafe { ptr.wrapping_byte_offset(i as isize * stride).read_unaligned() };
                *out = convert(E::from_bits(if swapped { bits.swap() } else { bits }).widen());
            }
        }
    }
}

/// A slice to a run of stored elements `E`.
struct Store<'a, E: Element, T> {
    ptr: *mut E::Bits,
    stride: isize,
    swapped: bool,
    values: &'a [T],
}

impl<E: Element, T: Real> Kernel for Store<'_, E, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        let Store { ptr, stride, swapped, values } = self;
        if stride == size_of::<E>() as isize && !swapped {
            for (i, &x) in values.iter().enumerate() {
                // SAFETY: `View::store` requires the elements to be writable and distinct; any address will do.
                unsafe { ptr.wrapping_add(i).write_unaligned(E::narrow(convert(x)).to_bits()) };
            }
        } else {
            for (i, &x) in values.iter().enumerate() {
                let bits = E::narrow(convert(x)).to_bits();
                let bits = if swapped { bits.swap() } else { bits };
                // SAFETY: likewise.
                unsafe { ptr.wrapping_byte_offset(i as isize * stride).write_unaligned(bits) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view<T>(x: &mut [T], dtype: DType, strides: Option<&[isize]>, first: usize) -> View {
        View { ptr: x.as_mut_ptr().wrapping_add(first).cast(), dtype, swapped: false, strides: strides.map(Into::into) }
    }

    #[test]
    fn strides_walk_in_c_order() {
        // A 3 x 4 array, stored transposed with its rows reversed.
        let mut x: Vec<f32> = (0..12u8).map(f32::from).collect();
        let v = view(&mut x, DType::F32, Some(&[-4, 12]), 2);
        let want: Vec<f64> = (0..3u8).flat_map(|i| (0..4u8).map(move |j| f64::from(2 - i + 3 * j))).collect();
        for isa in Isa::available() {
            for start in 0..12 {
                let mut out = vec![0f64; 12 - start];
                // SAFETY: `x` has these 12 elements.
                unsafe { v.load(isa, &[3, 4], start, &mut out) };
                assert_eq!(out, want[start..]);
            }
        }
        // SAFETY: likewise, and all 12 are distinct.
        unsafe { v.store(Isa::detect(), &[3, 4], 5, &[-1f64, -2.0]) };
        assert_eq!((x[2 - 1 + 3], x[2 - 1 + 6]), (-1.0, -2.0));
        assert_eq!(x.iter().filter(|&&x| x < 0.0).count(), 2);
    }

    #[test]
    fn swapped_and_half_elements_round_trip() {
        let values = [1.5f32, -0.25, 65504.0, 3.0e-5];
        for dtype in [DType::F32, DType::F64, DType::F16] {
            let mut bytes = [0u8; 33];
            // An odd address.
            let v = View { ptr: bytes[1..].as_mut_ptr(), dtype, swapped: true, strides: None };
            let mut out = [0f32; 4];
            // SAFETY: `bytes` holds 4 elements of up to 8 bytes after its first.
            unsafe {
                v.store(Isa::detect(), &[4], 0, &values);
                v.load(Isa::detect(), &[4], 0, &mut out);
            }
            assert_eq!(out[..3], values[..3]);
            assert_eq!(bytes[1], if dtype == DType::F16 { 0x3e } else { 0x3f });
        }
    }
}
