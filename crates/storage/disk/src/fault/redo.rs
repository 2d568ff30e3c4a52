use std::path::Path;

use super::{Loss, SimFault, SimHost};
use crate::{Access, ErrorKind, Recovered, Recovery, Result, Transaction, TransactionOptions, recover};

const IMAGE: &str = "/image";
/// What a damaged length may ask for.
const MAX_LEN: usize = 1 << 20;
const REDO: &str = "/image.vmwright-redo";

/// Makes a redo file, damages it as `input` says, and holds recovery to its laws: the oracle of a fuzz target.
///
/// A damaged file must be refused as corrupt. One that is damaged and then given right checksums again is either
/// refused, leaving everything as it was, or applied, making exactly what a reader saw through it before.
///
/// # Panics
///
/// Where a law does not hold.
pub fn check_redo(input: &[u8]) {
    let mut input = Input(input);
    let host = stopped_before_applying(&mut input);
    let Some(original) = host.content(REDO) else { return };

    let mut redo = original.clone();
    for _ in 0..1 + input.below(3) {
        damage(&mut redo, &mut input);
    }
    if redo == original {
        return;
    }
    let refused = with_redo(&host, redo.clone());
    assert!(matches!(replay(&refused), Err(ErrorKind::Corrupt)) || redo.starts_with(b"VMWRVOID"));

    crate::redo::reseal(&mut redo);
    let resealed = with_redo(&host, redo);
    // Whether it still makes sense is for the parser to say; that both readers agree was asserted.
    let _outcome = replay(&resealed);
}

/// A host on which a commit has completed its redo but applied nothing.
fn stopped_before_applying(input: &mut Input<'_>) -> SimHost {
    let host = SimHost::with_max_len(MAX_LEN as u64);
    let len = 1 + input.below(6000);
    host.add(IMAGE, (0..len).map(|at| (at % 251) as u8).collect());
    let run = |host: &SimHost, mut input: Input<'_>| -> Result<()> {
        let txn = Transaction::begin(TransactionOptions::default().on_host(host));
        let disk = txn.open(Path::new(IMAGE), Access::Write)?;
        for _ in 0..=input.below(4) {
            let offset = input.below(disk.len() as usize + 1) as u64;
            let count = input.below((disk.len() - offset) as usize + 1);
            match input.below(4) {
                0 => disk.set_len(input.below(8000) as u64)?,
                1 => disk.zero_at(offset, count as u64)?,
                _ => disk.write_at(&vec![input.below(256) as u8; count], offset)?,
            }
        }
        txn.commit().map(|_| ())
    };
    let edits = Input(input.take(64));
    let clean = host.after_crash(Loss::Nothing);
    // That the edits themselves work is tested elsewhere.
    run(&clean, Input(edits.0)).expect("nothing fails on this host");
    if let Some(published) = clean.log().iter().position(|line| line == "sync /") {
        host.set_fault(published + 1, SimFault::Crash);
        run(&host, edits).expect_err("the host stops");
    }
    host.after_crash(Loss::Everything)
}

fn damage(redo: &mut Vec<u8>, input: &mut Input<'_>) {
    let at = input.below(redo.len().max(1));
    match input.below(12) {
        0 => redo.truncate(at),
        1 => redo.extend_from_slice(input.take(40)),
        // Numbers at the ends of their ranges find more than random bytes do.
        2 => redo.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
        3 => redo.iter_mut().skip(at).take(4).for_each(|byte| *byte = 0),
        _ => redo.iter_mut().skip(at).take(1).for_each(|byte| *byte = input.below(256) as u8),
    }
}

fn with_redo(host: &SimHost, redo: Vec<u8>) -> SimHost {
    let host = host.after_crash(Loss::Nothing);
    host.add(REDO, redo);
    host
}

/// Recovers the image and compares with what a reader sees before.
fn replay(host: &SimHost) -> Result<(), ErrorKind> {
    let before = (host.content(IMAGE), host.names());
    let options = TransactionOptions::default().on_host(host);
    let seen = read(&options);
    match recover(Path::new(IMAGE), Recovery::Auto, &options) {
        Ok(done) => {
            let now = host.content(IMAGE);
            assert!(seen.ok() == now, "recovery makes what was seen");
            assert_eq!(host.names(), [Path::new(IMAGE)]);
            assert!(done == Recovered::Applied || now == before.0);
            Ok(())
        }
        // A damaged length can ask for more than the host has; then the redo stays.
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            assert!(seen.ok() == read(&options).ok(), "what is not applied still shows through");
            Err(error.kind())
        }
        Err(error) => {
            assert_eq!(seen.err().map(|error| error.kind()), Some(error.kind()), "{error}");
            assert!((host.content(IMAGE), host.names()) == before, "a refusal changes nothing");
            Err(error.kind())
        }
    }
}

fn read(options: &TransactionOptions) -> Result<Vec<u8>> {
    let disk = Transaction::begin(options.clone()).open(Path::new(IMAGE), Access::Read)?;
    let mut bytes = vec![0; disk.len().min(MAX_LEN as u64) as usize];
    disk.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Bytes that decide; zeros once they are used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn below(&mut self, bound: usize) -> usize {
        self.take(2).iter().fold(0, |number, byte| number << 8 | usize::from(*byte)) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    #[test]
    fn a_damaged_name_is_damage_and_not_another_file() {
        // Found by random input.
        super::check_redo(&[
            81, 93, 76, 150, 57, 160, 129, 191, 117, 92, 64, 199, 4, 172, 180, 133, 61, 223, 120, 142, 30,
            68, 242, 50, 66, 223, 235, 108, 185, 189, 252, 187, 111, 192, 85, 156, 155, 29, 6, 129, 31, 177,
            215, 93, 150, 229, 221, 188, 222, 59, 81, 198, 102, 172, 60, 128, 116, 101, 224, 159, 115, 155,
            47, 6, 142, 242, 161, 243, 139, 205, 209, 247, 238, 108, 107, 63, 90, 225, 125, 154, 175, 187,
            197, 12, 249, 8, 10, 226, 209, 53, 44, 46, 146, 6, 94, 132, 203, 53, 33, 177, 182, 208, 61, 88,
            160, 85, 62, 235, 157, 115, 205, 81, 125, 160, 53, 0, 60, 24, 15, 175, 136, 39, 17, 136, 150, 47,
            239, 241, 55, 111, 236, 239, 129, 206, 111, 77, 21, 124, 186, 117, 129, 122, 223, 155, 134, 38,
            134, 177, 43, 190, 203, 167, 179, 190, 25, 170, 0, 5, 238, 16,
        ]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
        #[test]
        fn a_damaged_redo_is_refused_or_makes_what_readers_see(
            input in prop::collection::vec(any::<u8>(), 0..160)
        ) {
            super::check_redo(&input);
        }
    }
}
