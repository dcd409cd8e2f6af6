//! A new database takes its place, with a crash before every step that changes the volume, and another one while that is mended.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use super::*;
use crate::election::lineage::Branch;

const SET: SystemIdentifier = SystemIdentifier(7);
const STRANGER: SystemIdentifier = SystemIdentifier(8);

#[path = "beside_tests.rs"]
mod beside;

#[path = "rewinding_tests.rs"]
mod rewinding;

/// A disk whose process dies before the step `last`; while it removes a directory, in the middle of that.
struct Dying {
    last: usize,
    steps: Cell<usize>,
    /// Directories whose names have changed since they were last synced.
    unsynced: RefCell<BTreeSet<PathBuf>>,
}

impl Dying {
    fn before(last: usize) -> Self {
        Self { last, steps: Cell::new(0), unsynced: RefCell::default() }
    }

    fn never() -> Self {
        Self::before(usize::MAX)
    }

    fn step(&self, path: &Path) -> Result<()> {
        let now = self.steps.replace(self.steps.get() + 1);
        if now < self.last { Ok(()) } else { Err(failed("survive at", path)(io::Error::other("a crash"))) }
    }

    fn changes(&self, path: &Path) {
        self.unsynced.borrow_mut().insert(path.parent().unwrap().to_owned());
    }
}

impl Disk for Dying {
    fn make_directory(&self, path: &Path) -> Result<()> {
        self.step(path)?;
        if path.ends_with(LEAVING) {
            self.changes(path);
        }
        Volume.make_directory(path)
    }

    fn make_file(&self, path: &Path) -> Result<()> {
        self.step(path)?;
        self.changes(path);
        fs::write(path, "").map_err(failed("make", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.step(to)?;
        // What the next start reads the phase from has to be later on the disk than what it stands for.
        let is_phase = [from, to].iter().any(|path| {
            let name = path.file_name().unwrap();
            !is_mark(name) && name.to_string_lossy().contains(OWN)
        });
        let moves_last = from.file_name().unwrap() == "global"
            && [COMPLETE, ACCEPTED].iter().any(|it| from.parent().unwrap().ends_with(it));
        if is_phase || moves_last {
            let unsynced: Vec<_> = self.unsynced.borrow().iter().filter(|path| path.exists()).cloned().collect();
            assert_eq!(unsynced, Vec::<PathBuf>::new(), "before {} becomes {}", from.display(), to.display());
        }
        self.changes(from);
        self.changes(to);
        Volume.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        if let Err(crash) = self.step(path) {
            let half = fs::read_dir(path).into_iter().flatten().flatten().step_by(2);
            half.for_each(|entry| Volume.remove(&entry.path()).unwrap());
            return Err(crash);
        }
        Volume.remove(path)
    }

    fn sync(&self, directory: &Path) -> Result<()> {
        self.step(directory)?;
        // Nobody pulls the plug here, and each test makes thousands of databases.
        self.unsynced.borrow_mut().remove(directory);
        Ok(())
    }
}

/// Where the data is, and what is there before the new database comes.
#[derive(Clone, Copy, Debug)]
struct Start {
    layout: Layout,
    content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Beside,
    Inside,
    WithTheOtherMembers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    /// Somebody emptied the directory, and did not see the mark.
    AMark,
    ADatabase,
    /// And the database that it replaced, as it has not streamed yet.
    AClone,
}

fn starts() -> impl Iterator<Item = Start> {
    use Content::*;
    use Layout::*;
    let contents = [Nothing, AMark, ADatabase, AClone];
    [Beside, Inside, WithTheOtherMembers]
        .into_iter()
        .flat_map(move |layout| contents.map(|content| Start { layout, content }))
}

fn empty(layout: Layout) -> (tempfile::TempDir, DataDirectory) {
    // In memory where there is such a place: thousands of databases are made.
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = root.path().join("data");
    fs::create_dir(&path).unwrap();
    let members = (layout == Layout::WithTheOtherMembers).then(|| path.join("pgsql_tmp.pgset"));
    if let Some(members) = &members {
        fill(&members.join("db-1/data"), "another member's", SET);
    }
    let inside = layout != Layout::Beside;
    (root, DataDirectory { path, inside, members, searched: None })
}

fn started(start: Start) -> (tempfile::TempDir, DataDirectory) {
    let (root, data) = empty(start.layout);
    match start.content {
        Content::Nothing => {}
        Content::AMark => Volume.make_file(&data.path.join(MEMBER)).unwrap(),
        Content::ADatabase => fill(&data.path, "first", SET),
        Content::AClone => {
            clone_of(&data, "first");
            data.on(&Dying::never()).release_kept(SET).unwrap();
            clone_of(&data, "second");
        }
    }
    (root, data)
}

const FILES: [&str; 4] = ["base/1", "global/1262", "postgresql.conf", "standby.signal"];

fn fill(directory: &Path, name: &str, system: SystemIdentifier) {
    let own = format!("only in {name}");
    for file in FILES.into_iter().chain([own.as_str()]) {
        fs::create_dir_all(directory.join(file).parent().unwrap()).unwrap();
        fs::write(directory.join(file), name).unwrap();
    }
    fs::write(directory.join("PG_VERSION"), "17\n").unwrap();
    fs::write(directory.join("global/pg_control"), system.0.to_ne_bytes()).unwrap();
}

/// The database in a directory, if it is whole and nothing else's is there.
fn database(directory: &Path) -> Option<String> {
    fs::read_to_string(directory.join("PG_VERSION")).ok()?;
    let name = fs::read_to_string(directory.join("postgresql.conf")).unwrap();
    for file in FILES {
        assert_eq!(fs::read_to_string(directory.join(file)).ok().as_ref(), Some(&name), "{file}");
    }
    assert!(system_at(directory).is_some(), "{name} has no control file");
    let own = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    assert_eq!(own.filter(|file| file.starts_with("only in")).collect::<Vec<_>>(), [format!("only in {name}")]);
    Some(name)
}

fn stage(mover: &Mover<'_>, name: &str) -> Result<()> {
    fill(&mover.new_staging()?, name, SET);
    Ok(())
}

fn clone_on(data: &DataDirectory, disk: &Dying, name: &str) -> Result<()> {
    let mover = data.on(disk);
    stage(&mover, name)?;
    mover.install(Origin::Clone(SET))
}

fn clone_of(data: &DataDirectory, name: &str) {
    clone_on(data, &Dying::never(), name).unwrap();
}

/// What the next start does, before it looks at the data.
fn start_on(data: &DataDirectory, disk: &Dying) -> Result<()> {
    if !data.path.exists() {
        fs::create_dir(&data.path).unwrap();
    }
    data.on(disk).recover()?;
    data.on(disk).remove_released()
}

fn kept(data: &DataDirectory) -> Vec<String> {
    let mut kept: Vec<_> = data.all(OLD).iter().map(|copy| database(copy).expect("a kept copy is whole")).collect();
    kept.sort();
    kept
}

fn assert_nothing_lost(start: Start, data: &DataDirectory) {
    let members = data.members.as_ref();
    assert!(members.is_none_or(|members| database(&members.join("db-1/data")).is_some()), "the other members'");
    for phase in [STAGING, COMPLETE, LEAVING] {
        assert!(!data.named(phase).exists(), "{phase}");
    }
    assert_eq!(data.all(REMOVED), Vec::<PathBuf>::new());
    let there = database(&data.path);
    let (before, of_old): (Option<&str>, &[&str]) = match start.content {
        Content::Nothing | Content::AMark => (None, &[]),
        Content::ADatabase => (Some("first"), &[]),
        Content::AClone => (Some("second"), &["first"]),
    };
    if there.as_deref() == Some("new") {
        // The clone that never streamed goes, what it replaced stays.
        let replaced = if start.content == Content::ADatabase { &["first"] } else { of_old };
        assert_eq!(kept(data), replaced);
    } else {
        assert_eq!(there.as_deref(), before);
        assert_eq!(kept(data), of_old);
        assert_eq!(data.look(), Ok(before.map(drop)));
    }
}

fn assert_it_goes_on(data: &DataDirectory) {
    clone_of(data, "new");
    assert_eq!(database(&data.path).as_deref(), Some("new"));
    data.on(&Dying::never()).release_kept(SET).unwrap();
    data.on(&Dying::never()).remove_released().unwrap();
    let own: Vec<_> = names_in(data.home()).unwrap().into_iter().filter(|name| is_own(name)).collect();
    assert_eq!(own, Vec::<OsString>::new());
    assert!(!data.path.join(UNPROVEN).exists());
}

#[test]
fn after_a_crash_before_any_step_there_is_one_whole_database_and_what_it_replaced() {
    for start in starts() {
        let mut last = 0;
        loop {
            let (_root, data) = started(start);
            let outcome = clone_on(&data, &Dying::before(last), "new");
            let has_left = !names_in(&data.named(LEAVING)).unwrap().is_empty();
            assert!(!has_left || data.look() != Ok(Some(())), "a part of a database is none to anybody");
            assert!(!has_left || !data.path.join("global").exists(), "nor has it what would make it one");
            start_on(&data, &Dying::never()).unwrap_or_else(|why| panic!("{start:?}, crash {last}: {why:?}"));
            assert_nothing_lost(start, &data);
            assert_it_goes_on(&data);
            if outcome.is_ok() {
                break;
            }
            last += 1;
        }
        assert!(last > 5, "{start:?} has {last} steps");
    }
}

#[test]
fn a_second_crash_while_the_first_is_mended_changes_nothing() {
    let is_told_by_another = |start: &Start| start.layout == Layout::Inside || start.content == Content::AMark;
    for start in starts().filter(|start| !is_told_by_another(start)) {
        let mut last = 0;
        loop {
            let (mut second, mut cut_short) = (0, false);
            loop {
                let (_root, data) = started(start);
                cut_short |= clone_on(&data, &Dying::before(last), "new").is_err();
                let mended = start_on(&data, &Dying::before(second)).is_ok();
                start_on(&data, &Dying::never())
                    .unwrap_or_else(|why| panic!("{start:?}, crashes {last} and {second}: {why:?}"));
                assert_nothing_lost(start, &data);
                if mended {
                    break;
                }
                second += 1;
            }
            if !cut_short {
                break;
            }
            last += 1;
        }
    }
}

#[test]
fn an_error_in_a_member_that_goes_on_is_mended_when_it_looks_at_its_data_again() {
    for start in starts() {
        for last in 0.. {
            let (_root, data) = started(start);
            let was_complete = match clone_on(&data, &Dying::before(last), "new") {
                Ok(()) => break,
                Err(_) => data.named(COMPLETE).exists(),
            };
            data.finish().unwrap();
            assert!(!was_complete || database(&data.path).as_deref() == Some("new"), "{start:?} {last}");
        }
    }
}

#[test]
fn a_crash_while_the_kept_copy_goes_leaves_the_new_one() {
    for layout in [Layout::Beside, Layout::Inside, Layout::WithTheOtherMembers] {
        for last in 0.. {
            let (_root, data) = started(Start { layout, content: Content::AClone });
            let disk = Dying::before(last);
            let outcome = data.on(&disk).release_kept(SET).and_then(|()| data.on(&disk).remove_released());
            start_on(&data, &Dying::never()).unwrap();
            assert_eq!(database(&data.path).as_deref(), Some("second"));
            assert!(kept(&data).is_empty() || kept(&data) == ["first"]);
            if outcome.is_ok() {
                assert!(kept(&data).is_empty());
                break;
            }
        }
    }
}

#[test]
fn a_bootstrap_is_no_clone_that_has_to_prove_itself() {
    for layout in [Layout::Beside, Layout::Inside] {
        let (_root, data) = empty(layout);
        stage(&data.on(&Volume), "new").unwrap();
        data.install(Origin::Bootstrap).unwrap();
        assert_eq!(database(&data.path).as_deref(), Some("new"));
        assert!(MARKS.iter().all(|mark| !data.path.join(mark).exists()));
    }
}

#[test]
fn a_clone_that_has_streamed_is_kept_beside_an_older_copy() {
    let (_root, data) = started(Start { layout: Layout::Inside, content: Content::AClone });
    // It streamed, and died before the older copy went.
    fs::remove_file(data.path.join(UNPROVEN)).unwrap();
    clone_of(&data, "third");
    assert_eq!(kept(&data), ["first", "second"]);
}

#[test]
fn a_clone_that_was_promoted_by_hand_is_kept_though_it_never_streamed() {
    let (_root, data) = started(Start { layout: Layout::Beside, content: Content::AClone });
    fs::remove_file(data.path.join("standby.signal")).unwrap();
    clone_of(&data, "third");
    assert_eq!(data.all(OLD).len(), 2);
}

#[test]
fn copies_go_only_when_the_new_one_is_the_same_database() {
    for layout in [Layout::Beside, Layout::Inside] {
        let (_root, data) = started(Start { layout, content: Content::AClone });
        data.release_kept(STRANGER).unwrap();
        assert_eq!(kept(&data), ["first"], "the database here is another one");
        let copy = data.all(OLD).remove(0);
        fs::write(copy.join("global/pg_control"), STRANGER.0.to_ne_bytes()).unwrap();
        data.release_kept(SET).unwrap();
        assert_eq!(kept(&data), ["first"], "the copy is of another database");
    }
}

#[test]
fn the_last_copy_never_goes() {
    let (_root, data) = started(Start { layout: Layout::Beside, content: Content::AClone });
    fs::remove_dir_all(&data.path).unwrap();
    data.release_kept(SET).unwrap();
    assert_eq!(kept(&data), ["first"]);
}

#[test]
fn a_copy_of_another_database_replaces_nothing() {
    let (_root, data) = started(Start { layout: Layout::Beside, content: Content::ADatabase });
    fill(&data.new_staging().unwrap(), "strange", STRANGER);
    let refusal = data.install(Origin::Clone(SET)).unwrap_err();
    assert!(matches!(refusal, Error::OtherDatabase { found: Some(STRANGER), expected: SET }), "{refusal}");
    assert_eq!(database(&data.path).as_deref(), Some("first"));
}

#[test]
fn what_the_masters_agent_keeps_in_its_data_directory_is_not_taken_over() {
    for layout in [Layout::Beside, Layout::Inside] {
        let (_root, data) = empty(layout);
        stage(&data.on(&Volume), "new").unwrap();
        for came_along in [OLD, ".pgset-old-2", REMOVED, "lost+found"] {
            fill(&data.named(STAGING).join(came_along), "the master's", SET);
        }
        for came_along in [".pgset-lock", ".pgset-owner", ".pgset-owner-7c9e"] {
            fs::write(data.named(STAGING).join(came_along), "the master's").unwrap();
        }
        data.install(Origin::Clone(SET)).unwrap();
        assert!(names_in(&data.path).unwrap().iter().all(|name| !is_own(name) && name != "lost+found"));
    }
}

#[test]
fn a_file_in_the_way_is_named_and_not_written_over() {
    let (_root, data) = empty(Layout::Inside);
    fs::write(data.path.join("postgresql.conf"), "mine").unwrap();
    stage(&data.on(&Volume), "new").unwrap();
    let refusal = data.install(Origin::Clone(SET)).unwrap_err();
    assert!(refusal.to_string().contains("postgresql.conf is in the way"), "{refusal}");
    assert_eq!(fs::read_to_string(data.path.join("postgresql.conf")).unwrap(), "mine");
    fs::remove_file(data.path.join("postgresql.conf")).unwrap();
    data.recover().unwrap();
    assert_eq!(database(&data.path).as_deref(), Some("new"));
}

#[test]
fn an_old_database_that_was_leaving_comes_back_when_the_new_one_is_taken_away() {
    let (_root, data) = started(Start { layout: Layout::Inside, content: Content::ADatabase });
    fs::create_dir(data.named(LEAVING)).unwrap();
    for name in ["global", "base", "PG_VERSION"] {
        fs::rename(data.path.join(name), data.named(LEAVING).join(name)).unwrap();
    }
    data.recover().unwrap();
    assert_eq!(database(&data.path).as_deref(), Some("first"));
    assert!(!data.named(LEAVING).exists());
}

/// Its `install`, up to its n-th step, as far as it matters here.
fn install_by_0_1_0(data: &DataDirectory, steps: usize) {
    let (staging, old) = (data.named(STAGING), data.named(OLD));
    let mut steps = 0..steps;
    let mut step = |act: &dyn Fn()| steps.next().map(|_| act()).is_some();
    step(&|| Volume.make_file(&staging.join(COMPLETE)).unwrap());
    let ours = |name: &OsString| name.as_encoded_bytes().starts_with(OWN.as_bytes());
    if !data.inside {
        step(&|| fs::rename(&data.path, &old).unwrap());
        step(&|| fs::rename(&staging, &data.path).unwrap());
        return;
    }
    step(&|| fs::create_dir(&old).unwrap());
    let mut leaving = data.entries().unwrap();
    leaving.sort_by_key(|name| name != "global");
    for name in leaving {
        step(&|| fs::rename(data.path.join(&name), old.join(&name)).unwrap());
    }
    let mut coming = names_in(&staging).unwrap();
    coming.retain(|name| !ours(name));
    coming.sort_by_key(|name| name == "global");
    for name in coming {
        step(&|| fs::rename(staging.join(&name), data.path.join(&name)).unwrap());
    }
}

#[test]
fn what_a_crash_of_0_1_0_left_is_finished() {
    for layout in [Layout::Beside, Layout::Inside] {
        for steps in 1..20 {
            let (_root, data) = empty(layout);
            fill(&data.path, "first", SET);
            fs::remove_file(data.path.join("only in first")).unwrap();
            fill(&data.new_staging().unwrap(), "new", SET);
            install_by_0_1_0(&data, steps);
            start_on(&data, &Dying::never()).unwrap_or_else(|why| panic!("{layout:?}, {steps} steps: {why:?}"));
            assert_eq!(database(&data.path).as_deref(), Some("new"), "{layout:?}, {steps} steps");
            let copy = data.all(OLD).remove(0);
            assert_eq!(fs::read_to_string(copy.join("global/1262")).unwrap(), "first", "{layout:?}, {steps} steps");
            assert_eq!(data.all(OLD).len(), 1);
        }
    }
}
