//! [`ImageConfig`]: how an image's process is started, and of which layers its root is made (image-spec,
//! *Image Configuration*, with Docker's extensions `Healthcheck`, `OnBuild`, `Shell` and `ArgsEscaped`).
//!
//! A parsed configuration keeps unknown fields, so that building on a base loses nothing of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::descriptor::{null_is_empty, text_list, texts};
use crate::digest::DiffId;
use crate::epoch::Epoch;
use crate::platform::Platform;

/// Largest configuration accepted: they are manifests' siblings, and real ones have a few kilobytes.
pub const CONFIG_BYTES_MAX: usize = 8 << 20;

/// An image's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// How its process is started.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: ExecConfig,
    /// Its layers.
    pub rootfs: RootFsConfig,
    /// How it was made, a line a step.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub history: Vec<History>,
    /// Everything else that was there.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The layers of an image, by their uncompressed digests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootFsConfig {
    /// Always `layers`.
    #[serde(rename = "type", default, deserialize_with = "null_is_empty")]
    pub kind: String,
    /// Lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<DiffId>,
}

/// One line of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_is_empty")]
    pub empty_layer: bool,
}

/// How an image's process is started: the `config` object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExecConfig {
    /// `user[:group]`, names or numbers.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub user: String,
    /// Ports the process listens on, `port/protocol`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `NAME=value`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "text_list")]
    pub env: Vec<String>,
    /// The command's fixed first words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The command's last words, which a caller replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Directories whose content outlives the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// The directory the process starts in.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the process to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Windows only, but BuildKit sets it with CMD; kept as found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    /// How to tell whether the process is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions to run in a build on top of this image.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "text_list")]
    pub on_build: Vec<String>,
    /// The shell of RUN, CMD and ENTRYPOINT in their shell form.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "text_list")]
    pub shell: Vec<String>,
    /// Everything else that was there.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A health check; times are nanoseconds, 0 means inherited.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time a check may take.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time after the start during which failures do not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between checks during the start period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make the container unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Why some bytes are not a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Over [`CONFIG_BYTES_MAX`].
    #[error("the image configuration has {0} bytes; at most {CONFIG_BYTES_MAX} are accepted")]
    TooLarge(usize),
    /// Not JSON, or not of the shape the specification gives.
    #[error("the image configuration is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// It does not fit the manifest that names it.
    #[error("the image configuration lists {diff_ids} layers but the manifest lists {layers}")]
    Layers {
        /// Layers by the configuration.
        diff_ids: usize,
        /// Layers by the manifest.
        layers: usize,
    },
}

impl ImageConfig {
    /// The configuration of an image with nothing in it.
    pub fn scratch(platform: Platform, created: Epoch) -> ImageConfig {
        ImageConfig {
            created: Some(created.to_string()),
            author: None,
            platform,
            config: ExecConfig::default(),
            rootfs: RootFsConfig { kind: "layers".to_owned(), diff_ids: Vec::new() },
            history: Vec::new(),
            unknown: Map::new(),
        }
    }

    /// Parses a configuration.
    pub fn parse(raw: &[u8]) -> Result<ImageConfig, ConfigError> {
        if raw.len() > CONFIG_BYTES_MAX {
            return Err(ConfigError::TooLarge(raw.len()));
        }
        Ok(serde_json::from_slice(raw)?)
    }

    /// Parses a configuration that must have one layer for each of the manifest's.
    pub fn parse_for(raw: &[u8], layers: usize) -> Result<ImageConfig, ConfigError> {
        let config = ImageConfig::parse(raw)?;
        let diff_ids = config.rootfs.diff_ids.len();
        if diff_ids != layers {
            return Err(ConfigError::Layers { diff_ids, layers });
        }
        Ok(config)
    }

    /// Its bytes. The same configuration gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a configuration of plain fields serialises")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn unknown_fields_survive() {
        let diff_id = Digest::sha256(b"layer");
        let text = format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","os.version":"1","moby.buildkit.x":"y",
            "config":{{"Cmd":["a"],"Env":null,"Healthcheck":{{"Test":["NONE"]}},"Odd":[1]}},
            "rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.unknown["moby.buildkit.x"], "y");
        assert_eq!(config.config.unknown["Odd"], serde_json::json!([1]));
        assert_eq!(config.platform.variant.as_deref(), Some("v8"));
        let again = ImageConfig::parse(&config.to_bytes()).unwrap();
        assert_eq!(again, config);
        assert!(ImageConfig::parse_for(text.as_bytes(), 2).is_err());
    }

    #[test]
    fn a_scratch_configuration_is_the_smallest_valid_one() {
        let config = ImageConfig::scratch(Platform::new("linux", "amd64"), Epoch::DEFAULT);
        let text = String::from_utf8(config.to_bytes()).unwrap();
        assert_eq!(
            text,
            r#"{"created":"1980-01-02T00:00:00Z","architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#
        );
    }

    #[test]
    fn null_stands_for_an_empty_text() {
        let text = r#"{"architecture":null,"os":null,"config":{"Labels":{"a":null,"b":"c"},"Env":[null,"D=e"],"Cmd":null,"User":null,"WorkingDir":null},"rootfs":{"type":null,"diff_ids":null},"history":[{"empty_layer":null}]}"#;
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert!(!config.platform.is_named());
        assert_eq!((config.config.labels["a"].as_str(), config.config.labels["b"].as_str()), ("", "c"));
        assert_eq!(config.config.env, ["", "D=e"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "null", "[]", "{}", r#"{"architecture":1}"#, &"{\"a\":".repeat(5000)] {
            assert!(ImageConfig::parse(bad.as_bytes()).is_err());
        }
        assert!(ImageConfig::parse(&vec![b' '; CONFIG_BYTES_MAX + 1]).is_err());
    }
}
