//! Where the others were last: kept on the disk, so that a node finds them after a restart although they have moved since the
//! layout was made, and although its `join` list is as old.
//!
//! It is a help and no promise: what cannot be read or written is left out, and nobody waits for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quorate_wire::codec;
use quorate_wire::ids::NodeId;
use tokio::sync::watch;
use tracing::debug;

use crate::membership::Liveness;
use crate::store::{Executor, Store, Tree};

/// Node by node, but for this one.
type Addresses = BTreeMap<NodeId, SocketAddr>;

/// What the disk remembers. Blocking.
pub(crate) fn remembered(store: &dyn Store) -> Vec<SocketAddr> {
    stored(store).into_values().collect()
}

fn stored(store: &dyn Store) -> Addresses {
    let stored = store.get(Tree::Meta, KEY).ok().flatten();
    stored.and_then(|stored| codec::decode(&stored).ok()).unwrap_or_default()
}

/// Notes where the others are, for as long as the node runs. Who has been away for long stays remembered as long as there is room.
pub(crate) async fn remember(
    me: NodeId,
    store: Arc<dyn Store>,
    executor: Executor,
    mut liveness: watch::Receiver<Arc<Liveness>>,
) {
    let reading = Arc::clone(&store);
    let mut noted = executor.run(move || stored(&*reading)).await;
    while liveness.changed().await.is_ok() {
        let now = liveness.borrow_and_update().clone();
        let mut next = noted.clone();
        next.extend(
            now.iter().filter(|(node, state)| **node != me && state.up).map(|(node, state)| (*node, state.addr)),
        );
        while next.len() > NODES_MAX {
            let gone = next.keys().find(|node| !now.get(*node).is_some_and(|state| state.up)).copied();
            let Some(gone) = gone.or_else(|| next.keys().next().copied()) else { break };
            next.remove(&gone);
        }
        if next == noted {
            continue;
        }
        let (writing, encoded): (_, Bytes) = (Arc::clone(&store), codec::encode(&next));
        match executor.run(move || writing.insert(Tree::Meta, KEY, &encoded)).await {
            Ok(()) => noted = next,
            Err(why) => debug!("it is not noted where the others are: {why}"),
        }
    }
}

/// In [`Tree::Meta`].
const KEY: &[u8] = b"addresses";

/// As many as a membership looks for at its start.
const NODES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::membership::PeerState;
    use crate::store::MemoryStore;

    fn node(number: usize) -> NodeId {
        NodeId::new(&format!("n{number:03}")).expect("legal")
    }

    fn peer(port: u16, up: bool) -> PeerState {
        PeerState { addr: SocketAddr::from(([127, 0, 0, 1], port)), up, since: Instant::now() }
    }

    async fn told(store: &MemoryStore, lives: Vec<Liveness>) -> Vec<u16> {
        let (tell, heard) = watch::channel(Arc::default());
        let task = tokio::spawn(remember(node(0), Arc::new(store.clone()), Executor::Inline, heard));
        for liveness in lives {
            tell.send_replace(Arc::new(liveness));
            tokio::task::yield_now().await;
        }
        drop(tell);
        task.await.expect("it ends with the membership");
        remembered(store).into_iter().map(|addr| addr.port()).collect()
    }

    #[tokio::test]
    async fn the_newest_address_of_each_is_remembered_and_one_that_is_away_is_not_forgotten() {
        let store = MemoryStore::new();
        assert_eq!(remembered(&store), []);
        let first = Liveness::from([(node(0), peer(1, true)), (node(1), peer(2, true)), (node(2), peer(3, true))]);
        assert_eq!(told(&store, vec![first]).await, [2, 3]);
        // The next life: one has moved, one is down, and says so under an address that may be wrong.
        let moved = Liveness::from([(node(0), peer(1, true)), (node(1), peer(20, true)), (node(2), peer(30, false))]);
        assert_eq!(told(&store, vec![moved, Liveness::new()]).await, [20, 3]);
        store.insert(Tree::Meta, KEY, b"nonsense").expect("memory takes everything");
        assert_eq!(remembered(&store), []);
    }

    #[tokio::test]
    async fn there_is_a_bound_and_whoever_is_up_stays() {
        let store = MemoryStore::new();
        let all = |numbers: std::ops::Range<usize>, up| -> Liveness {
            numbers.map(|number| (node(number), peer(number as u16, up))).collect()
        };
        let ports = told(&store, vec![all(1..61, true), all(61..101, true)]).await;
        assert_eq!(ports.len(), NODES_MAX);
        assert!((61..101).all(|port| ports.contains(&port)), "{ports:?}");
    }
}
