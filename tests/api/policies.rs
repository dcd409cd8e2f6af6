//! What the API server checks by itself: the final state of a set, and who labels its members.

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use pgset::names::{self, annotation, label};
use serde_json::{Value, json};

use super::{
    cases::{self, Answer},
    goldens::unplaced,
    harness::{Lab, eventually, shipped, stateful_set, with_webhook},
};

/// The group of those who may do everything.
const EVERYTHING: &[&str] = &["system:masters"];

/// A set that asks for pgset.
fn asks(name: &str) -> Value {
    stateful_set(&json!({"metadata": {"name": name, "annotations": {annotation::INJECT: "enabled"}}}))
}

/// Takes the webhook's configuration away, and waits until the API server has noticed: the message of the denial that follows.
async fn delete_the_webhook(lab: &Lab) -> String {
    lab.configurations().delete(&lab.name, &DeleteParams::default()).await.unwrap();
    eventually("the API server no longer asks the webhook", async || match lab.dry_run(&asks("late")).await {
        Err(status) if status.message.contains("was not injected") => Ok(status.message),
        other => Err(format!("{other:?}")),
    })
    .await
}

#[tokio::test]
async fn without_the_webhook_a_set_that_was_not_injected_is_denied_and_everything_else_goes_on() {
    with_webhook(async |lab| {
        lab.apply_policies().await;
        lab.dry_run(&asks("early")).await.expect("what the webhook injects passes");

        let message = delete_the_webhook(&lab).await;
        for text in ["late", annotation::INJECT, "mutatingwebhookconfiguration pgset", "pgset check", "pgset install"] {
            assert!(message.contains(text), "{text} in {message}");
        }
        lab.dry_run(&stateful_set(&json!({}))).await.expect("a set that does not speak of pgset");
        let mut injected = 0;
        for case in cases::all() {
            let Answer::Injected(golden) = case.answer() else { continue };
            // The API server's own objections, for instance to names, are the same without the policy.
            let object = unplaced(golden);
            let expected = lab.dry_run_in(&lab.plain(), &object).await.map(drop).map_err(|status| status.code);
            let found = lab.dry_run(&object).await.map(drop).map_err(|status| status.code);
            assert_eq!(found, expected, "{}", case.name);
            injected += usize::from(expected.is_ok());
        }
        assert!(injected > 30, "{injected} goldens");
    })
    .await;
}

#[tokio::test]
async fn what_was_taken_out_of_an_injected_set_is_told() {
    with_webhook(async |lab| {
        lab.apply_policies().await;
        let mut shared = asks("db");
        let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": "shared"}});
        shared["spec"].as_object_mut().unwrap().remove("volumeClaimTemplates");
        shared["spec"]["template"]["spec"]["volumes"] = json!([volume]);
        // Where the image has no data of its own: there a sub-path parts the members.
        shared["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["mountPath"] = json!("/pgdata");
        let (injected, _) = lab.dry_run(&shared).await.unwrap();
        delete_the_webhook(&lab).await;
        let essence = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": injected["spec"],
            "metadata": {"name": "db", "annotations": injected["metadata"]["annotations"]}});
        lab.dry_run(&essence).await.expect("it passes as it is");

        let container = "/spec/template/spec/containers/0";
        let variables = essence.pointer(&format!("{container}/env")).unwrap().as_array().unwrap();
        let place = |name: &str| variables.iter().position(|variable| variable["name"] == name).unwrap();
        let mode = format!("{container}/env/{}/value", place("PG_MODE"));
        let pod_name = format!("{container}/env/{}/valueFrom/fieldRef/fieldPath", place("PGSET_POD_NAME"));
        let mounts = essence.pointer(&format!("{container}/volumeMounts")).unwrap().as_array().unwrap();
        let apart = mounts.iter().position(|mount| mount["subPathExpr"].is_string()).unwrap();
        let sub_path = format!("{container}/volumeMounts/{apart}/subPathExpr");
        for (pointer, value, told) in [
            (sub_path.as_str(), json!("same"), "subPathExpr"),
            ("/spec/template/metadata/labels/pgset.dev~1set", json!("other"), "pgset.dev/set: db"),
            (mode.as_str(), json!("replica"), "PG_MODE=set"),
            ("/spec/replicas", json!(101), "100 or fewer"),
            ("/spec/template/spec/initContainers", json!([]), "pgset-agent"),
            ("/spec/template/spec/containers/0/command/0", json!("postgres"), "pgset-agent"),
            (pod_name.as_str(), json!("metadata.namespace"), "PGSET_POD_NAME"),
        ] {
            let mut object = essence.clone();
            *object.pointer_mut(pointer).unwrap() = value;
            let status = lab.dry_run(&object).await.expect_err(pointer);
            assert!(status.message.contains(told), "{told} in {}", status.message);
        }
        // What was injected counts in the PostgreSQL container only.
        let mut moved = essence.clone();
        let mut other = moved.pointer(container).unwrap().clone();
        other["name"] = json!("another");
        moved.pointer_mut(container).unwrap()["env"] = json!([]);
        moved["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(other);
        let status = lab.dry_run(&moved).await.expect_err("what another container has does not count");
        assert!(status.message.contains("PG_MODE=set"), "{}", status.message);
    })
    .await;
}

#[tokio::test]
async fn a_set_is_not_scaled_beyond_what_any_set_has_and_others_are() {
    with_webhook(async |lab| {
        lab.apply_policies().await;
        let sets = format!("/apis/apps/v1/namespaces/{}/statefulsets", lab.name);
        let scale = async |name: &str, replicas: i32| {
            let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": replicas},
                "metadata": {"name": name, "namespace": lab.name}});
            let path = format!("{sets}/{name}/scale?dryRun=All");
            lab.send("PUT", &path, &scale).await.map(drop).map_err(|status| status.message)
        };
        for object in [asks("db"), stateful_set(&json!({"metadata": {"name": "web"}}))] {
            lab.send("POST", &sets, &object).await.unwrap();
        }
        let denied = eventually("the policy is in force", async || match scale("db", 2_000_000).await {
            Err(message) => Ok(message),
            Ok(()) => Err("scaled".to_owned()),
        })
        .await;
        assert!(denied.contains("replicas: 2000000") && denied.contains("100 or fewer"), "{denied}");
        scale("db", 101).await.unwrap_err();
        scale("db", 100).await.unwrap();
        scale("web", 101).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_set_that_was_never_injected_can_still_be_deleted() {
    with_webhook(async |lab| {
        lab.configurations().delete(&lab.name, &DeleteParams::default()).await.unwrap();
        let mut object = asks("db");
        object["metadata"]["finalizers"] = json!(["example.org/wait"]);
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets", lab.name);
        eventually("nobody is asked any more", async || match lab.dry_run(&object).await {
            Ok((seen, _)) if seen["metadata"]["annotations"][annotation::INJECTED].is_null() => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        lab.send("POST", &path, &object).await.unwrap();
        lab.apply_policies().await;

        let merge = |patch: Value| Patch::Merge(patch);
        let parameters = PatchParams::default();
        let label = merge(json!({"metadata": {"labels": {"a": "b"}}}));
        lab.sets().patch("db", &parameters, &label).await.expect_err("it is to stay, so it has to be injected");
        lab.sets().delete("db", &DeleteParams::default()).await.unwrap();
        lab.sets().patch("db", &parameters, &merge(json!({"metadata": {"finalizers": null}}))).await.unwrap();
        assert!(lab.sets().get_opt("db").await.unwrap().is_none());
    })
    .await;
}

#[test]
fn the_policies_leave_out_the_namespaces_that_the_webhook_leaves_out() {
    let documents = shipped();
    let of = |kind: &str, pointer: &str| -> Vec<Value> {
        documents.iter().filter(|it| it["kind"] == kind).map(|it| it.pointer(pointer).unwrap().clone()).collect()
    };
    let webhook = of("MutatingWebhookConfiguration", "/webhooks/0/namespaceSelector").remove(0);
    for policy in documents.iter().filter(|it| it["kind"] == "ValidatingAdmissionPolicy") {
        let selector = &policy["spec"]["matchConstraints"]["namespaceSelector"];
        let of_accounts = [names::WEBHOOK, names::CONTROLLER, "pgset-routes"];
        let of_an_account = of_accounts.iter().any(|name| policy["metadata"]["name"] == *name);
        assert_eq!(
            *selector,
            if of_an_account { Value::Null } else { webhook.clone() },
            "{}",
            policy["metadata"]["name"]
        );
    }
}

/// A pod that nobody's `StatefulSet` made.
fn stranger(labels: &Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "stranger", "labels": labels},
        "spec": {"containers": [{"name": "a", "image": "a"}], "serviceAccountName": "db-sa"}}))
    .unwrap()
}

/// The pods of the namespace, as somebody who may do with pods what he likes, and nothing else.
async fn deployer(lab: &Lab) -> Api<Pod> {
    let role = json!({"metadata": {"name": "deployer"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}]});
    let binding = json!({"metadata": {"name": "deployer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deployer"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "deployer"}]});
    for (kind, object) in [("roles", role), ("rolebindings", binding)] {
        let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/{kind}", lab.name);
        lab.send("POST", &path, &object).await.unwrap();
    }
    let pods = Api::<Pod>::namespaced(lab.client_as("deployer", &[]).await, &lab.name);
    eventually("he may make pods", async || pods.list(&ListParams::default()).await.map_err(|error| error.to_string()))
        .await;
    pods
}

async fn relabel(client: Client, namespace: &str, pod: &str, labels: Value) -> Result<(), String> {
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    let pods = Api::<Pod>::namespaced(client, namespace);
    pods.patch(pod, &PatchParams::default(), &patch).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn only_a_member_and_pgset_say_which_role_it_has() {
    with_webhook(async |lab| {
        lab.apply_policies().await;
        let space = lab.name.as_str();
        let account = ServiceAccount {
            metadata: ObjectMeta { name: Some("db-sa".to_owned()), ..ObjectMeta::default() },
            ..ServiceAccount::default()
        };
        Api::<ServiceAccount>::namespaced(lab.client.clone(), space)
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
        let mut object = asks("db");
        object["spec"]["replicas"] = json!(1);
        lab.send("POST", &format!("/apis/apps/v1/namespaces/{space}/statefulsets"), &object).await.unwrap();
        let pods = Api::<Pod>::namespaced(lab.client.clone(), space);
        let member = eventually("the StatefulSet's controller makes the member", async || {
            pods.get("db-0").await.map_err(|error| error.to_string())
        })
        .await;
        assert_eq!(member.metadata.labels.as_ref().unwrap()[label::ROLE], "replica");

        let master = json!({label::ROLE: "master"});
        let member_itself = lab.client_as(&format!("system:serviceaccount:{space}:db-sa"), EVERYTHING).await;
        let neighbour = lab.client_as(&format!("system:serviceaccount:{space}:other"), EVERYTHING).await;
        let controller = lab.client_as("system:serviceaccount:pgset-system:pgset-controller", EVERYTHING).await;
        for other in [&lab.client, &neighbour] {
            let denied = relabel(other.clone(), space, "db-0", master.clone()).await.unwrap_err();
            assert!(
                denied.contains("pgset.dev/role: replica") && denied.contains("pgset.dev/webhook=disabled"),
                "{denied}"
            );
            relabel(other.clone(), space, "db-0", json!({label::ROLE: null})).await.unwrap_err();
            relabel(other.clone(), space, "db-0", json!({"name": "db-master"})).await.unwrap_err();
            relabel(other.clone(), space, "db-0", json!({label::SET: "another"})).await.unwrap_err();
            relabel(other.clone(), space, "db-0", json!({"team": "a"})).await.expect("a label that is no role");
        }
        for ours in [member_itself.clone(), controller] {
            relabel(ours.clone(), space, "db-0", master.clone()).await.unwrap();
            relabel(ours.clone(), space, "db-0", json!({label::ROLE: null, "name": "db-replica"})).await.unwrap();
            relabel(ours, space, "db-0", json!({label::ROLE: "replica", "name": null})).await.unwrap();
        }

        // Nobody joins a set from outside: neither a new pod, nor one that is there and may label itself.
        let labels = json!({label::SET: "db", label::ROLE: "master"});
        let denied = pods.create(&PostParams::default(), &stranger(&labels)).await.unwrap_err().to_string();
        assert!(denied.contains("only the StatefulSet of that name"), "{denied}");
        let mut forged = stranger(&json!({label::SET: "db", label::ROLE: "replica"}));
        let uid = lab.sets().get("db").await.unwrap().metadata.uid;
        let owner =
            json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": uid, "controller": true}]);
        forged.metadata.owner_references = serde_json::from_value(owner).unwrap();
        let mut earlier = forged.clone();
        earlier.metadata.owner_references.as_mut().unwrap()[0].uid = "00000000-0000-0000-0000-000000000000".to_owned();
        // The API server's policies hear of a new set a moment after its controllers may have.
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let denied = eventually("the policy knows the set", async || match pods.create(&dry_run, &earlier).await {
            Err(why) => Ok(why.to_string()),
            Ok(_) => Err("it was admitted".to_owned()),
        })
        .await;
        assert!(denied.contains("names another uid"), "{denied}");
        let deployer = deployer(&lab).await;
        deployer.create(&PostParams::default(), &stranger(&json!({"app": "a"}))).await.expect("he may make pods");
        deployer.delete("stranger", &DeleteParams::default().grace_period(0)).await.unwrap();
        let denied = deployer.create(&PostParams::default(), &forged).await.unwrap_err().to_string();
        assert!(denied.contains("only the StatefulSet of that name"), "{denied}");

        pods.create(&PostParams::default(), &stranger(&json!({"app": "db"}))).await.unwrap();
        for client in [&lab.client, &member_itself] {
            let denied = relabel(client.clone(), space, "stranger", master.clone()).await.unwrap_err();
            assert!(denied.contains("no member of a set"), "{denied}");
        }
        // A Binding's labels would become the pod's.
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "stranger", "labels": labels},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "anywhere"}});
        for path in ["pods/stranger/binding", "bindings"] {
            let path = format!("/api/v1/namespaces/{space}/{path}");
            let denied = lab.send("POST", &path, &binding).await.expect_err("a member by its Binding");
            assert!(denied.message.contains("only the StatefulSet of that name"), "{}", denied.message);
        }
        for client in [&lab.client, &member_itself] {
            let denied = relabel(client.clone(), space, "stranger", labels.clone()).await.unwrap_err();
            assert!(denied.contains("only the StatefulSet of that name"), "{denied}");
        }
    })
    .await;
}
