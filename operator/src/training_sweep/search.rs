//! Which trials a sweep has: the same ones whenever they are asked for, whatever happened in between.

use std::collections::{BTreeMap, BTreeSet};

use anneal_api::resources::{Range, Scale};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The parameters of one trial, by path.
pub type Parameters = BTreeMap<String, Value>;

/// What one parameter may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Dimension {
    /// One of these.
    Values(Vec<Value>),
    /// A number between two bounds.
    Range {
        /// The bounds.
        range: Range,
        /// Whether the field takes whole numbers only.
        whole: bool,
    },
}

/// How many combinations a grid has; `None` where it has more than can be counted, or a range.
pub fn combinations(dimensions: &BTreeMap<String, Dimension>) -> Option<usize> {
    dimensions.values().try_fold(1_usize, |product, dimension| match dimension {
        Dimension::Values(values) => product.checked_mul(values.len()),
        Dimension::Range { .. } => None,
    })
}

/// Every combination, the last parameter by name fastest. A range has none.
pub fn grid(dimensions: &BTreeMap<String, Dimension>) -> Vec<Parameters> {
    let mut all = vec![Parameters::new()];
    for (path, dimension) in dimensions {
        let values = match dimension {
            Dimension::Values(values) => values.as_slice(),
            Dimension::Range { .. } => &[],
        };
        let with = |former: &Parameters, value: &Value| {
            let mut trial = former.clone();
            trial.insert(path.clone(), value.clone());
            trial
        };
        all = all.iter().flat_map(|former| values.iter().map(move |value| with(former, value))).collect();
    }
    all
}

/// Draws `count` combinations, each at most once. There are fewer where there is nothing else to draw.
pub fn random(dimensions: &BTreeMap<String, Dimension>, seed: i64, count: usize) -> Vec<Parameters> {
    let (mut drawn, mut known) = (Vec::new(), BTreeSet::new());
    // Of as many draws as this, the last combination of a small space is missed about once in a thousand sweeps.
    for draw in 0..count * 64 {
        if drawn.len() == count {
            break;
        }
        let trial: Parameters = dimensions
            .iter()
            .map(|(path, dimension)| (path.clone(), sample(dimension, unit(seed, draw, path))))
            .collect();
        if known.insert(text(&trial)) {
            drawn.push(trial);
        }
    }
    drawn
}

/// The parameters as one line.
pub fn text(parameters: &Parameters) -> String {
    let each: Vec<String> = parameters.iter().map(|(path, value)| format!("{path}={}", word(value))).collect();
    each.join(", ")
}

/// A value as a person writes it.
pub fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A number in 0..1 that depends on nothing but its arguments, so that a trial is the same after a restart.
fn unit(seed: i64, draw: usize, path: &str) -> f64 {
    let digest = Sha256::digest(format!("{seed}/{draw}/{path}"));
    let (mut first, bytes) = ([0; 4], digest.as_slice());
    first.copy_from_slice(&bytes[..4]);
    f64::from(u32::from_be_bytes(first)) / (f64::from(u32::MAX) + 1.0)
}

fn sample(dimension: &Dimension, unit: f64) -> Value {
    match dimension {
        Dimension::Values(values) => {
            // As many equal parts as there are values.
            let ends = (1..).zip(values).find(|(end, _)| unit * f64::from(count(values)) < f64::from(*end));
            ends.map_or(Value::Null, |(_, value)| value.clone())
        }
        Dimension::Range { range, whole } => {
            // Each whole number gets the share of the line that rounds to it.
            let margin = if *whole { 0.5 } else { 0.0 };
            let (least, most) = (range.min - margin, range.max + margin);
            let value = match range.scale {
                Scale::Linear => least + unit * (most - least),
                Scale::Log => (least.ln() + unit * (most.ln() - least.ln())).exp(),
            };
            let digits = if *whole { format!("{value:.0}") } else { format!("{value:.3e}") };
            // Four digits are what a person reads; rounding must not leave the range.
            let rounded = digits.parse().unwrap_or(value).clamp(range.min, range.max);
            if *whole { json!(format!("{rounded:.0}").parse::<i64>().unwrap_or_default()) } else { json!(rounded) }
        }
    }
}

fn count(values: &[Value]) -> i32 {
    i32::try_from(values.len()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(values: &[f64]) -> Dimension {
        Dimension::Values(values.iter().map(|value| json!(value)).collect())
    }

    fn space(dimensions: &[(&str, Dimension)]) -> BTreeMap<String, Dimension> {
        dimensions.iter().map(|(path, dimension)| ((*path).to_owned(), dimension.clone())).collect()
    }

    #[test]
    fn a_grid_tries_every_combination_once() {
        let space = space(&[("b", values(&[1.0, 2.0, 3.0])), ("a", values(&[0.1, 0.2]))]);
        let lines: Vec<String> = grid(&space).iter().map(text).collect();
        assert_eq!(
            lines,
            ["a=0.1, b=1.0", "a=0.1, b=2.0", "a=0.1, b=3.0", "a=0.2, b=1.0", "a=0.2, b=2.0", "a=0.2, b=3.0"]
        );
        assert_eq!(combinations(&space), Some(6));
    }

    #[test]
    fn a_small_space_is_drawn_to_its_end_and_not_beyond() {
        let trials = random(&space(&[("a", values(&[1.0, 2.0, 3.0]))]), 7, 10);
        assert_eq!(trials.len(), 3);
    }

    #[test]
    fn numbers_on_a_log_scale_visit_every_order_of_magnitude() {
        let range = Range { min: 1e-5, max: 1e-1, scale: Scale::Log };
        let trials = random(&space(&[("rate", Dimension::Range { range, whole: false })]), 0, 64);
        for power in -5..-1 {
            let within = |trial: &&Parameters| {
                let value = trial["rate"].as_f64().expect("a number");
                value >= 10_f64.powi(power) && value < 10_f64.powi(power + 1)
            };
            let count = trials.iter().filter(within).count();
            assert!((8..=24).contains(&count), "{count} of 64 in 1e{power}");
        }
    }

    proptest! {
        /// The same seed draws the same trials, more trials begin with the fewer ones, none comes twice, and all stay in
        /// their range.
        #[test]
        fn draws_are_repeatable_distinct_and_in_range(
            seed in 0..1_000_000_i64, count in 1..40_usize, min in 1..50_i32, span in 1..1000_i32, log: bool
        ) {
            let scale = if log { Scale::Log } else { Scale::Linear };
            let range = Range { min: f64::from(min), max: f64::from(min + span), scale };
            let space = space(&[
                ("real", Dimension::Range { range, whole: false }),
                ("size", Dimension::Range { range, whole: true }),
                ("word", Dimension::Values(vec![json!("Adam"), json!("SGD")])),
            ]);
            let trials = random(&space, seed, count);
            prop_assert_eq!(&random(&space, seed, count + 5)[..trials.len()], &trials[..]);
            prop_assert_eq!(trials.iter().map(text).collect::<BTreeSet<_>>().len(), trials.len());
            for trial in &trials {
                prop_assert!((min..=min + span).contains(&i32::try_from(trial["size"].as_i64().expect("whole")).expect("small")));
                let real = trial["real"].as_f64().expect("a number");
                prop_assert!(real >= range.min && real <= range.max);
            }
        }
    }
}
