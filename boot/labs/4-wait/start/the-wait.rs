    /// Step 4 of the protocol at the head of this file: waits until every CPU in `self.waiting` has answered what it was asked,
    /// or more. To be written.
    ///
    /// What there is: `self.waiting.iter()` are the numbers of the CPUs that were interrupted, and `self.shootdown.cpus[cpu]`
    /// has two numbers for each, which only grow. `request` counts how often it was asked; it has been raised for this round
    /// already, and others raise it meanwhile. `ack` is the highest request that it has answered: it stores that with
    /// Release when it has flushed, in `handle_ipi`. `self.machine.relax()` is what a CPU calls that waits.
    ///
    /// What is wanted: when this returns the old translations are gone everywhere, and every walk that could have used them
    /// has ended; and it does return, whatever other CPUs ask for meanwhile.
    #[inline(always)]
    fn wait_for_all(&self) {
        todo!("lab 4: wait for the answers")
    }
