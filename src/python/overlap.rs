//! Which arrays share memory.

use std::ops::Range;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::array::Header;

/// An array that is written: its addresses, and its number.
struct Interval {
    bytes: Range<usize>,
    output: usize,
}

/// The outputs of a plan, sorted by address, in clusters whose intervals intersect.
#[derive(Default)]
pub(super) struct Outputs {
    intervals: Vec<Interval>,
    /// Addresses, and which intervals. Disjoint and sorted.
    clusters: Vec<(Range<usize>, Range<usize>)>,
}

fn intersect(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Outputs {
    /// From the addresses of all outputs. `check(a, b)` is called for each pair whose intervals intersect and says no if
    /// they share an element.
    pub(super) fn new(
        bytes: impl Iterator<Item = Range<usize>>,
        mut check: impl FnMut(usize, usize) -> PyResult<()>,
    ) -> PyResult<Outputs> {
        let mut intervals: Vec<Interval> = (bytes.enumerate())
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(output, bytes)| Interval { bytes, output })
            .collect();
        intervals.sort_unstable_by_key(|interval| (interval.bytes.start, interval.output));
        let mut clusters: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        for (i, Interval { bytes, output }) in intervals.iter().enumerate() {
            match clusters.last_mut() {
                Some((span, members)) if bytes.start < span.end => {
                    for other in &intervals[members.clone()] {
                        if intersect(&other.bytes, bytes) {
                            check(other.output.min(*output), other.output.max(*output))?;
                        }
                    }
                    span.end = span.end.max(bytes.end);
                    members.end = i + 1;
                }
                _ => clusters.push((bytes.clone(), i..i + 1)),
            }
        }
        Ok(Outputs { intervals, clusters })
    }

    /// Calls `check(output)` for each output whose interval meets `bytes`. `hint` is where the last look-up ended: arrays
    /// tend to come in the order of their addresses.
    #[inline]
    pub(super) fn meets(
        &self,
        bytes: &Range<usize>,
        hint: &mut usize,
        mut check: impl FnMut(usize) -> PyResult<()>,
    ) -> PyResult<()> {
        // The gap before cluster `i`: after the end of `i - 1`, before the start of `i`.
        let fits = |i: usize| {
            let before = i.checked_sub(1).map_or(Some(0), |i| self.clusters.get(i).map(|(span, _)| span.end));
            before.is_some_and(|end| end <= bytes.start)
                && self.clusters.get(i).is_none_or(|(span, _)| bytes.end <= span.start)
        };
        if fits(*hint) || bytes.is_empty() {
            return Ok(());
        }
        if fits(*hint + 1) {
            *hint += 1;
            return Ok(());
        }
        let mut i = self.clusters.partition_point(|(span, _)| span.end <= bytes.start);
        *hint = i;
        while let Some((span, members)) = self.clusters.get(i)
            && span.start < bytes.end
        {
            for interval in &self.intervals[members.clone()] {
                if intersect(&interval.bytes, bytes) {
                    check(interval.output)?;
                }
            }
            i += 1;
        }
        Ok(())
    }
}

/// Refuses two arrays that share an element. Their intervals are known to intersect.
pub(super) fn refuse_shared(
    (a, a_size): (&Bound<'_, PyAny>, usize),
    (b, b_size): (&Bound<'_, PyAny>, usize),
    a_name: &dyn Fn() -> String,
    b_name: &dyn Fn() -> String,
) -> PyResult<()> {
    if let (Some(a), Some(b)) = (Header::of(a), Header::of(b))
        && interleave(&a, a_size, &b, b_size)
    {
        return Ok(());
    }
    // Exact within a bound on the work; past it NumPy raises.
    let shared = a.py().import("numpy")?.getattr("shares_memory")?.call1((a, b, 1_000_000));
    let verdict = match shared.and_then(|shared| shared.extract::<bool>()) {
        Ok(false) => return Ok(()),
        Ok(true) => "they overlap in memory",
        Err(_) => "it cannot be told in reasonable time whether they overlap in memory",
    };
    Err(PyValueError::new_err(format!(
        "{} and {} must be apart, because one of them is updated in place, but {verdict}; make a copy of one",
        a_name(),
        b_name()
    )))
}

/// Whether two views of one matrix are apart because they have different columns: both step by the same amount, and what
/// each reaches between two steps does not meet. Cheap, and enough for flat buffers cut along any one axis.
fn interleave(a: &Header, a_size: usize, b: &Header, b_size: usize) -> bool {
    let widest = |h: &Header| {
        let axes = h.shape.iter().zip(h.strides).filter(|&(&n, _)| n > 1);
        axes.map(|(_, &stride)| stride.unsigned_abs()).max().unwrap_or(0)
    };
    let step = widest(a);
    if step == 0 || step != widest(b) {
        return false;
    }
    // Lowest address and bytes reached by all axes but the widest.
    let rest = |h: &Header, size: usize| {
        let mut reach = size;
        for (&n, &stride) in h.shape.iter().zip(h.strides) {
            if n > 1 && stride.unsigned_abs() != step {
                reach += (n as usize - 1) * stride.unsigned_abs();
            }
        }
        (h.bytes(size).start % step, reach)
    };
    let ((a_low, a_reach), (b_low, b_reach)) = (rest(a, a_size), rest(b, b_size));
    let a_to_b = (b_low + step - a_low) % step;
    let b_to_a = (a_low + step - b_low) % step;
    a_to_b >= a_reach && b_to_a >= b_reach
}
