//! Tests that ask the CPU itself: each protection is tried, and must fault in the way it should.

use alloc::string::String;

use arch::cpu::IrqSave;
use arch::features::Features;
use arch::probe::error_code::{FETCH, PROTECTION, WRITE};
use arch::{probe, tlb};
use core::sync::atomic::Ordering;
use mm::addr::{PageSize, Pfn, VirtAddr};
use mm::entry::{Entry, Prot};

use crate::ktest::test::{Ctx, Test, check_eq};
use crate::mem::{layout, memory, paging};
use crate::task::sched;

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test { name: "protection.text_is_not_writable", covers: "", run: text_is_not_writable },
    Test { name: "protection.constants_are_not_writable", covers: "", run: constants_are_not_writable },
    Test { name: "protection.data_is_not_executable", covers: "", run: data_is_not_executable },
    Test { name: "protection.null_is_not_mapped", covers: "", run: null_is_not_mapped },
    Test { name: "protection.stack_guard_faults", covers: "", run: stack_guard_faults },
    Test { name: "protection.user_pages_need_the_right_door", covers: "", run: user_pages },
    Test { name: "protection.user_pages_are_not_executed", covers: "", run: user_pages_are_not_executed },
];

/// What a probe of ordinary memory answers.
const FINE: Result<(), u64> = Ok(());

fn text_is_not_writable(_: &mut Ctx) -> Result<(), String> {
    let text = text_is_not_writable as fn(&mut Ctx) -> Result<(), String> as usize as u64;
    // SAFETY: this function's own first bytes; nobody changes them.
    let (read, written) = unsafe { (probe::read(text), probe::write(text)) };
    check_eq!(read, FINE, "loading from the text");
    check_eq!(written, Err(PROTECTION | WRITE), "storing to the text");
    Ok(())
}

fn constants_are_not_writable(_: &mut Ctx) -> Result<(), String> {
    static CONSTANT: [u64; 4] = [1, 2, 3, 4];
    let addr = (&raw const CONSTANT) as u64;
    // SAFETY: a constant; nobody changes it.
    check_eq!(unsafe { probe::write(addr) }, Err(PROTECTION | WRITE), "storing to a constant");
    Ok(())
}

/// Code that answers `u64::MAX` if it is executed: `mov rax, -1; ret`.
const ANSWER: [u8; 8] = [0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xc3];

fn data_is_not_executable(_: &mut Ctx) -> Result<(), String> {
    static DATA: spin::Mutex<[u8; 8]> = spin::Mutex::new(ANSWER);
    let on_stack = core::hint::black_box(ANSWER);
    let in_heap = alloc::boxed::Box::new(ANSWER);
    for (what, addr) in [
        ("static data", DATA.lock().as_ptr() as u64),
        ("the stack", on_stack.as_ptr() as u64),
        ("the heap", in_heap.as_ptr() as u64),
    ] {
        // SAFETY: what is there is a function that answers as `fetch` wants it.
        check_eq!(unsafe { probe::fetch(addr) }, Err(PROTECTION | FETCH), "executing {what}");
    }
    Ok(())
}

fn null_is_not_mapped(_: &mut Ctx) -> Result<(), String> {
    for addr in [0, 8, 4095] {
        // SAFETY: nothing is mapped there, and this task has no address space.
        check_eq!(unsafe { probe::read(addr) }, Err(0), "loading from {addr:#x}");
    }
    Ok(())
}

fn stack_guard_faults(_: &mut Ctx) -> Result<(), String> {
    let me = sched::current().ok_or("there is no current task")?;
    let bottom = me.stack().bottom();
    // SAFETY: loads from our own stack's lowest word, and from below it, where nothing is mapped.
    let (inside, outside) = unsafe { (probe::read(bottom), probe::read(bottom - 8)) };
    check_eq!(inside, FINE, "loading the stack's lowest word");
    check_eq!(outside, Err(0), "loading from the guard page");
    Ok(())
}

/// A root with one user page, which holds [`ANSWER`]. The frames are given back when it is dropped.
struct UserPage {
    /// Root, the three tables below it, the page.
    frames: [Pfn; 5],
}

const USER_VA: VirtAddr = VirtAddr::new(0x4000_0000_0000);

impl UserPage {
    fn new() -> Option<Self> {
        let frames = [(); 5].map(|()| memory::alloc_zeroed());
        let [Some(root), Some(upper), Some(middle), Some(lower), Some(page)] = frames else { return None };
        paging::init_root(root);
        for (table, next, level) in [(root, upper, 4), (upper, middle, 3), (middle, lower, 2)] {
            paging::entry(table, USER_VA.index(level)).store(Entry::table(next, true).bits(), Ordering::Relaxed);
        }
        let leaf = Entry::leaf(page, PageSize::Size4K, Prot { write: true, exec: true, user: true });
        paging::entry(lower, USER_VA.index(1)).store(leaf.bits(), Ordering::Relaxed);
        // SAFETY: a fresh frame in the direct map.
        unsafe { layout::direct_ptr::<[u8; 8]>(page.addr()).write(ANSWER) };
        Some(Self { frames: [root, upper, middle, lower, page] })
    }

    /// Runs `look` with the page mapped, interrupts off.
    fn with<R>(&self, look: impl FnOnce(u64) -> R) -> R {
        let _irq = IrqSave::new();
        let before = arch::cpu::root_table();
        // SAFETY: both roots have the kernel half; nothing switches while interrupts are off.
        unsafe { tlb::load_root(self.frames[0].addr().as_u64()) };
        let seen = look(USER_VA.as_u64());
        // SAFETY: as above.
        unsafe { tlb::load_root(before) };
        seen
    }
}

impl Drop for UserPage {
    fn drop(&mut self) {
        paging::drop_root(self.frames[0]);
        self.frames.iter().for_each(|&frame| memory::free(frame, 0));
    }
}

fn user_pages(ctx: &mut Ctx) -> Result<(), String> {
    if !Features::detect().smap {
        ctx.skip("this CPU has no SMAP");
        return Ok(());
    }
    let page = UserPage::new().ok_or("no memory")?;
    let seen = page.with(|va| {
        // SAFETY: the page is mapped and ours; where the CPU lets us in, nothing happens.
        let (read, written) = unsafe { (probe::read(va), probe::write(va)) };
        (read, written, arch::user::read_u64(va), arch::user::write_u64(va + 8, 77), arch::user::read_u64(va + 8))
    });
    check_eq!(seen.0, Err(PROTECTION), "loading from a user page by an ordinary instruction");
    check_eq!(seen.1, Err(PROTECTION), "touching a user page by an ordinary instruction");
    check_eq!(seen.2, Ok(u64::from_le_bytes(ANSWER)), "loading by the user access function");
    check_eq!(seen.3, Ok(()), "storing by the user access function");
    check_eq!(seen.4, Ok(77), "what was stored");
    Ok(())
}

fn user_pages_are_not_executed(ctx: &mut Ctx) -> Result<(), String> {
    if !Features::detect().smep {
        ctx.skip("this CPU has no SMEP");
        return Ok(());
    }
    let page = UserPage::new().ok_or("no memory")?;
    // SAFETY: what is there is a function that answers as `fetch` wants it.
    let fetched = page.with(|va| unsafe { probe::fetch(va) });
    check_eq!(fetched, Err(PROTECTION | FETCH), "executing a user page in ring 0");
    Ok(())
}
