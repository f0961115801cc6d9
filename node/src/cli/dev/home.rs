//! Where a development cluster lives: the directory in which other commands find it, and the one of `--persist`.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use quorate_node::cert::{CA_VALIDITY, Ca, Issued, write_private, write_public};
use quorate_wire::ids::ClusterId;
use quorate_wire::random::Random;
use serde::{Deserialize, Serialize};

use super::control::Control;
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
        for name in [PROFILE, "client.pem", "client.key", "ca.pem"] {
            // What cannot be removed is found when it is written anew.
            let _ = std::fs::remove_file(self.dir.join(name));
        }
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
        make_private(dir)?;
        // The certificates and data paths must mean the same from now on, wherever the process goes.
        let dir = dir.canonicalize().map_err(|error| Failure::file("open the directory", dir, &error))?;
        let lock = lock(&dir, || {
            Failure::new(
                format!("{} is in use by another `quorate dev`", dir.display()),
                "end that one, or name another directory",
            )
        })?;
        let file = dir.join("cluster.json");
        let content = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Failure::new(format!("{}: {error}", file.display()), "restore the file, or name another directory")
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&dir, &file, args)?,
            Err(error) => return Err(Failure::file("read", &file, &error)),
        };
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
        let ca = Ca::from_pem(&read("ca.pem")?, &read("ca.key")?).map_err(|error| {
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

/// Makes a cluster. `cluster.json` comes last and whole: without it the next attempt begins from the start.
fn create(dir: &Path, file: &Path, args: &DevArgs) -> Outcome<Content> {
    let entries = std::fs::read_dir(dir).map_err(|error| Failure::file("list", dir, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| Failure::file("list", dir, &error))?.file_name();
        match name.to_str() {
            Some("lock") => {}
            // Of an attempt that was cut short; nothing has used them yet.
            Some("ca.pem" | "ca.key" | "cluster.json.new") => {
                let path = dir.join(&name);
                std::fs::remove_file(&path).map_err(|error| Failure::file("remove", &path, &error))?;
            }
            _ => {
                return Err(Failure::usage(
                    format!(
                        "{} is not empty and holds no development cluster (it has {})",
                        dir.display(),
                        name.display()
                    ),
                    "name an empty or a new directory",
                ));
            }
        }
    }
    let fail = |error: io::Error| Failure::new(error.to_string(), "check the directory's permissions and its disk");
    let ca = new_ca(&Random::from_os())?;
    write_private(&dir.join("ca.key"), &ca.key()).map_err(fail)?;
    write_public(&dir.join("ca.pem"), ca.certificate()).map_err(fail)?;
    let content =
        Content { nodes: args.nodes.unwrap_or(NODES_DEFAULT), base_port: args.base_port.unwrap_or(BASE_PORT_DEFAULT) };
    let new = dir.join("cluster.json.new");
    write_public(&new, &serde_json::to_string(&content).expect("plain data")).map_err(fail)?;
    std::fs::rename(&new, file).map_err(|error| Failure::file("write", file, &error))?;
    Ok(content)
}

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

    #[test]
    fn a_directory_with_other_things_is_left_alone_and_a_half_made_cluster_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("ca.key"), "half").expect("written");
        drop(Persisted::open(dir.path(), &args(None, None)).expect("begun anew"));
        let other = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(other.path().join("thesis.tex"), "mine").expect("written");
        let failure = Persisted::open(other.path(), &args(None, None)).expect_err("not empty");
        assert!(failure.message.contains("thesis.tex"), "{failure:?}");
        assert_eq!(std::fs::read(other.path().join("thesis.tex")).expect("there"), b"mine");
    }
}
