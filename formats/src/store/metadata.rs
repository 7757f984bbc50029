//! `metadata.db`: connections, durability and the few helpers that every statement of the store goes through.
//!
//! SQLite in WAL mode: readers see a snapshot and never wait for a writer; one process writes at a time, and
//! within a process one thread does. Neither a mutex nor SQLite's busy handler, which sleeps and looks again, is
//! fair: a collector that writes batch after batch would keep a push waiting till its end, or till the push gives
//! up. So writers queue, by a mutex and the lock of `metadata.queue`, before they try. Readers are pooled, and the
//! writer's connection is made at the first write: most commands only read. The files of the write-ahead log stay
//! when a reader is the last to go; only a writer folds the log into the database and removes them. A
//! write states its [`Durability`]: `Durable` is fsynced before it returns and is meant for what a
//! client is told; `Soft` is atomic and survives the end of the process, but a power cut may take back the last
//! of it, which costs nothing but work. A durable commit makes every earlier soft one durable too, because
//! both are appended to the same write-ahead log in order.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior, types::Type};

use super::error::StoreError;
use super::schema;
use crate::digest::Digest;

/// How long a writer waits for another process's transaction: those are milliseconds, except when a disk hangs.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Readers kept open between uses: about what a busy server's threads use at once.
const IDLE_READERS_MAX: usize = 16;
/// Prepared statements kept per connection: the store has about a hundred.
const STATEMENTS_MAX: usize = 128;

/// What fails when a connection cannot be opened.
const OPEN: &str = "open the metadata";

/// When a write must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Before the call returns.
    Durable,
    /// With the next durable write.
    Soft,
}

#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    /// Held by the writer whose turn is next: the mutex among threads, the lock of the file among processes.
    queue: Mutex<File>,
    // Before the writer, which has to be the last to be closed: see [`reader`].
    readers: Mutex<Vec<Connection>>,
    writer: Mutex<Option<Connection>>,
}

impl Metadata {
    /// Opens or creates the database and migrates it.
    pub(super) fn open(path: &Path) -> Result<Metadata, StoreError> {
        let queue_path = path.with_extension("queue");
        let queue = File::create(&queue_path).map_err(StoreError::at("create", &queue_path))?;
        let metadata = Metadata {
            path: path.to_owned(),
            queue: Mutex::new(queue),
            readers: Mutex::default(),
            writer: Mutex::default(),
        };
        if !path.exists() {
            metadata.prepare()?;
        }
        let refused_here = |source| refused(path, OPEN, source);
        let reader = reader(path).map_err(refused_here)?;
        let found = schema::version(&reader).map_err(refused_here)?;
        if found > schema::newest() {
            return Err(StoreError::SchemaNewer { path: path.to_owned(), found, known: schema::newest() });
        }
        if found < schema::newest() {
            metadata.prepare()?;
        }
        metadata.keep(reader);
        Ok(metadata)
    }

    /// Creates the database, or brings it up to the newest schema.
    fn prepare(&self) -> Result<(), StoreError> {
        let prepared = connect(&self.path, OpenFlags::SQLITE_OPEN_CREATE).and_then(|mut writer| {
            writer.pragma_update(None, "journal_mode", "WAL")?;
            schema::migrate(&mut writer)?;
            Ok(writer)
        });
        let writer = prepared.map_err(|source| refused(&self.path, OPEN, source))?;
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(())
    }

    /// Runs `work` on a read snapshot.
    pub(super) fn read<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read_snapshot(action, work).map_err(|error| self.explained(error))
    }

    fn read_snapshot<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let pooled = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match pooled {
            Some(reader) => reader,
            None => reader(&self.path).map_err(StoreError::sql(action))?,
        };
        let result = {
            let snapshot = reader.unchecked_transaction().map_err(StoreError::sql(action))?;
            work(&snapshot)
        };
        self.keep(reader);
        result
    }

    fn keep(&self, reader: Connection) {
        let mut idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS_MAX {
            idle.push(reader);
        }
    }

    /// Runs `work` in a transaction that holds the write lock from its beginning, and commits it if `work`
    /// succeeds.
    pub(super) fn write<T>(
        &self,
        durability: Durability,
        action: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let written = self.in_turn(durability, action, |transaction| {
            let value = work(&transaction)?;
            transaction.commit().map_err(StoreError::sql(action))?;
            Ok(value)
        });
        written.map_err(|error| self.explained(error))
    }

    /// Runs `work` on copies of the tables, taken from a snapshot: it may change what it likes, nobody else waits for
    /// it or sees it, and nothing comes of it.
    pub(super) fn rehearse<T>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let rehearsed = || {
            let connection = connect(&self.path, OpenFlags::empty()).map_err(StoreError::sql(action))?;
            let copies = connection.unchecked_transaction().map_err(StoreError::sql(action))?;
            schema::shadow(&copies).map_err(StoreError::sql(action))?;
            work(&copies)
        };
        rehearsed().map_err(|error| self.explained(error))
    }

    /// Begins a transaction that holds the write lock, when it is this writer's turn. Whoever waits for the lock
    /// holds the queue, so a writer that wants the lock again at once comes after those who wait already.
    fn in_turn<T>(
        &self,
        durability: Durability,
        action: &'static str,
        work: impl FnOnce(Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let synchronous = match durability {
            Durability::Durable => "FULL",
            Durability::Soft => "NORMAL",
        };
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut writer: MutexGuard<'_, Option<Connection>> =
            self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = match &mut *writer {
            Some(writer) => writer,
            none => none.insert(connect(&self.path, OpenFlags::empty()).map_err(StoreError::sql(action))?),
        };
        writer.pragma_update(None, "synchronous", synchronous).map_err(StoreError::sql(action))?;
        wait_for(&queue).map_err(StoreError::at("lock", &self.path))?;
        let begun = writer.transaction_with_behavior(TransactionBehavior::Immediate);
        queue.unlock().map_err(StoreError::at("unlock", &self.path))?;
        drop(queue);
        work(begun.map_err(StoreError::sql(action))?)
    }

    /// SQLite's own check of the whole file; the complaints found.
    pub(super) fn check(&self) -> Result<Vec<String>, StoreError> {
        self.read("check the metadata", |connection| {
            let mut statement = connection
                .prepare("PRAGMA integrity_check(20)")
                .map_err(StoreError::sql("check the metadata"))?;
            let lines = statement.query_map([], |row| row.get::<_, String>(0));
            let lines = lines.and_then(|rows| rows.collect::<rusqlite::Result<Vec<_>>>());
            let lines = lines.map_err(StoreError::sql("check the metadata"))?;
            Ok(lines.into_iter().filter(|line| line != "ok").collect())
        })
    }

    /// The same error, a failed statement's in words that name the database and what helps.
    fn explained(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Statement { action, source } => refused(&self.path, action, source),
            other => other,
        }
    }
}

/// Locks a file of one's own, however many signals arrive meanwhile.
fn wait_for(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A connection that never writes, and that leaves the log as it is when it is the last to be closed. SQLite would fold
/// it into the database and remove its files, which the next command has to make again: two files made and removed for
/// a command that only looks.
fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let reader = connect(path, OpenFlags::empty())?;
    reader.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    reader.pragma_update(None, "query_only", true)?;
    Ok(reader)
}

/// A connection. Readers may write as well, because reading a log needs its index to be written.
fn connect(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = flags | OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(connection)
}

/// What a failed statement means to whoever wanted it.
fn refused(path: &Path, action: &'static str, source: rusqlite::Error) -> StoreError {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    let path = path.to_owned();
    let because = |reason: String, path| StoreError::MetadataRefused { action, path, reason };
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::MetadataDamaged { path, reason: source.to_string() }
        }
        // Such as a digest that is none.
        None if matches!(
            source,
            FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..)
        ) =>
        {
            StoreError::MetadataDamaged { path, reason: source.to_string() }
        }
        Some(ErrorCode::DiskFull) => StoreError::Full { action, path },
        // SQLite does not tell why it could not write.
        Some(ErrorCode::SystemIoFailure) if is_full(&path) => StoreError::Full { action, path },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            because("it cannot be written to: see whose it is, and use rimg as that user".to_owned(), path)
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let seconds = BUSY_TIMEOUT.as_secs();
            because(format!("another process has been writing to it for {seconds} seconds: try again"), path)
        }
        _ => because(source.to_string(), path),
    }
}

/// Whether the file system has no room left for the least that SQLite writes.
fn is_full(path: &Path) -> bool {
    const LEAST_BYTES: u64 = 64 << 10;
    let folder = path.parent().unwrap_or(path);
    rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < LEAST_BYTES)
}

/// Reads a column of text that must parse, such as a digest or a tag.
pub(super) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

/// All rows of a statement.
pub(super) fn rows<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    map: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(sql)?.query_map(parameters, map)?.collect()
}

/// The first row of a statement, if there is one.
pub(super) fn first<T>(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
    map: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    use rusqlite::OptionalExtension;
    connection.prepare_cached(sql)?.query_row(parameters, map).optional()
}

/// Runs a statement; how many rows it changed.
pub(super) fn run(
    connection: &Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(parameters)
}

/// Sizes are unsigned everywhere but in SQL; none comes near 2^63.
pub(super) fn to_sql(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// The reverse of [`to_sql`].
pub(super) fn from_sql(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    crate::epoch::Epoch::now().seconds()
}

/// A digest as SQL text.
pub(super) fn text(digest: &Digest) -> String {
    digest.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// How many transactions of a writer that never pauses go before that of one who comes in the midst of one; the
    /// middle of several cases.
    fn go_before(greedy: &Metadata, patient: &Metadata) -> usize {
        let (count, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let count_one = |_: &Transaction<'_>| {
            count.fetch_add(1, Ordering::SeqCst);
            // Time for the other to come and wait.
            (0..100).for_each(|_| std::thread::yield_now());
            Ok(())
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    greedy.write(Durability::Soft, "count", count_one).unwrap();
                }
            });
            let mut before: Vec<usize> = Vec::new();
            for _ in 0..21 {
                let seen = count.load(Ordering::SeqCst);
                while count.load(Ordering::SeqCst) == seen {
                    std::thread::yield_now();
                }
                let begun = count.load(Ordering::SeqCst);
                patient.write(Durability::Soft, "wait", |_| Ok(())).unwrap();
                before.push(count.load(Ordering::SeqCst) - begun);
            }
            done.store(true, Ordering::SeqCst);
            before.sort_unstable();
            before[before.len() / 2]
        })
    }

    #[test]
    fn messages_name_the_file_and_the_next_act_once() {
        let path = Path::new("/store/metadata.db");
        let failure = |code: i32| {
            rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some("SQLite's words".to_owned()))
        };
        let table = [
            (
                rusqlite::ffi::SQLITE_CORRUPT,
                "/store/metadata.db is damaged (SQLite's words): `rimg fsck --repair`",
            ),
            (
                rusqlite::ffi::SQLITE_FULL,
                "no space left to put a tag /store/metadata.db: free some with `rimg prune`",
            ),
            (
                rusqlite::ffi::SQLITE_READONLY,
                "failed to put a tag: /store/metadata.db: it cannot be written to: see whose",
            ),
            (
                rusqlite::ffi::SQLITE_BUSY,
                "failed to put a tag: /store/metadata.db: another process has been writing",
            ),
            (rusqlite::ffi::SQLITE_IOERR, "failed to put a tag: /store/metadata.db: SQLite's words"),
        ];
        for (code, expected) in table {
            let error = refused(path, "put a tag", failure(code));
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(std::error::Error::source(&error).is_none(), "{error} would be told twice");
        }
    }

    #[test]
    fn writers_take_turns() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Metadata::open(&directory.path().join("metadata.db")).unwrap();
        let (one, another) = (open(), open());
        // A thread of the same process, then one that knows no more of the other than another process would.
        for patient in [&one, &another] {
            let before = go_before(&one, patient);
            assert!(before <= 4, "{before} transactions went before");
        }
    }
}
