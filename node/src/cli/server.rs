//! `server`: one node in the foreground, until a signal ends it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quorate_client::tls::{Credentials, Subject};
use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::config::{Endpoint, ServerConfig, ServerFlags};
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::args::ServerArgs;
use super::connection::{credentials, resolve};
use super::failure::{Exit, Failure, Outcome};
use super::launch::{Data, Launch};
use super::output::Output;
use super::{block_on, log, variable};

/// `server`.
pub(crate) fn run(args: ServerArgs, output: &Output) -> Outcome {
    let file = args
        .config
        .clone()
        .or_else(|| variable("QUORATE_SERVER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    let config = ServerConfig::load(file.as_deref(), flags(args), &variable)?;
    let credentials = credentials(&config.tls.ca, &config.tls.cert, &config.tls.key)?;
    check_subject(&config, &credentials)?;
    log::start(&config.log);
    block_on(serve(config, credentials, output))?
}

async fn serve(config: ServerConfig, credentials: Credentials, output: &Output) -> Outcome {
    // From here on a signal ends the node cleanly, also while it is still starting.
    let mut ends = Ends::new()?;
    let start = async {
        let join = resolve_all(&config.join).await;
        let launch = Launch {
            config: NodeConfig {
                node: config.node,
                listen: config.listen,
                advertise: Some(config.advertise),
                join,
                durability: config.durability,
                sync_interval: config.sync_interval,
                mechanisms: Mechanisms::default(),
                anti_entropy: AntiEntropyConfig::default(),
                credentials,
            },
            http: config.http,
            request_memory: config.request_memory,
            data: Data::Directory(config.data_dir.clone()),
        };
        launch.start().await
    };
    let node = tokio::select! {
        biased;
        name = ends.wait() => {
            tracing::info!(signal = name, "ended before the start was complete");
            return Ok(Exit::Done);
        }
        node = start => node?,
    };
    tracing::info!(node = %node.id(), addr = %node.addr(), advertise = %config.advertise, data_dir = %config.data_dir.display(), "serving");
    tokio::select! {
        biased;
        name = ends.wait() => tracing::info!(signal = name, "shutting down"),
        () = seek_by_name(&node, &config.join) => {}
        why = node.stopped() => {
            return Err(Failure::new(
                format!("{} has stopped: {why}", config.node),
                "acknowledged writes are safe; look at the disk and at the log above before the next start",
            ));
        }
    }
    tokio::select! {
        biased;
        // Whoever asks twice does not want to wait.
        name = ends.wait() => output.say(&format!("a second {name}: ended without waiting")),
        shut_down = node.shutdown(SHUTDOWN_TIME) => match shut_down {
            Ok(()) => tracing::info!("shut down"),
            Err(error) => {
                return Err(Failure::new(
                    format!("the last sync failed: {error}"),
                    "what was acknowledged as synced is safe; look at the disk before the next start",
                ));
            }
        },
    }
    Ok(Exit::Done)
}

/// The signals that end a process in an orderly way.
pub(crate) struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    pub(crate) fn new() -> Outcome<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}"), "try again"))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// The name of the next one.
    pub(crate) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => "interrupt",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// The certificate decides who a node is; a configuration that says otherwise is a mix-up of files.
fn check_subject(config: &ServerConfig, credentials: &Credentials) -> Outcome<()> {
    let is = match credentials.subject() {
        Subject::Node { node, .. } if *node == config.node => return Ok(()),
        Subject::Node { node, .. } => format!("node {node}"),
        Subject::Client { name, .. } => format!("client {name}"),
    };
    Err(Failure::usage(
        format!("{} is the certificate of {is}, not of node {}", config.tls.cert.display(), config.node),
        format!("use the files that `quorate cert node {}` made", config.node),
    ))
}

/// The addresses of a `join` list. A name that cannot be resolved now is left out; see [`seek_by_name`].
async fn resolve_all(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let mut names = JoinSet::new();
    for (place, endpoint) in endpoints.iter().cloned().enumerate() {
        names.spawn(async move {
            let found = timeout(RESOLVE_TIME, resolve(&endpoint)).await;
            let why = match found {
                Ok(Ok(addrs)) => return (place, addrs),
                Ok(Err(failure)) => failure.message,
                Err(_) => format!("{endpoint} was not resolved within {RESOLVE_TIME:?}"),
            };
            tracing::warn!("a `join` address is left out for now: {why}");
            (place, Vec::new())
        });
    }
    let mut found = names.join_all().await;
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().flat_map(|(_, addrs)| addrs).collect()
}

/// Resolves the names of a `join` list again and again: they may become resolvable later, and mean other addresses one day.
async fn seek_by_name(node: &Node, endpoints: &[Endpoint]) {
    let names: Vec<Endpoint> = endpoints.iter().filter(|endpoint| endpoint.as_addr().is_none()).cloned().collect();
    let mut pause = RESOLVE_PAUSE;
    while !names.is_empty() {
        sleep(pause).await;
        for name in &names {
            if let Ok(Ok(addrs)) = timeout(RESOLVE_TIME, resolve(name)).await {
                for addr in addrs {
                    node.seek(addr).await;
                }
            }
        }
        pause = (pause * 2).min(RESOLVE_PAUSE_MAX);
    }
    std::future::pending().await
}

fn flags(args: ServerArgs) -> ServerFlags {
    ServerFlags {
        node: args.node,
        listen: args.listen,
        advertise: args.advertise,
        join: args.join,
        data_dir: args.data_dir,
        durability: args.durability,
        sync_interval: args.sync_interval,
        request_memory: args.request_memory_mib,
        http: args.http,
        ca: args.ca,
        cert: args.cert,
        key: args.key,
        log_format: args.log_format,
        log_level: args.log_level,
    }
}

/// How long a node may take to hand over what is under way and to close its store.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);

/// How long the start waits for names; those that take longer are found later.
const RESOLVE_TIME: Duration = Duration::from_secs(2);
/// When names are resolved again for the first time; doubled each time.
const RESOLVE_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two times.
const RESOLVE_PAUSE_MAX: Duration = Duration::from_secs(60);
