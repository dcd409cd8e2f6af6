//! An upgrade of pgset restarts no database: whoever sends the user's file, in whatever way, what is stored stays.

use k8s_openapi::api::apps::v1::StatefulSet;
use pgset::{inject::REVISION, names::annotation};

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

/// A set whose file names the revision of its injection.
fn at_revision(revision: &str) -> String {
    manifest("db", 3, "")
        .replace("    pgset.dev/claim", &format!("    {}: {revision}\n    pgset.dev/claim", annotation::REVISION))
}

#[tokio::test]
async fn a_revision_in_the_file_upgrades_a_set_once_and_a_roll_back_brings_the_old_agent_back() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        kubectl.apply(&at_revision("0.1.0")).await;
        let (before, old_image) = (lab.set("db").await, agent_image(&lab).await);
        lab.upgrade(NEWER);
        let file = kubectl.file("set.yaml", &at_revision(REVISION));
        for _ in 0..2 {
            kubectl.does(&format!("apply -f {file}")).await;
            assert_eq!(agent_image(&lab).await, NEWER);
            assert_eq!(lab.set("db").await.metadata.generation, Some(2));
            assert_eq!(lab.revisions("db").await.len(), 2);
        }
        assert_eq!(kubectl.does(&format!("diff -f {file}")).await.out, "");

        kubectl.does("rollout undo statefulset db").await;
        let back = lab.set("db").await;
        assert_eq!(agent_image(&lab).await, old_image);
        let template = |set: &StatefulSet| serde_json::to_string(&set.spec.as_ref().unwrap().template).unwrap();
        assert_eq!(template(&back), template(&before), "shape and program are a pair");
        assert_eq!(back.metadata.annotations.unwrap()[annotation::REVISION], "0.1.0");
    })
    .await;
}

#[tokio::test]
async fn latest_in_a_file_is_refused_with_the_way_to_ask() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.file("set.yaml", &at_revision("latest"));
        let said = kubectl.tries(&format!("apply -f {file}")).await;
        assert!(
            said.code != Some(0) && said.err.contains(&format!("write pgset.dev/revision: {REVISION}")),
            "{}",
            said.err
        );
    })
    .await;
}
