//! Sessions out of arbitrary bytes; `fuzz/fuzz_targets/nbd_session.rs` looks for more of them.

mod oracle;

use proptest::prelude::*;

fn cases() -> ProptestConfig {
    let torture = std::env::var_os("VMWRIGHT_TORTURE").is_some();
    ProptestConfig { cases: if torture { 50_000 } else { 600 }, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_request_is_answered_as_the_model_says(script in prop::collection::vec(any::<u8>(), 0..700)) {
        oracle::check(&script);
    }
}

/// Every way of cutting a sound session short, and of bending one byte of it.
#[test]
fn a_session_that_is_cut_or_bent_does_no_harm() {
    let script: Vec<u8> = (0..400_u32).map(|at| (at * 37 % 251) as u8).collect();
    for cut in 0..script.len() {
        oracle::check(&script[..cut]);
    }
    for at in 0..script.len() {
        let mut bent = script.clone();
        bent[at] ^= 0xff;
        oracle::check(&bent);
    }
}
