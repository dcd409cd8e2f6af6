//! `check`, `explain`, `status` and `uninstall`, as a user types them, from a cluster without pgset to one from which it is gone again.
//!
//! The control plane is without nodes, so pgset's pods never run, and what that means is what is to be told.

use serde_json::json;

use super::{
    harness::stateful_set,
    plane::{ControlPlane, script},
};

/// A set that asks for injection.
fn annotated(name: &str) -> String {
    stateful_set(&json!({"metadata": {"name": name, "annotations": {"pgset.dev/inject": "enabled"}}})).to_string()
}

#[test]
fn check_explain_and_uninstall_tell_the_state_of_a_cluster_from_before_pgset_until_after_it() {
    let plane = ControlPlane::up();
    before_the_installation(&plane);
    while_pods_do_not_run(&plane);
    what_somebody_has_changed(&plane);
    what_may_not_be_read(&plane);
    away_with_it(&plane);
    without_an_api_server(&plane);
}

fn before_the_installation(plane: &ControlPlane) {
    let said = plane.pgset("check --before --output=json");
    assert_eq!(said.code, 0, "{said:?}");
    for id in ["kubernetes-version", "clock", "admission-api", "can-install", "other-webhooks"] {
        assert_eq!(said.check(id).0, "ok", "{id}");
    }

    let nobody = plane.somebody("nobody", None);
    let said = plane.pgset(&format!("check --before --output=json {nobody}"));
    assert_eq!(said.code, 1);
    said.assert("can-install", "failure", "create namespaces");
    said.assert("can-install", "failure", "patch deployments.apps/pgset-webhook -n pgset-system");
    said.assert("can-install", "failure", "list statefulsets.apps");
    said.assert("other-webhooks", "skipped", "may not read");

    let said = plane.pgset("check --output=json");
    assert_eq!(said.code, 1);
    said.assert("installed", "failure", "Deployment pgset-system/pgset-controller");
    said.assert("webhook-configuration", "failure", "no set is injected");
    said.assert("canary", "failure", "without the injection");

    plane.kubectl("apply -f -", &annotated("bare"));
    let told = plane.pgset("explain sts/bare --output=json").json();
    assert_eq!((&told["set"], &told["state"]), (&json!("default/bare"), &json!("unconfigured")));
}

fn while_pods_do_not_run(plane: &ControlPlane) {
    plane.install();
    let said = plane.pgset("check --output=json");
    assert_eq!(said.code, 1);
    for id in ["installed", "webhook-configuration", "policy-present"] {
        assert_eq!(said.check(id).0, "ok", "{:?}", said.check(id));
    }
    said.assert("deployment-ready", "failure", "0 of 2 pods are ready");
    said.assert("two-replicas", "warning", "0 of the pods");
    said.assert("service-endpoints", "failure", "no ready endpoint");
    said.assert("bundle-present", "failure", "inject.pgset.dev");
    said.assert("certificate-valid", "skipped", "there is no Secret");
    plane.await_canary("failed calling webhook");
    said.assert("sets-injected", "failure", "default/bare asks for injection, and has none");
    let table = plane.pgset("check").out;
    assert!(table.contains("\nfailure  deployment-ready"), "{table}");
    assert!(table.contains("(docs/check.md#deployment-ready)"), "{table}");

    let explain = |words: &str| plane.pgset(&format!("explain {words} --output=json")).json();
    let told = explain("sts/bare");
    assert_eq!(told["state"], "unconfigured");
    assert!(told["why"].as_str().unwrap().contains("caBundle"), "{told}");

    plane.kubectl("create namespace apart", "");
    plane.kubectl("label namespace apart pgset.dev/webhook=disabled", "");
    plane.kubectl("apply --namespace apart -f -", &stateful_set(&json!({"metadata": {"name": "plain"}})).to_string());
    assert_eq!(explain("sts/plain -n apart")["state"], "not-asked");
    let file = plane.folder.path().join("set.json");
    std::fs::write(&file, annotated("written")).unwrap();
    let told = explain(&format!("--filename={} -n apart", file.display()));
    assert_eq!((&told["set"], &told["state"]), (&json!("apart/written"), &json!("exempt")));
    assert!(told["why"].as_str().unwrap().contains("pgset.dev/webhook=disabled"), "{told}");

    let said = plane.pgset("explain sts/absent");
    assert_eq!(said.code, 1);
    assert_eq!(said.err, "pgset: failed to read StatefulSet default/absent: it does not exist");

    status_tells_what_is_no_set_from_what_waits(plane);
}

fn status_tells_what_is_no_set_from_what_waits(plane: &ControlPlane) {
    let said = plane.pgset("status sts/bare --output=json");
    let told = said.json();
    assert_eq!((said.code, &told["healthy"], &told["sets"][0]["health"]), (1, &json!(false), &json!("waiting")));
    assert_eq!(told["sets"][0]["waits"][0]["reason"], "not-injected", "{told}");
    assert_eq!(plane.pgset("status -A --output=json").json(), told);

    for (words, why) in [
        ("status sts/absent", "there is no StatefulSet default/absent; name its namespace by -n"),
        (
            "status sts/plain -n apart",
            "StatefulSet apart/plain is no set: it has no annotation pgset.dev/inject: enabled",
        ),
        ("status pod/bare", "a StatefulSet is named like sts/NAME"),
        ("status sts/bare -A", "cannot be used with"),
    ] {
        let said = plane.pgset(words);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{words}");
        assert!(said.err.contains(why), "{words}: {}", said.err);
    }
    let said = plane.pgset("status -n apart");
    assert_eq!((said.code, said.out.as_str()), (0, "there is no set in the namespace apart"));

    for (words, code, why) in [
        ("switchover sts/absent", 2, "there is no StatefulSet default/absent; name its namespace by -n"),
        ("failover sts/plain -n apart", 2, "StatefulSet apart/plain is no set"),
        (
            "failover sts/bare",
            1,
            "StatefulSet default/bare: it was stored without its injection; pgset explain sts/bare -n default",
        ),
        ("switchover sts/bare --to Bare-0", 2, "a member is named by its pod"),
        ("switchover sts/bare --accept-loss", 2, "unexpected argument '--accept-loss'"),
    ] {
        let said = plane.pgset(words);
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{words}");
        assert!(said.err.contains(why), "{words}: {}", said.err);
    }

    let plugin = plane.folder.path().join("kubectl-pgset");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pgset"), &plugin).unwrap();
    let path = format!("PATH={}:{}", plane.folder.path().display(), std::env::var("PATH").unwrap());
    let said = plane.run("env", &[&path, "kubectl", "pgset", "status", "sts/bare", "-n", "default", "-o", "json"], "");
    assert_eq!((said.code, said.json()), (1, told));
}

fn what_somebody_has_changed(plane: &ControlPlane) {
    let edit = |patch: &str| {
        plane.run("kubectl", &["patch", "mutatingwebhookconfiguration", "pgset", "--type=json", "--patch", patch], "");
        plane.pgset("check --output=json")
    };
    let exempt = "/webhooks/0/namespaceSelector/matchExpressions";
    let said = edit(&format!(
        r#"[{{"op": "add", "path": "{exempt}/-", "value": {{"key": "control-plane", "operator": "DoesNotExist"}}}}]"#
    ));
    said.assert("webhook-configuration", "warning", "control-plane");
    let said = edit(r#"[{"op": "replace", "path": "/webhooks/0/timeoutSeconds", "value": 30}]"#);
    said.assert("webhook-configuration", "failure", "timeoutSeconds is 30, not 5");
    plane.install();
    plane.kubectl("delete validatingadmissionpolicybinding pgset-injection", "");
    plane.kubectl("delete mutatingwebhookconfiguration pgset", "");
    let said = plane.pgset("check --output=json");
    said.assert("policy-present", "failure", "ValidatingAdmissionPolicyBinding pgset-injection is not there");
    plane.await_canary("without the injection");
    plane.install();
    plane.kubectl("delete mutatingwebhookconfiguration pgset", "");
    plane.await_canary("asks for pgset");
    plane.install();
    plane.kubectl("delete service pgset-webhook --namespace pgset-system", "");
    plane.kubectl("scale deployment pgset-webhook --replicas=1 --namespace pgset-system", "");
    let said = plane.pgset("check --output=json");
    said.assert("installed", "failure", "Service pgset-system/pgset-webhook");
    said.assert("two-replicas", "warning", "replicas: 1");
    plane.install();
    let said = plane.pgset("check --output=json");
    assert_eq!((said.check("installed").0, said.check("policy-present").0), ("ok".to_owned(), "ok".to_owned()));
}

fn what_may_not_be_read(plane: &ControlPlane) {
    // `view` sees no Secrets and nothing of the cluster itself.
    let viewer = plane.somebody("viewer", Some("view"));
    let said = plane.pgset(&format!("check --output=json {viewer}"));
    assert_eq!(said.code, 1);
    said.assert("webhook-configuration", "skipped", "may not read");
    said.assert("certificate-expiry", "skipped", "may not read the Secret");
    said.assert("shared-exports", "skipped", "may not read PersistentVolumes");
    said.assert("canary", "skipped", "may not create StatefulSets in namespace default");
    said.assert("deployment-ready", "failure", "0 of 2");
    let told = plane.pgset(&format!("explain sts/bare --output=json {viewer}")).json();
    assert_eq!(told["state"], "pending");
    assert!(told["why"].as_str().unwrap().contains("forbidden"), "{told}");
    assert_eq!(plane.pgset(&format!("status sts/bare {viewer}")).code, 1);

    let blind = plane.somebody("blind", None);
    let said = plane.pgset(&format!("status sts/bare {blind}"));
    assert_eq!(said.code, 2);
    let why =
        "pgset: failed to read StatefulSet default/bare, which takes the right to get statefulsets.apps: forbidden";
    assert!(said.err.starts_with(why), "{}", said.err);
}

fn away_with_it(plane: &ControlPlane) {
    let refused = plane.pgset("uninstall");
    assert_eq!((refused.code, refused.out.as_str()), (1, ""));
    assert!(
        refused.err.contains("1 set depends on pgset") && refused.err.contains("\n  default/bare\n"),
        "{refused:?}"
    );
    let forced = plane.pgset("uninstall --force");
    assert_eq!(forced.code, 0);
    assert!(forced.err.contains("default/bare") && forced.err.contains("What goes on:"), "{}", forced.err);

    // Deleting a set needs nobody's leave.
    plane.kubectl("delete statefulset bare", "");
    let said = plane.pgset("uninstall");
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!(said.out, forced.out);
    let deleted = plane.kubectl("delete --ignore-not-found --timeout=60s -f -", &said.out);
    assert!(
        deleted.starts_with("mutatingwebhookconfiguration.admissionregistration.k8s.io \"pgset\" deleted"),
        "{deleted}"
    );
    assert!(deleted.lines().last().unwrap().starts_with("namespace \"pgset-system\" deleted"), "{deleted}");

    let kinds = "mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,\
                 clusterrolebindings,namespaces,deployments,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets";
    let left = plane.kubectl(&format!("get {kinds} --all-namespaces --selector app.kubernetes.io/name=pgset"), "");
    assert_eq!(left, "");
    plane.kubectl("apply -f -", &annotated("afterwards"));
    plane.kubectl("delete statefulset afterwards", "");
    // A second time there is nothing to delete, which is no error.
    plane.kubectl("delete --ignore-not-found -f -", &plane.pgset("uninstall").out);
}

fn without_an_api_server(plane: &ControlPlane) {
    script("down", plane.folder.path());
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}], "users": [{"name": "a", "user": {}}],
        "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
    });
    std::fs::write(plane.kubeconfig(), config.to_string()).unwrap();
    let said = plane.pgset("check");
    assert_eq!((said.code, said.out.as_str()), (2, ""));
    assert!(said.err.contains("the API server does not answer"), "{}", said.err);
    let said = plane.pgset("uninstall");
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.contains("--force prints it all the same"), "{}", said.err);
    let said = plane.pgset("uninstall --force");
    assert!(said.code == 0 && said.out.contains("MutatingWebhookConfiguration"), "{said:?}");
    assert!(said.err.contains("nobody could say"), "{}", said.err);
}
