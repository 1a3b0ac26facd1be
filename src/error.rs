//! The errors of a call.

/// A call that was refused. Nothing has been written, on the host or on the device.
///
/// Every variant names the operation, the argument, the value it got and the expected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The extent of a tensor, or a relation between the extents of two, is wrong.
    #[error("{op}: `{argument}` has shape {got}, expected {expected}")]
    Shape {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Its shape.
        got: String,
        /// The shape, or the condition on it, that was wanted.
        expected: String,
    },
    /// An element type that the operation, or the device, cannot take.
    #[error("{op}: `{argument}` is of type {got}, expected {expected}")]
    Dtype {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Its element type.
        got: String,
        /// The element types that would do.
        expected: String,
    },
    /// Arguments that live on different devices.
    #[error("{op}: `{argument}` is on {got}, expected {expected}")]
    Device {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Its device.
        got: String,
        /// The device of the other arguments.
        expected: String,
    },
    /// An option or a host-side number out of its range.
    #[error("{op}: `{argument}` is {got}, expected {expected}")]
    Value {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Its value.
        got: String,
        /// The range that was wanted.
        expected: String,
    },
    /// An entry of a row pointer, page table or list of positions that breaks the rules of its array.
    #[error("{op}: `{argument}[{at}]` is {got}, expected {expected}")]
    Index {
        /// The operation that refused.
        op: &'static str,
        /// The array at fault.
        argument: &'static str,
        /// The position in that array.
        at: usize,
        /// The value found there.
        got: String,
        /// The condition it breaks.
        expected: String,
    },
    /// Something of a time before its sequences changed: a page table, a plan, slots, positions.
    #[error("{op}: `{argument}` is {got}, expected {expected}")]
    Stale {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// The change since it was made.
        got: String,
        /// The expected value.
        expected: String,
    },
    /// More memory than there is. A size that fits may still fail later, when others use the memory.
    #[error("{op}: `{argument}` takes {bytes} bytes, expected {expected}")]
    OutOfMemory {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Bytes that it would take, or `usize::MAX` if that is more.
        bytes: usize,
        /// The memory that there is.
        expected: String,
    },
    /// The page pool has too few pages for the request.
    #[error("{op}: `{argument}` needs {needed} more pages, but only {free} of {pages} are free")]
    PoolExhausted {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// Pages that the call would have taken.
        needed: usize,
        /// Pages that are free, or remembered and used by no sequence: the call would have evicted them.
        free: usize,
        /// Pages in the pool.
        pages: usize,
    },
    /// The device failed to return its data.
    #[error("{op}: reading `{argument}` from the device gave {got}, expected {expected}")]
    Read {
        /// The operation that failed.
        op: &'static str,
        /// The argument that was read.
        argument: &'static str,
        /// The message of the device.
        got: String,
        /// The requested action.
        expected: String,
    },
    /// The device failed to replay a captured step.
    #[error("{op}: `{argument}` failed: {got}, expected {expected}")]
    Replay {
        /// The operation that failed.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// The message of the device.
        got: String,
        /// The requested action.
        expected: String,
    },
    /// The device has no implementation of the operation.
    #[error("{op}: `{argument}` is on {got}, which this build does not serve; expected {expected}")]
    Unsupported {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// The requested value.
        got: String,
        /// The expected value.
        expected: String,
    },
    /// A gradient was asked for: the operations are for inference and have no backward pass.
    #[error(
        "{op}: `{argument}` requires a gradient, expected a tensor without one: \
         this operation has no backward pass (call `.inner()` for inference)"
    )]
    Gradient {
        /// The operation that refused.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
    },
}

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;
