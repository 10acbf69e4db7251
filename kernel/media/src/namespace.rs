//! Namespaces: what the labels give out of an NVDIMM's range, and what the info blocks say that it is.
//!
//! Linux: `drivers/nvdimm/namespace_devs.c`; the words are those of `ndctl list`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::info::{self, Info, Parent};
use crate::label::{self, ABSTRACTION_BTT, Label};
use crate::set::SetCookies;
use crate::{Medium, Part, Uuid};

const PAGE: u64 = 4096;

/// How a namespace is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes, without an info block.
    Raw,
    /// For a file system with DAX.
    FsDax,
    /// To be mapped by tasks.
    DevDax,
    /// Sectors that are written whole or not at all, by a block translation table.
    Sector,
}

impl Mode {
    /// The word of `ndctl`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::FsDax => "fsdax",
            Self::DevDax => "devdax",
            Self::Sector => "sector",
        }
    }
}

/// A value in the list of what is known of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Text, which may come from the medium.
    Text(String),
    /// A number.
    Number(u64),
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its number, by address.
    pub id: usize,
    /// Where it begins in the range, in bytes.
    pub start: u64,
    /// Its size in bytes, with what does not belong to its data.
    pub len_bytes: u64,
    /// Its label; `None` where there are no labels.
    pub label: Option<Label>,
    /// Its info block; `None` where it is raw, or where the block is not believed.
    pub info: Option<Info>,
    /// Why it is left alone: it is not known what it is.
    pub fault: Option<Why>,
}

/// Why a namespace, or what might be one, is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its info block.
    Info(info::Fault),
    /// Its label, for this reason.
    Label(&'static str),
    /// Its label was made for other NVDIMMs than those behind the range, or for another order of them.
    Set {
        /// The cookie that it names.
        found: u64,
        /// That of the set behind the range.
        expected: u64,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info(fault) => fault.fmt(f),
            Self::Label(why) => f.write_str(why),
            Self::Set { found, expected } => write!(
                f,
                "its label is that of other NVDIMMs, or of another slot: it names the interleave set {found:#x}, and this is {expected:#x}"
            ),
        }
    }
}

impl Namespace {
    /// A whole range of so many bytes that is left alone, because of its labels.
    #[must_use]
    pub const fn left_alone(len_bytes: u64, why: Why) -> Self {
        Self { id: 0, start: 0, len_bytes, label: None, info: None, fault: Some(why) }
    }

    /// How it is used. One that is left alone counts as raw, which is what Linux makes of it.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.info {
            None => Mode::Raw,
            Some(Info::Sectors(_)) => Mode::Sector,
            Some(Info::Pages(pages)) if pages.is_dax => Mode::DevDax,
            Some(Info::Pages(_)) => Mode::FsDax,
        }
    }

    /// Where its data begin in the range, and how many bytes they are; `None` where they are not bytes in a row (sector
    /// mode), or where it is left alone.
    #[must_use]
    pub fn data(&self) -> Option<(u64, u64)> {
        match (self.fault, self.info) {
            (Some(_), _) | (None, Some(Info::Sectors(_))) => None,
            (None, None) => Some((self.start, self.len_bytes)),
            (None, Some(Info::Pages(pages))) => Some((self.start.checked_add(pages.data_offset)?, pages.data_bytes)),
        }
    }

    /// What `ndctl` calls its size: of its data, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self.info {
            None => self.len_bytes,
            Some(Info::Pages(pages)) => pages.data_bytes,
            Some(Info::Sectors(sectors)) => sectors.len_bytes(),
        }
    }

    /// Its UUID: that of its info block, else that of its label.
    #[must_use]
    pub fn uuid(&self) -> Option<Uuid> {
        match self.info {
            Some(Info::Pages(pages)) => Some(pages.uuid),
            Some(Info::Sectors(sectors)) => Some(sectors.uuid),
            None => self.raw_uuid(),
        }
    }

    /// That of its label.
    #[must_use]
    pub fn raw_uuid(&self) -> Option<Uuid> {
        self.label.as_ref().map(|label| label.uuid)
    }

    /// Bytes of a sector.
    #[must_use]
    pub fn sector_bytes(&self) -> u64 {
        match (self.info, &self.label) {
            (Some(Info::Sectors(sectors)), _) => sectors.sector_bytes,
            (_, Some(label)) if label.sector_bytes != 0 => label.sector_bytes,
            _ => 512,
        }
    }

    /// Its name; empty where it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.label.as_ref().map_or("", |label| &label.name)
    }

    /// The name of its block device, as in Linux, where its range is the region of this number.
    #[must_use]
    pub fn block_device(&self, region: usize) -> String {
        let sector = if self.mode() == Mode::Sector { "s" } else { "" };
        match self.id {
            0 => format!("pmem{region}{sector}"),
            id => format!("pmem{region}.{id}{sector}"),
        }
    }

    /// What `ndctl list --namespaces` says of it, with the `raw_uuid` that `--verbose` adds: keys and values, in its order.
    #[must_use]
    pub fn fields(&self, region: usize) -> Vec<(&'static str, Field)> {
        let (id, mode) = (self.id, self.mode());
        let text = |text: &str| Field::Text(text.into());
        let mut fields = vec![("dev", Field::Text(format!("namespace{region}.{id}"))), ("mode", text(mode.name()))];
        let pages = match self.info {
            Some(Info::Pages(pages)) => Some(pages),
            _ => None,
        };
        fields.extend(pages.map(|pages| ("map", text(pages.map.name()))));
        fields.push(("size", Field::Number(self.size())));
        let uuid = |uuid: Uuid| Field::Text(uuid.to_string());
        fields.extend(self.uuid().map(|own| ("uuid", uuid(own))));
        fields.extend(self.raw_uuid().filter(|raw| self.uuid() != Some(*raw)).map(|raw| ("raw_uuid", uuid(raw))));
        if mode == Mode::DevDax {
            fields.push(("chardev", Field::Text(format!("dax{region}.{id}"))));
        } else {
            fields.push(("sector_size", Field::Number(self.sector_bytes())));
        }
        fields.extend(pages.map(|pages| ("align", Field::Number(pages.align))));
        if mode != Mode::DevDax {
            fields.push(("blockdev", Field::Text(self.block_device(region))));
        }
        if !self.name().is_empty() {
            fields.push(("name", text(self.name())));
        }
        fields
    }
}

/// Everything that was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The namespaces, by address.
    pub namespaces: Vec<Namespace>,
    /// There are labels, whether or not one of them is in use.
    pub is_labelled: bool,
    /// What is wrong, and left alone.
    pub notices: Vec<Notice>,
}

/// One line about what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// With the label area.
    Area(label::Fault),
    /// With a label, by its slot.
    Slot(u32, Why),
    /// With a namespace, by its number.
    Namespace(usize, Why),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Area(fault) => fault.fmt(f),
            Self::Slot(slot, why) => write!(f, "label area: slot {slot}: {why}; it is left alone"),
            Self::Namespace(id, why) => write!(f, "namespace {id}: {why}; it is left alone"),
        }
    }
}

/// What is known of a range as the region that labels divide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// The NVDIMM's own address of the range's first byte.
    pub dpa: u64,
    /// The physical one; 0 where it is not known, and taken to be aligned to anything.
    pub base: u64,
    /// The interleave set behind it; `None` where that is not known, and every label is taken for one of it.
    pub set: Option<SetCookies>,
}

/// Lists the namespaces of a range. `labels` is the label area of the NVDIMM behind it, if it has one, and `dpa` the
/// NVDIMM's own address of the range's first byte. For whom the labels were made is not known.
#[must_use]
pub fn list(range: &dyn Medium, labels: Option<&dyn Medium>, dpa: u64) -> Listing {
    list_read(range, labels.and_then(label::read), Region { dpa, ..Region::default() })
}

/// As [`list`], with a label area that was read already; `None` where there is none.
#[must_use]
pub fn list_read(range: &dyn Medium, area: Option<label::Area>, region: Region) -> Listing {
    let mut listing = Listing::default();
    let base = region.base;
    let Some(area) = area else {
        whole(range, base, &mut listing, None);
        return listing;
    };
    listing.is_labelled = true;
    listing.notices.extend(area.faults.iter().copied().map(Notice::Area));
    let Some(index) = area.index else {
        whole(range, base, &mut listing, Some(Why::Label("the labels cannot be trusted")));
        return listing;
    };
    let (labels, strange) = of_the_set(area.labels, index.version, region.set);
    if let (true, Some((_, why))) = (labels.is_empty(), strange.first()) {
        whole(range, base, &mut listing, Some(*why));
        return listing;
    }
    listing.notices.extend(strange.into_iter().map(|(slot, why)| Notice::Slot(slot, why)));
    let all = placed(range, labels, region.dpa, &mut listing.notices);
    // Something was there, and what it was is not known. Labels of which none is in use leave nothing to list, whatever the
    // other index block may be.
    let is_about_a_label = |notice: &Notice| !matches!(notice, Notice::Area(label::Fault::Index(..)));
    if all.is_empty() && listing.notices.iter().any(is_about_a_label) {
        whole(range, base, &mut listing, Some(Why::Label("none of its labels can be believed")));
        return listing;
    }
    for (id, (start, label)) in all.into_iter().enumerate() {
        let (len_bytes, uuid) = (label.len_bytes, label.uuid);
        let claims_sectors = label.abstraction == Some(ABSTRACTION_BTT);
        let mut namespace = Namespace { id, start, len_bytes, label: Some(label), info: None, fault: None };
        look(range, base, &mut namespace, Parent::Label(uuid), &mut listing.notices);
        if claims_sectors && namespace.fault.is_none() && namespace.mode() != Mode::Sector {
            let why = Why::Label("its label says sector, and there is no BTT");
            namespace.fault = Some(why);
            listing.notices.push(Notice::Namespace(id, why));
        }
        listing.namespaces.push(namespace);
    }
    listing
}

/// The labels that were made for the set behind the range, and the slots of the others.
fn of_the_set(labels: Vec<Label>, version: (u16, u16), set: Option<SetCookies>) -> (Vec<Label>, Vec<(u32, Why)>) {
    let Some(set) = set else { return (labels, Vec::new()) };
    let (ours, strange): (Vec<_>, Vec<_>) =
        labels.into_iter().partition(|label| set.is_named_by(version, label.set_cookie));
    let why = |label: &Label| Why::Set { found: label.set_cookie, expected: set.expected(version) };
    (ours, strange.iter().map(|label| (label.slot, why(label))).collect())
}

/// The labels that can be namespaces, rising by their places in the range.
fn placed(range: &dyn Medium, labels: Vec<Label>, dpa: u64, notices: &mut Vec<Notice>) -> Vec<(u64, Label)> {
    let place = |label: &Label| -> Result<u64, &'static str> {
        let start = label.dpa.checked_sub(dpa).ok_or("it lies before the range")?;
        let end = start.checked_add(label.len_bytes).ok_or("it lies beyond the range")?;
        match label {
            _ if end > range.len_bytes() => Err("it lies beyond the range"),
            _ if label.len_bytes == 0 => Err("it is empty"),
            _ if !(start | label.len_bytes).is_multiple_of(PAGE) => Err("it is not made of whole pages"),
            _ if label.nr_labels != 1 || label.position != 0 => Err("it is a part of an interleave set"),
            _ => Ok(start),
        }
    };
    let mut all: Vec<(u64, Label)> = Vec::new();
    for label in labels {
        match place(&label) {
            Ok(start) => all.push((start, label)),
            Err(why) => notices.push(Notice::Slot(label.slot, Why::Label(why))),
        }
    }
    all.sort_by_key(|&(start, _)| start);
    let mut conflicts = conflicts(&all).into_iter();
    all.retain(|(_, label)| {
        let conflict = conflicts.next().unwrap_or(false);
        if conflict {
            let why = "another label has some of its bytes, or its UUID";
            notices.push(Notice::Slot(label.slot, Why::Label(why)));
        }
        !conflict
    });
    all
}

/// Which of these, rising by their places, share a byte or a UUID with another: neither of two is believed. Their number
/// comes from the medium, so each is looked at once.
fn conflicts(all: &[(u64, Label)]) -> Vec<bool> {
    let mut found = vec![false; all.len()];
    // The one that reaches furthest so far.
    let mut furthest: Option<(usize, u64)> = None;
    for (at, (start, label)) in all.iter().enumerate() {
        let end = start.saturating_add(label.len_bytes);
        if let Some((other, _)) = furthest.filter(|&(_, other_end)| *start < other_end) {
            (found[at], found[other]) = (true, true);
        }
        if furthest.is_none_or(|(_, other_end)| other_end < end) {
            furthest = Some((at, end));
        }
    }
    let mut by_uuid: Vec<usize> = (0..all.len()).collect();
    by_uuid.sort_by_key(|&at| all[at].1.uuid.0);
    for pair in by_uuid.windows(2).filter(|pair| all[pair[0]].1.uuid == all[pair[1]].1.uuid) {
        (found[pair[0]], found[pair[1]]) = (true, true);
    }
    found
}

/// The one namespace of a range without labels, or whose labels cannot be trusted, for this reason.
fn whole(range: &dyn Medium, base: u64, listing: &mut Listing, fault: Option<Why>) {
    let len_bytes = range.len_bytes();
    let namespace = if let Some(why) = fault {
        listing.notices.push(Notice::Namespace(0, why));
        Namespace::left_alone(len_bytes, why)
    } else {
        let mut namespace = Namespace { id: 0, start: 0, len_bytes, label: None, info: None, fault: None };
        look(range, base, &mut namespace, Parent::Unlabelled, &mut listing.notices);
        namespace
    };
    listing.namespaces.push(namespace);
}

/// Reads the namespace's info block; the range begins at the physical address `base`.
fn look(range: &dyn Medium, base: u64, namespace: &mut Namespace, parent: Parent, notices: &mut Vec<Notice>) {
    let Some(part) = Part::new(range, namespace.start, namespace.len_bytes) else { return };
    match info::read(&part, parent, Some(base.saturating_add(namespace.start))) {
        Ok(info) => namespace.info = info,
        Err(fault) => {
            namespace.fault = Some(Why::Info(fault));
            notices.push(Notice::Namespace(namespace.id, Why::Info(fault)));
        }
    }
}
