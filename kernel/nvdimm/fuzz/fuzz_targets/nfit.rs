//! Feeds the NFIT parser arbitrary tables: as they are, and with length and checksum made right so that its inner
//! parts see them too. Run with `cargo fuzz run nfit` from `kernel/nvdimm`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nvdimm::nfit::{Limits, Taken};
use testkit::nfit::{NfitBuilder, check, ram, seal};

const RAM: [Taken; 2] = [ram(0, 2 << 30), ram(4 << 30, 1 << 29)];

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { phys_bits: 46, taken: &RAM };
    check(&[bytes], limits);

    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    check(&[&sealed], limits);

    let structures = NfitBuilder::new().bytes(bytes).finish();
    check(&[&structures, &sealed, &structures], limits);
});
