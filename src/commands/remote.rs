//! What commands that talk to registries share: the client, pulling into the store, and showing a copy's progress.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::Digest;
use rimg_formats::platform::Platform;
use rimg_formats::reference::{Reference, Tag};
use rimg_formats::store::Store;
use rimg_formats::transfer::{
    CopyOptions, Event, Platforms, RepositorySink, TransferError, Version, copy_image,
};
use rimg_registry::client::{Client, ClientError, ClientOptions, OnWarning, PlainHttp};

use crate::failure::Failure;
use crate::progress::{Change, Display, Mode, Outcome};
use crate::terminal::{harmless, note};
use crate::units;

/// Flags of every command that talks to registries.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct RemoteArgs {
    /// Reach the registry over plain HTTP (for loopback addresses it is the default)
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Blobs on their way at the same time
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) parallel: u16,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub(crate) progress: Mode,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

impl RemoteArgs {
    /// How the client is to behave.
    pub(crate) fn client_options(&self) -> ClientOptions {
        let plain_http = if self.plain_http { PlainHttp::Always } else { PlainHttp::default() };
        let on_warning = OnWarning(Arc::new(|problem| note(&format!("warning: {}", harmless(problem)))));
        ClientOptions { plain_http, on_warning: Some(on_warning), ..ClientOptions::default() }
    }

    /// A display as the flags ask for.
    pub(crate) fn display(&self) -> Display {
        Display::new(if self.quiet { Mode::Quiet } else { self.progress })
    }
}

/// The manifest that a reference means: its digest decides over its tag.
pub(crate) fn version(reference: &Reference) -> Version {
    match reference.digest {
        Some(digest) => Version::Digest(digest),
        None => Version::Tag(reference.tag_or_latest()),
    }
}

/// Pulls an image into the store and names it there as it was asked for.
pub(crate) fn pull(
    store: &Store,
    reference: &Reference,
    platforms: Platforms,
    remote: &RemoteArgs,
    display: &Display,
) -> Result<Descriptor, Failure> {
    let tags = if reference.digest.is_some() { Vec::new() } else { vec![reference.tag_or_latest()] };
    pull_as(store, reference, tags, platforms, remote, display)
}

/// Pulls an image into the store and points `tags` of its repository at it.
pub(crate) fn pull_as(
    store: &Store,
    reference: &Reference,
    tags: Vec<Tag>,
    platforms: Platforms,
    remote: &RemoteArgs,
    display: &Display,
) -> Result<Descriptor, Failure> {
    let client = Client::new(remote.client_options());
    let source = client.repository(reference);
    let sink = RepositorySink::new(store.repository(&reference.name()), tags);
    let bars = Bars::new(display);
    let on_event = |event| bars.show(event);
    let options = CopyOptions {
        platforms,
        parallel: remote.parallel.into(),
        on_event: Some(&on_event),
        ..CopyOptions::default()
    };
    copy_image(&source, &sink, &version(reference), &options)
        .map_err(|error| explain(error, &format!("failed to pull {reference}")))
}

/// The platform that was asked for, else this machine's.
pub(crate) fn one_platform(platform: Option<Platform>) -> Platforms {
    Platforms::Only(vec![platform.unwrap_or_else(Platform::host)])
}

/// A failure of a copy, with what the registry's client advises.
pub(crate) fn explain(error: TransferError, doing: &str) -> Failure {
    let hint = client_error(&error).and_then(ClientError::hint);
    let failure = Failure::from(error).context(doing);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What the registry's client said, however deep it lies: a stream that fails wraps it in an I/O error.
fn client_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e ClientError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<ClientError>() {
            return Some(found);
        }
        // `io::Error` hides what it wraps from `source()`.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Shows a copy: a task for each blob.
pub(crate) struct Bars<'a> {
    display: &'a Display,
    blobs: Mutex<BTreeMap<Digest, Blob>>,
}

struct Blob {
    task: u64,
    moved_bytes: u64,
}

impl<'a> Bars<'a> {
    pub(crate) fn new(display: &'a Display) -> Bars<'a> {
        Bars { display, blobs: Mutex::default() }
    }

    pub(crate) fn show(&self, event: Event) {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::BlobStarted { digest, size } => {
                let task = self.display.number();
                blobs.insert(digest, Blob { task, moved_bytes: 0 });
                let title = format!("{} {}", digest.short_hex(), units::size(size));
                self.display.apply(Change::Begin { task, title, total_bytes: Some(size) });
            }
            Event::BlobAdvanced { digest, bytes } => {
                if let Some(blob) = blobs.get_mut(&digest) {
                    blob.moved_bytes += bytes;
                    self.display.apply(Change::Advance { task: blob.task, bytes: blob.moved_bytes });
                }
            }
            Event::BlobDone { digest } => {
                if let Some(blob) = blobs.get(&digest) {
                    self.display.apply(Change::End {
                        task: blob.task,
                        outcome: Outcome::Done,
                        detail: String::new(),
                    });
                }
            }
            Event::BlobSkipped { digest, size } => {
                let task = self.display.number();
                blobs.insert(digest, Blob { task, moved_bytes: size });
                let title = format!("{} {}", digest.short_hex(), units::size(size));
                self.display.apply(Change::Begin { task, title, total_bytes: Some(size) });
                self.display.apply(Change::End {
                    task,
                    outcome: Outcome::Cached,
                    detail: "already there".to_owned(),
                });
            }
            Event::Planned { .. } | Event::ManifestDone { .. } => {}
        }
    }
}
