//! Histories made by hand, for the checkers' tests: one key, one client, three replicas, majorities, one thing at a time.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{
    Action, Held, History, LetGo, Minters, OpNo, Operation, Outcome, Quorum, Record, Replaced, Replica, Reused, Risen,
};

pub(crate) const KEY: &str = "k";

/// Every operation takes 10 us and the next begins 10 us after it.
pub(crate) struct Story {
    history: History,
    next: OpNo,
    now_us: u64,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self { history: History::default(), next: 1, now_us: 10 }
    }

    pub(crate) fn put(&mut self, cause: Option<OpNo>) -> OpNo {
        self.push(Action::Put { cause }, Outcome::Written)
    }

    pub(crate) fn delete(&mut self, cause: Option<OpNo>) -> OpNo {
        self.push(Action::Delete { cause }, Outcome::Written)
    }

    pub(crate) fn get<const N: usize>(&mut self, values: [OpNo; N]) -> OpNo {
        self.push(Action::Get { monotonic: false }, Outcome::Found(values.into()))
    }

    pub(crate) fn get_monotonic<const N: usize>(&mut self, values: [OpNo; N]) -> OpNo {
        self.push(Action::Get { monotonic: true }, Outcome::Found(values.into()))
    }

    pub(crate) fn unknown(&mut self, no: OpNo) {
        self.edit(no, |operation| {
            operation.outcome = Outcome::Unknown("it timed out".to_owned());
            operation.quorum = None;
        });
    }

    pub(crate) fn not_applied(&mut self, no: OpNo) {
        self.edit(no, |operation| {
            operation.outcome = Outcome::NotApplied("it was refused".to_owned());
            operation.quorum = None;
        });
    }

    pub(crate) fn edit(&mut self, no: OpNo, change: impl FnOnce(&mut Operation)) {
        change(self.history.operations.get_mut(&no).expect("it was pushed before"));
    }

    /// What all replicas together show at the end.
    pub(crate) fn left<const N: usize>(&mut self, values: [OpNo; N]) {
        self.history.merged.insert(KEY.to_owned(), values.into());
    }

    pub(crate) fn replica<const N: usize>(&mut self, node: &str, dots: [(&str, OpNo); N]) {
        let dots: BTreeMap<String, OpNo> = dots.into_iter().map(|(dot, no)| (dot.to_owned(), no)).collect();
        let encoded = format!("{dots:?}");
        let records = BTreeMap::from([(KEY.to_owned(), Record { dots, unnamed: encoded.clone(), encoded })]);
        self.history.replicas.push(Replica { node: node.to_owned(), records, hints: Vec::new() });
    }

    /// The replica that was noted last names an operation as replaced.
    pub(crate) fn names(&mut self, no: OpNo) {
        let replica = self.history.replicas.last_mut().expect("a replica was noted");
        let record = replica.records.get_mut(KEY).expect("it holds the key");
        record.encoded.push_str(&format!(" names {no}"));
    }

    pub(crate) fn held<const R: usize, const S: usize, const E: usize>(
        &mut self,
        no: OpNo,
        replicas: [&str; R],
        stand_ins: [&str; S],
        excused: [&str; E],
    ) {
        let [replicas, stand_ins, excused] = [&replicas[..], &stand_ins[..], &excused[..]]
            .map(|nodes| nodes.iter().map(|node| (*node).to_owned()).collect::<BTreeSet<_>>());
        // Each stand-in for somebody else, unless it is said otherwise.
        let kept_for = stand_ins.iter().map(|node| format!("for {node}")).collect();
        self.history.held.push(Held { no, replicas, stand_ins, kept_for, excused });
    }

    /// For whom the stand-ins of the sight that was noted last keep what it is about.
    pub(crate) fn kept_for<const N: usize>(&mut self, targets: [&str; N]) {
        let held = self.history.held.last_mut().expect("something was held");
        held.kept_for = targets.iter().map(|node| (*node).to_owned()).collect();
    }

    pub(crate) fn let_go(&mut self, holder: &str, target: &str, value: OpNo, arrived: bool) {
        let (holder, target, key) = (holder.to_owned(), target.to_owned(), KEY.to_owned());
        self.history.let_go.push(LetGo { holder, target, key, values: [value].into(), arrived });
    }

    pub(crate) fn minters<const N: usize>(&mut self, no: OpNo, dots: [&str; N]) {
        let dots = dots.iter().map(|dot| (*dot).to_owned()).collect();
        self.history.minters.push(Minters { no, key: KEY.to_owned(), dots });
    }

    pub(crate) fn reused(&mut self, dot: &str, writes: [OpNo; 2]) {
        self.history.reused.push(Reused { dot: dot.to_owned(), key: KEY.to_owned(), writes });
    }

    /// It is seen now, before the next operation.
    pub(crate) fn risen(&mut self, node: &str, no: OpNo) {
        self.history.risen.push(Risen { no, key: KEY.to_owned(), node: node.to_owned() });
    }

    pub(crate) fn replaced<const N: usize>(&mut self, place: &str, no: OpNo, by: [OpNo; N]) {
        let (key, place) = (KEY.to_owned(), place.to_owned());
        self.history.replaced.push(Replaced { no, key, place, by: by.into(), at_us: self.now_us - 1 });
    }

    pub(crate) fn history(&self) -> History {
        self.history.clone()
    }

    fn push(&mut self, action: Action, outcome: Outcome) -> OpNo {
        let no = self.next;
        self.next += 1;
        self.history.push(Operation {
            no,
            client: 1,
            session: 1,
            key: KEY.to_owned(),
            action,
            invoked_us: self.now_us,
            returned_us: Some(self.now_us + 10),
            outcome,
            strict: true,
            asked: 2,
            quorum: Some(Quorum {
                n: 3,
                need: 2,
                primaries: 2,
                fallbacks: 0,
                degraded: false,
                below_floor: false,
                layout: 1,
            }),
            dot: None,
            elsewhere: false,
            forged: false,
            time_us: None,
        });
        self.now_us += 20;
        no
    }
}

/// The operations that each violation names.
pub(crate) fn proofs(violations: Vec<super::Violation>) -> BTreeSet<Vec<OpNo>> {
    violations.into_iter().map(|violation| violation.operations).collect()
}
