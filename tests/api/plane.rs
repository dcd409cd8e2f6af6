//! A control plane of a test's own, for what is about objects of which a cluster has one, and the programs that a user types there.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Instant,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::harness::PATIENCE;

/// A control plane, taken down whatever the end.
pub struct ControlPlane {
    pub folder: TempDir,
}

pub fn script(command: &str, folder: &std::path::Path) -> Output {
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
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The lines of `check --output=json`, by their ids: `failure: one line`, and what was found.
    pub fn check(&self, id: &str) -> (String, String) {
        let report: Value = serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no {id} in {report}"));
        (check["status"].as_str().unwrap().to_owned(), format!("{}: {}", check["says"], check["found"]))
    }

    #[track_caller]
    pub fn assert(&self, id: &str, status: &str, words: &str) {
        let (found, says) = self.check(id);
        assert!(found == status && says.contains(words), "{id} is {found}, not {status} with {words:?}: {says}");
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl ControlPlane {
    pub fn up() -> Self {
        let plane = Self { folder: tempfile::tempdir().unwrap() };
        let said = script("up", plane.folder.path());
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        plane
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub fn run(&self, program: &str, words: &[&str], input: &str) -> Said {
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

    pub fn pgset(&self, words: &str) -> Said {
        self.run(env!("CARGO_BIN_EXE_pgset"), &words.split_whitespace().collect::<Vec<_>>(), "")
    }

    pub fn kubectl(&self, words: &str, input: &str) -> String {
        let said = self.run("kubectl", &words.split_whitespace().collect::<Vec<_>>(), input);
        assert!(said.code == 0, "kubectl {words}: {}", said.err);
        said.out
    }

    /// What the canary meets, once the API server has learned of the last change: its webhooks and policies follow by watches.
    #[track_caller]
    pub fn await_canary(&self, words: &str) {
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
    pub fn somebody(&self, name: &str, role: Option<&str>) -> String {
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

    pub fn install(&self) {
        self.kubectl("apply -f -", &self.pgset("install").out);
    }
}
