//! `cert`: a cluster's certificate authority, and certificates for its nodes and clients.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_client::ids::ClusterId;
use quorate_client::random::Random;
use quorate_node::cert::{CA_VALIDITY, Ca, CertError, VALIDITY, write_private, write_public};
use serde_json::json;

use super::args::{CertArgs, CertCommand};
use super::failure::{Exit, Failure, Outcome};
use super::output::Output;
use super::wall_clock;

/// `cert ..`.
pub(crate) fn run(command: &CertCommand) -> (Output, Outcome) {
    let args = match command {
        CertCommand::Init(args) | CertCommand::Node { args, .. } | CertCommand::Client { args, .. } => args,
    };
    let output = Output::new(args.output);
    (output, make(command, args, &output))
}

fn make(command: &CertCommand, args: &CertArgs, output: &Output) -> Outcome {
    let random = Random::from_os();
    let now = wall_clock();
    let validity = |default: Duration| args.days.map_or(default, |days| Duration::from_secs(u64::from(days) * 86_400));
    let (cluster, made, next) = match command {
        CertCommand::Init(_) => {
            let ca = Ca::make(&random, ClusterId(random.u128()), now, validity(CA_VALIDITY)).map_err(impossible)?;
            let made = write(&args.dir, "ca", ca.certificate(), &ca.key())?;
            (
                ca.cluster(),
                made,
                "next: quorate cert node n1; keep ca.key where no node and no client can read it".to_owned(),
            )
        }
        CertCommand::Node { node, .. } => {
            let ca = authority(&args.dir)?;
            let issued = ca.issue_node(&random, *node, now, validity(VALIDITY)).map_err(impossible)?;
            let made = write(&args.dir, node.as_str(), &issued.certificate, &issued.key)?;
            (
                ca.cluster(),
                made,
                format!(
                    "next: copy ca.pem, {node}.pem and {node}.key to the node's machine, and name them in its [tls] section"
                ),
            )
        }
        CertCommand::Client { name, admin, .. } => {
            let ca = authority(&args.dir)?;
            let issued =
                ca.issue_client(&random, name.as_str(), *admin, now, validity(VALIDITY)).map_err(impossible)?;
            let made = write(&args.dir, name.as_str(), &issued.certificate, &issued.key)?;
            (
                ca.cluster(),
                made,
                format!(
                    "next: name ca.pem, {name}.pem and {name}.key in ~/.config/quorate/config.toml (see `quorate config show --help`)"
                ),
            )
        }
    };
    if output.is_json() {
        output.json(&json!({
            "schema": "quorate.cert.v1",
            "cluster": cluster,
            "ca": args.dir.join("ca.pem"),
            "cert": made.cert,
            "key": made.key,
        }))?;
    } else {
        output.line(&format!("cluster {cluster}\n{}\n{}", made.cert.display(), made.key.display()))?;
        output.hint(&next);
    }
    Ok(Exit::Done)
}

/// The two files that a command has made.
struct Made {
    cert: PathBuf,
    key: PathBuf,
}

/// The key goes first: a certificate without its key would stand in the way of the next attempt.
fn write(dir: &Path, name: &str, certificate: &str, key_text: &str) -> Outcome<Made> {
    std::fs::create_dir_all(dir).map_err(|error| Failure::file("make the directory", dir, &error))?;
    let made = Made { cert: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
    let fail = |error: std::io::Error| {
        Failure::new(
            error.to_string(),
            "choose another name or --dir; move the old files away only if nothing uses them any more",
        )
    };
    // Asked for both before either is made, so that a refusal leaves nothing behind.
    if made.cert.exists() {
        return Err(fail(std::io::Error::other(format!(
            "{} exists already and is not overwritten",
            made.cert.display()
        ))));
    }
    write_private(&made.key, key_text).map_err(fail)?;
    write_public(&made.cert, certificate).map_err(fail)?;
    Ok(made)
}

fn authority(dir: &Path) -> Outcome<Ca> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|error| Failure {
            hint: "make the cluster's authority first (`quorate cert init`), or name its directory with --dir"
                .to_owned(),
            ..Failure::file("read", &path, &error)
        })
    };
    Ca::from_pem(&read("ca.pem")?, &read("ca.key")?).map_err(impossible)
}

fn impossible(error: CertError) -> Failure {
    Failure::new(error.to_string(), "`quorate cert --help` shows the order of the steps")
}

#[cfg(test)]
mod tests {
    use quorate_client::tls::{Credentials, Subject};

    use super::*;
    use crate::cli::args::OutputFormat;

    fn args(dir: &Path) -> CertArgs {
        CertArgs { dir: dir.to_owned(), days: None, output: OutputFormat::Json }
    }

    fn write_all(dir: &Path) -> ClusterId {
        let ca = Ca::make(&Random::from_seed(1), ClusterId(7), wall_clock(), CA_VALIDITY).expect("possible");
        write(dir, "ca", ca.certificate(), &ca.key()).expect("written");
        ca.cluster()
    }

    #[test]
    fn what_is_written_is_read_back_and_fits() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let cluster = write_all(dir.path());
        let ca = authority(dir.path()).expect("readable");
        let issued = ca.issue_client(&Random::from_seed(2), "alice", true, wall_clock(), VALIDITY).expect("possible");
        let made = write(dir.path(), "alice", &issued.certificate, &issued.key).expect("written");
        let read = |path: &Path| std::fs::read(path).expect("readable");
        let credentials = Credentials::from_pem(&read(&dir.path().join("ca.pem")), &read(&made.cert), &read(&made.key))
            .expect("they fit");
        assert!(matches!(credentials.subject(), Subject::Client { cluster: of, admin: true, .. } if *of == cluster));
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_all(dir.path());
        let before = std::fs::read(dir.path().join("ca.key")).expect("readable");
        let (_, outcome) = run(&CertCommand::Init(args(dir.path())));
        let failure = outcome.expect_err("there is an authority already");
        assert!(failure.message.contains("not overwritten"), "{failure:?}");
        assert_eq!(std::fs::read(dir.path().join("ca.key")).expect("readable"), before);
    }

    #[test]
    fn without_an_authority_the_next_step_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let node = "n1".parse().expect("legal");
        let (_, outcome) = run(&CertCommand::Node { node, args: args(dir.path()) });
        assert!(outcome.expect_err("no authority").hint.contains("cert init"));
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_all(dir.path());
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("ca.pem") & 0o077), (0o600, 0o044));
    }
}
