//! What the checks found, and how it is told: a table for people, JSON for programs, an exit code for both.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cli::cluster::Unread;

/// Where the checks are explained, one section each.
const MANUAL: &str = "docs/check.md";
/// How wide the table's second column is.
const WIDTH: usize = 22;

/// The checks, by their stable names; `docs/check.md` has a section for each.
macro_rules! ids {
    ($($name:ident = $text:literal,)*) => {
        /// A check.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Id { $(#[doc = $text] $name,)* }

        impl Id {
            /// Its name, which stays the same from version to version.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// All of them.
            #[cfg(test)]
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

ids! {
    KubernetesVersion = "kubernetes-version",
    Clock = "clock",
    AdmissionApi = "admission-api",
    CanInstall = "can-install",
    OtherWebhooks = "other-webhooks",
    Version = "version",
    Installed = "installed",
    WebhookConfiguration = "webhook-configuration",
    PolicyPresent = "policy-present",
    DeploymentReady = "deployment-ready",
    TwoReplicas = "two-replicas",
    ServiceEndpoints = "service-endpoints",
    BundlePresent = "bundle-present",
    CertificateValid = "certificate-valid",
    CertificateExpiry = "certificate-expiry",
    Canary = "canary",
    SetsInjected = "sets-injected",
    SetsBehind = "sets-behind",
    SetsReady = "sets-ready",
    OneMaster = "one-master",
    Routes = "routes",
    Leases = "leases",
    Orders = "orders",
    Backups = "backups",
    Claims = "claims",
    SharedExports = "shared-exports",
}

/// What a check says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it should be.
    Ok(String),
    /// Something to know of, though it stands in nobody's way now.
    Warning(Finding),
    /// Something that has to be changed.
    Failure(Finding),
    /// It could not be looked at, and why.
    Skipped(String),
}

/// What is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// One line.
    pub says: String,
    /// What was found, one line each.
    pub found: Vec<String>,
    /// What to do.
    pub cure: String,
}

/// The verdicts of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether pgset is still to be installed.
    pub is_before: bool,
    /// The verdicts, in the order of the checks.
    pub lines: Vec<(Id, Verdict)>,
}

// === impl Verdict ===

impl Verdict {
    /// All is as it should be.
    pub fn ok(says: impl Into<String>) -> Self {
        Self::Ok(says.into())
    }

    /// Something to know of.
    pub fn warning(says: impl Into<String>, found: Vec<String>, cure: impl Into<String>) -> Self {
        Self::Warning(Finding { says: says.into(), found, cure: cure.into() })
    }

    /// Something that has to be changed.
    pub fn failure(says: impl Into<String>, found: Vec<String>, cure: impl Into<String>) -> Self {
        Self::Failure(Finding { says: says.into(), found, cure: cure.into() })
    }

    /// What could not be read could not be checked.
    pub fn unread(what: &str, why: &Unread) -> Self {
        Self::Skipped(match why {
            Unread::Forbidden(_) => format!("may not read {what}"),
            Unread::Absent => format!("this cluster has no {what}"),
            other => format!("failed to read {what}: {other}"),
        })
    }

    /// The worse of two verdicts of one check; of equals, both in one.
    pub fn worse(self, other: Self) -> Self {
        let both = |one: String, other: String| if one == other { one } else { format!("{one}; {other}") };
        match (self, other) {
            (Self::Failure(one), Self::Failure(other)) => Self::Failure(one.and(other)),
            (failure @ Self::Failure(_), _) | (_, failure @ Self::Failure(_)) => failure,
            (Self::Warning(one), Self::Warning(other)) => Self::Warning(one.and(other)),
            (warning @ Self::Warning(_), _) | (_, warning @ Self::Warning(_)) => warning,
            (Self::Skipped(one), Self::Skipped(other)) => Self::Skipped(both(one, other)),
            (skipped @ Self::Skipped(_), _) | (_, skipped @ Self::Skipped(_)) => skipped,
            (Self::Ok(one), Self::Ok(other)) => Self::Ok(both(one, other)),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Ok(_) => "ok",
            Self::Warning(_) => "warning",
            Self::Failure(_) => "failure",
            Self::Skipped(_) => "skipped",
        }
    }

    fn says(&self) -> &str {
        match self {
            Self::Ok(says) | Self::Skipped(says) => says,
            Self::Warning(finding) | Self::Failure(finding) => &finding.says,
        }
    }

    fn finding(&self) -> Option<&Finding> {
        match self {
            Self::Warning(finding) | Self::Failure(finding) => Some(finding),
            Self::Ok(_) | Self::Skipped(_) => None,
        }
    }
}

// === impl Finding ===

impl Finding {
    fn and(mut self, other: Self) -> Self {
        self.says = format!("{}; {}", self.says, other.says);
        self.found.extend(other.found);
        if self.cure != other.cure {
            self.cure = format!("{}; {}", self.cure, other.cure);
        }
        self
    }
}

// === impl Report ===

impl Report {
    /// Whether something has to be changed.
    pub fn is_failed(&self) -> bool {
        self.count("failure") > 0
    }

    fn count(&self, word: &str) -> usize {
        self.lines.iter().filter(|(_, verdict)| verdict.word() == word).count()
    }

    /// For people.
    pub fn to_table(&self) -> String {
        let mut table = String::new();
        for (id, verdict) in &self.lines {
            // Writing to a string can't fail.
            let _ = writeln!(table, "{:<8} {:<WIDTH$} {}", verdict.word(), id.as_str(), verdict.says());
            if let Some(finding) = verdict.finding() {
                for line in &finding.found {
                    let _ = writeln!(table, "{:9}- {line}", "");
                }
                let _ = writeln!(table, "{:9}{} ({MANUAL}#{})", "", finding.cure, id.as_str());
            }
        }
        let [ok, warning, failure, skipped] = ["ok", "warning", "failure", "skipped"].map(|word| self.count(word));
        let _ = writeln!(table, "\n{ok} ok, {warning} warning, {failure} failure, {skipped} skipped");
        table
    }

    /// For programs: the shape that `docs/check.md` promises.
    pub fn to_json(&self) -> Value {
        let lines: Vec<Value> = self.lines.iter().map(|(id, verdict)| line(*id, verdict)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": if self.is_before { "before" } else { "after" },
            "failed": self.is_failed(),
            "checks": lines,
        })
    }
}

fn line(id: Id, verdict: &Verdict) -> Value {
    let finding = verdict.finding();
    json!({
        "id": id.as_str(),
        "status": verdict.word(),
        "says": verdict.says(),
        "found": finding.map(|finding| finding.found.clone()).unwrap_or_default(),
        "cure": finding.map(|finding| finding.cure.clone()),
        "manual": format!("{MANUAL}#{}", id.as_str()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            is_before: false,
            lines: vec![
                (Id::KubernetesVersion, Verdict::ok("v1.37.2")),
                (Id::Canary, Verdict::failure("refused", vec!["why".to_owned()], "do this")),
                (Id::Claims, Verdict::unread("PersistentVolumes", &Unread::Forbidden(String::new()))),
            ],
        }
    }

    #[test]
    fn the_table_has_a_line_for_each_check_and_the_cure_below_what_is_wrong() {
        let expected = "\
ok       kubernetes-version     v1.37.2
failure  canary                 refused
         - why
         do this (docs/check.md#canary)
skipped  claims                 may not read PersistentVolumes

1 ok, 0 warning, 1 failure, 1 skipped
";
        assert_eq!(report().to_table(), expected);
    }

    #[test]
    fn the_json_has_the_same_keys_for_each_check() {
        let expected = json!({
            "version": env!("CARGO_PKG_VERSION"), "phase": "after", "failed": true, "checks": [
                {"id": "kubernetes-version", "status": "ok", "says": "v1.37.2", "found": [], "cure": null,
                    "manual": "docs/check.md#kubernetes-version"},
                {"id": "canary", "status": "failure", "says": "refused", "found": ["why"], "cure": "do this",
                    "manual": "docs/check.md#canary"},
                {"id": "claims", "status": "skipped", "says": "may not read PersistentVolumes", "found": [], "cure": null,
                    "manual": "docs/check.md#claims"},
            ],
        });
        assert_eq!(report().to_json(), expected);
    }

    #[test]
    fn every_check_has_its_section_in_the_manual() {
        let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/check.md")).unwrap();
        let sections: Vec<&str> = manual.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        assert_eq!(sections, Id::ALL.iter().map(|id| id.as_str()).collect::<Vec<_>>());
    }
}
