//! `anneal-server track`: sends labelled photos to a server, and writes down how often it is right, measurement by measurement.

mod labelled;
mod performance;
mod report;

use std::{collections::BTreeSet, fs, path::Path};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;

use self::{
    labelled::Labelled,
    performance::{Given, Outcome, Performance},
};
use crate::{client::Client, options::TrackOptions};

/// There is no measurement.
#[derive(Debug, thiserror::Error)]
enum TrackError {
    #[error(transparent)]
    Photos(#[from] labelled::LabelError),
    #[error("{0}")]
    Access(String),
    #[error("no photo was answered: {0}")]
    NoAnswer(String),
    #[error("the server does not know the class {class:?} of the photos; it knows {known}")]
    UnknownClass { class: String, known: String },
    #[error(transparent)]
    Report(#[from] report::ReportError),
}

/// Measures, writes the reports, prints the table, and gives the exit code.
pub async fn run(options: &TrackOptions) -> i32 {
    let performance = match measured(options).await {
        Ok(performance) => performance,
        Err(error) => {
            tracing::error!("{error}");
            return 2;
        }
    };
    // A closed pipe is the reader's choice.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), performance.table().as_bytes());
    let too_low = options.min_accuracy.filter(|least| performance.accuracy < *least);
    if let Some(least) = too_low {
        tracing::error!("the accuracy {:.4} is below --min-accuracy {least}", performance.accuracy);
    }
    i32::from(too_low.is_some() || performance.failed > 0)
}

async fn measured(options: &TrackOptions) -> Result<Performance, TrackError> {
    let photos = labelled::read(&options.photos)?;
    let client = Client::new(options.timeout, &options.access).map_err(TrackError::Access)?;
    let outcomes: Vec<Outcome> = stream::iter(photos)
        .map(|photo| ask(&client, &options.url, photo))
        .buffer_unordered(usize::from(options.concurrency))
        .collect()
        .await;
    let classes = classes(&outcomes)?;
    let performance = Performance::of(Timestamp::now(), &classes, &outcomes);
    report::write(&options.reports, &performance, &classes, &outcomes)?;
    Ok(performance)
}

async fn ask(client: &Client, url: &str, photo: Labelled) -> Outcome {
    let given = async {
        let image = read(&photo.file)?;
        let answer = client.post_image_when_up(url, &image).await.map_err(|error| error.to_string())?;
        let predicted = answer.predicted()?;
        Ok(Given { predicted, took: answer.took, revision: answer.revision })
    };
    Outcome { given: given.await, class: photo.class }
}

fn read(file: &Path) -> Result<Bytes, String> {
    fs::read(file).map(Bytes::from).map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

/// The classes that the server knows, which must be those of the photos.
fn classes(outcomes: &[Outcome]) -> Result<Vec<String>, TrackError> {
    let answers = outcomes.iter().filter_map(|outcome| outcome.given.as_ref().ok());
    let known: BTreeSet<&String> = answers.flat_map(|given| given.predicted.probabilities.keys()).collect();
    if known.is_empty() {
        let why = outcomes.iter().find_map(|outcome| outcome.given.as_ref().err());
        return Err(TrackError::NoAnswer(why.cloned().unwrap_or_else(|| "there are no photos".to_owned())));
    }
    let known: Vec<String> = known.into_iter().cloned().collect();
    match outcomes.iter().find(|outcome| !known.contains(&outcome.class)) {
        Some(outcome) => Err(TrackError::UnknownClass { class: outcome.class.clone(), known: known.join(", ") }),
        None => Ok(known),
    }
}
