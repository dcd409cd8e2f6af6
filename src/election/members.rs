//! What a master tells of the other members on its Lease, for people and programs that look at the set. Nothing is decided by it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as LeaseObject;
use serde_json::{Map, Value, json};

use super::Lsn;
use crate::names::lease::MEMBERS;
use crate::set::MOST_MEMBERS;

/// A member, as its master sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The pod.
    pub pod: String,
    /// What it does on the master.
    pub state: Connection,
    /// What it has on its disk.
    pub flushed: Option<Lsn>,
    /// What those who read from it see.
    pub replayed: Option<Lsn>,
    /// The master counts its confirmations of commits.
    pub synchronous: bool,
    /// By how much later than on the master a commit is seen there.
    pub lag: Option<Duration>,
}

/// How a member is connected to its master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Connection {
    /// Not at all.
    Absent,
    /// Its data is being copied.
    Cloning,
    /// It gets what it missed.
    CatchingUp,
    /// It gets what is written as it is written.
    Streaming,
}

// === impl Connection ===

impl Connection {
    const ALL: [Self; 4] = [Self::Absent, Self::Cloning, Self::CatchingUp, Self::Streaming];

    /// Its name on the Lease, which stays the same.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Cloning => "cloning",
            Self::CatchingUp => "catching up",
            Self::Streaming => "streaming",
        }
    }
}

// === impl Seen ===

impl Seen {
    /// A member that is not connected.
    #[must_use]
    pub fn absent(pod: String) -> Self {
        Self { pod, state: Connection::Absent, flushed: None, replayed: None, synchronous: false, lag: None }
    }

    /// What is not so, or not known, takes no place: a hundred of these go with every renewal.
    fn to_json(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("pod".to_owned(), json!(self.pod));
        entry.insert("state".to_owned(), json!(self.state.as_str()));
        for (key, position) in [("flushed", self.flushed), ("replayed", self.replayed)] {
            if let Some(position) = position {
                entry.insert(key.to_owned(), json!(position.to_string()));
            }
        }
        if self.synchronous {
            entry.insert("synchronous".to_owned(), json!(true));
        }
        if let Some(lag) = self.lag {
            entry.insert("lag".to_owned(), json!(in_seconds(lag)));
        }
        Value::Object(entry)
    }

    /// Anybody who may write Leases may have written it.
    fn from_json(entry: &Value) -> Option<Self> {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        let state = text("state")?;
        let position = |key: &str| text(key).and_then(|text| text.parse().ok());
        Some(Self {
            pod: text("pod")?.to_owned(),
            state: Connection::ALL.into_iter().find(|known| known.as_str() == state)?,
            flushed: position("flushed"),
            replayed: position("replayed"),
            synchronous: entry.get("synchronous").and_then(Value::as_bool).unwrap_or(false),
            lag: entry.get("lag").and_then(Value::as_f64).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        })
    }
}

/// Seconds with a fraction, to the millisecond.
#[must_use]
pub fn in_seconds(duration: Duration) -> f64 {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}

/// Writes what a master knows of the others into its Lease. Of more than a set may have, the rest is left out.
pub fn write(lease: &mut LeaseObject, seen: &[Seen]) {
    let notes = lease.metadata.annotations.get_or_insert_default();
    if seen.is_empty() {
        notes.remove(MEMBERS);
        return;
    }
    let list: Vec<Value> = seen.iter().take(MOST_MEMBERS as usize).map(Seen::to_json).collect();
    notes.insert(MEMBERS.to_owned(), Value::Array(list).to_string());
}

/// Reads it; absent if the master tells nothing, or nothing that can be read. What can't be read of it is left out.
#[must_use]
pub fn read(lease: &LeaseObject) -> Option<Vec<Seen>> {
    let text = lease.metadata.annotations.as_ref()?.get(MEMBERS)?;
    let Ok(Value::Array(list)) = serde_json::from_str(text) else { return None };
    Some(list.iter().take(MOST_MEMBERS as usize).filter_map(Seen::from_json).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(pod: &str) -> Seen {
        Seen {
            pod: pod.to_owned(),
            state: Connection::Streaming,
            flushed: Some(Lsn(0x50)),
            replayed: Some(Lsn(0x40)),
            synchronous: true,
            lag: Some(Duration::from_millis(1250)),
        }
    }

    fn noted(text: &str) -> LeaseObject {
        let mut lease = LeaseObject::default();
        lease.metadata.annotations.get_or_insert_default().insert(MEMBERS.to_owned(), text.to_owned());
        lease
    }

    #[test]
    fn what_a_master_tells_is_read_as_it_was_written() {
        let seen = [
            replica("db-1"),
            Seen { state: Connection::CatchingUp, synchronous: false, lag: None, ..replica("db-2") },
            Seen::absent("db-3".to_owned()),
            Seen { state: Connection::Cloning, ..Seen::absent("db-4".to_owned()) },
        ];
        let mut lease = LeaseObject::default();
        write(&mut lease, &seen);
        assert_eq!(read(&lease).as_deref(), Some(&seen[..]));
        let text = &lease.metadata.annotations.as_ref().unwrap()[MEMBERS];
        let first =
            r#"[{"pod":"db-1","state":"streaming","flushed":"0/50","replayed":"0/40","synchronous":true,"lag":1.25},"#;
        assert!(text.starts_with(first), "{text}");
        assert!(text.contains(r#"{"pod":"db-3","state":"absent"}"#), "{text}");
        write(&mut lease, &[]);
        assert_eq!(read(&lease), None, "who knows of nobody says nothing");
    }

    #[test]
    fn the_largest_set_takes_a_small_part_of_what_an_object_may_hold() {
        let pod = |ordinal: u32| format!("{}-{ordinal}", "s".repeat(50));
        let far = Some(Lsn(u64::MAX));
        let seen: Vec<Seen> =
            (0..500).map(|ordinal| Seen { flushed: far, replayed: far, ..replica(&pod(ordinal)) }).collect();
        let mut lease = LeaseObject::default();
        write(&mut lease, &seen);
        assert_eq!(read(&lease).unwrap().len(), MOST_MEMBERS as usize);
        assert!(lease.metadata.annotations.unwrap()[MEMBERS].len() < 20_000);
    }

    #[test]
    fn of_a_strangers_words_only_what_makes_sense_is_read() {
        for nonsense in ["", "no JSON", "{}", "7", "null"] {
            assert_eq!(read(&noted(nonsense)), None, "{nonsense}");
        }
        let odd = r#"[7, {"pod": "db-1"}, {"state": "streaming"}, {"pod": "db-1", "state": "dancing"},
                      {"pod": "db-2", "state": "streaming", "flushed": 7, "replayed": "x/y", "synchronous": "yes", "lag": -1, "more": 1}]"#;
        let read = read(&noted(odd)).unwrap();
        assert_eq!(read, [Seen { state: Connection::Streaming, ..Seen::absent("db-2".to_owned()) }]);
    }
}
