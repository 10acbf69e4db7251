//= part: the wait
//= loses: a CPU that has not answered is waited for
    #[inline(always)]
    fn wait_for_all(&self) {
        // They have been interrupted: they will flush at once.
        for cpu in self.waiting.iter() {
            while self.shootdown.cpus[cpu].request.load(Ordering::Acquire) == 0 {
                self.machine.relax();
            }
        }
    }
