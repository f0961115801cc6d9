//! The one place where the binary starts a [`Node`]: for `server` and for `dev`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use quorate_node::env::{Env, OpenStore};
use quorate_node::node::{Node, NodeConfig};
use quorate_node::request_memory::RequestMemory;
use quorate_node::store::room::space_of;
use quorate_node::store::{self, DiskReserve, Identity, MemoryStore, Opened, SledOptions, ballast};
use quorate_wire::ids::{DiskId, NodeId};
use quorate_wire::random::Random;

use super::failure::{Failure, Outcome};
use super::log;
use super::obstacle::{Protocol, patiently};
use super::process::OwnProcess;

/// A node and what it needs from this machine.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The node.
    pub(crate) config: NodeConfig,
    /// What requests may take of this machine's memory.
    pub(crate) request_memory: RequestMemory,
    /// Where its data is.
    pub(crate) data: Data,
}

/// Where a node's data is.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// In memory; every start of a node with a clone of the same disk finds what the one before has left.
    Memory(MemoryDisk),
    /// On sled, in this directory, with so much of its disk kept free.
    Directory(PathBuf, DiskReserve),
}

/// A disk that lives as long as the process.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<Option<(MemoryStore, Identity)>>>);

impl MemoryDisk {
    fn open(&self, config: &NodeConfig, random: &Random) -> Opened {
        let mut disk = self.0.lock().expect("nothing panics while the disk is locked");
        let (store, identity) = disk.get_or_insert_with(|| {
            let identity = Identity {
                cluster: config.credentials.cluster(),
                node: config.node,
                disk: DiskId(random.u128()),
                boot: 0,
                clean: true,
            };
            (MemoryStore::new(), identity)
        });
        identity.boot += 1;
        Opened { store: Arc::new(store.clone()), identity: identity.clone(), quarantined: None }
    }
}

impl Launch {
    /// Its name.
    pub(crate) fn node(&self) -> NodeId {
        self.config.node
    }

    /// Starts it on the current runtime, with the system's sockets, clock and entropy.
    pub(crate) async fn start(self) -> Outcome<Node> {
        Node::start(self.config.clone(), self.env()).await.map_err(|error| {
            let text = error.to_string();
            let in_use = ["listens there already", "is in use by"].iter().any(|words| text.contains(words));
            let hint = if text.starts_with("HTTP on ") {
                "choose another `http` address, or stop what runs there"
            } else if in_use {
                "another node runs: stop it, or choose another address or directory"
            } else {
                "look at what the error names: the address, the directory and its disk, the certificates"
            };
            Failure::new(format!("{} cannot start: {text}", self.config.node), hint)
        })
    }

    fn env(&self) -> Env {
        let mut env = Env { request_memory: self.request_memory, ..Env::system(self.open_store()) };
        let bind = Arc::clone(&env.bind_udp);
        env.bind_udp = Arc::new(move |addr| {
            let bind = Arc::clone(&bind);
            Box::pin(patiently(Protocol::Udp, addr, move || bind(addr)))
        });
        let bind = Arc::clone(&env.bind_tcp);
        env.bind_tcp = Arc::new(move |addr| {
            let bind = Arc::clone(&bind);
            Box::pin(patiently(Protocol::Tcp, addr, move || bind(addr)))
        });
        env.metrics.source(log::samples);
        env.metrics.collect(OwnProcess);
        match &self.data {
            Data::Memory(_) => env,
            Data::Directory(dir, reserve) => env.on_disk(space_of(dir.clone()), *reserve),
        }
    }

    fn open_store(&self) -> OpenStore {
        let Self { config, data, .. } = self.clone();
        let random = Random::from_os();
        Arc::new(move || match &data {
            Data::Memory(disk) => Ok(disk.open(&config, &random)),
            Data::Directory(dir, _) => {
                let space = space_of(dir.clone());
                let opened = store::open_once_locked(
                    dir,
                    config.credentials.cluster(),
                    config.node,
                    &random,
                    &SledOptions::default(),
                    || ballast::before_start(dir, space()),
                )?;
                ballast::after_start(dir, space());
                Ok(opened)
            }
        })
    }
}
