//! Lets the walk from the root pointer to the tables loose on arbitrary physical memory, in which only the root
//! pointer and the checksums of what it leads to are made right. Run with `cargo fuzz run acpi` from
//! `kernel/nvdimm`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nvdimm::acpi::{PhysMemory, discover};
use nvdimm::nfit::Limits;
use testkit::nfit::check;

/// Physical memory that begins at `BASE`, with the root pointer in front.
struct Memory(Vec<u8>);

const BASE: u64 = 0x1000;
const RSDP_BYTES: usize = 36;
const HEADER_BYTES: usize = 36;

impl PhysMemory for Memory {
    fn bytes(&self, base: u64, len_bytes: u64) -> Option<&[u8]> {
        let start = usize::try_from(base.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(len_bytes).ok()?)?)
    }
}

/// Makes the bytes add up to zero.
fn seal(bytes: &mut [u8], checksum: usize) {
    bytes[checksum] = 0;
    bytes[checksum] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
}

/// Makes the checksum of the table at `start` right, if its length is possible.
fn seal_table(memory: &mut [u8], start: usize) {
    let Some(length) = memory.get(start + 4..start + 8) else { return };
    let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
    if let Some(table) = memory.get_mut(start..).and_then(|rest| rest.get_mut(..length))
        && length >= HEADER_BYTES
    {
        seal(table, 9);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut memory = vec![0; RSDP_BYTES];
    memory[..8].copy_from_slice(b"RSD PTR ");
    memory[15] = 2;
    memory[20] = RSDP_BYTES as u8;
    // The XSDT follows, and serves as the RSDT too where its signature says so.
    let root = BASE + RSDP_BYTES as u64;
    memory[16..20].copy_from_slice(&(root as u32).to_le_bytes());
    memory[24..32].copy_from_slice(&root.to_le_bytes());
    seal(&mut memory[..20], 8);
    seal(&mut memory, 32);
    memory.extend_from_slice(bytes);
    // Tables that begin on a multiple of 64 bytes get a right checksum; later ones lie in earlier ones, so backwards.
    for start in (RSDP_BYTES..memory.len()).step_by(64).collect::<Vec<_>>().into_iter().rev() {
        seal_table(&mut memory, start);
    }
    let memory = Memory(memory);
    let Ok(info) = discover(&memory, BASE) else { return };
    for notice in &info.notices {
        assert!(!format!("{notice}").contains('\n'));
    }
    check(&info.nfits, Limits { phys_bits: 46, taken: &[] });
});
