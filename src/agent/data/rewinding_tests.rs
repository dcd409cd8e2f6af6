//! A former master's database is rewound, with a crash before every step that changes the volume.

use super::*;
use crate::election::DataState;

const LAYOUTS: [Layout; 3] = [Layout::Beside, Layout::Inside, Layout::WithTheOtherMembers];

/// What `pg_rewind` does to the directory that it is given: what the master's lacks goes, what that has comes.
fn pg_rewind(directory: &Path, disk: &Dying) -> Result<()> {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let name = entry.file_name();
        assert!(name != "lost+found" && name != "pgsql_tmp.pgset" && !is_own(&name), "{} would go", name.display());
    }
    fs::remove_file(directory.join("base/1")).unwrap();
    disk.sync(directory)?;
    fs::remove_dir_all(directory).unwrap();
    fill(directory, "master", SET);
    fs::remove_file(directory.join("standby.signal")).unwrap();
    fill(&directory.join(OLD), "the master's", SET);
    fs::write(directory.join("postmaster.pid"), "1").unwrap();
    Ok(())
}

fn rewind(data: &DataDirectory, disk: &Dying) -> Result<()> {
    let mover = data.on(disk);
    mover.lift()?;
    let directory = mover.begin_rewind()?;
    pg_rewind(&directory, disk)?;
    fs::write(directory.join("standby.signal"), "master").unwrap();
    mover.end_rewind()
}

fn former_master(layout: Layout) -> (tempfile::TempDir, DataDirectory) {
    let (root, data) = started(Start { layout, content: Content::ADatabase });
    if data.inside {
        fs::create_dir(data.path.join("lost+found")).unwrap();
    }
    (root, data)
}

/// The signal is an empty file after a rewind.
fn rewound(data: &DataDirectory) -> bool {
    let signal = data.path.join("standby.signal");
    let is_new = fs::read_to_string(data.path.join("postgresql.conf")).is_ok_and(|name| name == "master");
    if is_new {
        assert_eq!(fs::read_to_string(&signal).unwrap(), "");
        fs::write(&signal, "master").unwrap();
        assert_eq!(database(&data.path).as_deref(), Some("master"));
        assert!(!data.path.join("postmaster.pid").exists());
        assert!(MARKS.iter().all(|mark| data.path.join(mark).exists()));
    }
    is_new
}

#[test]
fn after_a_crash_there_is_the_old_database_the_rewound_one_or_one_that_is_known_to_be_neither() {
    for layout in LAYOUTS {
        let mut seen = [false; 3];
        for last in 0.. {
            let (_root, data) = former_master(layout);
            let outcome = rewind(&data, &Dying::before(last));
            start_on(&data, &Dying::never()).unwrap_or_else(|why| panic!("{layout:?}, crash {last}: {why:?}"));
            let members = data.members.as_ref();
            assert!(members.is_none_or(|members| database(&members.join("db-1/data")).is_some()), "the other members'");
            if rewound(&data) {
                seen[0] = true;
            } else if data.look() == Ok(Some(())) {
                assert_eq!(database(&data.path).as_deref(), Some("first"), "{layout:?}, crash {last}");
                seen[1] = true;
            } else {
                assert_eq!(
                    data.half_rewound(),
                    Some(DataState::HalfRewound { system: SET }),
                    "{layout:?}, crash {last}"
                );
                assert!(data.fingerprint().half_rewound);
                seen[2] = true;
            }
            assert_it_goes_on(&data);
            assert_eq!(data.half_rewound(), None);
            if outcome.is_ok() {
                break;
            }
        }
        assert_eq!(seen, [true; 3], "{layout:?}");
    }
}

#[test]
fn a_database_whose_rewind_was_broken_off_is_kept_until_the_clone_streams() {
    for layout in LAYOUTS {
        let (_root, data) = former_master(layout);
        data.lift().unwrap();
        fs::write(data.begin_rewind().unwrap().join("diverged"), "rows").unwrap();
        clone_of(&data, "new");
        assert_eq!(fs::read_to_string(data.named(OLD).join("diverged")).unwrap(), "rows", "{layout:?}");
        data.release_kept(SET).unwrap();
        assert!(data.all(OLD).is_empty());
    }
}

#[test]
fn a_rewind_that_is_not_possible_leaves_the_database_as_it_was() {
    for layout in LAYOUTS {
        let (_root, data) = former_master(layout);
        let lifted = data.lift().unwrap();
        assert_eq!(database(&lifted).as_deref(), Some("first"));
        data.put_back().unwrap();
        assert_eq!(database(&data.path).as_deref(), Some("first"), "{layout:?}");
        assert_eq!(data.half_rewound(), None);
    }
}

#[test]
fn what_a_database_has_written_on_its_own_is_kept_until_it_streams() {
    let (_root, data) = former_master(Layout::Beside);
    let wal = data.path.join("pg_wal");
    fs::create_dir(&wal).unwrap();
    let name = |number: u8| format!("0000000100000000000000{number:02X}");
    for number in 1..=4 {
        fs::write(wal.join(name(number)), [number; 1024]).unwrap();
    }
    fs::write(wal.join("00000002.history"), "").unwrap();
    let common = Branch { timeline: 1, left_at: crate::election::Lsn(3 * 1024 + 7) };
    let kept = data.keep_diverged(&data.lift().unwrap(), Some(common));

    let directory = data.begin_rewind().unwrap();
    let wal = directory.join("pg_wal");
    // The master has the one where they part, and of those before only the second.
    fs::write(wal.join(name(3)), "the master's").unwrap();
    for number in [1, 4] {
        fs::remove_file(wal.join(name(number))).unwrap();
    }
    kept.give_back(&directory).unwrap();
    assert_eq!(fs::read(wal.join(name(1))).unwrap(), [1; 1024], "a server needs it to start");
    assert_eq!(fs::read_to_string(wal.join(name(3))).unwrap(), "the master's");
    assert!(!wal.join(name(4)).exists());

    let diverged = data.named(DIVERGED);
    let mut own = names_in(&diverged).unwrap();
    own.sort();
    assert_eq!(own, [name(3).as_str(), name(4).as_str(), "pg_control"]);
    assert_eq!(fs::read(diverged.join(name(3))).unwrap(), [3; 1024]);
    data.end_rewind().unwrap();
    assert!(diverged.exists());
    data.release_kept(SET).unwrap();
    assert!(!diverged.exists());
}
