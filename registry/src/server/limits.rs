//! Every bound the server puts on what a stranger sends, each with its reason. [`Limits`] are those an operator
//! may want to change; the constants are those nobody needs to.

use std::time::Duration;

/// Bytes buffered per connection. hyper has one bound for a request's head, of which real ones need under 4 KiB,
/// and for the blocks a body arrives in, which should be large to be cheap; the body decides.
pub(super) const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// Headers of one request: browsers and proxies together send some thirty.
pub(super) const HEADERS_MAX: usize = 100;
/// Bytes of a request's target: a name of 255, a digest of 135 and the parameters of the specification fit many
/// times over.
pub(super) const TARGET_BYTES_MAX: usize = 8 * 1024;
/// Characters of all `Warning` headers together (distribution-spec, *Warnings*).
pub(super) const WARNING_BYTES_MAX: usize = 4096;
/// Bytes still read from a refused request, so that a client which writes before it reads gets to see why.
pub(super) const DRAIN_BYTES_MAX: usize = 4 << 20;
/// How long a refused request is drained for.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes read from disk at once for a blob: from a quarter of a mebibyte on, the cost per byte is flat.
pub(super) const READ_BLOCK_BYTES: usize = 512 * 1024;
/// Such blocks in memory at once, two for a body: 128 MiB. Clients that read slowly would otherwise hold a mebibyte
/// each, two gibibytes over all connections.
pub(super) const READ_BLOCKS_MAX: usize = 256;
/// Bytes read at once where there are so many already: the more bodies are under way, the less does the speed of one
/// matter.
pub(super) const SMALL_READ_BLOCK_BYTES: usize = 32 * 1024;
/// Bytes handed to the hashing writer at once; a connection holds at most two such batches.
pub(super) const WRITE_BATCH_BYTES: usize = 256 * 1024;
/// Blocking store operations at once. Most wait for the disk or for SQLite's one writer, so more threads would
/// only queue there; fewer would let a slow disk starve the manifest reads that come from memory.
pub(super) const BLOCKING_JOBS_MAX: usize = 64;
/// Jobs at once that take as long as a blob is large: two keep a disk busy, and leave processors for answers.
pub(super) const LONG_JOBS_MAX: usize = 2;
/// Missing blobs and manifests that a refused manifest names: enough to see what was forgotten.
pub(super) const MISSING_SHOWN_MAX: usize = 100;
/// Ranges of one request: a delta pull asks for the parts that changed; a request for thousands of crumbs costs
/// more than the whole blob.
pub(super) const RANGES_MAX: usize = 64;
/// Tags of one manifest PUT (`?tag=`): the specification asks for at least 10.
pub(super) const TAGS_PER_PUT_MAX: usize = 50;
/// Entries of one page of tags or repositories, whatever `n` says: a page stays below 1.5 MB.
pub(super) const PAGE_ENTRIES_MAX: usize = 10_000;
/// Entity tags looked at in `If-Match` and `If-None-Match`: a client knows one or two versions of a tag.
pub(super) const ENTITY_TAGS_MAX: usize = 32;
/// Bytes of one page of referrers: the specification lets clients refuse an index larger than a manifest may be.
pub(super) const REFERRERS_BYTES_MAX: usize = 4 << 20;
/// Bytes of a document that every connection may hold. Nearly all manifests are smaller.
pub(super) const SMALL_DOCUMENT_BYTES: usize = 64 * 1024;
/// Larger documents received at once; more are told to come back (429). Without it, manifests that never end
/// would fill 4 MiB of memory for each connection.
pub(super) const LARGE_DOCUMENTS_MAX: usize = 32;
/// The slowest that a body may move in either direction, on average: below it a client is taken to hold its place
/// on purpose. A modem was ten times as fast, and sixteen uploads at once over a line of 128 kbit/s are twice.
pub(super) const BYTES_PER_SECOND_MIN: u64 = 500;
/// One address may hold this part of the places for connections, uploads and large documents. Many people may
/// share an address, so a part is generous (512 connections, 64 uploads); yet three more such addresses are needed
/// to keep others out, not one.
pub(super) const ADDRESS_SHARE_DIVISOR: usize = 4;
/// But at least so many, where there are few places: one client pulls some layers at the same time.
pub(super) const ADDRESS_SHARE_MIN: usize = 8;
/// Connections above their address's share that are told so at the same time; the rest are closed without a word.
pub(super) const FAREWELLS_MAX: usize = 64;
/// How long such a connection is kept open for its client to read the refusal.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a request that takes an upload over waits for the writer before it to put aside what it has: a batch to
/// be written and a transaction.
pub(super) const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it looks in that time.
pub(super) const TAKE_OVER_PAUSE: Duration = Duration::from_millis(20);
/// What a client that has hit a limit is told to wait, in seconds.
pub(super) const RETRY_AFTER_SECONDS: &str = "5";

/// Bounds that an operator may change.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; more wait to be accepted. Each costs some tens of KiB and an open file, and while
    /// it sends a blob, two or three blocks of 32 KiB, or of 512 KiB while there are few.
    pub connections: usize,
    /// Uploads receiving bytes at once; more are told to come back (429). Each holds two batches of
    /// 256 KiB and an open file.
    pub concurrent_uploads: usize,
    /// Unfinished upload sessions of one repository; a push of a large image opens a few dozen.
    pub sessions_per_repository: u64,
    /// Bytes of one blob. The largest layers seen in public, model weights, have some tens of gigabytes.
    pub blob_bytes: u64,
    /// How long an upload session lives without receiving anything.
    pub session_idle: Duration,
    /// How long a client may take to send a request's head, and to begin its next request on a kept connection.
    pub head: Duration,
    /// How long a body may make no progress at all, in either direction: longer than any working network is
    /// silent, and short enough that silent connections do not pile up. Bytes that come more slowly than 500 a
    /// second use it up as well.
    pub body_idle: Duration,
    /// How long a graceful shutdown waits for requests under way; uploads that are cut off have half of it more to
    /// put aside what they have. `docker stop` kills after ten seconds.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 2048,
            concurrent_uploads: 256,
            sessions_per_repository: 1000,
            blob_bytes: 256 << 30,
            session_idle: Duration::from_secs(24 * 60 * 60),
            head: Duration::from_secs(30),
            body_idle: Duration::from_secs(60),
            shutdown: Duration::from_secs(5),
        }
    }
}
