//! Instructions that only say something: they change the configuration and add a line of history, and no files.
//!
//! The lines are worded as BuildKit 0.32 words them.

use rimg_formats::config::Healthcheck;
use serde_json::{Map, Value};

use crate::assemble::{ImageState, quoted_list};
use crate::plan::{Expanded, ExpandedCommand, ExpandedHealthcheck};

/// Applies an instruction to the image; those that work on files are left to others.
pub(crate) fn apply(image: &mut ImageState, instruction: &Expanded) {
    let created_by = match instruction {
        Expanded::Add(_) | Expanded::Copy(_) | Expanded::Run(_) | Expanded::Workdir(_) => return,
        Expanded::Arg(arguments) => {
            let texts = arguments.iter().map(|argument| match &argument.value {
                Some(value) => format!("{}={value}", argument.name),
                None => argument.name.clone(),
            });
            format!("ARG {}", texts.collect::<Vec<_>>().join(" "))
        }
        Expanded::Env(pairs) => {
            pairs.iter().for_each(|(name, value)| image.set_variable(name, value));
            format!("ENV {}", pair_texts(pairs))
        }
        Expanded::Label(pairs) => {
            image.config.config.labels.extend(pairs.iter().cloned());
            format!("LABEL {}", pair_texts(pairs))
        }
        Expanded::Cmd(command) => {
            let words = command_words(image, command);
            let text = format!("CMD {}", quoted_list(&words));
            image.set_cmd(words);
            text
        }
        Expanded::Entrypoint(command) => {
            let words = command_words(image, command);
            let text = format!("ENTRYPOINT {}", quoted_list(&words));
            image.set_entrypoint(words);
            text
        }
        Expanded::Expose(ports) => {
            image.config.config.exposed_ports.extend(ports.iter().map(|port| (port.clone(), empty_object())));
            format!("EXPOSE [{}]", ports.join(" "))
        }
        Expanded::Volume(paths) => {
            image.config.config.volumes.extend(paths.iter().map(|path| (path.clone(), empty_object())));
            format!("VOLUME [{}]", paths.join(" "))
        }
        Expanded::User(user) => {
            image.config.config.user.clone_from(user);
            format!("USER {user}")
        }
        Expanded::Shell(words) => {
            image.config.config.shell.clone_from(words);
            format!("SHELL [{}]", words.join(" "))
        }
        Expanded::Stopsignal(signal) => {
            image.config.config.stop_signal = Some(signal.clone());
            format!("STOPSIGNAL {signal}")
        }
        Expanded::Maintainer(author) => {
            image.config.author = Some(author.clone());
            format!("MAINTAINER {author}")
        }
        // It has done nothing yet, so it has no line.
        Expanded::Onbuild(trigger) => return image.config.config.on_build.push(trigger.clone()),
        Expanded::Healthcheck(check) => {
            let check = healthcheck(image, check);
            let text = healthcheck_text(&check);
            image.set_healthcheck(check);
            text
        }
    };
    image.add_metadata(created_by);
}

fn pair_texts(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

/// A check as Go prints a structure (`%+v`).
fn healthcheck_text(check: &Healthcheck) -> String {
    format!(
        "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        check.test.join(" "),
        go_duration(check.interval),
        go_duration(check.timeout),
        go_duration(check.start_period),
        go_duration(check.start_interval),
        check.retries,
    )
}

/// A non-negative duration as Go prints it: `0s`, `1.5ms`, `1m30s`, `1h0m0s`.
fn go_duration(nanoseconds: i64) -> String {
    const SECOND: i64 = 1_000_000_000;
    let fraction = |unit: i64, name: &str| {
        let digits = unit.ilog10() as usize;
        let text = format!("{}.{:0digits$}", nanoseconds % (60 * SECOND) / unit, nanoseconds % unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match nanoseconds {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanoseconds}ns"),
        1_000..1_000_000 => fraction(1_000, "µs"),
        1_000_000..SECOND => fraction(1_000_000, "ms"),
        _ => {
            let minutes = nanoseconds / (60 * SECOND);
            let seconds = fraction(SECOND, "s");
            match (minutes / 60, minutes % 60) {
                (0, 0) => seconds,
                (0, minutes) => format!("{minutes}m{seconds}"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

/// Go's empty struct, as ports and volumes carry it.
fn empty_object() -> Value {
    Value::Object(Map::new())
}

/// The words of a command, the shell's in front of the shell form.
pub(crate) fn command_words(image: &ImageState, command: &ExpandedCommand) -> Vec<String> {
    match command {
        ExpandedCommand::Exec(words) => words.clone(),
        ExpandedCommand::Shell(text) => {
            let mut words = image.shell();
            words.push(text.clone());
            words
        }
    }
}

/// A shell form is marked `CMD-SHELL` instead of naming the shell: whoever runs the check knows the image's.
fn healthcheck(image: &ImageState, check: &ExpandedHealthcheck) -> Healthcheck {
    let ExpandedHealthcheck::Command { command, interval, timeout, start_period, start_interval, retries } =
        check
    else {
        return Healthcheck { test: vec!["NONE".to_owned()], ..Healthcheck::default() };
    };
    let test = match command {
        ExpandedCommand::Shell(text) => vec!["CMD-SHELL".to_owned(), text.clone()],
        exec @ ExpandedCommand::Exec(_) => {
            let words = command_words(image, exec);
            std::iter::once("CMD".to_owned()).chain(words).collect()
        }
    };
    let nanoseconds =
        |time: &Option<crate::syntax::Duration>| time.as_ref().map_or(0, |time| time.nanoseconds());
    Healthcheck {
        test,
        interval: nanoseconds(interval),
        timeout: nanoseconds(timeout),
        start_period: nanoseconds(start_period),
        start_interval: nanoseconds(start_interval),
        retries: retries.map_or(0, i64::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let table = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (100_000_000, "100ms"),
            (1_010_000, "1.01ms"),
            (5_000_000_000, "5s"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (5_400_250_000_000, "1h30m0.25s"),
        ];
        for (nanoseconds, text) in table {
            assert_eq!(go_duration(nanoseconds), text);
        }
    }
}
