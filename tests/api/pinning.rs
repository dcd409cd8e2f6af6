//! An upgrade of pgset restarts no database: whoever sends the user's file, in whatever way, what is stored stays.

use k8s_openapi::api::apps::v1::StatefulSet;
use pgset::names::annotation;

use super::{
    harness::{Lab, with_webhook},
    kubectl::{Kubectl, manifest},
};

const NEWER: &str = "pgset.dev/pgset:99.0.0";

async fn agent_image(lab: &Lab) -> String {
    let set: StatefulSet = lab.set("db").await;
    let init_containers = set.spec.unwrap().template.spec.unwrap().init_containers.unwrap();
    init_containers.into_iter().next_back().unwrap().image.unwrap()
}

#[tokio::test]
async fn a_newer_pgset_makes_no_new_revision_of_an_old_set_however_its_file_is_sent() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.apply(&manifest("db", 3, "")).await;
        let (before, revisions) = (lab.set("db").await, lab.revisions("db").await);

        lab.upgrade(NEWER);
        for way in [
            format!("apply -f {file}"),
            format!("apply --server-side --force-conflicts -f {file}"),
            format!("replace -f {file}"),
            "annotate statefulset db example.org/touched=now".to_owned(),
            "label statefulset db touched=now".to_owned(),
            "scale statefulset db --replicas=3".to_owned(),
        ] {
            kubectl.does(&way).await;
            let after = lab.set("db").await;
            assert_eq!(after.metadata.generation, Some(1), "{way}");
            let bytes = |set: &StatefulSet| serde_json::to_string(&set.spec).unwrap();
            assert_eq!(bytes(&after), bytes(&before), "{way}");
        }
        assert_eq!(lab.revisions("db").await, revisions);

        let other = kubectl.file("other.yaml", &manifest("other", 0, ""));
        kubectl.does(&format!("apply -f {other}")).await;
        let init_containers = lab.set("other").await.spec.unwrap().template.spec.unwrap().init_containers.unwrap();
        assert_eq!(init_containers[0].image.as_deref(), Some(NEWER), "a new set has the new image");
    })
    .await;
}

#[tokio::test]
async fn a_change_of_the_users_keeps_the_old_agent() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        kubectl.apply(&manifest("db", 3, "")).await;
        let image = agent_image(&lab).await;
        lab.upgrade(NEWER);
        kubectl.apply(&manifest("db", 3, "").replace("=50", "=60")).await;
        assert_eq!(agent_image(&lab).await, image);
        assert_eq!(lab.revisions("db").await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn latest_upgrades_a_set_once() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        kubectl.apply(&manifest("db", 3, "")).await;
        lab.upgrade(NEWER);
        let wish = manifest("db", 3, "")
            .replace("    pgset.dev/claim", &format!("    {}: latest\n    pgset.dev/claim", annotation::REVISION));
        let file = kubectl.file("set.yaml", &wish);
        for _ in 0..2 {
            kubectl.does(&format!("apply -f {file}")).await;
            assert_eq!(agent_image(&lab).await, NEWER);
            assert_eq!(lab.set("db").await.metadata.generation, Some(2));
            assert_eq!(lab.revisions("db").await.len(), 2);
        }
        assert_eq!(kubectl.does(&format!("diff -f {file}")).await.out, "");
    })
    .await;
}
