//! Settings in layers: flags, environment variables, files, defaults; each value knows where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

/// One setting under all its names.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// In a file; with its section, as in `tls.ca`.
    pub file: &'static str,
    /// On the command line, as in `--ca`.
    pub flag: &'static str,
    /// In the environment, as in `QUORATE_CA`.
    pub variable: &'static str,
    /// What a file must give it.
    pub kind: Kind,
}

/// What a file may give to a key. Variables are text always; lists are comma separated there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// An integer.
    Integer,
    /// A string or an integer, such as a quorum: `"majority"`, `2`.
    TextOrInteger,
    /// An array of strings.
    List,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "a string",
            Self::Integer => "an integer",
            Self::TextOrInteger => "a string or an integer",
            Self::List => "an array of strings",
        })
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag(&'static str),
    /// The environment.
    Variable(&'static str),
    /// A line of a file, counted from 1.
    File(PathBuf, usize),
    /// Nobody said anything else.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// Where it came from.
    pub origin: Origin,
    /// Under which name it stands there.
    name: &'static str,
    /// Its name in a file, wherever it came from.
    key: &'static str,
}

impl<T> Setting<T> {
    /// A value that nobody has set.
    pub fn default(value: T) -> Self {
        Self { value, origin: Origin::Default, name: "", key: "" }
    }

    /// Another value of the same origin.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { value: f(self.value), origin: self.origin, name: self.name, key: self.key }
    }

    /// Takes down where this value came from, under its name in a file.
    pub fn note(&self, origins: &mut BTreeMap<&'static str, Origin>) {
        if self.origin != Origin::Default {
            origins.insert(self.key, self.origin.clone());
        }
    }

    /// The value, after [`note`](Self::note).
    pub fn noted(self, origins: &mut BTreeMap<&'static str, Origin>) -> T {
        self.note(origins);
        self.value
    }

    /// Something is wrong with this value.
    pub fn error(&self, message: impl fmt::Display) -> ConfigError {
        let message = match self.origin {
            Origin::File(..) => format!("`{}`: {message}", self.name),
            Origin::Flag(_) | Origin::Variable(_) | Origin::Default => message.to_string(),
        };
        ConfigError { place: Some(self.origin.to_string()), message, hint: None }
    }
}

/// What is wrong with a configuration, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// A file and line, a variable or a flag.
    place: Option<String>,
    /// What is wrong.
    message: String,
    /// What to do.
    hint: Option<String>,
}

impl ConfigError {
    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What to do about it, if there is more to say than the message does.
    pub fn to_do(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// A configuration file: TOML whose every key is known.
#[derive(Debug, Clone)]
pub struct Document {
    path: PathBuf,
    /// By full key.
    values: BTreeMap<&'static str, Raw>,
}

/// A value of a file, one item unless the key is a list.
#[derive(Debug, Clone)]
struct Raw {
    items: Vec<String>,
    line: usize,
}

impl Document {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is larger than 1 MiB, is no TOML, has an unknown key or a value of the wrong kind.
    pub fn read(path: &Path, keys: &[&Key]) -> Result<Self, ConfigError> {
        let unreadable = |why: String| ConfigError {
            place: Some(path.display().to_string()),
            message: format!("cannot read the configuration file: {why}"),
            hint: Some("check the path, and that it is a file that you may read".to_owned()),
        };
        let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if size > FILE_LEN_MAX {
            return Err(unreadable(format!("it has {size} bytes, at most {FILE_LEN_MAX} are allowed")));
        }
        let file = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
        let text = quorate_wire::text::of_file(file).map_err(|why| ConfigError {
            place: Some(path.display().to_string()),
            message: why,
            hint: None,
        })?;
        Self::parse(path, &text, keys)
    }

    /// Parses a file's text; `path` is for messages, and relative paths in the file are relative to its directory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(path: &Path, text: &str, keys: &[&Key]) -> Result<Self, ConfigError> {
        let at = |offset: usize, message: String| ConfigError {
            place: Some(format!("{}:{}", path.display(), line_of(text, offset))),
            message,
            hint: None,
        };
        let table = DeTable::parse(text)
            .map_err(|error| at(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
        let mut leaves = Vec::new();
        flatten("", table.get_ref(), keys, &mut leaves);
        // Errors are reported in the order of the file.
        leaves.sort_by_key(|leaf| leaf.offset);
        let mut values = BTreeMap::new();
        for leaf in leaves {
            let Some(key) = keys.iter().find(|key| key.file == leaf.key) else {
                return Err(at(leaf.offset, format!("unknown key `{}`", leaf.key)).explain_unknown(&leaf.key, keys));
            };
            let items = items(leaf.value, key.kind).ok_or_else(|| {
                at(leaf.offset, format!("`{}` must be {}, not {}", key.file, key.kind, kind_of(leaf.value)))
            })?;
            if items.iter().any(String::is_empty) {
                return Err(at(leaf.offset, format!("`{}` must not be empty", key.file)));
            }
            values.insert(key.file, Raw { items, line: line_of(text, leaf.offset) });
        }
        Ok(Self { path: path.to_owned(), values })
    }
}

impl ConfigError {
    fn explain_unknown(mut self, unknown: &str, keys: &[&Key]) -> Self {
        let near = keys
            .iter()
            .map(|key| (strsim::jaro_winkler(unknown, key.file), key.file))
            .filter(|(likeness, _)| *likeness > LIKENESS_MIN)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        if let Some((_, near)) = near {
            self.message = format!("{}, did you mean `{near}`?", self.message);
        }
        let allowed: Vec<_> = keys.iter().map(|key| key.file).collect();
        self.message = format!("{} (allowed are {})", self.message, allowed.join(", "));
        self.hint("correct or remove the key")
    }
}

/// Errors of the standard library do not name what they are about.
fn unparsed(text: &str, error: &dyn fmt::Display) -> String {
    let said = error.to_string();
    if said.contains(text) { said } else { format!("{text:?}: {said}") }
}

/// Flags are handed to each look-up; variables and files stand here.
pub struct Layers<'a> {
    variables: &'a dyn Fn(&str) -> Option<String>,
    /// The first one that has a key counts.
    files: Vec<Document>,
}

impl fmt::Debug for Layers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layers").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<'a> Layers<'a> {
    /// `variables` looks up an environment variable; files count in their order.
    pub fn new(variables: &'a dyn Fn(&str) -> Option<String>, files: Vec<Document>) -> Self {
        Self { variables, files }
    }

    /// The one value of a key, from the first layer that has it.
    ///
    /// # Errors
    /// When the value cannot be parsed.
    pub fn one<T>(&self, key: &Key, flag: Option<T>) -> Result<Option<Setting<T>>, ConfigError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        if let Some(value) = flag {
            return Ok(Some(Setting { value, origin: Origin::Flag(key.flag), name: key.flag, key: key.file }));
        }
        let Some(raw) = self.raw(key)? else { return Ok(None) };
        let text = raw.value.first().map_or("", String::as_str);
        let value = text.parse().map_err(|error| raw.error(unparsed(text, &error)))?;
        Ok(Some(raw.map(|_| value)))
    }

    /// The values of a key that is a list, from the first layer that has it; an empty list on the command line is absent.
    ///
    /// # Errors
    /// When a value cannot be parsed.
    pub fn many<T>(&self, key: &Key, flag: Vec<T>) -> Result<Option<Setting<Vec<T>>>, ConfigError>
    where
        T: FromStr<Err: fmt::Display>,
    {
        if !flag.is_empty() {
            return Ok(Some(Setting { value: flag, origin: Origin::Flag(key.flag), name: key.flag, key: key.file }));
        }
        let Some(raw) = self.raw(key)? else { return Ok(None) };
        let values: Result<Vec<T>, _> =
            raw.value.iter().map(|text| text.parse().map_err(|error| raw.error(unparsed(text, &error)))).collect();
        let values = values?;
        Ok(Some(raw.map(|_| values)))
    }

    /// A path; one in a file is relative to the file's directory.
    ///
    /// # Errors
    /// As [`one`](Self::one).
    pub fn path(&self, key: &Key, flag: Option<PathBuf>) -> Result<Option<Setting<PathBuf>>, ConfigError> {
        let path = self.one(key, flag)?;
        Ok(path.map(|setting| match &setting.origin {
            Origin::File(file, _) => {
                let base = file.parent().unwrap_or(Path::new("")).to_owned();
                setting.map(|path| base.join(path))
            }
            Origin::Flag(_) | Origin::Variable(_) | Origin::Default => setting,
        }))
    }

    /// Insists on a value.
    ///
    /// # Errors
    /// When there is none; the error names all ways to give it.
    pub fn required<T>(&self, setting: Option<Setting<T>>, key: &Key, what: &str) -> Result<Setting<T>, ConfigError> {
        setting.ok_or_else(|| ConfigError {
            place: self.files.first().map(|file| file.path.display().to_string()),
            message: format!("`{}` is missing: {what}", key.file),
            hint: Some(format!(
                "set `{}` in the configuration file, {} in the environment, or {}",
                key.file, key.variable, key.flag
            )),
        })
    }

    /// The texts of a key from the variables or the first file that has it.
    fn raw(&self, key: &Key) -> Result<Option<Setting<Vec<String>>>, ConfigError> {
        if let Some(text) = (self.variables)(key.variable).filter(|text| !text.is_empty()) {
            let value = match key.kind {
                Kind::List => {
                    text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
                }
                Kind::Text | Kind::Integer | Kind::TextOrInteger => vec![text],
            };
            return Ok(Some(Setting {
                value,
                origin: Origin::Variable(key.variable),
                name: key.variable,
                key: key.file,
            }));
        }
        Ok(self.files.iter().find_map(|file| {
            let raw = file.values.get(key.file)?;
            let origin = Origin::File(file.path.clone(), raw.line);
            Some(Setting { value: raw.items.clone(), origin, name: key.file, key: key.file })
        }))
    }
}

/// A value of a file, or a table that no key begins with.
struct Leaf<'t, 'i> {
    key: String,
    value: &'t DeValue<'i>,
    offset: usize,
}

fn flatten<'t, 'i>(prefix: &str, table: &'t DeTable<'i>, keys: &[&Key], leaves: &mut Vec<Leaf<'t, 'i>>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if !inner.is_empty() => flatten(&key, inner, keys, leaves),
            DeValue::Table(_)
                if keys.iter().any(|known| known.file.strip_prefix(&key).is_some_and(|rest| rest.starts_with('.'))) => {
            }
            other => leaves.push(Leaf { key, value: other, offset: name.span().start }),
        }
    }
}

fn items(value: &DeValue<'_>, kind: Kind) -> Option<Vec<String>> {
    let one = |value: &DeValue<'_>| match (value, kind) {
        (DeValue::String(text), Kind::Text | Kind::TextOrInteger | Kind::List) => Some(text.to_string()),
        (DeValue::Integer(number), Kind::Integer | Kind::TextOrInteger) => Some(number.to_string()),
        _ => None,
    };
    match (value, kind) {
        (DeValue::Array(values), Kind::List) => values.iter().map(|value| one(value.get_ref())).collect(),
        (_, Kind::List) => None,
        (value, Kind::Text | Kind::Integer | Kind::TextOrInteger) => one(value).map(|item| vec![item]),
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array of other things",
        DeValue::Table(_) => "a section",
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The largest configuration file, in bytes; anything above is a mistake in the path.
const FILE_LEN_MAX: u64 = 1 << 20;

/// From this Jaro-Winkler likeness on a known key is offered for an unknown one; clap's threshold for flags.
const LIKENESS_MIN: f64 = 0.7;
