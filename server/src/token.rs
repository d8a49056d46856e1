//! The bearer token (RFC 6750) without which nothing but probes and metrics is answered.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use warp::http::{HeaderMap, header};

use crate::watched::{Watched, WatchedError};

/// Shortest token: 16 characters cannot be guessed over a network.
const SHORTEST: usize = 16;

/// Tokens that open the server. Only digests are kept: comparing them tells nothing of a token by the time it takes.
#[derive(Debug)]
pub struct Tokens(Vec<[u8; 32]>);

/// Reads tokens from a file, one a line, so that a new one can be accepted before the old one goes.
///
/// # Errors
/// When the file cannot be read, has no token, or one that could be guessed.
pub fn read(file: &Path) -> Result<Watched<Tokens>, WatchedError> {
    Watched::read(vec![PathBuf::from(file)], parse)
}

fn parse(files: &[(&Path, Vec<u8>)]) -> Result<Tokens, String> {
    let mut digests = Vec::new();
    for (file, content) in files {
        let text = std::str::from_utf8(content).map_err(|_| format!("{} is not text", file.display()))?;
        for (line, token) in text.lines().map(str::trim).enumerate().filter(|(_, token)| !token.is_empty()) {
            if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "line {} of {} is no token: at least {SHORTEST} visible ASCII characters are needed; make one with `openssl rand -hex 32`",
                    line + 1,
                    file.display()
                ));
            }
            digests.push(Sha256::digest(token).into());
        }
        if digests.is_empty() {
            return Err(format!("{} holds no token; write one a line", file.display()));
        }
    }
    Ok(Tokens(digests))
}

impl Tokens {
    /// Whether the request names one of the tokens.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, token)) = presented.and_then(|value| value.split_once(' ')) else { return false };
        let digest: [u8; 32] = Sha256::digest(token.trim()).into();
        scheme.eq_ignore_ascii_case("bearer") && self.0.contains(&digest)
    }
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    fn tokens(text: &str) -> Result<Tokens, String> {
        parse(&[(Path::new("tokens"), text.as_bytes().to_vec())])
    }

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn each_line_of_the_file_opens_and_nothing_else_does() {
        let tokens = tokens("0123456789abcdef\n\n fedcba9876543210 \n").expect("tokens");
        for good in ["Bearer 0123456789abcdef", "bearer fedcba9876543210"] {
            assert!(tokens.admit(&headers(good)), "{good}");
        }
        for bad in ["Bearer 0123456789abcde", "Basic 0123456789abcdef", "0123456789abcdef", "Bearer ", ""] {
            assert!(!tokens.admit(&headers(bad)), "{bad}");
        }
        assert!(!tokens.admit(&HeaderMap::new()));
    }

    #[test]
    fn a_file_without_a_token_or_with_one_that_can_be_guessed_is_refused() {
        for (text, why) in
            [("", "no token"), ("\n \n", "no token"), ("secret", "line 1"), ("0123456789abcdef\nä", "line 2")]
        {
            assert!(tokens(text).is_err_and(|error| error.contains(why)), "{text:?}");
        }
    }
}
