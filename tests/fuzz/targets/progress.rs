//! Any bytes as what a training pod answers, as the operator reads it.
#![no_main]

use anneal_api::progress::Progress;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(progress) = Progress::parse(text) else { return };
    assert!((0..=100).contains(&progress.percent()));
    // What goes into a status comes out of it as it was.
    let status = serde_json::to_string(&progress).expect("finite numbers only");
    assert_eq!(Progress::parse(&status).expect("a progress"), progress);
    assert!(!status.contains("null") && !status.contains(r#""-"#), "{status}");
});
