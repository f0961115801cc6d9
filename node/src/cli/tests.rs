//! The command line as a whole: what is understood, what is refused, and what help says.

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::args::{Cli, parse_time};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::parse_args(std::iter::once("quorate").chain(line.split(' ')))
}

#[test]
fn the_definition_is_sound() {
    Cli::definition().debug_assert();
}

#[test]
fn every_command_is_understood() {
    for line in [
        "dev",
        "dev -n 5 --persist data --base-port 9000 --http",
        "dev kill n2",
        "dev start n2",
        "dev status -o json",
        "dev stop",
        "put greeting hello",
        "put greeting - --r 2 --w all --timeout 500ms --strict --explain -o json",
        "put greeting @file --blind",
        "put temperature -5",
        "put cart bread --replace-all",
        "put -- -key -value",
        "--seeds n1:7400 -o json get greeting",
        "-o json layout --timeout 2s show",
        "keys",
        "keys user/ --limit 20 --r one",
        "keys --count --key-encoding hex",
        "get --key-encoding hex 00ff --sibling 2",
        "config show --server --config n1.toml",
        "server --config n1.toml --check",
        "-o json cert init",
        "put greeting hello --context abc --seeds n1:7400,n2:7400 --ca ca.pem --cert c.pem --key c.key --config c.toml",
        "get greeting",
        "get greeting --r one --context --explain --strict --timeout 2s",
        "del greeting --w majority",
        "del greeting --context abc --explain",
        "import words.ndjson",
        "import - --blind --concurrency 128 --retry-for 5m -o json",
        "export",
        "export out.ndjson --sort --siblings all --r all",
        "status --check --on n1:7400",
        "node ls -o json",
        "locate greeting",
        "layout show",
        "layout show --on n1:7400",
        "layout show --report layout.html",
        "layout stage join n1=10.0.0.1:7400 n2=[::1]:7400 --zone rack-1 --weight 2",
        "layout stage settings --replicas 5 --partitions 256 --floor-r 2 --floor-w 4",
        "layout stage leave n2 n3 --on n1:7400",
        "layout stage replace n2 n6=n6:7400",
        "layout stage weight n1 2",
        "layout stage zone n1 rack-2",
        "layout history -o json",
        "layout revert",
        "layout apply --version 1",
        "layout abort",
        "layout abort --version 3 --on n1:7400",
        "transfers",
        "transfers --watch -o json",
        "repair status -o json",
        "repair start --node n1,n2",
        "repair pause --node n1 --node n2",
        "repair resume",
        "server --config n1.toml",
        "server --node n1 --listen 0.0.0.0:7400 --advertise 10.0.0.1:7400 --join n2:7400 --data-dir d --durability interval \
         --sync-interval 50ms --request-memory-mib 512 --http 127.0.0.1:7480 --ca ca.pem --cert n1.pem --key n1.key --log-format json --log-level debug",
        "cert init",
        "cert node n1 --dir pki --days 30",
        "cert client alice --admin -o json",
        "bench",
        "bench --mode open --rate 2000 -c 8 --duration 30s --value-size 100 --keys 50 --read-ratio 0.9 --distribution zipfian \
         --r one --w all -o json --echo",
        "completions bash",
        "config show --origin",
    ] {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(parse(&line).is_ok(), "{line}: {}", parse(&line).expect_err("as the condition says"));
    }
}

#[test]
fn a_mistake_in_every_argument_is_refused_with_what_would_be_right() {
    let n = "n".repeat(32);
    let mut wrong = Vec::new();
    for (line, wanted) in [
        ("dev -n 0", "0 is not in 1..=32"),
        ("dev -n many", "invalid digit"),
        ("dev --base-port 80", "1024..=65500"),
        ("dev --persist", "a value is required"),
        ("dev kill", "<NODE>"),
        ("dev kill N2", "1 to 31 lower-case letters"),
        ("dev start n_2", "1 to 31 lower-case letters"),
        ("dev -n 3 stop", "cannot be used with"),
        ("dev status -o xml", "text, json"),
        ("put", "<KEY>"),
        ("put greeting", "<VALUE>"),
        ("put k v --replace-all --blind", "cannot be used with"),
        ("put k v --replace-all --context c", "cannot be used with"),
        ("get k --sibling 0", "0 is not in"),
        ("get k --key-encoding rot13", "possible values"),
        ("keys --limit 0", "0 is not in"),
        ("keys a b", "unexpected argument"),
        ("get -key", "-- -k"),
        ("--seeds n1:7400 cert init", "--seeds says nothing to `quorate cert`"),
        ("cert init --timeout 5s", "--timeout says nothing to `quorate cert`"),
        ("server --seeds n1:7400", "--seeds says nothing to `quorate server`"),
        ("--ca ca.pem dev", "--ca says nothing to `quorate dev`"),
        ("put k v --r 0", "one, majority, all or a number from 1 to 255"),
        ("put k v --w most", "one, majority, all or a number from 1 to 255"),
        ("put k v --timeout 5", "lacks a unit: write 5ms or 5s"),
        ("put k v --timeout 0s", "lets no request succeed"),
        ("put k v --timeout 999us", "a timeout below 1ms"),
        ("put k v --timeout soon", "write 250ms, 2s or 1m"),
        ("put k v --blind --context abc", "cannot be used with"),
        ("put k v --context", "a value is required"),
        ("put k v --stict", "'--strict'"),
        ("put k v --seeds n1", "the port is missing"),
        ("put k v --seeds n1:7400,", "is no address"),
        ("put k v --output yaml", "text, json"),
        ("put k v w", "unexpected argument"),
        ("get", "<KEY>"),
        ("get k --r 256", "one, majority, all or a number"),
        ("get k --w 2", "unexpected argument"),
        ("get k --explian", "'--explain'"),
        ("del", "<KEY>"),
        ("del k --blind", "unexpected argument"),
        ("import", "<FILE>"),
        ("import f --concurrency 0", "1..=1024"),
        ("import f --retry-for 60", "lacks a unit"),
        ("import f --retry-for 25000m", "more than a day"),
        ("export f --siblings some", "report, all"),
        ("export f g", "unexpected argument"),
        ("status --on n1", "the port is missing"),
        ("node", "ls"),
        ("node sl", "unrecognized subcommand 'sl'"),
        ("locate", "<KEY>"),
        ("layout", "stage"),
        ("layout stage", "join"),
        ("layout stage join", "<NODE=HOST:PORT>"),
        ("layout stage join n1", "write n1=10.0.0.1:7400"),
        ("layout stage join N1=n1:7400", "1 to 31 lower-case letters"),
        (&format!("layout stage join {n}=n1:7400"), "1 to 31 lower-case letters"),
        ("layout stage join n1=n1", "the port is missing"),
        ("layout stage join n1=n1:7400 --zone a/b", "1 to 63 letters"),
        ("layout stage join n1=n1:7400 --weight 0", "1..=1000"),
        ("layout stage leave", "<NODE>"),
        ("layout stage replace n2", "<NEW=HOST:PORT>"),
        ("layout stage replace n2 n6", "write n1=10.0.0.1:7400"),
        ("layout stage weight n1", "<WEIGHT>"),
        ("layout stage weight n1 0", "1..=1000"),
        ("layout stage zone n1 a/b", "1 to 63 letters"),
        ("layout stage settings", "--replicas"),
        ("layout stage settings --replicas 0", "0 is not in"),
        ("layout stage settings --partitions 40000", "1..=32768"),
        ("layout stage settings --floor-r 0", "0 is not in"),
        ("layout stage settings --floor-w 300", "300 is not in"),
        ("transfers n4", "unexpected argument"),
        ("transfers --wacth", "'--watch'"),
        ("transfers --watch=yes", "unexpected value"),
        ("layout apply", "--version"),
        ("layout apply --version 0", "0 is not in"),
        ("layout abort --version 0", "0 is not in"),
        ("layout abort --version", "a value is required"),
        ("layout abort 3", "unexpected argument"),
        ("layout show --report", "a value is required"),
        ("layout show --report -", "name a file"),
        ("layout show layout.html", "unexpected argument"),
        ("layout aply --version 1", "'apply'"),
        ("server --node -n1", "unexpected argument"),
        ("server --node n1-", "1 to 31 lower-case letters"),
        ("server --listen localhost", "the port is missing"),
        ("server --advertise :7400", "the host is no name"),
        ("server --join n1", "the port is missing"),
        ("server --durability never", "always, group or interval"),
        ("server --sync-interval 100", "lacks a unit"),
        ("server --request-memory-mib lots", "no number of MiB"),
        ("server --http 7480", "the port is missing"),
        ("server --log-format xml", "pretty or json"),
        ("server --log-level loud", "error, warn, info"),
        ("server n1.toml", "unexpected argument"),
        ("cert node", "<NAME>"),
        ("cert node N1", "1 to 31 lower-case letters"),
        ("cert client Alice", "1 to 31 lower-case letters"),
        ("cert init --days 0", "1..=36500"),
        ("bench --mode open", "--rate"),
        ("bench --mode half", "closed, open"),
        ("bench --mode open --rate 0", "1..=10000000"),
        ("bench -c 0", "1..=4096"),
        ("bench --duration 10", "lacks a unit"),
        ("bench --value-size 2000000", "0..=1048576"),
        ("bench --keys 0", "0 is not in"),
        ("bench --read-ratio 1.5", "a number from 0 to 1"),
        ("bench --read-ratio nan", "a number from 0 to 1"),
        ("bench --distribution normal", "uniform, zipfian"),
        ("completions", "<SHELL>"),
        ("completions tcsh", "bash"),
        ("config", "show"),
        ("gett greeting", "'get'"),
    ] {
        let Err(error) = parse(line) else {
            wrong.push(format!("{line}: understood"));
            continue;
        };
        let text = error.to_string();
        if !text.contains(wanted) || error.exit_code() != 2 {
            wrong.push(format!("{line}: {wanted:?} is not in:\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_first_page_lists_every_command() {
    let page = Cli::command().render_help().to_string();
    for command in Cli::command().get_subcommands() {
        let line =
            format!("  {:<12} {}\n", command.get_name(), command.get_about().expect("every command says what it does"));
        assert!(page.contains(&line), "{line:?} is not in:\n{page}");
    }
}

#[test]
fn every_command_s_help_ends_with_examples_that_are_understood() {
    fn walk(command: &clap::Command, path: &str, seen: &mut usize) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name());
            let leaf = sub.get_subcommands().next().is_none();
            let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            let parents_show_it = command.get_after_help().is_some_and(|help| help.to_string().contains(&path));
            let plain = [
                "quorate dev stop",
                "quorate dev status",
                "quorate layout revert",
                "quorate dev kill",
                "quorate dev start",
            ];
            assert!(
                !leaf || after.contains("Examples:") || parents_show_it || plain.contains(&path.as_str()),
                "{path} shows no example"
            );
            for line in after.lines().filter(|line| line.trim_start().starts_with("quorate ")) {
                *seen += 1;
                // Up to a comment, a pipe or a redirection; quoted texts as one word.
                let line = line.trim().split("   ").next().expect("a line").split(['|', '>']).next().expect("a line");
                let line = line
                    .replace("\"$(jq -r .context seen.json)\"", "C")
                    .replace("\"$MERGED\"", "V")
                    .replace("$key", "00");
                let parsed = Cli::parse_args(line.split_whitespace());
                assert!(parsed.is_ok(), "{line}: {}", parsed.expect_err("as the condition says"));
            }
            walk(sub, &path, seen);
        }
    }
    let mut seen = 0;
    walk(&Cli::command(), "quorate", &mut seen);
    assert!(seen > 30, "{seen} examples");
}

#[test]
fn help_shows_the_options_of_all_commands_only_where_they_mean_something() {
    let help = |line: &str| parse(line).expect_err("help").to_string();
    for line in ["get --help", "layout stage join --help", "--help"] {
        assert!(help(line).contains("--seeds"), "{line}");
    }
    for line in ["server --help", "cert init --help", "dev --help", "dev kill --help", "completions --help"] {
        assert!(!help(line).contains("--seeds"), "{line}");
    }
    assert!(help("server --help").contains("QUORATE_SERVER_CERT") && !help("server --help").contains("QUORATE_CERT"));
}

#[test]
fn help_and_version_are_no_mistakes() {
    assert_eq!(parse("--help").expect_err("help").kind(), ErrorKind::DisplayHelp);
    assert_eq!(parse("--version").expect_err("version").kind(), ErrorKind::DisplayVersion);
    assert_eq!(parse("get --help").expect_err("help").exit_code(), 0);
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::definition(), "quorate", &mut script);
        let script = String::from_utf8(script).expect("text");
        assert!(script.contains("locate") && script.contains("explain"), "{shell}");
    }
}

#[test]
fn times_have_units() {
    for (text, ms) in [("0ms", 0), ("250ms", 250), ("2s", 2_000), ("1m", 60_000), ("2min", 120_000)] {
        assert_eq!(parse_time(text).expect("legal").as_millis(), ms);
    }
    for bad in ["", "s", "1", "-1s", "25h", "99999999999999999999s"] {
        assert!(parse_time(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_wrong_command_line_is_told_in_json_if_it_asks_for_that() {
    for (line, json) in [
        ("get k --nope -o json", true),
        ("get --output=json", true),
        ("-ojson get", true),
        ("get k --nope -o text", false),
        ("get k --nope", false),
        ("put --nope -- -o json", false),
    ] {
        assert_eq!(super::asks_for_json(line.split(' ').map(Into::into)), json, "{line}");
        let failure = super::of_usage(&parse(line).expect_err("wrong"));
        let (message, hint) = (&failure.message, &failure.hint);
        assert!(!message.is_empty() && !message.contains('\n') && !message.contains("Usage"), "{message}");
        assert!(!message.starts_with("error") && hint.contains("--help"), "{message}; {hint}");
    }
}
