//! Code objects, their kernels, and launches.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::without_provenance_mut;
use std::sync::Arc;

use cubecl_hip_sys::*;
use hip_sim::code_object::{CodeObject, Kernel, LoadError};

use crate::device::{Device, Function, Module, call, pointer, write};
use crate::error::{Error, Result};
use crate::operation::{Dispatch, Operation};
use crate::properties::{LDS, MAX_THREADS};

impl Device {
    fn load(&mut self, image: &[u8]) -> Result<hipModule_t> {
        let object = CodeObject::load(image, &self.memory).map_err(refuse)?;
        Ok(self.modules.insert(Module { object: Arc::new(object), functions: HashMap::new() }))
    }
}

fn refuse(error: LoadError) -> Error {
    eprintln!("hip-sim: the code object is refused: {error}");
    match error {
        LoadError::OutOfMemory => Error::OUT_OF_MEMORY,
        LoadError::WrongTarget { .. } | LoadError::NotInBundle => Error::NO_BINARY_FOR_GPU,
        _ => Error::INVALID_IMAGE,
    }
}

/// A name of the caller.
///
/// # Safety
/// Null, or a string that ends with a zero byte.
unsafe fn name(text: *const c_char) -> Result<String> {
    if text.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleLoadData(module: *mut hipModule_t, image: *const c_void) -> hipError_t {
    call(|device| {
        if module.is_null() || image.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller's promise, a whole code object.
        let image = unsafe { CodeObject::image(image.cast()) }.map_err(refuse)?;
        // SAFETY: the caller's pointer.
        unsafe { write(module, device.load(image)?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleLoadDataEx(
    module: *mut hipModule_t,
    image: *const c_void,
    _option_count: c_uint,
    _options: *mut hipJitOption,
    _option_values: *mut *mut c_void,
) -> hipError_t {
    // SAFETY: the caller's promise.
    unsafe { hipModuleLoadData(module, image) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleLoad(module: *mut hipModule_t, file: *const c_char) -> hipError_t {
    call(|device| {
        if module.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the caller's string.
        let image = std::fs::read(unsafe { name(file)? }).map_err(|_| Error::FILE_NOT_FOUND)?;
        // SAFETY: the caller's pointer.
        unsafe { write(module, device.load(&image)?) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleUnload(module: hipModule_t) -> hipError_t {
    call(|device| {
        device.forbid_during_capture()?;
        let module = device.modules.remove(module)?;
        for function in module.functions.into_values() {
            device.functions.remove(without_provenance_mut(function))?;
        }
        device.release(module.object);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleGetFunction(
    function: *mut hipFunction_t,
    module: hipModule_t,
    kernel: *const c_char,
) -> hipError_t {
    call(|device| {
        // SAFETY: the caller's string.
        let name = unsafe { name(kernel)? };
        let module = device.modules.get(module)?;
        let handle = match module.functions.get(&name) {
            Some(&handle) => without_provenance_mut(handle),
            None => {
                let kernel = module.object.kernels.iter().position(|kernel| kernel.name == name);
                let kernel = kernel.ok_or(Error::NOT_FOUND)?;
                let handle = device.functions.insert(Function { object: Arc::clone(&module.object), kernel });
                module.functions.insert(name, handle.addr());
                handle
            }
        };
        // SAFETY: the caller's pointer.
        unsafe { write(function, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleGetGlobal(
    target: *mut hipDeviceptr_t,
    size: *mut usize,
    module: hipModule_t,
    variable: *const c_char,
) -> hipError_t {
    call(|device| {
        // SAFETY: the caller's string.
        let name = unsafe { name(variable)? };
        let variables = &device.modules.get(module)?.object.variables;
        let (_, address, len) =
            variables.iter().find(|variable| variable.0 == name).ok_or(Error::NOT_FOUND)?;
        // SAFETY: the caller's pointers.
        unsafe {
            write(target, pointer(*address))?;
            write(size, *len as usize)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipFuncGetAttribute(
    value: *mut c_int,
    attribute: hipFunction_attribute,
    function: hipFunction_t,
) -> hipError_t {
    call(|device| {
        let function = device.functions.get(function)?;
        let kernel = &function.object.kernels[function.kernel];
        let result = match attribute {
            hipFunction_attribute_HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK => kernel.max_flat_workgroup_size,
            hipFunction_attribute_HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES => kernel.group_segment_size,
            hipFunction_attribute_HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES => kernel.private_segment_size,
            // The descriptor counts vector registers in groups of eight.
            hipFunction_attribute_HIP_FUNC_ATTRIBUTE_NUM_REGS => ((kernel.descriptor.rsrc1 & 0x3f) + 1) * 8,
            _ => return Err(Error::INVALID_VALUE),
        };
        // SAFETY: the caller's pointer.
        unsafe { write(value, result.cast_signed()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn hipModuleLaunchKernel(
    function: hipFunction_t,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    dynamic_lds: c_uint,
    stream: hipStream_t,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> hipError_t {
    call(|device| {
        let function = device.functions.get(function)?.clone();
        let kernel = &function.object.kernels[function.kernel];
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        check_size(kernel, grid, block, dynamic_lds)?;
        // SAFETY: the caller's promise.
        let kernarg = unsafe { arguments(kernel, parameters, extra)? };
        let dispatch = Dispatch { function, grid, block, dynamic_lds, kernarg };
        device.submit(stream, Operation::Launch(dispatch))
    })
}

/// Refuses what the driver refuses.
fn check_size(kernel: &Kernel, grid: [u32; 3], block: [u32; 3], dynamic_lds: u32) -> Result {
    const MAX_GRID_YZ: u32 = 1 << 16;
    if grid.contains(&0) || grid[0] > i32::MAX.cast_unsigned() || grid[1].max(grid[2]) > MAX_GRID_YZ {
        return Err(Error::INVALID_VALUE);
    }
    let total = |axis: usize| u64::from(grid[axis]) * u64::from(block[axis]);
    if block.contains(&0) || (0..3).any(|axis| total(axis) > u64::from(u32::MAX)) {
        return Err(Error::INVALID_CONFIGURATION);
    }
    let threads: u64 = block.iter().map(|&count| u64::from(count)).product();
    if threads > u64::from(MAX_THREADS) {
        return Err(Error::INVALID_CONFIGURATION);
    }
    if threads > u64::from(kernel.max_flat_workgroup_size) {
        eprintln!(
            "hip-sim: {}: {threads} threads per block, compiled for at most {}",
            kernel.name, kernel.max_flat_workgroup_size
        );
        return Err(Error::LAUNCH_FAILURE);
    }
    if u64::from(kernel.group_segment_size) + u64::from(dynamic_lds) > u64::from(LDS) {
        return Err(Error::OUT_OF_MEMORY);
    }
    Ok(())
}

/// The explicit arguments where the kernel expects them; the dispatch fills the hidden ones in.
///
/// # Safety
/// `parameters` has a pointer to each argument, or `extra` is a list as HIP defines it; or they are null.
unsafe fn arguments(
    kernel: &Kernel,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<Vec<u8>> {
    let mut kernarg = vec![0; kernel.kernarg_size as usize];
    match (parameters.is_null(), extra.is_null()) {
        (false, false) => return Err(Error::INVALID_VALUE),
        (true, true) if kernel.arguments.is_empty() => {}
        (true, true) => return Err(Error::INVALID_VALUE),
        (false, true) => {
            for (index, argument) in kernel.arguments.iter().enumerate() {
                let range = argument.offset as usize..(argument.offset + argument.size) as usize;
                // SAFETY: there is a pointer to each argument, which has the size the compiler noted.
                let value = unsafe {
                    let value = *parameters.add(index);
                    if value.is_null() {
                        return Err(Error::INVALID_VALUE);
                    }
                    std::slice::from_raw_parts(value.cast::<u8>(), range.len())
                };
                kernarg[range].copy_from_slice(value);
            }
        }
        (true, false) => {
            // HIP_LAUNCH_PARAM_BUFFER_POINTER, the buffer, HIP_LAUNCH_PARAM_BUFFER_SIZE, a pointer to its
            // size, HIP_LAUNCH_PARAM_END.
            // SAFETY: a list of five, by the caller's promise.
            let list = unsafe { std::slice::from_raw_parts(extra, 5) };
            if [list[0], list[2], list[4]].map(|tag| tag.addr()) != [1, 2, 3] {
                return Err(Error::INVALID_VALUE);
            }
            // SAFETY: as above.
            let size = unsafe { *list[3].cast::<usize>() }.min(kernarg.len());
            // SAFETY: as above.
            kernarg[..size]
                .copy_from_slice(unsafe { std::slice::from_raw_parts(list[1].cast::<u8>(), size) });
        }
    }
    Ok(kernarg)
}
