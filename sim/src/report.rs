//! A life or a scenario as one page of HTML that needs nothing else: no network, no other file, and no script to be readable.
//!
//! The page has the verdict, the life at a glance, and for each of the keys that most happened to a space-time diagram, the
//! operations and the story as text. The diagram has every operation: where there are many, it is cut into parts, which follow
//! each other in time. Keys, parts and kinds of lines are chosen with a style sheet; the script only adds that a click
//! shows all that one request did, zoom, and steps from part to part. An [`index`] leads to many pages.

mod axis;
mod diagram;
mod index;
mod overview;
mod svg;
mod windows;

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;

pub use self::index::{Entry, index};
use self::svg::escape;
use crate::explain::{self, Kind};
use crate::history::{Operation, Outcome};
use crate::tale::Tale;

/// The page. The same bytes for every run of one plan.
pub fn page(tale: &Tale) -> String {
    let keys = tale.keys();
    let shown = &keys[..keys.len().min(KEYS_MAX)];
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let title = escape(&tale.title);
    let _ = writeln!(page, "<title>{title} - quorate-sim</title>\n<style>\n{STYLE}");
    let diagrams: Vec<(String, usize)> =
        shown.iter().zip(0..).map(|(key, number)| diagram::diagram(tale, key, number)).collect();
    let parts = diagrams.iter().map(|(_, parts)| *parts).max().unwrap_or(0);
    for at in 1..=parts {
        let chosen = format!(".windows > input:nth-of-type({at}):checked ~");
        let _ = writeln!(page, "{chosen} .scroll > .w{} {{ display: block }}", at - 1);
        let _ = writeln!(page, "{chosen} nav label:nth-of-type({at}) {{ background: #223; color: #fff }}");
    }
    for kind in Kind::value_variants() {
        let _ = writeln!(page, ".story:has(input.{kind}:not(:checked)) span.{kind} {{ display: none }}");
    }
    for at in 0..shown.len() {
        let _ = writeln!(page, "#k{at}:checked ~ .s{at} {{ display: block }}");
        let _ = writeln!(page, "#k{at}:checked ~ nav label[for=k{at}] {{ background: #223; color: #fff }}");
    }
    let _ = writeln!(page, "</style>\n</head>\n<body>\n<h1>{title}</h1>");
    let (class, word) = verdict_word(tale);
    let _ = writeln!(page, "<p class=\"verdict {class}\">{word}</p>");
    if let Some(failure) = &tale.failure {
        let _ = writeln!(page, "<p class=\"violations\">{}</p>", escape(failure));
    }
    if !tale.violations.is_empty() {
        page.push_str("<ul class=\"violations\">\n");
        for violation in tale.violations.iter().take(VIOLATIONS_MAX) {
            let _ = writeln!(page, "<li>{}</li>", escape(&violation.to_string()));
        }
        page.push_str("</ul>\n");
        if tale.violations.len() > VIOLATIONS_MAX {
            let _ = writeln!(page, "<p>and {} more</p>", tale.violations.len() - VIOLATIONS_MAX);
        }
    }
    let verdict = escape(&tale.verdict);
    let _ =
        writeln!(page, "<details><summary>what was planned and how it ended</summary><pre>{verdict}</pre></details>");
    let _ = writeln!(page, "<h2>At a glance</h2>\n{}", overview::overview(tale));
    if shown.is_empty() {
        page.push_str("<p>No client has done anything.</p>\n</body>\n</html>\n");
        return page;
    }
    page.push_str("<h2>One key</h2>\n");
    for at in 0..shown.len() {
        let checked = if at == 0 { " checked" } else { "" };
        let _ = writeln!(page, "<input type=\"radio\" name=\"key\" id=\"k{at}\"{checked}>");
    }
    page.push_str("<nav>");
    for (at, key) in shown.iter().enumerate() {
        let violated = tale.violations.iter().any(|violation| violation.key == *key);
        let class = if violated { " class=\"bad\"" } else { "" };
        let _ = write!(page, "<label for=\"k{at}\"{class}>{}</label>", escape(key));
    }
    page.push_str("</nav>\n");
    if keys.len() > shown.len() {
        let left = keys.len() - shown.len();
        let _ = writeln!(page, "<p class=\"note\">{left} more keys, to which less happened, are left out.</p>");
    }
    let _ = writeln!(page, "{MARKERS}\n{LEGEND}");
    for (at, (key, (diagram, _))) in shown.iter().zip(&diagrams).enumerate() {
        let _ = writeln!(page, "<section class=\"s{at}\">\n{diagram}");
        let _ = writeln!(page, "<h3>Operations on {}</h3>\n{}", escape(key), table(tale, key));
        story(&mut page, tale, key);
        page.push_str("</section>\n");
    }
    let _ = writeln!(page, "<script>\n{SCRIPT}</script>\n</body>\n</html>");
    page
}

/// The class and the words of the verdict.
fn verdict_word(tale: &Tale) -> (&'static str, &'static str) {
    if tale.is_good { ("good", "all promises kept") } else { ("bad", "not all is well") }
}

/// The story of a key as text, with a box to tick for each kind of line. Messages are left to the diagram.
fn story(page: &mut String, tale: &Tale, key: &str) {
    let mut lines = explain::lines(tale, key);
    lines.retain(|line| line.kind != Kind::Messages);
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    lines.iter().for_each(|line| *counts.entry(line.kind).or_default() += 1);
    let _ = write!(
        page,
        "<details class=\"story\"><summary>the story as text, in {} lines</summary><p class=\"kinds\">",
        lines.len()
    );
    for (kind, count) in counts {
        let _ = write!(page, "<label><input type=\"checkbox\" class=\"{kind}\" checked>{kind} {count}</label>");
    }
    page.push_str("</p><pre>");
    for line in &lines {
        // The end of the line goes with it.
        let _ = write!(page, "<span class=\"{}\">{}\n</span>", line.kind, escape(&line.to_string()));
    }
    let _ = writeln!(page, "\n{}</pre></details>", escape(&explain::left(tale, key)));
}

/// The class of an operation's outcome, for the style sheet.
fn outcome_class(operation: &Operation) -> &'static str {
    match (&operation.outcome, operation.returned_us) {
        (_, None) => "hung",
        (Outcome::Written, _) => "written",
        (Outcome::Found(_), _) => "found",
        (Outcome::NotApplied(_), _) => "refused",
        (Outcome::Unknown(_), _) => "unknown",
    }
}

/// Whether a violation names the operation.
fn is_blamed(tale: &Tale, operation: &Operation) -> bool {
    let names = |violation: &&crate::checker::Violation| violation.operations.contains(&operation.no);
    tale.violations.iter().filter(|violation| violation.key == operation.key).any(|it| names(&it))
}

fn table(tale: &Tale, key: &str) -> String {
    let mut table = String::from(
        "<table>\n<tr><th>no.</th><th>client</th><th>from ms</th><th>to ms</th><th>asked</th><th>outcome</th></tr>\n",
    );
    for operation in tale.operations(key) {
        let ms = |us: u64| format!("{}.{}", us / 1000, us / 100 % 10);
        let returned = operation.returned_us.map_or_else(|| "never".to_owned(), ms);
        let blamed = if is_blamed(tale, operation) { " blamed" } else { "" };
        let _ = writeln!(
            table,
            "<tr class=\"{}{blamed}\"><td>{}</td><td>{}</td><td>{}</td><td>{returned}</td><td>{}</td><td>{}</td></tr>",
            outcome_class(operation),
            operation.no,
            escape(&tale.client(operation.client)),
            ms(operation.invoked_us),
            escape(&tale.asks(operation)),
            escape(&tale.ends(operation)),
        );
    }
    table.push_str("</table>");
    table
}

const STYLE: &str = include_str!("report/style.css");
const SCRIPT: &str = include_str!("report/page.js");
const LEGEND: &str = include_str!("report/legend.html");

/// What lines end in. It stands in a picture of its own: nothing that is hidden can be referred to.
const MARKERS: &str = "<svg class=\"markers\" width=\"0\" height=\"0\"><defs>\
<marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
<path d=\"M0 0.8L8 4L0 7.2z\" fill=\"context-stroke\"/></marker></defs></svg>";

/// Each key has a diagram and its story as text, of some hundred kilobytes where much happened.
const KEYS_MAX: usize = 12;

const VIOLATIONS_MAX: usize = 20;
