//! Any bytes as the pickle of a `.pth` file whose checksums are right. What is read is written and read again.
#![no_main]

use std::io::Cursor;

use anneal_pth::{Limits, fuzzing::file_of, read, write};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|pickle: &[u8]| {
    let limits = Limits::default();
    let Ok(file) = file_of(pickle) else { return };
    let Ok(value) = read(Cursor::new(file), &limits) else { return };
    let mut again = Vec::new();
    write(&mut again, &value).expect("a Vec takes all");
    // Sharing is lost, so the written file may be beyond the limits where the read one was not.
    if let Ok(same) = read(Cursor::new(again), &limits) {
        // NaN differs from itself.
        assert_eq!(format!("{same:?}"), format!("{value:?}"));
    }
});
