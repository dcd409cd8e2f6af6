//! The work on a recovery in place, each part of which is broken off when something else is wanted.

use k8s_openapi::jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::info;

use super::restore::restore_beside;
use super::show::{End, show};
use super::{Error, Keeper, LOOK_EVERY, Shown, programs, promote};
use crate::backup::in_place::{Journal, Next, Stage};
use crate::election::recovered::goes_on_from;
use crate::set::backup::{Restore, Target};
use crate::set::recovery::Recovery;

// === impl Keeper ===

impl Keeper {
    /// The base backup is brought, and what PostgreSQL needs to recover on it is written. Broken off when something else is wanted.
    pub(super) async fn restore(&mut self, recovery: Recovery) -> Result<(), Error> {
        if let Target::Time(time) = &recovery.target
            && *time > Timestamp::now()
        {
            return Err(Error::Future(*time));
        }
        let from = self.location().ok_or(Error::NoBackups)?;
        self.remove().await?;
        self.note(Some(Journal { recovery: recovery.clone(), stage: Stage::Restoring })).await?;
        let data = self.provisioner.data.clone();
        let directory = spawn_blocking(move || data.new_recovered()).await??;
        info!(%recovery, "a moment is restored beside the data");
        let restore = Restore { from, target: recovery.target.clone() };
        let doing = Next::Restore(recovery.clone());
        let outcome = tokio::select! {
            outcome = restore_beside(&self.provisioner, &restore, &directory) => outcome,
            why = self.is_to_break_off(&doing) => match why {
                None => return Ok(()),
                Some(why) => Err(why),
            },
        };
        match outcome {
            Ok(()) => self.note(Some(Journal { recovery, stage: Stage::Restored })).await,
            Err(why) => {
                // It is begun anew, and takes no room until then.
                self.remove_directory().await?;
                Err(why)
            }
        }
    }

    /// Completes when something else is to be done, or the volume gets too full.
    async fn is_to_break_off(&self, doing: &Next) -> Option<Error> {
        loop {
            sleep(LOOK_EVERY).await;
            if self.next() != *doing {
                return None;
            }
            if !self.has_room() {
                return Some(Error::NoRoom);
            }
            self.tell_progress();
        }
    }

    /// PostgreSQL comes to the moment. What it lacks may be on its way to the store: then it is tried again.
    pub(super) async fn recover(&mut self) -> Result<(), Error> {
        let Some((Journal { recovery, .. }, set)) = self.journal.clone().zip(self.set()) else { return Ok(()) };
        let reached = set.reached.map_or(0, |reached| reached.timeline);
        let outcome = tokio::select! {
            outcome = promote::recover(&self.provisioner, &recovery.target, reached) => outcome,
            why = self.is_to_break_off(&Next::Recover) => return why.map_or(Ok(()), Err),
        };
        let last_commit = outcome?;
        self.note(Some(Journal { recovery, stage: Stage::Recovered { last_commit } })).await
    }

    /// A server that ended is started again after a while.
    pub(super) async fn show(&mut self, waits: bool) -> Result<(), Error> {
        let Some(Journal { recovery, .. }) = self.journal.clone() else { return Ok(()) };
        if !self.has_room() {
            self.end_show().await;
            return Err(Error::NoRoom);
        }
        if let Some(shown) = self.shown.take_if(|shown| shown.task.is_finished())
            && shown.task.await?? == End::Promoted
        {
            return self.restore_again(recovery).await;
        }
        if self.shown.is_some() || waits {
            return Ok(());
        }
        let recovered = self.provisioner.data.recovered();
        promote::end_server(&recovered).await?;
        if recovered.is_promoted() {
            return self.restore_again(recovery).await;
        }
        let (stop, is_to_stop) = oneshot::channel();
        let (publish, can_be_seen) = watch::channel(false);
        let provisioner = self.provisioner.clone();
        let task = tokio::spawn(async move {
            let port = provisioner.configuration.port;
            show(programs(&provisioner), &recovered, port, is_to_stop, &publish).await
        });
        self.shown = Some(Shown { task, stop: Some(stop), can_be_seen });
        Ok(())
    }

    async fn restore_again(&mut self, recovery: Recovery) -> Result<(), Error> {
        self.note(Some(Journal { recovery, stage: Stage::Restoring })).await?;
        Err(Error::Promoted)
    }

    pub(super) async fn end_show(&mut self) {
        let Some(mut shown) = self.shown.take() else { return };
        if let Some(stop) = shown.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut shown.task).await;
    }

    pub(super) async fn finish(&mut self) -> Result<(), Error> {
        let Some((Journal { recovery, stage }, set)) = self.journal.clone().zip(self.set()) else { return Ok(()) };
        if matches!(stage, Stage::Recovered { .. }) && self.provisioner.data.recovered().is_promoted() {
            return self.restore_again(recovery).await;
        }
        info!(%recovery, "the recovery is accepted: what was restored becomes a database that the master can go on from");
        self.note(Some(Journal { recovery: recovery.clone(), stage: Stage::Finishing })).await?;
        let outcome = tokio::select! {
            outcome = promote::finish(&self.provisioner) => outcome,
            why = self.is_to_break_off(&Next::Finish) => return why.map_or(Ok(()), Err),
        };
        let database = outcome?;
        goes_on_from(&database, &set)?;
        self.note(Some(Journal { recovery, stage: Stage::Ready(database) })).await
    }
}
