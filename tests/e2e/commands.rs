//! The commands that ask the cluster, where all is well.

use serde_json::{Value, json};

use crate::{
    lab::{self, Namespace, pgset},
    manifests::{plain, set},
};

fn explain(ns: &Namespace<'_>, words: &str) -> Value {
    let said = pgset(&format!("explain {words} --namespace {} --output=json", ns.name))
        .unwrap_or_else(|said| panic!("{}", said.err));
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn check_finds_nothing_wrong_with_a_good_installation_and_its_set() {
    let lab = lab::shared();
    let ns = lab.namespace("check");
    ns.two_members(&set("pgset"));
    let said =
        pgset(&format!("check --output=json --namespace {}", ns.name)).unwrap_or_else(|said| panic!("{}", said.out));
    let report: Value = serde_json::from_str(&said.out).unwrap();
    for check in report["checks"].as_array().unwrap() {
        // Other people's volumes and webhooks are theirs.
        let is_foreign = ["other-webhooks", "shared-exports"].contains(&check["id"].as_str().unwrap());
        assert!(check["status"] == "ok" || is_foreign, "{check}");
    }
    assert!(said.out.contains("1 set is injected") && said.out.contains("1 shared volumes"), "{}", said.out);
}

#[test]
fn explain_tells_what_a_set_carries_and_why_others_carry_nothing() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("explain");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").replicas(0).manifest());
    let told = explain(&ns, "sts/pgset");
    assert_eq!(told["state"], "injected");
    let injection = &told["injection"];
    assert_eq!(
        (&injection["contract"], &injection["container"], &injection["roleLabel"]["key"]),
        (&json!("agent"), &json!("postgres"), &json!("pgset.dev/role"))
    );
    assert!(injection["data"].as_str().unwrap().starts_with("claim pgset-pvc"), "{injection}");

    // What it says stands beside the set is what the controller makes.
    for object in injection["beside"].as_array().unwrap() {
        let words = object.as_str().unwrap();
        lab::wait_until(lab::SOON, words, || ns.try_get(words));
    }

    ns.apply(&plain("plain").replicas(0).manifest());
    assert_eq!(explain(&ns, "sts/plain")["state"], "not-asked");
    let misplaced = plain("misplaced").replicas(0);
    ns.apply(&misplaced.with("/spec/template/metadata/annotations/pgset.dev~1inject", json!("enabled")).manifest());
    let told = explain(&ns, "sts/misplaced");
    assert_eq!(told["state"], "misplaced");
    assert!(told["why"].as_str().unwrap().contains("move it to metadata.annotations"), "{told}");

    let file = ns.export().join("denied.json");
    std::fs::write(&file, set("denied").annotation("pgset.dev/contract", "none").manifest()).unwrap();
    let told = explain(&ns, &format!("--filename {}", file.display()));
    assert_eq!(told["state"], "denied");
    assert!(told["why"].as_str().unwrap().contains("pgset.dev/contract"), "{told}");
    std::fs::write(&file, set("pending").manifest()).unwrap();
    let told = explain(&ns, &format!("--filename {}", file.display()));
    assert_eq!((&told["state"], told["injection"].is_object()), (&json!("pending"), true), "{told}");
}

#[test]
fn status_tells_who_leads_what_replicas_do_and_what_is_waited_for() {
    let lab = lab::shared();
    let ns = lab.namespace("status");
    let db = ns.two_members(&set("pgset").annotation("pgset.dev/synchronous", "1"));
    db.master("create table t (n int)");
    let status = || {
        let said =
            pgset(&format!("status sts/pgset --output=json --namespace {}", ns.name)).unwrap_or_else(|said| said);
        let mut told: Value = serde_json::from_str(&said.out).unwrap();
        (said.code, told["sets"][0].take())
    };
    let is_abreast = |set: &Value| set["members"][1]["lagBytes"] == 0 && set["members"][1]["synchronous"] == true;
    let told = lab::wait_until(lab::SOON, "a healthy set", || match status() {
        (Some(0), told) if is_abreast(&told) => Ok(told),
        (code, told) => Err(format!("{code:?}: {told}")),
    });
    assert_eq!((&told["health"], &told["master"]), (&json!("healthy"), &json!("pgset-0")));
    let member =
        |ordinal: usize| ["role", "state", "timeline", "ready"].map(|key| told["members"][ordinal][key].clone());
    assert_eq!(member(0), [json!("master"), json!("leading"), json!(1), json!(true)]);
    assert_eq!(member(1), [json!("replica"), json!("streaming"), json!(1), json!(true)]);
    assert_eq!((&told["lease"]["silent"], told["lease"]["epoch"].is_number()), (&json!(false), true), "{told}");

    // Nobody is there to confirm.
    ns.kubectl("scale statefulset pgset --replicas=1");
    lab::wait_until(lab::SOON, "a set of one, whose commits wait", || match status() {
        (Some(1), told) if told["waits"][0]["reason"] == "commits-wait" => {
            lab::same(told["members"].as_array().unwrap().len(), &1)
        }
        (code, told) => Err(format!("{code:?}: {told}")),
    });

    ns.kubectl("scale statefulset pgset --replicas=0");
    lab::wait_until(lab::SOON, "a set that sleeps", || match status() {
        (Some(0), told) if told["lease"]["holder"].is_null() => {
            assert!(told["lease"]["stoppedAt"].is_string(), "{told}");
            // The pod itself goes a little later.
            lab::same(told["members"].as_array().unwrap().len(), &0)
        }
        (code, told) => Err(format!("{code:?}: {told}")),
    });
}

#[test]
fn uninstall_refuses_while_a_set_depends_on_pgset() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("uninstall");
    ns.apply(&set("pgset").replicas(0).manifest());
    let refused = pgset("uninstall").expect_err("not refused");
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    assert!(refused.err.contains(&format!("\n  {}/pgset\n", ns.name)), "{}", refused.err);
    let forced = pgset("uninstall --force").expect("forced");
    assert!(forced.out.contains("kind: MutatingWebhookConfiguration"), "{}", forced.out);
    assert!(forced.err.contains(&format!("{}/pgset", ns.name)), "{}", forced.err);
}
