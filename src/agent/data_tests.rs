//! Directories as a member finds and leaves them.

use super::*;

fn directory() -> (tempfile::TempDir, DataDirectory) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data");
    fs::create_dir(&path).unwrap();
    (root, DataDirectory { path, inside: false, members: None, searched: None })
}

#[test]
fn files_that_are_no_database_are_not_taken_for_an_empty_directory() {
    let (_root, data) = directory();
    fs::write(data.path().join("notes.txt"), "mine").unwrap();
    assert!(data.look().unwrap_err().contains("notes.txt"));
}

#[test]
fn an_old_postgresql_is_refused_by_version() {
    let (_root, data) = directory();
    fs::write(data.path().join("PG_VERSION"), "9.5\n").unwrap();
    assert!(data.look().unwrap_err().contains("9.5"));
}

#[test]
fn two_members_cannot_use_one_directory() {
    let (_root, data) = directory();
    let first = data.lock().unwrap();
    assert!(matches!(data.lock(), Err(Error::Locked { .. })));
    drop(first);
    assert!(data.lock().is_ok());
}

#[test]
fn the_end_of_a_database_is_known_where_it_stopped_cleanly_and_is_no_backup() {
    let (_root, data) = directory();
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
fn the_mark_of_a_member_is_no_data() {
    let (_root, data) = directory();
    data.mark_member().unwrap();
    data.mark_member().unwrap();
    assert!(is_marked_member(data.path()));
    assert_eq!(data.look(), Ok(None));
}

#[test]
fn a_version_before_13_is_told_from_a_later_one() {
    let (_root, data) = directory();
    for (version, is_old) in [("9.6", true), ("12", true), ("13", false), ("17", false), ("?", false)] {
        fs::write(data.path().join("PG_VERSION"), format!("{version}\n")).unwrap();
        assert_eq!(data.too_old().is_some(), is_old, "{version}");
    }
}

#[tokio::test]
async fn an_empty_directory_beside_another_database_is_not_for_a_new_one() {
    let (root, mut data) = directory();
    data.searched = Some(root.path().to_owned());
    assert_eq!(data.search().await, DataState::Empty);
    let other = root.path().join("17/docker");
    fs::create_dir_all(other.join("global")).unwrap();
    fs::write(other.join("PG_VERSION"), "17\n").unwrap();
    let DataState::Unusable(why) = data.search().await else { panic!("an empty database beside another one") };
    assert!(why.contains(&other.display().to_string()), "{why}");
}

fn database(directory: &Path) {
    fs::create_dir_all(directory.join("global")).unwrap();
    fs::write(directory.join("PG_VERSION"), "17\n").unwrap();
    fs::write(directory.join(CONTROL_FILE), 7_u64.to_ne_bytes()).unwrap();
}

#[test]
fn data_that_was_promoted_by_hand_is_no_members_and_its_successor_is() {
    for inside in [false, true] {
        let (_root, data) = directory();
        let data = DataDirectory { inside, ..data };
        database(data.path());
        data.mark_standby().unwrap();
        assert!(!data.is_promoted());
        fs::remove_file(data.standby_signal()).unwrap();
        assert!(data.is_promoted());
        data.mark_promoted().unwrap();
        let why = data.look().unwrap_err();
        assert!(why.contains("promoted by hand") && why.contains("remove pgset-promoted"), "{why}");

        database(&data.new_staging().unwrap());
        data.install(Origin::Clone(SystemIdentifier(7))).unwrap();
        assert_eq!(data.look(), Ok(Some(())), "a new clone, inside: {inside}");
        assert!(data.named(".pgset-old").join(PROMOTED).exists(), "the mark went with its data");
    }
}

fn place(directory: &Path) -> Place {
    Place { directory: directory.to_owned(), volume: None, members: None, searched: None }
}

#[test]
fn a_data_directory_that_is_a_link_is_where_the_link_leads() {
    let root = tempfile::tempdir().unwrap();
    let real = fs::canonicalize(root.path()).unwrap().join("volume/data");
    fs::create_dir_all(&real).unwrap();
    let link = root.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();

    let data = DataDirectory::open(&place(&link)).unwrap();
    assert_eq!(data.path(), real);
    assert_eq!(DataDirectory::open(&place(&link.join(""))).unwrap().path(), real, "a slash at the end");
    let staging = data.new_staging().unwrap();
    assert_eq!(staging.parent(), real.parent(), "on the volume");
    fs::write(staging.join("PG_VERSION"), "17\n").unwrap();
    data.install(Origin::Bootstrap).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(real.join("PG_VERSION")).unwrap(), "17\n");
}

#[test]
fn a_data_directory_that_holds_the_other_members_stays_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("data");
    fs::create_dir(&directory).unwrap();
    let members = Some(directory.join("pgsql_tmp.pgset"));
    assert!(DataDirectory::open(&Place { members, ..place(&directory) }).unwrap().inside);
    assert!(!DataDirectory::open(&place(&directory)).unwrap().inside);
}

#[test]
fn data_that_is_moved_away_exchanged_or_made_a_standby_is_noticed() {
    let (root, data) = directory();
    database(data.path());
    let first = data.fingerprint();
    assert_eq!(data.fingerprint(), first);

    data.mark_standby().unwrap();
    let as_a_standby = data.fingerprint();
    assert_ne!(as_a_standby, first);

    fs::rename(data.path(), root.path().join("elsewhere")).unwrap();
    let moved_away = data.fingerprint();
    assert_ne!(moved_away, as_a_standby);
    assert_eq!(data.look(), Ok(None), "a directory that is not there is an empty one");

    database(data.path());
    assert_ne!(data.fingerprint(), moved_away);
    assert_ne!(data.fingerprint(), first, "another database");
}
