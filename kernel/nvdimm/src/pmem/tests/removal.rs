//! Removal.

use super::*;

#[derive(Default)]
struct Watch {
    steps: Vec<String>,
    mapped_until: Option<usize>,
    host: Option<Arc<Host>>,
}

impl RemovalWatch<EmuMachine> for Watch {
    fn observe(&mut self, record: &StepRecord) {
        assert_eq!(record.problem, None, "{}", record.step);
        self.steps.push(record.step.name().to_string());
        let unmapped = self.host.as_ref().is_some_and(|host| host.events.lock().contains(&"unmap"));
        if unmapped && self.mapped_until.is_none() {
            self.mapped_until = Some(self.steps.len());
        }
    }
}

/// covers: R1, R6, R10
#[test]
fn a_removed_device_leaves_nothing_and_attaches_again() {
    let bench = bench(DataCache::Coherent);
    for _ in 0..2 {
        bench.host.events.lock().clear();
        let device = bench.usual();
        let mut watch = Watch { host: Some(Arc::clone(&bench.host)), ..Watch::default() };
        let report = device.remove(Vec::new(), Method::Ranged, &mut watch);
        let steps: Vec<_> = dax::removal::Step::ALL.iter().map(|step| step.name().to_string()).collect();
        assert_eq!(watch.steps, steps);
        assert_eq!(watch.mapped_until, Some(dax::removal::Step::UnmapDirectMap.number()));
        assert!(report.idle);
        let unmap = &report.steps[dax::removal::Step::UnmapDirectMap.number() - 1];
        assert_eq!(unmap.facts.get("leaves"), Some(1));
        bench.assert_nothing_left("after a removal");
    }
}

/// covers: R11
#[test]
fn a_device_without_dax_is_removed_by_the_same_path() {
    let bench = bench(DataCache::Aliasing);
    let range = [frames(0x100000, 16)];
    let device = bench.attach(&Config { kind: MemoryKind::FsDax, ..config(&range) }).unwrap();
    let report = device.remove(Vec::new(), Method::Ranged, &mut ());
    assert_eq!(report.steps.len(), dax::removal::Step::ALL.len());
    bench.assert_nothing_left("after a removal without DAX");
}

#[test]
#[should_panic(expected = "page map dropped while in use: 1 folios")]
fn a_device_with_a_page_in_use_is_not_silently_dropped() {
    let bench = bench(DataCache::Coherent);
    let device = bench.usual();
    let owner = Owner { mapping: 0, offset: 0 };
    bench.mm.meta.get_or_create(Pfn::new(0x100000), PageSize::Size4K, owner, 1).unwrap();
    drop(device);
}
