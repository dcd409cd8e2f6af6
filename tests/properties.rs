//! What holds for any `StatefulSet`: proptest writes them, with fields that nobody knows, absent and empty lists, and the
//! user's own of everything that pgset adds.
//!
//! `PGSET_CASES=100000 cargo test --profile quick --test properties` tries more. The seed is printed; `PGSET_SEED` sets it. A
//! failure is kept beside this file.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)] // a test may stop where it fails

mod support;

use std::{
    io::Write as _,
    sync::{Once, OnceLock},
    time::{SystemTime, UNIX_EPOCH},
};

use pgset::{
    inject::{Outcome, eject},
    set::Set,
};
use proptest::{option, prelude::*, sample::select, test_runner::RngSeed};
use serde_json::{Map, Value, json};
use support::{admitted, applied, ask, defaulted, ejected};

fn config() -> ProptestConfig {
    static TOLD: Once = Once::new();
    static SEED: OnceLock<u64> = OnceLock::new();
    let number = |key: &str| std::env::var(key).ok().and_then(|number| number.parse().ok());
    let cases = number("PGSET_CASES").and_then(|cases| u32::try_from(cases).ok()).unwrap_or(256);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seed = *SEED.get_or_init(|| number("PGSET_SEED").unwrap_or_else(now));
    // Past the test runner, which keeps what tests print to itself.
    TOLD.call_once(|| drop(writeln!(std::io::stderr(), "PGSET_SEED={seed} PGSET_CASES={cases} for each property")));
    // A case that is denied says nothing about patches, and is replaced by another.
    let max_global_rejects = cases.saturating_mul(10);
    ProptestConfig { cases, max_global_rejects, rng_seed: RngSeed::Fixed(seed), ..ProptestConfig::default() }
}

/// A key of a map as nobody expects it.
fn odd_key() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,6}", "x[~/]{1,3}[a-z]", "example.com/[a-z~]{1,4}", "[ -~]{1,6}", Just("é/~0~1".to_owned())]
        .prop_filter("ours and Kubernetes' own", |key| !key.starts_with("pgset.dev/"))
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((odd_key(), inner), 0..3).prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// Fields that this build doesn't know.
fn unknown() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec(("unknown[A-Z][a-z~/]{0,4}", anything()), 0..3).prop_map(|it| it.into_iter().collect())
}

fn texts() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec((odd_key(), "[ -~]{0,8}".prop_map(Value::from)), 0..3).prop_map(|it| it.into_iter().collect())
}

fn variable() -> impl Strategy<Value = Value> {
    let names =
        vec!["POSTGRES_USER", "POSTGRES_PASSWORD", "PG_MASTER_USER", "PG_PRIMARY_PASSWORD", "PG_USER", "A", "B~/"];
    (select(names), option::of("[ -~]{0,8}"), unknown()).prop_map(|(name, value, mut rest)| {
        rest.insert("name".to_owned(), json!(name));
        match value {
            Some(value) => rest.insert("value".to_owned(), json!(value)),
            None => rest.insert("valueFrom".to_owned(), json!({ "secretKeyRef": { "name": "s", "key": "k" } })),
        };
        Value::Object(rest)
    })
}

fn list(items: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Vec<Value>>> {
    option::of(prop::collection::vec(items, 0..4))
}

/// The ways to keep data: volumes, claim templates, mount and annotation.
#[derive(Clone, Debug)]
struct Storage {
    volume: Option<Value>,
    template: bool,
    mount: Option<Value>,
    claim: bool,
}

fn storage() -> impl Strategy<Value = Storage> {
    let source = select(vec![
        json!({ "persistentVolumeClaim": { "claimName": "c" } }),
        json!({ "nfs": { "server": "s", "path": "/p" } }),
        json!({ "emptyDir": {} }),
        json!({}),
    ]);
    let path = select(vec!["/var/lib/postgresql/data", "/var/lib/postgresql", "/pgdata", "/pgdata/"]);
    (0..3, source, path).prop_map(|(way, mut source, path)| {
        source["name"] = json!("data");
        let mount = Some(json!({ "name": "data", "mountPath": path }));
        match way {
            0 => Storage { volume: None, template: false, mount: None, claim: true },
            1 => Storage { volume: None, template: true, mount, claim: false },
            _ => Storage { volume: Some(source), template: false, mount, claim: false },
        }
    })
}

prop_compose! {
    fn container()(
        env in list(variable()),
        image in select(vec!["postgres:17", "postgres", "postgres:18", "pgvector/pgvector:pg16", "x/crunchy-postgres:1", "a"]),
        command in option::of(select(vec![json!([]), json!(["postgres"]), json!(["docker-entrypoint.sh", "-c", "a=$(B)"])])),
        args in option::of(select(vec![json!([]), json!(["-c", "max_connections=300", "--", "x"])])),
        ports in list(select(vec![
            json!({ "containerPort": 5433 }), json!({ "containerPort": 1, "name": "db" }), json!({ "containerPort": 9 }),
        ])),
        probes in prop::collection::vec(select(vec!["startupProbe", "readinessProbe", "livenessProbe"]), 0..3),
        rest in unknown(),
    ) -> Value {
        let mut container = rest;
        container.insert("name".to_owned(), json!("db"));
        container.insert("image".to_owned(), json!(image));
        let lists = [("env", env.map(Value::from)), ("command", command), ("args", args), ("ports", ports.map(Value::from))];
        for (key, value) in lists {
            // `postgres` takes no image's arguments without a command of its own.
            if let Some(value) = value {
                container.insert(key.to_owned(), value);
            }
        }
        if container.get("args").is_some_and(|args| args != &json!([])) {
            container.insert("command".to_owned(), json!(["postgres"]));
        }
        for probe in probes {
            container.insert(probe.to_owned(), json!({ "exec": { "command": ["true"] }, "failureThreshold": 100 }));
        }
        Value::Object(container)
    }
}

prop_compose! {
    /// A `StatefulSet` of a user's, annotated; most are accepted.
    fn stateful_set()(
        name in "[a-z]([-a-z0-9]{0,20}[a-z0-9])?",
        mut container in container(),
        storage in storage(),
        mut labels in texts(),
        annotations in texts(),
        other_mounts in list(Just(json!({ "name": "o", "mountPath": "/o", "subPath": "s" }))),
        other_volumes in list(Just(json!({ "name": "o", "configMap": { "name": "c" } }))),
        init in list(unknown().prop_map(|mut it| { it.insert("name".to_owned(), json!("init")); Value::Object(it) })),
        settings in prop::collection::vec(select(vec![
            ("pgset.dev/failover", "manual"), ("pgset.dev/lease-seconds", "30"), ("pgset.dev/synchronous", "1"),
            ("pgset.dev/role-label", "example.com/role"), ("pgset.dev/contract", "agent"), ("pgset.dev/contract", "image"),
            ("pgset.dev/container", "db"), ("pgset.dev/credentials", "my.secret"), ("pgset.dev/revision", "0.1.0"),
        ]), 0..4),
        replicas in option::of(0..4),
        account in option::of(select(vec!["serviceAccount", "serviceAccountName"])),
        sidecar in any::<bool>(),
        (rest_object, rest_spec, rest_template, rest_pod) in (unknown(), unknown(), unknown(), unknown()),
    ) -> Value {
        let mut mounts: Option<Vec<Value>> = other_mounts;
        if let Some(mount) = storage.mount {
            mounts.get_or_insert_default().push(mount);
        }
        let mut volumes: Option<Vec<Value>> = other_volumes;
        if let Some(volume) = storage.volume {
            volumes.get_or_insert_default().insert(0, volume);
        }
        if let Some(mounts) = mounts {
            container["volumeMounts"] = mounts.into();
        }
        let mut annotations = annotations;
        annotations.insert("pgset.dev/inject".to_owned(), json!("enabled"));
        for (key, value) in settings {
            annotations.insert(key.to_owned(), json!(value));
        }
        if storage.claim {
            annotations.insert("pgset.dev/claim".to_owned(), json!("shared"));
        }
        labels.insert("app".to_owned(), json!("x"));
        let mut containers = vec![container];
        if sidecar {
            containers.insert(0, json!({ "name": "side~/car", "image": "x", "env": [{ "name": "PGDATA", "value": "/x" }] }));
            annotations.insert("pgset.dev/container".to_owned(), json!("db"));
        }
        let mut pod = rest_pod;
        pod.insert("containers".to_owned(), containers.into());
        for (key, list) in [("volumes", volumes), ("initContainers", init)] {
            if let Some(list) = list {
                pod.insert(key.to_owned(), list.into());
            }
        }
        if let Some(key) = account {
            pod.insert(key.to_owned(), json!("account"));
        }
        let mut template = rest_template;
        template.insert("metadata".to_owned(), json!({ "labels": labels }));
        template.insert("spec".to_owned(), Value::Object(pod));
        let mut spec = rest_spec;
        spec.insert("selector".to_owned(), json!({ "matchLabels": { "app": "x" } }));
        spec.insert("template".to_owned(), Value::Object(template));
        if let Some(replicas) = replicas {
            spec.insert("replicas".to_owned(), json!(replicas));
        }
        if storage.template {
            spec.insert("volumeClaimTemplates".to_owned(), json!([{ "metadata": { "name": "data" } }]));
        }
        let mut object = rest_object;
        object.insert("metadata".to_owned(), json!({ "name": name, "namespace": "n", "annotations": annotations }));
        object.insert("spec".to_owned(), Value::Object(spec));
        Value::Object(object)
    }
}

/// Whether `after` has everything of `before`, as it was and in its order; `at` is where they stand.
fn survives(before: &Value, after: &Value, at: &str) -> Result<(), String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().try_for_each(|(key, value)| {
            let at = format!("{at}/{key}");
            survives(value, after.get(key).ok_or_else(|| format!("{at} is gone"))?, &at)
        }),
        (Value::Array(before), Value::Array(after)) if at.ends_with("/db/command") => {
            if after.ends_with(before) {
                Ok(())
            } else {
                Err(format!("{at} lost words"))
            }
        }
        (Value::Array(before), Value::Array(after)) => before.iter().enumerate().try_for_each(|(index, value)| {
            let name = value.get("name").and_then(Value::as_str).map_or_else(|| index.to_string(), str::to_owned);
            let at = format!("{at}/{name}");
            survives(value, after.get(index).ok_or_else(|| format!("{at} is gone"))?, &at)
        }),
        _ if before == after => Ok(()),
        _ => Err(format!("{at} was {before} and is {after}")),
    }
}

fn is_untouched(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Untouched { .. })
}

/// The injected object; a case that is denied says nothing about patches.
fn injected(object: &Value) -> Result<Value, TestCaseError> {
    match ask(object, None) {
        Outcome::Patched { patch, .. } => Ok(applied(object, &patch)),
        Outcome::Untouched { .. } => Err(TestCaseError::fail("an annotated set was not touched")),
        Outcome::Denied { reason } => Err(TestCaseError::reject(reason.code())),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn injecting_twice_changes_nothing(object in stateful_set()) {
        let once = injected(&object)?;
        prop_assert!(is_untouched(&ask(&once, None)), "{:?}", ask(&once, None));
    }

    #[test]
    fn injecting_what_the_api_server_stored_changes_nothing(object in stateful_set()) {
        let stored = defaulted(&injected(&defaulted(&object))?);
        prop_assert!(is_untouched(&ask(&stored, None)), "{:?}", ask(&stored, None));
    }

    #[test]
    fn everything_of_the_users_survives_bit_for_bit(object in stateful_set()) {
        let after = injected(&object)?;
        prop_assert_eq!(survives(&object, &after, ""), Ok(()));
    }

    #[test]
    fn ejecting_gives_the_users_own_back_byte_for_byte(object in stateful_set()) {
        let after = injected(&object)?;
        prop_assert_eq!(ejected(&after).to_string(), object.to_string());
    }

    #[test]
    fn ejecting_what_the_api_server_stored_gives_the_users_own_back(object in stateful_set()) {
        let own = defaulted(&object);
        let stored = defaulted(&injected(&own)?);
        prop_assert_eq!(ejected(&stored), own);
    }

    #[test]
    fn a_set_reads_the_same_before_and_after(object in stateful_set()) {
        let after = defaulted(&injected(&object)?);
        prop_assert_eq!(Set::parse(&after).unwrap(), Set::parse(&object).unwrap());
    }

    #[test]
    fn no_annotation_no_patch(object in stateful_set()) {
        let mut object = object;
        object["metadata"]["annotations"].as_object_mut().unwrap().retain(|key, _| !key.starts_with("pgset.dev/"));
        prop_assert_eq!(ask(&object, None), Outcome::Untouched { warnings: vec![] });
        prop_assert_eq!(ask(&object, Some(&object)), Outcome::Untouched { warnings: vec![] });
        prop_assert!(eject(&object).0.is_empty());
    }

    #[test]
    fn an_update_touches_only_template_and_annotations(object in stateful_set(), edited in stateful_set()) {
        let old = defaulted(&injected(&object)?);
        let mut new = edited;
        new["metadata"]["name"] = old["metadata"]["name"].clone();
        if let Outcome::Patched { patch, .. } = ask(&new, Some(&old)) {
            for operation in &patch.0 {
                let path = operation.path().as_str();
                prop_assert!(path.starts_with("/spec/template/") || path.starts_with("/metadata/annotations"), "{}", path);
            }
            let after = applied(&new, &patch);
            prop_assert_eq!(survives(&new, &after, ""), Ok(()));
            prop_assert!(is_untouched(&ask(&after, Some(&old))), "{:?}", ask(&after, Some(&old)));
        }
    }

    #[test]
    fn a_list_is_never_replaced(object in stateful_set()) {
        if let Outcome::Patched { patch, .. } = ask(&object, None) {
            for operation in &patch.0 {
                if let json_patch::PatchOperation::Replace(replace) = operation {
                    prop_assert!(!replace.value.is_array() || replace.path.as_str().ends_with("/command"));
                }
            }
        }
    }

    /// Any value at any place of a set: an answer, never a panic, and what is answered applies.
    #[test]
    fn no_json_makes_it_panic(object in stateful_set(), value in anything(), place in any::<prop::sample::Index>(), is_old in any::<bool>()) {
        let whole = admitted_or(&object);
        let mut places = Vec::new();
        collect(&whole, &mut String::new(), &mut places);
        let mut broken = whole.clone();
        *broken.pointer_mut(&places[place.index(places.len())]).unwrap() = value;
        let (new, old) = if is_old { (&whole, &broken) } else { (&broken, &whole) };
        for old in [None, Some(old)] {
            if let Outcome::Patched { patch, .. } = ask(new, old) {
                let after = applied(new, &patch);
                prop_assert!(!matches!(ask(&after, old), Outcome::Patched { .. }), "{:?}", ask(&after, old));
            }
        }
        let _ = Set::parse(&broken);
        let _ = ejected(&broken);
    }

    #[test]
    fn no_text_in_an_annotation_leaves_its_place(
        object in stateful_set(),
        key in select(vec!["claim", "credentials", "service-account", "role-label", "container", "volume", "revision", "injected", "x"]),
        text in prop_oneof![".{0,20}", "[-a-z./$(){}\"'\n]{0,12}"],
    ) {
        let mut object = object;
        object["metadata"]["annotations"][format!("pgset.dev/{key}")] = json!(text);
        match ask(&object, None) {
            Outcome::Denied { reason } => prop_assert!(!reason.to_string().contains(char::is_control)),
            Outcome::Patched { .. } if ["injected", "revision", "role-label"].contains(&key) => {}
            Outcome::Patched { .. } => {
                prop_assert!(text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c)), "{}", text);
                prop_assert!(!text.contains("..") && !text.is_empty());
            }
            Outcome::Untouched { .. } => {}
        }
    }
}

fn admitted_or(object: &Value) -> Value {
    if matches!(ask(object, None), Outcome::Denied { .. }) { object.clone() } else { admitted(object, None) }
}

/// The paths of all values.
fn collect(value: &Value, at: &mut String, places: &mut Vec<String>) {
    places.push(at.clone());
    let below: Vec<(String, &Value)> = match value {
        Value::Object(members) => {
            members.iter().map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value)).collect()
        }
        Value::Array(items) => items.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in below {
        let length = at.len();
        at.push('/');
        at.push_str(&key);
        collect(value, at, places);
        at.truncate(length);
    }
}
