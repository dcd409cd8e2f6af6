//! How what a member runs ends: by itself, because it may not go on, or with the member.

use std::time::Duration;

use tokio::time::sleep;
use tracing::{error, info, warn};

use super::postgres::{Ended, Postgres, Role, Running};
use super::{Member, Parting};
use crate::agent::processes::end_container;
use crate::agent::server::Stop;
use crate::election::step::{self, End, Event};

/// So long a former master's pod outlives its server: clients hear of the next one within a second (kube-proxy acts once in one), and what
/// they send here until then is refused at once. The address of a pod that is gone would swallow it.
const REFUSES_FOR: Duration = Duration::from_millis(1500);

impl Member {
    pub(super) async fn fence(&mut self) {
        warn!("this member does not hold the Lease: PostgreSQL stops now");
        self.status_handle.counts.fences.inc();
        self.stop_at_once().await;
        self.tell("stopped: without the Lease nothing may write");
    }

    pub(super) async fn stop_at_once(&mut self) {
        match std::mem::replace(&mut self.postgres, Postgres::Stopped) {
            Postgres::Running(mut running) => {
                running.server.stop(Stop::Immediate).await;
                self.look_at_data_of(&running.role);
            }
            // An entry point's children are out of reach: its temporary server leaves the process group. All of them end with us.
            Postgres::Bootstrapping(_) => end_container(),
            // The task owns its child process, which is killed with it.
            Postgres::Cloning { task, .. } => {
                task.abort();
                let _ = task.await;
            }
            Postgres::Rewinding { task, .. } => {
                task.abort();
                let _ = task.await;
            }
            Postgres::Stopped => {}
        }
        self.mark_unready();
    }

    pub(super) fn mark_unready(&mut self) {
        self.data = None;
        self.status_handle.update(|status| {
            status.role = "none";
            status.ready = false;
        });
    }

    /// Something ended by itself: the server, a bootstrap, a clone or a rewind.
    pub(super) async fn handle_exit(&mut self, ended: Ended) {
        self.mark_unready();
        if let Postgres::Running(running) = &self.postgres {
            self.look_at_data_of(&running.role);
        }
        let was_starting_as_master =
            matches!(self.postgres, Postgres::Running(Running { role: Role::Master { announced: None }, .. }));
        self.postgres = Postgres::Stopped;
        let ended = self.in_short(ended, was_starting_as_master);
        let effects = self.happens(Event::Ended(ended));
        self.run(effects).await;
    }

    /// Tells people how something ended, and returns what of that makes a difference.
    fn in_short(&mut self, ended: Ended, was_starting_as_master: bool) -> step::Ended {
        match ended {
            Ended::Server(status) if status.success() => {
                info!("PostgreSQL was stopped from outside");
                step::Ended::ServerStopped
            }
            Ended::Server(status) => {
                error!(%status, "PostgreSQL ended, starting it again");
                self.tell(format!("PostgreSQL ended with {status}"));
                self.last_failure =
                    format!("PostgreSQL ended with {status} when it was started as a member; its log says why");
                step::Ended::ServerFailed { was_starting_as_master }
            }
            Ended::Bootstrap(Ok(())) => {
                self.status_handle.counts.bootstraps.inc();
                step::Ended::Bootstrapped
            }
            Ended::Bootstrap(Err(why)) => {
                error!(error = why, "the database was not made: the container ends and begins anew");
                step::Ended::BootstrapFailed
            }
            Ended::Clone(Ok(())) => {
                self.status_handle.counts.clones.inc();
                step::Ended::Cloned
            }
            Ended::Clone(Err(why)) => {
                error!(error = why, "the data was not made, trying again");
                self.tell(format!("the data was not made, trying again: {why}"));
                step::Ended::CloneFailed
            }
            Ended::Rewind(master, outcome) => self.note_rewind(&master, outcome),
        }
    }

    /// Whether there is nobody who could follow.
    pub(super) fn is_last(&self) -> bool {
        self.set.borrow().as_ref().is_some_and(|set| set.members.count <= 1)
    }

    pub(super) async fn shut_down(mut self) -> Parting {
        info!("stopping");
        let end = self.how_to_end().await;
        self.status_handle.update(|status| {
            status.ready = false;
            status.makes_way = false;
            status.last_tick = None;
            "stopping".clone_into(&mut status.message);
        });
        let last_word = match end {
            // Not given back: what the entry point started ends with this process only, and the Lease by itself soon after.
            End::Leave => return Parting::Left,
            End::BreakOff => {
                self.stop_at_once().await;
                None
            }
            End::StopStandby => {
                self.stop_standby().await;
                None
            }
            End::StopMaster { .. } => Some(self.stop_master().await),
            End::SayHowFar => Some(self.last_word().await),
            End::Nothing => None,
        };
        if last_word.is_some() && self.is_last() {
            // Where somebody follows, kube-proxy's one change in a second is his.
            self.route.close().await;
        }
        if let Postgres::Running(running) = &self.postgres {
            self.look_at_data_of(&running.role);
        }
        let hands_over = last_word.as_ref().is_some_and(|word| word.successor.is_some());
        self.release(last_word).await;
        if hands_over {
            sleep(REFUSES_FOR).await;
        }
        Parting::Stopped
    }

    async fn stop_standby(&mut self) {
        if let Postgres::Running(running) = &mut self.postgres {
            running.server.stop(Stop::Fast).await;
        }
    }
}
