//! What was restored comes to its moment, on a timeline of its own, and after it was accepted becomes a database that a master can go on from: with the
//! agent's role and the settings of today, stopped cleanly. All that takes time or may fail happens here, while the set goes on as it is.
//!
//! Each step may be done again, so that it goes on after a crash.

use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::jiff::Timestamp;

use crate::agent::data::DataDirectory;
use crate::agent::postmasters;
use crate::agent::provisioner::{self, Provisioner};
use crate::agent::recovery::{self, Error, Programs};
use crate::agent::settings::{self, AUTO_FILE};
use crate::backup::wal::{Segment, WalFile};
use crate::election::lineage::Database;
use crate::election::vote::Position;
use crate::election::{DataState, Lsn};
use crate::set::backup::Target;

/// The checkpoints here are to take away no WAL that is not archived yet: nothing is while they are made.
const KEEPS_WAL: &str = "wal_keep_size";
const ALL_OF_IT: &str = "1GB";
/// The set's own server goes on beside it, in the same container.
const SMALL: [&str; 5] =
    ["shared_buffers=64MB", "maintenance_work_mem=16MB", "huge_pages=off", "external_pid_file=", "autovacuum=off"];
/// The settings that PostgreSQL reads in a data directory end like this.
const SETTINGS: &str = "conf";

/// Ends what runs there, so that another may.
pub async fn end_server(recovered: &DataDirectory) -> Result<(), provisioner::Error> {
    postmasters::end_all(recovered.path()).await?;
    Ok(recovered.remove_stale_pid_file()?)
}

/// The files of settings of the set's database take the place of those that were backed up: who may connect is what it is today.
pub fn copy_settings(from: &Path, to: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(from).map_err(|source| Error::Write { path: from.to_owned(), source })?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == SETTINGS) && path.is_file() {
            let place = to.join(entry.file_name());
            let copied = fs::read_to_string(&path).and_then(|text| settings::write(&place, &text));
            copied.map_err(|source| Error::Write { path: place.clone(), source })?;
        }
    }
    Ok(())
}

/// Brings it to its moment, and promotes it to a timeline that comes after `reached`, the set's, where nobody can connect. What is there afterwards is a
/// standby of nobody. Answers when the last commit was made that it has.
pub async fn recover(
    provisioner: &Provisioner,
    target: &Target,
    reached: u32,
) -> Result<Option<Timestamp>, provisioner::Error> {
    let Provisioner { data, binaries, processes, configuration, .. } = provisioner;
    let recovered = data.recovered();
    let directory = recovered.path();
    end_server(&recovered).await?;
    let mut last_commit = None;
    // PostgreSQL removes it when it is promoted.
    if directory.join("recovery.signal").exists() {
        keep_wal(directory)?;
        pass_over(data, &recovered, reached)?;
        let programs = Programs { binaries, processes, arguments: &configuration.server.others };
        last_commit = recovery::recover(programs, target, directory, &SMALL).await?;
    } else if recovered.is_promoted() {
        // An earlier life may have died before it was stopped: a standby begins with what was stopped cleanly.
        provisioner.make_agent_role_with(directory, &SMALL).await?;
    }
    recovered.mark_standby()?;
    recovery::forget(directory)?;
    Ok(last_commit)
}

/// Makes it what a master can go on from.
pub async fn finish(provisioner: &Provisioner) -> Result<Database, provisioner::Error> {
    let data = &provisioner.data;
    let recovered = data.recovered();
    let directory = recovered.path();
    end_server(&recovered).await?;
    let signal = recovered.standby_signal();
    if signal.exists() {
        fs::remove_file(&signal).map_err(|source| Error::Write { path: signal.clone(), source })?;
    }
    copy_settings(data.path(), directory)?;
    recovery::forget(directory)?;
    keep_wal(directory)?;
    provisioner.make_agent_role_with(directory, &SMALL).await?;
    end_server(&recovered).await?;
    let database = inspect(provisioner, &recovered).await?;
    let_archive(directory, &database).map_err(|source| Error::Write { path: directory.to_owned(), source })?;
    change_settings(directory, |text| settings::without_setting(text, KEEPS_WAL))?;
    Ok(database)
}

fn keep_wal(directory: &Path) -> Result<(), Error> {
    change_settings(directory, |text| settings::with_settings(text, &[(KEEPS_WAL, ALL_OF_IT)]))
}

fn change_settings(directory: &Path, change: impl FnOnce(&str) -> String) -> Result<(), Error> {
    let path = directory.join(AUTO_FILE);
    let written = fs::read_to_string(&path).and_then(|text| settings::write(&path, &change(&text)));
    written.map(drop).map_err(|source| Error::Write { path, source })
}

/// PostgreSQL takes the first number for its timeline that has no history. Those of the set's own timelines may not be in the store yet, and some have
/// none anywhere.
fn pass_over(data: &DataDirectory, recovered: &DataDirectory, reached: u32) -> Result<(), provisioner::Error> {
    let auto = recovered.path().join(AUTO_FILE);
    let text = fs::read_to_string(&auto).unwrap_or_default();
    let line = settings::setting(&text, "recovery_target_timeline").and_then(|text| text.parse().ok()).unwrap_or(1);
    for number in (line + 1)..=reached {
        let name = WalFile::History(number).to_string();
        let [from, to] = [data.path(), recovered.path()].map(|directory| directory.join("pg_wal").join(&name));
        if from.is_file() && !to.exists() {
            let copied = fs::read_to_string(&from).and_then(|text| settings::write(&to, &text));
            copied.map_err(|source| Error::Write { path: to.clone(), source })?;
        }
    }
    Ok(recovered.pass_over_timelines(Position { timeline: line, at: Lsn(0) }, reached.saturating_add(1))?)
}

async fn inspect(provisioner: &Provisioner, recovered: &DataDirectory) -> Result<Database, provisioner::Error> {
    let found = recovered.inspect(&provisioner.binaries, &provisioner.processes).await;
    let not_whole = || provisioner::Error::Failed {
        program: "postgres",
        reason: "what was recovered was not stopped cleanly on a timeline of its own".to_owned(),
    };
    match found {
        DataState::Cluster { system, standby: false, lineage } => {
            let reached = lineage.stopped().ok_or_else(not_whole)?;
            Ok(Database { system, reached: Some(reached) })
        }
        _ => Err(not_whole()),
    }
}

/// It was promoted while nothing was archived. What its timeline has by now PostgreSQL is to archive when it starts as the master: without the history
/// and the first segments nobody could be restored across.
fn let_archive(directory: &Path, database: &Database) -> io::Result<()> {
    let Some((timeline, end)) = database.reached.and_then(|it| Some((it.timeline, it.stopped_at?))) else {
        return Ok(());
    };
    let pg_wal = directory.join("pg_wal");
    let status = pg_wal.join("archive_status");
    fs::create_dir_all(&status)?;
    for entry in fs::read_dir(&pg_wal)?.flatten() {
        let Some(Ok(file)) = entry.file_name().to_str().map(str::parse::<WalFile>) else { continue };
        let is_whole = |segment: Segment| entry.metadata().is_ok_and(|it| segment.end(it.len()) <= end);
        let is_due = match file {
            WalFile::History(of) => of == timeline,
            WalFile::Segment(segment) => segment.timeline == timeline && is_whole(segment),
            WalFile::Partial(_) | WalFile::Label(..) => false,
        };
        if is_due && !status.join(format!("{file}.done")).exists() {
            fs::File::create(status.join(format!("{file}.ready")))?.sync_all()?;
        }
    }
    fs::File::open(&status)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::SystemIdentifier;
    use crate::election::lineage::Reached;

    #[test]
    fn the_history_and_the_whole_segments_of_its_timeline_are_archived() {
        let directory = tempfile::tempdir().unwrap();
        let pg_wal = directory.path().join("pg_wal");
        fs::create_dir(&pg_wal).unwrap();
        for name in ["000000010000000000000003", "000000030000000000000003", "000000030000000000000004"] {
            fs::write(pg_wal.join(name), [0; 1024]).unwrap();
        }
        fs::write(pg_wal.join("00000003.history"), "1\t0/D80\tx\n").unwrap();
        fs::write(pg_wal.join("00000002.history"), "1\t0/D00\tx\n").unwrap();
        let at = Some(Lsn(4 * 1024 + 5));
        let reached = Reached { timeline: 3, begins: Some(Lsn(0xD80)), flushed: at, stopped_at: at };
        let_archive(directory.path(), &Database { system: SystemIdentifier(1), reached: Some(reached) }).unwrap();
        let entries = fs::read_dir(pg_wal.join("archive_status")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["00000003.history.ready", "000000030000000000000003.ready"]);
    }

    #[test]
    fn who_may_connect_is_what_it_is_today() {
        let (now, then) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(now.path().join("pg_hba.conf"), "local all all scram-sha-256\n").unwrap();
        fs::write(now.path().join("PG_VERSION"), "17\n").unwrap();
        fs::write(then.path().join("pg_hba.conf"), "local all all trust\n").unwrap();
        copy_settings(now.path(), then.path()).unwrap();
        assert_eq!(fs::read_to_string(then.path().join("pg_hba.conf")).unwrap(), "local all all scram-sha-256\n");
        assert!(!then.path().join("PG_VERSION").exists());
    }
}
