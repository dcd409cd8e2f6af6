//! A client as the API server is one: what it trusts, what it asks, and how it takes the answer.

use std::io::{Read, Write};

use pgset::certs::Material;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};

pub const NAME: &str = "pgset-webhook.pgset-system.svc";
pub const REVIEW: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u",
    "kind":{"group":"apps","version":"v1","kind":"StatefulSet"},"operation":"CREATE","object":{"metadata":{}}}}"#;
pub const HEAD: &str = "POST /mutate?timeout=5s HTTP/1.1\r\nhost: webhook\r\ncontent-type: application/json\r\n";

pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

pub fn material() -> Material {
    Material::new(&[NAME.to_owned()], now()).unwrap()
}

/// What trusts the authorities of a bundle.
pub fn trusting(bundle: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// One review.
pub fn send(stream: &mut impl Write) -> std::io::Result<()> {
    write!(stream, "{HEAD}content-length: {}\r\n\r\n{REVIEW}", REVIEW.len())?;
    stream.flush()
}

/// The whole answer to it, which allows it.
pub fn answer(stream: &mut impl Read) -> std::io::Result<String> {
    let mut answer = String::new();
    while !answer.contains("\"allowed\":true") {
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        answer.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    Ok(answer)
}

/// What waits for a socket, on a thread of its own.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
