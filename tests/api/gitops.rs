//! Sets that a tool delivers: Helm, and server-side apply as Argo CD and Flux do it. What such a tool stores is what a set has that is
//! created from the same manifest, and what it compares with, the same manifest by a dry run, is what is stored (docs/gitops.md).

use k8s_openapi::{api::apps::v1::StatefulSet, apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry};
use kube::api::{Patch, PatchParams};
use pgset::{
    inject::{Outcome, Request, Settings, inject},
    names,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::{
    cases::{self, Answer},
    goldens::unplaced,
    harness::{Lab, PATIENCE, eventually, with_webhook},
    kubectl::{Kubectl, Said, is_injected, manifest},
};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/chart");

/// The two ways by which Helm changes objects: server-side apply, and its own three-way merge, which was Helm 3's only one.
const WAYS: [&str; 2] = ["--server-side=true", "--server-side=false"];

/// Something of each kind that is injected, as `managedFields` would write it.
const INJECTED: [&str; 7] = [
    "f:pgset.dev/injected",
    "f:pgset.dev/set",
    "f:serviceAccountName",
    "pgset-run",
    "f:initContainers",
    "PG_MASTER_HOST",
    "f:startupProbe",
];

/// A spec without the order of variables: a merge puts a new one after those that are there, the injected ones among them.
fn unordered(mut spec: Value) -> Value {
    for container in spec["template"]["spec"]["containers"].as_array_mut().unwrap() {
        if let Some(variables) = container["env"].as_array_mut() {
            variables.sort_by_key(|variable| variable["name"].to_string());
        }
    }
    spec
}

impl Lab {
    /// The spec as the API server writes it.
    async fn stored(&self, name: &str) -> Value {
        let path = format!("/apis/apps/v1/namespaces/{}/statefulsets/{name}", self.name);
        unordered(self.send("GET", &path, &Value::Null).await.unwrap().0["spec"].take())
    }

    /// The spec of a set that is created from a manifest.
    async fn created(&self, manifest: &Value) -> Value {
        let settings = Settings { agent_image: names::IMAGE.to_owned() };
        let mut object = manifest.clone();
        match inject(&Request { object: manifest, old: None, settings: &settings }) {
            Outcome::Patched { patch, .. } => json_patch::patch(&mut object, &patch).unwrap(),
            Outcome::Untouched { .. } => {}
            Outcome::Denied { reason } => panic!("{reason}"),
        }
        unordered(self.dry_run_in(&self.plain(), &object).await.unwrap().0["spec"].take())
    }
}

/// Helm, with a release `db` of the chart beside this file.
struct Helm<'a> {
    lab: &'a Lab,
    program: String,
    way: &'static str,
    home: TempDir,
}

impl<'a> Helm<'a> {
    async fn new(lab: &'a Lab, way: &'static str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/build");
        let built = Command::new(script).arg("helm").output().await.unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let program = String::from_utf8(built.stdout).unwrap().trim().to_owned();
        Self { lab, program, way, home: TempDir::new().unwrap() }
    }

    /// Runs it, whatever comes of it.
    async fn tries(&self, arguments: &str) -> Said {
        let mut command = Command::new(&self.program);
        command.env("KUBECONFIG", &self.lab.kubeconfig).env("HELM_NAMESPACE", &self.lab.name);
        command.env("HOME", self.home.path());
        let output = command.args(arguments.split(' ')).output();
        let output = tokio::time::timeout(PATIENCE, output).await.unwrap_or_else(|_| panic!("helm {arguments}: hangs"));
        let output = output.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs it, and it succeeds.
    async fn does(&self, arguments: &str) -> Said {
        let said = self.tries(arguments).await;
        assert_eq!(said.code, Some(0), "helm {arguments}: {}{}", said.out, said.err);
        said
    }

    fn upgrade(&self, values: &str) -> String {
        format!("upgrade db {CHART} {} --set={values}", self.way)
    }

    /// The spec that the chart with these values is to come to.
    async fn expects(&self, values: &str) -> Value {
        let rendered = self.does(&format!("template db {CHART} --set={values}")).await.out;
        self.lab.created(&cases::object(&rendered)).await
    }

    /// Installs or upgrades the release, and looks at what is stored then.
    async fn delivers(&self, values: &str) -> StatefulSet {
        self.does(&format!("{} --install", self.upgrade(values))).await;
        assert_eq!(self.lab.stored("db").await, self.expects(values).await, "{} {values}", self.way);
        self.lab.set("db").await
    }

    async fn uninstalls(&self) {
        self.does("uninstall db").await;
        eventually("the set goes", async || match self.lab.sets().get_opt("db").await.unwrap() {
            None => Ok(()),
            Some(_) => Err("it is there".to_owned()),
        })
        .await;
    }
}

#[tokio::test]
async fn helm_installs_upgrades_rolls_back_and_uninstalls_a_set() {
    with_webhook(async |lab| {
        for way in WAYS {
            let helm = Helm::new(&lab, way).await;
            let first = "replicas=2";
            let installed = helm.delivers(first).await;
            assert!(is_injected(&installed));
            let again = helm.delivers(first).await;
            assert_eq!(again.metadata.generation, installed.metadata.generation, "{way}: an upgrade without a change");
            for values in [
                "replicas=3,image=postgres:17.2",
                "replicas=3,env.LANG=C,args={-c,max_connections=50}",
                "replicas=3,env.TZ=UTC",
                "replicas=3,command={docker-entrypoint.sh,postgres}",
                "replicas=3,command={docker-entrypoint.sh,postgres},env.TZ=UTC",
                "replicas=3",
            ] {
                assert!(is_injected(&helm.delivers(values).await), "{way} {values}");
            }
            helm.does("rollback db 1").await;
            assert_eq!(lab.stored("db").await, helm.expects(first).await, "{way}: rolled back");
            helm.uninstalls().await;
        }
    })
    .await;
}

#[tokio::test]
async fn helm_annotates_a_running_set_and_takes_the_annotation_off_again() {
    with_webhook(async |lab| {
        for way in WAYS {
            let helm = Helm::new(&lab, way).await;
            let plain = helm.delivers("inject=").await;
            assert!(!is_injected(&plain));
            assert!(is_injected(&helm.delivers("inject=enabled").await), "{way}: adopted");
            let left = helm.delivers("inject=").await;
            assert_eq!(
                (&left.spec, &left.metadata.annotations),
                (&plain.spec, &plain.metadata.annotations),
                "{way}: left"
            );

            let two = helm.delivers("replicas=2").await;
            for at_once in ["inject=,replicas=2", "inject=,replicas=1"] {
                let refused = helm.tries(&helm.upgrade(at_once)).await;
                assert!(refused.code != Some(0) && refused.err.contains("--replicas=1"), "{way}: {refused:?}");
                assert_eq!(lab.set("db").await.metadata.generation, two.metadata.generation, "{way}: nothing moved");
            }
            helm.delivers("replicas=1").await;
            assert!(!is_injected(&helm.delivers("inject=").await), "{way}: one member may leave");
            helm.uninstalls().await;
        }
    })
    .await;
}

#[tokio::test]
async fn helm_scales_back_what_was_scaled_by_hand_or_says_that_this_is_not_its_own_any_more() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        for way in WAYS {
            let helm = Helm::new(&lab, way).await;
            helm.delivers("replicas=2").await;
            kubectl.does("scale statefulset db --replicas=3").await;
            if way == "--server-side=true" {
                let told = helm.tries(&helm.upgrade("replicas=2")).await;
                let conflict = "Apply failed with 1 conflict";
                assert!(told.err.contains(conflict) && told.err.contains(": .spec.replicas"), "{told:?}");
                helm.does(&format!("{} --force-conflicts", helm.upgrade("replicas=2"))).await;
            }
            assert!(is_injected(&helm.delivers("replicas=2").await), "{way}");
            helm.uninstalls().await;
        }
    })
    .await;
}

/// Who owns a field of a set but for its status, by what its `managedFields` have of it.
fn owners<'a>(set: &'a StatefulSet, field: &str) -> Vec<&'a str> {
    let has = |entry: &&ManagedFieldsEntry| {
        entry.subresource.is_none() && entry.fields_v1.as_ref().is_some_and(|it| it.0.to_string().contains(field))
    };
    let entries = set.metadata.managed_fields.iter().flatten().filter(has);
    entries.filter_map(|entry| entry.manager.as_deref()).collect()
}

fn replicas(set: &StatefulSet) -> Option<i32> {
    set.spec.as_ref().unwrap().replicas
}

/// What a manager applies who has an opinion on the scale alone.
fn scale(replicas: u32) -> String {
    format!("apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: db}}\nspec: {{replicas: {replicas}}}\n")
}

#[tokio::test]
async fn one_manager_has_the_scale_and_one_the_rest_and_nobody_has_what_was_injected() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let by = |manager: &str| format!("--server-side --field-manager={manager} -f");
        let text = manifest("db", 1, "").replace("  replicas: 1\n", "");
        let rest = kubectl.file("set.yaml", &text);
        let scaled = kubectl.file("scale.yaml", &scale(3));
        kubectl.does(&format!("apply {} {rest}", by("git"))).await;
        assert_eq!(replicas(&lab.set("db").await), Some(1), "the default");
        for _ in 0..2 {
            kubectl.does(&format!("apply {} {scaled}", by("scaler"))).await;
            kubectl.does(&format!("apply {} {rest}", by("git"))).await;
        }
        let set = lab.set("db").await;
        assert_eq!((replicas(&set), set.metadata.generation), (Some(3), Some(2)));
        assert_eq!(owners(&set, "f:replicas"), ["scaler"]);

        let newer = text.replace("postgres:17", "postgres:17.2");
        let rest = kubectl.file("set.yaml", &newer);
        kubectl.does(&format!("apply {} {rest}", by("git"))).await;
        for (manager, file) in [("git", &rest), ("scaler", &scaled)] {
            assert_eq!(kubectl.does(&format!("diff {} {file}", by(manager))).await.out, "", "{manager}");
        }
        let mut expected = lab.created(&cases::object(&newer)).await;
        expected["replicas"] = json!(3);
        assert_eq!(lab.stored("db").await, expected);
        let set = lab.set("db").await;
        for field in INJECTED {
            assert!(owners(&set, field).is_empty(), "{field}: {:?}", owners(&set, field));
        }
        // As an autoscaler does it.
        kubectl.does("scale statefulset db --replicas=4").await;
        kubectl.does(&format!("apply {} {rest}", by("git"))).await;
        assert_eq!(replicas(&lab.set("db").await), Some(4));
    })
    .await;
}

#[tokio::test]
async fn who_gives_up_the_scale_before_another_has_it_scales_to_one() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let (mine, none) = (manifest("db", 3, ""), manifest("db", 3, "").replace("  replicas: 3\n", ""));
        for (taken_over, left) in [(true, 3), (false, 1)] {
            let apply = async |manager: &str, text: &str| {
                let file = kubectl.file("set.yaml", text);
                kubectl.does(&format!("apply --server-side --field-manager={manager} -f {file}")).await;
            };
            apply("git", &mine).await;
            if taken_over {
                apply("scaler", &scale(3)).await;
            }
            apply("git", &none).await;
            let set = lab.set("db").await;
            assert_eq!((replicas(&set), is_injected(&set)), (Some(left), true));
            kubectl.does("delete statefulset db").await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_set_goes_from_client_side_to_server_side_apply_and_back() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let plain = manifest("db", 2, "");
        let with = |name: &str| {
            plain.replace("        ports:", &format!("        env: [{{name: {name}, value: C}}]\n        ports:"))
        };
        for (way, text) in [
            ("", with("LANG")),
            ("--server-side ", with("LANG")),
            ("--server-side ", with("LC_ALL")),
            ("", with("LANG").replace("=50", "=60")),
            ("", plain.clone()),
            ("--server-side ", with("LANG")),
            ("--server-side ", plain.clone()),
        ] {
            let file = kubectl.file("set.yaml", &text);
            kubectl.does(&format!("apply {way}-f {file}")).await;
            assert_eq!(lab.stored("db").await, lab.created(&cases::object(&text)).await, "apply {way}of\n{text}");
            assert_eq!(kubectl.does(&format!("diff {way}-f {file}")).await.out, "");
        }
    })
    .await;
}

#[tokio::test]
async fn a_variable_that_comes_later_under_an_injected_name_is_the_users() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let plain = std::fs::read_to_string(cases::directory().join("claim-image.yaml")).unwrap();
        for way in ["", "--server-side "] {
            for own in ["", "        env: [{name: PG_ROOT_PASSWORD, value: own}]\n", ""] {
                let text = format!("{plain}{own}");
                let file = kubectl.file("set.yaml", &text);
                kubectl.does(&format!("apply {way}-f {file}")).await;
                assert_eq!(lab.stored("pgset").await, lab.created(&cases::object(&text)).await, "apply {way}{own}");
            }
            kubectl.does("delete statefulset pgset").await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_annotation_comes_and_goes_by_server_side_apply() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let annotated = manifest("db", 0, "");
        let plain =
            annotated.replace("  annotations:\n    pgset.dev/inject: enabled\n    pgset.dev/claim: shared\n", "");
        assert!(!plain.contains("pgset.dev"));
        for text in [&plain, &annotated, &plain] {
            let file = kubectl.file("set.yaml", text);
            kubectl.does(&format!("apply --server-side --field-manager=git -f {file}")).await;
            assert_eq!(lab.stored("db").await, lab.created(&cases::object(text)).await);
            assert_eq!(kubectl.does(&format!("diff --server-side --field-manager=git -f {file}")).await.out, "");
        }
        assert_eq!(lab.set("db").await.metadata.annotations.unwrap_or_default().len(), 0);
    })
    .await;
}

/// As Flux does it, which makes its own what `kubectl` has applied, and what nobody's `managedFields` tell of.
#[tokio::test]
async fn who_has_applied_the_injection_as_his_own_and_leaves_it_out_changes_nothing() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let apply = async |text: &str| {
            let file = kubectl.file("set.yaml", text);
            kubectl.does(&format!("apply --server-side --field-manager=git -f {file}")).await;
            lab.set("db").await
        };
        let own = manifest("db", 2, "");
        let stored = serde_json::to_value(apply(&own).await).unwrap();
        let metadata = json!({"name": "db", "annotations": stored["metadata"]["annotations"]});
        let all = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": stored["spec"]});
        for (text, owned) in [(all.to_string(), vec!["git"]), (own, vec![])] {
            let set = apply(&text).await;
            assert_eq!(serde_json::to_value(&set.spec).unwrap(), stored["spec"]);
            assert_eq!(json!([set.metadata.generation, set.metadata.annotations]), json!([1, metadata["annotations"]]));
            for field in INJECTED {
                assert_eq!(owners(&set, field), owned, "{field}");
            }
        }
    })
    .await;
}

/// What Argo CD's Server-Side Diff and Flux do over and over: a dry run of what they have applied, compared with what is stored.
#[tokio::test]
async fn a_dry_run_of_what_was_applied_is_what_is_stored_also_under_a_newer_pgset() {
    with_webhook(async |lab| {
        let mut seen = 0;
        for case in cases::all() {
            let Answer::Injected(_) = case.answer() else { continue };
            let object = unplaced(case.object().unwrap());
            let name = object["metadata"]["name"].as_str().unwrap();
            let (force, dry) =
                (PatchParams::apply("argocd-controller").force(), PatchParams::apply("argocd-controller").dry_run());
            lab.upgrade(names::IMAGE);
            // What the API server refuses by itself, and updates, which need another set before them.
            let Ok(stored) = lab.sets().patch(name, &force, &Patch::Apply(&object)).await else { continue };
            lab.upgrade("pgset.dev/pgset:99.0.0");
            let predicted = lab.sets().patch(name, &dry, &Patch::Apply(&object)).await.unwrap();
            let compared = |set: &StatefulSet| {
                let StatefulSet { metadata, spec, .. } = set.clone();
                (metadata.annotations, metadata.labels, metadata.generation, spec)
            };
            assert_eq!(compared(&predicted), compared(&stored), "{}", case.name);

            // What Argo CD sends with RespectIgnoreDifferences where the command is to be ignored: the one that is stored.
            let mut respectful = object.clone();
            let live = serde_json::to_value(&stored).unwrap();
            let containers = respectful["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
            for (container, live) in
                containers.iter_mut().zip(live["spec"]["template"]["spec"]["containers"].as_array().unwrap())
            {
                if container["command"].is_array() {
                    container["command"] = live["command"].clone();
                }
            }
            let sent = lab.sets().patch(name, &dry, &Patch::Apply(&respectful)).await.unwrap();
            assert_eq!(sent.spec, stored.spec, "{}", case.name);
            lab.forget_sets().await;
            seen += 1;
        }
        assert!(seen > 30, "{seen} sets");
    })
    .await;
}
