//! Where a development cluster lives: the directory in which other commands find it, and the one of `--persist`.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use quorate_node::cert::{CA_VALIDITY, Ca, Issued, write_private, write_public};
use quorate_wire::ids::ClusterId;
use quorate_wire::random::Random;
use serde::{Deserialize, Serialize};

use super::control::{CONTROL, Control};
use super::{BASE_PORT_DEFAULT, NODES_DEFAULT};
use crate::cli::args::DevArgs;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::{wall_clock, xdg};

/// The name of the client's configuration file in the directory.
pub(super) const PROFILE: &str = "client.toml";

/// `$QUORATE_DEV_DIR`, `$XDG_STATE_HOME/quorate/dev`, or `~/.local/state/quorate/dev`.
pub(super) fn directory() -> Outcome<PathBuf> {
    if let Some(named) = std::env::var_os("QUORATE_DEV_DIR").filter(|dir| !dir.is_empty()) {
        return Ok(named.into());
    }
    xdg("XDG_STATE_HOME", ".local/state")
        .map(|dir| dir.join("quorate/dev"))
        .ok_or_else(|| Failure::usage("no place for the development cluster: HOME is not set", "set QUORATE_DEV_DIR"))
}

/// The directory of the running cluster, locked as long as this lives.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    _lock: File,
}

impl Home {
    /// Makes the directory, locks it, and removes what a dead cluster has left.
    pub(super) fn claim(dir: PathBuf) -> Outcome<Self> {
        check_home(&dir)?;
        make_private(&dir)?;
        let lock = lock(&dir, || {
            Failure::new(
                format!("a `quorate dev` is running already ({})", dir.display()),
                "end it with `quorate dev stop`, or set QUORATE_DEV_DIR and --base-port for a second one",
            )
        })?;
        let home = Self { dir, _lock: lock };
        home.clean();
        Ok(home)
    }

    /// Writes what clients need to connect. The profile comes last: once it is there, all that it names is there.
    pub(super) fn write_client(&self, client: &Issued, seeds: &[SocketAddr]) -> Outcome<()> {
        let fail = |error: io::Error| Failure::new(error.to_string(), "check the directory's permissions and its disk");
        let seeds: Vec<_> = seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        let profile =
            format!("seeds = [{}]\nca = \"ca.pem\"\ncert = \"client.pem\"\nkey = \"client.key\"\n", seeds.join(", "));
        write_public(&self.dir.join("ca.pem"), &client.ca).map_err(fail)?;
        write_private(&self.dir.join("client.key"), &client.key).map_err(fail)?;
        write_public(&self.dir.join("client.pem"), &client.certificate).map_err(fail)?;
        write_public(&self.dir.join(PROFILE), &profile).map_err(fail)
    }

    /// Listens for what other processes say.
    pub(super) fn listen(&self) -> Outcome<Control> {
        Control::listen(&self.dir)
    }

    /// Removes what was written for clients; the lock file stays, since another process may be about to lock it.
    fn clean(&self) {
        for name in FOR_CLIENTS {
            // What cannot be removed is found when it is written anew.
            let _ = std::fs::remove_file(self.dir.join(name));
        }
    }
}

/// What is written for clients, and goes with the cluster.
const FOR_CLIENTS: [&str; 4] = [PROFILE, "client.pem", "client.key", "ca.pem"];

/// Refuses a directory in which somebody else keeps things, before anything in it is changed. Files of the names that are written for
/// clients count as a dead cluster's only beside its lock file: a real client may keep its own under the same names.
fn check_home(dir: &Path) -> Outcome<()> {
    let names = names_in(dir)?;
    let has_lock = names.iter().any(|name| name == "lock");
    let is_ours = |name: &str| name == "lock" || has_lock && (name == CONTROL || FOR_CLIENTS.contains(&name));
    match names.iter().find(|name| !name.to_str().is_some_and(is_ours)) {
        None => Ok(()),
        Some(name) => Err(Failure::usage(
            format!("{} is not the directory of a development cluster (it has {})", dir.display(), name.display()),
            "let QUORATE_DEV_DIR name an empty or a new directory",
        )),
    }
}

/// What is in a directory; nothing if it is not there.
fn names_in(dir: &Path) -> Outcome<Vec<OsString>> {
    let fail = |error: io::Error| Failure::file("list", dir, &error);
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name()).map_err(fail)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(fail(error)),
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.clean();
    }
}

/// A cluster that outlives its process, in the directory of `--persist`:
/// `lock`, `cluster.json`, `ca.pem`, `ca.key`, and a data directory for each node.
#[derive(Debug)]
pub(super) struct Persisted {
    dir: PathBuf,
    _lock: File,
    content: Content,
    ca: Ca,
}

/// `cluster.json`. The layout holds the nodes and their addresses, so that neither can change later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    nodes: u8,
    base_port: u16,
}

impl Persisted {
    /// Goes on with the cluster in the directory, or makes a new one in an empty directory.
    pub(super) fn open(dir: &Path, args: &DevArgs) -> Outcome<Self> {
        // Asked before anything is changed, and once more when nobody else can make a cluster here.
        find(dir)?;
        make_private(dir)?;
        // The certificates and data paths must mean the same from now on, wherever the process goes.
        let dir = dir.canonicalize().map_err(|error| Failure::file("open the directory", dir, &error))?;
        let lock = lock(&dir, || {
            Failure::new(
                format!("{} is in use by another `quorate dev`", dir.display()),
                "end that one, or name another directory",
            )
        })?;
        let content = match find(&dir)? {
            Some(content) => content,
            None => create(&dir, args)?,
        };
        settle(&dir)?;
        for (flag, asked, has) in [
            ("-n", args.nodes.map(u16::from), u16::from(content.nodes)),
            ("--base-port", args.base_port, content.base_port),
        ] {
            if let Some(asked) = asked.filter(|asked| *asked != has) {
                return Err(Failure::usage(
                    format!(
                        "{flag} {asked}: the cluster in {} was made with {has}, which its layout holds",
                        dir.display()
                    ),
                    format!("leave {flag} out, or name another directory"),
                ));
            }
        }
        let read = |name: &str| {
            std::fs::read_to_string(dir.join(name)).map_err(|error| Failure::file("read", &dir.join(name), &error))
        };
        let ca = Ca::from_pem(read("ca.pem")?, read("ca.key")?).map_err(|error| {
            Failure::new(format!("{}: {error}", dir.display()), "restore ca.pem and ca.key, or name another directory")
        })?;
        Ok(Self { dir, _lock: lock, content, ca })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many nodes it has.
    pub(super) fn nodes(&self) -> u8 {
        self.content.nodes
    }

    /// See `--base-port`.
    pub(super) fn base_port(&self) -> u16 {
        self.content.base_port
    }

    /// Its certificate authority.
    pub(super) fn ca(&self) -> &Ca {
        &self.ca
    }
}

/// The cluster in a directory; nothing if one can be made there. Changes nothing.
fn find(dir: &Path) -> Outcome<Option<Content>> {
    let file = dir.join(CLUSTER);
    match std::fs::read(&file) {
        Ok(bytes) => {
            return serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Failure::new(format!("{}: {error}", file.display()), "restore the file, or name another directory")
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::file("read", &file, &error)),
    }
    let is_ours = |name: &str| name == "lock" || name == CLUSTER_NEW || AUTHORITY.iter().any(|(_, new)| name == *new);
    match names_in(dir)?.iter().find(|name| !name.to_str().is_some_and(is_ours)) {
        None => Ok(None),
        Some(name) => Err(Failure::usage(
            format!("{} is not empty and holds no development cluster (it has {})", dir.display(), name.display()),
            "name an empty or a new directory",
        )),
    }
}

/// Makes a cluster. All of it is written under names that nothing else has, `cluster.json` takes its own name when the rest is there, and
/// [`settle`] does the rest: without `cluster.json` the next attempt begins from the start.
fn create(dir: &Path, args: &DevArgs) -> Outcome<Content> {
    let fail = |error: io::Error| Failure::new(error.to_string(), "check the directory's permissions and its disk");
    let path = |name: &str| dir.join(name);
    for name in AUTHORITY.iter().map(|(_, new)| *new).chain([CLUSTER_NEW]) {
        // Of an attempt that was cut short; nothing has used it yet.
        match std::fs::remove_file(path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::file("remove", &path(name), &error));
            }
            _ => {}
        }
    }
    let ca = new_ca(&Random::from_os())?;
    let [(_, certificate), (_, key)] = AUTHORITY;
    write_private(&path(key), &ca.key()).map_err(fail)?;
    write_public(&path(certificate), ca.certificate()).map_err(fail)?;
    let content =
        Content { nodes: args.nodes.unwrap_or(NODES_DEFAULT), base_port: args.base_port.unwrap_or(BASE_PORT_DEFAULT) };
    write_public(&path(CLUSTER_NEW), &serde_json::to_string(&content).expect("plain data")).map_err(fail)?;
    std::fs::rename(path(CLUSTER_NEW), path(CLUSTER))
        .map_err(|error| Failure::file("write", &path(CLUSTER), &error))?;
    Ok(content)
}

/// Gives the authority of a cluster that is made its names, and replaces none.
fn settle(dir: &Path) -> Outcome<()> {
    for (name, new) in AUTHORITY {
        let (path, new) = (dir.join(name), dir.join(new));
        if std::fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        match std::fs::rename(&new, &path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::file("write", &path, &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The cluster's file, and its name until it is whole.
const CLUSTER: &str = "cluster.json";
const CLUSTER_NEW: &str = "cluster.json.new";

/// The two files of the authority, and their names until the cluster is made.
const AUTHORITY: [(&str, &str); 2] = [("ca.pem", "dev-ca.pem.new"), ("ca.key", "dev-ca.key.new")];

/// The certificate authority of a new cluster.
pub(super) fn new_ca(random: &Random) -> Outcome<Ca> {
    Ca::make(random, ClusterId(random.u128()), wall_clock(), CA_VALIDITY)
        .map_err(|error| Failure::new(format!("cannot make certificates: {error}"), "check this machine's clock"))
}

/// Makes a directory that is for its owner only. One that is there must belong to nobody else.
fn make_private(dir: &Path) -> Outcome<()> {
    let fail = |error: io::Error| Failure::file("make the directory", dir, &error);
    let there = dir.is_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    if there {
        // Keys go in here; an existing directory of the same user may have been made with a generous umask.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    Ok(())
}

fn lock(dir: &Path, taken: impl FnOnce() -> Failure) -> Outcome<File> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Failure::file("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(taken()),
        Err(TryLockError::Error(error)) => Err(Failure::file("lock", &path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use quorate_node::cert::VALIDITY;

    use super::*;
    use crate::cli::failure::Exit;
    use crate::cli::settings::CLIENT_KEYS;

    fn args(nodes: Option<u8>, base_port: Option<u16>) -> DevArgs {
        DevArgs { command: None, nodes, persist: None, base_port, http: false }
    }

    #[test]
    fn a_second_cluster_is_refused_and_a_dead_one_is_cleaned_up() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = dir.path().join("dev");
        let first = Home::claim(home.clone()).expect("free");
        let failure = Home::claim(home.clone()).expect_err("taken");
        assert!(failure.message.contains("running already") && failure.hint.contains("dev stop"), "{failure:?}");
        drop(first);
        std::fs::write(home.join(PROFILE), "of a dead one").expect("written");
        drop(Home::claim(home.clone()).expect("free again"));
        assert!(!home.join(PROFILE).exists());
    }

    #[test]
    fn the_directory_is_private_and_its_profile_is_a_client_configuration() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::claim(dir.path().join("dev")).expect("free");
        let client = new_ca(&Random::from_seed(1))
            .expect("possible")
            .issue_client(&Random::from_seed(2), "dev", true, wall_clock(), VALIDITY)
            .expect("possible");
        home.write_client(&client, &["127.0.0.1:7401".parse().expect("an address")]).expect("written");
        let profile = quorate_node::config::layers::Document::read(&home.dir.join(PROFILE), CLIENT_KEYS);
        assert!(profile.is_ok(), "{profile:?}");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&home.dir), mode(&home.dir.join("client.key"))), (0o700, 0o600));
    }

    #[test]
    fn a_persisted_cluster_is_found_again_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Persisted::open(dir.path(), &args(Some(5), None)).expect("new");
        let cluster = first.ca().cluster();
        assert_eq!(Persisted::open(dir.path(), &args(None, None)).expect_err("in use").exit, Exit::Failed);
        drop(first);
        let again = Persisted::open(dir.path(), &args(None, Some(BASE_PORT_DEFAULT))).expect("there");
        assert_eq!((again.nodes(), again.base_port(), again.ca().cluster()), (5, BASE_PORT_DEFAULT, cluster));
        drop(again);
        let failure = Persisted::open(dir.path(), &args(Some(3), None)).expect_err("another size");
        assert!(failure.message.contains("-n 3") && failure.message.contains("made with 5"), "{failure:?}");
        let failure = Persisted::open(dir.path(), &args(None, Some(9000))).expect_err("another port");
        assert!(failure.message.contains("--base-port 9000"), "{failure:?}");
    }

    /// Every name in a directory with what it holds, and the directory's permissions.
    fn all(dir: &Path) -> (u32, std::collections::BTreeMap<OsString, Vec<u8>>) {
        let read = |name: OsString| (name.clone(), std::fs::read(dir.join(name)).expect("readable"));
        let mode = std::fs::metadata(dir).expect("there").permissions().mode() & 0o777;
        (mode, names_in(dir).expect("readable").into_iter().map(read).collect())
    }

    #[test]
    fn a_directory_with_other_things_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str| std::fs::write(dir.path().join(name), name).expect("written");
        // A real cluster's certificates: the file that tells it may be listed after the authority's, or there may be none.
        for names in [&["ca.pem", "ca.key"][..], &["n1.pem", "n1.key", "client.toml", "client.pem", "client.key"]] {
            names.iter().for_each(|name| write(name));
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("set");
            let before = all(dir.path());
            let failure = Persisted::open(dir.path(), &args(None, None)).expect_err("not empty");
            assert!(failure.message.contains("is not empty"), "{failure:?}");
            let failure = Home::claim(dir.path().to_owned()).expect_err("not a development cluster's");
            assert!(failure.hint.contains("QUORATE_DEV_DIR"), "{failure:?}");
            assert_eq!(all(dir.path()), before);
        }
        let client = tempfile::tempdir().expect("a temporary directory");
        for name in FOR_CLIENTS {
            std::fs::write(client.path().join(name), "a real client's").expect("written");
        }
        let before = all(client.path());
        Home::claim(client.path().to_owned()).expect_err("a real client's");
        assert_eq!(all(client.path()), before);
    }

    #[test]
    fn a_cluster_whose_making_was_cut_short_is_begun_anew_or_gone_on_with() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["lock", "dev-ca.key.new", "dev-ca.pem.new", "cluster.json.new"] {
            std::fs::write(dir.path().join(name), "half").expect("written");
        }
        let cluster = Persisted::open(dir.path(), &args(None, None)).expect("begun anew").ca().cluster();
        let names: Vec<_> = all(dir.path()).1.into_keys().collect();
        assert_eq!(names, ["ca.key", "ca.pem", "cluster.json", "lock"]);
        // Cut short between two names.
        std::fs::rename(dir.path().join("ca.key"), dir.path().join("dev-ca.key.new")).expect("there");
        assert_eq!(Persisted::open(dir.path(), &args(None, None)).expect("gone on with").ca().cluster(), cluster);
    }
}
