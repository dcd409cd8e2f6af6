//! Which numbers promotions take; that PostgreSQL goes by them is tested with the former masters that come back.

use std::collections::BTreeMap;

use super::*;

fn data(files: &[(u32, &str)]) -> (tempfile::TempDir, DataDirectory) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    fs::create_dir(path.join("pg_wal")).unwrap();
    for (number, text) in files {
        fs::write(path.join("pg_wal").join(history_file(*number)), text).unwrap();
    }
    (root, DataDirectory { path, inside: false, members: None, searched: None })
}

fn histories(data: &DataDirectory) -> BTreeMap<u32, Vec<(u32, u64)>> {
    let read = |number: u32| {
        let text = fs::read_to_string(data.history(number)).ok()?;
        Some((number, branches(&text).iter().map(|branch| (branch.timeline, branch.left_at.0)).collect()))
    };
    (1..20).filter_map(read).collect()
}

fn at(timeline: u32, at: u64) -> Position {
    Position { timeline, at: Lsn(at) }
}

#[test]
fn the_numbers_in_between_are_passed_over_from_where_the_promotion_begins() {
    let (_root, data) = data(&[(2, "1\t0/10\tno recovery target specified\n")]);
    data.pass_over_timelines(at(2, 0x20), 3).unwrap();
    assert_eq!(histories(&data).len(), 1, "the next number is PostgreSQL's own choice");
    data.pass_over_timelines(at(2, 0x20), 5).unwrap();
    let passed = vec![(1, 0x10), (2, 0x20)];
    assert_eq!(histories(&data), [(2, vec![(1, 0x10)]), (3, passed.clone()), (4, passed)].into());
}

#[test]
fn what_was_passed_over_for_nothing_is_forgotten_and_what_a_real_timeline_came_after_is_not() {
    let (_root, data) = data(&[]);
    data.pass_over_timelines(at(1, 0x20), 3).unwrap();
    fs::write(data.history(3), "1\t0/20\tno recovery target specified\n").unwrap();
    data.pass_over_timelines(at(3, 0x30), 6).unwrap();
    assert_eq!(histories(&data).into_keys().collect::<Vec<_>>(), [2, 3, 4, 5]);
    data.forget_passed_over().unwrap();
    data.forget_passed_over().unwrap();
    assert_eq!(histories(&data).into_keys().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_master_whose_data_was_cloned_has_the_histories_that_its_replicas_ask_for() {
    let (_root, data) = data(&[(5, "1\t0/10\tx\n2\t0/20\tx\n4\t0/40\tx\n")]);
    data.complete_histories(5).unwrap();
    let wanted = [
        (2, vec![(1, 0x10)]),
        (3, vec![(1, 0x10), (2, 0x20)]),
        (4, vec![(1, 0x10), (2, 0x20)]),
        (5, vec![(1, 0x10), (2, 0x20), (4, 0x40)]),
    ];
    assert_eq!(histories(&data), wanted.into());
}
