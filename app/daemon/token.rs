//! The access token of the API. Any process that can read it in the state folder may use the API.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ecs_torrent_engine::backends::whole_file::{self, Existing};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The file's name in the state folder.
const FILE: &str = "api_token";

/// Purpose of the proof, hashed with it so that the proof is useless elsewhere.
const PROOF_CONTEXT: &str = "ecs-torrent api proof 1";

/// Hexadecimal digits of a challenge.
pub const NONCE_DIGITS: usize = 64;

/// The secret that a client presents: 32 random bytes, as 64 hexadecimal digits.
#[derive(Clone)]
pub struct Token(String);

/// Error in reading or creating the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The file holds something other than a token.
    #[error("{}: not a token of 64 hexadecimal digits; delete it to get a new one", .0.display())]
    Malformed(PathBuf),
}

impl TokenError {
    /// Returns whether there is no file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Maximum number of bytes of a token's file that are read.
const MAX_BYTES: u64 = 1024;

impl Token {
    /// Reads the state folder's token, or creates it if there is none.
    ///
    /// # Errors
    /// If the file cannot be read or written, or does not hold a token.
    pub fn of_folder(state_dir: &Path) -> Result<Self, TokenError> {
        match Self::read(state_dir) {
            Err(missing) if missing.is_missing() => {
                Self::make(state_dir).map_err(|error| TokenError::Io {
                    path: state_dir.join(FILE),
                    error,
                })?;
                Self::read(state_dir)
            }
            result => result,
        }
    }

    /// Reads the state folder's token, which a daemon has created.
    ///
    /// # Errors
    /// If the file cannot be read, or does not hold a token.
    pub fn read(state_dir: &Path) -> Result<Self, TokenError> {
        let path = state_dir.join(FILE);
        match whole_file::read_text(&path, MAX_BYTES) {
            Ok(text) if text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()) => Ok(Self(text)),
            Ok(_) => Err(TokenError::Malformed(path)),
            Err(error) => Err(TokenError::Io { path, error }),
        }
    }

    /// Creates the file, which is complete and private before it gets its name.
    fn make(state_dir: &Path) -> io::Result<()> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let digits = const_hex::encode(random);
        match whole_file::create(&state_dir.join(FILE), 0o600, digits.as_bytes(), Existing::Keep) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns whether `shown` is the token. The comparison takes the same time for any wrong one.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }

    /// Computes the answer to a challenge, which requires the token: the HMAC-SHA256, in hexadecimal digits, of
    /// `PROOF_CONTEXT`, the host as the client addresses it, and the client's nonce, each followed by a line feed.
    /// Since the host is included, a program at another address cannot pass on the daemon's proof as its own.
    #[must_use]
    pub fn prove(&self, host: &str, nonce: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("a key of any length");
        mac.update(format!("{PROOF_CONTEXT}\n{host}\n{nonce}\n").as_bytes());
        const_hex::encode(mac.finalize().into_bytes())
    }

    /// Returns whether `proof` was computed with this token.
    #[must_use]
    pub fn is_proof(&self, proof: &str, host: &str, nonce: &str) -> bool {
        self.prove(host, nonce).as_bytes().ct_eq(proof.as_bytes()).into()
    }

    /// Creates a challenge that was never used before.
    ///
    /// # Errors
    /// If the system provides no randomness.
    pub fn nonce() -> io::Result<String> {
        let mut random = [0; NONCE_DIGITS / 2];
        getrandom::fill(&mut random)?;
        Ok(const_hex::encode(random))
    }

    /// Returns the path of the file.
    pub(super) fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// Returns the digits of the token.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Hides the token, so that it does not appear in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_token_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Token::read(folder.path()).is_err());
        let token = Token::of_folder(folder.path()).unwrap();
        let again = Token::of_folder(folder.path()).unwrap();
        assert!(again.is(token.reveal()) && token.reveal().len() == 64);
        assert!(!token.is("") && !token.is(&"0".repeat(64)) && !token.is(&token.reveal()[1..]));
        let mode = std::fs::metadata(folder.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// The text is fixed because programs in other languages compute it too.
    #[test]
    fn a_proof_is_for_one_host_and_one_nonce() {
        let token = Token("0".repeat(64));
        let proof = token.prove("127.0.0.1:6880", &"a".repeat(64));
        assert_eq!(
            proof,
            "416606d4bda2f88bd28c3ea93772600034fa4e9226f1045f2f1736c5e33bce14"
        );
        assert!(token.is_proof(&proof, "127.0.0.1:6880", &"a".repeat(64)));
        assert!(!token.is_proof(&proof, "127.0.0.1:6881", &"a".repeat(64)));
        assert!(!token.is_proof(&proof, "127.0.0.1:6880", &"b".repeat(64)));
        assert!(!Token("1".repeat(64)).is_proof(&proof, "127.0.0.1:6880", &"a".repeat(64)));
        let (one, other) = (Token::nonce().unwrap(), Token::nonce().unwrap());
        assert!(one.len() == NONCE_DIGITS && one != other);
    }

    #[test]
    fn something_else_is_no_token() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["", "secret", &"g".repeat(64)] {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            let error = Token::of_folder(folder.path()).unwrap_err().to_string();
            assert!(error.contains("api_token: not a token"), "{error}");
        }
    }
}
