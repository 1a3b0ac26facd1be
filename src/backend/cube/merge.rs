//! Launches of merging.

use burn::backend::{DType, cubecl::dtype_to_storage_type};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use burn_flashinfer_kernels::merge::{self, Merge, State, States};

use super::tensor::{empty_like, fresh, in_rows, index, launched};
use crate::extension::MaybeInts;

pub(super) fn merge_state(
    v_a: CubeTensor,
    s_a: CubeTensor,
    v_b: CubeTensor,
    s_b: CubeTensor,
    mask: MaybeInts<CubeBackend>,
) -> (CubeTensor, CubeTensor) {
    let (v_a, s_a) = (in_rows(v_a), in_rows(s_a));
    let (v, s) = (fresh(&v_a), fresh(&s_a));
    let results = (v.clone().unwrap_or_else(|| v_a.clone()), s.clone().unwrap_or_else(|| s_a.clone()));
    if v_a.meta.num_elements() > 0 {
        let (client, dtype) = (v_a.client.clone(), dtype_to_storage_type(v_a.dtype));
        let mask = mask.into_option().map(index);
        let merge = Merge {
            states: States::Two { a: state(v_a, s_a), b: state(v_b, s_b), mask },
            v: v.map(CubeTensor::binding),
            s: s.map(CubeTensor::binding),
        };
        // SAFETY: there is no row pointer.
        launched(unsafe { merge::launch(&client, merge, dtype) });
    }
    results
}

pub(super) fn merge_states(
    v: CubeTensor,
    s: CubeTensor,
    indptr: MaybeInts<CubeBackend>,
) -> (CubeTensor, CubeTensor) {
    let shape = v.meta.shape();
    let [heads, dim] = [shape[shape.num_dims() - 2], shape[shape.num_dims() - 1]];
    let tokens = match &indptr {
        MaybeInts::None => shape[0],
        MaybeInts::Some(indptr) => indptr.meta.shape()[0] - 1,
    };
    let merged_v = empty_like(&v, [tokens, heads, dim].into(), v.dtype);
    let merged_s = empty_like(&s, [tokens, heads].into(), DType::F32);
    if merged_v.meta.num_elements() > 0 {
        let (client, dtype) = (v.client.clone(), dtype_to_storage_type(v.dtype));
        let states = state(v, s);
        let merge = Merge {
            states: match indptr {
                MaybeInts::None => States::Equal(states),
                MaybeInts::Some(indptr) => States::Ragged { states, indptr: index(indptr) },
            },
            v: Some(merged_v.clone().binding()),
            s: Some(merged_s.clone().binding()),
        };
        // SAFETY: `Indptr` checks that it never falls, and `ops::merge` that it ends at the rows of `v`.
        launched(unsafe { merge::launch(&client, merge, dtype) });
    }
    (merged_v, merged_s)
}

fn state(v: CubeTensor, s: CubeTensor) -> State {
    State { v: in_rows(v).binding(), s: in_rows(s).binding() }
}
