//! `rimg run`: a command in a new container, in the foreground.

mod args;
mod etc;
mod flags;

pub(crate) use args::{PullPolicy, RunArgs, unsupported_flag};

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use rimg_formats::config::ImageConfig;
use rimg_formats::digest::DiffId;
use rimg_formats::layer::Limits;
use rimg_formats::reference::Reference;
use rimg_formats::store::{Image, Store, StoreError};
use rimg_runner::containers::Containers;
use rimg_runner::foreground::run_foreground;
use rimg_runner::limits::{self, LimitsError};
use rimg_runner::snapshots::source::StoreLayers;
use rimg_runner::snapshots::stack::Lower;
use rimg_runner::snapshots::{SnapshotTimes, Snapshots};
use rimg_runner::spec::{Mount, MountKind, Network, RootFs, SandboxSpec, WindowSize};
use rimg_runner::userns::Mapping;
use rimg_runner::{ExitStatus, SandboxError};

use super::remote::{self, RemoteArgs};
use crate::failure::{self, Context, Failure};
use crate::session::Session;
use crate::terminal::note;

/// The `PATH` of images that name none: docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn run(session: &Session, args: RunArgs) -> Result<u8, Failure> {
    execute(session, args).map_err(Failure::of_container)
}

fn execute(session: &Session, args: RunArgs) -> Result<u8, Failure> {
    let root = session.root()?;
    if let Some(refused) = args.unsupported() {
        return Err(refused);
    }
    flags::check_targets(&args.volume, &args.tmpfs)?;
    if let Some(workdir) = given(&args.workdir).filter(|dir| !dir.starts_with('/')) {
        return Err(Failure::usage(format!(
            "the working directory '{workdir}' is invalid, it needs to be an absolute path"
        )));
    }
    // Threads end the chance to become root in a namespace, so this comes first; pulling has them.
    let mapping = super::rootless::enter_mapped()?;
    let owners = super::rootless::owners(mapping);
    let store = session.store()?;
    let image = find_or_pull(&store, &args)?;
    let containers = Containers::new(&store.containers_dir());
    let place = || format!("failed to use {}", root.display());
    containers.sweep().context(place())?;
    let container = match given(&args.name) {
        Some(name) => containers.create_named(name).map_err(Failure::from)?,
        None => containers.create().context(place())?,
    };
    container.hold_image(&image.digest).context(place())?;
    let snapshots = Snapshots::open(&store.snapshots_dir(), owners)?;
    let snapshots = if args.squash_owners { snapshots.squashing() } else { snapshots };
    let lowers = unpack(&store, &snapshots, &image)?;
    let rootfs = RootFs { lowers: snapshots.on_mount_points(&lowers)?, upper: container.upper() };
    let mut spec = spec(&args, &image.config, rootfs, container.id())?;
    // A user namespace has no capabilities over the host's network, which root expects there.
    spec.user_namespace = mapping != Mapping::Privileged || args.network != flags::NetworkChoice::Host;
    let status = run_foreground(spec, args.interactive, |_| {}).map_err(|error| not_run(error, mapping))?;
    if let Err(error) = container.remove() {
        note(&format!(
            "warning: failed to remove the container's folder, which the next run tries again: {error}"
        ));
    }
    Ok(exit_code(&status))
}

/// The exit code, and what has to be said about it.
fn exit_code(status: &ExitStatus) -> u8 {
    if let Some(error) = &status.exec_error {
        note(&format!("error: failed to {error}"));
    }
    let code = u8::try_from(status.code).unwrap_or(u8::MAX);
    let Some(errno) = status.lost_output else { return code };
    let error = std::io::Error::from_raw_os_error(errno);
    note(&format!("error: failed to write the container's output: {error}"));
    // The command may have been content, but what it said is lost.
    if code == 0 { failure::CONTAINER_EXIT } else { code }
}

/// What to say when a container could not be started.
fn not_run(error: SandboxError, mapping: Mapping) -> Failure {
    let names_an_operation = !matches!(
        error,
        SandboxError::Invalid(_) | SandboxError::Lost(_) | SandboxError::Limits(LimitsError::Invalid(_))
    );
    let failure = match (&error, mapping) {
        (SandboxError::UserUnmapped(_), Mapping::Single(reason)) => {
            let (why, next) = super::rootless::explain(reason);
            Failure::from(error)
                .hint(format!("{why}; {next}"))
                .hint("or run as root of the container, which is you outside: rimg run -u 0 …")
        }
        (SandboxError::UserUnmapped(_), _) => {
            Failure::from(error).hint("more ids: a longer range for you in /etc/subuid and /etc/subgid")
        }
        _ => error.into(),
    };
    if names_an_operation { failure.of_operation() } else { failure }
}

fn find_or_pull(store: &Store, args: &RunArgs) -> Result<Image, Failure> {
    if args.pull != PullPolicy::Always {
        match store.resolve_text(args.image()) {
            Ok(found) => return Ok(store.image(&found.digest, args.platform.as_ref())?),
            Err(StoreError::ImageUnknown(_)) if args.pull != PullPolicy::Never => {}
            Err(error) => return Err(error.into()),
        }
    }
    let reference: Reference = args.image().parse()?;
    if !args.quiet {
        note(&format!("{reference} is not here, pulling it"));
    }
    let remote =
        RemoteArgs { plain_http: args.plain_http, parallel: 4, quiet: args.quiet, ..RemoteArgs::default() };
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
    let diff_ids: Vec<DiffId> = image.layers.iter().map(|(_, diff_id)| *diff_id).collect();
    let stack = Lower::stack(&diff_ids);
    let times = SnapshotTimes::Exported;
    let unpacked: Vec<Option<PathBuf>> = stack.iter().map(|lower| snapshots.get(lower, times)).collect();
    let _lease = if unpacked.iter().all(Option::is_some) { None } else { Some(store.lease(&image.digest)?) };
    for (layer, diff_id) in &image.layers {
        let missing = || {
            Failure::new(format!("layer {} is not in the store", layer.digest)).hint("pull the image again")
        };
        store.verified_blob(&layer.digest)?.ok_or_else(missing)?;
        if snapshots.needs_one_owner() {
            let index = store.layer_index_of(&layer.digest, Some(diff_id))?;
            index
                .one_owner()
                .map_err(|other| Failure::new(other.to_string()).hint(super::rootless::MORE_IDS))?;
        }
    }
    let layers = image.layers.iter().map(|(layer, diff_id)| (layer.digest, *diff_id));
    let source = StoreLayers::new(store, layers);
    let prepare = |(lower, path): (&Lower, Option<PathBuf>)| match path {
        Some(path) => Ok(path),
        // What is unpacked has to have this very digest, or it does not become a snapshot.
        None => Ok(snapshots.prepare(lower, times, Limits::default(), &source)?.0),
    };
    stack.iter().zip(unpacked).map(prepare).collect()
}

/// The value of a flag. An empty one is none, as under docker.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

/// What the image says, as far as the caller does not say otherwise.
fn spec(args: &RunArgs, config: &ImageConfig, rootfs: RootFs, id: &str) -> Result<SandboxSpec, Failure> {
    let exec = &config.config;
    let command = command(args, config)?;
    let mut spec = SandboxSpec::new(rootfs, command);
    let hostname = match (given(&args.hostname), args.network, given(&args.name)) {
        (Some(hostname), _, _) => hostname.to_owned(),
        (None, flags::NetworkChoice::Host, _) => name_of_host(),
        (None, flags::NetworkChoice::None, Some(name)) => name.to_owned(),
        (None, flags::NetworkChoice::None, None) => short_name(id),
    };
    spec.env = environment(args, &exec.env, &hostname)?;
    let workdir = given(&args.workdir);
    spec.cwd = PathBuf::from(workdir.unwrap_or(&exec.working_dir));
    if spec.cwd.as_os_str().is_empty() {
        spec.cwd = PathBuf::from("/");
    }
    spec.user = args.user.clone().unwrap_or_else(|| exec.user.clone());
    spec.files = etc::files(&hostname, args.network);
    spec.hostname = hostname;
    spec.network = match args.network {
        flags::NetworkChoice::None => Network::None,
        flags::NetworkChoice::Host => Network::Host,
    };
    spec.read_only = args.read_only;
    spec.init = args.init;
    spec.limits = limits::Limits {
        memory_bytes: args.memory.filter(|bytes| *bytes > 0),
        cpu_millis: args.cpus.filter(|millionths| *millionths > 0).map(|millionths| millionths / 1000),
        pids: match args.pids_limit {
            None => limits::PidsLimit::Default,
            Some(limit) => u64::try_from(limit)
                .ok()
                .filter(|limit| *limit > 0)
                .map_or(limits::PidsLimit::Unlimited, limits::PidsLimit::Max),
        },
    };
    spec.mounts = mounts(args, exec.volumes.keys().map(|path| flags::lexical(path)))?;
    if args.tty {
        spec.tty = Some(terminal_size(args.interactive)?);
    }
    Ok(spec)
}

/// Entrypoint and command: the caller's words replace the image's command, its entrypoint replaces both.
fn command(args: &RunArgs, config: &ImageConfig) -> Result<Vec<OsString>, Failure> {
    let exec = &config.config;
    let mut words: Vec<OsString> = match &args.entrypoint {
        Some(entrypoint) => {
            Vec::from_iter(Some(entrypoint.into()).filter(|word: &OsString| !word.is_empty()))
        }
        None => exec.entrypoint.iter().flatten().map(OsString::from).collect(),
    };
    match args.command().is_empty() {
        false => words.extend(args.command().iter().cloned()),
        true if args.entrypoint.is_none() => words.extend(exec.cmd.iter().flatten().map(OsString::from)),
        true => {}
    }
    match words.is_empty() {
        true => Err(Failure::new(format!("{} names no command", args.image()))
            .hint("give one after the image's name")),
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
        given.push(flags::environment(variable)?);
    }
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    for variable in &given {
        let (name, value) = match variable.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (variable.as_str(), None),
        };
        match (variables.iter().position(|(known, _)| known == name), value) {
            (Some(at), Some(value)) => variables[at].1 = value.into(),
            (None, Some(value)) => variables.push((name.into(), value.into())),
            // A name alone that the caller has no value for takes the image's away.
            (Some(at), None) => drop(variables.remove(at)),
            (None, None) => {}
        }
    }
    Ok(variables)
}

/// What flags ask for, and the image's volumes where they ask for nothing.
fn mounts(args: &RunArgs, volumes: impl Iterator<Item = PathBuf>) -> Result<Vec<Mount>, Failure> {
    let mut mounts = Vec::new();
    for (number, volume) in args.volume.iter().enumerate() {
        if args.volume[..number].contains(volume) {
            continue;
        }
        let kind = match &volume.source {
            Some(source) => {
                let shown = source.display();
                let source = source.canonicalize().context(format!("failed to use the volume {shown}"))?;
                MountKind::Bind { source }
            }
            None => MountKind::Volume,
        };
        mounts.push(Mount { kind, target: flags::lexical(&volume.target), read_only: volume.read_only });
    }
    for (number, tmpfs) in args.tmpfs.iter().enumerate() {
        let target = flags::lexical(&tmpfs.target);
        if args.tmpfs[number + 1..].iter().any(|later| flags::lexical(&later.target) == target) {
            continue;
        }
        let kind = MountKind::Tmpfs(tmpfs.options.clone());
        mounts.push(Mount { kind, target, read_only: tmpfs.read_only });
    }
    for target in volumes {
        if mounts.iter().all(|mount| mount.target != target) {
            mounts.push(Mount { kind: MountKind::Volume, target, read_only: false });
        }
    }
    Ok(mounts)
}

/// The host's own name, which a container has that shares its network.
fn name_of_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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
