//! This member's turn: the base backups that are due and whose maker it is, and those that an order lets go.

use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::claim::Claims;
use super::encryption::Identity;
use super::lines::line_of;
use super::{Archiver, LOOK_EVERY, Turn, backups, base, expire, incremental, programs, store, verification};
use crate::backup::assignment::{Assignment, Role};
use crate::backup::chain::has_wal;
use crate::backup::due::due;
use crate::backup::index::Index;
use crate::backup::keep::{Kept, Standing, may_go};
use crate::backup::parent::{Next, parent};
use crate::backup::report::{Report, Running};
use crate::errors::with_causes;

/// How often the base backups in the store are looked at.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// How long a backup that failed is let be, at first and at last.
const TRY_AGAIN: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(900)];
/// A master leaves a backup to its replicas for so long, and each of them to the one before it.
const LEAVES_IT_TO_REPLICAS: Duration = Duration::from_secs(20);

impl Archiver {
    /// Makes the base backups that are due in this member's turn, and tells how everything is.
    pub(super) async fn make_backups(&self) {
        let mut report = Report::default();
        let mut claims = Claims::default();
        let (mut listed_at, mut pause, mut quiet_until) = (None::<Instant>, TRY_AGAIN[0], Instant::now());
        let mut was_away = false;
        let (mut heard, mut followed) = (None, None);
        let mut due_since: Option<(String, Instant)> = None;
        loop {
            sleep(LOOK_EVERY).await;
            self.tell(&mut report);
            let is_away = report.trouble.is_some();
            if was_away && !is_away {
                // What failed with the WAL is worth another try.
                quiet_until = Instant::now();
            }
            was_away = is_away;
            let is_stale = listed_at.is_none_or(|at| at.elapsed() >= LIST_EVERY);
            let due = self.due(&report.backups);
            let is_new = due.as_ref().is_some_and(|due| due_since.as_ref().is_none_or(|(known, _)| known != due));
            if is_new {
                due_since = due.clone().map(|due| (due, Instant::now()));
                // An order does not wait because an earlier backup failed.
                quiet_until = Instant::now();
            }
            let order = self.assignment.borrow().as_ref().and_then(|it| it.backup.as_ref()?.delete.clone());
            let is_ordered = order.is_some() && order != followed;
            if order != heard {
                heard.clone_from(&order);
                quiet_until = Instant::now();
            }
            if !is_stale && !is_new && !is_ordered && due.is_none() || Instant::now() < quiet_until {
                continue;
            }
            let outcome = self.turn(&mut report, &mut claims, due_since.as_ref()).await;
            if outcome.is_ok() {
                followed = order;
            }
            match outcome {
                Ok(is_made) => {
                    listed_at = (!is_made).then(Instant::now);
                    // Where nothing is missing, what failed is over, whoever made up for it.
                    if is_made || self.due(&report.backups).is_none() {
                        (report.failed, pause) = (None, TRY_AGAIN[0]);
                    }
                }
                Err(why) => {
                    warn!(error = why, "no base backup");
                    report.failed = Some((why, Timestamp::now()));
                    quiet_until = Instant::now() + pause;
                    pause = (pause * 2).min(TRY_AGAIN[1]);
                }
            }
        }
    }

    /// What a base backup is due for.
    fn due(&self, backups: &[Index]) -> Option<String> {
        let assignment = self.assignment.borrow();
        let backup = assignment.as_ref()?.backup.as_ref()?;
        let line = line_of(&assignment.as_ref()?.data_directory);
        due(backup, backups, self.gaps.gap().as_ref(), &line, Timestamp::now())
    }

    /// Looks at what is there, and makes a base backup if one is due and it is this member's turn. Returns whether it made one.
    async fn turn(
        &self,
        report: &mut Report,
        claims: &mut Claims,
        due_since: Option<&(String, Instant)>,
    ) -> Result<bool, String> {
        // A member that is about to be something has nothing to back up.
        if self.assignment.borrow().as_ref().is_none_or(|assignment| assignment.role == Role::None) {
            return Ok(false);
        }
        let Some(opened) = self.open().await? else { return Ok(false) };
        let Turn { store, backup, assignment, .. } = &opened;
        report.backups = backups(store).await?;
        report.verified = verification::newest(store).await.map_err(|why| with_causes(&why))?;
        self.gaps.close(&report.backups);
        self.delete(&opened, report).await?;
        let Some(due) = self.due(&report.backups) else { return Ok(false) };
        let waited = due_since.filter(|(known, _)| *known == due).map_or(Duration::ZERO, |(_, since)| since.elapsed());
        if waited < leaves_it_for(assignment) {
            return Ok(false);
        }
        let told = |error: store::Error| with_causes(&error);
        let Some(mut claim) = claims.claim(store, &due, &assignment.pod).await.map_err(told)? else { return Ok(false) };
        let progress = base::Progress::default();
        let expected = base::expected_size(&assignment.data_directory).await;
        let mut running = Running { id: due.clone(), since: Timestamp::now(), read: 0, expected };
        let backups_before = report.backups.clone();
        let outcome = {
            let mut work = std::pin::pin!(self.back_up(&opened, &backups_before, &due, expected, &progress));
            let mut keep = std::pin::pin!(claim.keep());
            loop {
                running.read = progress.read.load(Ordering::Relaxed);
                report.running = Some(running.clone());
                self.tell(report);
                tokio::select! {
                    outcome = &mut work => break outcome,
                    never = &mut keep => never,
                    () = sleep(LOOK_EVERY) => {}
                }
            }
        };
        report.running = None;
        claim.release().await;
        outcome?;
        report.backups = backups(store).await?;
        self.gaps.close(&report.backups);
        let line = line_of(&assignment.data_directory);
        if let Err(why) = expire::sweep(store, &report.backups, &line, backup.keep).await {
            warn!(error = with_causes(&why), "what nobody needs any more was not deleted");
        }
        Ok(true)
    }

    /// Follows the order that a base backup goes before its time.
    async fn delete(&self, turn: &Turn, report: &mut Report) -> Result<(), String> {
        let Turn { store, backup, assignment, .. } = turn;
        let Some(id) = backup.delete.as_deref().filter(|_| assignment.role == Role::Master) else { return Ok(()) };
        let files = store.wal_files().await.map_err(|why| with_causes(&why))?;
        let line = line_of(&assignment.data_directory);
        let all = report.backups.iter().map(|it| Standing {
            id: &it.id,
            parent: it.parent.as_deref(),
            has_wal: has_wal(it, &files) && line.goes_on_from(it),
        });
        match may_go(all, id) {
            Ok(()) => {
                let line = line_of(&assignment.data_directory);
                let deleted = expire::delete(store, &report.backups, id, &line, backup.keep).await;
                deleted.map_err(|why| with_causes(&why))?;
                report.backups = backups(store).await?;
            }
            // It went already.
            Err(Kept::Absent(_)) => {}
            Err(why) => warn!(%why, "an order to delete is not followed"),
        }
        Ok(())
    }

    /// What has changed since a full backup, where that can be had, else a full one.
    async fn back_up(
        &self,
        turn: &Turn,
        backups: &[Index],
        due: &str,
        expected: u64,
        progress: &base::Progress,
    ) -> Result<Index, String> {
        let Turn { store, backup, assignment, system } = turn;
        let version = programs::version(&assignment.binaries).await.map_err(|error| error.to_string())?;
        let recipient = store.identities().first().map(Identity::recipient);
        let line = line_of(&assignment.data_directory);
        let full_every = backup.full_every;
        let next = Next { version: &version, recipient: recipient.as_deref(), full_every, line: &line };
        let parent = parent(backups, &next, Timestamp::now());
        let manifest = match parent {
            Some(parent) => incremental::bring_manifest(store, parent, &self.run).await,
            None => Ok(None),
        };
        if let Some((parent, manifest)) = parent.zip(manifest.map_err(|why| with_causes(&why))?) {
            let wanted = base::Wanted { due, expected, parent: Some((parent, &manifest)) };
            match base::back_up(store, assignment, *system, &wanted, progress).await {
                // What this member knows of changes does not go back so far: it was cloned, or began to note them, after the full one.
                Err(base::Error::Program(why)) => info!(why, parent = parent.id, "a full base backup is made instead"),
                outcome => return outcome.map_err(|why| with_causes(&why)),
            }
        }
        let wanted = base::Wanted { due, expected, parent: None };
        base::back_up(store, assignment, *system, &wanted, progress).await.map_err(|why| with_causes(&why))
    }
}

/// The one who makes a base backup is a replica, if one can: the first to be here.
fn leaves_it_for(assignment: &Assignment) -> Duration {
    if assignment.role == Role::Master && assignment.members > 1 { LEAVES_IT_TO_REPLICAS } else { Duration::ZERO }
}
