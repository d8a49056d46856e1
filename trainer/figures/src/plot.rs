//! A plot: a title, two axes with marks, lines or bars, and a legend below.

use std::fmt::Write as _;

use crate::{font, svg};

/// Colours that people with any colour vision tell apart (Okabe and Ito), and grey for what is only compared with.
const COLOURS: [&str; 9] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#444444", "#999999"];
/// The colour of what is only compared with.
pub const GREY: usize = 8;

const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 44.0;
const BELOW: f64 = 60.0;
const LEGEND_LINE: f64 = 20.0;

/// A plot.
pub struct Plot<'a> {
    /// What it shows.
    pub title: &'a str,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// Lines, each with its name in the legend.
    pub lines: Vec<Line>,
    /// Bars behind the lines.
    pub bars: Vec<Bar>,
}

/// An axis with its label and marks.
pub struct Axis {
    label: &'static str,
    from: f64,
    to: f64,
    marks: Vec<f64>,
}

/// A line.
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Number of its colour.
    pub colour: usize,
    /// How it is drawn.
    pub style: Style,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// How a line is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without interruption.
    Solid,
    /// For what is only compared with.
    Dashed,
    /// Solid, with a dot at each point.
    Marked,
}

/// A bar, from zero up.
pub struct Bar {
    /// Its left edge.
    pub from: f64,
    /// Its right edge.
    pub to: f64,
    /// Its height.
    pub height: f64,
}

impl Axis {
    /// An axis with round marks that reaches from below `low` to above `high`.
    pub fn round(label: &'static str, low: f64, high: f64) -> Self {
        let high = if high.is_finite() { high.max(low + 1e-6) } else { low + 1.0 };
        let rough = (high - low) / 5.0;
        let magnitude = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(rough);
        let first = (low / step + 1e-6).floor() * step;
        let marks: Vec<f64> = (0..=12)
            .map(|mark| first + f64::from(mark) * step)
            .take_while(|mark| *mark < high + step * 0.999)
            .collect();
        Self { label, from: first, to: marks.last().copied().unwrap_or(high), marks }
    }

    /// An axis that counts from 1 to `count`.
    #[expect(clippy::cast_precision_loss, reason = "a count of epochs")]
    pub fn counts(label: &'static str, count: usize) -> Self {
        let every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|every| count <= every * 10);
        let every = every.unwrap_or(1000);
        let marks = (1..=count.max(1)).filter(|n| *n == 1 || n % every == 0).map(|n| n as f64).collect();
        // One epoch lies in the middle.
        let (from, to) = if count < 2 { (0.0, 2.0) } else { (1.0, count as f64) };
        Self { label, from, to, marks }
    }

    fn share(&self, value: f64) -> f64 {
        ((value - self.from) / (self.to - self.from).max(1e-12)).clamp(0.0, 1.0)
    }

    /// The words of a mark, with as many digits as tell it from its neighbours.
    fn words(&self, mark: f64) -> String {
        let step = self.marks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::MAX, f64::min).min(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 6")]
        let digits = (-step.log10()).ceil().clamp(0.0, 6.0) as usize;
        // Sums of steps can be -0.0.
        format!("{:.digits$}", if mark.abs() < 1e-9 { 0.0 } else { mark })
    }
}

impl Plot<'_> {
    /// The plot as a picture of its own.
    pub fn document(&self, width: f64, height: f64) -> String {
        svg::document(width, height, &self.draw(0.0, width, height, self.legend(width).len()))
    }

    /// The plot from `left` on, with room for a legend of so many lines.
    #[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
    fn draw(&self, left: f64, width: f64, height: f64, lines: usize) -> String {
        let rows = self.legend(width);
        let bottom = height - BELOW - lines as f64 * LEGEND_LINE;
        let x = |value: f64| left + LEFT + (width - LEFT - RIGHT) * self.x.share(value);
        let y = |value: f64| bottom - (bottom - TOP) * self.y.share(value);
        let mut body = svg::text(left + width / 2.0, 26.0, svg::TITLE, self.title);

        // Writing to a String cannot fail.
        for &mark in &self.y.marks {
            let (from, to, at) = (x(self.x.from), x(self.x.to), y(mark));
            let _ = write!(body, r##"<path d="M{from:.1} {at:.1}H{to:.1}" stroke="#ddd"/>"##);
            body += &svg::text(from - 8.0, at + 4.5, svg::END, &self.y.words(mark));
        }
        for &mark in &self.x.marks {
            let _ = write!(body, r##"<path d="M{:.1} {bottom:.1}v5" stroke="#222"/>"##, x(mark));
            body += &svg::text(x(mark), bottom + 20.0, svg::MIDDLE, &self.x.words(mark));
        }
        let _ = write!(
            body,
            r##"<path d="M{:.1} {:.1}V{bottom:.1}H{:.1}" fill="none" stroke="#222"/>"##,
            left + LEFT,
            TOP,
            left + width - RIGHT
        );
        for bar in self.bars.iter().filter(|bar| bar.height > 0.0) {
            let (from, to, upper) = (x(bar.from), x(bar.to), y(bar.height));
            body += &svg::rectangle(from, upper, to - from, bottom - upper, COLOURS[0], 0.85);
        }
        for line in &self.lines {
            let points: Vec<(f64, f64)> = line.points.iter().map(|point| (x(point.0), y(point.1))).collect();
            let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let (colour, dash) = (COLOURS[line.colour % COLOURS.len()], dash(line.style));
            // One point is no line.
            if points.len() > 1 {
                let _ = write!(
                    body,
                    r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>"#,
                    path.join(" ")
                );
            }
            if line.style == Style::Marked && points.len() <= 60 {
                for (x, y) in points {
                    let _ = write!(body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.2" fill="{colour}"/>"#);
                }
            }
        }
        let centre = left + LEFT + (width - LEFT - RIGHT) / 2.0;
        body += &svg::text(centre, bottom + 42.0, svg::MIDDLE, self.x.label);
        body += &svg::turned(left + 20.0, f64::midpoint(bottom, TOP), svg::MIDDLE, self.y.label);
        for (row, lines) in rows.iter().enumerate() {
            let all: f64 = lines.iter().map(|line| entry_width(line)).sum();
            let mut at = (centre - all / 2.0).max(left + 8.0);
            let level = bottom + 64.0 + row as f64 * LEGEND_LINE;
            for line in lines {
                let (colour, dash) = (COLOURS[line.colour % COLOURS.len()], dash(line.style));
                let _ = write!(
                    body,
                    r#"<path d="M{at:.1} {:.1}h22" stroke="{colour}" stroke-width="2"{dash}/>"#,
                    level - 4.0
                );
                body += &svg::text(at + 28.0, level, svg::START, &line.name);
                at += entry_width(line);
            }
        }
        body
    }

    /// The lines of the legend: as many names in each as fit.
    fn legend(&self, width: f64) -> Vec<Vec<&Line>> {
        let mut rows: Vec<Vec<&Line>> = Vec::new();
        let mut free = 0.0;
        for line in &self.lines {
            let needed = entry_width(line);
            if needed > free {
                rows.push(Vec::new());
                free = width - 16.0;
            }
            free -= needed;
            if let Some(row) = rows.last_mut() {
                row.push(line);
            }
        }
        rows
    }
}

/// Two plots of these widths side by side, their axes on one level.
pub fn pair(plots: [(&Plot<'_>, f64); 2], height: f64) -> String {
    let lines = plots.iter().map(|(plot, width)| plot.legend(*width).len()).max().unwrap_or(0);
    let [(first, left), (second, right)] = plots;
    let body = [first.draw(0.0, left, height, lines), second.draw(left, right, height, lines)].concat();
    svg::document(left + right, height, &body)
}

fn entry_width(line: &Line) -> f64 {
    28.0 + font::width(&line.name, 13.0) + 14.0
}

fn dash(style: Style) -> &'static str {
    if style == Style::Dashed { r#" stroke-dasharray="6 4""# } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(axis: &Axis) -> Vec<String> {
        axis.marks.iter().map(|mark| axis.words(*mark)).collect()
    }

    #[test]
    fn marks_are_round_and_reach_both_ends() {
        assert_eq!(words(&Axis::round("", 0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(words(&Axis::round("", 0.83, 1.0)), ["0.80", "0.85", "0.90", "0.95", "1.00"]);
        assert_eq!(words(&Axis::counts("", 3)), ["1", "2", "3"]);
        assert_eq!(words(&Axis::counts("", 30)), ["1", "5", "10", "15", "20", "25", "30"]);
    }

    #[test]
    fn an_axis_takes_any_range() {
        for (low, high) in [(0.0, 0.0), (0.0, 7.3), (0.999, 1.0), (0.0, f64::NAN), (0.0, f64::INFINITY)] {
            let axis = Axis::round("", low, high);
            assert!((2..=13).contains(&axis.marks.len()), "{low} to {high}: {:?}", axis.marks);
            assert!(axis.from <= low && (!high.is_finite() || axis.to >= high));
        }
    }
}
