//! What a node is told by its configuration file, by `QUORATE_SERVER_*` variables and by flags.
//!
//! Parse, don't validate: what comes out of here cannot be illegal. [`ServerConfig`] has no optional path that a mode
//! needs, no port 0, no address that nobody can reach. What goes in is layered ([`layers`]): a flag counts before a
//! variable, a variable before the file, the file before the default, and every error names the place that is wrong.

pub mod layers;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use quorate_wire::address;
use quorate_wire::ids::NodeId;
use quorate_wire::{parse_time, time_text};

use self::layers::{ConfigError, Document, Key, Kind, Layers, Origin, Setting};
use crate::request_memory::RequestMemory;
use crate::store::{DiskReserve, Durability};

/// Everything that `quorate server` needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The node's name; must be the one in its certificate.
    pub node: NodeId,
    /// The UDP address that it binds. Never port 0: the other members must find it again after a restart.
    pub listen: Endpoint,
    /// The address under which others reach it: `listen` unless that is a wildcard, which nobody can dial.
    pub advertise: Endpoint,
    /// Nodes to meet, by name or address. May name the node itself, so that all nodes can share one list.
    pub join: Vec<Endpoint>,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Time between syncs; 1 ms to 60 s, 100 ms unless said otherwise. Only [`Durability::Interval`] looks at it.
    pub sync_interval: Duration,
    /// What requests may take of the memory that there is; 256 MiB unless said otherwise.
    pub request_memory: RequestMemory,
    /// Where health and metrics are served, if at all. Without encryption: a loopback or otherwise guarded address.
    pub http: Option<Endpoint>,
    /// Its certificates.
    pub tls: TlsFiles,
    /// How much of the disk of `data_dir` is kept free.
    pub disk_reserve: DiskReserve,
    /// Whether it helps to decide on a layout after the first one; off unless said otherwise.
    pub layout_changes: LayoutChanges,
    /// Its log.
    pub log: LogConfig,
    /// Where each value came from, by its name in the file: what is not here is a default.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// The three PEM files that a node or a client needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The cluster's CA certificate.
    pub ca: PathBuf,
    /// The certificate of this node or client.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// For people or for programs.
    pub format: LogFormat,
    /// Which lines.
    pub level: LogFilter,
    /// Where they go, if not to stderr.
    pub file: Option<LogFile>,
}

/// A log file that is rotated by its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// Where it is.
    pub path: PathBuf,
    /// A line that would make it longer goes to a new file.
    pub max_bytes: u64,
    /// How many files are kept beside it, as `.1`, `.2`, ..
    pub keep: u32,
}

/// What was said on the command line, already parsed; what is absent there is looked up further.
#[derive(Debug, Default, Clone)]
pub struct ServerFlags {
    /// `--node`
    pub node: Option<NodeId>,
    /// `--listen`
    pub listen: Option<Endpoint>,
    /// `--advertise`
    pub advertise: Option<Endpoint>,
    /// `--join`; empty is absent.
    pub join: Vec<Endpoint>,
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--durability`
    pub durability: Option<DurabilityName>,
    /// `--sync-interval`
    pub sync_interval: Option<Duration>,
    /// `--request-memory-mib`
    pub request_memory: Option<Mebibytes>,
    /// `--http`
    pub http: Option<Endpoint>,
    /// `--ca`
    pub ca: Option<PathBuf>,
    /// `--cert`
    pub cert: Option<PathBuf>,
    /// `--key`
    pub key: Option<PathBuf>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `--log-level`
    pub log_level: Option<LogFilter>,
    /// `--log-file`
    pub log_file: Option<PathBuf>,
    /// `--log-file-size`
    pub log_file_size: Option<ByteSize>,
    /// `--log-files`
    pub log_files: Option<FileCount>,
    /// `--layout-changes`
    pub layout_changes: Option<LayoutChanges>,
    /// `--disk-reserve`
    pub disk_reserve: Option<DiskReserve>,
}

impl ServerConfig {
    /// Reads the file, if one is named, and puts the layers together.
    ///
    /// # Errors
    /// When the file cannot be read or is no TOML, has an unknown key, or when a value is illegal or missing.
    pub fn load(
        file: Option<&Path>,
        flags: ServerFlags,
        variables: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let files = match file {
            None => Vec::new(),
            Some(path) => vec![Document::read(path, SERVER_KEYS)?],
        };
        Self::resolve(flags, &Layers::new(variables, files))
    }

    /// Puts the layers together.
    ///
    /// # Errors
    /// When a value is illegal, missing, or at odds with another one.
    pub fn resolve(flags: ServerFlags, layers: &Layers<'_>) -> Result<Self, ConfigError> {
        let mut origins = BTreeMap::new();
        let node = layers.required(layers.one(&NODE, flags.node)?, &NODE, "the node's name, such as n1")?;
        node.note(&mut origins);
        let listen = layers.one(&LISTEN, flags.listen)?.unwrap_or_else(|| Setting::default(LISTEN_DEFAULT.into()));
        listen.note(&mut origins);
        let advertise = match layers.one(&ADVERTISE, flags.advertise)? {
            Some(given) if given.value.is_unspecified() => {
                return Err(given
                    .error(format!("nobody can dial {}", given.value))
                    .hint("give the address that the other nodes use"));
            }
            Some(given) => given.noted(&mut origins),
            None if listen.value.is_unspecified() => {
                return Err(listen
                    .error(format!("listening on {} says nothing of where others reach this node", listen.value))
                    .hint("set `advertise` (--advertise) to the address that the other nodes use"));
            }
            None => listen.value.clone(),
        };
        let data_dir = layers.path(&DATA_DIR, flags.data_dir)?;
        let durability =
            layers.one(&DURABILITY, flags.durability)?.map_or(DurabilityName::Group, |d| d.noted(&mut origins));
        let sync_interval = layers.one(&SYNC_INTERVAL, flags.sync_interval.map(Time))?;
        if let Some(given) = &sync_interval {
            given.note(&mut origins);
            if durability != DurabilityName::Interval {
                return Err(given
                    .error(format!("a sync interval says nothing with durability {durability}"))
                    .hint("remove it, or set durability = \"interval\" and read what that promises"));
            }
            if !(SYNC_INTERVAL_MIN..=SYNC_INTERVAL_MAX).contains(&given.value.0) {
                return Err(given.error(format!("{} is out of range: 1ms to 1m", given.value)));
            }
        }
        let request_memory = match layers.one(&REQUEST_MEMORY, flags.request_memory)? {
            Some(given) => {
                given.note(&mut origins);
                RequestMemory::mib(given.value.0).map_err(|why| {
                    given.error(why).hint("give what may be taken beside the engine's cache; 256 are enough for most")
                })?
            }
            None => RequestMemory::default(),
        };
        let ca = layers.path(&CA, flags.ca)?;
        let cert = layers.path(&CERT, flags.cert)?;
        let key = layers.path(&KEY, flags.key)?;
        let log_level = layers.one(&LOG_LEVEL, flags.log_level)?;
        let data_dir = layers.required(data_dir, &DATA_DIR, "the directory for the node's data")?;
        let ca = layers.required(ca, &CA, "the cluster's CA certificate (`quorate cert init` makes one)")?;
        let cert = layers.required(cert, &CERT, "the node's certificate (`quorate cert node NAME` makes one)")?;
        let key = layers.required(key, &KEY, "the key of the node's certificate")?;
        for path in [&data_dir, &ca, &cert, &key] {
            path.note(&mut origins);
        }
        let join = layers.many(&JOIN, flags.join)?;
        if let Some(join) = &join {
            for addr in join.value.iter().filter_map(Endpoint::as_addr) {
                address::check_dial(addr).map_err(|why| join.error(why))?;
            }
        }
        let join = join.map_or_else(Vec::new, |join| join.noted(&mut origins));
        let http = layers.one(&HTTP, flags.http)?.map(|http| http.noted(&mut origins));
        let log_format = layers.one(&LOG_FORMAT, flags.log_format)?;
        let log_file = log_file(layers, flags.log_file, flags.log_file_size, flags.log_files, &mut origins)?;
        let disk_reserve = layers.one(&DISK_RESERVE, flags.disk_reserve)?;
        let layout_changes = layers.one(&LAYOUT_CHANGES, flags.layout_changes)?;
        Ok(Self {
            node: node.value,
            listen: listen.value,
            advertise,
            join,
            data_dir: data_dir.value,
            durability: durability.into(),
            sync_interval: sync_interval.map_or(SYNC_INTERVAL_DEFAULT, |interval| interval.value.0),
            request_memory,
            http,
            tls: TlsFiles { ca: ca.value, cert: cert.value, key: key.value },
            log: LogConfig {
                format: log_format.map_or(LogFormat::Pretty, |format| format.noted(&mut origins)),
                level: log_level.map_or_else(LogFilter::default, |level| level.noted(&mut origins)),
                file: log_file,
            },
            disk_reserve: disk_reserve.map_or_else(DiskReserve::default, |given| given.noted(&mut origins)),
            layout_changes: layout_changes.map_or(LayoutChanges::Off, |given| given.noted(&mut origins)),
            origins,
        })
    }

    /// Name, value and origin of each setting, for people.
    pub fn rows(&self) -> Vec<(&'static str, String, String)> {
        let path = |path: &Path| path.display().to_string();
        let join: Vec<_> = self.join.iter().map(ToString::to_string).collect();
        let none = || "-".to_owned();
        let disk_reserve = match self.disk_reserve {
            DiskReserve::Auto => "auto".to_owned(),
            DiskReserve::Bytes(bytes) => ByteSize(bytes).to_string(),
            DiskReserve::Percent(percent) => format!("{percent}%"),
        };
        let values = [
            (NODE, self.node.to_string()),
            (LISTEN, self.listen.to_string()),
            (ADVERTISE, self.advertise.to_string()),
            (JOIN, if join.is_empty() { none() } else { join.join(",") }),
            (DATA_DIR, path(&self.data_dir)),
            (DURABILITY, format!("{:?}", self.durability).to_lowercase()),
            (SYNC_INTERVAL, Time(self.sync_interval).to_string()),
            (REQUEST_MEMORY, (self.request_memory.bytes() >> 20).to_string()),
            (HTTP, self.http.as_ref().map_or_else(none, ToString::to_string)),
            (DISK_RESERVE, disk_reserve),
            (LAYOUT_CHANGES, self.layout_changes.to_string()),
            (CA, path(&self.tls.ca)),
            (CERT, path(&self.tls.cert)),
            (KEY, path(&self.tls.key)),
            (LOG_FORMAT, self.log.format.to_string()),
            (LOG_LEVEL, self.log.level.as_str().to_owned()),
            (LOG_FILE, self.log.file.as_ref().map_or_else(none, |file| path(&file.path))),
            (LOG_FILE_SIZE, self.log.file.as_ref().map_or_else(none, |file| ByteSize(file.max_bytes).to_string())),
            (LOG_FILES, self.log.file.as_ref().map_or_else(none, |file| file.keep.to_string())),
        ];
        values.into_iter().map(|(key, value)| (key.file, value, self.origin(key.file).to_string())).collect()
    }

    /// Where a setting came from, by its name in the file.
    pub fn origin(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }
}

fn log_file(
    layers: &Layers<'_>,
    path: Option<PathBuf>,
    size: Option<ByteSize>,
    files: Option<FileCount>,
    origins: &mut BTreeMap<&'static str, Origin>,
) -> Result<Option<LogFile>, ConfigError> {
    let path = layers.path(&LOG_FILE, path)?;
    let size = layers.one(&LOG_FILE_SIZE, size)?;
    let files = layers.one(&LOG_FILES, files)?;
    let Some(path) = path else {
        let alone = size.map(|size| size.map(drop)).or(files.map(|files| files.map(drop)));
        return alone.map_or(Ok(None), |given| {
            Err(given.error("it says nothing without a log file").hint("set `log.file` (--log-file), or remove it"))
        });
    };
    if let Some(size) = size.as_ref().filter(|size| size.value.0 < LOG_FILE_SIZE_MIN) {
        return Err(
            size.error(format!("a log file of {} bytes is too small: at least {LOG_FILE_SIZE_MIN}", size.value.0))
        );
    }
    Ok(Some(LogFile {
        path: path.noted(origins),
        max_bytes: size.map_or(LOG_FILE_SIZE_DEFAULT, |size| size.noted(origins).0),
        keep: files.map_or(LOG_FILES_DEFAULT, |files| files.noted(origins).0),
    }))
}

/// A number of bytes: `1048576`, `64KiB`, `64MiB`, `1GiB`, `1TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no size: write a number of bytes, or 64KiB, 64MiB, 1GiB");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit {
            "" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            "TiB" => 40,
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// How many older log files are kept: 0 to 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileCount(pub u32);

impl FromStr for FileCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let count = text.parse().ok().filter(|count| *count <= 1000);
        count.map(Self).ok_or_else(|| format!("{text:?} is no number of files from 0 to 1000"))
    }
}

/// A host name or IP address and a port: `n1.example:7400`, `10.0.0.1:7400`, `[::1]:7400`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    host: String,
    port: u16,
}

impl Endpoint {
    /// The host name or IP address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is the address 0.0.0.0 or `::`, at which one can listen and that nobody can dial.
    fn is_unspecified(&self) -> bool {
        self.as_addr().is_some_and(|addr| addr.ip().is_unspecified())
    }

    /// The address, if the host is an IP address and needs no name service.
    pub fn as_addr(&self) -> Option<SocketAddr> {
        self.host.parse().ok().map(|ip| SocketAddr::new(ip, self.port))
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self { host: addr.ip().to_string(), port: addr.port() }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong =
            |why: &str| format!("{text:?} is no address ({why}): write 10.0.0.1:7400, n1.example:7400 or [::1]:7400");
        address::check_no_scope(text)?;
        if let Ok(addr) = text.parse::<SocketAddr>() {
            if addr.port() == 0 {
                return Err(wrong("port 0 would be another one after every start"));
            }
            return address::check_listen(addr).map(|()| addr.into());
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
        let port = match port.parse() {
            Ok(0) | Err(_) => return Err(wrong("the port is no number from 1 to 65535")),
            Ok(port) => port,
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        if host.len() > 253 || !name.split('.').all(label) {
            return Err(wrong("the host is no name and no IP address"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Whether a node helps to decide on a layout after the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutChanges {
    /// It does not.
    Off,
    /// It does, though too little is proven yet for data that matters.
    Experimental,
}

impl FromStr for LayoutChanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "experimental" => Ok(Self::Experimental),
            _ => Err(format!("{text:?} is nothing that layout changes can be: off or experimental")),
        }
    }
}

impl fmt::Display for LayoutChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Experimental => "experimental",
        })
    }
}

/// A durability mode by its name; the modes themselves belong to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DurabilityName {
    /// One sync a write, acknowledged after it.
    Always,
    /// One sync for many writes, acknowledged after it.
    Group,
    /// Acknowledged at once, synced every `sync_interval`.
    Interval,
}

impl FromStr for DurabilityName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "always" => Ok(Self::Always),
            "group" => Ok(Self::Group),
            "interval" => Ok(Self::Interval),
            _ => Err(format!("{text:?} is no durability mode: always, group or interval")),
        }
    }
}

impl fmt::Display for DurabilityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Always => "always",
            Self::Group => "group",
            Self::Interval => "interval",
        })
    }
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Self {
        match name {
            DurabilityName::Always => Self::Always,
            DurabilityName::Group => Self::Group,
            DurabilityName::Interval => Self::Interval,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is no log format: pretty or json")),
        }
    }
}

/// Which log lines are written: a level, or levels by module, such as `info,quorate_node::membership=debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The filter in the syntax of `tracing_subscriber::EnvFilter`, which is certain to take it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level = |text: &str| matches!(text, "off" | "error" | "warn" | "info" | "debug" | "trace");
        let module = |text: &str| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
        };
        // EnvFilter would take a misspelt level for the name of a module, and so turn everything on.
        let legal = text.split(',').all(|part| match part.split_once('=') {
            None => level(part),
            Some((of, is)) => module(of) && level(is),
        });
        if legal {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no log level: off, error, warn, info, debug, trace, or by module: info,quorate_node::membership=debug"
        ))
    }
}

/// A time, as flags, files and variables have it: `250ms`, `5s`, `10m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_time(text).map(Self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&time_text(self.0))
    }
}

/// A number of MiB, as files and variables have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mebibytes(pub u64);

impl FromStr for Mebibytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is no number of MiB"))
    }
}

/// Less would be rotated with every few lines.
const LOG_FILE_SIZE_MIN: u64 = 64 << 10;
const LOG_FILE_SIZE_DEFAULT: u64 = 64 << 20;
const LOG_FILES_DEFAULT: u32 = 5;

const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7400);
const SYNC_INTERVAL_DEFAULT: Duration = Duration::from_millis(100);
const SYNC_INTERVAL_MIN: Duration = Duration::from_millis(1);
const SYNC_INTERVAL_MAX: Duration = Duration::from_secs(60);

const NODE: Key = Key { file: "node", flag: "--node", variable: "QUORATE_SERVER_NODE", kind: Kind::Text };
const LISTEN: Key = Key { file: "listen", flag: "--listen", variable: "QUORATE_SERVER_LISTEN", kind: Kind::Text };
const ADVERTISE: Key =
    Key { file: "advertise", flag: "--advertise", variable: "QUORATE_SERVER_ADVERTISE", kind: Kind::Text };
const JOIN: Key = Key { file: "join", flag: "--join", variable: "QUORATE_SERVER_JOIN", kind: Kind::List };
const DATA_DIR: Key =
    Key { file: "data_dir", flag: "--data-dir", variable: "QUORATE_SERVER_DATA_DIR", kind: Kind::Text };
const DURABILITY: Key =
    Key { file: "durability", flag: "--durability", variable: "QUORATE_SERVER_DURABILITY", kind: Kind::Text };
const SYNC_INTERVAL: Key =
    Key { file: "sync_interval", flag: "--sync-interval", variable: "QUORATE_SERVER_SYNC_INTERVAL", kind: Kind::Text };
const REQUEST_MEMORY: Key = Key {
    file: "request_memory_mib",
    flag: "--request-memory-mib",
    variable: "QUORATE_SERVER_REQUEST_MEMORY_MIB",
    kind: Kind::Integer,
};
const HTTP: Key = Key { file: "http", flag: "--http", variable: "QUORATE_SERVER_HTTP", kind: Kind::Text };
const CA: Key = Key { file: "tls.ca", flag: "--ca", variable: "QUORATE_SERVER_CA", kind: Kind::Text };
const CERT: Key = Key { file: "tls.cert", flag: "--cert", variable: "QUORATE_SERVER_CERT", kind: Kind::Text };
const KEY: Key = Key { file: "tls.key", flag: "--key", variable: "QUORATE_SERVER_KEY", kind: Kind::Text };
const LOG_FORMAT: Key =
    Key { file: "log.format", flag: "--log-format", variable: "QUORATE_SERVER_LOG_FORMAT", kind: Kind::Text };
const LOG_LEVEL: Key =
    Key { file: "log.level", flag: "--log-level", variable: "QUORATE_SERVER_LOG_LEVEL", kind: Kind::Text };
const LOG_FILE: Key =
    Key { file: "log.file", flag: "--log-file", variable: "QUORATE_SERVER_LOG_FILE", kind: Kind::Text };
const LOG_FILE_SIZE: Key = Key {
    file: "log.file_size",
    flag: "--log-file-size",
    variable: "QUORATE_SERVER_LOG_FILE_SIZE",
    kind: Kind::TextOrInteger,
};
const LOG_FILES: Key =
    Key { file: "log.files", flag: "--log-files", variable: "QUORATE_SERVER_LOG_FILES", kind: Kind::TextOrInteger };
const LAYOUT_CHANGES: Key = Key {
    file: "layout_changes",
    flag: "--layout-changes",
    variable: "QUORATE_SERVER_LAYOUT_CHANGES",
    kind: Kind::Text,
};
const DISK_RESERVE: Key = Key {
    file: "disk_reserve",
    flag: "--disk-reserve",
    variable: "QUORATE_SERVER_DISK_RESERVE",
    kind: Kind::TextOrInteger,
};

/// All keys of a server's configuration file.
pub const SERVER_KEYS: &[&Key] = &[
    &NODE,
    &LISTEN,
    &ADVERTISE,
    &JOIN,
    &DATA_DIR,
    &DURABILITY,
    &SYNC_INTERVAL,
    &REQUEST_MEMORY,
    &HTTP,
    &CA,
    &CERT,
    &KEY,
    &LOG_FORMAT,
    &LOG_LEVEL,
    &LOG_FILE,
    &LOG_FILE_SIZE,
    &LOG_FILES,
    &DISK_RESERVE,
    &LAYOUT_CHANGES,
];

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str =
        "node = \"n1\"\ndata_dir = \"data\"\n[tls]\nca = \"ca.pem\"\ncert = \"n1.pem\"\nkey = \"n1.key\"\n";

    fn parse_with(
        text: &str,
        flags: ServerFlags,
        variables: &dyn Fn(&str) -> Option<String>,
    ) -> Result<ServerConfig, String> {
        let document =
            Document::parse(Path::new("/etc/quorate/n1.toml"), text, SERVER_KEYS).map_err(|e| e.to_string())?;
        ServerConfig::resolve(flags, &Layers::new(variables, vec![document])).map_err(|e| e.to_string())
    }

    fn parse(text: &str) -> Result<ServerConfig, String> {
        parse_with(text, ServerFlags::default(), &|_| None)
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err("must be refused")
    }

    #[test]
    fn a_minimal_file_gets_the_defaults_and_paths_beside_itself() {
        let config = parse(MINIMAL).expect("legal");
        assert_eq!(config.node.as_str(), "n1");
        assert_eq!(config.listen, "127.0.0.1:7400".parse().expect("an address"));
        assert_eq!(config.advertise, config.listen);
        assert_eq!(config.data_dir, Path::new("/etc/quorate/data"));
        assert_eq!(config.tls.key, Path::new("/etc/quorate/n1.key"));
        assert_eq!(config.durability, Durability::Group);
        assert_eq!(config.log, LogConfig { format: LogFormat::Pretty, level: LogFilter::default(), file: None });
        assert_eq!(config.disk_reserve, DiskReserve::Auto);
        assert_eq!((config.http, config.join.len()), (None, 0));
        assert_eq!(config.request_memory.bytes(), 256 << 20);
    }

    #[test]
    fn addresses_may_be_names() {
        let config = parse(&MINIMAL.replace("[tls]", "listen = \"n1.example:7401\"\n[tls]")).expect("legal");
        assert_eq!((config.listen.host(), config.listen.as_addr()), ("n1.example", None));
        assert_eq!(config.advertise, config.listen);
        let config =
            parse(&MINIMAL.replace("[tls]", "listen = \"[::]:7401\"\nadvertise = \"n1:7402\"\n[tls]")).expect("legal");
        assert_eq!(
            (config.advertise.to_string().as_str(), config.listen.to_string().as_str()),
            ("n1:7402", "[::]:7401")
        );
    }

    #[test]
    fn a_full_file_is_understood() {
        let config = parse(
            "node = \"n1\"\nlisten = \"0.0.0.0:7401\"\nadvertise = \"10.0.0.1:7401\"\njoin = [\"n2.example:7401\", \"[::1]:7402\"]\n\
             data_dir = \"/var/lib/quorate\"\ndurability = \"interval\"\nsync_interval = \"250ms\"\nrequest_memory_mib = 1024\nhttp = \"127.0.0.1:7480\"\n\
             [tls]\nca = \"/pki/ca.pem\"\ncert = \"n1.pem\"\nkey = \"n1.key\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n\
             file = \"n1.log\"\nfile_size = \"1MiB\"\nfiles = 3\n",
        )
        .expect("legal");
        assert_eq!(config.advertise, "10.0.0.1:7401".parse().expect("an address"));
        assert_eq!(config.join.iter().map(ToString::to_string).collect::<Vec<_>>(), ["n2.example:7401", "[::1]:7402"]);
        assert_eq!(config.data_dir, Path::new("/var/lib/quorate"));
        assert_eq!((config.durability, config.sync_interval), (Durability::Interval, Duration::from_millis(250)));
        assert_eq!(config.tls.ca, Path::new("/pki/ca.pem"));
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.request_memory.bytes(), 1 << 30);
        let file = LogFile { path: "/etc/quorate/n1.log".into(), max_bytes: 1 << 20, keep: 3 };
        assert_eq!(config.log.file, Some(file));
        let reserve = parse(&MINIMAL.replace("[tls]", "disk_reserve = \"10%\"\n[tls]")).expect("legal").disk_reserve;
        assert_eq!(reserve, DiskReserve::Percent(10));
    }

    #[test]
    fn a_file_with_a_byte_order_mark_is_read_and_one_in_utf_16_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("n1.toml");
        let load =
            || ServerConfig::load(Some(&path), ServerFlags::default(), &|_| None).map_err(|error| error.to_string());
        std::fs::write(&path, format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"))).expect("written");
        assert_eq!(load().expect("UTF-8").node.as_str(), "n1");
        let wide: Vec<u8> = format!("\u{feff}{MINIMAL}").encode_utf16().flat_map(u16::to_be_bytes).collect();
        std::fs::write(&path, wide).expect("written");
        let error = load().expect_err("UTF-16");
        assert!(error.contains("n1.toml: it is text in UTF-16") && error.contains("iconv"), "{error}");
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line_and_a_suggestion() {
        let error = refused(&MINIMAL.replace("data_dir", "datadir"));
        assert!(error.starts_with("/etc/quorate/n1.toml:2: unknown key `datadir`"), "{error}");
        assert!(error.contains("did you mean `data_dir`?"), "{error}");
        assert!(error.contains("sync_interval"), "the allowed keys are listed: {error}");
        let error = refused(&MINIMAL.replace("[tls]", "[tsl]"));
        assert!(error.contains(":4: unknown key `tsl.ca`") && error.contains("`tls.ca`"), "{error}");
        let error = refused(&format!("{MINIMAL}[metrics]\n"));
        assert!(error.contains("n1.toml:7: unknown key `metrics`"), "{error}");
    }

    #[test]
    fn illegal_values_are_refused_where_they_stand() {
        for (old, new, wanted) in [
            ("node = \"n1\"", "node = \"N1\"", ":1: `node`: node id \"N1\" is not valid"),
            ("node = \"n1\"", "node = 1", ":1: `node` must be a string, not an integer"),
            ("node = \"n1\"", "node = [\"n1\"]", ":1: `node` must be a string, not an array of other things"),
            ("node = \"n1\"", "listen = \"127.0.0.1:7401\"", "`node` is missing"),
            ("data_dir = \"data\"", "", "`data_dir` is missing"),
            ("data_dir = \"data\"", "data_dir = \"\"", "must not be empty"),
            ("ca = \"ca.pem\"", "", "`tls.ca` is missing"),
            ("cert = \"n1.pem\"", "", "`tls.cert` is missing"),
            ("key = \"n1.key\"", "", "`tls.key` is missing"),
            ("[tls]", "listen = \"127.0.0.1\"\n[tls]", ":3: `listen`: "),
            ("[tls]", "listen = \"127.0.0.1:0\"\n[tls]", "port 0"),
            ("[tls]", "listen = \"n1 example:7400\"\n[tls]", "the host is no name"),
            ("[tls]", "listen = \"0.0.0.0:7400\"\n[tls]", "says nothing of where others reach this node"),
            ("[tls]", "advertise = \"0.0.0.0:7400\"\n[tls]", "nobody can dial"),
            ("[tls]", "listen = \"224.0.0.1:7400\"\n[tls]", ":3: `listen`: 224.0.0.1:7400 is a multicast address"),
            ("[tls]", "listen = \"[fe80::1%eth0]:7400\"\n[tls]", ":3: `listen`: [fe80::1%eth0]:7400 is a link-local"),
            (
                "[tls]",
                "advertise = \"255.255.255.255:7400\"\n[tls]",
                ":3: `advertise`: 255.255.255.255:7400 is the broad",
            ),
            ("[tls]", "advertise = \"[fe80::1%1]:7400\"\n[tls]", "is a link-local address"),
            ("[tls]", "http = \"[ff02::1]:7480\"\n[tls]", ":3: `http`: [ff02::1]:7480 is a multicast"),
            ("[tls]", "join = [\"n2:7400\", \"0.0.0.0:7400\"]\n[tls]", ":3: `join`: 0.0.0.0:7400 means all addresses"),
            ("[tls]", "join = [\"[fe80::1%2]:7400\"]\n[tls]", ":3: `join`: [fe80::1%2]:7400 is a link-local"),
            ("[tls]", "join = \"n2:7400\"\n[tls]", "`join` must be an array of strings, not a string"),
            ("[tls]", "join = [\"n2\"]\n[tls]", ":3: `join`: \"n2\" is no address (the port is missing)"),
            ("[tls]", "join = [7400]\n[tls]", "`join` must be an array of strings"),
            ("[tls]", "durability = \"never\"\n[tls]", "always, group or interval"),
            ("[tls]", "sync_interval = \"100ms\"\n[tls]", "says nothing with durability group"),
            ("[tls]", "durability = \"interval\"\nsync_interval = \"0ms\"\n[tls]", "out of range: 1ms to 1m"),
            ("[tls]", "durability = \"interval\"\nsync_interval = \"5\"\n[tls]", "lacks a unit: write 5ms or 5s"),
            (
                "[tls]",
                "request_memory_mib = 63\n[tls]",
                ":3: `request_memory_mib`: 63 MiB is out of range: 64 to 1048576",
            ),
            ("[tls]", "request_memory_mib = -1\n[tls]", "no number of MiB"),
            ("[tls]", "http = \"localhost\"\n[tls]", ":3: `http`: "),
            ("[tls]", "log = { format = \"xml\" }\n[tls]", "pretty or json"),
            ("[tls]", "disk_reserve = \"much\"\n[tls]", ":3: `disk_reserve`: \"much\" is no reserve"),
            ("[tls]", "log.files = 3\n[tls]", "`log.files`: it says nothing without a log file"),
            ("[tls]", "log = { file = \"l\", file_size = 10 }\n[tls]", "too small"),
            ("[tls]", "log = { file = \"l\", files = -1 }\n[tls]", "no number of files"),
            ("[tls]", "log.level = \"dbug\"\n[tls]", ":3: `log.level`: \"dbug\" is no log level"),
            ("[tls]", "log.level = \"info,quorate_node=loud\"\n[tls]", "is no log level"),
            ("[tls]", "[tls", ":3: "),
        ] {
            let error = refused(&MINIMAL.replace(old, new));
            assert!(error.contains(wanted), "{new}: {error}");
        }
    }

    #[test]
    fn a_flag_counts_before_a_variable_before_the_file_before_the_default() {
        let text = format!("listen = \"127.0.0.1:1111\"\n{MINIMAL}");
        let variables = |name: &str| (name == "QUORATE_SERVER_LISTEN").then(|| "127.0.0.1:2222".to_owned());
        let flags =
            ServerFlags { listen: Some("127.0.0.1:3333".parse().expect("an address")), ..ServerFlags::default() };
        let port = |config: Result<ServerConfig, String>| config.expect("legal").listen.port();
        assert_eq!(port(parse(MINIMAL)), 7400);
        assert_eq!(port(parse(&text)), 1111);
        assert_eq!(port(parse_with(&text, ServerFlags::default(), &variables)), 2222);
        assert_eq!(port(parse_with(&text, flags, &variables)), 3333);
    }

    #[test]
    fn a_server_has_variables_of_its_own_and_knows_where_each_value_came_from() {
        assert!(SERVER_KEYS.iter().all(|key| key.variable.starts_with("QUORATE_SERVER_")));
        // What clients are told says nothing to a server: `export QUORATE_CERT=..` must not change a node.
        let of_clients = |name: &str| (!name.starts_with("QUORATE_SERVER_")).then(|| "wrong".to_owned());
        let config = parse_with(MINIMAL, ServerFlags::default(), &of_clients).expect("legal");
        assert_eq!(config.tls.cert, Path::new("/etc/quorate/n1.pem"));
        let variables = |name: &str| (name == "QUORATE_SERVER_HTTP").then(|| "127.0.0.1:1".to_owned());
        let flags = ServerFlags { log_format: Some(LogFormat::Json), ..ServerFlags::default() };
        let config = parse_with(MINIMAL, flags, &variables).expect("legal");
        let origins: BTreeMap<_, _> =
            config.rows().into_iter().map(|(name, value, origin)| (name, (value, origin))).collect();
        let of = |name: &str| (&*origins[name].0, &*origins[name].1);
        assert_eq!(of("tls.cert"), ("/etc/quorate/n1.pem", "/etc/quorate/n1.toml:5"));
        assert_eq!(of("http"), ("127.0.0.1:1", "QUORATE_SERVER_HTTP"));
        assert_eq!(of("log.format"), ("json", "--log-format"));
        assert_eq!(of("sync_interval"), ("100ms", "default"));
        assert_eq!((of("request_memory_mib"), of("disk_reserve")), (("256", "default"), ("auto", "default")));
        assert_eq!((of("log.file"), of("log.files")), (("-", "default"), ("-", "default")));
        let variables = |name: &str| match name {
            "QUORATE_SERVER_LOG_FILE" => Some("n1.log".to_owned()),
            "QUORATE_SERVER_LOG_FILE_SIZE" => Some("1048576".to_owned()),
            "QUORATE_SERVER_DISK_RESERVE" => Some("10%".to_owned()),
            "QUORATE_SERVER_REQUEST_MEMORY_MIB" => Some("64".to_owned()),
            "QUORATE_SERVER_LAYOUT_CHANGES" => Some("experimental".to_owned()),
            _ => None,
        };
        let rows = parse_with(MINIMAL, ServerFlags::default(), &variables).expect("legal").rows();
        let of =
            |name: &str| rows.iter().find(|(other, ..)| *other == name).map(|(_, value, from)| (&**value, &**from));
        assert_eq!(of("log.file"), Some(("n1.log", "QUORATE_SERVER_LOG_FILE")));
        assert_eq!(of("log.file_size"), Some(("1MiB", "QUORATE_SERVER_LOG_FILE_SIZE")));
        assert_eq!(of("log.files"), Some(("5", "default")));
        assert_eq!(of("disk_reserve"), Some(("10%", "QUORATE_SERVER_DISK_RESERVE")));
        assert_eq!(of("layout_changes"), Some(("experimental", "QUORATE_SERVER_LAYOUT_CHANGES")));
        assert_eq!(of("request_memory_mib"), Some(("64", "QUORATE_SERVER_REQUEST_MEMORY_MIB")));
        assert_eq!(origins.len(), SERVER_KEYS.len());
    }

    #[test]
    fn an_illegal_variable_is_named() {
        let variables = |name: &str| (name == "QUORATE_SERVER_DURABILITY").then(|| "sometimes".to_owned());
        let error = parse_with(MINIMAL, ServerFlags::default(), &variables).expect_err("illegal");
        assert!(error.starts_with("QUORATE_SERVER_DURABILITY: \"sometimes\""), "{error}");
    }

    #[test]
    fn paths_of_flags_and_variables_are_relative_to_the_working_directory() {
        let variables = |name: &str| (name == "QUORATE_SERVER_CA").then(|| "here.pem".to_owned());
        let flags = ServerFlags { data_dir: Some("there".into()), ..ServerFlags::default() };
        let config = parse_with(MINIMAL, flags, &variables).expect("legal");
        assert_eq!((config.tls.ca, config.data_dir), ("here.pem".into(), "there".into()));
    }

    #[test]
    fn endpoints_are_names_or_addresses_with_a_port() {
        for good in ["10.0.0.1:7400", "[::1]:7400", "n1:1", "n1.example.org:65535", "a_b:7400"] {
            assert_eq!(good.parse::<Endpoint>().expect("legal").to_string(), good);
        }
        for bad in [
            "",
            "n1",
            "n1:",
            "n1:0",
            "n1:65536",
            ":7400",
            "n 1:7400",
            "::1:7400",
            "a..b:7400",
            "http://n1:7400",
            "10.0.0.1:0",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "[::1]:7400".parse::<Endpoint>().expect("legal").as_addr(),
            Some("[::1]:7400".parse().expect("an address"))
        );
        assert_eq!("n1:7400".parse::<Endpoint>().expect("legal").as_addr(), None);
    }
}
