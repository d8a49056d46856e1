//! What a network said about every photo of a split, from which all reports are made.

/// A logarithm of a probability this low is what a probability of zero counts as.
const LOWEST: f32 = -100.0;

/// Labels and log-probabilities, photo after photo.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers {
    classes: usize,
    labels: Vec<usize>,
    /// One row of `classes` natural logarithms a photo.
    log_probabilities: Vec<f32>,
}

/// What was said about one photo.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The class that the photo has.
    pub label: usize,
    /// A natural logarithm of a probability for each class.
    pub log_probabilities: &'a [f32],
}

impl Answers {
    /// No answers yet about photos of this many classes.
    pub fn new(classes: usize) -> Self {
        Self { classes, labels: Vec::new(), log_probabilities: Vec::new() }
    }

    /// Adds photos with their labels and rows of log-probabilities.
    pub fn extend(&mut self, labels: impl Iterator<Item = usize>, log_probabilities: &[f32]) {
        self.labels.extend(labels);
        self.log_probabilities.extend(log_probabilities.iter().map(|value| value.max(LOWEST)));
    }

    /// Count of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Count of photos.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The answer about every photo, in order.
    pub fn iter(&self) -> impl Iterator<Item = Answer<'_>> {
        let rows = self.log_probabilities.chunks_exact(self.classes.max(1));
        self.labels.iter().zip(rows).map(|(&label, log_probabilities)| Answer { label, log_probabilities })
    }
}

impl Answer<'_> {
    /// The class that the network took the photo for.
    pub fn predicted(&self) -> usize {
        let best = self.log_probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.map_or(0, |(class, _)| class)
    }

    /// The probability of a class.
    pub fn probability(&self, class: usize) -> f64 {
        f64::from(self.log_probabilities[class]).exp()
    }

    /// The probability of the class that the photo was taken for.
    pub fn confidence(&self) -> f64 {
        self.probability(self.predicted())
    }

    /// Whether the photo was taken for what it is.
    pub fn is_right(&self) -> bool {
        self.predicted() == self.label
    }
}
