//! Aligned text tables.

/// The rows under their headings, every column as wide as its widest cell, two spaces between columns.
pub fn render<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let heading = line(&widths, &headings);
    let lines = rows.iter().map(|row| line(&widths, &std::array::from_fn::<&str, N, _>(|column| row[column].as_str())));
    [heading].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

fn line<const N: usize>(widths: &[usize; N], cells: &[&str; N]) -> String {
    let padded: Vec<String> = widths.iter().zip(cells).map(|(width, cell)| format!("{cell:width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_text() {
        let rows = [["naïve.jpg".to_owned(), "cat".to_owned()], ["b.jpg".to_owned(), String::new()]];
        assert_eq!(render(["FILE", "PREDICTION"], &rows), "FILE       PREDICTION\nnaïve.jpg  cat\nb.jpg");
    }
}
