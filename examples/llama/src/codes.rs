//! Weights of 8 and 4 bits: as checkpoints store them, or rounded while loading.

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::{
    Fp8, GptqVersion, QuantizedWeight, WeightFormat, WeightScales, multiplies_e4m3, quantize_per_token,
};
use safetensors::Dtype;

use super::linear::Weight;
use super::quantization::{Quantization, Quantize, RoundActivations};
use super::weights::{Loader, Weights};

/// The library packs whole blocks of so many inputs, and a square with a scale of its own has as many outputs.
const BLOCK: usize = 128;

/// A linear layer of a checkpoint, which may become a part of one here.
pub struct Part {
    /// The module, whose name those of its tensors begin with.
    pub module: String,
    pub outputs: usize,
}

impl Part {
    fn named(&self, kind: &str) -> String {
        format!("{}.{kind}", self.module)
    }
}

impl Quantize {
    /// True if a weight of so many inputs can be rounded.
    pub fn takes(self, inputs: usize) -> bool {
        self == Self::E4m3 || inputs.is_multiple_of(BLOCK)
    }
}

impl Quantization {
    /// True if a part is in codes.
    fn has(self, weights: &Weights, part: &Part) -> Result<bool> {
        let weight = part.named("weight");
        match self {
            Self::E4m3 { .. } => Ok(weights.stored_dtype(&weight)? == Dtype::F8_E4M3),
            // Where there is neither, codes are what is missing.
            Self::Awq { .. } | Self::Gptq { .. } => {
                Ok(weights.has(&part.named("qweight")) || !weights.has(&weight))
            }
        }
    }
}

impl Loader<'_> {
    /// The weight of layers side by side, with so many inputs.
    pub fn weight(&self, parts: &[Part], inputs: usize) -> Result<Weight> {
        if let (Some(weights), Some(quantization)) = (self.weights, self.quantization) {
            let in_codes =
                parts.iter().map(|part| quantization.has(weights, part)).collect::<Result<Vec<_>>>()?;
            let [coded, other] = [true, false].map(|is| in_codes.iter().position(|&found| found == is));
            match (coded, other) {
                (Some(_), None) => return self.stored(weights, quantization, parts, inputs),
                (Some(coded), Some(other)) => {
                    let [coded, other] = [coded, other].map(|index| &parts[index].module);
                    bail!("{coded} is quantized, and {other}, which is multiplied with it at once, is not");
                }
                (None, _) => {}
            }
        }
        let shapes: Vec<_> =
            parts.iter().map(|part| (part.named("weight"), [part.outputs, inputs])).collect();
        let named: Vec<_> = shapes.iter().map(|(name, shape)| (name.as_str(), *shape)).collect();
        let dense = self.stacked(&named)?;
        let Some(quantize) = self.quantize.filter(|quantize| quantize.takes(inputs)) else {
            return Ok(Weight::Dense(dense));
        };
        match quantize {
            // The rows of a weight are its outputs.
            Quantize::E4m3 => {
                let (codes, scales) = quantize_per_token(dense, Fp8::E4m3)?;
                let weight = QuantizedWeight::from_e4m3(codes, scales.unsqueeze_dim(1))?;
                Ok(Weight::Quantized { weight, rounds_rows: self.rounds_rows(true) })
            }
            Quantize::Int4 => {
                let weight = QuantizedWeight::quantize(dense, WeightFormat::Int4 { group: BLOCK })
                    .with_context(|| parts[0].module.clone())?;
                Ok(Weight::Quantized { weight, rounds_rows: false })
            }
        }
    }

    /// True if many rows are rounded for e4m3 of a checkpoint that has activations of 8 bits, or not.
    fn rounds_rows(&self, in_checkpoint: bool) -> bool {
        match self.activations {
            RoundActivations::Auto => in_checkpoint && multiplies_e4m3(self.device),
            RoundActivations::Always => true,
            RoundActivations::Never => false,
        }
    }

    fn stored(
        &self,
        weights: &Weights,
        quantization: Quantization,
        parts: &[Part],
        inputs: usize,
    ) -> Result<Weight> {
        let read = Codes { loader: self, weights, parts, inputs };
        let (weight, rounds_rows) = match quantization {
            Quantization::E4m3 { scales, activations } => (read.e4m3(scales)?, self.rounds_rows(activations)),
            Quantization::Awq { group } => (read.awq(group)?, false),
            Quantization::Gptq { group, version, act_order } => {
                (read.gptq(group, version, act_order)?, false)
            }
        };
        Ok(Weight::Quantized { weight, rounds_rows })
    }
}

/// Layers in codes, to be read side by side.
struct Codes<'a> {
    loader: &'a Loader<'a>,
    weights: &'a Weights,
    parts: &'a [Part],
    inputs: usize,
}

impl Codes<'_> {
    fn e4m3(&self, scales: WeightScales) -> Result<QuantizedWeight> {
        let Self { loader, parts, inputs, .. } = *self;
        let mut codes = Vec::new();
        for part in parts {
            codes.extend_from_slice(self.bytes(
                &part.named("weight"),
                Dtype::F8_E4M3,
                [part.outputs, inputs],
            )?);
        }
        let (scales, shape) = self.e4m3_scales(scales)?;
        let outputs = parts.iter().map(|part| part.outputs).sum();
        let codes = TensorData::new(codes, [outputs, inputs]);
        let codes = Tensor::from_data(codes, (loader.device, DType::U8));
        let scales = Tensor::from_data(TensorData::new(scales, shape), (loader.device, DType::F32));
        QuantizedWeight::from_e4m3(codes, scales).with_context(|| parts[0].module.clone())
    }

    /// The scales of all parts, and their shape. Parts with one scale each become outputs with one each.
    fn e4m3_scales(&self, scales: WeightScales) -> Result<(Vec<f32>, [usize; 2])> {
        let Self { parts, inputs, .. } = *self;
        let columns = inputs.div_ceil(BLOCK);
        let mut all = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let outputs = part.outputs;
            let inverse = part.named("weight_scale_inv");
            let name = if self.weights.has(&inverse) { inverse } else { part.named("weight_scale") };
            match scales {
                WeightScales::PerTensor => {
                    let scale = self.floats(&name, &[&[], &[1], &[1, 1]])?;
                    let count = if parts.len() == 1 { 1 } else { outputs };
                    all.extend(scale.iter().cycle().take(count));
                }
                WeightScales::PerChannel => all.extend(self.floats(&name, &[&[outputs, 1], &[outputs]])?),
                WeightScales::Block128 => {
                    ensure!(
                        index + 1 == parts.len() || outputs.is_multiple_of(BLOCK),
                        "{} has {outputs} outputs, expected a multiple of {BLOCK}: a block of scales would reach into the \
                         layer beside it",
                        part.module
                    );
                    all.extend(self.floats(&name, &[&[outputs.div_ceil(BLOCK), columns]])?);
                }
            }
        }
        let columns = if scales == WeightScales::Block128 { columns } else { 1 };
        let rows = all.len() / columns;
        Ok((all, [rows, columns]))
    }

    fn awq(&self, group: usize) -> Result<QuantizedWeight> {
        self.check_words()?;
        let codes = self.words("qweight", self.inputs, 8)?;
        let (zeros, scales) = self.groups(group)?;
        QuantizedWeight::from_awq(codes, zeros, scales).with_context(|| self.parts[0].module.clone())
    }

    fn gptq(&self, group: usize, version: GptqVersion, act_order: bool) -> Result<QuantizedWeight> {
        self.check_words()?;
        for part in self.parts {
            self.check_order(part, group, act_order)?;
        }
        let codes = self.words("qweight", self.inputs / 8, 1)?;
        let (zeros, scales) = self.groups(group)?;
        QuantizedWeight::from_gptq(codes, zeros, scales, version)
            .with_context(|| self.parts[0].module.clone())
    }

    /// Refuses inputs and outputs that are no whole words and groups.
    fn check_words(&self) -> Result<()> {
        for Part { module, outputs } in self.parts {
            let inputs = self.inputs;
            ensure!(
                inputs.is_multiple_of(BLOCK),
                "{module} has {inputs} inputs, expected a multiple of {BLOCK}"
            );
            ensure!(outputs.is_multiple_of(8), "{module} has {outputs} outputs, expected a multiple of 8");
        }
        Ok(())
    }

    /// Refuses groups whose inputs do not follow each other.
    fn check_order(&self, part: &Part, group: usize, act_order: bool) -> Result<()> {
        let name = part.named("g_idx");
        if !self.weights.has(&name) {
            ensure!(!act_order, "`desc_act` is true, and {name}, which tells the order, is missing");
            return Ok(());
        }
        let groups = self.bytes(&name, Dtype::I32, [self.inputs])?.as_chunks::<4>().0;
        let is_next = |(input, &bytes): (usize, _)| i32::from_le_bytes(bytes) as usize == input / group;
        ensure!(
            groups.iter().enumerate().all(is_next),
            "{name} has the inputs in another order (`desc_act`), which is not supported"
        );
        Ok(())
    }

    /// Zeros and scales of groups.
    fn groups(&self, group: usize) -> Result<(Tensor<2, Int>, Tensor<2>)> {
        let groups = self.inputs / group;
        let zeros = self.words("qzeros", groups, 8)?;
        let scales = self.parts.iter().map(|part| {
            let scales = self.floats(&part.named("scales"), &[&[groups, part.outputs]])?;
            let scales = TensorData::new(scales, [groups, part.outputs]);
            Ok(Tensor::from_data(scales, (self.loader.device, DType::F32)))
        });
        Ok((zeros, Tensor::cat(scales.collect::<Result<Vec<_>>>()?, 1)))
    }

    /// Words of 32 bits `[rows, outputs / per_word]`, side by side.
    fn words(&self, kind: &str, rows: usize, per_word: usize) -> Result<Tensor<2, Int>> {
        let words = self.parts.iter().map(|part| {
            let shape = [rows, part.outputs / per_word];
            let bytes = self.bytes(&part.named(kind), Dtype::I32, shape)?.to_vec();
            let words = TensorData::try_from_bytes_vec(bytes, shape, DType::I32)?;
            Ok(Tensor::from_data(words, (self.loader.device, DType::I32)))
        });
        Ok(Tensor::cat(words.collect::<Result<Vec<_>>>()?, 1))
    }

    fn bytes<const D: usize>(&self, name: &str, dtype: Dtype, shape: [usize; D]) -> Result<&[u8]> {
        let bytes = self.weights.codes(name, dtype, &shape)?;
        (self.loader.progress)(bytes.len());
        Ok(bytes)
    }

    /// Scales, in one of these shapes.
    fn floats(&self, name: &str, shapes: &[&[usize]]) -> Result<Vec<f32>> {
        let (scales, bytes) = self.weights.floats(name, shapes)?;
        (self.loader.progress)(bytes);
        ensure!(scales.iter().all(|scale| scale.is_finite()), "{name} has a scale that is not finite");
        Ok(scales)
    }
}
