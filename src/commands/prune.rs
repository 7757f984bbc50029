//! `rimg prune`: removes what nothing needs any more.

use std::io::{self, BufRead, IsTerminal};

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
    after_help = "Removes images that no name leads to, build results unused for two weeks, what unfinished uploads and \
dead containers left, and snapshots of layers that are gone. What runs, is being built or was just uploaded stays."
)]
pub(crate) struct PruneArgs {
    /// Also remove every tagged image that no container runs, and the whole build cache
    #[arg(short, long)]
    all: bool,
    /// Do not ask
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
    report_freed(session, &report, snapshots, args.dry_run)
}

fn report_freed(
    session: &Session,
    report: &PruneReport,
    snapshots: u64,
    dry_run: bool,
) -> Result<(), Failure> {
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
            "bytes": report.bytes,
            "dryRun": dry_run,
        }));
    }
    tags.iter().chain(&manifests).try_for_each(|name| print_line(name))?;
    let verb = if dry_run { "would free" } else { "freed" };
    note(&format!(
        "{verb} {}: {} blobs, {} cache entries, {} unfinished uploads, {snapshots} snapshots",
        units::size(report.bytes),
        report.blobs,
        report.cache_entries,
        report.uploads,
    ));
    Ok(())
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
