//! `rimg cat`: a file of an image, out of the layer that holds it.

use std::io;

use rimg_formats::platform::Platform;

use super::tree::OpenImage;
use crate::failure::{Failure, printing};
use crate::session::Session;

/// Flags of `rimg cat`.
#[derive(Debug, clap::Args)]
pub(crate) struct CatArgs {
    /// A name, a digest, or the beginning of one
    image: String,
    /// The file; symbolic links are followed within the image
    path: String,
    /// Which variant of an index to look into [default: the host's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
}

pub(crate) fn run(session: &Session, args: CatArgs) -> Result<(), Failure> {
    let image = OpenImage::open(session, &args.image, args.platform.as_ref())?;
    let resolved = image.tree.resolve(&args.path)?;
    let node =
        resolved.node.ok_or_else(|| Failure::new(format!("`{}` is not in {}", args.path, args.image)))?;
    if node.is_directory() {
        let hint = format!("rimg ls {} {}", args.image, args.path);
        return Err(Failure::new(format!("`{}` is a directory", args.path)).hint(hint));
    }
    let unreadable = |error: io::Error| Failure::new(format!("failed to read `{}`: {error}", args.path));
    let mut content = image.tree.read_file(node, |digest| image.blob(digest)).map_err(unreadable)?;
    copy_out(&mut content, unreadable)
}

/// Copies to standard output, telling the two ends' failures apart.
fn copy_out(content: &mut impl io::Read, unreadable: impl Fn(io::Error) -> Failure) -> Result<(), Failure> {
    use io::Write;
    let mut stdout = io::stdout().lock();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match content.read(&mut buffer).map_err(&unreadable)? {
            0 => return stdout.flush().map_err(printing),
            count => stdout.write_all(&buffer[..count]).map_err(printing)?,
        }
    }
}
