use serde_json::json;

use super::*;

const FILE: &str = "\
# The account.
apiVersion: v1
kind: ServiceAccount
metadata: {name: 'a'} # kept
---
# The set.
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: a
---
apiVersion: v1
kind: List
items:
- {apiVersion: apps/v1, kind: StatefulSet, metadata: {name: b}}
- {apiVersion: v1, kind: Service, metadata: {name: c}}
";

fn touch(name: &'static str) -> impl FnMut(&Value, &str) -> Option<json_patch::Patch> {
    move |object, _| {
        let touched = object.pointer("/metadata/name") == Some(&json!(name));
        touched.then(|| serde_json::from_value(json!([{ "op": "add", "path": "/spec", "value": "0755" }])).unwrap())
    }
}

#[test]
fn documents_without_a_change_keep_their_text() {
    let mut places = Vec::new();
    let printed = transform(FILE, None, &mut |_, place| {
        places.push(place.to_owned());
        None
    });
    assert_eq!(printed.unwrap(), FILE);
    assert_eq!(places, ["document 2, StatefulSet a", "document 3, StatefulSet b"]);
}

#[test]
fn a_changed_document_is_written_anew_and_the_others_are_not() {
    let printed = transform(FILE, None, &mut touch("a")).unwrap();
    let expected = FILE.replace("  name: a\n", "  name: a\nspec: \"0755\"\n");
    assert_eq!(printed, expected);
}

#[test]
fn a_set_in_a_list_is_found() {
    let printed = transform(FILE, None, &mut touch("b")).unwrap();
    let documents = manifest::read(&printed).unwrap();
    assert_eq!(documents[2].value.pointer("/items/0/spec"), Some(&json!("0755")));
    assert_eq!(documents[2].value.pointer("/items/1/kind"), Some(&json!("Service")));
}

#[test]
fn prints_json_and_patches_on_demand() {
    let printed = transform(FILE, Some(Output::Json), &mut touch("a")).unwrap();
    let values: Vec<_> = manifest::read(&printed).unwrap().into_iter().map(|it| it.value).collect();
    assert_eq!(values.len(), 3);
    assert_eq!(values[1].pointer("/spec"), Some(&json!("0755")));
    let patches = transform(FILE, Some(Output::Patch), &mut touch("a")).unwrap();
    assert_eq!(patches, "[{\"op\":\"add\",\"path\":\"/spec\",\"value\":\"0755\"}]\n");
}

#[test]
fn what_stays_keeps_its_order() {
    let file = "apiVersion: apps/v1\nkind: StatefulSet\na: 1\nb: 2\nc: 3\nd: [1, 2]\n";
    let printed = transform(file, None, &mut |_, _| {
        Some(
            serde_json::from_value(json!([{ "op": "remove", "path": "/a" }, { "op": "remove", "path": "/d/0" }]))
                .unwrap(),
        )
    });
    assert_eq!(printed.unwrap(), "apiVersion: apps/v1\nkind: StatefulSet\nb: 2\nc: 3\nd:\n- 2\n");
}

#[test]
fn a_json_file_stays_json() {
    let file = r#"{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "a"}}"#;
    assert_eq!(transform(file, None, &mut touch("b")).unwrap(), file);
    let printed = transform(file, None, &mut touch("a")).unwrap();
    assert!(printed.starts_with("{\n"), "{printed}");
    assert!(transform(file, Some(Output::Yaml), &mut touch("b")).unwrap().starts_with("apiVersion: apps/v1\n"));
}
