//! One partition against everything that can happen to it, in any order.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::losses::Reading;
use super::super::merkle::HashTree;
use super::super::operations::TRAVEL_MAX;
use super::*;

/// Keys 0 and 1 are this node's own, keys 2 and 3 are in its hints only. Even and odd ones share a leaf each.
const KEYS: u8 = 4;

/// How an insert ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Well,
    /// It is not tried.
    Refused,
    Failed {
        there: bool,
        readable: bool,
    },
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        key: u8,
        op: u8,
        delete: bool,
        blind: bool,
        ends: Ends,
    },
    /// The other replica's record is merged into the own copy or a hint.
    Fetch {
        key: u8,
        hint: bool,
        ends: Ends,
    },
    Send {
        key: u8,
        hint: bool,
    },
    PeerWrites {
        key: u8,
        blind: bool,
    },
    /// The other replica's record comes to know dots that were never minted.
    Forge {
        key: u8,
    },
    Rot {
        key: u8,
        hint: bool,
    },
    Look {
        key: u8,
        hint: bool,
        room: bool,
    },
    HintGoes {
        key: u8,
    },
    SetBack,
    Remove,
    SumUp {
        leaf: u8,
    },
    Recovered,
    Wait {
        seconds: u16,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ends = prop_oneof![
        8 => Just(Ends::Well),
        1 => Just(Ends::Refused),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(there, readable)| Ends::Failed { there, readable }),
    ];
    let step = prop_oneof![
        12 => (0..KEYS, 0..5u8, prop::bool::weighted(0.2), any::<bool>(), ends.clone())
            .prop_map(|(key, op, delete, blind, ends)| Step::Write { key, op, delete, blind, ends }),
        5 => (0..KEYS, any::<bool>(), ends).prop_map(|(key, hint, ends)| Step::Fetch { key, hint, ends }),
        4 => (0..KEYS, any::<bool>()).prop_map(|(key, hint)| Step::Send { key, hint }),
        3 => (0..KEYS, any::<bool>()).prop_map(|(key, blind)| Step::PeerWrites { key, blind }),
        1 => (0..KEYS).prop_map(|key| Step::Forge { key }),
        2 => (0..KEYS, any::<bool>()).prop_map(|(key, hint)| Step::Rot { key, hint }),
        3 => (0..KEYS, any::<bool>(), any::<bool>()).prop_map(|(key, hint, room)| Step::Look { key, hint, room }),
        2 => (0..KEYS).prop_map(|key| Step::HintGoes { key }),
        1 => Just(Step::SetBack),
        1 => Just(Step::Remove),
        4 => (0..2u8).prop_map(|leaf| Step::SumUp { leaf }),
        1 => Just(Step::Recovered),
        3 => (1..400u16).prop_map(|seconds| Step::Wait { seconds }),
    ];
    vec(step, 0..80)
}

/// What lies somewhere.
#[derive(Debug, Clone)]
struct Stored {
    record: Record,
    rotten: bool,
}

struct Op {
    delete: bool,
    cause: Context,
    first_asked: Duration,
    /// It was minted and inserted.
    minted: bool,
}

struct World {
    state: PartitionState,
    now: Duration,
    stored: BTreeMap<(u8, bool), Stored>,
    peer: BTreeMap<u8, Record>,
    seen: BTreeMap<u8, Context>,
    ops: BTreeMap<(u8, u8), Op>,
    dots: BTreeSet<Dot>,
    /// Those that have minted, and those of them that must not any more.
    actors: BTreeSet<Actor>,
    given_up: BTreeSet<Actor>,
    drawn: u64,
    peer_counter: u64,
}

/// Few, so that they are evicted.
const MOST: usize = 4;

fn me() -> NodeId {
    NodeId::new("n1").expect("legal")
}

fn data_key(key: u8) -> [u8; 2] {
    [key % 2, key]
}

fn at(key: u8, hint: bool, data_key: &[u8; 2]) -> RecordAt<'_> {
    let own = CopyKind::Own(Some(InTree { leaf: key % 2, data_key }));
    let copy = if hint { CopyKind::Hint } else { own };
    RecordAt { key: key.into(), place: u128::from(key) + 100 * u128::from(hint), copy }
}

fn digest(record: &Record, key: u8) -> Option<u128> {
    (*record != Record::default()).then(|| record.digest(&[key]))
}

impl World {
    fn new() -> Self {
        let mut state = PartitionState::default();
        *state.tree_mut() = LiveTree::of(HashTree::empty());
        Self {
            state,
            now: TRAVEL_MAX,
            stored: BTreeMap::new(),
            peer: BTreeMap::new(),
            seen: BTreeMap::new(),
            ops: BTreeMap::new(),
            dots: BTreeSet::new(),
            actors: BTreeSet::new(),
            given_up: BTreeSet::new(),
            drawn: 0,
            peer_counter: 0,
        }
    }

    fn take(&mut self, step: Step) -> Result<(), String> {
        let now = self.now;
        match step {
            Step::Write { key, op, delete, blind, ends } => self.write(key, op, delete, blind, ends)?,
            Step::Fetch { key, hint, ends } => self.fetch(key, hint, ends)?,
            Step::Send { key, hint } => self.send(key, hint),
            Step::PeerWrites { key, blind } => {
                self.peer_counter += 1;
                let actor = Actor { node: NodeId::new("n2").expect("legal"), incarnation: 1 };
                let dot = Dot { actor, counter: self.peer_counter };
                let record = self.peer.entry(key).or_default();
                let cause = if blind { Context::new() } else { record.context.clone() };
                let op_id = OpId(1000 + u128::from(self.peer_counter));
                record.mint(dot, op_id, Some(Blob::copy_from(b"theirs")), &cause);
            }
            Step::Forge { key } => {
                let Some(minter) = self.state.minter.clone() else { return Ok(()) };
                let next = minter.clone().next_dot();
                self.peer.entry(key).or_default().context.advance(next.actor, next.counter + 2);
            }
            Step::Rot { key, hint } => {
                if let Some(stored) = self.stored.get_mut(&(key, hint)) {
                    stored.rotten = true;
                }
            }
            Step::Look { key, hint, room } => self.look(key, hint, room),
            Step::HintGoes { key } => {
                let Some(hint) = self.stored.remove(&(key, true)) else { return Ok(()) };
                if !hint.rotten {
                    self.peer.entry(key).or_default().merge(&hint.record, &|_| false);
                }
                self.state.hint_gone(&at(key, true, &data_key(key)), now);
                self.lose();
            }
            Step::SetBack => {
                let note = self.state.lost(&Leaves::ALL, Reason::RolledBack, now);
                assert_eq!(note.leaves, Leaves::ALL);
                self.lose();
            }
            Step::Remove => {
                self.state.removed(now);
                self.stored.clear();
                self.lose();
            }
            Step::SumUp { leaf } => self.sum_up(leaf),
            Step::Recovered => {
                let Some(lost) = self.state.losses().lost() else { return Ok(()) };
                let other = NodeId::new("n2").expect("legal");
                let note = self.state.losses_mut().exchanged(lost, other, &Leaves::NONE, 1, 1).expect("all is whole");
                self.state.losses_mut().noted(&note);
            }
            Step::Wait { seconds } => self.now += Duration::from_secs(seconds.into()),
        }
        self.check()
    }

    /// Something is lost: whoever has minted until now must not any more.
    fn lose(&mut self) {
        self.given_up.extend(&self.actors);
    }

    fn look(&mut self, key: u8, hint: bool, room: bool) {
        let data_key = data_key(key);
        let at = at(key, hint, &data_key);
        if self.stored.get(&(key, hint)).is_none_or(|stored| !stored.rotten) {
            return;
        }
        if let Some(found) = self.state.found_corrupt(&at, self.now) {
            assert_eq!(found.note.is_some(), !hint, "others rely on the own copy");
            self.state.noted_corrupt(&at, room);
            self.lose();
        }
    }

    fn write(&mut self, key: u8, op: u8, delete: bool, blind: bool, ends: Ends) -> Result<(), String> {
        let (now, hint) = (self.now, key >= 2);
        self.look(key, hint, true);
        let held = match self.stored.get(&(key, hint)) {
            Some(stored) if stored.rotten => return Ok(()),
            stored => stored.map(|stored| stored.record.clone()).unwrap_or_default(),
        };
        let seen = if blind { Context::new() } else { self.seen.get(&key).cloned().unwrap_or_default() };
        let retry = self.ops.contains_key(&(key, op));
        let asked_for =
            self.ops.entry((key, op)).or_insert(Op { delete, cause: seen, first_asked: now, minted: false });
        let (delete, cause) = (asked_for.delete, asked_for.cause.clone());
        let op_id = OpId(u128::from(key) * 10 + u128::from(op));
        let first_sent = retry.then(|| now - asked_for.first_asked);
        let data_key = data_key(key);
        let at = at(key, hint, &data_key);
        let asked = Asked { op_id, first_sent, delete, cause: &cause };
        match self.state.judge(me(), &at, &asked, &held, false, now) {
            Judgement::Repeated(repeated) => {
                self.seen.insert(key, repeated.context);
                return Ok(());
            }
            Judgement::Forgotten if retry => return Ok(()),
            Judgement::Forgotten => return Err(format!("{op_id} is asked for the first time and unknown")),
            Judgement::New if asked_for.minted && !delete => return Err(format!("{op_id} is minted anew")),
            Judgement::New => {}
        }
        let old = digest(&held, key);
        let value = (!delete).then(|| Blob::copy_from(&[key, op]));
        let drawn = &mut self.drawn;
        let mut random = || {
            *drawn += 1;
            *drawn
        };
        let minting = self.state.mint(me(), held, op_id, value, &cause, &mut random);
        self.note(&minting.events);
        self.minted(minting.dot)?;
        if matches!(ends, Ends::Well | Ends::Failed { there: true, .. }) {
            self.ops.get_mut(&(key, op)).expect("just asked for").minted = true;
        }
        let Fresh { record, context, dropped } = minting.fresh;
        let new = Change::Replaced(old, digest(&record, key));
        if self.insert(key, hint, record, new, dropped, ends) {
            self.seen.insert(key, context);
        }
        Ok(())
    }

    fn fetch(&mut self, key: u8, hint: bool, ends: Ends) -> Result<(), String> {
        let Some(other) = self.peer.get(&key).cloned() else { return Ok(()) };
        let data_key = data_key(key);
        let at = at(key, hint, &data_key);
        self.look(key, hint, true);
        let rotten = self.stored.get(&(key, hint)).is_some_and(|stored| stored.rotten);
        let mut held = Record::default();
        if rotten {
            self.state.replace_corrupt(&at, self.now);
            self.lose();
            assert!(hint || self.state.losses().is_lost(&leaf(at.in_tree().expect("it is the own copy"))));
        } else if let Some(stored) = self.stored.get(&(key, hint)) {
            held = stored.record.clone();
        }
        let old = digest(&held, key);
        let drawn = &mut self.drawn;
        let mut random = || {
            *drawn += 1;
            *drawn
        };
        let merging = self.state.merge(me(), &at, held, &other, self.now, &mut random);
        self.note(&merging.events);
        for dot in &merging.renamed {
            self.minted(*dot)?;
        }
        let change = match (rotten, merging.changed) {
            (true, _) => Change::ReplacedCorrupt,
            (false, true) => Change::Replaced(old, digest(&merging.record, key)),
            (false, false) => Change::Nothing,
        };
        let ends = if change == Change::Nothing { Ends::Well } else { ends };
        if self.insert(key, hint, merging.record, change, merging.dropped, ends) && merging.disputed {
            self.state.settle_dispute(&at);
        }
        Ok(())
    }

    fn send(&mut self, key: u8, hint: bool) {
        if let Some(stored) = self.stored.get(&(key, hint)).filter(|stored| !stored.rotten) {
            self.peer.entry(key).or_default().merge(&stored.record, &|_| false);
        }
    }

    /// Whether it is known to be there.
    fn insert(&mut self, key: u8, hint: bool, record: Record, change: Change, dropped: Dropped, ends: Ends) -> bool {
        let data_key = data_key(key);
        let at = at(key, hint, &data_key);
        let there = matches!(ends, Ends::Well | Ends::Failed { there: true, .. }) && change != Change::Nothing;
        if there {
            self.stored.insert((key, hint), Stored { record, rotten: false });
        }
        match ends {
            Ends::Well => drop(self.state.written(&at, change, dropped, self.now, MOST)),
            Ends::Refused => {}
            Ends::Failed { readable, .. } => {
                let there = match (readable, there) {
                    (true, true) => There::Yes(dropped),
                    (true, false) => There::No,
                    (false, _) => There::Unknown,
                };
                self.state.insert_unknown(&at, there, self.now, MOST);
                self.lose();
            }
        }
        ends == Ends::Well
    }

    /// As the shell does: whatever is found to be corrupt on the way counts as missing.
    fn sum_up(&mut self, leaf: u8) {
        let mut sum = 0u128;
        let keys: Vec<u8> = (0..KEYS).filter(|key| key % 2 == leaf).collect();
        for key in &keys {
            self.look(*key, false, true);
            let readable = self.stored.get(&(*key, false)).filter(|stored| !stored.rotten);
            sum = sum.wrapping_add(readable.and_then(|stored| digest(&stored.record, *key)).unwrap_or(0));
        }
        self.state.tree_mut().begin(leaf, vec![leaf, 0]);
        assert!(self.state.tree_mut().add_page(leaf, sum, None));
    }

    fn note(&mut self, events: &[Event]) {
        for event in events {
            if let Event::ContextAhead(actor) | Event::ClaimDisputed { actor, .. } = event {
                self.given_up.insert(*actor);
            }
        }
    }

    fn minted(&mut self, dot: Dot) -> Result<(), String> {
        if self.given_up.contains(&dot.actor) {
            return Err(format!("V1: {dot} was minted by an actor that was given up"));
        }
        self.actors.insert(dot.actor);
        if self.dots.insert(dot) { Ok(()) } else { Err(format!("{dot} was minted twice")) }
    }

    fn check(&self) -> Result<(), String> {
        if self.state.operations().room_taken() > MOST {
            return Err("more operations are remembered than there is room for".into());
        }
        for leaf in 0..2u8 {
            let Some(claimed) = self.state.tree().known().and_then(|tree| tree.leaf(leaf)) else { continue };
            // A record that has rotted is counted until somebody finds it.
            let counts = |((key, hint), stored): &(&(u8, bool), &Stored)| {
                let known = self.state.is_corrupt(&at(*key, *hint, &data_key(*key)));
                key % 2 == leaf && !hint && !(stored.rotten && known)
            };
            let of = |((key, _), stored): (&(u8, bool), &Stored)| digest(&stored.record, *key).unwrap_or(0);
            let sum = self.stored.iter().filter(counts).map(of).fold(0u128, u128::wrapping_add);
            if sum != claimed {
                return Err(format!("leaf {leaf} claims {claimed:x} and is {sum:x}"));
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_transitions_breaks_a_law(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            let taken = world.take(step.clone());
            prop_assert!(taken.is_ok(), "{step:?}: {}", taken.unwrap_err());
        }
    }
}

fn mint(state: &mut PartitionState, held: Record, op: u128, cause: &Context, incarnation: u64) -> Minting {
    state.mint(me(), held, OpId(op), Some(Blob::copy_from(b"v")), cause, &mut || incarnation)
}

fn seconds(seconds: u64) -> Duration {
    TRAVEL_MAX + Duration::from_secs(seconds)
}

/// A partition in which an actor has minted, an operation was superseded, and the tree is known.
fn with_everything() -> (PartitionState, Record) {
    let mut state = PartitionState::default();
    *state.tree_mut() = LiveTree::of(HashTree::empty());
    let (name, mut record) = (data_key(0), Record::default());
    let at = at(0, false, &name);
    for op in 1..=2 {
        let old = digest(&record, 0);
        let cause = record.context.clone();
        let minting = mint(&mut state, record, op, &cause, 1);
        record = minting.fresh.record;
        let change = Change::Replaced(old, digest(&record, 0));
        state.written(&at, change, minting.fresh.dropped, seconds(1), 10);
    }
    assert!(state.has_actor() && state.operations().len() == 1 && state.tree().unknown().is_empty());
    (state, record)
}

#[test]
fn every_loss_takes_the_actor_and_what_is_remembered_and_says_what_is_not_known_any_more() {
    let (name, other) = (data_key(0), data_key(2));
    let (own, hint, hint_of_another) = (at(0, false, &name), at(0, true, &name), at(2, true, &other));
    type Loss<'a> = (&'a str, Box<dyn Fn(&mut PartitionState) + 'a>, usize, usize, bool);
    let losses: [Loss<'_>; 7] = [
        ("a corrupt record", Box::new(|state| assert!(state.found_corrupt(&own, seconds(9)).is_some())), 0, 1, true),
        ("a corrupt hint", Box::new(|state| assert!(state.found_corrupt(&hint, seconds(9)).is_some())), 0, 0, false),
        (
            "a copy of a lost record",
            Box::new(|state| assert!(state.replace_corrupt(&own, seconds(9)).is_some())),
            0,
            1,
            true,
        ),
        ("a hint goes", Box::new(|state| state.hint_gone(&hint, seconds(9))), 0, 0, false),
        ("another key's hint goes", Box::new(|state| state.hint_gone(&hint_of_another, seconds(9))), 1, 0, false),
        (
            "the disk was set back",
            Box::new(|state| assert!(state.lost(&Leaves::ALL, Reason::RolledBack, seconds(9)).begins)),
            0,
            0,
            true,
        ),
        ("records are removed", Box::new(|state| state.removed(seconds(9))), 0, 256, false),
    ];
    for (what, lose, operations, unknown_leaves, is_lost) in losses {
        let (mut state, _) = with_everything();
        lose(&mut state);
        assert!(!state.has_actor(), "{what}");
        assert_eq!(state.operations().len(), operations, "{what}");
        assert!(!state.operations().remembers_since(Duration::from_secs(1), seconds(9)), "{what}");
        assert_eq!(state.tree().unknown().len(), unknown_leaves, "{what}");
        assert_eq!(state.losses().ever(), is_lost, "{what}");
    }
}

#[test]
fn a_corrupt_record_is_lost_once_and_again_when_its_recovery_is_over_and_could_not_bring_it_back() {
    let (mut state, _) = with_everything();
    let name = data_key(0);
    let at = at(0, false, &name);
    let found = state.found_corrupt(&at, seconds(9)).expect("for the first time");
    assert!(!found.again);
    assert!(state.found_corrupt(&at, seconds(9)).expect("it was not noted").again);
    state.noted_corrupt(&at, false);
    assert!(!state.is_corrupt(&at), "there was no room");
    state.noted_corrupt(&at, true);
    assert_eq!((state.found_corrupt(&at, seconds(9)), state.corrupt()), (None, 1));
    assert_eq!(state.replace_corrupt(&at, seconds(9)), None, "it is being recovered");
    let (lost, other) = (state.losses().lost().expect("lost"), NodeId::new("n2").expect("legal"));
    let note = state.losses_mut().exchanged(lost, other, &Leaves::NONE, 1, 1).expect("whole");
    state.losses_mut().noted(&note);
    assert!(state.losses().look(&Leaves::ALL, Reading::BelowFloor).is_ok());
    let again = state.replace_corrupt(&at, seconds(9)).expect("lost once more");
    assert_eq!((again.leaves, again.reason), ([0].into_iter().collect(), Reason::Corrupt));
    state.written(&at, Change::ReplacedCorrupt, Dropped::default(), seconds(9), 10);
    assert!(!state.is_corrupt(&at) && state.tree().unknown().contains(0));
}

#[test]
fn an_insert_whose_outcome_is_unknown_takes_the_actor_and_the_sum_and_remembers_what_was_replaced_if_it_was() {
    let name = data_key(0);
    let at = at(0, false, &name);
    let dropped = || Dropped {
        writes: vec![(Dot { actor: Actor { node: me(), incarnation: 1 }, counter: 2 }, OpId(2))],
        ..Dropped::default()
    };
    for (there, remembered, remembers) in
        [(There::Yes(dropped()), 2, true), (There::No, 1, true), (There::Unknown, 0, false)]
    {
        let (mut state, record) = with_everything();
        state.insert_unknown(&at, there.clone(), seconds(9), 10);
        assert!(!state.has_actor() && state.tree().unknown().contains(0), "{there:?}");
        assert_eq!(state.operations().len(), remembered, "{there:?}");
        assert_eq!(state.operations().remembers_since(Duration::from_secs(1), seconds(9)), remembers, "{there:?}");
        let next = mint(&mut state, record, 3, &Context::new(), 2);
        assert_eq!(next.events, [Event::ActorDrawn { beside_an_earlier_one: true }]);
        assert_eq!((next.dot.actor.incarnation, next.dot.counter), (2, 1));
    }
}

#[test]
fn a_retry_is_judged_by_memory_or_else_by_a_record_that_shows_every_mint() {
    let (mut state, record) = with_everything();
    let name = data_key(0);
    let own = at(0, false, &name);
    let judge = |state: &PartitionState, at: &RecordAt<'_>, op, delete, cause: &Context, in_doubt, ago| {
        let asked = Asked { op_id: OpId(op), first_sent: Some(Duration::from_secs(ago)), delete, cause };
        state.judge(me(), at, &asked, &record, in_doubt, seconds(9))
    };
    let (nothing, all) = (Context::new(), record.context.clone());
    assert!(matches!(judge(&state, &own, 2, false, &nothing, false, 9), Judgement::Repeated(_)), "it is there");
    assert!(matches!(judge(&state, &own, 1, false, &nothing, false, 9), Judgement::Repeated(_)), "it was replaced");
    assert_eq!(judge(&state, &own, 3, false, &nothing, true, 9), Judgement::New, "it would be remembered");
    assert_eq!(judge(&state, &own, 3, false, &all, false, 10), Judgement::Forgotten, "before the start");
    assert_eq!(judge(&state, &own, 3, true, &nothing, false, 10), Judgement::New, "a delete leaves nothing");
    assert_eq!(state.trim_operations(seconds(9), 0), 1);
    assert_eq!(judge(&state, &own, 3, false, &nothing, false, 9), Judgement::Forgotten, "the record has news");
    assert_eq!(judge(&state, &own, 3, false, &all, false, 9), Judgement::New, "its writer has seen all mints");
    assert_eq!(judge(&state, &own, 3, false, &all, true, 9), Judgement::Forgotten, "the disk may lack some");
    let hint = at(0, true, &name);
    assert_eq!(judge(&state, &hint, 3, false, &all, false, 9), Judgement::Forgotten, "other hints may have gone");
    state.lost(&[9].into_iter().collect(), Reason::Corrupt, Duration::ZERO);
    assert_eq!(judge(&state, &own, 3, false, &all, false, 9), Judgement::Forgotten, "something was lost");
}

#[test]
fn a_disputed_claim_stays_disputed_until_its_merge_is_written() {
    let (mut state, record) = with_everything();
    let name = data_key(0);
    let at = at(0, false, &name);
    let mut claims = Record::default();
    claims.context.join(&record.context);
    let actor = record.siblings.keys().next().expect("one").actor;
    claims.context.advance(actor, 999);
    let mut incarnation = 10;
    let mut merge = |state: &mut PartitionState| {
        state.merge(me(), &at, record.clone(), &claims, seconds(9), &mut || {
            incarnation += 1;
            incarnation
        })
    };
    let first = merge(&mut state);
    assert_eq!(first.events[0], Event::ClaimDisputed { actor, kept: 1 });
    assert!(first.disputed && first.changed && first.renamed.len() == 1 && first.record.value_count() == 1);
    assert!(!first.record.dots_of(&OpId(2)).contains(&first.renamed[0]), "as an operation that nobody can name");
    let second = merge(&mut state);
    assert!(second.disputed && second.record.value_count() == 1, "the first one was not written");
    assert_eq!(second.events, [], "that was told");
    state.settle_dispute(&at);
    let third = merge(&mut state);
    assert!(!third.disputed && third.record.value_count() == 0, "the actor of the claim is gone");
}

#[test]
fn what_was_superseded_here_is_kept_out_of_this_record_and_of_no_other_one() {
    let (mut state, record) = with_everything();
    let (name, other_name) = (data_key(0), data_key(2));
    // Another mint of the operation that was replaced.
    let peer = Actor { node: NodeId::new("n2").expect("legal"), incarnation: 7 };
    let minted = |counter, op| {
        let (dot, value) = (Dot { actor: peer, counter }, Some(Blob::copy_from(b"v")));
        mint::mint(Record::default(), dot, OpId(op), value, &Context::new()).record
    };
    let mut merge = |at: &RecordAt<'_>, held: &Record, other: &Record| {
        let merging = state.merge(me(), at, held.clone(), other, seconds(9), &mut || 1);
        (merging.kept_out, merging.record.dots_of(&OpId(1)).len(), merging.record.value_count())
    };
    let (own, hint) = (at(0, false, &name), at(0, true, &name));
    assert_eq!(merge(&own, &record, &minted(1, 1)), (true, 0, 1));
    assert_eq!(merge(&own, &record, &minted(1, 3)), (false, 0, 2), "another operation");
    let (second, value) = (Dot { actor: peer, counter: 2 }, Some(Blob::copy_from(b"w")));
    let both = mint::mint(minted(1, 1), second, OpId(3), value, &Context::new()).record;
    assert_eq!(merge(&own, &record, &both), (true, 0, 2), "one of the two");
    let mut seen = record.clone();
    seen.context.advance(peer, 1);
    assert!(!merge(&own, &seen, &minted(1, 1)).0, "it is covered anyhow");
    // A record that does not hold what has replaced it must not say so.
    assert_eq!(merge(&hint, &Record::default(), &minted(1, 1)), (false, 1, 1));
    assert_eq!(merge(&at(2, false, &other_name), &record, &minted(1, 1)), (false, 1, 2), "another key");
    let first = mint(&mut PartitionState::default(), Record::default(), 1, &Context::new(), 1).fresh.record;
    assert_eq!(merge(&own, &first, &minted(1, 1)), (false, 2, 1), "here it is still there");
}

#[test]
fn what_a_newer_release_has_written_is_told_once_a_leaf() {
    let mut state = PartitionState::default();
    assert_eq!([3, 3, 4, 3].map(|leaf| state.found_newer(leaf)), [true, false, true, false]);
    assert_eq!(state.newer(), [3, 4].into_iter().collect());
}

#[test]
fn an_actor_that_is_given_up_mints_no_more() {
    let (mut state, record) = with_everything();
    let before = state.actor().expect("it has minted");
    assert_eq!(mint(&mut state, record.clone(), 3, &Context::new(), 2).dot.actor, before);
    state.give_up_actor();
    assert_eq!(state.actor(), None);
    let next = mint(&mut state, record, 4, &Context::new(), 2);
    assert_eq!((next.dot.actor.incarnation, state.actor()), (2, Some(next.dot.actor)));
    // Which is told, with whether an earlier one is known by the record, whoever else has written it.
    assert_eq!(next.events, [Event::ActorDrawn { beside_an_earlier_one: true }]);
    let mut foreign = Record::default();
    for (node, earlier) in [("n2", false), ("n1", true), ("n3", true)] {
        foreign.context.advance(Actor { node: NodeId::new(node).expect("legal"), incarnation: 5 }, 1);
        let next = mint(&mut PartitionState::default(), foreign.clone(), 1, &Context::new(), 2);
        assert_eq!(next.events, [Event::ActorDrawn { beside_an_earlier_one: earlier }], "{node}");
    }
}

#[test]
fn a_corrupt_record_is_known_until_something_takes_its_place_or_it_goes() {
    let name = data_key(0);
    let (own, hint) = (at(0, false, &name), at(0, true, &name));
    let known = |state: &PartitionState| (state.corrupt(), state.is_corrupt(&own), state.is_corrupt(&hint));
    let both = || {
        let (mut state, _) = with_everything();
        for place in [&own, &hint] {
            state.found_corrupt(place, seconds(9)).expect("for the first time");
            state.noted_corrupt(place, true);
        }
        assert_eq!(known(&state), (2, true, true));
        state
    };
    let mut state = both();
    state.written(&own, Change::Nothing, Dropped::default(), seconds(9), 10);
    assert_eq!(known(&state), (2, true, true), "nothing was written");
    state.written(&own, Change::Replaced(None, Some(1)), Dropped::default(), seconds(9), 10);
    assert_eq!(known(&state), (1, false, true));
    state.hint_gone(&hint, seconds(9));
    assert_eq!(known(&state), (0, false, false));
    let mut state = both();
    state.insert_unknown(&own, There::No, seconds(9), 10);
    assert_eq!(known(&state), (1, false, true), "one that is found afterwards is another loss");
    // The copy that takes its place may be one in which the actor has minted since.
    let mut state = both();
    mint(&mut state, Record::default(), 9, &Context::new(), 3);
    state.replace_corrupt(&own, seconds(9));
    assert!(!state.has_actor());
    let found = |at: &RecordAt<'_>| with_everything().0.found_corrupt(at, seconds(9)).expect("it was not known").again;
    assert_eq!((found(&own), found(&hint)), (false, false), "nothing else of the leaf is being recovered");
}

/// A made-up time, mostly of a far future, would crowd out the names of its record.
#[test]
fn the_operation_that_a_disputed_value_gets_tells_no_time() {
    for parity in [0, 1] {
        let (mut state, record) = with_everything();
        let name = data_key(0);
        let mut claims = Record::default();
        claims.context.join(&record.context);
        let actor = record.siblings.keys().next().expect("one").actor;
        claims.context.advance(actor, 999);
        let mut drawn = 0;
        let merging = state.merge(me(), &at(0, false, &name), record, &claims, seconds(9), &mut || {
            drawn += 1;
            // The upper and the lower half of a UUID of version 7.
            if drawn % 2 == parity { 5 << 16 | 7 << 12 } else { 1 << 63 }
        });
        let named = merging.renamed.iter().map(|dot| merging.record.siblings[dot].op_id.begun_ms());
        assert_eq!(named.collect::<Vec<_>>(), [None]);
    }
}

#[test]
fn a_difference_lasts_when_it_was_there_the_last_time() {
    let mut state = PartitionState::default();
    let (one, other) = (me(), NodeId::new("n2").expect("legal"));
    let leaves = |some: &[u8]| some.iter().copied().collect::<Leaves>();
    let differs = |lasting: &[u8], gone: &[u8]| Differs { lasting: leaves(lasting), gone: leaves(gone) };
    assert_eq!(state.differs(one, leaves(&[1, 2])), differs(&[], &[]));
    assert_eq!(state.differs(other, leaves(&[2])), differs(&[], &[]), "another owner's");
    assert_eq!(state.differs(one, leaves(&[2, 3])), differs(&[2], &[1]));
    assert_eq!(state.differing().collect::<Vec<_>>(), [one, other]);
    state.equals(one);
    assert_eq!(state.differs(one, leaves(&[2, 3])), differs(&[], &[]));
}

#[test]
fn an_actor_that_a_context_is_ahead_of_mints_no_more() {
    let (mut state, record) = with_everything();
    let actor = record.siblings.keys().next().expect("one").actor;
    let mut ahead = record.context.clone();
    ahead.advance(actor, 999);
    let minting = mint(&mut state, record, 3, &ahead, 2);
    assert_eq!(minting.events, [Event::ContextAhead(actor), Event::ActorDrawn { beside_an_earlier_one: false }]);
    assert_ne!(minting.dot.actor, actor);
}

#[test]
fn two_values_of_one_dot_and_operations_that_go_early_are_told() {
    let (mut state, _) = with_everything();
    let name = data_key(0);
    let dot = Dot { actor: Actor { node: me(), incarnation: 1 }, counter: 9 };
    let dropped = Dropped { writes: vec![(dot, OpId(5))], incidents: vec![dot] };
    let events = state.written(&at(0, false, &name), Change::Nothing, dropped, seconds(2), 1);
    assert_eq!(events, [Event::TwoValues(vec![dot]), Event::OperationsEvicted(1)]);
}
