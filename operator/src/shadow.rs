//! What two revisions answered to the same requests: the digests that their pods show, joined by request.

pub mod board;

use std::collections::HashMap;

use anneal_api::shadow::{Answer, Digest};

use crate::performance::rounded;

/// What the pods of one revision said to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Classes.
    Said(Digest),
    /// No class: it was refused, or the model failed.
    Nothing,
    /// Two things: somebody sends one id again and again, or the Gateway has asked two pods.
    Unclear,
}

/// What the pods of one revision said, by request.
#[derive(Debug, Default)]
pub struct Words(HashMap<Digest, Word>);

impl<'a> FromIterator<&'a Answer> for Words {
    fn from_iter<I: IntoIterator<Item = &'a Answer>>(answers: I) -> Self {
        let mut words = HashMap::new();
        for Answer { request, said } in answers {
            let word = said.map_or(Word::Nothing, Word::Said);
            words
                .entry(*request)
                .and_modify(|old| *old = if *old == word { word } else { Word::Unclear })
                .or_insert(word);
        }
        Self(words)
    }
}

/// The requests that both revisions have answered, and whether they agree. Where neither had a class to say, there is
/// nothing to compare; where only one had, they do not agree.
pub fn agreements(stable: &Words, candidate: &Words) -> impl Iterator<Item = (Digest, bool)> {
    candidate.0.iter().filter_map(|(request, candidate)| match (stable.0.get(request)?, candidate) {
        (Word::Unclear, _) | (_, Word::Unclear) | (Word::Nothing, Word::Nothing) => None,
        (stable, candidate) => Some((*request, stable == candidate)),
    })
}

/// How many requests were compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that both revisions have answered.
    pub compared: i64,
    /// Those among them for which both predicted the same classes.
    pub agreed: i64,
}

impl Counts {
    /// The share that agreed.
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    pub fn agreement(self) -> Option<f64> {
        (self.compared > 0).then(|| self.agreed as f64 / self.compared as f64)
    }

    /// The same to four digits, to be read.
    pub fn told(self) -> Option<f64> {
        self.agreement().map(rounded)
    }

    /// How much is known of what is needed, in tenths: less is no news.
    pub fn tenths(self, enough: i64) -> i64 {
        (self.compared * 10 / enough.max(1)).min(10)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(of: u8) -> Digest {
        Digest::from([of; 8])
    }

    fn words(answers: &[(u8, Option<u8>)]) -> Words {
        let answers: Vec<_> = answers
            .iter()
            .map(|(request, said)| Answer { request: digest(*request), said: said.map(digest) })
            .collect();
        answers.iter().collect()
    }

    fn compared(stable: &[(u8, Option<u8>)], candidate: &[(u8, Option<u8>)]) -> Vec<(Digest, bool)> {
        agreements(&words(stable), &words(candidate)).collect()
    }

    #[test]
    fn answers_are_compared_by_request_and_only_where_both_have_answered() {
        let both = compared(&[(1, Some(7)), (2, Some(7)), (3, Some(7))], &[(4, Some(7)), (2, Some(8)), (1, Some(7))]);
        assert_eq!(both.len(), 2);
        assert!(both.contains(&(digest(1), true)) && both.contains(&(digest(2), false)), "{both:?}");
    }

    #[test]
    fn a_request_that_only_one_could_answer_is_one_on_which_they_disagree() {
        assert_eq!(compared(&[(1, Some(7))], &[(1, None)]), [(digest(1), false)]);
        assert_eq!(compared(&[(1, None)], &[(1, Some(7))]), [(digest(1), false)]);
        assert_eq!(compared(&[(1, None)], &[(1, None)]), [], "what is no photo says nothing about a model");
    }

    #[test]
    fn an_id_that_came_with_two_answers_says_nothing() {
        assert_eq!(compared(&[(1, Some(7)), (1, Some(8))], &[(1, Some(7))]), []);
        assert_eq!(compared(&[(1, Some(7))], &[(1, Some(7)), (1, None)]), []);
        assert_eq!(compared(&[(1, Some(7)), (1, Some(7))], &[(1, Some(7))]), [(digest(1), true)], "and once with one");
    }

    #[test]
    fn an_agreement_is_a_share_and_one_of_nothing_is_none() {
        assert_eq!(Counts::default().agreement(), None);
        let counts = Counts { compared: 3, agreed: 2 };
        assert_eq!((counts.told(), counts.tenths(30), counts.tenths(2)), (Some(0.6667), 1, 10));
    }

    fn answers() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
        proptest::collection::vec((0_u8..20, proptest::option::of(0_u8..4)), 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        /// Which pod of a revision gave an answer, and in which order they were read, changes nothing; neither does which
        /// revision is called stable. Each request counts once at most.
        #[test]
        fn what_is_compared_does_not_depend_on_who_was_read_first(one in answers(), other in answers()) {
            let sorted = |mut found: Vec<(Digest, bool)>| {
                found.sort_by_key(|(request, _)| String::from(*request));
                found
            };
            let reversed = |of: &[(u8, Option<u8>)]| of.iter().rev().copied().collect::<Vec<_>>();
            let found = sorted(compared(&one, &other));
            prop_assert_eq!(&found, &sorted(compared(&reversed(&one), &reversed(&other))));
            prop_assert_eq!(&found, &sorted(compared(&other, &one)));
            prop_assert!(found.windows(2).all(|pair| pair[0].0 != pair[1].0));
        }

        /// What is not remembered any more leaves what is compared of the rest as it is.
        #[test]
        fn an_answer_that_is_forgotten_changes_nothing_about_the_others(all in answers(), other in answers(), of in 0_u8..20) {
            let without: Vec<_> = all.iter().copied().filter(|(request, _)| *request != of).collect();
            let left: Vec<_> = compared(&all, &other).into_iter().filter(|(request, _)| *request != digest(of)).collect();
            let found = compared(&without, &other);
            prop_assert!(found.len() == left.len() && left.iter().all(|it| found.contains(it)));
        }
    }
}
