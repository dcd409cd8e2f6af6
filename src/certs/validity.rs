//! When a certificate is valid, read from its DER: rustls checks it but does not tell, and for two dates a parser of all of
//! X.509 would be a large dependency.

/// Why the dates could not be read.
#[derive(Debug, thiserror::Error)]
#[error("not an X.509 certificate with a readable validity")]
pub struct Unreadable;

/// The dates between which a certificate is valid, in Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: u64,
    /// The last second.
    pub not_after: u64,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The explicit tag of the version, absent in version 1.
const VERSION: u8 = 0xa0;

impl Validity {
    /// Reads the validity of a DER certificate.
    pub fn of(certificate: &[u8]) -> Result<Self, Unreadable> {
        read(certificate).ok_or(Unreadable)
    }

    /// The part of its life, in thousandths, that is over at a moment; 0 before its first second.
    #[must_use]
    pub fn used_permille(&self, now: u64) -> u64 {
        let life = self.not_after.saturating_sub(self.not_before).max(1);
        now.saturating_sub(self.not_before).saturating_mul(1000) / life
    }
}

/// Certificate ::= { tbs { [version] serial signature issuer validity { notBefore notAfter } ... } ... }
fn read(certificate: &[u8]) -> Option<Validity> {
    let (_, certificate, _) = element(certificate, SEQUENCE)?;
    let (_, mut tbs, _) = element(certificate, SEQUENCE)?;
    if tbs.first() == Some(&VERSION) {
        (_, _, tbs) = element(tbs, VERSION)?;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, _, tbs) = element(tbs, tag)?;
    }
    let (_, validity, _) = element(tbs, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some(Validity { not_before, not_after })
}

/// An element with the tag: its tag, its content and what follows it.
fn element(input: &[u8], tag: u8) -> Option<(u8, &[u8], &[u8])> {
    let (&found, rest) = input.split_first()?;
    if found != tag {
        return None;
    }
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let bytes = usize::from(first & 0x7f);
        if bytes == 0 || bytes > 3 {
            return None;
        }
        let (digits, after) = rest.split_at_checked(bytes)?;
        length = digits.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    Some((found, content, after))
}

/// A `UTCTime` (`YYMMDDhhmmssZ`) or `GeneralizedTime` (`YYYYMMDDhhmmssZ`), and what follows it.
fn time(input: &[u8]) -> Option<(u64, &[u8])> {
    let (year, text, rest) = match *input.first()? {
        UTC_TIME => {
            let (_, text, rest) = element(input, UTC_TIME)?;
            let year = digits(text.get(..2)?)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?, rest)
        }
        GENERALIZED_TIME => {
            let (_, text, rest) = element(input, GENERALIZED_TIME)?;
            (digits(text.get(..4)?)?, text.get(4..)?, rest)
        }
        _ => return None,
    };
    if text.len() != 11 || text[10] != b'Z' {
        return None;
    }
    let part = |index: usize| digits(&text[2 * index..2 * index + 2]).and_then(|value| i8::try_from(value).ok());
    let date = k8s_openapi::jiff::civil::DateTime::new(
        i16::try_from(year).ok()?,
        part(0)?,
        part(1)?,
        part(2)?,
        part(3)?,
        part(4)?,
        0,
    );
    let seconds = date.ok()?.to_zoned(k8s_openapi::jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second();
    Some((u64::try_from(seconds).ok()?, rest))
}

fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0, |sum, &byte| byte.is_ascii_digit().then(|| sum * 10 + u32::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rcgen_writes_is_read_back() {
        // Before and after 2050 the standard wants different types.
        for (from, until) in [(1_700_000_000, 1_800_000_000), (2_000_000_000, 3_000_000_000)] {
            let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
            let epoch = rcgen::date_time_ymd(1970, 1, 1);
            params.not_before = epoch + std::time::Duration::from_secs(from);
            params.not_after = epoch + std::time::Duration::from_secs(until);
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let read = Validity::of(certificate.der()).unwrap();
            assert_eq!((read.not_before, read.not_after), (from, until));
            assert_eq!(read.used_permille(from - 1000), 0);
            assert!((499..=501).contains(&read.used_permille(u64::midpoint(from, until))));
            assert!(read.used_permille(until + 1000) >= 1000);
        }
    }

    #[test]
    fn garbage_is_refused() {
        let certificate = rcgen::CertificateParams::new(["a".to_owned()])
            .unwrap()
            .self_signed(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let der = certificate.der().to_vec();
        for length in 0..100 {
            assert!(Validity::of(&der[..length]).is_err());
        }
        assert!(Validity::of(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
