//! Passwords are in the Secret and in files that the kubelet mounts, and nowhere else.

use std::process::Command;

use crate::{
    lab::{self, run},
    manifests::set,
    node,
};

#[test]
fn no_password_is_in_a_command_line_an_environment_a_log_or_on_the_data_volume() {
    let lab = lab::shared();
    let ns = lab.namespace("secrets");
    ns.shared_claim("pgset-pvc");
    ns.apply(&set("pgset").manifest());
    ns.wait_ready("pgset", 2);
    ns.database("pgset").wait_streaming(&["pgset-1"]);

    let secret = ns.get("secret pgset-pgset-credentials");
    let passwords: Vec<(String, String)> = secret["data"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.clone(), lab::decoded(value.as_str().unwrap()).unwrap()))
        .collect();
    assert!(passwords.len() >= 3 && passwords.iter().all(|(_, password)| password.len() >= 16));

    for pod in ["pgset-0", "pgset-1"] {
        let mut places = node::processes(&ns, pod, "postgres").unwrap();
        assert!(places.iter().any(|(place, _)| place.contains("cmdline")), "no process seen");
        places.push(("its log".to_owned(), ns.kubectl(&format!("logs {pod} --all-containers"))));
        places.push(("its object".to_owned(), ns.get(&format!("pod {pod}")).to_string()));
        for (place, text) in places {
            for (key, password) in &passwords {
                assert!(!text.contains(password.as_str()), "{pod}: {key} is in {place}");
            }
        }
    }
    for (key, password) in &passwords {
        let mut grep = Command::new("grep");
        grep.args(["--recursive", "--files-with-matches", "--fixed-strings", "--text", "--regexp", password])
            .arg(ns.export());
        let found = run(&mut grep, None).map_or_else(|said| said.out, |said| said.out);
        assert_eq!(found, "", "{key} is on the data volume");
    }
}
