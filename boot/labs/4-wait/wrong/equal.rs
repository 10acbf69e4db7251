//= part: the wait
//= loses: a later answer is an answer, too
    #[inline(always)]
    fn wait_for_all(&self) {
        for cpu in self.waiting.iter() {
            let cpu = &self.shootdown.cpus[cpu];
            let ticket = cpu.request.load(Ordering::Relaxed);
            while cpu.ack.load(Ordering::Acquire) != ticket {
                self.machine.relax();
            }
        }
    }
