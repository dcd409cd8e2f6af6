//! What lies where in the store that a set's backups go to, what has to stay there, and with what a restore begins. Pure.
//!
//! ```text
//! PREFIX/set.json                    whose it is: the first to write it owns the prefix
//! PREFIX/wal/NAME.zst                segments and histories, as PostgreSQL names them
//! PREFIX/backups/ID/base.tar.zst     a base backup, as pg_basebackup makes it
//! PREFIX/backups/ID/backup.json      what it is; written last, so that what has none is none
//! PREFIX/claims/...                  who makes the next one
//! PREFIX/verifications/TIME.json     what trial restores found
//! ```

pub mod assignment;
pub mod chain;
pub mod due;
pub mod history;
pub mod in_place;
pub mod index;
pub mod keep;
pub mod layout;
pub mod limit;
pub mod line;
pub mod moment;
pub mod parent;
pub mod report;
pub mod summary;
pub mod verification;
pub mod wal;
