//! Networks, checkpoints and preprocessing, as their users see them.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io::Cursor,
};

use anneal_api::{
    checkpoint::{CheckpointInfo, Preprocessing},
    hyperparameters::Precision,
    model::{Architecture, ModelSpec},
};
use anneal_model::{
    Checkpoint, CheckpointError, Classifier, GoldenSet, Mode, ModelError, Network, StateError,
    checkpoint::digest_of,
    dropout_mask,
    preprocess::{ImageError, ImageLimits, PreprocessError, RgbImage, decode, resize_bilinear, to_tensor},
    sha256_file,
};
use anneal_pth::{DType, Dict, Limits, TensorData, Value};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use tch::{Kind, Tensor};

fn network(classes: usize) -> Network {
    Network::new(Architecture::Improved, classes, 1).expect("a network")
}

fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x, y, x * y].map(|v| u8::try_from(v % 256).expect("a byte"))))
}

fn info(classes: &[&str]) -> CheckpointInfo {
    CheckpointInfo {
        format: 1,
        model: ModelSpec { architecture: Architecture::Improved, input_size: 64 },
        classes: classes.iter().map(|&class| class.to_owned()).collect(),
        preprocessing: Preprocessing::imagenet(64),
        preprocessing_sha256: None,
        validation: None,
        metrics: None,
        dataset: None,
        run: "pets".to_owned(),
        seed: 7,
        libtorch: "2.13.0".to_owned(),
        position: None,
    }
}

fn distance(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

#[test]
fn parameters_are_as_many_as_the_references() {
    assert_eq!(network(2).parameter_count(), 2_783_362);
    assert_eq!(Network::new(Architecture::Simple, 2, 0).expect("a network").parameter_count(), 25_784_578);
}

#[test]
fn the_state_dict_has_the_references_names_in_its_order() {
    let state = network(2).state().expect("a state");
    let names: Vec<&str> = state.0.iter().map(|(name, _)| name.as_str()).collect();
    let bn = |prefix: &str| {
        ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
            .map(|field| format!("{prefix}.{field}"))
    };
    let mut expected = vec!["conv1.weight".to_owned(), "conv1.bias".to_owned()];
    expected.extend(bn("bn1"));
    for (layer, block) in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)] {
        let name = format!("layer{layer}.{block}");
        for part in 1..=2 {
            expected.push(format!("{name}.conv{part}.weight"));
            expected.extend(bn(&format!("{name}.bn{part}")));
        }
        if layer > 1 && block == 0 {
            expected.push(format!("{name}.shortcut.0.weight"));
            expected.extend(bn(&format!("{name}.shortcut.1")));
        }
    }
    expected.extend(["fc.weight".to_owned(), "fc.bias".to_owned()]);
    assert_eq!(names, expected);
}

#[test]
fn a_seed_gives_one_network_and_another_seed_another() {
    let state =
        |seed| Network::new(Architecture::Improved, 3, seed).map(|n| n.state().expect("a state")).expect("a network");
    assert_eq!(state(4), state(4));
    assert_ne!(state(4), state(5));
}

#[test]
fn first_weights_are_spread_as_pytorch_spreads_them() {
    let network = network(2);
    for (name, parameter) in network.named_parameters().into_iter().filter(|(_, p)| p.dim() > 1) {
        let fan_in = parameter.size()[1..].iter().product::<i64>();
        let bound = 1.0 / f64::from(i32::try_from(fan_in).expect("few")).sqrt();
        let largest = parameter.abs().max().double_value(&[]);
        assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
        let deviation = parameter.std(true).double_value(&[]);
        assert!((deviation / (bound / 3.0_f64.sqrt()) - 1.0).abs() < 0.1, "{name}");
    }
}

#[test]
fn only_a_training_step_counts_batches() {
    let network = network(2);
    let images = Tensor::ones([2, 3, 32, 32], (Kind::Float, tch::Device::Cpu));
    let counts = || -> Vec<i64> {
        let buffers = network.named_buffers().into_iter().filter(|(name, _)| name.ends_with("num_batches_tracked"));
        buffers.map(|(_, count)| count.int64_value(&[])).collect()
    };
    for mode in [Mode::Eval, Mode::Train { seed: 0, step: 0 }, Mode::Eval, Mode::Train { seed: 0, step: 1 }] {
        assert_eq!(network.forward(&images, mode).expect("logits").size(), [2, 2]);
    }
    assert_eq!(counts(), vec![2; 15]);
}

#[test]
fn dropout_depends_on_the_step_alone() {
    let mask = |seed, step| dropout_mask(seed, step, &[8, 256]).expect("a mask");
    assert_eq!(mask(1, 5), mask(1, 5));
    assert_ne!(mask(1, 5), mask(1, 6));
    assert_ne!(mask(1, 5), mask(2, 5));
    assert!((mask(1, 5).mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.1);
}

#[test]
fn a_wrong_input_is_an_error_that_tells_the_right_one() {
    let wrong = Tensor::ones([2, 1, 32, 32], (Kind::Float, tch::Device::Cpu));
    assert!(matches!(network(2).forward(&wrong, Mode::Eval), Err(ModelError::InputShape(_))));
    let simple = Network::new(Architecture::Simple, 2, 0).expect("a network");
    let small = Tensor::ones([1, 3, 96, 64], (Kind::Float, tch::Device::Cpu));
    let error = simple.forward(&small, Mode::Eval).expect_err("a refusal").to_string();
    assert!(error.contains("224 x 224") && error.contains("64 x 96"), "{error}");
    for classes in [0, 1, 100_001] {
        assert!(matches!(Network::new(Architecture::Improved, classes, 0), Err(ModelError::Classes(_))));
    }
}

#[test]
fn a_checkpoint_comes_back_as_it_was_saved() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("last_checkpoint.pth");
    let checkpoint = Checkpoint {
        info: Some(info(&["cat", "dog", "otter"])),
        state: network(3).state().expect("a state"),
        extra: vec![("epoch".to_owned(), Value::Int(4)), ("val_acc".to_owned(), Value::Float(92.12))],
    };
    fs::write(&path, "what was there before").expect("a file");
    let saved = checkpoint.clone().save(&path).expect("space on the disk");
    assert_eq!(saved, sha256_file(&path).expect("the file"));
    assert_eq!(Checkpoint::load(&path).expect("our own file"), checkpoint);
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 1, "nothing else is left behind");
    let again = checkpoint.clone().save(dir.path().join("again.pth")).expect("space on the disk");
    assert_eq!(saved, again, "equal checkpoints are equal files");
}

#[test]
fn a_save_that_fails_leaves_what_was_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("taken");
    fs::create_dir(&path).expect("a folder in the way");
    let checkpoint = Checkpoint { info: None, state: network(2).state().expect("a state"), extra: Vec::new() };
    let error = checkpoint.save(&path).expect_err("a refusal");
    assert!(error.to_string().contains("taken"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("the folder").count(), 1);
}

#[test]
fn a_missing_checkpoint_is_told_from_a_broken_one() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(Checkpoint::load(dir.path().join("none.pth")).expect_err("a refusal").is_not_found());
    let path = dir.path().join("broken.pth");
    fs::write(&path, "<html>").expect("a file");
    assert!(!Checkpoint::load(&path).expect_err("a refusal").is_not_found());
}

#[test]
fn what_does_not_fit_is_listed_and_nothing_is_loaded() {
    let mut state = network(3).state().expect("a state");
    state.0.retain(|(name, _)| name != "bn1.bias");
    let scalar = TensorData::new(anneal_pth::DType::F32, Vec::new(), vec![0; 4]).expect("four bytes");
    state.0.push(("head.scale".to_owned(), scalar));
    let mut target = network(2);
    let before = target.state().expect("a state");
    let error = target.load(&state).expect_err("a refusal");
    assert!(matches!(error, StateError::Mismatch(_)));
    let message = error.to_string();
    for part in
        ["missing: bn1.bias", "unexpected: head.scale", "fc.weight is [3, 256] instead of [2, 256]", "fc.bias is [3]"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(target.state().expect("a state"), before);
}

#[test]
fn a_plain_state_dict_tells_its_architecture_and_classes() {
    let contract = |architecture, classes| {
        let state = Network::new(architecture, classes, 0).expect("a network").state().expect("a state");
        Checkpoint { info: None, state, extra: Vec::new() }.contract().expect("a contract")
    };
    assert_eq!(contract(Architecture::Improved, 2).classes, ["cat", "dog"]);
    assert_eq!(contract(Architecture::Improved, 3).classes, ["class_0", "class_1", "class_2"]);
    assert_eq!(
        contract(Architecture::Simple, 2).model,
        ModelSpec { architecture: Architecture::Simple, input_size: 224 }
    );
    let unknown = Checkpoint { info: None, state: anneal_model::StateDict::default(), extra: Vec::new() };
    assert!(matches!(unknown.contract(), Err(CheckpointError::UnknownArchitecture)));
}

#[test]
fn a_classifier_answers_as_the_network_does_in_every_thread() {
    let network = network(3);
    let images = to_tensor(&[picture(90, 70), picture(64, 64)], &Preprocessing::imagenet(64)).expect("a batch");
    for step in 0..3 {
        assert_eq!(network.forward(&images, Mode::Train { seed: 0, step }).expect("logits").size(), [2, 3]);
    }
    let expected = network.forward(&images, Mode::Eval).expect("logits");
    let state = network.state().expect("a state");
    let classifier = Classifier::new(Checkpoint { info: Some(info(&["a", "b", "c"])), state, extra: Vec::new() })
        .expect("a classifier");
    let clone = classifier.shallow_clone().expect("a clone");
    let copy = images.shallow_clone();
    let elsewhere = std::thread::spawn(move || clone.logits(&copy).expect("logits")).join().expect("no panic");
    let here = classifier.logits(&images).expect("logits");
    assert!(distance(&here, &expected) < 1e-4 && distance(&elsewhere, &expected) < 1e-4);
    assert!(!here.requires_grad());
    assert_eq!(classifier.parameter_count(), network.parameter_count());
    for row in classifier.probabilities(&images).expect("probabilities") {
        assert_eq!(row.len(), 3);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

#[test]
fn what_is_ours_lies_under_one_key_and_files_of_earlier_versions_are_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.pth");
    let checkpoint = Checkpoint {
        info: Some(info(&["a", "b"])),
        state: network(2).state().expect("a state"),
        extra: vec![("epoch".to_owned(), 1.into()), ("anneal_golden_set".to_owned(), 2.into())],
    };
    checkpoint.clone().save(&path).expect("a file");
    let read = || anneal_pth::read(File::open(&path).expect("a file"), &Limits::default()).expect("a value");
    let Value::Dict(mut dict) = read() else { panic!("no dict") };
    let keys =
        |dict: &Dict| dict.entries.iter().filter_map(|(key, _)| key.as_str().map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(keys(&dict), ["epoch", "model_state_dict", "anneal"]);
    let own = dict.get("anneal").and_then(Value::as_dict).expect("a dict").clone();
    assert_eq!(keys(&own), ["info", "golden_set"]);
    assert_eq!(Checkpoint::load(&path).expect("a checkpoint"), checkpoint);

    dict.entries.pop();
    dict.entries.push(("anneal".into(), own.get("info").expect("a description").clone()));
    dict.entries.push(("anneal_golden_set".into(), 2.into()));
    anneal_pth::write(&mut File::create(&path).expect("a file"), &Value::Dict(dict)).expect("space on the disk");
    assert_eq!(Checkpoint::load(&path).expect("a checkpoint"), checkpoint);
}

#[test]
fn a_preprocessing_that_is_not_the_one_of_its_digest_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.pth");
    let saved = |size: i32| {
        let digest = digest_of(&Preprocessing::imagenet(size)).expect("a digest");
        let info = Some(CheckpointInfo { preprocessing_sha256: Some(digest), ..info(&["a", "b"]) });
        let checkpoint = Checkpoint { info, state: network(2).state().expect("a state"), extra: Vec::new() };
        checkpoint.save(&path).expect("a file");
        Checkpoint::load(&path)
    };
    assert!(saved(64).is_ok());
    assert!(matches!(saved(65), Err(CheckpointError::Info(_))));
}

#[test]
fn a_safetensors_file_is_taken_for_a_checkpoint_and_a_damaged_one_refused() {
    let state = network(3).state().expect("a state");
    let views = state.0.iter().map(|(name, tensor)| {
        let dtype = if tensor.dtype() == DType::F32 { safetensors::Dtype::F32 } else { safetensors::Dtype::I64 };
        (name, TensorView::new(dtype, tensor.shape().to_vec(), tensor.data()).expect("a tensor"))
    });
    let written = safetensors::serialize(views, None).expect("a file");
    let read = |bytes: &[u8]| Checkpoint::read(Cursor::new(bytes), &Limits::default());
    let checkpoint = read(&written).expect("a checkpoint");
    for (name, tensor) in &state.0 {
        assert_eq!(checkpoint.state.get(name), Some(tensor), "{name}");
    }
    assert_eq!(checkpoint.contract().expect("a contract").classes.len(), 3);
    assert_eq!(checkpoint.network().expect("a network").state().expect("a state"), state);
    assert!(matches!(read(&written[..written.len() / 2]), Err(CheckpointError::Safetensors(_))));
    let few = Limits { max_tensor_bytes: 0, ..Limits::default() };
    assert!(matches!(Checkpoint::read(Cursor::new(&written), &few), Err(CheckpointError::Read(_))));
}

#[test]
fn a_golden_set_comes_back_from_a_checkpoint_and_tells_another_network() {
    let checkpoint = |network: &Network| Checkpoint {
        info: Some(info(&["a", "b", "c"])),
        state: network.state().expect("a state"),
        extra: Vec::new(),
    };
    let network = network(3);
    let classifier = Classifier::new(checkpoint(&network)).expect("a classifier");
    let images = vec![picture(64, 64), picture(64, 64)];
    let golden = GoldenSet::new(&classifier, images).expect("a golden set");
    assert!(golden.check(&classifier).expect("the same network") < 1.5e-4);
    let half = Classifier::with_precision(checkpoint(&network), Precision::BFloat16).expect("a classifier");
    assert!(golden.check(&half).expect("nearly the same") < 2e-2);

    let mut published = checkpoint(&network);
    published.extra.push(golden.clone().into_entry().expect("tensors"));
    assert_eq!(GoldenSet::of(&published).expect("a golden set"), Some(golden.clone()));
    assert_eq!(GoldenSet::of(&checkpoint(&network)).expect("none"), None);
    published.extra = vec![(anneal_api::checkpoint::GOLDEN_KEY.to_owned(), 1.into())];
    assert!(matches!(GoldenSet::of(&published), Err(CheckpointError::Golden(_))));

    let weights = network.named_parameters();
    let (_, bias) = weights.iter().find(|(name, _)| name == "fc.bias").expect("a bias");
    tch::no_grad(|| bias.shallow_clone().copy_(&Tensor::from_slice(&[1.0_f32, 0.0, 0.0])));
    let other = Classifier::new(checkpoint(&network)).expect("a classifier");
    assert!(matches!(golden.check(&other), Err(CheckpointError::Disagrees { .. })));
    assert!(GoldenSet::new(&classifier, Vec::new()).is_err());
}

#[test]
fn a_copy_of_a_network_goes_its_own_way() {
    let network = network(2);
    let copy = network.try_clone().expect("a copy");
    let images = Tensor::ones([2, 3, 32, 32], (Kind::Float, tch::Device::Cpu));
    assert_eq!(copy.state().expect("a state"), network.state().expect("a state"));
    assert_eq!(network.forward(&images, Mode::Train { seed: 0, step: 0 }).expect("logits").size(), [2, 2]);
    assert_ne!(copy.state().expect("a state"), network.state().expect("a state"));
}

#[test]
fn an_image_beyond_the_limits_is_refused_before_it_is_decoded() {
    let mut png = Vec::new();
    picture(100, 50).write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).expect("an image");
    let limits = ImageLimits { max_pixels: 4999, ..ImageLimits::default() };
    assert!(matches!(decode(&png, &limits), Err(ImageError::TooLarge { width: 100, height: 50, .. })));
    assert_eq!(decode(&png, &ImageLimits::default()).expect("an image"), picture(100, 50));
    assert!(matches!(decode(&png[..png.len() / 2], &ImageLimits::default()), Err(ImageError::Decode(_))));
    for other in [&b""[..], b"hello", b"%PDF-1.4"] {
        assert!(matches!(decode(other, &ImageLimits::default()), Err(ImageError::UnknownFormat)));
    }
}

#[test]
fn inputs_have_the_networks_size_whatever_the_images_have() {
    let images = [picture(1, 1), picture(3, 500), picture(900, 2), picture(64, 64)];
    let batch = to_tensor(&images, &Preprocessing::imagenet(64)).expect("a batch");
    assert_eq!((batch.size(), batch.kind()), (vec![4, 3, 64, 64], Kind::Float));
    assert_eq!(to_tensor(&[], &Preprocessing::imagenet(64)).expect("an empty batch").size(), [0, 3, 64, 64]);
    let unknown = Preprocessing { resize: "lanczos".to_owned(), ..Preprocessing::imagenet(64) };
    assert!(matches!(to_tensor(&images, &unknown), Err(PreprocessError::Preprocessing(..))));
}

/// 20 x 15 pixels of colour gradients.
const BASELINE: &[u8] = include_bytes!("data/baseline.jpg");
const PROGRESSIVE: &[u8] = include_bytes!("data/progressive.jpg");

fn encoded(format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture(20, 15).write_to(&mut std::io::Cursor::new(&mut bytes), format).expect("an image");
    bytes
}

#[test]
fn a_jpeg_that_breaks_off_is_refused_and_one_that_only_lacks_its_end_marker_is_taken() {
    let limits = ImageLimits::default();
    for whole in [BASELINE, PROGRESSIVE] {
        let image = decode(whole, &limits).expect("an image");
        assert_eq!(image.dimensions(), (20, 15));
        let without_end = decode(&whole[..whole.len() - 2], &limits);
        assert_eq!(without_end.ok(), (whole == BASELINE).then_some(image), "of several scans the last may be missing");
        for length in [whole.len() / 2, whole.len() - 20, 4] {
            let error = decode(&whole[..length], &limits).err();
            assert!(matches!(error, Some(ImageError::Decode(_))), "{length} bytes: {error:?}");
        }
    }
}

#[test]
fn a_jpeg_of_too_many_pixels_or_scans_is_refused_before_they_are_decoded() {
    let few = ImageLimits { max_pixels: 299, ..ImageLimits::default() };
    assert!(matches!(decode(BASELINE, &few), Err(ImageError::TooLarge { width: 20, height: 15, .. })));
    // The last scan again and again: each is a pass over all pixels.
    let last = PROGRESSIVE.windows(2).rposition(|pair| pair == [0xff, 0xda]).expect("a scan");
    let (scan, end) = PROGRESSIVE[last..].split_at(PROGRESSIVE.len() - last - 2);
    let bomb = [&PROGRESSIVE[..last], &scan.repeat(200), end].concat();
    let error = decode(&bomb, &ImageLimits::default()).expect_err("too many scans");
    assert!(error.to_string().contains("scans"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn damaged_images_are_never_a_panic(at: prop::sample::Index, byte: u8, format in 0_usize..6) {
        use image::ImageFormat::{Bmp, Gif, Png, WebP};
        let mut bytes = match format {
            0 => BASELINE.to_vec(),
            1 => PROGRESSIVE.to_vec(),
            other => encoded([Bmp, Gif, Png, WebP][other - 2]),
        };
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes, &ImageLimits { max_pixels: 1 << 16, max_bytes: 1 << 24 });
    }

    #[test]
    fn an_even_image_stays_even(width in 1_u32..60, height in 1_u32..60, to_width in 1_u32..60, to_height in 1_u32..60, value: [u8; 3]) {
        let even = RgbImage::from_pixel(width, height, image::Rgb(value));
        let resized = resize_bilinear(&even, to_width, to_height).expect("an image");
        prop_assert_eq!(resized, RgbImage::from_pixel(to_width, to_height, image::Rgb(value)));
    }
}
