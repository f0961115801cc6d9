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
fn mistakes_are_told_and_end_with_2() {
    let (no_plan, impossible) = (file("no-plan.json"), file("impossible.json"));
    fs::write(&no_plan, "{\"seed\": 1}").expect("it can be written");
    let plan = Plan { n: 9, ..hopeless() };
    fs::write(&impossible, serde_json::to_string(&plan).expect("plain data")).expect("it can be written");
    let mistakes: [(&[&str], &str); 10] = [
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
    ];
    for (arguments, told) in mistakes {
        let ended = sim(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {}", text(&ended.stdout));
        assert!(text(&ended.stderr).contains(told), "{arguments:?}: {}", text(&ended.stderr));
        assert_eq!(text(&ended.stdout), "", "{arguments:?}");
    }
}
