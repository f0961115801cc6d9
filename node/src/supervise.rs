//! Supervision: a panic in any of the node's own tasks is the end of the process.
//!
//! tokio catches a panic in a task and goes on without it. A node that has lost its membership, its handoff or its accept loop in
//! this way still answers, and is worse than one that is down: nobody stands in for it. So every task of the node runs in
//! `watched`, which passes the reason of a panic on to whoever has asked for it with [`on_panic`] (the `quorate` binary
//! prints it and ends the process there and then), and lets the panic go on: a simulation and a test see it as before.
//! A task that is aborted, as all are when a node is dropped, is no panic.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket};
use tokio::task::JoinHandle;

/// Every name that a task of the node runs under.
#[doc(hidden)]
pub const TASKS: &[&str] = &[
    "accept",
    "a connection",
    "a client's request",
    "a peer's request",
    "the rest of a request",
    "peers",
    "a peer's requests",
    "a peer's gossip",
    "a peer's hearing",
    "membership",
    "membership: a seed",
    "layouts",
    "layouts: a step",
    "layouts: a call",
    "layouts shown",
    "layouts followed",
    "hellos followed",
    "set-backs followed",
    "handoff",
    "anti-entropy",
    "recovery",
    "recovery: a partition",
    "layout change",
    "votes after a set-back",
    "scrub",
    "sync",
    "sync by the clock",
    "a slow disk's call",
    "addresses remembered",
    "beacons remembered",
    "room on the disk",
    "superseded operations",
    "certificate",
    "quic",
    "http",
    "http: a connection",
];

/// What is done with the reason of a panic.
type Handler = Arc<dyn Fn(&str) + Send + Sync>;

static HANDLER: Mutex<Option<Handler>> = Mutex::new(None);

/// Sets what is done, for the whole process, when a task of a node has panicked; it is told which task, and why. It runs on the
/// thread of the panic, whatever locks that holds: it must end the process and touch no node.
pub fn on_panic(handler: impl Fn(&str) + Send + Sync + 'static) {
    *HANDLER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(handler));
}

/// Starts a task that is [`watched`].
pub(crate) fn spawn<T: Send + 'static>(
    name: &'static str,
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(watched(name, task))
}

/// Runs a part of a node; a panic in it is reported, and goes on.
pub(crate) async fn watched<T>(name: &'static str, task: impl Future<Output = T>) -> T {
    debug_assert!(TASKS.contains(&name), "{name:?} is no name of a task");
    let mut task = pin!(task);
    let mut armed = is_armed(name);
    poll_fn(move |context| {
        let poll = || {
            assert!(!std::mem::take(&mut armed), "on purpose");
            task.as_mut().poll(context)
        };
        match catch_unwind(AssertUnwindSafe(poll)) {
            Ok(polled) => polled,
            Err(panic) => {
                report(name, &*panic);
                resume_unwind(panic)
            }
        }
    })
    .await
}

/// Reports what has stopped without a panic, so that the node lives in part only.
pub(crate) fn stuck(why: &str) {
    tracing::error!("{why}");
    let handler = HANDLER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(handler) = handler {
        handler(why);
    }
}

/// Reports a panic that was caught elsewhere.
pub(crate) fn report(name: &str, panic: &(dyn Any + Send)) {
    stuck(&format!("{name:?} has panicked: {}", text(panic)));
}

/// What was said when it panicked.
fn text(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&'static str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it did not say why")
}

static ARMED: AtomicBool = AtomicBool::new(false);
static VICTIM: Mutex<Option<&'static str>> = Mutex::new(None);

/// The next task that starts under this name panics at once: for the test that shows that each is watched. Does nothing in
/// a build without debug assertions.
#[doc(hidden)]
pub fn panic_next(name: &'static str) {
    *VICTIM.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
    ARMED.store(true, Ordering::SeqCst);
}

fn is_armed(name: &str) -> bool {
    if !cfg!(debug_assertions) || !ARMED.load(Ordering::Relaxed) {
        return false;
    }
    let mut victim = VICTIM.lock().unwrap_or_else(PoisonError::into_inner);
    let hit = *victim == Some(name);
    if hit {
        *victim = None;
        ARMED.store(false, Ordering::SeqCst);
    }
    hit
}

/// Has quinn's own tasks watched: without them the node is deaf.
pub(crate) fn runtime(inner: Arc<dyn quinn::Runtime>) -> Arc<dyn quinn::Runtime> {
    Arc::new(Watched(inner))
}

struct Watched(Arc<dyn quinn::Runtime>);

impl quinn::Runtime for Watched {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        self.0.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(Box::pin(watched("quic", future)));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.0.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        self.0.now()
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
