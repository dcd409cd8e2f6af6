//! Servers that keep objects, on the machine that the lab runs on, where its pods reach them: on the lab's own link.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::hmac;
use serde_json::{Value, json};

use crate::lab::{Namespace, SOON, run, wait_until};

const ACCESS_KEY: &str = "pgset-tests";
/// What must stand nowhere but in the Secret.
pub const SECRET_KEY: &str = "not-to-be-seen-anywhere";
/// Azure's, which knows fewer letters than an access key.
const ACCOUNT: &str = "pgsettests";
/// The machine's end of the link to the lab (`host_address` in tests/lab/lab.sh).
const HOST: &str = "198.18.255.1";
const BUCKET: &str = "backups";
/// Until when what is signed for Azure is good.
const FOREVER: &str = "2999-01-01";

/// Which program it is, and so whose language it speaks.
#[derive(Clone, Copy)]
pub enum Kind {
    /// S3's: keeps objects as files.
    Versitygw,
    /// S3's: keeps objects in its memory.
    Moto,
    /// Google's.
    FakeGcs,
    /// Azure's.
    Azurite,
}

/// A server that keeps objects.
pub struct Server {
    kind: Kind,
    program: PathBuf,
    directory: PathBuf,
    port: u16,
    /// Where it is asked: at its own port, or at that of a proxy before it.
    asked_at: u16,
    process: Option<Child>,
}

impl Kind {
    /// What it is called below tests/peers.
    fn name(self) -> &'static str {
        match self {
            Self::Versitygw => "versitygw",
            Self::Moto => "moto",
            Self::FakeGcs => "fake-gcs-server",
            Self::Azurite => "azurite",
        }
    }

    fn program(self) -> PathBuf {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/build");
        let output = Command::new(script).arg(self.name()).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{} was not built", self.name());
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    }
}

impl Server {
    /// Starts one with an empty bucket, and gives a set its credentials.
    pub fn start(kind: Kind, ns: &Namespace<'_>, set: &str, port: u16) -> Self {
        let directory = ns.export().join(kind.name());
        // For those that keep files it is the bucket.
        fs::create_dir_all(directory.join(BUCKET)).unwrap();
        let mut server = Self { kind, program: kind.program(), directory, port, asked_at: port, process: None };
        server.start_again();
        server.make_bucket();
        server.give(ns, set);
        server
    }

    /// Whoever is given its credentials from now on asks at another port. Answers that address, and its own.
    pub fn asked_at(&mut self, port: u16) -> [String; 2] {
        self.asked_at = port;
        [format!("{HOST}:{port}"), self.address()]
    }

    /// Gives a set the credentials.
    pub fn give(&self, ns: &Namespace<'_>, set: &str) {
        ns.apply(
            &json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": format!("{set}-pgset-backup")},
                "stringData": self.credentials(),
            })
            .to_string(),
        );
    }

    fn credentials(&self) -> Value {
        let url = format!("http://{HOST}:{}", self.asked_at);
        match self.kind {
            Kind::Versitygw | Kind::Moto => json!({
                "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": url,
            }),
            // A service account's key, by which the crate object_store asks this server, and nobody for a token.
            Kind::FakeGcs => {
                let key = json!({
                    "client_email": ACCESS_KEY, "private_key": SECRET_KEY, "private_key_id": "1", "gcs_base_url": url,
                    "disable_oauth": true,
                });
                json!({"GOOGLE_APPLICATION_CREDENTIALS_JSON": key.to_string()})
            }
            Kind::Azurite => json!({
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": STANDARD.encode(SECRET_KEY),
                "AZURE_STORAGE_ENDPOINT": format!("{url}/{ACCOUNT}"),
            }),
        }
    }

    /// Where a set's backups go there.
    pub fn location(&self, prefix: &str) -> String {
        let scheme = match self.kind {
            Kind::Versitygw | Kind::Moto => "s3",
            Kind::FakeGcs => "gs",
            Kind::Azurite => "az",
        };
        format!("{scheme}://{BUCKET}/{prefix}")
    }

    /// Where versitygw keeps the objects below a prefix.
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

    /// It is there again. What files have is there, too; Azurite has forgotten its last seconds, and moto all.
    pub fn start_again(&mut self) {
        let log = fs::File::create(self.directory.with_extension("log")).unwrap();
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        wait_until(SOON, &format!("{} answers", self.kind.name()), || {
            let address = self.address().parse().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).map(drop).map_err(|error| error.to_string())
        });
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        let (address, port) = (self.address(), self.port.to_string());
        match self.kind {
            Kind::Versitygw => command
                .args(["--access", ACCESS_KEY, "--secret", SECRET_KEY, "--port", &address, "--region", "us-east-1"])
                .arg("posix")
                .arg(&self.directory),
            Kind::Moto => command.args(["--host", HOST, "--port", &port]),
            Kind::FakeGcs => command.arg(address).arg(&self.directory),
            Kind::Azurite => command
                .env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{}", STANDARD.encode(SECRET_KEY)))
                .args(["--disableTelemetry", "--blobHost", HOST, "--blobPort", &port, "--location"])
                .arg(&self.directory),
        };
        command
    }

    /// Makes the bucket where that takes a request.
    fn make_bucket(&self) {
        let address = self.address();
        let words = match self.kind {
            Kind::Versitygw | Kind::FakeGcs => return,
            Kind::Moto => vec![format!("http://{address}/{BUCKET}")],
            Kind::Azurite => {
                let query = format!("restype=container&sv=2018-11-09&ss=b&srt=c&sp=c&se={FOREVER}");
                let signature = format!("sig={}", signature());
                vec![format!("http://{address}/{ACCOUNT}/{BUCKET}?{query}"), "--data-urlencode".into(), signature]
            }
        };
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "20"]);
        curl.args(["--get", "--request", "PUT", "--header", "Content-Length: 0"]).args(words);
        run(&mut curl, None).unwrap_or_else(|said| panic!("no bucket: {}", said.err));
    }

    fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// By which Azure lets anybody make containers (an account SAS: to create, of the blob service, for containers).
fn signature() -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET_KEY.as_bytes());
    let text = format!("{ACCOUNT}\nc\nb\nc\n\n{FOREVER}\n\n\n2018-11-09\n");
    STANDARD.encode(hmac::sign(&key, text.as_bytes()))
}
