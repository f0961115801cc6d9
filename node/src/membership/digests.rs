//! Which layout and context keys every node says it holds: spread by gossip as (version, digest), what is behind them is pulled over a
//! stream.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use foca::{BroadcastHandler, Invalidates};
use quorate_wire::ids::{LayoutVersion, NodeId};
use serde::{Deserialize, Serialize};

use super::identity::{CodecError, Identity};
use super::{LayoutDigests, PEERS_MAX};

/// The newest announcement of every node.
///
/// Shared between the protocol, which owns its copy for good, and [`super::swim::Swim`], which reads it. An announcement
/// is passed on by others and so is not authenticated: it is a hint to go and ask.
#[derive(Debug, Clone, Default)]
pub(super) struct Digests(Arc<Mutex<Newest>>);

#[derive(Debug, Default)]
struct Newest {
    of: BTreeMap<NodeId, Announcement>,
    changed: bool,
}

/// What a node says of its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcement {
    /// Who says it.
    pub(super) node: NodeId,
    /// Orders a node's announcements: its boot, and a count within it. Not the version: a wiped disk goes back to none.
    pub(super) stamp: (u64, u64),
    /// The newest layout that it holds.
    pub(super) version: LayoutVersion,
    /// Of that layout and of the context keys that it holds.
    pub(super) digest: u64,
}

impl Digests {
    /// The newest announcements, if any has changed since the last call.
    pub(super) fn changed(&self) -> Option<LayoutDigests> {
        let mut newest = self.0.lock().expect("no panic while the digests are locked");
        let changed = std::mem::take(&mut newest.changed);
        changed.then(|| newest.of.iter().map(|(node, said)| (*node, (said.version, said.digest))).collect())
    }

    /// Forgets a node that has been down for very long.
    pub(super) fn forget(&self, node: NodeId) {
        let mut newest = self.0.lock().expect("no panic while the digests are locked");
        newest.changed |= newest.of.remove(&node).is_some();
    }
}

impl BroadcastHandler<Identity> for Digests {
    type Key = Announcement;
    type Error = CodecError;

    fn receive_item(&mut self, data: &[u8], _: Option<&Identity>) -> Result<Option<Announcement>, CodecError> {
        let said = Announcement::decode(data)?;
        let mut newest = self.0.lock().expect("no panic while the digests are locked");
        match newest.of.get(&said.node) {
            Some(known) if !said.invalidates(known) => return Ok(None),
            Some(known) => newest.changed |= (known.version, known.digest) != (said.version, said.digest),
            None if newest.of.len() > PEERS_MAX => return Ok(None),
            None => newest.changed = true,
        }
        newest.of.insert(said.node, said);
        Ok(Some(said))
    }
}

impl Announcement {
    pub(super) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec(self).expect("plain data, and a Vec takes every byte")
    }

    fn decode(data: &[u8]) -> Result<Self, CodecError> {
        rmp_serde::from_slice(data).map_err(|error| CodecError::from(error.to_string()))
    }
}

impl Invalidates for Announcement {
    fn invalidates(&self, other: &Self) -> bool {
        self.node == other.node && self.stamp > other.stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(name: &str, stamp: (u64, u64), version: u64) -> Vec<u8> {
        let node = NodeId::new(name).expect("legal");
        Announcement { node, stamp, version: LayoutVersion(version), digest: version * 10 }.encode()
    }

    #[test]
    fn the_newest_announcement_of_a_node_stands_even_if_its_version_went_back() {
        let mut digests = Digests::default();
        assert!(digests.receive_item(&say("n1", (1, 1), 1), None).expect("legal").is_some());
        assert!(digests.receive_item(&say("n1", (1, 1), 1), None).expect("legal").is_none(), "passed on once only");
        assert!(digests.receive_item(&say("n1", (2, 0), 0), None).expect("legal").is_some());
        assert!(digests.receive_item(&say("n1", (1, 9), 1), None).expect("legal").is_none(), "of an older life");
        let now = digests.changed().expect("it changed");
        assert_eq!(now.get("n1"), Some(&(LayoutVersion(0), 0)));
        assert_eq!(digests.changed(), None);
        assert!(digests.receive_item(&say("n1", (2, 1), 0), None).expect("legal").is_some());
        assert_eq!(digests.changed(), None, "the same words again are no news");
    }

    #[test]
    fn garbage_and_a_crowd_are_refused() {
        let mut digests = Digests::default();
        assert!(digests.receive_item(b"\xc1garbage", None).is_err());
        for i in 0..PEERS_MAX + 50 {
            digests.receive_item(&say(&format!("n{i}"), (1, 1), 1), None).expect("legal");
        }
        assert_eq!(digests.changed().expect("it changed").len(), PEERS_MAX + 1);
    }
}
