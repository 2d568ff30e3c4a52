//! The frequency of the host's time-stamp counter, which a translated guest sees as its own.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__cpuid, CpuidResult};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Key};

/// The name under which the answer is kept.
const CACHED_AS: &str = "tsc.json";

/// How long the counter is watched where nothing states its frequency: errors stay below 0.01 %.
const WATCH: Duration = Duration::from_millis(50);

/// The frequency in kHz, or nothing on a host whose counter does not run evenly.
///
/// The hypervisor states it, or the kernel, or the processor; else it is measured, once a boot.
pub(crate) fn khz(cache: &Cache, key: &Key) -> Option<u64> {
    stated().or_else(|| {
        cache.get(CACHED_AS, key).unwrap_or_else(|| {
            let measured = measured();
            cache.put(CACHED_AS, key, &measured);
            measured
        })
    })
}

#[cfg(target_arch = "x86_64")]
fn stated() -> Option<u64> {
    let leaf = |number: u32, base: u32| (__cpuid(base).eax >= number).then(|| __cpuid(number));
    // Beneath a hypervisor the processor's own words can be those of another processor.
    match __cpuid(1).ecx & HYPERVISOR_PRESENT {
        0 => from_kernel().or_else(|| from_processor(leaf(0x15, 0))),
        _ => from_hypervisor(leaf(0x4000_0010, 0x4000_0000)).or_else(from_kernel),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stated() -> Option<u64> {
    None
}

/// Leaf 0x15 (Intel SDM, volume 2A, CPUID): the crystal's frequency in Hz and its ratio to the counter.
#[cfg(target_arch = "x86_64")]
fn from_processor(leaf: Option<CpuidResult>) -> Option<u64> {
    let CpuidResult { eax: denominator, ebx: numerator, ecx: crystal, .. } = leaf?;
    let hertz = (u64::from(crystal) * u64::from(numerator)).checked_div(u64::from(denominator))?;
    (hertz >= 1000).then_some(hertz / 1000)
}

/// Leaf 1, bit 31 of ECX: what follows below 0x4000_0000 is the hypervisor's.
#[cfg(target_arch = "x86_64")]
const HYPERVISOR_PRESENT: u32 = 1 << 31;

/// Leaf 0x4000_0010, by which VMware, and KVM where it is told to, state it in kHz.
///
/// Some hypervisors answer leaves they do not have with any value: only what looks like a
/// frequency is believed, from 100 MHz to 100 GHz.
#[cfg(target_arch = "x86_64")]
fn from_hypervisor(leaf: Option<CpuidResult>) -> Option<u64> {
    let khz = u64::from(leaf?.eax);
    (100_000..100_000_000).contains(&khz).then_some(khz)
}

/// `cpu MHz` is the counter's frequency where neither a governor nor the processor's own counts say how fast it runs now.
fn from_kernel() -> Option<u64> {
    if Path::new("/sys/devices/system/cpu/cpu0/cpufreq").exists() {
        return None;
    }
    parse_cpuinfo(&fs::read_to_string("/proc/cpuinfo").ok()?)
}

/// Reads the first `cpu MHz`, which has three decimals: kHz.
fn parse_cpuinfo(text: &str) -> Option<u64> {
    let flags = text.lines().find(|line| line.starts_with("flags"))?;
    let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
    if !has("constant_tsc") || has("aperfmperf") {
        return None;
    }
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let (mhz, khz) = line.split_once(':')?.1.trim().split_once('.')?;
    let valid = khz.len() == 3 && khz.bytes().all(|byte| byte.is_ascii_digit());
    let khz = valid.then(|| khz.parse::<u64>().ok())??;
    mhz.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(khz)
}

/// Counts for a while; nothing where the counter may stop or change its pace.
fn measured() -> Option<u64> {
    if !is_invariant() {
        return None;
    }
    let clock = quanta::Clock::new();
    let (began, count) = (Instant::now(), clock.raw());
    std::thread::sleep(WATCH);
    let (count, elapsed) = (clock.raw().checked_sub(count)?, began.elapsed());
    let nanos = u64::try_from(elapsed.as_nanos()).ok()?;
    count.checked_mul(1_000_000)?.checked_div(nanos)
}

/// Leaf 0x8000_0007, bit 8 of EDX (AMD APM volume 3, appendix E.4.6; Intel has the same).
#[cfg(target_arch = "x86_64")]
fn is_invariant() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0
}

#[cfg(not(target_arch = "x86_64"))]
fn is_invariant() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_megahertz_become_kilohertz() {
        let with = |mhz: &str, flags: &str| {
            parse_cpuinfo(&format!("processor\t: 0\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n"))
        };
        assert_eq!(with("2596.136", "fpu tsc constant_tsc"), Some(2_596_136));
        assert_eq!(with("2596.1", "constant_tsc"), None);
        assert_eq!(with("99999999999999999999.000", "constant_tsc"), None);
        assert_eq!(parse_cpuinfo(""), None);
        assert_eq!(with("2596.136", "tsc"), None, "its pace changes");
        assert_eq!(with("800.000", "constant_tsc aperfmperf"), None, "this is the pace of the moment");
    }

    #[test]
    fn a_measured_counter_agrees_with_the_stated_one() {
        let (Some(stated), Some(measured)) = (stated(), measured()) else {
            vmwright_judges::skip!("the host does not state the frequency of its counter, or has none");
        };
        assert!(stated.abs_diff(measured) < stated / 100, "stated {stated} kHz, measured {measured} kHz");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_leaf_without_all_its_numbers_states_nothing() {
        let leaf = |eax, ebx, ecx| Some(CpuidResult { eax, ebx, ecx, edx: 0 });
        assert_eq!(from_processor(leaf(2, 216, 24_000_000)), Some(2_592_000));
        assert_eq!(from_processor(leaf(0, 216, 24_000_000)), None);
        assert_eq!(from_processor(leaf(2, 216, 0)), None);
        assert_eq!(from_processor(None), None);
    }
}
