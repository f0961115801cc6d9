//! The nodes of a development cluster, each on a runtime of its own.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use quorate_node::node::Node;
use quorate_wire::ids::NodeId;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

use super::control::{Answer, NodeView, Request};
use crate::cli::failure::{Failure, Outcome};
use crate::cli::launch::Launch;

/// All nodes, running or not.
pub(super) struct Nodes {
    nodes: BTreeMap<NodeId, Slot>,
}

struct Slot {
    launch: Launch,
    running: Option<Running>,
}

struct Running {
    runtime: Background,
    node: Arc<Node>,
    /// Ends with the reason when the node stops by itself.
    stopped: Pin<Box<dyn Future<Output = String> + Send>>,
}

impl Nodes {
    /// None of them runs yet.
    pub(super) fn new(launches: Vec<Launch>) -> Self {
        Self { nodes: launches.into_iter().map(|launch| (launch.node(), Slot { launch, running: None })).collect() }
    }

    /// How all of them stand, in the order of their numbers.
    pub(super) fn views(&self) -> Vec<NodeView> {
        let mut views: Vec<_> = self
            .nodes
            .values()
            .map(|slot| NodeView {
                node: slot.launch.node(),
                addr: slot.launch.config.listen,
                http: slot.launch.config.http,
                running: slot.running.is_some(),
            })
            .collect();
        views.sort_by_key(|view| view.addr);
        views
    }

    /// Does what another process has asked for. Stopping is for the caller, which owns the end.
    pub(super) async fn carry_out(&mut self, request: &Request) -> Answer {
        let done = match request {
            Request::Status => return Answer::Nodes { nodes: self.views() },
            Request::Stop => unreachable!("the caller ends the cluster"),
            Request::Kill { node } => self.kill(*node),
            Request::Start { node } => self.start(*node, RESTART_TIME).await.map(|()| format!("{node} is back")),
        };
        match done {
            Ok(said) => Answer::Done { said },
            Err(Failure { message, hint, .. }) => Answer::Failed { error: message, hint },
        }
    }

    /// Starts a node; tries again for `patience`, because the port and the store of a killed one come free a little later.
    pub(super) async fn start(&mut self, node: NodeId, patience: Duration) -> Outcome<()> {
        let slot = self.slot(node)?;
        if slot.running.is_some() {
            return Err(Failure::new(format!("{node} is running already"), format!("quorate dev kill {node}")));
        }
        let deadline = Instant::now() + patience;
        loop {
            match Running::start(slot.launch.clone()).await {
                Ok(running) => {
                    slot.running = Some(running);
                    return Ok(());
                }
                Err(failure) if Instant::now() >= deadline => return Err(failure),
                Err(_) => sleep(RESTART_PAUSE).await,
            }
        }
    }

    /// Ends a node on the spot: its tasks are dropped wherever they stand.
    fn kill(&mut self, node: NodeId) -> Outcome<String> {
        match self.slot(node)?.running.take() {
            None => Err(Failure::new(format!("{node} is not running"), format!("quorate dev start {node}"))),
            Some(running) => {
                running.kill();
                Ok(format!("{node} is dead; `quorate dev start {node}` brings it back"))
            }
        }
    }

    /// The next node that stops by itself, and why.
    pub(super) async fn next_stopped(&mut self) -> (NodeId, String) {
        let (node, why) = poll_fn(|context| {
            for (node, slot) in &mut self.nodes {
                if let Some(running) = &mut slot.running
                    && let Poll::Ready(why) = running.stopped.as_mut().poll(context)
                {
                    return Poll::Ready((*node, why));
                }
            }
            Poll::Pending
        })
        .await;
        if let Some(running) = self.nodes.get_mut(&node).and_then(|slot| slot.running.take()) {
            running.kill();
        }
        (node, why)
    }

    /// Ends all nodes in an orderly way, at once and within a bounded time. Returns those that have not ended, and why.
    pub(super) async fn shutdown(&self) -> BTreeMap<NodeId, String> {
        let (mut ending, mut left) = (tokio::task::JoinSet::new(), BTreeMap::new());
        for (name, slot) in &self.nodes {
            let Some(running) = &slot.running else { continue };
            left.insert(*name, format!("it has not ended within {} s", SHUTDOWN_TIME.as_secs() * 2));
            let (name, node) = (*name, Arc::clone(&running.node));
            ending.spawn_on(async move { (name, node.shutdown(SHUTDOWN_TIME).await) }, running.runtime.get().handle());
        }
        let all = async {
            while let Some(ended) = ending.join_next().await {
                match ended {
                    Ok((node, Ok(()))) => _ = left.remove(&node),
                    Ok((node, Err(error))) => _ = left.insert(node, format!("its last sync failed: {error}")),
                    // It keeps its place among those that have not ended.
                    Err(_) => {}
                }
            }
        };
        // The nodes bound their own time; this is for a runtime that is stuck.
        let _ = timeout(2 * SHUTDOWN_TIME, all).await;
        left
    }

    /// Ends the runtimes. Blocks for a short time, and so must not be called from asynchronous code.
    pub(super) fn end(self) {
        for running in self.nodes.into_values().filter_map(|slot| slot.running) {
            let Running { mut runtime, node, stopped } = running;
            drop((node, stopped));
            if let Some(runtime) = runtime.0.take() {
                runtime.shutdown_timeout(RUNTIME_END_TIME);
            }
        }
    }

    fn slot(&mut self, node: NodeId) -> Outcome<&mut Slot> {
        let names: Vec<_> = self.nodes.keys().map(ToString::to_string).collect();
        self.nodes.get_mut(&node).ok_or_else(|| {
            Failure::usage(format!("there is no node {node} here"), format!("the nodes are {}", names.join(", ")))
        })
    }
}

impl Running {
    async fn start(launch: Launch) -> Outcome<Self> {
        let name = launch.node();
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name(name.to_string())
            .enable_all()
            .build()
            .map_err(|error| {
                Failure::new(format!("cannot start threads for {name}: {error}"), "use fewer nodes (-n)")
            })?;
        let runtime = Background(Some(runtime));
        let started = runtime.get().spawn(launch.start()).await;
        let started = started.unwrap_or_else(|error| {
            Err(Failure::new(format!("{name} died while it started: {error}"), "look at the log above"))
        });
        let node = Arc::new(started?);
        let watched = Arc::clone(&node);
        Ok(Self { runtime, node, stopped: Box::pin(async move { watched.stopped().await }) })
    }

    /// The tasks go first, in whatever state they are; the handle after them, so that it cannot say goodbye for them.
    fn kill(self) {
        drop(self.runtime);
        drop((self.stopped, self.node));
    }
}

/// A runtime that is dropped without waiting for its tasks: tokio panics when asynchronous code drops a bare one, and a
/// start that a signal cuts short would do that.
struct Background(Option<Runtime>);

impl Background {
    fn get(&self) -> &Runtime {
        self.0.as_ref().expect("only its end takes the runtime out")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Threads a node: two, so that one slow disk access does not hold up all of it.
const WORKERS: usize = 2;

/// How long the port and the store of a killed node may take to come free, and how often that is tried.
const RESTART_TIME: Duration = Duration::from_secs(10);
/// See [`RESTART_TIME`].
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// How long an orderly end may take.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);

/// How long a runtime may take to end after its node has.
const RUNTIME_END_TIME: Duration = Duration::from_secs(1);
