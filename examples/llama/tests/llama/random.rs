//! Folders of random models: layers of codes, and beside them the same layers as numbers.

use std::collections::BTreeMap;

use burn_flashinfer::Fp8;
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::{Scratch, Stored};

pub const VOCABULARY: usize = 96;
const LAYERS: usize = 2;
const MLP: usize = 256;
/// Four heads of queries and two of keys, of 64.
const QUERIES: usize = 256;
const KEYS: usize = 128;

/// The format of a stored linear layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Format {
    /// DeepSeek's squares of 128 x 128.
    Fp8Blocks,
    /// One scale, without an axis.
    Fp8,
    /// A scale of each output, in bf16.
    Channels,
    /// compressed-tensors with one scale, activations of 16 bits.
    WeightsOnly,
    Fbgemm,
    Awq(usize),
    /// With `g_idx`.
    Gptq(usize),
    GptqV2(usize),
}

impl Format {
    fn hidden(self) -> usize {
        // Half a block where blocks may be cut.
        if self.is_int4() { 128 } else { 192 }
    }

    fn is_int4(self) -> bool {
        matches!(self, Self::Awq(_) | Self::Gptq(_) | Self::GptqV2(_))
    }

    fn config(self) -> Value {
        let compressed = |strategy: &str, activations: Value| {
            let weights = json!({"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": true});
            let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": activations});
            json!({"quant_method": "compressed-tensors", "format": "float-quantized",
                "config_groups": {"group_0": group}, "ignore": ["lm_head"]})
        };
        match self {
            Self::Fp8Blocks => json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}),
            Self::Fp8 => json!({"quant_method": "fp8", "activation_scheme": "static"}),
            Self::Channels => compressed(
                "channel",
                json!({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}),
            ),
            Self::WeightsOnly => compressed("tensor", Value::Null),
            Self::Fbgemm => json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
            Self::Awq(group) => json!({"quant_method": "awq", "bits": 4, "group_size": group,
                "version": "gemm", "zero_point": true}),
            Self::Gptq(group) => json!({"quant_method": "gptq", "bits": 4, "group_size": group,
                "desc_act": false, "sym": true}),
            Self::GptqV2(group) => json!({"quant_method": "gptq", "bits": 4, "group_size": group,
                "desc_act": false, "checkpoint_format": "gptq_v2"}),
        }
    }

    /// The tensors of a layer by the ends of their names, and its numbers.
    fn layer(self, rng: &mut Rng, outputs: usize, inputs: usize) -> (Vec<(&'static str, Stored)>, Vec<f32>) {
        match self {
            Self::Awq(group) | Self::Gptq(group) | Self::GptqV2(group) => {
                self.int4(rng, [outputs, inputs], group)
            }
            _ => self.e4m3(rng, [outputs, inputs]),
        }
    }

    fn e4m3(self, rng: &mut Rng, [outputs, inputs]: [usize; 2]) -> (Vec<(&'static str, Stored)>, Vec<f32>) {
        // Every code but those of NaN.
        let codes: Vec<u8> =
            (0..outputs * inputs).map(|_| (rng.below(2) as u8) << 7 | rng.below(0x7f) as u8).collect();
        let columns = inputs.div_ceil(128);
        let (name, shape) = match self {
            Self::Fp8Blocks => ("weight_scale_inv", vec![outputs.div_ceil(128), columns]),
            Self::Fp8 => ("weight_scale", vec![]),
            Self::WeightsOnly => ("weight_scale", vec![1]),
            _ => ("weight_scale", vec![outputs, 1]),
        };
        // Scales have few bits, so that bf16 represents them.
        let scales: Vec<f32> =
            (0..shape.iter().product()).map(|_| (64 + rng.below(64)) as f32 * 2f32.powi(-19)).collect();
        let scale = |output: usize, input: usize| match self {
            Self::Fp8Blocks => scales[output / 128 * columns + input / 128],
            Self::Fp8 | Self::WeightsOnly => scales[0],
            _ => scales[output],
        };
        let numbers =
            (0..codes.len()).map(|at| decode(codes[at]) * scale(at / inputs, at % inputs)).collect();
        let mut stored = Stored::f32(&shape, |at| scales[at]);
        if self == Self::Channels {
            stored.dtype = Dtype::BF16;
            stored.data = scales
                .iter()
                .map(|scale| (scale.to_bits() >> 16) as u16)
                .flat_map(u16::to_le_bytes)
                .collect();
        }
        let codes = Stored { dtype: Dtype::F8_E4M3, shape: vec![outputs, inputs], data: codes };
        (vec![("weight", codes), (name, stored)], numbers)
    }

    fn int4(
        self,
        rng: &mut Rng,
        [outputs, inputs]: [usize; 2],
        group: usize,
    ) -> (Vec<(&'static str, Stored)>, Vec<f32>) {
        const AWQ: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let groups = inputs / group;
        let codes: Vec<u32> = (0..outputs * inputs).map(|_| rng.below(16)).collect();
        let zeros: Vec<u32> = (0..groups * outputs).map(|_| 1 + rng.below(15)).collect();
        let scales: Vec<f32> =
            (0..groups * outputs).map(|_| (64 + rng.below(64)) as f32 * 2f32.powi(-14)).collect();
        let code = |output: usize, input: usize| codes[output * inputs + input];
        let numbers = (0..codes.len()).map(|at| {
            let place = at % inputs / group * outputs + at / inputs;
            (codes[at] as f32 - zeros[place] as f32) * scales[place]
        });
        let numbers = numbers.collect();
        let word = |nibble: &dyn Fn(usize) -> u32| (0..8).fold(0, |word, i| word | nibble(i) << (4 * i));
        let less = if matches!(self, Self::Gptq(_)) { 1 } else { 0 };
        let is_awq = matches!(self, Self::Awq(_));
        let of = |i: usize| if is_awq { AWQ[i] } else { i };
        let qweight = if is_awq {
            let words = outputs / 8;
            Stored::i32(&[inputs, words], |at| word(&|i| code(at % words * 8 + of(i), at / words)))
        } else {
            Stored::i32(&[inputs / 8, outputs], |at| word(&|i| code(at % outputs, at / outputs * 8 + i)))
        };
        let words = outputs / 8;
        let qzeros = Stored::i32(&[groups, words], |at| {
            word(&|i| zeros[at / words * outputs + at % words * 8 + of(i)] - less)
        });
        let scales = Stored::f32(&[groups, outputs], |at| scales[at]);
        let mut tensors = vec![("qweight", qweight), ("qzeros", qzeros), ("scales", scales)];
        if matches!(self, Self::Gptq(_)) {
            tensors.push(("g_idx", Stored::i32(&[inputs], |at| (at / group) as u32)));
        }
        (tensors, numbers)
    }
}

/// A folder in codes and one of the same numbers in f32.
pub fn folders(format: Format, name: &str, rng: &mut Rng) -> [Scratch; 2] {
    let hidden = format.hidden();
    let [coded, plain] = ["codes", "numbers"].map(|kind| Scratch::new(&format!("{name}-{kind}")));
    let mut config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY,
        "hidden_size": hidden, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "attention_bias": true, "mlp_bias": true});
    plain.write("config.json", config.to_string());
    config["quantization_config"] = format.config();
    coded.write("config.json", config.to_string());

    let mut shared = BTreeMap::new();
    let mut floats = |name: String, shape: &[usize], mean: f32, deviation: f32| {
        let numbers: Vec<f32> =
            (0..shape.iter().product()).map(|_| mean + deviation * rng.number()).collect();
        shared.insert(name, Stored::f32(shape, |at| numbers[at]));
    };
    floats("model.embed_tokens.weight".into(), &[VOCABULARY, hidden], 0.0, 1.0);
    floats("lm_head.weight".into(), &[VOCABULARY, hidden], 0.0, 0.1);
    floats("model.norm.weight".into(), &[hidden], 1.0, 0.1);
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            floats(format!("model.layers.{layer}.{norm}.weight"), &[hidden], 1.0, 0.1);
        }
        for (module, outputs, _) in modules(hidden) {
            floats(format!("model.layers.{layer}.{module}.bias"), &[outputs], 0.0, 0.1);
        }
    }
    let mut tensors = [shared.clone(), shared];
    for layer in 0..LAYERS {
        for (module, outputs, inputs) in modules(hidden) {
            let (stored, numbers) = format.layer(rng, outputs, inputs);
            let name = format!("model.layers.{layer}.{module}");
            tensors[0].extend(stored.into_iter().map(|(end, stored)| (format!("{name}.{end}"), stored)));
            let numbers = Stored::f32(&[outputs, inputs], |at| numbers[at]);
            tensors[1].insert(format!("{name}.weight"), numbers);
        }
    }
    coded.store(&tensors[0]);
    plain.store(&tensors[1]);
    [coded, plain]
}

/// The linear layers of a decoder layer, with outputs and inputs.
fn modules(hidden: usize) -> [(&'static str, usize, usize); 7] {
    [
        ("self_attn.q_proj", QUERIES, hidden),
        ("self_attn.k_proj", KEYS, hidden),
        ("self_attn.v_proj", KEYS, hidden),
        ("self_attn.o_proj", hidden, QUERIES),
        ("mlp.gate_proj", MLP, hidden),
        ("mlp.up_proj", MLP, hidden),
        ("mlp.down_proj", hidden, MLP),
    ]
}

pub fn decode(code: u8) -> f32 {
    Fp8::E4m3.decode(code)
}

/// A generator of random numbers (SplitMix64).
pub struct Rng(u64);

impl Rng {
    /// The seed is printed; `BURN_FLASHINFER_TEST_SEED` repeats it.
    pub fn new() -> Self {
        let given = std::env::var("BURN_FLASHINFER_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = given.unwrap_or_else(now);
        println!("BURN_FLASHINFER_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ bits >> 31) >> 32) as u32 % end
    }

    /// A random number of mean 0 and deviation 1.
    pub fn number(&mut self) -> f32 {
        let sum: f32 = (0..3).map(|_| self.below(1 << 16) as f32 / 32768.0 - 1.0).sum();
        // The variance of each is a third.
        sum
    }
}
