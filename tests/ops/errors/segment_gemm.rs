//! Bad segments and matrices.

use burn_flashinfer::{Indptr, SegmentGemm, WeightLayout, segment_gemm};

use super::{elsewhere, f64s, foreign, halves, zeros};
use crate::devices::{Target, device_tests};
use crate::support::refused;

device_tests!(segments_and_matrices);

fn segments_and_matrices(target: Target) {
    let device = &target.device;
    let segments = Indptr::from_lengths(&[2, 0, 3], device).expect("valid");
    for indices in [&[0, 1][..], &[0, 1, 2, 3]] {
        refused(
            SegmentGemm::new(&segments, Some(indices)),
            format!(
                "SegmentGemm::new: `weight_indices` is of length {}, expected one for each of 3 segments",
                indices.len()
            ),
        );
    }
    refused(
        SegmentGemm::new(&segments, Some(&[0, 1 << 31, 0])),
        "SegmentGemm::new: `weight_indices[1]` is 2147483648, expected at most 2147483647",
    );
    let plan = SegmentGemm::new(&segments, Some(&[1, 0, 1])).expect("valid");
    let (x, weights) = (|| zeros([5, 8], device), || zeros([2, 8, 4], device));
    for shape in [[4, 8], [6, 8], [5, 7]] {
        refused(
            plan.run(zeros(shape, device), weights()),
            format!(
                "SegmentGemm::run: `x` has shape {shape:?}, expected [5, 8], the rows of the segments and the inputs of \
                 `weights`"
            ),
        );
    }
    refused(
        plan.clone().layout(WeightLayout::ColumnMajor).run(x(), weights()),
        "SegmentGemm::run: `x` has shape [5, 8], expected [5, 4], the rows of the segments and the inputs of `weights`",
    );
    for shape in [[1, 8, 4], [2, 8, 0]] {
        refused(
            plan.run(x(), zeros(shape, device)),
            format!(
                "SegmentGemm::run: `weights` has shape {shape:?}, expected at least 2 matrices, and no empty axis"
            ),
        );
    }
    let row = WeightLayout::RowMajor;
    refused(
        segment_gemm(x(), weights(), &segments, None, row),
        "segment_gemm: `weights` has shape [2, 8, 4], expected at least 3 matrices, and no empty axis",
    );
    refused(
        plan.run(x(), halves([2, 8, 4], device)),
        "SegmentGemm::run: `weights` is of type F16, expected F32, as the other arguments",
    );
    if device.supports_dtype(burn::tensor::DType::F64) {
        refused(
            plan.run(f64s([5, 8], device), f64s([2, 8, 4], device)),
            "SegmentGemm::run: `x` is of type F64, expected F32, F16 or BF16",
        );
    }
    let autodiff = device.clone().autodiff();
    let at = |argument: &str| {
        format!(
            "SegmentGemm::run: `{argument}` requires a gradient, expected a tensor without one: this operation has no \
             backward pass (call `.inner()` for inference)"
        )
    };
    let segments = Indptr::from_lengths(&[2, 0, 3], &autodiff).expect("valid");
    let plan_there = SegmentGemm::new(&segments, Some(&[1, 0, 1])).expect("valid");
    let (gx, gweights) = (|| zeros([5, 8], &autodiff), || zeros([2, 8, 4], &autodiff));
    refused(plan_there.run(gx().require_grad(), gweights()), at("x"));
    refused(plan_there.run(gx(), gweights().require_grad()), at("weights"));
    let y = plan_there.run(gx(), gweights()).expect("no gradient");
    assert!(y.device().is_autodiff() && !y.is_require_grad());

    let Some(other) = foreign(&target) else { return };
    let op = "SegmentGemm::run";
    refused(plan.run(x(), zeros([2, 8, 4], &other)), elsewhere(op, "weights", &other, device));
    refused(
        plan.run(zeros([5, 8], &other), zeros([2, 8, 4], &other)),
        elsewhere(op, "segments", device, &other),
    );
}
