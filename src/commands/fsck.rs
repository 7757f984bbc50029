//! `rimg fsck`: every stored byte is read and hashed; what is damaged is set aside and never used.

use rimg_formats::store::fsck::{FsckOptions, FsckReport};
use rimg_formats::store::{Store, StoreError};
use serde_json::json;

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{note, print_json, print_line};
use crate::units;

/// Flags of `rimg fsck`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 when everything is whole, 1 when something is damaged or missing. Damaged blobs are \
never served or run; the next pull, push or build of their digest heals them."
)]
pub(crate) struct FsckArgs {
    /// Set damaged blobs aside and bring the metadata in line with what is there
    #[arg(long)]
    repair: bool,
}

pub(crate) fn run(session: &Session, args: FsckArgs) -> Result<u8, Failure> {
    let options = FsckOptions { repair: args.repair, ..FsckOptions::default() };
    let root = session.root()?;
    let report = match Store::open(&root).and_then(|store| store.fsck(&options)) {
        Ok(report) => report,
        // Tags are lost then, so nothing but damage is a reason.
        Err(StoreError::MetadataDamaged { .. }) if args.repair => Store::rebuild(&root, &options)?.1,
        // Opening it the usual way says what to do.
        Err(error) => return Err(session.store().err().unwrap_or_else(|| error.into())),
    };
    match session.json() {
        true => print_json(&as_json(&report))?,
        false => print_report(&report)?,
    }
    Ok(if report.is_clean() { 0 } else { 1 })
}

fn print_report(report: &FsckReport) -> Result<(), Failure> {
    report.metadata.iter().try_for_each(|line| print_line(&format!("metadata: {line}")))?;
    for (digest, reason) in &report.damaged {
        note(&format!("damaged: {digest}: {reason}"));
    }
    report.missing.iter().for_each(|digest| note(&format!("missing: {digest}")));
    for (name, tag) in &report.dangling_tags {
        note(&format!("dangling tag: {name}:{tag}"));
    }
    for broken in &report.broken {
        note(&format!("incomplete: {}@{} misses {} blobs", broken.name, broken.digest, broken.missing.len()));
    }
    report.strangers.iter().for_each(|path| note(&format!("not ours: {}", path.display())));
    print_line(&format!("{} blobs, {}, checked", report.blobs, units::size(report.bytes)))
}

fn as_json(report: &FsckReport) -> serde_json::Value {
    json!({
        "blobs": report.blobs,
        "bytes": report.bytes,
        "clean": report.is_clean(),
        "metadata": report.metadata,
        "damaged": report.damaged.iter().map(|(digest, reason)| json!({"digest": digest, "reason": reason})).collect::<Vec<_>>(),
        "missing": report.missing,
        "unknown": report.unknown,
        "danglingTags": report.dangling_tags.iter().map(|(name, tag)| format!("{name}:{tag}")).collect::<Vec<_>>(),
        "incomplete": report.broken.iter().map(|broken| json!({"name": broken.name, "digest": broken.digest, "missing": broken.missing})).collect::<Vec<_>>(),
        "staleIndexes": report.stale_indexes,
        "leftovers": report.leftovers,
    })
}
