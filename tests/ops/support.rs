//! Random numbers, tensors, and the rule by which a result counts as right.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use burn::tensor::{DType, Device, Slice, Tensor, TensorData, bf16, f16};
use burn_flashinfer::reference::Heads;

pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Prints a line that the test harness does not swallow.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The seed of this run.
pub fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let seed = match std::env::var("BURN_FLASHINFER_TEST_SEED") {
            Ok(seed) => seed.parse().expect("BURN_FLASHINFER_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64),
        };
        say(format!("BURN_FLASHINFER_TEST_SEED={seed}"));
        seed
    })
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Numbers that depend on the seed of the run and on `label`, not on the order of tests.
    pub fn new(label: &str) -> Self {
        Self(
            label.bytes().fold(seed(), |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Roughly normal, of variance 1.
    pub fn normal(&mut self) -> f32 {
        let uniform = |bits: u64| (bits >> 40) as f32 / (1 << 24) as f32;
        (0..4).map(|_| uniform(self.bits()) - 0.5).sum::<f32>() * 3.0_f32.sqrt()
    }

    pub fn shuffled(&mut self, len: usize) -> Vec<usize> {
        let mut items: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            items.swap(i, self.below(i + 1));
        }
        items
    }
}

/// `x` as `dtype` holds it.
pub fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// The distance from 1 to the next number of `dtype`.
pub fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(f16::EPSILON.to_f32()),
        DType::BF16 => f64::from(bf16::EPSILON.to_f32()),
        _ => f64::from(f32::EPSILON),
    }
}

/// A tensor on the host, its elements numbers of its type.
#[derive(Debug, Clone, PartialEq)]
pub struct Host<const D: usize> {
    pub shape: [usize; D],
    pub values: Vec<f32>,
    pub dtype: DType,
}

impl<const D: usize> Host<D> {
    pub fn from_fn(shape: [usize; D], dtype: DType, value: impl FnMut(usize) -> f32) -> Self {
        let values = (0..shape.iter().product()).map(value).map(|x| round(x, dtype)).collect();
        Self { shape, values, dtype }
    }

    pub fn random(shape: [usize; D], dtype: DType, rng: &mut Rng) -> Self {
        Self::from_fn(shape, dtype, |_| rng.normal())
    }

    pub fn full(shape: [usize; D], dtype: DType, value: f32) -> Self {
        Self::from_fn(shape, dtype, |_| value)
    }

    pub fn tensor(&self, device: &Device) -> Tensor<D> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), (device, self.dtype))
    }

    pub fn of(tensor: Tensor<D>) -> Self {
        let (shape, dtype) = (tensor.dims(), tensor.dtype());
        Self { shape, values: read(tensor), dtype }
    }

    pub fn f64(&self) -> Vec<f64> {
        self.values.iter().map(|&x| f64::from(x)).collect()
    }
}

impl Host<3> {
    pub fn heads(&self) -> Heads {
        Heads::new(self.shape, self.f64()).expect("shape and values agree")
    }

    pub fn row(&self, token: usize, head: usize) -> &[f32] {
        let [_, heads, dim] = self.shape;
        &self.values[(token * heads + head) * dim..][..dim]
    }

    /// A copy of some tokens.
    pub fn tokens(&self, range: std::ops::Range<usize>) -> Self {
        let [_, heads, dim] = self.shape;
        let row = heads * dim;
        let values = self.values[range.start * row..range.end * row].to_vec();
        Self { shape: [range.len(), heads, dim], values, dtype: self.dtype }
    }

    /// With the first two axes swapped.
    pub fn swapped(&self) -> Self {
        let [tokens, heads, dim] = self.shape;
        let values =
            (0..heads).flat_map(|h| (0..tokens).flat_map(move |t| self.row(t, h))).copied().collect();
        Self { shape: [heads, tokens, dim], values, dtype: self.dtype }
    }

    /// The same numbers as a view into a larger tensor that is NaN everywhere else.
    pub fn view(&self, view: View, device: &Device) -> Tensor<3> {
        let axes = match view {
            View::Whole => return self.tensor(device),
            View::Slice => [0, 1, 2],
            View::HeadsFirst => [1, 0, 2],
            View::ElementsFirst => [2, 0, 1],
        };
        // Storage axis `a` is axis `axes[a]` of the view, with one extra entry before and two behind.
        let padded = axes.map(|axis| self.shape[axis] + 3);
        let mut storage = Host::full(padded, self.dtype, f32::NAN);
        let [tokens, heads, dim] = self.shape;
        for index in (0..tokens).flat_map(|t| (0..heads).flat_map(move |h| (0..dim).map(move |d| [t, h, d])))
        {
            let [a, b, c] = axes.map(|axis| index[axis] + 1);
            storage.values[(a * padded[1] + b) * padded[2] + c] = self.row(index[0], index[1])[index[2]];
        }
        let slices = axes.map(|axis| Slice::from(1..self.shape[axis] + 1));
        let sliced = storage.tensor(device).slice(slices);
        let mut order = [0_isize; 3];
        for (storage_axis, axis) in axes.into_iter().enumerate() {
            order[axis] = storage_axis as isize;
        }
        sliced.permute(order)
    }
}

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum View {
    Whole,
    /// A slice of every axis.
    Slice,
    /// A slice of a tensor with heads before tokens.
    HeadsFirst,
    /// A slice of a tensor whose last axis is the tokens: the elements of a head do not lie side by side.
    ElementsFirst,
}

pub const VIEWS: [View; 4] = [View::Whole, View::Slice, View::HeadsFirst, View::ElementsFirst];

pub fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_to_vec().expect("converted to f32")
}

/// The bits of a tensor, so that NaN equals itself and 0 is not -0.
pub fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    read(tensor).into_iter().map(f32::to_bits).collect()
}

/// Where the elements of a tensor lie.
pub fn address<const D: usize>(tensor: &Tensor<D>) -> String {
    #[cfg(feature = "flex")]
    if let Ok(tensor) = tensor.clone().try_into_primitive::<burn::backend::Flex>() {
        return format!("{:?}", tensor.bytes().as_ptr());
    }
    #[cfg(feature = "cube")]
    if let Ok(tensor) = tensor.clone().try_into_primitive::<burn_cubecl::Cube>() {
        #[cfg(feature = "fusion")]
        let tensor = {
            let client = tensor.client.clone();
            client.resolve_tensor_float::<burn_cubecl::CubeBackend>(tensor)
        };
        return format!("{:?} {:?}", tensor.handle.memory, tensor.handle.offset_start);
    }
    panic!("no backend of this build has {tensor:?}");
}

/// Fails unless `got` is as near to `oracle` (f64, of the same inputs) as arithmetic in f32 with a result of type `dtype`
/// comes, up to a factor of two (FlashAttention's rule):
///
/// `max |got - oracle| <= 2 · max |baseline - oracle| + slack`
///
/// The baseline can be right by luck where there are few numbers, so there is a slack: 1e-5 (FlashAttention's), and of
/// the largest number half a unit in the last place of `dtype` (what one more rounding may do) and four of f32.
/// Infinite, NaN and zero-by-definition elements must be where the oracle has them.
pub fn check(what: impl Display, got: &[f32], baseline: &[f32], oracle: &[f64], dtype: DType) {
    assert_eq!(got.len(), oracle.len(), "{what}: number of elements");
    assert_eq!(baseline.len(), oracle.len(), "{what}: number of elements of the baseline");
    let (mut worst, mut worst_at, mut allowed, mut largest) = (0.0_f64, 0, 0.0_f64, 0.0_f64);
    for (at, ((&got, &baseline), &oracle)) in got.iter().zip(baseline).zip(oracle).enumerate() {
        if !oracle.is_finite() {
            let same = if oracle.is_nan() { got.is_nan() } else { f64::from(got) == oracle };
            assert!(same, "{what}: element {at} is {got}, expected {oracle}; seed {}", seed());
            continue;
        }
        assert!(got.is_finite(), "{what}: element {at} is {got}, expected {oracle}; seed {}", seed());
        let error = (f64::from(got) - oracle).abs();
        if error > worst {
            (worst, worst_at) = (error, at);
        }
        allowed = allowed.max((f64::from(baseline) - oracle).abs());
        largest = largest.max(oracle.abs());
    }
    let slack = 1e-5 + largest * (epsilon(dtype) / 2.0).max(4.0 * f64::from(f32::EPSILON));
    let limit = 2.0 * allowed + slack;
    assert!(
        worst <= limit,
        "{what}: element {worst_at} is {}, expected {}: off by {worst:.3e}, allowed {limit:.3e} \
         (2 x {allowed:.3e} + {slack:.3e}); seed {}",
        got[worst_at],
        oracle[worst_at],
        seed()
    );
}

/// Fails unless the call was refused with exactly this message.
#[track_caller]
pub fn refused<T>(result: burn_flashinfer::Result<T>, message: impl AsRef<str>) {
    match result {
        Ok(_) => panic!("accepted, expected: {}", message.as_ref()),
        Err(error) => assert_eq!(error.to_string(), message.as_ref()),
    }
}
