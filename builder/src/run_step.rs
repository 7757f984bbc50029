//! RUN: a process in a sandbox on the image's files; what it changed becomes the layer.
//!
//! 1. The key is made of everything the process can depend on, except time, network and the host's kernel.
//! 2. The image's layers become overlay lower directories (snapshots); the upper directory receives the changes.
//! 3. The process runs, its output told line by line.
//! 4. The changes become a layer, and the upper directory that layer's snapshot, with the time that the build's
//!    [`clock`] gives it: a later step sees the same files whether this one was run or found in the cache.
//!
//! The network is the host's unless `--network=none`. Set-user-ID programs work, as in Docker's builds.

mod caches;
mod clock;
mod mounts;
mod output;
mod renewed;
mod seen;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::PoisonError;

use rimg_formats::digest::DiffId;
use rimg_formats::layer::{
    Entry, EntryKind, LayerPath, LayerWriter, Limits, MtimePolicy, OtherOwner, is_image_xattr,
};
use rimg_runner::snapshots::changes::Changes;
use rimg_runner::snapshots::source::StoreLayers;
use rimg_runner::snapshots::stack::Lower;
use rimg_runner::snapshots::{Owners, SnapshotTimes, Snapshots};
use rimg_runner::spec::{EtcFile, Network, RootFs, Stdio, Upper};
use rimg_runner::{ExitStatus, Sandbox, SandboxError, SandboxSpec};

use self::clock::LayerTimes;
use self::mounts::MountPlan;
use self::renewed::renew;
use self::workspace::RunWorkspace;
use crate::cache::{CacheKey, FieldHasher, Lookup, Slot, StepInputs, StepRecord};
use crate::context::processors;
use crate::copy::owner::without_root;
use crate::diagnostic::Diagnostic;
use crate::engine::{Build, BuildError, RunFailure, StageRun, step_error, unsupported_in_run};
use crate::events::{Event, StepId};
use crate::layer_step::{LayerStepError, StepOutcome};
use crate::parallel;
use crate::plan::{ExpandedRun, RunCommand, Step};
use crate::source::Span;
use crate::source_tree::SourceTree;

/// What BuildKit calls its build containers; some configure scripts record it.
const HOSTNAME: &str = "buildkitsandbox";

/// The build argument that gives them another name.
const HOSTNAME_ARGUMENT: &str = "BUILDKIT_SANDBOX_HOSTNAME";

/// The variable that compilers, archivers and Python take the time of what they write from
/// (reproducible-builds.org, specification of that name).
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Where the script of a heredoc with `#!` appears.
const SCRIPT_DIRECTORY: &str = "/dev/pipes";

/// RUN.
pub(crate) fn run(
    stage: &mut StageRun<'_>,
    step: &Step,
    instruction: &ExpandedRun,
    id: StepId,
) -> Result<StepOutcome, BuildError> {
    let refused = unsupported_in_run(instruction.security.as_ref(), &instruction.devices);
    if !refused.is_empty() {
        return Err(refused.into());
    }
    let span = step.instruction.span;
    let mounts = MountPlan::new(stage, step, instruction)?;
    let inputs = inputs(stage, instruction, &mounts);
    let slot = Slot::new(&step.instruction.text);
    let key = inputs.key();
    let maker = &stage.build.maker;
    let turn = stage.build.turn(key);
    let held = turn.lock().unwrap_or_else(PoisonError::into_inner);
    stage.build.check_stopped()?;
    let outcome = match maker.cache.look_up(slot, &inputs)? {
        Lookup::Hit(record) => {
            let touched = record.touched.into_iter().filter_map(|path| LayerPath::parse(path).ok()).collect();
            StepOutcome { key, cached: true, layer: record.layer, entries: None, touched }
        }
        Lookup::Miss(miss, _) => {
            (stage.build.events)(Event::StepMissed { id, miss });
            let outcome = execute(stage, instruction, mounts, id, (span, &step.instruction.text), key)?;
            let touched = outcome.touched.iter().map(|path| path.as_bytes().to_vec()).collect();
            let record = StepRecord { inputs, layer: outcome.layer.clone(), touched };
            maker.cache.remember(slot, &record)?;
            StepOutcome { key, cached: false, ..outcome }
        }
    };
    drop(held);
    let created_by = history_line(stage, instruction);
    stage.take(&outcome, created_by)?;
    Ok(outcome)
}

/// The final argument list.
fn arguments(stage: &StageRun<'_>, command: &RunCommand) -> Vec<String> {
    match command {
        RunCommand::Exec(words) => words.clone(),
        RunCommand::Shell(text) => {
            let mut words = stage.image.shell();
            words.push(text.clone());
            words
        }
        RunCommand::Script { name, .. } => vec![format!("{SCRIPT_DIRECTORY}/{name}")],
    }
}

/// The kind of these steps in their keys, with the version of what is shown to a process beside its inputs: files' times
/// and [`SOURCE_DATE_EPOCH`], both of which follow from the inputs.
const KIND: &str = "run 2";

/// What the process can depend on: the RUN column of the table in [`crate::cache`].
fn inputs(stage: &StageRun<'_>, instruction: &ExpandedRun, mounts: &MountPlan) -> StepInputs {
    let mut inputs = stage.build.maker.inputs(KIND);
    let below = stage.image.chain().map_or_else(|| "nothing".to_owned(), |chain| chain.to_string());
    inputs.add("the layers below", &below);
    if !stage.image.touches.is_empty() {
        let mut touched = FieldHasher::new();
        for touch in &stage.image.touches {
            touched.number(touch.layers as u64);
            touch.paths.iter().for_each(|path| touched.field(path.as_bytes()));
        }
        inputs.add_digest("touched files", touched.finish());
    }
    let arguments = arguments(stage, &instruction.command);
    inputs.add_list("command", arguments.iter().map(String::as_str));
    if let RunCommand::Script { content, .. } = &instruction.command {
        inputs.add("script", content);
    }
    for (name, value) in stage.scope.run_environment() {
        inputs.add(format!("environment {name}"), &value);
    }
    let exec = stage.image.exec();
    inputs.add("user", &exec.user);
    inputs.add("working directory", stage.image.working_directory());
    inputs.add("hostname", host_name(stage));
    inputs.add("network", if wants_network(instruction) { "host" } else { "none" });
    inputs.add("platform", &stage.image.config.platform.to_string());
    let squashes = stage.build.options.squash_owners && owners() == Owners::Squash;
    if squashes && first_other_owner(stage).is_err() {
        // Other files than with their owners, so another result.
        inputs.add("owners", "all root's");
    }
    mounts.add_inputs(&mut inputs);
    inputs
}

/// The host name of the sandbox.
fn host_name<'s>(stage: &'s StageRun<'_>) -> &'s str {
    stage.build.options.build_args.get(HOSTNAME_ARGUMENT).map_or(HOSTNAME, String::as_str)
}

fn wants_network(instruction: &ExpandedRun) -> bool {
    instruction.network.as_ref().is_none_or(|network| network.text != "none")
}

/// `RUN |2 A=1 B=2 /bin/sh -c make # buildkit`: the arguments in scope are told, as BuildKit tells them.
fn history_line(stage: &StageRun<'_>, instruction: &ExpandedRun) -> String {
    let in_scope = stage.scope.arguments();
    let mut words = vec!["RUN".to_owned()];
    if !in_scope.is_empty() {
        words.push(format!("|{}", in_scope.len()));
        words.extend(in_scope.iter().map(|(name, value)| format!("{name}={value}")));
    }
    if let RunCommand::Script { .. } = &instruction.command {
        words.extend(stage.image.shell());
    }
    words.extend(arguments(stage, &instruction.command));
    format!("{} # buildkit", words.join(" "))
}

type Made = (Option<crate::cache::LayerRecord>, Option<usize>);

/// Runs the process and makes its layer.
fn execute(
    stage: &StageRun<'_>,
    instruction: &ExpandedRun,
    mounts: MountPlan,
    id: StepId,
    (span, text): (Span, &str),
    key: CacheKey,
) -> Result<StepOutcome, BuildError> {
    let build = stage.build;
    let failed = |error: std::io::Error| BuildError::at(span, format!("failed to prepare the step: {error}"));
    let snapshots = Snapshots::open(&build.store.snapshots_dir(), owners());
    let snapshots = snapshots.map_err(|error| BuildError::at(span, error.to_string()))?;
    let snapshots = if build.options.squash_owners { snapshots.squashing() } else { snapshots };
    if snapshots.needs_one_owner() {
        check_owners(stage, span)?;
    }
    let times = LayerTimes::of(stage.tree.merged().layers(), &stage.image.touches, build.maker.options.mtime);
    let lowers = lower_directories(stage, &snapshots, &times, span)?;
    let root = stage.tree.lookup(&LayerPath::root()).map_err(failed)?;
    let workspace = RunWorkspace::new(&build.store.snapshots_dir(), root.as_ref()).map_err(failed)?;
    let lowers = if lowers.is_empty() { vec![workspace.empty()] } else { lowers };
    let prepared = mounts.take_caches(build).and_then(|()| renew(stage, text, &times, &mounts, &workspace));
    if prepared.is_err() {
        // Waiting for a cache ends with the build.
        build.check_stopped()?;
    }
    let renewed = prepared.map_err(failed)?;
    let shown: Vec<PathBuf> = lowers.iter().cloned().chain(renewed.top.clone()).collect();
    let stacked = snapshots.on_mount_points(&shown);
    let rootfs = RootFs {
        lowers: stacked.map_err(|error| BuildError::at(span, error.to_string()))?,
        upper: Upper::Directory { upper: workspace.upper(), work: workspace.work(), volatile: true },
    };
    let mut spec = sandbox(stage, instruction, rootfs);
    mounts.prepare(&workspace, &renewed, &mut spec).map_err(failed)?;
    if let RunCommand::Script { name, content } = &instruction.command {
        spec.mounts.push(workspace.script(&format!("{SCRIPT_DIRECTORY}/{name}"), content).map_err(failed)?);
    }
    let process = arguments(stage, &instruction.command);
    run_process(build, spec, &process, id, span)?;
    drop(mounts);
    let changes = Changes::read(&workspace.upper(), stage.tree.merged(), owners(), &[]).map_err(failed)?;
    let committed = commit(build, &snapshots, &workspace, &changes, times.next);
    if committed.is_err() {
        build.check_stopped()?;
    }
    let (layer, entries) = committed.map_err(|error| step_error(error, span))?;
    let touched = renewed.touched(stage.tree.merged(), &times, &changes.kept);
    Ok(StepOutcome { key, cached: false, layer, entries, touched })
}

/// Refuses to show files as root's that are not.
fn check_owners(stage: &StageRun<'_>, span: Span) -> Result<(), BuildError> {
    first_other_owner(stage).map_err(|other| {
        Diagnostic::error(span, format!("the step cannot see all owners: {other}"))
            .help("`rimg doctor` tells how to get subordinate ids; `--squash-owners` gives all files to root")
            .into()
    })
}

fn first_other_owner(stage: &StageRun<'_>) -> Result<(), OtherOwner> {
    stage.tree.merged().layers().iter().try_for_each(|index| index.one_owner())
}

/// Whose files snapshots are: a user namespace with a single id knows no other owners.
fn owners() -> Owners {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let ids = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    if ids.sum::<u64>() == 1 { Owners::Squash } else { Owners::Keep }
}

/// The lower directories of the image's layers with their `times`, unpacked where they are not there yet.
fn lower_directories(
    stage: &StageRun<'_>,
    snapshots: &Snapshots,
    times: &LayerTimes,
    span: Span,
) -> Result<Vec<PathBuf>, BuildError> {
    let layers = &stage.image.layers;
    let source = StoreLayers::new(
        stage.build.store,
        layers.iter().map(|layer| (layer.descriptor.digest, layer.diff_id)),
    );
    let diff_ids: Vec<DiffId> = layers.iter().map(|layer| layer.diff_id).collect();
    let prepare = |lower: &Lower| {
        stage.build.check_stopped()?;
        let prepared = snapshots.prepare(lower, times.layers[lower.number], Limits::default(), &source);
        prepared.map(|(path, _)| path).map_err(|error| BuildError::at(span, error.to_string()))
    };
    parallel::each(&Lower::stack(&diff_ids), processors(), prepare).into_iter().collect()
}

fn sandbox(stage: &StageRun<'_>, instruction: &ExpandedRun, rootfs: RootFs) -> SandboxSpec {
    let arguments = arguments(stage, &instruction.command);
    let mut spec = SandboxSpec::new(rootfs, arguments.into_iter().map(OsString::from).collect());
    let environment = stage.scope.process_environment();
    spec.env = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    if let (MtimePolicy::Fixed(epoch), None) =
        (stage.build.maker.options.mtime, spec.env.iter().find(|(name, _)| name == SOURCE_DATE_EPOCH))
    {
        spec.env.push((SOURCE_DATE_EPOCH.into(), epoch.seconds().to_string().into()));
    }
    spec.cwd = PathBuf::from(stage.image.working_directory());
    spec.user = without_root(&stage.image.exec().user);
    spec.hostname = host_name(stage).to_owned();
    spec.no_new_privileges = false;
    spec.network = if wants_network(instruction) { Network::Host } else { Network::None };
    spec.files = etc_files(host_name(stage));
    spec
}

/// The files of `/etc` that belong to a process's surroundings. They are mounted, so what is written to them never gets
/// into a layer. `/etc/hostname` is not among them: as with BuildKit it is the image's own.
fn etc_files(host_name: &str) -> Vec<EtcFile> {
    let hosts = format!("127.0.0.1\tlocalhost {host_name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    // A host without resolver configuration gives its builds none.
    let resolver = std::fs::read("/etc/resolv.conf").unwrap_or_default();
    let file = |target: &str, content| EtcFile { target: PathBuf::from(target), content };
    vec![file("/etc/hosts", hosts.into_bytes()), file("/etc/resolv.conf", resolver)]
}

/// Runs the process to its end; an unsuccessful one is an error.
fn run_process(
    build: &Build<'_>,
    spec: SandboxSpec,
    process: &[String],
    id: StepId,
    span: Span,
) -> Result<(), BuildError> {
    let failed = |error: SandboxError| {
        let what = if matches!(error, SandboxError::Lost(_)) { "wait for" } else { "start" };
        let diagnostic = Diagnostic::error(span, format!("failed to {what} the step: {error}"));
        let diagnostic = match is_hosts(&error) {
            true => diagnostic.help("`rimg doctor` shows what the host lacks for RUN steps"),
            false => diagnostic,
        };
        BuildError::Run(Box::new(RunFailure { diagnostic, exit_code: None, last_lines: Vec::new() }))
    };
    let spawned = Sandbox::new(spec).and_then(|sandbox| sandbox.spawn(Stdio::output_piped()));
    if spawned.is_err() {
        // A Ctrl-C reaches the whole foreground of a terminal, and so a sandbox that has not left it yet.
        build.check_stopped()?;
    }
    let mut running = spawned.map_err(failed)?;
    let last_lines = output::follow(build, id, &mut running);
    let status = running.wait().map_err(failed)?;
    build.check_stopped()?;
    match status {
        ExitStatus { code: 0, exec_error: None, .. } => Ok(()),
        status => Err(BuildError::Run(Box::new(failure(&status, process, last_lines, span, owners())))),
    }
}

/// Whether the kernel refused something, and not the image or the Buildfile asked for what cannot be.
fn is_hosts(error: &SandboxError) -> bool {
    match error {
        SandboxError::Invalid(_) | SandboxError::UserUnmapped(_) => false,
        SandboxError::Setup(failure) => failure.errno != 0,
        _ => true,
    }
}

/// A command for a message: of a script its first line. The Buildfile's lines stand below the message.
fn on_one_line(command: &str) -> String {
    let mut lines = command.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    if lines.next().is_some() { format!("{first} …") } else { first }
}

/// libc's messages for the errors of chown(2), setuid(2) and setgroups(2) where one id is mapped.
const NO_SUCH_OWNER: [&str; 2] = ["Invalid argument", "Operation not permitted"];

/// The error for a process that did not end well.
fn failure(
    status: &ExitStatus,
    process: &[String],
    last_lines: Vec<String>,
    span: Span,
    owners: Owners,
) -> RunFailure {
    let shown = on_one_line(&process.join(" "));
    let message = match (&status.exec_error, status.signal) {
        (Some(error), _) => format!("failed to {error}"),
        (None, Some(signal)) => format!("`{shown}` was ended by signal {signal}"),
        (None, None) => format!("`{shown}` failed with exit code {}", status.code),
    };
    let mut diagnostic = Diagnostic::error(span, message);
    if let Some(error) = &status.exec_error {
        diagnostic = match error.errno {
            // ENOENT
            2 => diagnostic.help("the image has no such program, or not the interpreter that it names"),
            // ENOEXEC
            8 => diagnostic.help("the program is for another processor"),
            _ => diagnostic,
        };
    }
    let refused = |line: &String| NO_SUCH_OWNER.iter().any(|words| line.contains(words));
    if owners == Owners::Squash && last_lines.iter().any(refused) {
        diagnostic = diagnostic.help(
            "without subordinate ids there are no users but root in RUN steps: changing owners or users fails; \
             `rimg doctor` shows how to get them",
        );
    }
    RunFailure { diagnostic, exit_code: u8::try_from(status.code).ok(), last_lines }
}

/// Makes a layer of the changes and its snapshot of the upper directory.
fn commit(
    build: &Build<'_>,
    snapshots: &Snapshots,
    workspace: &RunWorkspace,
    changes: &Changes,
    times: SnapshotTimes,
) -> Result<Made, LayerStepError> {
    if changes.entries.is_empty() {
        return Ok((None, None));
    }
    let maker = &build.maker;
    let mut writer = LayerWriter::new(build.store.ingest_local()?, maker.options)?;
    for entry in &changes.entries {
        let entry = with_image_xattrs(entry);
        match entry.kind {
            EntryKind::Regular { .. } => writer.append(&entry, maker.stop.reader(changes.open(&entry)?))?,
            _ => writer.append_empty(&entry)?,
        }
    }
    let finished = writer.finish()?;
    let count = finished.index.entries.len();
    let layer = maker.commit(finished)?;
    let adopted = snapshots.adopt(&workspace.upper(), changes, &layer.diff_id, times);
    adopted.map_err(|error| LayerStepError::Read(std::io::Error::other(error)))?;
    Ok((Some(layer), Some(count)))
}

/// The entry without what describes the host: labels of security modules, and marks only the host's root may make.
fn with_image_xattrs(entry: &Entry) -> Entry {
    let mut entry = entry.clone();
    entry.xattrs.retain(|name, _| is_image_xattr(name));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_owner_is_explained_where_there_is_none_but_root() {
        let help = |line: &str, owners: Owners| {
            let status = ExitStatus { code: 1, signal: None, exec_error: None, lost_output: None };
            let span = Span::default();
            let failure = failure(&status, &["chown".to_owned()], vec![line.to_owned()], span, owners);
            format!("{:?}", failure.diagnostic).contains("without subordinate ids")
        };
        assert!(help("chown: /bin: Invalid argument", Owners::Squash));
        assert!(help("setgroups 65534 failed - setgroups (1: Operation not permitted)", Owners::Squash));
        assert!(!help("chown: /bin: Invalid argument", Owners::Keep));
        assert!(!help("make: *** [all] Error 2", Owners::Squash));
    }
}
