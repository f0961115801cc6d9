//! The command line: every command, its flags, and the words that explain them.
//!
//! What a flag means is parsed here (`--r 0` never gets further); where a value comes from when its flag is absent is
//! decided in [`super::settings`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use quorate_core::layout::ZONE_LEN_MAX;
use quorate_node::config::{
    ByteSize, DurabilityName, Endpoint, FileCount, LayoutChanges, LogFilter, LogFormat, Mebibytes, Time,
};
use quorate_node::store::DiskReserve;
use quorate_wire::Quorum;
use quorate_wire::ids::NodeId;

use super::key::{KeyArgs, KeyEncoding};

/// Parses the whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "quorate",
    version,
    about = "A leaderless key-value cluster that is always writable and never lies about an answer.",
    help_template = TOP_HELP,
    max_term_width = 100,
    arg_required_else_help = true,
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Parses the arguments of a process, its name first.
    pub(crate) fn parse_args(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut command = Self::definition();
        let cli =
            Self::from_arg_matches(&command.try_get_matches_from_mut(args)?).map_err(|e| e.format(&mut command))?;
        let (name, unused) = cli.unused();
        match unused {
            None => Ok(cli),
            Some(flag) => {
                let why =
                    format!("{flag} says nothing to `quorate {name}`, which does not connect to a cluster as a client");
                Err(command.error(ErrorKind::ArgumentConflict, why))
            }
        }
    }

    /// The whole command line. The options of all commands are global: they may stand before or after the command. Where a
    /// command has no use for them its help does not show them.
    pub(crate) fn definition() -> clap::Command {
        fn hide(command: clap::Command, globals: &[Arg]) -> clap::Command {
            let absent = |arg: &&Arg| command.get_arguments().all(|other| other.get_id() != arg.get_id());
            let hidden: Vec<Arg> =
                globals.iter().filter(absent).map(|arg| arg.clone().global(false).hide(true)).collect();
            let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
            let command = command.args(hidden);
            names.into_iter().fold(command, |command, name| command.mut_subcommand(name, |sub| hide(sub, globals)))
        }
        let cli = Self::command();
        let globals: Vec<Arg> = cli.get_arguments().filter(|arg| arg.is_global_set()).cloned().collect();
        let but_output: Vec<Arg> = globals.iter().filter(|arg| arg.get_id() != "output").cloned().collect();
        let cli = cli
            .mut_subcommand("server", |sub| hide(sub, &but_output))
            .mut_subcommand("cert", |sub| hide(sub, &but_output));
        cli.mut_subcommand("dev", |sub| hide(sub, &globals)).mut_subcommand("completions", |sub| hide(sub, &globals))
    }

    /// The command, and a global option that it has no use for, if one was given.
    fn unused(&self) -> (&'static str, Option<&'static str>) {
        let Common { seeds, ca, cert, key, timeout, config, output: _ } = &self.common;
        let of_clients = [(!seeds.is_empty(), "--seeds"), (timeout.is_some(), "--timeout")];
        let files = [
            (ca.is_some(), "--ca"),
            (cert.is_some(), "--cert"),
            (key.is_some(), "--key"),
            (config.is_some(), "--config"),
        ];
        let given = |flags: &[(bool, &'static str)]| flags.iter().find(|(given, _)| *given).map(|(_, flag)| *flag);
        match &self.command {
            // These files it has itself.
            Command::Server(_) => ("server", given(&of_clients)),
            Command::Cert(_) => ("cert", given(&of_clients).or(given(&files))),
            Command::Dev(_) => ("dev", given(&of_clients).or(given(&files))),
            Command::Completions(_) => ("completions", given(&of_clients).or(given(&files))),
            _ => ("", None),
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Dev(DevArgs),
    Put(PutArgs),
    Get(GetArgs),
    Del(DelArgs),
    Import(ImportArgs),
    Export(ExportArgs),
    Keys(KeysArgs),
    Status(StatusArgs),
    #[command(subcommand)]
    Node(NodeCommand),
    Locate(LocateArgs),
    Hints(HintsArgs),
    #[command(subcommand)]
    Check(CheckCommand),
    #[command(subcommand)]
    Layout(LayoutCommand),
    Transfers(TransfersArgs),
    #[command(subcommand)]
    Repair(RepairCommand),
    Server(Box<ServerArgs>),
    #[command(subcommand)]
    Cert(CertCommand),
    Bench(Box<BenchArgs>),
    #[command(subcommand)]
    Config(ConfigCommand),
    Completions(CompletionsArgs),
}

/// How to find the cluster, how long to wait, and how to print.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Connection and output")]
pub(crate) struct Common {
    /// Nodes to ask first, comma separated [env: QUORATE_SEEDS]
    #[arg(long, global = true, value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) seeds: Vec<Endpoint>,
    /// The cluster's CA certificate, PEM [env: QUORATE_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// This client's certificate, PEM [env: QUORATE_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of --cert, PEM [env: QUORATE_KEY]
    #[arg(id = "tls-key", long = "key", global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Give up on a request after this time: 500ms, 2s, 1m [env: QUORATE_TIMEOUT] [default: 1s]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_timeout)]
    pub(crate) timeout: Option<Duration>,
    /// A client configuration file to use before the user's own [env: QUORATE_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// `text` for people, `json` for programs [env: QUORATE_OUTPUT] [default: text]
    #[arg(short, long, global = true, value_name = "FORMAT")]
    pub(crate) output: Option<OutputFormat>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// Tables and raw values.
    Text,
    /// One JSON object with a `schema` field.
    Json,
}

/// How many replicas a read needs.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct ReadQuorum {
    /// Replicas that must answer a read: one, majority, all or a number [env: QUORATE_R] [default: majority]
    #[arg(long, value_name = "R")]
    pub(crate) r: Option<Quorum>,
}

/// How many replicas a write needs.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct WriteQuorum {
    /// Replicas that must hold a write: one, majority, all or a number [env: QUORATE_W] [default: majority]
    #[arg(long, value_name = "W")]
    pub(crate) w: Option<Quorum>,
}

/// Read the value of a key
///
/// Prints the exact bytes of the value; a newline is added only on a terminal. When concurrent writes have left several
/// values (siblings), all of them are listed and the exit code is 6.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate get greeting
  quorate get greeting --explain            which replicas answered, and when
  quorate get photo > photo.jpg             exact bytes
  quorate get cart -o json | jq .context    what a later put or del names as its cause
  quorate get cart --sibling 2 > theirs     one of several values, exact bytes
  quorate get --key-encoding hex 00ff       a key that is no text

Exit codes: 0 found, 3 not found, 4 unavailable, 6 siblings (listed)")]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
    /// Only the key's owners count for R, stand-ins do not
    #[arg(long)]
    pub(crate) strict: bool,
    /// Answer once so many owners hold what is returned that no later read of as many, or of a majority, misses it
    #[arg(long)]
    pub(crate) monotonic: bool,
    /// Print the context instead of the value: what `put --context` and `del --context` take
    #[arg(long)]
    pub(crate) context: bool,
    /// Of several values print this one alone, counted from 1
    #[arg(long, value_name = "NUMBER", conflicts_with = "context", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sibling: Option<u32>,
    /// Show who was asked, who answered when, and what decided (on stderr, or in the JSON)
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Write a value to a key
///
/// Without --context or --blind the key is read first, and the write replaces what the read saw: an overwrite, as one
/// expects. If the read sees several values (siblings), nothing is written: they are shown, and it is yours to merge them.
/// Another writer's value that comes in between is never lost; it stays beside this one as a sibling (exit code 6). Prints the
/// new context, which a later put or del can name as its cause. What was replaced is told on stderr: the values that the read
/// saw; with --context, for which nothing is read, only how many there were (in JSON `replaced_values` is null then).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate put greeting hello
  quorate put photo @photo.jpg              the bytes of a file
  date | quorate put now -                  the bytes of stdin
  quorate put handle @@alice                the text `@alice`
  quorate put -- -key -value                after --, a hyphen is nothing special
  quorate get cart -o json > seen.json      several values: them and their context, of one read
  quorate put cart \"$MERGED\" --context \"$(jq -r .context seen.json)\"

Exit codes: 0 written, 4 unavailable (nothing was changed), 5 outcome unknown, 6 siblings: not written because there are
            several values, or written beside others (not with --blind, which asks for that)")]
pub(crate) struct PutArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    /// The value: text, `@FILE`, `-` for stdin; `@@text` is text that begins with @
    #[arg(value_name = "VALUE", allow_negative_numbers = true)]
    pub(crate) value: OsString,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
    #[command(flatten)]
    pub(crate) write: WriteQuorum,
    /// Only the key's owners count for R and W, stand-ins do not
    #[arg(long)]
    pub(crate) strict: bool,
    /// Replace exactly what this context has seen; do not read first
    #[arg(long, value_name = "CONTEXT", conflicts_with = "blind")]
    pub(crate) context: Option<String>,
    /// Write without having looked: replaces nothing, and becomes a sibling of what is there
    #[arg(long)]
    pub(crate) blind: bool,
    /// Of a key with several values replace them all
    #[arg(long, conflicts_with_all = ["context", "blind"])]
    pub(crate) replace_all: bool,
    /// Show who was asked, who answered when, and what decided (on stderr, or in the JSON)
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Delete a key
///
/// Without --context the key is read first, and what the read saw is deleted. If the read sees several values (siblings),
/// nothing is deleted: they are shown. Values that another writer adds at the same time stay (exit code 6).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate del greeting
  quorate del cart --replace-all            all of its values
  quorate get cart -o json > seen.json      look at the values, and delete exactly these:
  quorate del cart --context \"$(jq -r .context seen.json)\"

Exit codes: 0 deleted, 3 there was nothing to delete, 4 unavailable (nothing was changed), 5 outcome unknown,
            6 siblings: not deleted because there are several values, or deleted and concurrent values stay")]
pub(crate) struct DelArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
    #[command(flatten)]
    pub(crate) write: WriteQuorum,
    /// Only the key's owners count for R and W, stand-ins do not
    #[arg(long)]
    pub(crate) strict: bool,
    /// Delete exactly what this context has seen; do not read first
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) context: Option<String>,
    /// Of a key with several values delete them all
    #[arg(long, conflicts_with = "context")]
    pub(crate) replace_all: bool,
    /// Show who was asked, who answered when, and what decided (on stderr, or in the JSON)
    #[arg(long)]
    pub(crate) explain: bool,
}

/// Write the records of an NDJSON file
///
/// Each line is {"key": "..", "value": ".."} with UTF-8 strings, or key_b64 and value_b64 for bytes; "values": ["..", ".."] are
/// siblings, as `export --siblings all` writes them. A key is read first and written only when its value differs, so that a
/// broken import is simply run again. Of lines with the same key the last one counts. Failed writes are retried with the same
/// operation id: a node that dies on the way does no harm.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate import words.ndjson
  zcat words.ndjson.gz | quorate import -
  quorate import words.ndjson --blind       faster, for keys that are not there yet

Exit codes: 0 all lines are in, 1 some failed (they are named)")]
pub(crate) struct ImportArgs {
    /// The file, or `-` for stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// Write without reading first; repeating the import is harmless, but keys that hold other values get siblings
    #[arg(long)]
    pub(crate) blind: bool,
    /// Of a key that has several values replace them all; without it such a line fails
    #[arg(long, conflicts_with = "blind")]
    pub(crate) replace_all: bool,
    /// Records in flight
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) concurrency: u16,
    /// Keep retrying a failed record for this time
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub(crate) retry_for: Duration,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
    #[command(flatten)]
    pub(crate) write: WriteQuorum,
}

/// What an export does with a key that has several values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SiblingPolicy {
    /// Leave the key out, name it, and end with exit code 6; everything else is exported
    Report,
    /// Write all of them in one line: {"key": .., "values": [..]}
    All,
}

/// Write all records as NDJSON
///
/// The lines are what `import` reads. A file appears under its name only when it is complete, and one that was there keeps its
/// permissions; links are followed, and pipes and devices are written as they are. It is no snapshot: a write that happens
/// during the export may or may not be in it.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  quorate export backup.ndjson --sort
  quorate export --prefix user/ | wc -l
  quorate export backup.ndjson --siblings all

Exit codes: 0 all records are out, 4 some could not be read in 15 attempts (no file is written),
            6 some keys have siblings (see --siblings)")]
pub(crate) struct ExportArgs {
    /// The file, or `-` for stdout
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: String,
    /// Only keys that begin with this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<OsString>,
    /// Order the lines by key (through temporary files when they are too many for memory)
    #[arg(long)]
    pub(crate) sort: bool,
    /// What to do with a key that has several values
    #[arg(long, value_name = "POLICY", default_value = "report")]
    pub(crate) siblings: SiblingPolicy,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
}

/// List keys
///
/// One a line, in no order that means anything. What is no text, and what would break a line, is escaped, as
/// `--key-encoding escaped` reads it back. It is no snapshot: a key that is written or deleted meanwhile may or may not be there.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate keys user/ --limit 20
  quorate keys --count
  quorate keys --key-encoding hex | while read -r key; do quorate get --key-encoding hex $key; done

Exit codes: 0 all were listed, or as many as --limit allows; 4 unavailable")]
pub(crate) struct KeysArgs {
    /// Only keys that begin with this
    #[arg(value_name = "PREFIX")]
    pub(crate) prefix: Option<OsString>,
    /// Stop after this many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// Only say how many there are
    #[arg(long)]
    pub(crate) count: bool,
    /// How keys are printed and PREFIX is read [default: escaped, and text for PREFIX]
    #[arg(long, value_name = "HOW", hide_possible_values = true, help = KEYS_HOW)]
    pub(crate) key_encoding: Option<KeyEncoding>,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
}

const KEYS_HOW: &str =
    "How keys are printed, and PREFIX is read: text, escaped, hex or base64 [default: escaped, and text for PREFIX]";

/// Show the state of the cluster
///
/// The verdict and its reasons first: HEALTHY, DEGRADED, AT RISK (one more failure makes some keys unavailable), or UNAVAILABLE
/// for some keys; or TWO LAYOUTS, which are two clusters side by side. Then the layout and who is up, as one node sees it, and what
/// nodes keep for others.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate status
  quorate status --check                    exit code 7 unless everything is well

Exit codes: 0 answered, 4 no node answers, 7 degraded (with --check)")]
pub(crate) struct StatusArgs {
    /// End with exit code 7 unless the verdict is HEALTHY
    #[arg(long)]
    pub(crate) check: bool,
    /// Ask this node instead of any seed
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) on: Option<Endpoint>,
}

/// Look at the nodes
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List all nodes, each asked for its own state
    #[command(after_help = "Examples:\n  quorate node ls\n  quorate node ls -o json | jq '.nodes[].node'")]
    Ls,
}

/// Show what nodes keep for others that did not take it
///
/// A write for a node that is down, fails or is late is kept by another one (a hint), and handed over when it is back. Shown
/// are, for each holder and target, how many, how large, how old the oldest is, and how fast they are handed over.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate hints
  quorate hints --for n2
  quorate hints -o json | jq '[.hints[].count] | add'

Exit codes: 0 answered, 4 no node answers")]
pub(crate) struct HintsArgs {
    /// Only what is kept for this node
    #[arg(long = "for", value_name = "NODE")]
    pub(crate) target: Option<NodeId>,
}

/// Check the cluster, for scripts and monitors
#[derive(Debug, Subcommand)]
pub(crate) enum CheckCommand {
    /// Whether every key has a quorum of its owners within reach
    ///
    /// The quorum is the larger one of the layout's floors for reads and writes.
    #[command(
        after_help = "Examples:\n  quorate check quorum || page-somebody\n\nExit codes: 0 it has, 4 no node answers, 7 it has not"
    )]
    Quorum(CheckArgs),
    /// Whether every owner of every key is there, and nothing waits to be delivered or repaired
    #[command(
        after_help = "Examples:\n  quorate check replicas || echo not-now\n\nExit codes: 0 they are, 4 no node answers, 7 they are not"
    )]
    Replicas(CheckArgs),
    /// Whether every certificate in use is valid for more than 30 days: those of the nodes, this client's, and the CA's
    #[command(
        after_help = "Examples:\n  quorate check certs || echo renew-some\n\nExit codes: 0 they are, 4 no node answers, 7 they are not"
    )]
    Certs(CheckArgs),
}

/// What both checks take.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {}

/// Show where a key lives
///
/// Its hash, its partition, and all members in the order in which the ring offers it to them: the first N are its owners.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  quorate locate greeting")]
pub(crate) struct LocateArgs {
    #[command(flatten)]
    pub(crate) key: KeyArgs,
}

/// Show and change who owns what
///
/// The layout names the members, and with them N and the partitions. It is staged on one node, looked at, and applied under the
/// version that was looked at. Nodes join, leave and are replaced in the same way later, while clients read and write, if a
/// majority of the members is configured with layout_changes = "experimental"; `show` says how far such a change is, and whom
/// it waits for. All layout commands go to the first seed, or to the node named with
/// --on; all but `show`, `history` and a look at an `abort` need an administrator's certificate.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  quorate layout stage join n1=10.0.0.1:7400 n2=10.0.0.2:7400 n3=10.0.0.3:7400
  quorate layout show
  quorate layout apply --version 1
  quorate layout stage join n4=10.0.0.4:7400
  quorate layout apply --version 2
  quorate layout show                       how far it is")]
pub(crate) enum LayoutCommand {
    /// Show the layout, how far a change is, what is staged, and what stands against applying it
    ///
    /// `quorate transfers` says how fast a change goes, and how long it will take.
    #[command(
        after_help = "Examples:\n  quorate layout show\n  quorate layout show --report layout.html     who holds how much, and what moves, as a page"
    )]
    Show {
        /// Write the same as a page of HTML, too, with pictures, which needs no other file and no script
        #[arg(long, value_name = "FILE", value_parser = parse_file)]
        report: Option<PathBuf>,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Show the layouts that a node still knows, and how each differs from the one before
    ///
    /// These are the first layout and those that are live: the newest one, and the ones that a change under way leads away from.
    #[command(after_help = "Examples:\n  quorate layout history\n  quorate layout history -o json")]
    History(LayoutArgs),
    /// Stage members and settings of the next layout
    #[command(subcommand)]
    Stage(StageCommand),
    /// Forget what is staged
    Revert(LayoutArgs),
    /// Make what is staged the cluster's layout
    ///
    /// A layout after the first one is decided by a majority of the members of the newest layout. Of several operators who apply
    /// at the same time one wins; the others are told what was decided, and by whom. When too few members can be reached the
    /// command says whether the layout may yet be decided. To repeat it is safe. Then nodes copy what they own now, and everything
    /// stays readable and writable meanwhile; `layout show` says how far that is.
    #[command(
        after_help = "Examples:\n  quorate layout apply --version 1\n  quorate layout apply --version 2 --on n1:7400"
    )]
    Apply {
        /// The version that `layout show` announced: what was looked at is what is applied
        #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
        version: u64,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// End the change under way, by a layout that is equal to the one before it
    ///
    /// Without --version the command only shows which layout that would be, how it differs from the one that the change leads to,
    /// and what would move back; then repeat it with the version that is shown. What has moved already moves back, everything
    /// stays readable and writable meanwhile, and what is staged stays staged. It is decided as `apply` is. Not possible are an
    /// abort while two changes are under way (wait for the first one), and one by which a node would be a member again that does
    /// not answer, or not with the disk that it had: stage what is wanted instead.
    #[command(
        after_help = "Examples:\n  quorate layout abort                      what it would do, and the version to name\n  quorate layout abort --version 3"
    )]
    Abort {
        /// The version that `layout abort` announced: what was looked at is what is ended
        #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
        version: Option<u64>,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Make a new secret for the contexts that clients get
    ///
    /// Nodes take a context only if one of them has issued it, which they know by a secret that no client has. A new one
    /// takes effect at once on every node that can be reached, and on the others when they return. Contexts that clients
    /// have kept are taken until three more secrets have been made, so that four rotations end the use of one that has leaked.
    #[command(after_help = "Examples:\n  quorate layout rotate-context-key")]
    RotateContextKey(LayoutArgs),
}

/// Show what moves while the layout changes, and how fast
///
/// Every node is asked. For each one that takes partitions over: of how many it has all that it needs, the records and bytes that
/// have come so far and the rate of the last ten seconds, also by the node that they come from; and the time that is left at the
/// pace so far, which is unknown while nothing moves. What is counted is counted since the change began, or since the node's last
/// start. Then for whom the change waits, who hands over what it owns no more, and what could not be moved at the last attempt,
/// and why.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate transfers
  quorate transfers --watch                 until no change is under way
  quorate transfers --watch > change.log    a line whenever something has changed
  quorate transfers -o json | jq '.receivers[] | {node, done, of, eta_ms}'

Exit codes: 0 answered; with --watch: no change is under way any more; 4 no node answers")]
pub(crate) struct TransfersArgs {
    /// Look again every second, and end when no change is under way
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Compare replicas and bring together what differs
///
/// Owners of a partition compare their hash trees all the time; what differs in two passes in a row is exchanged. Nothing has
/// to be scheduled. All but `status` needs an administrator's certificate, and holds until the node starts again.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  quorate repair status
  quorate repair start
  quorate repair pause --node n1
  quorate repair resume
  quorate repair status -o json")]
pub(crate) enum RepairCommand {
    /// Begin a pass now, also where it was paused
    Start(RepairArgs),
    /// Show passes, what they repaired and why, and what is being recovered
    Status(RepairArgs),
    /// Make no passes until `repair resume`
    Pause(RepairArgs),
    /// Go on
    Resume(RepairArgs),
}

/// What every repair command takes.
#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// Only these nodes, comma separated [default: all members]
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub(crate) node: Vec<NodeId>,
}

/// What every layout command takes.
#[derive(Debug, Args)]
pub(crate) struct LayoutArgs {
    /// The node on which changes are staged [default: the first seed]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) on: Option<Endpoint>,
}

/// `layout stage ..`.
#[derive(Debug, Subcommand)]
pub(crate) enum StageCommand {
    /// Stage nodes as new members; each must be running and reachable
    #[command(after_help = "\
Examples:
  quorate layout stage join n1=10.0.0.1:7400
  quorate layout stage join n4=10.0.0.4:7400 --zone rack-2 --weight 2")]
    Join {
        /// Name and address, as the node itself has them
        #[arg(required = true, value_name = "NODE=HOST:PORT")]
        members: Vec<Member>,
        /// Failure domain: replicas go to different zones while there are any
        #[arg(long, default_value = "default", value_parser = parse_zone)]
        zone: String,
        /// Share of the data, relative to the other members
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        weight: u32,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Stage that members leave: what they own goes to the others
    #[command(after_help = "Examples:\n  quorate layout stage leave n2\n  quorate layout stage leave n2 n3")]
    Leave {
        /// Who leaves
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<NodeId>,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Stage that a node takes the place of a member, dead or alive
    ///
    /// It gets the same share of the data, in the same zone, so that nothing else moves. It must be running and reachable.
    #[command(after_help = "Examples:\n  quorate layout stage replace n2 n6=10.0.0.6:7400")]
    Replace {
        /// Who goes
        #[arg(value_name = "OLD")]
        old: NodeId,
        /// Who comes: name and address, as the node itself has them
        #[arg(value_name = "NEW=HOST:PORT")]
        new: Member,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Stage another share of the data for a member
    #[command(after_help = "Examples:\n  quorate layout stage weight n1 2")]
    Weight {
        /// Whose
        #[arg(value_name = "NODE")]
        node: NodeId,
        /// Share of the data, relative to the other members
        #[arg(value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=1000))]
        weight: u32,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Stage another failure domain for a member
    #[command(after_help = "Examples:\n  quorate layout stage zone n1 rack-2")]
    Zone {
        /// Whose
        #[arg(value_name = "NODE")]
        node: NodeId,
        /// Failure domain: replicas go to different zones while there are any
        #[arg(value_name = "ZONE", value_parser = parse_zone)]
        zone: String,
        #[command(flatten)]
        args: LayoutArgs,
    },
    /// Stage N and the floors, and for the first layout the number of partitions
    #[command(
        group = clap::ArgGroup::new("setting").required(true).multiple(true).args(["replicas", "partitions", "floor_r", "floor_w"]),
        after_help = "Examples:\n  quorate layout stage settings --replicas 5 --floor-r 2 --floor-w 4")]
    Settings {
        /// N: replicas of each record
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
        replicas: Option<u8>,
        /// Q: how many partitions the hash space is cut into; it never changes later
        #[arg(long, value_name = "Q", value_parser = clap::value_parser!(u16).range(1..=32768))]
        partitions: Option<u16>,
        /// Reads with at least this R are promised across layout changes
        #[arg(long, value_name = "R", value_parser = clap::value_parser!(u8).range(1..))]
        floor_r: Option<u8>,
        /// Writes with at least this W are promised across layout changes
        #[arg(long, value_name = "W", value_parser = clap::value_parser!(u8).range(1..))]
        floor_w: Option<u8>,
        #[command(flatten)]
        args: LayoutArgs,
    },
}

/// `NODE=HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// The node's name.
    pub(crate) node: NodeId,
    /// Where it listens.
    pub(crate) addr: Endpoint,
}

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (node, addr) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is no member: write n1=10.0.0.1:7400"))?;
        Ok(Self {
            node: node.parse().map_err(|error: quorate_wire::ids::InvalidId| error.to_string())?,
            addr: addr.parse()?,
        })
    }
}

/// Run a cluster on this machine, to try things out
///
/// Several nodes in one process, with certificates of their own that are thrown away at the end, and with data in memory
/// (or in --persist DIR). The other commands find it without configuration. Ctrl-C ends it.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  quorate dev                               three nodes, data in memory
  quorate dev -n 5 --persist ./data         five nodes that keep their data
  quorate dev kill n2                       from another terminal: n2 dies on the spot
  quorate dev start n2                      and comes back"
)]
pub(crate) struct DevArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DevCommand>,
    /// How many nodes [default: 3, or as many as --persist DIR has]
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub(crate) nodes: Option<u8>,
    /// Keep data and certificates in this directory, and go on with what is in it
    #[arg(long, value_name = "DIR")]
    pub(crate) persist: Option<PathBuf>,
    /// Node k listens on 127.0.0.1, UDP port BASE + k [default: 7400, or what --persist DIR has]
    #[arg(long, value_name = "BASE", value_parser = clap::value_parser!(u16).range(1024..=65500))]
    pub(crate) base_port: Option<u16>,
    /// Serve health and metrics of node k over HTTP on TCP port BASE + k
    #[arg(long)]
    pub(crate) http: bool,
}

/// What can be said to a running `quorate dev`.
#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// End a node on the spot, as a crash would
    Kill {
        /// Its name, such as n2
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// Start a node that was killed
    Start {
        /// Its name, such as n2
        #[arg(value_name = "NODE")]
        node: NodeId,
    },
    /// List its nodes and whether they run
    Status {
        /// `text` for people, `json` for programs
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: OutputFormat,
    },
    /// End all nodes
    Stop,
}

/// Run one node
///
/// Ends cleanly on SIGTERM and Ctrl-C. SIGHUP reads the certificates anew and opens the log file anew. Every setting of the file
/// can be given as a QUORATE_SERVER_* variable, which counts before the file, or as a flag, which counts before both. The
/// variables of clients (QUORATE_CA and others) are not read.
#[derive(Debug, Args)]
#[command(after_help = "\
A configuration file:
  node = \"n1\"
  listen = \"10.0.0.1:7400\"
  join = [\"10.0.0.2:7400\", \"10.0.0.3:7400\"]
  data_dir = \"data\"            # relative paths are relative to this file
  durability = \"group\"         # always, group or interval (then also sync_interval = \"100ms\")
  request_memory_mib = 256      # what requests may take of the memory, 64 or more
  http = \"127.0.0.1:7480\"      # /livez /readyz /metrics
  layout_changes = \"off\"       # or experimental: `quorate layout apply` works after version 1, too
  disk_reserve = \"auto\"        # kept free: 5% of the disk, at most 1GiB; or \"10%\", \"2GiB\"
  [tls]
  ca = \"ca.pem\"
  cert = \"n1.pem\"
  key = \"n1.key\"
  [log]
  format = \"pretty\"            # or json
  level = \"info\"
  # file = \"n1.log\"          # instead of stderr; file_size = \"64MiB\", files = 5

Examples:
  quorate server --config n1.toml
  quorate server --config n1.toml --check   is the configuration right? starts nothing
  quorate server --config n1.toml --durability always --log-level debug")]
pub(crate) struct ServerArgs {
    /// Only look whether the configuration and the certificates are right
    #[arg(long)]
    pub(crate) check: bool,
    /// The configuration file, TOML [env: QUORATE_SERVER_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// This node's name, the one in its certificate [env: QUORATE_SERVER_NODE]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeId>,
    /// UDP address to listen on [env: QUORATE_SERVER_LISTEN]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<Endpoint>,
    /// Address under which the other nodes and the clients reach this one [env: QUORATE_SERVER_ADVERTISE]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<Endpoint>,
    /// Nodes to meet, comma separated [env: QUORATE_SERVER_JOIN]
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub(crate) join: Vec<Endpoint>,
    /// Where the data is [env: QUORATE_SERVER_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// When a write is acknowledged: always, group or interval [env: QUORATE_SERVER_DURABILITY]
    #[arg(long, value_name = "MODE")]
    pub(crate) durability: Option<DurabilityName>,
    /// Time between syncs with --durability interval [env: QUORATE_SERVER_SYNC_INTERVAL]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) sync_interval: Option<Duration>,
    /// Whether a layout after the first one can be applied: off or experimental [default: off] [env: QUORATE_SERVER_LAYOUT_CHANGES]
    ///
    /// The node helps to decide on such layouts only if it says "experimental"; a majority of the members has to. The simulator has looked at
    /// too few lives with such changes yet for data that matters.
    #[arg(long, value_name = "SWITCH")]
    pub(crate) layout_changes: Option<LayoutChanges>,
    /// Memory that requests of clients and peers may take, in MiB, 64 to 1048576 [default: 256] [env: QUORATE_SERVER_REQUEST_MEMORY_MIB]
    ///
    /// All of it: what QUIC keeps of clients' streams, requests while they arrive and are served, what is read for them, and
    /// answers until they have departed. One client (a certificate, whatever its connections) may have half of each share.
    /// Requests that do not fit are refused as overloaded and not carried out. Beside it, a record above a sixteenth of it may
    /// take up to 112 MiB in each of four ways: to clients, and from, to and through other nodes.
    #[arg(long, value_name = "MIB")]
    pub(crate) request_memory_mib: Option<Mebibytes>,
    /// TCP address for health and metrics [env: QUORATE_SERVER_HTTP]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<Endpoint>,
    /// The cluster's CA certificate, PEM [env: QUORATE_SERVER_CA]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// This node's certificate, PEM [env: QUORATE_SERVER_CERT]
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The private key of --cert, PEM [env: QUORATE_SERVER_KEY]
    #[arg(id = "tls-key", long = "key", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Log as `pretty` text or `json` [env: QUORATE_SERVER_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,quorate_node=debug [env: QUORATE_SERVER_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogFilter>,
    /// Log to this file instead of stderr; SIGHUP opens it anew [env: QUORATE_SERVER_LOG_FILE]
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// Begin a new log file at this size [env: QUORATE_SERVER_LOG_FILE_SIZE] [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(crate) log_file_size: Option<ByteSize>,
    /// How many older log files are kept, as FILE.1, FILE.2, .. [env: QUORATE_SERVER_LOG_FILES] [default: 5]
    #[arg(long, value_name = "COUNT")]
    pub(crate) log_files: Option<FileCount>,
    /// Keep so much of the disk free: auto, 5% or 512MiB; with less this node refuses new values and goes on reading, and
    /// others stand in [env: QUORATE_SERVER_DISK_RESERVE] [default: auto, 5%, 64MiB to 1GiB, at most a quarter]
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk_reserve: Option<DiskReserve>,
}

/// Make a cluster's certificates
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  quorate cert init                         the cluster's CA: certs/ca.pem and certs/ca.key
  quorate cert node n1                      for `quorate server`: certs/n1.pem and certs/n1.key
  quorate cert client alice                 for clients: certs/alice.pem and certs/alice.key
  quorate cert client root --admin          may also change the layout
  quorate cert show                         what each certificate is for, and until when it is valid
  quorate cert renew n1                     the same key, valid for another year; then send the node SIGHUP")]
pub(crate) enum CertCommand {
    /// Make a new cluster: its id and its certificate authority
    Init(CertArgs),
    /// Make a node's certificate
    Node {
        /// The node's name
        #[arg(value_name = "NAME")]
        node: NodeId,
        #[command(flatten)]
        args: CertArgs,
    },
    /// Make a client's certificate
    Client {
        /// The client's name: 1 to 31 lower-case letters, digits and `-`
        #[arg(value_name = "NAME", value_parser = parse_client_name)]
        name: NodeId,
        /// It may also change the layout
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        args: CertArgs,
    },
    /// Make a certificate anew, before it expires
    ///
    /// The new one is for the same node or client and the same key, and takes the place of the old one at once; nothing but this one
    /// file has to be copied to where it is used. A node that runs takes it when it is sent SIGHUP, without losing a request.
    Renew {
        /// The node or client: the name of its files, without .pem
        #[arg(value_name = "NAME")]
        name: NodeId,
        #[command(flatten)]
        args: CertArgs,
    },
    /// Show what certificates are for, and until when they are valid
    ///
    /// Exit codes: 0, or 7 if one of them expires within 30 days.
    Show {
        /// A certificate, a directory of them, or a name in --dir [default: all of --dir]
        #[arg(value_name = "FILE|NAME")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        args: CertArgs,
    },
}

/// What every cert command takes.
#[derive(Debug, Args)]
pub(crate) struct CertArgs {
    /// The directory of ca.pem and ca.key, where new files go as well
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub(crate) dir: PathBuf,
    /// For how long the certificate is valid [default: 10 years for the CA, 1 year for the others]
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(crate) days: Option<u32>,
    /// `text` for people, `json` for programs
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub(crate) output: OutputFormat,
}

/// How a benchmark offers load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchMode {
    /// Each client sends its next request when the last is answered
    Closed,
    /// Requests are due at a fixed rate, and latency counts from when they were due
    Open,
}

/// How a benchmark picks keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyDistribution {
    /// All keys alike
    Uniform,
    /// Few keys often, most keys seldom
    Zipfian,
}

/// Measure a cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate bench                             64 clients, half reads, 1 KiB values
  quorate bench --mode open --rate 2000 --read-ratio 0.9 --distribution zipfian
  quorate bench --echo -o json              beside a bare QUIC request-reply echo

It writes values of its own, under keys that begin with bench/, and leaves them there.")]
pub(crate) struct BenchArgs {
    /// How load is offered
    #[arg(long, default_value = "closed")]
    pub(crate) mode: BenchMode,
    /// Requests a second, with --mode open
    #[arg(long, value_name = "RATE", required_if_eq("mode", "open"), value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: Option<u32>,
    /// Concurrent clients
    #[arg(short, long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) clients: u16,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Bytes of each value
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub(crate) value_size: u32,
    /// Distinct keys
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,
    /// Share of reads, 0 to 1
    #[arg(long, value_name = "RATIO", default_value_t = 0.5, value_parser = parse_ratio)]
    pub(crate) read_ratio: f64,
    /// How keys are picked
    #[arg(long, default_value = "uniform")]
    pub(crate) distribution: KeyDistribution,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
    #[command(flatten)]
    pub(crate) write: WriteQuorum,
    /// Measure a bare QUIC request-reply echo on this machine as well
    #[arg(long)]
    pub(crate) echo: bool,
}

/// Look at the configuration of this client, or of a server
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show the settings that commands use
    #[command(after_help = "\
A client configuration file, $XDG_CONFIG_HOME/quorate/config.toml:
  seeds = [\"10.0.0.1:7400\", \"10.0.0.2:7400\"]
  ca = \"ca.pem\"                # relative paths are relative to this file
  cert = \"alice.pem\"
  key = \"alice.key\"
  r = \"majority\"
  w = \"majority\"
  timeout = \"1s\"
  output = \"text\"

Each setting is taken from the first of: its flag, its QUORATE_* variable, --config, the user's file, a running
`quorate dev`, its default. (What `quorate dev` offers counts only if none of seeds, ca, cert and key is set.)

Examples:
  quorate config show --origin              where each value comes from
  quorate config show --server --config n1.toml --origin")]
    Show(ConfigShowArgs),
}

/// `config show`.
#[derive(Debug, Args)]
pub(crate) struct ConfigShowArgs {
    /// Also show where each value comes from
    #[arg(long)]
    pub(crate) origin: bool,
    /// Of `quorate server`: what --config and the QUORATE_SERVER_* variables make
    #[arg(long)]
    pub(crate) server: bool,
    #[command(flatten)]
    pub(crate) read: ReadQuorum,
    #[command(flatten)]
    pub(crate) write: WriteQuorum,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  quorate completions bash > ~/.local/share/bash-completion/completions/quorate
  quorate completions zsh > \"${fpath[1]}/_quorate\"
  quorate completions fish > ~/.config/fish/completions/quorate.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Parses a time with a unit, at most a day: longer waits of a command line tool are mistakes.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let Time(time) = text.parse()?;
    if time > TIME_MAX {
        return Err(format!("{text:?} is more than a day"));
    }
    Ok(time)
}

/// See [`parse_time`].
const TIME_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Shorter ones end before any node can answer.
pub(crate) const TIMEOUT_MIN: Duration = Duration::from_millis(1);

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        time if time < TIMEOUT_MIN => Err("a timeout below 1ms lets no request succeed".to_owned()),
        time => Ok(time),
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_time(text)? {
        Duration::ZERO => Err("in no time nothing is measured".to_owned()),
        time => Ok(time),
    }
}

/// Client names follow the rules of node ids.
fn parse_client_name(text: &str) -> Result<NodeId, String> {
    NodeId::new(text).map_err(|error| error.to_string().replace("node id", "client name"))
}

fn parse_file(text: &str) -> Result<PathBuf, String> {
    match text {
        "" | "-" => Err("name a file: on stdout is what the command says".to_owned()),
        _ => Ok(text.into()),
    }
}

fn parse_zone(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > ZONE_LEN_MAX || !text.chars().all(legal) {
        return Err(format!("{text:?} is no zone: 1 to {ZONE_LEN_MAX} letters, digits, '-', '_' and '.'"));
    }
    Ok(text.to_owned())
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("{text:?} is no share: a number from 0 to 1")),
    }
}

/// The page that `quorate --help` shows. The commands are grouped by hand; a test sees to it that none is left out.
const TOP_HELP: &str = "\
{about}

Usage: {usage}

Try it:
  dev          Run a cluster on this machine, to try things out

Data:
  put          Write a value to a key
  get          Read the value of a key
  del          Delete a key
  import       Write the records of an NDJSON file
  export       Write all records as NDJSON
  keys         List keys

The cluster:
  status       Show the state of the cluster
  node         Look at the nodes
  locate       Show where a key lives
  layout       Show and change who owns what
  transfers    Show what moves while the layout changes, and how fast
  hints        Show what nodes keep for others that did not take it
  check        Check the cluster, for scripts and monitors
  repair       Compare replicas and bring together what differs
  bench        Measure a cluster

Running nodes:
  cert         Make a cluster's certificates
  server       Run one node

This tool:
  config       Look at the configuration of this client, or of a server
  completions  Print a completion script for a shell
  help         Print this page, or the help of a command

Options:
{options}

First steps:
  quorate dev                               in one terminal
  quorate put greeting hello                in another
  quorate get greeting --explain
  quorate dev kill n2 && quorate get greeting

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 key not found, 4 unavailable (nothing was changed),
            5 timed out (outcome unknown), 6 siblings or version conflict,
            7 degraded (checks), or not every node has answered (repair), 130 ended by a signal
";

impl FromStr for OutputFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is no output format: text or json")),
        }
    }
}

impl std::fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}
