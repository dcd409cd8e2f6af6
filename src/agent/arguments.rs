//! From the container's command and arguments to the arguments of the PostgreSQL server. Pure.

use std::path::PathBuf;

use crate::set::known::{after_entry_points, name_of};

/// What the user asked of the server: everything but the program and the data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerArguments {
    /// The data directory, if it was named by `-D`; else `PGDATA` says.
    pub data_directory: Option<PathBuf>,
    /// Every other argument, in the user's order.
    pub others: Vec<String>,
}

/// A command that is not PostgreSQL's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the container's command {0:?} is neither `postgres` nor `docker-entrypoint.sh`: \
     write the server's arguments as the container's `args`, or use pgset.dev/contract: image"
)]
pub struct UnknownCommand(String);

/// Reads the user's command followed by his arguments, as the official image's entry point would: leading entry points and a
/// leading `postgres` are dropped, and arguments that begin with `-` are the server's.
pub fn parse(argv: &[String]) -> Result<ServerArguments, UnknownCommand> {
    let mut rest = after_entry_points(argv);
    if let Some((first, tail)) = rest.split_first()
        && name_of(first) == "postgres"
    {
        rest = tail;
    }
    if let Some(first) = rest.first().filter(|first| !first.starts_with('-')) {
        return Err(UnknownCommand(first.clone()));
    }
    let mut arguments = ServerArguments::default();
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        if argument == "-D" {
            arguments.data_directory = rest.next().map(PathBuf::from);
        } else if let Some(path) = argument.strip_prefix("-D").or_else(|| argument.strip_prefix("--data-directory=")) {
            arguments.data_directory = Some(PathBuf::from(path));
        } else {
            arguments.others.push(argument.clone());
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(argv: &[&str]) -> ServerArguments {
        parse(&argv.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn every_way_to_write_the_same_server_means_the_same() {
        let expected =
            ServerArguments { data_directory: None, others: vec!["-c".into(), "max_connections=300".into()] };
        for argv in [
            &["-c", "max_connections=300"][..],
            &["postgres", "-c", "max_connections=300"],
            &["docker-entrypoint.sh", "postgres", "-c", "max_connections=300"],
            &["/usr/local/bin/docker-entrypoint.sh", "-c", "max_connections=300"],
            &["/usr/lib/postgresql/17/bin/postgres", "-c", "max_connections=300"],
            &["container-entrypoint", "run-postgresql", "-c", "max_connections=300"],
        ] {
            assert_eq!(parsed(argv), expected, "{argv:?}");
        }
    }

    #[test]
    fn no_command_and_no_arguments_is_a_plain_server() {
        assert_eq!(parsed(&[]), ServerArguments::default());
        assert_eq!(parsed(&["docker-entrypoint.sh"]), ServerArguments::default());
    }

    #[test]
    fn the_data_directory_is_taken_out() {
        for argv in [&["postgres", "-D", "/data"][..], &["-D/data"], &["postgres", "--data-directory=/data"]] {
            assert_eq!(parsed(argv), ServerArguments { data_directory: Some("/data".into()), others: vec![] });
        }
    }

    #[test]
    fn another_program_is_refused_by_name() {
        let error = parse(&["bash".to_owned(), "-c".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("\"bash\""), "{error}");
    }
}
