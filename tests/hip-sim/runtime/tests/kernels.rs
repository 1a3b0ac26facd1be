//! Modules, launches, graphs and faults, called as CubeCL calls them.

mod support;

use std::ffi::c_void;
use std::process::Command;
use std::ptr::null_mut;

use support::*;

const SOURCE: &str = r#"
#define GLOBAL extern "C" __attribute__((global))
__attribute__((device)) int version = 42;
GLOBAL void bump(unsigned count, float *values) {
    unsigned i = __builtin_amdgcn_workgroup_id_x() * __builtin_amdgcn_workgroup_size_x()
        + __builtin_amdgcn_workitem_id_x();
    if (i < count) values[i] += 1;
}
GLOBAL __attribute__((amdgpu_flat_work_group_size(1, 256))) void bounded(float *values) {
    __attribute__((shared)) static float local[1024];
    unsigned i = __builtin_amdgcn_workitem_id_x();
    local[i] = values[i];
    __builtin_amdgcn_s_barrier();
    values[i] = local[255 - i];
}
"#;

/// A loaded module with a buffer for its kernel `bump`, which adds one to each value.
struct Bump {
    module: hipModule_t,
    function: hipFunction_t,
    stream: hipStream_t,
    values: *mut c_void,
}

const COUNT: u32 = 100;

impl Bump {
    fn new() -> Option<Self> {
        let image = compile(SOURCE, "gfx942")?;
        let (mut module, mut function, mut stream, mut values) =
            (null_mut(), null_mut(), null_mut(), null_mut());
        ok!(hipModuleLoadData(&mut module, image.as_ptr().cast()));
        ok!(hipModuleGetFunction(&mut function, module, c"bump".as_ptr()));
        ok!(hipStreamCreateWithFlags(&mut stream, hipStreamNonBlocking));
        ok!(hipMalloc(&mut values, COUNT as usize * 4));
        ok!(hipMemset(values, 0, COUNT as usize * 4));
        Some(Self { module, function, stream, values })
    }

    fn launch(&self) -> hipError_t {
        self.launch_with(COUNT, self.values)
    }

    fn launch_with(&self, mut count: u32, mut values: *mut c_void) -> hipError_t {
        let mut parameters = [(&raw mut count).cast(), (&raw mut values).cast()];
        let Self { function, stream, .. } = *self;
        // SAFETY: two parameters as the kernel has them.
        unsafe {
            hipModuleLaunchKernel(function, 2, 1, 1, 64, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut())
        }
    }

    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; COUNT as usize];
        ok!(hipMemcpyDtoHAsync(values.as_mut_ptr().cast(), self.values, values.len() * 4, self.stream));
        values
    }

    fn capture(&self, work: impl FnOnce()) -> hipGraph_t {
        let mut graph = null_mut();
        ok!(hipStreamBeginCapture(self.stream, hipStreamCaptureMode_hipStreamCaptureModeGlobal));
        work();
        ok!(hipStreamEndCapture(self.stream, &mut graph));
        graph
    }

    fn close(self) {
        ok!(hipFree(self.values));
        ok!(hipStreamDestroy(self.stream));
        ok!(hipModuleUnload(self.module));
    }
}

#[test]
fn modules_are_found_or_refused() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let mut function = null_mut();
    fails!(
        hipError_t_hipErrorNotFound,
        hipModuleGetFunction(&mut function, bump.module, c"nothing".as_ptr())
    );
    let (mut variable, mut size) = (null_mut(), 0);
    ok!(hipModuleGetGlobal(&mut variable, &mut size, bump.module, c"version".as_ptr()));
    let mut version = 0_i32;
    assert_eq!(size, 4);
    ok!(hipMemcpyDtoH((&raw mut version).cast(), variable, size));
    assert_eq!(version, 42);
    let mut threads = 0;
    let attribute = hipFunction_attribute_HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    ok!(hipFuncGetAttribute(&mut threads, attribute, bump.function));
    assert_eq!(threads, 1024);

    let mut module = null_mut();
    let Some(other) = compile(SOURCE, "gfx90a") else { return };
    fails!(hipError_t_hipErrorNoBinaryForGpu, hipModuleLoadData(&mut module, other.as_ptr().cast()));
    fails!(hipError_t_hipErrorInvalidImage, hipModuleLoadData(&mut module, [0_u8; 64].as_ptr().cast()));
    fails!(hipError_t_hipErrorFileNotFound, hipModuleLoad(&mut module, c"/nowhere.co".as_ptr()));
    let (module, function) = (bump.module, bump.function);
    bump.close();
    fails!(hipError_t_hipErrorInvalidHandle, hipModuleUnload(module));
    fails!(
        hipError_t_hipErrorInvalidHandle,
        hipModuleLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, null_mut(), null_mut(), null_mut())
    );
}

#[test]
fn a_kernel_runs_with_its_arguments() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    ok!(bump.launch());
    assert_eq!(bump.values(), [1.0; COUNT as usize]);
    ok!(bump.launch_with(1, bump.values));
    assert_eq!(bump.values()[..2], [2.0, 1.0]);

    // The same through a buffer that holds the arguments as they lie in memory.
    let mut buffer = [u64::from(COUNT), bump.values as u64];
    let mut size = size_of_val(&buffer);
    let tag = std::ptr::without_provenance_mut::<c_void>;
    let mut extra = [tag(1), buffer.as_mut_ptr().cast(), tag(2), (&raw mut size).cast(), tag(3)];
    let (function, stream) = (bump.function, bump.stream);
    ok!(hipModuleLaunchKernel(function, 2, 1, 1, 64, 1, 1, 0, stream, null_mut(), extra.as_mut_ptr()));
    assert_eq!(bump.values()[..2], [3.0, 2.0]);
    bump.close();
}

#[test]
fn launches_beyond_the_limits_are_refused() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let mut bounded = null_mut();
    ok!(hipModuleGetFunction(&mut bounded, bump.module, c"bounded".as_ptr()));
    let launch = |grid: [u32; 3], block: u32, lds| {
        let mut values = bump.values;
        let mut parameters = [(&raw mut values).cast()];
        let [x, y, z] = grid;
        // SAFETY: one parameter as the kernel has it.
        unsafe {
            hipModuleLaunchKernel(
                bounded,
                x,
                y,
                z,
                block,
                1,
                1,
                lds,
                bump.stream,
                parameters.as_mut_ptr(),
                null_mut(),
            )
        }
    };
    assert_eq!(launch([0, 1, 1], 64, 0), hipError_t_hipErrorInvalidValue);
    assert_eq!(launch([1, 1, 65537], 64, 0), hipError_t_hipErrorInvalidValue);
    assert_eq!(launch([1, 1, 1], 0, 0), hipError_t_hipErrorInvalidConfiguration);
    assert_eq!(launch([1, 1, 1], 1025, 0), hipError_t_hipErrorInvalidConfiguration);
    assert_eq!(launch([1 << 30, 1, 1], 64, 0), hipError_t_hipErrorInvalidConfiguration);
    assert_eq!(launch([1, 1, 1], 512, 0), hipError_t_hipErrorLaunchFailure, "compiled for 256 threads");
    assert_eq!(launch([1, 1, 1], 64, 65536), hipError_t_hipErrorOutOfMemory, "with its own 4 KiB");
    let (function, stream) = (bump.function, bump.stream);
    fails!(
        hipError_t_hipErrorInvalidValue,
        hipModuleLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, null_mut(), null_mut())
    );
    bump.close();
}

#[test]
fn a_graph_runs_when_it_is_launched_and_reads_its_inputs_then() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let mut input = vec![5.0_f32; COUNT as usize];
    let bytes = input.len() * 4;
    let graph = bump.capture(|| {
        ok!(hipMemcpyHtoDAsync(bump.values, input.as_ptr().cast(), bytes, bump.stream));
        ok!(bump.launch());
        ok!(bump.launch());
    });
    assert_eq!(bump.values(), [0.0; COUNT as usize], "the recording did not run");

    let mut count = 0;
    ok!(hipGraphGetNodes(graph, null_mut(), &mut count));
    assert_eq!(count, 3);
    let mut nodes = [null_mut(); 3];
    ok!(hipGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count));
    let kinds = nodes.map(|node| {
        let mut kind = hipGraphNodeType_hipGraphNodeTypeCount;
        ok!(hipGraphNodeGetType(node, &mut kind));
        kind
    });
    let kernel = hipGraphNodeType_hipGraphNodeTypeKernel;
    assert_eq!(kinds, [hipGraphNodeType_hipGraphNodeTypeMemcpy, kernel, kernel]);

    let mut executable = null_mut();
    ok!(hipGraphInstantiate(&mut executable, graph, null_mut(), null_mut(), 0));
    ok!(hipGraphDestroy(graph));
    fails!(hipError_t_hipErrorInvalidHandle, hipGraphDestroy(graph));
    ok!(hipGraphUpload(executable, bump.stream));
    ok!(hipGraphLaunch(executable, bump.stream));
    assert_eq!(bump.values(), [7.0; COUNT as usize]);
    input.fill(10.0);
    ok!(hipGraphLaunch(executable, bump.stream));
    assert_eq!(bump.values(), [12.0; COUNT as usize]);
    ok!(hipGraphExecDestroy(executable));
    bump.close();
}

#[test]
fn a_call_that_would_wait_spoils_a_capture() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let (mut graph, mut pointer, mut event) = (null_mut(), null_mut(), null_mut());
    ok!(hipEventCreateWithFlags(&mut event, hipEventDefault));
    fails!(hipError_t_hipErrorIllegalState, hipStreamEndCapture(bump.stream, &mut graph));
    fails!(hipError_t_hipErrorStreamCaptureUnsupported, hipStreamBeginCapture(null_mut(), 0));
    let begin = || ok!(hipStreamBeginCapture(bump.stream, 0));

    begin();
    fails!(hipError_t_hipErrorIllegalState, hipStreamBeginCapture(bump.stream, 0));
    fails!(hipError_t_hipErrorStreamCaptureUnsupported, hipMalloc(&mut pointer, 4));
    let mut status = 0;
    ok!(hipStreamIsCapturing(bump.stream, &mut status));
    assert_eq!(status, hipStreamCaptureStatus_hipStreamCaptureStatusInvalidated);
    assert_eq!(bump.launch(), hipError_t_hipErrorStreamCaptureInvalidated);
    fails!(hipError_t_hipErrorStreamCaptureInvalidated, hipStreamEndCapture(bump.stream, &mut graph));
    assert!(graph.is_null());

    begin();
    fails!(hipError_t_hipErrorStreamCaptureUnsupported, hipStreamSynchronize(bump.stream));
    fails!(hipError_t_hipErrorStreamCaptureInvalidated, hipStreamEndCapture(bump.stream, &mut graph));

    begin();
    ok!(hipEventRecord(event, bump.stream));
    fails!(hipError_t_hipErrorCapturedEvent, hipEventSynchronize(event));
    fails!(hipError_t_hipErrorStreamCaptureInvalidated, hipStreamEndCapture(bump.stream, &mut graph));

    ok!(hipMalloc(&mut pointer, 4));
    ok!(hipFree(pointer));
    ok!(hipEventDestroy(event));
    bump.close();
}

#[test]
fn a_stream_that_waits_for_a_capture_takes_part_in_it() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let (mut other, mut forked, mut joined) = (null_mut(), null_mut(), null_mut());
    ok!(hipStreamCreateWithFlags(&mut other, hipStreamNonBlocking));
    ok!(hipEventCreate(&mut forked));
    ok!(hipEventCreate(&mut joined));
    let mut graph = null_mut();
    ok!(hipStreamBeginCapture(bump.stream, hipStreamCaptureMode_hipStreamCaptureModeGlobal));
    ok!(hipEventRecord(forked, bump.stream));
    ok!(hipStreamWaitEvent(other, forked, 0));
    ok!(hipMemsetD8Async(bump.values, 1, 4, other));
    ok!(hipEventRecord(joined, other));
    ok!(hipStreamWaitEvent(bump.stream, joined, 0));
    fails!(hipError_t_hipErrorStreamCaptureUnmatched, hipStreamEndCapture(other, &mut graph));
    ok!(hipStreamEndCapture(bump.stream, &mut graph));
    let mut count = 0;
    ok!(hipGraphGetNodes(graph, null_mut(), &mut count));
    assert_eq!(count, 1);
    ok!(hipStreamSynchronize(other));
    ok!(hipStreamDestroy(other));
    ok!(hipGraphDestroy(graph));
    bump.close();
}

#[test]
fn a_kernel_that_faults_leaves_the_device_unusable_until_a_reset() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    ok!(bump.launch_with(COUNT, null_mut()));
    let illegal = hipError_t_hipErrorIllegalAddress;
    fails!(illegal, hipStreamSynchronize(bump.stream));
    assert_eq!(bump.launch(), illegal);
    let mut pointer = null_mut();
    fails!(illegal, hipMalloc(&mut pointer, 4));
    ok!(hipDeviceReset());
    ok!(hipMalloc(&mut pointer, 4));
    ok!(hipFree(pointer));
    let Some(bump) = Bump::new() else { return };
    ok!(bump.launch());
    assert_eq!(bump.values(), [1.0; COUNT as usize]);
    bump.close();
}

#[test]
fn memory_freed_before_a_replay_is_a_fault_of_the_replay() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let mut pointer = null_mut();
    ok!(hipMalloc(&mut pointer, 4));
    let graph = bump.capture(|| ok!(hipMemsetD8Async(pointer, 1, 4, bump.stream)));
    let mut executable = null_mut();
    ok!(hipGraphInstantiate(&mut executable, graph, null_mut(), null_mut(), 0));
    ok!(hipFree(pointer));
    ok!(hipGraphLaunch(executable, bump.stream));
    fails!(hipError_t_hipErrorLaunchFailure, hipDeviceSynchronize());
    ok!(hipDeviceReset());
}

/// Runs one of the tests here in a process of its own, with all checks and a profile.
fn in_a_process(test: &str, options: &[&str]) -> String {
    let profile = directory(test).join("profile.tsv");
    let status = Command::new(std::env::current_exe().expect("the test knows itself"))
        .args(["--exact", test])
        .args(options)
        .env("HIP_SIM_CHECKS", "races,poison,barriers")
        .env("HIP_SIM_PROFILE", &profile)
        .status();
    assert!(status.expect("the process starts").success(), "{test}");
    let table = std::fs::read_to_string(&profile).expect("the profile is written at the end");
    std::fs::remove_dir_all(profile.parent().expect("a folder")).expect("the folder is removed");
    table
}

#[test]
fn a_profile_is_written_when_the_process_ends() {
    let table = in_a_process("a_kernel_runs_with_its_arguments", &[]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0][..4], ["kernel", "launches", "waves", "instructions"]);
    // Three launches of two workgroups of one wave.
    assert_eq!(lines[1][..3], ["bump", "3", "6"]);
    assert_eq!(lines.len(), 2);
}

#[test]
fn reads_of_memory_never_written_are_faults_if_that_is_checked() {
    in_a_process("a_read_of_memory_never_written_is_a_fault", &["--ignored"]);
}

#[test]
#[ignore = "only with HIP_SIM_CHECKS=poison, see above"]
fn a_read_of_memory_never_written_is_a_fault() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    ok!(bump.launch());
    let mut unwritten = null_mut();
    ok!(hipMalloc(&mut unwritten, COUNT as usize * 4));
    ok!(bump.launch_with(COUNT, unwritten));
    fails!(hipError_t_hipErrorLaunchFailure, hipDeviceSynchronize());
}

#[test]
fn waves_exchange_values_through_local_memory() {
    let _device = device();
    let Some(bump) = Bump::new() else { return };
    let mut function = null_mut();
    ok!(hipModuleGetFunction(&mut function, bump.module, c"bounded".as_ptr()));
    let mut numbers: Vec<f32> = (0..256_u16).map(f32::from).collect();
    let mut values = null_mut();
    ok!(hipMalloc(&mut values, 1024));
    ok!(hipMemcpyHtoDAsync(values, numbers.as_ptr().cast(), 1024, bump.stream));
    let mut parameters = [(&raw mut values).cast()];
    let parameters = parameters.as_mut_ptr();
    ok!(hipModuleLaunchKernel(function, 1, 1, 1, 256, 1, 1, 0, bump.stream, parameters, null_mut()));
    numbers.reverse();
    let mut reversed = vec![0.0_f32; 256];
    ok!(hipMemcpyDtoHAsync(reversed.as_mut_ptr().cast(), values, 1024, bump.stream));
    assert_eq!(reversed, numbers);
    ok!(hipFree(values));
    bump.close();
}
