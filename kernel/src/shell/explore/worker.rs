//! Who does what a driven task is told to do: a task of the kernel for each CPU that it was used on. It has the space loaded
//! while it works and waits for the next order between them, so that its CPU idles with the space still loaded, as after any
//! task that waits.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use mm::machine::CpuId;
use mm::sync::Mutex;

use crate::mem::machine::Space;
use crate::task::sched;
use crate::task::tcb::{Choice, Exit, Task};
use crate::task::user;
use crate::task::wait::WaitQueue;

type Order = Box<dyn FnOnce() + Send>;

/// What it and whoever orders see.
struct Desk {
    orders: Mutex<VecDeque<Order>>,
    /// Something has changed: there is an order, one is done, or it is to end.
    news: WaitQueue,
    ends: AtomicBool,
}

/// One of them.
pub struct Worker {
    /// Its CPU.
    pub cpu: CpuId,
    desk: Arc<Desk>,
    task: Arc<Task>,
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn start(space: &Arc<Space>, cpu: CpuId) -> Result<Self, String> {
        let desk = Arc::new(Desk {
            orders: Mutex::new(VecDeque::new()),
            news: WaitQueue::new(),
            ends: AtomicBool::new(false),
        });
        let its = Arc::clone(&desk);
        let task = sched::try_spawn(space.name(), cpu, Some(Arc::clone(space)), move || its.work());
        let task = task.map_err(|error| format!("{error}"))?;
        Ok(Self { cpu, desk, task })
    }

    /// Lets it do `work`, and waits for the answer.
    ///
    /// # Errors
    /// That of `work`; or it has come to its end.
    pub fn does<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R, String> + Send + 'static,
    ) -> Result<R, String> {
        let answer = Arc::new(Mutex::new(None));
        let (there, desk) = (Arc::clone(&answer), Arc::clone(&self.desk));
        self.desk.orders.lock().push_back(Box::new(move || {
            let done = work();
            *there.lock() = Some(done);
            desk.news.wake_all();
        }));
        self.desk.news.wake_all();
        self.desk.news.wait_until(|| answer.lock().is_some() || self.task.exit().is_some());
        let answer = answer.lock().take();
        answer.unwrap_or_else(|| {
            self.forget_orders();
            Err(format!("{} has ended meanwhile", self.task.name))
        })
    }

    /// Nobody does them any more, and each holds the desk on which it lies.
    fn forget_orders(&self) {
        let orders = core::mem::take(&mut *self.desk.orders.lock());
        drop(orders);
    }

    /// Ends it, when it has done what was ordered before.
    pub fn end(&self) {
        // Release; pairs with the Acquire in `work`.
        self.desk.ends.store(true, Ordering::Release);
        self.desk.news.wake_all();
        _ = sched::join(&self.task);
        self.forget_orders();
        // An order that came too late: whoever waits for it is told.
        self.desk.news.wake_all();
    }
}

impl Desk {
    fn work(&self) -> Exit {
        // Memory that is lost is an answer, not the end.
        user::catch_sigbus(|_| Choice::GoOn);
        loop {
            self.news.wait_until(|| !self.orders.lock().is_empty() || self.ends.load(Ordering::Acquire));
            let order = self.orders.lock().pop_front();
            match order {
                Some(order) => order(),
                None if self.ends.load(Ordering::Acquire) => return Ok(()),
                None => {}
            }
        }
    }
}
