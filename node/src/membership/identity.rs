//! How a node is named in gossip, and the bytes of it.

use std::fmt;
use std::net::SocketAddr;

use bytes::{Buf, BufMut};
use foca::{Header, Member};
use quorate_wire::ids::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One life of a node, as gossip knows it.
///
/// SWIM declares an identity dead for good, so that a node needs a new one to come back: a restart brings the next `boot`
/// (persisted by the data directory), and a node that learns of its own death while it lives counts `renewals`. The name is
/// what stays; of two identities with one name the later wins, wherever it listens.
///
/// The address is carried along and is no part of equality: it loses its scope in the encoding.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Identity {
    /// The name that the certificate binds.
    pub node: NodeId,
    /// Where it listens for peers.
    pub addr: SocketAddr,
    /// How many times its data directory has been started.
    pub boot: u64,
    /// How many times it has refuted its own death since.
    pub renewals: u32,
}

impl Identity {
    /// The identity of a node that has just started.
    pub fn new(node: NodeId, addr: SocketAddr, boot: u64) -> Self {
        Self { node, addr, boot, renewals: 0 }
    }

    /// Whether this is a later life than another of the same node.
    pub(super) fn beats(&self, other: &Self) -> bool {
        (self.boot, self.renewals) > (other.boot, other.renewals)
    }

    /// The next life after `other`, at this one's address; none when the numbers are used up.
    pub(super) fn after(&self, other: &Self) -> Option<Self> {
        let (boot, renewals) = match other.renewals.checked_add(1) {
            Some(renewals) => (other.boot, renewals),
            None => (other.boot.checked_add(1)?, 0),
        };
        Some(Self { boot, renewals, ..*self })
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        (self.node, self.boot, self.renewals) == (other.node, other.boot, other.renewals)
    }
}

impl Eq for Identity {}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} (start {}, renewal {})", self.node, self.addr, self.boot, self.renewals)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        self.after(self)
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.beats(adversary)
    }
}

/// MessagePack for foca's headers and members.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Identity>, buffer: impl BufMut) -> Result<(), CodecError> {
        put(header, buffer)
    }

    fn decode_header(&mut self, buffer: impl Buf) -> Result<Header<Identity>, CodecError> {
        take(buffer)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buffer: impl BufMut) -> Result<(), CodecError> {
        put(member, buffer)
    }

    fn decode_member(&mut self, buffer: impl Buf) -> Result<Member<Identity>, CodecError> {
        take(buffer)
    }
}

/// Encodes aside first: foca requires that a buffer without room for the whole stays as it was.
fn put<T: Serialize>(item: &T, mut buffer: impl BufMut) -> Result<(), CodecError> {
    let bytes = rmp_serde::to_vec(item).map_err(|error| CodecError(error.to_string()))?;
    if buffer.remaining_mut() < bytes.len() {
        return Err(CodecError(format!("{} bytes are needed, {} are left", bytes.len(), buffer.remaining_mut())));
    }
    buffer.put_slice(&bytes);
    Ok(())
}

fn take<T: DeserializeOwned>(buffer: impl Buf) -> Result<T, CodecError> {
    rmp_serde::from_read(buffer.reader()).map_err(|error| CodecError(error.to_string()))
}

/// Bytes that are no header or member, or a buffer without room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct CodecError(String);

impl From<String> for CodecError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

#[cfg(test)]
mod tests {
    use foca::Codec as _;

    use super::*;

    fn identity(boot: u64, renewals: u32) -> Identity {
        let node = NodeId::new("n1").expect("legal");
        Identity { renewals, ..Identity::new(node, "10.0.0.1:7000".parse().expect("an address"), boot) }
    }

    #[test]
    fn a_later_boot_always_wins_and_a_renewal_wins_within_it() {
        assert!(identity(2, 0).beats(&identity(1, u32::MAX)));
        assert!(identity(1, 1).beats(&identity(1, 0)));
        assert!(!identity(1, 1).beats(&identity(1, 1)));
        let renewed = foca::Identity::renew(&identity(1, u32::MAX)).expect("there is a next");
        assert!(renewed.beats(&identity(1, u32::MAX)));
        assert_eq!(foca::Identity::renew(&identity(u64::MAX, u32::MAX)), None, "never wraps around to a loser");
    }

    #[test]
    fn a_full_buffer_stays_clean() {
        let member = Member::alive(identity(7, 0));
        let mut whole = Vec::new();
        Codec.encode_member(&member, &mut whole).expect("a Vec grows");
        for room in 0..whole.len() {
            let mut short = Vec::new().limit(room);
            Codec.encode_member(&member, &mut short).expect_err("too little room");
            assert!(short.into_inner().is_empty(), "{room} bytes of room were dirtied");
        }
        let mut bytes = whole.as_slice();
        assert_eq!(Codec.decode_member(&mut bytes).expect("round trip"), member);
        assert!(bytes.is_empty());
    }

    #[test]
    fn scoped_addresses_do_not_change_who_it_is() {
        let scoped = Identity { addr: "[fe80::1%3]:7000".parse().expect("an address"), ..identity(1, 0) };
        let bytes = rmp_serde::to_vec(&scoped).expect("encodes");
        assert_eq!(rmp_serde::from_slice::<Identity>(&bytes).expect("decodes"), scoped);
    }
}
