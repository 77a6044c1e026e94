//! Schedules: pure functions of the step, in f64, with the same bits on every platform.
//!
//! A schedule has no state and knows no optimiser. Everything is a closed form of the step, so a run that goes on from a
//! checkpoint needs the number of the step and nothing else, and nothing drifts.

use std::f64::consts::PI;
use std::fmt;
use std::sync::Mutex;

use crate::parallel::share;

/// What a schedule with an end does after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum After {
    /// It keeps the value of the end.
    Hold,
    /// To ask is an error.
    Raise,
    /// Its equation goes on.
    Extend,
}

/// How a [`Schedule::Ramp`] goes from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// `(1 - u)^power`.
    Linear,
    /// `((1 + cos(pi u)) / 2)^power`.
    Cosine,
    /// `1 - sqrt(u)`.
    Sqrt,
    /// Equal ratios: `start (end / start)^u`.
    Exponential,
}

/// How the peaks of [`Schedule::Cyclic`] become smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cycle {
    /// Not at all.
    Triangular,
    /// Halved after each cycle.
    Triangular2,
    /// By a factor with each step.
    ExpRange,
}

/// A step after the end of a schedule with [`After::Raise`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PastEnd {
    /// The step that was asked for.
    pub step: f64,
    /// The last step that there is.
    pub last: f64,
}

impl PastEnd {
    /// The same on a clock on which it is step `t`.
    fn on(self, t: f64) -> PastEnd {
        PastEnd { step: t, last: self.last + (t - self.step) }
    }
}

impl fmt::Display for PastEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "step must be at most {}, the end of the schedule, got {}; after='hold' keeps the last value, 'extend' the \
             equation",
            self.last, self.step
        )
    }
}

impl std::error::Error for PastEnd {}

/// A function of the step `t`, from 0 on.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// The same at all steps.
    Constant(f64),
    /// From `start` at 0 to `end` at `span`: `start w + end (1 - w)`, where `w` is the shape's function of `u = (t / span)^warp`.
    Ramp {
        /// The value at 0.
        start: f64,
        /// The value at `span`.
        end: f64,
        /// Steps from the one to the other.
        span: f64,
        /// The way between them.
        shape: Shape,
        /// The exponent of the shape.
        power: f64,
        /// The exponent of the time.
        warp: f64,
        /// What comes then.
        after: After,
    },
    /// `value gamma^(t / steps)`, the exponent rounded down with `staircase`.
    Decay {
        /// The value at 0.
        value: f64,
        /// The factor for `steps` steps.
        gamma: f64,
        /// See `gamma`.
        steps: f64,
        /// Whether it moves in jumps.
        staircase: bool,
        /// Where it stops: a floor for `gamma < 1`, else a ceiling.
        limit: Option<f64>,
    },
    /// `values[i]` between `boundaries[i - 1]`, included, and `boundaries[i]`.
    Steps {
        /// In ascending order.
        boundaries: Vec<f64>,
        /// One more than boundaries.
        values: Vec<f64>,
    },
    /// Cosines one after the other: the `i`-th from `start decay^i` to `end` within `T_0 T_mult^i` steps.
    Restarts {
        /// The first peak.
        start: f64,
        /// The floor.
        end: f64,
        /// The length of the first.
        t_0: f64,
        /// The factor from length to length: 1, or at least 1.1, for the cycles are counted one by one.
        t_mult: f64,
        /// The factor from peak to peak.
        decay: f64,
        /// How many, or 0 for ever.
        cycles: u32,
        /// The exponent of the time within a cycle.
        warp: f64,
        /// Whether the floor is reached one step before the next peak, instead of being cut off by it.
        endpoint: bool,
        /// What comes after the last.
        after: After,
    },
    /// `value (1 + t / timescale)^-power`.
    InversePower {
        /// The value at 0.
        value: f64,
        /// The steps after which it is divided by `2^power`.
        timescale: f64,
        /// 0.5 for the inverse square root.
        power: f64,
    },
    /// From `base` up to `max` within `up` steps and back within `down`, again and again.
    Cyclic {
        /// The lower value.
        base: f64,
        /// The upper value of the first cycle.
        max: f64,
        /// Steps upwards.
        up: f64,
        /// Steps downwards.
        down: f64,
        /// How the peaks become smaller.
        cycle: Cycle,
        /// The factor of `ExpRange`.
        gamma: f64,
    },
    /// One after the other; each begins with its own step 0 at its boundary.
    Join {
        /// One more than boundaries.
        schedules: Vec<Schedule>,
        /// In ascending order.
        boundaries: Vec<f64>,
    },
    /// Their product.
    Product(Vec<Schedule>),
    /// Their sum, from the first to the last.
    Sum(Vec<Schedule>),
    /// Later by some steps, and before that its first value; or earlier by a negative number of them.
    Shift(Box<Schedule>, f64),
    /// With a clock that moves on once in so many steps.
    PerEpoch(Box<Schedule>, f64),
    /// A straight line up to its first value, and then the schedule.
    Warmup {
        /// What is warmed up to.
        schedule: Box<Schedule>,
        /// The length of the line.
        steps: f64,
        /// Where it begins.
        start: f64,
        /// Whether the first step is one step up from `start` already.
        skip_start: bool,
        /// Whether the schedule's clock runs during the warmup.
        within: bool,
    },
}

/// `x^y` for a factor that is applied again and again: a few times by multiplication, which is faster than `libm::pow` and
/// hardly less exact.
fn repeated(x: f64, y: f64) -> f64 {
    if y > 32.0 || y != libm::floor(y) {
        return libm::pow(x, y);
    }
    let (mut result, mut square, mut n) = (1.0, x, y as u32);
    while n > 0 {
        if n & 1 == 1 {
            result *= square;
        }
        square *= square;
        n >>= 1;
    }
    result
}

/// `x^y`, at once in the common case.
fn pow(x: f64, y: f64) -> f64 {
    if y == 1.0 { x } else { libm::pow(x, y) }
}

/// `start` with the weight `w` and `end` with the rest `u`: exact at both ends, and where they are equal.
fn mix(start: f64, end: f64, w: f64, u: f64) -> f64 {
    if start == end { start } else { start * w + end * u }
}

/// `mix` for a weight that was computed, not its rest.
fn weigh(start: f64, end: f64, w: f64) -> f64 {
    mix(start, end, w, 1.0 - w)
}

fn cosine(u: f64) -> f64 {
    0.5 * (1.0 + libm::cos(PI * u))
}

/// `t`, or the end if that is before it and is held.
fn until(t: f64, last: f64, after: After) -> Result<f64, PastEnd> {
    match after {
        After::Hold if t > last => Ok(last),
        After::Raise if t > last => Err(PastEnd { step: t, last }),
        _ => Ok(t),
    }
}

/// The number of the cycle that `t` is in, the last one from its beginning on, where it begins, and how long it is.
fn cycle_at(t: f64, t_0: f64, t_mult: f64, cycles: u32) -> (f64, f64, f64) {
    let last = if cycles > 0 { f64::from(cycles) - 1.0 } else { f64::INFINITY };
    if t_mult == 1.0 {
        let i = libm::floor(t / t_0);
        let i = if i > last { last } else { i };
        return (i, i * t_0, t_0);
    }
    let (mut i, mut begin, mut length) = (0.0, 0.0, t_0);
    while t - begin >= length && i < last {
        begin += length;
        length *= t_mult;
        i += 1.0;
    }
    (i, begin, length)
}

/// How many boundaries are at or before `t`.
fn passed(boundaries: &[f64], t: f64) -> usize {
    boundaries.partition_point(|&boundary| boundary <= t)
}

/// The start and number of the part that `t` is in.
fn part(boundaries: &[f64], t: f64) -> (f64, usize) {
    let i = passed(boundaries, t);
    (if i == 0 { 0.0 } else { boundaries[i - 1] }, i)
}

impl Schedule {
    /// The value at step `t`, which is at least 0.
    ///
    /// # Errors
    /// If it is past an end after which nothing comes.
    pub fn at(&self, t: f64) -> Result<f64, PastEnd> {
        Ok(match *self {
            Schedule::Constant(value) => value,
            Schedule::Ramp { start, end, span, shape, power, warp, after } => {
                let t = until(t, span, after)?;
                let u = pow(t / span, warp);
                match shape {
                    Shape::Linear if power == 1.0 => mix(start, end, 1.0 - u, u),
                    Shape::Linear => weigh(start, end, libm::pow(1.0 - u, power)),
                    Shape::Cosine => weigh(start, end, pow(cosine(u), power)),
                    Shape::Sqrt => {
                        let u = libm::sqrt(u);
                        mix(start, end, 1.0 - u, u)
                    }
                    Shape::Exponential if u == 1.0 => end,
                    Shape::Exponential => start * repeated(end / start, u),
                }
            }
            Schedule::Decay { value, gamma, steps, staircase, limit } => {
                let exponent = t / steps;
                let value = value * repeated(gamma, if staircase { libm::floor(exponent) } else { exponent });
                match limit {
                    Some(limit) if (if gamma < 1.0 { value < limit } else { value > limit }) => limit,
                    _ => value,
                }
            }
            Schedule::Steps { ref boundaries, ref values } => values[passed(boundaries, t)],
            Schedule::Restarts { start, end, t_0, t_mult, decay, cycles, warp, endpoint, after } => {
                let (i, begin, length) = cycle_at(t, t_0, t_mult, cycles);
                let span = if endpoint { length - 1.0 } else { length };
                let t = if i == f64::from(cycles) - 1.0 {
                    until(t - begin, span, after).map_err(|past| past.on(t))?
                } else {
                    t - begin
                };
                // A cycle whose length is no whole number has its last step after `span`.
                let u = if span > 0.0 {
                    pow(if after != After::Extend && t > span { 1.0 } else { t / span }, warp)
                } else {
                    0.0
                };
                let peak = if decay == 1.0 { start } else { start * repeated(decay, i) };
                weigh(peak, end, cosine(u))
            }
            Schedule::InversePower { value, timescale, power } => {
                let x = 1.0 + t / timescale;
                value / if power == 0.5 { libm::sqrt(x) } else { libm::pow(x, power) }
            }
            Schedule::Cyclic { base, max, up, down, cycle, gamma } => {
                let cycles = libm::floor(t / (up + down));
                let t_in = t - cycles * (up + down);
                let height = if t_in <= up { t_in / up } else { (up + down - t_in) / down };
                let factor = match cycle {
                    Cycle::Triangular => 1.0,
                    Cycle::Triangular2 => repeated(0.5, cycles),
                    Cycle::ExpRange => repeated(gamma, t),
                };
                base + (max - base) * height * factor
            }
            Schedule::Join { ref schedules, ref boundaries } => {
                let (begin, i) = part(boundaries, t);
                return schedules[i].at(t - begin).map_err(|past| past.on(t));
            }
            Schedule::Product(ref schedules) => {
                let mut product = 1.0;
                for schedule in schedules {
                    product *= schedule.at(t)?;
                }
                product
            }
            Schedule::Sum(ref schedules) => {
                let mut sum = 0.0;
                for schedule in schedules {
                    sum += schedule.at(t)?;
                }
                sum
            }
            Schedule::Shift(ref schedule, steps) => {
                let shifted = if t > steps { t - steps } else { 0.0 };
                return schedule.at(shifted).map_err(|past| past.on(t));
            }
            Schedule::PerEpoch(ref schedule, steps) => {
                let last = |past: PastEnd| PastEnd { step: t, last: (past.last + 1.0) * steps - 1.0 };
                return schedule.at(libm::floor(t / steps)).map_err(last);
            }
            Schedule::Warmup { ref schedule, steps, start, skip_start, within } => {
                if t >= steps {
                    return schedule.at(if within { t } else { t - steps }).map_err(|past| past.on(t));
                }
                let u = if skip_start { (t + 1.0) / steps } else { t / steps };
                let u = if u > 1.0 { 1.0 } else { u };
                mix(start, schedule.at(0.0)?, 1.0 - u, u)
            }
        })
    }

    /// `at` for many steps.
    ///
    /// # Errors
    /// As `at`, for the first step that is past an end.
    ///
    /// # Panics
    /// If `out` has another length than `steps`.
    pub fn fill(&self, steps: &[f64], out: &mut [f64]) -> Result<(), PastEnd> {
        /// Values that one task computes.
        const PIECE: usize = 1 << 12;
        /// A value costs as much as this many elements of an array.
        const WEIGHT: usize = 32;
        assert_eq!(steps.len(), out.len());
        let pieces: Vec<_> =
            steps.chunks(PIECE).zip(out.chunks_mut(PIECE)).map(|(t, out)| Mutex::new((t, out))).collect();
        let ends: Vec<Mutex<Option<PastEnd>>> = pieces.iter().map(|_| Mutex::new(None)).collect();
        share(WEIGHT * steps.len(), pieces.len(), |i| {
            // Each task takes its own piece, so no lock waits, and none is poisoned.
            let (Ok(mut piece), Ok(mut end)) = (pieces[i].lock(), ends[i].lock()) else { return };
            let (steps, out) = &mut *piece;
            for (t, value) in steps.iter().zip(out.iter_mut()) {
                match self.at(*t) {
                    Ok(x) => *value = x,
                    Err(past) => {
                        *end = Some(past);
                        return;
                    }
                }
            }
        });
        let first = ends.into_iter().find_map(|end| end.into_inner().ok().flatten());
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(after: After) -> Schedule {
        Schedule::Ramp { start: 0.3, end: 0.1, span: 7.0, shape: Shape::Cosine, power: 1.0, warp: 1.0, after }
    }

    #[test]
    fn a_ramp_has_exact_ends() {
        for shape in [Shape::Linear, Shape::Cosine, Shape::Sqrt, Shape::Exponential] {
            let schedule =
                Schedule::Ramp { start: 0.3, end: 0.1, span: 7.0, shape, power: 2.0, warp: 1.5, after: After::Hold };
            assert_eq!(schedule.at(0.0), Ok(0.3), "{shape:?}");
            assert_eq!(schedule.at(7.0), Ok(0.1), "{shape:?}");
            assert_eq!(schedule.at(1e15), Ok(0.1), "{shape:?}");
        }
    }

    #[test]
    fn the_end_is_chosen() {
        assert_eq!(ramp(After::Hold).at(8.0), Ok(0.1));
        assert_eq!(ramp(After::Raise).at(7.0), Ok(0.1));
        assert_eq!(ramp(After::Raise).at(8.0), Err(PastEnd { step: 8.0, last: 7.0 }));
        let warm = Schedule::Warmup {
            schedule: Box::new(Schedule::PerEpoch(Box::new(ramp(After::Raise)), 5.0)),
            steps: 3.0,
            start: 0.0,
            skip_start: true,
            within: false,
        };
        assert!(warm.at(42.0).is_ok());
        assert_eq!(warm.at(43.0), Err(PastEnd { step: 43.0, last: 42.0 }));
        let again = ramp(After::Extend).at(14.0).unwrap();
        assert!((again - 0.3).abs() < 1e-15);
    }

    #[test]
    fn many_are_as_one_each() {
        let restarts = Schedule::Restarts {
            start: 1.0,
            end: 0.1,
            t_0: 10.0,
            t_mult: 1.5,
            decay: 0.5,
            cycles: 5,
            warp: 1.0,
            endpoint: true,
            after: After::Hold,
        };
        let steps: Vec<f64> = (0..20_000).map(|i| f64::from(i) * 0.5).collect();
        let mut out = vec![f64::NAN; steps.len()];
        restarts.fill(&steps, &mut out).unwrap();
        for (t, value) in steps.iter().zip(out) {
            assert_eq!(restarts.at(*t), Ok(value));
        }
        let mut out = vec![0.0; steps.len()];
        let past = ramp(After::Raise).fill(&steps, &mut out).unwrap_err();
        assert_eq!(past, PastEnd { step: 7.5, last: 7.0 });
    }
}
