//! The threads that run the model. Each owns a copy of it, takes one image at a time and does all the work on it:
//! decoding, resizing, the forward pass.

use std::{io, sync::Arc, thread, time::Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::{
    prediction::Prediction,
    queue::{Perishable, Queue},
};

/// A model that one thread owns.
pub trait Predictor: Send + 'static {
    /// Prepares the thread that will call [`Predictor::logits`], so that its first request is as fast as the others.
    ///
    /// # Errors
    /// [`PredictError`] when the model cannot be used.
    fn warm_up(&mut self) -> Result<(), PredictError>;

    /// The model's outputs for an encoded image.
    ///
    /// # Errors
    /// [`PredictError`] when the image cannot be read or the model cannot run.
    fn logits(&mut self, image: &[u8]) -> Result<Vec<f32>, PredictError>;
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
    /// The forward pass failed.
    #[error("The model could not run: {0}")]
    Failed(String),
    /// All workers are busy and the queue is full.
    #[error("The server is at its limit; ask again in a second, or add replicas")]
    Busy,
    /// The time for the answer is over.
    #[error("The request waited longer than the server's --request-timeout; ask again, or add replicas")]
    Expired,
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

/// The workers and their queue. Dropping it lets the workers finish what they have and end.
#[derive(Debug)]
pub struct Engine {
    queue: Arc<Queue<Job>>,
}

#[derive(Debug)]
struct Job {
    image: Bytes,
    reply: oneshot::Sender<Result<Prediction, PredictError>>,
}

impl Perishable for Job {
    fn is_wanted(&self) -> bool {
        !self.reply.is_closed()
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
        capacity: usize,
        dead: &mpsc::UnboundedSender<String>,
    ) -> Result<Self, StartError> {
        let engine = Self { queue: Arc::new(Queue::new(capacity)) };
        let mut warming = Vec::with_capacity(predictors.len());
        for (number, predictor) in predictors.into_iter().enumerate() {
            let name = format!("model-{number}");
            let obituary = Obituary { name: name.clone(), dead: dead.clone(), expected: false };
            let (warm, warmed) = oneshot::channel();
            let queue = Arc::clone(&engine.queue);
            thread::Builder::new().name(name).spawn(move || work(predictor, warm, &queue, obituary))?;
            warming.push(warmed);
        }
        for warmed in warming {
            warmed.await.unwrap_or_else(|_| Err(thread_ended()))?;
        }
        Ok(engine)
    }

    /// What the model says about the image. Dropping the future takes the request out of the queue.
    ///
    /// # Errors
    /// [`PredictError`]; `Busy` comes at once.
    pub async fn predict(&self, image: Bytes, deadline: Instant) -> Result<Prediction, PredictError> {
        let (reply, answer) = oneshot::channel();
        self.queue.push(Job { image, reply }).map_err(|_| PredictError::Busy)?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(thread_ended()),
            Err(_) => Err(PredictError::Expired),
        }
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
    mut obituary: Obituary,
) {
    // Whoever waited may have gone, and the queue is closed then.
    let _ = warm.send(predictor.warm_up());
    while let Some(job) = queue.pop() {
        let result = predictor
            .logits(&job.image)
            .and_then(|logits| Prediction::from_logits(&logits).ok_or(PredictError::NotFinite));
        // The client may have gone meanwhile.
        let _ = job.reply.send(result);
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

    use std::sync::mpsc::Receiver;

    use super::{PredictError, Predictor};

    /// Understands `cat`, `dog`, `nan`, `panic`, and `wait`, which blocks until the test sends something.
    pub(crate) struct Fake(pub(crate) Option<Receiver<()>>);

    impl Predictor for Fake {
        fn warm_up(&mut self) -> Result<(), PredictError> {
            Ok(())
        }

        fn logits(&mut self, image: &[u8]) -> Result<Vec<f32>, PredictError> {
            match image {
                b"cat" => Ok(vec![2.0, 0.0]),
                b"dog" => Ok(vec![0.0, 2.0]),
                b"nan" => Ok(vec![f32::NAN, 0.0]),
                b"wait" => {
                    let _ = self.0.as_ref().expect("a channel").recv();
                    Ok(vec![2.0, 0.0])
                }
                b"panic" => panic!("as asked"),
                _ => Err(PredictError::Undecodable("not a command".to_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Duration};

    use super::{fake::Fake, *};

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[tokio::test]
    async fn an_answer_or_the_reason_why_there_is_none() {
        let engine = Engine::start(vec![Fake(None)], 1, &mpsc::unbounded_channel().0).await.expect("threads");
        assert_eq!(engine.predict(Bytes::from_static(b"dog"), soon()).await.map(|p| p.class), Ok(1));
        assert_eq!(engine.predict(Bytes::from_static(b"nan"), soon()).await, Err(PredictError::NotFinite));
        assert!(matches!(engine.predict(Bytes::new(), soon()).await, Err(PredictError::Undecodable(_))));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_cancelled_request_makes_room() {
        let (go, wait) = channel();
        let engine = Engine::start(vec![Fake(Some(wait))], 1, &mpsc::unbounded_channel().0).await.expect("threads");
        let running = engine.predict(Bytes::from_static(b"wait"), soon());
        let blocked = async {
            // The worker has taken the first request once the queue is empty.
            while engine.queued() > 0 {
                tokio::task::yield_now().await;
            }
            let mut waiting = Box::pin(engine.predict(Bytes::from_static(b"cat"), soon()));
            assert!(futures::poll!(&mut waiting).is_pending());
            assert_eq!(engine.predict(Bytes::from_static(b"dog"), soon()).await, Err(PredictError::Busy));
            drop(waiting);
            let mut third = Box::pin(engine.predict(Bytes::from_static(b"dog"), soon()));
            assert!(futures::poll!(&mut third).is_pending());
            go.send(()).expect("the worker waits");
            third.await.map(|p| p.class)
        };
        let (first, third) = tokio::join!(running, blocked);
        assert_eq!((first.map(|p| p.class), third), (Ok(0), Ok(1)));
    }

    #[tokio::test]
    async fn a_request_that_waits_too_long_expires() {
        let (go, wait) = channel();
        let engine = Engine::start(vec![Fake(Some(wait))], 1, &mpsc::unbounded_channel().0).await.expect("threads");
        assert_eq!(engine.predict(Bytes::from_static(b"wait"), Instant::now()).await, Err(PredictError::Expired));
        drop(go);
    }

    #[tokio::test]
    async fn a_worker_that_panics_is_reported_and_one_that_was_stopped_is_not() {
        let (dead, mut deaths) = mpsc::unbounded_channel();
        let engine = Engine::start(vec![Fake(None)], 1, &dead).await.expect("threads");
        let result = engine.predict(Bytes::from_static(b"panic"), soon()).await;
        assert!(matches!(result, Err(PredictError::Failed(_))), "{result:?}");
        assert_eq!(deaths.recv().await.as_deref(), Some("model-0"));

        drop(Engine::start(vec![Fake(None)], 1, &dead).await.expect("threads"));
        drop(dead);
        assert_eq!(deaths.recv().await, None);
    }
}
