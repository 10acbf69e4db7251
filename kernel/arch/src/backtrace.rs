//! Stack backtrace by frame pointers (the target is compiled with `frame-pointer: always`).

/// Most frames that are followed: a broken chain may be a ring.
pub const MAX_FRAMES: usize = 64;

/// Calls `each` with the return addresses from the frame pointer `rbp` outwards.
///
/// `is_stack(address)` says whether the 16 bytes at `address` may be read; the walk ends at the first frame for which
/// it says no, at a zero, and where the chain does not rise.
pub fn walk(mut rbp: u64, is_stack: impl Fn(u64) -> bool, mut each: impl FnMut(u64)) {
    for _ in 0..MAX_FRAMES {
        if rbp == 0 || !rbp.is_multiple_of(8) || !is_stack(rbp) {
            return;
        }
        // SAFETY: the caller says that the 16 bytes at `rbp` are readable stack.
        let [next, return_address] = unsafe { (rbp as *const [u64; 2]).read_volatile() };
        if return_address == 0 {
            return;
        }
        each(return_address);
        if next <= rbp {
            return;
        }
        rbp = next;
    }
}
