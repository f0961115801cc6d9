//! Calls into the engine that never come back.
//!
//! An engine that has met the end of its disk can wait for itself for ever, in a read as well, while it holds what every other call
//! needs. Then a node neither answers nor ends, and no task of it can find that out, since the runtime's own threads wait too. So a
//! thread of the operating system looks at the calls that are under way, and one that is there for a minute is reported to
//! [`supervise`](crate::supervise), which ends the process: others stand in for a node that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::supervise;

/// Watches the calls of one engine until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    calls: Arc<Calls>,
    /// The thread ends when this is gone.
    _alive: SyncSender<()>,
}

#[derive(Debug)]
struct Calls {
    /// The number of the call that is under way in each place, 0 for none.
    places: [AtomicU64; PLACES],
    next: AtomicU64,
}

impl Watch {
    /// Without a thread to be had, nothing is watched.
    pub(super) fn start(what: String) -> Self {
        Self::with(LOOK, move || supervise::stuck(&format!("{what} has not come back for a minute")))
    }

    fn with(look: Duration, stuck: impl Fn() + Send + 'static) -> Self {
        let calls = Arc::new(Calls { places: std::array::from_fn(|_| AtomicU64::new(0)), next: AtomicU64::new(1) });
        let (alive, ended) = sync_channel(0);
        let watched = Arc::clone(&calls);
        let watch = move || {
            // How often each call was seen. Looks are counted and no time is taken: a process that was stopped has not waited.
            let mut seen = [(0, 0); PLACES];
            while ended.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                for (place, (call, looks)) in watched.places.iter().zip(&mut seen) {
                    let now = place.load(Ordering::Relaxed);
                    *looks = if now == *call { *looks + 1 } else { 0 };
                    *call = now;
                    if now != 0 && *looks == LOOKS_MAX {
                        stuck();
                    }
                }
            }
        };
        let started = thread::Builder::new().name("quorate-watch".to_owned()).spawn(watch);
        if let Err(error) = started {
            tracing::warn!("calls into the store that do not come back will not be noticed: {error}");
        }
        Self { calls, _alive: alive }
    }

    /// Runs a call that is watched. With more at a time than there are places some are not.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> T) -> T {
        let number = self.calls.next.fetch_add(1, Ordering::Relaxed);
        let free = |place: &&AtomicU64| place.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let _place = self.calls.places.iter().find(free).map(Place);
        call()
    }
}

/// Is free again when the call has ended, by a panic too.
struct Place<'a>(&'a AtomicU64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// More than there are threads that call.
const PLACES: usize = 32;
/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);
/// A minute: as long as a sync may take.
const LOOKS_MAX: u32 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_come_back_is_reported_once_and_others_are_not() {
        let (told, heard) = sync_channel(8);
        let watch = Arc::new(Watch::with(Duration::from_millis(2), move || {
            let _ = told.try_send(());
        }));
        let (go_on, wait) = sync_channel::<()>(1);
        let stuck = Arc::clone(&watch);
        let stuck = thread::spawn(move || stuck.call(|| wait.recv().is_ok()));
        while heard.try_recv().is_err() {
            watch.call(|| thread::sleep(Duration::from_micros(100)));
        }
        go_on.send(()).expect("it waits");
        assert!(stuck.join().expect("no panic"));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| watch.call(|| panic!("on purpose"))));
        assert!(panicked.is_err());
        assert!(watch.calls.places.iter().all(|place| place.load(Ordering::Relaxed) == 0));
        drop(watch);
        assert_eq!(heard.iter().count(), 0, "the thread has ended, and has told of nothing else");
    }
}
