//! `anneal-server predict`: sends image files to a server and prints what it says.

use std::{io::Read as _, path::Path};

use bytes::Bytes;

use crate::{client::Client, options::PredictOptions, table};

/// Sends every file, prints a table, and gives 1 when one has no prediction.
pub async fn run(options: &PredictOptions) -> i32 {
    let client = match Client::new(options.timeout, &options.access) {
        Ok(client) => client,
        Err(why) => {
            tracing::error!("{why}");
            return 1;
        }
    };
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for file in &options.files {
        match classify(&client, &options.url, file).await {
            Ok(row) => rows.push(row),
            Err(why) => {
                failed.push(format!("{}: {why}\n", file.display()));
                rows.push([file.display().to_string(), "-".to_owned(), "-".to_owned(), "-".to_owned()]);
            }
        }
    }
    let mut text = table::render(["FILE", "PREDICTION", "CONFIDENCE", "MS"], &rows);
    text.push('\n');
    // A closed pipe is the reader's choice.
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
    let _ = std::io::Write::write_all(&mut std::io::stderr(), failed.concat().as_bytes());
    i32::from(!failed.is_empty())
}

async fn classify(client: &Client, url: &str, file: &Path) -> Result<[String; 4], String> {
    let image = read(file).map_err(|error| format!("the file cannot be read: {error}"))?;
    let answer = client.post_image_when_up(url, &image).await.map_err(|error| error.to_string())?;
    let predicted = answer.predicted()?;
    Ok([
        file.display().to_string(),
        predicted.prediction,
        format!("{:.4}", predicted.confidence),
        format!("{:.1}", answer.took.as_secs_f64() * 1e3),
    ])
}

fn read(file: &Path) -> std::io::Result<Bytes> {
    if file != Path::new("-") {
        return std::fs::read(file).map(Bytes::from);
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes.into())
}
