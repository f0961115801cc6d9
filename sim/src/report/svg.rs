//! The few shapes that the pictures are made of.

use std::borrow::Cow;

/// Text as HTML and SVG want it, inside attributes as well.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
    }
    Cow::Owned(escaped)
}

/// How a text is set: the size in pixels, on which side of its place it stands, and whether it is bold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Font {
    pub(super) size: f64,
    pub(super) anchor: Anchor,
    pub(super) bold: bool,
}

/// The part of a text that stands at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Where something is on the page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Font {
    /// As the style sheet has it for a picture that says nothing else.
    pub(super) const LABEL: Self = Self { size: 10.5, anchor: Anchor::Start, bold: false };

    pub(super) const fn sized(self, size: f64) -> Self {
        Self { size, ..self }
    }

    pub(super) const fn end(self) -> Self {
        Self { anchor: Anchor::End, ..self }
    }

    pub(super) const fn middle(self) -> Self {
        Self { anchor: Anchor::Middle, ..self }
    }

    pub(super) const fn bold(self) -> Self {
        Self { bold: true, ..self }
    }

    /// How wide a text is at most. Nobody knows the reader's font: these are the widths of DejaVu Sans and Verdana, the widest of
    /// those that browsers take for `system-ui` and `sans-serif`.
    pub(super) fn width(self, text: &str) -> f64 {
        let thousandths: u32 = text.chars().map(thousandths).sum();
        f64::from(thousandths) / 1000.0 * self.size * if self.bold { BOLDER } else { 1.0 }
    }

    /// What a text covers whose first baseline begins at this place.
    pub(super) fn bounds(self, (x, y): (f64, f64), text: &str) -> Bounds {
        let width = self.width(text);
        let left = match self.anchor {
            Anchor::Start => x,
            Anchor::Middle => x - width / 2.0,
            Anchor::End => x - width,
        };
        Bounds { left, top: y - 0.78 * self.size, right: left + width, bottom: y + 0.22 * self.size }
    }

    /// The text in lines of at most this width, broken between words where that is possible; what does not fit into so many
    /// lines is left out, with an ellipsis.
    pub(super) fn wrap(self, text: &str, width: f64, lines_max: usize) -> Vec<String> {
        let mut lines: Vec<String> = vec![String::new()];
        for word in text.split(' ') {
            let line = lines.last_mut().expect("there is one");
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if self.width(&longer) <= width {
                *line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(String::new());
            }
            for char in word.chars() {
                let line = lines.last_mut().expect("there is one");
                if !line.is_empty() && self.width(line) + self.width(char.encode_utf8(&mut [0; 4])) > width {
                    lines.push(String::new());
                }
                lines.last_mut().expect("there is one").push(char);
            }
        }
        if lines.len() > lines_max {
            lines.truncate(lines_max);
            let last = lines.last_mut().expect("there is room for one");
            while !last.is_empty() && self.width(last) + self.width("…") > width {
                last.pop();
            }
            last.push('…');
        }
        lines
    }

    /// As much of a text as fits into one line.
    pub(super) fn short(self, text: &str, width: f64) -> String {
        self.wrap(text, width, 1).remove(0)
    }
}

impl Bounds {
    /// Whether two things cover some place both.
    pub(super) fn touch(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }
}

/// Of the size of a font: how wide a character is.
fn thousandths(char: char) -> u32 {
    match char {
        'i' | 'j' | 'l' | '\'' => 278,
        'I' | 'J' => 295,
        ' ' | ',' | '.' => 318,
        '/' | '\\' | ':' | ';' | '|' => 337,
        'f' | '-' => 361,
        '(' | ')' | '[' | ']' | 't' | '!' | '^' => 401,
        'r' => 411,
        '"' => 460,
        '_' | '`' | '*' => 500,
        's' | 'z' | '?' => 531,
        'L' | 'c' | 'F' | 'k' => 579,
        'v' | 'x' | 'y' => 592,
        'Y' | 'T' | 'P' | 'a' | 'e' | 'o' => 615,
        '0'..='9' | 'b' | 'd' | 'g' | 'h' | 'n' | 'p' | 'q' | 'u' | 'S' | '{' | '}' | '$' | 'E' => 636,
        'A' | 'B' | 'C' | 'K' | 'R' | 'V' | 'X' | 'Z' => 698,
        'D' | 'G' | 'H' | 'N' | 'O' | 'Q' | 'U' | '&' => 787,
        'w' | '+' | '<' | '=' | '>' | '#' | '~' => 838,
        'M' => 863,
        'm' | '%' => 974,
        // The widest of the letters, and everything that is none: arrows, ellipses, ideographs.
        _ => 1000,
    }
}

/// How much wider the widest bold characters are.
const BOLDER: f64 = 1.18;

pub(super) fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> String {
    format!("<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>")
}

pub(super) fn rect(class: &str, (x, y): (f64, f64), width: f64, height: f64) -> String {
    format!("<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>")
}

/// A text; what the style sheet has for every text of a picture is not said again.
pub(super) fn text(class: &str, font: Font, (x, y): (f64, f64), content: &str) -> String {
    let size = if font.size == Font::LABEL.size { String::new() } else { format!(" font-size=\"{}\"", font.size) };
    let anchor = match font.anchor {
        Anchor::Start => "",
        Anchor::Middle => " text-anchor=\"middle\"",
        Anchor::End => " text-anchor=\"end\"",
    };
    let bold = if font.bold { " font-weight=\"600\"" } else { "" };
    format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\"{size}{anchor}{bold}>{}</text>", escape(content))
}

/// What a shape tells when the pointer rests on it.
pub(super) fn told(title: &str, shapes: &str) -> String {
    format!("<g><title>{}</title>{shapes}</g>", escape(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_become_markup() {
        assert_eq!(escape("a key"), "a key");
        assert_eq!(escape("<a href='x' b=\"&\">"), "&lt;a href=&#39;x&#39; b=&quot;&amp;&quot;&gt;");
    }

    #[test]
    fn texts_are_broken_between_words_and_never_wider_than_their_room() {
        let font = Font::LABEL;
        let text = "2: put \"milk, eggs, and a_very_long_word_that_fits_nowhere\" again";
        for width in [30.0, 61.5, 100.0, 1000.0] {
            let lines = font.wrap(text, width, 99);
            assert!(lines.iter().all(|line| font.width(line) <= width), "{width}: {lines:?}");
            assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""), "nothing is lost");
            let cut = font.wrap(text, width, 2);
            assert!(cut.len() <= 2 && cut.iter().all(|line| font.width(line) <= width), "{width}: {cut:?}");
            assert_eq!(cut.last().expect("a line").ends_with('…'), lines.len() > 2, "{cut:?}");
        }
        assert_eq!(font.wrap("two words", font.width("words "), 2), ["two", "words"]);
        assert_eq!(font.wrap("", 10.0, 1), [""]);
        assert_eq!(font.short("äöü", 100.0), "äöü");
    }

    #[test]
    fn texts_cover_what_is_on_their_side_of_the_place() {
        let font = Font::LABEL;
        let at = |font: Font| font.bounds((100.0, 50.0), "abc");
        let width = font.width("abc");
        assert_eq!((at(font).left, at(font).right), (100.0, 100.0 + width));
        assert_eq!((at(font.end()).left, at(font.end()).right), (100.0 - width, 100.0));
        assert_eq!(at(font.middle()).left, 100.0 - width / 2.0);
        assert!(at(font).touch(&at(font.middle())) && !at(font).touch(&at(font.end())));
        assert!(!at(font).touch(&font.bounds((100.0, 50.0 + font.size), "abc")));
    }
}
