//! Certificates that change while the API server asks a hundred times a second.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use pgset::{
    certs::{Material, material::Due},
    names::{self, annotation},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;

use super::{
    harness::{Lab, stateful_set, with_webhook},
    pace::Load,
};

/// A change is served 10 s after its publication.
const CHANGE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_certificates_change_under_a_hundred_admissions_a_second_and_none_fails() {
    with_webhook(async |lab| {
        let secrets = Api::<Secret>::namespaced(lab.client.clone(), &lab.name);
        let object = stateful_set(&json!({"metadata": {"annotations": {annotation::INJECT: "enabled"}}}));
        let load = Load::start(&lab.client, &lab.name, &object);

        let first = look(&lab).await.unwrap();
        secrets.delete(names::CERTIFICATES_SECRET, &DeleteParams::default()).await.unwrap();
        let second = until_served_anew(&lab, &first).await;
        assert_ne!(first.authority, second.authority, "a new authority");

        // A certificate for another name: it is replaced, by the same authority.
        let material = Material::from_secret(&data(&lab.client, &lab.name).await).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let unfit = material.renewed(Due::Leaf, &["elsewhere".to_owned()], now).unwrap();
        let patch = Patch::Merge(json!({"data": unfit.to_secret()}));
        secrets.patch(names::CERTIFICATES_SECRET, &PatchParams::default(), &patch).await.unwrap();
        let third = until_served_anew(&lab, &second).await;
        assert_eq!(second.authority, third.authority, "the same authority");
        tokio::time::sleep(Duration::from_secs(1)).await; // of load on the last certificate

        load.stop().await.assert_perfect();
    })
    .await;
}

async fn data(client: &Client, namespace: &str) -> std::collections::BTreeMap<String, k8s_openapi::ByteString> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    secrets.get_opt(names::CERTIFICATES_SECRET).await.unwrap().and_then(|secret| secret.data).unwrap_or_default()
}

/// What a new connection to the webhook is shown.
#[derive(Debug, PartialEq)]
struct Served {
    leaf: Vec<u8>,
    /// As the Secret has it.
    authority: Vec<u8>,
}

/// Until the Secret's certificate is another one, and is served.
async fn until_served_anew(lab: &Lab, old: &Served) -> Served {
    let started = Instant::now();
    loop {
        if let Some(served) = look(lab).await.filter(|served| served.leaf != old.leaf) {
            eprintln!("a new certificate is served after {:.1?}", started.elapsed());
            return served;
        }
        assert!(started.elapsed() < CHANGE, "no new certificate: {:?}", lab.reports[0].borrow());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What is served, once the Secret has it too and it verifies against the Secret's bundle.
async fn look(lab: &Lab) -> Option<Served> {
    let data = data(&lab.client, &lab.name).await;
    let authority = data.get("ca.crt")?.0.clone();
    let wanted = CertificateDer::from_pem_slice(&data.get("tls.crt")?.0).ok()?;
    let bundle = data.get("ca-bundle.crt")?.0.clone();
    let url = lab.configurations().get(&lab.name).await.ok()?.webhooks?.first()?.client_config.url.clone()?;
    let port = url.parse::<axum::http::Uri>().ok()?.port_u16()?;
    let address = SocketAddr::new(lab.address, port);
    let leaf = tokio::task::spawn_blocking(move || handshake(address, &bundle)).await.unwrap()?;
    (leaf == wanted.as_ref()).then_some(Served { leaf, authority })
}

/// The certificate that a server shows, if it verifies.
fn handshake(address: SocketAddr, bundle: &[u8]) -> Option<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(bundle) {
        roots.add(root.ok()?).ok()?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::from(address.ip())).ok()?;
    let mut tcp = TcpStream::connect(address).ok()?;
    tcp.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).ok()?;
    }
    Some(tls.peer_certificates()?.first()?.as_ref().to_vec())
}
