//! `check`, `explain` and `uninstall`, as a user types them, from a cluster without pgset to one from which it is gone again.
//!
//! They are about objects of which a cluster has one, so they have a control plane of their own: without nodes, so pgset's pods never
//! run, and what that means is what is to be told.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::harness::{PATIENCE, stateful_set};

/// A control plane, taken down whatever the end.
struct ControlPlane {
    folder: TempDir,
}

fn script(command: &str, folder: &std::path::Path) -> Output {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/control-plane");
    Command::new(script).arg(command).arg(folder).output().unwrap()
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        script("down", self.folder.path());
    }
}

/// What a command said.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// The lines of `check --output=json`, by their ids: `failure: one line`, and what was found.
    fn check(&self, id: &str) -> (String, String) {
        let report: Value = serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no {id} in {report}"));
        (check["status"].as_str().unwrap().to_owned(), format!("{}: {}", check["says"], check["found"]))
    }

    #[track_caller]
    fn assert(&self, id: &str, status: &str, words: &str) {
        let (found, says) = self.check(id);
        assert!(found == status && says.contains(words), "{id} is {found}, not {status} with {words:?}: {says}");
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl ControlPlane {
    fn up() -> Self {
        let plane = Self { folder: tempfile::tempdir().unwrap() };
        let said = script("up", plane.folder.path());
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        plane
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn run(&self, program: &str, words: &[&str], input: &str) -> Said {
        let mut child = Command::new(program)
            .args(words)
            .env("KUBECONFIG", self.kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        // Who doesn't read it says so by his exit code.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    fn pgset(&self, words: &str) -> Said {
        self.run(env!("CARGO_BIN_EXE_pgset"), &words.split_whitespace().collect::<Vec<_>>(), "")
    }

    fn kubectl(&self, words: &str, input: &str) -> String {
        let said = self.run("kubectl", &words.split_whitespace().collect::<Vec<_>>(), input);
        assert!(said.code == 0, "kubectl {words}: {}", said.err);
        said.out
    }

    /// What the canary meets, once the API server has learned of the last change: its webhooks and policies follow by watches.
    #[track_caller]
    fn await_canary(&self, words: &str) {
        let started = Instant::now();
        loop {
            let said = self.pgset("check --output=json");
            let (status, says) = said.check("canary");
            if status == "failure" && says.contains(words) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "canary is {status}, not failure with {words:?}: {says}");
        }
    }

    /// A kubeconfig for somebody whom RBAC knows only by what `role` grants, if anything.
    fn somebody(&self, name: &str, role: Option<&str>) -> String {
        if let Some(role) = role {
            self.kubectl(&format!("create clusterrolebinding {name} --clusterrole={role} --user={name}"), "");
        }
        let file = self.folder.path().join(name);
        let mut config = self.kubectl("config view --raw --output=json", "");
        let mut read: Value = serde_json::from_str(&config).unwrap();
        read["users"][0]["user"]["as"] = json!(name);
        config = read.to_string();
        std::fs::write(&file, config).unwrap();
        format!("--kubeconfig={}", file.display())
    }

    fn install(&self) {
        self.kubectl("apply -f -", &self.pgset("install").out);
    }
}

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
    said.assert("can-install", "failure", "patch deployments.apps/pgset -n pgset-system");
    said.assert("can-install", "failure", "list statefulsets.apps");
    said.assert("other-webhooks", "skipped", "may not read");

    let said = plane.pgset("check --output=json");
    assert_eq!(said.code, 1);
    said.assert("installed", "failure", "Deployment pgset-system/pgset");
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
    plane.kubectl("scale deployment pgset --replicas=1 --namespace pgset-system", "");
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
