//! A member whose data left the set's history comes back: rewound, or cloned anew.

use tracing::{error, warn};

use super::Member;
use super::state::{Retry, State};
use crate::agent::events::Reason;
use crate::agent::rewind::Outcome;
use crate::election::anew::Anew;
use crate::election::{Data, Master};

/// So often a server may fail to start on data that was just rewound: what fails by chance does not fail three times.
const FIRST_STARTS: u32 = 3;

/// What is known of this member's way back.
#[derive(Debug, Default)]
pub(super) struct Return {
    unrewindable: Option<String>,
    /// It was rewound and has not streamed yet, and its server has ended so often since.
    ended: Option<u32>,
}

// === impl Return ===

impl Return {
    /// What is known of the data beyond what is on the disk.
    pub(super) fn know(&self, mut data: Data) -> Data {
        if let Data::Cluster { lineage, .. } = &mut data {
            lineage.unrewindable.clone_from(&self.unrewindable);
        }
        data
    }

    /// A server has ended by itself. One that starts is past what a rewind could have left undone.
    pub(super) fn note_end(&mut self) {
        let Some(ended) = &mut self.ended else { return };
        *ended += 1;
        if *ended >= FIRST_STARTS {
            self.unrewindable = Some("PostgreSQL does not start on the rewound data; its log says why".to_owned());
        }
    }
}

impl Member {
    pub(super) fn rewind(&mut self, master: Master) {
        self.tell(format!("a former master's data: rewinding it to follow {}", master.pod));
        let task = tokio::spawn(self.midwife.clone().rewind(master.clone()));
        self.state = State::Rewinding { from: master, task };
    }

    pub(super) fn note_rewind(&mut self, master: &Master, outcome: Result<Outcome, String>) {
        match outcome {
            Ok(Outcome::Rewound(distance)) => {
                self.publisher.counts.rewinds.inc();
                self.retry = Retry::none();
                if distance.bytes() != Some(0) {
                    let note = format!("this former master was rewound to follow {}: {distance}", master.pod);
                    warn!("{note}");
                    self.teller.tell(Reason::Rewound, &note);
                }
                self.coming_back = Return { ended: Some(0), ..Return::default() };
            }
            Ok(Outcome::Impossible(why)) => self.coming_back.unrewindable = Some(why),
            Err(why) => {
                error!(error = why, "the data was not rewound, trying again");
                self.tell(format!("a former master's data was not rewound, trying again: {why}"));
                self.retry.later();
            }
        }
    }

    pub(super) async fn clone_anew(&mut self, master: Master) {
        let data = self.coming_back.know(self.data.clone().unwrap_or(Data::Empty));
        let why = Anew::of(&data, &master);
        let note =
            format!("{why}: it is cloned anew from {}, and the old data stays until the clone streams", master.pod);
        warn!("{note}");
        self.teller.tell(Reason::Reinitialized, &note);
        self.stop_at_once().await;
        self.clone_from(master);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::SystemIdentifier;
    use crate::election::lineage::Lineage;

    #[test]
    fn data_on_which_no_server_starts_after_a_rewind_is_given_up_and_other_data_is_not() {
        let data = || Data::Cluster { system: SystemIdentifier(1), standby: true, lineage: Lineage::default() };
        let is_given_up = |way_back: &Return| match way_back.know(data()) {
            Data::Cluster { lineage, .. } => lineage.unrewindable.is_some(),
            _ => false,
        };
        let mut never_rewound = Return::default();
        let mut rewound = Return { ended: Some(0), ..Return::default() };
        for _ in 0..FIRST_STARTS {
            assert!(!is_given_up(&rewound));
            never_rewound.note_end();
            rewound.note_end();
        }
        assert!(is_given_up(&rewound));
        assert!(!is_given_up(&never_rewound));
    }
}
