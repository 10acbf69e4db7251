//! Port I/O and the two QEMU devices that are nothing but ports.

use x86_64::instructions::port::{Port, PortReadOnly};

/// Reads a byte from `port`.
///
/// # Safety
/// The read must have no effect on memory that Rust knows about; the caller owns the device.
pub unsafe fn read_u8(port: u16) -> u8 {
    // SAFETY: passed on to the caller.
    unsafe { PortReadOnly::new(port).read() }
}

/// Writes a byte to `port`.
///
/// # Safety
/// As for [`read_u8`].
pub unsafe fn write_u8(port: u16, value: u8) {
    // SAFETY: passed on to the caller.
    unsafe { Port::new(port).write(value) }
}

/// Reads 16 bits from `port`.
///
/// # Safety
/// As for [`read_u8`].
pub unsafe fn read_u16(port: u16) -> u16 {
    // SAFETY: passed on to the caller.
    unsafe { PortReadOnly::new(port).read() }
}

/// Writes 16 bits to `port`.
///
/// # Safety
/// As for [`read_u8`].
pub unsafe fn write_u16(port: u16, value: u16) {
    // SAFETY: passed on to the caller.
    unsafe { Port::new(port).write(value) }
}

/// Reads 32 bits from `port`.
///
/// # Safety
/// As for [`read_u8`].
pub unsafe fn read_u32(port: u16) -> u32 {
    // SAFETY: passed on to the caller.
    unsafe { PortReadOnly::new(port).read() }
}

/// Writes 32 bits to `port`.
///
/// # Safety
/// As for [`read_u8`].
pub unsafe fn write_u32(port: u16, value: u32) {
    // SAFETY: passed on to the caller.
    unsafe { Port::new(port).write(value) }
}

/// Ends QEMU through `isa-debug-exit` at port 0xf4: its exit status is `(value << 1) | 1`. Without that device the
/// CPU halts.
pub fn qemu_exit(value: u32) -> ! {
    // SAFETY: the port belongs to isa-debug-exit or to nothing.
    unsafe { write_u32(0xf4, value) };
    crate::cpu::halt_forever()
}

/// fw_cfg: selector register (QEMU docs/specs/fw_cfg).
const FW_CFG_SELECTOR: u16 = 0x510;
/// fw_cfg: data register.
const FW_CFG_DATA: u16 = 0x511;

/// Selects fw_cfg item `key`; the bytes are then read with [`fw_cfg_read`], from its first on.
pub fn fw_cfg_select(key: u16) {
    // SAFETY: the port belongs to fw_cfg or to nothing; selecting changes only what the data port answers.
    unsafe { write_u16(FW_CFG_SELECTOR, key) };
}

/// The next bytes of the selected fw_cfg item; zeros beyond its end.
pub fn fw_cfg_read(into: &mut [u8]) {
    for byte in into {
        // SAFETY: as above; reading moves fw_cfg's own cursor.
        *byte = unsafe { read_u8(FW_CFG_DATA) };
    }
}

/// Silences what the firmware left running: masks every line of the two 8259 interrupt controllers, which would arrive
/// as an exception's vector, and ends the interval timer's periodic tick (channel 0 counts down once and stops).
pub fn silence_legacy_devices() {
    // SAFETY: 0x21 and 0xa1 are the mask registers of the two controllers; 0x43 and 0x40 are the timer's command
    // register and channel 0, which nobody uses.
    unsafe {
        write_u8(0x21, 0xff);
        write_u8(0xa1, 0xff);
        write_u8(0x43, 0b0011_0000);
        write_u8(0x40, 0);
        write_u8(0x40, 0);
    }
}
