//= part: close
//= loses: it is said to be over only when it is
    fn close(&self, by: By, slow: &mut dyn FnMut(RegionInfo<'_>)) -> Option<(u64, Option<CutOff>)> {
        lock_check::might_sleep("the uses of a registration");
        let machine = &self.mm.machine;
        let (began, mut notice_ns) = (machine.now_ns(), SLOW_USE_NS);
        let relax = || {
            machine.relax();
            if machine.now_ns().saturating_sub(began) >= notice_ns {
                notice_ns = notice_ns.saturating_mul(2);
                slow(self.info());
            }
        };
        let Some(uses) = self.gate.close(by) else {
            self.gate.wait_released(relax);
            return None;
        };
        self.gate.wait_for_uses(relax);
        self.gate.set_released();
        let cut_off = self.device.cut_off(by);
        drop(self.pins.lock().take());
        self.mm.regions.take_off(self);
        Some((uses, cut_off))
    }
