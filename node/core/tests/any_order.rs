//! The state machines under events in any order, also such as nobody has asked for: they must not panic, and keep their invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use quorate_core::bootstrap::{Bootstrap, Heard, Me, Offer};
use quorate_core::get::{Get, GetAction};
use quorate_core::layout::Layout;
use quorate_core::put::{Put, PutAction, StandIns};
use quorate_core::quorum::{Group, Said, Status, Tally};
use quorate_core::staging::{Staged, StagedMember, warnings};
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, OpId};
use quorate_wire::{Failure, NotApplied};

const OP: OpId = OpId(7);

fn node(number: u8) -> NodeId {
    NodeId::new(&format!("n{number}")).expect("legal")
}

fn nodes(numbers: std::ops::Range<u8>) -> Vec<NodeId> {
    numbers.map(node).collect()
}

/// Primaries are counted from 0, fallbacks from 5; 9 is nobody.
fn somebody() -> impl Strategy<Value = NodeId> {
    (0..10u8).prop_map(node)
}

/// Of one to three live versions: some of the five primaries, in any order, and how many of them are needed.
fn groups() -> impl Strategy<Value = Vec<Group>> {
    let owners = subsequence((0..5).collect::<Vec<u8>>(), 1..=5).prop_shuffle();
    let group = owners.prop_flat_map(|owners| (1..=owners.len() as u8, Just(owners)));
    vec(group, 1..=3).prop_map(|groups| {
        let numbered = (1..).zip(groups);
        let group = |(version, (need, owners)): (u64, (u8, Vec<u8>))| {
            let primaries = owners.into_iter().map(node).collect();
            Group { version: LayoutVersion(version), primaries, need }
        };
        numbered.map(group).collect()
    })
}

/// All owners of the groups, those of the first one first.
fn owners(groups: &[Group]) -> Vec<NodeId> {
    let mut owners: Vec<NodeId> = Vec::new();
    for node in groups.iter().flat_map(|group| &group.primaries) {
        if !owners.contains(node) {
            owners.push(*node);
        }
    }
    owners
}

#[derive(Debug, Clone)]
enum WriteEvent {
    Minted,
    MintRefused,
    MintUnknown,
    Ack(NodeId, bool),
    Failed(NodeId),
    HintKept(NodeId, NodeId),
    HintFailed(NodeId, NodeId),
    Late,
    Deadline,
}

fn write_event() -> impl Strategy<Value = WriteEvent> {
    prop_oneof![
        2 => Just(WriteEvent::Minted),
        1 => Just(WriteEvent::MintRefused),
        1 => Just(WriteEvent::MintUnknown),
        6 => (somebody(), any::<bool>()).prop_map(|(who, synced)| WriteEvent::Ack(who, synced)),
        4 => somebody().prop_map(WriteEvent::Failed),
        6 => (somebody(), somebody()).prop_map(|(holder, target)| WriteEvent::HintKept(holder, target)),
        4 => (somebody(), somebody()).prop_map(|(holder, target)| WriteEvent::HintFailed(holder, target)),
        1 => Just(WriteEvent::Late),
        1 => Just(WriteEvent::Deadline),
    ]
}

/// Some of the versions that there may be.
fn some_versions() -> impl Strategy<Value = Vec<LayoutVersion>> {
    subsequence((1..=3).map(LayoutVersion).collect::<Vec<_>>(), 0..=3)
}

#[derive(Debug, Clone)]
enum ReadEvent {
    Answer(NodeId, u8),
    AnswerFor(NodeId, Vec<LayoutVersion>),
    Absent(NodeId),
    Failed(NodeId),
    Late(u32),
    Deadline,
}

fn read_event() -> impl Strategy<Value = ReadEvent> {
    prop_oneof![
        5 => (somebody(), 0..3u8).prop_map(|(who, values)| ReadEvent::Answer(who, values)),
        3 => (somebody(), some_versions()).prop_map(|(who, versions)| ReadEvent::AnswerFor(who, versions)),
        3 => somebody().prop_map(ReadEvent::Absent),
        3 => somebody().prop_map(ReadEvent::Failed),
        3 => (0..5u32).prop_map(ReadEvent::Late),
        1 => Just(ReadEvent::Deadline),
    ]
}

#[derive(Debug, Clone)]
enum Count {
    Ask(NodeId),
    AskFallback(NodeId, NodeId),
    Ack(NodeId),
    AckForVersions(NodeId, Vec<LayoutVersion>),
    AckFor(NodeId, NodeId),
    Fail(NodeId),
    FailFor(NodeId, NodeId),
    Close,
}

fn count() -> impl Strategy<Value = Count> {
    let two = || (somebody(), somebody());
    prop_oneof![
        4 => somebody().prop_map(Count::Ask),
        4 => two().prop_map(|(who, of)| Count::AskFallback(who, of)),
        4 => somebody().prop_map(Count::Ack),
        4 => (somebody(), some_versions()).prop_map(|(who, versions)| Count::AckForVersions(who, versions)),
        4 => two().prop_map(|(who, of)| Count::AckFor(who, of)),
        2 => somebody().prop_map(Count::Fail),
        2 => two().prop_map(|(who, of)| Count::FailFor(who, of)),
        1 => Just(Count::Close),
    ]
}

fn layout_of(members: u8, partitions: u16) -> Layout {
    let mut staged = Staged::default();
    for number in 0..members {
        staged.join(node(number), member(number, u128::from(number), "z"));
    }
    staged.settings(Some(members.min(3)), Some(partitions), None, None);
    staged.layout(ClusterId(7))
}

fn member(number: u8, disk: u128, zone: &str) -> StagedMember {
    let addr = SocketAddr::from(([127, 0, 0, 1], 7000 + u16::from(number)));
    StagedMember { disk: DiskId(disk), addr, zone: zone.into(), weight: 1 }
}

/// Some that a node takes, and some that it must not.
fn some_layout() -> impl Strategy<Value = Layout> {
    (select(vec![1u8, 3, 5]), select(vec![8u16, 16]), 0..5u8).prop_map(|(members, partitions, bend)| {
        let mut layout = layout_of(members, partitions);
        match bend {
            0 => layout.cluster = ClusterId(8),
            1 => layout.r = 0,
            2 => layout.version = LayoutVersion(2),
            _ => {}
        }
        layout
    })
}

#[derive(Debug, Clone)]
enum Talk {
    Offer(Layout, bool),
    Hear(NodeId, Option<Layout>, bool, bool),
    Restart,
}

fn talk() -> impl Strategy<Value = Talk> {
    let heard = (somebody(), proptest::option::of(some_layout()), any::<bool>(), any::<bool>());
    prop_oneof![
        3 => (some_layout(), any::<bool>()).prop_map(|(layout, stored)| Talk::Offer(layout, stored)),
        6 => heard.prop_map(|(from, accepted, chosen, stored)| Talk::Hear(from, accepted, chosen, stored)),
        1 => Just(Talk::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_write_never_panics_answers_once_and_is_not_said_to_be_refused_after_its_mint(
        groups in groups(),
        me in somebody(),
        hints in any::<bool>(),
        fallbacks in vec((5..9u8).prop_map(node), 0..4),
        strict in any::<bool>(),
        up in any::<u8>(),
        events in vec(write_event(), 0..60),
    ) {
        let primaries = owners(&groups);
        let reachable = |who: NodeId| primaries.iter().position(|primary| *primary == who).is_none_or(|i| up >> i & 1 == 1);
        let mut fallbacks = fallbacks;
        fallbacks.retain(|fallback| *fallback != me);
        let new = Put::new(me, OP, &groups, StandIns { hints, fallbacks }, strict, reachable);
        let Ok(mut put) = new else { return Ok(()) };
        prop_assert!(groups.iter().any(|group| group.need == put.need()));
        let (mut minted, mut over, mut replies, mut finished) = (false, false, 0, 0);
        let mut asked = BTreeSet::new();
        for event in events {
            let began = minted || over;
            let actions = match event {
                WriteEvent::Minted => {
                    minted |= !over;
                    put.on_minted(1)
                }
                WriteEvent::MintRefused => {
                    over |= !minted;
                    put.on_mint_refused(NotApplied::EmptyKey)
                }
                WriteEvent::MintUnknown => {
                    over |= !minted;
                    put.on_mint_unknown("disk".into())
                }
                WriteEvent::Ack(who, synced) => put.on_ack(who, synced, true, 2),
                WriteEvent::Failed(who) => put.on_failed(who, "no".into(), 2),
                WriteEvent::HintKept(holder, target) => put.on_hint_kept(holder, target, true, true, 2),
                WriteEvent::HintFailed(holder, target) => put.on_hint_failed(holder, target, "no".into(), 2),
                WriteEvent::Late => put.on_late(2),
                WriteEvent::Deadline => put.on_deadline(),
            };
            for action in actions {
                match action {
                    PutAction::Reply(outcome) => {
                        replies += 1;
                        match outcome {
                            Ok(()) => {
                                prop_assert!(minted && put.acks().total() >= put.need());
                                prop_assert!(!strict || put.acks().fallback == 0);
                            }
                            Err(Failure::NotApplied(_)) => prop_assert!(!minted && !began),
                            Err(Failure::Indeterminate { op_id, .. }) => prop_assert_eq!(op_id, OP),
                        }
                    }
                    PutAction::Finished => finished += 1,
                    PutAction::Replicate(to) => {
                        prop_assert!(minted && primaries.contains(&to) && asked.insert((to, to)));
                    }
                    PutAction::Hint { holder, target } => {
                        prop_assert!(minted && hints && primaries.contains(&target) && holder != target);
                        prop_assert!(asked.insert((holder, target)), "{} twice for {}", holder, target);
                    }
                    PutAction::AwaitDurable | PutAction::LateAfterDelay => prop_assert!(minted && finished == 0),
                }
            }
            prop_assert!(replies <= 1 && finished <= 1, "{} replies, {} ends", replies, finished);
            prop_assert!(finished == 0 || replies == 1);
            prop_assert_eq!(put.is_replied(), replies == 1);
            prop_assert!(put.asked().len() >= put.hints().len().min(1));
        }
    }

    #[test]
    fn a_read_never_panics_asks_nobody_twice_and_answers_once(
        groups in groups(),
        fallbacks in 0..4u8,
        strict in any::<bool>(),
        events in vec(read_event(), 0..60),
    ) {
        let primaries = owners(&groups);
        let (mut get, mut actions) = Get::<u8>::start(&groups, &primaries, &nodes(5..5 + fallbacks), strict, 0);
        let (mut asked, mut replies, mut finished) = (BTreeSet::new(), 0, 0);
        for event in events {
            for action in std::mem::take(&mut actions) {
                match action {
                    GetAction::Ask(who) => prop_assert!(primaries.contains(&who) && asked.insert(who)),
                    GetAction::AskFallback(who) => {
                        prop_assert!(!strict && !primaries.contains(&who) && asked.insert(who));
                    }
                    GetAction::HedgeAfterDelay { .. } => prop_assert_eq!(replies, 0),
                    GetAction::Reply(outcome) => {
                        replies += 1;
                        prop_assert_eq!(outcome.is_ok(), get.acks().total() >= get.need());
                        prop_assert!(outcome.is_err() || get.decisive().len() >= usize::from(get.need()));
                    }
                    GetAction::Finished => finished += 1,
                }
            }
            prop_assert!(replies <= 1 && finished <= replies);
            actions = match event {
                ReadEvent::Answer(who, values) => get.on_answer(who, values, Said::Values(values.into()), 1),
                ReadEvent::AnswerFor(who, versions) => {
                    get.on_answer_for_versions(who, &versions, 1, Said::Values(1), 1)
                }
                ReadEvent::Absent(who) => get.on_absent(who, 0, 1),
                ReadEvent::Failed(who) => get.on_failed(who, "no".into(), 1),
                ReadEvent::Late(token) => get.on_late(token, 1),
                ReadEvent::Deadline => get.on_deadline(),
            };
        }
        prop_assert!(get.asked().iter().all(|asked| asked.node != node(9)));
        prop_assert!(get.answers().len() <= asked.len());
    }

    #[test]
    fn a_tally_never_panics_and_is_what_the_tallies_of_its_groups_are_together(
        groups in groups(),
        every in any::<bool>(),
        strict in any::<bool>(),
        events in vec(count(), 0..60),
    ) {
        let primaries = owners(&groups);
        let of = if every { Tally::of_every } else { Tally::of_any };
        let mut tally = of(&groups, strict);
        let mut alone: Vec<Tally> = groups.iter().map(|group| of(std::slice::from_ref(group), strict)).collect();
        let mut closed = None;
        for event in events {
            let (before, said) = (tally.acks(), Said::Ack { synced: true, changed: true });
            let raised = match event {
                Count::Ask(who) => {
                    let asked = tally.ask(who, 1);
                    prop_assert!(!asked || primaries.contains(&who));
                    for alone in &mut alone {
                        let _ = alone.ask(who, 1);
                    }
                    None
                }
                Count::AskFallback(who, of) => {
                    let asked = tally.ask_fallback(who, of, 1);
                    prop_assert!(!asked || (!primaries.contains(&who) && primaries.contains(&of)));
                    if asked {
                        for alone in &mut alone {
                        let _ = alone.ask_fallback(who, of, 1);
                    }
                    }
                    None
                }
                Count::Ack(who) => {
                    let raised = alone.iter_mut().map(|alone| alone.ack(who, said.clone(), 2)).max();
                    Some((tally.ack(who, said, 2), raised))
                }
                Count::AckForVersions(who, versions) => {
                    let one = |alone: &mut Tally| alone.ack_for_versions(who, &versions, said.clone(), 2);
                    let raised = alone.iter_mut().map(one).max();
                    Some((tally.ack_for_versions(who, &versions, said, 2), raised))
                }
                Count::AckFor(who, of) => {
                    let raised = alone.iter_mut().map(|alone| alone.ack_for(who, of, said.clone(), 2)).max();
                    Some((tally.ack_for(who, of, said, 2), raised))
                }
                Count::Fail(who) => {
                    tally.fail(who, Said::Failed("no".into()), 2);
                    for alone in &mut alone {
                        let _ = alone.fail(who, Said::Failed("no".into()), 2);
                    }
                    None
                }
                Count::FailFor(who, of) => {
                    tally.fail_for(who, of, Said::Failed("no".into()), 2);
                    for alone in &mut alone {
                        let _ = alone.fail_for(who, of, Said::Failed("no".into()), 2);
                    }
                    None
                }
                Count::Close => {
                    tally.close();
                    alone.iter_mut().for_each(Tally::close);
                    closed.get_or_insert(before);
                    None
                }
            };
            if let Some((raised, alone)) = raised {
                prop_assert_eq!(Some(raised), alone, "it counts if it counts in some group");
            }
            let acks = tally.acks();
            prop_assert!(!strict || acks.fallback == 0);
            if let Some(closed) = closed {
                prop_assert_eq!(acks, closed, "nothing counts any more");
            }
            let of_each = alone.iter().map(Tally::status);
            let expected = if every { of_each.max() } else { of_each.min() };
            prop_assert_eq!(Some(tally.status()), expected, "{:?}", tally.asked());
            prop_assert_eq!(tally.status() == Status::Met, acks.total() >= tally.need());
            let lacks = |tally: &Tally| i16::from(tally.need()) - i16::from(tally.acks().total());
            let of_each = alone.iter().map(lacks);
            prop_assert_eq!(Some(lacks(&tally)), if every { of_each.max() } else { of_each.min() });
            if let [alone] = &alone[..] {
                prop_assert!(acks.total() <= groups[0].primaries.len() as u8 && acks.total() >= before.total());
                prop_assert_eq!((acks, tally.possible()), (alone.acks(), alone.possible()));
            }
            let _ = (tally.why(), tally.asked(), tally.vacant(), tally.is_waiting());
        }
    }

    /// The caller's part is what it says: a step is made durable before anything else is heard, or it is not made.
    #[test]
    fn an_acceptor_never_panics_and_holds_one_layout_for_ever(
        me in somebody(),
        disk in 0..6u128,
        events in vec(talk(), 0..40),
    ) {
        let me = Me { node: me, disk: DiskId(disk), cluster: ClusterId(7) };
        let mut bootstrap = Bootstrap::new(me, None);
        let (mut held, mut chosen) = (None, false);
        for event in events {
            match event {
                Talk::Offer(layout, stored) => match bootstrap.offer(&layout) {
                    Ok(Offer::Store) if stored => {
                        prop_assert!(held.is_none(), "it has accepted one before");
                        bootstrap.stored(layout, false);
                    }
                    Ok(Offer::Store) => prop_assert!(held.is_none()),
                    Ok(Offer::Held) => prop_assert_eq!(held, Some(layout.hash())),
                    Err(why) => prop_assert!(!why.is_empty()),
                },
                Talk::Hear(from, accepted, says_chosen, stored) => {
                    match bootstrap.hear(from, accepted.as_ref(), says_chosen) {
                        Heard::Choose if stored => {
                            let layout = bootstrap.accepted().expect("it chooses what it holds").0.clone();
                            bootstrap.stored(layout, true);
                        }
                        Heard::Learn(layout) if stored => {
                            prop_assert!(held.is_none() && layout.problems().is_empty());
                            bootstrap.stored(layout, true);
                        }
                        Heard::Choose | Heard::Learn(_) | Heard::Nothing | Heard::Refused(_) => {}
                    }
                }
                Talk::Restart => {
                    let stored = bootstrap.accepted().map(|(layout, _)| (layout.clone(), bootstrap.is_chosen()));
                    bootstrap = Bootstrap::new(me, stored);
                }
            }
            let now = bootstrap.accepted().map(|(_, hash)| hash);
            prop_assert!(held.is_none() || now == held, "one hash ever");
            prop_assert!(!chosen || bootstrap.is_chosen(), "what is chosen stays chosen");
            (held, chosen) = (now, bootstrap.is_chosen());
            let _ = (bootstrap.not_serving(&[]), bootstrap.missing(), bootstrap.holding(), bootstrap.has_majority());
        }
    }
}

type Settings = (Option<u8>, Option<u16>, Option<u8>, Option<u8>);

fn settings() -> impl Strategy<Value = Settings> {
    let few = || proptest::option::of(prop_oneof![3 => 0..4u8, 1 => any::<u8>()]);
    let partitions = select(vec![0u16, 1, 7, 8, 64, u16::MAX]);
    (few(), proptest::option::of(partitions), few(), few())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_staged_can_be_shown_and_has_a_ring_if_nothing_stands_against_it(
        members in vec((0..8u8, 0..8u128, "[a-z]{0,3}", prop_oneof![0..4u32, Just(u32::MAX)], any::<u16>()), 0..10),
        changes in vec(settings(), 0..4),
    ) {
        let mut staged = Staged::default();
        for (number, disk, zone, weight, port) in members {
            let addr = SocketAddr::from(([127, 0, 0, 1], port));
            staged.join(node(number), StagedMember { weight, addr, ..member(number, disk, &zone) });
        }
        for (n, partitions, r, w) in changes {
            staged.settings(n, partitions, r, w);
        }
        let layout = staged.layout(ClusterId(7));
        let (view, _warnings) = (layout.view(), warnings(&layout));
        prop_assert_eq!(view.members.len(), staged.len());
        if layout.problems().is_empty() {
            let ring = layout.ring();
            prop_assert!(ring.is_ok(), "{:?}", ring.err());
            let primaries: BTreeMap<_, _> = view.members.iter().map(|member| (member.node, member.primaries)).collect();
            prop_assert_eq!(primaries.values().sum::<u32>(), u32::from(layout.n) * u32::from(layout.partitions));
        }
    }
}
