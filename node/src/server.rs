//! The port: lets handshakes in, hands peers to the pool and serves clients; decodes, one `match`, replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint};
use quorate_transport::budget::Room;
use quorate_transport::close;
use quorate_transport::rpc::{self, Arrived, REQUEST_LEN};
use quorate_transport::tls::{self, Subject};
use quorate_transport::{Admitted, Gate};
use quorate_wire::codec::{self, CodecError};
use quorate_wire::ids::NodeId;
use quorate_wire::{ALPN_CLIENT, Failure, NotApplied, Reply, Request, RequestBody, Response};
use quorate_wire::{buggify, sometimes, story, tell};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, debug, debug_span, info};

use crate::anti_entropy::AntiEntropy;
use crate::coordinator::{Coordinator, Origin};
use crate::layouts::Layouts;
use crate::metrics::{Metrics, Sample};
use crate::peer_wire::{
    ALPN_PEER, AcceptFirstLayout, GetLayout, GetLayouts, Heal, PeerBody, PeerReply, PeerRequest, ShareKeys,
};
use crate::peers::Peers;
use crate::replica_service::ReplicaService;
use crate::request_memory::{ClientConnection, OVERLOADED, Pools};
use crate::status::Status;
use crate::supervise;

/// Everything that a request can reach. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    pub(crate) me: NodeId,
    pub(crate) coordinator: Coordinator,
    pub(crate) replica_service: ReplicaService,
    pub(crate) anti_entropy: AntiEntropy,
    pub(crate) layouts: Layouts,
    pub(crate) status: Status,
    pub(crate) metrics: Metrics,
    pub(crate) admission: Admission,
    /// Why this node must not touch data, whatever the layout says: its store is quarantined.
    pub(crate) quarantined: Option<Arc<str>>,
}

/// Accepts connections until the endpoint is closed.
pub(crate) async fn accept(endpoint: Endpoint, services: Services, peers: Peers) {
    let gate = services.admission.gate.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                if let Some(admitted) = gate.admit(incoming, |addr| peers.listens_at(addr)) {
                    let served = connection(admitted, services.clone(), peers.clone());
                    connections.spawn(supervise::watched("a connection", served));
                }
            }
        }
    }
}

/// One connection, from the handshake to its end.
async fn connection(admitted: Admitted, services: Services, peers: Peers) {
    let connection = match admitted.handshake().await {
        Ok(connection) => connection,
        Err(why) => {
            services.admission.handshakes_failed.fetch_add(1, Ordering::Relaxed);
            debug!("a handshake failed: {why}");
            return;
        }
    };
    let refuse = |why: &str| {
        info!(remote = %connection.remote_address(), "connection refused: {why}");
        connection.close(close::REFUSED, why.as_bytes());
    };
    let subject = match tls::peer_subject(&connection) {
        Ok(subject) => subject,
        Err(error) => return refuse(&error.to_string()),
    };
    let alpn = tls::alpn(&connection);
    if alpn == ALPN_PEER {
        if !matches!(subject, Subject::Node { .. }) {
            return refuse("the peers' protocol needs a node's certificate");
        }
        peers.adopt(connection);
    } else if alpn == ALPN_CLIENT {
        if let Subject::Node { node, .. } = subject {
            return refuse(&format!(
                "this is the certificate of node {node}, and a client needs one of its own: make it with `quorate cert client NAME`"
            ));
        }
        let client = match services.admission.pools.admit(&subject) {
            Ok(client) => client,
            Err(why) => return refuse(&why),
        };
        let admin = matches!(subject, Subject::Client { admin: true, .. });
        let limits = client.limits();
        let serving = rpc::serve(connection.clone(), ClientHandler { services, client, admin }, limits);
        let why = tokio::select! {
            biased;
            why = serving => why,
            () = no_datagrams(&connection) => "a client sends no datagrams".into(),
        };
        debug!(client = %subject, "connection ended: {why}");
    } else {
        refuse("an application protocol that this node does not speak");
    }
}

/// Ends a connection on which a datagram comes: nobody would read it, and QUIC would keep it. Never ends without one.
async fn no_datagrams(connection: &Connection) {
    match connection.read_datagram().await {
        Ok(_) => connection.close(close::PROTOCOL, b"a client sends no datagrams"),
        // Whoever serves the connection says how it has ended.
        Err(_) => std::future::pending().await,
    }
}

/// Serves one client connection.
#[derive(Clone)]
struct ClientHandler {
    services: Services,
    client: ClientConnection,
    admin: bool,
}

impl rpc::Handler for ClientHandler {
    async fn handle(&self, Arrived { body, timeout, room, .. }: Arrived) -> Bytes {
        supervise::watched("a client's request", self.answer(body, timeout, room)).await
    }

    fn refuse(&self, _class: u8) -> Bytes {
        codec::encode(&Response { table: None, body: Err(OVERLOADED.into()) })
    }
}

impl ClientHandler {
    async fn answer(&self, body: Bytes, timeout: Duration, room: Room) -> Bytes {
        let request = match codec::decode::<Request>(&body) {
            Ok(request) => request,
            Err(error) => return codec::encode(&unsupported(&error)),
        };
        // From here on nothing refers to the frame but the request itself.
        drop(body);
        let services = &self.services;
        let kind = kind(&request.body);
        let span = debug_span!("request", id = format_args!("{:016x}", request.request_id), kind);
        let started = Instant::now();
        let told = story::asked(&request.body);
        if let Some((what, key)) = told {
            tell!(act = "asked", key = %story::text(key), node = %services.me, request = request.request_id, what);
        }
        let full = buggify!("server: a request is refused for want of room");
        let answer = match self.client.place() {
            Some(_place) if !full => services.answer(&request, self.admin, timeout, &room).instrument(span).await,
            Some(_) | None => Err(OVERLOADED.into()),
        };
        if matches!(&answer, Err(Failure::NotApplied(NotApplied::Overloaded { .. }))) {
            services.admission.overloaded.fetch_add(1, Ordering::Relaxed);
        }
        services.metrics.request(kind, outcome(&answer), started.elapsed());
        if let Some((what, key)) = told {
            tell!(act = "tell", key = %story::text(key), node = %services.me, request = request.request_id, what,
                said = story::said(&answer), ok = answer.is_ok());
        }
        sometimes!("server: a request was answered before there was a layout", services.layouts.current().is_none());
        let table = services.layouts.current().filter(|current| current.version() > request.layout);
        let table = table.map(|current| services.coordinator.routes(&current));
        let encoded = codec::encode(&Response { table, body: answer });
        // What a write has come to is told in any case: it is small, and nobody would know it otherwise.
        if matches!(request.body, RequestBody::Write(_)) || room.covers(encoded.len(), REQUEST_LEN) {
            return encoded;
        }
        services.admission.overloaded.fetch_add(1, Ordering::Relaxed);
        codec::encode(&Response { table: None, body: Err(OVERLOADED.into()) })
    }
}

impl Services {
    async fn answer(&self, request: &Request, admin: bool, timeout: Duration, room: &Room) -> Result<Reply, Failure> {
        match &request.body {
            RequestBody::Write(_) | RequestBody::Read(_) | RequestBody::Scan(_) => {
                self.serving()?;
                self.coordinator.handle(request, timeout, Origin::Client, room.clone()).await
            }
            RequestBody::Locate { key } => Ok(Reply::Located(self.coordinator.locate(key)?)),
            RequestBody::Route => match self.layouts.current() {
                Some(current) => Ok(Reply::Route(self.coordinator.routes(&current))),
                None => Err(self.not_serving("there is no layout yet".into()).into()),
            },
            RequestBody::Status => Ok(Reply::Status(Box::new(self.status.report()))),
            RequestBody::Layout(command) => {
                if !admin && command.changes() {
                    let why =
                        "changing the layout needs an administrator's certificate (`quorate cert client NAME --admin`)";
                    return Err(NotApplied::Forbidden { why: why.into() }.into());
                }
                Ok(Reply::Layout(Box::new(self.layouts.command(command.clone(), timeout).await?)))
            }
            RequestBody::Repair(command) => {
                if !admin && command.changes() {
                    let why =
                        "steering repair needs an administrator's certificate (`quorate cert client NAME --admin`)";
                    return Err(NotApplied::Forbidden { why: why.into() }.into());
                }
                Ok(Reply::Repair(Box::new(self.anti_entropy.command(*command))))
            }
        }
    }

    /// One request of a peer.
    pub(crate) async fn answer_peer(
        &self,
        from: NodeId,
        request: PeerRequest,
        timeout: Duration,
        room: Room,
    ) -> PeerReply {
        let span = debug_span!("peer", id = format_args!("{:016x}", request.request_id), %from);
        async {
            match request.body {
                PeerBody::Replicate(_)
                | PeerBody::Hint(_)
                | PeerBody::Handoff(_)
                | PeerBody::Fetch(_)
                | PeerBody::FetchHint(_)
                | PeerBody::FetchRange(_)
                | PeerBody::Forward(_) => match self.serving() {
                    Ok(()) => self.replica_service.serve_peer(from, request.body, timeout, room).await,
                    Err(refusal) => PeerReply::Refused(refusal),
                },
                PeerBody::Heal(Heal { label, request }) => match self.serving() {
                    Ok(()) => self.anti_entropy.answer(from, label, request, timeout).await.into(),
                    Err(refusal) => PeerReply::Refused(refusal),
                },
                PeerBody::AcceptFirstLayout(AcceptFirstLayout { layout, keys }) => {
                    self.layouts.accept_first(layout, keys).await.into()
                }
                PeerBody::LayoutState(GetLayout) => self.layouts.state().into(),
                PeerBody::ContextKeys(ShareKeys { keys }) => self.layouts.take_context_keys(keys).await.into(),
                PeerBody::PrepareLayout(ask) => self.layouts.promise(from, ask, timeout).await.into(),
                PeerBody::AcceptLayout(ask) => self.layouts.vote(from, ask, timeout).await.into(),
                PeerBody::LearnLayouts(ask) => self.layouts.learn(from, ask).await.into(),
                PeerBody::GetLayouts(GetLayouts { after }) => self.layouts.known_after(after).await.into(),
                PeerBody::Hello(_) => PeerReply::Refused(NotApplied::Unsupported {
                    why: "hello is said once, at the beginning of a connection".into(),
                }),
            }
        }
        .instrument(span)
        .await
    }

    /// Whether this node may touch data at all; whether it owns a partition is for others to say.
    pub(crate) fn serving(&self) -> Result<(), NotApplied> {
        match &self.quarantined {
            Some(why) => Err(self.not_serving(why.to_string())),
            None => Ok(()),
        }
    }

    fn not_serving(&self, why: String) -> NotApplied {
        NotApplied::NotServing { node: self.me, why }
    }
}

/// Bounds and counts what comes in.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    gate: Gate,
    pools: Pools,
    overloaded: Arc<AtomicU64>,
    handshakes_failed: Arc<AtomicU64>,
}

impl Admission {
    pub(crate) fn new(pools: Pools) -> Self {
        Self { gate: Gate::new(), pools, overloaded: Arc::default(), handshakes_failed: Arc::default() }
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let gate = self.gate.counts();
        let handshakes = |count| {
            let help = "Handshakes that had to prove their address first, were given up for newer ones, or failed";
            Sample::counter("handshakes", help, count)
        };
        let mut samples = self.pools.samples();
        samples.extend([
            Sample::counter("requests_overloaded", "Client requests refused for lack of room", load(&self.overloaded)),
            handshakes(gate.retried).of("outcome", "retried"),
            handshakes(gate.displaced).of("outcome", "displaced"),
            handshakes(load(&self.handshakes_failed)).of("outcome", "failed"),
            Sample::gauge("handshakes_under_way", "Handshakes that have begun and are not over", gate.under_way),
        ]);
        samples
    }
}

fn unsupported(error: &CodecError) -> Response {
    let why = format!("{error} (this is quorate {})", env!("CARGO_PKG_VERSION"));
    Response { table: None, body: Err(NotApplied::Unsupported { why }.into()) }
}

fn kind(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::Write(write) if write.value.is_some() => "put",
        RequestBody::Write(_) => "delete",
        RequestBody::Read(_) => "get",
        RequestBody::Scan(_) => "scan",
        RequestBody::Route | RequestBody::Locate { .. } | RequestBody::Status => "look",
        RequestBody::Layout(_) => "layout",
        RequestBody::Repair(_) => "repair",
    }
}

fn outcome(answer: &Result<Reply, Failure>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        Err(Failure::NotApplied(_)) => "not_applied",
        Err(Failure::Indeterminate { .. }) => "indeterminate",
    }
}
