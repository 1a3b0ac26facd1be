//! Bad masks and bytes.

use burn::tensor::{Bool, DType, Int, Tensor};
use burn_flashinfer::{BitOrder, Indptr, packbits, segment_packbits, segment_unpackbits, unpackbits};

use super::{elsewhere, foreign};
use crate::devices::{Target, device_tests};
use crate::support::refused;

device_tests!(bits);

fn bits(target: Target) {
    let order = BitOrder::Little;
    let mask = || Tensor::<1, Bool>::full([9], true, &target.device);
    let packed = |len: usize| Tensor::<1, Int>::zeros([len], (&target.device, DType::U8));
    let indptr = |lengths: &[usize]| Indptr::from_lengths(lengths, &target.device).expect("valid");
    for total in [8, 10] {
        refused(
            segment_packbits(mask(), &indptr(&[3, total - 3]), order),
            format!("segment_packbits: `indptr[2]` is {total}, expected 9, the bits of `x`"),
        );
    }
    for len in [0, 1, 3] {
        refused(
            unpackbits(packed(len), 9, order),
            format!("unpackbits: `packed` has shape [{len}], expected [2], the bytes of 9 bits"),
        );
        refused(
            segment_unpackbits(packed(len), &indptr(&[1, 8]), order),
            format!(
                "segment_unpackbits: `packed` has shape [{len}], expected [2], the bytes of the segments of `indptr`"
            ),
        );
    }
    let ints = || Tensor::<1, Int>::zeros([2], (&target.device, DType::I32));
    refused(unpackbits(ints(), 9, order), "unpackbits: `packed` is of type I32, expected U8");
    refused(
        segment_unpackbits(ints(), &indptr(&[1, 8]), order),
        "segment_unpackbits: `packed` is of type I32, expected U8",
    );
    let Some(other) = foreign(&target) else { return };
    let far = Indptr::from_lengths(&[1, 8], &other).expect("valid");
    refused(
        segment_packbits(mask(), &far, order),
        elsewhere("segment_packbits", "indptr", &other, &target.device),
    );
    refused(
        segment_unpackbits(packed(2), &far, order),
        elsewhere("segment_unpackbits", "indptr", &other, &target.device),
    );
    let plain = target.device.clone().autodiff();
    let x = Tensor::<1, Bool>::full([9], true, &plain);
    assert_eq!(packbits(x, order).map(|packed| packed.dims()), Ok([2]));
}
