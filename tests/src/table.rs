//! The tables that `kubectl get` prints.

use anyhow::{Context, Result};

/// A table with headings. A cell may be empty, so columns are told apart by where their headings begin.
#[derive(Clone, Debug)]
pub struct Table {
    /// The headings.
    pub headings: Vec<String>,
    rows: Vec<Vec<String>>,
    text: String,
}

impl Table {
    /// Reads a table.
    pub fn parse(text: &str) -> Self {
        let heading = text.lines().next().unwrap_or_default();
        let starts: Vec<usize> = heading
            .char_indices()
            .filter(|(at, c)| !c.is_whitespace() && (*at == 0 || heading[..*at].ends_with("  ")))
            .map(|(at, _)| at)
            .collect();
        let cells = |line: &str| -> Vec<String> {
            let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
            let cell = |(start, end): (&usize, usize)| line.get(*start..end.min(line.len())).unwrap_or_default();
            starts.iter().zip(ends).map(|pair| cell(pair).trim().to_owned()).collect()
        };
        Self { headings: cells(heading), rows: text.lines().skip(1).map(cells).collect(), text: text.to_owned() }
    }

    /// The cell under a heading in the row of a name.
    ///
    /// # Errors
    /// When there is no such heading or row.
    pub fn cell(&self, name: &str, heading: &str) -> Result<&str> {
        let column = self.headings.iter().position(|it| it == heading);
        let column = column.with_context(|| format!("there is no column {heading} in\n{}", self.text))?;
        let row = self.rows.iter().find(|row| row.first().is_some_and(|first| first == name));
        let row = row.with_context(|| format!("there is no row {name} in\n{}", self.text))?;
        row.get(column).map(String::as_str).with_context(|| format!("row {name} is short in\n{}", self.text))
    }
}
