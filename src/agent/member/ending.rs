//! How what a member runs ends: by itself, because it may not go on, or with the member.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::returning::Return;
use super::state::{Birth, Ended, Retry, Role, Running, State};
use super::{Member, Parting};
use crate::agent::processes::end_container;
use crate::agent::server::Stop;
use crate::agent::{label, postmasters};

/// After a `pg_ctl stop` from outside: SIGTERM follows a `preStop` hook at once. Without one, somebody wanted a restart.
const HOOK_LIMIT: Duration = Duration::from_secs(10);
/// So long a former master's pod outlives its server: clients hear of the next one within a second (kube-proxy acts once in one), and what
/// they send here until then is refused at once. The address of a pod that is gone would swallow it.
const REFUSES_FOR: Duration = Duration::from_millis(1500);

impl Member {
    pub(super) async fn fence(&mut self) {
        warn!("this member does not hold the Lease: PostgreSQL stops now");
        self.publisher.counts.fences.inc();
        self.label.set(label::Role::None);
        self.stop_at_once().await;
        self.tell("stopped: without the Lease nothing may write");
    }

    pub(super) async fn stop_at_once(&mut self) {
        match std::mem::replace(&mut self.state, State::Stopped) {
            State::Running(mut running) => {
                running.server.stop(Stop::Immediate).await;
                self.look_at_data_of(&running.role);
            }
            // An entry point's children are out of reach: its temporary server leaves the process group. All of them end with us.
            State::Bootstrapping(_) => end_container(),
            // The task owns its child process, which is killed with it.
            State::Cloning { task, .. } => {
                task.abort();
                let _ = task.await;
            }
            State::Rewinding { task, .. } => {
                task.abort();
                let _ = task.await;
            }
            State::Stopped | State::StoppedByOthers { .. } => {}
        }
        self.not_serving();
    }

    pub(super) fn not_serving(&mut self) {
        self.data = None;
        self.publisher.update(|status| {
            status.role = "none";
            status.ready = false;
        });
    }

    /// Something ended by itself: the server, a bootstrap or a clone.
    pub(super) fn note_end(&mut self, ended: Ended) {
        self.not_serving();
        if let State::Running(running) = &self.state {
            self.look_at_data_of(&running.role);
        }
        let starting_master =
            matches!(self.state, State::Running(Running { role: Role::Master { announced: None }, .. }));
        self.state = State::Stopped;
        match ended {
            Ended::Server(status) if status.success() => {
                info!("PostgreSQL was stopped from outside");
                self.state = State::StoppedByOthers { until: Instant::now() + HOOK_LIMIT };
            }
            Ended::Server(status) => {
                error!(%status, "PostgreSQL ended, starting it again");
                self.coming_back.note_end();
                postmasters::kill_all(self.midwife.data.path());
                self.tell(format!("PostgreSQL ended with {status}"));
                self.retry.later();
                if starting_master {
                    self.note_failed_start(format!(
                        "PostgreSQL ended with {status} when it was started as a member; its log says why"
                    ));
                }
            }
            Ended::Birth(how, Ok(())) => {
                match how {
                    Birth::Bootstrap => self.publisher.counts.bootstraps.inc(),
                    Birth::Clone => self.publisher.counts.clones.inc(),
                };
                self.coming_back = Return::default();
                self.retry = Retry::none();
            }
            Ended::Rewind(master, outcome) => self.note_rewind(&master, outcome),
            Ended::Birth(Birth::Bootstrap, Err(why)) => {
                error!(error = why, "the database was not made: the container ends and begins anew");
                // The entry point's temporary server may have outlived it, and would spoil the next attempt.
                end_container();
            }
            Ended::Birth(Birth::Clone, Err(why)) => {
                error!(error = why, "the data was not made, trying again");
                self.tell(format!("the data was not made, trying again: {why}"));
                self.retry.later();
            }
        }
    }

    /// Whether there is nobody who could follow.
    pub(super) fn is_last(&self) -> bool {
        self.set.borrow().as_ref().is_some_and(|set| set.members.count <= 1)
    }

    pub(super) async fn shut_down(mut self) -> Parting {
        info!("stopping");
        self.prepare_successor().await;
        self.publisher.update(|status| {
            status.ready = false;
            status.makes_way = false;
            status.turned_at = None;
            "stopping".clone_into(&mut status.doing);
        });
        let last_word = self.stop_for_good().await;
        if last_word.is_some() && self.is_last() {
            // Where somebody follows, kube-proxy's one change in a second is his.
            self.route.close().await;
        }
        if let State::Running(running) = &self.state {
            self.look_at_data_of(&running.role);
        }
        if matches!(self.state, State::Bootstrapping(_)) {
            // Not given back: what the entry point started ends with this process only, and the Lease by itself soon after.
            return Parting::Left;
        }
        if matches!(self.state, State::Cloning { .. } | State::Rewinding { .. }) {
            self.stop_at_once().await;
        }
        let hands_over = last_word.as_ref().is_some_and(|word| word.successor.is_some());
        self.release(last_word).await;
        if hands_over {
            sleep(REFUSES_FOR).await;
        }
        Parting::Stopped
    }
}
