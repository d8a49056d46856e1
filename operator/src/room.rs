//! Maps that were large once: after a burst of ten thousand runs, a `HashMap` would keep the room for all of them for good.

use std::{collections::HashMap, hash::Hash};

/// Fewer entries than this have room for good.
const SMALL: usize = 64;

/// A map that gives back the room that it needs no more.
pub trait Room<K, V> {
    /// Takes an entry out.
    fn take_out(&mut self, key: &K) -> Option<V>;

    /// Gives back room where most of it is empty: so seldom that an entry costs no more by it.
    fn give_back(&mut self);
}

impl<K: Eq + Hash, V> Room<K, V> for HashMap<K, V> {
    fn take_out(&mut self, key: &K) -> Option<V> {
        let taken = self.remove(key);
        self.give_back();
        taken
    }

    fn give_back(&mut self) {
        if self.capacity() > SMALL && self.len() < self.capacity() / 4 {
            self.shrink_to(2 * self.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_goes_with_the_entries_and_nothing_else_does() {
        let mut map: HashMap<usize, usize> = (0..10_000).map(|key| (key, key)).collect();
        for key in 10..10_000 {
            assert_eq!(map.take_out(&key), Some(key));
        }
        assert!(map.capacity() <= 2 * SMALL, "room for {} is kept", map.capacity());
        assert_eq!(map.take_out(&10), None);
        assert!((0..10).all(|key| map[&key] == key));
    }
}
