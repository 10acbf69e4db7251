//! What the CPU can do, by CPUID, and switching on what the kernel uses.

use core::sync::atomic::{AtomicBool, Ordering};

use raw_cpuid::{CpuId, CpuIdReader};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags};

/// Supervisor-mode access prevention is on: user pages are reached only between `stac` and `clac`.
pub(crate) static SMAP_ON: AtomicBool = AtomicBool::new(false);

/// Features that matter to this kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// 1 GiB leaves.
    pub gib_pages: bool,
    /// No-execute leaves. Required.
    pub nx: bool,
    /// A local APIC. Required.
    pub apic: bool,
    /// The fences of SSE and SSE2. Required.
    pub fences: bool,
    /// Cache-line flush. This, `clflushopt` or `clwb` is required.
    pub clflush: bool,
    /// Global kernel leaves survive a root load.
    pub global_pages: bool,
    /// Supervisor-mode execution prevention.
    pub smep: bool,
    /// Supervisor-mode access prevention.
    pub smap: bool,
    /// User-mode instruction prevention.
    pub umip: bool,
    /// Machine-check architecture.
    pub mca: bool,
    /// x2APIC mode.
    pub x2apic: bool,
    /// Cache-line write-back that keeps the line.
    pub clwb: bool,
    /// Unordered cache-line flush.
    pub clflushopt: bool,
    /// The time-stamp counter runs at one rate in every power state.
    pub invariant_tsc: bool,
    /// Five-level paging exists (it is not used).
    pub la57: bool,
    /// Bits of a physical address.
    pub phys_bits: u8,
}

impl Features {
    /// Asks this CPU.
    pub fn detect() -> Self {
        Self::from_cpuid(&CpuId::new())
    }

    fn from_cpuid<R: CpuIdReader>(cpuid: &CpuId<R>) -> Self {
        let mut found = Self { phys_bits: 36, ..Self::default() };
        if let Some(basic) = cpuid.get_feature_info() {
            found.apic = basic.has_apic();
            found.fences = basic.has_sse() && basic.has_sse2();
            found.clflush = basic.has_clflush();
            found.global_pages = basic.has_pge();
            found.mca = basic.has_mce() && basic.has_mca();
            found.x2apic = basic.has_x2apic();
        }
        if let Some(extended) = cpuid.get_extended_feature_info() {
            found.smep = extended.has_smep();
            found.smap = extended.has_smap();
            found.umip = extended.has_umip();
            found.clwb = extended.has_clwb();
            found.clflushopt = extended.has_clflushopt();
            found.la57 = extended.has_la57();
        }
        if let Some(processor) = cpuid.get_extended_processor_and_feature_identifiers() {
            found.gib_pages = processor.has_1gib_pages();
            found.nx = processor.has_execute_disable();
        }
        if let Some(power) = cpuid.get_advanced_power_mgmt_info() {
            found.invariant_tsc = power.has_invariant_tsc();
        }
        if let Some(capacity) = cpuid.get_processor_capacity_feature_info() {
            found.phys_bits = capacity.physical_address_bits();
        }
        found
    }

    /// What the kernel cannot do without and this CPU lacks, in words. What every CPU with 64-bit mode has (time-stamp
    /// counter, model-specific registers, physical address extension) is not asked for.
    pub fn missing(&self) -> Option<&'static str> {
        let needed = [
            (self.nx, "no-execute bit (NX)"),
            (self.apic, "local APIC"),
            (self.fences, "SFENCE and LFENCE (SSE, SSE2)"),
            (self.clflush || self.clflushopt || self.clwb, "CLFLUSH, CLFLUSHOPT or CLWB"),
        ];
        needed.into_iter().find(|(present, _)| !present).map(|(_, name)| name)
    }

    /// Names and values of what is used when present, for the console.
    pub fn used(&self) -> [(&'static str, bool); 10] {
        [
            ("1gib_pages", self.gib_pages),
            ("nx", self.nx),
            ("wp", true),
            ("global_pages", self.global_pages),
            ("smep", self.smep),
            ("smap", self.smap),
            ("umip", self.umip),
            ("mca", self.mca),
            ("clwb", self.clwb),
            ("clflushopt", self.clflushopt),
        ]
    }

    /// Switches on, on this CPU, what the kernel's page tables and traps rely on: write protection in ring 0,
    /// no-execute, global pages, SMEP, SMAP, UMIP, machine checks.
    ///
    /// # Safety
    /// The IDT is loaded (a machine check without a handler is a shutdown); the running code, stack and data are in
    /// supervisor pages with the rights that their use needs.
    pub unsafe fn enable(&self) {
        let mut cr4 = Cr4::read() | Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
        cr4.set(Cr4Flags::PAGE_GLOBAL, self.global_pages);
        cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, self.smep);
        cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, self.smap);
        cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, self.umip);
        cr4.set(Cr4Flags::MACHINE_CHECK_EXCEPTION, self.mca);
        // SAFETY: by this function's contract; each bit was found by CPUID.
        unsafe {
            Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE));
            Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT));
            Cr4::write(cr4);
        }
        SMAP_ON.store(self.smap, Ordering::Relaxed);
    }

    /// What is really on, on this CPU: (CR0.WP, EFER.NXE, CR4.SMEP, CR4.SMAP, CR4.PGE), read back from the registers.
    pub fn read_back() -> (bool, bool, bool, bool, bool) {
        let cr4 = Cr4::read();
        (
            Cr0::read().contains(Cr0Flags::WRITE_PROTECT),
            Efer::read().contains(EferFlags::NO_EXECUTE_ENABLE),
            cr4.contains(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION),
            cr4.contains(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION),
            cr4.contains(Cr4Flags::PAGE_GLOBAL),
        )
    }
}
