//! While pgset's own pods are away: what runs goes on, and only sets that speak of pgset have to wait.

use serde_json::json;

use crate::{
    lab::{self, Namespace, START, same, wait_until},
    manifests::{plain, set},
};

/// pgset's own pods are away as long as this lives.
struct Away<'ns> {
    ns: &'ns Namespace<'ns>,
}

fn pgset_away<'ns>(ns: &'ns Namespace<'ns>) -> Away<'ns> {
    let away = Away { ns };
    ns.kubectl("scale deployments --all --replicas=0 --namespace pgset-system");
    wait_until(START, "no pod of pgset", || {
        same(ns.get("pods --namespace pgset-system")["items"].as_array().unwrap().len(), &0)
    });
    away
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        for words in [
            "scale deployments --all --replicas=2 --namespace pgset-system",
            "rollout status deployments --timeout=90s --namespace pgset-system",
        ] {
            if let Err(said) = self.ns.try_kubectl(words) {
                eprintln!("kubectl {words}: {}", said.err);
            }
        }
    }
}

#[test]
fn while_the_webhook_is_away_members_come_back_injected_and_other_sets_are_unaffected() {
    let lab = lab::alone();
    let ns = lab.namespace("away");
    let db = ns.two_members(&set("pgset"));
    db.master("create table visits as select 'before' as at");

    let away = pgset_away(&ns);

    ns.apply(&plain("stranger").container("command", json!(["sleep", "infinity"])).manifest());
    ns.wait_ready("stranger", 1);
    ns.kubectl("scale statefulset stranger --replicas=0");

    for pod in ["pgset-1", "pgset-0"] {
        ns.kubectl(&format!("delete pod {pod} --timeout=60s"));
        ns.wait_ready("pgset", 2);
        let object = ns.get(&format!("pod {pod}"));
        assert_eq!(object["spec"]["initContainers"][0]["name"], "pgset-agent");
        // The master hands over: whichever is deleted streams when it is back.
        db.wait_streaming(&[pod]);
    }
    db.master("insert into visits values ('during')");
    db.wait_for("pgset-replica", "select at from visits order by 1", "before\nduring");

    let held_up = ns.try_apply(&set("another").manifest()).expect_err("not held up");
    assert!(held_up.err.contains("failed calling webhook"), "{}", held_up.err);

    drop(away);
    wait_until(START, "sets are taken again", || {
        ns.try_apply(&set("another").replicas(0).manifest()).map_err(|said| said.err)
    });
}
