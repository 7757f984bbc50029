//! Instructions in their final form: variables filled in, values checked and typed. The engine executes these.

use crate::source::Span;
use crate::syntax::{Duration, Mount, Switch, Word};

/// An instruction in its final form. FROM has none: it is [`super::Base`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expanded {
    /// ADD
    Add(ExpandedAdd),
    /// ARG: names with the values that are in force from here on.
    Arg(Vec<ArgValue>),
    /// CMD
    Cmd(ExpandedCommand),
    /// COPY
    Copy(ExpandedCopy),
    /// ENTRYPOINT
    Entrypoint(ExpandedCommand),
    /// ENV: pairs in the order of the text.
    Env(Vec<(String, String)>),
    /// EXPOSE: `port/protocol`, in the order of the history, ranges written out.
    Expose(Vec<String>),
    /// HEALTHCHECK
    Healthcheck(ExpandedHealthcheck),
    /// LABEL: pairs in the order of the text.
    Label(Vec<(String, String)>),
    /// MAINTAINER: the author.
    Maintainer(String),
    /// ONBUILD: the text for `config.OnBuild`; variables stay as they are.
    Onbuild(String),
    /// RUN
    Run(ExpandedRun),
    /// SHELL
    Shell(Vec<String>),
    /// STOPSIGNAL
    Stopsignal(String),
    /// USER: `user[:group]`; empty for root.
    User(String),
    /// VOLUME: paths as written.
    Volume(Vec<String>),
    /// WORKDIR: the path as written, absolute or relative to the previous one; empty for the previous one itself.
    Workdir(String),
}

/// One ARG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgValue {
    /// The name.
    pub name: String,
    /// The value, unless nobody gives one.
    pub value: Option<String>,
}

/// A command in either form. The shell form still wants the words of SHELL before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpandedCommand {
    /// Run as it is.
    Exec(Vec<String>),
    /// One text for the shell.
    Shell(String),
}

/// What COPY and ADD have in common. The spans are those of the unexpanded words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandedTransfer {
    /// The sources, at least one.
    pub sources: Vec<ExpandedSource>,
    /// The destination; a `/` at the end means a directory, and nothing at all the working directory.
    pub destination: Word,
    /// `user[:group]`, names or numbers.
    pub chown: Option<Word>,
    /// Octal or symbolic mode, checked.
    pub chmod: Option<Word>,
    /// `--link`, if given: the layer does not depend on what is below it.
    pub link: Option<Switch>,
    /// Patterns for [`crate::ignore::IgnorePatterns::from_patterns`].
    pub excludes: Vec<Word>,
}

/// One source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpandedSource {
    /// A path or glob (of ADD also a URL or git reference).
    Path(Word),
    /// A file made of a here-document; mode 0644.
    File {
        /// Its name if the destination is a directory.
        name: String,
        /// Its content.
        content: String,
        /// Where `<<NAME` stands.
        span: Span,
    },
}

/// COPY. Where it copies from is [`super::Step::source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandedCopy {
    /// Sources, destination and the flags shared with ADD.
    pub transfer: ExpandedTransfer,
    /// `--parents`, if given.
    pub parents: Option<Switch>,
}

/// ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandedAdd {
    /// Sources, destination and the flags shared with COPY.
    pub transfer: ExpandedTransfer,
    /// `--checksum`, unchecked.
    pub checksum: Option<Word>,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<Switch>,
    /// `--unpack`, if given; without it local archives are unpacked and remote ones are not.
    pub unpack: Option<Switch>,
}

/// RUN. Where its mounts come from is [`super::Step::mount_sources`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandedRun {
    /// The mounts, in order.
    pub mounts: Vec<Mount>,
    /// `default` (or not given), `none` or `host`; checked.
    pub network: Option<Word>,
    /// `sandbox` (or not given) or `insecure`; checked.
    pub security: Option<Word>,
    /// Devices.
    pub devices: Vec<Word>,
    /// The command.
    pub command: RunCommand,
}

/// What RUN runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunCommand {
    /// Run as it is.
    Exec(Vec<String>),
    /// One text for the shell; here-documents are written out in it.
    Shell(String),
    /// The body of a single here-document that begins with `#!`: an executable file of its own.
    Script {
        /// The name of the here-document.
        name: String,
        /// The file's content.
        content: String,
    },
}

/// HEALTHCHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpandedHealthcheck {
    /// `NONE`: the inherited check is switched off.
    None,
    /// A probe; what is not given stays at the runtime's default.
    Command {
        /// The probe.
        command: ExpandedCommand,
        /// Time between probes.
        interval: Option<Duration>,
        /// Time a probe may take.
        timeout: Option<Duration>,
        /// Time in which failures do not count.
        start_period: Option<Duration>,
        /// Time between probes during the start period.
        start_interval: Option<Duration>,
        /// Failures in a row that make the container unhealthy.
        retries: Option<u32>,
    },
}
