//! The command line: from arguments to an exit code.
//!
//! In reading order: what can be said ([`args`]), where settings come from ([`settings`]), how results go out
//! ([`output`]) and how things fail ([`failure`]), the way to the cluster ([`connection`]), and then the commands.

pub(crate) mod args;
pub(crate) mod failure;
pub(crate) mod output;
pub(crate) mod settings;

pub(crate) mod connection;

mod cluster;
mod export;
mod health;
mod import;
mod key;
mod key_value;
mod keys;
mod layout;
mod layout_page;
mod ndjson;
mod repair;
mod transfers;
mod value;

mod cert;
mod dev;
mod launch;
mod log;
mod obstacle;
mod process;
mod server;

mod bench;
mod echo;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use quorate_node::config::{LogConfig, LogFormat};
use quorate_wire::Quorum;

use self::args::{Cli, Command, Common, ConfigCommand, NodeCommand, OutputFormat};
use self::failure::{Exit, Failure, Outcome};
use self::output::Output;
use self::settings::{Settings, Surroundings};

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::parse_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && asks_for_json(std::env::args_os()) => {
            Output::new(OutputFormat::Json).failure(&of_usage(&error));
            return Exit::Usage.into();
        }
        Err(error) => {
            // Help and versions come this way as well, with code 0. A closed pipe is nobody's loss here.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let (output, outcome) = run(cli);
    match outcome {
        Ok(exit) => {
            log::flush();
            exit.into()
        }
        Err(failure) => {
            let exit = failure.exit;
            last_words(move || output.failure(&failure));
            exit.into()
        }
    }
}

/// Whether a command line that is wrong asks for JSON all the same, or the environment does.
fn asks_for_json(args: impl IntoIterator<Item = OsString>) -> bool {
    let args: Vec<OsString> = args.into_iter().take_while(|arg| arg != "--").collect();
    let joined = ["-ojson", "-o=json", "--output=json"];
    let mut said = args.iter().zip(args.iter().skip(1).map(Some).chain([None]));
    let by_flag = said.any(|(flag, next)| {
        joined.iter().any(|json| flag == json)
            || ((flag == "-o" || flag == "--output") && next.is_some_and(|next| next == "json"))
    });
    by_flag || variable("QUORATE_OUTPUT").is_some_and(|text| text == "json")
}

/// What is wrong with a command line, without what is only for people.
fn of_usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let what = text.split("\n\nUsage:").next().unwrap_or(&text).split("\n\nFor more").next().unwrap_or(&text);
    let what: Vec<&str> = what.trim_start_matches("error:").split_whitespace().collect();
    Failure::usage(what.join(" "), "the command's --help shows what is possible")
}

/// Says something after all that was logged. It is not waited for long: whoever reads may be gone or slow, and the process ends all
/// the same.
fn last_words(say: impl FnOnce() + Send + 'static) {
    let (done, said) = std::sync::mpsc::sync_channel(1);
    let speaking = std::thread::Builder::new().spawn(move || {
        log::flush();
        say();
        // Nobody waits any more if it took too long.
        let _ = done.send(());
    });
    if speaking.is_ok() {
        // Whether it was said or not.
        let _ = said.recv_timeout(LAST_WORDS_TIME);
    }
}

/// How long the last words may take.
const LAST_WORDS_TIME: Duration = Duration::from_secs(3);

fn run(cli: Cli) -> (Output, Outcome) {
    let Cli { common, command } = cli;
    let plain = Output::new(said_format(&common));
    if !plain.is_json() {
        settings::warn_of_variables(&plain);
    }
    match command {
        Command::Get(args) => {
            client(&common, args.read.r, None, async |settings, output| key_value::get(&args, settings, output).await)
        }
        Command::Put(args) => client(&common, args.read.r, args.write.w, async |settings, output| {
            key_value::put(&args, settings, output).await
        }),
        Command::Del(args) => client(&common, args.read.r, args.write.w, async |settings, output| {
            key_value::del(&args, settings, output).await
        }),
        Command::Import(args) => client(&common, args.read.r, args.write.w, async |settings, output| {
            import::import(&args, settings, output).await
        }),
        Command::Export(args) => {
            client(&common, args.read.r, None, async |settings, output| export::export(&args, settings, output).await)
        }
        Command::Keys(args) => {
            client(&common, args.read.r, None, async |settings, output| keys::keys(&args, settings, output).await)
        }
        Command::Status(args) => {
            client(&common, None, None, async |settings, output| cluster::status(&args, settings, output).await)
        }
        Command::Node(NodeCommand::Ls) => client(&common, None, None, cluster::node_ls),
        Command::Locate(args) => {
            client(&common, None, None, async |settings, output| cluster::locate(&args, settings, output).await)
        }
        Command::Hints(args) => {
            client(&common, None, None, async |settings, output| health::hints(&args, settings, output).await)
        }
        Command::Check(command) => {
            client(&common, None, None, async |settings, output| health::check(&command, settings, output).await)
        }
        Command::Layout(command) => {
            client(&common, None, None, async |settings, output| layout::run(&command, settings, output).await)
        }
        Command::Transfers(args) => {
            client(&common, None, None, async |settings, output| transfers::transfers(&args, settings, output).await)
        }
        Command::Repair(command) => {
            client(&common, None, None, async |settings, output| repair::run(&command, settings, output).await)
        }
        Command::Bench(args) => client(&common, args.read.r, args.write.w, async |settings, output| {
            bench::run(&args, settings, output).await
        }),
        Command::Config(ConfigCommand::Show(args)) if args.server => {
            (plain, server::show(common.config.clone(), args.origin, &plain))
        }
        Command::Config(ConfigCommand::Show(args)) => {
            with_settings(&common, args.read.r, args.write.w, |settings, output| {
                settings::show(
                    &args,
                    settings,
                    std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()),
                    output,
                )
            })
        }
        Command::Server(args) => (plain, server::run(*args, &plain)),
        Command::Dev(args) => dev::run(args),
        Command::Cert(command) => cert::run(&command),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::definition(), "quorate", &mut script);
            (plain, plain.line(&String::from_utf8_lossy(&script)).map(|()| Exit::Done).map_err(Into::into))
        }
    }
}

/// Runs a command that needs settings.
fn with_settings(
    common: &Common,
    r: Option<Quorum>,
    w: Option<Quorum>,
    command: impl FnOnce(&Settings, &Output) -> Outcome,
) -> (Output, Outcome) {
    let around = Surroundings { variables: &variable, user_file: user_file(), dev_profile: dev::running_profile() };
    match Settings::load(common, r, w, &around) {
        Ok(settings) => {
            let output = Output::new(settings.output.value);
            let outcome = command(&settings, &output);
            (output, outcome)
        }
        Err(error) => {
            // The settings are broken; what the command line and the environment say of the output may still be right.
            (Output::new(said_format(common)), Err(error.into()))
        }
    }
}

/// How to print as far as the command line and the environment say it.
fn said_format(common: &Common) -> OutputFormat {
    let said = common.output.or_else(|| variable("QUORATE_OUTPUT").and_then(|text| text.parse().ok()));
    said.unwrap_or(OutputFormat::Text)
}

/// Runs a command that talks to a cluster. It logs only when the environment asks for it: what people need to know is in
/// what the command says.
fn client(
    common: &Common,
    r: Option<Quorum>,
    w: Option<Quorum>,
    command: impl AsyncFnOnce(&Settings, &Output) -> Outcome,
) -> (Output, Outcome) {
    with_settings(common, r, w, |settings, output| {
        if let Some(level) = variable("QUORATE_LOG_LEVEL").and_then(|text| text.parse().ok()) {
            log::start(&LogConfig { format: LogFormat::Pretty, level, file: None })?;
        }
        block_on(async {
            let outcome = command(settings, output).await;
            connection::disconnect().await;
            outcome
        })?
    })
}

/// Runs a future to its end.
fn block_on<T>(future: impl Future<Output = T>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failure::new(format!("cannot start threads: {error}"), "check the limits of this user (ulimit -u, ulimit -n)")
    })?;
    let result = runtime.block_on(future);
    // A name service that hangs must not keep the process.
    runtime.shutdown_background();
    Ok(result)
}

/// An environment variable, if it is text.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// `$XDG_CONFIG_HOME/quorate/config.toml`, or the same in `~/.config`.
fn user_file() -> Option<PathBuf> {
    xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("quorate/config.toml"))
}

/// A base directory of the XDG specification, which wants relative ones ignored.
fn xdg(name: &str, under_home: &str) -> Option<PathBuf> {
    let named = std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    named.or_else(|| {
        std::env::var_os("HOME").filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(under_home))
    })
}

/// The wall clock: only for whether certificates are valid, and for timestamps in logs.
#[expect(clippy::disallowed_methods, reason = "the process's edge: from here it is handed inwards as a value")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests;
