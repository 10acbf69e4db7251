//! The removal of a device around which nothing is but what lives on it.

use dax::removal::{Problem, RemovalEnv, RemovalWatch};
use mm::machine::Machine;

/// What such a device's driver answers: nothing is under way, and nothing is left to take down. Who is told is inside.
pub struct NoDriver<W>(pub W);

impl<M: Machine, W: RemovalWatch<M>> RemovalEnv<M> for NoDriver<W> {
    type Watch = W;
    fn watch(&mut self) -> &mut W {
        &mut self.0
    }
    fn stop_io(&mut self) -> Result<u64, Problem> {
        Ok(0)
    }
    fn unmap_direct_map(&mut self) -> Result<u64, Problem> {
        Ok(0)
    }
    fn release(&mut self) -> Result<(), Problem> {
        Ok(())
    }
}
