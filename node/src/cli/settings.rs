//! What a client command works with, and where each value came from.
//!
//! In this order, the first that says something counts: a flag, a `QUORATE_*` variable, the file of `--config`, the user's
//! own file, the profile of a running `quorate dev`, the default. The profile is taken as a whole or not at all: the
//! addresses of one cluster are of no use with the certificates of another.

use std::path::PathBuf;
use std::time::Duration;

use comfy_table::Table;
use quorate_client::options::{Profile, TIMEOUT_DEFAULT};
use quorate_node::config::layers::{ConfigError, Document, Key, Kind, Layers, Origin, Setting};
use quorate_node::config::{Endpoint, Time};
use quorate_wire::{Quorum, TIMEOUT_MAX, time_text};
use serde_json::json;

use super::args::{Common, ConfigShowArgs, OutputFormat, TIMEOUT_MIN};
use super::failure::{Exit, Failure, Outcome};
use super::output::{Output, table};

/// What a client command works with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Nodes to ask first.
    pub(crate) seeds: Option<Setting<Vec<Endpoint>>>,
    /// The cluster's CA certificate.
    pub(crate) ca: Option<Setting<PathBuf>>,
    /// The client's certificate.
    pub(crate) cert: Option<Setting<PathBuf>>,
    /// Its key.
    pub(crate) key: Option<Setting<PathBuf>>,
    /// What R, W and strictness are unless something else is said.
    pub(crate) profile: Option<Setting<Profile>>,
    /// Replicas for a read; the profile or the server decides if absent.
    pub(crate) r: Option<Setting<Quorum>>,
    /// Replicas for a write; the profile or the server decides if absent.
    pub(crate) w: Option<Setting<Quorum>>,
    /// How long a request may take.
    pub(crate) timeout: Setting<Duration>,
    /// How results are printed.
    pub(crate) output: Setting<OutputFormat>,
}

/// What the process finds around itself.
pub(crate) struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub(crate) variables: &'a dyn Fn(&str) -> Option<String>,
    /// The user's own file; it need not exist.
    pub(crate) user_file: Option<PathBuf>,
    /// The profile of a development cluster that runs now.
    pub(crate) dev_profile: Option<PathBuf>,
}

impl Settings {
    /// Puts the layers together.
    pub(crate) fn load(
        common: &Common,
        r: Option<Quorum>,
        w: Option<Quorum>,
        around: &Surroundings<'_>,
    ) -> Result<Self, ConfigError> {
        let mut files = Vec::new();
        let named = common
            .config
            .clone()
            .or_else(|| (around.variables)("QUORATE_CONFIG").filter(|path| !path.is_empty()).map(Into::into));
        if let Some(path) = named {
            files.push(Document::read(&path, CLIENT_KEYS)?);
        }
        if let Some(path) = around.user_file.as_ref().filter(|path| path.exists()) {
            files.push(Document::read(path, CLIENT_KEYS)?);
        }
        let layers = Layers::new(around.variables, files);
        let timeout = layers
            .one(&TIMEOUT, common.timeout.map(Time))?
            .map_or(Setting::default(TIMEOUT_DEFAULT), |t| t.map(|ms| ms.0));
        if timeout.value < TIMEOUT_MIN || timeout.value > TIMEOUT_MAX {
            let max = TIMEOUT_MAX.as_secs();
            return Err(timeout
                .error(format!("a timeout must be at least 1ms and at most {max}s"))
                .hint(format!("write {max}s or less")));
        }
        let mut settings = Self {
            seeds: layers.many(&SEEDS, common.seeds.clone())?,
            ca: layers.path(&CA, common.ca.clone())?,
            cert: layers.path(&CERT, common.cert.clone())?,
            key: layers.path(&KEY, common.key.clone())?,
            profile: layers.one(&PROFILE, None)?,
            r: layers.one(&R, r)?,
            w: layers.one(&W, w)?,
            timeout,
            output: layers.one(&OUTPUT, common.output)?.unwrap_or_else(|| Setting::default(OutputFormat::Text)),
        };
        let nothing_set =
            settings.seeds.is_none() && settings.ca.is_none() && settings.cert.is_none() && settings.key.is_none();
        if let (Some(profile), true) = (&around.dev_profile, nothing_set) {
            let layers = Layers::new(&|_| None, vec![Document::read(profile, CLIENT_KEYS)?]);
            settings.seeds = layers.many(&SEEDS, Vec::new())?;
            settings.ca = layers.path(&CA, None)?;
            settings.cert = layers.path(&CERT, None)?;
            settings.key = layers.path(&KEY, None)?;
        }
        Ok(settings)
    }

    /// What is needed to connect.
    pub(crate) fn connection(&self) -> Outcome<Connection<'_>> {
        match (&self.seeds, &self.ca, &self.cert, &self.key) {
            (Some(seeds), Some(ca), Some(cert), Some(key)) => Ok(Connection { seeds, ca, cert, key }),
            (None, None, None, None) => Err(Failure::usage(
                "no cluster is known: nothing names seeds or certificates, and no `quorate dev` is running",
                "start one with `quorate dev`, or set seeds, ca, cert and key (see `quorate config show --help`)",
            )),
            (seeds, ca, cert, key) => {
                let missing: Vec<_> = [
                    ("seeds", seeds.is_none()),
                    ("ca", ca.is_none()),
                    ("cert", cert.is_none()),
                    ("key", key.is_none()),
                ]
                .into_iter()
                .filter_map(|(name, missing)| missing.then_some(name))
                .collect();
                Err(Failure::usage(
                    format!("to connect, seeds, ca, cert and key are needed; missing: {}", missing.join(", ")),
                    "`quorate config show --origin` shows what is set and where",
                ))
            }
        }
    }

    /// R, if it was said anywhere.
    pub(crate) fn r(&self) -> Option<Quorum> {
        let of_profile = || self.profile.as_ref().map(|profile| profile.value.r());
        self.r.as_ref().map(|r| r.value).or_else(of_profile)
    }

    /// W, if it was said anywhere.
    pub(crate) fn w(&self) -> Option<Quorum> {
        let of_profile = || self.profile.as_ref().map(|profile| profile.value.w());
        self.w.as_ref().map(|w| w.value).or_else(of_profile)
    }

    /// Whether only owners count, unless a flag says so.
    pub(crate) fn strict(&self) -> bool {
        self.profile.as_ref().is_some_and(|profile| profile.value.strict())
    }

    /// Name, value and origin of each setting.
    fn rows(&self) -> Vec<[String; 3]> {
        fn row<T>(name: &str, setting: &Option<Setting<T>>, text: impl Fn(&T) -> String, absent: &str) -> [String; 3] {
            match setting {
                Some(setting) => [name.to_owned(), text(&setting.value), setting.origin.to_string()],
                None => [name.to_owned(), absent.to_owned(), "default".to_owned()],
            }
        }
        let path = |path: &PathBuf| path.display().to_string();
        let seeds = |seeds: &Vec<Endpoint>| seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        vec![
            row("seeds", &self.seeds, seeds, "-"),
            row("ca", &self.ca, path, "-"),
            row("cert", &self.cert, path, "-"),
            row("key", &self.key, path, "-"),
            row("profile", &self.profile, Profile::to_string, "-"),
            row("r", &self.r, Quorum::to_string, &self.r().unwrap_or(Quorum::Majority).to_string()),
            row("w", &self.w, Quorum::to_string, &self.w().unwrap_or(Quorum::Majority).to_string()),
            row("timeout", &Some(self.timeout.clone()), |t| time_text(*t), ""),
            row("output", &Some(self.output.clone()), OutputFormat::to_string, ""),
        ]
    }
}

/// What is needed to connect to a cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection<'a> {
    pub(crate) seeds: &'a Setting<Vec<Endpoint>>,
    pub(crate) ca: &'a Setting<PathBuf>,
    pub(crate) cert: &'a Setting<PathBuf>,
    pub(crate) key: &'a Setting<PathBuf>,
}

impl Connection<'_> {
    /// Adds to a failure where those settings came from that it names.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        let mut origins: Vec<(&str, String, &Origin)> = Vec::new();
        for seed in &self.seeds.value {
            origins.push(("the seeds are", seed.to_string(), &self.seeds.origin));
        }
        for (what, file) in [("the CA is", self.ca), ("the certificate is", self.cert), ("the key is", self.key)] {
            origins.push((what, file.value.display().to_string(), &file.origin));
        }
        failure.with_origins(&origins)
    }
}

/// `config show`.
pub(crate) fn show(
    args: &ConfigShowArgs,
    settings: &Settings,
    variables: impl Iterator<Item = String>,
    output: &Output,
) -> Outcome {
    let rows = settings.rows();
    let unknown = unknown_variables(variables);
    if output.is_json() {
        let values: serde_json::Map<_, _> = rows
            .iter()
            .map(|[name, value, origin]| {
                let value = (value != "-").then_some(value);
                let shown = if args.origin { json!({ "value": value, "origin": origin }) } else { json!(value) };
                (name.clone(), shown)
            })
            .collect();
        output.json(&json!({ "schema": "quorate.config.v1", "settings": values, "unknown_variables": unknown }))?;
        return Ok(Exit::Done);
    }
    let mut shown: Table = table(if args.origin { &["SETTING", "VALUE", "ORIGIN"] } else { &["SETTING", "VALUE"] });
    for [name, value, origin] in rows {
        shown.add_row(if args.origin { vec![name, value, origin] } else { vec![name, value] });
    }
    output.table(&shown)?;
    Ok(Exit::Done)
}

/// Says which variables of this process look like settings and are none.
pub(crate) fn warn_of_variables(output: &Output) {
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for (name, near) in unknown_variables(variables) {
        let near = near.map(|near| format!(", did you mean {near}?")).unwrap_or_default();
        output.say(&format!("warning: nothing reads the variable {name}{near}"));
    }
}

/// Variables that look like ours and are not, with what may have been meant. They are no errors, and what a container platform
/// sets by itself, such as `QUORATE_SERVICE_HOST`, is passed over.
fn unknown_variables(variables: impl Iterator<Item = String>) -> Vec<(String, Option<&'static str>)> {
    let known = || {
        let keys = quorate_node::config::SERVER_KEYS.iter().chain(CLIENT_KEYS).map(|key| key.variable);
        keys.chain(["QUORATE_CONFIG", "QUORATE_SERVER_CONFIG", "QUORATE_LOG_LEVEL", "QUORATE_DEV_DIR", "QUORATE_BIN"])
    };
    let of_platform = |name: &str| {
        name.contains("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.ends_with("_PORT")
            || name.contains("_PORT_")
    };
    let mut unknown: Vec<_> = variables
        .filter(|name| name.starts_with("QUORATE_") && !of_platform(name) && known().all(|known| known != name))
        .map(|name| {
            let of_server = name.replacen("QUORATE_", "QUORATE_SERVER_", 1);
            let near = known().map(|known| {
                let distance = strsim::levenshtein(&name, known).min(strsim::levenshtein(&of_server, known));
                (distance, known)
            });
            (near.min().filter(|(distance, _)| *distance <= 3).map(|(_, near)| near), name)
        })
        .map(|(near, name)| (name, near))
        .collect();
    unknown.sort();
    unknown
}

const SEEDS: Key = Key { file: "seeds", flag: "--seeds", variable: "QUORATE_SEEDS", kind: Kind::List };
const CA: Key = Key { file: "ca", flag: "--ca", variable: "QUORATE_CA", kind: Kind::Text };
const CERT: Key = Key { file: "cert", flag: "--cert", variable: "QUORATE_CERT", kind: Kind::Text };
const KEY: Key = Key { file: "key", flag: "--key", variable: "QUORATE_KEY", kind: Kind::Text };
const PROFILE: Key = Key { file: "profile", flag: "profile", variable: "QUORATE_PROFILE", kind: Kind::Text };
const R: Key = Key { file: "r", flag: "--r", variable: "QUORATE_R", kind: Kind::TextOrInteger };
const W: Key = Key { file: "w", flag: "--w", variable: "QUORATE_W", kind: Kind::TextOrInteger };
const TIMEOUT: Key = Key { file: "timeout", flag: "--timeout", variable: "QUORATE_TIMEOUT", kind: Kind::Text };
const OUTPUT: Key = Key { file: "output", flag: "--output", variable: "QUORATE_OUTPUT", kind: Kind::Text };

/// All keys of a client's configuration file.
pub(crate) const CLIENT_KEYS: &[&Key] = &[&SEEDS, &CA, &CERT, &KEY, &PROFILE, &R, &W, &TIMEOUT, &OUTPUT];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// A directory with a file for every layer, each of which names itself as a seed.
    struct World {
        dir: tempfile::TempDir,
        variables: BTreeMap<&'static str, String>,
    }

    impl World {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("a temporary directory"), variables: BTreeMap::new() }
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        }

        fn load(&self, common: &Common) -> Result<Settings, String> {
            let there = |name: &str| Some(self.dir.path().join(name)).filter(|path| path.exists());
            let around = Surroundings {
                variables: &|name| self.variables.get(name).cloned(),
                user_file: Some(self.dir.path().join("user.toml")),
                dev_profile: there("dev.toml"),
            };
            Settings::load(common, None, None, &around).map_err(|error| error.to_string())
        }

        fn seed(&self, common: &Common) -> (String, Origin) {
            let seeds = self.load(common).expect("legal").seeds.expect("seeds");
            (seeds.value[0].to_string(), seeds.origin)
        }
    }

    #[test]
    fn each_layer_counts_before_the_next() {
        let mut world = World::new();
        let mut common = Common::default();
        assert!(world.load(&common).expect("legal").seeds.is_none());

        let dev = world.file("dev.toml", "seeds = [\"dev:1\"]\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"c.key\"\n");
        assert_eq!(world.seed(&common), ("dev:1".into(), Origin::File(dev, 1)));
        let user = world.file("user.toml", "\nseeds = [\"user:1\"]\n");
        assert_eq!(world.seed(&common), ("user:1".into(), Origin::File(user, 2)));
        common.config = Some(world.file("named.toml", "seeds = [\"named:1\"]\n"));
        assert_eq!(world.seed(&common).0, "named:1");
        world.variables.insert("QUORATE_SEEDS", "variable:1, other:2".into());
        assert_eq!(world.seed(&common), ("variable:1".into(), Origin::Variable("QUORATE_SEEDS")));
        common.seeds = vec!["flag:1".parse().expect("legal")];
        assert_eq!(world.seed(&common), ("flag:1".into(), Origin::Flag("--seeds")));
    }

    #[test]
    fn a_dev_profile_is_taken_as_a_whole_or_not_at_all() {
        let mut world = World::new();
        world.file("dev.toml", "seeds = [\"dev:1\"]\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"c.key\"\n");
        let settings = world.load(&Common::default()).expect("legal");
        assert_eq!(settings.connection().expect("complete").ca.value, world.dir.path().join("ca.pem"));

        world.variables.insert("QUORATE_SEEDS", "elsewhere:1".into());
        let settings = world.load(&Common::default()).expect("legal");
        let failure = settings.connection().expect_err("the profile's certificates are of another cluster");
        assert!(failure.message.ends_with("missing: ca, cert, key"), "{failure:?}");
    }

    #[test]
    fn without_anything_the_next_step_is_named() {
        let failure = World::new().load(&Common::default()).expect("legal").connection().expect_err("nothing is known");
        assert!(failure.hint.contains("quorate dev"), "{failure:?}");
        assert_eq!(failure.exit, Exit::Usage);
    }

    #[test]
    fn a_named_file_must_exist_and_the_user_s_need_not() {
        let common = Common { config: Some("/no/such/file.toml".into()), ..Common::default() };
        assert!(World::new().load(&common).expect_err("missing").contains("/no/such/file.toml"));
        assert!(World::new().load(&Common::default()).is_ok());
    }

    #[test]
    fn quorums_are_words_or_numbers_and_times_are_bounded() {
        let world = World::new();
        world.file("user.toml", "r = 1\nw = \"all\"\ntimeout = \"250ms\"\noutput = \"json\"\n");
        let settings = world.load(&Common::default()).expect("legal");
        assert_eq!((settings.r(), settings.w()), (Some(Quorum::Exactly(1)), Some(Quorum::All)));
        assert_eq!((settings.timeout.value, settings.output.value), (Duration::from_millis(250), OutputFormat::Json));
        for (text, wanted) in [
            ("r = 0", "user.toml:1: `r`: \"0\" is not a quorum"),
            ("w = \"most\"", "is not a quorum"),
            ("timeout = \"0s\"", "at least 1ms and at most 300s"),
            ("timeout = \"301s\"", "at least 1ms and at most 300s"),
            ("timeout = \"1\"", "lacks a unit"),
            ("timeout_ms = 1000", "did you mean `timeout`?"),
            ("profile = \"quick\"", "balanced, fast or safe"),
            ("output = \"xml\"", "text or json"),
            ("seed = [\"a:1\"]", "did you mean `seeds`?"),
            ("seeds = [\"a\"]", "the port is missing"),
        ] {
            world.file("user.toml", text);
            let error = world.load(&Common::default()).expect_err(text);
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn misspelt_variables_are_noticed() {
        let variables = [
            "QUORATE_SEED",
            "QUORATE_SERVICE_HOST",
            "QUORATE_PORT_7400_UDP",
            "QUORATE_CA",
            "QUORATE_CONFIG",
            "QUORATE_NODE",
            "QUORATE_TIMEOUT_MS",
            "QUORATE_SOMETHING_ELSE",
            "PATH",
        ];
        let unknown = unknown_variables(variables.map(str::to_owned).into_iter());
        let expected = [
            ("QUORATE_NODE", Some("QUORATE_SERVER_NODE")),
            ("QUORATE_SEED", Some("QUORATE_SEEDS")),
            ("QUORATE_SOMETHING_ELSE", None),
            ("QUORATE_TIMEOUT_MS", Some("QUORATE_TIMEOUT")),
        ];
        assert_eq!(unknown, expected.map(|(name, near)| (name.to_owned(), near)));
    }

    #[test]
    fn a_profile_says_what_nothing_else_says() {
        let mut world = World::new();
        world.file("user.toml", "profile = \"safe\"\nw = \"all\"\n");
        let settings = world.load(&Common::default()).expect("legal");
        assert_eq!((settings.r(), settings.w(), settings.strict()), (Some(Quorum::Majority), Some(Quorum::All), true));
        world.variables.insert("QUORATE_PROFILE", "fast".into());
        let settings = world.load(&Common::default()).expect("legal");
        assert_eq!((settings.r(), settings.w(), settings.strict()), (Some(Quorum::One), Some(Quorum::All), false));
    }

    #[test]
    fn a_failure_tells_where_the_setting_came_from_that_it_names() {
        let mut world = World::new();
        world.file("user.toml", "ca = \"ca.pem\"\nkey = \"c.key\"\n");
        world.variables.insert("QUORATE_CERT", "c.pem".into());
        let common = Common { seeds: vec!["n1:7400".parse().expect("legal")], ..Common::default() };
        let settings = world.load(&common).expect("legal");
        let told = |message: &str| settings.connection().expect("complete").explain(Failure::new(message, "")).message;
        assert_eq!(told("cannot read c.pem"), "cannot read c.pem (the certificate is from QUORATE_CERT)");
        assert_eq!(told("cannot resolve n1:7400"), "cannot resolve n1:7400 (the seeds are from --seeds)");
        assert!(told(&format!("cannot read {}", world.dir.path().join("ca.pem").display())).contains("user.toml:1)"));
        assert_eq!(told("no"), "no");
    }

    #[test]
    fn paths_in_a_file_are_beside_it() {
        let world = World::new();
        world.file("user.toml", "ca = \"pki/ca.pem\"\nkey = \"/abs.key\"\n");
        let settings = world.load(&Common { cert: Some("here.pem".into()), ..Common::default() }).expect("legal");
        assert_eq!(settings.ca.expect("set").value, world.dir.path().join("pki/ca.pem"));
        assert_eq!(settings.key.expect("set").value, Path::new("/abs.key"));
        assert_eq!(settings.cert.expect("set").value, Path::new("here.pem"));
    }
}
