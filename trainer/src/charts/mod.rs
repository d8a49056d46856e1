//! The pictures of a report, as SVG, and their drawing as PNG.

mod mistakes;
mod plot;
mod raster;
mod svg;

use self::plot::{Axis, Bar, Line, Plot, Style};
use crate::{
    answers::Answers,
    calibration::{self, BINS},
    history::{Epoch, History},
    metrics::Confusion,
    roc,
};

pub use mistakes::{Mistake, mistakes};
pub use raster::{DrawError, to_png};
pub(crate) use svg::escaped;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 380.0;
/// Curves that one picture of ROC curves has at most.
const CURVES: usize = 8;
/// Points of a curve that lie closer together are one.
const FINE: f64 = 0.001;
/// Classes that a confusion matrix has at most: more cannot be read, and their picture would take the memory of a training.
const MATRIX: usize = 50;
/// Most pixels that the name of a class takes.
const LONGEST_NAME: f64 = 220.0;

/// The names of classes as a picture can show them: one that its font has no letters for goes by its number in the report's
/// table of classes.
pub fn names_of(classes: &[String]) -> Vec<String> {
    let numbered = |(number, name): (usize, &String)| {
        if raster::has_letters_for(name) { name.clone() } else { format!("class {number}") }
    };
    (1..).zip(classes).map(numbered).collect()
}

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

/// The classes with the most mistakes, in order: photos of theirs that were taken for others, and others' for theirs.
fn most_mistaken(confusion: &Confusion, most: usize) -> Vec<usize> {
    let rows = confusion.rows();
    let mut mistakes = vec![0; rows.len()];
    for (actual, row) in rows.iter().enumerate() {
        for (predicted, count) in row.iter().enumerate().filter(|(predicted, _)| *predicted != actual) {
            mistakes[actual] += count;
            mistakes[predicted] += count;
        }
    }
    let mut classes: Vec<usize> = (0..rows.len()).collect();
    classes.sort_by_key(|class| std::cmp::Reverse(mistakes[*class]));
    classes.truncate(most);
    classes.sort_unstable();
    classes
}

/// The confusion matrix: actual classes down, predicted classes across, darker for larger shares of a row. Of many classes
/// it has those with the most mistakes.
#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
pub fn confusion_matrix(confusion: &Confusion, classes: &[String]) -> String {
    let shown = most_mistaken(confusion, MATRIX);
    let title = if shown.len() < classes.len() {
        format!("Confusion matrix: the {MATRIX} of {} classes with the most mistakes", classes.len())
    } else {
        "Confusion matrix".to_owned()
    };
    let all = names_of(classes);
    let names: Vec<String> = shown.iter().map(|class| svg::fitting(&all[*class], 13.0, LONGEST_NAME)).collect();
    // Cells shrink where there are many classes; numbers that would not fit into them are left out.
    let cell = (760.0 / names.len().max(1) as f64).clamp(14.0, 110.0);
    let letters = (cell * 0.16).clamp(8.0, 15.0);
    let labels = names.iter().map(|name| svg::width(name, 13.0)).fold(0.0, f64::max);
    let (left, top) = (labels + 56.0, 84.0);
    let turned = names.iter().any(|name| svg::width(name, 13.0) > cell - 4.0);
    let top = if turned { top + labels } else { top };
    let side = cell * names.len() as f64;
    let mut body = svg::text(left + side / 2.0, 28.0, svg::TITLE, &title);
    body += &svg::text(left + side / 2.0, 52.0, svg::MIDDLE, "Predicted class");
    body += &svg::turned(20.0, top + side / 2.0, svg::MIDDLE, "Actual class");
    for (row, (class, name)) in shown.iter().zip(&names).enumerate() {
        let counts = &confusion.rows()[*class];
        let y = top + cell * row as f64;
        let across = left + cell * (row as f64 + 0.5);
        let total = counts.iter().sum::<u64>().max(1) as f64;
        body += &svg::text(left - 10.0, y + cell / 2.0 + 4.0, svg::END, name);
        body += &if turned {
            svg::turned(across + 4.0, top - 10.0, svg::START, name)
        } else {
            svg::text(across, top - 10.0, svg::MIDDLE, name)
        };
        for (column, count) in shown.iter().map(|class| counts[*class]).enumerate() {
            let x = left + cell * column as f64;
            let share = count as f64 / total;
            body += &svg::rectangle(x, y, cell, cell, "#08519c", share);
            let ink = if share > 0.5 { "white" } else { "#222" };
            let middle = format!(r#"text-anchor="middle" fill="{ink}" font-size="{letters:.1}""#);
            if cell >= 60.0 {
                body += &svg::text(x + cell / 2.0, y + cell / 2.0 - 2.0, &middle, &count.to_string());
                let percent = format!("{:.1} %", share * 100.0);
                body += &svg::text(x + cell / 2.0, y + cell / 2.0 + letters + 2.0, &middle, &percent);
            } else if cell >= 26.0 {
                body += &svg::text(x + cell / 2.0, y + cell / 2.0 + 4.0, &middle, &count.to_string());
            }
        }
    }
    svg::document((left + side + 28.0).max(280.0), top + side + 28.0, &body)
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
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_class_name_cannot_break_the_picture() {
        let picture = confusion_matrix(&Confusion::new(2), &names(&["<cat>", "d&g"]));
        assert!(picture.contains("&lt;cat&gt;") && picture.contains("d&amp;g") && !picture.contains("<cat>"));
        assert!(to_png(&picture).is_ok());
    }

    #[test]
    fn a_thousand_classes_make_a_picture_of_the_most_mistaken_ones() {
        let mut confusion = Confusion::new(1000);
        for class in 0..1000 {
            confusion.count(class, class);
            // Twenty classes that are taken for their neighbours.
            (0..3).for_each(|_| confusion.count(class, if class % 50 == 7 { class + 1 } else { class }));
        }
        let names: Vec<String> = (0..1000).map(|class| format!("kind-{class:03}")).collect();
        let picture = confusion_matrix(&confusion, &names);
        for class in (7..1000).step_by(50) {
            assert!(picture.contains(&format!(">kind-{class:03}<")), "kind-{class:03} is left out");
        }
        assert_eq!(picture.matches("<rect").count(), 1 + MATRIX * MATRIX);
        let png = to_png(&picture).expect("a picture");
        let side = image::load_from_memory(&png).map(|picture| picture.width().max(picture.height())).expect("a PNG");
        assert!(side < 2500, "{side} pixels");
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
    fn a_name_that_is_long_is_shortened_and_one_in_other_letters_goes_by_its_number() {
        let long = "a-very-long-name-of-a-class-".repeat(4);
        let classes = [long.clone(), "猫".to_owned(), "кошка".to_owned()];
        let picture = confusion_matrix(&Confusion::new(3), &classes);
        assert!(!picture.contains(&long) && picture.contains("a-very-long-name") && picture.contains('…'));
        assert!(!picture.contains('猫') && picture.contains(">class 2<") && picture.contains(">кошка<"), "{picture}");
        // Names end left of the cells, and begin in the picture.
        assert!(svg::width(&svg::fitting(&long, 13.0, LONGEST_NAME), 13.0) <= LONGEST_NAME);
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
