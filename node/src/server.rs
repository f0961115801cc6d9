//! The port: lets handshakes in, hands peers to the pool and serves clients; decodes, one `match`, replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::Endpoint;
use quorate_client::codec::{self, CodecError};
use quorate_client::ids::NodeId;
use quorate_client::quic::{self, Admitted, Gate};
use quorate_client::rpc::{self, ServeLimits};
use quorate_client::tls::{self, Subject};
use quorate_client::wire::{ALPN_CLIENT, Failure, NotApplied, Reply, Request, RequestBody, Response};
use quorate_client::{buggify, sometimes, story, tell};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{Instrument, debug, debug_span, info};

use crate::anti_entropy::AntiEntropy;
use crate::coordinator::{Coordinator, Origin, RETRY_AFTER_MS};
use crate::layouts::Layouts;
use crate::metrics::{Metrics, Sample};
use crate::peer_wire::{ALPN_PEER, PeerBody, PeerReply, PeerRequest};
use crate::peers::Peers;
use crate::replica_service::ReplicaService;
use crate::status::Status;

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
    let gate = Gate::new();
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                if let Some(admitted) = gate.admit(incoming) {
                    connections.spawn(connection(admitted, services.clone(), peers.clone(), Arc::clone(&clients)));
                } else {
                    services.admission.handshakes_refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

/// One connection, from the handshake to its end.
async fn connection(admitted: Admitted, services: Services, peers: Peers, clients: Arc<Semaphore>) {
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
        connection.close(REFUSED.into(), why.as_bytes());
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
        quic::widen_for_peer(&connection);
        peers.adopt(connection);
    } else if alpn == ALPN_CLIENT {
        let Ok(_place) = clients.try_acquire() else {
            services.admission.clients_refused.fetch_add(1, Ordering::Relaxed);
            return refuse("this node serves as many clients as it can; try another one");
        };
        let admin = matches!(subject, Subject::Client { admin: true, .. });
        let why = rpc::serve(connection, ClientHandler { services, admin }, ServeLimits::client()).await;
        debug!(client = %subject, "connection ended: {why}");
    } else {
        refuse("an application protocol that this node does not speak");
    }
}

/// Serves one client connection.
#[derive(Clone)]
struct ClientHandler {
    services: Services,
    admin: bool,
}

impl rpc::Handler for ClientHandler {
    async fn handle(&self, _class: u8, body: Bytes, timeout: Duration) -> Bytes {
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
        let answer = match services.admission.places.try_acquire() {
            Ok(_place) if !full => services.answer(&request, self.admin, timeout).instrument(span).await,
            Ok(_) | Err(_) => {
                services.admission.overloaded.fetch_add(1, Ordering::Relaxed);
                Err(NotApplied::Overloaded { retry_after_ms: RETRY_AFTER_MS }.into())
            }
        };
        services.metrics.request(kind, outcome(&answer), started.elapsed());
        if let Some((what, key)) = told {
            tell!(act = "tell", key = %story::text(key), node = %services.me, request = request.request_id, what,
                said = story::said(&answer), ok = answer.is_ok());
        }
        sometimes!("server: a request was answered before there was a layout", services.layouts.current().is_none());
        let table = services.layouts.current().filter(|current| current.layout.version > request.layout);
        codec::encode(&Response { table: table.map(|current| services.coordinator.routes(&current)), body: answer })
    }
}

impl Services {
    async fn answer(&self, request: &Request, admin: bool, timeout: Duration) -> Result<Reply, Failure> {
        match &request.body {
            RequestBody::Write(_) | RequestBody::Read(_) | RequestBody::Scan(_) => {
                self.serving()?;
                self.coordinator.handle(request, timeout, Origin::Client).await
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
                Ok(Reply::Layout(Box::new(self.layouts.command(command.clone()).await?)))
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
    pub(crate) async fn answer_peer(&self, from: NodeId, request: PeerRequest, timeout: Duration) -> PeerReply {
        let span = debug_span!("peer", id = format_args!("{:016x}", request.request_id), %from);
        async {
            match request.body {
                PeerBody::Replicate { .. }
                | PeerBody::Hint { .. }
                | PeerBody::Handoff { .. }
                | PeerBody::Fetch { .. }
                | PeerBody::FetchHint { .. }
                | PeerBody::FetchRange { .. }
                | PeerBody::Forward { .. } => match self.serving() {
                    Ok(()) => self.replica_service.serve_peer(from, request.body, timeout).await,
                    Err(refusal) => PeerReply::Refused(refusal),
                },
                PeerBody::Heal { label, request } => match self.serving() {
                    Ok(()) => self.anti_entropy.answer(from, label, request, timeout).await,
                    Err(refusal) => PeerReply::Refused(refusal),
                },
                PeerBody::AcceptFirstLayout { layout, keys } => self.layouts.accept_first(layout, keys).await,
                PeerBody::LayoutState => self.layouts.state().await,
                PeerBody::ContextKeys { keys } => self.layouts.take_context_keys(keys).await,
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
    places: Arc<Semaphore>,
    overloaded: Arc<AtomicU64>,
    clients_refused: Arc<AtomicU64>,
    handshakes_refused: Arc<AtomicU64>,
    handshakes_failed: Arc<AtomicU64>,
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self {
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            overloaded: Arc::default(),
            clients_refused: Arc::default(),
            handshakes_refused: Arc::default(),
            handshakes_failed: Arc::default(),
        }
    }

    pub(crate) fn samples(&self) -> Vec<Sample> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let under_way = REQUESTS_MAX - self.places.available_permits();
        vec![
            Sample::gauge("requests_under_way", "Client requests that are being answered", under_way as u64),
            Sample::counter("requests_overloaded", "Client requests refused for lack of room", load(&self.overloaded)),
            Sample::counter(
                "clients_refused",
                "Client connections refused for lack of room",
                load(&self.clients_refused),
            ),
            Sample::counter(
                "handshakes_refused",
                "Handshakes turned away for lack of room",
                load(&self.handshakes_refused),
            ),
            Sample::counter(
                "handshakes_failed",
                "Handshakes that failed or were given up",
                load(&self.handshakes_failed),
            ),
        ]
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

/// Client connections at a time; each may have 4 MiB under way, see `quorate_client::quic`.
const CLIENTS_MAX: usize = 1024;

/// Client requests being answered at a time, over all connections: at 10,000 requests/s a queue of 0.4 s, within every
/// sensible deadline. More are refused at once, so that those that are let in are answered in time.
const REQUESTS_MAX: usize = 4096;

/// The close code of connections that are refused after the handshake.
const REFUSED: u32 = 2;
