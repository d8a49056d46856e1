//! What every epoch gave, and the reference's layout of it in checkpoints and reports.

use anneal_pth::{Dict, Value};
use serde::{Deserialize, Serialize};

/// Losses and accuracies of one epoch; accuracies are between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Mean loss over the training photos, as they were changed.
    pub train_loss: f64,
    /// Accuracy on the training photos, as they were changed.
    pub train_acc: f64,
    /// Mean loss over the validation photos.
    pub val_loss: f64,
    /// Accuracy on the validation photos.
    pub val_acc: f64,
}

/// All epochs so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History(pub Vec<Epoch>);

type Series = (&'static str, fn(&Epoch) -> f64);

const SERIES: [Series; 4] = [
    ("train_loss", |epoch| epoch.train_loss),
    ("train_acc", |epoch| epoch.train_acc),
    ("val_loss", |epoch| epoch.val_loss),
    ("val_acc", |epoch| epoch.val_acc),
];

impl History {
    /// The best validation accuracy.
    pub fn best(&self) -> Option<f64> {
        self.0.iter().map(|epoch| epoch.val_acc).max_by(f64::total_cmp)
    }

    /// Whether the newest epoch is better than all before it. Of equal accuracies the lower loss is better.
    pub fn newest_is_best(&self) -> bool {
        self.epochs_since_best() == 0 && !self.0.is_empty()
    }

    /// Epochs after the best one.
    pub fn epochs_since_best(&self) -> usize {
        let better = |one: &Epoch, other: &Epoch| {
            one.val_acc > other.val_acc || (one.val_acc >= other.val_acc && one.val_loss < other.val_loss)
        };
        let best = (0..self.0.len()).reduce(|best, at| if better(&self.0[at], &self.0[best]) { at } else { best });
        best.map_or(0, |best| self.0.len() - 1 - best)
    }

    /// The series by the reference's names.
    pub fn series(&self) -> Vec<(&'static str, Vec<f64>)> {
        SERIES.iter().map(|(name, of)| (*name, self.0.iter().map(of).collect())).collect()
    }

    /// As the reference's checkpoints hold it: lists by name.
    pub fn to_value(&self) -> Value {
        let list = |values: Vec<f64>| Value::List(values.into_iter().map(Value::Float).collect());
        Value::Dict(Dict::plain(self.series().into_iter().map(|(name, values)| (name, list(values)))))
    }

    /// Reads what [`History::to_value`] gave.
    pub fn from_value(value: &Value) -> Option<Self> {
        let dict = value.as_dict()?;
        let list =
            |name: &str| -> Option<Vec<f64>> { dict.get(name)?.as_items()?.iter().map(Value::as_float).collect() };
        let (train_loss, train_acc) = (list("train_loss")?, list("train_acc")?);
        let (val_loss, val_acc) = (list("val_loss")?, list("val_acc")?);
        if [&train_acc, &val_loss, &val_acc].into_iter().any(|other| other.len() != train_loss.len()) {
            return None;
        }
        let epoch = |index: usize| Epoch {
            train_loss: train_loss[index],
            train_acc: train_acc[index],
            val_loss: val_loss[index],
            val_acc: val_acc[index],
        };
        Some(Self((0..train_loss.len()).map(epoch).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(val_acc: f64, val_loss: f64) -> Epoch {
        Epoch { train_loss: 0.5, train_acc: 0.8, val_loss, val_acc }
    }

    #[test]
    fn a_tie_is_won_by_the_lower_loss() {
        assert!(History(vec![epoch(0.9, 0.3), epoch(0.9, 0.2)]).newest_is_best());
        assert!(!History(vec![epoch(0.9, 0.2), epoch(0.9, 0.2)]).newest_is_best());
        assert!(!History(vec![epoch(0.95, 0.4), epoch(0.9, 0.2)]).newest_is_best());
        assert!(History(vec![epoch(0.1, 9.0)]).newest_is_best());
        assert!(!History::default().newest_is_best());
        let waited = History(vec![epoch(0.7, 0.5), epoch(0.9, 0.3), epoch(0.9, 0.3), epoch(0.8, 0.1)]);
        assert_eq!(waited.epochs_since_best(), 2);
    }

    #[test]
    fn a_checkpoint_gives_the_history_back() {
        let history = History(vec![epoch(0.7, 0.6), epoch(0.8, 0.5)]);
        assert_eq!(History::from_value(&history.to_value()), Some(history));
        assert_eq!(History::from_value(&Value::None), None);
    }
}
