//! The one way out: data to stdout, everything else to stderr.
//!
//! - stdout holds what was asked for and nothing else: raw bytes, a table, or JSON with a `schema` field.
//! - stderr holds errors and summaries always; hints and progress only when it is a terminal.
//! - When the reader of stdout goes away, the command ends quietly (see [`Exit::BrokenPipe`](super::failure::Exit)).

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, Row, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use terminal_size::{Height, Width, terminal_size_of};

use super::args::OutputFormat;
use super::failure::{Exit, Failure, Outcome};

/// Where a command's results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// How they are printed.
    format: OutputFormat,
    stdout_is_terminal: bool,
    stderr_is_terminal: bool,
    /// How many characters a line of stdout and of stderr has room for, where there is a limit.
    widths: [Option<usize>; 2],
    color: bool,
}

/// A warning for people, where no [`Output`] is at hand: to stderr.
pub(crate) fn complain(text: &str) {
    // Nobody is left to be told when stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

impl Output {
    /// For this process. `NO_COLOR`, when it is set to anything, keeps colour away (see no-color.org).
    pub(crate) fn new(format: OutputFormat) -> Self {
        let stderr_is_terminal = io::stderr().is_terminal();
        let columns =
            std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
        let wide = |size: Option<(Width, Height)>| size.map(|(Width(columns), _)| columns.into());
        Self {
            format,
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal,
            widths: [
                columns.or_else(|| wide(terminal_size_of(io::stdout()))),
                columns.or_else(|| wide(terminal_size_of(io::stderr()))),
            ],
            color: stderr_is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Programs read the result.
    pub(crate) fn is_json(&self) -> bool {
        self.format == OutputFormat::Json
    }

    /// Exact bytes; a newline only for the terminal's sake.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        if self.stdout_is_terminal && !bytes.ends_with(b"\n") {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// A text and a newline.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        stdout.flush()
    }

    /// One JSON object, on one line unless a person looks at it.
    pub(crate) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&json_text(value, self.stdout_is_terminal))
    }

    /// A table.
    pub(crate) fn table(&self, table: &Table) -> io::Result<()> {
        self.line(&fitted(table, self.widths[0]))
    }

    /// A table as text for stdout.
    pub(crate) fn laid_out(&self, table: &Table) -> String {
        fitted(table, self.widths[0])
    }

    /// Whether what was printed can be replaced: a person looks at it.
    pub(crate) fn redraws(&self) -> bool {
        self.stdout_is_terminal && !self.is_json()
    }

    /// Lines in the place of the last `drawn` ones, as many of them and as much of each as the terminal has room for; returns how many.
    pub(crate) fn redraw(&self, lines: &[String], drawn: usize) -> io::Result<usize> {
        // It may have been made larger or smaller since.
        let (columns, rows) = terminal_size_of(io::stdout())
            .map_or((80, 24), |(Width(columns), Height(rows))| (usize::from(columns), usize::from(rows)));
        let shown = cut(lines, columns.max(1), rows.saturating_sub(1).max(1));
        let mut text = if drawn > 0 { format!("\x1b[{drawn}F\x1b[J") } else { String::new() };
        for line in &shown {
            text += line;
            text.push('\n');
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(shown.len())
    }

    /// A table as text for [`say`](Self::say).
    pub(crate) fn rendered(&self, table: &Table) -> String {
        fitted(table, self.widths[1])
    }

    /// A summary or a warning: to stderr, always.
    pub(crate) fn say(&self, text: &str) {
        // Nobody is left to be told when stderr is gone.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Something useful to know: to stderr, only for people.
    pub(crate) fn hint(&self, text: &str) {
        if self.stderr_is_terminal && !self.is_json() {
            self.say(&self.dim(text));
        }
    }

    /// A failure, with the next thing to try; a JSON object for programs.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.exit == Exit::BrokenPipe {
            return;
        }
        if self.is_json() {
            return self.say(&json_text(&failure.as_json(), false));
        }
        let (red, reset) = if self.color { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("{red}error:{reset} {}\n{} {}", failure.message, self.dim("hint:"), failure.hint));
    }

    /// A progress bar on stderr, invisible unless that is a terminal. Without a length it is a spinner.
    pub(crate) fn progress(&self, length: Option<u64>, what: &str) -> ProgressBar {
        if !self.stderr_is_terminal {
            return ProgressBar::hidden();
        }
        let (bar, template) = match length {
            Some(length) => (
                ProgressBar::new(length),
                format!("{what} {{bar:30}} {{percent}}% {{human_pos}}/{{human_len}} {{per_sec}} eta {{eta}} {{msg}}"),
            ),
            None => (
                ProgressBar::new_spinner(),
                format!("{{spinner}} {what} {{human_pos}} {{per_sec}} {{elapsed}} {{msg}}"),
            ),
        };
        let style = ProgressStyle::with_template(&template).expect("the templates above are legal");
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    fn dim(&self, text: &str) -> String {
        if self.color { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Prints data as a table or as JSON.
pub(crate) fn print(output: &Output, json: &impl Serialize, text: impl FnOnce() -> Table) -> Outcome<()> {
    if output.is_json() {
        output.json(json)?
    } else {
        output.table(&text())?
    }
    Ok(())
}

/// A table with headings, without lines, as wide as it must be.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    if !headings.is_empty() {
        table.set_header(headings);
    }
    table
}

/// A table as text: columns two spaces apart, nothing before the first and after the last.
pub(crate) fn rendered(table: &Table) -> String {
    let mut table = table.clone();
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// A table as text: a row for each of its rows if they fit, else a block of lines, a name and a value each.
fn fitted(table: &Table, width: Option<usize>) -> String {
    let text = rendered(table);
    let fits = |width| text.lines().all(|line| line.chars().count() <= width);
    let Some(header) = table.header().filter(|_| !width.is_none_or(fits)) else { return text };
    let names: Vec<String> = header.cell_iter().map(|cell| format!("{}:", cell.content())).collect();
    let indent = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) + 2;
    let block = |row: &Row| {
        let cells = names.iter().zip(row.cell_iter());
        cells.map(|(name, cell)| format!("{name:indent$}{}", cell.content())).collect::<Vec<_>>().join("\n")
    };
    table.row_iter().map(block).collect::<Vec<_>>().join("\n\n")
}

/// So much of some lines as a window has room for.
fn cut(lines: &[String], columns: usize, rows: usize) -> Vec<String> {
    let mut shown: Vec<String> = lines.iter().take(rows).map(|line| line.chars().take(columns).collect()).collect();
    if let (Some(last), true) = (shown.last_mut(), lines.len() > rows) {
        *last = format!("({} more lines)", lines.len() - rows + 1).chars().take(columns).collect();
    }
    shown
}

/// A table of names and values.
pub(crate) fn facts<'a>(rows: impl IntoIterator<Item = (&'a str, String)>) -> Table {
    let mut table = table(&[]);
    for (name, value) in rows {
        table.add_row([format!("{name}:"), value]);
    }
    table
}

/// Bytes as a person can look at them: text where it is text, escapes where not, shortened to `limit` characters.
pub(crate) fn readable(bytes: &[u8], limit: usize) -> String {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control()) => text.to_owned(),
        // Only as much is escaped as can be shown.
        _ => bytes[..bytes.len().min(limit + 1)].escape_ascii().to_string(),
    };
    if text.chars().count() <= limit {
        return text;
    }
    let shown: String = text.chars().take(limit).collect();
    format!("{shown}.. ({} bytes)", bytes.len())
}

/// A number of bytes with a unit.
pub(crate) fn bytes_text(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A span of time, coarse.
pub(crate) fn time_text(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        s @ 1..=119 => format!("{s} s"),
        s @ 120..=7_199 => format!("{} min", s / 60),
        s @ 7_200..=172_799 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

fn json_text(value: &impl Serialize, pretty: bool) -> String {
    if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }
        .expect("results are plain data with text keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_so_that_a_terminal_stays_whole() {
        assert_eq!(readable(b"hello", 10), "hello");
        assert_eq!(readable("gr\u{fc}n".as_bytes(), 10), "gr\u{fc}n");
        assert_eq!(readable(b"\x1b[2J\xff", 40), "\\x1b[2J\\xff");
        assert_eq!(readable(&[b'a'; 50], 10), "aaaaaaaaaa.. (50 bytes)");
        assert!(!readable(&[0xff; 1 << 20], 10).contains('\u{fffd}'));
    }

    #[test]
    fn a_table_that_is_too_wide_becomes_blocks_of_lines() {
        let mut shown = table(&["NODE", "LAST WHOLE PASS"]);
        shown.add_row(["n1", "4 s ago"]).add_row(["n2"]);
        assert_eq!(fitted(&shown, None), fitted(&shown, Some(21)));
        assert_eq!(fitted(&shown, Some(21)), "NODE  LAST WHOLE PASS\nn1    4 s ago\nn2");
        let line = |name: &str, value: &str| format!("{name:18}{value}");
        let narrow = [&line("NODE:", "n1"), &line("LAST WHOLE PASS:", "4 s ago"), "", &line("NODE:", "n2")].join("\n");
        assert_eq!(fitted(&shown, Some(20)), narrow);
    }

    #[test]
    fn what_is_redrawn_fits_the_window() {
        let lines = ["one", "two words", "three"].map(str::to_owned);
        assert_eq!(cut(&lines, 80, 3), lines);
        assert_eq!(cut(&lines, 5, 3), ["one", "two w", "three"]);
        assert_eq!(cut(&lines, 80, 2), ["one", "(2 more lines)"]);
        assert_eq!(cut(&lines, 4, 1), ["(3 m"]);
        assert_eq!(cut(&[], 80, 2), [""; 0]);
    }

    #[test]
    fn times_are_coarse() {
        let texts: Vec<_> = [0, 999, 1_000, 119_999, 120_000, 7_200_000, 172_800_000].map(time_text).into();
        assert_eq!(texts, ["0 ms", "999 ms", "1 s", "119 s", "2 min", "2 h", "2 days"]);
    }
}
