//! Tests of the certificates' making, checking and renewing.

use super::*;

const NOW: u64 = 1_800_000_000;
const MINUTE: u64 = 60;

fn names() -> Vec<String> {
    ["pgset-webhook.pgset-system.svc", "pgset-webhook.pgset-system.svc.cluster.local", "192.0.2.1"]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn the_chain_verifies_for_its_names_and_its_time_only() {
    let made = Material::new(&names(), NOW).unwrap();
    for name in names() {
        made.verifies(made.bundle(), &name, NOW).unwrap();
    }
    // An API server whose clock is behind ours.
    made.verifies(made.bundle(), &names()[0], NOW - 59 * MINUTE).unwrap();
    made.verifies(made.bundle(), &names()[0], NOW - 61 * MINUTE).unwrap_err();
    made.verifies(made.bundle(), &names()[0], made.leaf_ends() + 1).unwrap_err();
    made.verifies(made.bundle(), "pgset-webhook.elsewhere.svc", NOW).unwrap_err();
    let stranger = Material::new(&names(), NOW).unwrap();
    made.verifies(stranger.bundle(), &names()[0], NOW).unwrap_err();
    assert!(made.leaf_ends() <= NOW + 90 * DAY && made.authority_ends() <= NOW + 365 * DAY);
}

#[test]
fn a_secret_gives_back_what_it_was_given() {
    let made = Material::new(&names(), NOW).unwrap();
    let mut data = made.to_secret();
    assert!(Material::from_secret(&data).unwrap() == made);
    assert!(!format!("{made:?}").contains("KEY"), "keys don't get into logs");
    let other = Material::new(&names(), NOW).unwrap().to_secret();
    for key in ["ca.crt", "ca.key", "tls.crt", "tls.key", "ca-bundle.crt"] {
        let kept = data.insert(key.to_owned(), ByteString(b"nonsense".to_vec())).unwrap();
        assert!(Material::from_secret(&data).is_err(), "{key}");
        data.insert(key.to_owned(), kept);
    }
    data.insert("tls.key".to_owned(), other["tls.key"].clone());
    assert!(Material::from_secret(&data).is_err(), "a key of another certificate");
}

#[test]
fn a_third_before_its_end_a_certificate_is_due() {
    let made = Material::new(&names(), NOW).unwrap();
    assert_eq!(made.due(&names(), NOW), None);
    assert_eq!(made.due(&names(), NOW - 10 * DAY), None, "a clock that is behind is no reason");
    assert_eq!(made.due(&names(), NOW + 59 * DAY), None);
    assert_eq!(made.due(&names(), NOW + 61 * DAY), Some(Due::Leaf));
    assert_eq!(made.due(&names(), NOW + 244 * DAY), Some(Due::Authority));
    assert_eq!(made.due(&["another.name".to_owned()], NOW), Some(Due::Leaf));
}

#[test]
fn a_new_leaf_verifies_by_the_old_bundle() {
    let old = Material::new(&names(), NOW).unwrap();
    let later = NOW + 61 * DAY;
    let new = old.renewed(Due::Leaf, &names(), later).unwrap();
    assert_eq!(new.bundle(), old.bundle());
    new.verifies(old.bundle(), &names()[0], later).unwrap();
    assert!(new.leaf_ends() > old.leaf_ends());
    assert_eq!(new.due(&names(), later), None);
    let read = Material::from_secret(&new.to_secret()).unwrap();
    read.certificate().unwrap();
}

#[test]
fn bundles_overlap_and_stay_bounded() {
    let old = Material::new(&names(), NOW).unwrap();
    let later = NOW + 244 * DAY;
    let new = old.renewed(Due::Authority, &names(), later).unwrap();
    assert_eq!(blocks(new.bundle()).len(), 2);
    old.verifies(new.bundle(), &names()[0], NOW).unwrap();
    new.verifies(new.bundle(), &names()[0], later).unwrap();
    new.verifies(old.bundle(), &names()[0], later).unwrap_err();
    assert!(blocks(new.bundle())[0] == new.authority, "the present authority is first");
    // A year later the first one has ended.
    let third = new.renewed(Due::Authority, &names(), NOW + 500 * DAY).unwrap();
    assert_eq!(blocks(third.bundle()).len(), 2);
    let mut many = old;
    for day in 1..9 {
        many = many.renewed(Due::Authority, &names(), NOW + day * DAY).unwrap();
    }
    assert_eq!(blocks(many.bundle()).len(), BUNDLE_LIMIT);
}

#[test]
fn an_authority_is_good_for_the_webhooks_names_only() {
    let names = &names()[..2];
    for wanted in [vec!["elsewhere.svc".to_owned()], vec!["192.0.2.1".to_owned()]] {
        let made = Material::new(names, NOW).unwrap();
        made.verifies(made.bundle(), &names[0], NOW).unwrap();
        // What a thief of the key would make.
        let key = KeyPair::from_pem(&made.authority_key).unwrap();
        let not_before = made.authority_validity.not_before;
        let parameters = authority_parameters(&authority_name(not_before), not_before, names);
        let life = made.leaf_validity;
        let (leaf, leaf_key) = new_leaf(&wanted, life, &Issuer::from_params(&parameters, key)).unwrap();
        let stolen = Material { leaf, leaf_key, ..made };
        let refused = stolen.verifies(stolen.bundle(), &wanted[0], NOW).unwrap_err();
        assert!(format!("{refused:?}").contains("NameConstraint"), "{refused:?}");
    }
}

#[test]
fn what_one_replica_makes_is_valid_by_the_clock_of_another_that_is_minutes_behind() {
    let fast = NOW + 50 * MINUTE;
    let first = Material::new(&names(), NOW).unwrap();
    for made in [
        Material::new(&names(), fast).unwrap(),
        first.renewed(Due::Leaf, &names(), fast).unwrap(),
        first.renewed(Due::Authority, &names(), fast).unwrap(),
    ] {
        for clock in [NOW, fast] {
            made.verifies(made.bundle(), &names()[0], clock).unwrap();
            assert_eq!(made.due(&names(), clock), None, "neither makes it anew");
        }
    }
}

#[test]
fn a_leaf_neither_precedes_nor_outlives_its_authority_whatever_the_clock_says() {
    let made = Material::new(&names(), NOW).unwrap();
    for clock in [NOW - 400 * DAY, NOW - DAY, NOW - 30 * MINUTE, NOW, NOW + 200 * DAY, NOW + 300 * DAY, NOW + 400 * DAY]
    {
        let new = made.renewed(Due::Leaf, &names(), clock).unwrap();
        let (leaf, authority) = (new.leaf_validity, new.authority_validity);
        assert!(
            leaf.not_before >= authority.not_before && leaf.not_after <= authority.not_after,
            "{leaf:?} {authority:?}"
        );
        new.verifies(new.bundle(), &names()[0], clock).unwrap();
    }
}
