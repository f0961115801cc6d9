//! Operators who change the layout while the cluster runs, each with a wish of its own, as they would with `quorate layout`.
//!
//! An operator stages what is wanted at one node and applies it as the next version. What is not decided is applied again until it is. When
//! another layout of that version is in force, the wish is dropped, as whoever looks at it may want something else now; or, if the operator
//! insists, it is meant for the next version from then on. An operator whose node is stopped for good, because another operator had it leave,
//! turns to another node.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_client::{Client, Error, RequestOptions};
use quorate_wire::ids::LayoutVersion;
use quorate_wire::{Applied, LayoutCommand, LayoutReport, Reply, RequestBody};
use tokio::time::sleep;

use crate::cluster::{ClientMachine, Machine};
use crate::plan::{LayoutChange, Plan, Staging};
use crate::trace::Trace;
use crate::workload::elapsed;

/// How a wish has ended, or why it has not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Its time has not come.
    Waits,
    /// It is not decided, and this is what stood against it last.
    Open(String),
    /// The node refuses it, and this is why. Nothing of it will be.
    Refused(String),
    /// The operator has given up, and this is why it could not be decided.
    GivenUp(String),
    /// It is the layout of this version.
    Decided(u64),
    /// Another layout has the version that it was meant for.
    Dropped(u64),
}

/// The operators of one life. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Operators(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    wishes: Mutex<Vec<Wish>>,
    /// One operator at a time speaks to a node.
    nodes: Vec<tokio::sync::Mutex<()>>,
    trace: Trace,
}

impl Operators {
    pub(crate) fn new(plan: &Plan, trace: Trace) -> Self {
        let wishes = Mutex::new(vec![Wish::Waits; plan.changes.len()]);
        let nodes = (0..plan.nodes()).map(|_| tokio::sync::Mutex::new(())).collect();
        Self(Arc::new(Inner { wishes, nodes, trace }))
    }

    /// What has become of each change of the plan, in its order.
    pub(crate) fn wishes(&self) -> Vec<Wish> {
        self.lock().clone()
    }

    /// Whether every wish has come to its end.
    pub(crate) fn are_done(&self) -> bool {
        let open = |wish: &Wish| matches!(wish, Wish::Waits | Wish::Open(_));
        !self.lock().iter().any(open)
    }

    fn note(&self, number: usize, wish: Wish) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let who = format!("operator {number}");
        if self.lock()[number] != wish {
            self.0.trace.event(at, &who, format_args!("{wish:?}"));
        }
        self.lock()[number] = wish;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wish>> {
        self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what the plan's change of this number says, counted from `start`, until it is decided or `until`.
pub(crate) async fn operate(
    (clients, machines): (ClientMachine, Vec<Machine>),
    plan: Arc<Plan>,
    operators: Operators,
    number: usize,
    (start, until): (Duration, Duration),
) {
    let change = &plan.changes[number];
    sleep((start + Duration::from_millis(change.at_ms.into())).saturating_sub(elapsed())).await;
    let mut client = None;
    let (mut at, mut asked) = (change.at, None);
    while elapsed() < until {
        if let Some(other) = instead_of(at, &machines) {
            // What was staged went with the node; the other one says whether it is still to be done.
            (at, asked) = (other, None);
        }
        let admin = match &client {
            Some(admin) => admin,
            None => match clients.connect(PORT_BASE - number as u16, true, TIMEOUT).await {
                Ok(admin) => client.insert(admin),
                Err(error) => {
                    operators.note(number, Wish::Open(error.to_string()));
                    sleep(PAUSE).await;
                    continue;
                }
            },
        };
        // Another one may have its turn between two attempts, and forget what was staged.
        let alone = operators.0.nodes[usize::from(at)].lock().await;
        let ended = attempt(admin, (&machines, at), change, &mut asked).await;
        drop(alone);
        match ended {
            Ok(wish) => {
                let over = !matches!(wish, Wish::Open(_));
                operators.note(number, wish);
                if over {
                    break;
                }
            }
            Err(Error::NotApplied(why)) => operators.note(number, Wish::Open(format!("{REFUSED}{why}"))),
            Err(error) => operators.note(number, Wish::Open(error.to_string())),
        }
        sleep(PAUSE).await;
    }
    // What is still refused when everything is in order is not possible.
    match operators.wishes()[number].clone() {
        Wish::Open(why) if why.starts_with(REFUSED) => operators.note(number, Wish::Refused(why)),
        Wish::Open(why) => operators.note(number, Wish::GivenUp(why)),
        Wish::Waits => operators.note(number, Wish::GivenUp("it was never begun".to_owned())),
        Wish::Refused(_) | Wish::GivenUp(_) | Wish::Decided(_) | Wish::Dropped(_) => {}
    }
    if let Some(client) = client {
        client.close().await;
    }
}

/// The next node that knows a layout, if the operator of another one has had this one leave and it is stopped for good.
fn instead_of(at: u8, machines: &[Machine]) -> Option<u8> {
    if !machines[usize::from(at)].is_retired() {
        return None;
    }
    let count = machines.len() as u8;
    let mut others = (1..count).map(|further| (at + further) % count);
    others.find(|other| {
        let machine = &machines[usize::from(*other)];
        !machine.is_retired() && machine.context_keys().is_ok()
    })
}

/// Stages and applies at a node, or applies again what was `asked` for.
async fn attempt(
    admin: &Client,
    (machines, at): (&[Machine], u8),
    change: &LayoutChange,
    asked: &mut Option<LayoutVersion>,
) -> Result<Wish, Error> {
    let at = machines[usize::from(at)].addr();
    let ask = async |command: LayoutCommand| -> Result<LayoutReport, Error> {
        match admin.request_at(at, RequestBody::Layout(command), RequestOptions::default()).await? {
            Reply::Layout(report) => Ok(*report),
            other => panic!("a layout command was answered with {other:?}"),
        }
    };
    let version = match *asked {
        Some(version) => version,
        None => {
            let shown = ask(LayoutCommand::Show).await?;
            if shown.staged.is_some() {
                ask(LayoutCommand::Revert).await?;
            }
            for staging in &change.stage {
                ask(command(staging, machines)).await?;
            }
            LayoutVersion(shown.current.version.0 + 1)
        }
    };
    // From here on it may be decided, whatever is heard of it.
    *asked = Some(version);
    let report = match ask(LayoutCommand::Apply { version }).await {
        Ok(report) => report,
        Err(error) => {
            // Nothing is asked of the members by a refusal, and what was staged may be lost with a disk.
            if matches!(error, Error::NotApplied(_)) {
                *asked = None;
            }
            return Err(error);
        }
    };
    Ok(match report.applied {
        Some(Applied::AsStaged | Applied::Before) => Wish::Decided(version.0),
        Some(Applied::Another { .. }) => {
            ask(LayoutCommand::Revert).await?;
            if change.insists {
                *asked = None;
                Wish::Open(format!("another layout has version {version}"))
            } else {
                Wish::Dropped(version.0)
            }
        }
        Some(Applied::Undecided { why }) => Wish::Open(format!("undecided: {why}")),
        None => Wish::Open("the node says nothing of it".to_owned()),
    })
}

fn command(staging: &Staging, machines: &[Machine]) -> LayoutCommand {
    let machine = |node: u8| &machines[usize::from(node)];
    match *staging {
        Staging::Join(node) => {
            let (addr, zone) = (machine(node).addr(), machine(node).zone().to_owned());
            LayoutCommand::StageJoin { node: machine(node).node(), addr, zone, weight: 1 }
        }
        Staging::Leave(node) => LayoutCommand::StageLeave { node: machine(node).node() },
        Staging::Replace { old, new } => LayoutCommand::StageReplace {
            old: machine(old).node(),
            new: machine(new).node(),
            addr: machine(new).addr(),
        },
        Staging::Weight { node, weight } => LayoutCommand::StageWeight { node: machine(node).node(), weight },
    }
}

const REFUSED: &str = "refused: ";

/// Clients are told apart by their numbers; workers count from 0.
const PORT_BASE: u16 = u16::MAX - 16;

/// A decision takes two rounds among the members, and some attempts.
const TIMEOUT: Duration = Duration::from_secs(8);

/// An operator looks at the answer for a moment.
const PAUSE: Duration = Duration::from_millis(700);
