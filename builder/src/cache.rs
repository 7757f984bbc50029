//! The build cache: results of steps by their [`CacheKey`], and the reason when there is none.
//!
//! What enters a key stands in [`step_key`]. An entry keeps the inputs' digests too, so that a miss can name the
//! first input that differs from the nearest earlier entry of the same instruction.

mod step_key;

use std::fmt;

use rimg_formats::descriptor::Descriptor;
use rimg_formats::digest::{DiffId, Digest};
use rimg_formats::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

pub use self::step_key::CacheKey;
pub(crate) use self::step_key::{FieldHasher, Slot, StepInputs};

/// How many earlier entries of an instruction a miss is compared with.
const CANDIDATES_MAX: usize = 16;

/// Why the cache had no result for a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Miss {
    /// The cache was not to be used.
    Disabled,
    /// No build before had this instruction.
    New,
    /// Compared with the nearest earlier entry of the instruction, this input differs.
    Changed(String),
    /// There is an entry, but its layer is not in the store any more, or damaged.
    Lost(Digest),
}

impl fmt::Display for Miss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Miss::Disabled => formatter.write_str("the cache is not used"),
            Miss::New => formatter.write_str("no earlier build had this instruction"),
            Miss::Changed(input) => write!(formatter, "{input} changed"),
            Miss::Lost(layer) => write!(formatter, "its layer {layer} is no longer whole in the store"),
        }
    }
}

/// A layer as the cache and manifests name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: DiffId,
    pub(crate) descriptor: Descriptor,
}

/// What the cache keeps of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    pub(crate) inputs: StepInputs,
    /// The layer it made; `None` when it changed no file.
    pub(crate) layer: Option<LayerRecord>,
    /// Files that it wrote anew with the content that they had: no part of the layer, but newer for later steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) touched: Vec<Vec<u8>>,
}

/// The answer to a lookup.
pub(crate) enum Lookup {
    /// The step's result is there, and leased so that it stays while the build goes on.
    Hit(Box<StepRecord>),
    /// It is not. The record is the nearest earlier one, if any.
    Miss(Miss, Option<Box<StepRecord>>),
}

/// The build cache of one build.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    store: Store,
    enabled: bool,
}

impl Cache {
    /// The cache in `store`; when not `enabled` it only takes results in.
    pub(crate) fn new(store: Store, enabled: bool) -> Cache {
        Cache { store, enabled }
    }

    /// Whether results are looked for.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Whether an earlier build left a result for this instruction, whatever its inputs.
    pub(crate) fn knows(&self, slot: Slot) -> Result<bool, StoreError> {
        Ok(self.enabled && !self.store.cache_candidates(&slot.to_string(), 1)?.is_empty())
    }

    /// Looks a step up.
    pub(crate) fn look_up(&self, slot: Slot, inputs: &StepInputs) -> Result<Lookup, StoreError> {
        if !self.enabled {
            return Ok(Lookup::Miss(Miss::Disabled, None));
        }
        let found = self.store.cache_get(&inputs.key().to_string())?;
        if let Some(record) = found.and_then(|value| serde_json::from_slice::<StepRecord>(&value).ok()) {
            return match record.layer.as_ref().map(|layer| layer.descriptor.digest) {
                Some(digest) if !self.is_whole(&digest)? => Ok(Lookup::Miss(Miss::Lost(digest), None)),
                _ => Ok(Lookup::Hit(Box::new(record))),
            };
        }
        let Some(nearest) = self.nearest(slot, inputs)? else { return Ok(Lookup::Miss(Miss::New, None)) };
        let name = inputs.first_difference(&nearest.inputs).unwrap_or("an unknown input").to_owned();
        Ok(Lookup::Miss(Miss::Changed(name), Some(Box::new(nearest))))
    }

    /// Whether a blob can be built upon: there, of its size, and untouched since it was last verified or verified now.
    fn is_whole(&self, digest: &Digest) -> Result<bool, StoreError> {
        if !self.store.contains(digest)? {
            return Ok(false);
        }
        match self.store.verified_blob(digest) {
            Ok(blob) => Ok(blob.is_some()),
            Err(StoreError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn nearest(&self, slot: Slot, inputs: &StepInputs) -> Result<Option<StepRecord>, StoreError> {
        let candidates = self.store.cache_candidates(&slot.to_string(), CANDIDATES_MAX)?;
        let records =
            candidates.iter().filter_map(|entry| serde_json::from_slice::<StepRecord>(&entry.value).ok());
        // Newest first: of several that are equally near, the first wins.
        Ok(records.rev().max_by_key(|record| record.inputs.common(inputs)))
    }

    /// Remembers a step's result.
    pub(crate) fn remember(&self, slot: Slot, record: &StepRecord) -> Result<(), StoreError> {
        let value = serde_json::to_vec(record).expect("a record of digests and texts serialises");
        let blobs: Vec<Digest> = record.layer.iter().map(|layer| layer.descriptor.digest).collect();
        self.store.cache_put(&record.inputs.key().to_string(), &slot.to_string(), &value, &blobs)
    }
}
