//! The syntax tree: every instruction of a Buildfile with the places of its parts, unexpanded.

use super::directives::Directives;
use super::duration::Duration;
use super::heredoc::Heredoc;
use super::mount::MountText;
pub use super::text::Word;
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// A parsed Buildfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buildfile {
    /// The parser directives at the top.
    pub directives: Directives,
    /// The escape character in force.
    pub escape: char,
    /// All instructions, in order.
    pub instructions: Vec<Instruction>,
    /// What is doubtful, without what `# check=skip=` silences.
    pub warnings: Vec<Diagnostic>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The whole instruction, with continuations and here-documents.
    pub span: Span,
    /// The instruction's name.
    pub keyword: Span,
    /// The text with continuations joined and comments removed, without here-document bodies.
    pub text: String,
    /// What it says.
    pub kind: InstructionKind,
}

/// The instructions, each with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstructionKind {
    /// `ADD [flags] source… destination`
    Add(Add),
    /// `ARG name[=default]…`
    Arg(Vec<ArgDeclaration>),
    /// `CMD`
    Cmd(Command),
    /// `COPY [flags] source… destination`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `ENV key=value…`
    Env(Vec<KeyValue>),
    /// `EXPOSE port…`
    Expose(Vec<Word>),
    /// `FROM [--platform=] image [AS name]`
    From(From),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL key=value…`
    Label(Vec<KeyValue>),
    /// `MAINTAINER name`
    Maintainer(Word),
    /// `ONBUILD instruction`
    Onbuild(Onbuild),
    /// `RUN [flags] command`
    Run(Run),
    /// `SHELL ["…"]`
    Shell(Vec<Word>),
    /// `STOPSIGNAL signal`
    Stopsignal(Word),
    /// `USER user[:group]`
    User(Word),
    /// `VOLUME path…`
    Volume(Vec<Word>),
    /// `WORKDIR path`
    Workdir(Word),
}

impl InstructionKind {
    /// The name of the instruction, in capitals.
    pub fn name(&self) -> &'static str {
        match self {
            InstructionKind::Add(_) => "ADD",
            InstructionKind::Arg(_) => "ARG",
            InstructionKind::Cmd(_) => "CMD",
            InstructionKind::Copy(_) => "COPY",
            InstructionKind::Entrypoint(_) => "ENTRYPOINT",
            InstructionKind::Env(_) => "ENV",
            InstructionKind::Expose(_) => "EXPOSE",
            InstructionKind::From(_) => "FROM",
            InstructionKind::Healthcheck(_) => "HEALTHCHECK",
            InstructionKind::Label(_) => "LABEL",
            InstructionKind::Maintainer(_) => "MAINTAINER",
            InstructionKind::Onbuild(_) => "ONBUILD",
            InstructionKind::Run(_) => "RUN",
            InstructionKind::Shell(_) => "SHELL",
            InstructionKind::Stopsignal(_) => "STOPSIGNAL",
            InstructionKind::User(_) => "USER",
            InstructionKind::Volume(_) => "VOLUME",
            InstructionKind::Workdir(_) => "WORKDIR",
        }
    }
}

/// All instruction names, in capitals.
pub const INSTRUCTION_NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// `key=value`; of the legacy form `key value`, the rest of the line is the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key; may hold variables.
    pub key: Word,
    /// The value, with quotes and variables as written.
    pub value: Word,
}

/// `name[=default]` of ARG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgDeclaration {
    /// The name.
    pub name: Word,
    /// The default, unexpanded; `None` for a bare name.
    pub default: Option<Word>,
}

/// A command in either form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The JSON form: run as it is.
    Exec(Vec<Word>),
    /// The shell form: one text for the shell.
    Shell(Word),
}

/// A flag whose only values are true and false, with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The value.
    pub on: bool,
    /// Where the flag stands.
    pub span: Span,
}

/// What COPY and ADD have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// The sources, at least one.
    pub sources: Vec<TransferSource>,
    /// The destination.
    pub destination: Word,
    /// `--chown=user[:group]`
    pub chown: Option<Word>,
    /// `--chmod=mode`, octal or symbolic.
    pub chmod: Option<Word>,
    /// `--link[=bool]`
    pub link: Option<Switch>,
    /// `--exclude=pattern`, any number.
    pub excludes: Vec<Word>,
}

/// One source of COPY or ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferSource {
    /// A path, glob, URL or git reference.
    Path(Word),
    /// A file whose content stands in the Buildfile.
    Heredoc(Heredoc),
}

/// COPY.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Sources, destination and the flags shared with ADD.
    pub transfer: Transfer,
    /// `--from=stage|image|context`
    pub from: Option<Word>,
    /// `--parents[=bool]`
    pub parents: Option<Switch>,
}

/// ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    /// Sources, destination and the flags shared with COPY.
    pub transfer: Transfer,
    /// `--checksum=digest`
    pub checksum: Option<Word>,
    /// `--keep-git-dir[=bool]`
    pub keep_git_dir: Option<Switch>,
    /// `--unpack[=bool]`
    pub unpack: Option<Switch>,
}

/// FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// `--platform=`
    pub platform: Option<Word>,
    /// Image, stage or path; may hold global variables.
    pub base: Word,
    /// The stage's name as written.
    pub name: Option<Word>,
}

/// HEALTHCHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK [options] CMD command`
    Command {
        /// The probe.
        command: Command,
        /// `--interval`
        interval: Option<Duration>,
        /// `--timeout`
        timeout: Option<Duration>,
        /// `--start-period`
        start_period: Option<Duration>,
        /// `--start-interval`
        start_interval: Option<Duration>,
        /// `--retries`
        retries: Option<u32>,
    },
}

/// ONBUILD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Onbuild {
    /// The trigger as it goes into the image's config; here-documents are written out.
    pub trigger: Word,
    /// The trigger, parsed.
    pub instruction: Box<Instruction>,
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `--mount=`, any number.
    pub mounts: Vec<MountText>,
    /// `--network=default|none|host`
    pub network: Option<Word>,
    /// `--security=sandbox|insecure`
    pub security: Option<Word>,
    /// `--device=name[,required]`, any number.
    pub devices: Vec<Word>,
    /// The command; with here-documents always the shell form.
    pub command: Command,
    /// The here-documents the command refers to.
    pub heredocs: Vec<Heredoc>,
}
