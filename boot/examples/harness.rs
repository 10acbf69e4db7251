//! Boots Unplug, attaches its NVDIMM, and runs some of its tests.
use boot::size::{GIB, MIB};
use boot::{Error, Guest, Status};
use std::time::Duration;

fn main() -> Result<(), Error> {
    let mut guest = Guest::builder().cpus(2).memory(256 * MIB).nvdimm(GIB).start()?;
    guest.expect("@boot cpus=2 ", Duration::from_secs(60))?;
    let attached = guest.shell("attach 0")?.record("attached")?;
    assert_eq!(attached.field::<u64>("size")?, GIB);
    assert!(matches!(guest.shell("attach 1"), Err(Error::Refused { .. })));
    assert_eq!(guest.qmp("query-status", boot::json!({}))?["status"], "running");
    guest.send("exit")?;
    assert_eq!(guest.finish()?.status, Status::Good);

    let outcome = Guest::builder().nvdimm(GIB).tests("mm.map.*").run()?;
    println!("{:?}", outcome.ktap().counts());
    Ok(())
}
