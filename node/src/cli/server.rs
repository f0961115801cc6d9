//! `server`: one node in the foreground, until a signal ends it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::certificate::left_s;
use quorate_node::config::{Endpoint, LayoutChanges, ServerConfig, ServerFlags};
use quorate_node::node::{Mechanisms, Node, NodeConfig};
use quorate_node::store::check_ours;
use quorate_node::store::room::space_of;
use quorate_node::supervise;
use quorate_transport::tls::{Credentials, Subject, key_is_open};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::args::ServerArgs;
use super::connection::{credentials, read_credentials, resolve};
use super::failure::{Exit, Failure, Outcome};
use super::launch::{Data, Launch};
use super::output::{Output, table};
use super::{block_on, last_words, log, variable, wall_clock};

/// `server`.
pub(crate) fn run(args: ServerArgs, output: &Output) -> Outcome {
    let (check, file) = (args.check, file(args.config.clone()));
    let config = ServerConfig::load(file.as_deref(), flags(args), &variable)?;
    let explain = |failure: Failure| explain(failure, &config);
    if check {
        return block_on(checked(&config, output))?.map_err(explain);
    }
    // Whatever the process makes from here on is for its own user only.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    raise_descriptors();
    log::start(&config.log).map_err(explain)?;
    end_on_panic(output);
    let credentials = own_credentials(&config).map_err(explain)?;
    block_on(serve(config.clone(), credentials, output))?.map_err(explain)
}

/// `config show --server`: what a server would work with.
pub(crate) fn show(named: Option<PathBuf>, origin: bool, output: &Output) -> Outcome {
    let config = ServerConfig::load(file(named).as_deref(), ServerFlags::default(), &variable)?;
    if output.is_json() {
        let values: serde_json::Map<_, _> = config
            .rows()
            .into_iter()
            .map(|(name, value, from)| {
                let value = (value != "-").then_some(value);
                (name.to_owned(), if origin { json!({ "value": value, "origin": from }) } else { json!(value) })
            })
            .collect();
        output.json(&json!({ "schema": "quorate.server-config.v1", "settings": values }))?;
        return Ok(Exit::Done);
    }
    let mut shown = table(if origin { &["SETTING", "VALUE", "ORIGIN"] } else { &["SETTING", "VALUE"] });
    for (name, value, from) in config.rows() {
        shown.add_row(if origin { vec![name.to_owned(), value, from] } else { vec![name.to_owned(), value] });
    }
    output.table(&shown)?;
    Ok(Exit::Done)
}

/// The configuration file: the one that is named, or that of the environment.
fn file(named: Option<PathBuf>) -> Option<PathBuf> {
    named.or_else(|| variable("QUORATE_SERVER_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from))
}

/// `server --check`: files and certificates are right, or this was not reached. Nothing is bound and nothing made, so that it
/// can be asked beside the node that runs.
async fn checked(config: &ServerConfig, output: &Output) -> Outcome {
    check_subject(config, &read_credentials(&config.tls.ca, &config.tls.cert, &config.tls.key)?)?;
    if let Some(mode) = key_is_open(&config.tls.key) {
        let key = config.tls.key.display();
        output.say(&format!(
            "warning: the private key {key} is readable by every user of this machine (permissions {mode:04o}); a start closes it if \
             it can, and is refused if it cannot"
        ));
    }
    for endpoint in config.join.iter().chain([&config.listen, &config.advertise]).chain(&config.http) {
        if let Err(failure) = resolve(endpoint).await {
            output.say(&format!("warning: {}", explain(failure, config).message));
        }
    }
    if let Err(error) = check_ours(&config.data_dir) {
        return Err(Failure::new(
            format!("the data directory cannot be used: {error}"),
            "let `data_dir` name a directory that this user may read and write",
        ));
    }
    if config.data_dir.is_dir() {
        let space = space_of(config.data_dir.clone())().ok();
        if let Some(why) = space.and_then(|space| config.disk_reserve.warning(space.total)) {
            output.say(&format!("warning: {why}"));
        }
    } else {
        output.hint(&format!("{} is not there yet, the first start makes it", config.data_dir.display()));
    }
    if output.is_json() {
        output.json(&json!({ "schema": "quorate.server-check.v1", "ok": true, "node": config.node }))?;
    } else {
        output.line(&format!("ok: the configuration, the keys and the certificates of {} are right; ports, directories and disks are tried by a start", config.node))?;
    }
    Ok(Exit::Done)
}

/// Adds to a failure where those settings came from that it names.
fn explain(failure: Failure, config: &ServerConfig) -> Failure {
    let path = |path: &Path| path.display().to_string();
    // Its own address stands in the list as well, if all nodes share one.
    let others = config.join.iter().filter(|endpoint| **endpoint != config.listen);
    let join = others.map(|endpoint| ("it is", endpoint.to_string(), config.origin("join")));
    let settings = [
        ("the name is", format!("node {}", config.node), config.origin("node")),
        ("the address is", config.listen.to_string(), config.origin("listen")),
        ("`data_dir` is", path(&config.data_dir), config.origin("data_dir")),
        ("the CA is", path(&config.tls.ca), config.origin("tls.ca")),
        ("the certificate is", path(&config.tls.cert), config.origin("tls.cert")),
        ("the key is", path(&config.tls.key), config.origin("tls.key")),
    ];
    let http = config.http.as_ref().map(|http| ("`http` is", http.to_string(), config.origin("http")));
    let log = config.log.file.as_ref().map(|file| ("the log file is", path(&file.path), config.origin("log.file")));
    failure.with_origins(&settings.into_iter().chain(http).chain(log).chain(join).collect::<Vec<_>>())
}

async fn serve(config: ServerConfig, credentials: Credentials, output: &Output) -> Outcome {
    // From here on a signal ends the node cleanly, also while it is still starting.
    let mut ends = Ends::of_server()?;
    // A terminal that goes away says this too, at any time.
    let mut hangups = listen(SignalKind::hangup())?;
    let start = async {
        let own = own_addrs(&config.listen, &config.advertise);
        let (join, own, http) = tokio::join!(resolve_all(&config.join), own, http_addr(config.http.as_ref()));
        let (listen, advertise) = own?;
        let launch = Launch {
            config: NodeConfig {
                node: config.node,
                listen,
                advertise: Some(advertise),
                http: http?,
                join,
                durability: config.durability,
                sync_interval: config.sync_interval,
                mechanisms: Mechanisms::default(),
                anti_entropy: AntiEntropyConfig::default(),
                layout_changes: config.layout_changes == LayoutChanges::Experimental,
                credentials,
            },
            request_memory: config.request_memory,
            data: Data::Directory(config.data_dir.clone(), config.disk_reserve),
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
    let seeking = seek_by_name(&node, &config.join);
    tokio::pin!(seeking);
    loop {
        tokio::select! {
            biased;
            name = ends.wait() => {
                tracing::info!(signal = name, "shutting down");
                break;
            }
            why = node.stopped() => {
                return Err(Failure::new(
                    format!("{} has stopped: {why}", config.node),
                    "acknowledged writes are safe; look at the disk and at the log above before the next start",
                ));
            }
            () = &mut seeking => {}
            _ = hangups.recv() => reload(&config, &node),
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

/// SIGHUP: what was renewed beside the running node is taken up. What cannot be stays as it was.
fn reload(config: &ServerConfig, node: &Node) {
    log::reopen();
    let renewed = own_credentials(config).and_then(|credentials| {
        let until = credentials.not_after();
        let renewed = node.renew(&credentials).map(|()| until);
        renewed.map_err(|error| Failure::new(error.to_string(), "issue a certificate of this node"))
    });
    match renewed {
        Ok(until) => {
            let days = left_s(until, wall_clock()) / 86_400;
            tracing::info!(days, "SIGHUP: the certificate was read anew and is valid for so many days");
        }
        Err(failure) => {
            tracing::error!("SIGHUP: the certificate stays as it was: {}; {}", failure.message, failure.hint)
        }
    }
}

/// The node's certificate and key, by which it must be the node that it is configured to be. A key that others may read is closed to
/// them, if it is this user's.
fn own_credentials(config: &ServerConfig) -> Outcome<Credentials> {
    let key = &config.tls.key;
    if let Some(mode) = key_is_open(key)
        && std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).is_ok()
    {
        tracing::warn!(key = %key.display(),
            "the private key was readable by every user of this machine (permissions {mode:04o}); it is 0600 now. If somebody else may \
             have read it, make this node a new key and certificate");
    }
    let credentials = credentials(&config.tls.ca, &config.tls.cert, key)?;
    check_subject(config, &credentials)?;
    Ok(credentials)
}

/// From here on a panic in a task of a node ends the process at once, with the reason: nobody stands in for a node that lives in part.
pub(crate) fn end_on_panic(output: &Output) {
    // The standard one writes to stderr, and would wait for a reader that is gone or slow.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => tracing::error!("{panic}\n{backtrace}"),
            _ => tracing::error!("{panic}"),
        }
    }));
    let output = *output;
    supervise::on_panic(move |why| {
        let failure = Failure::new(
            format!("this process cannot go on: {why}"),
            "acknowledged writes are safe; start it again, and report this with the log above",
        );
        last_words(move || output.failure(&failure));
        std::process::exit(Exit::Failed.code().into());
    });
}

/// As many descriptors as this user may have: the limit that a shell begins with is for programs that use `select`.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Without it there are as many as before.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

fn listen(kind: SignalKind) -> Outcome<Signal> {
    signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}"), "try again"))
}

/// The signals that end a process in an orderly way.
pub(crate) struct Ends {
    interrupt: Signal,
    terminate: Signal,
    /// Nothing if it means something else to the process, or was to be ignored.
    hangup: Option<Signal>,
}

impl Ends {
    /// Those of a command: a terminal that is closed ends it as well, unless it was started with `nohup`.
    pub(crate) fn new() -> Outcome<Self> {
        let hangup = (!hangup_is_ignored()).then(|| listen(SignalKind::hangup())).transpose()?;
        Ok(Self { hangup, ..Self::of_server()? })
    }

    /// Those of a server, to which SIGHUP says something else.
    fn of_server() -> Outcome<Self> {
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: None,
        })
    }

    /// The name of the next one.
    pub(crate) async fn wait(&mut self) -> &'static str {
        let Self { interrupt, terminate, hangup } = self;
        tokio::select! {
            biased;
            _ = interrupt.recv() => "interrupt",
            _ = terminate.recv() => "SIGTERM",
            Some(()) = async { hangup.as_mut()?.recv().await } => "SIGHUP",
        }
    }
}

/// Whether whoever started this process wants it to outlive the terminal. Where the system does not tell, it does not.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
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

/// Where a node listens, and where others find it. Of a name with several addresses the node takes the first that this machine has;
/// others are told one that its socket can be reached at, which may be that of a machine in between.
async fn own_addrs(listen: &Endpoint, advertise: &Endpoint) -> Outcome<(SocketAddr, SocketAddr)> {
    let hint = "name an address of this machine, or listen on 0.0.0.0 and set `advertise` to where others reach it";
    let own = own_addr(listen, hint).await?;
    if listen == advertise {
        return Ok((own, own));
    }
    let found = patiently_resolved(advertise).await?;
    let alike = found.iter().find(|addr| addr.is_ipv4() == own.is_ipv4());
    Ok((own, alike.or(found.first()).copied().unwrap_or(own)))
}

/// Where health and metrics are shown.
async fn http_addr(http: Option<&Endpoint>) -> Outcome<Option<SocketAddr>> {
    match http {
        None => Ok(None),
        Some(endpoint) => own_addr(endpoint, "let `http` name an address of this machine").await.map(Some),
    }
}

/// The first address of a name that this machine has.
async fn own_addr(endpoint: &Endpoint, hint: &str) -> Outcome<SocketAddr> {
    // An address that is written down is taken as it is; binding it says what is wrong with it.
    if let Some(addr) = endpoint.as_addr() {
        return Ok(addr);
    }
    let here = |addr: &&SocketAddr| std::net::UdpSocket::bind((addr.ip(), 0)).is_ok();
    let found = patiently_resolved(endpoint).await?;
    found.iter().find(here).copied().ok_or_else(|| {
        let found: Vec<String> = found.iter().map(|addr| addr.ip().to_string()).collect();
        Failure::new(
            format!("cannot listen on {endpoint}: this machine has not the address {}", found.join(" or ")),
            hint,
        )
    })
}

/// A node's own name may become resolvable a little after its machine has started.
async fn patiently_resolved(endpoint: &Endpoint) -> Outcome<Vec<SocketAddr>> {
    let deadline = Instant::now() + OWN_NAME_TIME;
    loop {
        match resolve(endpoint).await {
            Err(failure) if Instant::now() < deadline => {
                tracing::warn!("{}; it is tried again", failure.message);
                sleep(RESOLVE_PAUSE).await;
            }
            other => return other,
        }
    }
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
        layout_changes: args.layout_changes,
        request_memory: args.request_memory_mib,
        http: args.http,
        ca: args.ca,
        cert: args.cert,
        key: args.key,
        log_format: args.log_format,
        log_level: args.log_level,
        log_file: args.log_file,
        log_file_size: args.log_file_size,
        log_files: args.log_files,
        disk_reserve: args.disk_reserve,
    }
}

/// How long a node may take to hand over what is under way and to close its store.
const SHUTDOWN_TIME: Duration = Duration::from_secs(10);

/// How long the start waits for the node's own name.
const OWN_NAME_TIME: Duration = Duration::from_secs(30);

/// How long the start waits for names of others; those that take longer are found later.
const RESOLVE_TIME: Duration = Duration::from_secs(2);
/// When names are resolved again for the first time; doubled each time.
const RESOLVE_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two times.
const RESOLVE_PAUSE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, Write as _};
    use std::process::Command;

    use quorate_node::env::bind_system_tcp;
    use quorate_node::http;
    use quorate_node::metrics::Metrics;

    use super::*;
    use crate::cli::args::OutputFormat;

    const CHILD: &str = "QUORATE_TEST_PANICS";

    /// A terminal that is closed: this test is run once more, in a process of its own, which says what has ended it.
    #[test]
    fn a_hangup_ends_a_command_in_an_orderly_way_unless_it_was_to_be_ignored() {
        const ENDS: &str = "QUORATE_TEST_ENDS";
        if std::env::var_os(ENDS).is_some() {
            let ended = async {
                let mut ends = Ends::new().expect("there are signals");
                let say = |text: &str| writeln!(std::io::stdout(), "{text}").expect("it is read");
                say("it listens");
                let name = ends.wait().await;
                say(&format!("ended by {name}"));
            };
            block_on(ended).expect("there are threads");
            return;
        }
        let name = "cli::server::tests::a_hangup_ends_a_command_in_an_orderly_way_unless_it_was_to_be_ignored";
        // Not the shell's `trap`, which cannot undo what these tests may have been started with: `nohup`.
        for (before, signals, wanted) in [
            ("--default-signal=HUP", &["-HUP"][..], "ended by SIGHUP"),
            ("--ignore-signal=HUP", &["-HUP", "-TERM"], "ended by SIGTERM"),
        ] {
            let mut child = Command::new("env")
                .arg(before)
                .arg(std::env::current_exe().expect("a process knows its file"))
                .args(["--exact", name, "--nocapture"])
                .env(ENDS, "1")
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("env runs");
            let mut lines = std::io::BufReader::new(child.stdout.take().expect("it is piped")).lines();
            let mut said = |wanted: &str| lines.any(|line| line.is_ok_and(|line| line.contains(wanted)));
            assert!(said("it listens"), "{before}");
            for signal in signals {
                let sent = Command::new("kill").args([signal, &*child.id().to_string()]).status().expect("kill runs");
                assert!(sent.success());
            }
            assert!(said(wanted), "{before}: {wanted}");
            assert!(child.wait().expect("it has ended").success());
        }
    }

    /// What a process does of which a task panics: this test is run once more, in a process of its own.
    #[cfg_attr(not(debug_assertions), ignore = "the fault point is not compiled in")]
    #[test]
    fn a_panic_in_a_task_ends_the_process_at_once_with_its_reason() {
        if std::env::var_os(CHILD).is_some() {
            end_on_panic(&Output::new(OutputFormat::Text));
            supervise::panic_next("http");
            let forever = async {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let _port = http::Port::open(&bind_system_tcp(), any, Metrics::new()).await.expect("binds");
                std::future::pending::<()>().await;
            };
            block_on(forever).expect("there are threads");
        }
        let child = || {
            let mut child = Command::new(std::env::current_exe().expect("a process knows its file"));
            let name = "cli::server::tests::a_panic_in_a_task_ends_the_process_at_once_with_its_reason";
            child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").stdout(std::process::Stdio::null());
            child
        };
        let ended = child().output().expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("this process cannot go on: \"http\" has panicked: on purpose"), "{said}");

        // Nobody reads what it says, and the pipe is full.
        let (reader, mut writer) = std::io::pipe().expect("there are descriptors");
        writer.write_all(&[b'x'; 64 << 10]).expect("as much as a pipe takes");
        let ended = child().stderr(writer).status().expect("it runs");
        assert_eq!(ended.code(), Some(1));
        drop(reader);
    }
}
