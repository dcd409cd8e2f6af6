//! The words of a container's command: how they lead to PostgreSQL, and what they set.

use super::known::{after_entry_points, name_of};

/// What a command starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ServerArguments<'a> {
    /// PostgreSQL, with these arguments.
    Of(Vec<&'a str>),
    /// Something else.
    OfAnotherProgram(&'a str),
}

impl<'a> ServerArguments<'a> {
    /// Of the container's command and its arguments.
    pub(crate) fn of(command: &[&'a str], arguments: &[&'a str]) -> Self {
        let all: Vec<&str> = command.iter().chain(arguments).copied().collect();
        let words = after_entry_points(&all);
        let has_entry_point = words.len() < all.len();
        match words {
            [] => Self::Of(Vec::new()),
            // The image's entry point puts `postgres` before arguments.
            [first, ..] if first.starts_with('-') && (has_entry_point || command.is_empty()) => {
                Self::Of(words.to_vec())
            }
            [first, arguments @ ..] if name_of(first) == "postgres" => Self::Of(arguments.to_vec()),
            [first, ..] => Self::OfAnotherProgram(first),
        }
    }
}

/// What the arguments set: `-c port=1`, `-cport=1`, `--port=1`, `-p 1`, `-p1`, `-D /x`, by the names that PostgreSQL's files have for it.
pub(crate) fn settings(arguments: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let short = |letter: &str| argument.strip_prefix(letter).filter(|_| !argument.starts_with("--"));
        let mut value = |inside: &str| {
            if inside.is_empty() { arguments.next().copied().unwrap_or_default().to_owned() } else { inside.to_owned() }
        };
        let setting = if let Some(inside) = short("-p") {
            format!("port={}", value(inside))
        } else if let Some(inside) = short("-D") {
            format!("data_directory={}", value(inside))
        } else if let Some(inside) = short("-c") {
            value(inside)
        } else {
            argument.strip_prefix("--").unwrap_or_default().to_owned()
        };
        if let Some((key, value)) = setting.split_once('=') {
            // PostgreSQL takes dashes for underscores in long options.
            found.push((key.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
        }
    }
    found
}

/// A port as a setting gives it.
pub(crate) fn number(value: &str) -> Option<u16> {
    value.trim_matches(['\'', ' ']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(arguments: &[&str]) -> Vec<String> {
        settings(arguments).into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn the_data_directory_is_read_however_it_is_written() {
        for arguments in [
            &["-D", "/x"][..],
            &["-D/x"],
            &["--data-directory=/x"],
            &["-c", "data_directory=/x"],
            &["-cdata_directory=/x"],
        ] {
            assert_eq!(setting(arguments), ["data_directory=/x"], "{arguments:?}");
        }
    }

    #[test]
    fn the_port_is_read_however_it_is_written() {
        for arguments in [&["-p", "5433"][..], &["-p5433"], &["--port=5433"], &["-c", "port=5433"], &["-cport=5433"]] {
            assert_eq!(setting(arguments), ["port=5433"], "{arguments:?}");
        }
    }

    #[test]
    fn every_other_argument_is_what_it_is() {
        let arguments = ["-c", "max_connections=300", "-N", "10", "--shared-buffers=1GB", "-c", "", "-c"];
        assert_eq!(setting(&arguments), ["max_connections=300", "shared_buffers=1GB"]);
    }

    #[test]
    fn a_command_leads_to_postgresql_by_entry_points_or_is_another_program() {
        let of = |command: &[&'static str], arguments: &[&'static str]| ServerArguments::of(command, arguments);
        let plain = ServerArguments::Of(vec!["-N", "9"]);
        for (command, arguments) in [
            (&[][..], &["-N", "9"][..]),
            (&[], &["postgres", "-N", "9"]),
            (&["docker-entrypoint.sh"], &["-N", "9"]),
            (&["/usr/local/bin/docker-entrypoint.sh", "postgres"], &["-N", "9"]),
            (&["/usr/lib/postgresql/17/bin/postgres"], &["-N", "9"]),
            (&["container-entrypoint", "run-postgresql"], &["-N", "9"]),
        ] {
            assert_eq!(of(command, arguments), plain, "{command:?} {arguments:?}");
        }
        assert_eq!(of(&["bash", "-c"], &["x"]), ServerArguments::OfAnotherProgram("bash"));
        assert_eq!(of(&["-N"], &[]), ServerArguments::OfAnotherProgram("-N"), "no program at all");
    }
}
