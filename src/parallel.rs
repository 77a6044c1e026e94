//! Threads: the process's own pool, and the floating-point environment that every kernel runs in.
//!
//! Work is split into tasks whose number and borders depend on the shapes alone. Which thread runs which task is decided
//! as they come free, so the results cannot depend on it.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::{env, process, ptr, thread};

/// Elements in a chunk, the unit that arrays are cut into: 64 KiB of `f32`. It is also the block of the sums in
/// [`crate::reduce`], so changing it changes bits.
pub const CHUNK: usize = 1 << 14;

/// Calls with fewer elements than this stay on the calling thread: waking another one costs more.
pub const SMALL: usize = 2 * CHUNK;

/// 0: not set by [`set_num_threads`].
static REQUESTED: AtomicUsize = AtomicUsize::new(0);

/// The number of threads that large calls use: what [`set_num_threads`] said, else `IRONSTEP_NUM_THREADS`, else the
/// cores that this process may use (affinity and cgroup limits count).
pub fn num_threads() -> usize {
    match REQUESTED.load(Ordering::Relaxed) {
        0 => {
            let from_env = env::var("IRONSTEP_NUM_THREADS").ok().and_then(|text| text.trim().parse().ok());
            let n = from_env
                .filter(|&n| n > 0)
                .unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));
            REQUESTED.store(n, Ordering::Relaxed);
            n
        }
        n => n,
    }
}

/// Sets the number of threads for this process; 0 returns to the default.
pub fn set_num_threads(n: usize) {
    REQUESTED.store(n, Ordering::Relaxed);
}

/// The helpers of one process. The calling thread always works too, so `n` threads need `n - 1` helpers.
struct Pool {
    pid: u32,
    helpers: usize,
    rayon: rayon::ThreadPool,
}

/// The current pool, or null. Never freed: a forked child has the pointer but not the threads, and dropping the parent's
/// pool there would wait for them for ever; a pool that grew may still be in use by another thread.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

/// A pool of this process with at least that many helpers, or none if the threads cannot be had. Takes no lock.
fn pool(helpers: usize) -> Option<&'static Pool> {
    let pid = process::id();
    loop {
        let current = POOL.load(Ordering::Acquire);
        // SAFETY: the pointer is null or came from `Box::into_raw` below and is never freed.
        if let Some(pool) = unsafe { current.as_ref() }
            && pool.pid == pid
            && pool.helpers >= helpers
        {
            return Some(pool);
        }
        let rayon = rayon::ThreadPoolBuilder::new()
            .num_threads(helpers)
            .thread_name(|i| format!("ironstep-{i}"))
            .build()
            .ok()?;
        let new = Box::into_raw(Box::new(Pool { pid, helpers, rayon }));
        if POOL.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `new` came from `Box::into_raw` and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
    }
}

/// Runs `body(0)` .. `body(tasks - 1)`, each once, on up to `threads` threads of which the caller is one, in the IEEE
/// floating-point environment. Which thread takes which task is not defined.
pub fn for_each(tasks: usize, threads: usize, body: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        ieee(|| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                body(task);
            }
        });
    };
    let helpers = threads.min(tasks).saturating_sub(1);
    match if helpers > 0 { pool(helpers) } else { None } {
        None => work(),
        Some(pool) => pool.rayon.in_place_scope(|scope| {
            for _ in 0..helpers {
                scope.spawn(|_| work());
            }
            work();
        }),
    }
}

/// Runs `f` with subnormal numbers kept, rounding to nearest and no traps, whatever the thread's flags were, and puts
/// those back (status flags too, so `numpy.errstate` sees nothing of ours). 31 ns.
pub fn ieee<R>(f: impl FnOnce() -> R) -> R {
    /// Not inlined: the compiler must not move arithmetic across the change of the flags.
    #[inline(never)]
    fn call<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    struct Restore(environment::Word);
    impl Drop for Restore {
        fn drop(&mut self) {
            environment::set(self.0);
        }
    }
    let _restore = Restore(environment::get());
    environment::set(environment::IEEE);
    call(f)
}

#[cfg(target_arch = "x86_64")]
mod environment {
    use std::arch::asm;

    pub(super) type Word = u32;
    /// MXCSR after reset: all exceptions masked, round to nearest, no FTZ, no DAZ.
    pub(super) const IEEE: Word = 0x1f80;

    pub(super) fn get() -> Word {
        let mut word: Word = 0;
        // SAFETY: stores 4 bytes to `word`, which lives here.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
        word
    }

    pub(super) fn set(word: Word) {
        // SAFETY: loads 4 bytes from `word`; the value is IEEE or one read by `get`, so no reserved bit is set. Memory
        // counts as clobbered, so no arithmetic on memory moves across.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod environment {
    use std::arch::asm;

    pub(super) type Word = u64;
    /// FPCR: round to nearest, no flush to zero, no traps.
    pub(super) const IEEE: Word = 0;

    pub(super) fn get() -> Word {
        let word: Word;
        // SAFETY: reads a register that user code may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    pub(super) fn set(word: Word) {
        // SAFETY: writes IEEE or a value read by `get`.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod environment {
    pub(super) type Word = ();
    pub(super) const IEEE: Word = ();
    pub(super) fn get() -> Word {}
    pub(super) fn set((): Word) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn each_task_runs_once() {
        for threads in [1, 2, 3, 7] {
            for tasks in [0, 1, 2, 5, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                for_each(tasks, threads, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn subnormals_survive_a_caller_that_flushes_them() {
        let flush = environment::IEEE | 0x8040;
        let before = environment::get();
        environment::set(flush);
        let flushed = black_box(f32::MIN_POSITIVE) * black_box(0.5);
        let kept = ieee(|| black_box(f32::MIN_POSITIVE) * black_box(0.5));
        let after = environment::get();
        environment::set(before);
        assert_eq!(flushed, 0.0);
        assert_eq!(kept.to_bits(), 0x0040_0000);
        assert_eq!(after & 0x8040, 0x8040, "the caller's flags are put back");
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let caught = std::panic::catch_unwind(|| for_each(100, 3, |i| assert!(i != 57, "task 57")));
        assert!(caught.is_err());
    }
}
