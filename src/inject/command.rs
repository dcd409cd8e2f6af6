//! The container's command: the agent wraps it, and hands the user's own words to PostgreSQL.

use super::{Reason, revision::Pin};
use crate::{
    names::pod,
    set::{
        Error, Failover, ParsedSet,
        arguments::{ServerArguments, number, settings},
        container::Container,
        data::{Pgdata, SubPathOwner},
        error::{named, quoted},
        known::{self, name_of},
        shape::{IMAGE_ARGUMENT, REVISION_FLAG, Shape},
    },
};

/// The wrapped command: the agent with its flags, `--`, and the user's own words.
pub(super) fn wrapped(parsed: &ParsedSet<'_>, pin: &Pin) -> Result<Vec<String>, Error> {
    let set = &parsed.set;
    let failover = match set.failover {
        Failover::Automatic => "automatic",
        Failover::Manual => "manual",
    };
    let mut words = vec![
        pod::AGENT_PATH.to_owned(),
        "agent".to_owned(),
        format!("--set={}", set.name),
        format!("--master={}", set.role_label.master_host(&set.name)),
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
        words.extend(places(parsed));
        words.extend(image_arguments(&parsed.container)?.iter().map(|word| format!("{IMAGE_ARGUMENT}{word}")));
    }
    words.push("--".to_owned());
    words.extend(parsed.container.command()?.iter().map(|word| (*word).to_owned()));
    Ok(words)
}

/// The arguments of the image's CMD, which is lost beside a `command`: they are PostgreSQL's where the user wrote none himself.
fn image_arguments(container: &Container<'_>) -> Result<&'static [&'static str], Error> {
    let is_users = !container.command()?.is_empty() || !container.arguments()?.is_empty();
    Ok(known::arguments(container.image).filter(|_| !is_users).unwrap_or_default())
}

/// Where the data is: the agent runs no database anywhere else.
fn places(parsed: &ParsedSet<'_>) -> Vec<String> {
    let mount_path = parsed.set.data.mount_path().trim_end_matches('/');
    let mut words = vec![format!("--data-volume={mount_path}")];
    if let Pgdata::Fallback(pgdata) = &parsed.placement.pgdata {
        words.push(format!("--default-data-directory={pgdata}"));
    }
    if let SubPathOwner::InPlace { member } = &parsed.placement.sub_path_owner {
        words.push(format!("--members-directory={mount_path}/{}", pod::MEMBERS_DIRECTORY));
        words.push(format!("--in-place-member={member}"));
    }
    words
}

/// Accepts PostgreSQL itself and the entry points before it; anything else the agent could not start, nor hand arguments to.
pub(super) fn check(parsed: &ParsedSet<'_>) -> Result<(), Reason> {
    let container = &parsed.container;
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
        let port = parsed.set.port;
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
