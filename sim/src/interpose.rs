//! Entropy and clocks of one thread under the simulation's control, at the lowest place where both come from.
//!
//! A node draws from seeded sources and reads tokio's clock; what it stands on does not always. ring asks the kernel for
//! keys and nonces through `syscall`, the standard library seeds its hash maps through `getrandom`, rustls reads the wall clock.
//! This module defines the C library's `getrandom`, `syscall` and `clock_gettime` for the whole program. The linker prefers a
//! definition in the program to one in a shared library, so everybody calls these. On a thread that has [entered](enter) they
//! answer from a seed and a clock that the simulation sets; on every other thread they do what the C library does.
//!
//! # Why it is sound
//! - Each function keeps the contract of the one that it stands in for: a buffer that its caller gave is filled to the length
//!   that its caller gave, an error is -1 with `errno` set. Callers pass what the C library demands, and nothing more is used.
//! - What is not answered here goes to the kernel by the same system call, with the arguments as they came.
//! - They are called from anywhere, also while the thread ends: the state is in thread-local `Cell`s of plain integers with
//!   constant initialisers and no destructors, which need neither allocation nor locks and are valid until the thread is gone.
//! - `syscall` is variadic in C. On the two targets below integer arguments of a variadic call are passed like those of any
//!   other, so a definition with seven parameters reads what was passed, and for what was not passed a register or a word of
//!   the caller's stack that the kernel ignores.
#![allow(
    unsafe_code,
    reason = "defining C functions and asking the kernel cannot be said in safe Rust; nothing else here is unsafe"
)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Duration;

thread_local! {
    /// The state of the generator; 0 means that the kernel is asked.
    static ENTROPY: Cell<u64> = const { Cell::new(0) };
    /// Nanoseconds since the start of the simulation plus one; 0 means that the kernel is asked.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Takes over entropy and clocks of this thread until the guard is dropped. The clocks stand still but for [`set_clock`].
///
/// Hash maps that the thread made before keep their keys: run each simulation on a fresh thread.
///
/// # Panics
/// When the thread has entered already, or on a platform where this cannot be done: there a simulation would not be
/// reproducible, which is its whole point.
#[must_use = "entropy and clocks are given back when it is dropped"]
#[expect(clippy::assertions_on_constants, reason = "it is a constant that differs between platforms")]
pub fn enter(seed: u64) -> Guard {
    assert!(AVAILABLE, "simulations are reproducible on Linux on x86_64 and aarch64 only");
    assert_eq!(ENTROPY.get(), 0, "this thread is in a simulation already");
    ENTROPY.set(seed.wrapping_mul(GOLDEN) | 1);
    CLOCK.set(1);
    Guard(PhantomData)
}

/// Sets what the clocks of this thread say: so long after the start of the simulation.
///
/// # Panics
/// When the thread has not [entered](enter).
pub fn set_clock(elapsed: Duration) {
    assert_ne!(CLOCK.get(), 0, "this thread is in no simulation");
    CLOCK.set(u64::try_from(elapsed.as_nanos()).expect("no simulation lasts for 500 years") + 1);
}

/// What the clocks of this thread say: so long after the start of the simulation; nothing has passed outside of one.
pub fn elapsed() -> Duration {
    Duration::from_nanos(CLOCK.get().saturating_sub(1))
}

/// Whether this platform can be taken over.
pub const AVAILABLE: bool =
    cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), target_pointer_width = "64"));

/// The wall clock at the start of every simulation, in seconds since 1970: after the certificates' first day.
pub const EPOCH_SECS: u64 = 1_790_000_000;

/// Gives entropy and clocks back to the kernel when it is dropped; belongs to its thread.
#[derive(Debug)]
pub struct Guard(PhantomData<*const ()>);

impl Drop for Guard {
    fn drop(&mut self) {
        ENTROPY.set(0);
        CLOCK.set(0);
    }
}

/// 2^64 divided by the golden ratio: the step of splitmix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The monotonic clock at the start of every simulation: far enough from zero to subtract hours from it.
#[cfg(target_os = "linux")]
const MONOTONIC_START_SECS: u64 = 1_000_000;

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), target_pointer_width = "64"))]
mod symbols {
    use std::slice;

    use super::{CLOCK, ENTROPY, EPOCH_SECS, GOLDEN, MONOTONIC_START_SECS};

    /// Stands in for getrandom(2).
    ///
    /// # Safety
    /// `buffer` is valid for writes of `len` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: libc::c_uint) -> isize {
        // SAFETY: the caller vouches for the buffer; the kernel checks it again.
        unsafe {
            if fill(buffer, len) {
                return len as isize;
            }
            answer(kernel(libc::SYS_getrandom, [buffer as i64, len as i64, i64::from(flags), 0, 0, 0])) as isize
        }
    }

    /// Stands in for syscall(2).
    ///
    /// # Safety
    /// As the system call with this number demands.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn syscall(number: i64, a: i64, b: i64, c: i64, d: i64, e: i64, f: i64) -> i64 {
        // SAFETY: the caller vouches for the arguments of the system call that it names.
        unsafe {
            if number == libc::SYS_getrandom && fill(a as *mut u8, b as usize) {
                return b;
            }
            answer(kernel(number, [a, b, c, d, e, f]))
        }
    }

    /// Stands in for clock_gettime(2).
    ///
    /// # Safety
    /// `time` is valid for a write.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
        let Some(elapsed) = CLOCK.get().checked_sub(1) else {
            // SAFETY: the kernel checks the pointer.
            return unsafe {
                answer(kernel(libc::SYS_clock_gettime, [i64::from(clock), time as i64, 0, 0, 0, 0])) as libc::c_int
            };
        };
        let start = match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => EPOCH_SECS,
            _ => MONOTONIC_START_SECS,
        };
        // SAFETY: the caller vouches for the pointer.
        unsafe {
            (*time).tv_sec = (start + elapsed / 1_000_000_000) as libc::time_t;
            (*time).tv_nsec = (elapsed % 1_000_000_000) as libc::c_long;
        }
        0
    }

    /// Fills a buffer from the seed (splitmix64), if this thread has one.
    ///
    /// # Safety
    /// `buffer` is valid for writes of `len` bytes.
    unsafe fn fill(buffer: *mut u8, len: usize) -> bool {
        let mut state = ENTROPY.get();
        if state == 0 {
            return false;
        }
        if len > 0 {
            // SAFETY: the caller vouches for the buffer; it may be uninitialised, so it is zeroed before it becomes a slice.
            let bytes = unsafe {
                buffer.write_bytes(0, len);
                slice::from_raw_parts_mut(buffer, len)
            };
            for chunk in bytes.chunks_mut(8) {
                state = state.wrapping_add(GOLDEN);
                let mut word = state;
                word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                chunk.copy_from_slice(&(word ^ (word >> 31)).to_le_bytes()[..chunk.len()]);
            }
        }
        // 0 would give the thread back to the kernel.
        ENTROPY.set(state.max(1));
        true
    }

    /// The C library's way to return what the kernel says.
    fn answer(result: i64) -> i64 {
        if (-4095..0).contains(&result) {
            // SAFETY: the pointer is to this thread's errno, which is always valid.
            unsafe { *libc::__errno_location() = -result as libc::c_int };
            return -1;
        }
        result
    }

    /// One system call.
    ///
    /// # Safety
    /// As the system call with this number demands.
    #[cfg(target_arch = "x86_64")]
    unsafe fn kernel(number: i64, arguments: [i64; 6]) -> i64 {
        let result;
        // SAFETY: the registers are those of the kernel's calling convention; it clobbers rcx and r11 and leaves the stack alone.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") number => result,
                in("rdi") arguments[0], in("rsi") arguments[1], in("rdx") arguments[2],
                in("r10") arguments[3], in("r8") arguments[4], in("r9") arguments[5],
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        result
    }

    /// One system call.
    ///
    /// # Safety
    /// As the system call with this number demands.
    #[cfg(target_arch = "aarch64")]
    unsafe fn kernel(number: i64, arguments: [i64; 6]) -> i64 {
        let result;
        // SAFETY: the registers are those of the kernel's calling convention; it clobbers no other and leaves the stack alone.
        unsafe {
            std::arch::asm!(
                "svc 0",
                in("x8") number,
                inlateout("x0") arguments[0] => result,
                in("x1") arguments[1], in("x2") arguments[2], in("x3") arguments[3],
                in("x4") arguments[4], in("x5") arguments[5],
                options(nostack),
            );
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher;
    use std::thread;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use rand::Rng;
    use ring::rand::SecureRandom;

    use super::*;

    /// What every source of entropy and time says on a fresh thread.
    #[derive(Debug, PartialEq)]
    struct Said {
        hasher: u64,
        rand: u64,
        ring: [u8; 37],
        wall: u128,
        monotonic: Duration,
    }

    #[allow(clippy::disallowed_methods, reason = "these are what is being tested")]
    fn listen(seed: Option<u64>) -> Said {
        thread::spawn(move || {
            let guard = seed.map(enter);
            let before = Instant::now();
            if guard.is_some() {
                set_clock(Duration::from_millis(1500));
            }
            let mut ring = [0; 37];
            ring::rand::SystemRandom::new().fill(&mut ring).expect("entropy");
            Said {
                hasher: RandomState::new().hash_one(7),
                rand: rand::make_rng::<rand::rngs::StdRng>().next_u64(),
                ring,
                wall: SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos(),
                monotonic: before.elapsed(),
            }
        })
        .join()
        .expect("no panic")
    }

    #[test]
    fn a_seed_decides_every_source() {
        let one = listen(Some(1));
        assert_eq!(one, listen(Some(1)));
        assert_eq!(one.monotonic, Duration::from_millis(1500));
        assert_eq!(one.wall, u128::from(EPOCH_SECS) * 1_000_000_000 + 1_500_000_000);
        let two = listen(Some(2));
        assert_ne!(one.hasher, two.hasher);
        assert_ne!(one.rand, two.rand);
        assert_ne!(one.ring, two.ring);
    }

    #[test]
    fn other_threads_are_left_alone() {
        let _guard = thread::spawn(|| listen(Some(1))).join().expect("no panic");
        let (one, two) = (listen(None), listen(None));
        assert_ne!(one.hasher, two.hasher);
        assert_ne!(one.rand, two.rand);
        assert_ne!(one.ring, two.ring);
        assert!(one.monotonic < Duration::from_secs(1), "a real clock, just read");
    }

    #[test]
    fn errors_of_the_kernel_are_passed_on() {
        // SAFETY: closing a file descriptor that cannot exist changes nothing.
        let result = unsafe { libc::syscall(libc::SYS_close, -1_i64) };
        assert_eq!((result, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EBADF)));
    }

    #[test]
    fn the_guard_gives_the_thread_back() {
        thread::spawn(|| {
            drop(enter(3));
            let mut bytes = [[0; 16]; 2];
            for bytes in &mut bytes {
                ring::rand::SystemRandom::new().fill(bytes).expect("entropy");
                drop(enter(3));
            }
            assert_ne!(bytes[0], bytes[1]);
        })
        .join()
        .expect("no panic");
    }
}
