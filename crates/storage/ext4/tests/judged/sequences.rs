//! Sequences of operations in transactions, over every kind of volume, held against the model, e2fsck and our own check.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use vmwright_disk::fault::{Loss, SimFault, SimHost};
use vmwright_disk::{Access, Disk, Recovery, Transaction, TransactionOptions, recover};
use vmwright_ext4::{CheckOptions, Ext4, Options, check};
use vmwright_judges::{need, skip};
use vmwright_vfs::conformance::{self, Op};
use vmwright_vfs::{ErrorKind, FileSystem, MemoryFs, NewNode, NodeKind, Timestamp};

use crate::images::{Image, KINDS, Kind, named};
use crate::random::effort;
use crate::writing::{NOW, open, same_as_model};

/// A random sequence.
#[derive(Debug, Clone)]
struct Sequence {
    words: Vec<[u32; 4]>,
    /// How many operations each transaction has, used in turn.
    transactions: Vec<usize>,
    /// Whether everything is checked after each transaction.
    watched: bool,
}

fn sequences(watched: bool) -> impl Strategy<Value = Sequence> {
    let words = prop::collection::vec(any::<[u32; 4]>(), 200);
    let transactions = prop::collection::vec(1_usize..=50, 4..20);
    (words, transactions).prop_map(move |(words, transactions)| Sequence { words, transactions, watched })
}

/// e2fsck's opinion and ours, which must be the same.
fn assert_sound(image: &Image, when: &str) {
    image.assert_sound(when);
    let report = check(image.disk(true), &CheckOptions::default()).unwrap();
    assert!(report.clean, "{when}: e2fsck finds nothing, but we find {:?}", report.findings);
}

/// Makes some of the directories that operations name, so that most of them find one.
fn prepare(fs: &mut dyn FileSystem) {
    fs.set_now(NOW);
    let node = NewNode { kind: NodeKind::Directory, mode: 0o755, uid: 0, gid: 0 };
    for upper in ["name-4", "name-5", "name-6", "name-7"] {
        let dir = fs.create(fs.root(), upper.as_bytes(), &node).unwrap();
        for lower in ["name-6", "name-8", "a"] {
            fs.create(dir, lower.as_bytes(), &node).unwrap();
        }
    }
}

/// Answers whether the sequence came to its end before the volume was full.
fn run(kind: &Kind, sequence: &Sequence) -> bool {
    let image = Image::make(kind, 40);
    let mut volume = open(&image);
    let mut model = MemoryFs::default();
    prepare(&mut volume);
    prepare(&mut model);
    let mut lengths = sequence.transactions.iter().cycle();
    let mut left = lengths.next().copied().unwrap_or(1);
    for (step, words) in sequence.words.iter().enumerate() {
        let now = Timestamp { seconds: NOW.seconds + step as i64, nanoseconds: 7 };
        let op = Op::from_words(*words, 300_000);
        volume.set_now(now);
        model.set_now(now);
        let answer = op.apply(&mut volume);
        if answer == Err(ErrorKind::NoSpace) {
            // The model never fills, so from here on the two differ; what is on the volume must still be sound.
            volume.sync().unwrap();
            drop(volume);
            assert_sound(&image, &format!("{} full at step {step}", kind.name));
            return false;
        }
        let expected = op.apply(&mut model);
        // Where two things are wrong at once, the contract does not say which is told.
        let refused = [ErrorKind::NotFound, ErrorKind::Exists, ErrorKind::InvalidInput];
        let alike = answer == expected
            || matches!((answer, expected), (Err(a), Err(b)) if refused.contains(&a) && refused.contains(&b));
        assert!(alike, "{} step {step}: {op:.300?}: {answer:?}, model {expected:?}", kind.name);
        left -= 1;
        if left == 0 {
            left = lengths.next().copied().unwrap_or(1);
            volume.sync().unwrap();
            // What is kept in memory must be what is on the disk.
            if sequence.watched || left % 4 == 0 {
                drop(volume);
                if sequence.watched {
                    assert_sound(&image, &format!("{} after step {step}", kind.name));
                }
                volume = open(&image);
            }
        }
    }
    volume.sync().unwrap();
    same_as_model(&volume, &model, kind);
    drop(volume);
    assert_sound(&image, &format!("{} at the end", kind.name));
    same_as_model(&image.open(), &model, kind);
    true
}

/// The same sequences each time, so that what is found is found again; torture draws others.
fn runner(cases: u32, seed: u8) -> TestRunner {
    let config = Config { cases, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    match effort() {
        1 => TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32])),
        _ => TestRunner::new(config),
    }
}

#[test]
fn sequences_of_operations_leave_sound_volumes_of_every_kind() {
    need!("mke2fs", "e2fsck", "debugfs");
    if !Path::new("/dev/shm").is_dir() && effort() > 1 {
        skip!("many images need memory to be made in");
    }
    let kinds: Vec<_> = KINDS.iter().filter(|kind| kind.writable && kind.name != "casefold_strict").collect();
    let (total, watched) = if effort() > 1 { (2000, 2000) } else { (200, 10) };
    let ended = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        // The volumes are in memory, so that processors are all that this waits for.
        let half = |first: usize| {
            let (kinds, ended) = (kinds.clone(), &ended);
            scope.spawn(move || {
                for number in (first..total).step_by(2) {
                    let is_watched = number % (total / watched) == 0;
                    let kind = kinds[number % kinds.len()];
                    let outcome = runner(1, number as u8).run(&sequences(is_watched), |sequence| {
                        let is_whole = run(kind, &sequence);
                        ended.fetch_add(is_whole.into(), std::sync::atomic::Ordering::Relaxed);
                        Ok(())
                    });
                    outcome.unwrap_or_else(|error| panic!("sequence {number}: {error}"));
                }
            })
        };
        for half in [half(0), half(1)] {
            if let Err(panic) = half.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let ended = ended.into_inner();
    assert!(ended * 10 > total * 9, "only {ended} of {total} sequences came to their end");
}

/// Applies some operations in one transaction of a simulated host.
fn edit(host: &SimHost, words: &[[u32; 4]]) -> vmwright_disk::Result<()> {
    let transaction = Transaction::begin(TransactionOptions::default().on_host(host));
    let disk: Arc<dyn Disk> = transaction.open(Path::new("/image"), Access::Write)?;
    let mut volume = Ext4::open(disk, Options::writable()).unwrap();
    volume.set_now(NOW);
    for words in words {
        let _ = Op::from_words(*words, 60_000).apply(&mut volume);
    }
    volume.sync().unwrap();
    drop(volume);
    transaction.commit().map(|_| ())
}

fn tree(bytes: &[u8]) -> std::collections::BTreeMap<Vec<u8>, conformance::TreeNode> {
    conformance::tree(&Image::from_bytes(bytes).open(), b"lost+found").unwrap()
}

#[test]
fn a_crash_at_any_write_leaves_the_volume_as_it_was_or_as_it_was_to_be() {
    need!("mke2fs", "e2fsck", "debugfs");
    let kinds: &[&str] = if effort() > 1 { &["default", "1k", "ext3", "bigalloc", "quota"] } else { &["1k"] };
    for kind in kinds {
        let image = Image::make(named(kind), 8);
        let mut volume = open(&image);
        for number in 0..60_u32 {
            let _ = Op::from_words([number.wrapping_mul(2_654_435_761), number * 77, number, 5], 50_000)
                .apply(&mut volume);
        }
        volume.sync().unwrap();
        drop(volume);
        let bytes = std::fs::read(image.path()).unwrap();
        let words: Vec<_> = (0..40_u32).map(|n| [n.wrapping_mul(0x9e37_79b9), n * 31, !n, n << 7]).collect();
        let host = || {
            let host = SimHost::new();
            host.add("/image", bytes.clone());
            host
        };
        let clean = host();
        edit(&clean, &words).unwrap();
        let old = tree(&bytes);
        let new = tree(&clean.content("/image").unwrap());
        assert!(old != new);
        let writes = clean.log().len();
        let step = if effort() > 1 { 1 } else { (writes / 12).max(1) };
        let mut met = [0, 0];
        for nth in (0..writes).step_by(step) {
            let host = host();
            host.set_fault(nth, SimFault::TornCrash(512));
            let committed = edit(&host, &words).is_ok();
            for loss in [Loss::Nothing, Loss::Everything, Loss::Random(nth as u64)] {
                let after = host.after_crash(loss);
                let options = TransactionOptions::default().on_host(&after);
                recover(Path::new("/image"), Recovery::Auto, &options).unwrap();
                let content = after.content("/image").unwrap();
                Image::from_bytes(&content)
                    .assert_sound(&format!("{kind}: crash at write {nth}, losing {loss:?}"));
                let tree = tree(&content);
                assert!(tree == old || tree == new, "{kind}: crash at write {nth}: neither old nor new");
                assert!(
                    tree == new || !committed,
                    "{kind}: crash at write {nth}: what was committed is lost"
                );
                met[usize::from(tree == new)] += 1;
            }
        }
        assert!(met[0] > 0 && met[1] > 0, "{kind}: both outcomes occur: {met:?}");
    }
}
