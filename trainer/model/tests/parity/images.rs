//! Decoding, resizing and normalising are Pillow's and torchvision's.

use std::{collections::BTreeMap, fs};

use anneal_api::checkpoint::Preprocessing;
use anneal_model::{
    preprocess::{ImageLimits, RgbImage, batch_u8, decode, normalise, resize_bilinear, to_tensor},
    tensor_to_data,
};
use anneal_pth::{DType, Dict, TensorData, Value};
use sha2::{Digest, Sha256};

use crate::Exchange;

/// An image of noise, which no error of a filter hides in.
fn noise(width: u32, height: u32) -> RgbImage {
    let mut state = u64::from(width) << 32 | u64::from(height) | 1;
    RgbImage::from_fn(width, height, |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = state.to_be_bytes();
        // Black, white and all between: rounding errs at the ends first.
        image::Rgb([bytes[0], if bytes[1] > 127 { 255 } else { 0 }, bytes[2]])
    })
}

fn pixels(image: &RgbImage) -> Value {
    let shape = vec![image.height() as usize, image.width() as usize, 3];
    Value::Tensor(TensorData::new(DType::U8, shape, image.as_raw().clone()).expect("three bytes a pixel"))
}

#[test]
fn resizing_is_pillows_to_the_bit() {
    let sources = [
        (1, 1),
        (1, 7),
        (2, 3),
        (31, 33),
        (64, 64),
        (100, 37),
        (224, 224),
        (333, 500),
        (500, 375),
        (1024, 683),
        (7, 900),
    ];
    let targets = [(1, 1), (2, 5), (32, 32), (64, 48), (96, 96), (128, 128), (224, 224), (225, 223), (500, 375)];
    let mut jobs = Vec::new();
    let mut ours = Vec::new();
    let mut add = |from: (u32, u32), to: (u32, u32)| {
        let image = noise(from.0, from.1);
        ours.push(resize_bilinear(&image, to.0, to.1).expect("an image"));
        jobs.push(Value::Tuple(vec![pixels(&image), i64::from(to.0).into(), i64::from(to.1).into()]));
    };
    for from in sources {
        for to in targets {
            add(from, to);
        }
    }
    // Which pass comes first depends on all four numbers.
    for i in 1..200_u32 {
        let side = |factor: u32| 1 + i.wrapping_mul(factor) % 61;
        add((side(7919), side(104_729)), (side(1_299_709), side(15_485_863)));
    }
    let exchange = Exchange::new();
    exchange.give(&Value::List(jobs));
    exchange.ask("resize");
    let answer = exchange.answer();
    let theirs = answer.as_items().expect("a list");
    assert_eq!(theirs.len(), ours.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!(ours.as_raw() == theirs.as_tensor().expect("pixels").data(), "to {:?}", ours.dimensions());
    }
}

#[test]
fn the_networks_input_is_the_references_to_the_bit() {
    let image = noise(500, 375);
    let exchange = Exchange::new();
    exchange.give(&Value::Dict(Dict::plain([("image", pixels(&image)), ("size", 224_i64.into())])));
    exchange.ask("preprocess");
    let answer = exchange.answer();
    let theirs = answer.as_items().expect("a list")[0].as_tensor().expect("a tensor");
    let preprocessing = Preprocessing::imagenet(224);
    let serving = to_tensor(std::slice::from_ref(&image), &preprocessing).expect("a batch");
    let resized = resize_bilinear(&image, 224, 224).expect("an image");
    let training = normalise(&batch_u8(&[resized]).expect("a batch"), &preprocessing).expect("a batch");
    for ours in [serving, training] {
        assert_eq!(ours.size(), [1, 3, 224, 224]);
        assert_eq!(ours.stride()[1], 1, "channels are innermost");
        let ours = tensor_to_data(&ours.squeeze_dim(0)).expect("numbers");
        assert!(ours == *theirs);
    }
}

#[test]
fn decoding_is_pillows_to_the_bit() {
    let exchange = Exchange::new();
    exchange.ask("decode");
    let answer = exchange.answer();
    for (name, theirs) in &answer.as_dict().expect("a dict").entries {
        let (name, theirs) = (name.as_str().expect("a name"), theirs.as_tensor().expect("pixels"));
        let bytes = fs::read(exchange.path(name)).expect("an image");
        let ours = decode(&bytes, &ImageLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!([ours.height() as usize, ours.width() as usize, 3], theirs.shape(), "{name}");
        let most = ours.as_raw().iter().zip(theirs.data()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most == Some(0), "{name}: differs by {most:?}");
    }
}

#[test]
fn photos_of_every_mode_and_of_sizes_from_one_pixel_to_48_million_are_pillows_to_the_bit() {
    let exchange = Exchange::new();
    exchange.ask("photos");
    let seen = fs::read(exchange.path("out.json")).expect("an answer");
    let seen: BTreeMap<String, (u32, u32, anneal_api::Sha256)> = serde_json::from_slice(&seen).expect("JSON");
    assert!(seen.len() > 170, "{} photos", seen.len());
    let mut wrong = Vec::new();
    for (name, (width, height, digest)) in seen {
        let bytes = fs::read(exchange.path(&name)).expect("an image");
        match decode(&bytes, &ImageLimits::default()) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(ours) => {
                let found = anneal_api::Sha256::from_bytes(Sha256::digest(ours.as_raw()).into());
                if (ours.dimensions(), &found) != ((width, height), &digest) {
                    wrong.push(format!("{name}: other pixels"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
