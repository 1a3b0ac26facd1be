//! How fast the simulator is: `cargo test --release --test speed -- --ignored --nocapture`.

mod common;

use std::time::Instant;

use common::{assemble, compile};
use hip_sim::dispatch::Checks;

#[test]
#[ignore = "measures, asserts nothing"]
fn instructions_per_second() {
    let loops = [
        ("v_fma_f32", "v_fma_f32 v2, v3, v4, v2\n"),
        ("v_add_u32", "v_add_u32 v2, v3, v2\n"),
        ("v_pk_fma_f16", "v_pk_fma_f16 v2, v3, v4, v2\n"),
        ("v_exp_f32", "v_exp_f32 v2, v3\n"),
        ("v_mfma_f32_32x32x8_f16", "v_mfma_f32_32x32x8_f16 a[0:15], v[2:3], v[4:5], a[0:15]\n"),
        ("v_mfma_f32_16x16x16_bf16", "v_mfma_f32_16x16x16_bf16 a[0:3], v[2:3], v[4:5], a[0:3]\n"),
        ("ds_read_b128", "ds_read_b128 v[2:5], v0\n"),
        ("global_load_dwordx4", "global_load_dwordx4 v[2:5], v0, s[0:1]\n"),
        ("global_store_dword", "global_store_dword v0, v2, s[0:1]\n"),
        ("s_add_u32", "s_add_u32 s2, s3, s2\n"),
    ];
    for (name, instruction) in loops {
        let body = format!(
            "s_movk_i32 s8, 1000\nloop:\n{}s_sub_u32 s8, s8, 1\ns_cmp_lg_u32 s8, 0\ns_cbranch_scc1 loop",
            instruction.repeat(20)
        );
        let Some(device) = assemble(&body) else { return };
        let memory = device.upload(&[0u32; 4096]);
        let start = Instant::now();
        let done = device.run("test", [1; 3], [64, 1, 1], &[memory], Checks::default());
        done.unwrap_or_else(|fault| panic!("{fault}"));
        println!("{name:28} {:8.1} ns", start.elapsed().as_nanos() as f64 / 20_000.0);
    }
    let Some(device) = compile("basic.hip") else { return };
    let n = 1 << 22;
    let (a, c) = (device.upload(&vec![1f32; n]), device.upload(&vec![0f32; n]));
    let start = Instant::now();
    let groups = (n / 256) as u32;
    let done = device.run("add", [groups, 1, 1], [256, 1, 1], &[a, a, c, n as u64], Checks::default());
    done.unwrap_or_else(|fault| panic!("{fault}"));
    println!("add of {n} elements: {:?}", start.elapsed());
}
