//! Draws whose offsets are made on the device, or that are rewritten: the same tokens as of keys from the host.

use std::cell::RefCell;

use burn::tensor::{DType, Device, Int, Tensor};
use burn_flashinfer::sampling::{DrawKey, Draws, sampling_from_logits};
use burn_flashinfer::{
    CacheConfig, DecodeGraph, DecodeStep, Error, PagedKvCache, PlanConfig, Positions, Result,
};

use super::{draws, ints};
use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, refused};

device_tests!(positions_are_offsets, a_replay_draws_anew, others_are_refused);

const VOCAB: usize = 500;

fn tokens(logits: &Host<2>, draws: &Draws) -> Vec<i64> {
    let logits = logits.tensor(&draws.device());
    ints(sampling_from_logits(logits, None, draws).expect("it fits").ids)
}

fn positions_are_offsets(target: Target) {
    let rng = &mut Rng::new("offsets");
    let device = &target.device;
    let logits = Host::random([7, VOCAB], DType::F32, rng);
    let keys = draws(7, 2, rng);
    let offsets: Vec<usize> = (0..14).map(|at| [0, 5, i32::MAX as usize][at % 3]).collect();
    let moved = |(key, &offset): (&DrawKey, &usize)| DrawKey { offset: offset as u64, ..*key };
    let moved: Vec<DrawKey> = keys.iter().zip(&offsets).map(moved).collect();
    let [mut draws, moved_draws] =
        [&keys, &moved].map(|keys| Draws::from_keys(keys, device).expect("rows fit"));
    let positions = Positions::new(&offsets, device).expect("they fit");
    let expected = tokens(&logits, &moved_draws);
    assert_ne!(tokens(&logits, &draws), expected, "{}", target.name);
    let at = draws.at(&positions).expect("one for each");
    assert_eq!(tokens(&logits, &at), expected, "{}", target.name);
    draws.update(&moved).expect("as many");
    assert_eq!(tokens(&logits, &draws), expected, "{}", target.name);

    let none = Draws::new(1, 0, 0, device).expect("no rows");
    assert!(none.at(&Positions::new(&[], device).expect("none")).expect("none").is_empty());
}

/// A captured step draws with the offsets of each replay, and with the keys that it is given.
fn a_replay_draws_anew(target: Target) {
    replayed(&target.device).expect("a step that is captured and replayed");
}

fn replayed(device: &Device) -> Result<()> {
    let table = Host::random([VOCAB, VOCAB], DType::F32, &mut Rng::new("replayed draws")).tensor(device);
    let mut cache = PagedKvCache::new(&CacheConfig::new(1, 8, 4, 1, 64), device)?;
    let sequences = [cache.create(), cache.create()];
    let step = DecodeStep::new(&PlanConfig::new(1, 1, 64, DType::F32), 2, 16, &cache)?;
    let key = |row, seed, offset| DrawKey { seed, offset, row, ..DrawKey::default() };
    let draws = RefCell::new(Draws::from_keys(&[key(0, 7, 0), key(1, 8, 0)], device)?);
    let logits = |tokens: Tensor<1, Int>| table.clone().select(0, tokens);
    let start = sequences.map(|sequence| (sequence, 3));
    let mut graph = DecodeGraph::<_, Error>::capture(&mut cache, step, &start, |_, step| {
        let draws = draws.borrow().at(&step.positions())?;
        Ok(sampling_from_logits(logits(step.tokens()), None, &draws)?.ids)
    })?;
    let (mut seeds, mut last) = ([7, 8], vec![3_i64, 3]);
    for position in 0..9 {
        if position == 5 {
            seeds = [8, 9];
            draws.borrow_mut().update(&[key(0, 8, 0), key(1, 9, 0)])?;
        }
        let keys = [0, 1].map(|row| key(row, seeds[row], position));
        let ids = Tensor::from_data([last[0] as i32, last[1] as i32], (device, DType::I32));
        let expected = sampling_from_logits(logits(ids), None, &Draws::from_keys(&keys, device)?)?;
        let next = [0, 1].map(|row| (sequences[row], last[row] as u32));
        last = ints(graph.replay(&mut cache, &next)?.clone());
        assert_eq!(last, ints(expected.ids), "at {position}");
    }
    Ok(())
}

fn others_are_refused(target: Target) {
    let device = &target.device;
    let key = |row| DrawKey { row, ..DrawKey::default() };
    let mut draws = Draws::new(1, 0, 2, device).expect("rows fit");
    let positions = Positions::new(&[1, 2, 3], device).expect("they fit");
    refused(draws.at(&positions), "Draws::at: `positions` is 3 positions, expected one for each of 2 draws");
    let expected = "expected 2 from 2, one from each in order, as before";
    for (keys, got) in [
        (vec![key(0)], "1 draws from 1 rows"),
        (vec![key(0), key(2)], "2 draws from 3 rows"),
        (vec![key(1), key(0)], "2 draws from 2 rows"),
    ] {
        refused(draws.update(&keys), format!("Draws::update: `keys` is {got}, {expected}"));
    }
    refused(
        draws.update(&[key(0), key(1 << 31)]),
        "Draws::update: `keys[1]` is 2147483648, expected at most 2147483647",
    );
}
