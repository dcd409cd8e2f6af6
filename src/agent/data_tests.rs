//! Directories as a member finds and leaves them.

use super::*;

fn directory(inside: bool) -> (tempfile::TempDir, DataDirectory) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data");
    fs::create_dir(&path).unwrap();
    (root, DataDirectory { path, inside, members: None, searched: None })
}

fn stage_a_database(data: &DataDirectory) {
    let staging = data.new_staging().unwrap();
    fs::create_dir(staging.join("global")).unwrap();
    fs::write(staging.join("global/pg_control"), "x").unwrap();
    fs::write(staging.join("PG_VERSION"), "17\n").unwrap();
}

#[test]
fn a_complete_database_takes_its_place_and_leaves_nothing_behind() {
    for inside in [false, true] {
        let (_root, data) = directory(inside);
        stage_a_database(&data);
        data.install().unwrap();
        assert_eq!(data.look(), Ok(Some(())), "inside: {inside}");
        assert!(!data.staging().exists());
        assert!(!data.path().join(COMPLETE).exists());
    }
}

#[test]
fn a_new_clone_replaces_old_data_and_the_old_stays_until_it_is_removed() {
    for inside in [false, true] {
        let (_root, data) = directory(inside);
        stage_a_database(&data);
        data.install().unwrap();
        fs::write(data.path().join("marker"), "old").unwrap();
        stage_a_database(&data);
        data.install().unwrap();
        assert_eq!(data.look(), Ok(Some(())), "inside: {inside}");
        assert!(!data.path().join("marker").exists());
        assert!(data.old().join("marker").exists());
        data.remove_old().unwrap();
        assert!(!data.old().exists());
    }
}

#[test]
fn a_half_made_database_is_thrown_away() {
    for inside in [false, true] {
        let (_root, data) = directory(inside);
        stage_a_database(&data);
        data.recover().unwrap();
        assert_eq!(data.look(), Ok(None), "inside: {inside}");
        assert!(!data.staging().exists());
    }
}

#[test]
fn a_move_that_a_crash_cut_short_is_finished() {
    let (_root, data) = directory(true);
    stage_a_database(&data);
    File::create(data.staging().join(COMPLETE)).unwrap();
    fs::rename(data.staging().join("PG_VERSION"), data.path().join("PG_VERSION")).unwrap();
    assert!(data.look().is_err(), "half a move is not a database");
    data.recover().unwrap();
    assert_eq!(data.look(), Ok(Some(())));
}

#[test]
fn files_that_are_no_database_are_not_taken_for_an_empty_directory() {
    let (_root, data) = directory(false);
    fs::write(data.path().join("notes.txt"), "mine").unwrap();
    assert!(data.look().unwrap_err().contains("notes.txt"));
}

#[test]
fn an_old_postgresql_is_refused_by_version() {
    let (_root, data) = directory(false);
    fs::write(data.path().join("PG_VERSION"), "9.5\n").unwrap();
    assert!(data.look().unwrap_err().contains("9.5"));
}

#[test]
fn two_members_cannot_use_one_directory() {
    let (_root, data) = directory(false);
    let first = data.lock().unwrap();
    assert!(matches!(data.lock(), Err(Error::Locked { .. })));
    drop(first);
    assert!(data.lock().is_ok());
}

#[test]
fn the_end_of_a_database_is_known_where_it_stopped_cleanly_and_is_no_backup() {
    let (_root, data) = directory(false);
    let end = crate::election::Lsn(7);
    let control = ControlData { system: crate::election::SystemIdentifier(1), timeline: 2, stopped_at: Some(end) };
    fs::create_dir(data.path().join("pg_wal")).unwrap();
    fs::write(data.path().join("pg_wal/00000002.history"), "1\t0/3000148\tno recovery target specified\n").unwrap();
    let lineage = data.lineage(&control);
    assert_eq!((lineage.timeline, lineage.stopped_at, lineage.branches.len()), (2, Some(end), 1));
    fs::write(data.path().join("backup_label"), "").unwrap();
    assert_eq!(data.lineage(&control).stopped_at, None);
}

#[test]
fn the_directory_of_the_other_members_is_neither_counted_nor_moved_nor_removed() {
    let (_root, mut data) = directory(true);
    let members = data.path().join("pgsql_tmp.pgset");
    data.members = Some(members.clone());
    let other = members.join("db-1/data/PG_VERSION");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::write(&other, "17\n").unwrap();
    assert_eq!(data.look(), Ok(None), "empty but for them");
    for _ in 0..2 {
        stage_a_database(&data);
        data.install().unwrap();
        assert!(other.exists());
    }
    data.remove_old().unwrap();
    assert_eq!(data.look(), Ok(Some(())));
    assert!(other.exists());
}

#[test]
fn the_mark_of_a_member_is_no_data() {
    let (_root, data) = directory(false);
    data.mark_member().unwrap();
    data.mark_member().unwrap();
    assert!(is_marked_member(data.path()));
    assert_eq!(data.look(), Ok(None));
}

#[test]
fn a_version_before_13_is_told_from_a_later_one() {
    let (_root, data) = directory(false);
    for (version, is_old) in [("9.6", true), ("12", true), ("13", false), ("17", false), ("?", false)] {
        fs::write(data.path().join("PG_VERSION"), format!("{version}\n")).unwrap();
        assert_eq!(data.too_old().is_some(), is_old, "{version}");
    }
}

#[tokio::test]
async fn an_empty_directory_beside_another_database_is_not_for_a_new_one() {
    let (root, mut data) = directory(false);
    data.searched = Some(root.path().to_owned());
    assert_eq!(data.search().await, Data::Empty);
    let other = root.path().join("17/docker");
    fs::create_dir_all(other.join("global")).unwrap();
    fs::write(other.join("PG_VERSION"), "17\n").unwrap();
    let Data::Unusable(why) = data.search().await else { panic!("an empty database beside another one") };
    assert!(why.contains(&other.display().to_string()), "{why}");
}
