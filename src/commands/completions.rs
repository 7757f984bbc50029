//! `rimg completions`: what a shell needs to complete rimg's command lines.

use clap::CommandFactory;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::print;

/// Flags of `rimg completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rimg completions bash > ~/.local/share/bash-completion/completions/rimg")]
pub(crate) struct CompletionsArgs {
    /// The shell to write for
    shell: clap_complete::Shell,
}

pub(crate) fn run(_: &Session, args: CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rimg", &mut script);
    print(&String::from_utf8_lossy(&script))
}
