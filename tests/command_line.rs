//! The command line at its edges, with real processes: siblings that must not be lost, keys of any bytes, what an import reads
//! and an export writes to, settings and where they come from, options before and after the command, narrow terminals.

use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::process::{Command, Stdio};

use quorate_client::Client;
use quorate_tests::processes::{Cluster, PATIENCE, Process, Said, bare_command, eventually, root};

#[test]
fn siblings_are_never_discarded_in_silence() {
    let cluster = Cluster::start(1);
    let two = |key: &str| {
        cluster.run(&["put", key, "milk", "--blind"]).expect(0, &[]);
        cluster.run(&["put", key, "eggs", "--blind"]).expect(0, &[]);
    };
    two("cart");
    for words in [&["put", "cart", "bread"][..], &["del", "cart"]] {
        cluster.run(words).expect(6, &["cart has 2 values", "milk", "eggs", "--replace-all", "--context"]);
        let said = cluster.run(&[words, &["-o", "json"]].concat()).expect(6, &[]);
        let json = said.json();
        assert_eq!(json["values"], serde_json::json!([{ "value": "milk" }, { "value": "eggs" }]), "{said}");
        assert!(json["written"] == false || json["deleted"] == 0, "{said}");
        cluster.run(&["get", "cart"]).expect(6, &["milk", "eggs"]);
    }
    let file =
        cluster.write("one.ndjson", "{\"key\":\"cart\",\"value\":\"bread\"}\n{\"key\":\"other\",\"value\":\"v\"}\n");
    let file = file.to_str().expect("text");
    cluster.run(&["import", file]).expect(1, &["one.ndjson:1: cart has 2 values", "--replace-all", "1 written"]);
    cluster.run(&["get", "cart"]).expect(6, &["milk", "eggs"]);
    assert_eq!(cluster.run(&["get", "cart", "--sibling", "2"]).expect(0, &[]).out, "eggs");
    cluster.run(&["get", "cart", "--sibling", "3"]).expect(2, &["the key has 2"]);

    // Who says so replaces them all, and is told what they were.
    let said = cluster.run(&["put", "cart", "bread", "--replace-all"]).expect(0, &[]);
    assert!(said.err.contains("replaced 2 values") && said.err.contains("milk") && said.err.contains("eggs"), "{said}");
    assert_eq!(cluster.run(&["get", "cart"]).expect(0, &[]).out, "bread");
    let said = cluster.run(&["put", "cart", "cheese", "-o", "json"]).expect(0, &[]);
    assert_eq!(said.json()["replaced_values"], serde_json::json!([{ "value": "bread" }]), "{said}");
    two("list");
    let context = cluster.run(&["get", "list", "--context"]);
    let said = cluster.run(&["put", "list", "all", "--context", context.out.trim()]).expect(0, &[]);
    assert!(said.err.contains("replaced 2 values"), "{said}");
    // The context in the hint is that of the values that are shown with it, not of a later read.
    two("shown");
    let said = cluster.run(&["put", "shown", "merged"]).expect(6, &["milk", "eggs"]);
    cluster.run(&["put", "shown", "late", "--blind"]).expect(0, &[]);
    let context = said.err.trim_end().rsplit(' ').next().expect("a context");
    cluster.run(&["put", "shown", "merged", "--context", context]).expect(6, &["2 siblings"]);
    cluster.run(&["get", "shown"]).expect(6, &["merged", "late"]);
    two("gone");
    let said = cluster.run(&["del", "gone", "--replace-all"]).expect(0, &[]);
    assert!(said.err.contains("deleted 2 values") && said.err.contains("milk"), "{said}");
    cluster.run(&["get", "gone"]).expect(3, &[]);
    two("imported");
    let file = cluster.write("two.ndjson", "{\"key\":\"imported\",\"value\":\"v\"}\n");
    cluster.run(&["import", file.to_str().expect("text"), "--replace-all"]).expect(0, &["1 written"]);
    assert_eq!(cluster.run(&["get", "imported"]).expect(0, &[]).out, "v");
}

#[test]
fn a_write_whose_result_cannot_be_printed_is_not_denied() {
    let cluster = Cluster::start(1);
    for words in [&["put", "k", "v"][..], &["put", "k", "w", "-o", "json"], &["del", "k", "-o", "json"]] {
        let full = File::options().write(true).open("/dev/full").expect("there");
        let output = cluster.command(words).stdout(full).stderr(Stdio::piped()).output().expect("it runs");
        let err = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{err}");
        assert!(err.contains("the write was applied, only its result could not be printed"), "{err}");
        assert!(!words.contains(&"json") || err.contains("\"may_have_applied\":true"), "{err}");
    }
    cluster.run(&["get", "k"]).expect(3, &[]);
    // An import that failed may have written a part of its lines; one that has written none says that, too.
    let import = |name: &str, text: &str| {
        let file = cluster.write(name, text);
        cluster.run(&["import", file.to_str().expect("text"), "-o", "json"]).expect(1, &[]).error()
    };
    let part = import("part", "{\"key\":\"k\",\"value\":\"v\"}\nbad\n");
    assert_eq!(part["may_have_applied"], true, "{part}");
    let none = import("none", "bad\n");
    assert_eq!(none["may_have_applied"], false, "{none}");
}

#[test]
fn every_key_and_value_can_be_written_read_listed_located_and_deleted_by_hand() {
    let cluster = Cluster::start(1);
    let keys: [&[u8]; 8] =
        [b"plain", b"-key", b"new\nline", b"\xff\x00\xfe", b" ", b"back\\slash", "\u{fc}mlaut".as_bytes(), b"--"];
    let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for key in keys {
        let value = [key, b"\x00 value"].concat();
        let path = cluster.dir().join("value");
        std::fs::write(&path, &value).expect("written");
        let of_file = format!("@{}", path.display());
        cluster.run(&["put", "--key-encoding", "hex", &hex(key), &of_file]).expect(0, &[]);
        let output = cluster.command(&["get", "--key-encoding", "hex", &hex(key)]).output().expect("it runs");
        assert_eq!(output.stdout, value, "{key:?}");
        cluster.run(&["locate", "--key-encoding", "hex", &hex(key)]).expect(0, &["primary"]);
    }
    // Without a spelling where the command line can hold them: after --, with bytes that are no text, with a newline.
    assert!(cluster.run(&["get", "--", "-key"]).expect(0, &[]).out.starts_with("-key"));
    assert!(cluster.run(&["get", "new\nline"]).expect(0, &[]).out.starts_with("new\nline"));
    cluster.run(&["get", "-key"]).expect(2, &["-- -k"]);
    let raw = std::os::unix::ffi::OsStrExt::from_bytes(&b"\xff\xfe"[..]);
    let raw: &std::ffi::OsStr = raw;
    Said::by(cluster.command(&["put", "raw"]).arg(raw)).expect(0, &[]);
    assert_eq!(cluster.command(&["get", "raw"]).output().expect("it runs").stdout, b"\xff\xfe");
    cluster.run(&["put", "--", "empty", ""]).expect(0, &[]);
    assert_eq!(cluster.run(&["get", "empty"]).expect(0, &[]).out, "");
    cluster.run(&["put", "--", "dash", "-v"]).expect(0, &[]);
    assert_eq!(cluster.run(&["get", "dash"]).expect(0, &[]).out, "-v");

    // What `keys` prints is what a command takes, a line each.
    for encoding in ["escaped", "hex", "base64"] {
        let listed = cluster.run(&["keys", "--key-encoding", encoding]).expect(0, &[]);
        assert_eq!(listed.out.lines().count(), keys.len() + 3, "{listed}");
        for key in listed.out.lines() {
            let output = cluster.command(&["get", "--key-encoding", encoding, "--", key]).output().expect("it runs");
            assert!(output.status.success(), "{encoding} {key}: {output:?}");
        }
    }
    let escaped = cluster.run(&["keys"]).expect(0, &["new\\nline", "\\xff\\x00\\xfe", "back\\\\slash", "\u{fc}mlaut"]);
    assert_eq!(escaped.out, cluster.run(&["keys", "--key-encoding", "escaped"]).out);
    let json = cluster.run(&["keys", "-o", "json"]).expect(0, &[]).json();
    assert_eq!((json["count"].as_u64(), json["keys"].as_array().map(Vec::len)), (Some(11), Some(11)), "{json}");
    assert!(json["keys"].to_string().contains("\"key_b64\":\"/wD+\""), "{json}");

    for key in keys {
        cluster.run(&["del", "--key-encoding", "hex", &hex(key)]).expect(0, &[]);
        cluster.run(&["get", "--key-encoding", "hex", &hex(key)]).expect(3, &[]);
    }
    cluster.run(&["get", "--key-encoding", "hex", "abc"]).expect(2, &["whole number"]);
    cluster.run(&["get", "--key-encoding", "base64", "?"]).expect(2, &["no base64"]);
    cluster.run(&["get", "--key-encoding", "rot13", "a"]).expect(2, &["escaped", "base64"]);
}

#[test]
fn keys_are_listed_by_prefix_in_few_round_trips() {
    let cluster = Cluster::start(1);
    let lines: String = (0..2_007)
        .map(|number| format!("{{\"key\":\"{}/{number}\",\"value\":\"v\"}}\n", if number < 7 { "a" } else { "b" }))
        .collect();
    let file = cluster.write("in.ndjson", &lines);
    cluster.run(&["import", file.to_str().expect("text"), "--blind"]).expect(0, &["2007 written"]);
    let requests = || cluster.metric(1, "quorate_request_duration_seconds_count{kind=\"scan\",outcome=\"ok\"}");
    let count = |words: &[&str]| cluster.run(&[&["keys"], words].concat()).expect(0, &[]).out;
    // The counter is there from the first scan on.
    assert_eq!(count(&["--count"]), "2007\n");
    let before = requests();
    assert_eq!(count(&["--count"]), "2007\n");
    assert!(requests() - before <= 10, "{} requests for 2,007 keys in 1,024 partitions", requests() - before);
    assert_eq!(count(&["a/", "--count"]), "7\n");
    let mut few: Vec<_> = count(&["a/"]).lines().map(str::to_owned).collect();
    few.sort();
    assert_eq!(few, (0..7).map(|number| format!("a/{number}")).collect::<Vec<_>>());
    assert_eq!(count(&["--limit", "100"]).lines().count(), 100);
    assert_eq!(count(&["--limit", "3000", "--count"]), "2007\n");
    assert_eq!(count(&["nothing", "--count"]), "0\n");
    assert_eq!(cluster.run(&["keys", "nothing", "-o", "json"]).expect(0, &[]).json()["keys"], serde_json::json!([]));
    let before = requests();
    assert_eq!(cluster.run(&["export", "--prefix", "b/"]).expect(0, &["2000 records"]).out.lines().count(), 2_000);
    assert!(requests() - before <= 10, "{} requests for an export", requests() - before);
    // A reader that goes away ends it quietly.
    let mut child = cluster.command(&["keys"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
}

#[test]
fn an_export_with_siblings_comes_back_and_no_line_hides_another() {
    let cluster = Cluster::start(3);
    for value in ["c", "a", "b"] {
        cluster.run(&["put", "cart", value, "--blind"]).expect(0, &[]);
    }
    cluster.run(&["put", "one", "v"]).expect(0, &[]);
    let path = |name: &str| cluster.dir().join(name).display().to_string();
    cluster.run(&["export", &path("first"), "--siblings", "all", "--sort"]).expect(0, &["2 records"]);
    let exported = std::fs::read_to_string(path("first")).expect("there");
    assert!(exported.contains("{\"key\":\"cart\",\"values\":[\"a\",\"b\",\"c\"]}"), "{exported}");
    // Nothing to do where it came from; and where one of them was lost, or was added, all three are there again.
    cluster.run(&["import", &path("first")]).expect(0, &["0 written, 2 unchanged"]);
    cluster.run(&["put", "cart", "d", "--replace-all"]).expect(0, &[]);
    cluster.run(&["del", "one"]).expect(0, &[]);
    cluster.run(&["import", &path("first")]).expect(0, &["2 written, 0 unchanged"]);
    cluster.run(&["get", "cart"]).expect(6, &["3 siblings", "a", "b", "c"]);
    cluster.run(&["export", &path("second"), "--siblings", "all", "--sort"]).expect(0, &[]);
    assert_eq!(std::fs::read_to_string(path("second")).expect("there"), exported);
    // They are siblings of today: one context covers them all, and a write that names it ends them.
    let context = cluster.run(&["get", "cart", "--context"]);
    cluster.run(&["put", "cart", "merged", "--context", context.out.trim()]).expect(0, &[]);
    cluster.run(&["get", "cart"]).expect(0, &["merged"]);
    // Siblings of the same bytes are one value: there is nothing to choose between.
    cluster.run(&["put", "same", "v", "--blind"]).expect(0, &[]);
    cluster.run(&["put", "same", "v", "--blind"]).expect(0, &[]);
    cluster.run(&["export", &path("same"), "--prefix", "same"]).expect(0, &["1 record"]);
    assert_eq!(std::fs::read_to_string(path("same")).expect("there"), "{\"key\":\"same\",\"value\":\"v\"}\n");
    cluster.run(&["import", &path("same")]).expect(0, &["0 written, 1 unchanged"]);
    cluster.write("other", "{\"key\":\"same\",\"value\":\"w\"}\n");
    cluster.run(&["import", &path("other")]).expect(0, &["1 written"]);
    assert_eq!(cluster.run(&["get", "same"]).expect(0, &[]).out, "w");
    // A blind import as well, where there is nothing yet.
    cluster.write("blind", "{\"key\":\"new\",\"values\":[\"x\",\"y\"]}\n{\"key\":\"twice\",\"value\":\"1\"}\n{\"key\":\"twice\",\"value\":\"2\"}\n");
    cluster.run(&["import", &path("blind"), "--blind"]).expect(0, &["3 written"]);
    cluster.run(&["get", "new"]).expect(6, &["2 siblings"]);
    assert_eq!(cluster.run(&["get", "twice"]).expect(0, &[]).out, "2", "the last line of a key counts");
    cluster.run(&["import", &path("blind"), "--blind"]).expect(0, &[]);
    cluster.run(&["get", "new"]).expect(6, &["2 siblings"]);

    // What other programs make of text.
    let mut marked = b"\xef\xbb\xbf".to_vec();
    marked.extend(b"{\"key\":\"marked\",\"value\":\"v\"}\r\n");
    std::fs::write(path("marked"), marked).expect("written");
    cluster.run(&["import", &path("marked")]).expect(0, &["1 written"]);
    let utf_16: Vec<u8> =
        "\u{feff}{\"key\":\"k\",\"value\":\"v\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(path("utf-16"), utf_16).expect("written");
    cluster.run(&["import", &path("utf-16")]).expect(1, &["UTF-16", "nothing was written", "iconv", "utf-16 |"]);
    std::fs::write(path("packed"), b"\x1f\x8b\x08\x00\x00").expect("written");
    cluster.run(&["import", &path("packed")]).expect(1, &["gzip", "zcat", "quorate import -"]);
    let bad: String = (0..50).map(|number| format!("bad {number}\n")).collect();
    cluster.write("bad", &format!("{bad}{{\"key\":\"good\",\"value\":\"v\"}}\n"));
    let said = cluster.run(&["import", &path("bad")]).expect(1, &["1 written", "50 failed"]);
    assert_eq!(said.err.matches("bad:").count(), 20, "{said}");
    assert!(said.err.contains("bad:1: ") && said.err.contains("counted and not named"), "{said}");
}

#[test]
fn an_export_writes_to_what_it_is_told() {
    let cluster = Cluster::start(1);
    for number in 0..20 {
        cluster.run(&["put", &format!("k{number}"), "v"]).expect(0, &[]);
    }
    let path = |name: &str| cluster.dir().join(name);
    let name = |name: &str| path(name).display().to_string();
    let lines = |text: &str| text.lines().count();

    // A named pipe: its reader gets all, and it stays one.
    assert!(Command::new("mkfifo").arg(path("pipe")).status().expect("it runs").success());
    let mut export = Process::start(cluster.command(&["export", &name("pipe")]).stderr(Stdio::null()));
    let mut text = String::new();
    File::open(path("pipe")).and_then(|mut pipe| pipe.read_to_string(&mut text)).expect("read");
    assert!(export.ended().success());
    assert_eq!(lines(&text), 20);
    assert!(std::fs::symlink_metadata(path("pipe")).expect("there").file_type().is_fifo());
    // One that nobody reads is waited for, and a signal ends that.
    let mut export =
        Process::start(cluster.command(&["export", &name("pipe")]).stderr(File::create(path("err")).expect("made")));
    eventually("it can be told to end", || {
        export.signal("TERM");
        std::thread::sleep(std::time::Duration::from_millis(100));
        (!export.runs()).then_some(())
    });

    // Devices and what stands for stdout.
    cluster.run(&["export", "/dev/null"]).expect(0, &["20 records"]);
    assert!(std::fs::metadata("/dev/null").expect("there").file_type().is_char_device());
    assert_eq!(lines(&cluster.run(&["export", "/dev/stdout"]).expect(0, &[]).out), 20);
    let both = File::create(path("both")).expect("made");
    (&both).write_all(b"before\n").expect("written");
    let said = cluster.command(&["export", "/dev/stdout"]).stdout(both.try_clone().expect("cloned")).status();
    assert!(said.expect("it runs").success());
    (&both).write_all(b"after\n").expect("written");
    let text = std::fs::read_to_string(path("both")).expect("there");
    assert!(text.starts_with("before\n") && text.ends_with("after\n") && lines(&text) == 22, "{text}");

    // A link is followed; a file is replaced as a whole and keeps its mode.
    std::fs::create_dir(path("disk")).expect("made");
    std::fs::write(path("disk/backup"), "old").expect("written");
    std::fs::set_permissions(path("disk/backup"), Permissions::from_mode(0o640)).expect("set");
    std::os::unix::fs::symlink("disk/backup", path("link")).expect("linked");
    cluster.run(&["export", &name("link"), "--sort"]).expect(0, &["20 records"]);
    assert!(std::fs::symlink_metadata(path("link")).expect("there").is_symlink());
    assert_eq!(lines(&std::fs::read_to_string(path("disk/backup")).expect("there")), 20);
    assert_eq!(std::fs::metadata(path("disk/backup")).expect("there").permissions().mode() & 0o777, 0o640);
    assert_eq!(std::fs::read_dir(path("disk")).expect("listed").count(), 1, "no temporary file stays");
    cluster.run(&["export", &name("disk")]).expect(2, &["is a directory"]);
    cluster
        .run(&["export", &name("absent/file")])
        .expect(2, &["absent/file", "No such file or directory", "check the path"]);
    cluster.run(&["export", "/dev/full"]).expect(1, &["/dev/full", "make room"]);
}

#[test]
fn settings_come_from_where_they_are_said_to_come_from() {
    let cluster = Cluster::prepare(1);
    // What clients export for themselves changes no node; what is wrong is named with its place.
    let server = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = bare_command(cluster.dir());
        command.args(["server", "--config", "n1.toml"]).args(words).envs(variables.iter().copied());
        Said::by(&mut command)
    };
    server(&["--check"], &[])
        .expect(0, &["certificates of n1 are right", "ports, directories and disks are tried by a start"]);
    server(&["--check"], &[("QUORATE_CERT", "certs/admin.pem"), ("QUORATE_KEY", "certs/admin.key")])
        .expect(0, &["certificates of n1 are right"]);
    let said =
        server(&["--check"], &[("QUORATE_SERVER_CERT", "certs/admin.pem"), ("QUORATE_SERVER_KEY", "certs/admin.key")]);
    said.expect(2, &["certificate of client admin", "from QUORATE_SERVER_CERT"]);
    server(&["--check", "--ca", "absent.pem"], &[]).expect(2, &["absent.pem", "the CA is from --ca"]);
    server(&["--check"], &[("QUORATE_SERVER_SYNC_INTERVAL", "5")])
        .expect(2, &["QUORATE_SERVER_SYNC_INTERVAL", "5ms or 5s"]);
    server(&["--check"], &[("QUORATE_LISTEN", "x")])
        .expect(0, &["nothing reads the variable QUORATE_LISTEN", "QUORATE_SERVER_LISTEN"]);
    cluster.write("n1.bad.toml", "node = \"n1\"\ndata_dir = \"d\"\n[tls]\nca = \"certs/ca.pem\"\ncert = \"absent.pem\"\nkey = \"certs/n1.key\"\n");
    cluster.run(&["server", "--check", "--config", "n1.bad.toml"]).expect(2, &["absent.pem", "n1.bad.toml:5"]);
    assert!(!cluster.dir().join("data-n1").exists(), "a check makes nothing");
    let shown = cluster.run(&["config", "show", "--server", "--config", "n1.toml", "--origin"]);
    shown.expect(0, &["certs/n1.pem", "n1.toml:8", "durability", "group", "default"]);

    // Global options stand before or after the command, durations have one spelling, and variables that nothing reads are named.
    for words in
        [&["--timeout", "300ms", "-o", "json", "get", "k"][..], &["get", "k", "-o", "json", "--timeout", "300ms"]]
    {
        let said = cluster.run(words);
        assert_eq!(said.expect(4, &[]).error()["exit_code"], 4);
    }
    for words in [["-o", "json", "layout", "show"], ["layout", "-o", "json", "show"]] {
        assert_eq!(cluster.run(&[&["--timeout", "300ms"], &words[..]].concat()).expect(4, &[]).error()["exit_code"], 4);
    }
    cluster.run(&["--seeds", "n1:1", "cert", "init"]).expect(2, &["--seeds says nothing to `quorate cert`"]);
    cluster.run(&["server", "--timeout", "5s"]).expect(2, &["--timeout says nothing to `quorate server`"]);
    cluster.run(&["get", "k", "--timeout", "1h 30m"]).expect(2, &["at most 300s"]);
    cluster.run(&["get", "k", "--timeout", "5"]).expect(2, &["5ms or 5s"]);
    let said = Said::by(cluster.command(&["get", "k"]).env("QUORATE_TIMEOUT", "300ms").env("QUORATE_SEED", "x"));
    said.expect(4, &["nothing reads the variable QUORATE_SEED, did you mean QUORATE_SEEDS?"]);
    let said = Said::by(cluster.command(&["get", "k"]).env("QUORATE_CERT", "absent.pem"));
    said.expect(2, &["absent.pem", "the certificate is from QUORATE_CERT"]);
    let said = Said::by(cluster.command(&["get", "k"]).env("QUORATE_R", "most"));
    said.expect(2, &["QUORATE_R: \"most\" is not a quorum"]);
    // No promise that is refused, no advice that leads nowhere.
    cluster.run(&["layout", "--help"]).expect(0, &["join, leave and are replaced", "layout apply --version 2"]);
}

#[test]
fn tables_fit_and_tell_the_truth_about_who_answers() {
    let mut cluster = Cluster::start(3);
    cluster.run(&["put", "k", "v"]).expect(0, &[]);
    let narrow = |words: &[&str]| Said::by(cluster.command(words).env("COLUMNS", "80"));
    for words in [&["repair", "status"][..], &["status"], &["node", "ls"], &["locate", "k"], &["layout", "show"]] {
        let said = narrow(words).expect(0, &[]);
        let table = said.out.lines().filter(|line| !line.starts_with('!'));
        assert!(table.clone().all(|line| line.chars().count() <= 80), "{said}");
    }
    narrow(&["repair", "status"]).expect(0, &[&format!("{:18}n1", "NODE:"), "LAST WHOLE PASS:"]);
    let wide = Said::by(cluster.command(&["repair", "status"]).env("COLUMNS", "300")).expect(0, &[]);
    assert!(wide.out.starts_with("NODE  STATE "), "{wide}");

    // A node that stands still is called up by nobody, although the others have not noticed yet.
    cluster.node(3).signal("STOP");
    let said = cluster.run(&["status", "--timeout", "500ms"]);
    let row = said.out.lines().find(|line| line.starts_with("n3 ")).unwrap_or_else(|| panic!("n3 is missing: {said}"));
    assert!(row.contains(" silent ") || row.contains(" down "), "{said}");
    let said = cluster.run(&["node", "ls", "--timeout", "500ms"]).expect(0, &["! n3 does not answer: "]);
    let below = said.out.lines().skip_while(|line| !line.starts_with('!')).collect::<Vec<_>>();
    assert_eq!(below.len(), 1, "what went wrong stands below the table: {said}");
    assert!(below[0].len() < 120, "{said}");
    // Reads have changed nothing anyhow, each node is named once, and times are such as people say.
    let said = cluster.run(&["get", "k", "--r", "all", "--strict", "--timeout", "700ms"]).expect(4, &["n3"]);
    assert!(!said.err.contains("nothing was changed"), "{said}");
    assert_eq!(said.err.matches("n3").count(), 1, "{said}");
    let digits = |word: &str| word.ends_with("ms") && word.contains('.');
    assert!(!said.err.split_whitespace().any(digits), "{said}");
    cluster.node(3).signal("CONT");
    cluster.await_healthy();
}

#[test]
fn a_process_that_has_ended_and_is_not_waited_for_is_no_running_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = root().join("scripts/cluster");
    let pids = || {
        let mut command = Command::new(&script);
        command.arg("pids").arg(dir.path()).env("QUORATE_BIN", quorate_tests::processes::quorate());
        Said::by(&mut command).expect(0, &[]).out
    };
    std::fs::write(dir.path().join("n1.toml"), "").expect("written");
    // A zombie: it has ended, and its parent, this test, has not looked.
    let mut zombie = Command::new("true").spawn().expect("it runs");
    let stat = format!("/proc/{}/stat", zombie.id());
    eventually("it is a zombie", || std::fs::read_to_string(&stat).ok().filter(|stat| stat.contains(") Z ")));
    std::fs::write(dir.path().join("n1.pid"), zombie.id().to_string()).expect("written");
    assert_eq!(pids(), "");
    zombie.wait().expect("it has ended");
    // And an id that another program has by now.
    std::fs::write(dir.path().join("n1.pid"), std::process::id().to_string()).expect("written");
    assert_eq!(pids(), "");
}

#[test]
fn one_file_serves_the_library_and_the_tool() {
    let cluster = Cluster::start(1);
    let all = std::fs::read_to_string(cluster.dir().join("client.toml")).expect("there");
    cluster.write(
        "client.toml",
        &format!("{all}profile = \"safe\"\nr = 1\nw = \"all\"\ntimeout = \"30s\"\noutput = \"json\"\n"),
    );
    let said = cluster.run(&["put", "k", "v", "--explain"]).expect(0, &[]);
    assert_eq!(said.json()["schema"], "quorate.put.v1", "{said}");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let value = runtime.block_on(async {
        let connect =
            Client::from_config(cluster.dir().join("client.toml")).expect("a profile").connect_timeout(PATIENCE);
        let db = connect.connect().await.expect("the cluster runs");
        db.get("k").await.expect("read").into_one().expect("one value")
    });
    assert_eq!(value, "v");
}
