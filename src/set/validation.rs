//! Closed grammars for what comes from outside: nothing that passes can leave the place it is put in.

use strsim::levenshtein;

use crate::names::{PREFIX, label};

/// A DNS-1123 label: `a-b1`.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
}

/// A DNS-1123 subdomain, as most objects are named: labels with dots between, 253 characters at most.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// A set's name: a DNS-1035 label (Services are named after it), short enough that the label
/// `controller-revision-hash: <set>-<hash>` still fits into 63 characters.
pub(crate) fn is_set_name(text: &str) -> bool {
    text.len() <= 52 && is_dns_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// A label's key: `name` or `example.com/name`.
pub(crate) fn is_label_key(text: &str) -> bool {
    let name = match text.split_once('/') {
        Some((prefix, _)) if !is_dns_subdomain(prefix) => return false,
        Some((_, name)) => name,
        None => text,
    };
    let edge = |byte: &u8| byte.is_ascii_alphanumeric();
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || b"-_.".contains(byte))
}

/// A plain word.
fn is_word(word: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    !word.is_empty() && word.len() <= 200 && word.bytes().all(is_plain)
}

/// A plain word that may name something: it begins with a letter or a digit.
pub(crate) fn is_token(text: &str) -> bool {
    is_word(text) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// An order to switch over: a member's name or `any`, and plain words behind it, a blank between two.
pub(crate) fn is_order(text: &str) -> bool {
    let is_member = |word: &str| {
        let ordinal = word.rsplit_once('-').map(|(_, ordinal)| ordinal);
        is_dns_label(word) && ordinal.is_some_and(|ordinal| ordinal.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let target = text.split(' ').next().unwrap_or_default();
    text.len() <= 200 && (target == "any" || is_member(target)) && text.split(' ').all(is_word)
}

/// A label key that may change at run time: not one that Kubernetes or pgset itself relies on.
pub(crate) fn is_role_key(key: &str) -> bool {
    let prefix = key.split_once('/').map(|(prefix, _)| prefix);
    let reserved = prefix.is_some_and(|prefix| {
        prefix == "pgset.dev"
            || prefix == "kubernetes.io"
            || prefix == "k8s.io"
            || prefix.ends_with(".kubernetes.io")
            || prefix.ends_with(".k8s.io")
    });
    is_label_key(key) && key != "controller-revision-hash" && (key == label::ROLE || !reserved)
}

/// A number of bytes as people write it: `0`, `512Ki`, `16Mi`, `1Gi`.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_plain)?.checked_mul(1 << shift)
}

/// The one of `known` that `text` was probably meant to be.
pub(crate) fn nearest(text: &str, known: &[&'static str]) -> Option<&'static str> {
    // A far longer text can't be a slip of the fingers, and is not worth comparing.
    if text.len() > 64 {
        return None;
    }
    let near = |candidate: &&'static str| {
        let distance = levenshtein(text, candidate);
        (distance <= 3 && distance < candidate.len() / 2).then_some((distance, *candidate))
    };
    known.iter().filter_map(near).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// The one of `known` that a text was probably meant to be whose prefix is not ours, though it looks like it: `pgset.io/claim`.
pub(crate) fn nearly_ours(text: &str, known: &[&'static str]) -> Option<&'static str> {
    let (prefix, name) = text.split_once('/').filter(|_| text.len() <= 64)?;
    let prefix = prefix.to_ascii_lowercase();
    let ours = PREFIX.trim_end_matches('/');
    let is_near = prefix.contains("pgset") || levenshtein(&prefix, ours) <= 1;
    if is_near { nearest(&format!("{PREFIX}{name}"), known) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_may_be_nearly_ours() {
        let known = ["pgset.dev/inject", "pgset.dev/claim"];
        for near in ["pgset.io/inject", "PGSET.dev/inject", "pgset/inject", "pget.dev/injekt", "x.pgset.dev/inject"] {
            assert_eq!(nearly_ours(near, &known), Some("pgset.dev/inject"), "{near}");
        }
        for other in ["inject", "asset.dev/inject", "sidecar.istio.io/inject", "pgset.io/unlike-any", "/", ""] {
            assert_eq!(nearly_ours(other, &known), None, "{other}");
        }
    }

    #[test]
    fn no_hostile_text_is_a_name() {
        for hostile in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\nb",
            "a b",
            "$(PGDATA)",
            "a..b",
            "A",
            "-a",
            "a-",
            ".a",
            "a.",
            "a\0",
            "é",
            "a%2fb",
            "a\"b",
            "{{x}}",
            "a;b",
            "`a`",
        ] {
            assert!(!is_dns_subdomain(hostile), "{hostile:?}");
            assert!(!is_set_name(hostile), "{hostile:?}");
        }
        assert!(!is_dns_subdomain(&"a".repeat(254)));
        assert!(is_dns_subdomain("a.b-c.1"));
    }

    #[test]
    fn a_sets_name_is_a_short_dns_1035_label() {
        assert!(is_set_name("my-db"));
        assert!(is_set_name(&"a".repeat(52)));
        assert!(!is_set_name(&"a".repeat(53)));
        assert!(!is_set_name("1db"));
        assert!(!is_set_name("my.db"));
    }

    #[test]
    fn a_label_key_may_have_one_prefix() {
        for key in ["name", "pgset.dev/role", "a_b.C", "x"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in ["", "/name", "a/b/c", "a/", "-a", "a-", "A/b", "a b"] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
