//! The few settings that the agent keeps in PostgreSQL's files: whom to follow, who may replicate. Text in, text out; the edge is thin.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::sql;
use crate::election::Master;
use crate::names;

/// The settings file that PostgreSQL itself rewrites (`ALTER SYSTEM`), read after every other one.
pub const AUTO_FILE: &str = "postgresql.auto.conf";

/// How a member proves to its master that it knows the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// By SCRAM alone: whoever has a master's old address by now can't ask for the password in clear.
    Scram,
    /// As the server asks for it: the image's libpq, before 16, can't be told.
    Any,
}

/// How a member reaches its master, and under which name. The password is not in it: it is read from `passfile`.
#[must_use]
pub fn connection(master: &Master, user: &str, passfile: &Path, name: &str, authentication: Authentication) -> String {
    let pairs = [
        ("host", master.address.as_str()),
        ("port", &master.port.to_string()),
        ("user", user),
        ("passfile", &passfile.to_string_lossy()),
        ("application_name", name),
        // A master whose node is gone sends no reset: notice within seconds, not after the kernel's fifteen minutes.
        ("connect_timeout", "5"),
        ("tcp_user_timeout", "5000"),
        ("keepalives_idle", "2"),
        ("keepalives_interval", "1"),
        ("keepalives_count", "3"),
    ]
    .map(|(key, value)| format!("{key}={}", conninfo_value(value)));
    let mut text = pairs.join(" ");
    if authentication == Authentication::Scram {
        text.push_str(" require_auth=scram-sha-256");
    }
    text
}

fn conninfo_value(value: &str) -> String {
    let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "._:/-".contains(c));
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
}

/// A line for a passfile that is good for every server.
#[must_use]
pub fn passfile_line(user: &str, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
    format!("*:*:*:{}:{}\n", escape(user), escape(password))
}

/// `text` of a settings file with these settings in it, once each, and every other line as it was.
#[must_use]
pub fn with_settings(text: &str, settings: &[(&str, &str)]) -> String {
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !settings.iter().any(|(name, _)| key(line).eq_ignore_ascii_case(name)))
        .map(str::to_owned)
        .collect();
    lines.extend(settings.iter().map(|(key, value)| format!("{key} = '{}'", value.replace('\'', "''"))));
    lines.join("\n") + "\n"
}

/// The value that a settings file gives to `name`, as PostgreSQL writes such a line itself.
#[must_use]
pub fn setting(text: &str, name: &str) -> Option<String> {
    let line = text.lines().rfind(|line| key(line).eq_ignore_ascii_case(name))?;
    let value = line.split_once('=')?.1.trim();
    Some(value.strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'"))
}

fn key(line: &str) -> &str {
    line.split(['=', ' ', '\t']).next().unwrap_or_default()
}

/// `text` of a settings file without this setting.
#[must_use]
pub fn without_setting(text: &str, name: &str) -> String {
    text.split_inclusive('\n').filter(|line| !key(line).eq_ignore_ascii_case(name)).collect()
}

/// The lines that go in front of the user's `pg_hba.conf`. The agent's own role works over the local socket alone; members
/// replicate, which `host all all all` does not allow, and come back by `pg_rewind`, which asks in the agent's database.
#[must_use]
pub fn access_rules(replication_user: &str) -> String {
    let quoted = format!("\"{}\"", replication_user.replace('"', "\"\""));
    format!(
        "# Written by pgset's agent; the lines below the mark are a copy of the file that PostgreSQL was given, kept up to date.\n\
         local all {agent} scram-sha-256\n\
         host all {agent} all reject\n\
         host replication {quoted} all scram-sha-256\n\
         host {database} {quoted} all scram-sha-256\n\
         # ---- the set's own rules ----\n",
        agent = names::role::AGENT,
        database = sql::DATABASE,
    )
}

/// Writes a file in one step: a reader sees the old text or the new. Readable by the PostgreSQL user alone. Returns whether it changed.
pub fn write(path: &Path, text: &str) -> io::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    let temporary = path.with_extension("pgset-new");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::election::SystemIdentifier;

    fn connection_with(authentication: Authentication) -> String {
        let master = Master {
            pod: "my-db-0".into(),
            address: "198.18.0.7".into(),
            port: 5433,
            system: SystemIdentifier(1),
            timeline: 1,
            oldest_wal: None,
            begins: None,
        };
        connection(&master, "o'brien", Path::new("/pgset/run/passfile"), "my-db-1", authentication)
    }

    #[test]
    fn a_connection_names_the_member_and_no_password() {
        let text = connection_with(Authentication::Any);
        assert!(text.starts_with(
            "host=198.18.0.7 port=5433 user='o\\'brien' passfile=/pgset/run/passfile application_name=my-db-1 "
        ));
        assert!(!text.contains("password"));
    }

    #[test]
    fn the_password_is_shown_to_nobody_in_clear_where_libpq_can_refuse_to() {
        assert!(connection_with(Authentication::Scram).ends_with(" require_auth=scram-sha-256"));
        assert!(!connection_with(Authentication::Any).contains("require_auth"), "libpq before 16 refuses the word");
    }

    #[test]
    fn a_setting_is_read_back_as_it_was_written_and_taken_out_again() {
        let old = "# Do not edit this file manually!\nwork_mem = '8MB'\n";
        let new = with_settings(old, &[("synchronous_standby_names", r#"ANY 1 ("o'b-1")"#)]);
        assert_eq!(setting(&new, "synchronous_standby_names").as_deref(), Some(r#"ANY 1 ("o'b-1")"#));
        assert_eq!(setting(&new, "synchronous_commit"), None);
        assert_eq!(without_setting(&new, "synchronous_standby_names"), old);
    }

    #[test]
    fn a_setting_replaces_its_old_value_and_nothing_else() {
        let old = "# Do not edit this file manually!\nwork_mem = '8MB'\nprimary_slot_name = 'old'\nPrimary_Slot_Name='older'\n";
        let new = with_settings(old, &[("primary_slot_name", "pgset_a_1"), ("primary_conninfo", "user='x'")]);
        assert_eq!(
            new,
            "# Do not edit this file manually!\nwork_mem = '8MB'\nprimary_slot_name = 'pgset_a_1'\nprimary_conninfo = 'user=''x'''\n"
        );
        assert_eq!(with_settings(&new, &[("primary_slot_name", "pgset_a_1"), ("primary_conninfo", "user='x'")]), new);
    }

    #[test]
    fn a_password_with_a_colon_stays_one_field() {
        assert_eq!(passfile_line("u", "a:b\\c"), "*:*:*:u:a\\:b\\\\c\n");
    }

    #[test]
    fn the_agents_role_is_rejected_over_the_network_before_any_rule_of_the_user() {
        let rules = access_rules("pgset_replication");
        let reject = rules.find("host all pgset all reject").unwrap();
        assert!(reject < rules.find("the set's own rules").unwrap());
    }
}
