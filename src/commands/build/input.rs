//! What a build reads: the context and the Buildfile, from folders, files or standard input.

use std::io::{self, Read};
use std::path::Path;

use rimg_builder::engine::BuildOptions;
use rimg_builder::received::{Received, ReceivedContext, STREAM_NAME, receive};
use rimg_builder::source::{SOURCE_BYTES_MAX, SourceFile};

use crate::failure::{Context, Failure};
use crate::session::Session;

/// The name of standard input on a command line.
const STREAM: &str = "-";

/// The options that the inputs decide, and what they hold on to: a context from standard input is there as long as it.
pub(super) fn open(
    session: &Session,
    context: &Path,
    file: Option<&Path>,
) -> Result<(BuildOptions, Option<ReceivedContext>), Failure> {
    let file_is_stream = file == Some(Path::new(STREAM));
    if context != Path::new(STREAM) {
        check_folder(context)?;
        let options = match file_is_stream {
            true => BuildOptions::for_context_and(context, buildfile()?)?,
            false => BuildOptions::for_context(context, file)?,
        };
        return Ok((options, None));
    }
    if file_is_stream {
        return Err(Failure::usage("context and Buildfile cannot both come from standard input")
            .hint("`rimg build - < FILE` builds a Buildfile without a context"));
    }
    match receive(&session.store()?, io::stdin().lock())? {
        Received::Context(context) => Ok((context.options(file)?, Some(context))),
        Received::Buildfile(_) if file.is_some() => {
            Err(Failure::new("standard input is no tar, in which --file could name a Buildfile")
                .hint("`rimg build -f - CONTEXT` reads the Buildfile from standard input"))
        }
        Received::Buildfile(buildfile) => Ok((BuildOptions::new(buildfile), None)),
    }
}

/// The Buildfile on standard input.
fn buildfile() -> Result<SourceFile, Failure> {
    let mut bytes = Vec::new();
    // One byte more than is allowed is enough to refuse it.
    let mut bounded = io::stdin().lock().take(SOURCE_BYTES_MAX as u64 + 1);
    bounded.read_to_end(&mut bytes).context("failed to read the Buildfile from standard input")?;
    Ok(SourceFile::from_bytes(STREAM_NAME, bytes)?)
}

fn check_folder(context: &Path) -> Result<(), Failure> {
    if context.is_dir() {
        return Ok(());
    }
    let shown = context.display().to_string();
    let is_remote = shown.contains("://") || shown.starts_with("git@") || shown.starts_with("github.com/");
    if is_remote {
        return Err(Failure::new(format!(
            "the context `{shown}` would have to be fetched, which is not supported"
        ))
        .hint("fetch it into a folder first, or pass it as a tar: `curl … | rimg build -`"));
    }
    Err(Failure::new(format!("the context `{shown}` is not a folder"))
        .hint("give the folder that COPY reads from, such as `rimg build .`"))
}
