//! The threads that run the model. Each owns a copy of it, takes what waits as one batch and does all the work on it:
//! decoding, resizing, the forward pass.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    input::Input,
    prediction::Prediction,
    queue::{Perishable, Queue, Refused},
};

/// What came of a batch.
#[derive(Debug)]
pub struct Outcome {
    /// The model's outputs for each input, in order.
    pub logits: Vec<Result<Vec<f32>, PredictError>>,
    /// Time for decoding and resizing.
    pub preparing: Duration,
    /// Time of the forward pass.
    pub forward: Duration,
}

/// A model that one thread owns.
pub trait Predictor: Send + 'static {
    /// Prepares the thread that will call [`Predictor::predict`], so that its first request is as fast as the others.
    ///
    /// # Errors
    /// [`PredictError`] when the model cannot be used.
    fn warm_up(&mut self) -> Result<(), PredictError>;

    /// The model's outputs. Inputs that cannot be read are errors of their own and not of the others.
    fn predict(&mut self, inputs: Vec<Input>) -> Outcome;
}

/// Why there is no prediction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PredictError {
    /// The upload is not an image that can be decoded.
    #[error("The file cannot be classified: {0}")]
    Undecodable(String),
    /// The model's outputs are NaN or infinite.
    #[error("The model's outputs are not finite; its weights are broken, deploy another checkpoint")]
    NotFinite,
    /// The numbers that were given, and not pixels, make the model's outputs NaN or infinite.
    #[error("The input has numbers so large that the model's outputs are not finite; send normalised values")]
    OutOfRange,
    /// The forward pass failed.
    #[error("The model could not run: {0}")]
    Failed(String),
    /// All workers are busy and the queue is full.
    #[error("The server is at its limit; ask again after the time in Retry-After, or add replicas")]
    Full(Duration),
    /// What waits already takes longer than the request may.
    #[error(
        "The server is busy for {:.1} s, longer than this request may take; ask again, allow more in X-Request-Timeout, or add replicas",
        .0.as_secs_f64()
    )]
    Late(Duration),
    /// The time for the answer is over.
    #[error("The request was not answered within its time; ask again, or add replicas")]
    Expired,
}

impl From<Refused> for PredictError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full(wait) => Self::Full(wait),
            Refused::Late(wait) => Self::Late(wait),
            Refused::Closed => Self::Failed("the server is shutting down".to_owned()),
        }
    }
}

/// The threads cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The system gives no thread.
    #[error("the model's threads cannot be started: {0}; raise the limit on processes")]
    Thread(#[from] io::Error),
    /// The first forward passes failed.
    #[error("the model cannot be used: {0}")]
    WarmUp(#[from] PredictError),
}

/// Bounds on what the threads take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most requests that wait.
    pub queue: usize,
    /// Most requests of one forward pass.
    pub batch: usize,
}

/// A prediction, and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// What the model says.
    pub prediction: Prediction,
    /// Time in the queue.
    pub queued: Duration,
    /// Time for decoding and resizing the batch.
    pub preparing: Duration,
    /// Time of the batch's forward pass.
    pub forward: Duration,
    /// Inputs of the batch.
    pub batch: usize,
}

/// The workers and their queue. Dropping it lets the workers finish what they have and end.
#[derive(Debug)]
pub struct Engine {
    queue: Arc<Queue<Job>>,
}

#[derive(Debug)]
struct Job {
    input: Input,
    asked: Instant,
    deadline: Instant,
    /// Memory that the input takes, as long as it does: the client may have gone before.
    _room: Option<Arc<OwnedSemaphorePermit>>,
    reply: oneshot::Sender<Result<Answered, PredictError>>,
}

impl Perishable for Job {
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Engine {
    /// Starts a thread for every predictor and waits until all are warm. A thread that ends by itself tells `dead` its
    /// name: the process must end then, for it would be healthy but slower or silent.
    ///
    /// # Errors
    /// When a thread cannot be started, or a model cannot be used.
    pub async fn start<P: Predictor>(
        predictors: Vec<P>,
        bounds: Bounds,
        dead: &mpsc::UnboundedSender<String>,
    ) -> Result<Self, StartError> {
        let engine = Self { queue: Arc::new(Queue::new(bounds.queue, predictors.len())) };
        let mut warming = Vec::with_capacity(predictors.len());
        for (number, predictor) in predictors.into_iter().enumerate() {
            let name = format!("model-{number}");
            let obituary = Obituary { name: name.clone(), dead: dead.clone(), expected: false };
            let (warm, warmed) = oneshot::channel();
            let queue = Arc::clone(&engine.queue);
            thread::Builder::new().name(name).spawn(move || work(predictor, warm, &queue, bounds.batch, obituary))?;
            warming.push(warmed);
        }
        for warmed in warming {
            warmed.await.unwrap_or_else(|_| Err(thread_ended()))?;
        }
        Ok(engine)
    }

    /// What the model says about the input. Dropping the future takes the request out of the queue.
    ///
    /// # Errors
    /// [`PredictError`]; `Full` and `Late` come at once.
    pub async fn predict(&self, input: Input, deadline: Instant) -> Result<Answered, PredictError> {
        self.predict_within(input, deadline, None).await
    }

    /// The same for an input that takes this room in memory.
    ///
    /// # Errors
    /// As [`Engine::predict`].
    pub async fn predict_within(
        &self,
        input: Input,
        deadline: Instant,
        room: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Result<Answered, PredictError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { input, asked: Instant::now(), deadline, _room: room, reply })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            // What is too late is dropped without an answer.
            Ok(Err(_)) if Instant::now() < deadline => Err(thread_ended()),
            Ok(Err(_)) | Err(_) => Err(PredictError::Expired),
        }
    }

    /// Whether a request with this deadline would be refused now.
    ///
    /// # Errors
    /// As [`Engine::predict`] would.
    pub fn admits(&self, deadline: Instant) -> Result<(), PredictError> {
        Ok(self.queue.admits(deadline)?)
    }

    /// How many requests wait for a worker.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn thread_ended() -> PredictError {
    PredictError::Failed("its thread ended".to_owned())
}

fn work<P: Predictor>(
    mut predictor: P,
    warm: oneshot::Sender<Result<(), PredictError>>,
    queue: &Queue<Job>,
    most: usize,
    mut obituary: Obituary,
) {
    // Whoever waited may have gone, and the queue is closed then.
    let _ = warm.send(predictor.warm_up());
    loop {
        let jobs = queue.pop(most);
        if jobs.is_empty() {
            break;
        }
        let begun = Instant::now();
        let batch = jobs.len();
        let (inputs, waiting): (Vec<_>, Vec<_>) = jobs
            .into_iter()
            .map(|job| {
                // Pixels are bounded: where they give no numbers, the weights are broken. Values are the client's.
                let not_finite = if matches!(job.input, Input::Values(_)) {
                    PredictError::OutOfRange
                } else {
                    PredictError::NotFinite
                };
                (job.input, (job.reply, begun.saturating_duration_since(job.asked), not_finite))
            })
            .unzip();
        let Outcome { logits, preparing, forward } = predictor.predict(inputs);
        queue.done(batch, begun.elapsed());
        for (logits, (reply, queued, not_finite)) in logits.into_iter().zip(waiting) {
            let answered = logits
                .and_then(|logits| Prediction::from_logits(&logits).ok_or(not_finite))
                .map(|prediction| Answered { prediction, queued, preparing, forward, batch });
            // The client may have gone meanwhile.
            let _ = reply.send(answered);
        }
    }
    obituary.expected = true;
}

/// Tells of a thread's end even when it panics.
struct Obituary {
    name: String,
    dead: mpsc::UnboundedSender<String>,
    expected: bool,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if !self.expected {
            let _ = self.dead.send(self.name.clone());
        }
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A model for tests: the bytes of an "image" are a command.

    use std::{sync::mpsc::Receiver, time::Duration};

    use super::{Input, Outcome, PredictError, Predictor};

    /// Understands `cat`, `dog`, `nan`, `panic`, and `wait`, which blocks until the test sends something. Of other inputs
    /// it says how many numbers they have.
    pub(crate) struct Fake(pub(crate) Option<Receiver<()>>);

    #[expect(clippy::cast_precision_loss, reason = "a few numbers")]
    impl Fake {
        fn logits(&self, input: &Input) -> Result<Vec<f32>, PredictError> {
            match input {
                Input::Pixels(image) => Ok(vec![0.0, image.as_raw().len() as f32]),
                Input::Values(values) => {
                    Ok(vec![values.len() as f32, values.iter().fold(0.0, |sum, value| sum + value * 0.0)])
                }
                Input::File(bytes) => match &**bytes {
                    b"cat" => Ok(vec![2.0, 0.0]),
                    b"dog" => Ok(vec![0.0, 2.0]),
                    b"nan" => Ok(vec![f32::NAN, 0.0]),
                    b"wait" => {
                        let _ = self.0.as_ref().expect("a channel").recv();
                        Ok(vec![2.0, 0.0])
                    }
                    b"panic" => panic!("as asked"),
                    _ => Err(PredictError::Undecodable("not a command".to_owned())),
                },
            }
        }
    }

    impl Predictor for Fake {
        fn warm_up(&mut self) -> Result<(), PredictError> {
            Ok(())
        }

        fn predict(&mut self, inputs: Vec<Input>) -> Outcome {
            let logits = inputs.iter().map(|input| self.logits(input)).collect();
            Outcome { logits, preparing: Duration::ZERO, forward: Duration::ZERO }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use bytes::Bytes;

    use super::{fake::Fake, *};

    const ONE: Bounds = Bounds { queue: 1, batch: 1 };

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn file(command: &'static str) -> Input {
        Input::File(Bytes::from_static(command.as_bytes()))
    }

    async fn engine(model: Fake, bounds: Bounds) -> Engine {
        Engine::start(vec![model], bounds, &mpsc::unbounded_channel().0).await.expect("threads")
    }

    #[tokio::test]
    async fn an_answer_or_the_reason_why_there_is_none() {
        let engine = engine(Fake(None), ONE).await;
        assert_eq!(engine.predict(file("dog"), soon()).await.map(|a| a.prediction.class), Ok(1));
        assert_eq!(engine.predict(file("nan"), soon()).await, Err(PredictError::NotFinite));
        assert!(matches!(engine.predict(file(""), soon()).await, Err(PredictError::Undecodable(_))));
        let overflow = engine.predict(Input::Values(vec![f32::INFINITY]), soon()).await;
        assert_eq!(overflow, Err(PredictError::OutOfRange), "the client's fault, not the model's");
    }

    #[tokio::test]
    async fn what_waits_is_one_batch_and_a_broken_image_is_the_error_of_its_own_request() {
        let (go, wait) = channel();
        let engine = engine(Fake(Some(wait)), Bounds { queue: 8, batch: 4 }).await;
        let mut running = Box::pin(engine.predict(file("wait"), soon()));
        assert!(futures::poll!(&mut running).is_pending());
        while engine.queued() > 0 {
            tokio::task::yield_now().await;
        }
        let mut others: Vec<_> =
            ["cat", "broken", "dog"].into_iter().map(|name| Box::pin(engine.predict(file(name), soon()))).collect();
        for other in &mut others {
            assert!(futures::poll!(other).is_pending());
        }
        go.send(()).expect("the worker waits");
        assert_eq!(running.await.map(|a| a.batch), Ok(1));
        let results = futures::future::join_all(others).await;
        let classes: Vec<_> = results.iter().map(|r| r.as_ref().ok().map(|a| (a.prediction.class, a.batch))).collect();
        assert_eq!(classes, [Some((0, 3)), None, Some((1, 3))]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_cancelled_request_makes_room() {
        let (go, wait) = channel();
        let engine = engine(Fake(Some(wait)), ONE).await;
        let running = engine.predict(file("wait"), soon());
        let blocked = async {
            // The worker has taken the first request once the queue is empty.
            while engine.queued() > 0 {
                tokio::task::yield_now().await;
            }
            let mut waiting = Box::pin(engine.predict(file("cat"), soon()));
            assert!(futures::poll!(&mut waiting).is_pending());
            assert!(matches!(engine.predict(file("dog"), soon()).await, Err(PredictError::Full(_))));
            drop(waiting);
            let mut third = Box::pin(engine.predict(file("dog"), soon()));
            assert!(futures::poll!(&mut third).is_pending());
            go.send(()).expect("the worker waits");
            third.await.map(|a| a.prediction.class)
        };
        let (first, third) = tokio::join!(running, blocked);
        assert_eq!((first.map(|a| a.prediction.class), third), (Ok(0), Ok(1)));
    }

    #[tokio::test]
    async fn a_request_that_waits_too_long_expires() {
        let (go, wait) = channel();
        let engine = engine(Fake(Some(wait)), ONE).await;
        assert_eq!(engine.predict(file("wait"), Instant::now()).await, Err(PredictError::Expired));
        drop(go);
    }

    #[tokio::test]
    async fn a_worker_that_panics_is_reported_and_one_that_was_stopped_is_not() {
        let (dead, mut deaths) = mpsc::unbounded_channel();
        let engine = Engine::start(vec![Fake(None)], ONE, &dead).await.expect("threads");
        let result = engine.predict(file("panic"), soon()).await;
        assert!(matches!(result, Err(PredictError::Failed(_))), "{result:?}");
        assert_eq!(deaths.recv().await.as_deref(), Some("model-0"));

        drop(Engine::start(vec![Fake(None)], ONE, &dead).await.expect("threads"));
        drop(dead);
        assert_eq!(deaths.recv().await, None);
    }
}
