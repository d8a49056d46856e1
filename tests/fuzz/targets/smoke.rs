//! Any bytes as the cases of a smoke test.
#![no_main]

use anneal_api::smoke::SmokeConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = serde_json::from_slice::<SmokeConfig>(bytes) else { return };
    let again = serde_json::to_vec(&config).expect("JSON");
    assert_eq!(serde_json::from_slice::<SmokeConfig>(&again).expect("a configuration"), config);
});
