//! Append, RoPE, norms and activations.

use burn_flashinfer_kernels::{
    KvLayout,
    activation::{self, ActAndMul, Activation},
    append::{Tokens, append},
    norm::{self, Add, Norm, Scaling},
    pages::Pools,
    rope::{self, Rope, Style, To},
};
use cubecl::client::Client;

use crate::host::{Device, Random, TYPES, Type, assert_close, device_tests, ints};

device_tests!(
    append_writes_its_slots_and_no_other,
    rope_rotates_pairs_and_copies_the_rest,
    norms_divide_by_the_root_mean_square,
    norms_in_place,
    activations_gate_the_other_half
);

fn append_writes_its_slots_and_no_other(client: Client) {
    let mut random = Random::new(1);
    let (pages, page_size, heads) = (4, 5, 3);
    let slots = [7, -1, 0, 19, 12];
    for dtype in TYPES {
        for layout in [KvLayout::Nhd, KvLayout::Hnd] {
            for (k_dim, v_dim) in [(32, 32), (6, 10)] {
                let shape = |dim| match layout {
                    KvLayout::Nhd => [pages, page_size, heads, dim],
                    KvLayout::Hnd => [pages, heads, page_size, dim],
                };
                let pools = [k_dim, v_dim].map(|dim| Device::poisoned(&client, dtype, &shape(dim)));
                let new = [k_dim, v_dim].map(|dim| random.floats(slots.len() * heads * dim, dtype, 1.0));
                let [k, v] = [(k_dim, 0), (v_dim, 1)].map(|(dim, i)| {
                    Device::new(&client, dtype, &new[i], &[slots.len(), heads, dim]).binding()
                });
                let [k_pool, v_pool] = [0, 1].map(|i| pools[i].binding());
                let tokens = Tokens {
                    pools: Pools { k: k_pool, v: v_pool, layout, quantized: None },
                    k,
                    v,
                    slots: ints(&client, &slots),
                };
                // SAFETY: the slots are distinct, and below the 20 of the pages.
                unsafe { append(&client, tokens, dtype.elem()) }.expect("launches");
                for (i, dim) in [k_dim, v_dim].into_iter().enumerate() {
                    let mut wanted = vec![f64::NAN; pages * page_size * heads * dim];
                    for (token, &slot) in slots.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
                        let (page, slot) = (slot as usize / page_size, slot as usize % page_size);
                        for at in 0..heads * dim {
                            let (head, column) = (at / dim, at % dim);
                            let row = match layout {
                                KvLayout::Nhd => (page * page_size + slot) * heads + head,
                                KvLayout::Hnd => (page * heads + head) * page_size + slot,
                            };
                            wanted[row * dim + column] = new[i][token * heads * dim + at];
                        }
                    }
                    let bits = |xs: &[f64]| {
                        xs.iter().map(|x| (!x.is_nan()).then(|| x.to_bits())).collect::<Vec<_>>()
                    };
                    assert_eq!(bits(&pools[i].read(&client)), bits(&wanted), "{dtype:?} {layout:?} {dim}");
                }
            }
        }
    }
}

fn rope_rotates_pairs_and_copies_the_rest(client: Client) {
    let mut random = Random::new(2);
    let (tokens, q_heads, k_heads, positions) = (3, 4, 2, 11);
    let at = [10, 0, 4];
    for (dtype, style) in TYPES.into_iter().flat_map(|t| [(t, Style::Halves), (t, Style::Interleaved)]) {
        for (dim, rotary) in [(32, 32), (40, 10)] {
            let half = rotary / 2;
            let angles: Vec<f64> = (0..positions)
                .flat_map(|p| {
                    let angle = move |i: usize| p as f64 * 1e4f64.powf(-(i as f64) / half as f64);
                    (0..half).map(move |i| angle(i).cos()).chain((0..half).map(move |i| angle(i).sin()))
                })
                .map(|x| Type::F32.round(x))
                .collect();
            let inputs = [q_heads, k_heads].map(|heads| random.floats(tokens * heads * dim, dtype, 3.0));
            let shapes = [[tokens, q_heads, dim], [tokens, k_heads, dim]];
            // Heads before tokens in memory.
            let [q, k] = [0, 1].map(|i| {
                let strides = [dim, tokens * dim, 1];
                Device::strided(&client, dtype, &inputs[i], &shapes[i], &strides).binding()
            });
            let outputs = shapes.map(|shape| Device::poisoned(&client, dtype, &shape));
            let rope = Rope {
                q,
                k,
                cos_sin: Device::new(&client, Type::F32, &angles, &[positions, rotary]).binding(),
                positions: ints(&client, &at),
                norm: None,
                q_out: Some(outputs[0].binding()),
                q_quantized: None,
                to: To::Tensor(outputs[1].binding(), None),
                style,
            };
            // SAFETY: the table has 11 positions.
            unsafe { rope::launch(&client, rope, dtype.elem()) }.expect("launches");
            for i in 0..2 {
                let rotated = |round: fn(f64) -> f64| {
                    let mut x = inputs[i].clone();
                    for (row, head) in x.chunks_exact_mut(dim).enumerate() {
                        let angles = &angles[at[row / shapes[i][1]] as usize * rotary..][..rotary];
                        for pair in 0..half {
                            let (a, b) = match style {
                                Style::Halves => (pair, pair + half),
                                Style::Interleaved => (2 * pair, 2 * pair + 1),
                            };
                            let (cos, sin) = (angles[pair], angles[half + pair]);
                            let (x, y) = (head[a], head[b]);
                            head[a] = round(round(x * cos) - round(y * sin));
                            head[b] = round(round(y * cos) + round(x * sin));
                        }
                    }
                    x
                };
                let mut baseline = rotated(|x| x as f32 as f64);
                baseline.iter_mut().for_each(|x| *x = dtype.round(*x));
                let what = format!("{dtype:?} {style:?} {dim}/{rotary}");
                assert_close(&what, &outputs[i].read(&client), &rotated(|x| x), &baseline);
            }
        }
    }
}

fn norms_divide_by_the_root_mean_square(client: Client) {
    let mut random = Random::new(4);
    for (dtype, width) in TYPES.into_iter().flat_map(|t| [(t, 111), (t, 512)]) {
        for kind in 0..4 {
            let (rows, layer, gemma, add) = (5, kind == 3, kind == 1, kind > 1);
            let columns = if layer { Type::F32 } else { dtype };
            let x = random.floats(rows * width, dtype, 3.0);
            let residual = random.floats(rows * width, dtype, if add { 3.0 } else { 0.0 });
            let [weight, beta] = [(); 2].map(|()| random.floats(width, columns, 2.0));
            let column = |values| Device::new(&client, columns, values, &[width]).binding();
            let [y, sum] = [(); 2].map(|()| Device::poisoned(&client, dtype, &[rows, width]));
            let norm = Norm {
                x: Device::strided(&client, dtype, &x, &[rows, width], &[width + 8, 1]).binding(),
                add: add.then(|| Add {
                    residual: Device::new(&client, dtype, &residual, &[rows, width]).binding(),
                    sum: Some(sum.binding()),
                }),
                scaling: match (layer, gemma) {
                    (true, _) => Scaling::Layer { gamma: column(&weight), beta: column(&beta) },
                    (_, true) => Scaling::GemmaRms(column(&weight)),
                    _ => Scaling::Rms(column(&weight)),
                },
                y: Some(y.binding()),
                quantized: None,
                epsilon: 1e-5,
            };
            norm::launch(&client, norm, dtype.elem(), columns.elem()).expect("launches");
            let added: Vec<f64> = x.iter().zip(&residual).map(|(x, r)| x + r).collect();
            let normed = |round: fn(f64) -> f64| -> Vec<f64> {
                let row = |x: &[f64]| {
                    let mean = x.iter().fold(0.0, |sum, x| round(sum + x)) / width as f64;
                    let mean = if layer { round(mean) } else { 0.0 };
                    let squares = x.iter().fold(0.0, |sum, x| round(sum + round((x - mean) * (x - mean))));
                    let scale = round(1.0 / (squares / width as f64 + 1e-5f32 as f64).sqrt());
                    let factor = |w: f64| if gemma { 1.0 + w } else { w };
                    let columns = weight.iter().zip(&beta);
                    let y = x.iter().zip(columns).map(|(x, (w, b))| {
                        round(round((x - mean) * scale) * factor(*w)) + if layer { *b } else { 0.0 }
                    });
                    y.collect::<Vec<_>>()
                };
                added.chunks_exact(width).flat_map(row).collect()
            };
            let what = format!("{dtype:?} {width} {kind}");
            let mut baseline = normed(|x| x as f32 as f64);
            baseline.iter_mut().for_each(|x| *x = dtype.round(*x));
            assert_close(&what, &y.read(&client), &normed(|x| x), &baseline);
            if add {
                let baseline: Vec<f64> = added.iter().map(|&x| dtype.round(x)).collect();
                assert_close(&what, &sum.read(&client), &added, &baseline);
            }
        }
    }
}

/// Where the outputs are the inputs: the same bits as where they are not.
fn norms_in_place(client: Client) {
    let mut random = Random::new(5);
    for dtype in TYPES {
        let shape = [7, 264];
        let [x, residual] = [(); 2].map(|()| random.floats(7 * 264, dtype, 3.0));
        let weight = random.floats(264, dtype, 2.0);
        let run = |in_place: bool| {
            let inputs = [&x, &residual].map(|values| Device::new(&client, dtype, values, &shape));
            let outputs = [(); 2].map(|()| Device::poisoned(&client, dtype, &shape));
            let [y, sum] = outputs.each_ref().map(|output| (!in_place).then(|| output.binding()));
            let norm = Norm {
                x: inputs[0].binding(),
                add: Some(Add { residual: inputs[1].binding(), sum }),
                scaling: Scaling::Rms(Device::new(&client, dtype, &weight, &[264]).binding()),
                y,
                quantized: None,
                epsilon: 1e-5,
            };
            norm::launch(&client, norm, dtype.elem(), dtype.elem()).expect("launches");
            let results = if in_place { inputs } else { outputs };
            results.map(|result| result.read(&client).into_iter().map(f64::to_bits).collect::<Vec<_>>())
        };
        assert_eq!(run(true), run(false), "{dtype:?}");
    }
}

fn activations_gate_the_other_half(client: Client) {
    let mut random = Random::new(6);
    for (dtype, width) in TYPES.into_iter().flat_map(|t| [(t, 111), (t, 512)]) {
        let x = random.floats(3 * 2 * width, dtype, 8.0);
        for (activation, act) in [
            (Activation::Silu, (|a| a / (1.0 + (-a).exp())) as fn(f64) -> f64),
            (Activation::GeluTanh, |a| {
                let u = std::f64::consts::FRAC_2_PI.sqrt() * (a + 0.044715 * a * a * a);
                a / 2.0 * (1.0 + u.tanh())
            }),
        ] {
            let y = Device::poisoned(&client, dtype, &[3, width]);
            let strides = [2 * width + 8, 1];
            let act_and_mul = ActAndMul {
                x: Device::strided(&client, dtype, &x, &[3, 2 * width], &strides).binding(),
                y: y.binding(),
                quantized: None,
                activation,
            };
            activation::launch(&client, act_and_mul, dtype.elem()).expect("launches");
            let wanted: Vec<f64> = x
                .chunks_exact(2 * width)
                .flat_map(|row| (0..width).map(|i| act(row[i]) * row[width + i]).collect::<Vec<_>>())
                .collect();
            let baseline: Vec<f64> = wanted.iter().map(|&y| dtype.round(y as f32 as f64)).collect();
            assert_close(&format!("{dtype:?} {width} {activation:?}"), &y.read(&client), &wanted, &baseline);
        }
    }
}
