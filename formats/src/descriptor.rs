//! [`Descriptor`]: how one piece of content names another (image-spec, *Content Descriptors*).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::media_type::{self, MediaKind};
use crate::platform::Platform;

/// A reference to content by type, digest and size. Fields unknown to rimg are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// Places the content may be downloaded from.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub urls: Vec<String>,
    /// Arbitrary metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "texts")]
    pub annotations: BTreeMap<String, String>,
    /// The content itself, base64, when embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// The type of the artifact, in listings of referrers and indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The platform of an entry of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Everything else that was there.
    #[serde(flatten)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

impl Descriptor {
    /// A descriptor of three fields.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            artifact_type: None,
            platform: None,
            unknown: serde_json::Map::new(),
        }
    }

    /// What its media type says about its bytes.
    pub fn kind(&self) -> MediaKind {
        media_type::kind(&self.media_type)
    }
}

/// Go programs write `null` for an empty list or map; readers take it for one.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// A map of texts in which `null` stands for an empty one, as Go programs read it.
pub(crate) fn texts<'de, D>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let found: BTreeMap<String, Option<String>> = null_is_empty(deserializer)?;
    Ok(found.into_iter().map(|(key, text)| (key, text.unwrap_or_default())).collect())
}

/// A list of texts in which `null` stands for an empty one.
pub(crate) fn text_list<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let found: Vec<Option<String>> = null_is_empty(deserializer)?;
    Ok(found.into_iter().map(Option::unwrap_or_default).collect())
}
