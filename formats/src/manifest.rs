//! [`Manifest`] and [`Index`]: what ties a configuration, layers and platforms together (image-spec,
//! *Image Manifest* and *Image Index*; Docker's schema 2 twins).
//!
//! A digest is of exact bytes, so a parsed document keeps the bytes it came from and never re-writes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::descriptor::{Descriptor, null_is_empty, texts};
use crate::digest::{Algorithm, Digest};
use crate::media_type::{self, MediaKind};

/// Largest manifest accepted: the distribution specification asks registries for at least 4 MiB, and nothing
/// seen in the wild comes near it.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Most layers of one manifest: overlayfs stacks 500, docker 127; beyond lies only abuse.
pub const MANIFEST_LAYERS_MAX: usize = 500;
/// Most manifests of one index: four megabytes hold some ten thousand, real ones list a few dozen.
pub const INDEX_MANIFESTS_MAX: usize = 10_000;

/// Why some bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Over [`MANIFEST_BYTES_MAX`].
    #[error("the manifest has {0} bytes; at most {MANIFEST_BYTES_MAX} are accepted")]
    TooLarge(usize),
    /// Not JSON, or not of the shape the specification gives.
    #[error("the manifest is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Valid JSON that breaks a rule.
    #[error("the manifest is not valid: {0}")]
    Rule(String),
    /// A media type rimg does not know as a manifest.
    #[error("`{0}` is not a manifest type that rimg understands")]
    MediaType(String),
}

/// What every manifest-like document says of itself, read before its kind is known.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: i64,
    #[serde(default, deserialize_with = "null_is_empty")]
    media_type: String,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(rename = "fsLayers", default)]
    schema1_layers: Option<serde::de::IgnoredAny>,
}

/// The fields of an image manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestFields {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    annotations: BTreeMap<String, String>,
}

/// An image manifest with its exact bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    raw: Vec<u8>,
    fields: ManifestFields,
}

impl Manifest {
    /// Parses an image manifest; `media_type` is what its carrier called it, if anything.
    pub fn parse(raw: &[u8], media_type: Option<&str>) -> Result<Manifest, ManifestError> {
        match ManifestOrIndex::parse(raw, media_type)? {
            ManifestOrIndex::Manifest(manifest) => Ok(manifest),
            ManifestOrIndex::Index(_) => {
                Err(ManifestError::Rule("expected an image manifest, found an index".to_owned()))
            }
        }
    }

    /// Writes an OCI image manifest. The same arguments give the same bytes.
    pub fn build(
        config: Descriptor,
        layers: Vec<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Manifest {
        let fields = ManifestFields {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations,
        };
        let raw = serde_json::to_vec(&fields).expect("a manifest of plain fields serialises");
        Manifest { raw, fields }
    }

    /// The exact bytes.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The SHA-256 digest of the exact bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.raw)
    }

    /// Its media type; OCI's when it names none.
    pub fn media_type(&self) -> &str {
        match self.fields.media_type.as_str() {
            "" => media_type::OCI_MANIFEST,
            named => named,
        }
    }

    /// A descriptor of this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type(), self.digest(), self.raw.len() as u64)
    }

    /// The configuration.
    pub fn config(&self) -> &Descriptor {
        &self.fields.config
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.fields.layers
    }

    /// The manifest this one refers to (signatures, SBOMs and other artifacts).
    pub fn subject(&self) -> Option<&Descriptor> {
        self.fields.subject.as_ref()
    }

    /// The artifact's type as listings of referrers show it: its own, else the configuration's media type.
    pub fn artifact_type(&self) -> &str {
        match self.fields.artifact_type.as_deref() {
            Some(named) if !named.is_empty() => named,
            _ => &self.fields.config.media_type,
        }
    }

    /// The annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.fields.annotations
    }

    /// Whether it is an image that can be run, and not some other artifact.
    pub fn is_image(&self) -> bool {
        self.fields.config.kind() == MediaKind::Config
    }
}

/// The fields of an image index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexFields {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_is_empty")]
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    annotations: BTreeMap<String, String>,
}

/// An image index with its exact bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    raw: Vec<u8>,
    fields: IndexFields,
}

impl Index {
    /// Writes an OCI image index. The same arguments give the same bytes.
    pub fn build(manifests: Vec<Descriptor>, annotations: BTreeMap<String, String>) -> Index {
        let fields = IndexFields {
            schema_version: 2,
            media_type: media_type::OCI_INDEX.to_owned(),
            artifact_type: None,
            manifests,
            subject: None,
            annotations,
        };
        let raw = serde_json::to_vec(&fields).expect("an index of plain fields serialises");
        Index { raw, fields }
    }

    /// The exact bytes.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The SHA-256 digest of the exact bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(Algorithm::Sha256, &self.raw)
    }

    /// Its media type; OCI's when it names none.
    pub fn media_type(&self) -> &str {
        match self.fields.media_type.as_str() {
            "" => media_type::OCI_INDEX,
            named => named,
        }
    }

    /// The manifests listed.
    pub fn manifests(&self) -> &[Descriptor] {
        &self.fields.manifests
    }

    /// The manifest this index refers to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.fields.subject.as_ref()
    }

    /// The artifact's type, if it names one.
    pub fn artifact_type(&self) -> Option<&str> {
        self.fields.artifact_type.as_deref().filter(|named| !named.is_empty())
    }

    /// The annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.fields.annotations
    }
}

/// A document that a tag may name.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "few live at a time, and each is soon taken apart")]
pub enum ManifestOrIndex {
    /// An image manifest.
    Manifest(Manifest),
    /// An image index or manifest list.
    Index(Index),
}

impl ManifestOrIndex {
    /// Parses what `raw` is by its own words, which must not contradict its carrier's `media_type`. A document
    /// that could be read as both kinds is refused: clients would disagree on what was signed
    /// (image-spec, *Image Manifest*, on `manifests` within a manifest).
    pub fn parse(raw: &[u8], media_type: Option<&str>) -> Result<ManifestOrIndex, ManifestError> {
        if raw.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(raw.len()));
        }
        let probe: Probe = serde_json::from_slice(raw)?;
        let rule = |message: &str| Err(ManifestError::Rule(message.to_owned()));
        if probe.schema_version == 1 || probe.schema1_layers.is_some() {
            return rule(
                "it is a Docker schema 1 manifest, which was retired: push the image again with a current client",
            );
        }
        if probe.schema_version != 2 {
            return Err(ManifestError::Rule(format!(
                "schemaVersion is {}, expected 2",
                probe.schema_version
            )));
        }
        if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
            return rule(
                "it has both `manifests` and `layers` or `config`, so it is neither an index nor a manifest",
            );
        }
        let carried = media_type.map(|text| text.split(';').next().unwrap_or("").trim()).unwrap_or("");
        if !carried.is_empty() && !probe.media_type.is_empty() && carried != probe.media_type {
            let own = &probe.media_type;
            return Err(ManifestError::Rule(format!("it was sent as `{carried}` but calls itself `{own}`")));
        }
        let named = if probe.media_type.is_empty() { carried } else { &probe.media_type };
        match media_type::kind(named) {
            MediaKind::Manifest => parse_manifest(raw, named),
            MediaKind::Index => parse_index(raw, named),
            _ if !named.is_empty() => Err(ManifestError::MediaType(named.to_owned())),
            _ if probe.manifests.is_some() => parse_index(raw, media_type::OCI_INDEX),
            _ => parse_manifest(raw, media_type::OCI_MANIFEST),
        }
    }

    /// The exact bytes.
    pub fn raw(&self) -> &[u8] {
        match self {
            ManifestOrIndex::Manifest(manifest) => manifest.raw(),
            ManifestOrIndex::Index(index) => index.raw(),
        }
    }

    /// The media type.
    pub fn media_type(&self) -> &str {
        match self {
            ManifestOrIndex::Manifest(manifest) => manifest.media_type(),
            ManifestOrIndex::Index(index) => index.media_type(),
        }
    }

    /// The SHA-256 digest of the exact bytes.
    pub fn digest(&self) -> Digest {
        Digest::sha256(self.raw())
    }

    /// The manifest this one refers to.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            ManifestOrIndex::Manifest(manifest) => manifest.subject(),
            ManifestOrIndex::Index(index) => index.subject(),
        }
    }

    /// The annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match self {
            ManifestOrIndex::Manifest(manifest) => manifest.annotations(),
            ManifestOrIndex::Index(index) => index.annotations(),
        }
    }

    /// The artifact's type as listings of referrers show it.
    pub fn artifact_type(&self) -> Option<&str> {
        match self {
            ManifestOrIndex::Manifest(manifest) => Some(manifest.artifact_type()),
            ManifestOrIndex::Index(index) => index.artifact_type(),
        }
    }
}

fn parse_manifest(raw: &[u8], media_type: &str) -> Result<ManifestOrIndex, ManifestError> {
    let mut fields: ManifestFields = serde_json::from_slice(raw)?;
    if fields.layers.len() > MANIFEST_LAYERS_MAX {
        return Err(ManifestError::Rule(format!(
            "it lists {} layers; at most {MANIFEST_LAYERS_MAX} are accepted",
            fields.layers.len()
        )));
    }
    fields.media_type = media_type.to_owned();
    Ok(ManifestOrIndex::Manifest(Manifest { raw: raw.to_vec(), fields }))
}

fn parse_index(raw: &[u8], media_type: &str) -> Result<ManifestOrIndex, ManifestError> {
    let mut fields: IndexFields = serde_json::from_slice(raw)?;
    if fields.manifests.len() > INDEX_MANIFESTS_MAX {
        return Err(ManifestError::Rule(format!(
            "it lists {} manifests; at most {INDEX_MANIFESTS_MAX} are accepted",
            fields.manifests.len()
        )));
    }
    fields.media_type = media_type.to_owned();
    Ok(ManifestOrIndex::Index(Index { raw: raw.to_vec(), fields }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::media_type::{DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST};

    fn config() -> Descriptor {
        Descriptor::new(OCI_CONFIG, Digest::sha256(b"{}"), 2)
    }

    #[test]
    fn built_manifests_parse_back_and_keep_their_bytes() {
        let layer = Descriptor::new(OCI_LAYER_GZIP, Digest::sha256(b"l"), 1);
        let built = Manifest::build(config(), vec![layer], BTreeMap::new());
        let parsed = Manifest::parse(built.raw(), Some(OCI_MANIFEST)).unwrap();
        assert_eq!(parsed, built);
        assert!(parsed.is_image());

        let spaced = String::from_utf8(built.raw().to_vec())
            .unwrap()
            .replace(':', " : ")
            .replace("sha256 : ", "sha256:");
        let parsed = Manifest::parse(spaced.as_bytes(), None).unwrap();
        assert_eq!(parsed.digest(), Digest::sha256(spaced.as_bytes()));
    }

    #[test]
    fn unknown_fields_of_descriptors_are_kept() {
        let mut value = serde_json::to_value(config()).unwrap();
        value["x"] = serde_json::json!({"y": 1});
        let descriptor: Descriptor = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&descriptor).unwrap(), value);
    }

    #[test]
    fn go_writes_null_for_empty() {
        let config = serde_json::to_string(&config()).unwrap();
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":null,"annotations":null}}"#);
        assert!(Manifest::parse(text.as_bytes(), None).unwrap().layers().is_empty());
        let layer = format!(
            r#"{{"mediaType":null,"digest":"{}","size":1,"annotations":{{"a":null}},"platform":{{"architecture":null}}}}"#,
            Digest::sha256(b"l")
        );
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":null,"config":{config},"layers":[{layer}],"annotations":{{"a":null,"b":"c"}}}}"#
        );
        let manifest = Manifest::parse(text.as_bytes(), None).unwrap();
        assert_eq!(
            manifest.annotations().iter().map(|(key, value)| format!("{key}{value}")).collect::<String>(),
            "abc"
        );
        assert_eq!(manifest.layers()[0].annotations["a"], "");
        assert!(!manifest.layers()[0].platform.as_ref().unwrap().is_named());
    }

    #[test]
    fn documents_that_lie_or_confuse_are_refused() {
        let config = serde_json::to_string(&config()).unwrap();
        let negative = config.replace(r#""size":2"#, r#""size":-2"#);
        let table = [
            ("nonsense".to_owned(), None, "not valid"),
            ("[]".to_owned(), None, "not valid"),
            ("{}".to_owned(), None, "schemaVersion"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None, "schema 1"),
            (r#"{"schemaVersion":3}"#.to_owned(), None, "expected 2"),
            (format!(r#"{{"schemaVersion":2,"config":{config},"manifests":[]}}"#), None, "neither"),
            (format!(r#"{{"schemaVersion":2,"config":{negative}}}"#), None, "not valid"),
            (
                format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config}}}"#),
                Some(DOCKER_MANIFEST),
                "calls itself",
            ),
            (format!(r#"{{"schemaVersion":2,"config":{config}}}"#), Some("text/plain"), "text/plain"),
            (format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{config}}}"#), None, ""),
        ];
        for (text, media_type, why) in table {
            match ManifestOrIndex::parse(text.as_bytes(), media_type) {
                Err(error) => assert!(error.to_string().contains(why), "{text}: {error}"),
                Ok(ManifestOrIndex::Index(index)) => assert!(index.manifests().is_empty()),
                Ok(other) => panic!("{text} became {other:?}"),
            }
        }
        assert!(matches!(
            ManifestOrIndex::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1], None),
            Err(ManifestError::TooLarge(_))
        ));
        let deep = "[".repeat(100_000);
        assert!(ManifestOrIndex::parse(deep.as_bytes(), None).is_err());
    }
}
