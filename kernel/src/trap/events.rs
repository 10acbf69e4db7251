//! General-purpose events of the machine: by an interrupt (SCI) it says that something has happened to its hardware, such as
//! memory that was plugged in (ACPI 6.5 §4.8.4).
//!
//! Each event has a bit of status, which the machine sets and we clear by writing it, and a bit that lets it interrupt. The
//! interrupt is a level: it comes again until no event that is enabled has its status set. So the handler disables all of
//! them and wakes a task; the task takes the status, deals with what it says, and enables them again.

use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::port;
use mm::addr::{PAGE_SIZE, PhysAddr};
use nvdimm::acpi::{Events, Madt};
use spin::Once;

use crate::cpu::ipi::VECTOR_EVENTS;
use crate::cpu::lock::IrqLock;
use crate::mem::paging;

/// The I/O APIC's two registers: which of its own is meant, and its contents (Intel 82093AA, §3.1).
const INDEX: usize = 0x00;
const WINDOW: usize = 0x10;
/// Its own register whose bits 16 to 23 are the number of its last line.
const VERSION: u32 = 0x01;
/// Its own register for a line: 64 bits from here on.
const REDIRECTION: u32 = 0x10;
/// The last APIC id that a line can lead to alone: it has 8 bits for one, and all of them set are every CPU.
const LAST_APIC: u32 = 0xfe;
const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL: u32 = 1 << 15;

/// At most so many events are looked at: those of the first four bytes.
const MOST_BYTES: u8 = 4;

struct Found {
    events: Events,
    /// Physical address of the I/O APIC, the line there, and whether it is active low.
    route: Option<(u64, u32, bool)>,
}

static FOUND: Once<Found> = Once::new();
/// Which events are wanted, and who is woken.
static LISTENER: Once<(u32, fn())> = Once::new();
/// They interrupt.
static UP: AtomicBool = AtomicBool::new(false);
/// The status and enable bits are changed by one CPU at a time.
static PORTS: IrqLock<()> = IrqLock::new(());

/// Keeps what the firmware's tables say. Called once.
pub fn find(events: Events, madt: &Madt) {
    let route = madt.route(events.sci).map(|(io, line, active_low)| (io.base, line, active_low));
    FOUND.call_once(|| Found { events, route });
}

impl Found {
    fn nr_bytes(&self) -> u16 {
        self.events.status_bytes.min(MOST_BYTES).into()
    }

    fn read(&self, first: u16) -> u32 {
        // SAFETY: ports of the block that the firmware's table names; reading has no effect on memory.
        (0..self.nr_bytes()).fold(0, |bits, at| bits | u32::from(unsafe { port::read_u8(first + at) }) << (8 * at))
    }

    fn write(&self, first: u16, bits: u32) {
        for at in 0..self.nr_bytes() {
            // SAFETY: as above; nothing but events is changed.
            unsafe { port::write_u8(first + at, (bits >> (8 * at)) as u8) };
        }
    }

    fn status_port(&self) -> u16 {
        self.events.gpe0_port
    }

    fn enable_port(&self) -> u16 {
        self.events.enable_port()
    }

    /// No event interrupts any more: also none of those that are not looked at, which the firmware may have left on.
    fn disable_all(&self) {
        for at in 0..u16::from(self.events.status_bytes) {
            // SAFETY: as in `write`.
            unsafe { port::write_u8(self.enable_port() + at, 0) };
        }
    }
}

/// An I/O APIC's registers, mapped.
struct IoApic(usize);

impl IoApic {
    /// Maps those at this physical address, wherever in its page they are.
    fn map(base: u64) -> Result<Self, paging::MapError> {
        let offset = base % PAGE_SIZE;
        let nr_pages = (offset + WINDOW as u64 + 4).div_ceil(PAGE_SIZE);
        let page = paging::map_register_pages(PhysAddr::new(base - offset), nr_pages)?;
        Ok(Self((page.as_u64() + offset) as usize))
    }

    fn select(&self, register: u32) {
        // SAFETY: the I/O APIC's registers, mapped for ever, uncached, and used by nobody else.
        unsafe { ptr::write_volatile((self.0 + INDEX) as *mut u32, register) };
    }

    fn read(&self, register: u32) -> u32 {
        self.select(register);
        // SAFETY: as above.
        unsafe { ptr::read_volatile((self.0 + WINDOW) as *const u32) }
    }

    fn write(&self, register: u32, value: u32) {
        self.select(register);
        // SAFETY: as above. A line leads to a vector that has a handler.
        unsafe { ptr::write_volatile((self.0 + WINDOW) as *mut u32, value) };
    }

    fn last_line(&self) -> u32 {
        self.read(VERSION) >> 16 & 0xff
    }
}

/// From now on `wake` is called, from an interrupt handler, when one of the `wanted` events has come; they are not enabled yet.
/// Says whether there are any. Called once.
pub fn start(wanted: u32, wake: fn()) -> bool {
    let Some(found) = FOUND.get() else { return false };
    let Some((io_apic, line, active_low)) = found.route else { return false };
    if !turn_on(&found.events) {
        return false;
    }
    // Nothing else of it may interrupt: nobody would see to it.
    found.disable_all();
    let registers = match IoApic::map(io_apic) {
        Ok(registers) => registers,
        Err(error) => {
            log::warn!(target: "events", "the I/O APIC at {io_apic:#x} cannot be mapped: {error}");
            return false;
        }
    };
    if line > registers.last_line() {
        let last = registers.last_line();
        log::warn!(target: "events", "the I/O APIC at {io_apic:#x} has no line {line}: its last one is {last}");
        return false;
    }
    let destination = arch::percpu::cpu();
    let apic_id = crate::cpu::percpu::get(destination).map_or(0, |cpu| cpu.apic_id.load(Ordering::Relaxed));
    if apic_id > LAST_APIC {
        log::warn!(target: "events", "the I/O APIC at {io_apic:#x} cannot interrupt the CPU with APIC id {apic_id}: ids are from 0 to {LAST_APIC} there");
        return false;
    }
    LISTENER.call_once(|| (wanted, wake));
    registers.write(REDIRECTION + 2 * line + 1, apic_id << 24);
    let polarity = if active_low { ACTIVE_LOW } else { 0 };
    registers.write(REDIRECTION + 2 * line, u32::from(VECTOR_EVENTS) | LEVEL | polarity);
    UP.store(true, Ordering::Release);
    log::info!(target: "events", "interrupt {} tells of events at port {:#x}", found.events.sci, found.events.gpe0_port);
    true
}

/// Lets the machine tell of events at all, where the firmware has left that off.
fn turn_on(events: &Events) -> bool {
    // SAFETY: the power management control, as the firmware's table names it; reading has no effect on memory.
    let is_on = || unsafe { port::read_u16(events.control_port) } & 1 != 0;
    if !is_on() && events.command_port != 0 && events.enable != 0 {
        // SAFETY: the command that the table says turns them on; the firmware answers it before the next instruction.
        unsafe { port::write_u8(events.command_port, events.enable) };
    }
    if !is_on() {
        log::warn!(target: "events", "the machine does not tell of events (SCI_EN stays 0)");
    }
    is_on()
}

/// The events that have come and are wanted; their status is clear then.
pub fn take() -> u32 {
    let (Some(found), Some((wanted, _))) = (FOUND.get(), LISTENER.get()) else { return 0 };
    let _one_user = PORTS.lock();
    let come = found.read(found.status_port()) & wanted;
    found.write(found.status_port(), come);
    come
}

/// Lets the wanted events interrupt: also those that have come already.
pub fn enable() {
    let (Some(found), Some((wanted, _))) = (FOUND.get(), LISTENER.get()) else { return };
    if UP.load(Ordering::Acquire) {
        let _one_user = PORTS.lock();
        found.write(found.enable_port(), *wanted);
    }
}

/// The interrupt.
pub fn on_interrupt() {
    let (Some(found), Some((_, wake))) = (FOUND.get(), LISTENER.get()) else { return };
    {
        let _one_user = PORTS.lock();
        found.write(found.enable_port(), 0);
    }
    wake();
}
