//! Whatever somebody writes: an answer, in one readable line where it is a denial, and a patch that applies where it is not.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

mod support;

use std::time::{Duration, Instant};

use pgset::{
    inject::{Denial, Outcome, eject},
    names::annotation,
    set::{Set, rows},
};
use serde_json::{Map, Value, json};
use support::{admitted, annotate, applied, ask, container, denied, golden, stored};

/// What holds for every denial.
fn check_denial(denial: &Denial, of: &str) -> String {
    let text = denial.to_string();
    assert!(text.starts_with("StatefulSet "), "{of}: {text}");
    assert!(
        !text.contains(char::is_control) && text.replace('…', "").is_ascii(),
        "{of}: {text:?} is not one line of plain text"
    );
    assert!(text.len() <= 1000, "{of}: {} bytes: {text}", text.len());
    assert!(!denial.code().is_empty());
    text
}

/// What holds for every answer: a denial that can be read, or a patch that applies and need not be made again.
fn check_answer(object: &Value, old: Option<&Value>, of: &str) {
    match ask(object, old) {
        Outcome::Untouched { warnings } => check_warnings(&warnings, of),
        Outcome::Denied { reason } => {
            check_denial(&reason, of);
        }
        Outcome::Patched { patch, warnings, .. } => {
            check_warnings(&warnings, of);
            let after = applied(object, &patch);
            assert!(!matches!(ask(&after, old), Outcome::Patched { .. }), "{of}: patched twice");
        }
    }
}

fn check_warnings(warnings: &[String], of: &str) {
    assert!(warnings.len() <= 12, "{of}: {warnings:?}");
    for warning in warnings {
        assert!(warning.chars().count() <= 120 && !warning.contains(char::is_control), "{of}: {warning:?}");
    }
}

/// Values that are in nobody's grammar.
fn bad_values() -> Vec<(&'static str, String)> {
    let plain = [
        ("empty", ""),
        ("space", " "),
        ("newline", "a\nb"),
        ("trailing newline", "enabled\n"),
        ("carriage return", "a\r"),
        ("NUL", "a\0b"),
        ("escape sequence", "\u{1b}[31mred"),
        ("parent", "../../etc/passwd"),
        ("dots", ".."),
        ("absolute path", "/etc/shadow"),
        ("percent", "..%2f..%2fsecrets"),
        ("query", "db?limit=1"),
        ("variable", "$(PGSET_POD_NAME)"),
        ("shell", "$(rm -rf /)"),
        ("backticks", "`id`"),
        ("braces", "${HOME}"),
        ("template", "{{ .Values.name }}"),
        ("quote", "a\"b"),
        ("leading space", " enabled"),
        ("trailing space", "enabled "),
        ("leading dash", "-Fp"),
        ("flag", "--failover=automatic"),
        ("upper case", "ENABLED "),
        ("Cyrillic e", "\u{435}nabled"),
        ("full-width", "ｅｎａｂｌｅｄ"),
        ("full-width digit", "１２"),
        ("zero width", "ena\u{200b}bled"),
        ("right to left", "\u{202e}delbane"),
        ("byte order mark", "\u{feff}enabled"),
        ("combining", "e\u{301}nabled"),
        ("line separator", "a\u{2028}b"),
        ("number with a sign", "+5"),
        ("negative", "-1"),
        ("fraction", ".5"),
        ("exponent", "1e+1"),
        ("JSON", "{\"a\":1}"),
        ("comma", "agent,image"),
    ];
    let long = [("4 KB", "a".repeat(4096)), ("4 KB of digits", "9".repeat(4096)), ("4 KB of ä", "ä".repeat(2048))];
    plain.into_iter().map(|(of, value)| (of, value.to_owned())).chain(long).collect()
}

#[test]
fn no_annotation_takes_a_bad_value() {
    let settings =
        rows().into_iter().map(|row| row.key).filter(|key| ![annotation::STATUS, annotation::FOLLOW].contains(key));
    let sets = ["article.yaml", "example.yaml", "article-image.yaml"].map(golden).map(|own| (stored(&own), own));
    for key in settings {
        for (kind, value) in bad_values() {
            for (old, own) in &sets {
                let of = format!("{key}: {kind}");
                let mut object = own.clone();
                annotate(&mut object, key, &value);
                let text = check_denial(&denied(&object, None), &of);
                assert!(text.contains(key), "{of}: {text}");
                // No object is made of it, and so no path is.
                assert!(
                    key == annotation::INJECT || key == annotation::REVISION || Set::parse(&object).is_err(),
                    "{of}"
                );
                // Neither on the way in, nor later. A record that is damaged is mended from the one that is stored.
                let mut new = old.clone();
                annotate(&mut new, key, &value);
                if key == annotation::INJECTED {
                    check_answer(&new, Some(old), &of);
                } else {
                    check_denial(&denied(&new, Some(old)), &of);
                }
            }
        }
    }
}

#[test]
fn a_letter_that_looks_right_is_spelled_out() {
    let mut object = golden("example.yaml");
    annotate(&mut object, annotation::INJECT, "\u{435}nabled");
    let text = denied(&object, None).to_string();
    assert!(text.contains(r#"is "\u{435}nabled": the only value is "enabled""#), "{text}");
}

#[test]
fn an_annotation_of_any_key_is_answered() {
    for (kind, text) in bad_values() {
        let mut object = golden("example.yaml");
        annotate(&mut object, &format!("pgset.dev/{text}"), "x");
        check_denial(&denied(&object, None), kind);
        object["metadata"]["annotations"] = json!({ format!("pgset.dev/{text}"): "x" });
        check_denial(&denied(&object, None), kind);
        let mut object = golden("example.yaml");
        object["spec"]["template"]["metadata"]["annotations"] = json!({ format!("pgset.dev/{text}"): text });
        object["metadata"]["annotations"][format!("pgset.io/{text}")] = json!(text);
        check_answer(&object, None, kind);
    }
}

#[test]
fn no_name_of_the_object_takes_a_bad_value() {
    let places = [
        "/metadata/name",
        "/metadata/namespace",
        "/metadata/generateName",
        "/spec/serviceName",
        "/spec/template/spec/serviceAccountName",
        "/spec/template/spec/containers/0/name",
        "/spec/template/spec/containers/0/image",
        "/spec/template/spec/containers/0/volumeMounts/0/mountPath",
        "/spec/template/spec/containers/0/volumeMounts/0/name",
        "/spec/template/spec/containers/0/volumeMounts/0/subPath",
        "/spec/template/spec/containers/0/volumeMounts/0/subPathExpr",
        "/spec/template/spec/containers/0/command/0",
        "/spec/template/spec/containers/0/args/0",
        "/spec/template/spec/containers/0/env/0/name",
        "/spec/template/spec/containers/0/env/0/value",
        "/spec/template/spec/volumes/0/name",
        "/spec/template/metadata/labels/name",
        "/spec/template/metadata/labels/pgset.dev~1set",
    ];
    let (own, old) = (golden("article.yaml"), stored(&golden("article.yaml")));
    for place in places {
        for (kind, value) in bad_values() {
            let mut object = own.clone();
            let (parent, key) = place.rsplit_once('/').unwrap();
            match object.pointer_mut(parent) {
                Some(Value::Object(members)) => {
                    members.insert(key.replace("~1", "/"), json!(value));
                }
                Some(Value::Array(items)) if !items.is_empty() => items[0] = json!(value),
                _ => {
                    let (above, list) = parent.rsplit_once('/').unwrap();
                    object.pointer_mut(above).unwrap()[list] = json!([value]);
                }
            }
            check_answer(&object, None, &format!("{place}: {kind}"));
            check_answer(&object, Some(&old), &format!("{place}: {kind}, update"));
            if place == "/metadata/name" {
                check_denial(&denied(&object, None), kind);
            }
        }
    }
}

/// A set with these entries in front of its environment, and these behind.
fn with_env(entries: Value) -> Value {
    let mut object = golden("wild-single.yaml");
    container(&mut object, "postgres")["env"] = entries;
    object
}

#[test]
fn an_environment_that_collides_with_pgsets_is_refused_by_name() {
    let field = json!({ "fieldRef": { "fieldPath": "metadata.namespace" } });
    let secret = json!({ "secretKeyRef": { "name": "s", "key": "k" } });
    for (name, entry) in [
        ("PGSET_POD_NAME", json!({ "value": "../other-0" })),
        ("PGSET_POD_NAME", json!({ "valueFrom": field })),
        ("PGSET_POD_UID", json!({ "value": "" })),
        ("PGSET_POD_IP", json!({ "value": "10.0.0.1" })),
        ("PGSET_NAMESPACE", json!({ "value": "kube-system" })),
        ("PGSET_ANYTHING", json!({})),
        ("PG_MODE", json!({ "value": "primary" })),
        ("PG_MODE", json!({ "valueFrom": secret })),
        ("PG_MODE", json!({ "value": "$(OTHER)" })),
        ("PG_MASTER_HOST", json!({ "value": "elsewhere.example.org" })),
        ("PG_MASTER_HOST", json!({ "value": "postgres-master\n" })),
        ("PG_MASTER_PORT", json!({ "value": "5433" })),
        ("PG_MASTER_PORT", json!({ "value": "05432" })),
        ("PGDATA", json!({ "value": "/etc" })),
        ("PGDATA", json!({ "value": "../data" })),
        ("PGDATA", json!({ "value": "/var/lib/postgresql/database" })),
    ] {
        let mut entry = entry;
        entry["name"] = json!(name);
        let object = with_env(json!([entry]));
        let text = check_denial(&denied(&object, None), name);
        assert!(text.contains(name), "{name}: {text}");
        let old = stored(&golden("wild-single.yaml"));
        let mut new = old.clone();
        container(&mut new, "postgres")["env"].as_array_mut().unwrap().push(entry);
        check_denial(&denied(&new, Some(&old)), name);
    }
}

#[test]
fn of_two_variables_of_one_name_the_second_hides_nothing() {
    let twice = |first: &str, second: &str| {
        with_env(json!([{ "name": "PG_MODE", "value": first }, { "name": "PG_MODE", "value": second }]))
    };
    assert_eq!(denied(&twice("set", "primary"), None).code(), "environment");
    assert_eq!(denied(&twice("primary", "set"), None).code(), "environment");
    let same = twice("set", "set");
    let after = admitted(&same, None);
    assert_eq!(applied(&after, &eject(&after)), same);
    // The last counts, as for the kubelet.
    let data = with_env(
        json!([{ "name": "PGDATA", "value": "/var/lib/postgresql/data/a" }, { "name": "PGDATA", "value": "/x" }]),
    );
    assert_eq!(denied(&data, None).code(), "pgdata");
}

/// Every list of named things once more, with its first entry doubled.
#[test]
fn names_that_stand_twice_are_answered() {
    for name in ["article.yaml", "example.yaml", "settings-all.yaml", "wild-sidecar.yaml", "wild-init-container.yaml"] {
        for whole in [golden(name), stored(&golden(name))] {
            for list in [
                "containers",
                "initContainers",
                "volumes",
                "containers/0/env",
                "containers/0/volumeMounts",
                "containers/0/ports",
            ] {
                for shuffle in [false, true] {
                    let mut object = whole.clone();
                    let Some(items) =
                        object.pointer_mut(&format!("/spec/template/spec/{list}")).and_then(Value::as_array_mut)
                    else {
                        continue;
                    };
                    let mut twins = items.clone();
                    if shuffle {
                        twins.reverse();
                        for twin in &mut twins {
                            for key in ["image", "value", "mountPath", "emptyDir", "projected", "containerPort"] {
                                if twin.get(key).is_some() {
                                    twin[key] = json!("other");
                                }
                            }
                        }
                    }
                    items.extend(twins);
                    check_answer(&object, None, &format!("{name}: {list}"));
                    check_answer(&object, Some(&whole), &format!("{name}: {list}, update"));
                }
            }
        }
    }
}

/// Each value of a set, replaced by each type: no panic, an answer that can be read, a patch that applies.
#[test]
fn no_value_of_a_wrong_type_goes_unanswered() {
    // The other files are `make fuzz`'s.
    let whole = stored(&golden("article.yaml"));
    for place in places(&whole) {
        for value in [Value::Null, json!("text"), json!(-1), json!(true), json!([null, {}]), json!({ "": [] })] {
            let mut object = whole.clone();
            *object.pointer_mut(&place).unwrap() = value;
            for (new, old) in [(&object, None), (&object, Some(&whole)), (&whole, Some(&object))] {
                check_answer(new, old, &place);
            }
            let _ = Set::parse(&object);
            applied(&object, &eject(&object));
        }
    }
}

/// The paths of all values.
fn places(value: &Value) -> Vec<String> {
    let below = |key: String, value: &Value| {
        places(value).into_iter().map(move |rest| format!("/{key}{rest}")).collect::<Vec<_>>()
    };
    let mut all = vec![String::new()];
    match value {
        Value::Object(members) => {
            all.extend(members.iter().flat_map(|(key, value)| below(key.replace('~', "~0").replace('/', "~1"), value)));
        }
        Value::Array(items) => {
            all.extend(items.iter().enumerate().flat_map(|(index, value)| below(index.to_string(), value)));
        }
        _ => {}
    }
    all
}

/// How long an answer may take, on a machine that has other work, and far longer without the compiler's help. For a set that
/// a person wrote it is a fraction of a millisecond.
const PATIENCE: Duration = Duration::from_secs(if cfg!(debug_assertions) { 30 } else { 1 });

fn check_time(object: &Value, old: Option<&Value>, of: &str) {
    let began = Instant::now();
    let _ = ask(object, old);
    assert!(began.elapsed() < PATIENCE, "{of}: {:?} for {} bytes", began.elapsed(), object.to_string().len());
}

#[test]
fn the_largest_objects_are_answered_in_time() {
    let many = |count: usize, entry: &dyn Fn(usize) -> Value| Value::from((0..count).map(entry).collect::<Vec<_>>());
    let plain = many(10_000, &|number| json!({ "name": format!("VARIABLE_{number}"), "value": "x".repeat(220) }));
    let fields = many(
        14_000,
        &|number| json!({ "name": format!("V{number}"), "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }),
    );
    let old = stored(&golden("article.yaml"));

    let mut object = golden("article.yaml");
    container(&mut object, "pgset")["env"] = plain.clone();
    assert!(object.to_string().len() > 2_400_000);
    check_time(&object, None, "variables");
    check_answer(&object, None, "variables");
    let whole = stored(&object);
    let mut new = whole.clone();
    annotate(&mut new, "pgset.dev/lease-seconds", "10");
    check_time(&new, Some(&whole), "variables, update");

    container(&mut object, "pgset")["env"] = fields;
    container(&mut object, "pgset")["volumeMounts"][0]["subPathExpr"] = json!("$(V".repeat(500_000));
    check_time(&object, None, "a sub-path that is searched for variables");

    // A record that somebody wrote: each of its names would be looked for among all variables.
    let names: Map<String, Value> =
        (0..10_000).rev().map(|number| (format!("VARIABLE_{number}"), json!("x".repeat(220)))).collect();
    let record = json!({ "container": "pgset", "env": names });
    for (key, of) in [("env", "a record"), ("labels", "a record's labels")] {
        let mut object = old.clone();
        container(&mut object, "pgset")["env"] = plain.clone();
        let mut record = record.clone();
        if key == "labels" {
            record["labels"] = record.as_object_mut().unwrap().remove("env").unwrap();
        }
        annotate(&mut object, annotation::INJECTED, &record.to_string());
        check_time(&object, None, of);
        check_time(&object, Some(&old), of);
        check_time(&old, Some(&object), of);
    }

    let mut object = golden("article.yaml");
    let one = object["spec"]["template"]["spec"]["containers"][0].clone();
    object["spec"]["template"]["spec"]["containers"] = many(2_000, &|number| {
        let mut container = one.clone();
        container["name"] = json!(format!("container-{number}"));
        container
    });
    check_time(&object, None, "containers");
    check_denial(&denied(&object, None), "containers");

    let mut object = golden("article.yaml");
    for number in 0..20_000 {
        annotate(&mut object, &format!("pgset.io/{number}"), "x");
    }
    check_time(&object, None, "annotations");
    check_answer(&object, None, "annotations");
}

/// Deeper than serde reads, which answers with an error long before: see `tests/webhook.rs`.
#[test]
fn deep_json_is_answered() {
    let mut deep = json!(null);
    for _ in 0..120 {
        deep = json!({ "a": [deep] });
    }
    for place in ["/metadata", "/spec", "/spec/template", "/spec/template/spec", "/spec/template/spec/containers/0"] {
        let mut object = golden("article.yaml");
        object.pointer_mut(place).unwrap()["deep"] = deep.clone();
        check_answer(&object, None, place);
        let after = admitted(&object, None);
        assert_eq!(after.pointer(&format!("{place}/deep")), Some(&deep));
    }
}

/// What pgset answers is a patch: whatever a number or a field means to somebody, it is not in it.
#[test]
fn numbers_and_fields_that_nobody_knows_are_in_no_patch() {
    let text = serde_json::to_string(&golden("article.yaml")).unwrap();
    let numbers = r#""unknown":{"big":123456789012345678901234567890,"fraction":0.1000000000000000055511151231257827,"small":1e-300},"spec":{"#;
    let object: Value = serde_json::from_str(&text.replacen(r#""spec":{"#, numbers, 1)).unwrap();
    let Outcome::Patched { patch, .. } = ask(&object, None) else { panic!("not patched") };
    let patch = serde_json::to_string(&patch).unwrap();
    assert!(!patch.contains("unknown") && !patch.contains("12345678901234567"), "{patch}");
    let after = admitted(&object, None);
    assert!(matches!(ask(&after, Some(&after)), Outcome::Untouched { .. }));
}

#[test]
fn the_api_server_makes_a_name_too_late() {
    let mut object = golden("article.yaml");
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.remove("name");
    metadata.insert("generateName".to_owned(), json!("db-"));
    let text = check_denial(&denied(&object, None), "generateName");
    assert!(text.contains("metadata.generateName") && text.contains("write metadata.name"), "{text}");
}

/// The status annotation is the controller's: whatever it says, nothing listens.
#[test]
fn nothing_trusts_the_status() {
    let (own, old) = (golden("example.yaml"), stored(&golden("example.yaml")));
    for (kind, value) in bad_values() {
        let mut object = own.clone();
        annotate(&mut object, annotation::STATUS, &value);
        assert_eq!(admitted(&object, None)["spec"], admitted(&own, None)["spec"], "{kind}");
        let mut new = old.clone();
        annotate(&mut new, annotation::STATUS, &value);
        assert_eq!(ask(&new, Some(&old)), Outcome::Untouched { warnings: vec![] }, "{kind}");
    }
}
