//! Any bytes as a `.pth` file: the zip, and whatever of the pickle a right checksum lets through.
#![no_main]

use std::io::Cursor;

use anneal_pth::{Limits, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // An error is an answer; a panic, an overflow, a hang or a large allocation is a finding.
    let _ = read(Cursor::new(bytes), &Limits::default());
});
