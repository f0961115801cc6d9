//! Real processes on this machine: the `quorate` binary, clusters of it, and what one can do to them.
//!
//! Everything that is started here is killed when its guard is dropped, also by a panic. Waiting is for conditions, with limits
//! that a loaded machine with two cores keeps; no test asserts how fast something was.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

/// The `quorate` binary of the profile and the target directory that this test was built with; `QUORATE_BIN` names another.
///
/// Cargo tells only the tests of the binary's own package where it is, and does not build it for others. So it is built here,
/// once for each test process; when it is up to date that takes a tenth of a second.
pub fn quorate() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("QUORATE_BIN") {
            return named.into();
        }
        // target/<profile>/deps/<this test>
        let test = std::env::current_exe().expect("a process knows its file");
        let directory = test.ancestors().nth(2).expect("cargo puts tests two directories deep").to_owned();
        let profile = match directory.file_name().and_then(|name| name.to_str()).expect("named after the profile") {
            "debug" => "dev",
            other => other,
        };
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "build",
                "--quiet",
                "--locked",
                "--package",
                "quorate-node",
                "--bin",
                "quorate",
                "--profile",
                profile,
            ])
            .arg("--target-dir")
            .arg(directory.parent().expect("cargo puts profiles into the target directory"))
            .current_dir(root())
            .status()
            .expect("cargo runs, it has built this test");
        assert!(status.success(), "quorate does not build");
        directory.join("quorate")
    })
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a directory of the repository")
}

/// How long anything may take before a test calls it stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`PATIENCE`].
pub fn eventually<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, ask)
}

/// As [`eventually`], with another limit.
///
/// # Panics
/// When there is no answer within the limit.
pub fn eventually_within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(25));
    }
}

/// The first of a row of ports that are free, UDP and TCP, from `first + 1` to `first + 110`.
///
/// They lie below those that the system hands out by itself, and each test process begins somewhere else.
pub fn free_ports() -> u16 {
    const LOWEST: u16 = 11_000;
    const BLOCK: u16 = 120;
    const BLOCKS: u16 = 170;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..BLOCKS {
        let number = (std::process::id() as u16).wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let first = LOWEST + number % BLOCKS * BLOCK;
        let free = |offset: u16| {
            let addr = (Ipv4Addr::LOCALHOST, first + offset);
            UdpSocket::bind(addr).is_ok() && TcpListener::bind(addr).is_ok()
        };
        if (1..=6).chain(101..=106).all(free) {
            return first;
        }
    }
    panic!("this machine has no free ports");
}

/// What a command has said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// The exit code; -1 after a signal.
    pub code: i32,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

impl Said {
    /// Runs it to its end.
    ///
    /// # Panics
    /// When it does not start, or says what is no text.
    pub fn by(command: &mut Command) -> Self {
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let text = |bytes| String::from_utf8(bytes).expect("it speaks UTF-8");
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Asserts that it ended with this code and said all of this, on stdout or stderr.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self}");
        for word in words {
            assert!(self.out.contains(word) || self.err.contains(word), "{word:?} is missing: {self}");
        }
        self
    }

    /// The JSON on stdout: the data.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }

    /// The JSON on stderr: the error.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn error(&self) -> serde_json::Value {
        let last = self.err.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.out, self.err)
    }
}

/// A child process that dies with its guard.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// Sends a signal, such as `TERM`.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status();
        assert!(status.expect("kill runs").success(), "SIG{signal} for {}", self.0.id());
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end within [`PATIENCE`].
    pub fn ended(&mut self) -> ExitStatus {
        eventually("the end of a process", || self.0.try_wait().expect("it is a child"))
    }

    /// Whether it runs.
    ///
    /// # Panics
    /// Never: it is a child of this process.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().expect("it is a child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cluster of `quorate server` processes, with files in a directory of its own.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    base_port: u16,
    nodes: Vec<Option<Process>>,
}

impl Cluster {
    /// Makes the certificates and configurations of `count` nodes, and starts none.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn prepare(count: usize) -> Self {
        Self::prepare_with(count, count)
    }

    /// As [`prepare`](Self::prepare); nodes and clients know the first `seeds` nodes only.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn prepare_with(count: usize, seeds: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster = Self { dir, base_port: free_ports(), nodes: (0..count).map(|_| None).collect() };
        cluster.run(&["cert", "init"]).expect(0, &[]);
        cluster.run(&["cert", "client", "admin", "--admin"]).expect(0, &[]);
        let seeds: Vec<_> = (1..=seeds).map(|number| format!("\"{}\"", cluster.addr(number))).collect();
        let seeds = seeds.join(", ");
        for number in 1..=count {
            cluster.run(&["cert", "node", &format!("n{number}")]).expect(0, &[]);
            let (listen, http) = (cluster.addr(number), cluster.http_addr(number));
            let config = format!(
                "node = \"n{number}\"\nlisten = \"{listen}\"\nhttp = \"{http}\"\njoin = [{seeds}]\ndata_dir = \"data-n{number}\"\n\
                 layout_changes = \"experimental\"\n\
                 [tls]\nca = \"certs/ca.pem\"\ncert = \"certs/n{number}.pem\"\nkey = \"certs/n{number}.key\"\n"
            );
            cluster.write(&format!("n{number}.toml"), &config);
        }
        let profile = format!(
            "seeds = [{seeds}]\nca = \"certs/ca.pem\"\ncert = \"certs/admin.pem\"\nkey = \"certs/admin.key\"\n"
        );
        cluster.write("client.toml", &profile);
        cluster
    }

    /// Starts `count` nodes and makes them members of the first layout, with N = `count`.
    ///
    /// # Panics
    /// When they do not come up.
    pub fn start(count: usize) -> Self {
        let mut cluster = Self::prepare(count);
        cluster.found(count, &["--replicas", &count.to_string()]);
        cluster.await_healthy();
        cluster
    }

    /// Starts the first `members` nodes and makes them members of the first layout, with these settings.
    ///
    /// # Panics
    /// When they do not come up.
    pub fn found(&mut self, members: usize, settings: &[&str]) {
        for number in 1..=members {
            self.start_node(number);
        }
        let mut stage: Vec<String> = ["layout", "stage", "join"].map(str::to_owned).into();
        stage.extend((1..=members).map(|number| format!("n{number}={}", self.addr(number))));
        eventually("the members can be staged", || (self.run(&stage).code == 0).then_some(()));
        self.run(&[&["layout", "stage", "settings"], settings].concat()).expect(0, &[]);
        self.run(&["layout", "apply", "--version", "1"]).expect(0, &["layout version 1"]);
        for number in 1..=members {
            self.await_ready(number);
        }
    }

    /// Its directory: `certs/`, `n1.toml`, `data-n1/`, `n1.log`, `client.toml`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where a node listens.
    pub fn addr(&self, number: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + number as u16).into()
    }

    /// Where a node shows health and metrics.
    pub fn http_addr(&self, number: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.base_port + 100 + number as u16).into()
    }

    /// Writes a file in its directory.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        std::fs::write(&path, text).expect("written");
        path
    }

    /// A command of the administrator. It has much time for each request, because the machine may be busy.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = bare_command(self.dir());
        command.args(args).env("QUORATE_CONFIG", "client.toml").env("QUORATE_TIMEOUT", "10s");
        command
    }

    /// Runs a command of the administrator.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Said {
        Said::by(&mut self.command(args))
    }

    /// Starts a node that does not run.
    ///
    /// # Panics
    /// When it does.
    pub fn start_node(&mut self, number: usize) {
        let mut command = bare_command(self.dir());
        command.args(["server", "--config", &format!("n{number}.toml")]);
        self.start_node_by(number, command);
    }

    /// Starts a node with another command line; its output goes to its log.
    ///
    /// # Panics
    /// When it runs already.
    pub fn start_node_by(&mut self, number: usize, mut command: Command) {
        assert!(self.nodes[number - 1].is_none(), "n{number} runs already");
        let log = File::options().create(true).append(true).open(self.log_path(number)).expect("a log");
        command.stderr(log.try_clone().expect("a second handle")).stdout(log);
        self.nodes[number - 1] = Some(Process::start(&mut command));
    }

    /// The process of a node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn node(&mut self, number: usize) -> &mut Process {
        self.nodes[number - 1].as_mut().unwrap_or_else(|| panic!("n{number} does not run"))
    }

    /// Ends a node with kill -9.
    pub fn kill(&mut self, number: usize) {
        self.nodes[number - 1] = None;
    }

    /// Ends a node with SIGTERM.
    ///
    /// # Panics
    /// When that fails, or the node does not end.
    pub fn terminate(&mut self, number: usize) -> ExitStatus {
        let mut node = self.nodes[number - 1].take().expect("it runs");
        node.signal("TERM");
        node.ended()
    }

    /// Waits until a node has ended by itself.
    ///
    /// # Panics
    /// When it does not.
    pub fn await_end(&mut self, number: usize) -> ExitStatus {
        self.nodes[number - 1].take().expect("it was started").ended()
    }

    /// All that a node has logged.
    pub fn log(&self, number: usize) -> String {
        std::fs::read_to_string(self.log_path(number)).unwrap_or_default()
    }

    /// Waits until a node says that it serves.
    ///
    /// # Panics
    /// When it does not, or ends.
    pub fn await_ready(&mut self, number: usize) {
        self.await_http(number, "/readyz", |status, _| status == 200);
    }

    /// Waits until every node counts all nodes as up, and `status --check` agrees.
    ///
    /// # Panics
    /// When that does not come about.
    pub fn await_healthy(&mut self) {
        let all = self.nodes.len().to_string();
        for number in 1..=self.nodes.len() {
            self.await_http(number, "/metrics", |_, text| metric(text, "quorate_nodes_up") == Some(all.clone()));
        }
        eventually("the cluster is well", || (self.run(&["status", "--check"]).code == 0).then_some(()));
    }

    fn await_http(&mut self, number: usize, path: &str, fits: impl Fn(u16, &str) -> bool) {
        eventually(&format!("n{number} answers {path} as expected"), || {
            assert!(self.node(number).runs(), "n{number} has ended");
            self.http(number, path).filter(|(status, body)| fits(*status, body))
        });
    }

    /// Fetches a page of a node's HTTP port: status and body.
    pub fn http(&self, number: usize, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.http_addr(number)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// One number of a node's metrics.
    ///
    /// # Panics
    /// When the node does not show it.
    pub fn metric(&self, number: usize, name: &str) -> u64 {
        let (_, text) = self.http(number, "/metrics").expect("the node shows its metrics");
        metric(&text, name).and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    fn log_path(&self, number: usize) -> PathBuf {
        self.dir().join(format!("n{number}.log"))
    }
}

/// What the nodes have said is worth reading when a test has failed.
impl Drop for Cluster {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let mut logs = String::new();
        for number in 1..=self.nodes.len() {
            let log = self.log(number);
            let from = log.lines().count().saturating_sub(25);
            let tail: Vec<_> = log.lines().skip(from).collect();
            let _ = writeln!(logs, "--- n{number}.log\n{}", tail.join("\n"));
        }
        let _ = std::io::stderr().write_all(logs.as_bytes());
    }
}

/// `quorate` in a directory, with nothing of the environment and the user's own configuration.
pub fn bare_command(dir: &Path) -> Command {
    let mut command = Command::new(quorate());
    command.current_dir(dir);
    isolate(&mut command, dir);
    command
}

/// Hides from a command what the environment and the user have configured for Quorate.
pub fn isolate(command: &mut Command, dir: &Path) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    command.env("XDG_CONFIG_HOME", dir.join("no-config")).env("QUORATE_DEV_DIR", dir.join("dev"));
}

fn metric(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::to_owned)
}
