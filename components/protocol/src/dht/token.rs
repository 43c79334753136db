//! Tokens: proof that an announcing host receives datagrams at its address (BEP 5, "get_peers").

use std::hash::Hasher;
use std::net::IpAddr;
use std::time::Duration;

use rand::Rng;
use siphasher::sip::SipHasher24;

use super::id::NodeId;
use crate::time::Timestamp;

/// Time between two secrets. A token is valid for one to two such periods (BEP 5: new secrets every five minutes,
/// tokens up to ten minutes old are accepted).
pub const ROTATION: Duration = Duration::from_secs(300);

/// A token.
pub type Token = [u8; 8];

/// The secrets that make and check tokens.
///
/// A token is a keyed hash of the asking IP address, the key that was asked for, and a secret. It needs no memory, is
/// of no use for another address or another key, and cannot be computed from other tokens.
#[derive(Debug, Clone)]
pub struct Tokens {
    secret: [u8; 16],
    previous: [u8; 16],
    rotated: Timestamp,
}

impl Tokens {
    /// Creates the first secrets.
    #[must_use]
    pub fn new(now: Timestamp, rng: &mut impl Rng) -> Self {
        Self {
            secret: secret(rng),
            previous: secret(rng),
            rotated: now,
        }
    }

    /// Replaces the secrets that are due. Call it before each use.
    pub fn rotate(&mut self, now: Timestamp, rng: &mut impl Rng) {
        let age = now.since(self.rotated);
        if age < ROTATION {
            return;
        }
        self.previous = if age < ROTATION * 2 { self.secret } else { secret(rng) };
        self.secret = secret(rng);
        self.rotated = now;
    }

    /// Makes the token of a host for one key.
    #[must_use]
    pub fn make(&self, host: IpAddr, key: NodeId) -> Token {
        token(&self.secret, host, key)
    }

    /// Whether the host has received this token for that key recently.
    #[must_use]
    pub fn check(&self, token: &[u8], host: IpAddr, key: NodeId) -> bool {
        [&self.secret, &self.previous]
            .iter()
            .any(|secret| self::token(secret, host, key) == token)
    }
}

fn secret(rng: &mut impl Rng) -> [u8; 16] {
    let mut secret = [0; 16];
    rng.fill_bytes(&mut secret);
    secret
}

fn token(secret: &[u8; 16], host: IpAddr, key: NodeId) -> Token {
    let mut hasher = SipHasher24::new_with_key(secret);
    match host.to_canonical() {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    hasher.write(&key.0);
    hasher.finish().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn a_token_is_for_one_host_and_one_key_and_expires() {
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut now = Timestamp::ZERO;
        let mut tokens = Tokens::new(now, &mut rng);
        let (host, other): (IpAddr, IpAddr) = ("9.8.7.6".parse().unwrap(), "9.8.7.7".parse().unwrap());
        let (key, other_key) = (NodeId([1; 20]), NodeId([2; 20]));
        let token = tokens.make(host, key);
        assert!(tokens.check(&token, host, key));
        assert!(tokens.check(&token, "::ffff:9.8.7.6".parse().unwrap(), key));
        assert!(!tokens.check(&token, other, key));
        assert!(!tokens.check(&token, host, other_key));
        assert!(!tokens.check(&token[..7], host, key) && !tokens.check(&[], host, key));
        // Valid for 5 to 10 minutes.
        now += Duration::from_secs(301);
        tokens.rotate(now, &mut rng);
        assert!(tokens.check(&token, host, key));
        assert_ne!(tokens.make(host, key), token);
        now += Duration::from_secs(298);
        tokens.rotate(now, &mut rng);
        assert!(tokens.check(&token, host, key));
        now += Duration::from_secs(2);
        tokens.rotate(now, &mut rng);
        assert!(!tokens.check(&token, host, key));
    }

    /// After a long sleep of the machine, no old token is accepted.
    #[test]
    fn all_tokens_expire_after_a_pause() {
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut tokens = Tokens::new(Timestamp::ZERO, &mut rng);
        let host = "9.8.7.6".parse().unwrap();
        let token = tokens.make(host, NodeId([1; 20]));
        tokens.rotate(Timestamp::ZERO + Duration::from_secs(3600), &mut rng);
        assert!(!tokens.check(&token, host, NodeId([1; 20])));
    }
}
