//! A client's settings from files and variables: the same ones, in the same order, as the command line tool's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::client::{Client, ClientBuilder};
use crate::error::Error;
use quorate_wire::parse_time;

use crate::options::{Profile, Quorum};
use quorate_transport::tls::{self, Credentials};

/// What one place says; the keys are explained at [`Client::from_config`].
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    seeds: Option<Vec<String>>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    profile: Option<String>,
    r: Option<WordOrNumber>,
    w: Option<WordOrNumber>,
    timeout: Option<String>,
    /// How the command line tool prints; nothing to a library.
    #[serde(rename = "output")]
    _output: Option<String>,
}

/// `"majority"`, or 2.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WordOrNumber {
    Word(String),
    Number(u64),
}

/// Settings, as far as they are known.
#[derive(Debug, Default)]
struct Settings {
    seeds: Option<Vec<String>>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    profile: Option<Profile>,
    r: Option<Quorum>,
    w: Option<Quorum>,
    timeout: Option<Duration>,
}

impl Settings {
    fn of_file(path: &Path) -> Result<Self, Error> {
        let file: File = toml::from_str(&text(path)?).map_err(|error| wrong(path.display(), &error))?;
        let beside = path.parent().unwrap_or(Path::new("."));
        let mut settings = Self::parse(file, |key| format!("{}: `{key}`", path.display()))?;
        for named in [&mut settings.ca, &mut settings.cert, &mut settings.key].into_iter().flatten() {
            *named = beside.join(&*named);
        }
        Ok(settings)
    }

    fn of_variables(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let list =
            |text: String| text.split(',').map(|seed| seed.trim().to_owned()).filter(|seed| !seed.is_empty()).collect();
        let word = |name| variable(name).map(WordOrNumber::Word);
        let file = File {
            seeds: variable("QUORATE_SEEDS").map(list),
            ca: variable("QUORATE_CA").map(Into::into),
            cert: variable("QUORATE_CERT").map(Into::into),
            key: variable("QUORATE_KEY").map(Into::into),
            profile: variable("QUORATE_PROFILE"),
            r: word("QUORATE_R"),
            w: word("QUORATE_W"),
            timeout: variable("QUORATE_TIMEOUT"),
            _output: None,
        };
        Self::parse(file, |key| format!("QUORATE_{}", key.to_uppercase()))
    }

    /// `place` names a key where it stands, for errors.
    fn parse(file: File, place: impl Fn(&str) -> String) -> Result<Self, Error> {
        fn parsed<T, E: std::fmt::Display>(
            value: Option<String>,
            place: String,
            parse: impl FnOnce(&str) -> Result<T, E>,
        ) -> Result<Option<T>, Error> {
            value.map(|text| parse(&text).map_err(|error| wrong(place, &error))).transpose()
        }
        let quorum = |value: Option<WordOrNumber>| {
            value.map(|value| match value {
                WordOrNumber::Word(word) => word,
                WordOrNumber::Number(number) => number.to_string(),
            })
        };
        Ok(Self {
            seeds: file.seeds,
            ca: file.ca,
            cert: file.cert,
            key: file.key,
            profile: parsed(file.profile, place("profile"), str::parse)?,
            r: parsed(quorum(file.r), place("r"), str::parse)?,
            w: parsed(quorum(file.w), place("w"), str::parse)?,
            timeout: parsed(file.timeout, place("timeout"), parse_time)?,
        })
    }

    /// What is not said here is taken from there.
    fn or(self, other: Self) -> Self {
        Self {
            seeds: self.seeds.or(other.seeds),
            ca: self.ca.or(other.ca),
            cert: self.cert.or(other.cert),
            key: self.key.or(other.key),
            profile: self.profile.or(other.profile),
            r: self.r.or(other.r),
            w: self.w.or(other.w),
            timeout: self.timeout.or(other.timeout),
        }
    }

    /// Whether nothing says where a cluster is or who the client is.
    fn names_no_cluster(&self) -> bool {
        self.seeds.is_none() && self.ca.is_none() && self.cert.is_none() && self.key.is_none()
    }

    /// `place` is for errors.
    fn builder(self, place: &str) -> Result<ClientBuilder, Error> {
        let (Some(seeds), Some(ca), Some(cert), Some(key)) = (&self.seeds, &self.ca, &self.cert, &self.key) else {
            let named = [
                ("seeds", self.seeds.is_none()),
                ("ca", self.ca.is_none()),
                ("cert", self.cert.is_none()),
                ("key", self.key.is_none()),
            ];
            let missing: Vec<_> = named.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect();
            let why = format!("{place}: seeds, ca, cert and key are needed; missing: {}", missing.join(", "));
            return Err(Error::misuse(why));
        };
        let key_file = key;
        let [ca, cert, key] = [ca, cert, key].map(|path| bytes(path));
        tls::check_key_file(key_file).map_err(|error| wrong(place, &error))?;
        let credentials = Credentials::from_pem(&ca?, &cert?, &key?);
        let mut builder =
            Client::builder(seeds.clone()).credentials(credentials.map_err(|error| wrong(place, &error))?);
        if let Some(profile) = self.profile {
            builder = builder.profile(profile);
        }
        if let Some(r) = self.r {
            builder = builder.r(r);
        }
        if let Some(w) = self.w {
            builder = builder.w(w);
        }
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        Ok(builder)
    }
}

pub(crate) fn read(path: &Path) -> Result<ClientBuilder, Error> {
    Settings::of_file(path)?.builder(&path.display().to_string())
}

/// Variables, the file that one of them names, and then as [`from_default`].
pub(crate) fn from_env() -> Result<ClientBuilder, Error> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut settings = Settings::of_variables(&variable)?;
    if let Some(named) = variable("QUORATE_CONFIG") {
        settings = settings.or(Settings::of_file(Path::new(&named))?);
    }
    complete(settings, "the environment")
}

/// The user's file, and a development cluster if that names none.
pub(crate) fn from_default() -> Result<ClientBuilder, Error> {
    complete(Settings::default(), "the user's configuration")
}

fn complete(mut settings: Settings, place: &str) -> Result<ClientBuilder, Error> {
    if let Some(file) = directory("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("quorate/config.toml"))
        && file.exists()
    {
        settings = settings.or(Settings::of_file(&file)?);
    }
    // The addresses of one cluster are of no use with the certificates of another: it is taken as a whole or not at all.
    if settings.names_no_cluster()
        && let Some(dev) = dev_file().ok().filter(|file| file.exists())
    {
        settings = settings.or(Settings::of_file(&dev)?);
    }
    settings.builder(place)
}

/// Where `quorate dev` leaves the settings for its clients.
pub(crate) fn dev_file() -> Result<PathBuf, Error> {
    let named = std::env::var_os("QUORATE_DEV_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dev = named.or_else(|| Some(directory("XDG_STATE_HOME", ".local/state")?.join("quorate/dev")));
    let dev =
        dev.ok_or_else(|| Error::misuse("neither QUORATE_DEV_DIR nor HOME says where `quorate dev` keeps its files"))?;
    Ok(dev.join("client.toml"))
}

/// A base directory of the XDG specification, which wants relative ones ignored.
fn directory(name: &str, under_home: &str) -> Option<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    dir(name).filter(|dir| dir.is_absolute()).or_else(|| Some(dir("HOME")?.join(under_home)))
}

fn wrong(place: impl std::fmt::Display, why: &dyn std::fmt::Display) -> Error {
    Error::misuse(format!("{place}: {why}"))
}

fn text(path: &Path) -> Result<String, Error> {
    quorate_wire::text::of_file(bytes(path)?).map_err(|why| wrong(path.display(), &why))
}

fn bytes(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| Error::misuse(format!("{} cannot be read: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        Settings::parse(file, |key| format!("client.toml: `{key}`")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_what_the_command_line_tool_reads() {
        let all = "seeds = [\"n1:7400\"]\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"c.key\"\nprofile = \"safe\"\nr = 1\nw = \"all\"\n\
                   timeout = \"250ms\"\noutput = \"json\"\n";
        let settings = file(all).expect("legal");
        assert_eq!((settings.r, settings.w), (Some(Quorum::Exactly(1)), Some(Quorum::All)));
        assert_eq!((settings.profile, settings.timeout), (Some(Profile::Safe), Some(Duration::from_millis(250))));
        for (text, wanted) in [
            ("r = 0", "client.toml: `r`: \"0\" is not a quorum"),
            ("profile = \"quick\"", "`profile`: \"quick\" is not a profile"),
            ("timeout = \"5\"", "`timeout`: \"5\" lacks a unit"),
            ("timeout_ms = 5", "unknown field `timeout_ms`"),
        ] {
            let error = file(text).expect_err(text);
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_with_a_byte_order_mark_is_read_and_one_in_utf_16_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("client.toml");
        std::fs::write(&path, b"\xef\xbb\xbfr = 1\r\n").expect("written");
        assert_eq!(Settings::of_file(&path).expect("UTF-8").r, Some(Quorum::Exactly(1)));
        let wide: Vec<u8> = "\u{feff}r = 1".encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, wide).expect("written");
        let error = Settings::of_file(&path).expect_err("UTF-16").to_string();
        assert!(error.contains("client.toml: it is text in UTF-16") && error.contains("iconv"), "{error}");
    }

    #[test]
    fn a_variable_counts_before_a_file_and_is_named_when_it_is_wrong() {
        let variable = |name: &str| match name {
            "QUORATE_SEEDS" => Some("a:1, b:2".to_owned()),
            "QUORATE_R" => Some("2".to_owned()),
            _ => None,
        };
        let of_file = file("seeds = [\"n1:7400\"]\nr = \"all\"\nw = \"all\"\n").expect("legal");
        let settings = Settings::of_variables(&variable).expect("legal").or(of_file);
        assert_eq!(settings.seeds, Some(vec!["a:1".to_owned(), "b:2".to_owned()]));
        assert_eq!((settings.r, settings.w), (Some(Quorum::Exactly(2)), Some(Quorum::All)));
        let error = settings.builder("the environment").expect_err("no certificates");
        assert!(error.to_string().ends_with("missing: ca, cert, key"), "{error}");
        let error = Settings::of_variables(&|name| (name == "QUORATE_TIMEOUT").then(|| "soon".to_owned()));
        assert!(error.expect_err("no time").to_string().starts_with("QUORATE_TIMEOUT: \"soon\""));
    }
}
