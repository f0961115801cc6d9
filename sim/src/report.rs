//! A life or a scenario as one page of HTML that needs nothing else: no network, no other file, and no script to be readable.
//!
//! The page has the verdict, the life at a glance, and for each of the keys that most happened to a space-time diagram, the
//! operations and the story as text. Keys are chosen with radio buttons and a style sheet; the script only adds that a click
//! shows all that one request did, and zoom.

mod axis;
mod diagram;
mod overview;
mod svg;

use std::fmt::Write;

use self::svg::escape;
use crate::explain::explain;
use crate::history::{Operation, Outcome};
use crate::tale::Tale;

/// The page. The same bytes for every run of one plan.
pub fn page(tale: &Tale) -> String {
    let keys = tale.keys();
    let shown = &keys[..keys.len().min(KEYS_MAX)];
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let title = escape(&tale.title);
    let _ = writeln!(page, "<title>{title} - quorate-sim</title>\n<style>\n{STYLE}");
    for at in 0..shown.len() {
        let _ = writeln!(page, "#k{at}:checked ~ .s{at} {{ display: block }}");
        let _ = writeln!(page, "#k{at}:checked ~ nav label[for=k{at}] {{ background: #223; color: #fff }}");
    }
    let _ = writeln!(page, "</style>\n</head>\n<body>\n<h1>{title}</h1>");
    let (class, word) = if tale.is_good { ("good", "all promises kept") } else { ("bad", "not all is well") };
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
    let _ = writeln!(page, "{LEGEND}");
    for (at, key) in shown.iter().enumerate() {
        let _ = writeln!(page, "<section class=\"s{at}\">\n{}", diagram::diagram(tale, key, at));
        let _ = writeln!(page, "<h3>Operations on {}</h3>\n{}", escape(key), table(tale, key));
        let story = escape(&explain(tale, key)).into_owned();
        let _ = writeln!(page, "<details><summary>the story as text</summary><pre>{story}</pre></details>\n</section>");
    }
    let _ = writeln!(page, "<script>\n{SCRIPT}</script>\n</body>\n</html>");
    page
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

/// Each key has a diagram and its story as text, of some hundred kilobytes where much happened.
const KEYS_MAX: usize = 12;

const VIOLATIONS_MAX: usize = 20;
