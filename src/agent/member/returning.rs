//! A member whose data left the set's history comes back: rewound, or cloned anew.

use tracing::{error, warn};

use super::Member;
use super::postgres::Postgres;
use crate::agent::events::Reason;
use crate::agent::rewind::Outcome;
use crate::election::anew::Anew;
use crate::election::step::Ended;
use crate::election::{DataState, Master};

impl Member {
    pub(super) fn rewind(&mut self, master: Master) {
        self.tell(format!("a former master's data: rewinding it to follow {}", master.pod));
        let task = tokio::spawn(self.provisioner.clone().rewind(master.clone()));
        self.postgres = Postgres::Rewinding { from: master, task };
    }

    pub(super) fn note_rewind(&mut self, master: &Master, outcome: Result<Outcome, String>) -> Ended {
        match outcome {
            Ok(Outcome::Rewound(distance)) => {
                self.status_handle.counts.rewinds.inc();
                if distance.bytes() != Some(0) {
                    let note = format!("this former master was rewound to follow {}: {distance}", master.pod);
                    warn!("{note}");
                    self.teller.tell(Reason::Rewound, &note);
                }
                Ended::Rewound
            }
            Ok(Outcome::Impossible(why)) => Ended::RewindImpossible(why),
            Err(why) => {
                error!(error = why, "the data was not rewound, trying again");
                self.tell(format!("a former master's data was not rewound, trying again: {why}"));
                Ended::RewindFailed
            }
        }
    }

    pub(super) async fn reinitialize(&mut self, master: Master, data: &DataState) {
        let why = Anew::of(data, &master);
        let note =
            format!("{why}: it is cloned anew from {}, and the old data stays until the clone streams", master.pod);
        warn!("{note}");
        self.teller.tell(Reason::Reinitialized, &note);
        self.stop_at_once().await;
        self.clone_from(master);
    }
}
