//! A set as it is named on the command line.

use std::{fmt, str::FromStr};

/// The name of a `StatefulSet`, with its kind before it as `kubectl` takes it, or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetName(pub String);

/// What is no name of a `StatefulSet`.
#[derive(Debug, thiserror::Error)]
#[error("a StatefulSet is named like sts/NAME")]
pub struct NotASet;

// === impl SetName ===

impl FromStr for SetName {
    type Err = NotASet;

    fn from_str(text: &str) -> Result<Self, NotASet> {
        let (kind, name) = text.split_once('/').unwrap_or(("sts", text));
        let kinds = ["sts", "statefulset", "statefulsets", "statefulset.apps", "statefulsets.apps"];
        // What could lead to another path of the API is no name.
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let is_name = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed);
        (kinds.contains(&kind.to_ascii_lowercase().as_str()) && is_name).then(|| Self(name.to_owned())).ok_or(NotASet)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_named_as_kubectl_names_it() {
        for good in ["sts/db", "statefulset/db", "StatefulSets.apps/db", "db"] {
            assert_eq!(good.parse::<SetName>().unwrap(), SetName("db".to_owned()), "{good}");
        }
        for bad in ["", "sts/", "pod/db", "sts/a/b", "sts/../x", "sts/a?b", "Db"] {
            assert!(bad.parse::<SetName>().is_err(), "{bad}");
        }
    }
}
