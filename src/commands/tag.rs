//! `rimg tag`: another name for an image.

use rimg_formats::digest::Digest;
use rimg_formats::manifest::ManifestOrIndex;
use rimg_formats::reference::{Reference, Tag};
use rimg_formats::store::{PutOptions, Repository};

use crate::failure::Failure;
use crate::session::Session;

/// Flags of `rimg tag`.
#[derive(Debug, clap::Args)]
pub(crate) struct TagArgs {
    /// The image: a name, a digest, or the beginning of one
    #[arg(value_name = "IMAGE")]
    source: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    target: Reference,
}

pub(crate) fn run(session: &Session, args: TagArgs) -> Result<(), Failure> {
    if args.target.digest.is_some() {
        return Err(Failure::usage(format!("`{}` has a digest: a new name is NAME[:TAG]", args.target)));
    }
    let store = session.store()?;
    let resolved = store.resolve_text(&args.source)?;
    let (from, to) = (store.repository(&resolved.name), store.repository(&args.target.name()));
    link(&from, &to, &resolved.digest, &[args.target.tag_or_latest()])
}

/// Gives `to` a manifest that `from` has, with the variants it lists as far as they are here; its blobs follow.
fn link(from: &Repository, to: &Repository, digest: &Digest, tags: &[Tag]) -> Result<(), Failure> {
    let stored = from.manifest(digest)?;
    if let ManifestOrIndex::Index(index) = stored.parse()? {
        for variant in index.manifests() {
            if from.media_type(&variant.digest)?.is_some() {
                link(from, to, &variant.digest, &[])?;
            }
        }
    }
    let options = PutOptions { digest: Some(*digest), ..PutOptions::local() };
    to.put_manifest(&stored.raw, Some(&stored.media_type), tags, &options)?;
    Ok(())
}
