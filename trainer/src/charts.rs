//! Training curves and the confusion matrix as SVG pictures.

use std::fmt::Write as _;

use crate::{history::History, metrics::Confusion};

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 48.0;
const TRAIN: &str = "#1f77b4";
const VALIDATION: &str = "#ff7f0e";

/// One line of a plot: its name, its colour and a value for each epoch.
struct Line {
    name: &'static str,
    colour: &'static str,
    values: Vec<f64>,
}

/// Loss and accuracy over the epochs, side by side.
pub fn training_curves(history: &History) -> String {
    let line = |name, colour, of: fn(&crate::history::Epoch) -> f64| {
        let values = history.0.iter().map(of).collect();
        Line { name, colour, values }
    };
    let loss = [line("train", TRAIN, |epoch| epoch.train_loss), line("validation", VALIDATION, |epoch| epoch.val_loss)];
    let accuracy =
        [line("train", TRAIN, |epoch| epoch.train_acc), line("validation", VALIDATION, |epoch| epoch.val_acc)];
    let highest = loss.iter().flat_map(|line| &line.values).copied().fold(0.0, f64::max);
    let plots = [plot("Loss", 0.0, &loss, ticks(highest)), plot("Accuracy", WIDTH, &accuracy, ticks(1.0))];
    svg(2.0 * WIDTH, HEIGHT, &plots.concat())
}

/// The confusion matrix: actual classes down, predicted classes across, darker for larger shares of a row.
#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
pub fn confusion_matrix(confusion: &Confusion, names: &[String]) -> String {
    const CELL: f64 = 84.0;
    let left = 40.0 + 8.0 * names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as f64;
    let side = CELL * names.len() as f64;
    let mut body = text(left + side / 2.0, 18.0, "middle", "Predicted");
    for (row, (counts, name)) in confusion.rows().iter().zip(names).enumerate() {
        let y = 44.0 + CELL * row as f64;
        let total = counts.iter().sum::<u64>().max(1) as f64;
        body += &text(left - 8.0, y + CELL / 2.0 + 4.0, "end", name);
        body += &text(left + CELL * (row as f64 + 0.5), 38.0, "middle", name);
        for (column, count) in counts.iter().enumerate() {
            let x = left + CELL * column as f64;
            let share = *count as f64 / total;
            let ink = if share > 0.5 { "white" } else { "black" };
            // Writing to a String cannot fail.
            let _ = write!(
                body,
                r##"<rect x="{x:.1}" y="{y:.1}" width="{CELL}" height="{CELL}" fill="#08519c" fill-opacity="{share:.3}" stroke="#ccc"/><text x="{:.1}" y="{:.1}" text-anchor="middle" fill="{ink}">{count}</text>"##,
                x + CELL / 2.0,
                y + CELL / 2.0 + 4.0,
            );
        }
    }
    svg(left + side + 16.0, side + 60.0, &body)
}

/// Where the axis of a plot has its marks, from 0 to at least `highest`.
fn ticks(highest: f64) -> Vec<f64> {
    let highest = highest.max(1e-6);
    let rough = highest / 5.0;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    (0..=6).map(|mark| f64::from(mark) * step).take_while(|mark| *mark < highest + step * 0.999).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a count of epochs")]
fn plot(title: &str, left: f64, lines: &[Line], ticks: Vec<f64>) -> String {
    let epochs = lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
    let top = ticks.last().copied().unwrap_or(1.0);
    let x =
        |epoch: usize| left + MARGIN + (WIDTH - 1.5 * MARGIN) * epoch as f64 / epochs.saturating_sub(1).max(1) as f64;
    let y = |value: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * (value / top).clamp(0.0, 1.0);

    let mut body = text(left + WIDTH / 2.0, 22.0, "middle", title);
    for tick in ticks {
        let (from, to, at) = (x(0), left + WIDTH - MARGIN / 2.0, y(tick));
        let _ = write!(body, r##"<path d="M{from:.1} {at:.1}H{to:.1}" stroke="#ddd"/>"##);
        let words = format!("{tick:.3}");
        body += &text(from - 6.0, at + 4.0, "end", words.trim_end_matches('0').trim_end_matches('.'));
    }
    let every = epochs.div_ceil(10).max(1);
    for epoch in (0..epochs).step_by(every) {
        body += &text(x(epoch), HEIGHT - MARGIN + 18.0, "middle", &(epoch + 1).to_string());
    }
    body += &text(left + WIDTH / 2.0, HEIGHT - 8.0, "middle", "Epoch");
    for (index, line) in lines.iter().enumerate() {
        let points: Vec<String> =
            line.values.iter().enumerate().map(|(epoch, value)| format!("{:.1},{:.1}", x(epoch), y(*value))).collect();
        let (colour, points) = (line.colour, points.join(" "));
        let _ = write!(body, r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#);
        let (at, across) = (40.0 + 16.0 * index as f64, left + WIDTH - 100.0);
        let _ = write!(body, r#"<path d="M{across:.1} {:.1}h16" stroke="{colour}" stroke-width="2"/>"#, at - 4.0);
        body += &text(across + 22.0, at, "start", line.name);
    }
    body
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#, escaped(words))
}

fn svg(width: f64, height: f64, body: &str) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>{body}</svg>"#
    ) + "\n"
}

/// Class names come from folders and may hold anything.
fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Epoch;

    #[test]
    fn marks_are_round_and_reach_the_highest_value() {
        assert_eq!(
            ticks(1.0).iter().map(|mark| format!("{mark:.1}")).collect::<Vec<_>>(),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert!(ticks(0.0).len() > 1);
        assert!(ticks(7.3).last().is_some_and(|last| *last >= 7.3));
    }

    #[test]
    fn a_class_name_cannot_break_the_picture() {
        let picture = confusion_matrix(&Confusion::new(2), &["<cat>".to_owned(), "d&g".to_owned()]);
        assert!(picture.contains("&lt;cat&gt;") && picture.contains("d&amp;g") && !picture.contains("<cat>"));
    }

    #[test]
    fn every_epoch_is_a_point() {
        let epoch = Epoch { train_loss: 0.5, train_acc: 0.7, val_loss: 0.6, val_acc: 0.8 };
        let picture = training_curves(&History(vec![epoch; 3]));
        assert_eq!(picture.matches("<polyline").count(), 4);
        let points = picture.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("points");
        assert_eq!(points.split(' ').count(), 3);
    }
}
