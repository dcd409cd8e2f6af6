//! What PostgreSQL is told while the set has backups: after how long what a quiet database has written is archived as well (`archive_timeout`), and
//! that it notes what changes (`summarize_wal`).

use tokio::sync::watch;
use tracing::{info, warn};

use super::postgres::Running;
use crate::agent::backup::ArchiveSettings;
use crate::agent::kubernetes::Wishes;
use crate::agent::notes::Wanted;
use crate::agent::provisioner::Provisioner;
use crate::errors::with_causes;

/// What was said to PostgreSQL.
pub(super) struct Archiving {
    /// What an earlier life of this container left in the settings, or this one wrote.
    written: Option<ArchiveSettings>,
    /// For which server, by its process, it was seen to last.
    server: i32,
}

// === impl Archiving ===

impl Archiving {
    /// As it was noted last.
    pub(super) fn of(noted: Option<Wanted>) -> Self {
        Self { written: noted.and_then(|noted| noted.backup).map(|backup| ArchiveSettings::of(&backup)), server: 0 }
    }

    /// Sees to it that the settings say what the set wants. A value that the user has set himself stays while there are no backups. WAL whose changes
    /// are not noted yet stays whatever `max_slot_wal_keep_size` says, so that nothing is noted where the volume is tight.
    pub(super) fn keep(
        &mut self,
        running: &Running,
        provisioner: &Provisioner,
        wishes: &watch::Receiver<Option<Wishes>>,
        is_tight: bool,
    ) {
        let Some(backup) = wishes.borrow().as_ref().map(|wishes| wishes.backup.clone()) else { return };
        let wanted = backup.filter(|_| running.server.settings.archives).map(|backup| ArchiveSettings::of(&backup));
        let wanted = wanted.map(|wanted| ArchiveSettings { summaries: wanted.summaries && !is_tight, ..wanted });
        let server = running.server.number();
        if (wanted, server) == (self.written, self.server) || (wanted, self.written) == (None, None) {
            return;
        }
        match provisioner.write_archive_settings(wanted) {
            Ok(true) => {
                info!(?wanted, "what PostgreSQL does for backups is set anew");
                running.server.reload();
            }
            Ok(false) => {}
            Err(why) => return warn!(error = with_causes(&why), "failed to set what PostgreSQL does for backups"),
        }
        (self.written, self.server) = (wanted, server);
    }
}
