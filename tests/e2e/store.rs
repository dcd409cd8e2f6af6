//! An S3 server on the machine that the lab runs on, where its pods reach it: on the lab's own link.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::lab::{Namespace, SOON, wait_until};

const ACCESS_KEY: &str = "pgset-tests";
/// What must stand nowhere but in the Secret.
pub const SECRET_KEY: &str = "not-to-be-seen-anywhere";
/// The machine's end of the link to the lab (`host_address` in tests/lab/lab.sh).
const HOST: &str = "198.18.255.1";
const BUCKET: &str = "backups";

/// versitygw, which keeps objects as files.
pub struct S3 {
    program: PathBuf,
    directory: PathBuf,
    address: String,
    process: Option<Child>,
}

impl S3 {
    /// Starts one with an empty bucket, and gives a set its credentials.
    pub fn start(ns: &Namespace<'_>, set: &str, port: u16) -> Self {
        let directory = ns.export().join("s3");
        fs::create_dir_all(directory.join(BUCKET)).unwrap();
        let mut server = Self { program: program(), directory, address: format!("{HOST}:{port}"), process: None };
        server.start_again();
        ns.apply(
            &json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{set}-pgset-backup")},
                "stringData": {
                    "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1",
                    "AWS_ENDPOINT_URL": format!("http://{}", server.address),
                },
            })
            .to_string(),
        );
        server
    }

    /// Where a set's backups go there.
    pub fn location(prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Where the objects below a prefix lie.
    pub fn objects(&self, prefix: &str) -> PathBuf {
        self.directory.join(BUCKET).join(prefix)
    }

    /// It is away.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// It is there again.
    pub fn start_again(&mut self) {
        let log = fs::File::create(self.directory.with_extension("log")).unwrap();
        let mut command = Command::new(&self.program);
        command.args([
            "--access",
            ACCESS_KEY,
            "--secret",
            SECRET_KEY,
            "--port",
            &self.address,
            "--region",
            "us-east-1",
        ]);
        command.arg("posix").arg(&self.directory).stdin(Stdio::null());
        self.process = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        wait_until(SOON, "the S3 server answers", || {
            let address = self.address.parse().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop).map_err(|error| error.to_string())
        });
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}

fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/build");
    let output = Command::new(script).arg("versitygw").stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "versitygw was not built");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
