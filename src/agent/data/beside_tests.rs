//! A recovered database takes its place, with a crash before every step that changes the volume.

use super::*;
use crate::agent::data::beside::{ACCEPTED, BEFORE, RECOVERED};

const LAYOUTS: [Layout; 3] = [Layout::Beside, Layout::Inside, Layout::WithTheOtherMembers];

fn with_recovered(layout: Layout) -> (tempfile::TempDir, DataDirectory) {
    let (root, data) = started(Start { layout, content: Content::ADatabase });
    fill(&data.named(RECOVERED), "recovered", SET);
    (root, data)
}

#[test]
fn after_a_crash_the_set_has_the_one_or_the_other_and_what_it_had_is_kept() {
    for layout in LAYOUTS {
        let mut seen = [false; 2];
        for last in 0.. {
            let (_root, data) = with_recovered(layout);
            let outcome = data.on(&Dying::before(last)).accept_recovered();
            let has_left = !names_in(&data.named(LEAVING)).unwrap().is_empty();
            assert!(!has_left || data.look() != Ok(Some(())), "a part of a database is none to anybody");
            start_on(&data, &Dying::never()).unwrap();
            start_on(&data, &Dying::never()).unwrap();
            assert!(!data.named(ACCEPTED).exists() && !data.named(LEAVING).exists());
            let there = database(&data.path).unwrap();
            let is_new = there == "recovered";
            seen[usize::from(is_new)] = true;
            let kept: Vec<_> = data.kept_before().iter().filter_map(|path| database(path)).collect();
            if is_new {
                assert!(!data.named(RECOVERED).exists());
                assert_eq!(kept, ["first"]);
            } else {
                assert_eq!((there.as_str(), kept.len()), ("first", 0));
                // The Lease says that the set goes on from it: it is done again.
                assert_eq!(database(&data.named(RECOVERED)).as_deref(), Some("recovered"));
                data.on(&Dying::never()).accept_recovered().unwrap();
                assert_eq!(database(&data.path).as_deref(), Some("recovered"));
            }
            if outcome.is_ok() {
                break;
            }
        }
        assert_eq!(seen, [true; 2], "{layout:?}");
    }
}

#[test]
fn what_was_before_a_recovery_stays_through_clones_until_it_is_let_go() {
    for layout in LAYOUTS {
        let (_root, data) = with_recovered(layout);
        data.accept_recovered().unwrap();
        assert!(data.path.join(MEMBER).exists());
        assert!(data.size_of_kept() > 0);
        clone_of(&data, "new");
        data.on(&Dying::never()).release_kept(SET).unwrap();
        start_on(&data, &Dying::never()).unwrap();
        assert_eq!(data.kept_before().len(), 1, "{layout:?}");
        data.forget_kept().unwrap();
        start_on(&data, &Dying::never()).unwrap();
        assert_eq!((data.kept_before().len(), data.size_of_kept()), (0, 0));
        assert_eq!(database(&data.path).as_deref(), Some("new"));
    }
}

#[test]
fn a_recovered_database_outlives_restarts_and_clones_and_goes_by_order() {
    for layout in LAYOUTS {
        let (_root, data) = with_recovered(layout);
        start_on(&data, &Dying::never()).unwrap();
        clone_of(&data, "new");
        assert_eq!(database(data.recovered().path()).as_deref(), Some("recovered"), "{layout:?}");
        data.remove_recovered().unwrap();
        start_on(&data, &Dying::never()).unwrap();
        assert!(!data.recovered().path().exists());
        assert!(data.new_recovered().unwrap().is_dir());
    }
}

#[test]
fn what_may_stay_for_long_is_left_out_of_copies_of_the_data_directory() {
    for layout in LAYOUTS {
        let (_root, data) = empty(layout);
        for name in [RECOVERED, BEFORE, ".pgset-before-2"] {
            let path = data.named(name);
            let is_left_out = path.file_name().unwrap().to_string_lossy().starts_with("pgsql_tmp");
            assert!(is_left_out || !path.starts_with(&data.path), "{}", path.display());
        }
    }
}
