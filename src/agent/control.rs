//! What `pg_controldata` says of a database, as far as leading depends on it.

use crate::election::{Lsn, SystemIdentifier};

/// A database's control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// Which database cluster.
    pub system: SystemIdentifier,
    /// The timeline that it is on.
    pub timeline: u32,
    /// The position of the checkpoint with which its server stopped cleanly as a master.
    pub stopped_at: Option<Lsn>,
}

// === impl ControlData ===

impl ControlData {
    /// From the program's output in the C locale.
    #[must_use]
    pub fn parse(output: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.trim())
        };
        let timeline = |name: &str| value(name)?.parse::<u32>().ok();
        // Right after a promotion the last checkpoint is still one of the timeline before.
        let timeline =
            timeline("Latest checkpoint's TimeLineID").max(timeline("Min recovery ending loc's timeline"))?;
        let is_stopped = value("Database cluster state") == Some("shut down");
        Some(Self {
            system: value("Database system identifier")?.parse().ok().map(SystemIdentifier)?,
            timeline,
            stopped_at: value("Latest checkpoint location").filter(|_| is_stopped).and_then(|at| at.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PostgreSQL 15, shortened.
    fn output(state: &str, minimum: &str) -> String {
        format!(
            "pg_control version number:            1300\n\
             Database system identifier:           7461234567890123456\n\
             Database cluster state:               {state}\n\
             Latest checkpoint location:           0/3000110\n\
             Latest checkpoint's REDO location:    0/30000D8\n\
             Latest checkpoint's TimeLineID:       1\n\
             Latest checkpoint's PrevTimeLineID:   1\n\
             Minimum recovery ending location:     0/0\n\
             Min recovery ending loc's timeline:   {minimum}\n"
        )
    }

    #[test]
    fn a_clean_stop_has_a_position_and_a_crash_has_none() {
        let stopped = ControlData {
            system: SystemIdentifier(7_461_234_567_890_123_456),
            timeline: 1,
            stopped_at: Some(Lsn(0x300_0110)),
        };
        assert_eq!(ControlData::parse(&output("shut down", "0")), Some(stopped));
        for state in ["in production", "shut down in recovery", "in archive recovery", "shutting down"] {
            let crashed = ControlData { stopped_at: None, ..stopped };
            assert_eq!(ControlData::parse(&output(state, "0")), Some(crashed), "{state}");
        }
    }

    #[test]
    fn the_timeline_is_the_new_one_from_the_promotion_on() {
        assert_eq!(ControlData::parse(&output("in production", "2")).map(|control| control.timeline), Some(2));
    }

    #[test]
    fn what_is_no_control_data_is_none() {
        assert_eq!(ControlData::parse("pg_control version number: 1300\n"), None);
    }
}
