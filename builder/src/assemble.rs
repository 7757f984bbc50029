//! [`ImageState`]: an image while its stage is being built, and its end as configuration and manifest.
//!
//! Everything is a function of the Buildfile, the base and the epoch: the same inputs give the same bytes. History
//! lines are worded as BuildKit words them, because tools that show or scan images read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rimg_formats::config::{ExecConfig, Healthcheck, History, ImageConfig};
use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::{ChainId, Digest};
use rimg_formats::epoch::Epoch;
use rimg_formats::layer::LayerPath;
use rimg_formats::manifest::Manifest;
use rimg_formats::media_type::OCI_CONFIG;
use rimg_formats::platform::Platform;
use rimg_formats::store::Image;

use crate::cache::LayerRecord;
use crate::plan::DEFAULT_PATH;

/// The mark of Dockerfile builds in histories, which scanners look for.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// Files that one step wrote anew with the content that they had: no layer has them, but later steps see them as newer.
#[derive(Clone, Debug)]
pub(crate) struct Touch {
    /// How many layers there are below what comes later: those of the step itself among them.
    pub(crate) layers: usize,
    /// Whether the step made the topmost of these.
    pub(crate) has_layer: bool,
    /// Their paths.
    pub(crate) paths: Arc<[LayerPath]>,
}

/// An image on its way.
#[derive(Clone, Debug)]
pub(crate) struct ImageState {
    /// Its configuration so far.
    pub(crate) config: ImageConfig,
    /// Its layers so far, lowest first.
    pub(crate) layers: Vec<LayerRecord>,
    /// Files that steps wrote anew with the content that they had.
    pub(crate) touches: Vec<Touch>,
    epoch: Epoch,
    /// Whether this stage has said CMD: an ENTRYPOINT then leaves it alone.
    cmd_is_own: bool,
}

impl ImageState {
    /// `FROM scratch`.
    pub(crate) fn scratch(platform: Platform, epoch: Epoch) -> ImageState {
        let mut config = ImageConfig::scratch(platform, epoch);
        config.config.env = vec![format!("PATH={DEFAULT_PATH}")];
        config.config.working_dir = "/".to_owned();
        ImageState { config, layers: Vec::new(), touches: Vec::new(), epoch, cmd_is_own: false }
    }

    /// `FROM image`.
    pub(crate) fn from_image(image: Image, epoch: Epoch) -> ImageState {
        let layers =
            image.layers.into_iter().map(|(descriptor, diff_id)| LayerRecord { diff_id, descriptor });
        let mut state = ImageState {
            config: image.config,
            layers: layers.collect(),
            touches: Vec::new(),
            epoch,
            cmd_is_own: false,
        };
        state.mend_history();
        if state.variable("PATH").is_none() {
            state.config.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        state.config.created = Some(epoch.to_string());
        state
    }

    /// `FROM stage`.
    pub(crate) fn from_stage(stage: &ImageState) -> ImageState {
        ImageState { cmd_is_own: false, ..stage.clone() }
    }

    /// Forgets the triggers that the base left: they run right after FROM and are not inherited further.
    pub(crate) fn drop_triggers(&mut self) {
        self.config.config.on_build.clear();
    }

    /// The identity of the files so far; `None` when there are none.
    pub(crate) fn chain(&self) -> Option<ChainId> {
        self.layers.iter().fold(None, |below, layer| Some(ChainId::of(below.as_ref(), &layer.diff_id)))
    }

    /// How the image's process is started.
    pub(crate) fn exec(&self) -> &ExecConfig {
        &self.config.config
    }

    /// A variable of the image's environment.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.exec().env.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
    }

    /// The directory that relative paths start at; absolute.
    pub(crate) fn working_directory(&self) -> &str {
        match self.exec().working_dir.as_str() {
            "" => "/",
            directory => directory,
        }
    }

    /// The shell of shell forms.
    pub(crate) fn shell(&self) -> Vec<String> {
        match self.exec().shell.as_slice() {
            [] => vec!["/bin/sh".to_owned(), "-c".to_owned()],
            shell => shell.to_vec(),
        }
    }

    /// Adds what a step that works on files did: its layer, if it made one, and its line of history.
    pub(crate) fn add_step(&mut self, layer: Option<LayerRecord>, created_by: String) {
        self.config.history.push(self.history(created_by, layer.is_none()));
        if let Some(layer) = layer {
            self.config.rootfs.diff_ids.push(layer.diff_id);
            self.layers.push(layer);
        }
    }

    /// Adds the line of history of a step that only says something.
    pub(crate) fn add_metadata(&mut self, created_by: String) {
        self.config.history.push(self.history(created_by, true));
    }

    fn history(&self, created_by: String, empty_layer: bool) -> History {
        History {
            created: Some(self.epoch.to_string()),
            created_by: Some(created_by),
            author: None,
            comment: Some(HISTORY_COMMENT.to_owned()),
            empty_layer,
        }
    }

    /// ENV: replaces in place, so that the order does not depend on how often a variable is set.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        let text = format!("{name}={value}");
        let named = |variable: &&mut String| variable.split('=').next() == Some(name);
        match self.config.config.env.iter_mut().find(named) {
            Some(variable) => *variable = text,
            None => self.config.config.env.push(text),
        }
    }

    /// `--platform`: what was asked for, not what the base of the last stage is for. A variant that nobody asked for
    /// is the base's, as long as it is one of the same architecture.
    pub(crate) fn set_platform(&mut self, asked: &Platform) {
        let own = &mut self.config.platform;
        let is_same = own.os == asked.os && own.architecture == asked.architecture;
        if !is_same {
            *own = asked.clone();
        } else if asked.variant.is_some() {
            own.variant.clone_from(&asked.variant);
        }
    }

    /// CMD.
    pub(crate) fn set_cmd(&mut self, words: Vec<String>) {
        self.config.config.cmd = Some(words).filter(|words| !words.is_empty());
        self.config.config.args_escaped = Some(true);
        self.cmd_is_own = true;
    }

    /// ENTRYPOINT; clears a CMD that was inherited, which belonged to another entry point.
    pub(crate) fn set_entrypoint(&mut self, words: Vec<String>) {
        self.config.config.entrypoint = Some(words).filter(|words| !words.is_empty());
        if !self.cmd_is_own {
            self.config.config.cmd = None;
        }
    }

    /// HEALTHCHECK; values that are not given are inherited by whoever runs the image.
    pub(crate) fn set_healthcheck(&mut self, healthcheck: Healthcheck) {
        self.config.config.healthcheck = Some(healthcheck);
    }

    /// Images made elsewhere may have a history that does not fit their layers. Everything that lists an image counts
    /// the lines that have layers, so such a history is replaced by one line a layer.
    fn mend_history(&mut self) {
        let with_layers = self.config.history.iter().filter(|line| !line.empty_layer).count();
        if with_layers == self.layers.len() {
            return;
        }
        let line = History {
            created: Some(self.epoch.to_string()),
            comment: Some("imported from the base image".to_owned()),
            ..History::default()
        };
        self.config.history = vec![line; self.layers.len()];
    }

    /// The configuration's bytes and the manifest.
    pub(crate) fn finish(mut self, annotations: BTreeMap<String, String>) -> (Vec<u8>, Manifest) {
        self.config.created = Some(self.epoch.to_string());
        let config = self.config.to_bytes();
        let descriptor = Descriptor::new(OCI_CONFIG, Digest::sha256(&config), config.len() as u64);
        let layers = self.layers.into_iter().map(|layer| oci_layer(layer.descriptor)).collect();
        (config, Manifest::build(descriptor, layers, annotations))
    }
}

/// The layer under its OCI type: the base may have been Docker's, and families are never mixed in one manifest.
fn oci_layer(layer: Descriptor) -> Descriptor {
    use rimg_formats::media_type::{DOCKER_LAYER_GZIP, DOCKER_LAYER_TAR, OCI_LAYER_GZIP, OCI_LAYER_TAR};
    let media_type = match layer.media_type.as_str() {
        DOCKER_LAYER_GZIP => OCI_LAYER_GZIP,
        DOCKER_LAYER_TAR => OCI_LAYER_TAR,
        other => other,
    };
    // Annotations and embedded data describe the layer where it came from.
    Descriptor::new(media_type, layer.digest, layer.size)
}

/// Words as Go prints a list of strings with `%q`, which is how BuildKit writes CMD and ENTRYPOINT into histories.
pub(crate) fn quoted_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", quoted.join(" "))
}

/// Whether a character leaves a mark. Behind another one, where a combining mark has something to combine with.
fn is_printable(character: char) -> bool {
    format!("a{character}").escape_debug().count() == 2
}

fn quoted(word: &str) -> String {
    let mut text = String::with_capacity(word.len() + 2);
    text.push('"');
    for character in word.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            '\u{7}' => text.push_str("\\a"),
            '\u{8}' => text.push_str("\\b"),
            '\u{b}' => text.push_str("\\v"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            ' '..='~' => text.push(character),
            '\0'..='\u{7f}' => text.push_str(&format!("\\x{:02x}", u32::from(character))),
            other if is_printable(other) => text.push(other),
            '\0'..='\u{ffff}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            other => text.push_str(&format!("\\U{:08x}", u32::from(other))),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state() -> ImageState {
        ImageState::scratch(Platform::new("linux", "amd64"), Epoch::DEFAULT)
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn an_entrypoint_clears_only_an_inherited_cmd() {
        let mut own = state();
        own.set_cmd(words("a"));
        own.set_entrypoint(words("e"));
        assert_eq!(own.exec().cmd, Some(words("a")));
        let mut inherited = ImageState::from_stage(&own);
        inherited.set_entrypoint(words("f"));
        assert_eq!(inherited.exec().cmd, None);
    }

    #[test]
    fn variables_keep_their_place() {
        let mut image = state();
        image.set_variable("A", "1");
        image.set_variable("AB", "2");
        image.set_variable("A", "3");
        assert_eq!(image.exec().env[1..], ["A=3", "AB=2"]);
        assert_eq!((image.variable("A"), image.variable("B")), (Some("3"), None));
    }

    #[test]
    fn the_same_image_has_the_same_bytes() {
        let (config, manifest) = state().finish(BTreeMap::new());
        assert_eq!(
            String::from_utf8(config.clone()).unwrap(),
            format!(
                r#"{{"created":"1980-01-02T00:00:00Z","architecture":"amd64","os":"linux","config":{{"Env":["PATH={DEFAULT_PATH}"],"WorkingDir":"/"}},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            )
        );
        let (again, same) = state().finish(BTreeMap::new());
        assert_eq!((again, same.digest()), (config, manifest.digest()));
    }

    #[test]
    fn go_quotes() {
        assert_eq!(
            quoted_list(&["/bin/sh".into(), "-c".into(), "echo \"a\"\n".into()]),
            r#"["/bin/sh" "-c" "echo \"a\"\n"]"#
        );
    }
}
