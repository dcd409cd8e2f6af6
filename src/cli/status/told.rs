//! How a set does, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    lease::{Holder, Leadership, since},
    rows::{Row, State},
    view::{Event, Health, View},
    waits::memory,
};
use crate::cli::recover::words;
use crate::{backup::summary::Summary, election::members::in_seconds, set::Contract};

/// The table's head.
const HEAD: [&str; 8] = ["MEMBER", "ROLE", "STATE", "TIMELINE", "LAG", "DELAY", "SYNCHRONOUS", "SINCE"];
/// What is not known, or makes no sense there.
const NOTHING: &str = "-";

// === impl View ===

impl View {
    /// For people.
    pub fn to_text(&self) -> String {
        let health = match self.health() {
            Health::Healthy => "healthy",
            Health::Waiting => "not healthy",
            Health::Unknown => "not known to be healthy",
        };
        let mut text =
            format!("StatefulSet {}: {health}, {} of {} members ready\n", self.set, self.ready, self.replicas);
        if !self.members.is_empty() {
            let _ = write!(text, "\n{}\n", table(&self.members, self.now));
        }
        // Writing to a string can't fail.
        let mut line = |heading: &str, words: &str| {
            let _ = writeln!(text, "  {heading:<9} {}", plain(words));
        };
        if let Some(leadership) = &self.leadership {
            line("lease", &leadership.in_words(self.now));
            if let Some(database) = &leadership.database {
                line("database", &memory(database));
            }
        }
        if let Some(backups) = self.leadership.as_ref().and_then(|leadership| leadership.backups.as_ref()) {
            for words in backups_in_words(backups, self.now) {
                line("backup", &words);
            }
        }
        if let Some(recovery) = self.leadership.as_ref().and_then(|leadership| leadership.recovery.as_ref()) {
            let (namespace, name) = self.set.split_once('/').unwrap_or_default();
            line("recovery", &words(recovery, &format!("sts/{name} -n {namespace}")));
        }
        for wait in &self.waits {
            line("waits", &wait.says);
            if !wait.cure.is_empty() {
                line("", &wait.cure);
            }
        }
        if self.health() == Health::Healthy {
            line("waits", "for nothing");
        }
        for unread in &self.unread {
            line("unread", unread);
        }
        for note in &self.notes {
            line("note", note);
        }
        // Where all is well, what went well before is no news.
        for event in self.events.iter().filter(|event| event.is_warning || self.health() != Health::Healthy) {
            line("event", &format!("{} ago, {}: {}", age(since(event.at, self.now)), event.reason, event.note));
        }
        text
    }

    /// For programs: the shape that `docs/status.md` promises.
    pub fn to_json(&self) -> Value {
        let master = self.leadership.as_ref().and_then(Leadership::master);
        // Contract `image` has no Lease to say it.
        let labelled = self.members.iter().find(|row| self.leadership.is_none() && row.is_labelled_master);
        json!({
            "set": self.set,
            "health": self.health().as_str(),
            "contract": self.contract.map(|contract| match contract {
                Contract::Agent => "agent",
                Contract::Image => "image",
            }),
            "replicas": self.replicas,
            "ready": self.ready,
            "master": master.map(|master| &master.pod).or(labelled.map(|row| &row.pod)),
            "lease": self.leadership.as_ref().map(Leadership::to_json),
            "recovery": self.leadership.as_ref().and_then(|leadership| leadership.recovery.as_ref()),
            "backups": self.leadership.as_ref().and_then(|leadership| leadership.backups.as_ref()),
            "members": self.members.iter().map(Row::to_json).collect::<Vec<_>>(),
            "waits": self.waits.iter().map(|wait| json!({
                "reason": wait.reason.as_str(), "says": wait.says, "cure": wait.cure,
            })).collect::<Vec<_>>(),
            "notes": self.notes,
            "unread": self.unread,
            "events": self.events.iter().map(Event::to_json).collect::<Vec<_>>(),
        })
    }
}

// === impl Leadership ===

impl Leadership {
    fn in_words(&self, now: Timestamp) -> String {
        let epoch = self.epoch.map_or_else(|| "unknown".to_owned(), |epoch| epoch.to_string());
        let holder = match &self.holder {
            Holder::Nobody => return format!("held by nobody; the last epoch was {epoch}"),
            Holder::Member(candidate) => candidate.pod.clone(),
            Holder::Stranger(holder) => format!("{holder:?}, which is no member,"),
        };
        let held = self.since.map(|began| format!(" for {}", age(since(began, now)))).unwrap_or_default();
        let renewed = self
            .age
            .map_or_else(|| "renewed nobody knows when".to_owned(), |age| format!("renewed {} ago", seconds(age)));
        let silent = if self.is_silent { ": its holder is silent" } else { "" };
        format!("held by {holder} (epoch {epoch}){held}; {renewed}, good for {}{silent}", seconds(self.duration))
    }

    fn to_json(&self) -> Value {
        let reached = self.database.and_then(|database| database.reached);
        let position = |position: Option<crate::election::Lsn>| position.map(|position| position.to_string());
        json!({
            "holder": match &self.holder {
                Holder::Nobody => None,
                Holder::Member(candidate) => Some(candidate.to_string()),
                Holder::Stranger(holder) => Some(holder.clone()),
            },
            "isMember": matches!(self.holder, Holder::Member(_)),
            "epoch": self.epoch,
            "since": time(self.since),
            "renewed": time(self.renewed),
            "ageSeconds": self.age.map(in_seconds),
            "durationSeconds": self.duration.as_secs(),
            "silent": self.is_silent,
            "acceptsWrites": self.master().is_some(),
            "system": self.database.map(|database| database.system.to_string()),
            "timeline": reached.map(|reached| reached.timeline),
            "flushed": position(reached.and_then(|reached| reached.flushed)),
            "stoppedAt": position(reached.and_then(|reached| reached.stopped_at)),
        })
    }
}

// === impl Row ===

impl Row {
    fn cells(&self, now: Timestamp) -> [String; 8] {
        let or_nothing = |text: Option<String>| text.unwrap_or_else(|| NOTHING.to_owned());
        let yes_or_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
        [
            plain(&self.pod),
            if self.state == State::NoPod { NOTHING } else { self.role.as_str() }.to_owned(),
            self.state.as_str().to_owned(),
            or_nothing(self.timeline.map(|timeline| timeline.to_string())),
            or_nothing(self.lag_bytes.map(bytes)),
            or_nothing(self.lag.map(seconds)),
            or_nothing(self.synchronous.map(yes_or_no)),
            or_nothing(self.since.map(|began| age(since(began, now)))),
        ]
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.pod,
            "role": self.role.as_str(),
            "state": self.state.as_str(),
            "ready": self.is_ready,
            "leaving": !self.is_wanted,
            "timeline": self.timeline,
            "flushed": self.flushed.map(|position| position.to_string()),
            "replayed": self.replayed.map(|position| position.to_string()),
            "lagBytes": self.lag_bytes,
            "lagSeconds": self.lag.map(in_seconds),
            "synchronous": self.synchronous,
            "since": time(self.since),
            "why": self.why,
        })
    }
}

// === impl Event ===

impl Event {
    fn to_json(&self) -> Value {
        json!({
            "time": time(Some(self.at)),
            "type": if self.is_warning { "Warning" } else { "Normal" },
            "reason": self.reason,
            "note": self.note,
        })
    }
}

fn backups_in_words(summary: &Summary, now: Timestamp) -> Vec<String> {
    let ago = |then: Timestamp| ago(then, now);
    let newest = summary.backups.last();
    let newest = newest.map_or_else(
        || "none yet".to_owned(),
        |it| format!("{} of {}, complete {} ago", it.id, summary.count, ago(it.ended)),
    );
    let archived = summary.archived_at.map_or_else(|| "nothing yet".to_owned(), |at| format!("{} ago", ago(at)));
    let mut words = vec![format!(
        "{}: {newest}; the WAL was archived {archived}, {} files wait",
        summary.location, summary.waiting
    )];
    words.extend(
        summary.verified.as_ref().map(|found| format!("verified {} ago: {}", ago(found.started), found.in_words())),
    );
    words.extend(summary.trouble.clone());
    words
}

fn table(members: &[Row], now: Timestamp) -> String {
    let head = HEAD.map(str::to_owned);
    let lines: Vec<[String; 8]> = std::iter::once(head).chain(members.iter().map(|row| row.cells(now))).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut table = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(table, "  {}", cells.join("  ").trim_end());
    }
    table
}

fn time(at: Option<Timestamp>) -> Option<String> {
    at.map(|at| at.to_string())
}

/// What others wrote has no say over the terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// So many bytes, as PostgreSQL counts them.
pub fn bytes(count: u64) -> String {
    let (mut whole, mut rest, mut unit) = (count, 0, "B");
    for larger in ["kB", "MB", "GB", "TB"] {
        if whole < 1024 {
            break;
        }
        (whole, rest, unit) = (whole / 1024, whole % 1024, larger);
    }
    if unit == "B" || whole >= 10 { format!("{whole} {unit}") } else { format!("{whole}.{} {unit}", rest * 10 / 1024) }
}

/// Seconds; below ten, with tenths.
pub fn seconds(duration: Duration) -> String {
    let tenths = duration.as_millis() / 100;
    if tenths >= 100 || tenths.is_multiple_of(10) {
        format!("{} s", tenths / 10)
    } else {
        format!("{}.{} s", tenths / 10, tenths % 10)
    }
}

/// How long ago something was. One that lies ahead, by another clock, is now.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    age(since(then, now))
}

/// How long something lasts, in its two largest units, as kubectl writes ages. (jiff, which is here with `k8s-openapi`, writes all units.)
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}
