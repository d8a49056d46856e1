//! Any bytes as the last words of a pod, as the operator reads them.
#![no_main]

use anneal_api::termination::{MAX_BYTES, TerminationMessage};
use libfuzzer_sys::fuzz_target;

fn is_shown(text: &str) -> bool {
    text.len() <= 2048 && text.chars().all(|letter| matches!(letter, '\n' | '\t') || !letter.is_control())
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(message) = TerminationMessage::parse(text) else { return };
    match &message {
        TerminationMessage::Failure(failure) => assert!(is_shown(&failure.message)),
        TerminationMessage::Smoke(report) => assert!(is_shown(&report.message)),
        TerminationMessage::Result(result) => {
            assert!(
                result.checkpoint.len() <= 256 && result.classes.len() <= 1000 && result.dataset.digest.len() <= 80
            );
            assert!(!result.checkpoint.starts_with('/') && !result.checkpoint.split('/').any(|part| part == ".."));
        }
    }
    // A pod of Anneal's that would say this keeps to the bound, and is understood.
    let again = message.to_json().expect("JSON");
    assert!(again.len() <= MAX_BYTES, "{} bytes", again.len());
    TerminationMessage::parse(&again).expect("one of ours");
});
