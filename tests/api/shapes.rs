//! Sets of every shape that the API has: ordinals that start elsewhere, none and many members, names that change,
//! neighbours, names that are not there yet.

use super::{
    harness::with_webhook,
    kubectl::{Kubectl, is_injected, manifest},
};

fn command(set: &k8s_openapi::api::apps::v1::StatefulSet) -> Vec<String> {
    set.spec.clone().unwrap().template.spec.unwrap().containers[0].command.clone().unwrap()
}

#[tokio::test]
async fn a_set_whose_ordinals_start_at_three_goes_from_none_to_three_members_and_back_to_one() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let more = "ordinals: {start: 3}\npodManagementPolicy: Parallel";
        kubectl.apply(&manifest("db", 0, more)).await;
        let none = lab.set("db").await;
        assert!(is_injected(&none) && command(&none).contains(&"--first-ordinal=3".to_owned()));
        for replicas in ["3", "1"] {
            kubectl.does(&format!("scale statefulset db --replicas={replicas}")).await;
            let scaled = lab.set("db").await;
            assert_eq!(scaled.spec.unwrap().template, none.spec.clone().unwrap().template);
        }
        assert_eq!(lab.revisions("db").await.len(), 1);
        kubectl.apply(&manifest("db", 1, "podManagementPolicy: Parallel")).await;
        assert!(command(&lab.set("db").await).contains(&"--first-ordinal=0".to_owned()), "the agents learn of it");
    })
    .await;
}

#[tokio::test]
async fn a_copy_under_another_name_and_the_first_stand_side_by_side() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        kubectl.apply(&manifest("first", 2, "")).await;
        // As people rename: they take what is stored, and write another name into it.
        let stored = kubectl.does("get statefulset first -o yaml").await.out;
        let mut copy: serde_json::Value = super::cases::object(&stored);
        copy["metadata"] = serde_json::json!({"name": "second", "annotations": copy["metadata"]["annotations"]});
        copy["spec"]["serviceName"] = "second".into();
        copy["spec"]["selector"]["matchLabels"]["app"] = "second".into();
        copy["spec"]["template"]["metadata"]["labels"]["app"] = "second".into();
        let file = kubectl.file("copy.json", &copy.to_string());
        kubectl.does(&format!("create -f {file}")).await;

        let (first, second) = (lab.set("first").await, lab.set("second").await);
        assert!(is_injected(&first) && is_injected(&second));
        let pod = second.spec.clone().unwrap().template;
        assert_eq!(pod.metadata.unwrap().labels.unwrap()["pgset.dev/set"], "second");
        assert_eq!(pod.spec.unwrap().service_account_name.as_deref(), Some("second-sa"));
        let text = serde_json::to_string(&second.spec).unwrap();
        for of_the_first in ["first-master", "first-replica", "first-pgset-credentials", "first-sa", "--set=first"] {
            assert!(!text.contains(of_the_first), "{of_the_first} is left in the second: {text}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_name_that_the_api_server_is_to_make_is_refused_with_the_reason() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.file("set.yaml", &manifest("db", 2, "").replacen("  name: db", "  generateName: db-", 1));
        let said = kubectl.tries(&format!("create -f {file}")).await;
        assert_eq!(said.code, Some(1));
        assert!(said.err.contains("StatefulSet ") && said.err.contains("write metadata.name"), "{}", said.err);
    })
    .await;
}
