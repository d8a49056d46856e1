//! The confusion matrix as a picture.

use crate::{Confusion, font, names_of, svg};

/// Classes that a confusion matrix has at most: more cannot be read, and their picture would take the memory of a training.
const MATRIX: usize = 50;
/// Most pixels that the name of a class takes.
const LONGEST_NAME: f64 = 220.0;

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
    let labels = names.iter().map(|name| font::width(name, 13.0)).fold(0.0, f64::max);
    let (left, top) = (labels + 56.0, 84.0);
    let turned = names.iter().any(|name| font::width(name, 13.0) > cell - 4.0);
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

#[cfg(test)]
mod tests {
    use resvg::tiny_skia::Pixmap;

    use super::*;
    use crate::to_png;

    #[test]
    fn a_class_name_cannot_break_the_picture() {
        let names = ["<cat>", "d&g"].map(str::to_owned);
        let picture = confusion_matrix(&Confusion::new(2), &names);
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
        let side = Pixmap::decode_png(&png).map(|picture| picture.width().max(picture.height())).expect("a PNG");
        assert!(side < 2500, "{side} pixels");
    }

    #[test]
    fn a_name_that_is_long_is_shortened_and_one_in_other_letters_goes_by_its_number() {
        let long = "a-very-long-name-of-a-class-".repeat(4);
        let classes = [long.clone(), "猫".to_owned(), "кошка".to_owned()];
        let picture = confusion_matrix(&Confusion::new(3), &classes);
        assert!(!picture.contains(&long) && picture.contains("a-very-long-name") && picture.contains('…'));
        assert!(!picture.contains('猫') && picture.contains(">class 2<") && picture.contains(">кошка<"), "{picture}");
        // Names end left of the cells, and begin in the picture, however wide their letters are.
        for long in [long, "MW".repeat(40)] {
            assert!(font::width(&svg::fitting(&long, 13.0, LONGEST_NAME), 13.0) <= LONGEST_NAME);
        }
    }
}
