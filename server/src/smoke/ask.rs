//! Asks the targets. All time limits of the smoke test are here.

use std::time::Duration;

use anneal_api::smoke::{SmokeCase, SmokeConfig};
use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use super::check::{self, Check, Finding, Outcome};
use crate::{
    client::{Answer, AskError, Client},
    picture,
};

/// Time that one answer may take.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two questions whether a target is ready.
const PAUSE: Duration = Duration::from_millis(250);
/// Least number of predictions that a target is asked for, so that the 95th percentile means something.
const PREDICTIONS: usize = 10;

/// What came of asking all targets.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) checks: Vec<Check>,
    /// Time of every prediction, in milliseconds.
    pub(super) times: Vec<f64>,
}

/// A case with what is sent.
struct Question {
    case: SmokeCase,
    sent: Result<Sent, String>,
}

/// What is sent.
enum Sent {
    Image(Bytes),
    Tensors(Bytes),
}

/// Asks every target every case. Targets are waited for together and then asked one after the other, so that they do
/// not slow each other down where they share a node.
pub(super) async fn all(client: &Client, config: &SmokeConfig, deadline: Instant) -> Asked {
    let questions: Vec<Question> = [made_up()].into_iter().chain(config.cases.iter().cloned().map(read)).collect();
    // A target that never becomes ready leaves a third of the time for asking the others.
    let patience = deadline - (deadline - Instant::now()) / 3;
    let targets: Vec<&str> = config.targets.iter().map(|target| target.trim_end_matches('/')).collect();
    let waits = targets.iter().map(|target| ready(client, target, &config.revision, patience));
    let mut asked = Asked::default();
    for (target, ready) in targets.iter().zip(join_all(waits).await) {
        let passed = ready.outcome == Outcome::Passed;
        asked.checks.push(ready);
        if passed {
            let (revision, model) = (config.revision.as_str(), config.model.as_deref().unwrap_or_default());
            let asking = Asking { client, target, revision, model, deadline };
            asking.run(&questions, &mut asked).await;
        }
    }
    asked
}

/// The first question to every target needs no file.
fn made_up() -> Question {
    let case = SmokeCase {
        name: "made-up image".to_owned(),
        image: None,
        tensors: None,
        expected_class: None,
        min_probability: None,
        probability: None,
    };
    let image = picture::png().map(|png| Sent::Image(png.into()));
    Question { case, sent: image.map_err(|error| format!("no image can be made up: {error}")) }
}

fn read(case: SmokeCase) -> Question {
    let file = |path: &str| {
        std::fs::read(path)
            .map(Bytes::from)
            .map_err(|error| format!("{path} cannot be read: {error}; check that its volume is mounted"))
    };
    let sent = match (&case.image, &case.tensors) {
        (Some(image), None) => file(image).map(Sent::Image),
        (None, Some(tensors)) => file(tensors).map(Sent::Tensors),
        _ => Err("the case has neither an image nor tensors, or both; give one of them".to_owned()),
    };
    Question { case, sent }
}

/// Waits until the target says that it is ready, and that it is of the expected revision.
async fn ready(client: &Client, target: &str, revision: &str, until: Instant) -> Check {
    let url = format!("{target}/readyz");
    let check = Check::unknown(target, "ready", revision, "there was no time to ask".to_owned());
    loop {
        let answer = client.within(left(until)).get(&url).await;
        let (seen, done) = match answer {
            Ok(answer) => readiness(check.clone(), &answer, revision),
            Err(error @ AskError::Address(_)) => {
                (Check { outcome: Outcome::Unknown(error.to_string()), ..check.clone() }, true)
            }
            Err(error) => (Check { outcome: Outcome::Unknown(error.to_string()), ..check.clone() }, false),
        };
        if done || left(until) <= PAUSE {
            return seen;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What an answer of /readyz means, and whether waiting is over.
fn readiness(check: Check, answer: &Answer, revision: &str) -> (Check, bool) {
    if !answer.status.is_success() {
        let outcome = Outcome::Unknown(format!("not ready: {} ({})", answer.status, answer.detail()));
        return (Check { got: answer.status.as_str().to_owned(), outcome, ..check }, false);
    }
    let finding = check::judge(answer, revision, |_| Finding::default());
    let judged = check.judged(answer, finding);
    let done = judged.outcome == Outcome::Passed;
    let got = answer.revision.clone().unwrap_or_else(|| "no revision".to_owned());
    (Check { got, ..judged }, done)
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// The questions to one target.
struct Asking<'a> {
    client: &'a Client,
    target: &'a str,
    revision: &'a str,
    model: &'a str,
    deadline: Instant,
}

impl Asking<'_> {
    async fn run(&self, questions: &[Question], asked: &mut Asked) {
        asked.checks.push(self.get("/health", "healthy", check::health).await);
        asked.checks.push(self.get("/model/info", "a model_type", check::model_info).await);
        let asks_for_tensors = questions.iter().any(|question| matches!(question.sent, Ok(Sent::Tensors(_))));
        let classes = if asks_for_tensors { self.classes().await } else { Ok(Vec::new()) };
        let repeats = PREDICTIONS.div_ceil(questions.len());
        for question in questions {
            let check = self.predict(question, &classes, repeats, &mut asked.times).await;
            asked.checks.push(check);
        }
    }

    async fn get(&self, path: &str, expected: &str, content: impl FnOnce(&Answer) -> Finding) -> Check {
        let check = Check::unknown(self.target, &format!("GET {path}"), expected, String::new());
        let answer = match self.client() {
            Ok(client) => client.get(&format!("{}{path}", self.target)).await.map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match answer {
            Ok(answer) => {
                let finding = check::judge(&answer, self.revision, content);
                check.judged(&answer, finding)
            }
            Err(why) => Check { outcome: Outcome::Unknown(why), ..check },
        }
    }

    /// The names of the classes, in the order that tensors have them in.
    async fn classes(&self) -> Result<Vec<String>, String> {
        let url = format!("{}/v2/models/{}", self.target, self.model);
        let answer = self.client()?.get(&url).await.map_err(|error| error.to_string())?;
        Ok(check::classes(&answer))
    }

    /// A client for the time that is left.
    fn client(&self) -> Result<Client, String> {
        match left(self.deadline) {
            Duration::ZERO => Err("there was no time left to ask; raise the test's timeoutSeconds".to_owned()),
            left => Ok(self.client.within(left)),
        }
    }

    /// Asks for the same prediction a few times. The first answer that is not right is the one that counts.
    async fn predict(
        &self,
        question: &Question,
        classes: &Result<Vec<String>, String>,
        repeats: usize,
        times: &mut Vec<f64>,
    ) -> Check {
        let case = &question.case;
        let unknown = |why: String| Check::unknown(self.target, &case.name, &check::expectation(case), why);
        let (sent, classes) = match (&question.sent, classes) {
            (Ok(sent), Ok(classes)) => (sent, classes),
            (Err(why), _) | (_, Err(why)) => return unknown(why.clone()),
        };
        let mut last = unknown("it was not asked".to_owned());
        for _ in 0..repeats {
            let answer = match self.client() {
                Ok(client) => self.send(&client, sent).await.map_err(|error| error.to_string()),
                Err(why) => Err(why),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(why) => return unknown(why),
            };
            times.push(answer.took.as_secs_f64() * 1e3);
            let finding = check::judge(&answer, self.revision, |answer| match sent {
                Sent::Image(_) => check::prediction(answer, case),
                Sent::Tensors(_) => check::inference(answer, case, classes),
            });
            last = last.judged(&answer, finding);
            if last.outcome != Outcome::Passed {
                break;
            }
        }
        last
    }

    async fn send(&self, client: &Client, sent: &Sent) -> Result<Answer, AskError> {
        let Self { target, model, .. } = self;
        match sent {
            Sent::Image(image) => client.post_image(&format!("{target}/predict"), image).await,
            Sent::Tensors(json) => client.post_json(&format!("{target}/v2/models/{model}/infer"), json).await,
        }
    }
}
