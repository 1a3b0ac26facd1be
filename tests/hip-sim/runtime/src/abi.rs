//! Compares the type of each function with the one that CubeCL calls: two functions fit in an array only
//! if their types are the same.

macro_rules! same_as_called {
    ($($module:path { $($function:ident)* })*) => {
        #[test]
        fn every_function_has_the_type_that_is_called() {
            $({
                use $module as provided;
                $(let _same = [provided::$function, cubecl_hip_sys::$function];)*
            })*
        }
    };
}

same_as_called! {
    crate::api::copy {
        hipMemcpy hipMemcpy2D hipMemcpy2DAsync hipMemcpyAsync hipMemcpyDtoD hipMemcpyDtoDAsync
        hipMemcpyDtoH hipMemcpyDtoHAsync hipMemcpyHtoD hipMemcpyHtoDAsync hipMemset hipMemset2D
        hipMemset2DAsync hipMemsetAsync hipMemsetD16 hipMemsetD16Async hipMemsetD32
        hipMemsetD32Async hipMemsetD8 hipMemsetD8Async
    }
    crate::api::event {
        hipEventCreate hipEventCreateWithFlags hipEventDestroy hipEventElapsedTime hipEventQuery
        hipEventRecord hipEventSynchronize
    }
    crate::api::memory {
        hipDeviceGetDefaultMemPool hipDeviceGetMemPool hipFree hipFreeAsync hipFreeHost hipHostAlloc
        hipHostFree hipHostGetDevicePointer hipHostMalloc hipHostRegister hipHostUnregister
        hipMalloc hipMallocAsync hipMallocHost hipMallocManaged hipMallocPitch hipMemGetAddressRange
        hipMemGetInfo hipMemPoolSetAttribute hipMemPoolTrimTo hipPointerGetAttributes
    }
    crate::api::module {
        hipFuncGetAttribute hipModuleGetFunction hipModuleGetGlobal hipModuleLaunchKernel
        hipModuleLoad hipModuleLoadData hipModuleLoadDataEx hipModuleUnload
    }
    crate::api::platform {
        hipDeviceCanAccessPeer hipDeviceGet hipDeviceGetAttribute hipDeviceGetName
        hipDeviceGetPCIBusId hipDeviceReset hipDeviceSynchronize hipDeviceTotalMem
        hipDriverGetVersion hipGetDevice hipGetDeviceCount hipGetDevicePropertiesR0600 hipInit
        hipRuntimeGetVersion hipSetDevice hipSetDeviceFlags
    }
    crate::api::stream {
        hipStreamCreate hipStreamCreateWithFlags hipStreamCreateWithPriority hipStreamDestroy
        hipStreamGetFlags hipStreamQuery hipStreamSynchronize hipStreamWaitEvent
    }
    crate::error { hipGetErrorName hipGetErrorString hipGetLastError hipPeekAtLastError }
    crate::graph {
        hipGraphCreate hipGraphDestroy hipGraphExecDestroy hipGraphGetNodes hipGraphInstantiate
        hipGraphInstantiateWithFlags hipGraphLaunch hipGraphNodeGetType hipGraphUpload
        hipStreamBeginCapture hipStreamEndCapture hipStreamIsCapturing
    }
    crate::rtc {
        hiprtcCompileProgram hiprtcCreateProgram hiprtcDestroyProgram hiprtcGetCode
        hiprtcGetCodeSize hiprtcGetProgramLog hiprtcGetProgramLogSize
    }
}
