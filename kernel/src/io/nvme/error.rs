//! Why a command of an NVMe disk fails.

use core::fmt;

use nvme::completion::Status;
use nvme::request::RequestError;
use nvme::ring::Broken;

use crate::io::dma::DmaError;

/// What a controller did or did not do, after which it is reset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// Its registers read as all ones: it is not there any more.
    Gone,
    /// It says that it cannot go on (CSTS.CFS): it could not reach its own rings, for instance.
    Fatal,
    /// It was not ready, or still was, after so many nanoseconds.
    Stuck(u64),
    /// It has not answered a command for so many nanoseconds.
    NoAnswer(u64),
    /// It wrote a completion that cannot be.
    Broken(Broken),
    /// It refused a command that it has to know.
    Refused(Status),
    /// The IOMMU did not cut it off when it was told to: it may do no DMA any more.
    NoDma,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the controller does not answer any more"),
            Self::Fatal => f.write_str("the controller reports a fatal error"),
            Self::Stuck(ns) => write!(f, "the controller did not start or stop within {} ms", ns / 1_000_000),
            Self::NoAnswer(ns) => write!(f, "a command had no answer within {} ms", ns / 1_000_000),
            Self::Broken(broken) => write!(f, "{broken}"),
            Self::NoDma => f.write_str("the controller may do no DMA any more, since the IOMMU did not answer"),
            Self::Refused(status) => write!(f, "the controller refused to set up its queues: {status}"),
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub enum IoError {
    /// It could not be done at all, and the device has not heard of it.
    Request(RequestError),
    /// As many commands are in flight as can be.
    QueueFull,
    /// The transfer was blocked, or its target has been revoked meanwhile. What the device says counts for nothing then.
    Dma(DmaError),
    /// The device says so.
    Device(Status),
    /// The controller was reset while the command was in flight. Whether it was carried out is not known.
    Reset(Failure),
    /// The controller was reset, did not start again, and is not used any more.
    Dead(Failure),
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => write!(f, "{error}"),
            Self::QueueFull => f.write_str("the queue is full"),
            Self::Dma(error) => write!(f, "{error}"),
            Self::Device(status) => write!(f, "the device answers: {status}"),
            Self::Reset(failure) => write!(f, "{failure}; the controller was reset"),
            Self::Dead(failure) => write!(f, "the disk is not used any more: {failure}"),
        }
    }
}

impl From<DmaError> for IoError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

impl From<RequestError> for IoError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}
