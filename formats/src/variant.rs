//! [`choose`]: the variant of an index for a platform (image-spec, *Image Index*).
//!
//! 1. Entries that say their platform are compared with the one wanted. Most indexes say it of every entry, and nothing
//!    else is read.
//! 2. Where none of them fits exactly, the others are looked at: indexes within the index are descended, and entries
//!    without a platform are told by their configurations, as containerd does.
//!
//! An entry that is absent, odd or of an unknown type is no variant, and does not spoil the others.

use crate::descriptor::Descriptor;
use crate::manifest::{Index, Manifest, ManifestOrIndex};
use crate::media_type::MediaKind;
use crate::platform::Platform;

/// Indexes within indexes that are followed: the specification allows one in another, nobody nests deeper.
pub const DEPTH_MAX: usize = 4;
/// Entries that are looked at for their platform: each is a request or two at a pull, and real indexes name theirs.
const LOOKED_AT_MAX: usize = 200;
/// Variants that an error lists.
const LISTED_MAX: usize = 50;

/// Where the documents of an index are.
pub trait Documents {
    /// Why one cannot be read although it may be there.
    type Error;
    /// What an entry names; `None` when it is not there, or is no manifest.
    fn document(&self, entry: &Descriptor) -> Result<Option<ManifestOrIndex>, Self::Error>;
    /// What the configuration of an image says; `None` when it is not there, or says nothing.
    fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>, Self::Error>;
}

/// A variant of an index.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// The indexes within the index that lead to it, the outermost first.
    pub indexes: Vec<(Descriptor, Index)>,
    /// Its manifest.
    pub entry: Descriptor,
    /// What it runs on.
    pub platform: Platform,
}

/// What was found in an index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The variant that fits best, the first of several.
    pub best: Option<Variant>,
    /// The variant, if there is just one.
    pub only: Option<Variant>,
    /// What there is, in words: platforms, and the types of entries that are no images.
    pub available: Vec<String>,
}

/// Looks for the variant for `wanted`.
pub fn choose<D: Documents>(index: &Index, wanted: &Platform, documents: &D) -> Result<Choice, D::Error> {
    let mut search = Search::of(documents, Some(wanted));
    search.visit(index, &[])?;
    let only = search.variants.first().filter(|_| search.variants.len() == 1).cloned();
    Ok(Choice { best: search.best.map(|(_, variant)| variant), only, available: search.available })
}

/// All variants that are there, those of indexes within the index too.
pub fn present<D: Documents>(index: &Index, documents: &D) -> Result<Vec<Variant>, D::Error> {
    let mut search = Search::of(documents, None);
    search.visit(index, &[])?;
    Ok(search.variants)
}

struct Search<'s, D> {
    documents: &'s D,
    /// Without it every variant is looked at, to see whether it is there.
    wanted: Option<&'s Platform>,
    best: Option<(u8, Variant)>,
    variants: Vec<Variant>,
    available: Vec<String>,
    looked_at: usize,
}

impl<'s, D: Documents> Search<'s, D> {
    fn of(documents: &'s D, wanted: Option<&'s Platform>) -> Search<'s, D> {
        Search { documents, wanted, best: None, variants: Vec::new(), available: Vec::new(), looked_at: 0 }
    }

    fn visit(&mut self, index: &Index, above: &[(Descriptor, Index)]) -> Result<(), D::Error> {
        let says = |entry: &&Descriptor| entry.kind() == MediaKind::Manifest && named(entry).is_some();
        if self.wanted.is_some() {
            for entry in index.manifests().iter().filter(says) {
                self.offer(above, entry, named(entry));
            }
        }
        for entry in index.manifests().iter() {
            if matches!(self.best, Some((0, _))) {
                break;
            }
            if self.wanted.is_none() || !says(&entry) {
                self.look_at(entry, above)?;
            }
        }
        Ok(())
    }

    fn look_at(&mut self, entry: &Descriptor, above: &[(Descriptor, Index)]) -> Result<(), D::Error> {
        let readable = matches!(entry.kind(), MediaKind::Manifest | MediaKind::Index);
        if !readable && !entry.media_type.is_empty() {
            self.list(format!("an entry of type {}", entry.media_type));
            return Ok(());
        }
        // An index for another platform has nothing to look for.
        if let (Some(platform), Some(wanted)) = (named(entry), self.wanted)
            && !platform.satisfies(wanted)
        {
            self.list(platform.to_string());
            return Ok(());
        }
        self.looked_at += 1;
        if self.looked_at > LOOKED_AT_MAX {
            return Ok(());
        }
        match self.documents.document(entry)? {
            Some(ManifestOrIndex::Index(inner)) if above.len() < DEPTH_MAX => {
                let path = [above, &[(entry.clone(), inner.clone())]].concat();
                self.visit(&inner, &path)
            }
            Some(ManifestOrIndex::Manifest(manifest)) if manifest.is_image() => {
                match named(entry) {
                    Some(platform) => self.offer(above, entry, Some(platform)),
                    None => {
                        let platform = self.documents.platform(&manifest)?;
                        self.offer(above, entry, platform.as_ref().filter(|platform| platform.is_named()));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn offer(&mut self, above: &[(Descriptor, Index)], entry: &Descriptor, platform: Option<&Platform>) {
        let Some(platform) = platform else { return };
        // BuildKit's attestations.
        if platform.os == "unknown" {
            return;
        }
        self.list(platform.to_string());
        let variant = Variant { indexes: above.to_vec(), entry: entry.clone(), platform: platform.clone() };
        let distance = self.wanted.and_then(|wanted| platform.distance_from(wanted));
        if let Some(distance) = distance
            && self.best.as_ref().is_none_or(|(best, _)| distance < *best)
        {
            self.best = Some((distance, variant.clone()));
        }
        self.variants.push(variant);
    }

    fn list(&mut self, what: String) {
        if !self.available.contains(&what) && self.available.len() < LISTED_MAX {
            self.available.push(what);
        }
    }
}

/// The platform of an entry, where it says one.
fn named(entry: &Descriptor) -> Option<&Platform> {
    entry.platform.as_ref().filter(|platform| platform.is_named())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::Digest;
    use crate::media_type::{OCI_CONFIG, OCI_MANIFEST};

    /// Documents by digest; platforms by the digest of the configuration.
    #[derive(Default)]
    struct Shelf {
        documents: BTreeMap<Digest, ManifestOrIndex>,
        platforms: BTreeMap<Digest, Platform>,
        read: RefCell<usize>,
    }

    impl Documents for Shelf {
        type Error = std::convert::Infallible;

        fn document(&self, entry: &Descriptor) -> Result<Option<ManifestOrIndex>, Self::Error> {
            *self.read.borrow_mut() += 1;
            Ok(self.documents.get(&entry.digest).cloned())
        }

        fn platform(&self, manifest: &Manifest) -> Result<Option<Platform>, Self::Error> {
            Ok(self.platforms.get(&manifest.config().digest).cloned())
        }
    }

    impl Shelf {
        /// An image whose configuration says `platform`; its entry says nothing.
        fn image(&mut self, platform: &str) -> Descriptor {
            let config = Digest::sha256(platform.as_bytes());
            let manifest =
                Manifest::build(Descriptor::new(OCI_CONFIG, config, 1), Vec::new(), BTreeMap::new());
            self.platforms.insert(config, platform.parse().unwrap());
            let entry = manifest.descriptor();
            self.documents.insert(entry.digest, ManifestOrIndex::Manifest(manifest));
            entry
        }

        fn index(&mut self, entries: Vec<Descriptor>) -> (Descriptor, Index) {
            let index = Index::build(entries, BTreeMap::new());
            let entry = Descriptor::new(index.media_type(), index.digest(), index.raw().len() as u64);
            self.documents.insert(entry.digest, ManifestOrIndex::Index(index.clone()));
            (entry, index)
        }
    }

    fn saying(mut entry: Descriptor, platform: &str) -> Descriptor {
        entry.platform = Some(platform.parse().unwrap());
        entry
    }

    fn best(shelf: &Shelf, index: &Index, wanted: &str) -> Option<Digest> {
        choose(index, &wanted.parse().unwrap(), shelf).unwrap().best.map(|variant| variant.entry.digest)
    }

    #[test]
    fn entries_that_say_their_platform_are_not_read() {
        let mut shelf = Shelf::default();
        let (amd, arm) = (shelf.image("linux/amd64"), shelf.image("linux/arm64"));
        let plain = shelf.image("linux/mips");
        let (_, index) =
            shelf.index(vec![plain, saying(arm.clone(), "linux/arm64"), saying(amd.clone(), "linux/amd64")]);
        assert_eq!(best(&shelf, &index, "linux/amd64"), Some(amd.digest));
        assert_eq!(*shelf.read.borrow(), 0);
    }

    #[test]
    fn others_are_told_by_their_configuration_and_indexes_are_descended() {
        let mut shelf = Shelf::default();
        let (amd, arm) = (shelf.image("linux/amd64"), shelf.image("linux/arm64"));
        let mut empty = amd.clone();
        empty.platform = Some(Platform::default());
        let (inner, _) = shelf.index(vec![arm.clone(), empty]);
        let (middle, _) = shelf.index(vec![saying(inner.clone(), "linux/amd64")]);
        let (_, outer) = shelf.index(vec![middle.clone()]);
        assert_eq!(best(&shelf, &outer, "linux/amd64"), Some(amd.digest));
        let choice = choose(&outer, &"linux/amd64".parse().unwrap(), &shelf).unwrap();
        let path: Vec<Digest> = choice.best.unwrap().indexes.iter().map(|(entry, _)| entry.digest).collect();
        assert_eq!(path, [middle.digest, inner.digest]);
        // The way to it was barred by what the middle index says.
        assert_eq!(best(&shelf, &outer, "linux/s390x"), None);
        let (_, plain) = shelf.index(vec![inner]);
        assert_eq!(best(&shelf, &plain, "linux/arm64"), Some(arm.digest));
        assert_eq!(present(&plain, &shelf).unwrap().len(), 2);
    }

    #[test]
    fn odd_entries_spoil_nothing_and_are_listed() {
        let mut shelf = Shelf::default();
        let amd = shelf.image("linux/amd64");
        let absent = Descriptor::new(OCI_MANIFEST, Digest::sha256(b"absent"), 1);
        let xml = Descriptor::new("application/xml", Digest::sha256(b"<a/>"), 4);
        let unknown = saying(shelf.image("linux/mips"), "unknown/unknown");
        let (_, index) = shelf.index(vec![unknown, absent, xml, amd.clone()]);
        assert_eq!(best(&shelf, &index, "linux/amd64"), Some(amd.digest));
        let choice = choose(&index, &"linux/arm64".parse().unwrap(), &shelf).unwrap();
        assert_eq!(choice.best, None);
        assert_eq!(choice.only.unwrap().entry.digest, amd.digest);
        assert_eq!(choice.available, ["an entry of type application/xml", "linux/amd64"]);
    }

    #[test]
    fn the_latest_level_that_runs_is_chosen() {
        let mut shelf = Shelf::default();
        let levels = ["linux/amd64/v3", "linux/amd64", "linux/arm/v5", "linux/arm/v6"];
        let entries: Vec<Descriptor> = levels.iter().map(|level| saying(shelf.image(level), level)).collect();
        let (_, index) = shelf.index(entries.clone());
        for (wanted, chosen) in [
            ("linux/amd64", Some(1)),
            ("linux/amd64/v2", Some(1)),
            ("linux/amd64/v4", Some(0)),
            ("linux/arm", Some(3)),
            ("linux/arm/v5", Some(2)),
            ("linux/arm64", None),
        ] {
            let chosen = chosen.map(|number: usize| entries[number].digest);
            assert_eq!(best(&shelf, &index, wanted), chosen, "{wanted}");
        }
    }

    #[test]
    fn neither_depth_nor_number_is_without_end() {
        let mut shelf = Shelf::default();
        let (mut entry, mut index) = {
            let image = shelf.image("linux/amd64");
            shelf.index(vec![image])
        };
        for _ in 0..10 {
            (entry, index) = shelf.index(vec![entry]);
        }
        assert_eq!(best(&shelf, &index, "linux/amd64"), None);
        *shelf.read.borrow_mut() = 0;
        let many = (0..5000u32)
            .map(|number| Descriptor::new(OCI_MANIFEST, Digest::sha256(&number.to_le_bytes()), 1));
        let (_, index) = shelf.index(many.collect());
        assert_eq!(best(&shelf, &index, "linux/amd64"), None);
        assert_eq!(*shelf.read.borrow(), LOOKED_AT_MAX);
    }
}
