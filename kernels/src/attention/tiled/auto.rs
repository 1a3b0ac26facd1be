//! The choice of tiles for a batch.

use super::super::blueprint::Blueprint;
use super::blueprint::{KERNEL, Mixed, Tiled};
use crate::device::Arch;
use crate::mma::MmaKind;
use crate::problem::Problem;
use crate::request::{KeyRange, RequestShape};
use crate::{DeviceProfile, Refusal, Result};

/// With fewer large tiles than this for each core, small ones end sooner.
const SMALL_WAVES: usize = 2;

/// Rows of a request up to which reading its keys takes longer than multiplying them by `mma.sync`.
const DECODE_ROWS: usize = 16;

impl Tiled {
    /// The blueprint for a batch, or why there is none. With `fixed` it does not depend on the batch.
    pub(in super::super) fn auto(
        device: &DeviceProfile,
        problem: &Problem,
        variant: &dyn KeyRange,
        requests: &[RequestShape],
        fixed: bool,
    ) -> Result<Blueprint> {
        let has = |unit: MmaKind| matches!(unit.instruction(KERNEL, problem.dtype), Ok(Some(it)) if it.exists_on(device.arch));
        let group = problem.group();
        let all: usize = requests.iter().map(|request| request.qo_len * group).sum();
        // With `fixed`, one size serves any number of rows.
        let longest = match fixed {
            true => usize::MAX,
            false => requests.iter().map(|request| request.qo_len * group).max().unwrap_or(0),
        };
        if has(MmaKind::Wgmma)
            && !fixed
            && longest > DECODE_ROWS
            && !Self::is_short(device, problem, requests)
        {
            let can = |tiled: &Self| tiled.check(device, problem).is_ok();
            if let Some(tiled) = Self::on_hopper(device, problem, variant, requests).find(can) {
                return Ok(Blueprint::Tiled(tiled));
            }
        }
        let mixed = if has(MmaKind::MmaSync) {
            // With `fixed`, a size between the extremes.
            Some(Self::on_nvidia(device, problem, if fixed { 0 } else { all }))
        } else if has(MmaKind::Mfma32) {
            Some(Self::on_cdna(device, problem))
        } else {
            None
        };
        if let Some(mixed) = mixed {
            let has_decode =
                requests.iter().any(|request| (1..=mixed.decode.rows()).contains(&(request.qo_len * group)));
            let both = fixed || (has_decode && longest > mixed.decode.rows());
            let one = if longest <= mixed.decode.rows() { mixed.decode } else { mixed.prefill };
            let choices = [both.then_some(Blueprint::Mixed(mixed)), Some(Blueprint::Tiled(one))];
            let mut choices = choices.into_iter().flatten();
            if let Some(chosen) = choices.find(|choice| choice.check(device, problem).is_ok()) {
                return Ok(chosen);
            }
        }
        let tiled = Self::on_plain(device, problem, longest)?;
        tiled.check(device, problem)?;
        Ok(Blueprint::Tiled(tiled))
    }

    /// Warpgroups with the most keys at a time that fit. They also take requests with few rows beside others
    /// with many: their tiles are multiplied nearly empty, but hardly slower than their keys are read.
    fn on_hopper(
        device: &DeviceProfile,
        problem: &Problem,
        variant: &dyn KeyRange,
        requests: &[RequestShape],
    ) -> impl Iterator<Item = Self> + use<> {
        // With small heads the softmax is most of the work, and a third warpgroup hides it better: 457
        // TFLOP/s over 8192 tokens with 3 stages, 428 with 2 or 4, 389 with two warpgroups (H200).
        let (q_planes, stages) = if problem.dims.qk.max(problem.dims.vo) <= 64 { (12, 3) } else { (8, 2) };
        let tiled = move |cluster, keys| Self {
            unit: MmaKind::Wgmma,
            q_tiles: 1,
            q_planes,
            keys,
            kv_planes: 1,
            stages,
            q_in_registers: false,
            cluster,
            fp8_mma: false,
        };
        // With more keys, O is rescaled less often and warpgroups wait for each other less often. Over 8192
        // keys without a mask: 600 TFLOP/s with 176, 590 with 160, 579 with 128, and 631 with 192 where 160
        // made 622 by then. Behind a causal mask the last tile is a loss: 585, 589 and 572. That matters more
        // with 1024 keys: 272 with 128 and 259 with 160.
        let longest = requests.iter().map(|request| request.kv_len).max().unwrap_or(0);
        let sees_all = |request: &RequestShape| variant.keys(request, 0).1 >= request.kv_len;
        let causal = requests.iter().any(|request| request.qo_len > 1 && !sees_all(request));
        let most = match (causal, longest) {
            // The tiles that end soonest behind the last key: the rest of the last one is a loss, and is copied lane by lane.
            // A tenth of 16384 keys in blocks of 64 x 64 (1600 keys) ran at 545 TFLOP/s with 160, 480 with 128 and 366
            // with 192, blocks of 128 x 128 (1536) at 517, 526 and 577 (pairs), single keys (819) later at 352, 371 and 374, and
            // at 382 with 176.
            (false, 0..2048) => {
                let visited = |keys: usize| -> usize {
                    requests.iter().map(|request| request.kv_len.next_multiple_of(keys)).sum()
                };
                [192, 176, 160, 128].into_iter().min_by_key(|&keys| visited(keys)).unwrap_or(192)
            }
            (false, _) => 192,
            (true, 0..=1024) => 128,
            (true, _) => 160,
        };
        let in_pairs = Self::is_long(device, problem, requests)
            || (!causal && Self::are_alike(device, problem, requests));
        let cluster = if q_planes == 8 && in_pairs { 2 } else { 1 };
        [most, 128, 112, 96, 80, 64].into_iter().map(move |keys| tiled(cluster, keys))
    }

    /// True if all requests are of one size, with rows for pairs of cubes, and there are many: pairs do not wait for each other
    /// then.
    fn are_alike(device: &DeviceProfile, problem: &Problem, requests: &[RequestShape]) -> bool {
        let size = |request: &RequestShape| (request.qo_len, request.kv_len);
        let rows = requests.first().map_or(0, |request| request.qo_len * problem.group());
        requests.len() * problem.kv_heads >= 2 * device.cores.unwrap_or(1)
            && requests.windows(2).all(|two| size(&two[0]) == size(&two[1]))
            && rows >= 512
            && rows.is_multiple_of(256)
    }

    /// True if 2-CTA clusters with TMA multicast are worth it. They halve the reads from L2, which raises the
    /// clock when the GPU is limited by power. But each cube waits for its peer, and work items are larger.
    /// 16384 tokens are 1 to 3% faster, 8192 up to 4%, but 8 requests of 2048 are 6% slower (H200).
    fn is_long(device: &DeviceProfile, problem: &Problem, requests: &[RequestShape]) -> bool {
        let rows = |request: &RequestShape| request.qo_len * problem.group();
        let items =
            requests.iter().map(|request| rows(request).div_ceil(256)).sum::<usize>() * problem.kv_heads;
        items >= 2 * device.cores.unwrap_or(1)
            && requests.iter().all(|request| request.kv_len >= 8192 && rows(request) >= 1024)
    }

    /// True if warpgroups would leave most cores without work items, with little work in each: 128 tokens in
    /// 11.8 µs, with `mma.sync` in 8.9; 256 in 12.8 and 11.7, but 512 in 17.7 and 24.5 (H200, 32/8 heads).
    fn is_short(device: &DeviceProfile, problem: &Problem, requests: &[RequestShape]) -> bool {
        let rows: usize = requests.iter().map(|request| request.qo_len * problem.group()).sum();
        let items = rows.div_ceil(128) * problem.kv_heads;
        2 * items <= device.cores.unwrap_or(1) && requests.iter().all(|request| request.kv_len <= 256)
    }

    fn on_nvidia(device: &DeviceProfile, problem: &Problem, rows: usize) -> Mixed {
        let dim = problem.dims.qk.max(problem.dims.vo);
        let decode = Self {
            unit: MmaKind::MmaSync,
            q_tiles: 1,
            q_planes: 1,
            keys: 16,
            kv_planes: 4,
            stages: if dim <= 128 { 3 } else { 2 },
            q_in_registers: dim <= 128,
            cluster: 1,
            fp8_mma: false,
        };
        let prefill = Self { q_planes: 4, keys: 64, kv_planes: 1, stages: 2, ..decode };
        let prefill = if dim > 128 {
            // The accumulators of 32 rows would not fit into registers.
            Self { q_planes: 8, keys: 32, q_in_registers: false, ..prefill }
        } else {
            // 32 rows a plane halve the reads of keys and values: 349 against 320 TFLOP/s over 8192 tokens.
            // But 64 rows fill the cores where 128 leave them half empty: 231 against 166 over 1024 (H200,
            // 32/8 heads).
            let large = Self { q_tiles: 2, q_in_registers: dim <= 64, ..prefill };
            let tiles = rows.div_ceil(large.rows()) * problem.kv_heads;
            if tiles < SMALL_WAVES * device.cores.unwrap_or(1) { prefill } else { large }
        };
        Mixed { prefill, decode }
    }

    fn on_cdna(device: &DeviceProfile, problem: &Problem) -> Mixed {
        let dim = problem.dims.qk.max(problem.dims.vo);
        let prefill = Self {
            unit: MmaKind::Mfma32,
            q_tiles: 1,
            q_planes: 4,
            keys: if dim <= 128 { 64 } else { 32 },
            kv_planes: 1,
            stages: 1,
            q_in_registers: true,
            cluster: 1,
            fp8_mma: false,
        };
        let decode = Self {
            unit: MmaKind::Mfma16,
            q_planes: 1,
            keys: 32,
            kv_planes: if dim <= 128 { 4 } else { 2 },
            ..prefill
        };
        let multiplies_codes = Self::multiplies_codes(device, problem);
        // As many keys as of numbers: with twice as many a lane has 278 registers, which leaves a SIMD one wave.
        Mixed { prefill: Self { fp8_mma: multiplies_codes, ..prefill }, decode }
    }

    /// The tiles without matrix cores, on GPUs only. On a CPU planes are threads, which would wait for each
    /// other at every tile; the rows of the portable kernel do not.
    fn on_plain(device: &DeviceProfile, problem: &Problem, rows: usize) -> Result<Self> {
        let unit = match (device.arch, device.plane) {
            (Arch::Sm(_) | Arch::Gfx(_), 32) => MmaKind::Scalar32,
            (Arch::Sm(_) | Arch::Gfx(_), 64) => MmaKind::Scalar64,
            (_, plane) => return Err(Refusal::plane(KERNEL, plane)),
        };
        let one = Self {
            unit,
            q_tiles: 1,
            q_planes: 1,
            keys: 16,
            kv_planes: 1,
            stages: 1,
            q_in_registers: false,
            cluster: 1,
            fp8_mma: false,
        };
        let rows = rows.div_ceil(one.rows());
        let mut candidates = vec![];
        for planes in [4, 2, 1] {
            if rows <= 4 {
                candidates.push(Self { q_tiles: rows.max(1), kv_planes: planes, ..one });
            } else {
                candidates.extend([4, 2, 1].map(|q_tiles| Self { q_tiles, q_planes: planes, ..one }));
            }
        }
        // The first that leaves shared memory for a second cube, or else the first that fits.
        let can = |tiled: &&Self| tiled.check(device, problem).is_ok();
        let shares = |tiled: &&Self| can(tiled) && 2 * tiled.shared_memory(problem) <= device.shared_memory;
        Ok(*candidates.iter().find(shares).or_else(|| candidates.iter().find(can)).unwrap_or(&one))
    }
}
