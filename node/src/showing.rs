//! What `layout show` shows beside what is known anyway: how the ring shares the partitions out, and what is wrong with what is
//! staged. It takes rings, so that it is computed once for each state, one at a time, and away from whatever serves requests.

use std::sync::Arc;

use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::{Gets, LayoutView, Load, Moves, Progress, Receiver, UnderWay, Wait};
use tokio::sync::Mutex as AsyncMutex;
use tracing::Instrument;

use crate::layouts::Current;
use crate::store::Executor;
use crate::supervise;
use quorate_core::changes::{Movement, problems_of};
use quorate_core::layout::Layout;
use quorate_core::progress;
use quorate_core::ring::Ring;
use quorate_core::staging::{needs_every_owner, warnings};

/// The newest state that was shown.
#[derive(Debug)]
pub(crate) struct Showing {
    computing: Executor,
    /// Locked while it is computed.
    newest: Arc<AsyncMutex<Option<Arc<Shown>>>>,
}

/// One state, and what is shown of it.
#[derive(Debug)]
pub(crate) struct Shown {
    chosen: Option<Layout>,
    staged: Option<Layout>,
    /// The layout in force.
    pub(crate) current_view: LayoutView,
    /// The staged one, if there is one.
    pub(crate) staged_view: Option<LayoutView>,
    /// Why what is staged cannot be applied.
    pub(crate) problems: Vec<String>,
    /// What is worth a second look in it.
    pub(crate) warnings: Vec<String>,
    /// What applying it would move, if it is possible and another layout is in force.
    pub(crate) moves: Option<Moves>,
}

impl Showing {
    pub(crate) fn new(computing: Executor) -> Self {
        Self { computing, newest: Arc::default() }
    }

    /// What the change under way moves, if there is one.
    pub(crate) async fn under_way(&self, current: Arc<Current>) -> Option<UnderWay> {
        if !current.live().is_changing() {
            return None;
        }
        let compute = move || {
            let (oldest, newest) = (current.live().oldest(), current.live().newest());
            let moves = moves_between((&oldest.layout, oldest.ring()), (&newest.layout, newest.ring()));
            UnderWay { from: oldest.layout.view_of(Some(oldest.ring())), moves }
        };
        Some(self.computing.run(compute).await)
    }

    /// What is shown of a layout in force and a staged one. Whoever asks while it is computed waits for that.
    pub(crate) async fn of(&self, chosen: Option<Layout>, staged: Option<Layout>) -> Arc<Shown> {
        let mut newest = self.newest.clone().lock_owned().await;
        if let Some(shown) = newest.as_ref().filter(|shown| shown.chosen == chosen && shown.staged == staged) {
            return shown.clone();
        }
        let computing = self.computing.clone();
        // It goes on when nobody waits for it any more: whoever asks next would begin it a second time.
        let compute = async move {
            let shown = Arc::new(computing.run(move || Shown::compute(chosen, staged)).await);
            *newest = Some(shown.clone());
            shown
        };
        match supervise::spawn("layouts shown", compute.in_current_span()).await {
            Ok(shown) => shown,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Shown {
    fn compute(chosen: Option<Layout>, staged: Option<Layout>) -> Self {
        let problems = match (&chosen, &staged) {
            (Some(chosen), Some(staged)) => problems_of(chosen, staged),
            (None, Some(staged)) => staged.problems(),
            (_, None) => Vec::new(),
        };
        let moves = match (&chosen, &staged) {
            (Some(chosen), Some(staged)) if problems.is_empty() => moves(chosen, staged),
            _ => None,
        };
        let mut seconds = staged.as_ref().map(warnings).unwrap_or_default();
        // The floors of the layout in force decide how a change from it to the staged one goes.
        seconds.extend(chosen.as_ref().filter(|_| staged.is_some()).and_then(needs_every_owner));
        if let Some(moves) = moves.as_ref().filter(|moves| moves.all_owners_change > 0) {
            seconds.push(format!(
                "{} partitions keep none of their owners: all of their data is copied before the change is over",
                moves.all_owners_change
            ));
        }
        Self {
            current_view: chosen.as_ref().map_or_else(Layout::none_view, Layout::view),
            staged_view: staged.as_ref().map(Layout::view),
            problems,
            warnings: seconds,
            moves,
            chosen,
            staged,
        }
    }
}

fn moves(before: &Layout, after: &Layout) -> Option<Moves> {
    let (old, new) = (before.ring().ok()?, after.ring().ok()?);
    Some(moves_between((before, &old), (after, &new)))
}

fn moves_between((before, old): (&Layout, &Ring), (after, new): (&Layout, &Ring)) -> Moves {
    let movement = Movement::between(old, new);
    let load = |(node, (before, after)): (&_, &_)| Load { node: *node, before: *before, after: *after };
    let gets = |((from, to), partitions): (&(_, _), &u32)| Gets { from: *from, to: *to, partitions: *partitions };
    Moves {
        loads: movement.loads.iter().map(load).collect(),
        gets: movement.gets.iter().map(gets).collect(),
        replicas: movement.replicas(),
        least: movement.least(),
        all_owners_change: movement.all_owners_change,
        balance_before: balance(before, old),
        balance_after: balance(after, new),
    }
}

/// How far a change to this version is, for people.
pub(crate) fn progress(core: &progress::Progress, version: LayoutVersion, up: impl Fn(NodeId) -> bool) -> Progress {
    let wait = |(node, wait): (&NodeId, &progress::Wait)| {
        let mut todo = Vec::new();
        if wait.learns > 0 {
            todo.push(format!("has yet to act on layout {version}"));
        }
        if wait.takes_over > 0 {
            let from = wait.from.iter().map(|from| format!("{from}{}", if up(*from) { "" } else { " (down)" }));
            let from: Vec<_> = from.collect();
            todo.push(format!(
                "takes over what {} {}",
                from.join(", "),
                if from.len() == 1 { "holds" } else { "hold" }
            ));
        }
        if wait.closes > 0 {
            todo.push("has yet to stop answering for older layouts".to_owned());
        }
        Wait { node: *node, partitions: wait.partitions(), what: todo.join(", and "), up: up(*node) }
    };
    let waits = core.waits.iter().map(wait).collect();
    let receiver =
        |(node, taken): (&NodeId, &progress::Taken)| Receiver { node: *node, done: taken.done, of: taken.of };
    let receivers = core.receivers.iter().map(receiver).collect();
    Progress { moved: core.moved, partitions: core.partitions, waits, receivers }
}

/// The largest load of a member relative to its weight's share of all.
fn balance(layout: &Layout, ring: &Ring) -> f64 {
    let all = f64::from(layout.partitions) * f64::from(layout.n);
    let weights: u32 = layout.members.iter().map(|member| member.weight).sum();
    let relative = ring.members().iter().zip(ring.loads()).map(|(node, load)| {
        let weight = layout.member(*node).map_or(1, |member| member.weight);
        f64::from(load) * f64::from(weights) / (all * f64::from(weight))
    });
    relative.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use quorate_wire::ids::{ClusterId, DiskId};

    use super::*;
    use crate::store::Latency;
    use quorate_core::staging::{Staged, StagedMember};

    fn staged(members: u16) -> Layout {
        let mut staged = Staged::default();
        for i in 1..=members {
            let node = NodeId::new(&format!("n{i}")).expect("legal");
            let addr = ([127, 0, 0, 1], 7400 + i).into();
            staged.join(node, StagedMember { disk: DiskId(i.into()), addr, zone: node.to_string(), weight: 1 });
        }
        staged.layout(ClusterId(7))
    }

    /// Counts what it computes; each takes a second.
    fn showing() -> (Arc<Showing>, Arc<AtomicUsize>) {
        let computed = Arc::new(AtomicUsize::new(0));
        let counter = computed.clone();
        let latency = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Duration::from_secs(1)
        };
        (Arc::new(Showing::new(Executor::Slow(Latency(Arc::new(latency))))), computed)
    }

    #[tokio::test(start_paused = true)]
    async fn one_state_is_computed_once_however_many_ask() {
        let (showing, computed) = showing();
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let showing = showing.clone();
            asking.spawn(async move { showing.of(None, Some(staged(3))).await });
        }
        while let Some(shown) = asking.join_next().await {
            let shown = shown.expect("no panic");
            let view = shown.staged_view.as_ref().expect("staged");
            assert_eq!(view.members.iter().map(|member| member.primaries).sum::<u32>(), 3 * 1024);
            assert_eq!((shown.current_view.version.0, &shown.problems), (0, &Vec::new()));
        }
        assert_eq!(computed.load(Ordering::SeqCst), 1);
        assert!(!showing.of(None, Some(staged(2))).await.problems.is_empty(), "fewer members than N");
        assert_eq!(computed.load(Ordering::SeqCst), 2, "another state");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_leaves_no_second_computation_behind() {
        let (showing, computed) = showing();
        for _ in 0..50 {
            let short = Duration::from_millis(10);
            tokio::time::timeout(short, showing.of(None, Some(staged(3)))).await.expect_err("it takes a second");
        }
        showing.of(None, Some(staged(3))).await;
        assert_eq!(computed.load(Ordering::SeqCst), 1);
    }
}
