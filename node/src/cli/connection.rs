//! The commands' way to the cluster: the client crate, with the wire's own types.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use quorate_client::client::Seed;
use quorate_client::error::Error;
use quorate_client::options::RequestOptions;
use quorate_client::read::Context;
use quorate_client::{Client, Scanner};
use quorate_node::config::Endpoint;
use quorate_transport::tls::{self, Credentials};
use quorate_wire::Quorum;
use quorate_wire::address;
use quorate_wire::codec::Blob;
use quorate_wire::ids::OpId;
use quorate_wire::random::Random;
use quorate_wire::{
    Found, Key, LayoutCommand, LayoutReport, Located, NodeStatus, Read, RepairCommand, RepairReport, Reply,
    RequestBody, Write, Written,
};
use tokio::task::JoinSet;

use super::failure::{Exit, Failure, Outcome};
use super::output::complain;
use super::settings::Settings;
use super::wall_clock;

/// A connected cluster. Clones share the connections.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    client: Client,
    seeds: Vec<String>,
    timeout: Duration,
    random: Random,
}

impl Cluster {
    /// Reads the certificates, resolves the seeds, and connects.
    pub(crate) async fn connect(settings: &Settings) -> Outcome<Self> {
        let wanted = settings.connection()?;
        let open = async {
            let credentials = credentials(&wanted.ca.value, &wanted.cert.value, &wanted.key.value)?;
            let seeds = resolvable(&wanted.seeds.value).await?;
            Self::open(seeds, credentials, settings.timeout.value).await
        };
        let cluster = open.await.map_err(|failure| wanted.explain(failure))?;
        CONNECTED.lock().expect("no panic while the list is locked").push(cluster.client.clone());
        Ok(cluster)
    }

    /// Connects to the first of these addresses (or names with a port) that answers.
    pub(crate) async fn open(seeds: Vec<String>, credentials: Credentials, timeout: Duration) -> Outcome<Self> {
        let client = Client::builder(seeds.clone())
            .credentials(credentials)
            .timeout(timeout)
            .connect_timeout(timeout.max(CONNECT_TIME_MIN))
            .connect()
            .await?;
        Ok(Self { client, seeds, timeout, random: Random::from_os() })
    }

    /// The client itself.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The first seed whose name can be resolved: where layout changes are staged.
    pub(crate) fn first_seed(&self) -> &str {
        self.seeds.first().expect("without one there is no connection")
    }

    /// A name for a new write.
    pub(crate) fn op_id(&self) -> OpId {
        let now = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
        OpId::new(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), self.random.u128())
    }

    /// Reads a key.
    pub(crate) async fn read(&self, read: Read) -> Result<Found, Error> {
        match self.request(RequestBody::Read(read)).await? {
            Reply::Found(found) => Ok(found),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes or deletes a key.
    pub(crate) async fn write(&self, write: Write) -> Result<Written, Error> {
        match self.request(RequestBody::Write(write)).await? {
            Reply::Written(written) => Ok(written),
            other => Err(unexpected(&other)),
        }
    }

    /// Goes through all records. A page reads many records, so that it gets more time than a request for one.
    pub(crate) fn scan(&self, r: Option<Quorum>) -> Scanner {
        let scan = self.client.scan().timeout(self.timeout.max(SCAN_TIMEOUT_MIN));
        r.into_iter().fold(scan, Scanner::r)
    }

    /// Where a key lives.
    pub(crate) async fn locate(&self, key: &Bytes) -> Result<Located, Error> {
        match self.request(RequestBody::Locate { key: Key::plain(key) }).await? {
            Reply::Located(located) => Ok(located),
            other => Err(unexpected(&other)),
        }
    }

    /// What some node knows of the cluster.
    pub(crate) async fn status(&self) -> Result<NodeStatus, Error> {
        match self.request(RequestBody::Status).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// What the node at this address knows of the cluster.
    pub(crate) async fn status_at(&self, addr: impl Into<Seed>) -> Result<NodeStatus, Error> {
        match self.client.request_at(addr, RequestBody::Status, self.options()).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// Shows or changes the layout at the node with this address. A change is stored on disks of several nodes, so that it
    /// gets more time than a request for a key.
    pub(crate) async fn layout_at(&self, addr: impl Into<Seed>, command: LayoutCommand) -> Result<LayoutReport, Error> {
        let options = RequestOptions::default().timeout(self.timeout.max(LAYOUT_TIMEOUT_MIN));
        match self.client.request_at(addr, RequestBody::Layout(command), options).await? {
            Reply::Layout(report) => Ok(*report),
            other => Err(unexpected(&other)),
        }
    }

    /// Shows or steers the anti-entropy of the node with this address.
    pub(crate) async fn repair_at(&self, addr: impl Into<Seed>, command: RepairCommand) -> Result<RepairReport, Error> {
        match self.client.request_at(addr, RequestBody::Repair(command), self.options()).await? {
            Reply::Repair(report) => Ok(*report),
            other => Err(unexpected(&other)),
        }
    }

    async fn request(&self, body: RequestBody) -> Result<Reply, Error> {
        self.client.request(body, self.options()).await
    }

    fn options(&self) -> RequestOptions {
        RequestOptions::default().timeout(self.timeout)
    }
}

/// The clients of this process's command, which [`disconnect`] closes.
static CONNECTED: Mutex<Vec<Client>> = Mutex::new(Vec::new());

/// Says goodbye to the nodes when a command is done: without it they count a client that was cut off. It takes no longer than a
/// moment, whatever the nodes do.
pub(crate) async fn disconnect() {
    let clients = std::mem::take(&mut *CONNECTED.lock().expect("no panic while the list is locked"));
    let closing: JoinSet<()> = clients.into_iter().map(Client::close).collect();
    // A node that does not answer finds out by itself.
    let _ = tokio::time::timeout(CLOSE_TIME, closing.join_all()).await;
}

/// A context as people and scripts pass it around.
pub(crate) fn context_text(context: &Blob) -> Outcome<String> {
    Context::from_bytes(context.0.clone()).map(|context| context.to_string()).map_err(|error| {
        Failure::new(format!("a node sent a context that is none: {error}"), "compare the releases: `quorate node ls`")
    })
}

/// What a `--context` holds.
pub(crate) fn parse_context(text: &str) -> Outcome<Blob> {
    match text.trim().parse::<Context>() {
        Ok(context) => Ok(Blob(context.to_bytes())),
        Err(error) => Err(Failure::usage(
            format!("--context: {error}"),
            "take it from `quorate get KEY -o json` or from the output of `quorate put`",
        )),
    }
}

/// Reads and checks the three PEM files. A key that others may read is not used.
pub(crate) fn credentials(ca: &Path, cert: &Path, key: &Path) -> Outcome<Credentials> {
    tls::check_key_file(key)
        .map_err(|error| Failure::usage(error.to_string(), format!("run `chmod 600 {}`", key.display())))?;
    read_credentials(ca, cert, key)
}

/// The same, whoever may read the key.
pub(crate) fn read_credentials(ca: &Path, cert: &Path, key: &Path) -> Outcome<Credentials> {
    let read = |path: &Path| std::fs::read(path).map_err(|error| Failure::file("read", path, &error));
    let credentials = Credentials::from_pem(&read(ca)?, &read(cert)?, &read(key)?).map_err(|error| {
        Failure::usage(
            format!("{}, {} and {} cannot be used: {error}", ca.display(), cert.display(), key.display()),
            "all three must come from one `quorate cert init`; `quorate config show --origin` shows what was used",
        )
    })?;
    credentials.check_validity(wall_clock()).map_err(|error| {
        Failure::new(
            format!("{}: {error}", cert.display()),
            "make a new one with `quorate cert`, and check this machine's clock",
        )
    })?;
    Ok(credentials)
}

/// The seeds whose names can be resolved; the others are named on stderr and left out, unless none is left.
async fn resolvable(seeds: &[Endpoint]) -> Outcome<Vec<String>> {
    let (mut found, mut first, mut jobs) = (Vec::new(), None, JoinSet::new());
    for (place, seed) in seeds.iter().cloned().enumerate() {
        jobs.spawn(async move { (place, resolve_in_time(&seed).await, seed) });
    }
    let mut resolved = jobs.join_all().await;
    resolved.sort_by_key(|(place, ..)| *place);
    for (_, outcome, seed) in resolved {
        match outcome {
            Ok(_) => found.push(seed.to_string()),
            Err(failure) => {
                let _ = first.get_or_insert(failure);
            }
        }
    }
    match first {
        Some(failure) if found.is_empty() => Err(failure),
        Some(failure) => {
            complain(&format!("warning: a seed is left out: {}", failure.message));
            Ok(found)
        }
        None => Ok(found),
    }
}

/// As [`resolve`], of a node that is to be reached, within the time that a name may take.
pub(crate) async fn resolve_in_time(endpoint: &Endpoint) -> Outcome<Vec<SocketAddr>> {
    match tokio::time::timeout(RESOLVE_TIME, resolve(endpoint)).await {
        Ok(Ok(addrs)) => {
            let mut refused = None;
            let reachable = |addr: &SocketAddr| address::check_dial(*addr).map_err(|why| refused = Some(why)).is_ok();
            let addrs: Vec<_> = addrs.into_iter().filter(reachable).collect();
            match refused {
                Some(why) if addrs.is_empty() => {
                    let text = if endpoint.as_addr().is_some() { why } else { format!("{endpoint}: {why}") };
                    Err(Failure::usage(text, "name a node as its own `advertise` does"))
                }
                _ => Ok(addrs),
            }
        }
        Ok(failed) => failed,
        Err(_) => {
            let text = format!("{endpoint} was not resolved within {RESOLVE_TIME:?}");
            Err(Failure { exit: Exit::Unavailable, retryable: true, ..Failure::new(text, "look at the name server") })
        }
    }
}

/// The addresses of an endpoint.
pub(crate) async fn resolve(endpoint: &Endpoint) -> Outcome<Vec<SocketAddr>> {
    if let Some(addr) = endpoint.as_addr() {
        return Ok(vec![addr]);
    }
    let found = tokio::net::lookup_host((endpoint.host(), endpoint.port())).await;
    let why = match found.map(Iterator::collect::<Vec<_>>) {
        Ok(addrs) if !addrs.is_empty() => return Ok(addrs),
        Ok(_) => "it has no address".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure {
        exit: Exit::Unavailable,
        retryable: true,
        ..Failure::new(format!("cannot resolve {endpoint}: {why}"), "check the name, or use an IP address")
    })
}

fn unexpected(reply: &Reply) -> Error {
    let what = match reply {
        Reply::Written(_) => "a write",
        Reply::Found(_) => "a read",
        Reply::Scanned(_) => "a scan",
        Reply::Route(_) => "a route request",
        Reply::Located(_) => "a locate request",
        Reply::Status(_) => "a status request",
        Reply::Layout(_) => "a layout command",
        Reply::Repair(_) => "a repair command",
    };
    Error::Codec { why: format!("a node answered as if it had been asked for {what}; compare the releases") }
}

/// The least time that connecting gets: a handshake is more work than a request, for a busy machine as well.
const CONNECT_TIME_MIN: Duration = Duration::from_secs(2);

/// How long closing the connections may hold up the end of a command.
const CLOSE_TIME: Duration = Duration::from_millis(100);

/// How long a name may take; of several seeds the others are asked meanwhile, and are enough.
const RESOLVE_TIME: Duration = Duration::from_secs(2);

/// The least time that a page of a scan gets.
const SCAN_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// The least time that a layout command gets.
const LAYOUT_TIMEOUT_MIN: Duration = Duration::from_secs(10);
