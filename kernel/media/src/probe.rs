//! Says what lies on a medium, before somebody writes over it.
//!
//! # What is looked at
//! At the beginning, and once more where the data of a namespace begin if the info block says so:
//!
//! | bytes | for |
//! |---|---|
//! | 0 to 255 | our file system, XFS, LUKS, LVM, the first bytes of the info block of a BTT of version 2.0 |
//! | 504 to 527 | MBR, GPT, LVM |
//! | 1024 to 1135, 1536 to 1543 | ext2/3/4, LVM |
//! | 4080 to 4095 | swap areas |
//! | 4096 to 4111 | info blocks, GPT on sectors of 4 KiB |
//! | 4096 to 8191, where an info block begins there | whether it is to be believed; of a BTT also its copy and its other arenas |
//! | 65600 to 65607 | btrfs |
//! | 16 of the last page | the first bytes of the copies of our superblock and of a BTT's info block; GPT's copy |
//! | 16 of the last sector | GPT's copy |
//! | 16 at 64 and 32 KiB before the end | our list of lost sectors, two copies |
//! | one page less than [`SAMPLES`], evenly spread | where nothing is known: 32 bytes of each that must be zero |
//!
//! So much and no more, whatever the size of the device: what an attach may cost is bounded (the arenas of a BTT too, of
//! which there are 128 at most). Data that none of these
//! bytes belong to is not seen; who can afford it looks with [`first_data`] at everything that is not a hole.

use core::fmt;

use crate::info::{self, BTT, Info, Parent};
use crate::namespace::Mode;
use crate::{Medium, Part, Unreadable, has, u16_at, u32_at};

/// Parts into which a medium is cut where nothing is known: at the beginning of each but the first, some bytes are looked
/// at.
pub const SAMPLES: u64 = 8;
const SAMPLE_BYTES: usize = 32;
/// The last bytes of the first page.
const END_AT: u64 = 4080;
const PAGE: u64 = 4096;
/// The signature in a superblock of btrfs, and the superblock (Linux: `include/uapi/linux/btrfs_tree.h`).
const BTRFS_AT: u64 = BTRFS + 64;
const BTRFS: u64 = 64 << 10;
/// Places of the copies of our own list of lost sectors, before the end.
const LISTS: [u64; 2] = [64 << 10, 32 << 10];
/// Findings that are kept; there are hardly ever more than three.
const MAX_FOUND: usize = 6;

/// What can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The file system of this project.
    OurFileSystem,
    /// This project's list of lost sectors.
    OurList,
    /// The info block of a namespace; `false`: it is there, and not believed. A BTT's at the very beginning, and any in the
    /// place of a copy, counts as believed by its first 16 bytes: it is a reason to refuse, and nothing else follows.
    Info(&'static str, bool),
    /// A namespace that a label gives out.
    Namespace(Mode),
    /// A label area whose index blocks cannot be trusted.
    Labels,
    /// XFS.
    Xfs,
    /// ext2, ext3 or ext4.
    Ext(u8),
    /// btrfs.
    Btrfs,
    /// A GUID partition table.
    Gpt,
    /// A partition table or a boot sector as PCs have them.
    Mbr,
    /// An encrypted volume.
    Luks,
    /// A physical volume of LVM.
    Lvm,
    /// A swap area.
    Swap,
    /// Something that is not zero, and not known here.
    Data,
    /// The place of a signature cannot be read: what was there is not known.
    Lost,
}

impl What {
    /// Was it made by this project?
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::OurFileSystem | Self::OurList)
    }

    /// Was it made by somebody else, and is it known what it is?
    #[must_use]
    pub const fn is_foreign(self) -> bool {
        !self.is_ours() && !matches!(self, Self::Data | Self::Lost)
    }

    /// The word for machine-readable lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OurFileSystem => "unplug-fs",
            Self::OurList => "unplug-list",
            Self::Info(..) => "info",
            Self::Namespace(_) => "namespace",
            Self::Labels => "labels",
            Self::Xfs => "xfs",
            Self::Ext(2) => "ext2",
            Self::Ext(3) => "ext3",
            Self::Ext(_) => "ext4",
            Self::Btrfs => "btrfs",
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
            Self::Luks => "luks",
            Self::Lvm => "lvm",
            Self::Swap => "swap",
            Self::Data => "data",
            Self::Lost => "lost",
        }
    }
}

/// Something, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub what: What,
    /// Where it begins, in bytes.
    pub at: u64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::OurFileSystem => f.write_str("a file system of Unplug")?,
            What::OurList => f.write_str("Unplug's list of lost sectors")?,
            What::Info("PFN", true) => f.write_str("an fsdax namespace")?,
            What::Info("DAX", true) => f.write_str("a devdax namespace")?,
            What::Info("BTT", true) => f.write_str("a namespace in sector mode")?,
            What::Info(kind, _) => write!(f, "a damaged {kind} info block")?,
            What::Namespace(mode) => write!(f, "a labelled namespace ({})", mode.name())?,
            What::Labels => f.write_str("damaged namespace labels")?,
            What::Xfs => f.write_str("XFS")?,
            What::Ext(version) => write!(f, "ext{version}")?,
            What::Btrfs => f.write_str("btrfs")?,
            What::Gpt => f.write_str("a GUID partition table")?,
            What::Mbr => f.write_str("a partition table or boot sector (MBR)")?,
            What::Luks => f.write_str("a LUKS volume")?,
            What::Lvm => f.write_str("an LVM volume")?,
            What::Swap => f.write_str("a swap area")?,
            What::Data => f.write_str("data of an unknown kind")?,
            What::Lost => f.write_str("lost bytes, of which nobody knows what they were")?,
        }
        write!(f, " at {:#x}", self.at)
    }
}

/// What a probe has found, in the order in which it looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    found: [Option<Found>; MAX_FOUND],
}

impl Findings {
    /// Takes something down, unless it is there already or there is no room: then there is enough to refuse.
    pub fn add(&mut self, what: What, at: u64) {
        let new = Some(Found { what, at });
        if !self.found.contains(&new)
            && let Some(free) = self.found.iter_mut().find(|found| found.is_none())
        {
            *free = new;
        }
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = Found> + '_ {
        self.found.iter().flatten().copied()
    }

    /// Nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found[0].is_none()
    }

    /// Was anything found that somebody else has made?
    #[must_use]
    pub fn has_foreign(&self) -> bool {
        self.iter().any(|found| found.what.is_foreign())
    }
}

/// One line: what was found, with commas between.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        for (nth, found) in self.iter().enumerate() {
            write!(f, "{}{found}", if nth == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Looks at a medium. The work is bounded, and does not grow with its size.
#[must_use]
pub fn probe(medium: &dyn Medium) -> Findings {
    let mut findings = Findings::default();
    let first = look(medium, 0, &mut findings);
    // What lies in a namespace is further in.
    if let Some((data, len)) = first
        && let Some(part) = Part::new(medium, data, len)
    {
        look(&part, data, &mut findings);
    }
    if findings.is_empty() {
        samples(medium, &mut findings);
    }
    findings
}

/// The bytes at the places of signatures, each with its offset.
struct Beginning {
    first: [u8; 256],
    boot: [u8; 24],
    superblock: [u8; 112],
    fourth: [u8; 8],
    // Two pages, of which one may be lost.
    end: [u8; 16],
    second: [u8; 16],
    btrfs: [u8; 8],
}

impl Beginning {
    fn read(medium: &dyn Medium, base: u64, findings: &mut Findings) -> Self {
        let (end, second) = both_sides(medium, base, findings);
        Self {
            first: window(medium, 0, base, findings),
            boot: window(medium, 504, base, findings),
            superblock: window(medium, 1024, base, findings),
            fourth: window(medium, 1536, base, findings),
            end,
            second,
            btrfs: window(medium, BTRFS_AT, base, findings),
        }
    }

    /// The first of them that is not zero.
    fn data(&self) -> Option<u64> {
        let all: [(u64, &[u8]); 7] = [
            (0, &self.first),
            (504, &self.boot),
            (1024, &self.superblock),
            (1536, &self.fourth),
            (END_AT, &self.end),
            (PAGE, &self.second),
            (BTRFS_AT, &self.btrfs),
        ];
        all.into_iter().find_map(|(at, bytes)| Some(at + nonzero(bytes)?))
    }
}

/// The `N` bytes at `at`; those beyond the end, and those that are lost, count as zero, and what is lost is noted.
fn window<const N: usize>(medium: &dyn Medium, at: u64, base: u64, findings: &mut Findings) -> [u8; N] {
    let mut bytes = [0; N];
    let len = medium.len_bytes().saturating_sub(at).min(N as u64) as usize;
    if len != 0 && medium.read(at, &mut bytes[..len]).is_err() {
        findings.add(What::Lost, base.saturating_add(at & !(PAGE - 1)));
        return [0; N];
    }
    bytes
}

/// The end of the first page and the beginning of the second: in one read, or each by itself where one of them is lost.
fn both_sides(medium: &dyn Medium, base: u64, findings: &mut Findings) -> ([u8; 16], [u8; 16]) {
    let mut bytes = [0; 32];
    match (medium.read(END_AT, &mut bytes), bytes.as_chunks::<16>()) {
        (Ok(()), ([end, second], _)) => (*end, *second),
        _ => (window(medium, END_AT, base, findings), window(medium, PAGE, base, findings)),
    }
}

/// Looks at the places of signatures of what begins at `base` of the whole. Answers the place and size of a namespace's
/// data, if there is an info block that says so.
fn look(medium: &dyn Medium, base: u64, findings: &mut Findings) -> Option<(u64, u64)> {
    let begin = Beginning::read(medium, base, findings);
    beginning(&begin, base, findings);
    let data = second_page(medium, &begin.second, base, findings);
    ending(medium, base, findings);
    if findings.is_empty() {
        // It was read: what is in it is something, if nothing that is known.
        begin.data().into_iter().for_each(|at| findings.add(What::Data, base.saturating_add(at)));
    }
    data
}

/// The first bytes.
fn beginning(begin: &Beginning, base: u64, findings: &mut Findings) {
    let mut add = |what, at: u64| findings.add(what, base.saturating_add(at));
    let Beginning { first, boot, superblock, fourth, end, btrfs, .. } = begin;
    if has(first, 0, b"UPSB") {
        add(What::OurFileSystem, 0);
    }
    if has(first, 0, b"XFSB") {
        add(What::Xfs, 0);
    }
    if has(first, 0, b"LUKS\xba\xbe") {
        add(What::Luks, 0);
    }
    if has(first, 0, BTT) {
        add(What::Info("BTT", true), 0);
    }
    if has(boot, 8, b"EFI PART") {
        add(What::Gpt, 512);
    } else if has(boot, 6, &[0x55, 0xaa]) {
        add(What::Mbr, 0);
    }
    let sectors: [(u64, &[u8]); 4] = [(0, first), (512, &boot[8..]), (1024, superblock), (1536, fourth)];
    for (at, _) in sectors.into_iter().filter(|(_, bytes)| has(bytes, 0, b"LABELONE")) {
        add(What::Lvm, at);
    }
    if u16_at(superblock, 56) == 0xef53 {
        add(What::Ext(ext_version(superblock)), 1024);
    }
    // The last ten bytes of the page.
    if has(end, 6, b"SWAPSPACE2") || has(end, 6, b"SWAP-SPACE") {
        add(What::Swap, 0);
    }
    if has(btrfs, 0, b"_BHRfS_M") {
        add(What::Btrfs, BTRFS);
    }
}

/// Which of the family it is, by the features that only the later ones have (Linux: `fs/ext4/ext4.h`).
fn ext_version(superblock: &[u8]) -> u8 {
    let [compat, incompat, ro_compat] = [92, 96, 100].map(|at| u32_at(superblock, at));
    // All that ext3 knows is filetype, recover, journal_dev and meta_bg; sparse_super, large_file and btree_dir.
    if incompat & !0x1e != 0 || ro_compat & !0x7 != 0 {
        4
    } else if compat & 0x4 != 0 {
        3
    } else {
        2
    }
}

/// The beginning of the second page. Answers where a namespace's data are.
fn second_page(medium: &dyn Medium, second: &[u8], base: u64, findings: &mut Findings) -> Option<(u64, u64)> {
    let place = base.saturating_add(PAGE);
    if has(second, 0, b"EFI PART") {
        findings.add(What::Gpt, place);
    }
    let kind = info::kind_of(second)?;
    let info = info::read(medium, Parent::Any, None);
    findings.add(What::Info(kind, matches!(info, Ok(Some(_)))), place);
    match info {
        Ok(Some(Info::Pages(pages))) => Some((pages.data_offset, pages.data_bytes)),
        _ => None,
    }
}

/// Copies at the end.
fn ending(medium: &dyn Medium, base: u64, findings: &mut Findings) {
    let len = medium.len_bytes();
    let mut look = |before_end: u64, wanted: &dyn Fn(&[u8]) -> Option<What>| {
        // What is not far from the beginning was seen.
        let Some(at) = len.checked_sub(before_end).filter(|&at| at > 2 * PAGE) else { return };
        let mut bytes = [0; 16];
        match medium.read(at, &mut bytes) {
            Ok(()) => {
                let what = wanted(&bytes).or_else(|| nonzero(&bytes).map(|_| What::Data));
                // That something is there at all says nothing more, where it is known already what it is.
                what.filter(|what| *what != What::Data || findings.is_empty())
                    .into_iter()
                    .for_each(|what| findings.add(what, base.saturating_add(at)));
            }
            Err(Unreadable) => findings.add(What::Lost, base.saturating_add(at)),
        }
    };
    let copy = |bytes: &[u8]| match bytes {
        _ if has(bytes, 0, b"UPSB") => Some(What::OurFileSystem),
        _ if has(bytes, 0, b"EFI PART") => Some(What::Gpt),
        _ => info::kind_of(bytes).map(|kind| What::Info(kind, true)),
    };
    for before_end in LISTS {
        look(before_end, &|bytes| has(bytes, 0, b"UNPLGBAD").then_some(What::OurList));
    }
    look(PAGE, &copy);
    look(512, &copy);
}

/// Some bytes of pages that are evenly spread.
fn samples(medium: &dyn Medium, findings: &mut Findings) {
    let step = (medium.len_bytes() / SAMPLES) & !(PAGE - 1);
    for nth in 1..SAMPLES {
        let (at, mut bytes) = (nth.saturating_mul(step), [0; SAMPLE_BYTES]);
        // A lost page in the middle says nothing about what the medium is for.
        if step != 0
            && medium.read(at, &mut bytes) == Ok(())
            && let Some(byte) = nonzero(&bytes)
        {
            return findings.add(What::Data, at.saturating_add(byte));
        }
    }
}

/// The first of these bytes of a medium that is not zero, or cannot be read: its place. Reads all of them.
#[must_use]
pub fn first_data(medium: &dyn Medium, start: u64, end: u64) -> Option<Found> {
    let mut bytes = [0; 4096];
    let mut at = start;
    while at < end {
        // Not more than the buffer has.
        let len = (end - at).min(bytes.len() as u64) as usize;
        let part = &mut bytes[..len];
        match medium.read(at, part) {
            Err(Unreadable) => return Some(Found { what: What::Lost, at }),
            Ok(()) => {
                if let Some(byte) = nonzero(part) {
                    return Some(Found { what: What::Data, at: at.saturating_add(byte) });
                }
            }
        }
        at = at.saturating_add(len as u64);
    }
    None
}

/// Which of the bytes is the first that is not zero, but for the seven around it.
fn nonzero(bytes: &[u8]) -> Option<u64> {
    let (words, rest) = bytes.as_chunks::<8>();
    let word = words.iter().position(|word| u64::from_le_bytes(*word) != 0).map(|at| at as u64 * 8);
    word.or_else(|| rest.iter().any(|&byte| byte != 0).then_some(words.len() as u64 * 8))
}
