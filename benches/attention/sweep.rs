//! Other blueprints and splits than those chosen.

use burn_flashinfer_kernels::MmaKind;
use burn_flashinfer_kernels::attention::{Blueprint, Choice, Split, Tiled};

use crate::case::{Bench, Pool, Shape};

/// Other blueprints than those chosen, where choices are close.
pub fn sweep(bench: &mut Bench, base: &Shape) {
    let unit = MmaKind::MmaSync;
    let tiled = |q_tiles, q_planes, keys, kv_planes, stages, q_in_registers| Tiled {
        unit,
        q_tiles,
        q_planes,
        keys,
        kv_planes,
        stages,
        q_in_registers,
        cluster: 1,
        fp8_mma: false,
    };
    let prefill = [
        tiled(2, 4, 64, 1, 2, false),
        tiled(2, 4, 32, 1, 2, false),
        tiled(1, 4, 64, 1, 2, true),
        tiled(1, 4, 64, 1, 3, true),
        tiled(1, 8, 64, 1, 2, true),
        tiled(1, 4, 32, 1, 2, true),
        tiled(1, 4, 64, 1, 2, false),
    ];
    for n in [1024, 2048, 4096, 8192] {
        for blueprint in prefill {
            let choice = Choice::Exactly(Blueprint::Tiled(blueprint));
            bench.row(&Shape { lengths: vec![(n, n)], choice, ..base.clone() });
        }
    }
    for (blueprint, chunks) in [(prefill[0], [4096, 2048, 1024]), (prefill[2], [8192, 4096, 2048])] {
        for chunk in chunks {
            let choice = Choice::Exactly(Blueprint::Tiled(blueprint));
            bench.cascade(base, 64, 32768, 256, choice, Split::Every(chunk));
        }
    }
    let decode = [tiled(1, 1, 16, 4, 3, true), tiled(1, 1, 16, 4, 4, true)];
    for (batch, keys) in [(64, 4096), (128, 16384)] {
        for blueprint in decode {
            let choice = Choice::Exactly(Blueprint::Tiled(blueprint));
            let lengths = vec![(1, keys); batch];
            bench.row(&Shape { op: "decode", causal: false, paged: true, lengths, choice, ..base.clone() });
        }
    }
    for (batch, keys, chunks) in [(1, 16384, [896, 1024, 1152]), (16, 1024, [512, 1024, 2048])] {
        for chunk in chunks {
            let (choice, split) = (Choice::Exactly(Blueprint::Tiled(decode[0])), Split::Every(chunk));
            let lengths = vec![(1, keys); batch];
            let decode = Shape { op: "decode", causal: false, paged: true, ..base.clone() };
            bench.row(&Shape { lengths, choice, split, ..decode });
        }
    }
}

/// Tiles of warpgroups other than those chosen: pairs of cubes, keys and stages.
pub fn warpgroup_sweep(bench: &mut Bench, base: &Shape) {
    let tiles = [(1, 96), (1, 112), (1, 128), (1, 160), (1, 176), (1, 192), (2, 128), (2, 160), (2, 192)];
    let tiles = tiles.map(|(cluster, keys)| {
        let (unit, q_planes) = (MmaKind::Wgmma, 8);
        let tiled = Tiled {
            unit,
            q_tiles: 1,
            q_planes,
            keys,
            kv_planes: 1,
            stages: 2,
            q_in_registers: false,
            cluster,
            fp8_mma: false,
        };
        Choice::Exactly(Blueprint::Tiled(tiled))
    });
    let square = |n| vec![(n, n)];
    let sparse = Shape { causal: false, paged: true, ..base.clone() };
    let shared = Some(Pool { page_size: 1, keys: 8192 });
    for shape in [
        Shape { op: "prefill-window", window: Some(1023), lengths: square(8192), ..base.clone() },
        Shape { op: "prefill-window", window: Some(4095), lengths: square(8192), ..base.clone() },
        Shape { q_heads: 64, lengths: square(8192), ..base.clone() },
        Shape { q_heads: 64, lengths: square(16384), ..base.clone() },
        Shape { op: "vector-sparse-64x1", lengths: vec![(64, 819); 128], shared, ..sparse },
    ] {
        for choice in tiles {
            bench.row(&Shape { choice, ..shape.clone() });
        }
    }
}

/// The same without matrix cores.
pub fn plain_sweep(bench: &mut Bench, base: &Shape) {
    let tiled = |q_tiles, q_planes, keys, kv_planes| {
        let (unit, stages, q_in_registers) = (MmaKind::Scalar32, 1, false);
        Choice::Exactly(Blueprint::Tiled(Tiled {
            unit,
            q_tiles,
            q_planes,
            keys,
            kv_planes,
            stages,
            q_in_registers,
            cluster: 1,
            fp8_mma: false,
        }))
    };
    for choice in
        [tiled(4, 4, 16, 1), tiled(2, 4, 32, 1), tiled(2, 4, 16, 1), tiled(4, 8, 16, 1), tiled(4, 2, 16, 1)]
    {
        bench.row(&Shape { lengths: vec![(4096, 4096)], choice, ..base.clone() });
    }
    for choice in [tiled(1, 1, 16, 4), tiled(1, 1, 16, 2), tiled(1, 1, 16, 8)] {
        let shape = Shape { op: "decode", causal: false, paged: true, choice, ..base.clone() };
        bench.row(&Shape { lengths: vec![(1, 4096); 64], ..shape });
    }
}
