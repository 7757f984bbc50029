//! rimg: build, ship and run OCI images. This file is the story of one invocation; each command has a file of
//! its own under `commands/`.

mod cli;
mod command_line;
mod commands;
mod failure;
mod local_access;
mod printable;
mod progress;
mod server_log;
mod session;
mod terminal;
mod units;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A sandbox is set up by this same program, started again: that child never comes back from here.
    rimg_runner::child_main_if_requested();
    let cli = match command_line::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
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
