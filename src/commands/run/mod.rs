//! `rimg run`: a command in a new container, in the foreground.

mod etc;
mod flags;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use rimg_formats::config::ImageConfig;
use rimg_formats::layer::Limits;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;
use rimg_formats::store::{Image, Store, StoreError};
use rimg_runner::SandboxError;
use rimg_runner::containers::Containers;
use rimg_runner::foreground::run_foreground;
use rimg_runner::limits;
use rimg_runner::snapshots::Snapshots;
use rimg_runner::spec::{Mount, MountKind, Network, RootFs, SandboxSpec, WindowSize};
use rimg_runner::userns::Mapping;

use super::remote::{self, RemoteArgs};
use crate::failure::{Context, Failure};
use crate::session::Session;
use crate::terminal::note;

/// The `PATH` of images that name none: docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The mode of a `--tmpfs` that names none: docker's.
const TMPFS_MODE: u32 = 0o1777;

/// Flags of `rimg run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: the command's own (128 + n for signal n); 125 when the container could not be set up, \
126 when the command cannot be executed, 127 when it cannot be found."
)]
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
    /// Which network the container sees: none but a loopback of its own, or this machine's
    #[arg(long, alias = "net", value_enum, default_value_t, value_name = "NETWORK")]
    network: NetworkChoice,
    /// Publish a port: not supported yet
    #[arg(short, long, hide = true, value_name = "PORT")]
    publish: Vec<String>,
    /// Publish all ports: not supported yet
    #[arg(short = 'P', long, hide = true)]
    publish_all: bool,
    /// Run in the background: not supported yet
    #[arg(short, long, hide = true)]
    detach: bool,
    /// Remove the container when it ends; what it wrote is always removed
    #[arg(long)]
    rm: bool,
    /// A name for the container, and its host name; no two that run can have the same
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

fn execute(session: &Session, args: RunArgs) -> Result<u8, Failure> {
    let root = session.root()?;
    if let Some(refused) = args.unsupported() {
        return Err(refused);
    }
    // Threads end the chance to become root in a namespace, so this comes first; pulling has them.
    let mapping = super::rootless::enter_mapped()?;
    let owners = super::rootless::owners(mapping);
    let store = session.store()?;
    let image = find_or_pull(&store, &args)?;
    let containers = Containers::new(&store.containers_dir());
    let place = || format!("failed to use {}", root.display());
    containers.sweep().context(place())?;
    let container = match &args.name {
        Some(name) => containers.create_named(name).map_err(Failure::from)?,
        None => containers.create().context(place())?,
    };
    container.hold_image(&image.digest).context(place())?;
    let snapshots = Snapshots::open(&store.snapshots_dir(), owners)?;
    let lowers = unpack(&store, &snapshots, &image)?;
    let rootfs = RootFs { lowers: snapshots.on_mount_points(&lowers)?, upper: container.upper() };
    let spec = spec(&args, &image.config, rootfs, container.id())?;
    let status = run_foreground(spec, args.interactive, |_| {}).map_err(|error| not_run(error, mapping))?;
    drop(container);
    if let Some(error) = status.exec_error {
        note(&format!("error: failed to {error}"));
    }
    Ok(u8::try_from(status.code).unwrap_or(u8::MAX))
}

/// What to say when a container could not be started.
fn not_run(error: SandboxError, mapping: Mapping) -> Failure {
    match (&error, mapping) {
        (SandboxError::UserUnmapped(_), Mapping::Single(reason)) => {
            let (why, next) = super::rootless::explain(reason);
            Failure::from(error)
                .hint(format!("{why}; {next}"))
                .hint("or run as root inside, who is you outside: rimg run -u 0 …")
        }
        (SandboxError::UserUnmapped(_), _) => {
            Failure::from(error).hint("more ids: a longer range for you in /etc/subuid and /etc/subgid")
        }
        _ => error.into(),
    }
}

impl RunArgs {
    /// Docker's flags that people try first and that are not here: what to do instead, before anything is done.
    fn unsupported(&self) -> Option<Failure> {
        if !self.publish.is_empty() || self.publish_all {
            let failure = Failure::usage("publishing ports (-p, -P) is not supported yet");
            return Some(failure.hint("--network host: the container listens on this machine's own ports"));
        }
        self.detach.then(|| {
            let failure = Failure::usage("running in the background (-d) is not supported yet");
            failure.hint("leave out -d; a shell's `&`, or systemd-run, keeps it running")
        })
    }
}

fn find_or_pull(store: &Store, args: &RunArgs) -> Result<Image, Failure> {
    if args.pull != PullPolicy::Always {
        match store.resolve_text(&args.image) {
            Ok(found) => return Ok(store.image(&found.digest, args.platform.as_ref())?),
            Err(error @ StoreError::ImageUnknown(_)) if args.pull == PullPolicy::Never => {
                return Err(Failure::from(error).hint(format!("rimg pull {}", args.image)));
            }
            Err(StoreError::ImageUnknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let reference: Reference = args.image.parse()?;
    note(&format!("{reference} is not here, pulling it"));
    let remote = RemoteArgs { plain_http: args.plain_http, parallel: 4, ..RemoteArgs::default() };
    let platforms = remote::one_platform(args.platform.clone());
    let pulled = remote::pull(store, &reference, platforms, &remote, &remote.display())?;
    Ok(store.image(&pulled.digest, args.platform.as_ref())?)
}

/// The snapshots of the image's layers, the lowest first. What is not unpacked yet is, from verified blobs.
///
/// The blob is looked at even when its snapshot is there already: an image that the store would not serve, because a
/// layer of it is damaged or missing, is not run either. Unless its file was touched since, that is a look at its size
/// and times.
fn unpack(store: &Store, snapshots: &Snapshots, image: &Image) -> Result<Vec<PathBuf>, Failure> {
    // Promises that nobody collects the image's blobs while they are unpacked. Nothing is written where all snapshots
    // are there, as nearly always: their own lock keeps them, and a written database has to be synced to the disk.
    let complete = image.layers.iter().all(|(_, diff_id)| snapshots.get(diff_id).is_some());
    let _lease = if complete { None } else { Some(store.lease(&image.digest)?) };
    let mut lowers = Vec::with_capacity(image.layers.len());
    for (layer, diff_id) in &image.layers {
        let missing = || {
            Failure::new(format!("layer {} is not in the store", layer.digest)).hint("pull the image again")
        };
        let blob = store.verified_blob(&layer.digest)?.ok_or_else(missing)?;
        // What is unpacked has to have this very digest, or it does not become a snapshot.
        let (path, _) = snapshots.prepare(diff_id, Limits::default(), || Ok(blob.into_file()))?;
        lowers.push(path);
    }
    Ok(lowers)
}

/// What the image says, as far as the caller does not say otherwise.
fn spec(args: &RunArgs, config: &ImageConfig, rootfs: RootFs, id: &str) -> Result<SandboxSpec, Failure> {
    let exec = &config.config;
    let command = command(args, config)?;
    let mut spec = SandboxSpec::new(rootfs, command.into_iter().map(OsString::from).collect());
    let hostname =
        args.hostname.clone().unwrap_or_else(|| args.name.clone().unwrap_or_else(|| short_name(id)));
    spec.env = environment(args, &exec.env, &hostname)?;
    spec.cwd = PathBuf::from(args.workdir.as_deref().unwrap_or(&exec.working_dir));
    if spec.cwd.as_os_str().is_empty() {
        spec.cwd = PathBuf::from("/");
    }
    spec.user = args.user.clone().unwrap_or_else(|| exec.user.clone());
    spec.files = etc::files(&hostname, args.network);
    spec.hostname = hostname;
    spec.network = match args.network {
        NetworkChoice::None => Network::None,
        NetworkChoice::Host => Network::Host,
    };
    spec.read_only = args.read_only;
    spec.limits = limits::Limits {
        memory_bytes: args.memory,
        cpu_millis: args.cpus.map(|millionths| millionths / 1000),
        pids: args.pids_limit.map(u64::from),
    };
    spec.mounts = mounts(args)?;
    if args.tty {
        spec.tty = Some(terminal_size(args.interactive)?);
    }
    Ok(spec)
}

/// Entrypoint and command: the caller's words replace the image's command, its entrypoint replaces both.
fn command(args: &RunArgs, config: &ImageConfig) -> Result<Vec<String>, Failure> {
    let exec = &config.config;
    let mut words = match &args.entrypoint {
        Some(entrypoint) => Vec::from_iter(Some(entrypoint.clone()).filter(|word| !word.is_empty())),
        None => exec.entrypoint.clone().unwrap_or_default(),
    };
    match args.command.is_empty() {
        false => words.extend(args.command.iter().cloned()),
        true if args.entrypoint.is_none() => words.extend(exec.cmd.iter().flatten().cloned()),
        true => {}
    }
    match words.is_empty() {
        true => {
            Err(Failure::new(format!("{} names no command", args.image))
                .hint("give one after the image's name"))
        }
        false => Ok(words),
    }
}

/// The image's variables, then those of files, then those of flags; the last of a name wins.
fn environment(
    args: &RunArgs,
    image: &[String],
    hostname: &str,
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut given = vec![format!("PATH={DEFAULT_PATH}"), format!("HOSTNAME={hostname}")];
    if args.tty {
        given.push("TERM=xterm".to_owned());
    }
    given.extend(image.iter().cloned());
    for file in &args.env_file {
        given.extend(flags::environment_file(file)?);
    }
    for variable in &args.env {
        given.extend(flags::environment(variable)?);
    }
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    for variable in &given {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.into(),
            None => variables.push((name.into(), value.into())),
        }
    }
    Ok(variables)
}

fn mounts(args: &RunArgs) -> Result<Vec<Mount>, Failure> {
    let mut mounts = Vec::new();
    for volume in &args.volume {
        let shown = volume.source.display();
        let source = volume.source.canonicalize().context(format!("failed to use the volume {shown}"))?;
        let target = PathBuf::from(&volume.target);
        mounts.push(Mount { kind: MountKind::Bind { source }, target, read_only: volume.read_only });
    }
    for tmpfs in &args.tmpfs {
        let kind = MountKind::Tmpfs { size_bytes: tmpfs.size_bytes, mode: tmpfs.mode.unwrap_or(TMPFS_MODE) };
        mounts.push(Mount { kind, target: PathBuf::from(&tmpfs.target), read_only: tmpfs.read_only });
    }
    Ok(mounts)
}

fn terminal_size(interactive: bool) -> Result<WindowSize, Failure> {
    let stdin = std::io::stdin();
    if interactive && !stdin.is_terminal() {
        return Err(
            Failure::new("standard input is not a terminal").hint("leave out --tty, or --interactive")
        );
    }
    let size =
        rustix::termios::tcgetwinsize(std::io::stdout()).or_else(|_| rustix::termios::tcgetwinsize(&stdin));
    Ok(size.map_or(WindowSize { rows: 24, columns: 80 }, |size| WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    }))
}

/// A host name out of a container's id: twelve of its letters and digits, as docker does.
fn short_name(id: &str) -> String {
    let name: String = id.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    if name.is_empty() { "rimg".to_owned() } else { name }
}
