//! `layout show --report`: the layout as one page of HTML that needs nothing else, no network, no other file, and no script.
//!
//! The page has who holds how much before and after, what moves from whom to whom, the zones, and how far a change is. All that comes from
//! the cluster is escaped.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};

use quorate_wire::ids::NodeId;
use quorate_wire::{LayoutReport, LayoutView, MemberView, Moves};

use super::layout::{moved_text, wait_text};
use super::output::bytes_text;
use super::transfers::{Report, eta_text, rate_text, stopped_text};

/// The page. `transfers` is what the nodes say of the change under way, if there is one; `taken` is when it was looked, for people.
pub(crate) fn page(report: &LayoutReport, transfers: Option<&Report>, taken: &str) -> String {
    let mut page = String::from(HEAD);
    let current = &report.current;
    if current.version.0 == 0 {
        put(&mut page, format_args!("<h1>There is no layout yet</h1>\n<p class=note>{}</p>\n", escape(taken)));
    } else {
        put(&mut page, format_args!("<h1>Layout {}</h1>\n<p class=note>{}; ", current.version, escape(taken)));
        put(&mut page, format_args!("{}</p>\n", escape(&settings(current))));
    }
    match &report.under_way {
        Some(change) => {
            progress(&mut page, report, transfers);
            let title = format!("The change from layout {} to {}", change.from.version, current.version);
            picture(&mut page, &title, &change.from, current, Some(&change.moves));
        }
        None if current.version.0 > 0 => picture(&mut page, "Who holds how much", current, current, None),
        None => {}
    }
    if let Some(staged) = &report.staged {
        let before = if current.version.0 == 0 { staged } else { current };
        picture(
            &mut page,
            &format!("What is staged: layout {}", staged.version),
            before,
            staged,
            report.moves.as_ref(),
        );
        list(&mut page, "bad", "stands against it", &report.problems);
        list(&mut page, "note", "warning", &report.warnings);
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a String takes every byte");
}

fn settings(view: &LayoutView) -> String {
    let LayoutView { n, partitions, r, w, hash, members, .. } = view;
    let hash = hash.get(..16).unwrap_or(hash);
    format!("{} members, N={n}, {partitions} partitions, floors R={r} W={w}, hash {hash}", members.len())
}

fn list(page: &mut String, class: &str, title: &str, lines: &[String]) {
    for line in lines {
        put(page, format_args!("<p class={class}>{title}: {}</p>\n", escape(line)));
    }
}

/// How far the change under way is.
fn progress(page: &mut String, report: &LayoutReport, transfers: Option<&Report>) {
    page.push_str("<h2>How far it is</h2>\n");
    if let Some(progress) = &report.progress {
        let percent = percent(progress.moved, progress.partitions);
        put(page, format_args!("<p>{}</p>\n", escape(&moved_text(progress))));
        put(page, format_args!("<div class=track><div class=after style=\"width:{percent:.1}%\"></div></div>\n"));
    }
    let Some(transfers) = transfers else { return };
    if !transfers.receivers.is_empty() {
        head(page, &["RECEIVER", "PARTITIONS", "", "RECORDS", "BYTES", "NOW", "ETA"]);
        for receiver in transfers.receivers.iter().take(ROWS_MAX) {
            let percent = percent(receiver.done, receiver.of);
            let track = format!("<div class=track><div class=after style=\"width:{percent:.1}%\"></div></div>");
            put(
                page,
                format_args!(
                    "<tr><th>{}<td>{} of {}<td>{track}",
                    escape(receiver.node.as_str()),
                    receiver.done,
                    receiver.of
                ),
            );
            let (records, bytes) =
                (receiver.records.map(|records| records.to_string()), receiver.bytes.map(bytes_text));
            let text = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            put(page, format_args!("<td>{}<td>{}", text(records), text(bytes)));
            let eta = if receiver.done == receiver.of { "done".to_owned() } else { eta_text(receiver.eta_ms) };
            put(page, format_args!("<td>{}<td>{eta}\n", rate_text(receiver.bytes_per_second.unwrap_or(0))));
        }
        tail(page, transfers.receivers.len());
    }
    let waits: Vec<String> = transfers.waits.iter().map(wait_text).collect();
    list(page, "note", "waits for", &waits);
    for stopped in &transfers.stopped {
        put(page, format_args!("<p class=bad>{}</p>\n", escape(&stopped_text(stopped))));
    }
    for (node, why) in &transfers.no_answer {
        put(page, format_args!("<p class=bad>{} does not answer: {}</p>\n", escape(node.as_str()), escape(why)));
    }
}

/// Who holds how much before and after, what moves, and the zones.
fn picture(page: &mut String, title: &str, before: &LayoutView, after: &LayoutView, moves: Option<&Moves>) {
    put(page, format_args!("<h2>{}</h2>\n", escape(title)));
    if before.version != after.version {
        put(page, format_args!("<p class=note>after it: {}</p>\n", escape(&settings(after))));
    }
    if let Some(moves) = moves {
        put(
            page,
            format_args!(
                "<p>{} replicas of partitions are copied, at least {} for these shares. The largest load is {:.2} of its share before \
                 and {:.2} after. {} partitions keep none of their owners.</p>\n",
                moves.replicas, moves.least, moves.balance_before, moves.balance_after, moves.all_owners_change
            ),
        );
    }
    holders(page, before, after);
    if let Some(moves) = moves.filter(|moves| !moves.gets.is_empty()) {
        page.push_str("<h3>What moves from whom to whom</h3>\n");
        flows(page, moves);
        head(page, &["FROM", "TO", "PARTITIONS"]);
        for gets in moves.gets.iter().take(ROWS_MAX) {
            let from = gets.from.as_ref().map_or("(one more replica)", NodeId::as_str);
            put(
                page,
                format_args!("<tr><td>{}<td>{}<td>{}\n", escape(from), escape(gets.to.as_str()), gets.partitions),
            );
        }
        tail(page, moves.gets.len());
    }
    zones(page, before, after);
}

fn holders(page: &mut String, before: &LayoutView, after: &LayoutView) {
    let of = |view: &LayoutView| -> BTreeMap<NodeId, MemberView> {
        view.members.iter().map(|member| (member.node, member.clone())).collect()
    };
    let (old, new) = (of(before), of(after));
    let most = old.values().chain(new.values()).map(|member| member.primaries).max().unwrap_or(0);
    let names: BTreeSet<NodeId> = old.keys().chain(new.keys()).copied().collect();
    let one = before.version == after.version;
    head(page, &["NODE", "ZONE", "WEIGHT", "PARTITIONS", if one { "" } else { "before, after" }]);
    for node in names.iter().take(ROWS_MAX) {
        let (was, is) = (old.get(node), new.get(node));
        let told = |text: fn(&MemberView) -> String| match (was.map(text), is.map(text)) {
            (Some(was), Some(is)) if was == is => is,
            (Some(was), Some(is)) => format!("{was} \u{2192} {is}"),
            (was, is) => is.or(was).unwrap_or_default(),
        };
        let what = match (was, is) {
            (None, _) => " <em>joins</em>",
            (_, None) => " <em>leaves</em>",
            _ => "",
        };
        let held = |member: Option<&MemberView>| member.map_or(0, |member| member.primaries);
        let (had, has) = (held(was), held(is));
        put(
            page,
            format_args!("<tr><th>{}{what}<td>{}", escape(node.as_str()), escape(&told(|member| member.zone.clone()))),
        );
        put(page, format_args!("<td>{}<td>", told(|member| member.weight.to_string())));
        let bar =
            |class: &str, held: u32| format!("<div class={class} style=\"width:{:.1}%\"></div>", percent(held, most));
        if one {
            put(page, format_args!("{has}<td><div class=bars>{}</div>\n", bar("after", has)));
        } else {
            let bars = bar("before", had) + &bar("after", has);
            put(page, format_args!("{had} \u{2192} {has}<td><div class=bars>{bars}</div>\n"));
        }
    }
    tail(page, names.len());
}

fn both<T: PartialEq + Display>(was: T, is: T) -> String {
    if was == is { is.to_string() } else { format!("{was} \u{2192} {is}") }
}

fn zones(page: &mut String, before: &LayoutView, after: &LayoutView) {
    #[derive(Default)]
    struct Zone {
        members: (usize, usize),
        primaries: (u32, u32),
    }
    let mut zones: BTreeMap<&str, Zone> = BTreeMap::new();
    for member in &before.members {
        let zone = zones.entry(&member.zone).or_default();
        (zone.members.0, zone.primaries.0) = (zone.members.0 + 1, zone.primaries.0 + member.primaries);
    }
    for member in &after.members {
        let zone = zones.entry(&member.zone).or_default();
        (zone.members.1, zone.primaries.1) = (zone.members.1 + 1, zone.primaries.1 + member.primaries);
    }
    page.push_str("<h3>Zones</h3>\n");
    head(page, &["ZONE", "MEMBERS", "PARTITIONS"]);
    for (name, Zone { members, primaries }) in zones.iter().take(ROWS_MAX) {
        let (members, primaries) = (both(members.0, members.1), both(primaries.0, primaries.1));
        put(page, format_args!("<tr><th>{}<td>{members}<td>{primaries}\n", escape(name)));
    }
    tail(page, zones.len());
    let count = zones.values().filter(|zone| zone.members.1 > 0).count();
    let n = usize::from(after.n);
    if count == 1 {
        page.push_str(
            "<p class=note>With one zone there is no rule for which members hold a partition together.</p>\n",
        );
    } else if count < n {
        put(
            page,
            format_args!("<p class=bad>There are {count} zones and N is {n}: some zones hold several replicas.</p>\n"),
        );
    }
}

/// What moves, as bands from those who give on the left to those who get on the right.
fn flows(page: &mut String, moves: &Moves) {
    if moves.gets.len() > BANDS_MAX {
        return;
    }
    let (mut gives, mut gets): (BTreeMap<Option<NodeId>, u32>, BTreeMap<NodeId, u32>) = Default::default();
    for one in &moves.gets {
        *gives.entry(one.from).or_default() += one.partitions;
        *gets.entry(one.to).or_default() += one.partitions;
    }
    let rows = gives.len().max(gets.len()) as f64;
    let height = (rows * (ROW + GAP)).max(80.0);
    let all = f64::from(moves.replicas.max(1));
    // Each side has the whole height, its gaps included, so that a partition is as high on both.
    let unit = (height - rows * GAP) / all;
    put(
        page,
        format_args!("<svg viewBox=\"0 0 {WIDE} {height:.0}\" role=img aria-label=\"what moves from whom to whom\">\n"),
    );
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    let mut y = 0.0;
    for (node, partitions) in &gives {
        left.insert(*node, y);
        let name = node.as_ref().map_or("(more replicas)", NodeId::as_str);
        side(page, SIDE - 8.0, "end", y, f64::from(*partitions) * unit, name, *partitions);
        y += f64::from(*partitions) * unit + GAP;
    }
    y = 0.0;
    for (node, partitions) in &gets {
        right.insert(*node, y);
        side(page, WIDE - SIDE + 8.0, "start", y, f64::from(*partitions) * unit, node.as_str(), *partitions);
        y += f64::from(*partitions) * unit + GAP;
    }
    let colors: BTreeMap<NodeId, usize> = gets.keys().copied().zip(0..).collect();
    for one in &moves.gets {
        let thick = f64::from(one.partitions) * unit;
        let from = left.get_mut(&one.from).expect("everybody who gives has a place");
        let to = right.get_mut(&one.to).expect("everybody who gets has a place");
        let (a, b, c, d) = (*from, *to, *to + thick, *from + thick);
        (*from, *to) = (d, c);
        let (x, far, middle) = (SIDE, WIDE - SIDE, WIDE / 2.0);
        let name = one.from.as_ref().map_or("(more replicas)", NodeId::as_str);
        put(
            page,
            format_args!(
                "<path fill=\"hsl({},60%,55%)\" d=\"M{x},{a:.1}C{middle},{a:.1} {middle},{b:.1} {far},{b:.1}V{c:.1}C{middle},{c:.1} \
                 {middle},{d:.1} {x},{d:.1}Z\"><title>{} gives {} to {}</title></path>\n",
                // Neighbours differ.
                colors[&one.to] * 137 % 360,
                escape(name),
                one.partitions,
                escape(one.to.as_str())
            ),
        );
    }
    page.push_str("</svg>\n");
}

fn side(page: &mut String, x: f64, anchor: &str, y: f64, thick: f64, name: &str, partitions: u32) {
    let middle = y + thick / 2.0 + 4.0;
    let name = escape(name);
    put(page, format_args!("<text x=\"{x}\" y=\"{middle:.1}\" text-anchor=\"{anchor}\">{name} {partitions}</text>\n"));
}

fn head(page: &mut String, names: &[&str]) {
    page.push_str("<div class=scroll><table>\n<thead><tr>");
    names.iter().for_each(|name| put(page, format_args!("<th>{name}")));
    page.push_str("\n<tbody>\n");
}

fn tail(page: &mut String, rows: usize) {
    page.push_str("</table></div>\n");
    if let Some(more) = rows.checked_sub(ROWS_MAX).filter(|more| *more > 0) {
        put(page, format_args!("<p class=note>and {more} more, which `-o json` has</p>\n"));
    }
}

fn percent(part: u32, whole: u32) -> f64 {
    if whole == 0 { 0.0 } else { f64::from(part) * 100.0 / f64::from(whole) }
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Cow::Owned(text.replace('"', "&quot;").replace('\'', "&#39;"))
}

/// More rows than anybody reads.
const ROWS_MAX: usize = 500;
/// With more bands a picture says less than the table.
const BANDS_MAX: usize = 150;
/// Of the picture of what moves: how wide it is, the space for names at each side, the least height of a node and what lies between two.
const WIDE: f64 = 640.0;
const SIDE: f64 = 150.0;
const ROW: f64 = 22.0;
const GAP: f64 = 8.0;

const HEAD: &str = "\
<!DOCTYPE html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content=\"width=device-width, initial-scale=1\">
<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">
<title>Layout - quorate</title>
<style>
:root { color-scheme: light dark; --text: #223; --faint: #567; --line: #ccd; --back: #fff; --before: #b4bccb; --after: #2f7d54; --bad: #a01818 }
@media (prefers-color-scheme: dark) {
  :root { --text: #dde; --faint: #99a; --line: #445; --back: #16181d; --before: #5b6375; --after: #4cb27f; --bad: #ff8c85 }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 860px; margin: 0 auto; padding: 16px }
h1 { font-size: 22px; margin: 0 0 4px } h2 { font-size: 18px; margin: 28px 0 6px } h3 { font-size: 15px; margin: 18px 0 6px }
p { margin: 6px 0; overflow-wrap: anywhere } .note, thead th, em { color: var(--faint) } .bad { color: var(--bad) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { padding: 4px 12px 4px 0; text-align: left; font-weight: 400; white-space: nowrap; border-bottom: 1px solid var(--line) }
td:last-child { width: 40% } em { font-style: normal; font-size: 12px }
.bars { min-width: 120px } .before, .after { height: 8px; border-radius: 2px } .before { background: var(--before) } .after { background: var(--after) }
.track { background: var(--line); border-radius: 2px; min-width: 80px } svg { width: 100%; height: auto; font: 13px system-ui, sans-serif }
svg path { opacity: .6 } svg text { fill: var(--text) }
</style>
</head>
<body>
";

#[cfg(test)]
mod tests {
    use quorate_wire::ids::{DiskId, LayoutVersion};
    use quorate_wire::{Gets, Progress, UnderWay};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("legal")
    }

    fn view(version: u64, members: &[(&str, &str, u32)]) -> LayoutView {
        let member = |(name, zone, primaries): &(&str, &str, u32)| MemberView {
            node: node(name),
            disk: DiskId(1),
            addr: "10.0.0.1:7400".parse().expect("an address"),
            zone: (*zone).into(),
            weight: 1,
            primaries: *primaries,
        };
        LayoutView {
            version: LayoutVersion(version),
            hash: "c76f8643b3f48b1ef62e".into(),
            n: 3,
            partitions: 64,
            r: 2,
            w: 2,
            members: members.iter().map(member).collect(),
        }
    }

    fn report() -> LayoutReport {
        let before = view(1, &[("n1", "a", 64), ("n2", "b", 64), ("n3", "a", 64)]);
        let after = view(2, &[("n1", "a", 48), ("n2", "b", 48), ("n4", "<script>&'\"", 96)]);
        let gets = |from: Option<&str>, to, partitions| Gets { from: from.map(node), to: node(to), partitions };
        let moves = Moves {
            gets: vec![gets(Some("n3"), "n4", 64), gets(Some("n1"), "n4", 16), gets(None, "n4", 16)],
            replicas: 96,
            least: 96,
            balance_before: 1.0,
            balance_after: 1.5,
            ..Moves::default()
        };
        LayoutReport {
            current: after,
            staged: None,
            problems: Vec::new(),
            missing: Vec::new(),
            holding: Vec::new(),
            warnings: Vec::new(),
            context_keys: Vec::new(),
            live: [1, 2].map(LayoutVersion).into(),
            moves: None,
            applied: None,
            history: Vec::new(),
            progress: Some(Progress { moved: 16, partitions: 64, ..Progress::default() }),
            abort: None,
            under_way: Some(UnderWay { from: before, moves }),
        }
    }

    /// Every tag that is opened is closed where it must be, and nothing from outside makes one.
    fn expect_sound(page: &str) {
        for tag in ["table", "div", "svg", "path", "text", "p", "h1", "h2", "h3", "style", "head", "body", "html"] {
            let (open, close) = (
                page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count(),
                page.matches(&format!("</{tag}>")).count(),
            );
            assert_eq!(open, close, "{tag}: {page}");
        }
        for alien in ["<script", "http://", "https://", "url(", "@import", "NaN", "inf"] {
            assert!(!page.contains(alien), "{alien}: {page}");
        }
    }

    #[test]
    fn a_change_is_shown_whole_and_everything_is_escaped() {
        let page = page(&report(), None, "2026-01-01 <now>");
        expect_sound(&page);
        for said in [
            "<h1>Layout 2</h1>",
            "2026-01-01 &lt;now&gt;",
            "16 of 64 partitions have moved (25 %)",
            "The change from layout 1 to 2",
            "n3 <em>leaves</em>",
            "n4 <em>joins</em>",
            "64 \u{2192} 48",
            "n3 gives 64 to n4",
            "(one more replica)",
            "&lt;script&gt;&amp;&#39;&quot;",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(said), "{said}: {page}");
        }
    }

    #[test]
    fn what_is_staged_and_what_stands_against_it_are_shown_also_before_there_is_a_layout() {
        let change = report();
        let mut staged = LayoutReport { under_way: None, progress: None, ..change };
        staged.moves = report().under_way.map(|change| change.moves);
        staged.staged = Some(view(3, &[("n1", "a", 96), ("n2", "a", 96)]));
        staged.problems = vec!["N is <3>".into()];
        let text = page(&staged, None, "now");
        expect_sound(&text);
        for said in
            ["Who holds how much", "What is staged: layout 3", "stands against it: N is &lt;3&gt;", "With one zone"]
        {
            assert!(text.contains(said), "{said}: {text}");
        }
        let none = view(0, &[]);
        let first = LayoutReport { current: none.clone(), staged: Some(view(1, &[("n1", "a", 64)])), ..staged.clone() };
        let text = page(&first, None, "now");
        expect_sound(&text);
        assert!(text.contains("There is no layout yet") && text.contains("What is staged: layout 1"), "{text}");
        let text = page(&LayoutReport { current: none, staged: None, ..staged }, None, "now");
        expect_sound(&text);
    }

    #[test]
    fn a_picture_has_bounds() {
        let mut report = report();
        let change = report.under_way.as_mut().expect("one");
        let one = change.moves.gets[0].clone();
        change.moves.gets = (0..2000).map(|number| Gets { to: node(&format!("m{number}")), ..one.clone() }).collect();
        let page = page(&report, None, "now");
        expect_sound(&page);
        assert!(!page.contains("<svg") && page.contains("and 1500 more") && page.len() < 200_000, "{}", page.len());
    }
}
