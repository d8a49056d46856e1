//! The pictures of the report.

use anneal_figures::plot::{Axis, Line, Plot, Style};

use crate::measured::{Jobs, Peer, Runs};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 360.0;

fn line(name: &str, colour: usize, points: &[(f64, f64)]) -> Line {
    Line { name: name.to_owned(), colour, style: Style::Solid, points: points.to_vec() }
}

fn highest(lines: &[Line], of: fn(&(f64, f64)) -> f64) -> f64 {
    lines.iter().flat_map(|line| &line.points).map(of).fold(0.0, f64::max)
}

/// How many runs, bare Jobs and JobSets were done by when.
pub fn done(jobs: Option<&Jobs>, peer: Option<&Peer>, runs: &Runs) -> String {
    let jobs = jobs.map(|jobs| line("bare Jobs", 8, &jobs.burst.done));
    let peer = peer.map(|peer| line("JobSets", 1, &peer.many.burst.done));
    let runs = line("training runs", 0, &runs.many.burst.done);
    let lines: Vec<Line> = jobs.into_iter().chain(peer).chain([runs]).collect();
    Plot {
        title: "A burst of runs",
        x: Axis::round("Seconds since the first was created", 0.0, highest(&lines, |point| point.0)),
        y: Axis::round("Done", 0.0, highest(&lines, |point| point.1)),
        lines,
        bars: Vec::new(),
    }
    .document(WIDTH, HEIGHT)
}

/// The memory of the operator over the benchmark, and of JobSet's manager over its burst.
pub fn resident(peer: Option<&Peer>, runs: &Runs) -> String {
    let peer = peer.map(|peer| line("JobSet, its burst only", 1, &peer.resident));
    let lines: Vec<Line> = peer.into_iter().chain([line("the operator", 0, &runs.resident)]).collect();
    Plot {
        title: "Resident memory",
        x: Axis::round("Seconds since its start", 0.0, highest(&lines, |point| point.0)),
        y: Axis::round("MB", 0.0, highest(&lines, |point| point.1)),
        lines,
        bars: Vec::new(),
    }
    .document(WIDTH, HEIGHT)
}
