//! The pictures of a report, as SVG.

mod mistakes;

use anneal_figures::{
    names_of,
    plot::{self, Axis, Bar, Line, Plot, Style},
    svg,
};

use crate::{
    answers::Answers,
    calibration::{self, BINS},
    history::{Epoch, History},
    roc,
};

pub use mistakes::{Mistake, mistakes};

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 380.0;
/// Curves that one picture of ROC curves has at most.
const CURVES: usize = 8;
/// Points of a curve that lie closer together are one.
const FINE: f64 = 0.001;

/// Loss and accuracy over the epochs, side by side.
pub fn training_curves(history: &History) -> String {
    let line = |name: &str, colour, of: fn(&Epoch) -> f64| {
        let points = (1_u32..).map(f64::from).zip(history.0.iter().map(of)).collect();
        Line { name: name.to_owned(), colour, style: Style::Marked, points }
    };
    let loss = vec![line("training", 0, |epoch| epoch.train_loss), line("validation", 1, |epoch| epoch.val_loss)];
    let accuracy = vec![line("training", 0, |epoch| epoch.train_acc), line("validation", 1, |epoch| epoch.val_acc)];
    let highest = |lines: &[Line]| lines.iter().flat_map(|line| &line.points).map(|p| p.1).fold(0.0, f64::max);
    let lowest = |lines: &[Line]| lines.iter().flat_map(|line| &line.points).map(|p| p.1).fold(1.0, f64::min);
    let epochs = || Axis::counts("Epoch", history.0.len());
    let loss = Plot {
        title: "Loss",
        x: epochs(),
        y: Axis::round("Cross entropy", 0.0, highest(&loss)),
        lines: loss,
        bars: Vec::new(),
    };
    let accuracy = Plot {
        title: "Accuracy",
        x: epochs(),
        y: Axis::round("Share of photos that were right", lowest(&accuracy), 1.0),
        lines: accuracy,
        bars: Vec::new(),
    };
    plot::pair([(&loss, WIDTH), (&accuracy, WIDTH)], HEIGHT)
}

/// ROC curves: of two classes the second one's, otherwise of each class against all others, the worst ones first.
pub fn roc_curve(answers: &Answers, classes: &[String]) -> String {
    let names = names_of(classes);
    // A curve has a point for nearly every photo, so only those that are drawn are kept.
    let area = |class: usize| Some((roc::curve(answers, class)?.area, class));
    let wanted = if names.len() == 2 { 1..2 } else { 0..names.len() };
    let mut areas: Vec<_> = wanted.filter_map(area).collect();
    areas.sort_by(|a, b| a.0.total_cmp(&b.0));
    let left_out = areas.len().saturating_sub(CURVES);
    let line = |(colour, (area, class)): (usize, (f64, usize))| Line {
        name: format!("{} (area {area:.4})", svg::shortened(&names[class], 24)),
        colour,
        style: Style::Solid,
        points: roc::curve(answers, class).map_or_else(Vec::new, |curve| coarse(&curve.points)),
    };
    let mut lines: Vec<Line> = areas.into_iter().take(CURVES).enumerate().map(line).collect();
    lines.push(Line {
        name: "chance".to_owned(),
        colour: plot::GREY,
        style: Style::Dashed,
        points: vec![(0.0, 0.0), (1.0, 1.0)],
    });
    let title = if left_out == 0 {
        "ROC curve".to_owned()
    } else {
        format!("ROC curves, the {CURVES} worst of {} classes", left_out + CURVES)
    };
    let plot = Plot {
        title: &title,
        x: Axis::round("False positive rate", 0.0, 1.0),
        y: Axis::round("True positive rate", 0.0, 1.0),
        lines,
        bars: Vec::new(),
    };
    plot.document(560.0, 540.0)
}

/// The points of a curve that can be told apart, with both ends.
fn coarse(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (at, point) in points.iter().enumerate() {
        let far = kept.last().is_none_or(|last| point.0 - last.0 >= FINE || point.1 - last.1 >= FINE);
        if far || at + 1 == points.len() {
            kept.push(*point);
        }
    }
    kept
}

/// Accuracy over confidence, before and after the temperature, and how many photos have which confidence.
#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
pub fn calibration_plot(answers: &Answers, temperature: f64) -> String {
    let raw = calibration::bins(answers, 1.0);
    let cooled = calibration::bins(answers, temperature);
    let line = |name: String, colour, bins: &[calibration::Bin]| Line {
        name,
        colour,
        style: Style::Marked,
        points: bins.iter().filter(|bin| bin.count > 0).map(|bin| (bin.confidence, bin.accuracy)).collect(),
    };
    let error = |bins: &[calibration::Bin]| calibration::expected_error(bins) * 100.0;
    let ideal = Line {
        name: "ideal".to_owned(),
        colour: plot::GREY,
        style: Style::Dashed,
        points: vec![(0.0, 0.0), (1.0, 1.0)],
    };
    let reliability = Plot {
        title: "Calibration",
        x: Axis::round("Confidence", 0.0, 1.0),
        y: Axis::round("Share of photos that were right", 0.0, 1.0),
        lines: vec![
            line(format!("as it is (error {:.2} %)", error(&raw)), 0, &raw),
            line(format!("at temperature {temperature:.2} (error {:.2} %)", error(&cooled)), 1, &cooled),
            ideal,
        ],
        bars: Vec::new(),
    };
    let total = answers.len().max(1) as f64;
    let bars: Vec<Bar> = raw
        .iter()
        .enumerate()
        .map(|(bin, photos)| Bar {
            from: bin as f64 / BINS as f64,
            to: (bin + 1) as f64 / BINS as f64,
            height: photos.count as f64 / total,
        })
        .collect();
    let histogram = Plot {
        title: "Confidence",
        x: Axis::round("Confidence", 0.0, 1.0),
        y: Axis::round("Share of photos", 0.0, bars.iter().map(|bar| bar.height).fold(0.0, f64::max)),
        lines: Vec::new(),
        bars,
    };
    plot::pair([(&reliability, 540.0), (&histogram, 460.0)], 460.0)
}

#[cfg(test)]
mod tests {
    use anneal_figures::to_png;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_curve_has_no_more_points_than_can_be_seen() {
        let mut answers = Answers::new(12);
        for photo in 0..24_000_u16 {
            let share = f32::from(photo % 997) / 997.0;
            let row: Vec<f32> = (0..12_u16).map(|class| -1.0 - share * f32::from(1 + (photo + class) % 11)).collect();
            answers.extend(std::iter::once(usize::from(photo % 12)), &row);
        }
        let picture = roc_curve(&answers, &(0..12).map(|class| format!("kind-{class}")).collect::<Vec<_>>());
        assert_eq!(picture.matches("<polyline").count(), CURVES + 1);
        assert!(picture.len() < 400_000, "{} bytes", picture.len());
    }

    #[test]
    fn the_axes_of_plots_side_by_side_are_on_one_level() {
        let mut answers = Answers::new(2);
        answers.extend(std::iter::once(0), &[-0.1, -2.4]);
        answers.extend(std::iter::once(1), &[-0.9, -0.5]);
        let picture = calibration_plot(&answers, 1.5);
        let level = |text: &str| text.split("y=\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
        let levels: Vec<_> =
            picture.split("<text").filter(|text| text.contains(">Confidence<")).filter_map(level).collect();
        assert_eq!(levels.len(), 3, "{picture}");
        assert!(levels.iter().filter(|level| **level == levels[0]).count() == 2, "{levels:?}");
    }

    #[test]
    fn every_epoch_is_a_point() {
        let epoch = Epoch { train_loss: 0.5, train_acc: 0.7, val_loss: 0.6, val_acc: 0.8 };
        let picture = training_curves(&History(vec![epoch; 3]));
        assert_eq!(picture.matches("<polyline").count(), 4);
        let points = picture.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("points");
        assert_eq!(points.split(' ').count(), 3);
    }

    #[test]
    fn a_split_without_photos_gives_pictures_too() {
        let answers = Answers::new(2);
        for picture in [
            roc_curve(&answers, &names(&["cat", "dog"])),
            calibration_plot(&answers, 1.0),
            training_curves(&History::default()),
        ] {
            assert!(to_png(&picture).is_ok_and(|png| png.starts_with(b"\x89PNG")));
        }
    }
}
