//! The decision on the next layout under lost, repeated and reordered messages, with operators that compete, crash and come again: one
//! layout for a version, whatever happens, and one in the end when all is well. And each rule bent in turn, which must be found.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use quorate_core::chain::{Accepted, Acceptor, Ballot, Proposer, Step};
use quorate_core::layout::Layout;
use quorate_core::staging::{Staged, StagedMember};
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId};
use quorate_wire::random::Random;

/// One rule bent, as a node that gets it wrong would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bend {
    Nothing,
    /// An acceptor forgets at a restart what it has promised.
    PromiseForgotten,
    /// An acceptor forgets at a restart what it has accepted.
    AcceptedForgotten,
    /// An acceptor that has lost its disk votes again.
    WipedVotes,
    /// A proposer does not hear of what was accepted before.
    OwnLayoutAlways,
    /// Two operators use the same ballots.
    SharedBallots,
    /// A layout is adopted when one member has accepted it.
    AdoptsAccepted,
    /// One operator asks the members of the layout that it wants.
    MembersOfTheChild,
}

#[derive(Clone)]
enum Message {
    Prepare(Ballot),
    Promise(Ballot, Option<Accepted>),
    Accept(Ballot, Layout),
    Accepted(Ballot),
    Refused(Ballot, Ballot),
}

struct World {
    random: Random,
    bend: Bend,
    parent: Layout,
    acceptors: BTreeMap<NodeId, Acceptor>,
    /// Whose disk was lost.
    wiped: BTreeSet<NodeId>,
    operators: Vec<Operator>,
    /// To an acceptor from an operator's attempt, or back.
    messages: Vec<(NodeId, usize, bool, Message)>,
    chosen: BTreeSet<[u8; 32]>,
}

struct Operator {
    name: NodeId,
    wanted: Layout,
    round: u64,
    proposer: Option<Proposer>,
}

fn id(i: u16) -> NodeId {
    NodeId::new(&format!("n{i}")).expect("legal")
}

fn layout(members: &[u16]) -> Layout {
    let mut staged = Staged::default();
    for i in members {
        let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + i));
        staged.join(id(*i), StagedMember { disk: DiskId((*i).into()), addr, zone: "z".into(), weight: 1 });
    }
    staged.settings(Some(3), Some(8), None, None);
    staged.layout(ClusterId(7))
}

impl World {
    fn new(seed: u64, bend: Bend) -> Self {
        let parent = layout(&[1, 2, 3]);
        let after = |members: &[u16]| Layout { version: LayoutVersion(2), previous: parent.hash(), ..layout(members) };
        let operator =
            |(i, members): (u16, &[u16])| Operator { name: id(i), wanted: after(members), round: 0, proposer: None };
        let operators = [(1, &[1, 2, 3, 4][..]), (2, &[2, 3, 5]), (3, &[3, 4, 5])].into_iter().map(operator).collect();
        let acceptors = (1..=5).map(|i| (id(i), Acceptor::after(&parent))).collect();
        let (messages, chosen, wiped) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        Self { random: Random::from_seed(seed), bend, parent, acceptors, wiped, operators, messages, chosen }
    }

    fn below(&self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    /// An operator begins an attempt, above all that it has met.
    fn begin(&mut self, at: usize) {
        let shared = self.bend == Bend::SharedBallots;
        let nonce = if shared { 0 } else { self.random.u64() };
        let operator = &mut self.operators[at];
        operator.round += 1;
        let proposer = if shared { id(1) } else { operator.name };
        let ballot = Ballot { round: operator.round, proposer, nonce };
        let child = self.bend == Bend::MembersOfTheChild && at == 2;
        let members = if child { &operator.wanted.members } else { &self.parent.members };
        let parent = Layout { members: members.clone(), ..self.parent.clone() };
        let started = Proposer::start(&parent, operator.wanted.clone(), ballot);
        let to: Vec<NodeId> = started.acceptors().iter().copied().collect();
        operator.proposer = Some(started);
        self.messages.extend(to.into_iter().map(|to| (to, at, true, Message::Prepare(ballot))));
    }

    fn carry_out(&mut self, at: usize, step: Option<Step>) {
        let Some(step) = step else { return };
        let proposer = self.operators[at].proposer.as_ref().expect("it has made the step");
        match step {
            Step::Propose(layout) => {
                let ballot = proposer.ballot();
                let to: Vec<NodeId> = proposer.acceptors().iter().copied().collect();
                let accept = |to| (to, at, true, Message::Accept(ballot, layout.clone()));
                self.messages.extend(to.into_iter().map(accept));
            }
            Step::Chosen(layout) => {
                self.chosen.insert(layout.hash().0);
                self.operators[at].proposer = None;
            }
            Step::Failed(above) => {
                let operator = &mut self.operators[at];
                operator.round = operator.round.max(above.map_or(0, |ballot| ballot.round));
                operator.proposer = None;
            }
        }
    }

    /// A message arrives.
    fn deliver(&mut self, (acceptor, at, to_acceptor, message): (NodeId, usize, bool, Message)) {
        if to_acceptor {
            if self.wiped.contains(&acceptor) && self.bend != Bend::WipedVotes {
                return;
            }
            let held = &self.acceptors[&acceptor];
            let (after, answer) = match message {
                Message::Prepare(ballot) => match held.promise(ballot) {
                    Ok(after) => {
                        let told = after.accepted().cloned().filter(|_| self.bend != Bend::OwnLayoutAlways);
                        (after, Message::Promise(ballot, told))
                    }
                    Err(outrun) => (held.clone(), Message::Refused(ballot, outrun.0)),
                },
                Message::Accept(ballot, layout) => match held.accept(ballot, layout.clone()) {
                    Ok(after) => {
                        if self.bend == Bend::AdoptsAccepted {
                            self.chosen.insert(layout.hash().0);
                        }
                        (after, Message::Accepted(ballot))
                    }
                    Err(outrun) => (held.clone(), Message::Refused(ballot, outrun.0)),
                },
                _ => return,
            };
            self.acceptors.insert(acceptor, after);
            self.messages.push((acceptor, at, false, answer));
            return;
        }
        let Some(proposer) = &mut self.operators[at].proposer else { return };
        let mine = |ballot: Ballot| proposer.ballot() == ballot;
        let step = match message {
            Message::Promise(ballot, accepted) if mine(ballot) => proposer.on_promise(acceptor, accepted),
            Message::Accepted(ballot) if mine(ballot) => proposer.on_accepted(acceptor),
            Message::Refused(ballot, outrun) if mine(ballot) => {
                proposer.on_failed(acceptor, Some(quorate_core::chain::Outrun(outrun)))
            }
            _ => None,
        };
        self.carry_out(at, step);
    }

    fn restart(&mut self) {
        let node = id(1 + self.below(5) as u16);
        let held = self.acceptors[&node].clone();
        let nothing = Acceptor::after(&self.parent);
        let after = match self.bend {
            Bend::AcceptedForgotten => nothing,
            // What was accepted is on its disk.
            Bend::PromiseForgotten => match held.accepted().cloned() {
                Some(Accepted { ballot, layout }) => nothing.accept(ballot, layout).expect("nothing was promised"),
                None => nothing,
            },
            _ => held,
        };
        self.acceptors.insert(node, after);
    }

    /// One life: some hundred steps at random, then everything heals and one operator goes on until something is chosen.
    fn live(seed: u64, bend: Bend) -> Result<(), String> {
        let mut world = Self::new(seed, bend);
        let (loses, repeats) = (world.below(4), world.below(3));
        for _ in 0..150 {
            match world.below(20) {
                0 | 1 => {
                    let at = world.below(3);
                    world.begin(at);
                }
                2 => {
                    // The operator's node dies: nobody goes on with its attempt.
                    let at = world.below(3);
                    world.operators[at].proposer = None;
                }
                3 => world.restart(),
                4 if world.wiped.is_empty() && world.below(4) == 0 => {
                    let node = id(1 + world.below(3) as u16);
                    world.wiped.insert(node);
                    world.acceptors.insert(node, Acceptor::after(&world.parent));
                }
                _ if world.messages.is_empty() => {}
                _ => {
                    let next = world.below(world.messages.len());
                    let message = world.messages.swap_remove(next);
                    if world.below(10) < repeats {
                        world.messages.push(message.clone());
                    }
                    if world.below(10) >= loses {
                        world.deliver(message);
                    }
                }
            }
            if world.chosen.len() > 1 {
                return Err(format!("seed {seed}: two layouts were chosen"));
            }
        }
        let at = world.below(2);
        for _ in 0..20 {
            let highest = world.operators.iter().map(|operator| operator.round).max().unwrap_or(0);
            world.operators[at].round = highest;
            world.begin(at);
            while let Some(message) = world.messages.pop() {
                world.deliver(message);
            }
            if world.chosen.len() > 1 {
                return Err(format!("seed {seed}: two layouts were chosen"));
            }
            if world.operators[at].proposer.is_none() && world.chosen.len() == 1 {
                return Ok(());
            }
        }
        Err(format!("seed {seed}: nothing is chosen, though a majority is there"))
    }
}

#[test]
fn one_layout_is_chosen_and_one_is_chosen_in_the_end() {
    for seed in 0..20_000 {
        World::live(seed, Bend::Nothing).expect("all is well");
    }
}

#[test]
fn each_rule_is_needed() {
    use Bend::*;
    for bend in [
        PromiseForgotten,
        AcceptedForgotten,
        WipedVotes,
        OwnLayoutAlways,
        SharedBallots,
        AdoptsAccepted,
        MembersOfTheChild,
    ] {
        let found = (0..20_000).find_map(|seed| World::live(seed, bend).err());
        let found = found.unwrap_or_else(|| panic!("{bend:?} was not found"));
        assert!(found.contains("two layouts"), "{bend:?}: {found}");
    }
}
