//! `--output`: where a build's result goes besides the store. buildx's grammar: `type=oci,dest=app.tar`, or a path.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use rimg_builder::engine::BuildResult;
use rimg_builder::output::Others;
use rimg_formats::archive;
use rimg_formats::layout::{LayoutName, LayoutSink};
use rimg_formats::reference::Reference;
use rimg_formats::store::{ResolvedImage, Store};
use rimg_formats::transfer::{CopyOptions, Version, copy_image};

use super::{CompressionChoice, csv};
use crate::failure::Failure;

/// The types, for messages.
const TYPES: &str = "local, tar, oci, docker, image or registry";

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// Nothing: the result stays in the store, under its names.
    Image,
    /// An OCI layout, as a tar.
    Oci,
    /// An OCI layout, as a folder.
    OciFolder,
    /// An archive that `docker load` reads.
    Docker,
    /// The root file system, as a tar.
    Tar,
    /// The root file system, as a folder.
    Local(Others),
}

/// One `--output`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutputSpec {
    /// What is written.
    pub(super) kind: OutputKind,
    /// Where to; `-` is standard output.
    pub(super) dest: PathBuf,
    /// Names for the image.
    pub(super) names: Vec<Reference>,
    /// Whether the image is pushed.
    pub(super) push: bool,
    /// How layers are compressed, where it says so.
    pub(super) compression: Option<CompressionChoice>,
    /// Their level, where it says so.
    pub(super) compression_level: Option<u8>,
    /// Annotations of the manifest.
    pub(super) annotations: BTreeMap<String, String>,
}

impl OutputSpec {
    fn new(kind: OutputKind, dest: PathBuf) -> OutputSpec {
        OutputSpec {
            kind,
            dest,
            names: Vec::new(),
            push: false,
            compression: None,
            compression_level: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Whether standard output is taken.
    pub(super) fn takes_stdout(&self) -> bool {
        self.kind != OutputKind::Image && self.dest == Path::new("-")
    }
}

/// Parses the value of `--output`.
pub(super) fn parse(text: &str) -> Result<OutputSpec, String> {
    let fields = csv::fields(text)?;
    match fields.as_slice() {
        [only] if only == "-" => return Ok(OutputSpec::new(OutputKind::Tar, only.into())),
        [only] if !only.contains('=') && !only.is_empty() => {
            return Ok(OutputSpec::new(OutputKind::Local(Others::Kept), only.into()));
        }
        _ => {}
    }
    let mut values = BTreeMap::new();
    let mut annotations = BTreeMap::new();
    for field in &fields {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let key = key.trim().to_lowercase();
        match key.strip_prefix("annotation.").or_else(|| key.strip_prefix("annotation-manifest.")) {
            // A key of an annotation keeps its case.
            Some(name) => {
                let written = field.trim_start();
                let start = written.find('.').map_or(0, |dot| dot + 1);
                annotations.insert(written[start..start + name.len()].to_owned(), value.to_owned());
            }
            None => drop(values.insert(key, value.to_owned())),
        }
    }
    let mut take = |key: &str| values.remove(key);
    let kind = take("type").ok_or(format!("`type=` is missing: use type={TYPES}"))?;
    let is_tar = take("tar").map_or(Ok(true), |value| boolean("tar", &value))?;
    let others = match take("mode").as_deref() {
        None | Some("copy") => Others::Kept,
        Some("delete") if kind == "local" => Others::Removed,
        Some(other) => {
            return Err(format!("mode `{other}` is not supported: use copy, or delete with type=local"));
        }
    };
    let is_registry = kind == "registry";
    let kind = match (kind.as_str(), is_tar) {
        ("image" | "registry" | "cacheonly", _) => OutputKind::Image,
        ("oci", true) => OutputKind::Oci,
        ("oci", false) => OutputKind::OciFolder,
        ("docker", true) => OutputKind::Docker,
        ("docker", false) => return Err("a folder is written with type=oci,tar=false".to_owned()),
        ("tar", _) => OutputKind::Tar,
        ("local", _) => OutputKind::Local(others),
        (other, _) => return Err(format!("output type `{other}` is not supported: use {TYPES}")),
    };
    let mut spec = OutputSpec::new(kind, destination(kind, take("dest"))?);
    spec.push = take("push").map_or(Ok(is_registry), |value| boolean("push", &value))?;
    for name in take("name").iter().flat_map(|names| names.split(',')) {
        spec.names.push(name.trim().parse().map_err(|error| format!("name `{name}`: {error}"))?);
    }
    spec.compression = take("compression").map(|value| compression(&value)).transpose()?;
    let level = take("compression-level").map(|value| value.parse().map_err(|_| value));
    spec.compression_level =
        level.transpose().map_err(|value| format!("compression-level `{value}` is no number up to 255"))?;
    spec.annotations = annotations;
    for (key, value) in values {
        without_effect(&key, &value)?;
    }
    Ok(spec)
}

fn destination(kind: OutputKind, dest: Option<String>) -> Result<PathBuf, String> {
    let is_folder = matches!(kind, OutputKind::Local(_) | OutputKind::OciFolder);
    match dest.filter(|dest| !dest.is_empty()) {
        None if is_folder => {
            Err("`dest=` is missing: name the folder to write, such as type=local,dest=out".to_owned())
        }
        Some(dest) if is_folder && dest == "-" => {
            Err("a folder cannot be written to standard output: use type=tar or type=oci".to_owned())
        }
        Some(_) if kind == OutputKind::Image => {
            Err("`dest=` is for files: an image goes into the store, or to a registry with push=true"
                .to_owned())
        }
        dest => Ok(PathBuf::from(dest.unwrap_or_else(|| "-".to_owned()))),
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("`{key}={value}`: expected true or false")),
    }
}

fn compression(text: &str) -> Result<CompressionChoice, String> {
    match text {
        "gzip" => Ok(CompressionChoice::Gzip),
        "zstd" => Ok(CompressionChoice::Zstd),
        "uncompressed" => Ok(CompressionChoice::None),
        // Layers of rimg are read file by file as they are.
        _ => Err(format!("compression `{text}` is not supported: use gzip, zstd or uncompressed")),
    }
}

/// buildx's keys that ask for what happens anyway; all others are refused.
fn without_effect(key: &str, value: &str) -> Result<(), String> {
    let accepted = match key {
        "oci-mediatypes" | "rewrite-timestamp" | "store" | "unpack" => {
            boolean(key, value)? || key == "unpack"
        }
        "platform-split" | "force-compression" | "oci-artifact" | "push-by-digest" => !boolean(key, value)?,
        _ => {
            return Err(format!(
                "`{key}` is not understood: the keys are type, dest, name, push, tar, mode, compression, \
                 compression-level and annotation.KEY"
            ));
        }
    };
    match accepted {
        true => Ok(()),
        false => Err(format!("`{key}={value}` is not supported: leave it out")),
    }
}

/// Writes a build's result. Pushing is another step.
pub(super) fn write(store: &Store, result: &BuildResult, spec: &OutputSpec) -> Result<(), Failure> {
    match spec.kind {
        OutputKind::Image => Ok(()),
        OutputKind::Oci | OutputKind::Docker => write_archive(store, result, spec),
        OutputKind::OciFolder => write_layout(store, result, spec),
        OutputKind::Tar => {
            with_destination(spec, |out| Ok(rimg_builder::output::write_tar(store, result, out)?))
        }
        OutputKind::Local(others) => {
            let written = rimg_builder::output::write_directory(store, result, &spec.dest, others);
            written.map_err(|error| Failure::from(error).on_disk_of(&spec.dest))
        }
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

/// An OCI layout as a folder; images that are in it already stay.
fn write_layout(store: &Store, result: &BuildResult, spec: &OutputSpec) -> Result<(), Failure> {
    let Some((name, _)) = result.names.first() else { return Ok(()) };
    let tagged = result.names.iter().filter(|(_, tag)| tag.is_some());
    let names = tagged.map(|(name, tag)| LayoutName { name: Some(name.clone()), tag: tag.clone() }).collect();
    let copied = LayoutSink::create(&spec.dest, names).and_then(|sink| {
        let version = Version::Digest(result.manifest.digest);
        copy_image(&store.repository(name), &sink, &version, &CopyOptions::default())
    });
    copied.map(drop).map_err(|error| Failure::from(error).on_disk_of(&spec.dest))
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
        let local = OutputKind::Local(Others::Kept);
        let table = [
            ("out", local, "out"),
            (".", local, "."),
            ("-", OutputKind::Tar, "-"),
            ("type=oci,dest=a.tar", OutputKind::Oci, "a.tar"),
            ("type=oci,tar=false,dest=a", OutputKind::OciFolder, "a"),
            ("dest=x,type=local", local, "x"),
            ("type=local,mode=delete,dest=x", OutputKind::Local(Others::Removed), "x"),
            ("type=local,mode=copy,dest=x,platform-split=false", local, "x"),
            ("type=docker", OutputKind::Docker, "-"),
            ("type=tar,\"dest=a,b\"", OutputKind::Tar, "a,b"),
            ("\"a,b\"", local, "a,b"),
            ("type=docker,oci-mediatypes=true,dest=x", OutputKind::Docker, "x"),
            ("type=cacheonly", OutputKind::Image, "-"),
        ];
        for (text, kind, dest) in table {
            assert_eq!(parse(text), Ok(OutputSpec::new(kind, dest.into())), "{text}");
        }
        let spec = parse(
            "type=image,\"name=a:1,b\",compression=zstd,compression-level=3,annotation.Some.Key=v,push=true",
        )
        .unwrap();
        assert_eq!(spec.names, ["a:1".parse().unwrap(), "b".parse().unwrap()]);
        assert_eq!((spec.compression, spec.compression_level), (Some(CompressionChoice::Zstd), Some(3)));
        assert_eq!(spec.annotations, BTreeMap::from([("Some.Key".to_owned(), "v".to_owned())]));
        assert!(spec.push && parse("type=registry").unwrap().push && !spec.takes_stdout());
    }

    #[test]
    fn what_is_refused_is_explained() {
        let table = [
            ("type=local", "`dest=` is missing"),
            ("type=local,dest=-", "cannot be written to standard output"),
            ("dest=x", "`type=` is missing"),
            ("type=oci,what", "`what` is not understood"),
            ("type=image,dest=x", "for files"),
            ("type=what,dest=x", "`what` is not supported"),
            ("type=local,mode=move,dest=x", "mode `move`"),
            ("type=oci,compression=estargz", "gzip, zstd or uncompressed"),
            ("type=image,force-compression=true", "`force-compression=true` is not supported"),
            ("type=image,name=A@", "name `A@`"),
            ("\"dest=x", "double quote"),
            ("", "`type=` is missing"),
        ];
        for (text, words) in table {
            let said = parse(text).unwrap_err();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
