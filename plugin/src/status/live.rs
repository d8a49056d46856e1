//! `status --watch`: on a terminal the picture is redrawn as things change; elsewhere each change is a line of its own.

use std::{io::IsTerminal as _, pin::Pin, process::ExitCode, time::Duration};

use console::Term;
use futures::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::time::Instant;

use super::{Ending, Report, all_lines, exit_code, reports};
use crate::{
    children::selector,
    cluster::{Cluster, Object},
    output,
    paint::Paint,
    problem::Problem,
    target::{Found, Target},
};

/// Least time between two looks: changes come in swarms.
const PAUSE: Duration = Duration::from_millis(300);
/// How often ages and bars move where nothing else does.
const TICK: Duration = Duration::from_secs(1);
/// Time without a change after which it is looked anyway: what is not watched may have changed.
const REFRESH: Duration = Duration::from_secs(10);

/// Shows how things stand until they have come to an end, and gives 1 where that is a bad one.
///
/// # Errors
/// [`Problem`] when there is nothing to look at, or no more.
pub async fn run(cluster: &Cluster, target: &Target, paint: Paint) -> Result<ExitCode, Problem> {
    let found = cluster.find(target).await?;
    let mut changes = changes(cluster, &found);
    let mut screen = Screen::new(paint);
    let mut last = reports(cluster, target, paint).await?;
    let mut looked = Instant::now();
    loop {
        screen.show(&last, None);
        if last.iter().all(|report| report.ending != Ending::Open) {
            return Ok(exit_code(&last));
        }
        let is_told = tokio::time::timeout(TICK, changes.next()).await.is_ok();
        if !is_told && looked.elapsed() < REFRESH {
            continue;
        }
        tokio::time::sleep(PAUSE.saturating_sub(looked.elapsed())).await;
        looked = Instant::now();
        match reports(cluster, target, paint).await {
            Ok(new) => last = new,
            // A cluster may be away for a while; whoever watches wants to see it come back.
            Err(Problem::Unreachable { why, .. }) => screen.show(&last, Some(&why)),
            Err(problem) => return Err(problem),
        }
    }
}

/// Something changed.
type Changes = Pin<Box<dyn Stream<Item = ()> + Send>>;

fn changes(cluster: &Cluster, found: &[Found]) -> Changes {
    fn of<K: Object>(api: Api<K>, config: watcher::Config) -> Changes {
        // A watch that fails begins again by itself, with growing pauses.
        watcher(api, config).default_backoff().filter_map(async |event| event.is_ok().then_some(())).boxed()
    }
    let all = found.iter().flat_map(|found| {
        let this = watcher::Config::default().fields(&format!("metadata.name={}", found.name()));
        let own = match found {
            Found::Run(_) => of(cluster.api::<anneal_api::resources::TrainingRun>(), this),
            Found::Deployment(_) => of(cluster.api::<anneal_api::resources::ModelDeployment>(), this),
            Found::Sweep(_) => of(cluster.api::<anneal_api::resources::TrainingSweep>(), this),
            Found::Schedule(_) => of(cluster.api::<anneal_api::resources::CronTrainingRun>(), this),
        };
        [own, of(cluster.api::<Pod>(), watcher::Config::default().labels(&selector(found)))]
    });
    stream::select_all(all).boxed()
}

/// Where the picture goes.
struct Screen {
    paint: Paint,
    term: Option<Term>,
    /// Lines of the picture that is there.
    drawn: usize,
    /// The lines that were told last, where there is no terminal.
    told: Vec<String>,
}

impl Screen {
    fn new(paint: Paint) -> Self {
        let term = std::io::stdout().is_terminal().then(Term::stdout);
        Self { paint, term, drawn: 0, told: Vec::new() }
    }

    fn show(&mut self, reports: &[Report], trouble: Option<&str>) {
        let Some(term) = &self.term else { return self.tell(reports) };
        let (height, width) = term.size();
        let mut lines = all_lines(reports, self.paint);
        lines.extend(trouble.map(|why| format!("the cluster gives no answer, trying again: {why}")));
        let picture = fit(lines, usize::from(height), usize::from(width));
        // One write, so that nothing flickers: back to the first line, each line with its old rest erased, what is left
        // below erased, too.
        let mut text = if self.drawn > 0 { format!("\u{1b}[{}A\r", self.drawn) } else { String::new() };
        self.drawn = picture.len();
        text.extend(picture.iter().flat_map(|line| [line.as_str(), "\u{1b}[K\n"]));
        text.push_str("\u{1b}[J");
        output::write(&text);
    }

    fn tell(&mut self, reports: &[Report]) {
        let lines: Vec<String> = reports.iter().map(Report::line).collect();
        let now = Timestamp::now().strftime("%H:%M:%SZ").to_string();
        let news = lines.iter().filter(|line| !self.told.contains(line)).map(|line| format!("{now}  {line}"));
        output::lines(&news.collect::<Vec<_>>());
        self.told = lines;
    }
}

/// As much of the picture as the terminal has room for: what wraps or scrolls away could not be redrawn.
fn fit(mut lines: Vec<String>, height: usize, width: usize) -> Vec<String> {
    let room = height.saturating_sub(1).max(2);
    let count = lines.len();
    if count > room {
        lines.truncate(room - 1);
        lines.push(format!("… {} more lines; enlarge the terminal", count - lines.len()));
    }
    lines.iter().map(|line| console::truncate_str(line, width, "…").into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_never_outgrows_its_terminal() {
        let lines = |count: usize| (0..count).map(|i| format!("line {i} is long")).collect::<Vec<_>>();
        assert_eq!(fit(lines(2), 24, 8), ["line 0 …", "line 1 …"]);
        assert_eq!(fit(lines(9), 4, 80), ["line 0 is long", "line 1 is long", "… 7 more lines; enlarge the terminal"]);
    }
}
