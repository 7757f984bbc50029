//! `RUN [--mount] [--network] [--security] [--device] command`.

use super::instruction::Arguments;
use super::mount::MountText;
use super::text::Word;
use super::tree::{Command, Run};
use crate::diagnostic::Diagnostic;
use crate::suggest;

pub(crate) fn run(arguments: Arguments<'_, '_>) -> Result<Run, Diagnostic> {
    let mounts = mounts(&arguments.flags.list("mount"))?;
    let network = arguments.flags.text("network");
    let security = arguments.flags.text("security");
    let devices = arguments.flags.list("device").into_iter().map(|(value, _)| value).collect();
    check_choice("network", network.as_ref(), &["default", "none", "host"])?;
    check_choice("security", security.as_ref(), &["sandbox", "insecure"])?;
    arguments.want_some("apk add curl")?;
    let command = match arguments.json()? {
        Some(words) if arguments.heredocs.is_empty() => {
            if words.is_empty() {
                return Err(Diagnostic::error(arguments.rest.span(), "RUN wants a command"));
            }
            Command::Exec(words)
        }
        _ => Command::Shell(arguments.rest.word()),
    };
    Ok(Run { mounts, network, security, devices, command, heredocs: arguments.heredocs })
}

/// Mounts without variables are checked at once; the others when their values are known.
fn mounts(flags: &[(Word, crate::source::Span)]) -> Result<Vec<MountText>, Diagnostic> {
    let mut mounts = Vec::new();
    for (value, span) in flags {
        let mount = MountText::parse(value, *span)?;
        if !mount.has_variables() {
            mount.resolve(&mut |word| Ok(word.text.clone()))?;
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// An error if the flag's value, free of variables, is none of `choices`.
pub(crate) fn check_choice(flag: &str, value: Option<&Word>, choices: &[&str]) -> Result<(), Diagnostic> {
    let Some(value) = value.filter(|value| !value.has_variables()) else { return Ok(()) };
    if choices.contains(&value.text.as_str()) {
        return Ok(());
    }
    let error = Diagnostic::error(value.span, format!("invalid value `{}` for `--{flag}`", value.text));
    Err(match suggest::nearest(&value.text, choices.iter().copied()) {
        Some(near) => error.did_you_mean(Some(near)),
        None => error.help(format!("`--{flag}` is one of {}", choices.join(", "))),
    })
}
