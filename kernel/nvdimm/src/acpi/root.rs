//! RSDP, XSDT and RSDT (ACPI 6.5 §5.2.5, §5.2.7, §5.2.8).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::sdt::{self, HEADER_BYTES, Header, TableError};
use super::{AcpiInfo, AcpiNotice, MAX_TABLE_BYTES, PhysMemory, RootError};

/// The root pointer as ACPI 1.0 knew it.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Rsdp {
    signature: [u8; 8],
    checksum: u8,
    oem_id: [u8; 6],
    revision: u8,
    rsdt: U32,
}

/// The root pointer of revision 2 and later.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtendedRsdp {
    first: Rsdp,
    length: U32,
    xsdt: U64,
    checksum: u8,
    reserved: [u8; 3],
}

/// A root table whose header has been checked.
pub(super) struct Root<'m> {
    entries: &'m [u8],
    entry_bytes: usize,
}

impl<'m> Root<'m> {
    /// The physical address of each table, without the empty entries that some firmware leaves.
    pub(super) fn entries(&self) -> impl Iterator<Item = u64> + use<'m> {
        self.entries.chunks_exact(self.entry_bytes).filter_map(|entry| {
            let mut base = [0; 8];
            base[..entry.len()].copy_from_slice(entry);
            Some(u64::from_le_bytes(base)).filter(|base| *base != 0)
        })
    }

    /// The bytes after the last whole entry.
    pub(super) fn tail(&self) -> &'m [u8] {
        self.entries.chunks_exact(self.entry_bytes).remainder()
    }
}

/// Finds the root table: the XSDT, or the RSDT where there is no sound XSDT.
pub(super) fn find<'m, M: PhysMemory>(
    memory: &'m M,
    base: u64,
    info: &mut AcpiInfo<'m>,
) -> Result<Root<'m>, RootError> {
    let bytes = memory.bytes(base, size_of::<Rsdp>() as u64).ok_or(RootError::RsdpUnreadable { base })?;
    let (rsdp, _) = Rsdp::ref_from_prefix(bytes).map_err(|_| RootError::RsdpUnreadable { base })?;
    if rsdp.signature != *b"RSD PTR " {
        return Err(RootError::RsdpSignature { base });
    }
    let sum = sdt::byte_sum(bytes);
    if sum != 0 {
        return Err(RootError::RsdpChecksum { sum });
    }
    if rsdp.revision >= 2 {
        match extended(memory, base) {
            Some(xsdt) => match root_table(memory, xsdt, b"XSDT", 8) {
                Ok(root) => return Ok(root),
                Err(notice) => info.note(notice),
            },
            None => info.note(AcpiNotice::RsdpExtension),
        }
    }
    root_table(memory, rsdp.rsdt.get().into(), b"RSDT", 4).map_err(|notice| {
        info.note(notice);
        RootError::NoRootTable
    })
}

/// The XSDT's address, if the second part of the root pointer is sound.
fn extended<M: PhysMemory>(memory: &M, base: u64) -> Option<u64> {
    let bytes = memory.bytes(base, size_of::<ExtendedRsdp>() as u64)?;
    let (rsdp, _) = ExtendedRsdp::ref_from_prefix(bytes).ok()?;
    let length = u64::from(rsdp.length.get());
    let whole = (size_of::<ExtendedRsdp>() as u64..4096).contains(&length).then(|| memory.bytes(base, length))??;
    (sdt::byte_sum(whole) == 0).then(|| rsdp.xsdt.get())
}

fn root_table<'m, M: PhysMemory>(
    memory: &'m M,
    base: u64,
    signature: &[u8; 4],
    entry_bytes: usize,
) -> Result<Root<'m>, AcpiNotice> {
    let (_, bytes) = table_at(memory, base).ok_or(AcpiNotice::Unreadable { base })?;
    let (_, table) = check(bytes, signature, HEADER_BYTES)?;
    Ok(Root { entries: &table[HEADER_BYTES..], entry_bytes })
}

/// A table's signature and its bytes, as many as it claims to have. Nothing is checked but that they are there:
/// where the claim is impossible it is only the header that is handed out.
pub(super) fn table_at<M: PhysMemory>(memory: &M, base: u64) -> Option<([u8; 4], &[u8])> {
    let bytes = memory.bytes(base, HEADER_BYTES as u64)?;
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    let length = u64::from(header.length.get());
    let whole = (HEADER_BYTES as u64..=MAX_TABLE_BYTES).contains(&length).then(|| memory.bytes(base, length));
    Some((header.signature, whole.flatten().unwrap_or(bytes)))
}

/// [`sdt::check`] with the fault as a notice.
pub(super) fn check<'m>(
    bytes: &'m [u8],
    signature: &[u8; 4],
    fixed_bytes: usize,
) -> Result<(&'m Header, &'m [u8]), AcpiNotice> {
    let notice = |error: TableError| AcpiNotice::Table { signature: *signature, error };
    sdt::check(bytes, signature, fixed_bytes).map_err(notice)
}
