//! Custom masks, and the time to lay them out.

use std::time::Instant;

use burn_flashinfer_kernels::attention::{DevicePlan, Mask, MaskBits, map_tiles};

use crate::case::{Bench, Shape, Visible};

/// Rows with a mask beside the same ones without.
pub fn rows(bench: &mut Bench, base: &Shape) {
    let square = Shape { op: "custom-mask", lengths: vec![(8192, 8192)], causal: false, ..base.clone() };
    for mask in [None, Some(Visible::Random), Some(Visible::Documents(1)), Some(Visible::Documents(8))] {
        bench.row(&Shape { mask, ..square.clone() });
    }
    for (queries, batch, keys) in [(16, 1, 131072), (16, 8, 32768), (64, 32, 4096), (8, 128, 8192)] {
        let lengths = vec![(queries, keys); batch];
        let tree = Shape { op: "tree-mask", lengths, causal: false, paged: true, ..base.clone() };
        for mask in [None, Some(Visible::Tree)] {
            bench.row(&Shape { mask, ..tree.clone() });
        }
        bench.layout(&Shape { mask: Some(Visible::Tree), ..tree });
    }
}

impl Bench {
    /// A mask of random bits, laid out for a plan.
    pub fn mask(&self, s: &Shape, visible: Visible, planned: &DevicePlan) -> Mask {
        let bits = self.bits(s, visible);
        let tiles = self.device.ints(vec![0; planned.mask_tiles.max(1)]);
        self.map(s, planned, &bits, &tiles);
        Mask { bits, tiles: Some(tiles) }
    }

    fn map(&self, s: &Shape, planned: &DevicePlan, bits: &MaskBits, tiles: &cubecl::prelude::TensorBinding) {
        let group = s.q_heads / s.kv_heads;
        // SAFETY: the plan and the bits are of these lengths.
        unsafe { map_tiles(&self.device.client, planned, bits, group, tiles.clone()) }.expect("launches");
    }

    fn bits(&self, s: &Shape, visible: Visible) -> MaskBits {
        let mut state = 1_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let (mut words, mut first_bits) = (vec![], vec![]);
        for &(queries, keys) in &s.lengths {
            let first = 32 * words.len() as u64;
            first_bits.extend([first as i32, (first >> 32) as i32]);
            let mut of_request = vec![0_u32; (queries * keys).div_ceil(32)];
            match visible {
                Visible::Random => of_request.iter_mut().for_each(|word| *word = random() as u32),
                _ => {
                    for bit in 0..queries * keys {
                        let (query, key) = (bit / keys, bit % keys);
                        let sees = match visible {
                            Visible::Tree => {
                                let draft = (key + queries).saturating_sub(keys);
                                key + queries < keys || draft == query || (draft < query && random() % 2 == 0)
                            }
                            Visible::Documents(count) => query * count / queries == key * count / keys,
                            Visible::Random => false,
                        };
                        of_request[bit / 32] |= u32::from(sees) << (bit % 32);
                    }
                }
            }
            words.extend(of_request.into_iter().map(|word| word as i32));
        }
        words.resize(words.len() + MaskBits::PADDING, 0);
        MaskBits { words: self.device.ints(words), first_bits: self.device.ints(first_bits) }
    }

    /// The time to lay out a mask, and to plan its batch.
    fn layout(&mut self, s: &Shape) {
        let Some(visible) = s.mask else { return };
        let planned = self.plan(s).upload(&self.device.client);
        let bits = self.bits(s, visible);
        let tiles = self.device.ints(vec![0; planned.mask_tiles.max(1)]);
        let mut times: Vec<f64> = (0..20)
            .map(|_| {
                self.device.wait();
                let begin = Instant::now();
                let planned = self.plan(s).upload(&self.device.client);
                self.map(s, &planned, &bits, &tiles);
                self.device.wait();
                begin.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (queries, keys) = s.lengths[0];
        let ms = times[times.len() / 2];
        self.say(format!(
            "tree-mask-plan,burn-flashinfer,bf16,{},{queries},{keys},{ms:.3},,,,plan and layout",
            s.lengths.len()
        ));
    }
}
