//! What a newcomer and an owner do, by what they read and when.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn note(pod: &str, uid: &str, token: &str, beat: u64) -> Note {
    Note { pod: pod.into(), uid: uid.into(), token: token.into(), beat }
}

fn me() -> Note {
    note("db-0", "new", "mine", 1)
}

fn predecessor(beat: u64) -> Found {
    Found::Note(note("db-0", "old", "its", beat))
}

fn own() -> Found {
    Found::Note(me())
}

/// A newcomer, and the time of a clock that starts with it.
struct Story(Newcomer, Moment);

impl Story {
    fn new(lock_proves: bool) -> Self {
        Self(Newcomer::new(me(), lock_proves, TIMES), Moment::now())
    }

    fn at(&self, seconds: u64) -> Moment {
        self.1.after(SECOND * u32::try_from(seconds).unwrap())
    }

    fn finds(&mut self, found: Found, seconds: u64) -> Step {
        let at = self.at(seconds);
        self.0.step(&Look { found, asked: at, answered: at })
    }

    fn claims(&mut self, asked: u64, done: u64) {
        self.0.claimed(self.at(asked), self.at(done));
    }
}

#[test]
fn a_note_is_read_as_it_was_written_and_all_are_of_one_length() {
    let text = me().to_text();
    assert_eq!(Note::read(Some(text.clone())), own());
    assert_eq!(note("another-pods-name", "u", "t", u64::MAX).to_text().len(), text.len());
    assert_eq!(Note::read(None), Found::Nothing);
    assert_eq!(Note::read(Some("\0\0".into())), Found::Unreadable("\0\0".into()));
}

#[test]
fn the_times_leave_the_fencer_and_the_kernel_time_before_anybody_takes_over() {
    let Times { beat, stop_after, kill_after, take_over_after, claim_within, claim_settles } = TIMES;
    assert!(beat * 10 <= stop_after && stop_after < kill_after);
    assert!(kill_after + SECOND * 10 <= take_over_after);
    assert!(claim_within < claim_settles, "who claimed meanwhile sees the later claim when he looks");
    assert!(stop_after < take_over_after, "a slow claim outlasts whoever it may have overtaken");
}

#[test]
fn a_directory_that_was_let_go_is_made_ones_own_at_once() {
    let mut story = Story::new(false);
    assert_eq!(story.finds(Found::Nothing, 0), Step::Make);
    story.0.makes(story.at(0));
    assert_eq!(story.finds(own(), 0), Step::Own);
}

#[test]
fn the_loser_of_a_race_for_it_watches_the_winner() {
    let mut story = Story::new(false);
    assert_eq!(story.finds(Found::Nothing, 0), Step::Make);
    story.0.makes(story.at(0));
    assert_eq!(story.finds(predecessor(1), 0), Step::Wait(story.at(45)));
}

#[test]
fn an_earlier_life_of_this_container_is_followed_at_once() {
    let mut story = Story::new(false);
    assert_eq!(story.finds(Found::Note(note("db-0", "new", "earlier", 9)), 0), Step::Claim);
    story.claims(0, 0);
    assert_eq!(story.finds(own(), 0), Step::Own);
}

#[test]
fn where_a_lock_proves_that_nobody_is_left_another_pods_is_taken_at_once_whatever_it_says() {
    for found in [predecessor(4), Found::Unreadable(String::new())] {
        let mut story = Story::new(true);
        assert_eq!(story.finds(found, 0), Step::Claim);
        story.claims(0, 0);
        assert_eq!(story.finds(own(), 0), Step::Own);
    }
}

#[test]
fn another_pods_is_watched_until_it_has_not_changed_for_the_whole_time() {
    let mut story = Story::new(false);
    assert_eq!(story.finds(predecessor(4), 0), Step::Wait(story.at(45)));
    assert_eq!(story.finds(predecessor(4), 44), Step::Wait(story.at(45)));
    assert_eq!(story.finds(predecessor(5), 45), Step::Wait(story.at(90)), "it lives");
    assert_eq!(story.finds(Found::Unreadable("?".into()), 89), Step::Wait(story.at(134)), "so does who writes this");
    assert_eq!(story.finds(Found::Unreadable("?".into()), 134), Step::Claim);
}

#[test]
fn a_claim_has_to_stand_for_a_while() {
    let mut story = Story::new(false);
    story.finds(predecessor(4), 0);
    assert_eq!(story.finds(predecessor(4), 45), Step::Claim);
    story.claims(45, 46);
    assert_eq!(story.finds(own(), 46), Step::Settle);
    story.claims(46, 46);
    assert_eq!(story.finds(own(), 48), Step::Settle);
    assert_eq!(story.finds(own(), 49), Step::Own);
}

#[test]
fn of_two_claims_the_later_stands_and_the_other_waits_again() {
    let mut story = Story::new(false);
    story.finds(predecessor(4), 0);
    story.finds(predecessor(4), 45);
    story.claims(45, 45);
    let rival = || Found::Note(note("db-0", "third", "theirs", 1));
    assert_eq!(story.finds(rival(), 46), Step::Wait(story.at(91)));
    assert_eq!(story.finds(own(), 47), Step::Settle, "its own claim, written late, is no claim known to be quick");
    assert_eq!(story.finds(own(), 91), Step::Settle);
    assert_eq!(story.finds(own(), 92), Step::Own);
}

#[test]
fn a_claim_that_took_long_or_whose_end_is_unknown_outlasts_whoever_it_may_have_overtaken() {
    for is_known in [true, false] {
        let mut story = Story::new(false);
        story.finds(predecessor(4), 0);
        story.finds(predecessor(4), 45);
        if is_known {
            story.claims(45, 48);
        } else {
            story.0.failed(story.at(48));
        }
        assert_eq!(story.finds(own(), 60), Step::Settle);
        story.claims(60, 60);
        assert_eq!(story.finds(own(), 92), Step::Settle);
        assert_eq!(story.finds(own(), 93), Step::Own);
    }
}

#[test]
fn after_a_claim_in_doubt_even_a_file_of_ones_own_making_is_not_trusted_at_once() {
    let mut story = Story::new(false);
    story.finds(predecessor(4), 0);
    story.finds(predecessor(4), 45);
    story.0.failed(story.at(46));
    assert_eq!(story.finds(Found::Nothing, 47), Step::Make);
    story.0.makes(story.at(47));
    assert_eq!(story.finds(own(), 48), Step::Settle);
}

#[test]
fn an_owner_goes_on_until_a_later_life_of_its_pod_stands_there() {
    assert_eq!(duty(&me(), &own()), Duty::Beat);
    assert_eq!(duty(&me(), &Found::Nothing), Duty::MakeAgain, "somebody removed the file");
    assert_eq!(duty(&me(), &Found::Unreadable("?".into())), Duty::Beat);
    let copied = Found::Note(note("db-1", "u", "t", 3));
    assert_eq!(duty(&me(), &copied), Duty::Beat, "another member's came with its data");
    for later in [note("db-0", "third", "t", 1), note("db-0", "new", "another life", 1)] {
        assert_eq!(duty(&me(), &Found::Note(later.clone())), Duty::End(later));
    }
}

#[test]
fn who_waits_says_for_whom_and_how_long() {
    let mut story = Story::new(false);
    assert_eq!(story.0.waits_for(story.at(0)), None);
    story.finds(predecessor(4), 0);
    let (who, left) = story.0.waits_for(story.at(5)).unwrap();
    assert!(who.contains("old"), "{who}");
    assert_eq!(left, SECOND * 40);
}
