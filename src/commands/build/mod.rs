//! `rimg build`: an image from a Buildfile.

mod bases;
mod contexts;
mod csv;
mod docker_flags;
mod input;
mod output;
mod secrets;
mod show;
mod signals;

use std::collections::BTreeMap;
use std::path::PathBuf;

use rimg_builder::diagnostic::{Diagnostic, Style, render_all};
use rimg_builder::engine::{BuildError, BuildOptions, BuildResult, Builder, UserNamespace};
use rimg_builder::source::SourceFile;
use rimg_formats::epoch::Epoch;
use rimg_formats::layer::LayerCompression;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::Store;
use serde_json::json;

use self::bases::StoreThenRegistry;
use self::docker_flags::DockerFlags;
use self::show::Steps;
use super::remote::RemoteArgs;
use crate::failure::{self, Context, Failure};
use crate::progress::{self, Change, Display};
use crate::session::Session;
use crate::terminal::{colour_on_stderr, note, print_json, print_line};

/// Flags of `rimg build`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The image's digest is the only line on standard output; progress goes to standard error."
)]
pub(crate) struct BuildArgs {
    /// The folder that COPY and ADD read from; `-` reads a tar of it, or a Buildfile alone, from standard input
    #[arg(default_value = ".", value_name = "CONTEXT")]
    context: PathBuf,
    /// The Buildfile, `-` for standard input [default: Buildfile, Dockerfile or Containerfile in the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name the image; may be given several times
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<Reference>,
    /// Set a build argument; NAME alone passes on the caller's environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// A further source for FROM, COPY --from and mounts: a folder, docker-image://NAME[:TAG], or
    /// oci-layout://DIR[:TAG|@DIGEST]; it comes before stages and images of that name
    #[arg(long, value_name = "NAME=VALUE")]
    build_context: Vec<String>,
    /// Build up to this stage
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Set a label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Show for each step which input made it run again
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
    /// Also write the result: type=oci|docker|tar|local,dest=PATH, a folder, or type=image,name=NAME,push=true
    #[arg(short, long, value_name = "SPEC", value_parser = output::parse)]
    output: Vec<output::OutputSpec>,
    /// Push the image to the registry of each of its names
    #[arg(long)]
    push: bool,
    /// Set an annotation of the manifest
    #[arg(long, value_name = "NAME=VALUE")]
    annotation: Vec<String>,
    /// Write what was built, as JSON, to a file
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    progress: progress::Mode,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// The platform to build for [default: the host's]
    #[arg(long, value_name = "OS/ARCH", value_parser = docker_flags::one_platform)]
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
    /// Give all files that RUN steps see to root, where you have no subordinate ids for other owners
    #[arg(long)]
    squash_owners: bool,
    #[command(flatten)]
    docker: DockerFlags,
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

pub(crate) fn run(session: &Session, args: BuildArgs) -> Result<(), Failure> {
    args.docker.check()?;
    let (inputs, _received) = input::open(session, &args.context, args.file.as_deref())?;
    let options = options(&args, inputs)?;
    let store = session.store()?;
    let source = options.buildfile.clone();
    let remote = remote_args(&args);
    let display = Display::new(if args.quiet { progress::Mode::Quiet } else { args.progress });
    let images =
        StoreThenRegistry { store: store.clone(), remote, always_pull: args.pull, display: &display };
    let builder = Builder::new(store.clone(), &images, options);
    match builder.user_namespace().map_err(|error| explain(&error, &source))? {
        UserNamespace::Needed => drop(super::rootless::enter()?),
        // Where it is forbidden, owners are taken as the host tells them.
        UserNamespace::Useful => super::rootless::enter_if_allowed()?,
        UserNamespace::Unused => {}
    }
    let steps = Steps::new(&display, &source, args.explain);
    let build = || builder.build(&|event| steps.show(event));
    let result = match signals::interruptible(&builder.interrupt(), &display, build) {
        Ok(result) => result,
        // Finished steps stay in the cache, which holds on to what it needs; leases end with the process.
        Err(interrupted) => return Err(interrupted.tell(&display)),
    };
    let result = result.map_err(|error| {
        display.close();
        explain(&error, &source)
    })?;
    for spec in &args.output {
        output::write(&store, &result, spec)?;
    }
    if args.push || args.output.iter().any(|spec| spec.push) {
        push(&store, &args, &result, &display)?;
    }
    display.close();
    tell(session, &args, &result)
}

/// Pushes the image under each of its names.
fn push(store: &Store, args: &BuildArgs, result: &BuildResult, display: &Display) -> Result<(), Failure> {
    let names = named(args);
    let Some((source, _)) = result.names.first().filter(|_| !names.is_empty()) else {
        return Err(Failure::usage("an image without a name cannot be pushed")
            .hint("name it: -t REGISTRY/NAME[:TAG]"));
    };
    let remote = remote_args(args);
    for name in &names {
        display.apply(Change::Note { line: format!("pushing {name}") });
        let (source, digest) = (store.repository(source), result.manifest.digest);
        super::push::to_registry(&source, &digest, name, None, &remote, display)
            .map_err(|error| super::remote::explain(error, &format!("failed to push {name}")))?;
    }
    Ok(())
}

/// The names that the flags give the image.
fn named(args: &BuildArgs) -> Vec<Reference> {
    let of_outputs = args.output.iter().flat_map(|spec| &spec.names);
    args.tag.iter().chain(of_outputs).cloned().collect()
}

fn remote_args(args: &BuildArgs) -> RemoteArgs {
    RemoteArgs { plain_http: args.plain_http, parallel: 4, ..RemoteArgs::default() }
}

/// The digest, for the files and for standard output.
fn tell(session: &Session, args: &BuildArgs, result: &BuildResult) -> Result<(), Failure> {
    let digest = result.manifest.digest.to_string();
    if let Some(path) = &args.iidfile {
        std::fs::write(path, &digest).context(format!("failed to write {}", path.display()))?;
    }
    if let Some(path) = &args.metadata_file {
        let names: Vec<String> = named(args).iter().map(Reference::to_string).collect();
        // buildx's keys.
        let metadata = json!({
            "containerimage.config.digest": result.config,
            "containerimage.descriptor": result.manifest,
            "containerimage.digest": digest,
            "image.name": names.join(","),
        });
        std::fs::write(path, format!("{metadata:#}\n"))
            .context(format!("failed to write {}", path.display()))?;
    }
    if args.output.iter().any(output::OutputSpec::takes_stdout) {
        return Ok(());
    }
    match session.json() {
        true => print_json(&json!({
            "digest": digest,
            "configDigest": result.config,
            "layers": result.layers.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
        })),
        false => print_line(&digest),
    }
}

/// Mistakes in the Buildfile are shown with its lines.
fn explain(error: &BuildError, source: &SourceFile) -> Failure {
    let diagnostics: &[Diagnostic] = error.diagnostics();
    if diagnostics.is_empty() {
        return Failure::of(error);
    }
    let style = if colour_on_stderr() { Style::Colour } else { Style::Plain };
    note(render_all(diagnostics, source, style).trim_end());
    if let Some(hint) = diagnostics.iter().find_map(|diagnostic| failure::room(&diagnostic.message)) {
        note(&format!("  hint: {hint}"));
    }
    Failure::told(1)
}

/// What the flags and the inputs ask for.
fn options(args: &BuildArgs, mut options: BuildOptions) -> Result<BuildOptions, Failure> {
    options.target = args.target.clone();
    options.tags = named(args);
    for (name, value) in args.annotation.iter().map(|text| annotation(text)).collect::<Result<Vec<_>, _>>()? {
        options.annotations.insert(name, value);
    }
    options.annotations.extend(args.output.iter().flat_map(|spec| spec.annotations.clone()));
    options.no_cache = args.no_cache;
    options.threads = args.threads.map_or(0, usize::from);
    options.platform = args.platform.clone().unwrap_or_else(Platform::host);
    options.platform_is_given = args.platform.is_some();
    options.compression = compression(args)?;
    options.timestamps = match args.timestamps {
        Timestamps::Constant => rimg_builder::engine::Timestamps::Constant,
        Timestamps::Preserve => rimg_builder::engine::Timestamps::Preserve,
    };
    options.epoch_is_given = std::env::var_os("SOURCE_DATE_EPOCH").is_some_and(|value| !value.is_empty());
    options.epoch = Epoch::from_environment()?;
    for argument in &args.build_arg {
        let given = match argument.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => std::env::var(argument).ok().map(|value| (argument.clone(), value)),
        };
        options.build_args.extend(given);
    }
    let working_folder = std::env::current_dir().context("failed to find the working folder")?;
    for context in &args.build_context {
        let (name, value) = contexts::parse(context, &working_folder)?;
        options.named_contexts.insert(name, value);
    }
    for label in &args.label {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        options.labels.insert(name.to_owned(), value.to_owned());
    }
    options.squash_owners = args.squash_owners;
    options.secrets =
        args.secret.iter().map(|spec| secrets::read(spec)).collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok(options)
}

/// `--annotation [manifest:]NAME=VALUE`: an image of one platform has a manifest and no index.
fn annotation(text: &str) -> Result<(String, String), Failure> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    match name.split_once(':') {
        None => Ok((name.to_owned(), value.to_owned())),
        Some(("manifest", name)) => Ok((name.to_owned(), value.to_owned())),
        Some((place, _)) => {
            Err(Failure::usage(format!("--annotation `{text}`: there is no {place} to annotate"))
                .hint("write NAME=VALUE, or manifest:NAME=VALUE"))
        }
    }
}

/// What --compression says, or the outputs: layers are compressed once, for the store and everything else.
fn compression(args: &BuildArgs) -> Result<LayerCompression, Failure> {
    let mut choice = Some(args.compression).filter(|choice| *choice != CompressionChoice::default());
    let mut level = args.compression_level;
    for spec in &args.output {
        let differs = spec.compression.is_some_and(|asked| *choice.get_or_insert(asked) != asked)
            || spec.compression_level.is_some_and(|asked| *level.get_or_insert(asked) != asked);
        if differs {
            return Err(Failure::usage("the outputs ask for several compressions: layers have one"));
        }
    }
    let refuse =
        |most: u8| Failure::usage(format!("--compression-level goes up to {most} with this compression"));
    Ok(match (choice.unwrap_or_default(), level) {
        (CompressionChoice::Gzip, None) => LayerCompression::GZIP_DEFAULT,
        (CompressionChoice::Gzip, Some(level)) if level <= 12 => LayerCompression::Gzip { level },
        (CompressionChoice::Gzip, Some(_)) => return Err(refuse(12)),
        (CompressionChoice::Zstd, None) => LayerCompression::ZSTD_DEFAULT,
        (CompressionChoice::Zstd, Some(level)) if level <= 22 => LayerCompression::Zstd { level },
        (CompressionChoice::Zstd, Some(_)) => return Err(refuse(22)),
        (CompressionChoice::None, None) => LayerCompression::None,
        (CompressionChoice::None, Some(_)) => return Err(refuse(0)),
    })
}
