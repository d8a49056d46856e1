//! The confusion matrix as a picture.

use crate::{Confusion, svg};

/// The confusion matrix: actual classes down, predicted classes across, darker for larger shares of a row.
#[expect(clippy::cast_precision_loss, reason = "counts of photos")]
pub fn confusion_matrix(confusion: &Confusion, names: &[String]) -> String {
    // Cells shrink where there are many classes; numbers that would not fit into them are left out.
    let cell = (760.0 / names.len().max(1) as f64).clamp(14.0, 110.0);
    let letters = (cell * 0.16).clamp(8.0, 15.0);
    let labels = names.iter().map(|name| svg::width(name, 13.0)).fold(0.0, f64::max).min(220.0);
    let (left, top) = (labels + 56.0, 84.0);
    let turned = names.iter().any(|name| svg::width(name, 13.0) > cell - 4.0);
    let top = if turned { top + labels } else { top };
    let side = cell * names.len() as f64;
    let mut body = svg::text(left + side / 2.0, 28.0, svg::TITLE, "Confusion matrix");
    body += &svg::text(left + side / 2.0, 52.0, svg::MIDDLE, "Predicted class");
    body += &svg::turned(20.0, top + side / 2.0, svg::MIDDLE, "Actual class");
    for (row, (counts, name)) in confusion.rows().iter().zip(names).enumerate() {
        let y = top + cell * row as f64;
        let across = left + cell * (row as f64 + 0.5);
        let total = counts.iter().sum::<u64>().max(1) as f64;
        body += &svg::text(left - 10.0, y + cell / 2.0 + 4.0, svg::END, name);
        body += &if turned {
            svg::turned(across + 4.0, top - 10.0, svg::START, name)
        } else {
            svg::text(across, top - 10.0, svg::MIDDLE, name)
        };
        for (column, count) in counts.iter().enumerate() {
            let x = left + cell * column as f64;
            let share = *count as f64 / total;
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
    use super::*;
    use crate::to_png;

    #[test]
    fn a_class_name_cannot_break_the_picture() {
        let names = ["<cat>", "d&g"].map(str::to_owned);
        let picture = confusion_matrix(&Confusion::new(2), &names);
        assert!(picture.contains("&lt;cat&gt;") && picture.contains("d&amp;g") && !picture.contains("<cat>"));
        assert!(to_png(&picture).is_ok());
    }
}
