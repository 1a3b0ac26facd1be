//! Integers of every type: what is out of range is out of range, and wraps to nothing that is not.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::sampling::{
    Draws, Penalties, apply_penalties, chain_speculative_sampling, top_k_mask_logits, top_k_renorm_probs,
    top_k_sampling_from_probs,
};

use super::{floats, ints, tokens};
use crate::devices::{Target, device_tests};
use crate::support::{Host, bits, read, say};

device_tests!(drafted_tokens, top_k, counts);

const DTYPES: [DType; 8] =
    [DType::I64, DType::I32, DType::U64, DType::I16, DType::U32, DType::I8, DType::U16, DType::U8];

/// The types of integers that the device has; a slow one gets those that could wrap, and one that cannot.
fn types(target: &Target) -> Vec<DType> {
    let types = target.thin(2, DTYPES.to_vec());
    let has = |dtype: &DType| {
        let has = target.device.supports_dtype(*dtype);
        if !has {
            say(format!("{} has no {dtype:?}", target.name));
        }
        has
    };
    types.into_iter().filter(has).collect()
}

/// The least and the largest number of a type.
fn range(dtype: DType) -> (i128, i128) {
    match dtype {
        DType::I64 => (i64::MIN.into(), i64::MAX.into()),
        DType::I32 => (i32::MIN.into(), i32::MAX.into()),
        DType::I16 => (i16::MIN.into(), i16::MAX.into()),
        DType::I8 => (i8::MIN.into(), i8::MAX.into()),
        DType::U64 => (0, u64::MAX.into()),
        DType::U32 => (0, u32::MAX.into()),
        DType::U16 => (0, u16::MAX.into()),
        _ => (0, u8::MAX.into()),
    }
}

/// Numbers of a type that are `small` once their upper bits are cut off, or have another sign, and those at its ends.
fn far(small: i128, dtype: DType) -> Vec<i128> {
    let (least, most) = range(dtype);
    let powers = [8, 16, 31, 32, 33, 40, 62, 63];
    let wrapping = powers.into_iter().flat_map(|power| [small + (1 << power), small - (1 << power)]);
    wrapping.chain([-1, least, most]).filter(|number| (least..=most).contains(number)).collect()
}

fn tensor(values: &[i128], dtype: DType, device: &Device) -> Tensor<1, Int> {
    let shape = [values.len()];
    macro_rules! of {
        ($type:ty) => {
            TensorData::new(values.iter().map(|&value| value as $type).collect::<Vec<$type>>(), shape)
        };
    }
    let data = match dtype {
        DType::I64 => of!(i64),
        DType::I32 => of!(i32),
        DType::I16 => of!(i16),
        DType::I8 => of!(i8),
        DType::U64 => of!(u64),
        DType::U32 => of!(u32),
        DType::U16 => of!(u16),
        _ => of!(u8),
    };
    let tensor = Tensor::from_data(data, (device, dtype));
    assert_eq!(tensor.dtype(), dtype);
    tensor
}

/// The target would write any token: all but those outside of the vocabulary are accepted.
fn drafted_tokens(target: Target) {
    let vocab = 40;
    let device = &target.device;
    for dtype in types(&target) {
        for small in [0, 7, 39] {
            let mut ids: Vec<i128> =
                far(small, dtype).into_iter().filter(|id| !(0..40).contains(id)).collect();
            ids.extend([0, small, 39]);
            let n = ids.len();
            let probs = |tokens: usize| -> Tensor<3> {
                Host::full([n, tokens, vocab], DType::F32, 1.0 / vocab as f32).tensor(device)
            };
            let draws = Draws::new(5, 1, n, device).expect("rows fit");
            let drafted = tensor(&ids, dtype, device).reshape([n, 1]);
            let got = chain_speculative_sampling(probs(1), drafted, probs(2), &draws).expect("it fits");
            let is_token = |id: &i128| (0..vocab as i128).contains(id);
            let accepted: Vec<i64> = ids.iter().map(|id| i64::from(is_token(id))).collect();
            let what = format!("{ids:?} of {dtype:?} on {}", target.name);
            assert_eq!(ints(got.accepted), accepted, "{what}");
            assert_eq!(ints(got.emitted), accepted, "{what}");
            let first = ints(got.ids.slice([0..n, 0..1]).reshape([n]));
            for ((&id, &drafted), accepted) in first.iter().zip(&ids).zip(accepted) {
                assert!((0..vocab as i64).contains(&id), "{what}");
                assert!(accepted == 0 || i128::from(id) == drafted, "{what}");
            }
        }
    }
}

/// A count of tokens below 1 is 1, and one beyond the vocabulary all of it.
fn top_k(target: Target) {
    let probs = [0.4, 0.1, 0.3, 0.2_f32];
    let device = &target.device;
    for dtype in types(&target) {
        let mut counts: Vec<i128> = [0, 1, 2].into_iter().flat_map(|small| far(small, dtype)).collect();
        counts.extend([0, 1, 2, 3, 4, 5]);
        let rows = counts.len();
        let what = format!("{counts:?} of {dtype:?} on {}", target.name);
        let matrix = || Host::from_fn([rows, 4], DType::F32, |at| probs[at % 4]).tensor(device);
        let top_k = || tensor(&counts, dtype, device);
        let count = |k: i128| k.clamp(1, 4) as usize;

        let masked = read(top_k_mask_logits(matrix(), top_k()).expect("it fits"));
        let kept = masked.chunks_exact(4).map(|row| row.iter().filter(|x| x.is_finite()).count());
        assert_eq!(kept.collect::<Vec<_>>(), counts.iter().map(|&k| count(k)).collect::<Vec<_>>(), "{what}");

        let renormed = read(top_k_renorm_probs(matrix(), top_k()).expect("it fits"));
        let kept = renormed.chunks_exact(4).map(|row| row.iter().filter(|x| **x > 0.0).count());
        assert_eq!(kept.collect::<Vec<_>>(), counts.iter().map(|&k| count(k)).collect::<Vec<_>>(), "{what}");

        // The same draws as with counts that fit.
        let draws = Draws::new(9, 3, rows, device).expect("rows fit");
        let drawn = |top_k| tokens(top_k_sampling_from_probs(matrix(), top_k, &draws).expect("it fits"), 4);
        let fitting: Vec<i128> = counts.iter().map(|&k| count(k) as i128).collect();
        assert_eq!(drawn(top_k()), drawn(tensor(&fitting, DType::I32, device)), "{what}");
    }
}

/// A count below 0 is 0, and a large one stays large.
fn counts(target: Target) {
    let device = &target.device;
    for dtype in types(&target) {
        let mut values: Vec<i128> = [0, 1].into_iter().flat_map(|small| far(small, dtype)).collect();
        values.extend([0, 1, 2, 100]);
        let n = values.len();
        let column = |value: f32| floats(&[value], device);
        let run = |prompt: &[i128], output: &[i128], dtype| {
            let counts = |values: &[i128]| tensor(values, dtype, device).reshape([1, n]);
            let penalties = Penalties {
                prompt: counts(prompt),
                output: counts(output),
                repetition: column(2.0),
                frequency: column(0.5),
                presence: column(1.0),
            };
            let logits = Host::full([1, n], DType::F32, 8.0).tensor(device);
            bits(apply_penalties(logits, &penalties).expect("it fits"))
        };
        let none = vec![0; n];
        let what = format!("{values:?} of {dtype:?} on {}", target.name);
        let penalised = |of: fn(i128) -> f32| values.iter().map(|&n| of(n).to_bits()).collect::<Vec<_>>();
        let in_prompt = penalised(|n| if n > 0 { 4.0 } else { 8.0 });
        assert_eq!(run(&values, &none, dtype), in_prompt, "{what}");
        let in_output = penalised(|n| {
            let count = n.min(i32::MAX.into()) as f32;
            if n > 0 { 4.0 - (0.5 * count + 1.0) } else { 8.0 }
        });
        assert_eq!(run(&none, &values, dtype), in_output, "{what}");
    }
}
