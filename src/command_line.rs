//! The command line as it is parsed: docker's grammar of flags on top of clap's, and what is said when it is wrong.
//!
//! Owns what holds for every command: flags that take `=true` and `=false`, and a flag given twice, of which the last
//! counts. What a command takes is declared in its own file under `commands/`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches};

use crate::cli::Cli;
use crate::commands::run;
use crate::docker_commands;
use crate::failure::{CONTAINER_EXIT, Failure, USAGE_EXIT};
use crate::terminal;

/// Parses the program's arguments; the error is an exit code whose reason was printed.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    parse_from(&arguments).map_err(|answer| not_parsed(answer, &arguments))
}

/// Parses arguments, the program's name first.
fn parse_from(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let parse = |command: clap::Command| -> Result<Cli, clap::Error> {
        Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)
    };
    match parse(Cli::command()) {
        // Values of flags come second: help would show them with every flag.
        Err(error) if error.use_stderr() => parse(with_valued_flags(Cli::command())),
        other => other,
    }
}

/// The command with flags that may be given a value: `--rm`, `--rm=true`, `--rm=false`.
fn with_valued_flags(command: clap::Command) -> clap::Command {
    let flag = |arg: Arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .default_value("false")
            .value_parser(boolean),
        _ => arg,
    };
    command.mut_args(flag).mut_subcommands(with_valued_flags)
}

/// What docker takes for a boolean: the words of Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Prints help, a version, or what is wrong with a command line. The last is exit code 2, but 125 for `run`, as docker
/// has it: there 2 would be taken for the exit code of the container's process.
fn not_parsed(mut answer: clap::Error, arguments: &[OsString]) -> ExitCode {
    if !answer.use_stderr() {
        // Whoever reads the help may have gone, as with any output.
        let _ = answer.print();
        return ExitCode::SUCCESS;
    }
    let lenient = with_valued_flags(Cli::command()).ignore_errors(true).try_get_matches_from(arguments);
    let command = lenient.as_ref().ok().and_then(clap::ArgMatches::subcommand_name);
    if answer.kind() == ErrorKind::UnknownArgument {
        // "To pass it as a value, use `-- --flag`": it is none, or it would not be unknown.
        answer.remove(ContextKind::Suggested);
    }
    if command != Some("run") {
        match unsupported_command(&answer) {
            Some(failure) => terminal::note(failure.report().1.unwrap_or_default().trim_end()),
            None => {
                let _ = answer.print();
            }
        }
        return ExitCode::from(USAGE_EXIT);
    }
    match unsupported_by_run(&answer) {
        Some(failure) => terminal::note(failure.of_container().report().1.unwrap_or_default().trim_end()),
        None => {
            let _ = answer.print();
        }
    }
    ExitCode::from(CONTAINER_EXIT)
}

/// What to say of a flag of `docker run` that `rimg run` lacks, in place of the flag with the most similar name.
fn unsupported_by_run(answer: &clap::Error) -> Option<Failure> {
    match (answer.kind(), answer.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => run::unsupported_flag(flag),
        _ => None,
    }
}

/// What to say of a command of docker that rimg lacks, in place of the command with the most similar name.
fn unsupported_command(answer: &clap::Error) -> Option<Failure> {
    match (answer.kind(), answer.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(ContextValue::String(name))) => {
            docker_commands::unsupported(name)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use crate::commands::run::RunArgs;

    fn parsed(words: &[&str]) -> Result<Cli, String> {
        let words: Vec<OsString> = ["rimg"].iter().chain(words).map(OsString::from).collect();
        parse_from(&words).map_err(|error| error.to_string())
    }

    fn run_args(words: &[&str]) -> RunArgs {
        let words: Vec<&str> = ["run"].iter().chain(words).copied().collect();
        match parsed(&words).unwrap_or_else(|error| panic!("{words:?}: {error}")).command {
            Command::Run(args) => args,
            other => panic!("{words:?} is {other:?}"),
        }
    }

    /// The words behind the image, and whether anything before it was taken for a flag.
    fn passed_on(words: &[&str]) -> Vec<String> {
        let all: Vec<&str> = ["image"].iter().chain(words).copied().collect();
        let (plain, args) = (run_args(&["image"]), run_args(&all));
        let shown = |args: &RunArgs| {
            let text = format!("{args:?}");
            text.split(", words:").next().unwrap().to_owned()
        };
        assert_eq!(shown(&args), shown(&plain), "{words:?} changed a setting");
        assert_eq!(args.image(), "image");
        args.command().iter().map(|word| word.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn every_flag_behind_the_image_is_the_programs() {
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        let flags: Vec<&Arg> = run.get_arguments().filter(|arg| !arg.is_positional()).collect();
        assert!(flags.len() > 25, "{}", flags.len());
        for flag in flags {
            let mut words: Vec<String> = Vec::new();
            for long in flag.get_long_and_visible_aliases().into_iter().flatten() {
                words.extend([format!("--{long}"), format!("--{long}=/tmp:/x"), format!("--{long}=true")]);
            }
            if let Some(short) = flag.get_short() {
                words.extend([format!("-{short}"), format!("-{short}/tmp:/x"), format!("-{short}=1")]);
            }
            for word in &words {
                for given in [&[word.as_str(), "/tmp:/x"][..], &[word], &[word, word, "--", word]] {
                    assert_eq!(passed_on(given), given, "{given:?}");
                }
            }
        }
        for given in [
            &["--help"][..],
            &["-h"],
            &["--version"],
            &["-V"],
            &["-q"],
            &["-it"],
            &["--"],
            &["--", "-v", "x"],
            &["-x", "-e", "A=1"],
            &["plain", "-e", "A=1", "--root", "/"],
            &["--no-such-flag"],
            &["-"],
            &[""],
        ] {
            assert_eq!(passed_on(given), given);
        }
    }

    #[test]
    fn a_double_dash_ends_the_flags_once() {
        let args = run_args(&["--rm", "--", "image", "--", "-v"]);
        assert_eq!((args.image(), args.command()), ("image", &[OsString::from("--"), "-v".into()][..]));
        assert_eq!(run_args(&["--", "-image"]).image(), "-image");
        assert!(parsed(&["run", "-image"]).is_err());
        assert!(parsed(&["run", "--rm"]).is_err());
    }

    #[test]
    fn flags_of_every_command_take_true_and_false() {
        for (words, expected) in [
            (&["--rm=true", "--read-only=1", "-i=T", "-t=TRUE"][..], "true true true true"),
            (&["--rm=false", "--read-only=0", "-i=f", "-t=False"], "false false false false"),
            (&["--rm", "--rm=false", "-it"], "false false true true"),
            (&["-it=false", "--rm=false", "--rm"], "true false true false"),
            (&["-itw", "/"], "false false true true"),
            (&[], "false false false false"),
        ] {
            let all: Vec<&str> = words.iter().chain(&["image"]).copied().collect();
            let args = run_args(&all);
            let shown = [args.rm, args.read_only, args.interactive, args.tty].map(|flag| flag.to_string());
            assert_eq!(shown.join(" "), expected, "{words:?}");
        }
        let error = parsed(&["run", "--rm=maybe", "image"]).unwrap_err();
        assert!(error.contains("'maybe'") && error.contains("expected true or false"), "{error}");
        let mut command = with_valued_flags(Cli::command());
        command.build();
        for subcommand in command.get_subcommands() {
            for arg in subcommand.get_arguments() {
                assert!(!matches!(arg.get_action(), ArgAction::SetTrue), "{arg:?}");
            }
        }
        assert!(parsed(&["images", "--quiet=true"]).is_ok());
        // Flags in help have no value.
        let help = parsed(&["run", "--help"]).unwrap_err();
        assert!(help.contains("--rm") && !help.contains("--rm[="), "{help}");
    }

    #[test]
    fn the_last_of_a_flag_counts() {
        let args = run_args(&["--name", "a", "--rm", "--rm", "--name=b", "-e", "A", "-e", "B", "image"]);
        assert_eq!((args.name.as_deref(), args.env.len()), (Some("b"), 2));
    }

    #[test]
    fn h_is_the_host_name() {
        assert_eq!(run_args(&["-h", "web", "image"]).hostname.as_deref(), Some("web"));
        assert_eq!(run_args(&["-hweb", "image"]).hostname.as_deref(), Some("web"));
        assert!(parsed(&["run", "-h"]).unwrap_err().contains("a value is required"));
        assert!(parsed(&["run", "--help"]).unwrap_err().contains("Usage: rimg run"));
    }

    #[test]
    fn a_flag_of_docker_is_named_and_nothing_else_is_suggested() {
        let said = |words: &[&str]| {
            let words: Vec<OsString> = ["rimg", "run"].iter().chain(words).map(OsString::from).collect();
            unsupported_by_run(&parse_from(&words).unwrap_err()).map(|failure| failure.report().1.unwrap())
        };
        for words in [
            &["--gpus", "all", "i"][..],
            &["--security-opt=x", "i"],
            &["-c", "5", "i"],
            &["--privileged", "i"],
        ] {
            let text = said(words).unwrap_or_else(|| panic!("{words:?}"));
            let flag = words[0].split('=').next().unwrap();
            assert!(text.starts_with(&format!("error: `{flag}` is not supported by rimg run")), "{text}");
            assert!(!text.contains("-- "), "{text}");
        }
        assert!(said(&["--privileged", "i"]).unwrap().lines().count() <= 2);
        assert_eq!(said(&["--no-such-flag", "i"]), None);
        // Docker's list and ours do not overlap: a flag that has come to be supported leaves the list.
        let mut command = Cli::command();
        command.build();
        let run = command.find_subcommand("run").unwrap();
        for flag in run.get_arguments().filter_map(Arg::get_long) {
            assert!(run::unsupported_flag(&format!("--{flag}")).is_none(), "{flag}");
        }
    }
}
