//! Measures what one thread spends on the parts of an answer: `cargo run --release --example forward -- CHECKPOINT IMAGE…`
//!
//! Prints the processor time of decoding, resizing and the forward pass for batches of 1, 2 and 4, in both precisions.

use std::{error::Error, fs, time::Duration};

use anneal_api::hyperparameters::Precision;
use anneal_model::{Checkpoint, Classifier, preprocess};

const ROUNDS: u32 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    tch::set_num_threads(1);
    let mut args = std::env::args().skip(1);
    let checkpoint = args.next().ok_or("usage: forward CHECKPOINT IMAGE…")?;
    let files = args.map(fs::read).collect::<Result<Vec<_>, _>>()?;
    let limits = preprocess::ImageLimits::default();
    let side = u32::try_from(Checkpoint::load(&checkpoint)?.contract()?.preprocessing.size)?;

    let each = |count: usize, time: Duration| time.as_secs_f64() * 1e3 / f64::from(u32::try_from(count).unwrap_or(1));
    let (decoding, images) =
        mean(|| files.iter().map(|bytes| preprocess::decode(bytes, &limits)).collect::<Result<Vec<_>, _>>());
    let images = images?;
    let (resizing, resized) =
        mean(|| images.iter().map(|i| preprocess::resize_bilinear(i, side, side)).collect::<Result<Vec<_>, _>>());
    let resized = resized?;
    println!("decode {:.2} ms, resize {:.2} ms an image", each(files.len(), decoding), each(files.len(), resizing));
    for precision in [Precision::Float32, Precision::BFloat16] {
        let classifier = Classifier::with_precision(Checkpoint::load(&checkpoint)?, precision)?;
        for batch in [1, 2, 4, 8] {
            let Some(images) = resized.get(..batch) else { break };
            let (preparing, input) = mean(|| preprocess::to_tensor(images, &classifier.contract().preprocessing));
            let input = input?;
            let (forward, logits) = mean(|| classifier.logits(&input));
            drop(logits?);
            println!(
                "{precision:?} batch {batch}: input {:.2} ms, forward {:.2} ms an image",
                each(batch, preparing),
                each(batch, forward)
            );
        }
    }
    Ok(())
}

/// The mean processor time of some rounds, after two to warm up, and the last result. The scheduler's count is too coarse
/// for a single round.
fn mean<T>(mut body: impl FnMut() -> T) -> (Duration, T) {
    body();
    let mut result = body();
    let begun = processor_time();
    for _ in 0..ROUNDS {
        result = body();
    }
    (processor_time().saturating_sub(begun) / ROUNDS, result)
}

/// Processor time of this thread so far: the first number of nanoseconds that the scheduler counts for it.
fn processor_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default())
}
