//! The environment of the PostgreSQL container.

use serde_json::{Map, Value, json};

use super::Reason;
use crate::{
    names::{self, credential, env, role},
    set::{
        Contract, ParsedSet,
        data::{Pgdata, SubPathOwner},
    },
};

/// The variables that a member needs and the user did not write, in the order they are appended.
pub(super) fn variables(parsed: &ParsedSet<'_>) -> Result<Vec<Value>, Reason> {
    let wanted = match parsed.set.contract {
        Contract::Agent => agent(parsed),
        Contract::Image => image(parsed)?,
    };
    let mut missing = Vec::new();
    for variable in wanted {
        let name = variable.get("name").and_then(Value::as_str).unwrap_or_default();
        if parsed.container.variable(name)?.is_none() {
            missing.push(variable);
        }
    }
    Ok(missing)
}

fn agent(parsed: &ParsedSet<'_>) -> Vec<Value> {
    let set = &parsed.set;
    let mut variables = vec![
        plain(env::PG_MODE, "set"),
        plain(env::PG_MASTER_HOST, &names::master(&set.name)),
        plain(env::PG_MASTER_PORT, &set.port.to_string()),
        plain(env::PG_MASTER_USER, role::REPLICATION),
    ];
    variables.extend(env::FIELDS.map(|(name, field)| of_pod(name, field)));
    if let Pgdata::Ours(pgdata) = &parsed.placement.pgdata {
        variables.push(plain(env::PGDATA, pgdata));
    }
    variables
}

/// What the crunchy-postgres family asks for, under its old names (1.x) and its new ones.
fn image(parsed: &ParsedSet<'_>) -> Result<Vec<Value>, Reason> {
    let set = &parsed.set;
    // The image labels the master's pod with it.
    let (master, port) = (set.role_label.master_host(&set.name), set.port.to_string());
    let mut variables = vec![
        plain(env::PG_MODE, "set"),
        plain(env::PG_MASTER_HOST, &master),
        plain(env::PG_PRIMARY_HOST, &master),
        plain(env::PG_REPLICA_HOST, &names::replica(&set.name)),
        plain(env::PG_MASTER_PORT, &port),
        plain(env::PG_PRIMARY_PORT, &port),
    ];
    // What envFrom brings can't be seen here, and a variable under env would hide it.
    if !parsed.container.has_unseen_environment()? {
        let password = |name: &str, key: &str| of_secret(name, &set.credentials, key);
        variables.extend(aliases(
            parsed,
            plain(env::PG_MASTER_USER, role::REPLICATION),
            plain(env::PG_PRIMARY_USER, role::REPLICATION),
        )?);
        variables.extend(aliases(
            parsed,
            password(env::PG_MASTER_PASSWORD, credential::REPLICATION),
            password(env::PG_PRIMARY_PASSWORD, credential::REPLICATION),
        )?);
        variables.push(password(env::PG_ROOT_PASSWORD, credential::SUPERUSER));
        variables.push(plain(env::PG_USER, "app"));
        variables.push(password(env::PG_PASSWORD, credential::USER));
        variables.push(plain(env::PG_DATABASE, "app"));
    }
    variables.push(plain(env::PGHOST, "/tmp"));
    variables.push(of_pod(env::CCP_NAMESPACE, "metadata.namespace"));
    if parsed.placement.sub_path_owner == SubPathOwner::Ours {
        variables.push(of_pod(env::POD_NAME, "metadata.name"));
    }
    Ok(variables)
}

/// One thing under two names: where the user wrote one of them, the other means the same. The kubelet fills in `$(NAME)`, so
/// that no password is copied.
fn aliases(parsed: &ParsedSet<'_>, old: Value, new: Value) -> Result<[Value; 2], Reason> {
    let name = |variable: &Value| variable.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (old_name, new_name) = (name(&old), name(&new));
    let is_written = |name: &str| Ok::<_, Reason>(parsed.container.variable(name)?.is_some());
    let same_as = |name: &str, other: &str| plain(name, &format!("$({other})"));
    Ok(match (is_written(&old_name)?, is_written(&new_name)?) {
        (true, false) => [old, same_as(&new_name, &old_name)],
        (false, true) => [same_as(&old_name, &new_name), new],
        _ => [old, new],
    })
}

/// What the record says of a variable: see [`crate::set::record::Record::env`].
pub(super) fn recorded(variables: &[Value]) -> Map<String, Value> {
    let recorded = |variable: &Value| {
        let name = variable.get("name")?.as_str()?.to_owned();
        let value = match variable.get("valueFrom").filter(|source| !source.is_null()) {
            _ if name.starts_with(env::PRIVATE_PREFIX) => Value::Null,
            Some(source) => source.clone(),
            None => variable.get("value").filter(|value| !value.is_null()).cloned().unwrap_or_else(|| json!("")),
        };
        Some((name, value))
    };
    variables.iter().filter_map(recorded).collect()
}

fn plain(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

fn of_pod(name: &str, field: &str) -> Value {
    json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": field } } })
}

fn of_secret(name: &str, secret: &str, key: &str) -> Value {
    json!({ "name": name, "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } })
}
