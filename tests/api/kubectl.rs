//! What people type: every way by which kubectl changes a set leaves the injection as it is, and nothing of it shows.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use kube::{Api, api::ListParams};
use pgset::names::{annotation, pod};
use tempfile::TempDir;
use tokio::process::Command;

use super::harness::{Lab, PATIENCE, with_webhook};

/// kubectl, in the namespace of a test and with a folder for its files.
pub struct Kubectl<'a> {
    lab: &'a Lab,
    folder: TempDir,
}

/// What it said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl<'a> Kubectl<'a> {
    pub fn new(lab: &'a Lab) -> Self {
        Self { lab, folder: TempDir::new().unwrap() }
    }

    /// A file of the test's.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Applies a set that is written there; its file.
    pub async fn apply(&self, manifest: &str) -> String {
        let file = self.file("set.yaml", manifest);
        self.does(&format!("apply -f {file}")).await;
        file
    }

    /// Runs it, whatever comes of it.
    pub async fn tries(&self, arguments: &str) -> Said {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.lab.kubeconfig).args(["--namespace", &self.lab.name]);
        // The editor of `kubectl edit`: it scales.
        command.env("KUBE_EDITOR", "sed -i 's/^  replicas: .*/  replicas: 4/'");
        let output = command.args(arguments.split(' ')).output();
        let output =
            tokio::time::timeout(PATIENCE, output).await.unwrap_or_else(|_| panic!("kubectl {arguments}: hangs"));
        let output = output.unwrap_or_else(|error| panic!("kubectl {arguments}: {error}"));
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs it, and it succeeds.
    pub async fn does(&self, arguments: &str) -> Said {
        let said = self.tries(arguments).await;
        assert_eq!(said.code, Some(0), "kubectl {arguments}: {}{}", said.out, said.err);
        said
    }
}

/// A set of people who write YAML.
pub fn manifest(name: &str, replicas: u32, more: &str) -> String {
    let mut text = format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: {name}\n  annotations:\n    pgset.dev/inject: enabled\n    \
         pgset.dev/claim: shared\nspec:\n  serviceName: {name}\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n"
    );
    for line in more.lines() {
        writeln!(text, "  {line}").unwrap();
    }
    write!(
        text,
        "  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      containers:\n      - name: postgres\n        \
         image: postgres:17\n        args: [\"-c\", \"max_connections=50\"]\n        ports: [{{containerPort: 5432}}]\n"
    )
    .unwrap();
    text
}

impl Lab {
    pub async fn set(&self, name: &str) -> StatefulSet {
        self.sets().get(name).await.unwrap()
    }

    /// The names of a set's `ControllerRevisions`, once the `StatefulSet` controller has seen it as it is: a new one restarts pods.
    pub async fn revisions(&self, name: &str) -> Vec<String> {
        let observed = async {
            loop {
                let set = self.set(name).await;
                let status = set.status.unwrap_or_default();
                if status.observed_generation == set.metadata.generation && status.update_revision.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let observed = tokio::time::timeout(PATIENCE, observed).await;
        assert!(observed.is_ok(), "the StatefulSet controller does not see {name}: {:?}", self.set(name).await.status);
        let all: Api<ControllerRevision> = Api::namespaced(self.client.clone(), &self.name);
        let all = all.list(&ListParams::default()).await.unwrap().items;
        let owned = all.into_iter().filter(|revision| {
            let owners = revision.metadata.owner_references.as_deref().unwrap_or_default();
            owners.iter().any(|owner| owner.name == name)
        });
        let mut names: Vec<_> = owned.filter_map(|revision| revision.metadata.name).collect();
        names.sort();
        names
    }
}

/// Whether the injection is there.
pub fn is_injected(set: &StatefulSet) -> bool {
    let template = &set.spec.as_ref().unwrap().template;
    let containers = template.spec.as_ref().unwrap();
    let agent = containers.init_containers.iter().flatten().any(|it| it.name == pod::INIT_CONTAINER);
    let command = containers.containers[0].command.iter().flatten().next();
    agent && command.is_some_and(|word| word == pod::AGENT_PATH)
}

fn generation(set: &StatefulSet) -> i64 {
    set.metadata.generation.unwrap()
}

#[tokio::test]
async fn apply_then_diff_is_empty_and_applying_again_moves_nothing() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.apply(&manifest("db", 2, "")).await;
        let first = lab.set("db").await;
        assert!(is_injected(&first));
        let revisions = lab.revisions("db").await;
        for _ in 0..2 {
            assert_eq!(kubectl.does(&format!("diff -f {file}")).await.out, "");
            assert_eq!(kubectl.does(&format!("apply -f {file}")).await.out, "statefulset.apps/db unchanged\n");
        }
        let last = lab.set("db").await;
        assert_eq!((&last.spec, generation(&last)), (&first.spec, 1));
        assert_eq!((revisions.len(), lab.revisions("db").await), (1, revisions));
    })
    .await;
}

#[tokio::test]
async fn a_changed_file_shows_in_diff_as_what_its_user_changed() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        kubectl.apply(&manifest("db", 2, "")).await;
        let file = kubectl.file("set.yaml", &manifest("db", 2, "").replace("max_connections=50", "max_connections=60"));
        let diff = kubectl.tries(&format!("diff -f {file}")).await;
        let changed = |sign: char| -> Vec<String> {
            let lines = diff
                .out
                .lines()
                .filter(|line| line.starts_with(sign) && !line.starts_with(&[sign; 3].iter().collect::<String>()));
            lines.map(|line| line[1..].trim().to_owned()).collect()
        };
        assert_eq!(diff.code, Some(1), "{}", diff.err);
        assert_eq!(changed('-'), ["generation: 1", "- max_connections=50"], "{}", diff.out);
        assert_eq!(changed('+'), ["generation: 2", "- max_connections=60"], "{}", diff.out);
        assert_eq!(generation(&lab.set("db").await), 1, "diff stores nothing");
    })
    .await;
}

#[tokio::test]
async fn two_managers_apply_one_file_by_server_side_apply_without_a_conflict() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.file("set.yaml", &manifest("db", 2, ""));
        for manager in ["one", "two", "one"] {
            kubectl.does(&format!("apply --server-side --field-manager={manager} -f {file}")).await;
            assert_eq!(kubectl.does(&format!("diff --server-side --field-manager={manager} -f {file}")).await.out, "");
        }
        let set = lab.set("db").await;
        assert!(is_injected(&set));
        assert_eq!(generation(&set), 1);
        assert_eq!(lab.revisions("db").await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn of_a_set_with_a_command_of_its_own_a_second_manager_is_told_and_nothing_moves() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let text = manifest("db", 2, "").replace("        args:", "        command: [postgres]\n        args:");
        let file = kubectl.file("set.yaml", &text);
        let mut forced = false;
        let apply = |manager: &str| format!("apply --server-side --field-manager={manager} -f {file}");
        for arguments in [apply("one"), apply("one"), apply("two"), apply("two") + " --force-conflicts", apply("two")] {
            let said = kubectl.tries(&arguments).await;
            // Kubernetes' own rule for a value that a webhook changed (kubernetes#129960); `args` have no such trouble.
            let is_told =
                said.err.contains("conflict with \"one\": .spec.template.spec.containers[name=\"postgres\"].command");
            assert_eq!(
                (said.code == Some(0), is_told),
                if arguments == apply("two") && !forced { (false, true) } else { (true, false) },
                "{arguments}: {}",
                said.err
            );
            forced |= arguments.ends_with("--force-conflicts");
            let set = lab.set("db").await;
            assert!(is_injected(&set));
            assert_eq!(generation(&set), 1, "{arguments}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_set_is_created_replaced_edited_scaled_and_restarted() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.file("set.yaml", &manifest("db", 2, ""));
        kubectl.does(&format!("create -f {file}")).await;
        let created = lab.set("db").await;
        let template = |set: &StatefulSet| set.spec.clone().unwrap().template;

        kubectl.does(&format!("replace -f {file}")).await;
        let replaced = lab.set("db").await;
        assert_eq!((&replaced.spec, generation(&replaced)), (&created.spec, 1), "replace");

        kubectl.does("edit statefulset db").await;
        let edited = lab.set("db").await;
        assert_eq!((template(&edited), edited.spec.unwrap().replicas), (template(&created), Some(4)), "edit");

        kubectl.does("scale statefulset db --replicas=3").await;
        let scaled = lab.set("db").await;
        assert_eq!((template(&scaled), scaled.spec.unwrap().replicas), (template(&created), Some(3)), "scale");
        assert_eq!(lab.revisions("db").await.len(), 1, "so far nothing restarts a pod");

        kubectl.does("rollout restart statefulset db").await;
        let mut restarted = template(&lab.set("db").await);
        let stamp = restarted.metadata.as_mut().unwrap().annotations.take().unwrap();
        assert!(stamp.contains_key("kubectl.kubernetes.io/restartedAt"), "{stamp:?}");
        assert_eq!(restarted, template(&created), "restart");
        assert_eq!(lab.revisions("db").await.len(), 2, "restart is a new revision");
    })
    .await;
}

#[tokio::test]
async fn the_annotation_goes_only_when_no_member_would_lose_its_data() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        kubectl.apply(&manifest("db", 2, "")).await;
        let remove = format!("annotate statefulset db {}-", annotation::INJECT);
        let said = kubectl.tries(&remove).await;
        let hint = format!("kubectl scale statefulset db --namespace={} --replicas=0", lab.name);
        let past = format!("kubectl label namespace {} pgset.dev/webhook=disabled", lab.name);
        assert!(said.code == Some(1) && said.err.contains(&hint) && said.err.contains(&past), "{}", said.err);

        kubectl.does("scale statefulset db --replicas=0").await;
        let said = kubectl.does(&remove).await;
        assert!(said.err.contains("Warning: each member's data stays"), "{}", said.err);
        assert!(!is_injected(&lab.set("db").await));
    })
    .await;
}

#[tokio::test]
async fn a_dry_run_of_the_server_shows_what_would_be_stored_and_stores_nothing() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.file("set.yaml", &manifest("db", 2, ""));
        let preview = kubectl.does(&format!("apply --dry-run=server -o json -f {file}")).await.out;
        let preview: StatefulSet = serde_json::from_str(&preview).unwrap();
        assert!(lab.sets().get_opt("db").await.unwrap().is_none());
        kubectl.does(&format!("apply -f {file}")).await;
        assert_eq!(preview.spec, lab.set("db").await.spec);
    })
    .await;
}

#[tokio::test]
async fn a_warning_is_told_once() {
    with_webhook(async |lab| {
        let kubectl = Kubectl::new(&lab);
        let file = kubectl.file("set.yaml", &manifest("db", 2, "").replace("postgres:17", "postgres"));
        let first = kubectl.does(&format!("apply -f {file}")).await.err;
        assert!(first.contains("Warning: image postgres names no version"), "{first}");
        let text = manifest("db", 3, "").replace("postgres:17", "postgres").replace("=50", "=60");
        let file = kubectl.file("set.yaml", &text);
        assert_eq!(kubectl.does(&format!("apply -f {file}")).await.err, "");
    })
    .await;
}
