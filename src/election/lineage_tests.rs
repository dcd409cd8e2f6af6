//! Each test is one sentence about data that may lead, or not.

use super::*;

/// As PostgreSQL 15 wrote it after two promotions.
const HISTORY: &str = "1\t0/3000148\tno recovery target specified\n\n2\t0/4000060\tno recovery target specified\n";

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

fn reached(timeline: u32, begins: Option<&str>, flushed: &str) -> Reached {
    Reached { timeline, begins: begins.map(lsn), flushed: Some(lsn(flushed)), stopped_at: None }
}

fn on(timeline: u32, history: &str) -> Lineage {
    Lineage { timeline, stopped_at: None, branches: branches(history) }
}

#[test]
fn a_history_is_read_as_postgresql_writes_it() {
    assert_eq!(
        branches(HISTORY),
        [Branch { timeline: 1, left_at: Lsn(0x300_0148) }, Branch { timeline: 2, left_at: Lsn(0x400_0060) }]
    );
    assert_eq!(branches("nothing of the kind"), []);
    assert_eq!(history_file(0x1A), "0000001A.history");
    assert_eq!(lsn("1A/FF").to_string(), "1A/FF");
    assert!("0/x".parse::<Lsn>().is_err() && "7".parse::<Lsn>().is_err());
}

#[test]
fn a_master_goes_on_with_its_own_data_also_after_a_crash() {
    assert_eq!(on(1, "").continues(&reached(1, None, "0/3000000")), Ok(()));
    assert_eq!(on(3, HISTORY).continues(&reached(3, Some("0/4000060"), "0/9000000")), Ok(()));
}

#[test]
fn who_was_promoted_from_where_the_set_was_goes_on() {
    assert_eq!(on(3, HISTORY).continues(&reached(2, Some("0/3000148"), "0/4000000")), Ok(()));
    assert_eq!(on(3, HISTORY).continues(&reached(1, None, "0/3000148")), Ok(()));
}

#[test]
fn a_master_of_an_older_timeline_is_a_former_one() {
    assert_eq!(
        on(1, "").continues(&reached(2, Some("0/3000148"), "0/3000200")),
        Err(Divergence::OlderTimeline { found: 1, reached: 2 })
    );
}

#[test]
fn who_was_promoted_before_where_the_set_came_to_lacks_some_of_it() {
    let lacks = Err(Divergence::OtherHistory { found: 3, reached: 2 });
    assert_eq!(on(3, HISTORY).continues(&reached(2, Some("0/3000148"), "0/4000061")), lacks);
    assert_eq!(on(3, "").continues(&reached(2, None, "0/1")), lacks, "a history that nobody has proves nothing");
}

#[test]
fn two_promotions_to_one_number_are_told_apart_by_where_they_began() {
    assert_eq!(
        on(3, HISTORY).continues(&reached(3, Some("0/4000000"), "0/4000100")),
        Err(Divergence::OtherHistory { found: 3, reached: 3 })
    );
    assert_eq!(
        on(3, HISTORY).continues(&reached(2, Some("0/3000000"), "0/3000100")),
        Err(Divergence::OtherHistory { found: 3, reached: 2 }),
        "also of a timeline before"
    );
}

#[test]
fn a_copy_that_ends_before_where_the_set_came_to_is_an_older_one() {
    let stopped = |at: &str| Lineage { stopped_at: Some(lsn(at)), ..on(1, "") };
    let set = reached(1, None, "0/5000000");
    assert_eq!(
        stopped("0/4FFFFFF").continues(&set),
        Err(Divergence::OlderCopy { found: lsn("0/4FFFFFF"), reached: lsn("0/5000000") })
    );
    assert_eq!(stopped("0/5000000").continues(&set), Ok(()));
    assert_eq!(on(1, "").continues(&set), Ok(()), "how far one that crashed goes, only its recovery tells");
    assert_eq!(stopped("0/5000000").stopped().map(|set| set.stopped_at), Some(Some(lsn("0/5000000"))));
}
