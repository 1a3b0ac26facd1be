//! Scalars that steer: forks and joins, skipped vector instructions, hardware registers, masks of quads.

mod common;

use common::{assemble, run, run_body};
use hip_sim::dispatch::Checks;
use hip_sim::report::Cause;

#[test]
fn both_paths_of_a_fork_are_taken_and_joined() {
    // Lanes below a bound take the label; nested forks by the lowest bit. The depth is in s30 and s31.
    let code = |bound: u32| {
        format!(
            "s_mov_b64 s[40:41], s[0:1]
            v_mov_b32 v10, 0
            v_cmp_gt_u32 s[20:21], {bound}, v0
            v_and_b32 v18, 1, v0
            v_cmp_eq_u32 s[22:23], 1, v18
            s_getpc_b64 s[24:25]
            after{bound}:
            s_add_u32 s24, s24, low{bound}-after{bound}
            s_addc_u32 s25, s25, 0
            s_cbranch_g_fork s[20:21], s[24:25]
            v_add_u32 v10, 100, v10
            s_branch join{bound}
            low{bound}:
            v_add_u32 v10, 1, v10
            s_getreg_b32 s30, hwreg(HW_REG_MODE, 29, 3)
            s_cbranch_i_fork s[22:23], odd{bound}
            v_add_u32 v10, 10, v10
            s_branch inner{bound}
            odd{bound}:
            v_add_u32 v10, 20, v10
            inner{bound}:
            s_cbranch_join s30
            join{bound}:
            s_mov_b32 s31, 0
            s_cbranch_join s31
            v_mov_b32 v11, 1
            s_mov_b64 s[0:1], s[40:41]"
        )
    };
    // The stack of forks is in the SGPRs from 0 on, so that none may lie there.
    for bound in [0, 10, 40, 64] {
        let Some(results) = run(&code(bound), |_| [0; 8]) else { return };
        for (lane, out) in (0..).zip(&results) {
            let expected = match lane {
                lane if lane >= bound => 100,
                lane => 11 + lane % 2 * 10,
            };
            assert_eq!(out[0], expected, "bound {bound} lane {lane}");
            // Behind the joins only the lanes of the last path are on, odd ones having gone before even ones.
            let last = match bound {
                0 => true,
                64 => lane % 2 == 0,
                // The smaller part goes first.
                10 => lane >= bound,
                _ => lane < bound && lane % 2 == 0,
            };
            assert_eq!(out[1], if last { 1 } else { 0xcccc_cccc }, "bound {bound} lane {lane}");
        }
    }
}

#[test]
fn vector_instructions_are_skipped() {
    let code = "s_mov_b32 s2, 4
        v_mov_b32 v10, 1
        s_setvskip s2, 2
        v_mov_b32 v10, 2
        global_load_dword v11, v1, s[0:1]
        ds_read_b32 v12, v1
        v_cmp_eq_u32 vcc, 0, v0
        s_add_u32 s2, s2, 1
        s_getreg_b32 s3, hwreg(HW_REG_MODE, 28, 1)
        s_setvskip s2, 3
        v_mov_b32 v13, s2
        v_mov_b32 v14, s3";
    let Some(results) = run(code, |_| [0; 8]) else { return };
    assert_eq!(results[9][..5], [1, 0xcccc_cccc, 0xcccc_cccc, 5, 1]);
}

#[test]
fn hardware_registers_say_what_they_can() {
    let body = "s_mov_b64 vcc, 0
        s_cmp_eq_u32 s0, s0
        s_getreg_b32 s8, hwreg(HW_REG_STATUS, 0, 12)
        s_getreg_b32 s9, hwreg(HW_REG_MODE, 0, 10)
        s_getreg_b32 s10, hwreg(HW_REG_SH_MEM_BASES, 16, 16)
        s_getreg_b32 s11, hwreg(HW_REG_LDS_ALLOC, 12, 9)
        s_getreg_b32 s12, hwreg(HW_REG_XCC_ID)
        s_setreg_imm32_b32 hwreg(HW_REG_MODE, 2, 2), 1
        s_getreg_b32 s13, hwreg(HW_REG_MODE, 0, 10)
        s_mov_b64 s[14:15], src_shared_base
        s_lshl_b32 s10, s10, 16
        s_store_dwordx4 s[8:11], s[0:1], 0
        s_store_dwordx4 s[12:15], s[0:1], 16";
    let Some(result) = run_body(body, &[9; 8]) else { return };
    // 64 KB are 256 units.
    assert_eq!(result[..6], [1 | 1 << 10, 0x3f0, result[7], 256, 0, 0x3f4]);
    let Some(device) = assemble("s_getreg_b32 s8, hwreg(HW_REG_TRAPSTS)") else { return };
    let fault = device.run("test", [1; 3], [64, 1, 1], &[0], Checks::default()).expect_err("not modelled");
    assert_eq!(fault.cause, Cause::Unsupported("this hardware register"));
}

#[test]
fn quads_of_bits_are_gathered_and_spread() {
    let value = 0x8000_0100_f00f_0020u64;
    let body = format!(
        "s_mov_b32 s2, {:#x}
        s_mov_b32 s3, {:#x}
        s_quadmask_b32 s8, s2
        s_quadmask_b64 s[10:11], s[2:3]
        s_wqm_b32 s9, s2
        s_wqm_b64 s[12:13], s[2:3]
        s_bitreplicate_b64_b32 s[14:15], s2
        s_store_dwordx4 s[8:11], s[0:1], 0
        s_store_dwordx4 s[12:15], s[0:1], 16",
        value as u32,
        value >> 32
    );
    let Some(result) = run_body(&body, &[0; 8]) else { return };
    let quads = |value: u64| (0..16).filter(|quad| value >> (4 * quad) & 15 != 0).collect::<Vec<u64>>();
    let mask = quads(value).iter().map(|quad| 1u64 << quad).sum::<u64>();
    let spread = quads(value).iter().map(|quad| 15u64 << (4 * quad)).sum::<u64>();
    let twice = (0..32).filter(|bit| value >> bit & 1 == 1).map(|bit| 3u64 << (2 * bit)).sum::<u64>();
    let words = |value: u64| [value as u32, (value >> 32) as u32];
    assert_eq!(result[..2], [mask as u32 & 0xff, spread as u32]);
    assert_eq!([&result[2..4], &result[4..6], &result[6..]], [words(mask), words(spread), words(twice)]);
}

#[test]
fn a_wave_ends_where_it_is_killed() {
    let body = "v_mov_b32 v2, 1
        v_lshlrev_b32 v1, 2, v0
        global_store_dword v1, v2, s[0:1]
        s_setkill 0
        global_store_dword v1, v2, s[0:1] offset:256
        s_setkill 1
        global_store_dword v1, v2, s[0:1] offset:512";
    let Some(result) = run_body(body, &[0; 192]) else { return };
    assert!(result[..128].iter().all(|&word| word == 1) && result[128..].iter().all(|&word| word == 0));
}
