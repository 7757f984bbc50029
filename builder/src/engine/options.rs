//! What a build is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rimg_formats::epoch::Epoch;
use rimg_formats::layer::LayerCompression;
use rimg_formats::platform::Platform;
use rimg_formats::reference::Reference;

use crate::context::read_limited;
use crate::ignore::{IGNORE_BYTES_MAX, IgnoreError, IgnorePatterns};
use crate::source::{SOURCE_BYTES_MAX, SourceError, SourceFile};

/// The names of a Buildfile that are looked for, best first.
pub const BUILDFILE_NAMES: [&str; 5] =
    ["Buildfile", "Dockerfile", "dockerfile", "Containerfile", "buildfile"];

/// Everything that decides what is built. The Buildfile and the context are separate from the rest because a build
/// may have no context.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The Buildfile's text.
    pub buildfile: SourceFile,
    /// The directory that COPY and ADD read; `None` when there is none.
    pub context: Option<PathBuf>,
    /// What of the context is left out.
    pub ignore: IgnorePatterns,
    /// Where relative paths of `FROM ./directory` start; the context if `None`.
    pub base_directory: Option<PathBuf>,
    /// `--target`: name or number of a stage; the last one if not given.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--build-context`, by name: a directory, `docker-image://REF` or `oci-layout://DIR[:TAG|@DIGEST]`.
    pub named_contexts: BTreeMap<String, String>,
    /// Names for the image. Without one it is kept under `untagged`.
    pub tags: Vec<Reference>,
    /// Further labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Do every step again.
    pub no_cache: bool,
    /// The time of entries and of the configuration.
    pub epoch: Epoch,
    /// The time of the newest file of a context that came as a tar: what `SOURCE_DATE_EPOCH=context` means.
    pub context_time: Option<Epoch>,
    /// Whether [`BuildOptions::epoch`] was given by the user (`SOURCE_DATE_EPOCH`), so that RUN steps see it too.
    pub epoch_is_given: bool,
    /// Which times entries get.
    pub timestamps: Timestamps,
    /// How layers are compressed.
    pub compression: LayerCompression,
    /// Threads for hashing and compressing; 0 means one for each processor. Does not change the result.
    pub threads: usize,
    /// What the image runs on.
    pub platform: Platform,
    /// Whether [`BuildOptions::platform`] was asked for. The configuration names it then, whatever the base is for.
    pub platform_is_given: bool,
    /// Let RUN steps see all files as root's where there are no other ids, instead of stopping at the first.
    pub squash_owners: bool,
    /// Secrets by id.
    pub secrets: BTreeMap<String, Vec<u8>>,
}

/// Which times entries get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timestamps {
    /// All the same, [`BuildOptions::epoch`].
    #[default]
    Constant,
    /// Files keep theirs.
    Preserve,
}

impl BuildOptions {
    /// The defaults, for a Buildfile without a context.
    pub fn new(buildfile: SourceFile) -> BuildOptions {
        BuildOptions {
            buildfile,
            context: None,
            ignore: IgnorePatterns::default(),
            base_directory: None,
            target: None,
            build_args: BTreeMap::new(),
            named_contexts: BTreeMap::new(),
            tags: Vec::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            no_cache: false,
            epoch: Epoch::DEFAULT,
            context_time: None,
            epoch_is_given: false,
            timestamps: Timestamps::Constant,
            compression: LayerCompression::GZIP_DEFAULT,
            threads: 0,
            platform: Platform::host(),
            platform_is_given: false,
            squash_owners: false,
            secrets: BTreeMap::new(),
        }
    }

    /// The defaults, for a context directory and a Buildfile from elsewhere.
    ///
    /// # Errors
    /// See [`InputError`].
    pub fn for_context_and(context: &Path, buildfile: SourceFile) -> Result<BuildOptions, InputError> {
        let mut options = BuildOptions::new(buildfile);
        options.ignore = ignore_file(context)?.unwrap_or_default();
        options.context = Some(context.to_owned());
        Ok(options)
    }

    /// The files that [`BuildOptions::for_context`] may read.
    pub(crate) fn files_of(context: &Path, file: Option<&Path>) -> Vec<PathBuf> {
        let buildfiles = match file {
            Some(file) => vec![file.to_owned()],
            None => BUILDFILE_NAMES.map(|name| context.join(name)).to_vec(),
        };
        let own_ignores = buildfiles.iter().map(|path| {
            let mut name = path.clone().into_os_string();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let own_ignores: Vec<PathBuf> = own_ignores.collect();
        buildfiles.into_iter().chain(own_ignores).chain([context.join(".dockerignore")]).collect()
    }

    /// The defaults, for a context directory: its Buildfile and its ignore file are read. `file` names another
    /// Buildfile. `NAME.dockerignore` beside the Buildfile beats the context's `.dockerignore`.
    ///
    /// # Errors
    /// See [`InputError`].
    pub fn for_context(context: &Path, file: Option<&Path>) -> Result<BuildOptions, InputError> {
        let (path, bytes) = match file {
            Some(file) => {
                (file.to_owned(), read(file, SOURCE_BYTES_MAX as u64)?.ok_or_else(|| missing(file))?)
            }
            None => default_buildfile(context)?,
        };
        let mut own_ignore = path.clone().into_os_string();
        own_ignore.push(".dockerignore");
        let mut options = BuildOptions::new(SourceFile::from_bytes(path.display().to_string(), bytes)?);
        let own = patterns(Path::new(&own_ignore))?;
        options.ignore = own.map_or_else(|| ignore_file(context), |own| Ok(Some(own)))?.unwrap_or_default();
        options.context = Some(context.to_owned());
        Ok(options)
    }
}

/// Why the inputs of a build cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// None of [`BUILDFILE_NAMES`] is in the context.
    #[error("no Buildfile in `{}`: expected one of Buildfile, Dockerfile or Containerfile", .0.display())]
    NoBuildfile(PathBuf),
    /// A file cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The Buildfile is no text.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A context that came as a tar is wrong.
    #[error("the context on standard input: {0}")]
    Archive(String),
    /// The ignore file is wrong.
    #[error("{}: {source}", path.display())]
    Ignore {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IgnoreError,
    },
}

/// The patterns of a context's `.dockerignore`; `None` when it has none.
pub(super) fn ignore_file(context: &Path) -> Result<Option<IgnorePatterns>, InputError> {
    patterns(&context.join(".dockerignore"))
}

fn patterns(path: &Path) -> Result<Option<IgnorePatterns>, InputError> {
    let Some(bytes) = read_regular(path, IGNORE_BYTES_MAX as u64)? else {
        // Nobody means to exclude nothing by a directory of this name.
        if path.is_dir() {
            let source = std::io::Error::from(std::io::ErrorKind::IsADirectory);
            return Err(InputError::Read { path: path.to_owned(), source });
        }
        return Ok(None);
    };
    let parsed = IgnorePatterns::parse(&bytes);
    Ok(Some(parsed.map_err(|source| InputError::Ignore { path: path.to_owned(), source })?))
}

fn default_buildfile(context: &Path) -> Result<(PathBuf, Vec<u8>), InputError> {
    for name in BUILDFILE_NAMES {
        let path = context.join(name);
        if let Some(bytes) = read_regular(&path, SOURCE_BYTES_MAX as u64)? {
            return Ok((path, bytes));
        }
    }
    match std::fs::metadata(context) {
        Err(source) => Err(InputError::Read { path: context.to_owned(), source }),
        Ok(_) => Err(InputError::NoBuildfile(context.to_owned())),
    }
}

fn missing(file: &Path) -> InputError {
    InputError::Read { path: file.to_owned(), source: rustix::io::Errno::NOENT.into() }
}

/// A file's content; `None` when it does not exist.
fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, InputError> {
    let read = std::fs::File::open(path).and_then(|file| read_limited(&file, bytes_max));
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(InputError::Read { path: path.to_owned(), source }),
    }
}

/// The content of a file that the context, a stranger's perhaps, brings under a name that is looked for; `None` when it
/// does not exist. A pipe would never end, and a directory may well be called `buildfile`.
fn read_regular(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, InputError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => read(path, bytes_max),
        Ok(metadata) if metadata.is_dir() => Ok(None),
        Ok(_) => {
            let source = std::io::Error::other("it is no regular file");
            Err(InputError::Read { path: path.to_owned(), source })
        }
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => Err(InputError::Read { path: path.to_owned(), source }),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}
