//! Linear layers.

use burn::backend::{cubecl::dtype_to_storage_type, ops::FloatTensorOps};
use burn_cubecl::{
    CubeBackend,
    kernel::matmul::{MatmulStrategy, matmul},
    tensor::CubeTensor,
};
use burn_flashinfer_kernels::DeviceProfile;
use burn_flashinfer_kernels::gemm::{self, Gemm};
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::{launch::launch_ref, multi_level};
use cubek::std::InputBinding;

use super::tensor::{empty_like, in_rows, launched, refused};

pub(super) fn matmul_nt(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
    let [rows, columns] = [x.meta.shape()[0], weight.meta.shape()[0]];
    let y = empty_like(&x, [rows, columns].into(), x.dtype);
    if rows == 0 {
        return y;
    }
    if gemm::is_for(&DeviceProfile::of(&x.client), rows) {
        let (client, dtype) = (x.client.clone(), dtype_to_storage_type(x.dtype));
        let (x, weight) = (in_rows(x).binding(), in_rows(weight).binding());
        launched(gemm::launch(&client, Gemm { x, weight, y: y.clone().binding() }, dtype));
        return y;
    }
    // A view: Burn's product reads the weight column by column and accumulates f16 and bf16 in f32.
    let weight = CubeBackend::float_swap_dims(weight, 0, 1);
    // On a CPU each unit of Burn's kernel is a thread that spins until the others have come: where these were 8 on 2 busy
    // cores, one product took 53 s.
    if !cfg!(feature = "autotune") {
        return naive_matmul(x, weight, [rows, columns]);
    }
    matmul(x.clone(), weight.clone(), None, MatmulStrategy::default(), x.dtype)
        .unwrap_or_else(|_| naive_matmul(x, weight, [rows, columns]))
}

/// `x · weight`, slowly, for shapes that Burn refuses. Without autotuning it has one kernel, which for most
/// shapes needs more shared memory than the CPU has (45 KB of 32 KiB).
fn naive_matmul(x: CubeTensor, weight: CubeTensor, shape: [usize; 2]) -> CubeTensor {
    let product = empty_like(&x, shape.into(), x.dtype);
    let element = dtype_to_storage_type(x.dtype);
    let [lhs, rhs, out] = [element; 3];
    let launched = launch_ref(
        &multi_level::Strategy::Naive.into(),
        &product.client,
        InputBinding::new(x.binding(), lhs),
        InputBinding::new(weight.binding(), rhs),
        product.clone().binding(),
        &mut MatmulElems::from_globals(&MatmulGlobalElems { lhs, rhs, out }),
    );
    if let Err(refusal) = launched {
        refused(&refusal)
    }
    product
}
