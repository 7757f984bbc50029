//! `COPY` and `ADD`: flags, sources and destination.

use super::heredoc::{self, Heredoc};
use super::instruction::Arguments;
use super::text::{Piece, Word};
use super::tree::{Add, Copy, Transfer, TransferSource};
use super::words;
use crate::diagnostic::Diagnostic;

pub(crate) fn copy(mut arguments: Arguments<'_, '_>) -> Result<Copy, Diagnostic> {
    let from = arguments.flags.optional("from");
    let parents = arguments.flags.switch("parents");
    Ok(Copy { from, parents, transfer: transfer(&mut arguments)? })
}

pub(crate) fn add(mut arguments: Arguments<'_, '_>) -> Result<Add, Diagnostic> {
    let checksum = arguments.flags.optional("checksum");
    let keep_git_dir = arguments.flags.switch("keep-git-dir");
    let unpack = arguments.flags.switch("unpack");
    Ok(Add { checksum, keep_git_dir, unpack, transfer: transfer(&mut arguments)? })
}

fn transfer(arguments: &mut Arguments<'_, '_>) -> Result<Transfer, Diagnostic> {
    let chown = arguments.flags.optional("chown");
    let chmod = arguments.flags.optional("chmod");
    let link = arguments.flags.switch("link");
    let excludes = arguments.flags.optional_list("exclude");
    if let Some(mode) = chmod.as_ref().filter(|mode| !mode.has_variables()) {
        check_mode(mode)?;
    }
    let name = arguments.name();
    let words = words(arguments)?;
    let Some((destination, sources)) = words.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        return Err(Diagnostic::error(
            arguments.keyword.span(),
            format!("{name} wants at least one source and a destination"),
        )
        .help(format!("for example `{name} src/ /app/`")));
    };
    let destination = match destination {
        Argument::Word(word) => word.clone(),
        Argument::Heredoc(heredoc) => {
            return Err(Diagnostic::error(heredoc.span, "a here-document cannot be the destination")
                .help(format!("write `{name} <<{} /path`", heredoc.name)));
        }
    };
    let source = |argument: &Argument| match argument {
        Argument::Word(word) => TransferSource::Path(word.clone()),
        Argument::Heredoc(heredoc) => TransferSource::Heredoc(heredoc.clone()),
    };
    let sources: Vec<TransferSource> = sources.iter().map(source).collect();
    check_directory(&name, &sources, &destination)?;
    Ok(Transfer { sources, destination, chown, chmod, link, excludes })
}

/// Several sources want a directory as their destination.
fn check_directory(name: &str, sources: &[TransferSource], destination: &Word) -> Result<(), Diagnostic> {
    let text = destination.text.as_str();
    let directory =
        text.ends_with(['/', '\\', '"', '\'']) || text == "." || text == ".." || text.ends_with("/.");
    if sources.len() < 2 || directory || destination.has_variables() {
        return Ok(());
    }
    let error = Diagnostic::error(destination.span, format!("{name} with several sources wants a directory"))
        .label("does not end in `/`");
    let quoted = |source: &TransferSource| matches!(source, TransferSource::Path(path) if path.text.contains(['"', '\'']));
    let words = sources.iter().filter_map(|source| match source {
        TransferSource::Path(path) => Some(path),
        TransferSource::Heredoc(_) => None,
    });
    if let Some(comment) = words.chain([destination]).find(|word| word.text.starts_with('#')) {
        return Err(Diagnostic::error(comment.span, "`#` begins no comment here").help(super::COMMENT_HELP));
    }
    Err(match sources.iter().any(quoted) {
        true => error.help(format!("paths with blanks want the JSON form: `{name} [\"a b\", \"/c d/\"]`")),
        false => error.help(format!("write `{text}/`")),
    })
}

enum Argument {
    Word(Word),
    Heredoc(Heredoc),
}

fn words(arguments: &mut Arguments<'_, '_>) -> Result<Vec<Argument>, Diagnostic> {
    if let Some(words) = arguments.json()? {
        return Ok(words.into_iter().map(Argument::Word).collect());
    }
    let mut heredocs = std::mem::take(&mut arguments.heredocs).into_iter();
    let escape = arguments.escape;
    let argument = |piece: Piece<'_>| match heredoc::marker(piece, escape).and_then(|_| heredocs.next()) {
        Some(heredoc) => Argument::Heredoc(heredoc),
        None => Argument::Word(piece.word()),
    };
    Ok(words::blank_separated(arguments.rest).into_iter().map(argument).collect())
}

/// A mode is octal, or a list of `[ugoa]*[-+=][rwxXst]*`.
pub(crate) fn check_mode(mode: &Word) -> Result<(), Diagnostic> {
    let octal = |text: &str| u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777);
    let clause = |text: &str| {
        let actions = text.trim_start_matches(['u', 'g', 'o', 'a']);
        actions.starts_with(['-', '+', '=']) && actions.chars().all(|c| "-+=rwxXstugo".contains(c))
    };
    let text = mode.text.as_str();
    let numeric = text.starts_with(|c: char| c.is_ascii_digit());
    if (numeric && octal(text)) || (!numeric && !text.is_empty() && text.split(',').all(clause)) {
        return Ok(());
    }
    Err(Diagnostic::error(mode.span, format!("invalid mode `{text}` for `--chmod`"))
        .help("write an octal mode such as `0755` or a symbolic one such as `u=rwX,go=rX`"))
}
