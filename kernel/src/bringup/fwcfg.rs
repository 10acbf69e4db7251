//! QEMU's fw_cfg device: how the host hands the boot options over (QEMU docs/specs/fw_cfg).

use arch::port;
use arrayvec::ArrayVec;

/// Item 0: the signature.
const KEY_SIGNATURE: u16 = 0x00;
/// Item 0x19: the directory of files.
const KEY_DIRECTORY: u16 = 0x19;
/// More files than any QEMU has: a bad count ends the search here.
const MAX_FILES: u32 = 256;

/// The file `name`, up to `N` bytes of it, and how many it has; `None` where there is no fw_cfg or no such file.
pub fn read_file<const N: usize>(name: &str) -> Option<(ArrayVec<u8, N>, usize)> {
    if !is_present() {
        return None;
    }
    let (key, len) = find(name)?;
    let mut bytes = ArrayVec::new();
    port::fw_cfg_select(key);
    let len = len as usize;
    for _ in 0..len.min(N) {
        let mut byte = [0];
        port::fw_cfg_read(&mut byte);
        bytes.push(byte[0]);
    }
    Some((bytes, len))
}

/// Is there such a device: is this QEMU?
pub fn is_present() -> bool {
    let mut signature = [0; 4];
    port::fw_cfg_select(KEY_SIGNATURE);
    port::fw_cfg_read(&mut signature);
    &signature == b"QEMU"
}

/// Selector key and length in bytes of the file `name`.
fn find(name: &str) -> Option<(u16, u32)> {
    let mut count = [0; 4];
    port::fw_cfg_select(KEY_DIRECTORY);
    port::fw_cfg_read(&mut count);
    for _ in 0..u32::from_be_bytes(count).min(MAX_FILES) {
        // Length (32 bits), key (16), reserved (16), all big-endian, then the name, padded with zeros.
        let mut entry = [0; 64];
        port::fw_cfg_read(&mut entry);
        let stored = &entry[8..];
        let end = stored.iter().position(|&byte| byte == 0).unwrap_or(stored.len());
        if &stored[..end] == name.as_bytes() {
            let len = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
            return Some((u16::from_be_bytes([entry[4], entry[5]]), len));
        }
    }
    None
}
