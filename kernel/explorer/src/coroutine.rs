//! Coroutines: the one door to raw memory in this package.
//!
//! Each emulated CPU is one, with a stack of its own, and all of a schedule run on one thread. Whoever runs leaves by
//! [`give_way`], from however deep, and goes on there when it is [resumed](Coroutine::resume).
//!
//! A panic in a coroutine does not unwind: what it would drop on its way belongs to an emulated machine that is broken,
//! and waits for CPUs that will never answer. Instead the panic hook keeps the message and leaves the coroutine for ever.
//! Its stack, and all that it owns, are leaked; and because the standard library believes that the thread is panicking
//! from then on, the thread must end (see [`struck`]).

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::Once;

use corosensei::stack::DefaultStack;
use corosensei::{CoroutineResult, Yielder};

/// Bytes of a stack. A debug build of `mm` needs a third of it.
const STACK_BYTES: usize = 256 << 10;

type Exit = Yielder<(), ()>;

thread_local! {
    /// The way out of the coroutine that this thread runs; null where it runs none.
    static RUNNING: Cell<*const Exit> = const { Cell::new(ptr::null()) };
    /// What the one that panicked has said.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

/// Code that runs in turns.
pub struct Coroutine {
    inner: corosensei::Coroutine<(), (), ()>,
    /// Its way out while it is not on; null before its first turn.
    exit: *const Exit,
}

impl Coroutine {
    /// It begins with `body` when it is first resumed.
    ///
    /// # Panics
    /// There is no memory for a stack.
    pub fn new(body: impl FnOnce() + 'static) -> Self {
        install_hook();
        let stack = STACKS.with_borrow_mut(Vec::pop);
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK_BYTES).expect("memory for a stack"));
        let inner = corosensei::Coroutine::with_stack(stack, |exit: &Exit, ()| {
            RUNNING.set(exit);
            body();
        });
        Self { inner, exit: ptr::null() }
    }

    /// Lets it run until it gives way or ends; answers whether it has ended.
    ///
    /// # Panics
    /// This thread runs a coroutine already.
    pub fn resume(&mut self) -> bool {
        assert!(RUNNING.get().is_null(), "a coroutine is resumed within another");
        RUNNING.set(self.exit);
        let result = self.inner.resume(());
        self.exit = RUNNING.replace(ptr::null());
        matches!(result, CoroutineResult::Return(()))
    }

    /// It has ended: its stack serves another.
    ///
    /// # Panics
    /// It has not.
    pub fn retire(self) {
        STACKS.with_borrow_mut(|stacks| stacks.push(self.inner.into_stack()));
    }

    /// It will never end.
    pub fn abandon(self) {
        std::mem::forget(self);
    }
}

/// Runs `work` in a coroutine that gives way to nobody; `Err` is what it said when it panicked.
///
/// # Errors
/// It panicked: the thread has to end.
pub fn guarded(work: impl FnOnce() + 'static) -> Result<(), String> {
    let mut coroutine = Coroutine::new(work);
    if coroutine.resume() {
        coroutine.retire();
        return Ok(());
    }
    coroutine.abandon();
    Err(struck().unwrap_or_else(|| "it gave way where nobody else could go on".into()))
}

/// Leaves the coroutine that runs here, until it is resumed.
///
/// # Panics
/// None runs here.
pub fn give_way() {
    let exit = RUNNING.get();
    assert!(!exit.is_null(), "no coroutine runs here");
    // SAFETY: the pointer is that of the coroutine which runs on this thread: set when it began, taken away whenever it
    // was left or had ended, and put back when it was resumed. What it points to lives as long as that coroutine's body.
    unsafe { &*exit }.suspend(());
}

/// The message of the panic that a coroutine of this thread has been left in, if there was one; this thread has to end
/// then.
pub fn struck() -> Option<String> {
    SAID.take()
}

/// A panic in a coroutine leaves it; any other goes where it always went.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if RUNNING.get().is_null() {
                return usual(panic);
            }
            let text = panic.payload_as_str().unwrap_or("a panic without a text");
            SAID.set(Some(text.to_string()));
            give_way();
            // Nobody resumes it.
            std::process::abort();
        }));
    });
}
