//! Who may do what: clients, administrators and nodes at the port of one node.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quorate_client::options::RequestOptions;
use quorate_client::{Client, Error};
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::env::Env;
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::peer_wire::ALPN_PEER;
use quorate_node::store::{Durability, Identity, MemoryStore, Opened};
use quorate_transport::close;
use quorate_transport::quic;
use quorate_transport::tls::{self, Credentials};
use quorate_transport::{Link, Seams};
use quorate_wire::codec::Blob;
use quorate_wire::ids::{ClusterId, DiskId, LayoutVersion, NodeId, OpId, Partition};
use quorate_wire::{
    Key, KeyPrefix, LayoutCommand, NotApplied, Read, RepairCommand, Reply, RequestBody, Scan, ScanPosition, Write,
};

const CLUSTER: ClusterId = ClusterId(7);
const PATIENCE: Duration = Duration::from_secs(10);

fn name() -> NodeId {
    NodeId::new("n1").expect("legal")
}

fn credentials(issued: Issued) -> Credentials {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes()).expect("fit")
}

struct Setup {
    node: Node,
    ca: Ca,
    seams: Seams,
}

impl Setup {
    async fn start(quarantined: Option<&'static str>) -> Self {
        let seams = Seams::system();
        let now = (seams.wall_clock)();
        let ca = Ca::make(&seams.random, CLUSTER, now, VALIDITY).expect("makes a CA");
        let config = NodeConfig {
            node: name(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertise: None,
            http: None,
            join: Vec::new(),
            credentials: credentials(ca.issue_node(&seams.random, name(), now, VALIDITY).expect("issues")),
            durability: Durability::Group,
            sync_interval: Duration::from_millis(100),
            mechanisms: Mechanisms::default(),
            anti_entropy: AntiEntropyConfig::default(),
            layout_changes: false,
        };
        let store = MemoryStore::new();
        let open = move || {
            let identity = Identity { cluster: CLUSTER, node: name(), disk: DiskId(1), boot: 1, clean: true };
            Ok(Opened { store: Arc::new(store.clone()), identity, quarantined: quarantined.map(Into::into) })
        };
        let node = Node::start(config, Env::system(Arc::new(open))).await.expect("starts");
        Self { node, ca, seams }
    }

    fn client(&self, admin: bool) -> Credentials {
        let now = (self.seams.wall_clock)();
        credentials(self.ca.issue_client(&self.seams.random, "joe", admin, now, VALIDITY).expect("issues"))
    }

    async fn connect(&self, admin: bool) -> Client {
        Client::builder([self.node.addr()]).credentials(self.client(admin)).connect().await.expect("connects")
    }

    async fn ask(&self, client: &Client, body: RequestBody) -> Result<Reply, Error> {
        client.request_at(self.node.addr(), body, RequestOptions::default().timeout(PATIENCE)).await
    }

    /// A lone node whose layout is in force.
    async fn lay_out(&self, admin: &Client) {
        let join = LayoutCommand::StageJoin { node: name(), addr: self.node.addr(), zone: "z".into(), weight: 1 };
        let settings = LayoutCommand::StageSettings { n: Some(1), partitions: Some(4), r: None, w: None };
        for command in [join, settings, LayoutCommand::Apply { version: LayoutVersion(1) }] {
            self.ask(admin, RequestBody::Layout(command)).await.expect("carried out");
        }
    }
}

#[tokio::test]
async fn a_client_looks_at_everything_and_changes_data_only() {
    let setup = Setup::start(None).await;
    let (admin, joe) = (setup.connect(true).await, setup.connect(false).await);
    let stage = LayoutCommand::StageJoin { node: name(), addr: setup.node.addr(), zone: "z".into(), weight: 1 };
    let settings = LayoutCommand::StageSettings { n: Some(1), partitions: Some(4), r: None, w: None };
    let apply = LayoutCommand::Apply { version: LayoutVersion(1) };
    let (layout, repair) = (RequestBody::Layout, RequestBody::Repair);
    let forbidden = [
        layout(stage),
        layout(settings),
        layout(LayoutCommand::Revert),
        layout(apply),
        repair(RepairCommand::Start),
        repair(RepairCommand::Pause),
        repair(RepairCommand::Resume),
    ];
    // Of a layout in force, which there is none of yet.
    let zone = LayoutCommand::StageZone { node: name(), zone: "z".into() };
    let replace = LayoutCommand::StageReplace { old: name(), new: name(), addr: setup.node.addr() };
    let weight = LayoutCommand::StageWeight { node: name(), weight: 2 };
    let abort = LayoutCommand::Abort { version: Some(LayoutVersion(2)) };
    let changes = [LayoutCommand::StageLeave { node: name() }, replace, weight, zone, abort].map(layout);
    for body in forbidden.iter().chain(&changes) {
        let refused = setup.ask(&joe, body.clone()).await.expect_err("forbidden");
        let Error::NotApplied(NotApplied::Forbidden { why }) = &refused else { panic!("{body:?}: {refused:?}") };
        assert!(why.contains("--admin"), "{why}");
    }
    let Ok(Reply::Layout(report)) = setup.ask(&joe, layout(LayoutCommand::Show)).await else { panic!("no layout") };
    assert_eq!((report.staged, report.current.version), (None, LayoutVersion(0)), "nothing was changed");
    assert!(matches!(setup.ask(&joe, layout(LayoutCommand::History)).await, Ok(Reply::Layout(_))));
    let Ok(Reply::Repair(report)) = setup.ask(&joe, repair(RepairCommand::Status)).await else { panic!("no report") };
    assert!(!report.paused);
    assert!(matches!(setup.ask(&joe, RequestBody::Status).await, Ok(Reply::Status(_))));
    for body in forbidden.into_iter().filter(|body| *body != layout(LayoutCommand::Revert)) {
        setup.ask(&admin, body.clone()).await.unwrap_or_else(|why| panic!("{body:?}: {why}"));
    }
    assert!(matches!(setup.ask(&joe, RequestBody::Route).await, Ok(Reply::Route(_))));
    joe.put("k", "v", quorate_client::Blind).await.expect("put");
}

#[tokio::test]
async fn a_quarantined_node_serves_no_data_and_says_why_and_tells_of_itself() {
    let setup = Setup::start(Some("its log is damaged")).await;
    let joe = setup.connect(false).await;
    let key = Key::plain("k");
    let write = Write {
        key: key.clone(),
        value: Some(Blob::copy_from(b"k")),
        context: None,
        op_id: OpId(1),
        first_sent_ms: None,
        w: None,
        strict: false,
        explain: false,
    };
    let read = Read { key: key.clone(), r: None, strict: false, monotonic: false, explain: false };
    let from = ScanPosition::start_of(Partition(0));
    let scan = Scan { from, until: Partition(1), limit: 1, prefix: KeyPrefix::default(), keys_only: false, r: None };
    for body in [RequestBody::Write(write), RequestBody::Read(read), RequestBody::Scan(scan)] {
        match setup.ask(&joe, body.clone()).await {
            Err(Error::NotApplied(NotApplied::NotServing { node, why })) => {
                assert_eq!((node, why.contains("its log is damaged")), (name(), true), "{why}");
            }
            other => panic!("{body:?}: {other:?}"),
        }
    }
    assert!(matches!(setup.ask(&joe, RequestBody::Status).await, Ok(Reply::Status(_))));
}

#[tokio::test]
async fn a_key_has_a_place_once_there_is_a_layout() {
    let setup = Setup::start(None).await;
    let (admin, joe) = (setup.connect(true).await, setup.connect(false).await);
    let locate = RequestBody::Locate { key: Key::plain("k") };
    let refused = setup.ask(&joe, locate.clone()).await.expect_err("no layout");
    assert!(matches!(refused, Error::NotApplied(NotApplied::NotServing { .. })), "{refused:?}");
    let refused = setup.ask(&joe, RequestBody::Route).await.expect_err("no layout");
    assert!(refused.to_string().contains("there is no layout yet"), "{refused}");
    setup.lay_out(&admin).await;
    let Ok(Reply::Located(located)) = setup.ask(&joe, locate).await else { panic!("it has a place") };
    let place = &located.preference[0];
    assert_eq!((located.preference.len(), place.node, place.addr, place.up), (1, name(), setup.node.addr(), true));
    assert_eq!((located.n, located.layout), (1, LayoutVersion(1)));
    let refused = setup.ask(&joe, RequestBody::Locate { key: Key::plain("") }).await.expect_err("an empty key");
    assert!(matches!(refused, Error::NotApplied(NotApplied::EmptyKey)), "{refused:?}");
}

#[tokio::test]
async fn the_peers_protocol_is_for_nodes() {
    let setup = Setup::start(None).await;
    let config = tls::client_config(&setup.seams, &setup.client(true), ALPN_PEER, Link::Peer).expect("fits");
    let socket = quic::bind_system(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("binds");
    let endpoint = quic::endpoint(&setup.seams, socket, None).expect("an endpoint");
    let connecting = endpoint.connect_with(config, setup.node.addr(), tls::ANY_NODE).expect("dials");
    let told = close::explain_connection_error(&connecting.await.expect("connects").closed().await);
    assert!(told.contains("needs a node's certificate"), "{told}");
}
