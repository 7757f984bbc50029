//! [`Failure`]: how a command ends badly, and the one place where kinds become exit codes.

use std::fmt::Display;
use std::io;

use rimg_formats::store::StoreError;
use rustix::io::Errno;

/// What went wrong, for whom, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    /// The message, the outermost sentence first; without a final period.
    message: String,
    /// What to do next, one sentence each.
    hints: Vec<String>,
}

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The command could not do what was asked.
    Command,
    /// The command line was wrong.
    Usage,
    /// The container could not be set up (docker's 125).
    Container,
    /// Whoever read our output has gone: nothing is wrong.
    BrokenPipe,
    /// The message was printed already (by a build step or the process that ran).
    Told(u8),
}

/// The exit code of a wrong command line, as clap gives it.
pub(crate) const USAGE_EXIT: u8 = 2;
/// The exit code of `docker run` when the container could not be made.
pub(crate) const CONTAINER_EXIT: u8 = 125;

impl Failure {
    /// A command that could not do what was asked.
    pub(crate) fn new(message: impl Display) -> Failure {
        Failure { kind: Kind::Command, message: message.to_string(), hints: Vec::new() }
    }

    /// A library's error, with its whole chain of causes, and what is known to help.
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Many errors repeat their cause in their own words; say each thing once.
            let text = inner.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = inner.source();
        }
        let hint = next_act(error).or_else(|| room(&message));
        Failure { hints: hint.map(str::to_owned).into_iter().collect(), ..Failure::new(message) }
    }

    /// A command line that makes no sense.
    pub(crate) fn usage(message: impl Display) -> Failure {
        Failure { kind: Kind::Usage, ..Failure::new(message) }
    }

    /// A failure whose message people have seen already.
    pub(crate) fn told(exit_code: u8) -> Failure {
        Failure { kind: Kind::Told(exit_code), ..Failure::new("") }
    }

    /// The same failure, of a container that could not be set up. A wrong command line is one of them, as for docker:
    /// 2 would be taken for the exit code of the container's process.
    pub(crate) fn of_container(mut self) -> Failure {
        if matches!(self.kind, Kind::Command | Kind::Usage) {
            self.kind = Kind::Container;
        }
        self
    }

    /// The message, for those who tell it in their own way.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do next.
    pub(crate) fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The same failure with one more thing to try.
    pub(crate) fn hint(mut self, hint: impl Display) -> Failure {
        self.hints.push(hint.to_string());
        self
    }

    /// The same failure, of writing below `path`: the disk that is full is that one, not the store's.
    pub(crate) fn on_disk_of(mut self, path: &std::path::Path) -> Failure {
        for hint in self.hints.iter_mut().filter(|hint| hint.as_str() == ROOM) {
            *hint = format!(
                "the disk that holds {} is full: free some of it, or write elsewhere",
                path.display()
            );
        }
        self
    }

    /// The same failure told from further out: `context: message`.
    pub(crate) fn context(mut self, context: impl Display) -> Failure {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The same failure, whose message names an operation: `failed to …`.
    pub(crate) fn of_operation(mut self) -> Failure {
        self.message = format!("failed to {}", self.message);
        self
    }

    /// The exit code, and the text for standard error if there is any left to say.
    pub(crate) fn report(&self) -> (u8, Option<String>) {
        let code = match self.kind {
            Kind::BrokenPipe => return (0, None),
            Kind::Told(code) => return (code, None),
            Kind::Command => 1,
            Kind::Usage => USAGE_EXIT,
            Kind::Container => CONTAINER_EXIT,
        };
        let mut text = format!("error: {}\n", self.message);
        for hint in &self.hints {
            text.push_str(&format!("  hint: {hint}\n"));
        }
        (code, Some(text))
    }
}

/// Every library error becomes a command's failure with its whole chain of causes, and what is known to help.
impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::of(&error)
    }
}

/// What to do when a disk is full, for a message that does not say. Told by the kernel's words, which all messages of
/// such failures carry, wherever they come from: some were text before they got here.
pub(crate) fn room(message: &str) -> Option<&'static str> {
    let full = [Errno::NOSPC, Errno::DQUOT].map(|errno| format!("(os error {})", errno.raw_os_error()));
    let silent = !message.contains("rimg prune") && full.iter().any(|words| message.contains(words));
    silent.then_some(ROOM)
}

/// What to do when the store's disk is full.
const ROOM: &str = "`rimg prune` frees space in the store; `--root DIR` names another place for it";

/// What to do about an error that any command may meet. Messages that say it themselves get no hint.
fn next_act(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(StoreError::ImageUnknown(_)) = inner.downcast_ref() {
            return Some("`rimg images` lists what is here, `rimg pull` fetches an image from a registry");
        }
        cause = inner.source();
    }
    None
}

/// What printing to standard output can end in.
pub(crate) fn printing(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure { kind: Kind::BrokenPipe, ..Failure::new("") },
        _ => Failure::new(format!("failed to write to standard output: {error}")),
    }
}

/// Adds what was being done to a failure.
pub(crate) trait Context<T> {
    /// `context: message`.
    fn context(self, context: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, context: impl Display) -> Result<T, Failure> {
        self.map_err(|error| error.into().context(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_map_to_exit_codes() {
        assert_eq!(Failure::new("x").report().0, 1);
        assert_eq!(Failure::usage("x").report().0, 2);
        assert_eq!(Failure::new("x").of_container().report().0, 125);
        assert_eq!(Failure::usage("x").of_container().report().0, 125);
        assert_eq!(Failure::told(7).report(), (7, None));
        let pipe = printing(io::ErrorKind::BrokenPipe.into());
        assert_eq!(pipe.report(), (0, None));
    }

    #[test]
    fn a_full_disk_is_explained_once_and_wherever_it_comes_from() {
        let full = io::Error::from(Errno::NOSPC);
        let (_, text) = Failure::from(full).report();
        assert!(text.unwrap_or_default().contains("hint: `rimg prune`"));
        let (_, text) = Failure::from(io::Error::from(Errno::NOSPC)).on_disk_of("out".as_ref()).report();
        let text = text.unwrap_or_default();
        assert!(text.contains("the disk that holds out is full") && !text.contains("prune"), "{text}");
        assert!(room("failed to unpack: Disk quota exceeded (os error 122)").is_some());
        assert!(room("no space left to write x: free some with `rimg prune` (os error 28)").is_none());
        assert!(room("something else (os error 2)").is_none());
    }

    #[test]
    fn a_message_carries_its_context_and_hints() {
        let failure = Failure::new("no such file").context("failed to read `x`").hint("create it");
        let (_, text) = failure.report();
        assert_eq!(text.as_deref(), Some("error: failed to read `x`: no such file\n  hint: create it\n"));
    }
}
