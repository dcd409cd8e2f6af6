//! The container's command: the agent wraps it, and hands the user's own words to PostgreSQL.

use super::{Reason, revision::Pin};
use crate::{
    names::{self, pod},
    set::{
        Failover, Reading,
        data::{Parting, Pgdata},
        error::{named, shown},
        shape::{REVISION_FLAG, Shape},
    },
};

/// The wrapped command: the agent with its flags, `--`, and the user's own words.
pub(super) fn wrapped(reading: &Reading<'_>, pin: &Pin, own: &[&str]) -> Vec<String> {
    let set = &reading.set;
    let failover = match set.failover {
        Failover::Automatic => "automatic",
        Failover::Manual => "manual",
    };
    let mut words = vec![
        pod::AGENT_PATH.to_owned(),
        "agent".to_owned(),
        format!("--set={}", set.name),
        format!("--master={}", names::master(&set.name)),
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
    }
    words.push("--".to_owned());
    words.extend(own.iter().map(|word| (*word).to_owned()));
    words
}

/// Where the data is: the agent runs no database anywhere else.
fn places(reading: &Reading<'_>) -> Vec<String> {
    let mount_path = reading.set.data.mount_path().trim_end_matches('/');
    let mut words = vec![format!("--data-volume={mount_path}")];
    if let Pgdata::Fallback(pgdata) = &reading.placement.pgdata {
        words.push(format!("--default-data-directory={pgdata}"));
    }
    if let Parting::InPlace { member } = &reading.placement.parting {
        words.push(format!("--members-directory={mount_path}/{}", pod::MEMBERS_DIRECTORY));
        words.push(format!("--in-place-member={member}"));
    }
    words
}

/// Accepts PostgreSQL itself and the official entry point before it; anything else the agent could not start, nor hand
/// arguments to.
pub(super) fn check(reading: &Reading<'_>) -> Result<(), Reason> {
    let container = &reading.container;
    let command = container.command()?;
    let words: Vec<&str> = command.iter().copied().chain(container.arguments()?).collect();
    let name = || named(container.name);
    let has_entry_point = words.first().is_some_and(|word| program(word) == "docker-entrypoint.sh");
    let words = words.get(usize::from(has_entry_point)..).unwrap_or_default();
    let arguments = match words {
        [] => words,
        // The image's entry point puts `postgres` before arguments.
        [first, ..] if first.starts_with('-') && (has_entry_point || command.is_empty()) => words,
        [first, arguments @ ..] if program(first) == "postgres" => arguments,
        [first, ..] => return Err(Reason::Command { container: name(), program: shown(first) }),
    };
    check_arguments(arguments, reading.set.port, &name())
}

fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// The data directory and the port are the agent's to know: said twice, they can differ.
fn check_arguments(arguments: &[&str], port: u16, container: &str) -> Result<(), Reason> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let setting = if matches!(*argument, "-c" | "-D" | "-p") {
            let value = arguments.next().copied().unwrap_or_default();
            if *argument == "-c" { value.to_owned() } else { format!("{argument}{value}") }
        } else if let Some(setting) = argument.strip_prefix("--").or_else(|| argument.strip_prefix("-c")) {
            setting.to_owned()
        } else {
            (*argument).to_owned()
        };
        let (key, value) = setting.split_once('=').unwrap_or((&setting, ""));
        // PostgreSQL takes dashes for underscores in long options.
        let key = key.replace('-', "_");
        if key == "data_directory" || setting.starts_with("-D") {
            return Err(Reason::DataArgument { container: container.to_owned(), argument: shown(&setting) });
        }
        let found = if key == "port" { Some(value) } else { setting.strip_prefix("-p") };
        if let Some(found) = found.filter(|found| found.trim_matches(['\'', ' ']) != port.to_string()) {
            return Err(Reason::PortArgument { container: container.to_owned(), found: shown(found), port });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_is_no_argument() {
        for arguments in [
            &["-D", "/x"][..],
            &["-D/x"],
            &["--data-directory=/x"],
            &["-c", "data_directory=/x"],
            &["-cdata_directory=/x"],
        ] {
            let found = check_arguments(arguments, 5432, "c");
            assert!(matches!(found, Err(Reason::DataArgument { .. })), "{arguments:?}: {found:?}");
        }
    }

    #[test]
    fn the_port_is_said_once() {
        for arguments in [&["-p", "5433"][..], &["-p5433"], &["--port=5433"], &["-c", "port=5433"], &["-cport=5433"]] {
            let found = check_arguments(arguments, 5432, "c");
            assert!(matches!(found, Err(Reason::PortArgument { .. })), "{arguments:?}: {found:?}");
            assert_eq!(check_arguments(arguments, 5433, "c"), Ok(()), "{arguments:?}");
        }
    }

    #[test]
    fn every_other_argument_is_kept() {
        let arguments = ["-c", "max_connections=300", "-N", "10", "--shared-buffers=1GB", "-c", "", "-c"];
        assert_eq!(check_arguments(&arguments, 5432, "c"), Ok(()));
    }
}
