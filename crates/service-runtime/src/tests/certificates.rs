//! Certificates for tests, written as X.509 (RFC 5280) has them and signed with P-256: an authority and what it vouches for.

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const ECDSA_WITH_SHA256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const EC_PUBLIC_KEY: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const COMMON_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
const BASIC_CONSTRAINTS: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x13];
const ALTERNATIVE_NAME: [u8; 5] = [0x06, 0x03, 0x55, 0x1d, 0x11];

/// When a certificate holds.
#[derive(Clone, Copy)]
pub(super) enum Validity {
    Now,
    Past,
}

/// Vouches for others.
pub(super) struct Authority {
    name: &'static str,
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
}

impl Authority {
    pub(super) fn new(name: &'static str) -> Self {
        let (key, _) = new_key();
        let is_authority = der(0x30, &der(0x01, &[0xff]));
        let extension = [BASIC_CONSTRAINTS.as_slice(), &der(0x01, &[0xff]), &der(0x04, &is_authority)].concat();
        let certificate = signed(&key, name, name, key.public_key().as_ref(), Validity::Now, &extension);
        Self { name, key, certificate }
    }

    /// Its certificate as settings hold it.
    pub(super) fn pem(&self) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(&self.certificate))
    }

    /// A certificate for a server of this IPv4 address.
    pub(super) fn vouch(
        &self,
        address: [u8; 4],
        validity: Validity,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let (key, pkcs8) = new_key();
        let names = der(SEQUENCE, &der(0x87, &address));
        let extension = [ALTERNATIVE_NAME.as_slice(), &der(0x04, &names)].concat();
        let certificate = signed(&self.key, self.name, "parent", key.public_key().as_ref(), validity, &extension);
        (certificate.into(), PrivatePkcs8KeyDer::from(pkcs8).into())
    }
}

fn new_key() -> (EcdsaKeyPair, Vec<u8>) {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    (key, pkcs8.as_ref().to_vec())
}

fn signed(
    key: &EcdsaKeyPair,
    issuer: &str,
    subject: &str,
    public_key: &[u8],
    validity: Validity,
    extension: &[u8],
) -> Vec<u8> {
    let (from, to) = match validity {
        Validity::Now => (b"200101000000Z", b"491231235959Z"),
        Validity::Past => (b"200101000000Z", b"200102000000Z"),
    };
    let algorithm = der(SEQUENCE, &ECDSA_WITH_SHA256);
    let bits = |bytes: &[u8]| der(0x03, &[&[0], bytes].concat());
    let key_info = [der(SEQUENCE, &[EC_PUBLIC_KEY.as_slice(), &P256].concat()), bits(public_key)].concat();
    let parts = [
        der(0xa0, &der(0x02, &[2])),
        der(0x02, &[1]),
        algorithm.clone(),
        distinguished(issuer),
        der(SEQUENCE, &[der(0x17, from), der(0x17, to)].concat()),
        distinguished(subject),
        der(SEQUENCE, &key_info),
        der(0xa3, &der(SEQUENCE, &der(SEQUENCE, extension))),
    ];
    let to_sign = der(SEQUENCE, &parts.concat());
    let signature = key.sign(&SystemRandom::new(), &to_sign).unwrap();
    der(SEQUENCE, &[to_sign, algorithm, bits(signature.as_ref())].concat())
}

fn distinguished(name: &str) -> Vec<u8> {
    let attribute = [COMMON_NAME.as_slice(), &der(0x0c, name.as_bytes())].concat();
    der(SEQUENCE, &der(SET, &der(SEQUENCE, &attribute)))
}

/// One value with its tag and its length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut value = match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => vec![tag, short],
        Ok(long) => vec![tag, 0x81, long],
        Err(_) => {
            let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
            vec![tag, 0x82, high, low]
        }
    };
    value.extend_from_slice(content);
    value
}
