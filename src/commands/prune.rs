//! `rimg prune`: removes what nothing needs any more.

use std::io::{self, BufRead, IsTerminal};

use rimg_formats::store::cache_mounts::CacheMount;
use rimg_formats::store::prune::{CachePolicy, PruneOptions, PruneReport};
use serde_json::json;

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{note, print_json, print_line};
use crate::units;

/// How long a step's result is kept unused: two weeks, so that a branch somebody comes back to is still warm.
const CACHE_UNUSED_SECONDS_MAX: i64 = 14 * 86_400;

/// Flags of `rimg prune`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Removes images that no name leads to, build results and cache mounts unused for two weeks, what unfinished uploads and \
dead containers left, and snapshots of layers that are gone. What runs, is being built or was just uploaded stays."
)]
pub(crate) struct PruneArgs {
    /// Also remove every tagged image that no container runs, and the whole build cache with its cache mounts
    #[arg(short, long)]
    all: bool,
    /// With --all, do not ask for confirmation
    #[arg(short, long)]
    force: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub(crate) fn run(session: &Session, args: PruneArgs) -> Result<(), Failure> {
    let store = session.store_to_remove()?;
    if args.all && !args.force && !args.dry_run {
        confirm("This removes every image and the whole build cache that nothing holds. Continue? [y/N] ")?;
    }
    let mut options = PruneOptions {
        untagged: true,
        all: args.all,
        in_use: super::snapshots::in_use(&store)?,
        dry_run: args.dry_run,
        ..PruneOptions::default()
    };
    options.cache.unused_seconds_max = Some(CACHE_UNUSED_SECONDS_MAX);
    if args.all {
        options.cache = CachePolicy::CLEAR;
        options.older_than_seconds = 0;
    }
    let report = store.prune(&options)?;
    let snapshots = super::snapshots::sweep(&store, args.dry_run)?;
    if !args.dry_run {
        rimg_runner::limits::sweep();
    }
    if !store.cache_mounts()?.is_empty() {
        // Their files may belong to subordinate ids, which only a user namespace may look at and remove.
        super::rootless::enter_if_allowed()?;
    }
    let unused_seconds = if args.all { 0 } else { CACHE_UNUSED_SECONDS_MAX };
    let caches = store.prune_cache_mounts(unused_seconds, args.dry_run)?;
    report_freed(session, &report, snapshots, &caches, args.dry_run)
}

fn report_freed(
    session: &Session,
    report: &PruneReport,
    snapshots: u64,
    caches: &[CacheMount],
    dry_run: bool,
) -> Result<(), Failure> {
    let bytes = report.bytes + caches.iter().map(|cache| cache.bytes).sum::<u64>();
    let tags: Vec<String> = report.tags.iter().map(|(name, tag)| format!("{name}:{tag}")).collect();
    let manifests: Vec<String> =
        report.manifests.iter().map(|(name, digest)| format!("{name}@{digest}")).collect();
    if session.json() {
        return print_json(&json!({
            "tags": tags,
            "manifests": manifests,
            "cacheEntries": report.cache_entries,
            "uploads": report.uploads,
            "blobs": report.blobs,
            "snapshots": snapshots,
            "cacheMounts": caches.iter().map(cache_json).collect::<Vec<_>>(),
            "bytes": bytes,
            "dryRun": dry_run,
        }));
    }
    tags.iter().chain(&manifests).try_for_each(|name| print_line(name))?;
    caches.iter().filter(|cache| !cache.about.is_empty()).try_for_each(|cache| {
        print_line(&format!("cache mount {} ({})", cache.about, units::size(cache.bytes)))
    })?;
    let verb = if dry_run { "would free" } else { "freed" };
    note(&format!(
        "{verb} {}: {} blobs, {} cache entries, {} unfinished uploads, {snapshots} snapshots, {} cache mounts",
        units::size(bytes),
        report.blobs,
        report.cache_entries,
        report.uploads,
        caches.len(),
    ));
    Ok(())
}

fn cache_json(cache: &CacheMount) -> serde_json::Value {
    json!({"name": cache.name, "about": cache.about, "bytes": cache.bytes, "usedAt": cache.used_at})
}

/// Asks on the terminal; without one there is nobody to ask.
fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(
            Failure::new("there is no terminal to ask on").hint("pass --force to remove without being asked")
        );
    }
    note(question.trim_end());
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::new("nothing was removed")),
    }
}
