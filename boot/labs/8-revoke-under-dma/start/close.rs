    /// Ends it. To be written. `None` where somebody else does; it is ended then, too, when this returns. Otherwise, the uses
    /// that were in flight when it was closed, all of which have been waited for, and what cutting its device off has cost.
    ///
    /// What there is:
    /// - `self.gate.close(by)` closes the gate and answers the uses in flight; `None` to who comes second.
    ///   `self.gate.wait_for_uses(relax)` waits until they are over, `self.gate.wait_released(relax)` until somebody has said
    ///   `self.gate.set_released()`.
    /// - `self.device.cut_off(by)` takes the translations of the device that was let in, and answers what that has cost.
    /// - `self.pins.lock().take()` are the pins: dropping them gives the pages back.
    /// - `self.mm.regions.take_off(self)` takes the registration off the lists, which a removal waits for.
    ///
    /// The frame below waits as it should: `relax` lets others in, and has `slow` called, ever more seldom, while it takes long.
    #[allow(unused_variables, unused_mut)]
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
        todo!("lab 8: close, wait, cut off, give back")
    }
