//! `cert`: a cluster's certificate authority, and certificates for its nodes and clients.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use quorate_node::cert::{CA_VALIDITY, Ca, CertError, VALIDITY, replace_public, write_private, write_public};
use quorate_node::certificate::{WARNED_BEFORE, days, left_s};
use quorate_transport::tls::{Card, Subject};
use quorate_wire::ids::ClusterId;
use quorate_wire::random::Random;
use serde_json::json;

use super::args::{CertArgs, CertCommand};
use super::failure::{Exit, Failure, Outcome};
use super::output::{Output, print, table};
use super::wall_clock;

/// `cert ..`.
pub(crate) fn run(command: &CertCommand) -> (Output, Outcome) {
    let args = match command {
        CertCommand::Init(args)
        | CertCommand::Node { args, .. }
        | CertCommand::Client { args, .. }
        | CertCommand::Renew { args, .. }
        | CertCommand::Show { args, .. } => args,
    };
    let output = Output::new(args.output);
    let outcome = match command {
        CertCommand::Show { files, args } => show(files, args, &output),
        _ => make(command, args, &output),
    };
    (output, outcome)
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
        CertCommand::Renew { name, .. } => {
            let ca = authority(&args.dir)?;
            let made = Made { cert: args.dir.join(format!("{name}.pem")), key: args.dir.join(format!("{name}.key")) };
            let read = |path: &Path| {
                std::fs::read(path).map_err(|error| Failure {
                    hint:
                        "only what was made before can be renewed; `quorate cert node` and `cert client` make new ones"
                            .to_owned(),
                    ..Failure::file("read", path, &error)
                })
            };
            let renewed = ca.renew(&random, &read(&made.cert)?, &read(&made.key)?, now, validity(VALIDITY));
            let renewed = renewed.map_err(impossible)?;
            replace_public(&made.cert, &renewed.certificate)
                .map_err(|error| Failure::new(error.to_string(), "the old certificate is there as before"))?;
            (
                ca.cluster(),
                made,
                format!("next: copy {name}.pem to where it is used; a node that runs takes it when it is sent SIGHUP"),
            )
        }
        CertCommand::Show { .. } => unreachable!("it makes nothing"),
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

/// `cert show`.
fn show(files: &[PathBuf], args: &CertArgs, output: &Output) -> Outcome {
    let files = match files {
        [] => certificates_in(&args.dir)?,
        named => {
            let mut files = Vec::new();
            for named in named {
                let path = in_dir(named, &args.dir);
                if path.is_dir() { files.extend(certificates_in(&path)?) } else { files.push(path) }
            }
            files
        }
    };
    let now = wall_clock();
    let (mut shown, mut unread) = (Vec::new(), Vec::new());
    for file in &files {
        match Shown::read(file, now) {
            Ok(one) => shown.push(one),
            Err(failure) => unread.push((file.display().to_string(), failure)),
        }
    }
    if shown.is_empty()
        && let Some((_, failure)) = unread.pop()
    {
        return Err(failure);
    }
    // Nobody can say of one that cannot be read that it is valid.
    let well = unread.is_empty() && shown.iter().all(|shown| shown.left_s > WARNED_BEFORE.as_secs() as i64);
    let json = json!({
        "schema": "quorate.certs.v1",
        "ok": well,
        "certificates": shown.iter().map(|shown| json!({
            "file": shown.file,
            "holder": shown.holder,
            "kind": shown.kind,
            "cluster": shown.cluster,
            "valid_from": shown.from,
            "valid_until": shown.until,
            "seconds_left": shown.left_s,
        })).collect::<Vec<_>>(),
        "unreadable": unread.iter().map(|(file, failure)| json!({
            "file": file,
            "error": failure.message,
        })).collect::<Vec<_>>(),
    });
    print(output, &json, || {
        let mut rows = table(&["FILE", "HOLDER", "KIND", "VALID UNTIL", "LEFT"]);
        for shown in &shown {
            let left = if shown.left_s < 0 { "EXPIRED".to_owned() } else { days(shown.left_s) };
            rows.add_row([&shown.file, &shown.holder, shown.kind, &shown.until, &left]);
        }
        rows
    })?;
    if !output.is_json() {
        for (_, failure) in &unread {
            output.say(&format!("warning: {}", failure.message));
        }
    }
    Ok(if well { Exit::Done } else { Exit::Degraded })
}

/// One certificate, for people.
struct Shown {
    file: String,
    holder: String,
    kind: &'static str,
    cluster: ClusterId,
    from: String,
    until: String,
    left_s: i64,
}

impl Shown {
    fn read(file: &Path, now: SystemTime) -> Outcome<Self> {
        let pem = std::fs::read(file).map_err(|error| Failure::file("read", file, &error))?;
        let card = Card::from_pem(&pem).map_err(|error| {
            Failure::new(format!("{}: {error}", file.display()), "name a certificate of this cluster")
        })?;
        let (holder, kind) = match &card.subject {
            None => ("-".to_owned(), "authority"),
            Some(Subject::Node { node, .. }) => (node.to_string(), "node"),
            Some(Subject::Client { name, admin: true, .. }) => (name.clone(), "administrator"),
            Some(Subject::Client { name, .. }) => (name.clone(), "client"),
        };
        Ok(Self {
            file: file.display().to_string(),
            holder,
            kind,
            cluster: card.cluster,
            from: date(card.not_before),
            until: date(card.not_after),
            left_s: left_s(card.not_after, now),
        })
    }
}

/// As RFC 3339 has it.
pub(super) fn date(time: SystemTime) -> String {
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from(time).format(format).unwrap_or_else(|_| "beyond all dates".to_owned())
}

fn in_dir(named: &Path, dir: &Path) -> PathBuf {
    let bare = named.components().count() == 1 && named.extension().is_none() && !named.exists();
    if bare { dir.join(named).with_extension("pem") } else { named.to_owned() }
}

fn certificates_in(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(|error| Failure::file("read the directory", dir, &error))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "pem")).collect();
    if files.is_empty() {
        return Err(Failure::new(
            format!("there is no certificate in {}", dir.display()),
            "name its directory with --dir",
        ));
    }
    files.sort();
    Ok(files)
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
        std::fs::read(&path).map_err(|error| Failure {
            hint: "make the cluster's authority first (`quorate cert init`), or name its directory with --dir"
                .to_owned(),
            ..Failure::file("read", &path, &error)
        })
    };
    Ca::from_pem(read("ca.pem")?, read("ca.key")?).map_err(impossible)
}

fn impossible(error: CertError) -> Failure {
    Failure::new(error.to_string(), "`quorate cert --help` shows the order of the steps")
}

#[cfg(test)]
mod tests {
    use quorate_transport::tls::{Credentials, Subject};

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
    fn one_file_that_is_no_certificate_hides_no_other() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write_all(dir.path());
        std::fs::write(dir.path().join("bad.pem"), "no certificate").expect("written");
        let show = |files: Vec<PathBuf>| run(&CertCommand::Show { files, args: args(dir.path()) }).1;
        assert_eq!(show(Vec::new()).expect("the others are shown"), Exit::Degraded);
        assert_eq!(show(vec!["ca".into()]).expect("shown"), Exit::Done);
        let all = show(vec![dir.path().to_owned()]).expect("all that are in a directory");
        assert_eq!(all, Exit::Degraded, "one of them is none");
        let failure = show(vec!["bad".into()]).expect_err("there is nothing to show");
        assert!(failure.message.contains("bad.pem"), "{failure:?}");
    }

    #[test]
    fn a_link_to_a_certificate_leads_to_the_renewed_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, link) = (dir.path().join("store"), dir.path().join("n1.pem"));
        std::fs::create_dir(&store).expect("made");
        std::fs::write(store.join("real.pem"), "old").expect("written");
        std::os::unix::fs::symlink("store/real.pem", &link).expect("linked");
        replace_public(&link, "new").expect("replaced");
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(std::fs::read_to_string(store.join("real.pem")).expect("there"), "new");
        assert_eq!(std::fs::read_dir(&store).expect("listed").count(), 1, "no temporary file stays");
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
