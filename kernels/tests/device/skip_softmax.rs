//! Skip-softmax: tiles of keys whose weights are negligible are left out.

use burn_flashinfer_kernels::{
    Arch, DeviceProfile, KvLayout, MmaKind,
    attention::{Blueprint, Choice, Portable, Split},
};
use cubecl::client::Client;

use crate::case::{Case, Kind};
use crate::host::{Random, Type, device_tests};
use crate::tiled::{blueprints, case, dtypes, units};

device_tests!(
    values_of_negligible_tiles_are_not_multiplied,
    negligible_stripes_behind_masks,
    nothing_negligible_changes_no_bit
);

const PAGED: Kind = Kind::Paged(16, KvLayout::Nhd);
const THRESHOLD: Option<f32> = Some(1e-6);

/// Queries, keys and values. The first element puts the logits of keys that are not `near` 64 below those of the others,
/// and more than that in smaller heads; `value` changes the values of a key.
fn numbers(
    case: &Case,
    random: &mut Random,
    near: impl Fn(usize) -> bool,
    value: impl Fn(usize, f64) -> f64,
) -> [Vec<f64>; 3] {
    let tokens: usize = case.lengths.iter().map(|l| l.0).sum();
    let mut q = random.floats(tokens * case.q_heads * case.qk, case.dtype, 1.5);
    q.iter_mut().step_by(case.qk).for_each(|x| *x = 8.0);
    let (mut k, mut v) = (vec![], vec![]);
    for key in case.lengths.iter().flat_map(|l| 0..l.1) {
        let mut of_key = random.floats(case.kv_heads * case.qk, case.dtype, 1.5);
        of_key.iter_mut().step_by(case.qk).for_each(|x| *x = if near(key) { 0.0 } else { -64.0 });
        k.extend(of_key);
        let of_key = random.floats(case.kv_heads * case.vo, case.dtype, 1.5);
        v.extend(of_key.into_iter().map(|x| value(key, x)));
    }
    [q, k, v]
}

/// The blueprints of every unit, each with the keys of its tiles; where CI simulates the device, one of each unit.
fn tiled_cases(client: &Client, lengths: &[(usize, usize)]) -> Vec<(Case, usize)> {
    let mut cases = vec![];
    for (i, unit) in units(client).into_iter().enumerate() {
        for (j, tiled) in blueprints(unit).into_iter().enumerate() {
            if matches!(DeviceProfile::of(client).arch, Arch::Gfx(_)) && j != (i + 2) % 3 {
                continue;
            }
            let dtype = dtypes(unit)[(i + j) % 2];
            let kind = if j == 1 { Kind::Ragged } else { PAGED };
            let case = Case { causal: true, skip_softmax: THRESHOLD, ..case(kind, lengths, dtype, tiled) };
            cases.push((case, tiled.0.keys * tiled.0.kv_planes));
        }
    }
    cases
}

/// The same on the portable kernel, rows of one unit and of several.
fn portable_cases(lengths: &[(usize, usize)]) -> [(Case, usize); 2] {
    [(2, 1), (1, 4)].map(|(rows, units)| {
        let portable = Portable { rows, units, tile: 16, qk_vector: 4, vo_vector: 4 };
        let choice = Choice::Exactly(Blueprint::Portable(portable));
        let case = Case { choice, q_heads: 2, causal: true, ..Case::new(PAGED, lengths) };
        (Case { skip_softmax: THRESHOLD, ..case }, 16)
    })
}

/// Only the first tile of a work item has keys that count, and the values of the others are NaN.
fn values_of_negligible_tiles_are_not_multiplied(client: Client) {
    let mut random = Random::new(71);
    let tiled = tiled_cases(&client, &[(9, 400), (1, 700)]);
    for (case, tile) in tiled.into_iter().chain(portable_cases(&[(2, 70), (1, 50)])) {
        let chunk = if let Split::Every(keys) = case.split { keys } else { usize::MAX };
        let near = |key: usize| key % chunk < tile;
        let [q, k, v] = numbers(&case, &mut random, near, |key, x| if near(key) { x } else { f64::NAN });
        case.check_numbers(&client, [&q, &k, &v], &mut random);
    }
}

/// Whatever is left out between stripes of keys that count, behind masks, windows and caps, the rest is right.
fn negligible_stripes_behind_masks(client: Client) {
    let mut random = Random::new(72);
    for (i, (case, tile)) in tiled_cases(&client, &[(70, 333), (1, 500), (3, 2)]).into_iter().enumerate() {
        let window_left = [Some(90), None][i % 2];
        let case = Case { window_left, causal: i % 3 < 2, ..case };
        let stripe = |key: usize| (key / tile).is_multiple_of(3);
        let [q, k, v] = numbers(&case, &mut random, stripe, |_, x| x);
        case.check_numbers(&client, [&q, &k, &v], &mut random);
    }
}

fn nothing_negligible_changes_no_bit(client: Client) {
    let lengths = [(37, 200), (1, 97), (0, 5), (3, 0)];
    let tiled = tiled_cases(&client, &lengths).into_iter().filter(|(case, _)| {
        let Choice::Exactly(Blueprint::Tiled(tiled)) = case.choice else { return true };
        // The longest to compile on a CPU.
        tiled.unit != MmaKind::Scalar1
    });
    for (case, _) in tiled.chain(portable_cases(&lengths[1..])) {
        let case = Case { dtype: if case.qk == 64 { case.dtype } else { Type::F32 }, ..case };
        let [bits, all] = [Some(f32::MIN_POSITIVE), None].map(|skip_softmax| {
            let output = Case { skip_softmax, ..case.clone() }.check(&client, &mut Random::new(73));
            output.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        });
        assert_eq!(bits, all, "{case:?}");
    }
}
