//! The story of a life as text and as a page: the same each time, whole, and without any effect on the life.

use std::sync::OnceLock;

use quorate_sim::explain::{Filter, Kind, explain, explain_some};
use quorate_sim::life::{self, Report};
use quorate_sim::plan::{FaultClass, Plan};
use quorate_sim::report::{Entry, index, page};
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
    for part in [
        "mints v",
        "merges v",
        "reads from disk: ",
        "at the end n",
        "all replicas together show",
        "no promise was broken",
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}");
    }
    let lines = text.lines().skip_while(|line| !line.starts_with("   time ms"));
    let times: Vec<f64> = lines.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
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
    assert_eq!(page.matches("<marker id=").count(), 1, "pictures that are hidden do not hide it");
    for kind in ["faults", "writes", "merges"] {
        let hides = format!(".story:has(input.{kind}:not(:checked)) span.{kind} {{ display: none }}");
        for part in [
            &hides,
            &format!("<input type=\"checkbox\" class=\"{kind}\" checked>"),
            &format!("<span class=\"{kind}\">"),
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
    }
    for key in tale.keys() {
        assert!(page.contains(&format!(">{key}</label>")), "{key} cannot be chosen");
    }
    assert!(!page.contains("NaN") && !page.contains("=\"inf"), "some place on the page is none");
}

/// The layout has its own idea of how wide texts are. This one is cruder, and looks at what is on the page.
#[test]
fn no_two_texts_of_a_picture_cover_each_other() {
    let (_, tale) = once();
    let page = page(tale);
    let mut texts_seen = 0;
    for svg in page.split("<svg ").skip(1) {
        let (svg, _) = svg.split_once("</svg>").expect("a picture ends");
        let texts: Vec<([f64; 4], &str)> = svg.split("<text ").skip(1).map(covered).collect();
        texts_seen += texts.len();
        for (at, (one, text)) in texts.iter().enumerate() {
            for (other, other_text) in &texts[at + 1..] {
                let apart = one[2] <= other[0] || other[2] <= one[0] || one[3] <= other[1] || other[3] <= one[1];
                assert!(apart, "{text:?} at {one:?} and {other_text:?} at {other:?}");
            }
        }
    }
    assert!(texts_seen > 300, "{texts_seen} texts are too few to show anything");
}

/// What a text covers, from left, top, right and bottom, and what it says.
fn covered(element: &str) -> ([f64; 4], &str) {
    let (attributes, rest) = element.split_once('>').expect("a tag ends");
    let (content, _) = rest.split_once("</text>").expect("a text ends");
    let attribute = |name: &str| {
        let (_, value) = attributes.split_once(&format!("{name}=\""))?;
        value.split('"').next()
    };
    let number = |name: &str| attribute(name).map(|value| value.parse::<f64>().expect("a number"));
    let (x, y) = (number(" x").expect("a place"), number(" y").expect("a place"));
    let size = number("font-size").unwrap_or(10.5);
    let width = 0.45 * size * content.replace("&quot;", "\"").chars().count() as f64;
    let left = match attribute("text-anchor") {
        Some("middle") => x - width / 2.0,
        Some("end") => x - width,
        other => {
            assert_eq!(other, None);
            x
        }
    };
    ([left, y - 0.75 * size, left + width, y + 0.2 * size], content)
}

#[test]
fn a_filter_leaves_what_it_says() {
    let (report, tale) = once();
    let key = tale.keys()[0];
    // Without the head and what became of the key.
    let lines = |filter: &Filter| -> Vec<String> {
        let text = explain_some(tale, key, filter);
        let timed = |line: &&str| line.split_whitespace().next().is_some_and(|time| time.parse::<f64>().is_ok());
        let lines = text.lines().skip_while(|line| !line.starts_with("   time ms")).filter(timed);
        lines.map(str::to_owned).collect()
    };
    let told = |filter: &Filter| {
        let text = explain_some(tale, key, filter);
        let head = text.lines().nth(1).expect("it has a head").to_owned();
        let count = |part: &str| part.trim().split(' ').next().and_then(|count| count.parse::<usize>().ok());
        let (shown, rest) = head.split_once(" of ").expect("so many of so many");
        (count(shown).expect("a number"), count(rest).expect("a number"))
    };
    let all = lines(&Filter::default());
    let only = |kinds: &[Kind]| Filter { only: kinds.iter().copied().collect(), ..Filter::default() };
    assert_eq!(told(&Filter::default()).0, all.len());
    let of_kinds: usize =
        <Kind as clap::ValueEnum>::value_variants().iter().map(|kind| lines(&only(&[*kind])).len()).sum();
    assert_eq!(of_kinds, told(&Filter::default()).1, "every line is of one kind");
    let operations = lines(&only(&[Kind::Writes, Kind::Reads]));
    let many = report.history.operations.values().filter(|operation| operation.key == key).count();
    assert_eq!(operations.len(), 2 * many, "{operations:#?}");
    assert!(lines(&only(&[Kind::Messages])).len() >= tale.hops(key).len());
    for part in lines(&only(&[Kind::Mints])) {
        assert!(
            part.contains("mints v") || part.contains("mints the delete") || part.contains(" already, as "),
            "{part}"
        );
    }
    let of_node = lines(&Filter { who: ["n1".to_owned()].into(), ..Filter::default() });
    assert!(
        of_node.len() > 2 && of_node.iter().all(|line| line.contains("  n1 ") || line.contains("  ~~~ ")),
        "{of_node:#?}"
    );
    let no = report.history.operations.values().find(|operation| operation.key == key).expect("there is one").no;
    let of_operation = lines(&Filter { operations: [no].into(), ..Filter::default() });
    assert!(of_operation.len() > 2 && of_operation.len() < all.len(), "{of_operation:#?}");
    let middle = tale.end_us / 2;
    let early = lines(&Filter { to_us: Some(middle), ..Filter::default() });
    let late = lines(&Filter { from_us: Some(middle + 1), ..Filter::default() });
    assert_eq!([early, late].concat(), all, "a cut in time loses nothing and doubles nothing");
}

#[test]
fn what_is_asked_for_and_not_there_is_told() {
    let (_, tale) = once();
    let key = tale.keys()[0];
    let problem = |filter: Filter| filter.problem(tale, key).expect("there is something wrong with it");
    let told = problem(Filter { who: ["n99".to_owned()].into(), ..Filter::default() });
    assert!(told.starts_with("nobody is called \"n99\": there are n1, n2, "), "{told}");
    assert!(told.contains("client 0"), "{told}");
    let told = problem(Filter { operations: [4_000_000].into(), ..Filter::default() });
    assert!(told.contains("operation 4000000 is none on ") && told.contains("with numbers from "), "{told}");
    let told = problem(Filter { from_us: Some(2), to_us: Some(1), ..Filter::default() });
    assert!(told.contains("after its end"), "{told}");
    let told = problem(Filter { from_us: Some(tale.end_us + 1), ..Filter::default() });
    assert!(told.contains("it ended after "), "{told}");
    let fine = Filter { who: ["n1".to_owned()].into(), from_us: Some(0), to_us: Some(0), ..Filter::default() };
    assert_eq!(fine.problem(tale, key), None);
}

#[test]
fn an_index_leads_to_every_page() {
    let (_, tale) = once();
    let mut broken = tale.clone();
    (broken.is_good, broken.failure) = (false, Some("it <broke>".to_owned()));
    let entries = [
        Entry { name: "one", about: "what & why", tale },
        Entry { name: "other", about: "something else", tale: &broken },
    ];
    let index = index("two lives", &entries);
    balanced(&index);
    for part in [
        "<a href=\"one.html\">one</a>",
        "<a href=\"other.html\">other</a>",
        "what &amp; why",
        ">all promises kept<",
        ">not all is well</span><br>it &lt;broke&gt;<",
        "1 of 2 did not go well",
    ] {
        assert!(index.contains(part), "{part} is missing:\n{index}");
    }
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
        } else if !tag.ends_with('/') && !matches!(name, "meta" | "input" | "br") {
            open.push(name);
        }
    }
    assert_eq!(open, [] as [&str; 0], "never closed");
}
