//! [`Lower`]: which layers of an image become directories of its overlay, and what each is found by.
//!
//! overlayfs takes a directory once. A layer that an image has twice is one directory where nothing lies between, the
//! upper one, and two where something does: the upper one is the ordinary snapshot, the lower one a tree of its own.

use rimg_formats::digest::{ChainId, DiffId, Digest};

/// Digests of tars without an entry: two zero blocks, as BuildKit, docker and rimg write them, and a whole record, as
/// GNU tar does. Images have them for steps that changed nothing, often many times; they change nothing here either.
const EMPTY_TARS: [&str; 2] = [
    "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    "84ff92691f909a05b224e1c56abb4864f01b4f8e3c854e4bb4c7baf1d3f6d652",
];

/// One directory of an overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lower {
    /// Which of the image's layers it is, the lowest being 0.
    pub number: usize,
    /// That layer.
    pub diff_id: DiffId,
    /// The layer and all below it: what its tree is found by where that depends on them.
    pub chain: ChainId,
    /// How many directories above it are of the same layer.
    pub repeat: usize,
}

impl Lower {
    /// The only layer of an image.
    pub fn single(diff_id: DiffId) -> Lower {
        Lower { number: 0, diff_id, chain: ChainId::of(None, &diff_id), repeat: 0 }
    }

    /// The directories of an image with these layers; both have the lowest first.
    pub fn stack(layers: &[DiffId]) -> Vec<Lower> {
        let mut chain = None;
        let mut lowers: Vec<Lower> = Vec::with_capacity(layers.len());
        for (number, diff_id) in layers.iter().enumerate() {
            let next = ChainId::of(chain.as_ref(), diff_id);
            let lower = Lower { number, diff_id: *diff_id, chain: next, repeat: 0 };
            chain = Some(lower.chain);
            if is_empty_tar(diff_id.digest()) {
                continue;
            }
            // What a layer puts and removes is put and removed already where it comes a second time at once.
            lowers.pop_if(|last| last.diff_id == *diff_id);
            lowers.push(lower);
        }
        for at in 0..lowers.len() {
            let above = lowers[at + 1..].iter().filter(|lower| lower.diff_id == lowers[at].diff_id).count();
            lowers[at].repeat = above;
        }
        lowers
    }
}

fn is_empty_tar(diff_id: &Digest) -> bool {
    EMPTY_TARS.contains(&diff_id.hex().as_str())
}
