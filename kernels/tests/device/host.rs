//! Random numbers, element types and buffers.

use std::io::Write;

use burn_flashinfer_kernels::{Code8, Element, Fp8};
use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind, UIntKind},
    prelude::TensorBinding,
    server::Handle,
};
use half::{bf16, f16};

/// `device_tests!(merges)` makes a test of the function for each device of this build: `merges::cpu` and so on. A function
/// that is missing in the list is dead code, which the compiler reports.
macro_rules! device_tests {
    ($($(#[$attribute:meta])* $test:ident),+ $(,)?) => {$(
        mod $test {
            #[cfg(feature = "cpu")]
            #[test]
            $(#[$attribute])*
            fn cpu() {
                let device = cubecl::Device::Cpu(Default::default());
                crate::host::run("cpu", device, module_path!(), super::$test);
            }

            #[cfg(feature = "cuda")]
            #[test]
            $(#[$attribute])*
            fn cuda() {
                let device = cubecl::Device::Cuda(Default::default());
                crate::host::run("cuda", device, module_path!(), super::$test);
            }

            #[cfg(feature = "rocm")]
            #[test]
            $(#[$attribute])*
            fn rocm() {
                let device = cubecl::Device::Hip(Default::default());
                crate::host::run("rocm", device, module_path!(), super::$test);
            }
        }
    )+};
}
pub(crate) use device_tests;

/// Runs a test on a device, unless `BURN_FLASHINFER_TEST_DEVICES` leaves that out: then the test says so.
pub fn run(name: &str, device: cubecl::Device, test: &str, body: fn(Client)) {
    let asked = std::env::var("BURN_FLASHINFER_TEST_DEVICES").ok();
    if asked.is_none_or(|asked| asked.split(',').any(|asked| asked.trim() == name)) {
        body(device.client());
    } else {
        // Past the harness, which keeps what a test prints to itself.
        let note = format!("{test}::{name} did nothing: BURN_FLASHINFER_TEST_DEVICES leaves {name} out\n");
        let _ = std::io::stderr().write_all(note.as_bytes());
    }
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// A fixed seed, printed so that a failure names it.
    pub fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self(seed)
    }

    /// A seed that follows from one that was printed.
    pub fn quiet(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Numbers of the type, as f64.
    pub fn floats(&mut self, n: usize, dtype: Type, scale: f64) -> Vec<f64> {
        (0..n).map(|_| dtype.round(self.unit() * scale)).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    F32,
    F16,
    BF16,
    /// Codes of 8 bits, without a scale.
    Code(Code8),
}

pub const TYPES: [Type; 3] = [Type::F32, Type::F16, Type::BF16];

impl Type {
    pub fn elem(self) -> ElemType {
        ElemType::Float(match self {
            Type::F32 => FloatKind::F32,
            Type::F16 => FloatKind::F16,
            Type::BF16 => FloatKind::BF16,
            Type::Code(_) => return ElemType::UInt(UIntKind::U8),
        })
    }

    pub fn element(self) -> Element {
        match self {
            Type::Code(format) => Element::Code(format),
            _ => Element::Number(self.elem()),
        }
    }

    pub fn round(self, x: f64) -> f64 {
        match self {
            Type::F32 => x as f32 as f64,
            Type::F16 => f16::from_f64(x).to_f64(),
            Type::BF16 => bf16::from_f64(x).to_f64(),
            Type::Code(format) => number(format, code(format, x)),
        }
    }

    fn bytes(self, xs: &[f64]) -> Vec<u8> {
        match self {
            Type::F32 => xs.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Type::F16 => xs.iter().flat_map(|&x| f16::from_f64(x).to_le_bytes()).collect(),
            Type::BF16 => xs.iter().flat_map(|&x| bf16::from_f64(x).to_le_bytes()).collect(),
            Type::Code(format) => xs.iter().map(|&x| code(format, x)).collect(),
        }
    }

    fn floats(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Type::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            Type::F16 => {
                bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
            }
            Type::BF16 => {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect()
            }
            Type::Code(format) => bytes.iter().map(|&code| number(format, code)).collect(),
        }
    }
}

/// The number of a code, by definition: `(-1)^s · 2^(e - bias) · 1.m`, and `0.m` of the exponent 1 where `e` is 0.
fn number(format: Code8, code: u8) -> f64 {
    let Code8::Fp8(format) = format else { return f64::from(code as i8) };
    let (mantissa, bias, is_nan) = match format {
        Fp8::E4m3 => (3, 7, code & 0x7f == 0x7f),
        Fp8::E4m3Fnuz => (3, 8, code == 0x80),
        Fp8::E5m2 => (2, 15, code & 0x7f > 0x7c),
    };
    let (e, m) = (i32::from(code & 0x7f) >> mantissa, f64::from(code & ((1 << mantissa) - 1)));
    let (e, leading) = if e == 0 { (1, 0.0) } else { (e, 1.0) };
    let size = 2f64.powi(e - bias) * (leading + m / f64::from(1 << mantissa));
    let size = if format == Fp8::E5m2 && code & 0x7f == 0x7c { f64::INFINITY } else { size };
    if is_nan { f64::NAN } else { size.copysign(if code < 0x80 { 1.0 } else { -1.0 }) }
}

/// The code nearest to a number.
fn code(format: Code8, x: f64) -> u8 {
    let away = |code: &u8| (number(format, *code) - x).abs();
    let mut codes = 0..=u8::MAX;
    if x.is_nan() {
        return codes.find(|&code| number(format, code).is_nan()).unwrap_or(0);
    }
    codes.filter(|code| away(code).is_finite()).min_by(|a, b| away(a).total_cmp(&away(b))).unwrap_or(0)
}

/// A tensor on the device, with the strides it was given.
pub struct Device {
    pub handle: Handle,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    dtype: Type,
}

impl Device {
    pub fn new(client: &Client, dtype: Type, data: &[f64], shape: &[usize]) -> Self {
        Self::strided(client, dtype, data, shape, &contiguous(shape))
    }

    /// `data` at the places that `strides` name, and NaN in the gaps.
    pub fn strided(client: &Client, dtype: Type, data: &[f64], shape: &[usize], strides: &[usize]) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>());
        let extent = 1 + shape.iter().zip(strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<usize>();
        let mut buffer = vec![f64::NAN; extent];
        for (i, &x) in data.iter().enumerate() {
            let mut rest = i;
            let mut at = 0;
            for (n, s) in shape.iter().zip(strides).rev() {
                at += rest % n * s;
                rest /= n;
            }
            buffer[at] = x;
        }
        let handle = client.create_from_slice(&dtype.bytes(&buffer));
        Self { handle, shape: shape.to_vec(), strides: strides.to_vec(), dtype }
    }

    /// A poisoned output.
    pub fn poisoned(client: &Client, dtype: Type, shape: &[usize]) -> Self {
        Self::new(client, dtype, &vec![f64::NAN; shape.iter().product()], shape)
    }

    pub fn binding(&self) -> TensorBinding {
        binding(&self.handle, &self.shape, &self.strides)
    }

    pub fn read(&self, client: &Client) -> Vec<f64> {
        let mut floats = self.dtype.floats(&client.read_one_unchecked(self.handle.clone()));
        // An empty buffer is not quite empty.
        floats.truncate(self.shape.iter().product());
        floats
    }
}

pub fn ints(client: &Client, data: &[i32]) -> TensorBinding {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    binding(&client.create_from_slice(&bytes), &[data.len()], &[1])
}

/// The bytes of numbers of 16 bits.
pub fn bytes_of(numbers: &[bf16]) -> &[u8] {
    // SAFETY: a bf16 is two bytes, any of which are a byte.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), 2 * numbers.len()) }
}

pub fn binding(handle: &Handle, shape: &[usize], strides: &[usize]) -> TensorBinding {
    // SAFETY: the buffer was made to hold these extents at these strides.
    unsafe { TensorBinding::from_raw_parts(handle.clone(), strides.into(), shape.to_vec().into()) }
}

pub fn contiguous(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect()
}

pub fn largest_error(got: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(got.len(), wanted.len());
    let error = |(&g, &w): (&f64, &f64)| if g == w { 0.0 } else { (g - w).abs() };
    // `max` would drop a NaN.
    got.iter().zip(wanted).map(error).fold(0.0, |a, b| if b.is_nan() || b > a { b } else { a })
}

/// The rule at the head of this test.
pub fn assert_close(what: &str, got: &[f64], wanted: &[f64], baseline: &[f64]) {
    let (error, allowed) = (largest_error(got, wanted), 2.0 * largest_error(baseline, wanted) + 1e-5);
    let wrong: Vec<_> = (0..got.len()).filter(|&i| (got[i] - wanted[i]).abs() > allowed).collect();
    let (count, all, first) = (wrong.len(), got.len(), wrong.first());
    assert!(
        error <= allowed,
        "{what}: error {error:e}, allowed {allowed:e}; {count} of {all}, the first at {first:?}"
    );
}
