use cubecl::prelude::*;

use super::buffers::{CodeScales, CodeScalesLaunch};

/// The scales of keys and of values that are codes: f32, contiguous, `[1]` or `[kv_heads]`.
pub struct KvScales {
    /// The factor on `q·k`, before anything else happens to it.
    pub k: TensorBinding,
    /// The factor on the output, before the variant finishes it.
    pub v: TensorBinding,
}

/// The tensors of a checked problem, with keys and values in pages.
pub(super) struct Operands {
    pub q: TensorBinding,
    pub k: TensorBinding,
    pub v: TensorBinding,
    pub output: TensorBinding,
    pub lse: Option<TensorBinding>,
    pub scales: Option<KvScales>,
}

/// The launch argument of scales that were checked.
pub(super) fn scales_argument(scales: Option<KvScales>) -> ComptimeOptionArgs<CodeScales> {
    let launch = |KvScales { k, v }: KvScales| {
        let [k_stride, v_stride] = [&k, &v].map(|scale| usize::from(scale.size() > 1));
        CodeScalesLaunch::new(k.into_buffer_arg(), v.into_buffer_arg(), k_stride, v_stride)
    };
    scales.map(launch).into()
}
