//! The container's command: the agent wraps it, and hands the user's own words to PostgreSQL.

use super::{Reason, revision::Pin};
use crate::{
    names::{self, pod},
    set::{
        Error, Failover, ParsedSet,
        arguments::{ServerArguments, number, settings},
        container::Container,
        data::{Pgdata, SubPathOwner},
        error::{named, quoted},
        known::{self, Arguments, name_of},
        shape::{IMAGE_ARGUMENT, REVISION_FLAG, Shape},
    },
};

/// The wrapped command: the agent with its flags, `--`, and the user's own words.
pub(super) fn wrapped(reading: &ParsedSet<'_>, pin: &Pin) -> Result<Vec<String>, Error> {
    let set = &reading.set;
    let failover = match set.failover {
        Failover::Automatic => "automatic",
        Failover::Manual => "manual",
    };
    let is_own_key = set.role_label.key == names::label::ROLE;
    let mut words = vec![
        pod::AGENT_PATH.to_owned(),
        "agent".to_owned(),
        format!("--set={}", set.name),
        format!("--master={}", if is_own_key { names::master(&set.name) } else { set.role_label.master.clone() }),
        format!("--role-label={}", set.role_label.key),
        format!("--port={}", set.port),
        format!("--first-ordinal={}", set.first_ordinal),
        format!("--lease-seconds={}", set.lease_seconds),
        format!("--failover={failover}"),
        format!("--synchronous={}", set.synchronous),
    ];
    if pin.shape >= Shape::Recorded {
        words.push(format!("{REVISION_FLAG}{}", pin.revision));
        words.push(format!("--credentials={}", set.credentials));
        words.extend(places(reading));
        words.extend(image_arguments(&reading.container)?.iter().map(|word| format!("{IMAGE_ARGUMENT}{word}")));
    }
    words.push("--".to_owned());
    words.extend(reading.container.command()?.iter().map(|word| (*word).to_owned()));
    Ok(words)
}

/// The arguments of the image's CMD, which is lost beside a `command`: they are PostgreSQL's where the user wrote none himself.
fn image_arguments(container: &Container<'_>) -> Result<&'static [&'static str], Error> {
    let is_users = !container.command()?.is_empty() || !container.arguments()?.is_empty();
    match known::arguments(container.image) {
        Arguments::Known(arguments) if !is_users => Ok(arguments),
        _ => Ok(&[]),
    }
}

/// Where the data is: the agent runs no database anywhere else.
fn places(reading: &ParsedSet<'_>) -> Vec<String> {
    let mount_path = reading.set.data.mount_path().trim_end_matches('/');
    let mut words = vec![format!("--data-volume={mount_path}")];
    if let Pgdata::Fallback(pgdata) = &reading.placement.pgdata {
        words.push(format!("--default-data-directory={pgdata}"));
    }
    if let SubPathOwner::InPlace { member } = &reading.placement.parting {
        words.push(format!("--members-directory={mount_path}/{}", pod::MEMBERS_DIRECTORY));
        words.push(format!("--in-place-member={member}"));
    }
    words
}

/// Accepts PostgreSQL itself and the entry points before it; anything else the agent could not start, nor hand arguments to.
pub(super) fn check(reading: &ParsedSet<'_>) -> Result<(), Reason> {
    let container = &reading.container;
    let name = || named(container.name);
    let arguments = match container.server_arguments()? {
        ServerArguments::Of(arguments) => arguments,
        ServerArguments::OfAnotherProgram(program) => {
            return Err(Reason::Command { container: name(), program: quoted(program), cure: cure(program) });
        }
    };
    for (key, value) in settings(&arguments) {
        if key == "data_directory" {
            return Err(Reason::DataArgument { container: name(), argument: quoted(&format!("{key}={value}")) });
        }
        let port = reading.set.port;
        if key == "port" && number(&value) != Some(port) {
            return Err(Reason::Port { container: name(), by: "its arguments", found: quoted(&value), port });
        }
    }
    Ok(())
}

/// What to do about a program that is not PostgreSQL.
fn cure(program: &str) -> &'static str {
    match name_of(program) {
        "sh" | "bash" | "ash" | "dash" => "; what the script does before the start belongs into an init container",
        _ => "",
    }
}
