use super::*;

#[test]
fn passwords_are_long_plain_and_never_the_same() {
    let Passwords(words) = passwords().unwrap();
    assert!(words.iter().all(|w| w.len() == PASSWORD_LENGTH && w.bytes().all(|b| b.is_ascii_alphanumeric())));
    let distinct: std::collections::BTreeSet<_> = words.iter().collect();
    assert_eq!(distinct.len(), words.len());
}
