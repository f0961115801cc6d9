//! Looks at the disks at the moments that matter, and writes down who held what: for [`crate::checker::held`],
//! [`crate::checker::handed_over`], [`crate::checker::minters`], [`crate::checker::dots`], [`crate::checker::replaced`] and
//! [`crate::checker::risen`]. And at who can reach whom, for [`crate::checker::served`], and who knows which layouts, for
//! [`crate::checker::agreement`].
//!
//! What a client is told must be true on the disks when it is told, not only as long as nothing else goes wrong: a broken promise is seen
//! here in the first life that breaks it, not in the one whose faults happen to show it. Looking changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_core::context_keys::taken_apart;
use quorate_core::keyspace::data_key;
use quorate_core::record::Record;
use quorate_core::version::{Context, Dot};
use quorate_node::replica::decode_hint;
use quorate_node::store::Tree;
use quorate_wire::Key;

use crate::cluster::{CLUSTER, Cluster, Machine, name};
use crate::disk::Durable;
use crate::history::{Held, LetGo, Minters, OpNo, Reach, Replaced, Reused, Risen};
use crate::layouts::Watch;
use crate::life::user_key;
use crate::workload::{Answer, Notebook, number};

/// Looks on.
#[derive(Debug)]
pub struct Vigil {
    notebook: Notebook,
    /// Which write had a dot when it was first seen.
    dots: BTreeMap<Dot, OpNo>,
    /// What was seen of each key.
    keys: BTreeMap<String, OfKey>,
    /// What each node was seen to hold of each key, and to have replaced; nothing in lives in which nodes forget that.
    superseded: Option<BTreeMap<(String, String), Superseded>>,
    /// Who could reach whom when that was looked at last.
    reach: Reach,
    /// Who knows which layouts; nothing in lives in which there is one for ever.
    layouts: Option<Watch>,
    /// The newest layout, if nothing is left to be done for it.
    settled: Option<u64>,
}

/// The dots that values of one key were seen with.
#[derive(Debug, Default)]
struct OfKey {
    /// And which write's each is.
    known: BTreeMap<Dot, OpNo>,
    /// Of these, those that the record at each place was not seen to call replaced so far.
    live: BTreeMap<String, BTreeMap<Dot, OpNo>>,
}

/// What one node was seen to do with the writes of one key.
#[derive(Debug, Default)]
struct Superseded {
    /// Those that it held when it was last looked at, and their dots.
    held: BTreeMap<OpNo, BTreeSet<Dot>>,
    /// Those that it has held and seen replaced.
    gone: BTreeSet<OpNo>,
}

/// What one disk holds of a key.
struct Holding {
    node: String,
    /// Its own record, as a crash now would leave it; nothing if it is damaged.
    record: Option<Record>,
    /// What it keeps for others, and for whom.
    hints: Vec<(String, Record)>,
    /// What is there now, durable or not, and what each is called: the node's own record, or what it keeps for another one.
    now: Vec<(String, Record)>,
    /// It has lost something.
    spoilt: bool,
}

impl Vigil {
    /// Begins to look at the disks of a cluster, whose clients write into this notebook. `nobody_forgets` what was superseded, and
    /// the layout `changes`.
    pub fn new(cluster: &Cluster<'_>, notebook: &Notebook, nobody_forgets: bool, changes: bool) -> Self {
        for machine in cluster.machines() {
            machine.disk.watch_hints();
        }
        let superseded = nobody_forgets.then(BTreeMap::new);
        let (dots, keys, reach) = (BTreeMap::new(), BTreeMap::new(), Reach::default());
        let layouts = changes.then(Watch::default);
        Self { notebook: notebook.clone(), dots, keys, superseded, reach, layouts, settled: None }
    }

    /// Looks at all that clients were told since the last time, and at the hints that were let go. `destroyed` are the nodes whose
    /// disks were spoilt by faults.
    ///
    /// # Errors
    /// When what lies on a disk is no record, or a client's context is none.
    pub fn look(&mut self, cluster: &Cluster<'_>, destroyed: &BTreeSet<u8>) -> Result<(), String> {
        let spoilt: BTreeSet<String> = destroyed.iter().map(|node| name(*node)).collect();
        let at_us = u64::try_from(cluster.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(watch) = &mut self.layouts {
            for known in watch.look(cluster, destroyed)? {
                self.notebook.saw_layouts(known);
            }
            self.settled = watch.settled(cluster);
        }
        for answer in self.notebook.answers() {
            let holdings = holdings(cluster.machines(), &Key::plain(&answer.key), &spoilt)?;
            self.notebook.saw(held(&holdings, &answer)?);
            for minters in minters(&holdings, &answer.key) {
                self.notebook.saw_minters(minters);
            }
            self.look_at_dots(&holdings, &answer.key, at_us);
        }
        let touched = self.notebook.touched();
        if self.superseded.is_some() {
            for key in touched {
                let holdings = holdings(cluster.machines(), &Key::plain(&key), &spoilt)?;
                self.look_at_superseded(&holdings, &key);
            }
        }
        for machine in cluster.machines() {
            for (stored, value) in machine.disk.let_go() {
                let watch = self.layouts.as_ref();
                let let_go = let_go(cluster.machines(), machine, (&stored, &value), &spoilt, watch)?;
                self.notebook.saw_let_go(let_go);
            }
        }
        Ok(())
    }

    /// Who knows which layouts, in a life whose layout changes.
    pub fn layouts(&self) -> Option<&Watch> {
        self.layouts.as_ref()
    }

    /// Notes who can reach whom, if that has changed.
    pub fn look_at_reach(&mut self, mut reach: Reach) {
        reach.layout = if self.layouts.is_some() { self.settled } else { Some(0) };
        let newest = self.layouts.as_ref().and_then(Watch::newest).filter(|_| self.settled.is_some());
        if let Some((newest, _)) = newest {
            // Nobody else has a part in any request.
            let members: BTreeSet<String> = newest.members.iter().map(|member| member.node.to_string()).collect();
            for nodes in [&mut reach.sound, &mut reach.away, &mut reach.unreached] {
                nodes.retain(|node| members.contains(node));
            }
            reach.parted.retain(|(one, other)| members.contains(one) && members.contains(other));
        }
        let from_us = self.reach.from_us;
        if (Reach { from_us, ..reach.clone() }) != self.reach {
            self.reach = reach.clone();
            self.notebook.saw_reach(reach);
        }
    }

    fn look_at_dots(&mut self, holdings: &[Holding], key: &str, at_us: u64) {
        let OfKey { known, live } = self.keys.entry(key.to_owned()).or_default();
        let records = || holdings.iter().flat_map(|holding| &holding.now);
        for (dot, sibling) in records().flat_map(|(_, record)| &record.siblings) {
            let no = number(&sibling.value);
            let first = *self.dots.entry(*dot).or_insert_with(|| {
                known.insert(*dot, no);
                live.values_mut().for_each(|dots| _ = dots.insert(*dot, no));
                no
            });
            if first != no {
                self.dots.insert(*dot, no);
                let (dot, key) = (dot.to_string(), key.to_owned());
                self.notebook.saw_reused(Reused { dot, key, writes: [first, no] });
            }
        }
        for (place, record) in records() {
            let live = live.entry(place.clone()).or_insert_with(|| known.clone());
            live.retain(|dot, no| {
                if !record.context.covers(dot) || record.siblings.contains_key(dot) {
                    return true;
                }
                let by = record.siblings.values().map(|sibling| number(&sibling.value)).collect();
                let (key, place) = (key.to_owned(), place.clone());
                self.notebook.saw_replaced(Replaced { no: *no, key, place, by, at_us });
                false
            });
            // Whoever names an operation has seen it replaced, in whatever life.
            for sibling in record.siblings.values().filter(|sibling| record.superseded(&sibling.op_id).is_some()) {
                let (key, node) = (key.to_owned(), place.clone());
                self.notebook.saw_risen(Risen { no: number(&sibling.value), key, node });
            }
        }
    }

    fn look_at_superseded(&mut self, holdings: &[Holding], key: &str) {
        let Some(superseded) = &mut self.superseded else { return };
        for (node, record) in holdings.iter().filter_map(|holding| Some((&holding.node, holding.record.as_ref()?))) {
            let Superseded { held, gone } = superseded.entry((node.clone(), key.to_owned())).or_default();
            let mut now: BTreeMap<OpNo, BTreeSet<Dot>> = BTreeMap::new();
            for (dot, sibling) in &record.siblings {
                now.entry(number(&sibling.value)).or_default().insert(*dot);
            }
            for no in now.keys().copied().filter(|no| gone.remove(no)) {
                self.notebook.saw_risen(Risen { no, key: key.to_owned(), node: node.clone() });
            }
            let replaced = |dots: &BTreeSet<Dot>| dots.iter().all(|dot| record.context.covers(dot));
            let went = held.iter().filter(|(no, dots)| !now.contains_key(*no) && replaced(dots));
            gone.extend(went.map(|(no, _)| *no));
            *held = now;
        }
    }
}

/// What each disk holds of a key.
fn holdings(machines: &[Machine], key: &[u8], spoilt: &BTreeSet<String>) -> Result<Vec<Holding>, String> {
    machines.iter().map(|machine| Holding::of(machine, key, spoilt)).collect()
}

/// Writes whose values carry dots of several nodes, or several of one actor.
fn minters(holdings: &[Holding], key: &str) -> Vec<Minters> {
    let mut dots: BTreeMap<OpNo, BTreeSet<Dot>> = BTreeMap::new();
    for (dot, sibling) in holdings.iter().flat_map(|holding| &holding.now).flat_map(|(_, record)| &record.siblings) {
        dots.entry(number(&sibling.value)).or_default().insert(*dot);
    }
    let again = |dots: &BTreeSet<Dot>| {
        let nodes: BTreeSet<_> = dots.iter().map(|dot| dot.actor.node).collect();
        let actors: BTreeSet<_> = dots.iter().map(|dot| dot.actor).collect();
        nodes.len() > 1 || actors.len() < dots.len()
    };
    let several = dots.into_iter().filter(|(_, dots)| again(dots));
    let names = |dots: BTreeSet<Dot>| dots.iter().map(ToString::to_string).collect();
    several.map(|(no, dots)| Minters { no, key: key.to_owned(), dots: names(dots) }).collect()
}

/// Who holds what an answer tells of.
fn held(holdings: &[Holding], answer: &Answer) -> Result<Held, String> {
    let [_, body, _] = taken_apart(&answer.context)?;
    let context = Context::open(&body, CLUSTER, &Key::plain(&answer.key))?;
    let values: Vec<Vec<Dot>> = answer.values.iter().map(|value| dots(holdings, *value)).collect();
    // Its own value is there, or the record has seen one of its dots; a retry may have taken several.
    let holds = |record: &Record| {
        let seen = |dots: &Vec<Dot>| dots.iter().any(|dot| record.context.covers(dot));
        values.iter().all(seen) || includes(&record.context, &context)
    };
    let names = |holds: &dyn Fn(&Holding) -> bool| {
        holdings.iter().filter(|holding| holds(holding)).map(|holding| holding.node.clone()).collect()
    };
    Ok(Held {
        no: answer.no,
        replicas: names(&|holding| holding.record.as_ref().is_some_and(holds)),
        stand_ins: names(&|holding| holding.hints.iter().any(|(_, record)| holds(record))),
        kept_for: holdings
            .iter()
            .flat_map(|holding| &holding.hints)
            .filter(|(_, record)| holds(record))
            .map(|(target, _)| target.clone())
            .collect(),
        excused: names(&|holding| holding.spoilt),
    })
}

/// The dots that a write has taken, as far as its value is still anywhere.
fn dots(holdings: &[Holding], no: OpNo) -> Vec<Dot> {
    let records = holdings.iter().flat_map(|holding| &holding.now);
    let siblings = records.flat_map(|(_, record)| &record.siblings);
    siblings.filter(|(_, sibling)| number(&sibling.value) == no).map(|(dot, _)| *dot).collect()
}

fn let_go(
    machines: &[Machine],
    holder: &Machine,
    (stored, value): (&Bytes, &Bytes),
    spoilt: &BTreeSet<String>,
    layouts: Option<&Watch>,
) -> Result<LetGo, String> {
    let (target, key, hint) = decode_hint(stored, value).map_err(|why| format!("a hint that was let go: {why}"))?;
    let target = target.to_string();
    let machine = machines.iter().find(|machine| machine.node().as_str() == target).ok_or("a hint is for nobody")?;
    let has = |machine: &Machine| -> Result<bool, String> {
        let holding = Holding::of(machine, &key, spoilt)?;
        let holds = |record: &Record| includes(&record.context, &hint.context);
        Ok(holding.spoilt || holding.record.as_ref().is_some_and(holds))
    };
    let mut arrived = has(machine)?;
    // What was kept for a node that owns the key no more goes to all who do (rule L12).
    for owners in layouts.iter().flat_map(|watch| watch.owners_known(holder.node(), &key)) {
        let mut owners = machines.iter().filter(|machine| owners.contains(&machine.node()));
        arrived = arrived || owners.try_fold(true, |all, owner| Ok::<_, String>(all && has(owner)?))?;
    }
    Ok(LetGo {
        holder: holder.node().to_string(),
        key: user_key(&key),
        values: hint.values().iter().map(|value| number(value)).collect(),
        arrived,
        target,
    })
}

impl Holding {
    fn of(machine: &Machine, key: &[u8], spoilt: &BTreeSet<String>) -> Result<Self, String> {
        let node = machine.node().to_string();
        let decode = |value: &Bytes| Record::decode(value).map_err(|why| format!("a record on {node}'s disk: {why}"));
        let mut spoilt = spoilt.contains(&node);
        let mut now = Vec::new();
        let slot = data_key(key);
        let record = match machine.disk.durable(Tree::Data, &slot) {
            Durable::Absent => None,
            Durable::Damaged => {
                spoilt = true;
                None
            }
            Durable::Value(value) => Some(decode(&value)?),
        };
        if let Some(value) = machine.disk.present(Tree::Data, &slot) {
            now.push((node.clone(), decode(&value)?));
        }
        let mut hints = Vec::new();
        for (stored, value) in machine.disk.durable_content(Tree::Hints) {
            let of_key = |value: &Bytes| match decode_hint(&stored, value) {
                Ok((target, of, hint)) => Ok((of == key).then(|| (target.to_string(), hint))),
                Err(why) => Err(format!("a hint on {node}'s disk: {why}")),
            };
            if let Durable::Value(value) = value {
                hints.extend(of_key(&value)?);
            }
            if let Some(value) = machine.disk.present(Tree::Hints, &stored) {
                now.extend(of_key(&value)?.map(|(target, hint)| (format!("{node} for {target}"), hint)));
            }
        }
        Ok(Self { node, record, hints, now, spoilt })
    }
}

/// Whether one context has seen all that another one has.
fn includes(all: &Context, some: &Context) -> bool {
    // Names are forgotten in time, dots are not.
    let mut both = all.clone();
    !both.join(&some.without_names())
}
