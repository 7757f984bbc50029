//! `rimg run`: a command in a new container, in the foreground.

mod flags;

use std::path::PathBuf;

use rimg_formats::platform::Platform;

use crate::failure::Failure;
use crate::session::Session;

/// Flags of `rimg run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: the command's own (128 + n for signal n); 125 when the container could not be set up, \
126 when the command cannot be executed, 127 when it cannot be found.")]
pub(crate) struct RunArgs {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; NAME alone passes on the caller's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// The folder to start in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The user to run as: a name or number of the image, optionally with a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The command's first word, instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// The container's host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Show a folder or file of this machine in the container
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]", value_parser = flags::volume)]
    volume: Vec<flags::Volume>,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "DIR[:OPTIONS]", value_parser = flags::tmpfs)]
    tmpfs: Vec<flags::Tmpfs>,
    /// Refuse writes to the container's root
    #[arg(long)]
    read_only: bool,
    /// Most memory, such as 512m; beyond it the kernel kills
    #[arg(short, long, value_name = "SIZE", value_parser = crate::units::parse_size)]
    memory: Option<u64>,
    /// Most processor time, in processors, such as 1.5
    #[arg(long, value_name = "NUMBER", value_parser = flags::cpus)]
    cpus: Option<u64>,
    /// Most processes and threads
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pids_limit: Option<u32>,
    /// Which network the container sees
    #[arg(long, alias = "net", value_enum, default_value_t, value_name = "NETWORK")]
    network: NetworkChoice,
    /// Remove the container when it ends; what it wrote is always removed
    #[arg(long)]
    rm: bool,
    /// A name for the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pull: PullPolicy,
    /// Which variant of the image to run [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Pull over plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// The image: a name, a digest, or the beginning of one
    image: String,
    /// The command and its arguments, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Which network a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum NetworkChoice {
    /// The host's network.
    Host,
    /// Nothing but a loopback of its own.
    #[default]
    None,
}

/// When `run` pulls the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PullPolicy {
    /// Each time.
    Always,
    /// When it is not here.
    #[default]
    Missing,
    /// Never.
    Never,
}

pub(crate) fn run(session: &Session, args: RunArgs) -> Result<u8, Failure> {
    execute(session, args).map_err(Failure::of_container)
}
