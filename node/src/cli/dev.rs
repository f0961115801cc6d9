//! `dev`: a cluster in one process, and the commands that are said to it from another terminal.
//!
//! ```text
//!   quorate dev                        $QUORATE_DEV_DIR
//!     runtime of n1 -- Node              lock            held as long as the process lives
//!     runtime of n2 -- Node              client.toml     how the other commands find the cluster
//!     runtime of n3 -- Node              control.sock    <-- quorate dev kill | start | status | stop
//!     control                            ca.pem client.pem client.key
//! ```
//!
//! Each node has a tokio runtime of its own, which `kill` drops in the middle of whatever it does: the node gets no chance
//! to say goodbye to its peers, as in a crash of its process. What a node keeps in memory as its "disk" lives outside of that
//! runtime, and is there when the node is started again. (With `--persist` the store's files are closed by the process that
//! goes on, so that this is no test of a loss of power.)

mod control;
mod home;
mod nodes;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use quorate_node::anti_entropy::AntiEntropyConfig;
use quorate_node::cert::{Ca, Issued, VALIDITY};
use quorate_node::config::{LogConfig, LogFormat};
use quorate_node::node::{Mechanisms, NodeConfig};
use quorate_node::request_memory::RequestMemory;
use quorate_node::store::{DiskReserve, Durability};
use quorate_transport::tls::Credentials;
use quorate_wire::LayoutCommand;
use quorate_wire::ids::{LayoutVersion, NodeId};
use quorate_wire::random::Random;
use tokio::time::{Instant, sleep};

use self::control::{Answer, Call, Request};
use self::home::{Home, Persisted};
use self::nodes::Nodes;
use super::args::{DevArgs, DevCommand, OutputFormat};
use super::connection::Cluster;
use super::failure::{Exit, Failure, Outcome};
use super::launch::{Data, Launch, MemoryDisk};
use super::output::{Output, rendered, table};
use super::server::{self, Ends};
use super::{block_on, log, variable, wall_clock};

/// `dev`, with or without a command to one that runs.
pub(crate) fn run(args: DevArgs) -> (Output, Outcome) {
    match args.command {
        None => {
            let output = Output::new(OutputFormat::Text);
            (output, foreground(&args, &output))
        }
        Some(DevCommand::Status { output }) => {
            let output = Output::new(output);
            (output, tell(&Request::Status, &output))
        }
        Some(command) => {
            let output = Output::new(OutputFormat::Text);
            let request = match command {
                DevCommand::Kill { node } => Request::Kill { node },
                DevCommand::Start { node } => Request::Start { node },
                DevCommand::Status { .. } => Request::Status,
                DevCommand::Stop => Request::Stop,
            };
            (output, tell(&request, &output))
        }
    }
}

/// The client profile of a development cluster that runs now.
pub(crate) fn running_profile() -> Option<PathBuf> {
    let dir = home::directory().ok()?;
    let profile = dir.join(home::PROFILE);
    (profile.exists() && control::is_alive(&dir)).then_some(profile)
}

/// Says something to the running cluster.
fn tell(request: &Request, output: &Output) -> Outcome {
    let answer = control::ask(&home::directory()?, request)?;
    match answer {
        Answer::Done { said } => output.hint(&said),
        Answer::Failed { error, hint } => return Err(Failure::new(error, hint)),
        Answer::Nodes { nodes } if output.is_json() => {
            output.json(&serde_json::json!({ "schema": "quorate.dev.v1", "nodes": nodes }))?;
        }
        Answer::Nodes { nodes } => {
            let mut shown = table(&["NODE", "ADDRESS", "HTTP", "STATE"]);
            for node in nodes {
                let http = node.http.map_or_else(|| "-".to_owned(), |addr| format!("http://{addr}"));
                let state = if node.running { "running" } else { "killed" };
                shown.add_row([node.node.to_string(), node.addr.to_string(), http, state.to_owned()]);
            }
            output.table(&shown)?;
        }
    }
    Ok(Exit::Done)
}

/// Runs the cluster until somebody ends it.
fn foreground(args: &DevArgs, output: &Output) -> Outcome {
    // Keys and data are its user's alone, from the first moment: `--persist` keeps them.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let home = Home::claim(home::directory()?)?;
    let persisted = args.persist.as_deref().map(|dir| Persisted::open(dir, args)).transpose()?;
    let plan = Plan::new(args, persisted.as_ref())?;
    let level = variable("QUORATE_LOG_LEVEL").unwrap_or_else(|| LOG_LEVEL_DEFAULT.to_owned());
    let level =
        level.parse().map_err(|error| Failure::usage(format!("QUORATE_LOG_LEVEL: {error}"), "correct or unset it"))?;
    log::start(&LogConfig { format: LogFormat::Pretty, level, file: None })?;
    server::end_on_panic(output);
    home.write_client(&plan.client, &plan.seeds())?;
    let Ended { nodes, outcome, stopped_by } = block_on(serve(&plan, &home, output))?;
    // The runtimes block while they end, which nothing asynchronous may do.
    nodes.end();
    drop(home);
    // Whoever has asked for it goes on only now: ports and files are free.
    drop(stopped_by);
    outcome
}

/// What is left of a cluster that ends.
struct Ended {
    /// Handed back, whatever happens, because only blocking code may end their runtimes.
    nodes: Nodes,
    outcome: Outcome,
    /// Who has asked for it, if that was a command.
    stopped_by: Option<Call>,
}

async fn serve(plan: &Plan, home: &Home, output: &Output) -> Ended {
    let mut nodes = Nodes::new(plan.launches());
    let driven = drive(plan, home, &mut nodes, output).await;
    let left = nodes.shutdown().await;
    let (mut stopped_by, mut outcome) = match driven {
        Ok(stopped_by) => (stopped_by, Ok(Exit::Done)),
        Err(failure) => (None, Err(failure)),
    };
    let why: Vec<String> = left.iter().map(|(node, why)| format!("{node}: {why}")).collect();
    let answer = match why.is_empty() {
        true => Answer::Done { said: "the cluster has ended".into() },
        false => {
            let error = format!("not every node has ended in good order: {}", why.join("; "));
            let hint = "what they had acknowledged as synced is safe; the process ends all the same";
            if outcome.is_ok() {
                outcome = Err(Failure::new(&error, hint));
            }
            Answer::Failed { error, hint: hint.into() }
        }
    };
    if let Some(call) = &mut stopped_by {
        call.answer(&answer).await;
    }
    Ended { nodes, outcome, stopped_by }
}

/// Runs until something ends the cluster; the command that did, if one did.
async fn drive(plan: &Plan, home: &Home, nodes: &mut Nodes, output: &Output) -> Outcome<Option<Call>> {
    let mut ends = Ends::new()?;
    let control = home.listen()?;
    tokio::select! {
        biased;
        _ = ends.wait() => return Ok(None),
        started = start(plan, nodes) => started?,
    }
    // A reader of stdout that goes away must not take the cluster with it.
    let _ = output.line(&plan.banner(nodes));
    loop {
        tokio::select! {
            biased;
            _ = ends.wait() => return Ok(None),
            (node, why) = nodes.next_stopped() => {
                output.say(&format!("{node} has stopped: {why}\nhint: quorate dev start {node}"));
            }
            mut call = control.next() => {
                if *call.request() == Request::Stop {
                    return Ok(Some(call));
                }
                let answer = nodes.carry_out(call.request()).await;
                call.answer(&answer).await;
            }
        }
    }
}

/// Starts all nodes, and gives the cluster its first layout if it has none.
async fn start(plan: &Plan, nodes: &mut Nodes) -> Outcome<()> {
    for node in plan.names() {
        nodes.start(node, Duration::ZERO).await?;
    }
    let credentials = plan.client_credentials()?;
    let cluster =
        Cluster::open(plan.seeds().iter().map(ToString::to_string).collect(), credentials, REQUEST_TIME).await?;
    let first = plan.addr(1);
    let deadline = Instant::now() + LAYOUT_TIME;
    loop {
        match lay_out(plan, &cluster, first).await {
            Ok(()) => break,
            Err(failure) if Instant::now() >= deadline => {
                return Err(Failure { message: format!("the cluster got no layout: {}", failure.message), ..failure });
            }
            // The nodes have only just met, or are meeting now.
            Err(_) => sleep(LAYOUT_PAUSE).await,
        }
    }
    for number in 1..=plan.count {
        while cluster.status_at(plan.addr(number)).await.map_or(true, |status| status.not_serving.is_some()) {
            if Instant::now() >= deadline {
                return Err(Failure::new(
                    format!("{} does not serve", name(number)),
                    "look at its log: QUORATE_LOG_LEVEL=info quorate dev",
                ));
            }
            sleep(LAYOUT_PAUSE).await;
        }
    }
    Ok(())
}

/// Makes all nodes members. Harmless when it is repeated.
async fn lay_out(plan: &Plan, cluster: &Cluster, at: SocketAddr) -> Outcome<()> {
    if cluster.layout_at(at, LayoutCommand::Show).await?.current.version > LayoutVersion::NONE {
        return Ok(());
    }
    let n = plan.count.min(REPLICAS_MAX);
    cluster.layout_at(at, LayoutCommand::StageSettings { n: Some(n), partitions: None, r: None, w: None }).await?;
    for number in 1..=plan.count {
        let join = LayoutCommand::StageJoin {
            node: name(number),
            addr: plan.addr(number),
            zone: "default".to_owned(),
            weight: 1,
        };
        cluster.layout_at(at, join).await?;
    }
    cluster.layout_at(at, LayoutCommand::Apply { version: LayoutVersion(1) }).await?;
    Ok(())
}

/// What the cluster is made of.
struct Plan {
    count: u8,
    base_port: u16,
    http: bool,
    persist: Option<PathBuf>,
    client: Issued,
    /// By number, from 1 on.
    nodes: Vec<Credentials>,
}

impl Plan {
    fn new(args: &DevArgs, persisted: Option<&Persisted>) -> Outcome<Self> {
        let impossible = |error: &dyn std::fmt::Display| {
            Failure::new(format!("cannot make certificates: {error}"), "check this machine's clock")
        };
        let random = Random::from_os();
        let now = wall_clock();
        // Without --persist the authority's key is never written anywhere.
        let fresh;
        let ca: &Ca = match persisted {
            Some(persisted) => persisted.ca(),
            None => {
                fresh = home::new_ca(&random)?;
                &fresh
            }
        };
        let count = persisted.map_or_else(|| args.nodes.unwrap_or(NODES_DEFAULT), Persisted::nodes);
        let mut nodes = Vec::new();
        for number in 1..=count {
            let issued = ca.issue_node(&random, name(number), now, VALIDITY).map_err(|error| impossible(&error))?;
            nodes.push(parse(&issued).map_err(|error| impossible(&error))?);
        }
        Ok(Self {
            count,
            base_port: persisted.map_or_else(|| args.base_port.unwrap_or(BASE_PORT_DEFAULT), Persisted::base_port),
            http: args.http,
            persist: persisted.map(|persisted| persisted.dir().to_owned()),
            client: ca.issue_client(&random, "dev", true, now, VALIDITY).map_err(|error| impossible(&error))?,
            nodes,
        })
    }

    fn names(&self) -> impl Iterator<Item = NodeId> {
        (1..=self.count).map(name)
    }

    fn addr(&self, number: u8) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + u16::from(number)).into()
    }

    fn seeds(&self) -> Vec<SocketAddr> {
        (1..=self.count).map(|number| self.addr(number)).collect()
    }

    fn client_credentials(&self) -> Outcome<Credentials> {
        parse(&self.client).map_err(|error| {
            Failure::new(format!("cannot use the new certificate: {error}"), "check this machine's clock")
        })
    }

    fn launches(&self) -> Vec<Launch> {
        let launch = |(number, credentials): (u8, &Credentials)| Launch {
            config: NodeConfig {
                node: name(number),
                listen: self.addr(number),
                advertise: None,
                http: self.http.then(|| self.addr(number)),
                join: self.seeds(),
                durability: Durability::Group,
                sync_interval: SYNC_INTERVAL,
                mechanisms: Mechanisms::default(),
                anti_entropy: AntiEntropyConfig::default(),
                // Nothing here is data that matters.
                layout_changes: true,
                credentials: credentials.clone(),
            },
            request_memory: RequestMemory::default(),
            data: match &self.persist {
                None => Data::Memory(MemoryDisk::default()),
                Some(dir) => Data::Directory(dir.join(name(number).as_str()), DiskReserve::default()),
            },
        };
        (1..=self.count).zip(&self.nodes).map(launch).collect()
    }

    /// What the person at the terminal reads first.
    fn banner(&self, nodes: &Nodes) -> String {
        let mut shown = table(&[]);
        for node in nodes.views() {
            let http = node.http.map_or_else(String::new, |addr| format!("http://{addr}/metrics"));
            shown.add_row([format!("  {}", node.node), node.addr.to_string(), http]);
        }
        let data = match &self.persist {
            None => "data in memory, gone at the end".to_owned(),
            Some(dir) => format!("data in {}", dir.display()),
        };
        let victim = if self.count > 1 { "n2" } else { "n1" };
        let tries = [
            ("quorate put greeting hello", ""),
            ("quorate get greeting --explain", "who answered, and when"),
            (&format!("quorate dev kill {victim}"), "a node dies"),
            (
                "quorate get greeting",
                if self.count > 2 { "still answers" } else { "may not answer: too few nodes are left" },
            ),
            (&format!("quorate dev start {victim}"), "and comes back"),
            ("quorate status", ""),
        ];
        let mut text = format!(
            "quorate: {} ready, N={}, {data}\n{}\n\nIn another terminal:\n",
            if self.count == 1 { "one node is".to_owned() } else { format!("{} nodes are", self.count) },
            self.count.min(REPLICAS_MAX),
            rendered(&shown),
        );
        for (command, why) in tries {
            text.push_str(format!("  {command:<34}{why}").trim_end());
            text.push('\n');
        }
        text.push_str("\nCtrl-C ends the cluster.");
        if let Some(other) = other_configuration() {
            text.push_str(&format!(
                "\n\n{other} names another cluster, and counts before this one. Commands for this one:\n  quorate get greeting --config {}",
                home::directory().map_or_else(|_| home::PROFILE.into(), |dir| dir.join(home::PROFILE)).display()
            ));
        }
        text
    }
}

/// What would lead the other commands somewhere else.
fn other_configuration() -> Option<String> {
    let named = ["QUORATE_SEEDS", "QUORATE_CONFIG", "QUORATE_CA"]
        .into_iter()
        .find(|name| variable(name).is_some_and(|value| !value.is_empty()));
    named.map(str::to_owned).or_else(|| {
        let file = super::user_file().filter(|file| file.exists())?;
        Some(file.display().to_string())
    })
}

fn parse(issued: &Issued) -> Result<Credentials, quorate_transport::tls::TlsError> {
    Credentials::from_pem(issued.ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes())
}

/// `n1`, `n2`, ..
fn name(number: u8) -> NodeId {
    NodeId::new(&format!("n{number}")).expect("a letter and digits are a legal name")
}

const NODES_DEFAULT: u8 = 3;
const BASE_PORT_DEFAULT: u16 = 7400;

/// Replicas of each record, if there are as many nodes.
const REPLICAS_MAX: u8 = 3;

/// A log of every connection would bury the banner.
const LOG_LEVEL_DEFAULT: &str = "warn";

/// Only `interval` looks at it, which `dev` never uses.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// How long one request of the start may take.
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// How long nodes may take to meet and to agree on a layout, and how often that is tried.
const LAYOUT_TIME: Duration = Duration::from_secs(30);
/// See [`LAYOUT_TIME`].
const LAYOUT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn plan(line: &str) -> Plan {
        let Command::Dev(args) = Cli::try_parse_from(line.split(' ')).expect("legal").command else { panic!("dev") };
        Plan::new(&args, None).expect("possible")
    }

    #[test]
    fn nodes_have_fixed_names_and_ports() {
        let plan = plan("quorate dev -n 2 --base-port 9000 --http");
        let configs = plan.launches();
        assert_eq!(configs.iter().map(|config| config.node().to_string()).collect::<Vec<_>>(), ["n1", "n2"]);
        assert_eq!(configs[1].config.listen, "127.0.0.1:9002".parse().expect("an address"));
        assert_eq!(configs[1].config.http, Some(configs[1].config.listen), "UDP and TCP ports are different things");
        assert_eq!(configs[0].config.join, plan.seeds());
    }

    #[test]
    fn the_banner_says_what_to_type_next() {
        let plan = plan("quorate dev");
        let banner = plan.banner(&Nodes::new(plan.launches()));
        for wanted in [
            "3 nodes are ready, N=3, data in memory",
            "127.0.0.1:7403",
            "quorate put greeting hello",
            "quorate dev kill n2",
            "Ctrl-C",
        ] {
            assert!(banner.contains(wanted), "{wanted}: {banner}");
        }
    }

    #[test]
    fn the_client_may_change_the_layout() {
        use quorate_transport::tls::Subject;
        let credentials = plan("quorate dev -n 1").client_credentials().expect("usable");
        assert!(matches!(credentials.subject(), Subject::Client { admin: true, .. }));
    }
}
