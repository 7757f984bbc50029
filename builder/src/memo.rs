//! [`Memo`]: the digest of a step's files, remembered by what a look at the files tells, so that a build in which
//! nothing changed opens no file and asks for no file by itself.
//!
//! A memo's name is a digest over all entries of a plan, with the [`FileStamp`] of each file and directory on disk in
//! place of its content and extended attributes: device, inode, size, mtime and ctime. Whatever changes one of those
//! two changes the ctime, which nobody can set. The rule of [`crate::stat_cache`] for files that are too young holds for
//! every entry: a memo is taken only when all ctimes were past the doubtful time before the walk began. What is read
//! later than the walk may be newer than the stamps; then no later walk can find these stamps any more. The boot is
//! part of the name as well: a power cut can take a file's content and leave its stamp.

use rimg_formats::boot;
use rimg_formats::digest::Digest;
use rimg_formats::store::cache::FileStamp;
use rimg_formats::store::{Store, StoreError};

use crate::cache::FieldHasher;
use crate::layer_plan::PlannedEntry;
use crate::layer_step::{entry_fields, time_fields};
use crate::source_tree::Content;
use crate::stat_cache::is_settled;

/// Version of what a name is made of, and of the digest that stands under it.
const MEMO_FORMAT: &[u8] = b"memo 1";
/// The parent of all memos in the build cache, which has no use for it.
const PARENT: &str = "memos";

/// Where the digest of a step's files is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memo {
    name: Digest,
    settled: bool,
}

impl Memo {
    /// The memo of planned entries whose walk began at `began_ns`. `None` when nothing of them lies on disk, or when
    /// something has neither a digest nor a stamp.
    pub(crate) fn of(entries: &[PlannedEntry], keep_times: bool, began_ns: i128) -> Option<Memo> {
        let mut fields = FieldHasher::new();
        fields.field(MEMO_FORMAT);
        fields.field(boot::id().ok()?.as_bytes());
        fields.number(u64::from(keep_times));
        let (mut settled, mut on_disk) = (true, false);
        let mut add = |fields: &mut FieldHasher, stamp: &FileStamp| {
            on_disk = true;
            settled &= is_settled(stamp, began_ns);
            let times = [stamp.mtime_ns.cast_unsigned(), stamp.ctime_ns.cast_unsigned()];
            for number in [stamp.device, stamp.inode, stamp.size].into_iter().chain(times) {
                fields.number(number);
            }
        };
        for planned in entries {
            entry_fields(&planned.entry, &mut fields);
            if keep_times {
                time_fields(&planned.entry, &mut fields);
            }
            if let Some(file) = &planned.unread {
                fields.field(b"attributes");
                add(&mut fields, &file.stamp);
            }
            match &planned.content {
                Content::None => fields.field(b""),
                Content::Disk(file) => {
                    fields.field(b"file");
                    add(&mut fields, &file.stamp);
                }
                content => fields.field(content.known_digest()?.as_bytes()),
            }
        }
        on_disk.then(|| Memo { name: fields.finish(), settled })
    }

    fn key(&self) -> String {
        format!("memo {}", self.name.hex())
    }

    /// The digest that is remembered.
    pub(crate) fn recall(&self, store: &Store) -> Result<Option<Digest>, StoreError> {
        let found = store.cache_get(&self.key())?;
        Ok(found.and_then(|text| String::from_utf8(text).ok()?.parse().ok()))
    }

    /// Remembers a digest, unless a file is too young.
    pub(crate) fn remember(&self, store: &Store, files: &Digest) -> Result<(), StoreError> {
        match self.settled {
            true => store.cache_put(&self.key(), PARENT, files.to_string().as_bytes(), &[]),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rimg_formats::layer::LayerPath;

    use super::*;
    use crate::context::{DiskTree, Owners};
    use crate::layer_plan::LayerPlan;
    use crate::stat_cache::now_ns;

    fn memo(folder: &Path, began_ns: i128) -> Memo {
        let tree = DiskTree::open(folder, "folder", Owners::Dropped).unwrap();
        let mut plan = LayerPlan::new();
        plan.put_contents(&tree, &LayerPath::root(), &LayerPath::root()).unwrap();
        Memo::of(&plan.into_entries(), false, began_ns).unwrap()
    }

    #[test]
    fn whatever_changes_a_file_changes_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("dir/a"), "content").unwrap();
        let change = |path: &Path, change: &dyn Fn(&Path)| {
            let before = memo(folder.path(), 0).name;
            assert_eq!(memo(folder.path(), 0).name, before);
            let (changed, times) = (fs::metadata(path).unwrap(), fs::FileTimes::new());
            // The clock of the file system ticks at least once in between.
            loop {
                change(path);
                let times = times.set_modified(changed.modified().unwrap());
                fs::File::open(path).unwrap().set_times(times).unwrap();
                let now = fs::metadata(path).unwrap();
                use std::os::unix::fs::MetadataExt;
                if (now.ctime(), now.ctime_nsec()) != (changed.ctime(), changed.ctime_nsec()) {
                    break;
                }
            }
            assert_ne!(memo(folder.path(), 0).name, before, "{}", path.display());
        };
        change(&path("dir/a"), &|path| fs::write(path, "CONTENT").unwrap());
        // Where the file system has them: an attribute that no stat shows.
        let attribute =
            |path: &Path| match rustix::fs::setxattr(path, "user.x", b"1", rustix::fs::XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                Err(error) => panic!("{error}"),
            };
        change(&path("dir/a"), &attribute);
        change(&path("dir"), &attribute);
        change(&path("dir/a"), &|path| {
            fs::write(path.with_extension("new"), "content").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        });
    }

    #[test]
    fn young_files_are_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "content").unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let context = folder.path().join("context");
        fs::create_dir(&context).unwrap();
        fs::write(context.join("a"), "content").unwrap();
        let digest = Digest::sha256(b"files");
        let young = memo(&context, now_ns());
        young.remember(&store, &digest).unwrap();
        assert_eq!(young.recall(&store).unwrap(), None);
        let settled = memo(&context, now_ns() + 10_000_000_000);
        settled.remember(&store, &digest).unwrap();
        assert_eq!(young.recall(&store).unwrap(), Some(digest));
    }
}
