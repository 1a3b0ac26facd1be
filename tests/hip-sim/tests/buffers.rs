//! Buffers: ranges, swizzling, lanes as indices, and transfers that bypass registers.

mod common;

use common::{random_lanes, run, run_body};

/// Code around a buffer over 4 KB of memory after the first 64 words, which receive a word per lane from v2.
fn with_buffer(records: u32, word1: u32, word3: u32, code: &str) -> String {
    format!(
        "s_add_u32 s4, s0, 0x100
        s_addc_u32 s5, s1, {word1:#x}
        s_mov_b32 s6, {records}
        s_mov_b32 s7, {word3:#x}
        v_lshlrev_b32 v1, 2, v0
        {code}
        s_waitcnt vmcnt(0) lgkmcnt(0)
        global_store_dword v1, v2, s[0:1]"
    )
}

/// 64 words for the results, then 1024 that are their own index.
fn memory() -> Vec<u32> {
    [0; 64].into_iter().chain(0..1024).collect()
}

const PLAIN: u32 = 0x27fac;

#[test]
fn each_word_is_inside_or_outside_for_itself() {
    // The buffer ends in the middle of the four words of lane 9; the scalar offset is not checked.
    let code = "v_lshlrev_b32 v10, 4, v0
        s_movk_i32 s8, 0x800
        v_mov_b32 v5, 9
        buffer_load_dwordx4 v[2:5], v10, s[4:7], s8 offen
        s_waitcnt vmcnt(0)
        v_lshl_add_u32 v2, v2, 0, v3
        v_add3_u32 v2, v2, v4, v5
        v_mov_b32 v6, -1
        v_mov_b32 v7, -2
        v_mov_b32 v8, -3
        buffer_store_dwordx3 v[6:8], v10, s[4:7], 0 offen offset:8
        buffer_atomic_add v8, v10, s[4:7], 0 offen offset:4 sc0
        s_waitcnt vmcnt(0)
        v_lshl_add_u32 v2, v8, 16, v2";
    let Some(result) = run_body(&with_buffer(9 * 16 + 8, 0, PLAIN, code), &memory()) else { return };
    for (lane, value) in (0..).zip(&result[..64]) {
        let loaded: u32 = (0..4).map(|n| 4 * lane + n).filter(|&n| n < 38).map(|n| 512 + n).sum();
        let before_atomic = if 4 * lane + 1 < 38 { 4 * lane + 1 } else { 0 };
        assert_eq!(*value, loaded.wrapping_add(before_atomic << 16), "lane {lane}");
    }
    for word in 0..1024 {
        let (lane, n) = (word / 4, word % 4);
        let inside = word < 38;
        let expected = match n {
            _ if !inside => word as u32,
            // Word 0 was written as the fifth word of the lane before.
            0 if lane > 0 => -3i32 as u32,
            0 => 0,
            1 => (word as i32 - 3) as u32,
            2 => -1i32 as u32,
            _ => -2i32 as u32,
        };
        assert_eq!(result[64 + word], expected, "word {word}");
    }
}

#[test]
fn records_are_counted_where_they_have_a_stride() {
    // Records of 12 bytes, 20 of them; with an index, and then as bytes without one.
    let code = "v_mov_b32 v10, v0
        v_mov_b32 v11, 4
        buffer_load_dword v2, v[10:11], s[4:7], 0 idxen offen offset:4
        v_lshlrev_b32 v12, 2, v0
        buffer_load_dword v3, v12, s[4:7], 0 offen
        s_waitcnt vmcnt(0)
        v_lshl_or_b32 v2, v2, 16, v3";
    let Some(result) = run_body(&with_buffer(20, 12 << 16, PLAIN, code), &memory()) else { return };
    for (lane, value) in (0..).zip(&result[..64]) {
        let indexed = if lane < 20 { 3 * lane + 2 } else { 0 };
        let bytes = if 4 * lane + 4 <= 20 { lane } else { 0 };
        assert_eq!(*value, indexed << 16 | bytes, "lane {lane}");
    }
}

#[test]
fn swizzling_puts_equal_elements_of_records_together() {
    for (code, index_stride) in (0..4).map(|n| (n, 8usize << n)) {
        // Records of 16 bytes; the index comes from a register, or is the lane.
        let word1 = 1 << 31 | 16 << 16;
        let by_index = "v_mov_b32 v10, v0
            buffer_load_dwordx2 v[2:3], v10, s[4:7], 0 idxen offset:4
            s_waitcnt vmcnt(0)
            v_lshl_or_b32 v2, v3, 16, v2";
        let by_lane = "v_mov_b32 v10, 4
            buffer_load_dwordx2 v[2:3], v10, s[4:7], 0 offen
            s_waitcnt vmcnt(0)
            v_lshl_or_b32 v2, v3, 16, v2";
        for (instructions, add_lane) in [(by_index, 0), (by_lane, 1)] {
            // With the lane added, the data format would be more of the stride.
            let word3 = (if add_lane == 1 { 0x7fac } else { PLAIN }) | code << 21 | add_lane << 23;
            let body = with_buffer(64, word1, word3, instructions);
            let Some(result) = run_body(&body, &memory()) else { return };
            for (lane, &value) in result.iter().enumerate().take(64) {
                let word = |element: usize| {
                    let tile = lane / index_stride * index_stride * 4;
                    (tile + element * index_stride + lane % index_stride) as u32
                };
                assert_eq!(value, word(2) << 16 | word(1), "{index_stride} {add_lane} lane {lane}");
            }
        }
    }
}

#[test]
fn loads_bypass_registers_into_lds() {
    // Lanes 40 and on are outside and write zeros; lane 3 is off and writes nothing.
    let code = "v_mov_b32 v9, -1
        ds_write_b32 v1, v9 offset:264
        ds_write_b32 v1, v9 offset:520
        ds_write_b32 v1, v9 offset:776
        s_movk_i32 m0, 0x100
        s_mov_b64 s[10:11], exec
        s_mov_b32 exec_lo, 0xfffffff7
        buffer_load_dword v1, s[4:7], 0 offen offset:8 lds
        s_movk_i32 m0, 0x208
        global_load_lds_sbyte v1, s[4:5]
        scratch_store_dword off, v1, off
        s_movk_i32 m0, 0x308
        scratch_load_lds_ushort off, off
        s_mov_b64 exec, s[10:11]
        s_waitcnt vmcnt(0)
        ds_read_b32 v2, v1 offset:264
        ds_read_b32 v3, v1 offset:520
        ds_read_b32 v4, v1 offset:776
        s_waitcnt lgkmcnt(0)
        v_xor_b32 v2, v2, v3
        v_lshl_add_u32 v2, v4, 20, v2";
    let Some(result) = run_body(&with_buffer(4 * 42, 0, PLAIN, code), &memory()) else { return };
    for (lane, value) in (0..).zip(&result[..64]) {
        let expected = match lane {
            3 => (-1i32 as u32) << 20,
            _ => {
                let buffered = if lane + 2 < 42 { lane + 2 } else { 0 };
                (buffered ^ lane as i8 as u32).wrapping_add((4 * lane) << 20)
            }
        };
        assert_eq!(*value, expected, "lane {lane}");
    }
}

#[test]
fn stores_take_words_from_lds() {
    // Records of 4 bytes, one for each lane; the offset is in memory and in LDS.
    let code = "v_lshl_or_b32 v3, v0, 8, 7
        ds_write_b32 v1, v3 offset:1040
        s_movk_i32 m0, 0x400
        s_waitcnt lgkmcnt(0)
        buffer_store_lds_dword s[4:7], 0 offset:16 lds
        v_mov_b32 v2, 0";
    let Some(result) = run_body(&with_buffer(0, 4 << 16, 0x0080_7fac, code), &memory()) else { return };
    for (lane, word) in (0..).zip(&result[64 + 4..][..64]) {
        assert_eq!(*word, lane << 8 | 7, "lane {lane}");
    }
}

#[test]
fn lanes_are_added_to_the_index_and_nothing_is_checked() {
    let inputs = random_lanes(52);
    // The lanes of `run` are 64 bytes apart: the stride of the buffer.
    let code = "s_mov_b32 s4, s0
        s_or_b32 s5, s1, 0x400000
        s_mov_b32 s6, 0
        s_mov_b32 s7, 0x807fac
        buffer_load_dword v10, off, s[4:7], 0 offset:8
        buffer_load_short_d16_hi v11, off, s[4:7], 0 offset:14
        s_waitcnt vmcnt(0)";
    let Some(results) = run(code, |lane| inputs[lane]) else { return };
    for (out, x) in results.iter().zip(&inputs) {
        assert_eq!(out[..2], [x[2], 0xcccc | x[3] & 0xffff_0000]);
    }
}
