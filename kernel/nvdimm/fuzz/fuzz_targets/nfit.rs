//! Feeds the NFIT parser arbitrary tables: as they are, and with length and checksum made right so that its inner
//! parts see them too. Run with `cargo fuzz run nfit` from `kernel/nvdimm`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nvdimm::nfit::{ByteRange, Limits};
use testkit::nfit::{NfitBuilder, check, seal};

const RAM: [ByteRange; 2] =
    [ByteRange { base: 0, len_bytes: 2 << 30 }, ByteRange { base: 4 << 30, len_bytes: 1 << 29 }];

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { phys_bits: 46, ram: &RAM };
    check(&[bytes], limits);

    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    check(&[&sealed], limits);

    let structures = NfitBuilder::new().bytes(bytes).finish();
    check(&[&structures, &sealed, &structures], limits);
});
