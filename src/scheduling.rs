//! Two requests to the scheduler of Linux that get helpers to work sooner. They change no result; elsewhere, and where they
//! are refused, nothing happens.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod linux {
    use std::ffi::{c_int, c_long, c_uint};

    /// `struct sched_attr` of the kernel, first version.
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }

    /// `cpu_set_t`: a bit for each of 1024 CPUs.
    type CpuSet = [u64; 16];

    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
        fn sched_getscheduler(pid: c_int) -> c_int;
        fn getpriority(which: c_int, who: c_uint) -> c_int;
        fn sched_getcpu() -> c_int;
        fn sched_getaffinity(pid: c_int, size: usize, set: *mut CpuSet) -> c_int;
        fn sched_setaffinity(pid: c_int, size: usize, set: *const CpuSet) -> c_int;
    }

    pub(super) fn ask_for_short_slices() {
        const SCHED_SETATTR: c_long = if cfg!(target_arch = "x86_64") { 314 } else { 274 };
        // SAFETY: reads the policy of this thread. Another one than the ordinary (0) is somebody's choice.
        if unsafe { sched_getscheduler(0) } != 0 {
            return;
        }
        // SAFETY: reads the nice value of this thread.
        let nice = unsafe { getpriority(0, 0) };
        let size = size_of::<SchedAttr>() as u32;
        let attr = SchedAttr { size, policy: 0, flags: 0, nice, priority: 0, runtime: 100_000, deadline: 0, period: 0 };
        // SAFETY: the kernel reads `size` bytes of `attr`, for this thread (0).
        unsafe { syscall(SCHED_SETATTR, 0 as c_int, &raw const attr, 0 as c_uint) };
    }

    pub(super) fn cpu() -> Option<usize> {
        // SAFETY: takes nothing and gives a number, or -1.
        usize::try_from(unsafe { sched_getcpu() }).ok()
    }

    pub(super) fn leave(cpu: usize) {
        let mut allowed: CpuSet = [0; 16];
        // SAFETY: writes at most as many bytes as the set has, for this thread (0).
        let known = unsafe { sched_getaffinity(0, size_of::<CpuSet>(), &raw mut allowed) } == 0;
        let mut others = allowed;
        let Some(word) = others.get_mut(cpu / 64).filter(|_| known) else { return };
        *word &= !(1 << (cpu % 64));
        if others != [0; 16] {
            // SAFETY: reads the sets, for this thread (0): away from the CPU, and then allowed everywhere as before.
            unsafe {
                sched_setaffinity(0, size_of::<CpuSet>(), &raw const others);
                sched_setaffinity(0, size_of::<CpuSet>(), &raw const allowed);
            }
        }
    }
}

/// Asks (Linux 6.12 and later) to run this thread in slices of 0.1 ms, by which it may preempt, when it is woken, a thread
/// that spins for work of its own in slices of 3 ms.
pub(crate) fn ask_for_short_slices() {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    linux::ask_for_short_slices();
}

/// The CPU that this thread runs on.
pub(crate) fn cpu() -> Option<usize> {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    return linux::cpu();
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    None
}

/// Moves this thread to another CPU if it runs on this one. A woken thread is often put where the one runs that woke it, and
/// stays behind it for 15 ms though another CPU has nothing to do (seen on a virtual machine with two).
pub(crate) fn leave(cpu: Option<usize>) {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    if let Some(cpu) = cpu.filter(|&cpu| linux::cpu() == Some(cpu)) {
        linux::leave(cpu);
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = cpu;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_leaves_the_cpu_and_may_come_back() {
        let before = std::thread::available_parallelism().unwrap();
        let here = cpu();
        leave(here);
        if before.get() > 1 {
            assert_ne!(cpu(), here);
        }
        assert_eq!(std::thread::available_parallelism().unwrap(), before, "the allowed CPUs are as they were");
    }
}
