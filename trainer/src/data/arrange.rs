//! Which photo belongs to which split and class, from the names of the folders it lies in.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    DataError, Split,
    listing::{Listing, Photo},
};
use crate::rng::{Draws, Purpose};

/// The dataset, in order: every split, every class, every photo.
#[derive(Clone, Debug)]
pub struct Arrangement {
    /// The classes, sorted; a label is a position in here.
    pub classes: Vec<String>,
    /// Photos for training.
    pub train: Vec<Labelled>,
    /// Photos that choose the best epoch.
    pub validation: Vec<Labelled>,
    /// Photos for the final metrics. Empty where the dataset has splits of its own, but no test split.
    pub test: Vec<Labelled>,
    /// Paths of photos that lie beside the class folders, and so have no class.
    pub beside: Vec<String>,
}

/// A photo and its class.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// The photo.
    pub photo: Photo,
    /// Position of its class.
    pub label: usize,
}

impl Arrangement {
    /// Count of photos of all splits.
    pub fn len(&self) -> usize {
        self.train.len() + self.validation.len() + self.test.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

type ByClass = BTreeMap<String, Vec<Photo>>;

/// Arranges a listing. Splits that the dataset does not have are taken from its training photos, by `share` each.
///
/// # Errors
/// When the folders fit no layout, or the classes of the splits do not fit each other.
pub fn arrange(listing: Listing, share: f64, seed: u64) -> Result<Arrangement, DataError> {
    let (mut splits, beside) = by_split(listing)?;
    let train = splits.remove(&Split::Train);
    let train = train.ok_or_else(|| DataError::Layout("has no train/".to_owned()))?;
    let classes: Vec<String> = train.keys().cloned().collect();
    check(&classes, &train, &splits)?;

    let own_validation = splits.remove(&Split::Validation);
    let own_test = splits.remove(&Split::Test);
    let keep_validation = own_validation.is_none();
    let keep_test = keep_validation && own_test.is_none();
    let mut arrangement = Arrangement {
        classes,
        train: Vec::new(),
        validation: labelled(own_validation.unwrap_or_default()),
        test: labelled(own_test.unwrap_or_default()),
        beside,
    };
    for (label, (class, mut photos)) in train.into_iter().enumerate() {
        let with_label = |photos: Vec<Photo>| photos.into_iter().map(move |photo| Labelled { photo, label });
        if keep_validation {
            let parts = 1 + usize::from(keep_test);
            let kept =
                kept_aside(photos.len(), share, parts).ok_or(DataError::TooFew { class, count: photos.len() })?;
            Draws::new(seed, Purpose::Split, 0, label as u64).shuffle(&mut photos);
            arrangement.validation.extend(with_label(photos.split_off(photos.len() - kept)));
            if keep_test {
                arrangement.test.extend(with_label(photos.split_off(photos.len() - kept)));
            }
        }
        arrangement.train.extend(with_label(photos));
    }
    Ok(arrangement)
}

/// Arranges a listing for an evaluation: the test split, or else the validation split, or else all photos, as `test`;
/// and which split that is.
///
/// # Errors
/// When the folders fit no layout, or their classes are not those expected.
pub fn for_measuring(listing: Listing, expected: &[String]) -> Result<(Arrangement, Split), DataError> {
    let (mut splits, beside) = by_split(listing)?;
    let best = [Split::Test, Split::Validation, Split::Train].into_iter().find(|split| splits.contains_key(split));
    let split = best.unwrap_or(Split::Train);
    let measured = splits.remove(&split).unwrap_or_default();
    if !measured.keys().eq(expected) {
        let found = measured.into_keys().collect();
        return Err(DataError::OtherClasses { found, expected: expected.to_vec() });
    }
    let test = labelled(measured);
    Ok((Arrangement { classes: expected.to_vec(), train: Vec::new(), validation: Vec::new(), test, beside }, split))
}

/// Photos of a class that each of `parts` parts gets, if that leaves any for training.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "small counts"
)]
fn kept_aside(count: usize, share: f64, parts: usize) -> Option<usize> {
    let most = count.saturating_sub(1) / parts;
    let kept = ((count as f64 * share).round() as usize).clamp(1, most.max(1));
    (most > 0).then_some(kept)
}

fn labelled(photos: ByClass) -> Vec<Labelled> {
    let one_class = |(label, (_, photos)): (usize, (String, Vec<Photo>))| {
        photos.into_iter().map(move |photo| Labelled { photo, label })
    };
    photos.into_iter().enumerate().flat_map(one_class).collect()
}

/// Sorts photos by the split and class that their folders name; the second part is those that no class folder holds.
fn by_split(listing: Listing) -> Result<(BTreeMap<Split, ByClass>, Vec<String>), DataError> {
    let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let in_folders = || listing.photos.iter().filter(|photo| photo.path.contains('/')).map(|photo| &photo.path);
    let tops: BTreeSet<String> = in_folders().chain(&listing.folders).map(|path| first(path)).collect();
    let named: Vec<Option<Split>> = tops.iter().map(|top| Split::from_name(top)).collect();
    let wrong = || match tops.len() {
        0 => DataError::Layout("has photos, but no folders".to_owned()),
        _ => DataError::Layout(format!("has the folders {}", quoted(&tops))),
    };

    let has_splits = !named.is_empty() && named.iter().all(Option::is_some);
    if tops.is_empty() || (!has_splits && named.iter().any(Option::is_some)) {
        return Err(wrong());
    }
    let place = |path: &str| -> Option<(Split, String)> {
        let mut parts = path.split('/');
        let split = if has_splits { Split::from_name(parts.next()?)? } else { Split::Train };
        Some((split, parts.next()?.to_owned()))
    };

    let mut splits: BTreeMap<Split, ByClass> = BTreeMap::new();
    for (split, class) in listing.folders.iter().filter_map(|folder| place(folder)) {
        splits.entry(split).or_default().entry(class).or_default();
    }
    let mut beside = Vec::new();
    for photo in listing.photos {
        match place(&photo.path) {
            Some((split, class)) if photo.path.split('/').count() >= 2 + usize::from(has_splits) => {
                splits.entry(split).or_default().entry(class).or_default().push(photo);
            }
            _ => beside.push(photo.path),
        }
    }
    Ok((splits, beside))
}

fn quoted(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 8;
    let mut text = names.iter().take(SHOWN).map(|name| format!("{name}/")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

fn check(classes: &[String], train: &ByClass, others: &BTreeMap<Split, ByClass>) -> Result<(), DataError> {
    match classes {
        [] => return Err(DataError::Layout("has no photos in train/".to_owned())),
        [only] => return Err(DataError::OneClass(only.clone())),
        _ => {}
    }
    for (split, photos) in others.iter().map(|(split, photos)| (*split, photos)) {
        if !photos.keys().eq(classes) {
            let found = photos.keys().cloned().collect();
            return Err(DataError::ClassSets { split, found, expected: classes.to_vec() });
        }
    }
    let all = std::iter::once((Split::Train, train)).chain(others.iter().map(|(split, photos)| (*split, photos)));
    for (split, photos) in all {
        if let Some((class, _)) = photos.iter().find(|(_, photos)| photos.is_empty()) {
            return Err(DataError::EmptyClass { split, class: class.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::data::listing::Place;

    fn listing(paths: impl IntoIterator<Item = String>) -> Listing {
        let photo = |path: String| Photo { place: Place::File(PathBuf::from(&path)), path };
        Listing { photos: paths.into_iter().map(photo).collect(), folders: BTreeSet::new() }
    }

    fn classes(counts: &[(&str, usize)]) -> Listing {
        listing(counts.iter().flat_map(|(class, count)| (0..*count).map(move |i| format!("{class}/{i:04}.jpg"))))
    }

    fn paths(photos: &[Labelled]) -> BTreeSet<String> {
        photos.iter().map(|labelled| labelled.photo.path.clone()).collect()
    }

    fn message(listing: Listing) -> String {
        arrange(listing, 0.1, 0).expect_err("a refusal").to_string()
    }

    proptest! {
        #[test]
        fn splits_are_disjoint_complete_and_have_every_class(
            cats in 3_usize..200, dogs in 3_usize..200, share in 0.01..0.5, seed: u64,
        ) {
            let made = arrange(classes(&[("cat", cats), ("dog", dogs)]), share, seed).expect("an arrangement");
            let parts = [&made.train, &made.validation, &made.test];
            let all: BTreeSet<String> = parts.iter().flat_map(|part| paths(part)).collect();
            prop_assert_eq!(all.len(), cats + dogs);
            prop_assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), cats + dogs);
            for part in parts {
                for label in 0..2 {
                    prop_assert!(part.iter().any(|labelled| labelled.label == label));
                }
                prop_assert!(part.iter().all(|l| l.photo.path.starts_with(&made.classes[l.label])));
            }
        }

        #[test]
        fn the_same_seed_gives_the_same_split(seed: u64) {
            let made = || arrange(classes(&[("cat", 40), ("dog", 30)]), 0.2, seed).expect("an arrangement");
            prop_assert_eq!(paths(&made().test), paths(&made().test));
        }
    }

    #[test]
    fn own_splits_are_kept_as_they_are() {
        let names = ["train/cat/1.jpg", "train/dog/2.jpg", "valid/cat/3.jpg", "valid/dog/4.jpg"];
        let made = arrange(listing(names.map(str::to_owned)), 0.5, 0).expect("an arrangement");
        assert_eq!((made.train.len(), made.validation.len(), made.test.len()), (2, 2, 0));
    }

    #[test]
    fn photos_beside_the_class_folders_have_no_class_and_are_told_of() {
        let names = ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", "val/dog/4.jpg", "train/5.jpg", "6.jpg"];
        let made = arrange(listing(names.map(str::to_owned)), 0.5, 0).expect("an arrangement");
        assert_eq!((made.len(), made.beside.as_slice()), (4, &["train/5.jpg".to_owned(), "6.jpg".to_owned()][..]));
    }

    #[test]
    fn validation_is_taken_from_train_where_only_test_is_given() {
        let train = (0..20).flat_map(|i| ["cat", "dog"].map(|class| format!("train/{class}/{i}.jpg")));
        let test = ["cat", "dog"].map(|class| format!("test/{class}/x.jpg"));
        let made = arrange(listing(train.chain(test)), 0.1, 0).expect("an arrangement");
        assert_eq!((made.train.len(), made.validation.len(), made.test.len()), (36, 4, 2));
    }

    #[test]
    fn what_is_wrong_with_the_folders_is_said_before_anything_is_read() {
        assert!(message(classes(&[("cat", 9)])).contains("one class only"));
        assert!(message(classes(&[("cat", 9), ("dog", 2)])).contains("at least 3"));
        let mixed = ["train/cat/1.jpg", "dog/2.jpg"].map(str::to_owned);
        assert!(message(listing(mixed)).contains("dog/, train/"));
        let unequal = ["train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg"].map(str::to_owned);
        assert!(message(listing(unequal)).contains("must be the same"));
        let mut empty = classes(&[("cat", 9), ("dog", 9)]);
        empty.folders.insert("bird".to_owned());
        assert!(message(empty).contains("\"bird\" has no photo"));
    }
}
