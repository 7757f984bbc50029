//! `--output`: where a build's result goes besides the store. Docker's grammar: `type=oci,dest=app.tar`, or a path.

use std::io::Write;
use std::path::PathBuf;

use rimg_builder::engine::BuildResult;
use rimg_formats::archive;
use rimg_formats::store::{ResolvedImage, Store};
use rimg_formats::transfer::CopyOptions;

use crate::failure::Failure;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputKind {
    /// An OCI layout, as a tar.
    Oci,
    /// An archive that `docker load` reads.
    Docker,
    /// The root file system, as a tar.
    Tar,
    /// The root file system, as a folder.
    Local,
}

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OutputSpec {
    /// What is written.
    pub(crate) kind: OutputKind,
    /// Where to; `-` is standard output.
    pub(crate) dest: PathBuf,
}

/// Parses the value of `--output`.
pub(crate) fn parse(text: &str) -> Result<OutputSpec, String> {
    if !text.contains('=') {
        let kind = if text == "-" { OutputKind::Tar } else { OutputKind::Local };
        return Ok(OutputSpec { kind, dest: PathBuf::from(text) });
    }
    let (mut kind, mut dest) = (None, None);
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("type", "oci")) => kind = Some(OutputKind::Oci),
            Some(("type", "docker")) => kind = Some(OutputKind::Docker),
            Some(("type", "tar")) => kind = Some(OutputKind::Tar),
            Some(("type", "local")) => kind = Some(OutputKind::Local),
            Some(("type", other)) => {
                return Err(format!("output type `{other}` is not supported: use oci, docker, tar or local"));
            }
            Some(("dest", path)) if !path.is_empty() => dest = Some(PathBuf::from(path)),
            _ => {
                return Err(format!(
                    "`{field}` is not understood: expected type=oci|docker|tar|local and dest=PATH"
                ));
            }
        }
    }
    let kind = kind.ok_or("`type=` is missing: use type=oci, docker, tar or local")?;
    match (dest, kind) {
        (None, OutputKind::Local) => {
            Err("`dest=` is missing: name the folder to write, such as type=local,dest=out".to_owned())
        }
        (None, _) => Ok(OutputSpec { kind, dest: PathBuf::from("-") }),
        (Some(dest), OutputKind::Local) if dest.as_os_str() == "-" => {
            Err("a folder cannot be written to standard output: use type=tar".to_owned())
        }
        (Some(dest), kind) => Ok(OutputSpec { kind, dest }),
    }
}

/// Writes a build's result.
pub(crate) fn write(store: &Store, result: &BuildResult, spec: &OutputSpec) -> Result<(), Failure> {
    match spec.kind {
        OutputKind::Oci | OutputKind::Docker => write_archive(store, result, spec),
        OutputKind::Tar => with_destination(spec, |out| Ok(rimg_builder::output::write_tar(store, result, out)?)),
        OutputKind::Local => Ok(rimg_builder::output::write_directory(store, result, &spec.dest)?),
    }
}

fn write_archive(store: &Store, result: &BuildResult, spec: &OutputSpec) -> Result<(), Failure> {
    let image = |(name, tag): &(_, _)| ResolvedImage {
        name: Clone::clone(name),
        tag: Clone::clone(tag),
        digest: result.manifest.digest,
        media_type: result.manifest.media_type.clone(),
    };
    let images: Vec<ResolvedImage> = result.names.iter().map(image).collect();
    with_destination(spec, |out| {
        archive::save(store, &images, out, &CopyOptions::default())?;
        Ok(())
    })
}

/// Opens the destination; a file appears under its name only when it is whole.
fn with_destination(
    spec: &OutputSpec,
    work: impl FnOnce(&mut (dyn Write + Send)) -> Result<(), Failure>,
) -> Result<(), Failure> {
    crate::commands::save::with_destination(&spec.dest, work)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn outputs() {
        let table = [
            ("out", OutputKind::Local, "out"),
            ("-", OutputKind::Tar, "-"),
            ("type=oci,dest=a.tar", OutputKind::Oci, "a.tar"),
            ("dest=x,type=local", OutputKind::Local, "x"),
            ("type=docker", OutputKind::Docker, "-"),
        ];
        for (text, kind, dest) in table {
            assert_eq!(parse(text), Ok(OutputSpec { kind, dest: dest.into() }), "{text}");
        }
        for bad in
            ["type=registry", "type=local", "type=local,dest=-", "dest=x", "type=oci,what", "type=oci,dest="]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
