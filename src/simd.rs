//! Run-time choice of the instruction set.
//!
//! A [`Kernel`] is a plain loop. [`dispatch`] runs it inside a function that was compiled for the chosen instruction set,
//! and since everything that the kernel calls is `#[inline(always)]`, the loop is vectorised for that set. The source is
//! the same for all of them, addition, multiplication, division and square root are correctly rounded on all of them, and
//! rustc never contracts `a * b + c`: the results are the same bits.
//!
//! Call [`dispatch`] inside a parallel chunk, never around the parallel call: the features do not reach other threads.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An instruction set that this process may use. Values come from [`Isa::detect`], [`Isa::available`] or [`Isa::named`]
/// alone, which is what makes [`dispatch`] sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// 0, or 1 more than the index in [`Isa::available`].
static SELECTED: AtomicUsize = AtomicUsize::new(0);

impl Isa {
    /// What every CPU of the target has: SSE2 on `x86_64`, NEON on aarch64.
    pub const BASELINE: Isa = Isa(Level::Baseline);

    /// The best one that this CPU has.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Isa::available().last().unwrap_or(&Isa::BASELINE))
    }

    /// The one that calls use which are not told: what [`Isa::select`] said, else the best.
    pub fn current() -> Isa {
        match SELECTED.load(Ordering::Relaxed) {
            0 => Isa::detect(),
            n => Isa::available()[n - 1],
        }
    }

    /// Sets what [`Isa::current`] gives, for this process; `None` for the best. For tests.
    pub fn select(isa: Option<Isa>) {
        let index = isa.and_then(|isa| Isa::available().iter().position(|&other| other == isa));
        SELECTED.store(index.map_or(0, |i| i + 1), Ordering::Relaxed);
    }

    /// All that this CPU has, worst first.
    pub fn available() -> Vec<Isa> {
        let mut all = vec![Isa::BASELINE];
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            if has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma") {
                all.push(Isa(Level::Avx2));
                if has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl") {
                    all.push(Isa(Level::Avx512));
                }
            }
        }
        all
    }

    /// The set of that name ("baseline", "avx2", "avx512"), if this CPU has it.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A loop to be compiled once per instruction set. `run` and all that it calls must be `#[inline(always)]`.
pub trait Kernel {
    /// What it gives back.
    type Output;
    /// The loop.
    fn run(self) -> Self::Output;
}

/// Runs the kernel with the given instruction set.
#[inline(always)]
pub fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.0 {
        Level::Baseline => baseline(kernel),
        // SAFETY: an `Isa` of this level exists only if the CPU was found to have these features.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2(kernel) },
        // SAFETY: likewise.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(kernel) },
    }
}

/// Asks for the memory from `first` on, up to 8 KiB of it, to be brought into the cache: what a loop that goes over one piece
/// several times will want next. No effect on results.
#[inline(always)]
pub fn prefetch<E>(first: *const E, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..(n * size_of::<E>()).min(8192)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(first.cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, n);
}

#[inline(never)]
fn baseline<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,f16c,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,f16c,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Some(isa));
        }
        assert_eq!(Isa::named("mmx"), None);
        assert_eq!(Isa::available().last(), Some(&Isa::detect()));
    }

    #[test]
    fn a_kernel_runs_on_each() {
        struct Sum<'a>(&'a [u32]);
        impl Kernel for Sum<'_> {
            type Output = u32;
            #[inline(always)]
            fn run(self) -> u32 {
                self.0.iter().sum()
            }
        }
        for isa in Isa::available() {
            assert_eq!(dispatch(isa, Sum(&[1, 2, 3])), 6);
        }
    }
}
