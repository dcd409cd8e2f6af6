//! Checks of the volumes that hold the data: can all members use them, and nobody else?

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    report::{Id, Verdict},
    snapshot::After,
};
use crate::{
    cli::cluster::{Read, items, number, text, title},
    set::{DataSource, Set},
};

/// All checks of volumes.
pub fn checks(after: &After) -> Vec<(Id, Verdict)> {
    vec![
        (Id::Claims, claims(&after.sets, &after.claims, &after.volumes)),
        (Id::SharedExports, shared_exports(&after.volumes)),
    ]
}

/// The shared claim that holds a set's data, or the NFS volume in the template itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shared<'a> {
    LeaseRecord(String),
    Export(&'a Value),
}

fn shared(object: &Value) -> Option<Shared<'_>> {
    match Set::parse(object).ok()?.data {
        DataSource::Claim { claim } => Some(Shared::LeaseRecord(claim)),
        DataSource::Shared { volume, .. } | DataSource::Own { volume, .. } => {
            let mut volumes = items(object, "/spec/template/spec/volumes");
            let volume = volumes.find(|it| text(it, "/name") == volume)?;
            match text(volume, "/persistentVolumeClaim/claimName") {
                "" => volume.get("nfs").map(Shared::Export),
                claim => Some(Shared::LeaseRecord(claim.to_owned())),
            }
        }
    }
}

/// What is wrong, and what is only to be known.
#[derive(Debug, Default)]
struct Findings {
    wrong: Vec<String>,
    known: Vec<String>,
}

fn claims(sets: &Read<Vec<Value>>, claims: &Read<Vec<Value>>, volumes: &Read<Vec<Value>>) -> Verdict {
    let sets = match sets {
        Ok(sets) => sets,
        Err(why) => return Verdict::unread("StatefulSets", why),
    };
    let claims = match claims {
        Ok(claims) => claims,
        Err(why) => return Verdict::unread("PersistentVolumeClaims", why),
    };
    let (mut findings, mut count) = (Findings::default(), 0);
    for set in sets {
        let Some(shared) = shared(set) else { continue };
        count += 1;
        match shared {
            Shared::LeaseRecord(name) => {
                let namespace = text(set, "/metadata/namespace");
                let claim = claims.iter().find(|claim| title(claim) == format!("{namespace}/{name}"));
                claim_of(set, &name, claim, volumes.as_deref().unwrap_or_default(), &mut findings);
            }
            Shared::Export(_) => about_nfs(set, "its NFS volume", &Value::Null, &mut findings),
        }
    }
    let Findings { mut wrong, mut known } = findings;
    if !wrong.is_empty() {
        wrong.append(&mut known);
        return Verdict::failure(
            "some sets can't use their shared volume",
            wrong,
            "make the claim, or a volume that fits it, as deploy/examples/claim.yaml and nfs.yaml do; the pods start by themselves then",
        );
    }
    if !known.is_empty() {
        let cure = "see the section; what is stored on the volume stays as it is";
        return Verdict::warning("some shared volumes have their dangers", known, cure);
    }
    Verdict::ok(match count {
        0 => "no set keeps its data on a shared volume".to_owned(),
        count => format!("{count} shared volumes can be used by all members"),
    })
}

fn claim_of(set: &Value, name: &str, claim: Option<&Value>, volumes: &[Value], findings: &mut Findings) {
    let set_title = title(set);
    let Some(claim) = claim else {
        findings.wrong.push(format!("{set_title}: the claim {name} does not exist"));
        return;
    };
    let replicas = number(set, "/spec/replicas").unwrap_or(1);
    match text(claim, "/status/phase") {
        "Bound" => {}
        // A storage class may wait for the first pod.
        "Pending" if replicas == 0 => {}
        phase => {
            findings.wrong.push(format!("{set_title}: the claim {name} is {phase}, not Bound"));
            return;
        }
    }
    // What the volume offers, not what was asked for.
    let list =
        if items(claim, "/status/accessModes").next().is_some() { "/status/accessModes" } else { "/spec/accessModes" };
    let modes: Vec<&str> = items(claim, list).filter_map(Value::as_str).collect();
    if replicas > 1 && !modes.contains(&"ReadWriteMany") {
        let found = format!("{set_title}: the claim {name} offers {}, not ReadWriteMany", modes.join(", "));
        if modes.contains(&"ReadWriteOnce") {
            findings.known.push(format!("{found}: its members can run on one node only"));
        } else {
            findings.wrong.push(found);
        }
    }
    let volume = volumes.iter().find(|volume| text(volume, "/metadata/name") == text(claim, "/spec/volumeName"));
    if let Some(volume) = volume.filter(|volume| export(volume).is_some()) {
        about_nfs(set, &format!("the volume {}", text(volume, "/metadata/name")), volume, findings);
    }
}

/// What NFS does otherwise than a disk.
fn about_nfs(set: &Value, place: &str, volume: &Value, findings: &mut Findings) {
    let set_title = title(set);
    let soft = items(volume, "/spec/mountOptions").any(|option| option == "soft" || option == "softerr");
    if soft {
        findings.wrong.push(format!(
            "{set_title}: {place} is mounted with the option soft, by which PostgreSQL loses writes; use hard"
        ));
    }
    if let Some(group) = number(set, "/spec/template/spec/securityContext/fsGroup") {
        findings.known.push(format!(
            "{set_title}: {place} is NFS, where fsGroup: {group} has no effect: the export itself must be writable for the pods' user"
        ));
    }
}

/// The server and the path of an NFS volume, in tree or by csi-driver-nfs.
fn export(volume: &Value) -> Option<(String, String)> {
    let of = |server: &str, path: &str| match (text(volume, server), text(volume, path)) {
        ("", _) | (_, "") => None,
        (server, path) => Some((server.to_lowercase(), format!("/{}", path.trim_matches('/')))),
    };
    // The driver gives each volume a directory of its own below the share.
    let directory = text(volume, "/spec/csi/volumeAttributes/subdir");
    of("/spec/nfs/server", "/spec/nfs/path").or_else(|| {
        let (server, share) = of("/spec/csi/volumeAttributes/server", "/spec/csi/volumeAttributes/share")?;
        Some((server, format!("{}/{}", share.trim_end_matches('/'), directory.trim_matches('/'))))
    })
}

/// Two volumes on one export: who may use one can read and write the other's data.
fn shared_exports(volumes: &Read<Vec<Value>>) -> Verdict {
    let volumes = match volumes {
        Ok(volumes) => volumes,
        Err(why) => return Verdict::unread("PersistentVolumes", why),
    };
    let mut exports: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for volume in volumes {
        if let Some(export) = export(volume) {
            let claim = match text(volume, "/spec/claimRef/name") {
                "" => String::new(),
                claim => format!(" (claim {}/{claim})", text(volume, "/spec/claimRef/namespace")),
            };
            exports.entry(export).or_default().push(format!("{}{claim}", text(volume, "/metadata/name")));
        }
    }
    let several: Vec<String> = exports
        .iter()
        .filter(|(_, volumes)| volumes.len() > 1)
        .map(|((server, path), volumes)| format!("{server}:{path} is {}", volumes.join(" and ")))
        .collect();
    if several.is_empty() {
        return Verdict::ok(match exports.len() {
            0 => "no volume is an NFS export".to_owned(),
            _ => "no two volumes are one NFS export".to_owned(),
        });
    }
    Verdict::warning(
        "several volumes are one NFS export: who may use one reads and writes the data of the others",
        several,
        "give each namespace an export of its own; two sets of one name on one export would share their directories",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{cli::cluster::Unread, names::annotation};

    fn set(replicas: u32) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db", "namespace": "shop",
                "annotations": {annotation::INJECT: "enabled", annotation::CLAIM: "data"}},
            "spec": {
                "replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                    "containers": [{"name": "postgres", "image": "postgres:17"}]}},
            },
        })
    }

    fn claim(phase: &str, mode: &str) -> Value {
        json!({"metadata": {"name": "data", "namespace": "shop"}, "spec": {"volumeName": "pv"},
            "status": {"phase": phase, "accessModes": [mode]}})
    }

    fn nfs(name: &str, path: &str, options: &[&str]) -> Value {
        json!({"metadata": {"name": name}, "spec": {
            "nfs": {"server": "nfs.example", "path": path}, "mountOptions": options,
            "claimRef": {"namespace": "shop", "name": name}}})
    }

    fn check(set: Value, claims: Vec<Value>, volumes: Vec<Value>) -> Verdict {
        super::claims(&Ok(vec![set]), &Ok(claims), &Ok(volumes))
    }

    fn failure(verdict: Verdict) -> Vec<String> {
        let Verdict::Failure(finding) = verdict else { panic!("{verdict:?}") };
        finding.found
    }

    fn warning(verdict: Verdict) -> Vec<String> {
        let Verdict::Warning(finding) = verdict else { panic!("{verdict:?}") };
        finding.found
    }

    #[test]
    fn a_claim_must_be_there_bound_and_for_many() {
        assert!(matches!(check(set(2), vec![claim("Bound", "ReadWriteMany")], vec![]), Verdict::Ok(_)));
        assert_eq!(failure(check(set(2), vec![], vec![])), ["shop/db: the claim data does not exist"]);
        let pending = claim("Pending", "ReadWriteMany");
        assert_eq!(
            failure(check(set(1), vec![pending.clone()], vec![])),
            ["shop/db: the claim data is Pending, not Bound"]
        );
        assert!(matches!(check(set(0), vec![pending], vec![]), Verdict::Ok(_)));
        let once = claim("Bound", "ReadWriteOnce");
        assert!(
            warning(check(set(2), vec![once.clone()], vec![]))[0].ends_with("its members can run on one node only")
        );
        assert!(matches!(check(set(1), vec![once], vec![]), Verdict::Ok(_)));
        assert!(
            failure(check(set(2), vec![claim("Bound", "ReadWriteOncePod")], vec![]))[0].contains("ReadWriteOncePod")
        );
    }

    #[test]
    fn a_claim_that_the_template_mounts_counts_as_well() {
        let mut set = set(2);
        set["metadata"]["annotations"] = json!({annotation::INJECT: "enabled"});
        let pod = &mut set["spec"]["template"]["spec"];
        pod["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "mine"}}]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/var/lib/postgresql/data"}]);
        assert_eq!(failure(check(set, vec![], vec![])), ["shop/db: the claim mine does not exist"]);
    }

    #[test]
    fn a_soft_mount_fails_and_a_group_without_effect_is_told() {
        let bound = || vec![claim("Bound", "ReadWriteMany")];
        assert!(matches!(check(set(2), bound(), vec![nfs("pv", "/a", &["hard"])]), Verdict::Ok(_)));
        assert!(failure(check(set(2), bound(), vec![nfs("pv", "/a", &["soft"])]))[0].contains("loses writes"));
        let mut group = set(2);
        group["spec"]["template"]["spec"]["securityContext"] = json!({"fsGroup": 999});
        assert!(warning(check(group.clone(), bound(), vec![nfs("pv", "/a", &[])]))[0].contains("fsGroup: 999"));
        assert!(matches!(check(group, bound(), vec![]), Verdict::Ok(_)));
    }

    #[test]
    fn two_volumes_on_one_export_are_named() {
        let csi = |name: &str, subdir: &str| {
            json!({"metadata": {"name": name}, "spec": {"csi": {"volumeAttributes": {
                "server": "nfs.example", "share": "/a", "subdir": subdir}}}})
        };
        let apart = vec![nfs("x", "/a", &[]), nfs("y", "/b", &[]), csi("p", "one"), csi("q", "two")];
        assert!(matches!(shared_exports(&Ok(apart)), Verdict::Ok(_)));
        let together = Ok(vec![nfs("x", "/a", &[]), nfs("y", "/a/", &[])]);
        assert_eq!(warning(shared_exports(&together)), ["nfs.example:/a is x (claim shop/x) and y (claim shop/y)"]);
        let forbidden = Err(Unread::Forbidden(String::new()));
        assert_eq!(shared_exports(&forbidden), Verdict::Skipped("may not read PersistentVolumes".to_owned()));
    }
}
