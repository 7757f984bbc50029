//! rimg: build, ship and run OCI images. This file is the story of one invocation; each command has a file of
//! its own under `commands/`.

mod cli;
mod command_line;
mod commands;
mod docker_commands;
mod failure;
mod local_access;
mod printable;
mod progress;
mod server_log;
mod session;
mod terminal;
mod units;

use std::panic::PanicHookInfo;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Stack that the deepest command needs, with room: a caller's smaller limit (`ulimit -s`) is raised.
const STACK_BYTES_MIN: u64 = 1 << 20;
/// The usual stack.
const STACK_BYTES: u64 = 8 << 20;

/// The exit code of Rust's own for a panic.
const PANIC_EXIT: u8 = 101;

fn main() -> ExitCode {
    // A sandbox is set up by this same program, started again: that child never comes back from here.
    rimg_runner::child_main_if_requested();
    std::panic::set_hook(Box::new(tell_panic));
    match std::panic::catch_unwind(invocation) {
        Ok(code) => code,
        Err(_) => ExitCode::from(if is_run_at_a_glance() { failure::CONTAINER_EXIT } else { PANIC_EXIT }),
    }
}

fn invocation() -> ExitCode {
    if let Err(bytes) = enough_stack() {
        terminal::note(&format!(
            "error: the limit of the stack is {} KiB, and rimg needs {}\n  hint: ulimit -s {}",
            bytes >> 10,
            STACK_BYTES_MIN >> 10,
            STACK_BYTES >> 10
        ));
        return ExitCode::from(if is_run_at_a_glance() { failure::CONTAINER_EXIT } else { 1 });
    }
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

/// Raises the limit of this thread's stack where it is too small; the kernel looks at it when the stack grows. An error is
/// the limit in bytes.
fn enough_stack() -> Result<(), u64> {
    let limit = getrlimit(Resource::Stack);
    let enough = |limit: Option<u64>| limit.is_none_or(|bytes| bytes >= STACK_BYTES_MIN);
    if enough(limit.current) {
        return Ok(());
    }
    let wanted = if enough(limit.maximum) { limit.maximum } else { Some(STACK_BYTES) };
    let current = wanted.map_or(STACK_BYTES, |maximum| maximum.min(STACK_BYTES));
    let raised = setrlimit(Resource::Stack, Rlimit { current: Some(current), maximum: wanted });
    raised.map_err(|_| limit.current.unwrap_or(0))
}

/// Whether this is `rimg run`, without a parser: for when that may be what failed.
fn is_run_at_a_glance() -> bool {
    std::env::args_os().any(|word| word == "run")
}

/// A panic in the words of other errors. It is a fault of ours, or of a machine without even random numbers.
fn tell_panic(panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload.downcast_ref::<&str>().copied();
    let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
    let place = panic.location().map(|place| format!(" ({place})")).unwrap_or_default();
    terminal::note(&format!("error: rimg itself failed: {message}{place}"));
}
