//! A matrix product written in C, on the matrix cores, through the functions of HIP as a program calls them.

mod support;

use std::ffi::c_void;
use std::ptr::null_mut;

use hip_sim::float::f32_to_f16;
use support::*;

/// Each workgroup of one wave computes a tile of 32 x 32 of `D = A Bᵀ`, all matrices by rows.
const SOURCE: &str = r#"
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef float float16 __attribute__((ext_vector_type(16)));
extern "C" __attribute__((global)) void product(const half4 *a, const half4 *b, float *d, int columns, int depth) {
    int lane = __builtin_amdgcn_workitem_id_x();
    int row = __builtin_amdgcn_workgroup_id_y() * 32, column = __builtin_amdgcn_workgroup_id_x() * 32;
    float16 sum = {};
    for (int k = 0; k < depth / 4; k += 2)
        sum = __builtin_amdgcn_mfma_f32_32x32x8f16(a[(row + lane % 32) * depth / 4 + k + lane / 32],
            b[(column + lane % 32) * depth / 4 + k + lane / 32], sum, 0, 0, 0);
    for (int i = 0; i < 16; i++)
        d[(row + i / 4 * 8 + lane / 32 * 4 + i % 4) * columns + column + lane % 32] = sum[i];
}
"#;

const ROWS: usize = 96;
const COLUMNS: usize = 64;
const DEPTH: usize = 40;

/// Quarters from -2 to 2, which f16 holds, as do f32 the sums of their products.
fn quarter(at: usize, step: usize) -> f32 {
    (at * step % 17) as f32 / 4.0 - 2.0
}

fn upload(values: &[u16]) -> *mut c_void {
    let mut pointer = null_mut();
    ok!(hipMalloc(&mut pointer, size_of_val(values)));
    ok!(hipMemcpyHtoDAsync(pointer, values.as_ptr().cast(), size_of_val(values), null_mut()));
    pointer
}

#[test]
fn a_product_on_the_matrix_cores() {
    let _device = device();
    let Some(image) = compile(SOURCE, "gfx942") else { return };
    let (mut module, mut function) = (null_mut(), null_mut());
    ok!(hipModuleLoadData(&mut module, image.as_ptr().cast()));
    ok!(hipModuleGetFunction(&mut function, module, c"product".as_ptr()));
    let a: Vec<f32> = (0..ROWS * DEPTH).map(|at| quarter(at, 5)).collect();
    let b: Vec<f32> = (0..COLUMNS * DEPTH).map(|at| quarter(at, 11)).collect();
    let [mut a_at, mut b_at] =
        [&a, &b].map(|values| upload(&values.iter().map(|&x| f32_to_f16(x)).collect::<Vec<_>>()));
    let mut d_at = null_mut();
    ok!(hipMalloc(&mut d_at, ROWS * COLUMNS * 4));
    let (mut columns, mut depth) = (COLUMNS as i32, DEPTH as i32);
    let mut parameters: [*mut c_void; 5] = [
        (&raw mut a_at).cast(),
        (&raw mut b_at).cast(),
        (&raw mut d_at).cast(),
        (&raw mut columns).cast(),
        (&raw mut depth).cast(),
    ];
    let (x, y) = (COLUMNS as u32 / 32, ROWS as u32 / 32);
    let parameters = parameters.as_mut_ptr();
    ok!(hipModuleLaunchKernel(function, x, y, 1, 64, 1, 1, 0, null_mut(), parameters, null_mut()));
    let mut d = vec![f32::NAN; ROWS * COLUMNS];
    ok!(hipMemcpyDtoH(d.as_mut_ptr().cast(), d_at, ROWS * COLUMNS * 4));
    for (at, &value) in d.iter().enumerate() {
        let (row, column) = (at / COLUMNS, at % COLUMNS);
        let expected: f32 = (0..DEPTH).map(|k| a[row * DEPTH + k] * b[column * DEPTH + k]).sum();
        assert_eq!(value, expected, "row {row}, column {column}");
    }
    for pointer in [a_at, b_at, d_at] {
        ok!(hipFree(pointer));
    }
    ok!(hipModuleUnload(module));
}
