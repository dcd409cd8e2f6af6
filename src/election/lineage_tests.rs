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
    Lineage { timeline, branches: branches(history), ..Lineage::default() }
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

/// What data on this timeline has in common with a master on timeline 3, whose history is [`HISTORY`].
fn common(data: &Lineage) -> Option<(u32, String)> {
    data.common_with(&branches(HISTORY), 3).map(|common| (common.timeline, common.left_at.to_string()))
}

#[test]
fn data_and_a_master_have_in_common_what_was_written_before_the_first_of_them_left_it() {
    assert_eq!(common(&on(1, "")), Some((1, "0/3000148".to_owned())), "a master that was followed by others");
    assert_eq!(common(&on(2, "1\t0/3000148\tx")), Some((2, "0/4000060".to_owned())));
    assert_eq!(common(&on(2, "1\t0/3000000\tx")), Some((1, "0/3000000".to_owned())), "promoted apart from the set");
    let later = on(4, "1\t0/3000148\tx\n2\t0/4000060\tx\n3\t0/5000000\tx\n");
    assert_eq!(common(&later), Some((3, "0/5000000".to_owned())), "the set was set back");
    assert_eq!(common(&on(3, "")), None, "nobody knows where timeline 3 came from");
}

#[test]
fn a_former_master_that_stopped_before_the_others_went_on_has_nothing_of_its_own() {
    let ends_within = |stopped_at: Option<&str>| {
        let data = Lineage { stopped_at: stopped_at.map(lsn), ..on(1, "") };
        data.ends_within(&data.common_with(&branches(HISTORY), 3).unwrap())
    };
    assert!(ends_within(Some("0/30000D0")), "the checkpoint of its stop is in what they have in common");
    assert!(!ends_within(Some("0/3000148")), "nobody has received that checkpoint");
    assert!(!ends_within(Some("0/3000200")));
    assert!(!ends_within(None), "it crashed");
    let earlier = Lineage { stopped_at: Some(lsn("0/2000000")), ..on(2, "1\t0/3000000\tx") };
    assert!(
        !earlier.ends_within(&earlier.common_with(&branches(HISTORY), 3).unwrap()),
        "they parted before its timeline"
    );
}
