//! The back half of the writer: pieces of the tar stream in, a blob of independent members out.
//!
//! ```text
//! caller ──piece──┬─► compressor 1 ─┐
//!   ▲             ├─► compressor n ─┴─► caller: blob hash, write, in the order of the pieces
//!   │             └─► hash thread: DiffID, content digests
//!   └── waits for the oldest piece when too many are on their way
//! ```
//!
//! Each piece is compressed by itself, so which thread does it and when cannot change a byte. The caller writes, so
//! the output needs neither a thread nor a lock of its own. Threads are started with the first full piece: a layer of
//! a few files never starts one.
//!
//! Memory: at most `threads + 4` pieces wait for or undergo compression and at most [`HASH_QUEUE`] + 1 more wait for
//! the hash thread, each of [`super::writer::MEMBER_BYTES_MAX`] (one larger only by the headers of a single entry),
//! and each with a compressed twin no larger. With [`THREADS_MAX`] threads that is 16 + 4 + 5 pieces and 20 twins,
//! 45 MiB at the very most, however large the layer.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::writer::{LayerCompression, MEMBER_BYTES_MAX};
use crate::compression::Member;
use crate::digest::{Algorithm, DiffId, Digest, Hasher};

/// Compressors at work at once. More would only raise the memory bound: sixteen already make 2 GB/s of gzip, more
/// than the one DiffID computation can follow.
pub(super) const THREADS_MAX: usize = 16;

/// Pieces on their way beyond one for each thread.
const QUEUE_EXTRA: usize = 4;

/// Pieces that wait for the hash thread.
const HASH_QUEUE: usize = 4;

/// A run of the uncompressed tar that becomes one member.
#[derive(Debug, Default)]
pub(super) struct Piece {
    pub(super) bytes: Vec<u8>,
    /// Where in `bytes` content of regular files lies, in order.
    pub(super) contents: Vec<ContentRun>,
    /// Where the buffer goes afterwards.
    buffers: Option<Buffers>,
}

/// Buffers of pieces that are done with. A fresh one for each piece would cost a page fault for each 4 KiB of layer.
type Buffers = Arc<Mutex<Vec<Vec<u8>>>>;

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(buffers) = &self.buffers {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            buffers.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

/// Content of one file within one piece.
#[derive(Debug)]
pub(super) struct ContentRun {
    pub(super) range: Range<usize>,
    /// Whether the file ends here, and with it its digest.
    pub(super) last: bool,
}

/// What is known when everything has been written.
pub(super) struct Blob<W> {
    pub(super) diff_id: DiffId,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) uncompressed_size: u64,
    pub(super) members: Vec<Member>,
    /// One digest a regular file, in the order of the files.
    pub(super) contents: Vec<Digest>,
    pub(super) out: W,
}

/// Turns pieces into members.
pub(super) struct MemberWriter<W> {
    out: W,
    compression: LayerCompression,
    threads: usize,
    blob: Hasher,
    size: u64,
    uncompressed_size: u64,
    members: Vec<Member>,
    buffers: Buffers,
    stage: Stage,
}

enum Stage {
    /// No thread has been needed yet; the piece waits for its first successor.
    Inline(Option<Piece>),
    Threads(Threads),
}

impl<W: Write> MemberWriter<W> {
    pub(super) fn new(out: W, compression: LayerCompression, threads: usize) -> MemberWriter<W> {
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { available() } else { threads };
        MemberWriter {
            out,
            compression,
            threads: threads.min(THREADS_MAX),
            blob: Hasher::new(Algorithm::Sha256),
            size: 0,
            uncompressed_size: 0,
            members: Vec::new(),
            buffers: Buffers::default(),
            stage: Stage::Inline(None),
        }
    }

    /// An empty piece, on the buffer of an earlier one where there is one.
    pub(super) fn next_piece(&self) -> Piece {
        let used = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = used.unwrap_or_else(|| Vec::with_capacity(MEMBER_BYTES_MAX));
        Piece { bytes, contents: Vec::new(), buffers: Some(Arc::clone(&self.buffers)) }
    }

    /// Takes the next piece; blocks while too many are on their way.
    pub(super) fn submit(&mut self, piece: Piece) -> io::Result<()> {
        if piece.bytes.is_empty() && piece.contents.is_empty() {
            return Ok(());
        }
        if let Stage::Inline(waiting) = &mut self.stage {
            let Some(first) = waiting.take() else {
                *waiting = Some(piece);
                return Ok(());
            };
            self.stage = Stage::Threads(Threads::start(self.compression)?);
            self.dispatch(first)?;
        }
        self.dispatch(piece)
    }

    fn dispatch(&mut self, piece: Piece) -> io::Result<()> {
        let Stage::Threads(threads) = &mut self.stage else { return Ok(()) };
        let piece = Arc::new(piece);
        if self.compression == LayerCompression::None {
            threads.hash(Arc::clone(&piece))?;
            let piece_bytes = piece.bytes.len() as u64;
            return self.write_member(Compressed { piece_bytes, bytes: CompressedBytes::Plain(piece) });
        }
        threads.compress(Arc::clone(&piece), self.threads)?;
        threads.hash(piece)?;
        while let Stage::Threads(threads) = &mut self.stage
            && threads.pending.len() >= self.threads + QUEUE_EXTRA
        {
            let done = threads.oldest()?;
            self.write_member(done)?;
        }
        Ok(())
    }

    fn write_member(&mut self, done: Compressed) -> io::Result<()> {
        let bytes = done.bytes();
        self.out.write_all(bytes)?;
        if self.compression != LayerCompression::None {
            self.blob.update(bytes);
            self.members.push(Member {
                uncompressed_offset: self.uncompressed_size,
                blob_offset: self.size,
                uncompressed_len: done.piece_bytes,
                blob_len: bytes.len() as u64,
            });
        }
        self.size += bytes.len() as u64;
        self.uncompressed_size += done.piece_bytes;
        Ok(())
    }

    /// Compresses and writes what is left and joins the threads. `out` is flushed.
    pub(super) fn finish(mut self) -> io::Result<Blob<W>> {
        let hashes = match std::mem::replace(&mut self.stage, Stage::Inline(None)) {
            Stage::Inline(waiting) => {
                let mut hashes = StreamHashes::new();
                let mut compressor = Compressor::new(self.compression)?;
                if let Some(piece) = waiting {
                    hashes.update(&piece);
                    let done = compressor.compress(Arc::new(piece))?;
                    self.write_member(done)?;
                }
                hashes
            }
            Stage::Threads(mut threads) => {
                while !threads.pending.is_empty() {
                    let done = threads.oldest()?;
                    self.write_member(done)?;
                }
                threads.join()?
            }
        };
        self.out.flush()?;
        let diff_id = hashes.stream.finish();
        // Uncompressed, the blob is the tar: hashing it twice would say nothing new.
        let digest = if self.compression == LayerCompression::None { diff_id } else { self.blob.finish() };
        Ok(Blob {
            diff_id: DiffId::new(diff_id),
            digest,
            size: self.size,
            uncompressed_size: self.uncompressed_size,
            members: self.members,
            contents: hashes.contents,
            out: self.out,
        })
    }
}

/// The DiffID and the digest of each file's content, from the pieces in order.
struct StreamHashes {
    stream: Hasher,
    file: Option<Hasher>,
    contents: Vec<Digest>,
}

impl StreamHashes {
    fn new() -> StreamHashes {
        StreamHashes { stream: Hasher::new(Algorithm::Sha256), file: None, contents: Vec::new() }
    }

    fn update(&mut self, piece: &Piece) {
        self.stream.update(&piece.bytes);
        for run in &piece.contents {
            let mut file = self.file.take().unwrap_or_else(|| Hasher::new(Algorithm::Sha256));
            file.update(&piece.bytes[run.range.clone()]);
            match run.last {
                true => self.contents.push(file.finish()),
                false => self.file = Some(file),
            }
        }
    }
}

/// A finished member, or the piece itself where nothing compresses.
struct Compressed {
    piece_bytes: u64,
    bytes: CompressedBytes,
}

enum CompressedBytes {
    Member(Vec<u8>),
    Plain(Arc<Piece>),
}

impl Compressed {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            CompressedBytes::Member(bytes) => bytes,
            CompressedBytes::Plain(piece) => &piece.bytes,
        }
    }
}

/// One thread's codec and the buffer it compresses into.
struct Compressor {
    codec: Codec,
    scratch: Vec<u8>,
    /// A whole piece of zeros, compressed: disk images and the like have thousands.
    zeros: Option<Vec<u8>>,
}

/// A whole piece of zeros.
static ZEROS: [u8; MEMBER_BYTES_MAX] = [0; MEMBER_BYTES_MAX];

enum Codec {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
    None,
}

impl Compressor {
    fn new(compression: LayerCompression) -> io::Result<Compressor> {
        let codec = match compression {
            LayerCompression::Gzip { level } => {
                let refused = |_| {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("gzip level {level} is not in 0..=12"),
                    )
                };
                let level = libdeflater::CompressionLvl::new(i32::from(level)).map_err(refused)?;
                Codec::Gzip(libdeflater::Compressor::new(level))
            }
            // No worker threads inside zstd, ever: with them its output differs.
            LayerCompression::Zstd { level } => Codec::Zstd(zstd::bulk::Compressor::new(i32::from(level))?),
            LayerCompression::None => Codec::None,
        };
        Ok(Compressor { codec, scratch: Vec::new(), zeros: None })
    }

    /// One member or frame. libdeflate's gzip header has time 0 and OS 255 ("unknown", RFC 1952, 2.3.1), so it is
    /// the same everywhere.
    fn compress(&mut self, piece: Arc<Piece>) -> io::Result<Compressed> {
        let input = &piece.bytes;
        let piece_bytes = input.len() as u64;
        let is_zeros = input.as_slice() == ZEROS;
        if is_zeros && let Some(zeros) = &self.zeros {
            return Ok(Compressed { piece_bytes, bytes: CompressedBytes::Member(zeros.clone()) });
        }
        let length = match &mut self.codec {
            Codec::None => return Ok(Compressed { piece_bytes, bytes: CompressedBytes::Plain(piece) }),
            Codec::Gzip(gzip) => {
                let bound = gzip.gzip_compress_bound(input.len());
                grow(&mut self.scratch, bound);
                gzip.gzip_compress(input, &mut self.scratch)
                    .map_err(|error| io::Error::other(error.to_string()))?
            }
            Codec::Zstd(zstd) => {
                grow(&mut self.scratch, zstd::zstd_safe::compress_bound(input.len()));
                zstd.compress_to_buffer(input, &mut self.scratch[..])?
            }
        };
        let member = self.scratch[..length].to_vec();
        if is_zeros {
            self.zeros = Some(member.clone());
        }
        Ok(Compressed { piece_bytes, bytes: CompressedBytes::Member(member) })
    }
}

fn grow(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
}

struct Job {
    piece: Arc<Piece>,
    done: SyncSender<io::Result<Compressed>>,
}

/// The threads of one layer. Dropping it closes the queues, and the threads end.
struct Threads {
    compression: LayerCompression,
    jobs: Sender<Job>,
    queue: Arc<Mutex<Receiver<Job>>>,
    workers: Vec<JoinHandle<()>>,
    pending: VecDeque<Receiver<io::Result<Compressed>>>,
    to_hash: SyncSender<Arc<Piece>>,
    hash_thread: JoinHandle<StreamHashes>,
}

impl Threads {
    fn start(compression: LayerCompression) -> io::Result<Threads> {
        let (jobs, queue) = channel::<Job>();
        let (to_hash, pieces) = sync_channel::<Arc<Piece>>(HASH_QUEUE);
        let hash_thread = std::thread::Builder::new().name("layer-hash".to_owned()).spawn(move || {
            let mut hashes = StreamHashes::new();
            for piece in pieces {
                hashes.update(&piece);
            }
            hashes
        })?;
        Ok(Threads {
            compression,
            jobs,
            queue: Arc::new(Mutex::new(queue)),
            workers: Vec::new(),
            pending: VecDeque::new(),
            to_hash,
            hash_thread,
        })
    }

    fn compress(&mut self, piece: Arc<Piece>, threads_max: usize) -> io::Result<()> {
        if self.workers.len() < threads_max.min(self.pending.len() + 1) {
            self.add_worker()?;
        }
        let (done, result) = sync_channel(1);
        self.jobs.send(Job { piece, done }).map_err(|_| lost_thread())?;
        self.pending.push_back(result);
        Ok(())
    }

    fn hash(&self, piece: Arc<Piece>) -> io::Result<()> {
        self.to_hash.send(piece).map_err(|_| lost_thread())
    }

    fn add_worker(&mut self) -> io::Result<()> {
        let mut compressor = Compressor::new(self.compression)?;
        let queue = Arc::clone(&self.queue);
        let work = move || {
            loop {
                // The lock is held while waiting: one idle thread waits for work, the others for the lock.
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = next else { return };
                let result = compressor.compress(job.piece);
                // Nobody listens any more when the layer was given up.
                let _ = job.done.send(result);
            }
        };
        self.workers.push(std::thread::Builder::new().name("layer-compress".to_owned()).spawn(work)?);
        Ok(())
    }

    fn oldest(&mut self) -> io::Result<Compressed> {
        let result = self.pending.pop_front().ok_or_else(lost_thread)?;
        result.recv().map_err(|_| lost_thread())?
    }

    fn join(self) -> io::Result<StreamHashes> {
        drop((self.jobs, self.to_hash));
        for worker in self.workers {
            worker.join().map_err(|_| lost_thread())?;
        }
        self.hash_thread.join().map_err(|_| lost_thread())
    }
}

fn lost_thread() -> io::Error {
    io::Error::other("a thread that compresses or hashes the layer has died")
}
