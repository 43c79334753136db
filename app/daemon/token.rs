//! The token: who can read it in the state folder may use the API.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

/// The file's name in the state folder.
const FILE: &str = "api_token";

/// What a client has to show: 32 random bytes, as 64 hexadecimal digits.
#[derive(Clone)]
pub struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{}: not a token of 64 hexadecimal digits; delete it to get a new one", .0.display())]
    Malformed(PathBuf),
}

impl Token {
    /// The state folder's token, made if there is none yet.
    ///
    /// # Errors
    /// Where the file cannot be read or written, or holds something else.
    pub fn of_folder(state_dir: &Path) -> Result<Self, TokenError> {
        match Self::read(state_dir) {
            Err(TokenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                Self::make(state_dir).map_err(|error| TokenError::Io {
                    path: state_dir.join(FILE),
                    error,
                })?;
                Self::read(state_dir)
            }
            result => result,
        }
    }

    /// The state folder's token, as a daemon has made it.
    ///
    /// # Errors
    /// Where the file cannot be read, or holds something else.
    pub fn read(state_dir: &Path) -> Result<Self, TokenError> {
        let path = state_dir.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) if text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()) => Ok(Self(text)),
            Ok(_) => Err(TokenError::Malformed(path)),
            Err(error) => Err(TokenError::Io { path, error }),
        }
    }

    /// The file is complete and private before it has its name.
    fn make(state_dir: &Path) -> io::Result<()> {
        let mut random = [0; 32];
        getrandom::fill(&mut random)?;
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut file = tempfile::Builder::new()
            .prefix(".api_token-")
            .permissions(PermissionsExt::from_mode(0o600))
            .tempfile_in(state_dir)?;
        file.write_all(digits.as_bytes())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(state_dir.join(FILE)) {
            Err(failed) if failed.error.kind() != io::ErrorKind::AlreadyExists => Err(failed.error),
            _ => Ok(()),
        }
    }

    /// Whether `shown` is it; takes as long for any wrong one.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }

    /// The digits, to be shown.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// A secret does not end up in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_for_its_owner_alone() {
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
