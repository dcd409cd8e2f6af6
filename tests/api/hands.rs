//! What a thief of each token could do: with the shipped rights and policies, and with real tokens of exactly these accounts.
//!
//! The other half of it is that pgset itself, with the same tokens, does all its work: two processes of it do here.

use pgset::names;
use serde_json::{Value, json};

use super::{
    harness::{eventually, stateful_set},
    plane::ControlPlane,
    somebody::{Process, Somebody},
};

const SYSTEM: &str = names::SYSTEM_NAMESPACE;
const CONFIGURATION: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/pgset";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const SLICE: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/db-master";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces";

fn labels(set: &str) -> Value {
    json!({"app.kubernetes.io/managed-by": "pgset", "pgset.dev/set": set})
}

/// The metadata of an object that pretends to be a set's.
fn pretended(name: &str, set: &str) -> Value {
    json!({"name": name, "labels": labels(set), "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set, "uid": "made-up", "controller": true}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_token_is_worth_no_more_than_what_pgset_does() {
    let plane = ControlPlane::up();
    let said = plane.pgset("install --apply");
    assert_eq!(said.code, 0, "{said:?}");
    everything_asked_at_admissions_goes_with_the_namespace(&plane);
    let admin = Somebody::administrator(&plane).await;
    the_webhooks_token(&plane, &admin).await;
    plane.kubectl("delete mutatingwebhookconfiguration pgset", "");
    a_victim(&plane, &admin).await;
    the_controllers_token(&plane, &admin).await;
    a_members_token(&plane, &admin).await;
}

fn everything_asked_at_admissions_goes_with_the_namespace(plane: &ControlPlane) {
    let uid = plane.kubectl("get namespace pgset-system --output=jsonpath={.metadata.uid}", "");
    let kinds = "mutatingwebhookconfigurations,validatingadmissionpolicies,validatingadmissionpolicybindings";
    let list = plane.kubectl(&format!("get {kinds} --selector=app.kubernetes.io/name=pgset --output=json"), "");
    let list: Value = serde_json::from_str(&list).unwrap();
    let items = list["items"].as_array().unwrap();
    assert!(items.len() > 10, "{list}");
    for item in items {
        assert_eq!(item["metadata"]["ownerReferences"][0]["uid"], json!(uid), "{item}");
    }
}

async fn the_webhooks_token(plane: &ControlPlane, admin: &Somebody) {
    let webhook = Somebody::with_token_of(plane, SYSTEM, names::WEBHOOK, "").await;
    let secrets = format!("/api/v1/namespaces/{SYSTEM}/secrets");
    let own = format!("{secrets}/{}", names::CERTIFICATES_SECRET);
    {
        let _process = Process::start(&webhook, &["webhook", "--https-port=0", "--http-port=0", "--health-port=0"]);
        eventually("the webhook makes its certificates and writes caBundle", async || {
            admin.get(&own).await?;
            let found = admin.get(CONFIGURATION).await?;
            found.pointer("/webhooks/0/clientConfig/caBundle").map(drop).ok_or_else(|| found.to_string())
        })
        .await;
    }
    eventually("the policy is in force", async || {
        let canary = json!({"metadata": {"name": "canary"}});
        match webhook.send("POST", &format!("{secrets}?dryRun=All"), canary).await {
            Err(message) if message.contains("ValidatingAdmissionPolicy 'pgset-webhook'") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let found = admin.get(CONFIGURATION).await.unwrap();
    let entry = |field: &str, value: Value| {
        let mut entries = found["webhooks"].clone();
        entries[0][field] = value;
        json!({"webhooks": entries})
    };
    let mut elsewhere = found["webhooks"][0]["clientConfig"].clone();
    elsewhere["service"]["name"] = json!("thief");
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["secrets"], "operations": ["CREATE"]}]);
    for patch in [
        entry("rules", rules),
        entry("namespaceSelector", json!({})),
        entry("failurePolicy", json!("Ignore")),
        entry("matchConditions", json!([])),
        entry("timeoutSeconds", json!(30)),
        entry("clientConfig", elsewhere),
        entry("clientConfig", json!({"url": "https://thief.example.org/"})),
        json!({"webhooks": []}),
        json!({"metadata": {"ownerReferences": []}}),
        json!({"metadata": {"labels": {"app.kubernetes.io/name": "other"}}}),
    ] {
        webhook.is_refused("pgset-webhook", "PATCH", CONFIGURATION, patch).await;
    }
    let mut bundle = found["webhooks"][0]["clientConfig"].clone();
    bundle["caBundle"] = json!("");
    // What it is there for.
    webhook.send("PATCH", CONFIGURATION, entry("clientConfig", bundle)).await.unwrap();

    let secret = |name: &str, kind: &str| json!({"metadata": {"name": name}, "type": kind});
    webhook.is_refused("pgset-webhook", "POST", &secrets, secret("another", "Opaque")).await;
    // Its certificates.
    webhook.send("GET", &own, json!({})).await.unwrap();
    admin.send("DELETE", &own, json!({})).await.unwrap();
    let token = json!({"metadata": {"name": names::CERTIFICATES_SECRET,
        "annotations": {"kubernetes.io/service-account.name": "pgset-controller"}}, "type": "kubernetes.io/service-account-token"});
    webhook.is_refused("pgset-webhook", "POST", &secrets, token).await;
    // The Secret that it is there for.
    webhook.send("POST", &secrets, secret(names::CERTIFICATES_SECRET, "Opaque")).await.unwrap();
    for (method, path) in [
        ("GET", "/api/v1/pods".to_owned()),
        ("GET", secrets.clone()),
        ("GET", "/apis/apps/v1/statefulsets".to_owned()),
        ("POST", "/api/v1/namespaces/kube-system/secrets".to_owned()),
        ("POST", "/api/v1/namespaces/default/secrets".to_owned()),
        ("POST", format!("/api/v1/namespaces/{SYSTEM}/pods")),
        ("PATCH", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/pgset-webhook".to_owned()),
        ("DELETE", CONFIGURATION.to_owned()),
    ] {
        let body = json!({"metadata": {"name": "stolen"}});
        webhook.is_refused("RBAC", method, &path, body).await;
    }
}

/// Objects of somebody else in the namespace `bank`, and a set of somebody's in the namespace `shop`.
async fn a_victim(plane: &ControlPlane, admin: &Somebody) {
    for namespace in ["bank", "shop"] {
        plane.kubectl(&format!("create namespace {namespace}"), "");
        let account = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        eventually("the namespace's account", async || admin.get(&account).await).await;
    }
    for words in [
        "create serviceaccount clerk",
        "create service clusterip till --tcp=80",
        "create role clerk --verb=patch --resource=pods",
        "create rolebinding clerk --role=clerk --serviceaccount=bank:clerk",
        "create poddisruptionbudget till --selector=app=till --max-unavailable=1",
        "run till --image=example.org/till",
    ] {
        plane.kubectl(&format!("{words} --namespace bank"), "");
    }
    let lease = json!({"metadata": {"name": "kube-scheduler"}, "spec": {"holderIdentity": "scheduler"}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    admin.send("POST", leases, lease).await.unwrap();
    let slice = json!({"metadata": {"name": "till", "labels": {"kubernetes.io/service-name": "till"}}, "addressType": "IPv4", "endpoints": []});
    admin.send("POST", "/apis/discovery.k8s.io/v1/namespaces/bank/endpointslices", slice).await.unwrap();
    let own = json!({"metadata": {"name": "own", "annotations": {"pgset.dev/follow": "master"}},
        "spec": {"selector": {"app": "db"}, "ports": [{"port": 5432}]}});
    admin.send("POST", "/api/v1/namespaces/shop/services", own).await.unwrap();

    let set = stateful_set(
        &json!({"metadata": {"annotations": {"pgset.dev/inject": "enabled"}}, "spec": {"replicas": 2, "podManagementPolicy": "Parallel"}}),
    );
    let injected = plane.run(env!("CARGO_BIN_EXE_pgset"), &["inject", "-f", "-"], &set.to_string());
    eventually("an injected set is stored", async || {
        let said = plane.run("kubectl", &["create", "--namespace", "shop", "-f", "-"], &injected.out);
        if said.code == 0 { Ok(()) } else { Err(said.err) }
    })
    .await;
}

async fn the_controllers_token(plane: &ControlPlane, admin: &Somebody) {
    let controller = Somebody::with_token_of(plane, SYSTEM, names::CONTROLLER, "").await;
    {
        let mut process = Process::start(&controller, &["controller", "--health-port=0"]);
        let rbac = format!("{RBAC}/shop");
        for path in [
            "/api/v1/namespaces/shop/serviceaccounts/db-sa",
            &format!("{rbac}/roles/db-sa"),
            &format!("{rbac}/rolebindings/db-sa"),
            "/apis/coordination.k8s.io/v1/namespaces/shop/leases/db-leader",
            SLICE,
            "/api/v1/namespaces/shop/services/db-master",
            "/api/v1/namespaces/shop/services/db-replica",
            "/api/v1/namespaces/shop/services/db",
            "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/db",
        ] {
            eventually(path, async || admin.get(path).await).await;
        }
        // As 0.1.0 made it.
        let lease = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/db-leader";
        let mut owner = pretended("db", "db")["ownerReferences"].take();
        owner[0]["uid"] =
            admin.get("/apis/apps/v1/namespaces/shop/statefulsets/db").await.unwrap()["metadata"]["uid"].take();
        admin.send("PATCH", lease, json!({"metadata": {"ownerReferences": owner}})).await.unwrap();
        // Whatever has the set looked at.
        admin.send("DELETE", "/api/v1/namespaces/shop/services/db-replica", json!({})).await.unwrap();
        eventually("the Lease's owner is taken off", async || match admin.get(lease).await? {
            found if found["metadata"]["ownerReferences"].is_null() => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        the_leases_owner_and_label(admin).await;
        eventually("the passwords", async || {
            let found = admin.get("/api/v1/namespaces/shop/secrets?labelSelector=pgset.dev/set=db").await?;
            if found["items"] == json!([]) { Err(found.to_string()) } else { Ok(()) }
        })
        .await;
        let selector =
            async || admin.get("/api/v1/namespaces/shop/services/own").await.map(|it| it["spec"]["selector"].clone());
        eventually("a Service follows the master", async || match selector().await? {
            selector if selector["pgset.dev/role"] == "master" => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        let bent = json!({"spec": {"publishNotReadyAddresses": true}});
        admin.send("PATCH", "/api/v1/namespaces/shop/services/db-master", bent).await.unwrap();
        let path = "/api/v1/namespaces/shop/services/db-master";
        eventually("an edited Service is put right", async || {
            let spec = admin.get(path).await?["spec"].take();
            if spec["publishNotReadyAddresses"] == true { Err(spec.to_string()) } else { Ok(()) }
        })
        .await;
        eventually("members", async || admin.get("/api/v1/namespaces/shop/pods/db-1").await).await;
        let scale = json!({"spec": {"replicas": 1}});
        admin.send("PATCH", "/apis/apps/v1/namespaces/shop/statefulsets/db/scale", scale).await.unwrap();
        let path = "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/db";
        eventually("the budget of a set of one goes", async || match admin.get(path).await {
            Err(_) => Ok(()),
            Ok(found) => Err(found.to_string()),
        })
        .await;
        let scale = json!({"spec": {"replicas": 2}});
        admin.send("PATCH", "/apis/apps/v1/namespaces/shop/statefulsets/db/scale", scale).await.unwrap();
        eventually("and comes again", async || admin.get(path).await).await;
        eventually("members again", async || admin.get("/api/v1/namespaces/shop/pods/db-1").await).await;
        let role = format!("{rbac}/roles/db-sa");
        eventually("the Role names the members", async || match admin.get(&role).await? {
            found if found["rules"].to_string().contains("db-1") => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        the_selector_of_an_older_revision_goes_with_all_that_it_leaves(admin).await;
        who_loses_the_lease_is_a_candidate_again(&mut process, admin).await;
    }
    // A member's word, to be spoiled.
    admin.send("PATCH", SLICE, endpoint("db-0", "u", true)).await.unwrap();
    what_its_policy_refuses(&controller).await;
    where_its_policy_lets_it_send_no_client(&controller).await;
    what_its_rights_refuse(&controller).await;
    let role = json!({"metadata": {"labels": {"pgset.dev/role": "master"}}});
    // The role of a member.
    controller.send("PATCH", "/api/v1/namespaces/shop/pods/db-0", role).await.unwrap();
}

/// What a member says.
fn endpoint(pod: &str, uid: &str, ready: bool) -> Value {
    json!({"ports": [{"name": "postgres", "port": 5432, "protocol": "TCP"}], "endpoints": [{"addresses": ["10.0.0.1"],
        "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": uid}}]})
}

async fn the_selector_of_an_older_revision_goes_with_all_that_it_leaves(admin: &Somebody) {
    let service = "/api/v1/namespaces/shop/services/db-master";
    let behind = async || {
        let found = admin.get(&format!("{SLICES}?labelSelector=kubernetes.io/service-name=db-master")).await?;
        let names = found["items"].as_array().unwrap().iter().map(|slice| slice["metadata"]["name"].clone());
        Ok::<_, String>(names.collect::<Vec<_>>())
    };
    // As the controller of 0.1.0 made it, for agents that write nothing.
    let selector = json!({"spec": {"selector": {"pgset.dev/set": "db", "pgset.dev/role": "master"}}});
    admin.send("PATCH", service, selector).await.unwrap();
    eventually("Kubernetes finds members by the label", async || match behind().await? {
        names if names.len() == 2 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    admin.send("PATCH", SLICE, endpoint("db-0", "gone", true)).await.unwrap();
    eventually("the selector goes, and what it leaves", async || match (admin.get(service).await?, behind().await?) {
        (service, names) if service["spec"]["selector"].is_null() && names == [json!("db-master")] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let endpoints = "/api/v1/namespaces/shop/endpoints/db-master";
    let left = admin.get(endpoints).await.unwrap();
    assert_eq!(left["metadata"]["labels"]["endpointslice.kubernetes.io/skip-mirror"], "true", "{left}");
    eventually("an endpoint whose pod is gone is closed", async || {
        let found = admin.get(SLICE).await?;
        if found["endpoints"][0]["conditions"]["ready"] == false { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    assert_eq!(behind().await.unwrap(), [json!("db-master")], "nothing is mirrored");
}

/// What the policy lets the controller do about a Lease.
async fn the_leases_owner_and_label(admin: &Somebody) {
    let lease = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/db-leader";
    let retention = async |policy: &str| {
        let spec = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy}}});
        admin.send("PATCH", "/apis/apps/v1/namespaces/shop/statefulsets/db", spec).await.unwrap();
    };
    let becomes = async |what: &str, path: &str, value: Value| {
        let what = format!("{path} of the Lease is {value}: {what}");
        eventually(&what, async || match admin.get(lease).await?.pointer(path).cloned().unwrap_or_default() {
            found if found == value => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
    };
    let owner = "/metadata/ownerReferences/0/name";
    retention("Delete").await;
    becomes("its data goes with the set", owner, json!("db")).await;
    retention("Retain").await;
    becomes("its data outlives the set", owner, Value::Null).await;
    let edit = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "somebody"}}});
    admin.send("PATCH", lease, edit).await.unwrap();
    becomes("put right", "/metadata/labels/app.kubernetes.io~1managed-by", json!("pgset")).await;
    // A member leads, and the Lease remembers.
    let led = json!({"metadata": {"annotations": {"pgset.dev/system-identifier": "7"}}, "spec": {"holderIdentity": "db-0/u"}});
    admin.send("PATCH", lease, led).await.unwrap();
    retention("Delete").await;
    becomes("a member leads", owner, json!("db")).await;
    retention("Retain").await;
    becomes("a member leads", owner, Value::Null).await;
    admin.send("PATCH", lease, json!({"spec": {"holderIdentity": null}})).await.unwrap();
}

async fn who_loses_the_lease_is_a_candidate_again(process: &mut Process, admin: &Somebody) {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/{}", names::CONTROLLER_LEASE);
    let holder = async || admin.get(&path).await.map(|lease| lease["spec"]["holderIdentity"].clone());
    let held = holder().await.unwrap();
    admin.send("PATCH", &path, json!({"spec": {"holderIdentity": "another"}})).await.unwrap();
    eventually("it notices", async || {
        let log = std::fs::read_to_string(&process.log).unwrap();
        if log.contains("a candidate again") { Ok(()) } else { Err(log) }
    })
    .await;
    admin.send("PATCH", &path, json!({"spec": {"holderIdentity": null}})).await.unwrap();
    eventually("it holds it again", async || match holder().await? {
        again if again == held => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    assert!(process.child.try_wait().unwrap().is_none(), "the process is the same");
}

async fn what_its_policy_refuses(controller: &Somebody) {
    let image = json!({"spec": {"containers": [{"name": "till", "image": "thief.example.org/rootkit"}]}});
    let members = json!({"spec": {"containers": [{"name": "postgres", "image": "thief.example.org/rootkit"}]}});
    let relabelled = json!({"metadata": {"labels": {"app": "thief"}}});
    let joined = json!({"metadata": {"labels": {"name": "db-master"}}});
    let followed = json!({"spec": {"selector": {"app": "thief"}}});
    let opened = json!({"spec": {"externalIPs": ["192.0.2.1"]}});
    let held = json!({"spec": {"holderIdentity": "thief"}});
    let shop = "/api/v1/namespaces/shop";
    let leases = "/apis/coordination.k8s.io/v1/namespaces";
    let owner = pretended("till", "till")["ownerReferences"].clone();
    let adopted = json!({"metadata": {"labels": labels("till"), "ownerReferences": owner}});
    let bootstrap = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"}});
    let token = json!({"metadata": {"name": "x-pgset-credentials", "labels": labels("x"),
        "annotations": {"kubernetes.io/service-account.name": "clerk"}}, "type": "kubernetes.io/service-account-token"});
    let rule = |name: Value| json!({"metadata": pretended("x-sa", "x"), "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"], "resourceNames": name}]});
    let bind = |kind: &str, role: &str, namespace: &str| {
        json!({"metadata": pretended("x-sa", "x"),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "thief", "namespace": namespace}]})
    };
    let service =
        json!({"metadata": pretended("x-master", "x"), "spec": {"selector": {"app": "till"}, "ports": [{"port": 80}]}});
    let budget = json!({"metadata": pretended("x", "x"), "spec": {"maxUnavailable": 0, "selector": {}}});
    let abroad = json!({"metadata": pretended("db-sa", "db"),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "db-sa"},
        "subjects": [{"kind": "ServiceAccount", "name": "clerk", "namespace": "bank"}]});
    // The garbage collector would take it, and what it remembers.
    let under_no_set = json!({"metadata": {"ownerReferences": pretended("db", "db")["ownerReferences"]}});
    let forgotten = json!({"metadata": {"annotations": {"pgset.dev/system-identifier": "1"}}});
    let attacks = [
        ("PATCH", "/api/v1/namespaces/bank/pods/till".to_owned(), image),
        ("PATCH", "/api/v1/namespaces/bank/pods/till".to_owned(), relabelled.clone()),
        ("PATCH", "/api/v1/namespaces/bank/pods/till".to_owned(), joined),
        ("PATCH", format!("{shop}/pods/db-0"), members),
        ("PATCH", format!("{shop}/pods/db-0"), relabelled.clone()),
        ("PATCH", format!("{shop}/pods/db-0"), json!({"metadata": {"labels": {"app": "db-master"}}})),
        ("PATCH", format!("{shop}/pods/db-0"), json!({"metadata": {"annotations": {"a": "b"}}})),
        ("PATCH", format!("{shop}/pods/db-0"), json!({"metadata": {"ownerReferences": null}})),
        ("PATCH", format!("{shop}/pods/db-0"), json!({"metadata": {"labels": {"pgset.dev/set": null}}})),
        ("POST", "/api/v1/namespaces/kube-system/secrets".to_owned(), bootstrap),
        ("POST", "/api/v1/namespaces/bank/secrets".to_owned(), token),
        ("POST", "/api/v1/namespaces/bank/secrets".to_owned(), json!({"metadata": {"name": "database-url"}})),
        ("PATCH", format!("{leases}/kube-system/leases/kube-scheduler"), held.clone()),
        ("PATCH", format!("{leases}/kube-system/leases/kube-scheduler"), adopted.clone()),
        ("PATCH", format!("{leases}/shop/leases/db-leader"), held),
        ("PATCH", format!("{leases}/shop/leases/db-leader"), under_no_set),
        ("PATCH", format!("{leases}/shop/leases/db-leader"), forgotten),
        (
            "POST",
            format!("{leases}/bank/leases"),
            json!({"metadata": {"name": "x-leader", "labels": labels("x"), "ownerReferences": owner}}),
        ),
        (
            "POST",
            format!("{leases}/bank/leases"),
            json!({"metadata": {"name": "x-leader", "labels": labels("x")}, "spec": {"holderIdentity": "thief"}}),
        ),
        ("POST", format!("{RBAC}/bank/rolebindings"), bind("Role", "clerk", "bank")),
        ("POST", format!("{RBAC}/shop/rolebindings"), abroad),
        ("POST", format!("{RBAC}/bank/roles"), rule(Value::Null)),
        ("POST", format!("{RBAC}/bank/roles"), rule(json!(["till"]))),
        ("PATCH", format!("{RBAC}/bank/roles/clerk"), json!({"rules": []})),
        ("PATCH", "/api/v1/namespaces/bank/serviceaccounts/clerk".to_owned(), adopted.clone()),
        ("PATCH", "/api/v1/namespaces/bank/services/till".to_owned(), followed.clone()),
        ("PATCH", "/api/v1/namespaces/bank/services/till".to_owned(), adopted.clone()),
        ("PATCH", format!("{shop}/services/own"), followed),
        ("PATCH", format!("{shop}/services/own"), opened.clone()),
        ("PATCH", format!("{shop}/services/db-master"), opened),
        ("POST", "/api/v1/namespaces/bank/services".to_owned(), service),
        ("PATCH", "/apis/policy/v1/namespaces/bank/poddisruptionbudgets/till".to_owned(), adopted),
        ("DELETE", "/apis/policy/v1/namespaces/bank/poddisruptionbudgets/till".to_owned(), json!({})),
        ("POST", "/apis/policy/v1/namespaces/bank/poddisruptionbudgets".to_owned(), budget),
        (
            "PATCH",
            format!("{shop}/serviceaccounts/db-sa"),
            json!({"metadata": {"annotations": {"cloud.example.org/role": "admin"}}}),
        ),
    ];
    for (method, path, body) in attacks {
        controller.is_refused("pgset-controller", method, &path, body).await;
    }
}

async fn where_its_policy_lets_it_send_no_client(controller: &Somebody) {
    let elsewhere = {
        let mut endpoints = endpoint("db-0", "u", true);
        endpoints["endpoints"][0]["addresses"] = json!(["10.0.0.66"]);
        endpoints
    };
    let more = {
        let mut endpoints = endpoint("db-0", "u", true);
        let second = json!({"addresses": ["10.0.0.66"], "conditions": {"ready": true}});
        endpoints["endpoints"].as_array_mut().unwrap().push(second);
        endpoints
    };
    let slices = "/apis/discovery.k8s.io/v1/namespaces";
    let filled = json!({"metadata": pretended("x-master", "x"), "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.66"]}]});
    let tills = json!({"metadata": {"name": "x-master", "labels": {"kubernetes.io/service-name": "till"}}, "addressType": "IPv4", "endpoints": []});
    let routed = json!({"metadata": pretended("x-sa", "x"), "rules": [{"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
        "verbs": ["update"], "resourceNames": ["till"]}]});
    let attacks = [
        ("PATCH", SLICE.to_owned(), elsewhere),
        ("PATCH", SLICE.to_owned(), more),
        ("PATCH", SLICE.to_owned(), endpoint("db-1", "u", true)),
        ("PATCH", SLICE.to_owned(), json!({"ports": [{"name": "postgres", "port": 6666}]})),
        ("PATCH", SLICE.to_owned(), json!({"metadata": {"labels": {"kubernetes.io/service-name": "till"}}})),
        ("PATCH", SLICE.to_owned(), json!({"metadata": {"annotations": {"a": "b"}}})),
        ("POST", format!("{slices}/bank/endpointslices"), filled),
        ("POST", format!("{slices}/bank/endpointslices"), tills),
        ("PATCH", format!("{slices}/bank/endpointslices/till"), json!({"endpoints": [{"addresses": ["10.0.0.66"]}]})),
        ("DELETE", format!("{slices}/bank/endpointslices/till"), json!({})),
        ("POST", format!("{RBAC}/bank/roles"), routed),
    ];
    for (method, path, body) in attacks {
        controller.is_refused("pgset-controller", method, &path, body).await;
    }
    // To close an endpoint, and not to open it again.
    controller.send("PATCH", SLICE, endpoint("db-0", "u", false)).await.unwrap();
    controller.is_refused("pgset-controller", "PATCH", SLICE, endpoint("db-0", "u", true)).await;
}

async fn what_its_rights_refuse(controller: &Somebody) {
    let admin_rule = json!({"metadata": pretended("x-sa", "x"),
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["x"]}]});
    let bind = json!({"metadata": {"name": "thief"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
    let nothing = json!({"metadata": {"name": "stolen"}});
    for (method, path, body) in [
        ("PATCH", CONFIGURATION, nothing.clone()),
        (
            "DELETE",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/pgset-controller",
            nothing.clone(),
        ),
        (
            "PATCH",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/pgset-controller",
            nothing.clone(),
        ),
        ("GET", "/api/v1/secrets", nothing.clone()),
        ("GET", "/api/v1/namespaces/shop/secrets/db-credentials", nothing.clone()),
        ("POST", "/api/v1/namespaces/bank/pods", nothing.clone()),
        ("POST", "/api/v1/namespaces/bank/serviceaccounts/clerk/token", nothing.clone()),
        ("PATCH", "/apis/apps/v1/namespaces/shop/statefulsets/db", nothing.clone()),
        ("PATCH", "/api/v1/namespaces/pgset-system", nothing),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", bind),
    ] {
        controller.is_refused("RBAC", method, path, body).await;
    }
    let told = controller.send("POST", &format!("{RBAC}/bank/roles"), admin_rule).await.unwrap_err();
    assert!(told.contains("attempting to grant RBAC permissions not currently held"), "{told}");
}

async fn a_members_token(plane: &ControlPlane, admin: &Somebody) {
    let bound = "--bound-object-kind=Pod --bound-object-name=db-0";
    let member = Somebody::with_token_of(plane, "shop", "db-sa", bound).await;
    let [itself, sibling] = ["db-0", "db-1"].map(|pod| format!("/api/v1/namespaces/shop/pods/{pod}"));
    let image = json!({"spec": {"containers": [{"name": "postgres", "image": "thief.example.org/rootkit"}]}});
    let master = json!({"metadata": {"labels": {"pgset.dev/role": "master"}}});
    eventually("a member labels itself", async || member.send("PATCH", &itself, master.clone()).await).await;
    for (path, body) in [
        (&sibling, image.clone()),
        (&itself, image),
        (&sibling, master),
        (&itself, json!({"metadata": {"labels": {"app": "thief"}}})),
        (&itself, json!({"metadata": {"labels": {"pgset.dev/set": null}}})),
        (&itself, json!({"metadata": {"annotations": {"a": "b"}}})),
        (&itself, json!({"metadata": {"finalizers": ["example.org/stay"]}})),
    ] {
        member.is_refused("pgset-members", "PATCH", path, body).await;
    }
    let master = json!({"metadata": {"labels": {"pgset.dev/role": "master"}}});
    for (method, path) in [
        ("PATCH", "/api/v1/namespaces/bank/pods/till"),
        ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler"),
        ("DELETE", "/apis/coordination.k8s.io/v1/namespaces/shop/leases/db-leader"),
        ("GET", "/api/v1/namespaces/shop/secrets"),
        ("GET", "/api/v1/namespaces/shop/pods"),
    ] {
        member.is_refused("RBAC", method, path, master.clone()).await;
    }
    let lease = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/db-leader";
    // Its set's Lease.
    member.send("PATCH", lease, json!({"spec": {"holderIdentity": "db-0"}})).await.unwrap();
    a_members_route(plane, admin, &member).await;
    // A pod that nobody made a member stays none, even with the account.
    let stranger = json!({"metadata": {"name": "db-7", "labels": {"app": "db"}},
        "spec": {"serviceAccountName": "db-sa", "containers": [{"name": "a", "image": "a"}]}});
    admin.send("POST", "/api/v1/namespaces/shop/pods", stranger).await.unwrap();
    member.is_refused("RBAC", "PATCH", "/api/v1/namespaces/shop/pods/db-7", master).await;
}

/// Where a member may send the clients of its set's master: to itself.
async fn a_members_route(plane: &ControlPlane, admin: &Somebody, member: &Somebody) {
    let uid = async |pod: &str| {
        let pod = admin.get(&format!("/api/v1/namespaces/shop/pods/{pod}")).await.unwrap();
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    };
    let (own, other) = (uid("db-0").await, uid("db-1").await);
    let found = member.get(SLICE).await.unwrap();
    let says = |fields: Value| {
        let mut slice = found.clone();
        slice["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        for (field, value) in fields.as_object().unwrap() {
            slice[field] = value.clone();
        }
        slice
    };
    let mut written = says(endpoint("db-0", &own, true));
    written["metadata"]["annotations"] =
        json!({names::slice::WRITTEN_AT: "2026-01-01T00:00:00Z", names::slice::EPOCH: "u/7"});
    member.send("PUT", SLICE, written).await.unwrap();
    let mut two = endpoint("db-0", &own, true);
    two["endpoints"].as_array_mut().unwrap().push(json!({"addresses": ["10.0.0.66"]}));
    let mut nobodys = endpoint("db-0", &own, true);
    nobodys["endpoints"][0]["targetRef"] = Value::Null;
    let mut relabelled = says(endpoint("db-0", &own, true));
    relabelled["metadata"]["labels"]["kubernetes.io/service-name"] = json!("own");
    let mut orphaned = says(endpoint("db-0", &own, true));
    orphaned["metadata"]["ownerReferences"] = json!([]);
    let mut noted = says(endpoint("db-0", &own, true));
    noted["metadata"]["annotations"] = json!({"a": "b"});
    for body in [
        noted,
        says(endpoint("db-1", &other, true)),
        says(endpoint("db-0", &other, true)),
        says(two),
        says(nobodys),
        relabelled,
        orphaned,
    ] {
        member.is_refused("pgset-routes", "PUT", SLICE, body).await;
    }
    for (method, path) in [
        ("DELETE", SLICE),
        ("PATCH", SLICE),
        ("POST", SLICES),
        ("GET", SLICES),
        ("PUT", "/apis/discovery.k8s.io/v1/namespaces/bank/endpointslices/till"),
    ] {
        member.is_refused("RBAC", method, path, json!({"metadata": {"name": "till"}})).await;
    }
    // The same account without its pod, as whoever may ask for tokens gets it.
    let unbound = Somebody::with_token_of(plane, "shop", "db-sa", "").await;
    unbound.is_refused("pgset-routes", "PUT", SLICE, says(endpoint("db-0", &own, true))).await;
}
