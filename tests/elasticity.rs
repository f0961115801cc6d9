//! The layout changes under real processes and real load: nodes join and leave, a dead one is replaced, one that others copy from is
//! killed in the middle. No request may fail, no acknowledged write be missed, and who has left holds nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use quorate_tests::load::Load;
use quorate_tests::processes::{Cluster, Process, Said, eventually_within, root};
use serde_json::Value;

/// How large the cluster is in which the same happens.
struct Scale {
    partitions: u32,
    /// Keys that are written once, before anything happens.
    kept: usize,
    value_len: usize,
    clients: usize,
    /// How long one change may take.
    patience: Duration,
    /// The change is caught in the middle when the source is killed, or the run says nothing.
    in_the_middle: bool,
}

#[test]
fn nodes_join_leave_and_are_replaced_under_load() {
    let patience = Duration::from_secs(60);
    let scale = Scale { partitions: 128, kept: 200, value_len: 100, clients: 4, patience, in_the_middle: false };
    grow_and_shrink(&scale);
}

/// `scripts/grow-and-shrink` runs it.
#[test]
#[ignore = "takes minutes"]
fn nodes_join_leave_and_are_replaced_under_load_at_full_size() {
    let kept = std::env::var("QUORATE_RECORDS").map_or(30_000, |text| text.parse().expect("a number of records"));
    let patience = Duration::from_secs(300);
    grow_and_shrink(&Scale { partitions: 1024, kept, value_len: 1024, clients: 8, patience, in_the_middle: true });
}

fn grow_and_shrink(scale: &Scale) {
    let mut story = Story::begin(scale);

    say("n4 and n5 join, n2 is killed while they copy from it");
    let mut page = story.carry_out("Grow", 2);
    let watch = story.watch();
    let moved = story.await_some(2);
    story.kill(2);
    assert!(moved < scale.partitions || !scale.in_the_middle, "the change was over too soon: use more records");
    say(&format!("   {moved} of {} partitions had moved when n2 was killed (-9)", scale.partitions));
    story.await_load("without n2");
    story.start(2);
    story.await_over(2);
    story.expect_watched(watch, 2);
    story.go_on(&mut page);
    story.expect_balance(&[1, 2, 3, 4, 5]);

    say("n3 dies for good, n6 takes its place");
    story.kill(3);
    story.await_load("without n3");
    let mut page = story.carry_out("Replace a dead node", 3);
    story.go_on(&mut page);
    story.await_over(3);
    story.expect_balance(&[1, 2, 4, 5, 6]);

    say("n1 gets twice the weight, n4 and n5 are in another zone");
    let mut page = story.carry_out("Change weights and zones", 4);
    story.await_over(4);
    story.go_on(&mut page);

    say("n2 and n5 leave");
    let mut page = story.carry_out("Shrink", 5);
    story.await_over(5);
    story.expect_balance(&[1, 4, 6]);
    story.await_load("with three nodes");

    story.expect_empty(&[2, 5]);
    story.go_on(&mut page);
    for number in [2, 5] {
        story.running.retain(|running| *running != number);
        assert!(story.cluster.terminate(number).success());
    }
    // The replaced one comes back with all that it had, and one that has left with nothing.
    story.start(3);
    story.start(2);
    story.expect_empty(&[2, 3]);
    assert_eq!(story.unread, [""; 0], "every section of the page with commands was carried out");
    story.end();
}

/// The commands of the operator's page, by section.
fn page() -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(root().join("docs/changing-the-layout.md")).expect("there is one");
    let sections = text.split("\n## ").skip(1).map(|section| {
        let commands = section.lines().filter_map(|line| line.strip_prefix("    "));
        let commands = commands.map(|line| line.split('#').next().unwrap_or_default().trim().to_owned());
        (section.lines().next().expect("its title").to_owned(), commands.collect())
    });
    sections.filter(|(_, commands): &(_, Vec<_>)| !commands.is_empty()).collect()
}

/// A cluster under load.
struct Story<'a> {
    scale: &'a Scale,
    cluster: Cluster,
    load: Load,
    running: Vec<usize>,
    /// Of each node: bytes that its earlier processes had copied.
    copied: BTreeMap<usize, u64>,
    /// Bytes that all had copied when the change under way began.
    before: u64,
    /// The least that the change under way has to copy, in bytes.
    least: f64,
    profile: PathBuf,
    /// So many writes of unknown outcome were told.
    unknown: usize,
    page: BTreeMap<String, Vec<String>>,
    /// Sections of the page of which nothing was carried out yet.
    unread: Vec<String>,
}

impl<'a> Story<'a> {
    fn begin(scale: &'a Scale) -> Self {
        // What clients and nodes know beforehand are the first three.
        let mut cluster = Cluster::prepare_with(6, 3);
        cluster.found(3, &["--replicas", "3", "--partitions", &scale.partitions.to_string()]);
        let profile = cluster.dir().join("client.toml");
        let load = Load::start(&profile, scale.clients, scale.kept, scale.value_len);
        let (len, keys) = load.size();
        say(&format!("three nodes, {} partitions, {keys} keys of {len} bytes, R = W = 2", scale.partitions));
        // The page makes these.
        for file in ["n4.pem", "n4.key", "n5.pem", "n5.key", "n6.pem", "n6.key"] {
            std::fs::remove_file(cluster.dir().join("certs").join(file)).expect("it was made with the others");
        }
        let (running, page, copied) = (vec![1, 2, 3], page(), BTreeMap::new());
        let unread = page.keys().cloned().collect();
        let story =
            Self { scale, cluster, load, running, copied, before: 0, least: 0.0, profile, unknown: 0, page, unread };
        story.await_load("before anything happens");
        story
    }

    /// Runs a command as an operator does.
    fn run(&self, line: &str) -> Said {
        let mut line = line.to_owned();
        for number in 1..=6 {
            line = line.replace(&format!("10.0.0.{number}:7400"), &self.cluster.addr(number).to_string());
        }
        self.cluster.run(&line.split(' ').skip(1).collect::<Vec<_>>())
    }

    /// Carries out a section of the page up to the `apply` of this version; returns the rest.
    fn carry_out(&mut self, section: &str, version: u64) -> VecDeque<String> {
        let mut commands: VecDeque<String> = self.page.remove(section).expect("the page has it").into();
        self.unread.retain(|unread| unread != section);
        let apply = format!("quorate layout apply --version {version}");
        while let Some(line) = commands.pop_front() {
            if line == apply {
                self.apply(version, &line);
                return commands;
            }
            self.carry_out_line(&line);
        }
        panic!("{section:?} has no {apply:?}");
    }

    fn go_on(&mut self, commands: &mut VecDeque<String>) {
        while let Some(line) = commands.pop_front() {
            self.carry_out_line(&line);
        }
    }

    fn carry_out_line(&mut self, line: &str) {
        match line.strip_prefix("quorate server --config n").and_then(|rest| rest.strip_suffix(".toml")) {
            Some(number) => self.start(number.parse().expect("the number of a node")),
            // It ends with the change: however long that takes, the test does not wait for ever.
            None if line.ends_with(" --watch") => {
                let (watch, version) = (self.watch(), self.shown()["current"]["version"].as_u64().expect("a number"));
                self.expect_watched(watch, version);
            }
            // A node that has just started may not be reachable yet.
            None => eventually_within(self.scale.patience, line, || (self.run(line).code == 0).then_some(())),
        }
    }

    /// Starts to look at what moves, until the change is over.
    fn watch(&self) -> (Process, PathBuf) {
        let path = self.cluster.write("watched", "");
        let file = || std::fs::File::options().append(true).open(&path).expect("it was made");
        let mut command = self.cluster.command(&["transfers", "--watch"]);
        (Process::start(command.stdout(file()).stderr(file())), path)
    }

    /// It ends when the change is over, has said so, and nothing else than how far it was.
    fn expect_watched(&self, (mut watch, path): (Process, PathBuf), version: u64) {
        let running = || (!watch.runs()).then_some(());
        eventually_within(self.scale.patience, "nobody watches a change that is over", running);
        let said = std::fs::read_to_string(path).expect("readable");
        assert!(watch.ended().success(), "{said}");
        let mut lines = said.lines().rev().skip_while(|line| !line.starts_with("no change is under way"));
        assert_eq!(lines.next(), Some(&*format!("no change is under way: layout {version} is in force")), "{said}");
        let of = format!(" of {} partitions have moved (", self.scale.partitions);
        let progress: Vec<&str> = lines.collect();
        let tells = |line: &&str| line.contains(&of) && line.contains(" records (") && line.contains(", ETA ");
        assert!(progress.iter().all(tells), "{said}");
        say(&format!("   watched in {} lines; {}", progress.len(), progress.get(progress.len() / 2).unwrap_or(&"-")));
    }

    fn start(&mut self, number: usize) {
        self.cluster.start_node(number);
        self.running.push(number);
        let lives =
            || self.cluster.http(number, "/metrics").filter(|(_, text)| text.contains("quorate_repair_bytes_total"));
        eventually_within(self.scale.patience, "a started node lives", lives);
    }

    fn kill(&mut self, number: usize) {
        *self.copied.entry(number).or_default() += self.copied_by(number);
        self.running.retain(|running| *running != number);
        self.cluster.kill(number);
    }

    fn copied_by(&self, number: usize) -> u64 {
        let of = |what| self.cluster.metric(number, &format!("quorate_repair_bytes_total{{what=\"{what}\"}}"));
        of("sent") + of("received")
    }

    fn copied(&self) -> u64 {
        self.copied.values().sum::<u64>() + self.running.iter().map(|number| self.copied_by(*number)).sum::<u64>()
    }

    /// Applies what is staged.
    fn apply(&mut self, version: u64, line: &str) {
        let shown = self.shown();
        assert_eq!(shown["problems"], Value::Array(Vec::new()), "{shown}");
        let number = |name: &str| shown["moves"][name].as_f64().unwrap_or_else(|| panic!("no {name}: {shown}"));
        let (len, keys) = self.load.size();
        self.least = number("least") / f64::from(self.scale.partitions) * (len * keys) as f64;
        self.before = self.copied();
        say(&format!(
            "   staged: {} replicas of partitions move, {} at least; balance {:.3} afterwards",
            number("replicas"),
            number("least"),
            number("balance_after")
        ));
        self.run(line).expect(0, &[&format!("layout version {version}")]);
    }

    fn shown(&self) -> Value {
        self.run("quorate layout show -o json").expect(0, &[]).json()
    }

    /// Waits until a part has moved: how many partitions.
    fn await_some(&self, version: u64) -> u32 {
        eventually_within(self.scale.patience, "partitions move", || {
            let shown = self.shown();
            let moved = match &shown["progress"] {
                Value::Null => self.scale.partitions,
                progress => progress["moved"].as_u64().expect("a number") as u32,
            };
            assert_eq!(shown["current"]["version"], version, "{shown}");
            (moved > self.scale.partitions / 10).then_some(moved)
        })
    }

    /// Waits until every running node knows that the change is over.
    fn await_over(&mut self, version: u64) {
        let (begun, load) = (tokio::time::Instant::now(), self.load.tally().done());
        eventually_within(self.scale.patience, &format!("every partition has moved to layout {version}"), || {
            self.running.iter().all(|number| self.is_over(*number, version)).then_some(())
        });
        let history = self.run("quorate layout history").expect(0, &[]);
        assert!(
            history.out.lines().any(|line| line.starts_with(&version.to_string()) && line.contains("yes")),
            "{history}"
        );
        let copied = (self.copied() - self.before) as f64;
        let (mib, factor) = (f64::from(1 << 20), copied / self.least);
        say(&format!(
            "   over after {:.1} s, {} requests meanwhile; {:.2} MiB copied, the least is {:.2} MiB: {factor:.2} times",
            begun.elapsed().as_secs_f64(),
            self.load.tally().done() - load,
            copied / mib,
            self.least / mib,
        ));
        let unknown = self.load.tally().unknown();
        for unknown in &unknown[self.unknown..] {
            say(&format!("   unknown: {unknown}"));
        }
        self.unknown = unknown.len();
        self.expect_well();
    }

    fn is_over(&self, number: usize, version: u64) -> bool {
        let said = self.run(&format!("quorate layout show -o json --on 10.0.0.{number}:7400"));
        said.code == 0 && said.json()["live"] == serde_json::json!([version])
    }

    /// Waits until the load has gone on for a while.
    fn await_load(&self, when: &str) {
        let goal = self.load.tally().done() + 100;
        eventually_within(self.scale.patience, &format!("requests {when}"), || {
            (self.load.tally().done() >= goal || !self.load.tally().wrong().is_empty()).then_some(())
        });
        self.expect_well();
    }

    #[track_caller]
    fn expect_well(&self) {
        let wrong = self.load.tally().wrong();
        assert!(wrong.is_empty(), "{} requests failed or were wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// These are the members, and none has much more than its share.
    fn expect_balance(&self, numbers: &[usize]) {
        let shown = self.shown();
        let members = shown["current"]["members"].as_array().expect("a list");
        let names: Vec<_> = members.iter().map(|member| member["node"].as_str().expect("a name").to_owned()).collect();
        assert_eq!(names, numbers.iter().map(|number| format!("n{number}")).collect::<Vec<_>>(), "{shown}");
        let most = members.iter().filter_map(|member| member["primaries"].as_u64()).max().expect("there are members");
        let balance = most as f64 * members.len() as f64 / f64::from(3 * self.scale.partitions);
        assert!(balance <= 1.06, "a member owns {balance:.3} times its share: {shown}");
        say(&format!("   balance {balance:.3}"));
    }

    /// These nodes are no members, and hold neither records nor hints any more.
    fn expect_empty(&self, numbers: &[usize]) {
        for number in numbers {
            eventually_within(self.scale.patience, &format!("n{number} holds nothing"), || {
                let said = self.run(&format!("quorate status -o json --on 10.0.0.{number}:7400"));
                if said.code != 0 {
                    return None;
                }
                let status = said.json();
                let why = status["not_serving"].as_str().unwrap_or_default();
                why.contains("it holds no data").then_some(())
            });
        }
    }

    fn end(self) {
        let (read, tally) = self.load.end(&self.profile);
        let wrong = tally.wrong();
        assert!(wrong.is_empty(), "{} requests failed or were wrong:\n{}", wrong.len(), wrong.join("\n"));
        say(&format!(
            "all is well: {} requests, none failed ({} retries; the outcome of {} writes was unknown, and told by the next read); \
             {read} keys read at the end, no acknowledged write is missing; {} reads were late, as their reply or the write's had said",
            tally.done(),
            tally.retried(),
            tally.unknown().len(),
            tally.late(),
        ));
    }
}

fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").expect("a test has a stdout");
}
