//! The numbers of timelines. PostgreSQL's promotion takes the first one without a file of history. Where another member may have been
//! promoted to that one unheard, a file of history passes over it: two histories of one number can't be told apart by anybody.

use std::fs;
use std::path::PathBuf;

use super::{DataDirectory, Result, failed};
use crate::agent::settings;
use crate::election::Lsn;
use crate::election::lineage::{Branch, branches, history_file};
use crate::election::vote::Position;

/// Why such a timeline was left, in the words of its file of history.
const PASSED_OVER: &str = "passed over by pgset: another member may have been promoted to this number";

// === impl DataDirectory ===

impl DataDirectory {
    /// Lets a promotion from there begin a timeline of no smaller number than that.
    pub fn pass_over_timelines(&self, from: Position, next: u32) -> Result<()> {
        let numbers = from.timeline.saturating_add(1)..next;
        if numbers.is_empty() {
            return Ok(());
        }
        let own = fs::read_to_string(self.history(from.timeline)).unwrap_or_default();
        let text = with_line(&own, from.timeline, from.at);
        numbers
            .into_iter()
            .filter(|number| !self.history(*number).exists())
            .try_for_each(|number| self.write(number, &text))
    }

    /// Of a promotion that came to nothing, before the server starts as a standby: the number may be another member's. What a real
    /// timeline came after stays: PostgreSQL finds the newest one by a row of numbers without a gap.
    pub fn forget_passed_over(&self) -> Result<()> {
        let directory = self.path.join("pg_wal");
        let entries = fs::read_dir(&directory).map_err(failed("list", &directory))?;
        let mut numbers: Vec<u32> =
            entries.flatten().filter_map(|entry| number(&entry.file_name().to_string_lossy())).collect();
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            let path = self.history(number);
            if !fs::read_to_string(&path).is_ok_and(|text| text.trim_end().ends_with(PASSED_OVER)) {
                break;
            }
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(())
    }

    /// Gives a master a file of history for each number before its own. A replica that comes from an earlier timeline asks for all in
    /// between, and a copy of a master has its last one alone.
    pub fn complete_histories(&self, timeline: u32) -> Result<()> {
        let missing: Vec<u32> = (2..timeline).filter(|number| !self.history(*number).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let Ok(own) = fs::read_to_string(self.history(timeline)) else { return Ok(()) };
        let before = branches(&own);
        for number in missing {
            let path: Vec<&Branch> = before.iter().take_while(|branch| branch.timeline < number).collect();
            let text =
                path.iter().fold(String::new(), |text, branch| with_line(&text, branch.timeline, branch.left_at));
            self.write(number, &text)?;
        }
        Ok(())
    }

    fn history(&self, timeline: u32) -> PathBuf {
        self.path.join("pg_wal").join(history_file(timeline))
    }

    fn write(&self, timeline: u32, text: &str) -> Result<()> {
        let path = self.history(timeline);
        settings::write(&path, text).map(drop).map_err(failed("write", &path))
    }
}

fn with_line(text: &str, timeline: u32, left_at: Lsn) -> String {
    format!("{text}{timeline}\t{left_at}\t{PASSED_OVER}\n")
}

fn number(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_suffix(".history").filter(|digits| digits.len() == 8)?, 16).ok()
}

#[cfg(test)]
#[path = "timelines_tests.rs"]
mod tests;
