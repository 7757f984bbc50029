//! `rimg load`: images from an archive, or from an OCI layout folder, into the store.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use rimg_formats::archive::{LoadOptions, Loaded, load, load_directory};
use rimg_formats::reference::ImageName;
use serde_json::json;

use super::remote::Bars;
use crate::failure::{Context, Failure};
use crate::progress::{Display, Mode};
use crate::session::Session;
use crate::terminal::{print_json, print_line};

/// Flags of `rimg load`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Reads what `rimg save`, `docker save`, `podman save`, buildah and skopeo write, compressed or not.\n\n\
Examples:\n  rimg load -i app.tar\n  docker save app:1 | rimg load"
)]
pub(crate) struct LoadArgs {
    /// The archive, or the folder of an OCI layout; `-` is standard input
    #[arg(short, long, default_value = "-", value_name = "PATH")]
    input: PathBuf,
    /// The name for images that the archive gives none; the tag is then `latest`
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
    /// Print digests alone
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(session: &Session, args: LoadArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let display = Display::new(if args.quiet { Mode::Quiet } else { Mode::Auto });
    let bars = Bars::new(&display);
    let on_event = |event| bars.show(event);
    let options = LoadOptions { name: args.name, on_event: Some(&on_event) };
    let shown = match args.input.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => args.input.display().to_string(),
    };
    let loaded = match args.input.is_dir() {
        true => load_directory(&store, &args.input, &options),
        false => load(&store, open(&args.input)?, &options),
    };
    let loaded = loaded.context(format!("failed to load {shown}"))?;
    // What is printed can be run: an image without a tag by its digest alone, as docker has it.
    let shown = |loaded: &Loaded| match &loaded.tag {
        Some(tag) => format!("Loaded image: {}:{tag} {}", loaded.name, loaded.digest),
        None => format!("Loaded image ID: {}", loaded.digest),
    };
    if session.json() {
        let value =
            |loaded: &Loaded| json!({"name": loaded.name, "tag": loaded.tag, "digest": loaded.digest});
        return print_json(&loaded.iter().map(value).collect::<Vec<_>>());
    }
    loaded.iter().try_for_each(|loaded| match args.quiet {
        true => print_line(&loaded.digest.to_string()),
        false => print_line(&shown(loaded)),
    })
}

/// Opens the archive to be read.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read + Send>, Failure> {
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Failure::usage("there is no archive on a terminal: use -i FILE or a pipe"));
        }
        return Ok(Box::new(io::stdin()));
    }
    Ok(Box::new(File::open(path).context(format!("failed to open {}", path.display()))?))
}
