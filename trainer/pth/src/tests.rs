//! The whole way: values through files and back, and files that lie.

use std::io::Cursor;

use proptest::prelude::*;

use crate::{DType, Dict, Limits, PickleError, ReadError, TensorData, Value, ZipError, read, write};

fn file(value: &Value) -> Vec<u8> {
    let mut file = Vec::new();
    write(&mut file, value).expect("a Vec takes all");
    file
}

fn read_bytes(bytes: &[u8], limits: &Limits) -> Result<Value, ReadError> {
    read(Cursor::new(bytes), limits)
}

fn floats(shape: &[usize]) -> Value {
    let count: usize = shape.iter().product();
    let data = (0..count).flat_map(|i| f32::from(u16::try_from(i).expect("few")).to_le_bytes()).collect();
    Value::Tensor(TensorData::new(DType::F32, shape.to_vec(), data).expect("its bytes"))
}

/// The bytes of the floats 0, 1, 2, …
fn numbers(count: u16) -> Vec<u8> {
    (0..count).flat_map(|i| f32::from(i).to_le_bytes()).collect()
}

fn example() -> Value {
    Value::Dict(Dict::plain([
        ("epoch", Value::Int(3)),
        ("model_state_dict", Value::Dict(Dict::ordered([("fc.weight", floats(&[4, 5])), ("fc.bias", floats(&[4]))]))),
        ("history", vec![0.5, 0.25].into()),
    ]))
}

/// A file with this pickle and these storages.
fn forged(pickle: &[u8], storages: &[&[u8]]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut archive = crate::zip::ArchiveWriter::new(&mut file);
    archive.add("x/data.pkl".to_owned(), pickle).expect("a Vec takes all");
    for (index, storage) in storages.iter().enumerate() {
        archive.add(format!("x/data/{index}"), storage).expect("a Vec takes all");
    }
    archive.finish().expect("a Vec takes all");
    file
}

fn text(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("short");
    [&b"X"[..], &len.to_le_bytes(), text.as_bytes()].concat()
}

/// The same archive as a writer of zip64 alone makes it: every size, offset and count in 64 bits.
fn as_zip64(file: &[u8]) -> Vec<u8> {
    let number = |at: usize, bytes: usize| {
        file[at..at + bytes].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    let end = file.len() - 22;
    let (count, begin) = (number(end + 10, 2), number(end + 16, 4));
    let (mut directory, mut at) = (Vec::new(), begin);
    for _ in 0..count {
        let (name, extra) = (number(at + 28, 2), number(at + 30, 2));
        let wide = [number(at + 24, 4), number(at + 20, 4), number(at + 42, 4)];
        directory.extend(&file[at..at + 20]);
        directory.extend([0xff; 8]);
        directory.extend(&file[at + 28..at + 30]);
        directory.extend(u16::try_from(extra + 28).expect("short").to_le_bytes());
        directory.extend(&file[at + 32..at + 42]);
        directory.extend([0xff; 4]);
        directory.extend(&file[at + 46..at + 46 + name]);
        directory.extend([1, 0, 24, 0]);
        directory.extend(wide.iter().flat_map(|value| (*value as u64).to_le_bytes()));
        directory.extend(&file[at + 46 + name..at + 46 + name + extra]);
        at += 46 + name + extra;
    }
    let long = |value: usize| (value as u64).to_le_bytes();
    let end64 = [&b"PK\x06\x06"[..], &long(44), &[45, 0, 45, 0], &[0; 8], &long(count), &long(count)].concat();
    let end64 = [&end64[..], &long(directory.len()), &long(begin)].concat();
    let locator = [&b"PK\x06\x07"[..], &[0; 4], &long(begin + directory.len()), &[1, 0, 0, 0]].concat();
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &[0xff; 12], &[0, 0]].concat();
    [&file[..begin], &directory, &end64, &locator, &end].concat()
}

/// The pickle of one float32 tensor over a storage `0` of `numel` elements.
fn tensor_pickle(numel: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    tensor_pickle_on("cpu", numel, offset, shape, strides)
}

/// The same, of a tensor on a device.
fn tensor_pickle_on(device: &str, numel: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let int = |n: i32| [&b"J"[..], &n.to_le_bytes()].concat();
    let ints = |values: &[i32]| [&b"("[..], &values.iter().flat_map(|&n| int(n)).collect::<Vec<_>>(), b"t"].concat();
    [
        &b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text(device),
        &int(numel),
        b"tQ",
        &int(offset),
        &ints(shape),
        &ints(strides),
        b"\x89ccollections\nOrderedDict\n)RtR.",
    ]
    .concat()
}

fn value() -> impl Strategy<Value = Value> {
    let tensor =
        (prop::sample::select(&DType::ALL[..]), prop::collection::vec(0_usize..4, 0..4)).prop_map(|(dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.size();
            Value::Tensor(TensorData::new(dtype, shape, vec![1; bytes]).expect("its bytes"))
        });
    let leaf = prop_oneof![
        Just(Value::None),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1e300..1e300).prop_map(Value::Float),
        ".{0,12}".prop_map(Value::Str),
        tensor,
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..5);
        let entries = prop::collection::vec((inner.clone(), inner), 0..5);
        prop_oneof![
            items.clone().prop_map(Value::List),
            items.prop_map(Value::Tuple),
            (any::<bool>(), entries).prop_map(|(ordered, entries)| Value::Dict(Dict { ordered, entries })),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in value()) {
        prop_assert_eq!(read_bytes(&file(&value), &Limits::default()).expect("our own file"), value);
    }

    #[test]
    fn a_changed_byte_is_never_a_panic(at: prop::sample::Index, byte: u8) {
        let mut bytes = file(&example());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read_bytes(&bytes, &Limits::default());
    }

    #[test]
    fn a_cut_file_is_refused(at: prop::sample::Index) {
        let bytes = file(&example());
        prop_assert!(read_bytes(&bytes[..at.index(bytes.len())], &Limits::default()).is_err());
    }

    #[test]
    fn any_pickle_is_an_answer(pickle: Vec<u8>, storage: [u8; 16]) {
        let _ = read_bytes(&forged(&pickle, &[&storage]), &Limits::default());
    }

    /// Random opcodes with few arguments reach deeper than random bytes.
    #[test]
    fn any_opcodes_are_an_answer(
        opcodes in prop::collection::vec(prop::sample::select(&b"((()]}N\x88K\x00q\x00h\x00tt\x85\x86eausRbQ."[..]), 0..200),
    ) {
        let _ = read_bytes(&forged(&[&[0x80, 2], &opcodes[..]].concat(), &[]), &Limits::default());
    }

    #[test]
    fn a_tensor_lies_within_its_storage_or_is_refused(
        offset in -1..12_i32,
        shape in prop::collection::vec(-1..5_i32, 0..4),
        strides in prop::collection::vec(-1..9_i32, 0..4),
    ) {
        let bytes = forged(&tensor_pickle(10, offset, &shape, &strides), &[&numbers(10)]);
        if let Ok(value) = read_bytes(&bytes, &Limits::default()) {
            let numbers: Vec<f32> = value.as_tensor().expect("a tensor").data().chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect();
            // Row by row, the last index first.
            let mut expected = vec![f32::from(i16::try_from(offset).expect("small"))];
            for (&n, &stride) in shape.iter().zip(&strides) {
                expected = expected.iter()
                    .flat_map(|&base| (0..n).map(move |i| base + f32::from(i16::try_from(i * stride).expect("small"))))
                    .collect();
            }
            prop_assert_eq!(numbers, expected);
        }
    }
}

#[test]
fn equal_values_give_equal_files() {
    assert_eq!(file(&example()), file(&example()));
}

#[test]
fn sizes_and_offsets_in_64_bits_are_read() {
    let wide = as_zip64(&file(&example()));
    assert_eq!(read_bytes(&wide, &Limits::default()).expect("the same archive"), example());
    // What it says of itself is believed no more than in 32 bits.
    for at in 0..wide.len() {
        let mut damaged = wide.clone();
        damaged[at] ^= 0x80;
        let _ = read_bytes(&damaged, &Limits::default());
    }
}

#[test]
fn a_tensor_of_another_device_is_read_to_memory() {
    for device in ["cuda:0", "cuda:7", "mps", "xpu:1"] {
        let bytes = forged(&tensor_pickle_on(device, 6, 0, &[2, 3], &[3, 1]), &[&numbers(6)]);
        let value = read_bytes(&bytes, &Limits::default()).expect("a tensor");
        assert_eq!(value, floats(&[2, 3]), "{device}");
    }
}

#[test]
fn payloads_are_aligned_for_mapping() {
    let bytes = file(&example());
    let numbers = floats(&[4, 5]);
    let data = numbers.as_tensor().expect("a tensor").data();
    let at = bytes.windows(data.len()).position(|window| window == data).expect("the payload");
    assert_eq!(at % 64, 0);
}

#[test]
fn a_class_that_is_not_on_the_list_is_named() {
    let pickle = [&b"\x80\x02cos\nsystem\n"[..], &text("echo"), b"\x85R."].concat();
    let error = read_bytes(&forged(&pickle, &[]), &Limits::default()).expect_err("a refusal");
    assert!(matches!(&error, ReadError::Pickle(PickleError::Global(name)) if name == "\"os.system\""), "{error}");
    assert!(error.to_string().contains("state_dict()"));
}

#[test]
fn a_value_within_itself_is_refused() {
    let error = read_bytes(&forged(b"\x80\x02]q\x00h\x00a.", &[]), &Limits::default()).expect_err("a refusal");
    assert!(matches!(error, ReadError::TooMuch("deeper containers")), "{error}");
}

#[test]
fn values_that_are_used_again_and_again_are_counted_each_time() {
    // Each list holds the one before it twice: 2^28 values.
    let doubling: Vec<u8> = (0..28_u8).flat_map(|i| [b'q', i, b'h', i, 0x86]).collect();
    let error = read_bytes(&forged(&[b"\x80\x02]", &doubling[..], b"."].concat(), &[]), &Limits::default());
    assert!(matches!(error, Err(ReadError::TooMuch("more values"))), "{error:?}");
}

#[test]
fn a_small_file_cannot_ask_for_large_tensors() {
    let bytes = forged(&tensor_pickle(1, 0, &[1 << 20, 1 << 20], &[0, 0]), &[&[0; 4]]);
    let error = read_bytes(&bytes, &Limits::default()).expect_err("a refusal");
    assert!(matches!(error, ReadError::TooMuch("more or larger tensors")), "{error}");
}

#[test]
fn limits_are_kept() {
    let bytes = file(&example());
    let refused = |limits: Limits| read_bytes(&bytes, &limits).expect_err("a refusal");
    let all = Limits::default();
    assert!(matches!(refused(Limits { max_entries: 3, ..all }), ReadError::Zip(ZipError::TooManyEntries(3))));
    assert!(matches!(refused(Limits { max_pickle_bytes: 64, ..all }), ReadError::Zip(ZipError::TooLarge { .. })));
    assert!(matches!(refused(Limits { max_values: 5, ..all }), ReadError::Pickle(PickleError::TooMuch(_))));
    assert!(matches!(refused(Limits { max_string_bytes: 5, ..all }), ReadError::TooMuch("longer strings")));
    assert!(matches!(refused(Limits { max_depth: 2, ..all }), ReadError::TooMuch("deeper containers")));
    assert!(matches!(refused(Limits { max_tensor_bytes: 95, ..all }), ReadError::TooMuch("more or larger tensors")));
}

#[test]
fn a_changed_number_is_noticed() {
    let mut bytes = file(&example());
    let payload = floats(&[4, 5]).as_tensor().expect("a tensor").data().to_vec();
    let at = bytes.windows(payload.len()).position(|window| window == payload).expect("the payload");
    bytes[at + 5] ^= 1;
    let error = read_bytes(&bytes, &Limits::default()).expect_err("a refusal");
    assert!(matches!(error, ReadError::Zip(ZipError::Checksum(_))), "{error}");
}

#[test]
fn other_files_are_refused_with_a_reason() {
    let refused = |bytes: &[u8]| read_bytes(bytes, &Limits::default()).expect_err("a refusal");
    assert!(matches!(refused(b""), ReadError::NotPth));
    assert!(matches!(refused(b"<html>not found</html>"), ReadError::NotPth));
    assert!(matches!(refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), ReadError::Legacy));
    let mut program = Vec::new();
    let mut archive = crate::zip::ArchiveWriter::new(&mut program);
    for name in ["m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"] {
        archive.add(name.to_owned(), b"\x80\x02N.").expect("a Vec takes all");
    }
    archive.finish().expect("a Vec takes all");
    assert!(matches!(refused(&program), ReadError::TorchScript));
}
