//! How many there are of something, as people say it.

use std::fmt::Display;

/// The number with its noun, which takes an `s` where it is not one.
pub fn of(count: impl Display, noun: &str) -> String {
    let count = count.to_string();
    let ending = if count == "1" { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_is_one() {
        assert_eq!((super::of(1, "pod"), super::of(2, "pod")), ("1 pod".to_owned(), "2 pods".to_owned()));
    }
}
