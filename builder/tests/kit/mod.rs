//! What build tests share: a workspace with a context and a store, and the outcome of a build as text.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rimg_builder::base::StoredImages;
use rimg_builder::diagnostic::{Style, render_all};
use rimg_builder::engine::{BuildError, BuildOptions, BuildResult, Builder};
use rimg_builder::events::Event;
use rimg_formats::config::ImageConfig;
use rimg_formats::layer::{EntryKind, MergedTree, Node};
use rimg_formats::manifest::Manifest;
use rimg_formats::platform::Platform;
use rimg_formats::store::Store;

/// A directory with a context and a store, gone when dropped.
pub struct Workspace {
    directory: tempfile::TempDir,
    pub store: Store,
}

/// What a build did, for assertions.
pub struct Outcome {
    pub result: BuildResult,
    pub events: Vec<Event>,
    pub store: Store,
}

impl Workspace {
    pub fn new() -> Workspace {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("context")).unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        Workspace { directory, store }
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn context(&self) -> PathBuf {
        self.root().join("context")
    }

    /// Writes a file of the context, mode 0644 whatever the umask.
    pub fn file(&self, path: &str, content: &str) -> &Self {
        let path = self.context().join(path);
        for directory in path.parent().unwrap().ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !directory.exists() {
                fs::create_dir(directory).unwrap();
                fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    pub fn link(&self, path: &str, target: &str) -> &Self {
        std::os::unix::fs::symlink(target, self.context().join(path)).unwrap();
        self
    }

    pub fn options(&self, buildfile: &str) -> BuildOptions {
        self.file("Buildfile", buildfile);
        let mut options = BuildOptions::for_context(&self.context(), None).unwrap();
        options.platform = Platform::new("linux", "amd64");
        options
    }

    pub fn build(&self, buildfile: &str) -> Outcome {
        let options = self.options(buildfile);
        let source = options.buildfile.clone();
        self.build_with(options).unwrap_or_else(|error| panic!("{}", shown(&error, &source)))
    }

    pub fn build_with(&self, options: BuildOptions) -> Result<Outcome, BuildError> {
        build_in(&self.store, options)
    }

    /// The error of a build, as the user sees it.
    pub fn fails(&self, buildfile: &str) -> String {
        let options = self.options(buildfile);
        let source = options.buildfile.clone();
        match self.build_with(options) {
            Ok(_) => panic!("it was built"),
            Err(error) => {
                let text = shown(&error, &source);
                text.replace(&format!("{}/", self.context().display()), "")
                    .replace(&self.context().display().to_string(), "")
            }
        }
    }
}

fn shown(error: &BuildError, source: &rimg_builder::source::SourceFile) -> String {
    match error.diagnostics() {
        [] => format!("{error}\n"),
        diagnostics => render_all(diagnostics, source, Style::Plain),
    }
}

pub fn build_in(store: &Store, options: BuildOptions) -> Result<Outcome, BuildError> {
    let events = Mutex::new(Vec::new());
    let images = StoredImages(store.clone());
    let result =
        Builder::new(store.clone(), &images, options).build(&|event| events.lock().unwrap().push(event))?;
    Ok(Outcome { result, events: events.into_inner().unwrap(), store: store.clone() })
}

impl Outcome {
    pub fn digest(&self) -> String {
        self.result.manifest.digest.to_string()
    }

    pub fn config(&self) -> ImageConfig {
        ImageConfig::parse(&self.store.read_blob(&self.result.config, 1 << 20).unwrap()).unwrap()
    }

    pub fn manifest(&self) -> Manifest {
        Manifest::parse(&self.store.read_blob(&self.result.manifest.digest, 1 << 20).unwrap(), None).unwrap()
    }

    pub fn tree(&self) -> MergedTree {
        let indexes: Vec<_> = self
            .result
            .layers
            .iter()
            .map(|(layer, _)| self.store.layer_index(&layer.digest).unwrap())
            .collect();
        MergedTree::new(&indexes)
    }

    /// Every path with type, mode and owner: `d755 0:0 app`, `f644 0:0 app/x = content`.
    pub fn listing(&self) -> Vec<String> {
        let tree = self.tree();
        let root = rimg_formats::layer::LayerPath::root();
        tree.walk(&root)
            .filter(|(path, _)| !path.is_root())
            .map(|(path, node)| self.line(&tree, &path, node))
            .collect()
    }

    fn line(&self, tree: &MergedTree, path: &rimg_formats::layer::LayerPath, node: Node<'_>) -> String {
        let source = tree.link_source(node).unwrap();
        let mut text = format!("{:o} {}:{} {path}", source.mode(), source.uid(), source.gid());
        match node.kind() {
            EntryKind::Directory => text = format!("d{text}"),
            EntryKind::Symlink { target } => text = format!("l{text} -> {}", String::from_utf8_lossy(target)),
            EntryKind::Regular { .. } | EntryKind::Hardlink { .. } => {
                let mut content = Vec::new();
                let open = |digest: &_| Ok(self.store.blob(digest).unwrap().unwrap().into_file());
                std::io::Read::read_to_end(&mut tree.read_file(node, open).unwrap(), &mut content).unwrap();
                // A program would drown what a failed assertion shows.
                if content.len() > 1000 {
                    content.truncate(0);
                }
                let kind = if matches!(node.kind(), EntryKind::Hardlink { .. }) { 'h' } else { 'f' };
                text = format!("{kind}{text} = {}", String::from_utf8_lossy(&content).trim_end());
            }
            other => text = format!("{other:?} {text}"),
        }
        text
    }

    /// For each step its number and what became of it: `0.1 cached`, `0.2 done 3`, `0.1 missed: file a changed`.
    pub fn steps(&self) -> Vec<String> {
        let line = |event: &Event| {
            Some(match event {
                Event::StepMissed { id, miss } => format!("{}.{} missed: {miss}", id.stage, id.step),
                Event::StepCached { id, .. } => format!("{}.{} cached", id.stage, id.step),
                Event::StepDone { id, layer, .. } => {
                    let layer = layer.map_or_else(String::new, |layer| match layer.entries {
                        Some(entries) => format!(" {entries}"),
                        None => " ?".to_owned(),
                    });
                    format!("{}.{} done{layer}", id.stage, id.step)
                }
                _ => return None,
            })
        };
        self.events.iter().filter_map(line).collect()
    }
}

/// A tar made by hand: no tool that is at hand writes what these tests need.
pub fn tar(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, content) in entries {
        let mut block = [0_u8; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[108..115].copy_from_slice(b"0000007");
        block[116..123].copy_from_slice(b"0000011");
        let data = if *kind == b'0' { content.as_bytes() } else { b"" };
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000000000");
        block[156] = *kind;
        if *kind != b'0' {
            block[157..157 + content.len()].copy_from_slice(content.as_bytes());
        }
        block[257..263].copy_from_slice(b"ustar\0");
        block[263..265].copy_from_slice(b"00");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&block);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// The bytes as a gzip file.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    // Stored blocks: valid gzip without a compressor.
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let chunks: Vec<&[u8]> = bytes.chunks(65535).collect();
    for (at, chunk) in chunks.iter().enumerate() {
        out.push(u8::from(at + 1 == chunks.len()));
        let length = u16::try_from(chunk.len()).unwrap();
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}
