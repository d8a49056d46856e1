//! Batches of photos, prepared ahead of the network by worker threads, in a fixed order.
#![allow(unsafe_code, reason = "pixels are written where libtorch will read them")]

use std::{
    slice,
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anneal_api::{
    checkpoint::Preprocessing,
    hyperparameters::{Augmentation, Precision},
};
use half::bf16;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    augment,
    data::load::Photos,
    outcome::Error,
    rng::{Draws, Purpose},
};

/// Which photos to take in which order, and how to change them.
pub struct Pass<'a> {
    /// The photos.
    pub photos: &'a Photos,
    /// Positions of the photos, in order.
    pub order: Vec<usize>,
    /// Photos in a batch.
    pub batch_size: usize,
    /// Side of the network's input in pixels.
    pub size: usize,
    /// How a photo becomes input.
    pub preprocessing: &'a Preprocessing,
    /// What the numbers are in: what the network computes in, which then need not make them so.
    pub precision: Precision,
    /// How photos are changed; nothing is changed without it.
    pub change: Option<Changes<'a>>,
    /// Threads that prepare batches.
    pub workers: usize,
}

/// What the random changes of a pass depend on.
#[derive(Clone, Copy)]
pub struct Changes<'a> {
    /// How strong they are.
    pub spec: &'a Augmentation,
    /// Seed of the run.
    pub seed: u64,
    /// The epoch.
    pub epoch: u64,
}

/// Photos as numbers, and their labels.
pub struct Batch {
    images: Tensor,
    labels: Vec<i64>,
    /// How long it was waited for.
    pub waited: Duration,
}

impl Batch {
    /// Count of photos.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The labels.
    pub fn labels(&self) -> impl Iterator<Item = usize> {
        self.labels.iter().map(|label| usize::try_from(*label).unwrap_or_default())
    }

    /// The network's input, [N, 3, size, size] with channels last in memory, and the labels.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn tensors(&self) -> Result<(Tensor, Tensor), TchError> {
        Ok((self.images.shallow_clone(), Tensor::f_from_slice(&self.labels)?))
    }
}

/// A random order of the training photos for an epoch.
pub fn shuffled(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    Draws::new(seed, Purpose::Order, epoch, 0).shuffle(&mut order);
    order
}

/// Worker threads that keep up with `threads` threads of the network: a few percent of its work.
pub fn workers(threads: usize) -> usize {
    threads.div_ceil(4)
}

/// Calls `take` with every batch in order, and ends at its first error.
///
/// # Errors
/// What `take` fails with, and when there is no memory for a batch.
pub fn each<E: From<Error>>(pass: &Pass<'_>, mut take: impl FnMut(Batch) -> Result<(), E>) -> Result<(), E> {
    let batches: Vec<&[usize]> = pass.order.chunks(pass.batch_size).collect();
    let workers = pass.workers.clamp(1, batches.len().max(1));
    thread::scope(|scope| {
        // Worker w makes the batches w, w + workers, …: reading the channels in turn gives them in order.
        let channels: Vec<Receiver<Result<Batch, Error>>> = (0..workers)
            .map(|worker| {
                // Without room between them: a worker holds the next batch until the network asks, and prepares one more
                // while the network is busy with it. More would only take memory.
                let (sender, receiver) = sync_channel(0);
                let own = batches.iter().copied().skip(worker).step_by(workers);
                // An error at sending means that nobody wants further batches.
                scope.spawn(move || own.map(|photos| prepare(pass, photos)).try_for_each(|batch| sender.send(batch)));
                receiver
            })
            .collect();
        // A worker that is gone has panicked; the scope passes that on.
        let mut ready = channels.iter().cycle().take(batches.len()).map_while(|channel| {
            let asked = Instant::now();
            let batch = channel.recv().ok()?;
            Some(batch.map(|batch| Batch { waited: asked.elapsed(), ..batch }))
        });
        ready.try_for_each(|batch| take(batch?))
    })
}

fn prepare(pass: &Pass<'_>, photos: &[usize]) -> Result<Batch, Error> {
    let label = |photo: &usize| i64::try_from(pass.photos.labels[*photo]).unwrap_or_default();
    let images = match pass.precision {
        Precision::Float32 => images(pass, photos, Kind::Float, |value: f32| value),
        Precision::BFloat16 => images(pass, photos, Kind::BFloat16, bf16::from_f32),
    }?;
    Ok(Batch { images, labels: photos.iter().map(label).collect(), waited: Duration::ZERO })
}

/// Photos as the network takes them, in numbers of a kind that are `T` to us.
fn images<T>(pass: &Pass<'_>, photos: &[usize], kind: Kind, number: impl Fn(f32) -> T) -> Result<Tensor, Error> {
    let size = pass.size;
    let (each, bytes) = (size * size * 3, photos.len() * size * size * 3 * size_of::<T>());
    #[expect(clippy::cast_possible_wrap, reason = "counts of pixels and photos")]
    let shape = [photos.len() as i64, size as i64, size as i64, 3];
    let full = |_| Error::OutOfMemory { what: "pixels of a batch", bytes };
    let images = Tensor::f_empty(shape, (kind, Device::Cpu)).map_err(full)?;
    let begin = images.data_ptr().cast::<T>();
    // SAFETY: nobody else has this tensor, whose numbers lie close together and are of this size, and any bits are one.
    let numbers = unsafe { slice::from_raw_parts_mut(begin, photos.len() * each) };
    let mut pixels = vec![0.0; each];
    for (photo, out) in photos.iter().zip(numbers.chunks_exact_mut(each)) {
        let change = pass.change.map_or_else(augment::none, |change| {
            let mut draws = Draws::new(change.seed, Purpose::Augmentation, change.epoch, *photo as u64);
            augment::draw(change.spec, &mut draws)
        });
        let from = pass.photos.pixels_of(*photo)?;
        augment::apply(&change, &from, (pass.photos.size, size), pass.preprocessing, &mut pixels);
        out.iter_mut().zip(&pixels).for_each(|(out, value)| *out = number(*value));
    }
    Ok(images.f_permute([0, 3, 1, 2])?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::data::pixels::Pixels;

    fn photos(count: usize) -> Photos {
        let shades = (0..count).flat_map(|shade| [u8::try_from(shade % 256).expect("a byte"); 2 * 2 * 3]);
        Photos { size: 2, pixels: Pixels::Memory(shades.collect()), labels: (0..count).collect(), ..Photos::default() }
    }

    fn collect(
        photos: &Photos,
        batch_size: usize,
        workers: usize,
        change: Option<Changes<'_>>,
    ) -> (Vec<i64>, Vec<f32>) {
        let preprocessing = Preprocessing::imagenet(2);
        let order = shuffled(photos.len(), 1, 2);
        let pass = Pass {
            photos,
            order,
            batch_size,
            size: 2,
            preprocessing: &preprocessing,
            precision: Precision::Float32,
            change,
            workers,
        };
        let (mut labels, mut pixels) = (Vec::new(), Vec::new());
        each(&pass, |batch| {
            labels.extend(&batch.labels);
            pixels.extend(Vec::<f32>::try_from(&batch.images.f_permute([0, 2, 3, 1])?.f_reshape([-1])?)?);
            Ok::<_, Error>(())
        })
        .expect("no error");
        (labels, pixels)
    }

    proptest! {
        #[test]
        fn neither_workers_nor_batches_change_what_a_photo_becomes(
            count in 1_usize..60, batch in 1_usize..20, workers in 1_usize..6,
        ) {
            let (photos, spec) = (photos(count), Augmentation::default());
            let change = Some(Changes { spec: &spec, seed: 3, epoch: 4 });
            prop_assert_eq!(collect(&photos, batch, workers, change), collect(&photos, count, 1, change));
        }

        #[test]
        fn every_photo_comes_once(count in 1_usize..60, batch in 1_usize..20) {
            let (mut labels, _) = collect(&photos(count), batch, 3, None);
            labels.sort_unstable();
            prop_assert_eq!(labels, (0..i64::try_from(count).expect("small")).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_batch_in_16_bits_is_one_in_32_bits_as_libtorch_rounds_it() {
        let (photos, spec, preprocessing) = (photos(200), Augmentation::default(), Preprocessing::imagenet(2));
        let images = |precision| {
            let order: Vec<usize> = (0..200).collect();
            let change = Some(Changes { spec: &spec, seed: 3, epoch: 4 });
            let (photos, preprocessing) = (&photos, &preprocessing);
            let pass = Pass { photos, order, batch_size: 200, size: 2, preprocessing, precision, change, workers: 1 };
            prepare(&pass, &pass.order).expect("a batch").tensors().expect("tensors").0
        };
        let (half, whole) = (images(Precision::BFloat16), images(Precision::Float32));
        assert_eq!((half.kind(), whole.kind()), (Kind::BFloat16, Kind::Float));
        assert_eq!(half, whole.to_kind(Kind::BFloat16));
        assert_eq!(half.stride(), whole.stride());
    }

    #[test]
    fn a_batch_tells_how_long_it_was_waited_for() {
        let photos = photos(8);
        let (preprocessing, order) = (Preprocessing::imagenet(2), (0..8).collect());
        let pass = Pass {
            photos: &photos,
            order,
            batch_size: 4,
            size: 2,
            preprocessing: &preprocessing,
            precision: Precision::Float32,
            change: None,
            workers: 1,
        };
        let (begun, mut waited) = (Instant::now(), Vec::new());
        each(&pass, |batch| {
            waited.push(batch.waited);
            Ok::<_, Error>(())
        })
        .expect("no error");
        // The first is prepared while somebody waits for it.
        assert!(waited[0] > Duration::ZERO && waited.iter().sum::<Duration>() < begun.elapsed(), "{waited:?}");
    }

    #[test]
    fn an_error_ends_the_pass_and_its_workers() {
        let photos = photos(40);
        let preprocessing = Preprocessing::imagenet(2);
        let order = (0..40).collect();
        let pass = Pass {
            photos: &photos,
            order,
            batch_size: 1,
            size: 2,
            preprocessing: &preprocessing,
            precision: Precision::Float32,
            change: None,
            workers: 2,
        };
        let mut taken = 0;
        let ended = each(&pass, |_| {
            taken += 1;
            if taken == 3 { Err(Error::Internal("enough".to_owned())) } else { Ok(()) }
        });
        assert_eq!((ended.expect_err("an error").to_string().as_str(), taken), ("enough", 3));
    }
}
