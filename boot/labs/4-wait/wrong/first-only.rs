//= part: the wait
//= loses: every CPU is waited for
    #[inline(always)]
    fn wait_for_all(&self) {
        let Some(cpu) = self.waiting.iter().next() else { return };
        let cpu = &self.shootdown.cpus[cpu];
        let ticket = cpu.request.load(Ordering::Relaxed);
        while cpu.ack.load(Ordering::Acquire) < ticket {
            self.machine.relax();
        }
    }
