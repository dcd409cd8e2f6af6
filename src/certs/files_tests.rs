//! Tests of certificates from a directory, look by look; no API server takes part.

use std::{fs, os::unix::fs::symlink, path::Path};

use k8s_openapi::ByteString;
use kube::client::Body;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::certs::{Material, watching::now};

const NAMESPACE: &str = "pgset-system";

/// A directory, what looks at it, and what that told.
struct Mounted {
    directory: TempDir,
    files: Files,
    reports: watch::Receiver<Report>,
}

impl Mounted {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (service, _) = tower_test::mock::pair::<axum::http::Request<Body>, axum::http::Response<Body>>();
        let (report, reports) = watch::channel(Report::default());
        let mut files = Files::new(
            Client::new(service, "default"),
            directory.path().to_owned(),
            Settings::new(NAMESPACE, "pgset"),
            Arc::new(Resolver::new()),
            report,
        );
        files.configuration = Seen::Absent;
        Self { directory, files, reports }
    }

    /// Swaps a symbolic link, as kubelet does.
    fn swap(&self, version: &str, data: &[(&str, Vec<u8>)]) {
        let root = self.directory.path();
        fs::create_dir(root.join(version)).unwrap();
        for (file, bytes) in data {
            fs::write(root.join(version).join(file), bytes).unwrap();
            let link = root.join(file);
            if !link.exists() && !link.is_symlink() {
                symlink(Path::new("..data").join(file), link).unwrap();
            }
        }
        symlink(version, root.join("..new")).unwrap();
        fs::rename(root.join("..new"), root.join("..data")).unwrap();
    }

    /// What the webhook configuration says from now on: one bundle for each of two entries.
    fn publish(&mut self, bundles: [&str; 2]) {
        let entries = bundles.map(|bundle| {
            json!({"name": "inject.pgset.dev", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"caBundle": ByteString(bundle.as_bytes().to_vec())}})
        });
        self.files.configuration = Seen::Present(serde_json::from_value(json!({"webhooks": entries})).unwrap());
    }

    /// One look: the report after it.
    async fn look(&mut self) -> Report {
        self.files.look().await;
        self.files.serve();
        self.files.tell(None);
        self.reports.borrow().clone()
    }

    fn serves(&self, material: &Material) -> bool {
        self.files.resolver.served().is_some_and(|served| served.is(&material.certificate().unwrap()))
    }
}

fn material() -> Material {
    made_at(now())
}

fn made_at(moment: u64) -> Material {
    Material::new(&Settings::new(NAMESPACE, "pgset").names, moment).unwrap()
}

fn data(material: &Material) -> Vec<(&'static str, Vec<u8>)> {
    let mut secret = material.to_secret();
    [key::LEAF, key::LEAF_KEY, key::AUTHORITY].map(|key| (key, secret.remove(key).unwrap().0)).to_vec()
}

#[tokio::test]
async fn what_kubelet_swaps_in_is_served_and_known_to_end() {
    let mut mounted = Mounted::new();
    let report = mounted.look().await;
    let (trouble, failure) = (report.trouble.unwrap(), report.failure.unwrap());
    assert!(
        trouble.contains("no certificate to serve") && failure.contains("there is no tls.crt"),
        "{trouble} {failure}"
    );
    assert_eq!((report.leaf_ends, report.authority_ends), (None, None));

    for version in ["1", "2"] {
        let made = material();
        mounted.swap(version, &data(&made));
        let report = mounted.look().await;
        assert!(mounted.serves(&made));
        let (leaf, authority) = (Some(made.leaf_ends()), Some(made.authority_ends()));
        assert_eq!(
            report,
            Report { leaf_ends: leaf, authority_ends: authority, trouble: None, failure: None, in_sync: false }
        );
    }
}

#[tokio::test]
async fn a_broken_or_half_written_pair_is_refused_and_the_one_before_stays() {
    let mut mounted = Mounted::new();
    let (good, other) = (material(), material());
    mounted.swap("good", &data(&good));
    mounted.publish([good.bundle(); 2]);
    assert_eq!(mounted.look().await.trouble, None);

    let mut mixed = data(&other);
    mixed[1] = data(&good)[1].clone();
    let mut cut = data(&other);
    cut[0].1.truncate(200);
    let mut binary = data(&other);
    binary[0].1 = vec![0xff; 9];
    for (version, broken, why) in
        [("mixed", mixed, "not the key of"), ("cut", cut, "tls.crt"), ("binary", binary, "not text")]
    {
        mounted.swap(version, &broken);
        assert_eq!(mounted.look().await.trouble, None, "{version}");
        assert_eq!(mounted.files.failure, None, "perhaps it is being written: {version}");
        assert_eq!(mounted.look().await.trouble, None, "it does not matter yet: {version}");
        let failure = mounted.files.failure.clone().unwrap();
        assert!(failure.contains(why) && failure.contains("before stays"), "{failure}");
        assert!(mounted.serves(&good));
        mounted.swap(&format!("after-{version}"), &data(&good));
        mounted.look().await;
        assert_eq!(mounted.files.failure, None);
    }

    // Once API servers refuse what is served, it matters.
    mounted.swap("last", &[("tls.key", Vec::new())]);
    mounted.look().await;
    mounted.publish([other.bundle(); 2]);
    let report = mounted.look().await;
    let (trouble, failure) = (report.trouble.unwrap(), report.failure.unwrap());
    assert!(trouble.contains("refuses the certificate") && failure.contains("before stays"), "{trouble} {failure}");
}

#[tokio::test(start_paused = true)]
async fn a_new_authority_is_served_only_after_every_entry_has_it_and_time_to_spread() {
    let mut mounted = Mounted::new();
    let (old, new) = (material(), material());
    let both = format!("{}{}", new.bundle(), old.bundle());
    mounted.swap("old", &data(&old));
    mounted.publish([old.bundle(); 2]);
    mounted.look().await;
    mounted.swap("new", &data(&new));
    for (bundles, seconds, served) in [
        ([old.bundle(), old.bundle()], 60, &old),
        ([&both, old.bundle()], 60, &old),
        ([&both, &both], 9, &old),
        ([&both, &both], 1, &new),
    ] {
        mounted.publish(bundles);
        assert_eq!(mounted.look().await.trouble, None);
        tokio::time::advance(Duration::from_secs(seconds)).await;
        assert_eq!(mounted.look().await.trouble, None);
        assert!(mounted.serves(served));
    }
}

#[tokio::test]
async fn a_certificate_that_api_servers_refuse_gives_way_at_once() {
    let mut mounted = Mounted::new();
    let (old, new) = (material(), material());
    mounted.swap("old", &data(&old));
    mounted.publish([old.bundle(); 2]);
    mounted.look().await;
    // cert-manager's injector is faster than kubelet, and keeps no overlap.
    mounted.publish([new.bundle(); 2]);
    assert!(mounted.look().await.trouble.unwrap().contains("refuses"));
    mounted.swap("new", &data(&new));
    assert_eq!(mounted.look().await.trouble, None);
    assert!(mounted.serves(&new));
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_not_served_and_told() {
    let (mut mounted, first, early) = (Mounted::new(), material(), made_at(now() + 2 * 60 * 60));
    mounted.swap("..early", &data(&early));
    assert!(mounted.look().await.failure.unwrap().contains("not valid before"));
    assert!(!mounted.serves(&early));
    mounted.swap("..first", &data(&first));
    assert_eq!(mounted.look().await.failure, None);
    assert!(mounted.serves(&first));
    mounted.swap("..again", &data(&early));
    assert!(mounted.look().await.failure.unwrap().contains("not valid before"));
    assert!(mounted.serves(&first), "it stays");
}
