//! What the user wrote and pgset can't work with: never changed, always refused with the reason.

use serde_json::Value;

use super::{Reason, command};
use crate::{
    names::{self, env, pod},
    set::{
        Contract, Error, OLDEST_POSTGRESQL, ParsedSet,
        annotations::{self, Annotations},
        arguments::number,
        container::{Container, Variable},
        data::contains_path,
        error::{named, quoted},
        json::Field,
        known::{MANAGERS, Manager, name_of},
        shape::Settled,
    },
};

/// Refuses what conflicts with the injection.
pub(super) fn conflicts(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    environment(parsed)?;
    mounts(parsed)?;
    init_containers(parsed)?;
    if parsed.set.contract == Contract::Agent {
        command::check(parsed)?;
        agent_port(parsed)?;
    }
    Ok(())
}

/// Refuses of an object that has no injection yet what earlier revisions took: a set of theirs stays as it is.
pub(super) fn new_conflicts(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    if parsed.set.contract == Contract::Agent {
        port_variable(parsed)?;
        mounts_in_data(parsed)?;
        shared_processes(parsed)?;
    }
    Ok(())
}

/// Refuses a new set the names that another set's objects have or will have. One that is stored has its `serviceName` for ever: what
/// it names is then used as it is, or is not there (see `children`).
pub(super) fn new_names(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let set = &parsed.set;
    if names::is_kept_for_another_set(&set.headless_service, &set.name) {
        return Err(Reason::ServiceNameKept { name: set.headless_service.clone(), set: set.name.clone() });
    }
    Ok(())
}

/// Refuses an image that nothing else would make fit, before anything else is said of the object. What runs by an injection already does
/// so by the rules of its day.
pub(super) fn image(own: &Value, settled: &Settled) -> Result<(), Reason> {
    let set = annotations::name(own).unwrap_or_default();
    let (container, contract) = Container::of_set(&Field::root(own), Annotations::read(own)?, settled, set)?;
    if contract == Contract::Image {
        return Ok(());
    }
    if let (Some((manager, how)), None) = (manager(&container)?, &settled.container) {
        return Err(Reason::ClusterManager { container: named(container.name), manager, how });
    }
    match container.family.major() {
        Some(major) if major < OLDEST_POSTGRESQL => {
            Err(Reason::TooOld { image: quoted(container.image), major, oldest: OLDEST_POSTGRESQL })
        }
        _ => Ok(()),
    }
}

/// What else starts and replicates PostgreSQL in a container, and what shows it.
fn manager(container: &Container<'_>) -> Result<Option<(&'static str, String)>, Error> {
    let (variables, mounts) = (container.environment()?, container.mounts()?);
    let words: Vec<&str> = container.command()?.into_iter().chain(container.arguments()?).collect();
    let signs = |manager: &Manager| {
        let variable = variables.iter().find(|it| manager.reads(it.name)).map(|it| it.name);
        let mount = mounts.iter().find(|it| manager.is_mounted_at(it.path)).map(|it| it.path);
        let by_image = manager.is_in(container.image).then(|| format!("image {}", quoted(container.image)));
        let by_variable = || Some(format!("variable {}", named(variable?)));
        let by_command = || words.iter().any(|word| manager.is_started_by(word)).then(|| "by its command".to_owned());
        by_image.or_else(by_variable).or_else(by_command).or_else(|| Some(format!("data at {}", named(mount?))))
    };
    Ok(MANAGERS.iter().find_map(|manager| Some((manager.name, signs(manager)?))))
}

fn environment(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let set = &parsed.set;
    let port = set.port.to_string();
    let (master, replica) = (set.role_label.master_host(&set.name), names::replica(&set.name));
    let mut expected =
        vec![(env::PG_MODE, "set"), (env::PG_MASTER_HOST, master.as_str()), (env::PG_MASTER_PORT, &port)];
    if set.contract == Contract::Image {
        expected.extend([
            (env::PG_PRIMARY_HOST, master.as_str()),
            (env::PG_PRIMARY_PORT, &port),
            (env::PG_REPLICA_HOST, &replica),
        ]);
    }
    let container = || named(&set.container);
    for variable in parsed.container.environment()? {
        if variable.name.starts_with(env::PRIVATE_PREFIX) {
            return Err(Reason::PrivateVariable { container: container(), name: named(variable.name) });
        }
        let rule = expected.iter().find(|(name, _)| *name == variable.name);
        if let Some((name, expected)) = rule.filter(|(_, expected)| variable.literal != Some(expected)) {
            let (found, expected) = (origin(variable), quoted(expected));
            return Err(Reason::Variable { container: container(), name, found, expected });
        }
    }
    Ok(())
}

/// What a message may say of a variable's value: these names carry no secrets.
fn origin(variable: &Variable<'_>) -> String {
    variable.literal.map_or_else(|| "a value from elsewhere".to_owned(), quoted)
}

fn mounts(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let ours: &[&str] = match parsed.set.contract {
        Contract::Agent => &[pod::RUN_PATH, pod::ACCESS_PATH],
        Contract::Image => &[],
    };
    for mount in parsed.container.mounts()? {
        if ours.contains(&mount.path.trim_end_matches('/')) {
            return Err(Reason::MountPath {
                container: named(&parsed.set.container),
                volume: named(mount.volume),
                mount_path: named(mount.path),
            });
        }
    }
    Ok(())
}

/// `PGPORT` is PostgreSQL's port where no argument says another, and that of the probes' programs.
fn port_variable(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let Some(variable) = parsed.container.variable(env::PGPORT)? else { return Ok(()) };
    let port = parsed.set.port;
    if variable.literal.and_then(number) == Some(port) {
        return Ok(());
    }
    let found = format!("{} ({})", env::PGPORT, origin(variable));
    Err(Reason::Port { container: named(&parsed.set.container), by: "a variable", found, port })
}

/// A clone takes the data directory's place by a rename, which the kernel refuses while anything is mounted in it.
fn mounts_in_data(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let Some(pgdata) = parsed.placement.pgdata.path().map(|path| path.trim_end_matches('/')) else { return Ok(()) };
    let is_inside = |path: &str| contains_path(pgdata, path) && path.trim_end_matches('/') != pgdata;
    let Some(mount) = parsed.container.mounts()?.into_iter().find(|mount| is_inside(mount.path)) else {
        return Ok(());
    };
    let file = name_of(mount.path.trim_end_matches('/'));
    let setting = match file {
        "postgresql.conf" => "config_file",
        "pg_hba.conf" => "hba_file",
        "pg_ident.conf" => "ident_file",
        "server.crt" | "tls.crt" => "ssl_cert_file",
        "server.key" | "tls.key" => "ssl_key_file",
        "root.crt" | "ca.crt" => "ssl_ca_file",
        _ => "",
    };
    let cure = if setting.is_empty() {
        "mount it outside of that".to_owned()
    } else {
        format!("mount it at /etc/postgresql/{file} and write args: [\"-c\", \"{setting}=/etc/postgresql/{file}\"]")
    };
    Err(Reason::MountInData {
        container: named(&parsed.set.container),
        volume: named(mount.volume),
        mount_path: named(mount.path),
        pgdata: named(pgdata),
        cure,
    })
}

/// The agent is the first process of its container, so that with it all ends that may write.
fn shared_processes(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let pod = parsed.object.at(&["spec", "template", "spec"])?;
    for field in ["shareProcessNamespace", "hostPID"] {
        if pod.get(field)?.value() == Some(&Value::Bool(true)) {
            return Err(Reason::SharedProcesses { field });
        }
    }
    Ok(())
}

/// Nobody else looks at them: what is appended to must be a list.
fn init_containers(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    for init_container in parsed.object.at(&["spec", "template", "spec", "initContainers"])?.items()? {
        init_container.get("name")?.text()?;
    }
    Ok(())
}

/// All containers of a pod share its address, so that two can't listen on one port.
fn agent_port(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    for container in parsed.object.at(&["spec", "template", "spec", "containers"])?.items()? {
        for port in container.get("ports")?.items()? {
            if port.get("containerPort")?.value().and_then(Value::as_i64) == Some(pod::AGENT_PORT.into()) {
                return Err(Reason::AgentPort { container: named(container.get("name")?.text()?.unwrap_or_default()) });
            }
        }
    }
    Ok(())
}
