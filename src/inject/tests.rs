//! A pgset of a later version beside a set of this one.

use serde_json::json;

use super::*;

const LATER: Revisions = Revisions { newest: "99.0.0", known: &["0.1.0", "99.0.0"] };

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
fn latest_moves_a_set_once() {
    let stored = admitted(&own(), None, Revisions::THIS);
    let mut wish = own();
    wish["metadata"]["annotations"][annotation::REVISION] = json!("latest");
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
    assert!(reason.to_string().contains("pgset.dev/revision: latest"), "{reason}");
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
