//! Colours and bars, for terminals only.

use std::io::IsTerminal as _;

use console::Style;

use crate::state::Tone;

/// Cells of a progress bar.
const CELLS: usize = 24;

/// Whether to colour what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    colours: bool,
}

impl Paint {
    /// Text as it is.
    pub const PLAIN: Self = Self { colours: false };

    /// What suits the standard output.
    pub fn of_stdout() -> Self {
        Self::chosen(
            std::io::stdout().is_terminal(),
            std::env::var("NO_COLOR").ok().as_deref(),
            std::env::var("TERM").ok().as_deref(),
        )
    }

    /// Colours suit a terminal, unless the user wants none (<https://no-color.org>: set and not empty) or it cannot show any.
    fn chosen(is_terminal: bool, no_color: Option<&str>, term: Option<&str>) -> Self {
        let is_wanted = no_color.is_none_or(str::is_empty) && term != Some("dumb");
        Self { colours: is_terminal && is_wanted }
    }

    /// The text in the colour of a tone.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        self.style(
            match tone {
                Tone::Good => Style::new().green(),
                Tone::Busy => Style::new().cyan(),
                Tone::Waiting => Style::new().yellow(),
                Tone::Bad => Style::new().red(),
                Tone::Idle => Style::new().dim(),
            },
            text,
        )
    }

    /// What is more important.
    pub fn bold(self, text: &str) -> String {
        self.style(Style::new().bold(), text)
    }

    /// What is less important.
    pub fn dim(self, text: &str) -> String {
        self.style(Style::new().dim(), text)
    }

    fn style(self, style: Style, text: &str) -> String {
        if self.colours && !text.is_empty() {
            style.force_styling(true).apply_to(text).to_string()
        } else {
            text.to_owned()
        }
    }

    /// A bar that is filled by so many hundredths.
    pub fn bar(self, tone: Tone, percent: i64) -> String {
        let percent = usize::try_from(percent.clamp(0, 100)).unwrap_or_default();
        let full = percent * CELLS / 100;
        let rest = CELLS - full;
        format!("{}{} {percent:>3}%", self.tone(tone, &"█".repeat(full)), self.dim(&"░".repeat(rest)))
    }
}

/// The rows under their headings: every column as wide as its widest cell, two spaces between columns. Colours take no
/// room.
pub fn table<const N: usize>(paint: Paint, headings: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| console::measure_text_width(&row[column]));
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: &[String; N]| {
        let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| padded(cell, width)).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let heading = paint.dim(&line(&headings.map(str::to_owned)));
    [heading].into_iter().chain(rows.iter().map(line)).collect()
}

/// The text with as many spaces behind it as it needs to be so wide.
pub fn padded(text: &str, width: usize) -> String {
    console::pad_str(text, width, console::Alignment::Left, None).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        let colours = |terminal, no_color, term| Paint::chosen(terminal, no_color, term).colours;
        assert!(colours(true, None, Some("xterm-256color")));
        assert!(colours(true, Some(""), None));
        assert!(!colours(true, Some("1"), None));
        assert!(!colours(true, None, Some("dumb")));
        assert!(!colours(false, None, Some("xterm-256color")));
    }

    #[test]
    fn a_bar_is_filled_from_nothing_to_all() {
        let bar = |percent| Paint::PLAIN.bar(Tone::Busy, percent);
        assert_eq!(bar(0), "░░░░░░░░░░░░░░░░░░░░░░░░   0%");
        assert_eq!(bar(50), "████████████░░░░░░░░░░░░  50%");
        assert_eq!(bar(100), "████████████████████████ 100%");
        assert_eq!(bar(-3), bar(0));
    }

    #[test]
    fn columns_are_aligned_whatever_their_colours() {
        let coloured = Paint { colours: true };
        let rows = [[coloured.tone(Tone::Good, "ok"), "a".to_owned()], ["naïve".to_owned(), String::new()]];
        let lines = table(Paint::PLAIN, ["NAME", "X"], &rows);
        assert_eq!(lines, ["NAME   X", "\u{1b}[32mok\u{1b}[0m     a", "naïve"]);
    }
}
