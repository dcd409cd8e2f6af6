//! What the user wrote and pgset can't work with: never changed, always refused with the reason.

use super::{Reason, command};
use crate::{
    names::{self, env, pod},
    set::{
        Contract, OLDEST_POSTGRESQL, Reading,
        container::Variable,
        error::{named, shown},
        image::Family,
    },
};

/// Refuses what conflicts with the injection.
pub(super) fn conflicts(reading: &Reading<'_>) -> Result<(), Reason> {
    image(reading)?;
    environment(reading)?;
    mounts(reading)?;
    init_containers(reading)?;
    if reading.set.contract == Contract::Agent {
        command::check(reading)?;
        agent_port(reading)?;
    }
    Ok(())
}

/// Refuses a new set the names that another set's objects have or will have. One that is stored has its `serviceName` for ever: what
/// it names is then used as it is, or is not there (see `children`).
pub(super) fn new_names(reading: &Reading<'_>) -> Result<(), Reason> {
    let set = &reading.set;
    if names::is_kept_for_another_set(&set.headless_service, &set.name) {
        return Err(Reason::ServiceNameKept { name: set.headless_service.clone(), set: set.name.clone() });
    }
    Ok(())
}

fn image(reading: &Reading<'_>) -> Result<(), Reason> {
    let image = || Ok::<_, Reason>(shown(reading.container.field.get("image")?.text()?.unwrap_or_default()));
    match reading.container.family {
        Family::Bitnami => Err(Reason::Bitnami { image: image()? }),
        Family::Official { major: Some(major) }
            if major < OLDEST_POSTGRESQL && reading.set.contract == Contract::Agent =>
        {
            Err(Reason::TooOld { image: image()?, major, oldest: OLDEST_POSTGRESQL })
        }
        _ => Ok(()),
    }
}

fn environment(reading: &Reading<'_>) -> Result<(), Reason> {
    let set = &reading.set;
    let port = set.port.to_string();
    let (master, replica) = (names::master(&set.name), names::replica(&set.name));
    let mut expected = vec![(env::PG_MODE, "set"), (env::PG_MASTER_HOST, &master), (env::PG_MASTER_PORT, &port)];
    if set.contract == Contract::Image {
        expected.extend([
            (env::PG_PRIMARY_HOST, master.as_str()),
            (env::PG_PRIMARY_PORT, &port),
            (env::PG_REPLICA_HOST, &replica),
        ]);
    }
    let container = || named(&set.container);
    for variable in reading.container.environment()? {
        if variable.name.starts_with(env::PRIVATE_PREFIX) {
            return Err(Reason::PrivateVariable { container: container(), name: named(variable.name) });
        }
        let rule = expected.iter().find(|(name, _)| *name == variable.name);
        if let Some((name, expected)) = rule.filter(|(_, expected)| variable.literal != Some(expected)) {
            let (found, expected) = (origin(variable), shown(expected));
            return Err(Reason::Variable { container: container(), name, found, expected });
        }
    }
    Ok(())
}

/// What a message may say of a variable's value: these names carry no secrets.
fn origin(variable: &Variable<'_>) -> String {
    variable.literal.map_or_else(|| "a value from elsewhere".to_owned(), shown)
}

fn mounts(reading: &Reading<'_>) -> Result<(), Reason> {
    let ours: &[&str] = match reading.set.contract {
        Contract::Agent => &[pod::RUN_PATH, pod::ACCESS_PATH],
        Contract::Image => &[],
    };
    for mount in reading.container.mounts()? {
        if ours.contains(&mount.path.trim_end_matches('/')) {
            return Err(Reason::MountPath {
                container: named(&reading.set.container),
                volume: named(mount.volume),
                mount_path: named(mount.path),
            });
        }
    }
    Ok(())
}

/// Nobody else looks at them: what is appended to must be a list.
fn init_containers(reading: &Reading<'_>) -> Result<(), Reason> {
    for init_container in reading.object.at(&["spec", "template", "spec", "initContainers"])?.items()? {
        init_container.get("name")?.text()?;
    }
    Ok(())
}

/// All containers of a pod share its address, so that two can't listen on one port.
fn agent_port(reading: &Reading<'_>) -> Result<(), Reason> {
    for container in reading.object.at(&["spec", "template", "spec", "containers"])?.items()? {
        for port in container.get("ports")?.items()? {
            if port.get("containerPort")?.value().and_then(serde_json::Value::as_i64) == Some(pod::AGENT_PORT.into()) {
                return Err(Reason::AgentPort { container: named(container.get("name")?.text()?.unwrap_or_default()) });
            }
        }
    }
    Ok(())
}
