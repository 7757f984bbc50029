//! `rimg build`: an image from a Buildfile.

mod output;

use std::path::PathBuf;

use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;

use crate::failure::Failure;
use crate::progress;
use crate::session::Session;

/// The names a build looks for when none is given, best first.
const DEFAULT_NAMES: [&str; 4] = ["Buildfile", "Dockerfile", "dockerfile", "Containerfile"];

/// Flags of `rimg build`.
#[derive(Debug, clap::Args)]
#[command(after_help = "The image's digest is the only line on standard output; progress goes to standard error.")]
pub(crate) struct BuildArgs {
    /// The folder that COPY and ADD read from
    #[arg(default_value = ".", value_name = "CONTEXT")]
    context: PathBuf,
    /// The Buildfile [default: Buildfile, Dockerfile or Containerfile in the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name the image; may be given several times
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<Reference>,
    /// Set a build argument; NAME alone passes on the caller's environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Build up to this stage
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Say for each step which input made it run again
    #[arg(long)]
    explain: bool,
    /// Ask the registry for newer base images
    #[arg(long)]
    pull: bool,
    /// Reach registries over plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// Write the image's digest to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Also write the result: type=oci|docker|tar|local,dest=PATH, or a folder
    #[arg(short, long, value_name = "SPEC", value_parser = output::parse)]
    output: Vec<output::OutputSpec>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    progress: progress::Mode,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// What the image runs on [default: this machine]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// How layers are compressed
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    compression: CompressionChoice,
    /// The compression's level
    #[arg(long, value_name = "NUMBER")]
    compression_level: Option<u8>,
    /// What times files get: one constant time, or their own
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    timestamps: Timestamps,
    /// Threads to compress and hash with [default: one for each processor]; the result does not depend on it
    #[arg(short = 'j', long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// A secret for RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE
    #[arg(long, value_name = "SPEC")]
    secret: Vec<String>,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum CompressionChoice {
    /// Readable by every client.
    #[default]
    Gzip,
    /// Smaller and faster; needs containerd 1.5, Docker 23 or Podman 3 or newer.
    Zstd,
    /// None at all.
    #[value(alias = "uncompressed")]
    None,
}

/// What times files get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Timestamps {
    /// SOURCE_DATE_EPOCH, else 1980-01-02: the same digest whenever files were written.
    #[default]
    Constant,
    /// The files' own.
    Preserve,
}
