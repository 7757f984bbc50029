//! The schema of `metadata.db` and its migrations.
//!
//! Each migration is one step of `PRAGMA user_version`, applied in one transaction; none is ever edited once it
//! has been released. The SQL keeps to what PostgreSQL understands as well (no rowids, no SQLite functions), so
//! that a cluster can use the same statements.
//!
//! | table | one row is |
//! |---|---|
//! | `blob` | a file in `blobs/`, with the state of that file when it was last known to be whole |
//! | `repository` | a name that holds manifests |
//! | `repository_blob` | the right of a repository to a blob; `leased_until` keeps a blob no manifest names yet |
//! | `manifest` | a manifest in a repository |
//! | `reference` | a manifest's mention of a blob (`blob`, `config`) or of another manifest (`manifest`) |
//! | `tag` | a name for a manifest |
//! | `lease` | somebody's hold on a blob, for a time or (`expires_at` null) until it lets go |
//! | `upload` | an ingest that was suspended |
//! | `cache_entry`, `cache_blob` | build cache, and the blobs an entry needs |
//! | `stat_cache` | the digest of a context file whose stat has not changed since, in one boot of the machine |

use rusqlite::{Connection, TransactionBehavior};

/// All migrations; the length is the newest version.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE blob (
    digest TEXT PRIMARY KEY,
    size BIGINT NOT NULL,
    damaged TEXT,
    created_at BIGINT NOT NULL,
    seen_inode BIGINT,
    seen_mtime_ns BIGINT,
    seen_ctime_ns BIGINT
);
CREATE TABLE repository (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);
CREATE TABLE repository_blob (
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    digest TEXT NOT NULL,
    leased_until BIGINT NOT NULL,
    PRIMARY KEY (repository_id, digest)
);
CREATE INDEX repository_blob_digest ON repository_blob (digest);
CREATE TABLE manifest (
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    subject TEXT,
    artifact_type TEXT,
    annotations TEXT NOT NULL,
    pushed_at BIGINT NOT NULL,
    PRIMARY KEY (repository_id, digest)
);
CREATE INDEX manifest_digest ON manifest (digest);
CREATE INDEX manifest_subject ON manifest (repository_id, subject, digest);
CREATE TABLE reference (
    repository_id BIGINT NOT NULL,
    manifest TEXT NOT NULL,
    target TEXT NOT NULL,
    kind TEXT NOT NULL,
    size BIGINT NOT NULL,
    PRIMARY KEY (repository_id, manifest, target, kind)
);
CREATE INDEX reference_target ON reference (repository_id, target);
CREATE INDEX reference_target_any ON reference (target);
CREATE TABLE tag (
    repository_id BIGINT NOT NULL REFERENCES repository (id),
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (repository_id, name)
);
CREATE INDEX tag_digest ON tag (repository_id, digest);
CREATE TABLE lease (
    digest TEXT NOT NULL,
    holder TEXT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (digest, holder)
);
CREATE INDEX lease_holder ON lease (holder);
CREATE TABLE upload (
    id TEXT PRIMARY KEY,
    repository TEXT,
    algorithm TEXT NOT NULL,
    size BIGINT NOT NULL,
    hash_state BLOB NOT NULL,
    started_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE TABLE cache_entry (
    key TEXT PRIMARY KEY,
    parent TEXT NOT NULL,
    value BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    used_at BIGINT NOT NULL
);
CREATE INDEX cache_entry_parent ON cache_entry (parent, created_at);
CREATE INDEX cache_entry_used ON cache_entry (used_at);
CREATE TABLE cache_blob (
    key TEXT NOT NULL REFERENCES cache_entry (key),
    digest TEXT NOT NULL,
    PRIMARY KEY (key, digest)
);
CREATE INDEX cache_blob_digest ON cache_blob (digest);
CREATE TABLE stat_cache (
    device BIGINT NOT NULL,
    inode BIGINT NOT NULL,
    size BIGINT NOT NULL,
    mtime_ns BIGINT NOT NULL,
    ctime_ns BIGINT NOT NULL,
    digest TEXT NOT NULL,
    used_at BIGINT NOT NULL,
    PRIMARY KEY (device, inode)
);
",
    "
ALTER TABLE stat_cache ADD COLUMN boot TEXT NOT NULL DEFAULT '';
",
];

/// The newest version this program knows.
pub(super) fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// The version of the database.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings the database up to [`newest`]. Several processes may do so at once: the version is read again once
/// the write lock is held.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    if version(connection)? >= newest() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = usize::try_from(version(&transaction)?).unwrap_or(0);
    for migration in MIGRATIONS.iter().skip(found) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", newest().max(version(&transaction)?))?;
    transaction.commit()
}

/// Tables whose rows say nothing about what else is needed.
const NOT_SHADOWED: &[&str] = &["upload", "stat_cache"];

/// Copies the tables with their indexes to temporary ones of the same names, which from then on are what statements of
/// this connection mean.
pub(super) fn shadow(connection: &Connection) -> rusqlite::Result<()> {
    let sql = "SELECT tbl_name, type, sql FROM main.sqlite_master WHERE sql IS NOT NULL ORDER BY rowid";
    let mut statement = connection.prepare(sql)?;
    let found = statement.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    })?;
    for made in found {
        let (table, kind, sql) = made?;
        if NOT_SHADOWED.contains(&table.as_str()) {
            continue;
        }
        match (kind.as_str(), sql.strip_prefix("CREATE TABLE ")) {
            ("table", Some(rest)) => connection.execute_batch(&format!(
                "CREATE TEMPORARY TABLE {rest}; INSERT INTO temp.{table} SELECT * FROM main.{table};"
            ))?,
            // An index belongs where its table is found.
            _ => connection.execute_batch(&sql)?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        connection.execute("INSERT INTO repository (name, created_at) VALUES ('a', 0)", []).unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(version(&connection).unwrap(), newest());
        let count: i64 =
            connection.query_row("SELECT count(*) FROM repository", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
    }
}
