//! How many there are of something, as people say it.

/// The number with its noun.
pub fn of(count: impl Into<i64>, noun: &str) -> String {
    match count.into() {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_is_one() {
        assert_eq!((super::of(1, "pod"), super::of(2, "pod")), ("1 pod".to_owned(), "2 pods".to_owned()));
    }
}
