//! What nodes, clients and disks tell of themselves while a life goes on: the events of [`quorate_wire::story`].
//!
//! A [`Story`] listens on the thread of one life. It only takes notes: it draws no random number, sends nothing and waits for
//! nobody, so that a life is the same whether somebody listens or not.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_wire::story::TARGET;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Metadata, Subscriber};

use crate::history::OpNo;
use crate::interpose;

/// Everything that was told in one life, in the order in which it happened. Clones are the same story.
#[derive(Clone, Default)]
pub struct Story(Arc<Mutex<Vec<Event>>>);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When, in microseconds of simulated time.
    pub at_us: u64,
    /// What, in the vocabulary of [`quorate_wire::story`].
    pub act: String,
    /// Everything else that was told, by the names of the fields.
    pub fields: BTreeMap<&'static str, String>,
    /// The client that did it and the operation that it was doing, if it was a client.
    pub by: Option<(u32, OpNo)>,
}

impl Story {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens to what happens on this thread until the guard is dropped.
    pub fn listen(&self) -> DefaultGuard {
        tracing::subscriber::set_default(Listener(self.clone()))
    }

    /// What was told so far.
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Story({} events)", self.lock().len())
    }
}

impl Event {
    /// A field, if it was told.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The node that did it; empty if it was none.
    pub fn node(&self) -> &str {
        self.field("node").unwrap_or_default()
    }

    /// The client's request that it is about.
    pub fn request(&self) -> Option<u64> {
        self.field("request")?.parse().ok()
    }
}

tokio::task_local! {
    /// Which client runs in this task, and what it is doing.
    static AUTHOR: Cell<(u32, OpNo)>;
}

/// Runs a client's doings, so that what the client crate tells is told as this client's.
pub async fn by_client<F: Future>(client: u32, doings: F) -> F::Output {
    AUTHOR.scope(Cell::new((client, 0)), doings).await
}

/// The client of this task begins an operation.
pub(crate) fn begins(client: u32, operation: OpNo) {
    // Outside a client's task nobody will ask.
    let _ = AUTHOR.try_with(|author| author.set((client, operation)));
}

struct Listener(Story);

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == TARGET && !metadata.is_span()
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut events = self.0.lock();
        if events.len() >= EVENTS_MAX {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let act = fields.0.remove("act").unwrap_or_default();
        // Outside all hosts, between two steps, the harness itself acts.
        let at = turmoil::sim_elapsed().unwrap_or_else(interpose::elapsed);
        let at_us = u64::try_from(at.as_micros()).expect("no simulation lasts so long");
        let by = AUTHOR.try_with(Cell::get).ok();
        events.push(Event { at_us, act, fields: fields.0, by });
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// The longest lives tell some 200,000 events; what comes above is not kept.
const EVENTS_MAX: usize = 2_000_000;

#[cfg(test)]
mod tests {
    use quorate_wire::story::is_told;
    use quorate_wire::tell;

    use super::*;

    #[test]
    fn only_what_is_told_on_this_thread_while_it_listens_is_kept() {
        let story = Story::new();
        tell!(act = "mints", node = "n0");
        {
            let _listening = story.listen();
            assert!(is_told());
            tell!(act = "mints", node = "n1", request = 7_u64, of = ?[1, 2], missing = None::<u64>);
            tracing::error!("of another target");
            let _span = tracing::trace_span!(target: TARGET, "a span").entered();
            std::thread::spawn(|| tell!(act = "mints", node = "n2")).join().expect("no panic");
        }
        tell!(act = "mints", node = "n3");
        let events = story.events();
        assert_eq!(events.len(), 1, "{events:?}");
        let event = &events[0];
        assert_eq!((event.act.as_str(), event.node(), event.request()), ("mints", "n1", Some(7)));
        assert_eq!((event.field("of"), event.field("missing"), event.by), (Some("[1, 2]"), None, None));
    }

    #[tokio::test]
    async fn clients_are_told_apart_by_their_tasks() {
        let story = Story::new();
        let _listening = story.listen();
        let client = |client, operation| {
            by_client(client, async move {
                begins(client, operation);
                tokio::task::yield_now().await;
                tell!(act = "ask");
            })
        };
        tokio::join!(client(1, 10), client(2, 20));
        let by: std::collections::BTreeSet<_> = story.events().iter().filter_map(|event| event.by).collect();
        assert_eq!(by, [(1, 10), (2, 20)].into());
    }
}
