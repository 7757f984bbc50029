//! [`Builder`]: carries a plan out.
//!
//! 1. The Buildfile is parsed and planned: [`crate::syntax`], [`crate::plan`].
//! 2. Images that it names are resolved, and planned again with the triggers (ONBUILD) they bring.
//! 3. Stages run as soon as those they need are done (`schedule`); `stage` is one stage's story, a step after the
//!    other; `files` does COPY, ADD and WORKDIR, `crate::run_step` RUN, `crate::metadata` the rest.
//! 4. The target's state becomes configuration and manifest, which are put into the store, the names last.
//!
//! Of each step two questions are asked: what is its key ([`crate::cache`]), and what does it do.

mod epoch;
mod error;
mod files;
mod options;
mod schedule;
mod sources;
mod stage;
mod stop;
mod unsupported;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::{DiffId, Digest};
use rimg_formats::layer::{LayerOptions, MtimePolicy};
use rimg_formats::platform::Platform;
use rimg_formats::reference::{ImageName, Reference, RepositoryName, Tag};
use rimg_formats::store::{Image, Lease, PutOptions, Store};

pub use self::error::{BuildError, RunFailure};
pub(crate) use self::files::{absent_source, step_error};
pub use self::options::{BUILDFILE_NAMES, BuildOptions, InputError, Timestamps};
use self::schedule::run_in_order;
pub(crate) use self::sources::{read_error, source_tree, unreadable};
use self::stage::StageResult;
pub(crate) use self::stage::StageRun;
pub use self::stop::Interrupt;
pub(crate) use self::stop::{Stop, Stopped};
pub(crate) use self::unsupported::{unsupported_in_run, unsupported_mount};
use crate::base::{BaseImageError, BaseImages};
use crate::cache::{Cache, CacheKey};
use crate::context::{DiskTree, processors};
use crate::diagnostic::Diagnostic;
use crate::events::{Event, EventSink, StageOutline};
use crate::layer_step::LayerMaker;
use crate::parallel;
use crate::plan::{Base, CopySource, Graph, PlanOptions, Stage};
use crate::source::Span;
use crate::stat_cache::StatCache;
use crate::syntax::{Buildfile, Instruction, InstructionKind, MountText, parse};

/// The repository of images that were built without a name.
pub const UNTAGGED: &str = "untagged";

/// How often a build is planned again because base images brought triggers that name further images.
const PLANS_MAX: usize = 8;

/// Base images that are fetched at once: a registry's answers are waited for, but its patience has bounds.
const IMAGES_AT_ONCE: usize = 8;

/// Stages at work at once, for each processor. Steps wait for networks, disks and locks as often as they compute, so
/// one for each processor would leave processors idle; without a bound, a file of hundreds of stages would run as many
/// compilers at once, and memory would end before the processors did.
const STAGES_PER_PROCESSOR: usize = 4;
/// As many on the smallest machine: stages of `apt-get` and `npm install` do little but wait.
const STAGES_AT_ONCE_MIN: usize = 8;

fn stages_at_once() -> usize {
    processors().saturating_mul(STAGES_PER_PROCESSOR).max(STAGES_AT_ONCE_MIN)
}

/// What a build does with a user namespace, when an ordinary user runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserNamespace {
    /// RUN steps cannot do without.
    Needed,
    /// Something may come of it: an operating system on this machine shows its owners as what they are to the image,
    /// and the triggers of a base image may have RUN steps.
    Useful,
    /// Nothing.
    Unused,
}

/// Builds images.
pub struct Builder<'a> {
    store: Store,
    images: &'a dyn BaseImages,
    options: BuildOptions,
    interrupt: Interrupt,
    /// What is wrong with an argument that the options were to take up.
    problem: Option<Diagnostic>,
}

/// An image that was built.
#[derive(Clone, Debug)]
pub struct BuildResult {
    /// The manifest.
    pub manifest: Descriptor,
    /// Digest of the configuration: docker's *image id*.
    pub config: Digest,
    /// The layers, lowest first.
    pub layers: Vec<(Descriptor, DiffId)>,
    /// The repository that holds it, and the tags that name it.
    pub names: Vec<(ImageName, Option<Tag>)>,
}

/// A build while it runs.
pub(crate) struct Build<'a> {
    pub(crate) options: &'a BuildOptions,
    pub(crate) store: &'a Store,
    pub(crate) maker: LayerMaker,
    pub(crate) graph: Graph,
    pub(crate) events: &'a EventSink<'a>,
    images: BTreeMap<(String, String), Image>,
    context: OnceLock<DiskTree>,
    turns: Mutex<HashMap<CacheKey, Turn>>,
    pub(crate) stop: Stop,
    /// Keeps the layers of all images that the build reads.
    _held: Option<Lease>,
}

/// Held while a RUN step of one key is at work.
pub(crate) type Turn = Arc<Mutex<()>>;

/// A Buildfile and its plan, with the images it names.
struct Planned {
    file: Buildfile,
    graph: Graph,
    images: BTreeMap<(String, String), Image>,
}

impl<'a> Builder<'a> {
    /// A builder of one image.
    pub fn new(store: Store, images: &'a dyn BaseImages, options: BuildOptions) -> Builder<'a> {
        let mut builder = Builder { store, images, options, interrupt: Interrupt::default(), problem: None };
        // Mistakes in the file are told when it is built.
        if let Ok(file) = parse(&builder.options.buildfile) {
            let plan_options = builder.plan_options();
            builder.problem = epoch::settle(&mut builder.options, &file, &plan_options).err();
        }
        builder
    }

    /// What the build is asked for.
    pub fn options(&self) -> &BuildOptions {
        &self.options
    }

    /// What ends the build before its end, from another thread.
    pub fn interrupt(&self) -> Interrupt {
        self.interrupt.clone()
    }

    /// Builds the image. When it returns, the image is durable in the store under its names.
    ///
    /// # Errors
    /// See [`BuildError`]; nothing is named then, but finished steps stay in the cache.
    pub fn build(&self, events: &EventSink<'_>) -> Result<BuildResult, BuildError> {
        let planned = self.plan()?;
        announce(&planned, events);
        let build = self.prepare(planned, events)?;
        let dependencies: Vec<_> =
            build.graph.stages.iter().map(|stage| stage.dependencies.clone()).collect();
        let results = run_in_order(&dependencies, stages_at_once(), &|index, results| {
            let result = stage::run(&build, index, results);
            if result.is_err() {
                build.stop.fail();
            }
            result
        });
        // What was learnt about files is true whether or not the build succeeded.
        let saved = build.maker.save_stat_cache();
        let results = results?;
        saved?;
        self.publish(&results[build.graph.target], events)
    }

    /// Parses, plans and resolves base images until the plan is stable.
    fn plan(&self) -> Result<Planned, BuildError> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone().into());
        }
        let file = parse(&self.options.buildfile)?;
        let mut options = self.plan_options();
        let mut images = BTreeMap::new();
        for _ in 0..PLANS_MAX {
            let graph = Graph::plan(&file, &options)?;
            unsupported::check(&graph)?;
            self.resolve_images(&graph, &mut images)?;
            let triggers = triggers(&graph, &images, &self.options.platform);
            if triggers == options.triggers {
                return Ok(Planned { file, graph, images });
            }
            options.triggers = triggers;
        }
        let message = "the triggers of base images name ever more images";
        Err(Diagnostic::error_without_place(message).into())
    }

    fn plan_options(&self) -> PlanOptions {
        let options = &self.options;
        PlanOptions {
            target: options.target.clone(),
            build_args: options.build_args.clone(),
            target_platform: options.platform.clone(),
            source_date_epoch: options.epoch_is_given.then(|| options.epoch.seconds().to_string()),
            named_contexts: options.named_contexts.clone(),
            ..PlanOptions::default()
        }
    }

    /// Resolves the images that the graph names and `images` lacks, several at a time.
    fn resolve_images(
        &self,
        graph: &Graph,
        images: &mut BTreeMap<(String, String), Image>,
    ) -> Result<(), BuildError> {
        let wanted: BTreeMap<(String, String), Span> = named_images(graph, &self.options.platform);
        let missing: Vec<_> = wanted.into_iter().filter(|(key, _)| !images.contains_key(key)).collect();
        let resolved = parallel::each(&missing, IMAGES_AT_ONCE, |((name, platform), span)| {
            self.resolve_image(name, platform, *span)
        });
        let mut errors = Vec::new();
        for ((key, _), result) in missing.into_iter().zip(resolved) {
            match result {
                Ok(image) => drop(images.insert(key, image)),
                Err(error) => errors.push(error),
            }
        }
        errors.sort_by_key(|error| error.span);
        // What made a name an image is worth knowing when there is no such image.
        let is_doubt =
            |warning: &&Diagnostic| matches!(warning.code, Some("UnknownStage" | "ForwardStageReference"));
        let doubts = |error: &Diagnostic| {
            graph.warnings.iter().filter(is_doubt).find(|warning| warning.span == error.span)
        };
        let errors: Vec<Diagnostic> = errors
            .into_iter()
            .map(|error| match doubts(&error) {
                Some(doubt) => Diagnostic {
                    help: doubt.help.clone().or(error.help.clone()),
                    ..error.note(doubt.message.clone())
                },
                None => error,
            })
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors.into()) }
    }

    fn resolve_image(&self, name: &str, platform: &str, span: Span) -> Result<Image, Diagnostic> {
        let reference: Reference = name
            .parse()
            .map_err(|error| Diagnostic::error(span, format!("`{name}` is not an image: {error}")))?;
        let platform: Platform =
            platform.parse().map_err(|error| Diagnostic::error(span, format!("{error}")))?;
        self.images.resolve(&reference, &platform).map_err(|error| {
            let diagnostic = Diagnostic::error(span, format!("failed to get the image `{name}`: {error}"));
            match error {
                BaseImageError::Unknown(_) => {
                    diagnostic.label("neither in the store nor in a registry").help(format!(
                        "for a directory write `./{name}`; `rimg images` lists what the store has"
                    ))
                }
                _ if self.has_in_context(name) => {
                    diagnostic.help(format!("for the folder or tar in the context write `./{name}`"))
                }
                BaseImageError::Other { help: Some(help), .. } => diagnostic.help(help),
                _ => diagnostic,
            }
        })
    }

    /// Whether the context has something of that name.
    fn has_in_context(&self, name: &str) -> bool {
        let start = self.options.base_directory.as_ref().or(self.options.context.as_ref());
        start.is_some_and(|start| start.join(name).exists())
    }

    fn prepare<'b>(&'b self, planned: Planned, events: &'b EventSink<'b>) -> Result<Build<'b>, BuildError> {
        let options = &self.options;
        let mtime = match options.timestamps {
            Timestamps::Constant => MtimePolicy::Fixed(options.epoch),
            Timestamps::Preserve => MtimePolicy::Preserve,
        };
        let stop = Stop::new(self.interrupt.clone());
        let maker = LayerMaker {
            store: self.store.clone(),
            cache: Cache::new(self.store.clone(), !options.no_cache),
            stat_cache: StatCache::default(),
            stop: stop.clone(),
            options: LayerOptions { compression: options.compression, threads: options.threads, mtime },
        };
        let layers = planned.images.values().flat_map(|image| &image.layers);
        let layers: Vec<Digest> = layers.map(|(descriptor, _)| descriptor.digest).collect();
        let held = if layers.is_empty() { None } else { Some(self.store.lease_all(&layers)?) };
        Ok(Build {
            options,
            store: &self.store,
            maker,
            graph: planned.graph,
            events,
            images: planned.images,
            context: OnceLock::new(),
            turns: Mutex::default(),
            stop,
            _held: held,
        })
    }

    /// Puts configuration and manifest into the store and points the names at them.
    fn publish(&self, target: &StageResult, events: &EventSink<'_>) -> Result<BuildResult, BuildError> {
        let mut image = target.image.clone();
        image.config.config.labels.extend(self.options.labels.clone());
        if self.options.platform_is_given {
            image.set_platform(&self.options.platform);
        }
        let layers = image.layers.iter().map(|layer| (layer.descriptor.clone(), layer.diff_id)).collect();
        let (config, manifest) = image.finish(self.options.annotations.clone());
        let config = self.store.put_bytes(&config)?.digest;
        let mut names: BTreeMap<ImageName, Vec<Tag>> = BTreeMap::new();
        for reference in &self.options.tags {
            names.entry(reference.name()).or_default().push(reference.tag_or_latest());
        }
        if names.is_empty() {
            let name: RepositoryName = UNTAGGED.parse().expect("the constant is a repository name");
            names.insert(ImageName::from(name), Vec::new());
        }
        let mut told = Vec::new();
        for (name, tags) in names {
            let repository = self.store.repository(&name);
            repository.put_manifest(
                manifest.raw(),
                Some(manifest.media_type()),
                &tags,
                &PutOptions::local(),
            )?;
            match tags.is_empty() {
                true => told.push((name, None)),
                false => told.extend(tags.into_iter().map(|tag| (name.clone(), Some(tag)))),
            }
        }
        events(Event::Finished { manifest: manifest.digest() });
        Ok(BuildResult { manifest: manifest.descriptor(), config, layers, names: told })
    }

    /// What a user namespace is good for in this build. A fully cached build does not use it.
    ///
    /// # Errors
    /// As [`Builder::build`], for mistakes in the Buildfile.
    pub fn user_namespace(&self) -> Result<UserNamespace, BuildError> {
        let file = parse(&self.options.buildfile)?;
        let graph = Graph::plan(&file, &self.plan_options())?;
        let runs = |stage: &Stage| {
            stage.steps.iter().any(|step| matches!(step.instruction.kind, InstructionKind::Run(_)))
        };
        let based = |stage: &Stage| !matches!(stage.base, Base::Scratch | Base::Stage(_));
        Ok(match (graph.stages.iter().any(runs), graph.stages.iter().any(based)) {
            (true, _) => UserNamespace::Needed,
            (false, true) => UserNamespace::Useful,
            (false, false) => UserNamespace::Unused,
        })
    }
}

impl Build<'_> {
    /// The platform of a stage's base.
    pub(crate) fn platform_of<'s>(&'s self, stage: &'s Stage) -> &'s Platform {
        stage.platform.as_ref().unwrap_or(&self.options.platform)
    }

    /// The platform of images that are only copied from: what is built, whatever the stage's FROM says. So it is with
    /// BuildKit; a stage of its own gives another one.
    pub(crate) fn platform_of_sources(&self) -> &Platform {
        &self.options.platform
    }

    /// An image that was resolved before stages began.
    pub(crate) fn image(&self, name: &str, platform: &Platform) -> &Image {
        let key = (name.to_owned(), platform.to_string());
        self.images.get(&key).expect("every image of the graph is resolved before its stages run")
    }

    /// What two stages that run the same step at the same time take in turn: the second finds the first one's result.
    pub(crate) fn turn(&self, key: CacheKey) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(key).or_default().clone()
    }

    /// An error when steps are not to go on: another stage failed, or the build was interrupted.
    pub(crate) fn check_stopped(&self) -> Result<(), BuildError> {
        Ok(self.stop.check()?)
    }
}

fn stage_platform(stage: &Stage, default: &Platform) -> String {
    stage.platform.as_ref().map_or_else(|| default.to_string(), ToString::to_string)
}

/// The images that bases, COPY and mounts name, each with its platform and a place that names it.
fn named_images(graph: &Graph, platform: &Platform) -> BTreeMap<(String, String), Span> {
    let mut images = BTreeMap::new();
    for stage in &graph.stages {
        if let Base::Image(name) = &stage.base {
            let span = match &stage.from.kind {
                InstructionKind::From(from) => from.base.span,
                _ => stage.from.span,
            };
            images.entry((name.clone(), stage_platform(stage, platform))).or_insert(span);
        }
        for step in &stage.steps {
            for source in step.mount_sources.iter().chain([&step.source]) {
                if let CopySource::Image(name) = source {
                    let span = source_span(&step.instruction);
                    images.entry((name.clone(), platform.to_string())).or_insert(span);
                }
            }
        }
    }
    images
}

/// The place that names what an instruction copies from.
fn source_span(instruction: &Instruction) -> Span {
    let from = match &instruction.kind {
        InstructionKind::Copy(copy) => copy.from.as_ref(),
        InstructionKind::Run(run) => run.mounts.iter().find_map(MountText::from),
        _ => None,
    };
    from.map_or(instruction.span, |from| from.span)
}

/// The triggers that images used as bases bring.
fn triggers(
    graph: &Graph,
    images: &BTreeMap<(String, String), Image>,
    platform: &Platform,
) -> BTreeMap<String, Vec<String>> {
    let mut triggers = BTreeMap::new();
    for stage in &graph.stages {
        let Base::Image(name) = &stage.base else { continue };
        let image = images.get(&(name.clone(), stage_platform(stage, platform)));
        let on_build = image.map(|image| image.config.config.on_build.clone()).unwrap_or_default();
        if !on_build.is_empty() {
            triggers.insert(name.clone(), on_build);
        }
    }
    triggers
}

/// Tells what is going to happen.
fn announce(planned: &Planned, events: &EventSink<'_>) {
    let mut stages: Vec<StageOutline> = Vec::new();
    for instruction in &planned.file.instructions {
        if let InstructionKind::From(from) = &instruction.kind {
            let number = stages.len();
            let name = from.name.as_ref().map_or_else(|| number.to_string(), |name| name.text.to_lowercase());
            let planned = planned.graph.stages.iter().find(|stage| stage.number == number);
            let steps =
                planned.iter().flat_map(|stage| &stage.steps).map(|step| step.instruction.text.clone());
            let steps = std::iter::once(instruction.text.clone()).chain(steps).collect();
            stages.push(StageOutline { name, needed: planned.is_some(), steps });
        }
    }
    events(Event::Planned { stages });
    let warnings = planned.file.warnings.iter().chain(&planned.graph.warnings);
    warnings.for_each(|warning| events(Event::Warning(warning.clone())));
}
