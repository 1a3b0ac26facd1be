//! Other blueprints and splits than those chosen.

use burn_flashinfer_kernels::MmaKind;
use burn_flashinfer_kernels::attention::{Blueprint, Choice, Split, Tiled};

use crate::case::{Bench, Shape};

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
