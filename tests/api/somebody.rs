//! Somebody with the token of an account: what the API server answers him, and pgset when it has his token.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use super::plane::ControlPlane;

/// Somebody with a token.
pub struct Somebody {
    client: Client,
    kubeconfig: PathBuf,
}

impl Somebody {
    /// With the token of a service account; `bound` are the words that bind it to a pod.
    pub async fn with_token_of(plane: &ControlPlane, namespace: &str, account: &str, bound: &str) -> Self {
        let token = plane.kubectl(&format!("create token {account} --namespace {namespace} {bound}"), "");
        let mut config: Value = serde_json::from_str(&plane.kubectl("config view --raw --output=json", "")).unwrap();
        config["users"][0]["user"] = json!({"token": token});
        let kubeconfig = plane.folder.path().join(account);
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { client: client(&kubeconfig).await, kubeconfig }
    }

    pub async fn administrator(plane: &ControlPlane) -> Self {
        Self { client: client(&plane.kubeconfig()).await, kubeconfig: plane.kubeconfig() }
    }

    /// The answer, or the API server's refusal. A `PATCH` is a merge.
    pub async fn send(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let content = match method {
            // Of a pod's containers only the image may change, so the others have to stay.
            "PATCH" if path.contains("/pods/") => "application/strategic-merge-patch+json",
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = axum::http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(kube::client::Body::from(body.to_string().into_bytes()))
            .unwrap();
        let response = self.client.send(request).await.unwrap();
        let ok = response.status().is_success();
        let body: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        if ok { Ok(body) } else { Err(body["message"].as_str().unwrap_or_default().to_owned()) }
    }

    pub async fn get(&self, path: &str) -> Result<Value, String> {
        self.send("GET", path, json!({})).await
    }

    /// The API server refuses it: by RBAC, or by the policy of this name.
    pub async fn is_refused(&self, by: &str, method: &str, path: &str, body: Value) {
        let told = self.send(method, path, body.clone()).await.map_or_else(|told| told, |_| "done".to_owned());
        let words = if by == "RBAC" {
            "forbidden: User \"system:serviceaccount:".to_owned()
        } else {
            format!("ValidatingAdmissionPolicy '{by}'")
        };
        assert!(told.contains(&words), "{method} {path} {body}: {told}, and not refused by {by}");
    }
}

async fn client(kubeconfig: &Path) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = Kubeconfig::read_from(kubeconfig).unwrap();
    Client::try_from(Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap()).unwrap()
}

/// pgset itself, with somebody's token, killed when this is dropped.
pub struct Process {
    pub child: Child,
    pub log: PathBuf,
}

impl Process {
    pub fn start(who: &Somebody, words: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgset"));
        command.arg("serve").args(words).env("KUBECONFIG", &who.kubeconfig);
        let log = who.kubeconfig.with_extension("log");
        command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        Self { child: command.spawn().unwrap(), log }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
