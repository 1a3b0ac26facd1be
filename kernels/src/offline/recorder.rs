//! A device server that computes nothing: it records writes to its memory and launches.
//!
//! So the launchers run without a change, and their launches (kernel, grid, arguments) can be compiled for a
//! device that is not present.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cubecl::{
    CubeKernel,
    dry_run::LaunchMode,
    ir::{DeviceProperties, TargetProperties},
    logging::ServerLogger,
    server::*,
};
use cubecl_core::bytes::Bytes;
use cubecl_core::device::{DeviceId, DeviceService, ServerUtilitiesHandle, ServiceId};
use cubecl_core::environment::{backtrace::BackTrace, future::DynFut, stream::StreamId};
use cubecl_core::profile::ProfileDuration;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, ManagedMemoryId, MemoryAllocationMode, StreamMemoryReport,
};
use cubecl_runtime::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};

/// A launch as the server got it.
pub(super) struct Recorded {
    pub kernel: Box<dyn CubeKernel>,
    pub count: CubeCount,
    /// Bytes of the buffers in binding order, or their number if nothing was written to them.
    pub buffers: Vec<Result<Vec<u8>, usize>>,
    pub info: Vec<u64>,
}

/// The recorded launches.
pub(super) type Log = Arc<Mutex<Vec<Recorded>>>;

pub(super) struct Recorder {
    utilities: Arc<ServerUtilities>,
    memory: HashMap<ManagedMemoryId, Vec<u8>>,
    log: Log,
}

impl Recorder {
    pub fn new(id: DeviceId, properties: DeviceProperties, log: Log) -> Self {
        let (utilities, _captures) = ServerUtilities::init(
            ServiceId::of::<Self>(id),
            "offline",
            properties,
            TargetProperties::default(),
            Arc::new(ServerLogger::default()),
            OneAfterTheOther,
        );
        Self { utilities: Arc::new(utilities), memory: HashMap::new(), log }
    }

    fn content(&self, binding: &BufferBinding) -> Result<Vec<u8>, usize> {
        let range = binding.range();
        let written = self.memory.get(&binding.memory.id());
        let part = written.and_then(|bytes| bytes.get(range.start as usize..range.end as usize));
        part.map(<[u8]>::to_vec).ok_or(binding.size_in_used() as usize)
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

fn unsupported() -> ServerError {
    ServerError::Generic { reason: "there is no device".into(), backtrace: BackTrace::capture() }
}

impl ServerCommunication for Recorder {}

impl DeviceService for Recorder {
    fn init(_: DeviceId) -> Self {
        // Only reached by a client for a device that is not registered, and no other code can name this type.
        unreachable!("a recorder is registered together with its target")
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

impl Server for Recorder {
    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) -> Result<(), ServerError> {
        // Memory is allocated by the first write: buffers that launches only name need not fit into this
        // machine.
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let contents: Result<Vec<_>, _> = descriptors.iter().map(|d| self.content(&d.handle)).collect();
        let contents = contents.map_err(|_| unsupported());
        Box::pin(async move { Ok(contents?.into_iter().map(Bytes::from_bytes_vec).collect()) })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {
        for (CopyDescriptor { handle, .. }, bytes) in descriptors {
            let memory = self.memory.entry(handle.memory.id()).or_default();
            memory.resize(memory.len().max(handle.size as usize), 0);
            let start = handle.range().start as usize;
            if let Some(part) = memory.get_mut(start..start + bytes.len()) {
                part.copy_from_slice(&bytes);
            }
        }
    }

    fn sync(&mut self, _: Vec<BufferBinding>, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _: Vec<BufferBinding>, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        bindings: KernelArguments,
        _: StreamId,
        _: LaunchMode,
    ) {
        let buffers = bindings.buffers().map(|binding| self.content(binding)).collect();
        let recorded = Recorded { kernel, count, buffers, info: bindings.info.data };
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(recorded);
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(unsupported())
    }

    fn end_profile(&mut self, _: StreamId, _: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

/// No resource can be had: nothing runs on it.
pub(super) struct NoStorage;

impl ComputeStorage for NoStorage {
    type Resource = ();

    fn alignment(&self) -> usize {
        1
    }

    fn get(&mut self, _: &StorageHandle) -> Result<(), IoError> {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() })
    }

    fn alloc(&mut self, _: u64) -> Result<StorageHandle, IoError> {
        Err(IoError::UnsupportedIoOperation { backtrace: BackTrace::capture() })
    }

    fn dealloc(&mut self, _: StorageId) {}

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        0
    }
}

impl ServerStorage for Recorder {
    type Storage = NoStorage;

    fn get_resource(&mut self, _: BufferBinding, _: StreamId) -> Result<ManagedResource<()>, ServerError> {
        Err(unsupported())
    }
}

/// Contiguous tensors, each at a multiple of 256 bytes.
struct OneAfterTheOther;

impl MemoryLayoutPolicy for OneAfterTheOther {
    fn apply(
        &self,
        service: ServiceId,
        stream: StreamId,
        descriptors: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let sizes = descriptors.iter().map(|d| d.shape.iter().product::<usize>() * d.elem_size);
        let sizes: Vec<u64> = sizes.map(|size| size as u64).collect();
        let total = sizes.iter().map(|size| size.next_multiple_of(256)).sum();
        let whole = Handle::new(service, stream, total);
        let mut start = 0;
        let mut layouts = vec![];
        for (descriptor, size) in descriptors.iter().zip(sizes) {
            let strides: Vec<usize> = (0..descriptor.shape.len())
                .map(|axis| descriptor.shape.iter().skip(axis + 1).product())
                .collect();
            let handle = whole.clone().offset_start(start).offset_end(total - start - size);
            layouts.push(MemoryLayout::new(handle, strides));
            start += size.next_multiple_of(256);
        }
        (whole, layouts)
    }
}
