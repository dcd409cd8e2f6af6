//! A pgset of a later version beside a set of this one.

use serde_json::json;

use super::*;

const LATER: Revisions = Revisions { newest: "99.0.0", known: &["0.1.0", "0.2.0", "99.0.0"] };

fn ask(object: &Value, old: Option<&Value>, revisions: Revisions) -> Outcome {
    let settings = Settings { agent_image: format!("pgset.dev/pgset:{}", revisions.newest) };
    inject_as(&Request { object, old, settings: &settings }, revisions)
}

fn admitted(object: &Value, old: Option<&Value>, revisions: Revisions) -> Value {
    let mut object = object.clone();
    match ask(&object, old, revisions) {
        Outcome::Untouched { .. } => {}
        Outcome::Patched { patch, .. } => json_patch::patch(&mut object, &patch).unwrap(),
        Outcome::Denied { reason } => panic!("{reason}"),
    }
    object
}

fn own() -> Value {
    json!({
        "metadata": { "name": "db", "namespace": "n", "annotations": { "pgset.dev/inject": "enabled", "pgset.dev/claim": "c" } },
        "spec": { "replicas": 3, "template": { "spec": { "containers": [{ "name": "db", "image": "postgres:17" }] } } },
    })
}

#[test]
fn a_later_pgset_gives_the_users_own_file_the_bytes_that_are_stored() {
    let stored = admitted(&own(), None, Revisions::THIS);
    assert_eq!(admitted(&own(), Some(&stored), LATER).to_string(), stored.to_string());
    assert_eq!(ask(&stored, Some(&stored), LATER), Outcome::Untouched { warnings: vec![] });
}

#[test]
fn a_later_pgset_pins_new_sets_to_its_own_revision() {
    let new = admitted(&own(), None, LATER);
    assert_eq!(new["metadata"]["annotations"][annotation::REVISION], "99.0.0");
}

#[test]
fn a_revision_by_its_name_moves_a_set_once() {
    let stored = admitted(&own(), None, Revisions::THIS);
    let mut wish = own();
    wish["metadata"]["annotations"][annotation::REVISION] = json!("99.0.0");
    let moved = admitted(&wish, Some(&stored), LATER);
    assert_eq!(moved["metadata"]["annotations"][annotation::REVISION], "99.0.0");
    assert_eq!(moved["spec"]["template"]["spec"]["initContainers"][0]["image"], "pgset.dev/pgset:99.0.0");
    // The file that still says so asks the same pgset again, and nothing moves.
    assert_eq!(admitted(&wish, Some(&moved), LATER).to_string(), moved.to_string());
    assert_eq!(ask(&moved, Some(&moved), LATER), Outcome::Untouched { warnings: vec![] });
}

#[test]
fn an_earlier_pgset_lets_a_later_set_scale_and_names_the_cure_for_the_rest() {
    let stored = admitted(&own(), None, LATER);
    let mut scaled = stored.clone();
    scaled["spec"]["replicas"] = json!(5);
    assert_eq!(ask(&scaled, Some(&stored), Revisions::THIS), Outcome::Untouched { warnings: vec![] });
    let mut changed = stored.clone();
    changed["spec"]["template"]["spec"]["nodeSelector"] = json!({ "a": "b" });
    let Outcome::Denied { reason } = ask(&changed, Some(&stored), Revisions::THIS) else { panic!("not denied") };
    assert_eq!(reason.code(), "revision");
    assert!(reason.to_string().contains("pgset.dev/revision: 0.2.0"), "{reason}");
}

#[test]
fn the_way_past_pgset_is_told_where_a_set_is_stored_and_only_there() {
    let mut bad = own();
    bad["metadata"]["annotations"][annotation::FAILOVER] = json!("sometimes");
    let told = |old: Option<&Value>| match ask(&bad, old, Revisions::THIS) {
        Outcome::Denied { reason } => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let way = "(past pgset, in an emergency: kubectl label namespace n pgset.dev/webhook=disabled)";
    assert!(told(Some(&admitted(&own(), None, Revisions::THIS))).ends_with(way));
    assert!(!told(None).contains(way));
    // Stored without an injection: the annotation can be left out.
    assert!(!told(Some(&own())).contains(way));
}

#[test]
fn latest_would_restart_the_set_after_each_upgrade_and_is_refused_with_the_way_to_ask() {
    let mut wish = own();
    wish["metadata"]["annotations"][annotation::REVISION] = json!("latest");
    let stored = admitted(&own(), None, Revisions::THIS);
    for old in [None, Some(&stored)] {
        let Outcome::Denied { reason } = ask(&wish, old, LATER) else { panic!("not denied") };
        assert!(reason.to_string().contains("write pgset.dev/revision: 99.0.0"), "{reason}");
    }
}

/// What `kubectl rollout undo` sends: the template of before, all else as it is.
fn rolled_back(stored: &Value, before: &Value) -> Value {
    let mut object = stored.clone();
    object["spec"]["template"] = before["spec"]["template"].clone();
    object
}

#[test]
fn a_roll_back_of_an_upgrade_brings_back_shape_and_program_together() {
    let mut before = admitted(&own(), None, Revisions::THIS);
    before["spec"]["replicas"] = json!(3);
    let mut wish = before.clone();
    wish["metadata"]["annotations"][annotation::REVISION] = json!("99.0.0");
    let upgraded = admitted(&wish, Some(&before), LATER);
    assert_ne!(upgraded["spec"]["template"], before["spec"]["template"]);

    let back = admitted(&rolled_back(&upgraded, &before), Some(&upgraded), LATER);
    assert_eq!(back.to_string(), before.to_string(), "the annotations tell of what runs");
    // And the other way: the upgrade again.
    let again = admitted(&rolled_back(&back, &upgraded), Some(&back), LATER);
    assert_eq!(again.to_string(), upgraded.to_string());
}

/// A set as a pgset stored it whose record has more in it than this one knows.
fn stored_by_a_later_pgset(version: Option<u32>) -> Value {
    let mut stored = admitted(&own(), None, LATER);
    let annotations = &mut stored["metadata"]["annotations"];
    let mut record: Value = serde_json::from_str(annotations[annotation::INJECTED].as_str().unwrap()).unwrap();
    record["tomorrow"] = json!([{ "any": "thing" }]);
    if let Some(version) = version {
        record["version"] = json!(version);
        record["probes"] = json!({ "in": "another form" });
    }
    annotations[annotation::INJECTED] = json!(record.to_string());
    stored
}

#[test]
fn a_record_of_a_later_pgset_holds_up_neither_scaling_nor_foreign_annotations() {
    for version in [None, Some(2)] {
        let stored = stored_by_a_later_pgset(version);
        let mut touched = stored.clone();
        touched["spec"]["replicas"] = json!(5);
        touched["metadata"]["annotations"]["example.org/seen"] = json!("yes");
        touched["metadata"]["labels"] = json!({ "team": "a" });
        touched["spec"]["updateStrategy"] = json!({ "type": "OnDelete" });
        assert_eq!(
            ask(&touched, Some(&stored), Revisions::THIS),
            Outcome::Untouched { warnings: vec![] },
            "{version:?}"
        );

        let mut changed = stored.clone();
        changed["spec"]["template"]["spec"]["nodeSelector"] = json!({ "a": "b" });
        let Outcome::Denied { reason } = ask(&changed, Some(&stored), Revisions::THIS) else { panic!("{version:?}") };
        assert!(reason.to_string().contains("install"), "{reason}");
    }
}

#[test]
fn who_comes_back_from_an_earlier_pgset_finds_the_set_as_it_left_it() {
    let stored = stored_by_a_later_pgset(None);
    let mut touched = stored.clone();
    touched["metadata"]["annotations"]["example.org/seen"] = json!("yes");
    let meanwhile = admitted(&touched, Some(&stored), Revisions::THIS);
    let mut changed = meanwhile.clone();
    changed["spec"]["template"]["spec"]["nodeSelector"] = json!({ "a": "b" });
    assert_eq!(admitted(&changed, Some(&meanwhile), LATER)["spec"], changed["spec"]);
}

#[test]
fn a_set_with_the_record_of_a_later_pgset_is_looked_after() {
    let mut stored = stored_by_a_later_pgset(None);
    let annotations = &mut stored["metadata"]["annotations"];
    let mut record: Value = serde_json::from_str(annotations[annotation::INJECTED].as_str().unwrap()).unwrap();
    record["version"] = json!(2);
    annotations[annotation::INJECTED] = json!(record.to_string());
    assert_eq!(
        crate::set::Set::parse(&stored).unwrap(),
        crate::set::Set::parse(&admitted(&own(), None, LATER)).unwrap()
    );
}
