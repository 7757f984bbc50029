//! rimg: build, ship and run OCI images. This file is the story of one invocation; each command has a file of
//! its own under `commands/`.

mod cli;
mod commands;
mod failure;
mod printable;
mod progress;
mod session;
mod terminal;
mod units;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    // A sandbox is set up by this same program, started again: that child never comes back from here.
    rimg_runner::child_main_if_requested();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => return not_parsed(&answer),
    };
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let (code, text) = failure.report();
            if let Some(text) = text {
                terminal::note(text.trim_end());
            }
            ExitCode::from(code)
        }
    }
}

/// Help, a version, or a wrong command line. The last is 2, but 125 for `run`, as docker has it: there 2 would be taken
/// for the exit code of the container's process.
fn not_parsed(answer: &clap::Error) -> ExitCode {
    // Whoever reads the help may have gone, as with any output.
    let _ = answer.print();
    if !answer.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let lenient = cli::Cli::command().ignore_errors(true).try_get_matches();
    match lenient.as_ref().ok().and_then(clap::ArgMatches::subcommand_name) {
        Some("run") => ExitCode::from(failure::CONTAINER_EXIT),
        _ => ExitCode::from(failure::USAGE_EXIT),
    }
}
