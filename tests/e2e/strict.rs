//! Namespaces with rules of their own: Pod Security at its strictest, quotas, limits, no token for anybody, network policies.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;

use crate::{
    install::objects,
    lab::{self, Database, Lab, Namespace, SOON, wait_until},
    manifests::{Set, example, set},
};

/// A namespace where Pod Security is `restricted`, and where every container has to say what it requests and its limits.
fn strict_namespace<'lab>(lab: &'lab Lab, theme: &str) -> Namespace<'lab> {
    let ns = lab.empty_namespace(theme);
    let levels = ["enforce", "warn", "audit"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
    ns.kubectl(&format!("label namespace {} {}", ns.name, levels.join(" ")));
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"},
            "spec": {"hard": {"requests.cpu": "1", "requests.memory": "1Gi", "limits.cpu": "8", "limits.memory": "4Gi"}}})
        .to_string(),
    );
    // A quota takes no pod before it has counted those that there are.
    wait_until(SOON, "the quota has counted", || {
        ns.try_get("resourcequota quota")?["status"]["used"]["limits.cpu"]
            .as_str()
            .map(drop)
            .ok_or("not yet".to_owned())
    });
    ns.start_client();
    ns
}

/// What `restricted` asks of whoever writes a pod.
fn restricted(set: Set, user: u32) -> Set {
    let pods = json!({"runAsNonRoot": true, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"}});
    set.pod("securityContext", pods)
        .container("securityContext", json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}))
}

/// Applied without a warning of Pod Security's, two members run and stream, and no pod was refused on the way.
fn runs_without_a_warning<'ns>(ns: &'ns Namespace<'_>, set: &Set) -> Database<'ns> {
    ns.shared_claim("pgset-pvc");
    let said = ns.apply(&set.manifest());
    // pgset's own, of what a set of two can lose, is all: Pod Security has none.
    let warnings: Vec<&str> = said.err.lines().filter(|line| !line.contains("pgset.dev/synchronous 0")).collect();
    assert_eq!(warnings, [""; 0]);
    ns.wait_ready("pgset", 2);
    let db = ns.database("pgset");
    db.wait_streaming(&["pgset-1"]);
    db.write_numbers();
    db.wait_for("pgset-replica", "select count(*) from numbers", "10000");
    // The first pod may come before the set's account does, and is then made again.
    let of_rules = |event: &String| event.starts_with("FailedCreate") && !event.contains("service account");
    let refused: Vec<String> = ns.events("StatefulSet", "pgset").into_iter().filter(of_rules).collect();
    assert_eq!(refused, [""; 0]);
    db
}

/// The user id that PostgreSQL's first process runs as.
fn user_of_postgres(ns: &Namespace<'_>, pod: &str) -> String {
    ns.shell(pod, "postgres", "stat -c %u $PGDATA/postmaster.pid && id -u")
        .unwrap_or_else(|said| panic!("{}", said.err))
        .out
}

#[test]
fn the_strictest_namespace_runs_a_set_as_user_999() {
    let lab = lab::shared();
    let ns = strict_namespace(&lab, "strict-999");
    // The container says nothing of resources: the LimitRange says it for it. Its least and its ratio hold for what is
    // injected, too.
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits"}, "spec": {"limits": [{
            "type": "Container",
            "defaultRequest": {"cpu": "50m", "memory": "64Mi"}, "default": {"cpu": "1", "memory": "512Mi"},
            "min": {"cpu": "20m", "memory": "32Mi"}, "max": {"cpu": "2", "memory": "1Gi"},
            "maxLimitRequestRatio": {"cpu": "20", "memory": "8"},
        }]}})
        .to_string(),
    );
    runs_without_a_warning(&ns, &restricted(set("pgset"), 999));
    assert_eq!(user_of_postgres(&ns, "pgset-0"), "999\n999");
    let resources = ns.get("pod pgset-0")["spec"]["containers"][0]["resources"].clone();
    assert_eq!(resources["limits"]["memory"], "512Mi", "{resources}");
}

#[test]
fn the_strictest_namespace_runs_a_set_as_user_70_of_alpines_images() {
    let lab = lab::shared();
    let ns = strict_namespace(&lab, "strict-70");
    let resources = json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}});
    let set =
        restricted(set("pgset"), 70).container("image", json!("postgres:17-user70")).container("resources", resources);
    runs_without_a_warning(&ns, &set);
    assert_eq!(user_of_postgres(&ns, "pgset-1"), "70\n70");
}

#[test]
fn a_user_whom_the_image_does_not_know_runs_a_set() {
    let lab = lab::shared();
    let ns = strict_namespace(&lab, "strict-unknown");
    let resources = json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}});
    runs_without_a_warning(&ns, &restricted(set("pgset"), 70).container("resources", resources));
    assert_eq!(user_of_postgres(&ns, "pgset-0"), "70\n70");
}

#[test]
fn a_quota_without_defaults_takes_what_is_injected_and_the_pods_stay_guaranteed() {
    let lab = lab::shared();
    let ns = strict_namespace(&lab, "strict-quota");
    let same = json!({"cpu": "200m", "memory": "128Mi"});
    let set = restricted(set("pgset"), 999).container("resources", json!({"requests": same, "limits": same}));
    runs_without_a_warning(&ns, &set);
    for pod in ["pgset-0", "pgset-1"] {
        assert_eq!(ns.get(&format!("pod {pod}"))["status"]["qosClass"], "Guaranteed", "as without pgset");
    }
    // the quota counts the pods as it would without pgset: the init container needs no more than PostgreSQL
    let used = ns.get("resourcequota quota")["status"]["used"].clone();
    assert_eq!(used["requests.cpu"], "410m", "two members and the client: {used}");
}

#[test]
fn a_service_account_without_a_token_stays_without() {
    let lab = lab::shared();
    let ns = lab.namespace("no-token");
    ns.apply(
        &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "database"},
            "automountServiceAccountToken": false})
        .to_string(),
    );
    let set =
        set("pgset").pod("serviceAccountName", json!("database")).pod("automountServiceAccountToken", json!(false));
    ns.two_members(&set);
    assert_eq!(ns.get("serviceaccount database")["automountServiceAccountToken"], false);
    let template = ns.get("statefulset pgset")["spec"]["template"]["spec"].clone();
    assert_eq!(
        (&template["automountServiceAccountToken"], &template["serviceAccountName"]),
        (&json!(false), &json!("database"))
    );
    for pod in ["pgset-0", "pgset-1"] {
        let said = ns.shell(pod, "postgres", "ls /var/run/secrets/kubernetes.io").unwrap_err();
        assert!(said.err.contains("No such file"), "{}", said.err);
        let spec = ns.get(&format!("pod {pod}"))["spec"].clone();
        assert!(!spec.to_string().contains("/var/run/secrets"), "in no container: {spec}");
    }
    // the master wrote its own label and holds the Lease: with the token of the projected volume
    assert_eq!(ns.label("pod pgset-0", "pgset.dev/role").as_deref(), Some("master"));
    let lease = ns.get("lease pgset-leader");
    assert!(lease["spec"]["holderIdentity"].as_str().unwrap().contains("pgset-0"), "{lease}");
}

#[test]
fn an_api_server_takes_the_network_policies() {
    let lab = lab::shared();
    let ns = lab.empty_namespace("policies");
    let said =
        ns.try_kubectl_with(&["apply", "--dry-run=server", "-f", "-"], Some(&example("network-policy"))).unwrap();
    assert_eq!(
        (said.out.as_str(), said.err.as_str()),
        ("networkpolicy.networking.k8s.io/pgset created (server dry run)", "")
    );

    let printed =
        lab::run(Command::new(env!("CARGO_BIN_EXE_pgset")).args(["install", "--network-policies"]), None).unwrap().out;
    let words = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", "-"];
    let said = lab::run(lab::kubectl().args(words), Some(&printed)).unwrap_or_else(|said| panic!("{}", said.err));
    assert!(
        said.out.contains("networkpolicy.networking.k8s.io/pgset-webhook serverside-applied (server dry run)"),
        "{}",
        said.out
    );

    // the component of kustomize makes the same of the folder
    let overlay = ns.export();
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    fs::create_dir_all(&overlay).unwrap();
    let here = |path: &str| relative(&overlay, Path::new(path));
    let kustomization = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [here(deploy)], "components": [here(&format!("{deploy}/network-policy"))]});
    fs::write(overlay.join("kustomization.yaml"), kustomization.to_string()).unwrap();
    let overlay = overlay.to_str().unwrap().to_owned();
    let built =
        lab::run(lab::kubectl().args(["kustomize", &overlay]), None).unwrap_or_else(|said| panic!("{}", said.err)).out;
    assert_eq!(objects(&built), objects(&printed));
}

/// kustomize takes no absolute path of a folder.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let up = from.canonicalize().unwrap().components().skip(1).map(|_| "..").collect::<PathBuf>();
    up.join(to.canonicalize().unwrap().strip_prefix("/").unwrap())
}
