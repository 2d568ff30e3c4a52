//! The laws of a transaction, held against a simulated host that stops, tears, fails and forgets.

use std::path::Path;

use crate::fault::{Loss, SimFault, SimHost};
use crate::{
    Access, Disk, ErrorKind, Recovered, Recovery, Result, Transaction, TransactionOptions, pending, recover,
};

/// Some files and a change of them.
struct Scenario {
    files: Vec<(&'static str, Vec<u8>)>,
    redo_dir: Option<&'static str>,
    edit: fn(&[std::sync::Arc<dyn Disk>]) -> Result<()>,
}

type Contents = Vec<Vec<u8>>;

/// Bytes that are nowhere zero, and differ from sector to sector.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| ((at / 512 * 7 + at % 251) as u8 ^ seed) | 1).collect()
}

impl Scenario {
    fn one_file() -> Self {
        let mut bytes = pattern(20_000, 1);
        bytes[8192..12288].fill(0);
        Self {
            files: vec![("/images/a", bytes)],
            redo_dir: None,
            edit: |disks| {
                disks[0].write_at(&pattern(1500, 77), 700)?;
                disks[0].write_at(&pattern(512, 78), 9000)?;
                disks[0].zero_at(14000, 3000)?;
                disks[0].set_len(23_000)?;
                disks[0].write_at(&pattern(600, 79), 21_900)
            },
        }
    }

    fn shrinking_file() -> Self {
        Self {
            files: vec![("/images/a", pattern(9_100, 1))],
            redo_dir: None,
            edit: |disks| {
                disks[0].write_at(&pattern(900, 77), 200)?;
                disks[0].set_len(5_300)?;
                disks[0].write_at(&pattern(60, 78), 5_200)
            },
        }
    }

    fn three_files() -> Self {
        Self {
            files: vec![
                ("/images/a", pattern(3000, 1)),
                ("/images/b", pattern(2000, 2)),
                ("/other/c", pattern(1000, 3)),
            ],
            redo_dir: None,
            edit: |disks| {
                disks.iter().try_for_each(|disk| disk.write_at(&pattern(700, 90), 100))?;
                disks[1].set_len(2600)
            },
        }
    }

    fn in_a_redo_folder() -> Self {
        Self { redo_dir: Some("/redo"), ..Self::three_files() }
    }

    fn host(&self) -> SimHost {
        let host = SimHost::new();
        for (path, bytes) in &self.files {
            host.add(*path, bytes.clone());
        }
        host
    }

    fn options(&self, host: &SimHost) -> TransactionOptions {
        let options = TransactionOptions::default().on_host(host);
        match self.redo_dir {
            Some(dir) => options.redo_dir(dir),
            None => options,
        }
    }

    fn run(&self, host: &SimHost) -> Result<()> {
        let txn = Transaction::begin(self.options(host));
        let disks: Result<Vec<_>> =
            self.files.iter().map(|(path, _)| txn.open(Path::new(path), Access::Write)).collect();
        (self.edit)(&disks?)?;
        txn.commit().map(|_| ())
    }

    fn original(&self) -> Contents {
        self.files.iter().map(|(_, bytes)| bytes.clone()).collect()
    }

    fn changed(&self) -> Contents {
        let host = self.host();
        self.run(&host).unwrap();
        self.raw(&host)
    }

    fn raw(&self, host: &SimHost) -> Contents {
        self.files.iter().map(|(path, _)| host.content(path).unwrap()).collect()
    }

    /// What readers see, each in a transaction of its own.
    fn seen(&self, host: &SimHost) -> Result<Contents> {
        self.files
            .iter()
            .map(|(path, _)| {
                let txn = Transaction::begin(self.options(host));
                let disk = txn.open(Path::new(path), Access::Read)?;
                let mut bytes = vec![0; disk.len() as usize];
                disk.read_at(&mut bytes, 0)?;
                Ok(bytes)
            })
            .collect()
    }

    fn recover(&self, host: &SimHost, index: usize) -> Result<Recovered> {
        recover(Path::new(self.files[index].0), Recovery::Auto, &self.options(host))
    }

    /// Holds a host that came up after a crash to the laws; answers whether the change was made.
    fn judge(&self, host: &SimHost, old: &Contents, new: &Contents, at: &str) -> bool {
        let seen = self.seen(host).unwrap_or_else(|error| panic!("{at}: a reader is refused: {error}"));
        assert!(seen == *old || seen == *new, "{at}: readers see neither the old nor the new content");
        for first in 0..self.files.len() {
            let copy = host.after_crash(Loss::Nothing);
            for index in (0..self.files.len()).map(|index| (first + index) % self.files.len()) {
                self.recover(&copy, index).unwrap_or_else(|error| panic!("{at}: recovery fails: {error}"));
            }
            assert_eq!(self.raw(&copy), seen, "{at}: recovery makes something else than readers saw");
            let names = copy.names().len();
            // A part file in a folder for redo files is replaced by the next change of the same image.
            let parts = copy.names().iter().filter(|name| name.starts_with("/redo")).count();
            assert_eq!(names - parts, self.files.len(), "{at}: something is left behind: {:?}", copy.names());
        }
        seen == *new
    }

    /// Stops at every operation, in every way.
    fn crash_everywhere(&self, samples: u64) {
        let (old, new) = (self.original(), self.changed());
        let clean = self.host();
        self.run(&clean).unwrap();
        let operations = clean.log().len();
        let mut made = [0, 0];
        for nth in 0..=operations {
            for fault in [SimFault::Crash, SimFault::TornCrash(512), SimFault::TornCrash(1100)] {
                let host = self.host();
                host.set_fault(nth, fault);
                let committed = self.run(&host).is_ok();
                for loss in Loss::choices(host.pending(), samples) {
                    let at = format!("stop at {nth} of {:?} by {fault:?}, losing {loss:?}", host.log());
                    let after = host.after_crash(loss);
                    let is_new = self.judge(&after, &old, &new, &at);
                    assert!(is_new || !committed, "{at}: a change that was made is lost");
                    made[usize::from(is_new)] += 1;
                }
            }
        }
        assert!(made[0] > 0 && made[1] > 0, "both outcomes occur: {made:?}");
    }

    /// Stops at every operation of the recovery after every stop of a commit.
    fn crash_in_recovery(&self, samples: u64) {
        let (old, new) = (self.original(), self.changed());
        let clean = self.host();
        self.run(&clean).unwrap();
        let mut interrupted = 0;
        for nth in 0..clean.log().len() {
            let host = self.host();
            host.set_fault(nth, SimFault::Crash);
            // Only a stop at the removal of the redo, which is not needed, is not an error.
            let _ = self.run(&host);
            for loss in [Loss::Nothing, Loss::Everything].into_iter().chain((0..samples).map(Loss::Random)) {
                for index in 0..self.files.len() {
                    let first = host.after_crash(loss);
                    self.recover(&first, index).unwrap();
                    for stop in 0..first.log().len() {
                        let again = host.after_crash(loss);
                        again.set_fault(stop, SimFault::TornCrash(512));
                        if self.recover(&again, index).is_err() {
                            interrupted += 1;
                        }
                        for loss in Loss::choices(again.pending(), samples) {
                            let at = format!("stop at {nth}, then at {stop} of recovery, losing {loss:?}");
                            self.judge(&again.after_crash(loss), &old, &new, &at);
                        }
                    }
                }
            }
        }
        assert!(interrupted > 0);
    }

    /// Lets every operation fail in turn while the host goes on.
    fn fail_everywhere(&self, fault: SimFault) {
        let (old, new) = (self.original(), self.changed());
        let clean = self.host();
        self.run(&clean).unwrap();
        for nth in 0..clean.log().len() {
            let host = self.host();
            host.set_fault(nth, fault);
            let outcome = self.run(&host);
            let at = format!("operation {nth} of {:?} fails: {outcome:?}", host.log());
            let seen = self.seen(&host).unwrap();
            assert!(seen == old || seen == new, "{at}");
            assert!(outcome.is_err() || seen == new, "{at}: reported as made");
            if seen == old {
                assert_eq!(
                    host.names().len(),
                    self.files.len(),
                    "{at}: something is left: {:?}",
                    host.names()
                );
            }
            for loss in Loss::choices(host.pending(), 5) {
                let is_new = self.judge(&host.after_crash(loss), &old, &new, &format!("{at}, then {loss:?}"));
                assert!(is_new || outcome.is_err(), "{at}: a change that was made is lost");
            }
        }
    }
}

fn torture() -> u64 {
    if std::env::var_os("VMWRIGHT_TORTURE").is_some() { 400 } else { 12 }
}

#[test]
fn one_file_is_old_or_new_after_every_crash() {
    Scenario::one_file().crash_everywhere(torture());
}

#[test]
fn a_shrinking_file_is_old_or_new_after_every_crash() {
    Scenario::shrinking_file().crash_everywhere(torture());
}

#[test]
fn three_files_agree_after_every_crash() {
    Scenario::three_files().crash_everywhere(torture());
}

#[test]
fn files_with_their_redo_elsewhere_agree_after_every_crash() {
    Scenario::in_a_redo_folder().crash_everywhere(torture());
}

#[test]
fn a_crash_during_recovery_loses_nothing() {
    Scenario::one_file().crash_in_recovery(torture().div_ceil(40) + 2);
    Scenario::shrinking_file().crash_in_recovery(torture().div_ceil(40) + 2);
}

#[test]
fn a_crash_during_recovery_of_three_files_loses_nothing() {
    Scenario::three_files().crash_in_recovery(torture().div_ceil(200) + 1);
}

#[test]
fn files_are_old_or_new_when_any_operation_fails() {
    use std::io::ErrorKind::{Other, StorageFull};
    let faults = [Other, StorageFull].map(|kind| [SimFault::Fail(kind), SimFault::TornFail(1024, kind)]);
    for fault in faults.concat() {
        for scenario in [Scenario::one_file(), Scenario::shrinking_file(), Scenario::three_files()] {
            scenario.fail_everywhere(fault);
        }
    }
}

/// A host on which a commit stopped before its first operation of this name, and everything before was lost
/// that was not synced.
fn stopped_before(scenario: &Scenario, operation: &str) -> SimHost {
    let clean = scenario.host();
    scenario.run(&clean).unwrap();
    let host = scenario.host();
    host.set_fault(clean.log().iter().position(|line| line == operation).unwrap(), SimFault::Crash);
    scenario.run(&host).unwrap_err();
    host.after_crash(Loss::Everything)
}

/// A host on which a commit stopped while it was putting the change in place.
fn interrupted(scenario: &Scenario) -> SimHost {
    let clean = scenario.host();
    scenario.run(&clean).unwrap();
    let log = clean.log();
    let first =
        log.iter().rposition(|line| line.starts_with("sync /images/a") && !line.contains("redo")).unwrap();
    let host = scenario.host();
    host.set_fault(first, SimFault::Crash);
    scenario.run(&host).unwrap_err();
    host.after_crash(Loss::Random(3))
}

#[test]
fn a_redo_whose_image_someone_else_changed_is_refused() {
    let scenario = Scenario::one_file();
    // Each touched range in turn: written over data, written into zeros, zeroed, appended.
    for offset in [700, 9000, 14_500, 22_000] {
        let host = interrupted(&scenario);
        let path = Path::new("/images/a");
        if offset < host.content(path).unwrap().len() {
            host.meddle(path, offset, b"someone else was here");
        } else {
            host.meddle(path, 20_000, &[5; 2500]);
        }
        let (before, names) = (host.content(path), host.names());
        for result in [scenario.recover(&host, 0).map(|_| ()), scenario.seen(&host).map(|_| ())] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
            assert!(error.to_string().contains("disk recover /images/a --apply"), "{error}");
        }
        assert_eq!((host.content(path), host.names()), (before, names), "nothing was changed");
    }
}

#[test]
fn a_tail_that_someone_else_changed_is_not_cut_off() {
    let scenario = Scenario::shrinking_file();
    let host = stopped_before(&scenario, "resize /images/a");
    host.meddle("/images/a", 9_000, b"precious");
    assert_eq!(scenario.recover(&host, 0).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(host.content("/images/a").unwrap()[9_000..9_008], *b"precious");
}

#[test]
fn bytes_that_someone_else_appended_are_not_overwritten() {
    let scenario = Scenario::one_file();
    let host = stopped_before(&scenario, "resize /images/a");
    // Within the new length, where the change itself leaves zeros.
    host.meddle("/images/a", 20_900, b"precious");
    assert_eq!(scenario.recover(&host, 0).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(host.content("/images/a").unwrap()[20_900..], *b"precious");
}

#[test]
fn a_change_that_runs_out_of_space_stays_in_its_redo_and_shows_through() {
    let scenario = Scenario::one_file();
    let clean = scenario.host();
    scenario.run(&clean).unwrap();
    let log = clean.log();
    let host = scenario.host();
    let write = log.iter().rposition(|line| line == "write /images/a").unwrap();
    host.set_fault(write, SimFault::Fail(std::io::ErrorKind::StorageFull));
    let error = scenario.run(&host).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let bytes = error.bytes_to_free().unwrap();
    assert!(error.to_string().contains(&format!("free {bytes} bytes")), "{error}");
    assert_eq!(scenario.seen(&host).unwrap(), scenario.changed(), "the new content shows through");
    assert_ne!(scenario.raw(&host), scenario.changed());
    assert_eq!(scenario.recover(&host, 0).unwrap(), Recovered::Applied);
    assert_eq!(scenario.raw(&host), scenario.changed());
}

#[test]
fn a_change_elsewhere_in_the_image_does_not_prevent_recovery() {
    let scenario = Scenario::one_file();
    let host = interrupted(&scenario);
    host.meddle("/images/a", 5000, b"untouched by the redo");
    assert_eq!(scenario.recover(&host, 0).unwrap(), Recovered::Applied);
    let mut expected = scenario.changed();
    expected[0][5000..5021].copy_from_slice(b"untouched by the redo");
    assert_eq!(scenario.raw(&host), expected);
}

#[test]
fn a_redo_one_of_whose_files_is_gone_can_be_given_up() {
    for gone in 0..3 {
        let scenario = Scenario::three_files();
        let host = interrupted(&scenario);
        crate::host::Host::unlink(&host, Path::new(scenario.files[gone].0)).unwrap();
        let left = (gone + 1) % 3;
        let (path, options) = (Path::new(scenario.files[left].0), scenario.options(&host));
        let torn = host.content(path);
        // The change can no longer happen in all files, so completing it is not for the program to decide.
        assert_eq!(scenario.recover(&host, left).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(recover(path, Recovery::Discard, &options).unwrap(), Recovered::Discarded);
        assert_eq!(host.content(path), torn);
        assert_eq!(pending(path, &options).unwrap(), None);
    }
}

#[test]
fn a_refused_redo_can_be_applied_or_given_up_by_decision() {
    let scenario = Scenario::one_file();
    let path = Path::new("/images/a");
    let host = interrupted(&scenario);
    host.meddle(path, 700, b"x");
    let torn = host.content(path).unwrap();
    let copy = host.after_crash(Loss::Nothing);
    let options = scenario.options(&copy);
    assert!(pending(path, &options).unwrap().is_some());
    assert_eq!(recover(path, Recovery::Apply, &options).unwrap(), Recovered::Applied);
    assert_eq!(scenario.raw(&copy), scenario.changed());

    let options = scenario.options(&host);
    assert_eq!(recover(path, Recovery::Discard, &options).unwrap(), Recovered::Discarded);
    assert_eq!(host.content(path).unwrap(), torn);
    assert_eq!(pending(path, &options).unwrap(), None);
}

#[test]
fn a_file_that_took_the_name_of_the_image_is_left_alone() {
    let scenario = Scenario::one_file();
    let host = interrupted(&scenario);
    host.add("/images/a", scenario.original().remove(0));
    assert_eq!(scenario.recover(&host, 0).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(scenario.raw(&host), scenario.original());
}

#[test]
fn bytes_appended_to_a_file_that_only_grows_are_not_overwritten() {
    let scenario = Scenario { edit: |disks| disks[0].set_len(30_000), ..Scenario::one_file() };
    for (offset, grown) in [(20_000, 20_008), (20_500, 20_508), (30_500, 30_508)] {
        let host = stopped_before(&scenario, "resize /images/a");
        host.meddle("/images/a", offset, b"precious");
        assert_eq!(scenario.recover(&host, 0).unwrap_err().kind(), ErrorKind::InUse);
        assert_eq!(host.content("/images/a").unwrap().len(), grown);
    }
}

#[test]
fn a_redo_that_could_not_be_made_void_is_removed_for_good() {
    let scenario = Scenario::one_file();
    let clean = scenario.host();
    scenario.run(&clean).unwrap();
    let written = clean.log().iter().rposition(|line| line == "write /images/a.vmwright-redo").unwrap();
    for failing in [written, written + 1] {
        let host = scenario.host();
        host.set_fault(failing, SimFault::Fail(std::io::ErrorKind::Other));
        scenario.run(&host).unwrap();
        host.meddle("/images/a", 14_000, b"made by someone else after the commit");
        let expected = scenario.raw(&host);
        for loss in Loss::choices(host.pending(), 5) {
            assert_eq!(scenario.seen(&host.after_crash(loss)).unwrap(), expected);
        }
    }
}

#[test]
fn a_redo_of_another_user_is_not_applied_to_what_is_not_theirs() {
    let scenario = Scenario::three_files();
    let host = stopped_before(&scenario, "write /images/b");
    let before = scenario.raw(&host);
    // They can make files beside one image, and name another one in them.
    host.chown("/images/a.vmwright-redo", 4711);
    host.chown("/images/a", 4711);
    for result in [scenario.recover(&host, 0).map(|_| ()), scenario.seen(&host).map(|_| ())] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert_eq!(scenario.raw(&host), before);
    host.chown("/images/b", 4711);
    host.chown("/other/c", 4711);
    assert_eq!(scenario.recover(&host, 0).unwrap(), Recovered::Applied);
}

#[test]
fn a_redo_that_comes_back_from_the_dead_changes_nothing() {
    // The removal of the redo is lost to a power failure, after someone else has changed the image.
    for scenario in [Scenario::one_file(), Scenario::three_files(), Scenario::in_a_redo_folder()] {
        let host = scenario.host();
        scenario.run(&host).unwrap();
        host.meddle("/images/a", 700, b"made by someone else after the commit");
        let expected = scenario.raw(&host);
        for loss in Loss::choices(host.pending(), 20) {
            let after = host.after_crash(loss);
            assert_eq!(scenario.seen(&after).unwrap(), expected);
            for index in 0..scenario.files.len() {
                assert_eq!(scenario.recover(&after, index).unwrap(), Recovered::Nothing);
            }
            assert_eq!(scenario.raw(&after), expected);
        }
    }
}

#[test]
fn a_pointer_to_an_earlier_redo_does_not_reach_a_later_one() {
    let scenario = Scenario::three_files();
    let host = scenario.host();
    scenario.run(&host).unwrap();
    // All pointers come back; then the first file alone is changed, and that is interrupted.
    let after = host.after_crash(Loss::Everything);
    let alone = |host: &SimHost| -> Result<()> {
        let txn = Transaction::begin(scenario.options(host));
        txn.open(Path::new("/images/a"), Access::Write)?.write_at(&[9; 600], 0)?;
        txn.commit().map(|_| ())
    };
    let copy = after.after_crash(Loss::Nothing);
    alone(&copy).unwrap();
    let apply = copy.log().iter().rposition(|line| line == "sync /images/a").unwrap();
    after.set_fault(apply, SimFault::Crash);
    alone(&after).unwrap_err();
    let after = after.after_crash(Loss::Nothing);
    assert!(
        after.names().iter().any(|name| name == Path::new("/images/b.vmwright-redo")),
        "{:?}",
        after.names()
    );
    assert_eq!(scenario.recover(&after, 1).unwrap(), Recovered::Nothing);
    assert_eq!(scenario.recover(&after, 0).unwrap(), Recovered::Applied);
}

#[test]
fn dropping_a_transaction_changes_nothing() {
    let scenario = Scenario::three_files();
    let host = scenario.host();
    let txn = Transaction::begin(scenario.options(&host));
    let disk = txn.open(Path::new("/images/a"), Access::Write).unwrap();
    disk.write_at(&[1; 600], 0).unwrap();
    drop(txn);
    assert_eq!(disk.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    drop(disk);
    assert!(host.log().is_empty(), "{:?}", host.log());
    assert_eq!(scenario.raw(&host), scenario.original());
}

#[test]
fn a_commit_syncs_no_more_often_than_the_laws_need() {
    let syncs = |scenario: Scenario| {
        let host = scenario.host();
        scenario.run(&host).unwrap();
        host.log().into_iter().filter(|line| line.starts_with("sync")).collect::<Vec<_>>()
    };
    let redo = "/images/a.vmwright-redo";
    let one = syncs(Scenario::one_file());
    assert_eq!(
        one,
        [&format!("sync {redo}-part"), "sync /images", "sync /images/a", &format!("sync {redo}")]
    );
    // Three files: two pointers and a second folder more, and the folder again before the redo gets its name.
    assert_eq!(syncs(Scenario::three_files()).len(), 4 + 2 + 2 + 2);
}

#[test]
fn writing_what_is_there_already_is_no_change() {
    let scenario = Scenario::one_file();
    let host = scenario.host();
    let txn = Transaction::begin(scenario.options(&host));
    let disk = txn.open(Path::new("/images/a"), Access::Write).unwrap();
    disk.write_at(&scenario.original()[0], 0).unwrap();
    assert!(txn.plan().unwrap().files.is_empty());
    assert!(txn.commit().unwrap().files.is_empty());
    assert!(!host.log().iter().any(|line| line.starts_with("sync")), "{:?}", host.log());
    assert_eq!(host.names().len(), 1);
}

#[test]
fn the_plan_is_what_the_commit_does() {
    let scenario = Scenario::one_file();
    let host = scenario.host();
    let txn = Transaction::begin(scenario.options(&host));
    let disks = [txn.open(Path::new("/images/a"), Access::Write).unwrap()];
    (scenario.edit)(&disks).unwrap();
    let plan = txn.plan().unwrap();
    assert!(host.log().is_empty(), "planning changes nothing");
    assert_eq!((plan.files[0].old_len, plan.files[0].new_len), (20_000, 23_000));
    assert_eq!(txn.commit().unwrap(), plan);
}
