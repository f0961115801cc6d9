//! The story of a life as text and as a page: the same each time, whole, and without any effect on the life.

use std::sync::OnceLock;

use quorate_sim::explain::explain;
use quorate_sim::life::{self, Report};
use quorate_sim::plan::{FaultClass, Plan};
use quorate_sim::report::page;
use quorate_sim::story::Story;
use quorate_sim::tale::Tale;
use quorate_sim::trace::Trace;

/// A life with some faults and few operations.
fn plan() -> Plan {
    let mut plan = Plan::draw(7, &FaultClass::survivable());
    plan.workload.operations = 12;
    plan.workload.keys = 3;
    plan
}

fn told() -> (Report, Tale) {
    let story = Story::new();
    let report = life::run_told(&plan(), Trace::new(), Some(story.clone()));
    let tale = Tale::of_life(&report, &story);
    (report, tale)
}

fn once() -> &'static (Report, Tale) {
    static ONCE: OnceLock<(Report, Tale)> = OnceLock::new();
    ONCE.get_or_init(told)
}

#[test]
fn telling_changes_nothing_and_tells_the_same_each_time() {
    let (report, tale) = once();
    assert_eq!(report.failure, None, "{report}");
    let silent = life::run(&plan(), Trace::new());
    assert_eq!(report.hash, silent.hash);
    assert_eq!(report.to_string(), silent.to_string());
    let (_, again) = told();
    for key in tale.keys() {
        assert_eq!(explain(tale, key), explain(&again, key));
    }
    assert_eq!(page(tale), page(&again));
}

#[test]
fn the_story_of_a_key_has_all_that_was_done_with_it() {
    let (report, tale) = once();
    let key = tale.keys()[0];
    let text = explain(tale, key);
    for operation in report.history.operations.values().filter(|operation| operation.key == key) {
        let begins = text
            .lines()
            .filter(|line| line.get(WHAT..).is_some_and(|what| what.starts_with(&format!("{}: ", operation.no))))
            .count();
        assert_eq!(begins, 2, "operation {} begins and ends once each:\n{text}", operation.no);
        // A coordinator may be dead before it has told anything, but an acknowledged write was minted, and somebody decided so.
        if operation.acknowledged() {
            assert!(text.contains(&format!("decides operation {}: done", operation.no)), "{}:\n{text}", operation.no);
        }
    }
    for fault in &tale.bands {
        assert!(text.contains(&fault.what), "{fault:?}");
    }
    for part in
        ["mints v", "merges v", "reads: it", "at the end n", "all replicas together show", "no promise was broken"]
    {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    let times: Vec<f64> = text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
    assert!(times.len() > 20 && times.is_sorted(), "lines are in the order of time");
    assert!(explain(tale, "no such key").contains("nobody asked for it"));
}

#[test]
fn messages_have_two_ends() {
    let (_, tale) = once();
    let hops: Vec<_> = tale.keys().into_iter().flat_map(|key| tale.hops(key)).collect();
    for what in ["put", "get", "replicate", "fetch"] {
        let some = hops.iter().filter(|hop| hop.what == what);
        let whole = some.filter(|hop| hop.came && hop.arrived_us.is_some()).collect::<Vec<_>>();
        assert!(!whole.is_empty(), "no {what} was answered");
        for hop in whole {
            let times = [Some(hop.asked_us), hop.arrived_us, hop.answered_us, hop.told_us];
            let times: Vec<u64> = times.into_iter().flatten().collect();
            assert!(times.len() == 4 && times.is_sorted(), "{hop:?}");
            assert!(hop.from != hop.to && !hop.from.is_empty() && hop.to.starts_with('n'), "{hop:?}");
        }
    }
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let (_, tale) = once();
    let page = page(tale);
    for outside in ["http://", "https://", "src=", "href=", "@import", "url(h", "<link", "<iframe"] {
        assert!(!page.contains(outside), "the page refers to something outside of it: {outside}");
    }
    balanced(&page);
    for part in ["<svg class=\"overview\"", "<svg class=\"diagram\"", "class=\"hop replicate\"", "<path class=\"mint\""]
    {
        assert!(page.contains(part), "{part} is missing");
    }
    for key in tale.keys() {
        assert!(page.contains(&format!(">{key}</label>")), "{key} cannot be chosen");
    }
    assert!(!page.contains("NaN") && !page.contains("=\"inf"), "some place on the page is none");
}

/// Where what happened begins in a line: behind the time and who did it.
const WHAT: usize = 23;

/// Every element that begins ends, in the right order.
fn balanced(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        if tag.starts_with('!') {
            continue;
        }
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "something else was open");
            continue;
        }
        let name = tag.split([' ', '\n', '/']).next().expect("a tag has a name");
        // What is no markup is skipped.
        if matches!(name, "script" | "style") {
            let end = format!("</{name}>");
            rest = &rest[rest.find(&end).expect("it ends") + end.len()..];
        } else if !tag.ends_with('/') && !matches!(name, "meta" | "input") {
            open.push(name);
        }
    }
    assert_eq!(open, [] as [&str; 0], "never closed");
}
