//! The command line: global flags and the list of commands. Each command's own flags stand in its file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;

/// Build, ship and run OCI images: one binary, no daemon, no root.
#[derive(Debug, Parser)]
#[command(name = "rimg", version, propagate_version = false, max_term_width = 100, args_override_self = true)]
#[command(
    after_help = "Run `rimg COMMAND --help` for the flags of a command, and `rimg doctor` to see what the host allows."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Globals {
    /// Where images, caches and containers are kept [env: RIMG_ROOT] [default: /var/lib/rimg for root, else
    /// $XDG_DATA_HOME/rimg]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) root: Option<PathBuf>,
    /// How lists and details are printed: table for people, json for programs
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "FORMAT",
        help_heading = "Global options"
    )]
    pub(crate) format: Format,
}

/// How lists and details are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// What rimg can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Buildfile (or Dockerfile)
    Build(commands::build::BuildArgs),
    /// Run a command in a new container
    Run(commands::run::RunArgs),
    /// Upload an image to a registry
    Push(commands::push::PushArgs),
    /// Download an image from a registry
    Pull(commands::pull::PullArgs),
    /// Serve the local images as an OCI registry
    Serve(commands::serve::ServeArgs),
    /// List images
    Images(commands::images::ImagesArgs),
    /// Give an image another name
    Tag(commands::tag::TagArgs),
    /// Remove images
    Rmi(commands::rmi::RmiArgs),
    /// Show everything about images, as JSON
    Inspect(commands::inspect::InspectArgs),
    /// Show how an image was made
    History(commands::history::HistoryArgs),
    /// List files of an image
    Ls(commands::ls::LsArgs),
    /// Print a file of an image
    Cat(commands::cat::CatArgs),
    /// Write images to a tar archive
    Save(commands::save::SaveArgs),
    /// Read images from a tar archive or an OCI layout
    Load(commands::load::LoadArgs),
    /// Make an image of one layer from a root file system's tar
    Import(commands::import::ImportArgs),
    /// Log in to a registry
    Login(commands::login::LoginArgs),
    /// Forget a registry's credentials
    Logout(commands::login::LogoutArgs),
    /// Remove what nothing needs any more
    Prune(commands::prune::PruneArgs),
    /// Check every stored byte
    Fsck(commands::fsck::FsckArgs),
    /// Show what the host allows, and what to do about the rest
    Doctor(commands::doctor::DoctorArgs),
    /// Show the version
    Version(commands::version::VersionArgs),
    /// Print a completion script for a shell
    Completions(commands::completions::CompletionsArgs),
}
