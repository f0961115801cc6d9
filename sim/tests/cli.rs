//! The commands as a user calls them: what they print, what they write, how they end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quorate_sim::plan::{Fault, FaultClass, FaultKind, Plan};

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate-sim")).args(arguments).output().expect("it starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// A file of this test's own, which does not exist yet.
fn file(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

/// A life in which more is destroyed than can be survived: every disk is exchanged for an empty one. Some further faults have
/// nothing to do with it.
fn hopeless() -> Plan {
    let mut plan = Plan::draw(3, &FaultClass::survivable()).plain();
    plan.zones = vec![0, 1, 2];
    plan.n = 3;
    plan.workload.clients = 2;
    plan.workload.keys = 2;
    plan.workload.operations = 20;
    plan.reckless = true;
    (plan.active_ms, plan.settle_ms) = (9_000, 2_000);
    let fault = |at_ms, kind| Fault { at_ms, for_ms: 500, kind };
    plan.faults = vec![
        fault(1_000, FaultKind::WrongClock { node: 1, offset_ms: 5_000 }),
        fault(4_000, FaultKind::PowerCut([0, 1, 2].into())),
        fault(5_000, FaultKind::EmptyDisk(0)),
        fault(5_000, FaultKind::EmptyDisk(1)),
        fault(5_000, FaultKind::EmptyDisk(2)),
    ];
    plan
}

#[test]
fn a_story_and_a_page_do_not_change_what_a_run_says() {
    let page = file("run.html");
    let plain = sim(&["run", "--seed", "5"]);
    let told = sim(&["run", "--seed", "5", "--explain", "key:0", "--report", page.to_str().expect("text")]);
    assert_eq!(plain.status.code(), Some(0), "{}", text(&plain.stderr));
    assert_eq!(told.status.code(), Some(0), "{}", text(&told.stderr));
    let (plain, told) = (text(&plain.stdout), text(&told.stdout));
    assert!(told.starts_with("the story of key:0, seed 5"), "{told}");
    assert!(told.ends_with(&plain), "the report comes last, as it is without a story");
    assert!(plain.contains("\nverdict: all promises kept ("), "{plain}");
    assert!(fs::read_to_string(page).expect("it was written").starts_with("<!DOCTYPE html>"));
}

#[test]
fn a_plan_that_was_printed_runs_as_its_seed_does() {
    let path = file("printed.json");
    fs::write(&path, sim(&["run", "--seed", "5", "--print-plan"]).stdout).expect("it can be written");
    let (seed, plan) = (sim(&["run", "--seed", "5"]), sim(&["run", "--plan", path.to_str().expect("text")]));
    assert_eq!(text(&seed.stdout), text(&plan.stdout));
}

#[test]
fn a_hopeless_life_is_shrunk_to_what_kills_it() {
    let (plan, out) = (file("hopeless.json"), file("shrunk.json"));
    fs::write(&plan, serde_json::to_string(&hopeless()).expect("plain data")).expect("it can be written");
    let run = sim(&["run", "--plan", plan.to_str().expect("text")]);
    assert_eq!(run.status.code(), Some(1), "{}", text(&run.stdout));
    assert!(text(&run.stdout).contains("VIOLATION Durable"), "{}", text(&run.stdout));
    let arguments = ["shrink", "--plan", plan.to_str().expect("text"), "--out", out.to_str().expect("text")];
    let shrink = sim(&[&arguments[..], &["--tries", "20"]].concat());
    let said = text(&shrink.stdout);
    assert_eq!(shrink.status.code(), Some(1), "{said}{}", text(&shrink.stderr));
    assert!(said.contains("has a violation of Durable"), "{said}");
    assert!(said.contains(&format!("reproduce: quorate-sim run --plan {}", out.display())), "{said}");
    assert!(text(&shrink.stderr).starts_with("try   1,"), "{}", text(&shrink.stderr));
    let shrunk: Plan = serde_json::from_str(&fs::read_to_string(&out).expect("it was written")).expect("a plan");
    assert!(shrunk.faults.len() < 5 && shrunk.workload.operations < 20, "{said}");
    let again = sim(&["run", "--plan", out.to_str().expect("text")]);
    assert!(text(&again.stdout).contains("VIOLATION Durable"), "{}", text(&again.stdout));
}

#[test]
fn a_life_that_is_good_has_nothing_to_shrink() {
    let shrink = sim(&["shrink", "--seed", "5"]);
    assert_eq!(shrink.status.code(), Some(0));
    assert_eq!(text(&shrink.stdout), "nothing to shrink: every promise is kept by --seed 5\n");
}

#[test]
fn scenarios_are_listed_run_and_drawn() {
    let list = text(&sim(&["scenario", "list"]).stdout);
    let name = list.split_whitespace().next().expect("there are some");
    let page = file("scenario.html");
    let run = sim(&["scenario", "run", name, "--report", page.to_str().expect("text"), "--explain", "cart"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stdout));
    assert!(text(&run.stdout).contains("the story of cart"), "{}", text(&run.stdout));
    assert!(fs::read_to_string(page).expect("it was written").contains("<svg class=\"diagram\""));
}

#[test]
fn all_scenarios_are_run_and_an_index_leads_to_their_pages() {
    let directory = file("scenarios");
    let _ = fs::remove_dir_all(&directory);
    let run = || sim(&["scenario", "run", "--all", "--report", directory.to_str().expect("text")]);
    let ended = run();
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let told = text(&ended.stdout);
    let index = fs::read_to_string(directory.join("index.html")).expect("it was written");
    for line in text(&sim(&["scenario", "list"]).stdout).lines() {
        let (name, about) = line.split_once(' ').expect("a name and what it is about");
        assert!(told.lines().any(|line| line.starts_with(name)), "{name} is missing:\n{told}");
        assert!(index.contains(&format!("<a href=\"{name}.html\">{name}</a>")), "{name} is missing:\n{index}");
        assert!(index.contains(&about.trim().replace('\'', "&#39;")), "{about} is missing:\n{index}");
        let page = fs::read_to_string(directory.join(format!("{name}.html"))).expect("it was written");
        assert!(page.contains("class=\"narration\""), "nobody tells what happens in {name}");
    }
    assert!(told.contains("\nverdict: all ") && told.ends_with(" went well\n"), "{told}");
    assert_eq!(text(&run().stdout), told, "a second run writes over the pages of the first one");
    assert_eq!(fs::read_to_string(directory.join("index.html")).expect("it was written"), index);
}

#[test]
fn a_story_is_as_long_as_one_likes() {
    let lines = |more: &[&str]| {
        let ended = sim(&[&["scenario", "run", "split-brain-cart", "--explain", "cart"], more].concat());
        assert_eq!(ended.status.code(), Some(0), "{more:?}: {}", text(&ended.stderr));
        let told = text(&ended.stdout);
        told.split_once("the story of cart").expect("it is told").1.to_owned()
    };
    let all = lines(&[]);
    assert!(all.contains(" lines; there are narration 5, faults 2, "), "{all}");
    let some = lines(&["--only", "narration,writes", "--to", "1s"]);
    assert!(some.starts_with(", a cart that is filled on both sides of a partition\n7 of "), "{some}");
    for part in
        ["#          Alice begins a cart.", "1: put \"milk\", having seen nothing", "2: acknowledged (1 of 3 answered"]
    {
        assert!(all.contains(part) && some.contains(part), "{part} is missing:\n{some}");
    }
    assert!(!some.contains("  mints ") && !some.contains("3: get"), "{some}");
    let of_bob = lines(&["--node", "bob", "--only", "reads", "--from", "3s"]);
    assert!(of_bob.contains("5: found \"milk, eggs\" | \"milk, bread\"") && !of_bob.contains("3: get"), "{of_bob}");
    assert!(lines(&["--operation", "4", "--only", "messages"]).contains("asks n2: replicate for operation 4; "));
}

#[test]
fn mistakes_are_told_and_end_with_2() {
    let (no_plan, impossible) = (file("no-plan.json"), file("impossible.json"));
    fs::write(&no_plan, "{\"seed\": 1}").expect("it can be written");
    let plan = Plan { n: 9, ..hopeless() };
    fs::write(&impossible, serde_json::to_string(&plan).expect("plain data")).expect("it can be written");
    let mistakes: [(&[&str], &str); 20] = [
        (&["run"], "--seed <SEED>"),
        (&["run", "--seed", "1", "--plan", "x"], "cannot be used with"),
        (&["run", "--seed", "many"], "invalid value 'many'"),
        (&["run", "--seed", "5", "--explain", "key:4000000"], "there is no key \"key:4000000\" in this life: it has"),
        (
            &["run", "--seed", "5", "--report", "/no/such/directory/page.html"],
            "/no/such/directory/page.html: No such file",
        ),
        (&["run", "--plan", "/no/such/plan.json"], "/no/such/plan.json: No such file"),
        (&["run", "--plan", no_plan.to_str().expect("text")], "it is no plan: missing field"),
        (&["run", "--plan", impossible.to_str().expect("text")], "the plan is not possible: n is 9"),
        (&["scenario", "run", "split"], "there is no scenario \"split\", only: split-brain-cart, "),
        (&["shrink", "--seed", "1", "--tries", "0"], "invalid value '0'"),
        (&["run", "--seed", "5", "--only", "writes"], "--explain <KEY>"),
        (&["run", "--seed", "5", "--explain", "key:0", "--print-plan"], "cannot be used with"),
        (
            &["run", "--seed", "5", "--explain", "key:0", "--only", "write"],
            "invalid value 'write' for '--only <KINDS>'",
        ),
        (&["run", "--seed", "5", "--explain", "key:0", "--from", "3"], "\"3\" is no moment: write it as 3s"),
        (&["run", "--seed", "5", "--explain", "key:0", "--node", "n99"], "nobody is called \"n99\": there are n1, "),
        (&["run", "--seed", "5", "--explain", "key:0", "--operation", "0"], "operation 0 is none on key:0, which has "),
        (&["scenario", "run"], "<NAME>"),
        (&["scenario", "run", "split-brain-cart", "--all"], "cannot be used with"),
        (&["scenario", "run", "--all", "--explain", "cart"], "cannot be used with"),
        (&["scenario", "run", "--all", "--report", no_plan.to_str().expect("text")], "no-plan.json: "),
    ];
    for (arguments, told) in mistakes {
        let ended = sim(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {}", text(&ended.stdout));
        assert!(text(&ended.stderr).contains(told), "{arguments:?}: {}", text(&ended.stderr));
        assert_eq!(text(&ended.stdout), "", "{arguments:?}");
    }
}
