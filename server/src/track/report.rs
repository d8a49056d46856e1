//! The reports of a measurement, and the history of all of them.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anneal_figures::{
    DrawError, confusion_matrix,
    plot::{self, Axis, Line, Plot, Style},
    svg, to_png,
};

use super::performance::{Outcome, Performance, confusion};

/// Measurements that the plot shows.
const SHOWN: usize = 500;
/// Classes that the plot shows, the worst ones.
const CLASSES: usize = 6;
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 400.0;

/// The reports cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReportError {
    #[error("{} cannot be written: {why}", path.display())]
    Unwritable { path: PathBuf, why: io::Error },
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("line {line} of {} is no measurement ({why}); move the file away to begin a new history", path.display())]
    History { path: PathBuf, line: usize, why: serde_json::Error },
    #[error("a measurement cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Draw(#[from] DrawError),
}

/// Adds a measurement to the history in a folder, and writes its report and the pictures beside it.
pub(super) fn write(
    dir: &Path,
    performance: &Performance,
    classes: &[String],
    outcomes: &[Outcome],
) -> Result<(), ReportError> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |why| ReportError::Unwritable { path, why }
    };
    fs::create_dir_all(dir).map_err(unwritable(dir))?;
    let path = dir.join("history.jsonl");
    let line = serde_json::to_string(performance)? + "\n";
    // One write: a line is there whole, or is not.
    let mut file = OpenOptions::new().create(true).append(true).open(&path).map_err(unwritable(&path))?;
    file.write_all(line.as_bytes()).map_err(unwritable(&path))?;
    let history = history(&path)?;
    for (name, content) in [
        ("performance.json", serde_json::to_vec_pretty(performance)?),
        ("confusion_matrix.png", to_png(&confusion_matrix(&confusion(classes, outcomes), classes))?),
        ("performance.png", to_png(&over_time(&history))?),
    ] {
        let path = dir.join(name);
        fs::write(&path, content).map_err(unwritable(&path))?;
    }
    Ok(())
}

fn history(path: &Path) -> Result<Vec<Performance>, ReportError> {
    let text = fs::read_to_string(path).map_err(|why| ReportError::Unreadable { path: path.to_owned(), why })?;
    let measurement = |(line, text): (usize, &str)| {
        serde_json::from_str(text).map_err(|why| ReportError::History { path: path.to_owned(), line, why })
    };
    (1..).zip(text.lines()).map(measurement).collect()
}

/// Accuracy and confidence, and the accuracy of each class, from measurement to measurement.
fn over_time(history: &[Performance]) -> String {
    let shown = &history[history.len().saturating_sub(SHOWN)..];
    let line = |name: &str, colour, of: &dyn Fn(&Performance) -> Option<f64>| {
        let points = (1_u32..).map(f64::from).zip(shown).filter_map(|(at, one)| Some((at, of(one)?)));
        Line { name: svg::shortened(name, 24), colour, style: Style::Marked, points: points.collect() }
    };
    let all = vec![
        line("accuracy", 0, &|one| Some(one.accuracy)),
        line("mean confidence", 1, &|one| Some(one.mean_confidence)),
    ];
    let mut classes: Vec<_> = shown.last().iter().flat_map(|last| &last.by_class).collect();
    classes.sort_by(|a, b| a.1.accuracy.total_cmp(&b.1.accuracy));
    let of_class = |(colour, (class, _)): (usize, &(&String, _))| {
        line(class, colour, &|one| one.by_class.get(*class).map(|of| of.accuracy))
    };
    let by_class: Vec<Line> = classes.iter().take(CLASSES).enumerate().map(of_class).collect();
    let plot = |title, label, lines: Vec<Line>| {
        let lowest = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(1.0, f64::min);
        let (x, y) = (Axis::counts("Measurement", shown.len()), Axis::round(label, lowest, 1.0));
        Plot { title, x, y, lines, bars: Vec::new() }
    };
    let all = plot("Performance", "Share of photos; probability", all);
    let by_class = plot("Accuracy by class", "Share of photos that were right", by_class);
    plot::pair([(&all, WIDTH), (&by_class, WIDTH)], HEIGHT)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{super::performance::tests::outcome, *};

    #[test]
    fn each_measurement_is_added_to_the_history_and_the_plot() {
        let dir = tempfile::tempdir().expect("a folder");
        let classes = ["cat", "dog"].map(str::to_owned);
        for answers in [
            [outcome("cat", "cat", 0.9), outcome("dog", "dog", 0.8)],
            [outcome("cat", "cat", 0.9), outcome("dog", "cat", 0.6)],
        ] {
            let performance = Performance::of(Timestamp::UNIX_EPOCH, &classes, &answers);
            write(dir.path(), &performance, &classes, &answers).expect("reports");
        }
        let history = history(&dir.path().join("history.jsonl")).expect("a history");
        assert_eq!(history.iter().map(|one| one.correct).collect::<Vec<_>>(), [2, 1]);
        let plot = over_time(&history);
        assert_eq!((plot.matches("<polyline").count(), plot.matches("<circle").count()), (4, 8));
        let report = fs::read(dir.path().join("performance.json")).expect("a report");
        assert_eq!(serde_json::from_slice::<Performance>(&report).expect("JSON"), history[1]);
        for picture in ["performance.png", "confusion_matrix.png"] {
            assert!(fs::read(dir.path().join(picture)).expect("a picture").starts_with(b"\x89PNG"));
        }
    }

    #[test]
    fn a_history_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("history.jsonl");
        fs::write(&path, "{}\n").expect("a file");
        assert!(history(&path).expect_err("no history").to_string().contains("line 1"));
    }
}
