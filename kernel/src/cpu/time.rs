//! Time from the time-stamp counter, and the local timer's rate.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arch::{apic, cpu, pit};

/// Ticks of the time-stamp counter in a second; 1 GHz until calibrated, which is what QEMU's deterministic mode has.
static TSC_HZ: AtomicU64 = AtomicU64::new(1_000_000_000);
/// Ticks of the local timer (divided by 16) in a second; 0 until calibrated.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds for one tick of the time-stamp counter, times 2^32: no division on the way to a time.
static NS_PER_TICK: AtomicU64 = AtomicU64::new(1 << 32);
/// The counter when the console came up.
static ORIGIN: AtomicU64 = AtomicU64::new(0);

/// How long the clocks are compared, in microseconds. Short, because in deterministic mode all of it is executed.
const CALIBRATION_MICROS: u64 = 2000;
/// How often. Where the host takes the CPU away for so long that the interval timer's 16 bits wrap (55 ms), the rate
/// comes out too high; so the lowest counts.
const CALIBRATIONS: usize = 3;

/// Time-stamp ticks for one instruction in deterministic mode (`-icount shift=6`).
pub const TSC_PER_INSTRUCTION: u64 = 64;

/// The time-stamp counter counts instructions: the boot option `deterministic=1`.
static DETERMINISTIC: AtomicBool = AtomicBool::new(false);

/// Says that the time-stamp counter counts instructions, [`TSC_PER_INSTRUCTION`] ticks for each.
pub fn set_deterministic(deterministic: bool) {
    DETERMINISTIC.store(deterministic, Ordering::Relaxed);
}

/// Does the time-stamp counter count instructions?
pub fn is_deterministic() -> bool {
    DETERMINISTIC.load(Ordering::Relaxed)
}

/// What costs are measured in: see [`cost`].
pub fn cost_unit() -> &'static str {
    if is_deterministic() { "instructions" } else { "cycles" }
}

/// A counter of cost: instructions that all CPUs together have executed, exactly, in deterministic mode; otherwise
/// ticks of the time-stamp counter.
pub fn cost() -> u64 {
    let ticks = cpu::rdtsc();
    if DETERMINISTIC.load(Ordering::Relaxed) { ticks / TSC_PER_INSTRUCTION } else { ticks }
}

/// Remembers this moment as zero.
pub fn start() {
    ORIGIN.store(cpu::rdtsc(), Ordering::Relaxed);
}

/// Measures the time-stamp counter against the interval timer.
pub fn calibrate_tsc() {
    let once = |_| {
        pit::start();
        let start = pit::read_together(pit::count);
        let enough = pit::PIT_HZ * CALIBRATION_MICROS / 1_000_000;
        let passed = |now: u64| start.other.wrapping_sub(now) & 0xffff;
        while passed(pit::count()) < enough {
            cpu::pause();
        }
        let end = pit::read_together(pit::count);
        scale(end.tsc - start.tsc, pit::PIT_HZ, passed(end.other))
    };
    set_tsc_rate((0..CALIBRATIONS).map(once).min().unwrap_or(1));
}

/// Says what the time-stamp counter's rate is, in Hz.
pub fn set_tsc_rate(hz: u64) {
    TSC_HZ.store(hz, Ordering::Relaxed);
    NS_PER_TICK.store((1_000_000_000 << 32) / hz, Ordering::Relaxed);
}

/// Measures the local timer against the time-stamp counter, on the boot CPU. The other CPUs' timers run at the same
/// rate.
pub fn calibrate_timer() {
    apic::timer_arm(u32::MAX);
    let (tsc_hz, _) = rates();
    let read = || u64::from(apic::timer_current());
    let start = pit::read_together(read);
    while cpu::rdtsc() - start.tsc < tsc_hz / 1_000_000 * CALIBRATION_MICROS {
        cpu::pause();
    }
    let end = pit::read_together(read);
    apic::timer_arm(0);
    TIMER_HZ.store(scale(start.other - end.other, tsc_hz, end.tsc - start.tsc), Ordering::Relaxed);
}

/// `ticks * hz / passed`, at least 1.
fn scale(ticks: u64, hz: u64, passed: u64) -> u64 {
    ((u128::from(ticks) * u128::from(hz) / u128::from(passed.max(1))) as u64).max(1)
}

/// The rates that were measured: (time-stamp counter, local timer), in Hz.
pub fn rates() -> (u64, u64) {
    (TSC_HZ.load(Ordering::Relaxed), TIMER_HZ.load(Ordering::Relaxed))
}

/// Nanoseconds since the console came up.
pub fn since_first_line_ns() -> u64 {
    ns_at(cpu::rdtsc())
}

/// The same of a moment at which the time-stamp counter stood so.
pub fn ns_at(tsc: u64) -> u64 {
    let ticks = tsc.saturating_sub(ORIGIN.load(Ordering::Relaxed));
    ((u128::from(ticks) * u128::from(NS_PER_TICK.load(Ordering::Relaxed))) >> 32) as u64
}

/// The count of the local timer for `ns` nanoseconds: at least 1, at most what the register holds.
pub fn timer_ticks(ns: u64) -> u32 {
    let ticks = u128::from(ns) * u128::from(TIMER_HZ.load(Ordering::Relaxed)) / 1_000_000_000;
    ticks.clamp(1, u128::from(u32::MAX)) as u32
}
