//! One page that leads to many.

use std::fmt::Write;

use super::svg::escape;
use super::{STYLE, verdict_word};
use crate::tale::Tale;

/// A page that the index leads to.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// What it is called; its page is beside the index and has this name, with `.html`.
    pub name: &'a str,
    /// What one learns from it, in one line.
    pub about: &'a str,
    /// What happened.
    pub tale: &'a Tale,
}

impl Entry<'_> {
    /// The name of the file that the index expects its page in.
    pub fn file_name(&self) -> String {
        format!("{}.html", self.name)
    }
}

/// A page with a line for each of the others: its story in a line, its verdict, and a link.
pub fn index(title: &str, entries: &[Entry<'_>]) -> String {
    let title = escape(title);
    let bad = entries.iter().filter(|entry| !entry.tale.is_good).count();
    let (class, word) = match bad {
        0 => ("good", format!("all {} went well", entries.len())),
        bad => ("bad", format!("{bad} of {} did not go well", entries.len())),
    };
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    let _ = writeln!(page, "<title>{title} - quorate-sim</title>\n<style>\n{STYLE}</style>\n</head>\n<body>");
    let _ = writeln!(page, "<h1>{title}</h1>\n<p class=\"verdict {class}\">{word}</p>");
    page.push_str(
        "<table class=\"index\">\n<tr><th>scenario</th><th>what one learns</th><th>verdict</th><th>nodes</th>\
         <th>operations</th><th>simulated</th></tr>\n",
    );
    for entry in entries {
        let Entry { name, about, tale } = entry;
        let (class, word) = verdict_word(tale);
        let why = match (&tale.failure, tale.violations.first()) {
            (Some(failure), _) => format!("<br>{}", escape(failure)),
            (None, Some(violation)) => format!("<br>{}", escape(&violation.to_string())),
            (None, None) => String::new(),
        };
        let _ = writeln!(
            page,
            "<tr><td><a href=\"{}\">{}</a></td><td>{}</td><td><span class=\"verdict {class}\">{word}</span>{why}</td>\
             <td>{}</td><td>{}</td><td>{}.{} s</td></tr>",
            escape(&entry.file_name()),
            escape(name),
            escape(about),
            tale.nodes.len(),
            tale.history.operations.len(),
            tale.end_us / 1_000_000,
            tale.end_us / 100_000 % 10,
        );
    }
    page.push_str("</table>\n</body>\n</html>\n");
    page
}
