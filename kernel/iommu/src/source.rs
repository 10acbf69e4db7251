//! Who asks: the name of a device on the bus.

use core::fmt;

/// A requester: bus, device and function of PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceId {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl SourceId {
    /// From the 16 bits that the hardware uses: bus, 5 bits of device, 3 bits of function.
    pub const fn from_bits(bits: u16) -> Self {
        Self { bus: (bits >> 8) as u8, device: (bits >> 3) as u8 & 0x1f, function: bits as u8 & 7 }
    }
    /// The 16 bits.
    pub const fn bits(self) -> u16 {
        (self.bus as u16) << 8 | self.devfn() as u16
    }
    /// Device and function in one byte: the index into a context table.
    pub const fn devfn(self) -> u8 {
        (self.device & 0x1f) << 3 | self.function & 7
    }
}

/// As `lspci` writes it: `bb:dd.f`, in hexadecimal.
impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_source_is_sixteen_bits_and_reads_as_lspci_writes_it() {
        let source = SourceId { bus: 0x3a, device: 0x1f, function: 7 };
        assert_eq!((source.bits(), source.to_string().as_str()), (0x3aff, "3a:1f.7"));
        assert!((0..=u16::MAX).all(|bits| SourceId::from_bits(bits).bits() == bits));
    }
}
