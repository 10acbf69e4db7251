//= part: the wait
//= loses: two CPUs that shoot at each other both get through
    #[inline(always)]
    fn wait_for_all(&self) {
        for cpu in self.waiting.iter() {
            let cpu = &self.shootdown.cpus[cpu];
            let ticket = cpu.request.load(Ordering::Relaxed);
            while cpu.ack.load(Ordering::Acquire) < ticket {
                core::hint::spin_loop();
            }
        }
    }
