//= part: the wait
//= loses: nobody waits for what others ask later
    #[inline(always)]
    fn wait_for_all(&self) {
        for cpu in self.waiting.iter() {
            let cpu = &self.shootdown.cpus[cpu];
            while cpu.ack.load(Ordering::Acquire) < cpu.request.load(Ordering::Relaxed) {
                self.machine.relax();
            }
        }
    }
