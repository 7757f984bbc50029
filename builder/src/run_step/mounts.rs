//! `RUN --mount=`: what is shown to the process, and what of it enters the key.
//!
//! | type | shown | in the key |
//! |---|---|---|
//! | `bind` | the context's own files where nothing hides in them, root owns all and nobody may write, else a copy | its content |
//! | `cache` | a directory of the store, locked as `sharing` says: [`super::caches`] | its options |
//! | `tmpfs` | an empty file system | its options |
//! | `secret` | a file that only exists in memory, or a variable | its options, never its content |
//!
//! The process cannot tell a copy from the files themselves: both belong to root, whoever checked them out, and both
//! have the files' own times, if these are real ones. What comes from a stage or an image is as new as what the step
//! writes. Beside a cache mount what it has not seen yet is newer: [`super::renewed`].

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use rimg_formats::digest::Digest;
use rimg_formats::layer::{EntryKind, LayerPath, Mtime, MtimePolicy};
use rimg_runner::SandboxSpec;
use rimg_runner::spec::{EtcFile, Mount as SandboxMount, MountKind as SandboxMountKind, PrivateFile, Tmpfs};

use super::caches::{Cache, CacheId};
use super::renewed::{Bind, Renewed};
use super::seen::Sight;
use super::workspace::RunWorkspace;
use crate::cache::StepInputs;
use crate::context::DiskTree;
use crate::copy::destination::clean;
use crate::copy::missing;
use crate::diagnostic::Diagnostic;
use crate::engine::{Build, BuildError, StageRun, absent_source, source_tree, step_error, unsupported_mount};
use crate::layer_plan::{LayerPlan, PlannedEntry, read_xattrs};
use crate::materialise::materialise;
use crate::plan::{CopySource, ExpandedRun, Step};
use crate::source_tree::land;
use crate::syntax::{CacheSharing, Mount, MountKind};

/// The mounts of a step. Dropping it releases the locks of its caches.
pub(super) struct MountPlan {
    mounts: Vec<Prepared>,
    caches: RefCell<Vec<Cache>>,
    working_directory: PathBuf,
}

/// A mount, with what can be known before the step runs.
struct Prepared {
    target: String,
    read_only: bool,
    kind: Kind,
    /// What of it enters the key.
    options: String,
    content: Option<Digest>,
}

enum Kind {
    Bind {
        /// What is mounted; the first entry is its root.
        entries: Vec<PlannedEntry>,
        /// Where the same lies on disk, if it may be shown in place.
        in_place: Option<(DiskTree, LayerPath)>,
        /// It comes from a stage or an image.
        is_of_layers: bool,
    },
    Cache {
        id: CacheId,
        sharing: CacheSharing,
        /// What it starts with; the first entry is its root.
        start: Vec<PlannedEntry>,
    },
    Tmpfs {
        size: Option<u64>,
    },
    SecretFile {
        content: Vec<u8>,
        mode: u32,
        owner: (u32, u32),
    },
    SecretVariable {
        name: String,
        content: Vec<u8>,
    },
}

/// The build argument that sets the caches of some builds apart from those of others.
const CACHE_NAMESPACE_ARGUMENT: &str = "BUILDKIT_CACHE_MOUNT_NS";

/// What a copied mount is called in its directory.
const CONTENT: &str = "content";

impl MountPlan {
    /// Resolves the mounts of an instruction.
    pub(super) fn new(
        stage: &StageRun<'_>,
        step: &Step,
        instruction: &ExpandedRun,
    ) -> Result<MountPlan, BuildError> {
        let mut mounts = Vec::new();
        for (mount, source) in instruction.mounts.iter().zip(&step.mount_sources) {
            plan(stage, mount, source, &mut mounts)?;
        }
        let working_directory = PathBuf::from(stage.image.working_directory());
        Ok(MountPlan { mounts, caches: RefCell::default(), working_directory })
    }

    /// Adds what the mounts contribute to the key.
    pub(super) fn add_inputs(&self, inputs: &mut StepInputs) {
        for mount in &self.mounts {
            inputs.add(format!("mount {}", mount.target), &mount.options);
            if let Some(content) = mount.content {
                inputs.add_digest(format!("the content of mount {}", mount.target), content);
            }
        }
    }

    /// Whether any of them is a cache.
    pub(super) fn has_caches(&self) -> bool {
        self.mounts.iter().any(|mount| matches!(mount.kind, Kind::Cache { .. }))
    }

    /// The bind mounts among them.
    pub(super) fn binds(&self) -> impl Iterator<Item = Bind<'_>> {
        self.mounts.iter().enumerate().filter_map(|(number, mount)| match &mount.kind {
            Kind::Bind { entries, is_of_layers, .. } => {
                let target = absolute(&mount.target, &self.working_directory);
                Some(Bind { number, target, entries, is_of_layers: *is_of_layers })
            }
            _ => None,
        })
    }

    /// Makes what has to be made and puts the mounts into the sandbox. The caches are taken already.
    pub(super) fn prepare(
        &self,
        workspace: &RunWorkspace,
        renewed: &Renewed,
        spec: &mut SandboxSpec,
    ) -> io::Result<()> {
        for (number, mount) in self.mounts.iter().enumerate() {
            let target = absolute(&mount.target, &spec.cwd);
            let bind = |source| SandboxMount {
                kind: SandboxMountKind::Bind { source },
                target: target.clone(),
                read_only: mount.read_only,
            };
            match &mount.kind {
                Kind::Bind { entries, in_place, .. } => {
                    let times = renewed.binds.get(&number).map(Vec::as_slice);
                    let in_place = in_place.as_ref().filter(|_| times.is_none());
                    spec.mounts.push(bind(bind_source(entries, times, in_place, workspace, number)?));
                }
                Kind::Cache { id, start, .. } => {
                    let caches = self.caches.borrow();
                    let found = caches.iter().find(|cache| cache.id == *id);
                    let cache = found.ok_or_else(|| io::Error::other("a cache without directory"))?;
                    spec.mounts.push(bind(cache.content(start)?));
                }
                Kind::Tmpfs { size } => spec.mounts.push(SandboxMount {
                    kind: SandboxMountKind::Tmpfs(Tmpfs {
                        mode: Some(0o1777),
                        exec: true,
                        parameters: size.iter().map(|size| ("size".to_owned(), size.to_string())).collect(),
                        ..Tmpfs::default()
                    }),
                    target,
                    read_only: mount.read_only,
                }),
                Kind::SecretFile { content, mode, owner } => spec.private_files.push(PrivateFile {
                    file: EtcFile { target, content: content.clone() },
                    mode: *mode,
                    uid: owner.0,
                    gid: owner.1,
                }),
                Kind::SecretVariable { name, content } => {
                    use std::os::unix::ffi::OsStringExt;
                    spec.env.push((name.into(), std::ffi::OsString::from_vec(content.clone())));
                }
            }
        }
        Ok(())
    }
}

impl MountPlan {
    /// Locks the caches, in one order for everybody, or two steps could wait for each other.
    pub(super) fn take_caches(&self, build: &Build<'_>) -> io::Result<()> {
        let mut caches: Vec<(&CacheId, CacheSharing)> = Vec::new();
        for mount in &self.mounts {
            if let Kind::Cache { id, sharing, .. } = &mount.kind {
                caches.push((id, *sharing));
            }
        }
        caches.sort_by(|left, right| left.0.cmp(right.0));
        caches.dedup_by(|left, right| left.0 == right.0);
        for (id, sharing) in caches {
            self.caches.borrow_mut().push(Cache::take(build, id, sharing)?);
        }
        Ok(())
    }

    /// Lets all caches take note of what the step sees; the times at which it has to see it. Of several caches, the one
    /// that has seen the last of it latest decides.
    pub(super) fn look(
        &self,
        build: &Build<'_>,
        sights: &[Sight],
        slot: u64,
    ) -> io::Result<Vec<Option<i64>>> {
        let mut latest = vec![None; sights.len()];
        for cache in self.caches.borrow_mut().iter_mut() {
            for (time, of_this) in latest.iter_mut().zip(cache.look(build, sights, slot)?) {
                *time = of_this.max(*time);
            }
        }
        Ok(latest)
    }
}

fn absolute(target: &str, working_directory: &Path) -> PathBuf {
    working_directory.join(target)
}

/// Resolves one mount; secrets may become several, or none.
fn plan(
    stage: &StageRun<'_>,
    mount: &Mount,
    source: &CopySource,
    mounts: &mut Vec<Prepared>,
) -> Result<(), BuildError> {
    // Among them every ssh mount.
    if let Some(error) = unsupported_mount(mount) {
        return Err(error.into());
    }
    let target = mount.target.clone().unwrap_or_default();
    // Without a target a bind is shown where the process starts.
    let target = match &mount.kind {
        MountKind::Bind { .. } if target.is_empty() => stage.image.working_directory().to_owned(),
        _ => target,
    };
    let lands = absolute(&target, Path::new(stage.image.working_directory()));
    if !target.is_empty() && clean(lands.as_os_str().as_encoded_bytes()).is_ok_and(|path| path.is_root()) {
        return Err(Diagnostic::error(mount.span, "a mount cannot cover `/`")
            .help("mount it on a folder: `target=/path/in/the/container`")
            .into());
    }
    let read_only = mount.read_only;
    let access = if read_only { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind { source: path } => {
            let (kind, content) = bind(stage, mount, source, path)?;
            let options = format!("bind {access} {path}");
            mounts.push(Prepared { target, read_only, kind, options, content: Some(content) });
        }
        MountKind::Cache { id, sharing, mode, uid, gid, source: path } => {
            let id = id.clone().unwrap_or_else(|| target.clone());
            let id = match stage.build.options.build_args.get(CACHE_NAMESPACE_ARGUMENT) {
                Some(namespace) if !namespace.is_empty() => format!("{namespace}/{id}"),
                _ => id,
            };
            let start = match mount.from.is_some() {
                true => Some(shown(stage, mount, source, path)?),
                false => None,
            };
            let start_digest = start.as_ref().map(|shown| shown.digest);
            let id = CacheId { id, mode: *mode, owner: (*uid, *gid), start: start_digest };
            let options = format!("cache {access} {}", id.describe());
            let start = start.map(|shown| shown.entries).unwrap_or_default();
            if start.first().is_some_and(|root| root.entry.kind != EntryKind::Directory) {
                let error = format!("a cache is a directory, and `{path}` is none");
                return Err(BuildError::at(mount.span, error));
            }
            let kind = Kind::Cache { id, sharing: *sharing, start };
            mounts.push(Prepared { target, read_only, kind, options, content: None });
        }
        MountKind::Tmpfs { size } => {
            let options = format!("tmpfs {access} {size:?}");
            mounts.push(Prepared {
                target,
                read_only,
                kind: Kind::Tmpfs { size: *size },
                options,
                content: None,
            });
        }
        MountKind::Secret { id, env, required, mode, uid, gid } => {
            let Some(content) = stage.build.options.secrets.get(id) else {
                return if *required {
                    let error = Diagnostic::error(mount.span, format!("the secret `{id}` is required"));
                    Err(error.help(format!("give it: `--secret id={id},src=FILE`")).into())
                } else {
                    Ok(())
                };
            };
            let options = format!("secret {id} {mode:o} {uid}:{gid} {env:?}");
            if let Some(name) = env {
                if content.contains(&0) {
                    let error = format!("the secret `{id}` holds a NUL byte and cannot be a variable");
                    return Err(Diagnostic::error(mount.span, error)
                        .help(format!("mount it as a file: `--mount=type=secret,id={id},target=/path`"))
                        .into());
                }
                let kind = Kind::SecretVariable { name: name.clone(), content: content.clone() };
                mounts.push(Prepared {
                    target: name.clone(),
                    read_only,
                    kind,
                    options: options.clone(),
                    content: None,
                });
            }
            if mount.target.is_some() || env.is_none() {
                let target = if target.is_empty() { format!("/run/secrets/{id}") } else { target };
                let kind = Kind::SecretFile { content: content.clone(), mode: *mode, owner: (*uid, *gid) };
                mounts.push(Prepared { target, read_only, kind, options, content: None });
            }
        }
        MountKind::Ssh { .. } => {}
    }
    Ok(())
}

/// A bind mount: its content's digest, and whether it can be shown in place.
fn bind(
    stage: &StageRun<'_>,
    mount: &Mount,
    source: &CopySource,
    path: &str,
) -> Result<(Kind, Digest), BuildError> {
    let Shown { entries, digest, path } = shown(stage, mount, source, path)?;
    let whole = *source == CopySource::Context && stage.build.options.ignore.is_empty();
    let in_place = match mount.read_only && whole {
        true => Some((stage.build.context(mount.span)?, path)),
        false => None,
    };
    let is_of_layers = !matches!(source, CopySource::Context | CopySource::Path(_));
    Ok((Kind::Bind { entries, in_place, is_of_layers }, digest))
}

/// What a mount takes from a source.
struct Shown {
    /// The first entry is its root, called [`CONTENT`].
    entries: Vec<PlannedEntry>,
    digest: Digest,
    /// Where it lies in the source.
    path: LayerPath,
}

fn shown(stage: &StageRun<'_>, mount: &Mount, source: &CopySource, path: &str) -> Result<Shown, BuildError> {
    let failed = |message: String| BuildError::at(mount.span, message);
    let tree = source_tree(stage, source, mount.span)?;
    let cleaned = clean(path.as_bytes()).map_err(|error| failed(error.to_string()))?;
    let mut plan = LayerPlan::new();
    let landing = land(&*tree, &cleaned).map_err(|error| failed(error.to_string()))?;
    let Some(node) = landing.node else {
        let (Ok(error) | Err(error)) = missing(&*tree, path, &cleaned);
        return Err(absent_source(&error, mount.span).into());
    };
    let is_directory = node.is_directory();
    let content = LayerPath::parse(CONTENT).expect("the constant is a clean path");
    let owner = node.owner.unwrap_or((0, 0));
    let planned = plan.put_anew(content.clone(), node, owner).and_then(|()| {
        if is_directory { plan.put_contents(&*tree, &landing.path, &content) } else { Ok(()) }
    });
    planned.map_err(|error| failed(error.to_string()))?;
    let began_ns = plan.began_ns;
    let mut entries = plan.into_entries();
    let digest = stage
        .build
        .maker
        .content_digest(&mut entries, began_ns)
        .map_err(|error| step_error(error, mount.span))?;
    Ok(Shown { entries, digest, path: landing.path })
}

/// What a bind mount shows: the files themselves, or a copy made now, with other `times` if they are given.
fn bind_source(
    entries: &[PlannedEntry],
    times: Option<&[Mtime]>,
    in_place: Option<&(DiskTree, LayerPath)>,
    workspace: &RunWorkspace,
    number: usize,
) -> io::Result<PathBuf> {
    if let Some((tree, path)) = in_place
        && tree.is_roots(path)?
    {
        // A relative directory would be looked for from wherever the sandbox is made.
        return Ok(tree.directory().canonicalize()?.join(path.as_path()));
    }
    let directory = workspace.mount_directory(number)?;
    let mut entries = entries.to_vec();
    read_xattrs(&mut entries)?;
    for (planned, time) in entries.iter_mut().zip(times.into_iter().flatten()) {
        planned.entry.mtime = *time;
    }
    materialise(&entries, &directory, MtimePolicy::Preserve)?;
    Ok(directory.join(CONTENT))
}
