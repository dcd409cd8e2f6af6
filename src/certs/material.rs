//! The certificate authority and the webhook's certificate: made, checked and renewed. Pure, but for the keys' randomness.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints,
};

pub use super::certificate::Error;
use super::{
    certificate::{Certificate, certificate, certificates, key},
    validity::Validity,
};

/// For how long an authority is good.
const AUTHORITY_LIFE: Duration = Duration::from_secs(365 * DAY);
/// For how long the webhook's certificate is good.
const LEAF_LIFE: Duration = Duration::from_secs(90 * DAY);
/// How far certificates are back-dated, for API servers and replicas whose clock is behind ours. An hour, because a clock that lost its
/// time source drifts by minutes a month, and one that is set by hand or by the wrong rule of summer time is off by an hour at most;
/// it takes nothing from a life of months.
const BACKDATED: Duration = Duration::from_secs(60 * 60);
/// After which part of its life, in thousandths, a certificate is renewed: a third is left to notice that it fails.
const RENEWAL_PERMILLE: u64 = 667;
/// How many authorities the bundle holds at most: the present one and those before it that are still valid.
const BUNDLE_LIMIT: usize = 3;

const DAY: u64 = 24 * 60 * 60;

/// What has to be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The webhook's certificate.
    Leaf,
    /// The authority, and with it the webhook's certificate.
    Authority,
}

/// An authority, the certificate that it signed for the webhook, and the bundle by which API servers verify.
///
/// It has no `Debug` that shows keys, and is only made of texts that were checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    authority: String,
    authority_key: String,
    leaf: String,
    leaf_key: String,
    bundle: String,
    authority_validity: Validity,
    leaf_validity: Validity,
}

// === impl Material ===

impl Material {
    /// A new authority and a certificate for the names.
    pub fn new(names: &[String], now: u64) -> Result<Self, Error> {
        Self::with_new_authority(names, now, "")
    }

    /// What a Secret holds.
    pub fn from_secret(data: &BTreeMap<String, ByteString>) -> Result<Self, Error> {
        let text = |key: &'static str| {
            data.get(key).and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).ok_or(Error::Absent { key })
        };
        let (authority, leaf, bundle) = (text(key::AUTHORITY)?, text(key::LEAF)?, text(key::BUNDLE)?);
        certificates(key::BUNDLE, &bundle)?;
        let material = Self {
            authority_validity: Validity::of(&certificate(key::AUTHORITY, &authority)?)?,
            leaf_validity: Validity::of(&certificate(key::LEAF, &leaf)?)?,
            authority,
            authority_key: text(key::AUTHORITY_KEY)?,
            leaf,
            leaf_key: text(key::LEAF_KEY)?,
            bundle,
        };
        KeyPair::from_pem(&material.authority_key)?;
        material.certificate()?;
        Ok(material)
    }

    /// The Secret's data.
    #[must_use]
    pub fn to_secret(&self) -> BTreeMap<String, ByteString> {
        [
            (key::AUTHORITY, &self.authority),
            (key::AUTHORITY_KEY, &self.authority_key),
            (key::LEAF, &self.leaf),
            (key::LEAF_KEY, &self.leaf_key),
            (key::BUNDLE, &self.bundle),
        ]
        .into_iter()
        .map(|(key, text)| (key.to_owned(), ByteString(text.clone().into_bytes())))
        .collect()
    }

    /// What has to be renewed at a moment, if anything.
    #[must_use]
    pub fn due(&self, names: &[String], now: u64) -> Option<Due> {
        if self.authority_validity.used_permille(now) >= RENEWAL_PERMILLE {
            return Some(Due::Authority);
        }
        // Another name (the namespace was changed) is a reason as good as age. A clock that runs behind is none: replicas
        // with different clocks would take turns.
        let moment = now.max(self.leaf_validity.not_before);
        let unfit = names.iter().any(|name| self.verifies(&self.bundle, name, moment).is_err());
        (unfit || self.leaf_validity.used_permille(now) >= RENEWAL_PERMILLE).then_some(Due::Leaf)
    }

    /// The same with what is due made anew.
    pub fn renewed(&self, due: Due, names: &[String], now: u64) -> Result<Self, Error> {
        match due {
            Due::Authority => Self::with_new_authority(names, now, &self.bundle),
            Due::Leaf => {
                let key = KeyPair::from_pem(&self.authority_key)?;
                // The authority's parameters are deterministic, so its issuer is rebuilt without parsing its certificate.
                let common_name = authority_name(self.authority_validity.not_before);
                let parameters = authority_parameters(&common_name, self.authority_validity.not_before, names);
                let life = leaf_life(now, self.authority_validity);
                let (leaf, leaf_key) = new_leaf(names, life, &Issuer::from_params(&parameters, key))?;
                let leaf_validity = Validity::of(&certificate(key::LEAF, &leaf)?)?;
                let new = Self { leaf, leaf_key, leaf_validity, ..self.clone() };
                if names.iter().all(|name| new.verifies(&new.bundle, name, now).is_ok()) {
                    Ok(new)
                } else {
                    // The key is not the authority's, or the bundle lacks it: somebody has edited the Secret. Or the authority itself
                    // is not valid now.
                    Self::with_new_authority(names, now, &self.bundle)
                }
            }
        }
    }

    fn with_new_authority(names: &[String], now: u64, old_bundle: &str) -> Result<Self, Error> {
        // The date names the authority: two with one subject make Go's verifier report the wrong one.
        let not_before = now.saturating_sub(BACKDATED.as_secs());
        let parameters = authority_parameters(&authority_name(not_before), not_before, names);
        let key = KeyPair::generate()?;
        let authority = parameters.self_signed(&key)?.pem();
        let authority_key = key.serialize_pem();
        let authority_validity = Validity::of(&certificate(key::AUTHORITY, &authority)?)?;
        let life = leaf_life(now, authority_validity);
        let (leaf, leaf_key) = new_leaf(names, life, &Issuer::from_params(&parameters, key))?;
        let leaf_validity = Validity::of(&certificate(key::LEAF, &leaf)?)?;
        let bundle = bundle(&authority, old_bundle, now);
        Ok(Self { authority, authority_key, leaf, leaf_key, bundle, authority_validity, leaf_validity })
    }

    /// The bundle for `caBundle`, in PEM: the present authority first.
    #[must_use]
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// When the authority's certificate ends, in Unix seconds.
    #[must_use]
    pub fn authority_ends(&self) -> u64 {
        self.authority_validity.not_after
    }

    /// When the webhook's certificate ends, in Unix seconds.
    #[must_use]
    pub fn leaf_ends(&self) -> u64 {
        self.leaf_validity.not_after
    }

    /// The certificate as it is served; an error if its key is another's.
    pub fn certificate(&self) -> Result<Certificate, Error> {
        Certificate::from_pem(&self.leaf, &self.leaf_key)
    }

    /// Whether a client that trusts the bundle accepts the webhook's certificate for the name, as an API server would.
    pub fn verifies(&self, bundle: &str, name: &str, now: u64) -> Result<(), Error> {
        self.certificate()?.verifies(bundle.as_bytes(), name, now)
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Material")
            .field("authority_validity", &self.authority_validity)
            .field("leaf_validity", &self.leaf_validity)
            .finish_non_exhaustive()
    }
}

// === making ===

fn authority_name(not_before: u64) -> String {
    format!("pgset webhook authority {not_before}")
}

fn authority_parameters(common_name: &str, not_before: u64, names: &[String]) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    parameters.name_constraints = Some(constraints(names));
    set_dates(&mut parameters, Validity { not_before, not_after: not_before + AUTHORITY_LIFE.as_secs() });
    parameters
}

/// The authority is good for the webhook's names only: with its key nobody can pose as anything else, wherever it is trusted.
fn constraints(names: &[String]) -> NameConstraints {
    let (mut permitted_subtrees, mut addresses) = (Vec::new(), 0);
    for name in names {
        permitted_subtrees.push(match name.parse::<IpAddr>() {
            Ok(address) => {
                addresses += 1;
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(
                    address,
                    if address.is_ipv4() { 32 } else { 128 },
                ))
            }
            Err(_) => GeneralSubtree::DnsName(name.clone()),
        });
    }
    // A constraint on names says nothing of addresses.
    let all_addresses = [CidrSubnet::V4([0; 4], [0; 4]), CidrSubnet::V6([0; 16], [0; 16])];
    let excluded_subtrees =
        if addresses == 0 { all_addresses.map(GeneralSubtree::IpAddress).to_vec() } else { Vec::new() };
    NameConstraints { permitted_subtrees, excluded_subtrees }
}

/// When a certificate that is made now is valid: back-dated, and never outside of its authority's own life.
fn leaf_life(now: u64, authority: Validity) -> Validity {
    let not_before = now.saturating_sub(BACKDATED.as_secs());
    Validity {
        not_before: not_before.max(authority.not_before),
        not_after: (not_before + LEAF_LIFE.as_secs()).min(authority.not_after),
    }
}

/// A certificate for the names, in PEM, and its key.
fn new_leaf(names: &[String], life: Validity, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String), Error> {
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    // Nobody reads it where there are alternative names; a host's name could exceed its 64 characters.
    parameters.distinguished_name.push(DnType::CommonName, "pgset webhook");
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    set_dates(&mut parameters, life);
    let key = KeyPair::generate()?;
    Ok((parameters.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// Valid between two moments. (rcgen's own defaults are the years 1975 to 4096.)
fn set_dates(parameters: &mut CertificateParams, life: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    parameters.not_before = epoch + Duration::from_secs(life.not_before);
    parameters.not_after = epoch + Duration::from_secs(life.not_after);
}

/// The authority first, then those of the old bundle that are still valid: certificates that they signed are still served by
/// replicas that have not seen the new one yet.
fn bundle(authority: &str, old: &str, now: u64) -> String {
    let mut bundle = authority.to_owned();
    let still_valid = |pem: &String| {
        certificate(key::BUNDLE, pem)
            .ok()
            .and_then(|der| Validity::of(&der).ok())
            .is_some_and(|validity| validity.not_after > now)
    };
    for pem in blocks(old).into_iter().filter(still_valid).take(BUNDLE_LIMIT - 1) {
        bundle.push_str(&pem);
    }
    bundle
}

// === reading ===

/// The PEM blocks of a text, each with its line feed.
fn blocks(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END).filter(|block| block.ends_with(END)).map(|block| format!("{}\n", block.trim())).collect()
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
