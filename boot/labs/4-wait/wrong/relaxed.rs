//= part: the wait
//= loses: what the other CPU did before its answer comes before what the sender does next
    #[inline(always)]
    fn wait_for_all(&self) {
        for cpu in self.waiting.iter() {
            let cpu = &self.shootdown.cpus[cpu];
            let ticket = cpu.request.load(Ordering::Relaxed);
            while cpu.ack.load(Ordering::Relaxed) < ticket {
                self.machine.relax();
            }
        }
    }
