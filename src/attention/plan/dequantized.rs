//! Pages of codes that become numbers before attention reads them.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor};

use super::config::{Dequantize, PlanConfig};
use super::lists::{KeysOf, Requests};
use crate::cache::{KvPages, PageTable};
use crate::error::{Error, Result};
use crate::extension::{KeysValues, KvTensors};
use crate::indptr::{index, upload};
use crate::memory;

/// Rows that see a key, above which a kernel over codes takes longer than to convert each key once. On an H200 the kernels
/// over numbers make 592 TFLOP/s, and those that convert codes for each tile of rows 250: a key pays from 163 rows on.
const ROWS_OF_A_KEY: usize = 256;

/// Pairs of rows and keys, with fewer of which one launch is as fast as three.
const FEWEST_PAIRS: usize = 1 << 20;

/// The keys of a batch, one request after the other, as numbers of the queries' type.
#[derive(Debug)]
pub(crate) struct Dequantized {
    /// `[requests + 1]`: first key of each request.
    kv_indptr: Vec<usize>,
    slots: Tensor<1, Int>,
}

impl Dequantized {
    /// The keys of a batch, if its codes are to become numbers first.
    pub(crate) fn of(
        op: &'static str,
        config: &PlanConfig,
        rows: &[usize],
        table: &PageTable,
    ) -> Result<Option<Self>> {
        if config.code.is_none() || table.tokens() == 0 {
            return Ok(None);
        }
        let device = table.device();
        let numbers = memory::bytes([
            table.tokens(),
            config.kv_heads,
            config.head_dim.max(config.head_dim_v),
            config.dtype.size(),
        ]);
        let fits = || memory::on_device(op, "table", [2, numbers], &device);
        match config.dequantize {
            Dequantize::InKernel => return Ok(None),
            Dequantize::First => fits()?,
            Dequantize::Auto => {
                let requests = Requests { qo_indptr: rows, kv: KeysOf::Paged(table) };
                let pays = pays(config, requests) && has_faster_kernels(config, &device);
                if !pays || !table.is_complete() || fits().is_err() {
                    return Ok(None);
                }
            }
        }
        let (mut kv_indptr, mut end) = (vec![0], 0_usize);
        for (request, keys) in table.kv_lengths().iter().enumerate() {
            end = end.saturating_add(*keys);
            index(op, "table", request, end)?;
            kv_indptr.push(end);
        }
        Ok(Some(Self { kv_indptr, slots: upload(table.slots(op)?, &device) }))
    }

    /// The settings of attention over the numbers.
    pub(crate) fn config(config: &PlanConfig) -> PlanConfig {
        PlanConfig { code: None, ..config.clone() }
    }

    /// The places of the numbers.
    pub(crate) fn keys(&self) -> KeysOf<'_> {
        KeysOf::Ragged(&self.kv_indptr)
    }

    /// The numbers of one layer.
    pub(crate) fn read(
        &self,
        op: &'static str,
        pages: &KvPages,
        dtype: DType,
    ) -> Result<KeysValues<Dispatch>> {
        match pages.read(self.slots.clone(), dtype) {
            KvTensors::Floats(k, v) => Ok(KeysValues::floats(k, v)),
            // A backend makes numbers where numbers are asked for.
            KvTensors::Codes(..) | KvTensors::Scaled(..) => {
                let expected = format!("numbers of type {dtype:?}");
                Err(Error::Read { op, argument: "pages", got: "codes".into(), expected })
            }
        }
    }
}

/// True if the rows that see a key, on average, are worth the conversion.
fn pays(config: &PlanConfig, requests: Requests<'_>) -> bool {
    let group = config.q_heads / config.kv_heads;
    // Half of a square behind a causal mask is seen.
    let seen = |queries: usize, keys: usize| match config.options.causal {
        true => keys.saturating_sub(queries / 2),
        false => keys,
    };
    let (mut pairs, mut all) = (0usize, 0usize);
    for (queries, keys) in requests.lengths() {
        pairs = pairs.saturating_add(queries.saturating_mul(group).saturating_mul(seen(queries, keys)));
        all = all.saturating_add(keys);
    }
    pairs >= FEWEST_PAIRS && pairs / all.max(1) >= ROWS_OF_A_KEY
}

/// True if the device has kernels that are faster over numbers than over codes.
fn has_faster_kernels(config: &PlanConfig, device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return super::kernels::are_faster_over_numbers(config, device);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (config, device);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pays_for(lengths: &[(usize, usize)]) -> bool {
        let options = crate::AttentionOptions::new().causal(true);
        let config = PlanConfig::new(32, 8, 128, DType::BF16).fp8(crate::Fp8::E4m3).options(options);
        let rows = |of: fn(&(usize, usize)) -> usize| {
            std::iter::once(0)
                .chain(lengths.iter().scan(0, |end, lengths| {
                    *end += of(lengths);
                    Some(*end)
                }))
                .collect::<Vec<_>>()
        };
        let (queries, keys) = (rows(|lengths| lengths.0), rows(|lengths| lengths.1));
        pays(&config, Requests { qo_indptr: &queries, kv: KeysOf::Ragged(&keys) })
    }

    #[test]
    fn long_prompts_pay() {
        for lengths in [&[(8192, 8192)][..], &[(512, 131_072)], &[(1024, 1024); 4], &[(4096, 4096), (1, 500)]]
        {
            assert!(pays_for(lengths), "{lengths:?}");
        }
        for lengths in
            [&[(128, 128)][..], &[(1, 131_072)], &[(16, 131_072)], &[(4096, 4096), (1, 900_000)], &[(0, 0)]]
        {
            assert!(!pays_for(lengths), "{lengths:?}");
        }
    }
}
