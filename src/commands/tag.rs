//! `rimg tag`: another name for an image.

use rimg_formats::reference::Reference;

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
    store.tag(&args.source, &args.target)?;
    Ok(())
}
