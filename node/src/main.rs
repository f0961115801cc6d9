//! The `quorate` binary: a node, the cluster's tools and the key-value commands in one.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
