//! Threads: the process's own pool, and the floating-point environment that every kernel runs in.
//!
//! Work is split into tasks whose number and borders depend on the shapes alone. Which thread runs which task is decided
//! as they come free, so the results cannot depend on it.

use std::any::Any;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, hint, process, ptr, thread};

use crate::scheduling;

/// Elements in a chunk, the unit that arrays are cut into: 64 KiB of `f32`. It is also the block of the sums in
/// [`crate::reduce`], so changing it changes bits.
pub const CHUNK: usize = 1 << 14;

/// Calls with fewer elements than this stay on the calling thread.
pub const SMALL: usize = 2 * CHUNK;

/// Calls with fewer elements than this take help only from threads that are awake: to wake one costs more than it gives.
pub const WORTH_WAKING: usize = 16 * CHUNK;

/// With fewer tasks for each, fewer threads are asked: each costs the caller a wake-up.
const TASKS_EACH: usize = 4;

/// The most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// 0: not set by [`set_num_threads`].
static REQUESTED: AtomicUsize = AtomicUsize::new(0);

/// The number of threads that large calls use: what [`set_num_threads`] said, else `IRONSTEP_NUM_THREADS`, else the
/// cores that this process may use (affinity and cgroup limits count).
pub fn num_threads() -> usize {
    match REQUESTED.load(Ordering::Relaxed) {
        0 => {
            let from_env = env::var("IRONSTEP_NUM_THREADS").ok().and_then(|text| text.trim().parse().ok());
            let n = from_env
                .filter(|n| (1..=MAX_THREADS).contains(n))
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
    /// Threads that were started; more are when more are wanted.
    helpers: Mutex<usize>,
    queue: Mutex<VecDeque<Job>>,
    ready: Condvar,
    /// Jobs in the queue, for those that look without the lock.
    waiting: AtomicUsize,
    /// Helpers that look for a job just now, so that none must be woken.
    looking: AtomicUsize,
}

/// What a helper is to do, if it comes in time.
struct Job {
    gate: Arc<Gate>,
    work: Work,
    /// Where the caller runs.
    cpu: Option<usize>,
}

/// How long a helper looks for another job before it sleeps. Calls often come one after the other, and to wake a thread
/// takes long: 20 us of the caller's time, and up to 300 until it runs, measured on a virtual machine.
const LOOK: Duration = Duration::from_micros(50);

/// The current pool, or null. Never freed: a forked child has the pointer but not the threads, and the mutexes as some
/// other thread of the parent may have left them, so it makes a pool of its own and does not touch the old one.
static POOL: AtomicPtr<Pool> = AtomicPtr::new(ptr::null_mut());

/// The pool of this process. Takes no lock.
fn pool() -> &'static Pool {
    let pid = process::id();
    loop {
        let current = POOL.load(Ordering::Acquire);
        // SAFETY: the pointer is null or came from `Box::into_raw` below and is never freed.
        if let Some(pool) = unsafe { current.as_ref() }
            && pool.pid == pid
        {
            return pool;
        }
        let new = Box::into_raw(Box::new(Pool::new()));
        if POOL.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: `new` came from `Box::into_raw` and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
    }
}

impl Pool {
    fn new() -> Pool {
        Pool {
            pid: process::id(),
            helpers: Mutex::new(0),
            queue: Mutex::new(VecDeque::new()),
            ready: Condvar::new(),
            waiting: AtomicUsize::new(0),
            looking: AtomicUsize::new(0),
        }
    }

    /// Starts threads until there are `n`, or as many as can be had.
    fn start(&'static self, n: usize) {
        let mut helpers = lock(&self.helpers);
        while *helpers < n {
            let name = format!("ironstep-{helpers}");
            if thread::Builder::new().name(name).spawn(|| self.help()).is_err() {
                return;
            }
            *helpers += 1;
        }
    }

    /// The life of a helper.
    fn help(&self) {
        scheduling::ask_for_short_slices();
        loop {
            let job = self.next();
            scheduling::leave(job.cpu);
            if job.gate.enter() {
                // SAFETY: inside the gate.
                let result = catch_unwind(AssertUnwindSafe(|| unsafe { job.work.call() }));
                job.gate.leave(result.err());
            }
        }
    }

    /// Looks for a job for a while, then sleeps until there is one.
    fn next(&self) -> Job {
        let start = Instant::now();
        self.looking.fetch_add(1, Ordering::SeqCst);
        while self.waiting.load(Ordering::SeqCst) == 0 && start.elapsed() < LOOK {
            for _ in 0..16 {
                hint::spin_loop();
            }
        }
        self.looking.fetch_sub(1, Ordering::SeqCst);
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.pop_front() {
                self.waiting.store(queue.len(), Ordering::SeqCst);
                return job;
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts the job there for `n` helpers, and wakes those that sleep.
    fn post(&self, n: usize, job: impl Fn() -> Job) {
        let mut queue = lock(&self.queue);
        queue.extend((0..n).map(|_| job()));
        self.waiting.store(queue.len(), Ordering::SeqCst);
        drop(queue);
        for _ in self.looking.load(Ordering::SeqCst)..n {
            self.ready.notify_one();
        }
    }

    /// Takes back what nobody has begun.
    fn withdraw(&self, gate: &Arc<Gate>) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let mut queue = lock(&self.queue);
            queue.retain(|job| !Arc::ptr_eq(&job.gate, gate));
            self.waiting.store(queue.len(), Ordering::SeqCst);
        }
    }
}

/// A panic while a lock is held leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `body(0)` .. `body(tasks - 1)`, each once, on up to `threads` threads of which the caller is one, in the IEEE
/// floating-point environment. Which thread takes which task is not defined.
///
/// `wake`: whether it is worth to wake a sleeping helper; one that is awake helps in any case. The caller never waits for a
/// helper that has not begun: other libraries' threads may spin on the cores that the helpers need (OpenMP's do for
/// milliseconds after a backward pass), and then it does the work alone.
pub fn for_each(tasks: usize, threads: usize, wake: bool, body: impl Fn(usize) + Sync) {
    // Of many tasks several neighbours are taken at once: memory is read faster in longer pieces.
    let take = (tasks / (threads.max(1) * 16)).clamp(1, 16);
    let helpers = threads.min(tasks.div_ceil(TASKS_EACH)).saturating_sub(1);
    run(tasks, take, helpers, wake, body);
}

/// [`for_each`] for tasks that are long, over so many elements in all: each thread takes one after the other, and two tasks are
/// worth two threads.
pub fn for_each_long(tasks: usize, elements: usize, body: impl Fn(usize) + Sync) {
    let threads = if elements < SMALL { 1 } else { num_threads() };
    run(tasks, 1, threads.min(tasks).saturating_sub(1), elements >= WORTH_WAKING, body);
}

fn run(tasks: usize, take: usize, helpers: usize, wake: bool, body: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        ieee(|| {
            loop {
                let first = next.fetch_add(take, Ordering::Relaxed);
                if first >= tasks {
                    break;
                }
                (first..tasks.min(first + take)).for_each(&body);
            }
        });
    };
    if helpers == 0 {
        return work();
    }
    let pool = pool();
    let helpers = if wake { helpers } else { helpers.min(pool.looking.load(Ordering::SeqCst)) };
    if helpers == 0 {
        return work();
    }
    pool.start(helpers);
    with_helpers(pool, helpers, &work);
}

/// [`for_each`] for a call over so many elements: small ones stay on this thread, large ones may wake helpers.
pub fn share(elements: usize, tasks: usize, body: impl Fn(usize) + Sync) {
    let threads = if elements < SMALL { 1 } else { num_threads() };
    for_each(tasks, threads, elements >= WORTH_WAKING, body);
}

/// A reference whose lifetime the gate guards.
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn() + Sync));

// SAFETY: what it points to is `Sync`.
unsafe impl Send for Work {}

impl Work {
    /// # Safety
    /// The caller is inside the gate.
    unsafe fn call(self) {
        // SAFETY: `with_helpers` does not return while somebody is inside, and what it points to lives as long.
        unsafe { (*self.0)() }
    }
}

/// Calls `work` here and on up to `helpers` threads of the pool, and returns when all that have begun are done.
fn with_helpers(pool: &Pool, helpers: usize, work: &(dyn Fn() + Sync)) {
    /// Closes the gate whether the caller's own part returns or panics.
    struct Close<'a>(&'a Pool, &'a Arc<Gate>);
    impl Drop for Close<'_> {
        fn drop(&mut self) {
            self.1.close();
            self.0.withdraw(self.1);
        }
    }

    let gate = Arc::new(Gate::new());
    let close = Close(pool, &gate);
    // SAFETY: only the lifetime changes; see `Work::call`.
    let reference = Work(unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) });
    let cpu = scheduling::cpu();
    pool.post(helpers, || Job { gate: Arc::clone(&gate), work: reference, cpu });
    work();
    drop(close);
    let panic = lock(&gate.panic).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// Who is at work for a call, besides the caller: helpers enter and leave until the caller closes.
struct Gate {
    /// Twice the number of helpers inside, plus 1 when closed.
    state: AtomicUsize,
    caller: thread::Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Gate {
    const CLOSED: usize = 1;
    const ONE: usize = 2;

    fn new() -> Gate {
        Gate { state: AtomicUsize::new(0), caller: thread::current(), panic: Mutex::new(None) }
    }

    /// Whether the helper may go in.
    fn enter(&self) -> bool {
        let open = |state| (state & Gate::CLOSED == 0).then_some(state + Gate::ONE);
        self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, open).is_ok()
    }

    fn leave(&self, panic: Option<Box<dyn Any + Send>>) {
        if let Some(panic) = panic {
            lock(&self.panic).get_or_insert(panic);
        }
        if self.state.fetch_sub(Gate::ONE, Ordering::Release) == Gate::ONE + Gate::CLOSED {
            self.caller.unpark();
        }
    }

    /// Lets nobody in any more, and waits until nobody is inside.
    fn close(&self) {
        /// Longer than a chunk takes.
        const SPINS: u32 = 2000;
        self.state.fetch_or(Gate::CLOSED, Ordering::Relaxed);
        let mut spins = 0;
        while self.state.load(Ordering::Acquire) != Gate::CLOSED {
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                thread::park();
            }
        }
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
    use std::sync::mpsc;

    #[test]
    fn each_task_runs_once() {
        for threads in [1, 2, 3, 7] {
            for tasks in [0, 1, 2, 5, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                for_each(tasks, threads, true, |i| {
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
        let caught = catch_unwind(|| for_each(100, 3, true, |i| assert!(i != 57, "task 57")));
        assert!(caught.is_err());
    }

    #[test]
    fn a_panic_of_a_helper_reaches_the_caller() {
        let caller = thread::current().id();
        let caught = catch_unwind(|| {
            for_each(1 << 20, 3, true, |_| {
                thread::yield_now();
                assert!(thread::current().id() == caller, "a helper");
            });
        });
        let message = caught.unwrap_err();
        assert_eq!(message.downcast_ref::<&str>(), Some(&"a helper"));
    }

    #[test]
    fn the_caller_does_not_wait_for_helpers_that_are_busy_elsewhere() {
        // A pool of its own whose only thread is taken.
        let pool: &'static Pool = Box::leak(Box::new(Pool::new()));
        pool.start(1);
        let (started, wait_started) = mpsc::channel();
        let (release, wait_release) = mpsc::channel::<()>();
        let (started, wait_release) = (Mutex::new(started), Mutex::new(wait_release));
        let busy = AtomicUsize::new(0);
        let hold = || {
            // The first to come is whoever; the helper is the second.
            if thread::current().name() == Some("ironstep-0") {
                lock(&started).send(()).unwrap();
                let _ = lock(&wait_release).recv();
            } else {
                while busy.load(Ordering::Relaxed) == 0 {
                    thread::yield_now();
                }
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| with_helpers(pool, 1, &hold));
            wait_started.recv().unwrap();
            let calls = AtomicUsize::new(0);
            with_helpers(pool, 1, &|| {
                calls.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(calls.load(Ordering::Relaxed), 1);
            assert!(lock(&pool.queue).is_empty(), "what nobody began is withdrawn");
            busy.store(1, Ordering::Relaxed);
            release.send(()).unwrap();
        });
    }

    #[test]
    fn many_callers_at_once() {
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    for i in 0..500 {
                        for_each(1 + i % 7, 1 + i % 4, i % 3 > 0, |_| {
                            sum.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 6 * (0..500).map(|i| 1 + i % 7).sum::<usize>());
    }
}
