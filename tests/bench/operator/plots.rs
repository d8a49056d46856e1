//! The pictures of the report.

use crate::{
    measured::{Jobs, Runs},
    plot::{Axis, Line, Plot, Style},
};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 360.0;

fn line(name: &str, colour: usize, points: &[(f64, f64)]) -> Line {
    Line { name: name.to_owned(), colour, style: Style::Solid, points: points.to_vec() }
}

fn highest(lines: &[Line], of: fn(&(f64, f64)) -> f64) -> f64 {
    lines.iter().flat_map(|line| &line.points).map(of).fold(0.0, f64::max)
}

/// How many runs, and how many bare Jobs, were done by when.
pub fn done(jobs: &Jobs, runs: &Runs) -> String {
    let lines = vec![line("bare Jobs", 8, &jobs.burst.done), line("training runs", 0, &runs.burst.done)];
    Plot {
        title: "A burst of runs",
        x: Axis::round("Seconds since the first was created", 0.0, highest(&lines, |point| point.0)),
        y: Axis::round("Done", 0.0, highest(&lines, |point| point.1)),
        lines,
        bars: Vec::new(),
    }
    .document(WIDTH, HEIGHT)
}

/// The operator's memory over the benchmark.
pub fn resident(runs: &Runs) -> String {
    let lines = vec![line("the operator", 0, &runs.resident)];
    Plot {
        title: "Resident memory",
        x: Axis::round("Seconds since its start", 0.0, highest(&lines, |point| point.0)),
        y: Axis::round("MB", 0.0, highest(&lines, |point| point.1)),
        lines,
        bars: Vec::new(),
    }
    .document(WIDTH, HEIGHT)
}
