//! `rimg save`: images as one tar archive that rimg, docker, podman and skopeo read.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use rimg_formats::archive;
use rimg_formats::platform::Platform;
use rimg_formats::store::ResolvedImage;
use rimg_formats::transfer::{CopyOptions, Platforms};

use crate::failure::{Context, Failure};
use crate::session::Session;

/// Flags of `rimg save`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The archive is an OCI layout that `docker load` and `podman load` understand as well.\n\n\
Examples:\n  rimg save -o app.tar app:1\n  rimg save app:1 | ssh HOST docker load"
)]
pub(crate) struct SaveArgs {
    /// Names, digests, or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The file to write, which appears when it is whole; `-` is standard output
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    output: PathBuf,
    /// Only this variant of an image for several platforms [default: all that are here]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(session: &Session, args: SaveArgs) -> Result<(), Failure> {
    let store = session.store()?;
    let images: Vec<ResolvedImage> =
        args.images.iter().map(|name| store.resolve_text(name)).collect::<Result<_, _>>()?;
    let platforms = args.platform.map_or(Platforms::All, |platform| Platforms::Only(vec![platform]));
    let options = CopyOptions { platforms, ..CopyOptions::default() };
    with_destination(&args.output, |out| {
        archive::save(&store, &images, out, &options)?;
        Ok(())
    })
}

/// Lets `work` write to standard output (`-`) or to a file, which gets its name only when it is whole and durable.
pub(crate) fn with_destination(
    path: &Path,
    work: impl FnOnce(&mut (dyn Write + Send)) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if path == Path::new("-") {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Failure::usage("an archive does not belong on a terminal: use -o FILE or a pipe"));
        }
        let mut out = BufWriter::with_capacity(256 << 10, stdout);
        work(&mut out)?;
        return out.flush().map_err(crate::failure::printing);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.part", std::process::id()));
    let partial = PathBuf::from(partial);
    let failed = || format!("failed to write {}", path.display());
    let named =
        write_file(&partial, failed, work).and_then(|()| std::fs::rename(&partial, path).context(failed()));
    if named.is_err() {
        // The half-written file is of no use to anybody.
        let _ = std::fs::remove_file(&partial);
    }
    let synced = named.and_then(|()| sync_name(path).context(failed()));
    synced.map_err(|failure| failure.on_disk_of(path))
}

/// Makes a new name survive a power cut.
fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder) {
        // A folder that may be written to but not read cannot be synced by this user either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

fn write_file(
    path: &Path,
    failed: impl Fn() -> String,
    work: impl FnOnce(&mut (dyn Write + Send)) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let file = File::create_new(path).context(failed())?;
    let mut out = BufWriter::with_capacity(256 << 10, file);
    work(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).context(failed())?;
    file.sync_all().context(failed())
}
