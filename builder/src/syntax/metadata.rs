//! The arguments of instructions that only change the image's configuration, and of ARG.

use super::duration::Duration;
use super::flags::Flags;
use super::instruction::Arguments;
use super::text::{Piece, Word};
use super::tree::{ArgDeclaration, Command, Healthcheck, KeyValue};
use super::words;
use crate::diagnostic::Diagnostic;
use crate::suggest;

/// The rest of the line as one text: USER, WORKDIR, STOPSIGNAL, MAINTAINER.
pub(crate) fn text(arguments: Arguments<'_, '_>) -> Result<Word, Diagnostic> {
    let example = match arguments.name().as_str() {
        "USER" => "nobody",
        "WORKDIR" => "/app",
        "STOPSIGNAL" => "SIGTERM",
        _ => "name",
    };
    arguments.want_some(example)?;
    Ok(arguments.rest.word())
}

/// CMD and ENTRYPOINT.
pub(crate) fn command(arguments: Arguments<'_, '_>) -> Result<Command, Diagnostic> {
    arguments.want_some(r#"["/bin/app"]"#)?;
    if let Some(words) = arguments.json()? {
        return Ok(Command::Exec(words));
    }
    let text = arguments.rest.text();
    if text.starts_with('[') && text.ends_with(']') {
        arguments.warnings.push(
            Diagnostic::warning("JSONArgsRecommended", arguments.rest.span(), "not a valid JSON array")
                .label("this is run by the shell as it stands")
                .help("the JSON form takes double quotes and no comma at the end"),
        );
    }
    Ok(Command::Shell(arguments.rest.word()))
}

/// SHELL.
pub(crate) fn shell(arguments: Arguments<'_, '_>) -> Result<Vec<Word>, Diagnostic> {
    arguments.want_some(r#"["/bin/sh", "-c"]"#)?;
    match arguments.json()? {
        Some(words) if !words.is_empty() => Ok(words),
        _ => Err(Diagnostic::error(arguments.rest.span(), "SHELL takes the JSON form only")
            .help(r#"for example `SHELL ["/bin/bash", "-c"]`"#)),
    }
}

/// EXPOSE: words separated by blanks; variables may bring in more when they are filled in.
pub(crate) fn expose(arguments: Arguments<'_, '_>) -> Result<Vec<Word>, Diagnostic> {
    arguments.want_some("8080/tcp")?;
    Ok(to_words(words::blank_separated(arguments.rest)))
}

/// VOLUME: JSON form or words.
pub(crate) fn volume(arguments: Arguments<'_, '_>) -> Result<Vec<Word>, Diagnostic> {
    arguments.want_some("/data")?;
    let words = arguments.json()?.unwrap_or_else(|| to_words(words::blank_separated(arguments.rest)));
    match words.iter().find(|word| word.text.is_empty()) {
        Some(empty) => Err(Diagnostic::error(empty.span, "VOLUME takes no empty paths")),
        None if words.is_empty() => {
            Err(Diagnostic::error(arguments.rest.span(), "VOLUME wants at least one path"))
        }
        None => Ok(words),
    }
}

fn to_words(pieces: Vec<Piece<'_>>) -> Vec<Word> {
    pieces.into_iter().map(|piece| piece.word()).collect()
}

/// ARG: `name[=default]…`
pub(crate) fn arg(arguments: Arguments<'_, '_>) -> Result<Vec<ArgDeclaration>, Diagnostic> {
    arguments.want_some("VERSION=1.0")?;
    let mut declarations = Vec::new();
    for piece in words::quoted_words(arguments.rest, arguments.escape) {
        let text = piece.text();
        let equals = text.find('=');
        let name = piece.part(0, equals.unwrap_or(text.len()));
        if name.is_empty() {
            return Err(Diagnostic::error(piece.span(), "ARG wants a name before `=`")
                .help("write `ARG NAME=default`, without blanks around `=`"));
        }
        let default = equals.map(|at| piece.from(at + 1).word());
        declarations.push(ArgDeclaration { name: name.word(), default });
    }
    Ok(declarations)
}

/// ENV and LABEL: `key=value…`, or the legacy form `key value with blanks`.
pub(crate) fn key_values(arguments: Arguments<'_, '_>) -> Result<Vec<KeyValue>, Diagnostic> {
    let name = arguments.name();
    arguments.want_some("key=value")?;
    let pieces = words::quoted_words(arguments.rest, arguments.escape);
    if !pieces.first().is_some_and(|piece| piece.text().contains('=')) {
        return legacy(arguments, &name);
    }
    let mut pairs = Vec::new();
    for piece in pieces {
        let Some(equals) = piece.text().find('=') else {
            return Err(Diagnostic::error(piece.span(), format!("{name} wants `key=value`"))
                .label("no `=` here")
                .help("put a value that holds blanks between quotes"));
        };
        if equals == 0 {
            return Err(Diagnostic::error(piece.span(), format!("{name} wants a key before `=`"))
                .help("write `key=value`, without blanks around `=`"));
        }
        pairs.push(KeyValue { key: piece.part(0, equals).word(), value: piece.from(equals + 1).word() });
    }
    Ok(pairs)
}

fn legacy(arguments: Arguments<'_, '_>, name: &str) -> Result<Vec<KeyValue>, Diagnostic> {
    let (key, value) = arguments.rest.split_word();
    if value.is_empty() {
        return Err(Diagnostic::error(key.span(), format!("{name} wants a value"))
            .help(format!("write `{name} {}=value`", key.text())));
    }
    arguments.warnings.push(
        Diagnostic::warning("LegacyKeyValueFormat", arguments.rest.span(), format!("{name} without `=`"))
            .help(format!("write `{name} {}=\"…\"`", key.text())),
    );
    Ok(vec![KeyValue { key: key.word(), value: value.word() }])
}

/// HEALTHCHECK: `NONE`, or options and `CMD command`.
pub(crate) fn healthcheck(arguments: Arguments<'_, '_>) -> Result<Healthcheck, Diagnostic> {
    let [interval, timeout, start_period, start_interval] =
        ["interval", "timeout", "start-period", "start-interval"].map(|name| duration(arguments.flags, name));
    let retries = retries(arguments.flags);
    arguments.want_some("CMD curl -f http://localhost/")?;
    let (kind, rest) = arguments.rest.split_word();
    match kind.text().to_uppercase().as_str() {
        "NONE" if rest.is_empty() => Ok(Healthcheck::None),
        "NONE" => Err(Diagnostic::error(rest.span(), "HEALTHCHECK NONE takes no arguments")),
        "CMD" if rest.is_empty() => Err(Diagnostic::error(kind.span(), "HEALTHCHECK CMD wants a command")),
        "CMD" => {
            let command = match (Arguments { rest, ..arguments }).json()? {
                Some(words) => Command::Exec(words),
                None => Command::Shell(rest.word()),
            };
            Ok(Healthcheck::Command { command, interval, timeout, start_period, start_interval, retries })
        }
        _ => Err(Diagnostic::error(kind.span(), format!("HEALTHCHECK knows no `{}`", kind.text()))
            .did_you_mean(suggest::nearest(kind.text(), ["NONE", "CMD"]).or(Some("CMD")))),
    }
}

/// The shortest time between probes the engines accept is a millisecond; zero means "the default".
const DURATION_NANOSECONDS_MIN: i64 = 1_000_000;

fn duration(flags: &mut Flags, name: &'static str) -> Option<Duration> {
    let value = flags.optional(name)?;
    match Duration::parse(&value.text) {
        Ok(duration) if duration.nanoseconds() == 0 || duration.nanoseconds() >= DURATION_NANOSECONDS_MIN => {
            return Some(duration);
        }
        Ok(_) => flags.errors.push(Diagnostic::error(value.span, format!("`--{name}` is shorter than 1ms"))),
        Err(error) => flags.errors.push(Diagnostic::error(value.span, error.to_string())),
    }
    None
}

fn retries(flags: &mut Flags) -> Option<u32> {
    let value = flags.optional("retries")?;
    let retries = value.text.parse::<u32>().ok().filter(|retries| i32::try_from(*retries).is_ok());
    if retries.is_none() {
        let message = format!("invalid value `{}` for `--retries`", value.text);
        flags.errors.push(Diagnostic::error(value.span, message).help("write a whole number, at least 0"));
    }
    retries
}
