use base64::Engine as _;

use super::stream::{CHUNK, TAG};
use super::*;

/// Made by `age-keygen` 1.1.1, and words that `age` encrypted for it.
const KEY: &str = "AGE-SECRET-KEY-1MGLFYDL60WF2A3X2SJ5P5D2SURDD4TR4LYUNAKRGCTSWGNFFF4ES6WF22Z";
const RECIPIENT: &str = "age1se4j8f9cgk9lq8r3h5jz9q9uq24zuzp78s85f0gm4dw7sdwyc3dqjf7vp3";
const ENCRYPTED: &str = "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSB1OEMxY2laVjlmbW5yZVBkSjAzNGRvSFVscHBNTVdjMUZuaHBPY21BSndBCnFkSG5PSDht\
    cTZkNGUyaVJBVzMxQmhTQW1YZkVOTktoZ040a3M4VFUwOFkKLS0tIGFrOWh2eTc2cFY4ZjAwZE8xRVhWTnVoUnRtTG9Td1h1NmdjVHlvdWsvdzQKHm4smTlY8DgPAHsYgVEgefCB6c+J\
    aSOVtDiOKhpGKrXJBDHQ5BDuuRlQ2FJrxiFW9r8=";

pub(crate) fn identities() -> Identities {
    Identities(vec![identity(7)])
}

/// Those after another key was put before the one of before.
pub(crate) fn rotated() -> Identities {
    Identities(vec![identity(9), identity(7)])
}

#[test]
fn what_age_encrypted_is_read() {
    let all = Identities::parse(KEY).unwrap();
    assert_eq!(all.first().unwrap().recipient(), RECIPIENT);
    let encrypted = base64::engine::general_purpose::STANDARD.decode(ENCRYPTED).unwrap();
    assert_eq!(all.decrypt(encrypted).unwrap(), b"a row of the table");
}

fn identity(fill: u8) -> Identity {
    let secret = StaticSecret::from([fill; 32]);
    Identity { recipient: PublicKey::from(&secret).to_bytes(), secret }
}

fn written(identity: &Identity) -> String {
    bech32::encode_upper::<Bech32>(Hrp::parse(SECRET_PREFIX).unwrap(), identity.secret.as_bytes()).unwrap()
}

fn error(outcome: io::Result<Vec<u8>>) -> Option<Error> {
    outcome.unwrap_err().get_ref()?.downcast_ref().cloned()
}

#[test]
fn a_secret_holds_keys_as_age_keygen_writes_them() {
    let key = written(&identity(7));
    let file = format!("# created: 2026-11-30\n# public key: age1…\n{key}\n\n{}\n", written(&identity(8)));
    let found = Identities::parse(&file).unwrap();
    assert_eq!(found.0.len(), 2);
    assert_eq!(found.first().unwrap().recipient(), identity(7).recipient());
    assert!(!format!("{found:?}").contains(&key));
    let changed = key.replace(&key[20..21], if &key[20..21] == "Q" { "P" } else { "Q" });
    for wrong in ["", "# nothing", "password", "age1qqqq", &changed] {
        assert_eq!(Identities::parse(wrong).map(drop), Err(Error::Identity), "{wrong}");
    }
}

#[test]
fn what_is_encrypted_is_read_by_whoever_has_the_key_whatever_its_length() {
    let all = identities();
    for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7] {
        let content: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let encrypted = all.encrypt(content.clone()).unwrap();
        assert!(is_encrypted(&encrypted) && encrypted != content);
        assert_eq!(all.decrypt(encrypted.clone()).unwrap(), content, "{length}");
        assert_eq!(rotated().decrypt(encrypted.clone()).unwrap(), content);
        assert_eq!(error(Identities::default().decrypt(encrypted.clone())), Some(Error::NoIdentity));
        let other = error(Identities(vec![identity(9)]).decrypt(encrypted));
        assert!(matches!(other, Some(Error::OtherIdentity(ref of)) if *of == identity(9).recipient()), "{other:?}");
    }
    assert_eq!(Identities::default().encrypt(b"plain".to_vec()).unwrap(), b"plain");
    assert_eq!(all.decrypt(b"plain".to_vec()).unwrap(), b"plain", "what was written before there was a key");
}

#[test]
fn a_changed_byte_and_a_lost_end_are_found_wherever_they_are() {
    let all = identities();
    let content = vec![3; CHUNK + 100];
    let encrypted = all.encrypt(content).unwrap();
    let places = (0..400).chain((400..encrypted.len()).step_by(997)).chain([encrypted.len() - 1]);
    for place in places {
        let mut changed = encrypted.clone();
        changed[place] ^= 1;
        // Without its first words it is something else, which whoever reads it finds out.
        assert!(place < VERSION.len() || all.decrypt(changed).is_err(), "byte {place}");
        assert!(place < VERSION.len() || all.decrypt(encrypted[..place].to_vec()).is_err(), "{place} bytes");
    }
    let whole_chunk = encrypted.len() - 100 - TAG;
    assert_eq!(error(all.decrypt(encrypted[..whole_chunk].to_vec())), Some(Error::Damaged), "cut between two chunks");
}

#[test]
fn the_first_bytes_say_what_an_object_holds_to_whoever_has_the_key() {
    let all = identities();
    let seal = Seal::of_bytes(b"a segment");
    let mut writer = Writer::new(Vec::new(), &all, Some(&seal)).unwrap();
    writer.write_all(&vec![1; 100_000]).unwrap();
    let encrypted = writer.finish().unwrap();
    let beginning = &encrypted[..HEADER_AT_MOST.try_into().unwrap()];
    assert!(all.is_sealed(beginning, &seal));
    assert!(!all.is_sealed(beginning, &Seal::of_bytes(b"another")));
    assert!(!Identities(vec![identity(9)]).is_sealed(beginning, &seal));
    assert_eq!(all.decrypt(encrypted).unwrap().len(), 100_000);
}
