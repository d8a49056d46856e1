//! What a server shows of its newest answers, so that those of two revisions to the same request can be compared without
//! knowing either: a Gateway gives a request and its copy one id.

use serde::{Deserialize, Serialize};

/// Path of the list, a JSON array of [`Answer`]s.
pub const PATH: &str = "/answers";
/// Answers that a server shows, the newest ones.
pub const MOST: usize = 4096;

/// 64 bits of a hash, written as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(u64);

impl From<[u8; 8]> for Digest {
    fn from(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        format!("{:016x}", digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

/// What a server answered to one request. Written as an array of the two, which is half as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Digest, Option<Digest>)", into = "(Digest, Option<Digest>)")]
pub struct Answer {
    /// Of the request's id.
    pub request: Digest,
    /// Of the predicted classes, with the id: the same classes in answer to another request have another digest. Absent
    /// where the request was refused, or the model failed.
    pub said: Option<Digest>,
}

impl From<(Digest, Option<Digest>)> for Answer {
    fn from((request, said): (Digest, Option<Digest>)) -> Self {
        Self { request, said }
    }
}

impl From<Answer> for (Digest, Option<Digest>) {
    fn from(answer: Answer) -> Self {
        (answer.request, answer.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_answers_is_read_as_it_was_written() {
        let [request, said] = [[0, 0, 0, 0, 0, 0, 1, 2], [0xff; 8]].map(Digest::from);
        let answers = vec![Answer { request, said: Some(said) }, Answer { request: said, said: None }];
        let text = serde_json::to_string(&answers).expect("json");
        assert_eq!(text, r#"[["0000000000000102","ffffffffffffffff"],["ffffffffffffffff",null]]"#);
        assert_eq!(serde_json::from_str::<Vec<Answer>>(&text).expect("answers"), answers);
        assert!(serde_json::from_str::<Vec<Answer>>(r#"[["cat",null]]"#).is_err());
    }
}
