//! Eight bits: norms and activations that end in codes, pages of codes.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flashinfer::{
    CacheConfig, Fp8, Indptr, KvLayout, KvPages, KvTensor, PageCopies, PageTable, PagedKvCache, PagedPlan,
    PlanConfig, Quantization, RaggedPlan, SlotMapping, VariableBlockMask, VariableBlockSparsePlan,
    append_paged_kv, copy_pages, fused_add_rms_norm, fused_add_rms_norm_quant, gather_paged_kv,
    gelu_and_mul_quant, gelu_tanh_and_mul_quant, gemma_fused_add_rms_norm_quant, gemma_rms_norm_quant,
    layer_norm_quant, reference, rms_norm_quant, silu_and_mul_quant, single_prefill,
};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, bits, check, read, refused, round, seed};

device_tests!(norms, activations, pages_of_codes, gather_numbers, caches_of_codes, refusals);

pub const FORMATS: [Fp8; 3] = [Fp8::E4m3, Fp8::E4m3Fnuz, Fp8::E5m2];

/// The codes of a tensor.
pub fn codes<const D: usize>(tensor: Tensor<D, Int>) -> Vec<u8> {
    assert_eq!(tensor.dtype(), DType::U8);
    tensor.into_data().try_to_vec::<u8>().expect("bytes")
}

/// Fails unless each code is as near to `oracle / scale` as the nearest, but for twice the error of the same numbers
/// computed in f32, as [`check`] allows it: the largest of all, with a few roundings of the largest number.
pub fn check_codes(what: &str, format: Fp8, got: &[u8], baseline: &[f32], oracle: &[f64], scale: f32) {
    assert_eq!((got.len(), baseline.len()), (oracle.len(), oracle.len()), "{what}");
    let (scale, limit) = (f64::from(scale), f64::from(format.max()));
    let off = baseline.iter().zip(oracle).map(|(&x, oracle)| (f64::from(x) - oracle).abs());
    let largest = oracle.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    let moved = 2.0 * off.fold(0.0, f64::max) + 4.0 * f64::from(f32::EPSILON) * largest;
    for (at, (&code, &oracle)) in got.iter().zip(oracle).enumerate() {
        let wanted = (oracle / scale).clamp(-limit, limit);
        let error = |code: u8| (f64::from(format.decode(code)) - wanted).abs();
        let nearest = format.encode(wanted as f32);
        // What moves by so much comes as much nearer to one code as it goes away from the other.
        assert!(
            error(code) <= error(nearest) + 2.0 * moved / scale,
            "{what}: element {at} is {code:#x} ({}), expected {nearest:#x} ({wanted}); seed {}",
            format.decode(code),
            seed()
        );
    }
}

fn quantization(target: &Target, format: Fp8, scale: f32) -> Quantization {
    let scale = Tensor::<1>::from_data([scale], (&target.device, DType::F32));
    Quantization::new(format, scale).expect("a scale")
}

fn norms(target: Target) {
    let rng = &mut Rng::new("fp8 norms");
    for dtype in target.dtypes() {
        for (format, (rows, width)) in FORMATS
            .into_iter()
            .zip([(3, 17), (5, 512), (1, 8192), (0, 64)].into_iter().cycle())
            .chain([(Fp8::E4m3, (4, 96)), (Fp8::E4m3Fnuz, (2, 1000)), (Fp8::E5m2, (0, 64))])
        {
            // Beyond what e4m3 holds, now and then.
            let scale = 0.011;
            let quantization = quantization(&target, format, scale);
            let [x, residual] = [(); 2].map(|()| Host::random([rows, width], dtype, rng));
            let [weight, beta] = [(); 2].map(|()| Host::random([width], dtype, rng));
            let on = |host: &Host<2>| host.tensor(&target.device);
            let column = |host: &Host<1>| host.tensor(&target.device);
            let what = format!("{format:?} {rows} x {width} {dtype:?} on {}", target.name);
            let wide = |x: &Host<2>, weight: &[f32], layer: bool| -> Vec<f32> {
                let rows = x.values.chunks_exact(width).flat_map(|row| {
                    let n = width as f32;
                    let mean = if layer { row.iter().sum::<f32>() / n } else { 0.0 };
                    let square = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
                    let factor = 1.0 / (square + 1e-5).sqrt();
                    let beta = &beta.values;
                    row.iter()
                        .enumerate()
                        .map(move |(i, x)| {
                            (x - mean) * factor * weight[i] + if layer { beta[i] } else { 0.0 }
                        })
                        .collect::<Vec<_>>()
                });
                rows.collect()
            };
            let (x64, w64, epsilon) = (x.f64(), weight.f64(), f64::from(1e-5_f32));
            let gemma: Vec<f32> = weight.values.iter().map(|w| w + 1.0).collect();

            let got = rms_norm_quant(on(&x), column(&weight), 1e-5, &quantization).expect("it fits");
            assert_eq!(got.dims(), [rows, width]);
            let oracle = reference::rms_norm(&x64, &w64, epsilon).expect("rows");
            check_codes(
                &format!("rms_norm {what}"),
                format,
                &codes(got),
                &wide(&x, &weight.values, false),
                &oracle,
                scale,
            );
            let got = gemma_rms_norm_quant(on(&x), column(&weight), 1e-5, &quantization).expect("it fits");
            let oracle = reference::gemma_rms_norm(&x64, &w64, epsilon).expect("rows");
            check_codes(
                &format!("gemma {what}"),
                format,
                &codes(got),
                &wide(&x, &gemma, false),
                &oracle,
                scale,
            );
            let got = layer_norm_quant(on(&x), column(&weight), column(&beta), 1e-5, &quantization);
            let oracle = reference::layer_norm(&x64, &w64, &beta.f64(), epsilon).expect("rows");
            let baseline = wide(&x, &weight.values, true);
            let got = codes(got.expect("it fits"));
            check_codes(&format!("layer {what}"), format, &got, &baseline, &oracle, scale);

            let added = Host {
                shape: [rows, width],
                values: x.values.iter().zip(&residual.values).map(|(x, r)| x + r).collect(),
                dtype: DType::F32,
            };
            for (gain, is_gemma) in [(&weight.values, false), (&gemma, true)] {
                let run = if is_gemma { gemma_fused_add_rms_norm_quant } else { fused_add_rms_norm_quant };
                let (got, sum) =
                    run(on(&x), on(&residual), column(&weight), 1e-5, &quantization).expect("it fits");
                let gain64: Vec<f64> = gain.iter().map(|&w| f64::from(w)).collect();
                let exact: Vec<f64> = x64.iter().zip(residual.f64()).map(|(x, r)| x + r).collect();
                let oracle = reference::rms_norm(&exact, &gain64, epsilon).expect("rows");
                let baseline = wide(&added, gain, false);
                check_codes(&format!("add {what}"), format, &codes(got), &baseline, &oracle, scale);
                // The sums are those of the operation without codes.
                let (_, plain) =
                    fused_add_rms_norm(on(&x), on(&residual), column(&weight), 1e-5).expect("it fits");
                assert_eq!(bits(sum), bits(plain), "{what}");
            }
        }
    }
}

fn activations(target: Target) {
    type Run = fn(Tensor<2>, &Quantization) -> burn_flashinfer::Result<Tensor<2, Int>>;
    type Oracle = fn(&[f64], usize) -> burn_flashinfer::Result<Vec<f64>>;
    type Act = fn(f32) -> f32;
    let acts: [(Run, Oracle, Act); 3] = [
        (silu_and_mul_quant, reference::silu_and_mul, |a| a / (1.0 + (-a).exp())),
        // The tail in f32 is the error of f64's rounding of the argument: that of the exponential.
        (gelu_and_mul_quant, reference::gelu_and_mul, |a| {
            let exact = reference::gelu_and_mul(&[f64::from(a), 1.0], 1).map_or(0.0, |y| y[0]);
            (exact * (1.0 + 1e-6)) as f32
        }),
        (gelu_tanh_and_mul_quant, reference::gelu_tanh_and_mul, |a| {
            a * (1.0 / (1.0 + (-1.595_769 * (a + 0.044715 * a * a * a)).exp()))
        }),
    ];
    let rng = &mut Rng::new("fp8 activations");
    for dtype in target.dtypes() {
        for (format, (rows, width)) in FORMATS.into_iter().zip([(3, 17), (4, 512), (7, 264)]) {
            let scale = 0.004;
            let x = Host::from_fn([rows, 2 * width], dtype, |_| 2.0 * rng.normal());
            for (run, oracle, act) in acts {
                let quantization = quantization(&target, format, scale);
                let got = run(x.tensor(&target.device), &quantization).expect("it fits");
                assert_eq!(got.dims(), [rows, width]);
                let baseline: Vec<f32> = x
                    .values
                    .chunks_exact(2 * width)
                    .flat_map(|row| (0..width).map(|i| act(row[i]) * row[width + i]).collect::<Vec<_>>())
                    .collect();
                let oracle = oracle(&x.f64(), width).expect("rows");
                let what = format!("{format:?} {rows} x {width} {dtype:?} on {}", target.name);
                check_codes(&what, format, &codes(got), &baseline, &oracle, scale);
            }
        }
    }
}

const PAGES: usize = 6;

/// Pages of random codes, none of them NaN.
fn random_codes(shape: [usize; 4], format: Fp8, rng: &mut Rng) -> Vec<u8> {
    let limit = f64::from(format.max()) as f32;
    (0..shape.iter().product()).map(|_| format.encode((rng.normal() / 3.0) * limit)).collect()
}

fn shape_of(layout: KvLayout, page_size: usize, heads: usize, dim: usize) -> [usize; 4] {
    match layout {
        KvLayout::Nhd => [PAGES, page_size, heads, dim],
        KvLayout::Hnd => [PAGES, heads, page_size, dim],
    }
}

/// Where element `column` of a head of a slot lies.
fn place(layout: KvLayout, page_size: usize, heads: usize, dim: usize, slot: usize, head: usize) -> usize {
    match layout {
        KvLayout::Nhd => (slot * heads + head) * dim,
        KvLayout::Hnd => ((slot / page_size * heads + head) * page_size + slot % page_size) * dim,
    }
}

fn tensor_of(codes: &[u8], shape: [usize; 4], target: &Target) -> Tensor<4, Int> {
    Tensor::from_data(TensorData::new(codes.to_vec(), shape), (&target.device, DType::U8))
}

/// Request 0 has the pages 4, 1, 5, all full; request 1 the pages 1 and 3, of which it shares the first.
fn table(page_size: usize, target: &Target) -> PageTable {
    let last = [page_size, 2];
    PageTable::new(&[0, 3, 5], &[4, 1, 5, 1, 3], &last, page_size, PAGES, &target.device).expect("valid")
}

fn pages_of_codes(target: Target) {
    let rng = &mut Rng::new("fp8 pages");
    let (page_size, heads, dims) = (5, 3, [40, 24]);
    for dtype in target.dtypes() {
        for (format, layout, of_heads) in FORMATS
            .into_iter()
            .flat_map(|format| [(format, KvLayout::Nhd, false), (format, KvLayout::Hnd, true)])
        {
            let what = format!("{format:?} {layout:?} {dtype:?} on {}", target.name);
            let scales: [Vec<f32>; 2] = [(); 2].map(|()| {
                (0..if of_heads { heads } else { 1 }).map(|_| 0.01 + rng.normal().abs() / 4.0).collect()
            });
            let scale = |part: usize, head: usize| scales[part][if of_heads { head } else { 0 }];
            let shapes = dims.map(|dim| shape_of(layout, page_size, heads, dim));
            let pools = shapes.map(|shape| random_codes(shape, format, rng));
            let [k, v] = [0, 1].map(|part| tensor_of(&pools[part], shapes[part], &target));
            let mut pages = KvPages::new_fp8(k, v, layout, format).expect("pages");
            let [k_scale, v_scale] = scales.each_ref().map(|scales| {
                let data = TensorData::new(scales.clone(), [scales.len()]);
                Tensor::<1>::from_data(data, (&target.device, DType::F32))
            });
            pages.set_scales(k_scale, v_scale).expect("scales");
            assert_eq!((pages.fp8(), pages.dtype()), (Some(format), DType::U8));

            // Some tokens, one of them padding.
            let table = table(page_size, &target);
            let at: [Option<(usize, usize)>; 5] =
                [Some((0, 14)), Some((1, 6)), None, Some((0, 0)), Some((1, 5))];
            let requests = at.map(|at| at.map(|(request, _)| request));
            let positions = at.map(|at| at.map_or(0, |(_, position)| position));
            let slots = SlotMapping::new(&table, &requests, &positions).expect("slots");
            let new = dims.map(|dim| Host::random([5, heads, dim], dtype, rng));
            let [k, v] = new.each_ref().map(|new| new.tensor(&target.device));
            append_paged_kv(&mut pages, k, v, &slots).expect("it fits");

            let (k, v) = pages.codes().expect("codes");
            let mut expected = pools.clone();
            for (part, got) in [k, v].into_iter().enumerate() {
                let got = codes(got.clone());
                for (token, (request, position)) in
                    at.into_iter().enumerate().filter_map(|(token, at)| Some((token, at?)))
                {
                    let slot = table.pages(request)[position / page_size] * page_size + position % page_size;
                    for head in 0..heads {
                        let first = place(layout, page_size, heads, dims[part], slot, head);
                        let range = first..first + dims[part];
                        let wide = new[part].row(token, head);
                        let exact: Vec<f64> = wide.iter().map(|&x| f64::from(x)).collect();
                        let scale = scale(part, head);
                        check_codes(&what, format, &got[range.clone()], wide, &exact, scale);
                        expected[part][range.clone()].copy_from_slice(&got[range]);
                    }
                }
                assert!(got == expected[part], "{what}: another slot was written");
            }

            // And back, the shared page twice.
            let (k, v) = gather_paged_kv(&pages, &table, dtype).expect("it fits");
            for (part, got) in [k, v].into_iter().enumerate() {
                assert_eq!((got.dims(), got.dtype()), ([22, heads, dims[part]], dtype));
                let mut oracle = Vec::new();
                for (request, tokens) in [(0, 15), (1, 7)] {
                    for position in 0..tokens {
                        let slot =
                            table.pages(request)[position / page_size] * page_size + position % page_size;
                        for head in 0..heads {
                            let first = place(layout, page_size, heads, dims[part], slot, head);
                            let row = &expected[part][first..first + dims[part]];
                            let scale = f64::from(scale(part, head));
                            oracle.extend(row.iter().map(|&c| f64::from(format.decode(c)) * scale));
                        }
                    }
                }
                let baseline: Vec<f32> = oracle.iter().map(|&x| round(x as f32, dtype)).collect();
                check(format!("gather {what}"), &read(got), &baseline, &oracle, dtype);
            }

            // Codes move as they are.
            let copies = PageCopies::new(&[4, 1], &[0, 2], page_size, PAGES, &target.device);
            copy_pages(&mut pages, &copies.expect("pages")).expect("it fits");
            let (k, v) = pages.codes().expect("codes");
            for (part, got) in [k, v].into_iter().enumerate() {
                let page = page_size * heads * dims[part];
                for (from, to) in [(4, 0), (1, 2)] {
                    let row = expected[part][from * page..(from + 1) * page].to_vec();
                    expected[part][to * page..(to + 1) * page].copy_from_slice(&row);
                }
                assert!(codes(got.clone()) == expected[part], "{what}: copies");
            }
        }
    }
}

/// Numbers come back bit for bit, and nothing is read but what the table names.
fn gather_numbers(target: Target) {
    let rng = &mut Rng::new("gather");
    let (page_size, heads, dims) = (5, 2, [32, 6]);
    for dtype in target.dtypes() {
        for layout in [KvLayout::Nhd, KvLayout::Hnd] {
            let pools = dims.map(|dim| {
                let shape = shape_of(layout, page_size, heads, dim);
                Host::from_fn(shape, dtype, |_| rng.normal())
            });
            let [k, v] = pools.each_ref().map(|pool| pool.tensor(&target.device));
            let pages = KvPages::new(k, v, layout).expect("pages");
            let table = table(page_size, &target);
            let (k, v) = gather_paged_kv(&pages, &table, dtype).expect("it fits");
            for (pool, (got, dim)) in pools.iter().zip([k, v].into_iter().zip(dims)) {
                let mut wanted = Vec::new();
                for (request, tokens) in [(0, 15), (1, 7)] {
                    for position in 0..tokens {
                        let slot =
                            table.pages(request)[position / page_size] * page_size + position % page_size;
                        for head in 0..heads {
                            let first = place(layout, page_size, heads, dim, slot, head);
                            wanted.extend_from_slice(&pool.values[first..first + dim]);
                        }
                    }
                }
                let wanted: Vec<u32> = wanted.into_iter().map(f32::to_bits).collect();
                assert_eq!(bits(got), wanted, "{layout:?} {dtype:?} on {}", target.name);
            }
            let none = PageTable::new(&[0, 0], &[], &[0], page_size, PAGES, &target.device);
            let (k, v) = gather_paged_kv(&pages, &none.expect("valid"), dtype).expect("it fits");
            assert_eq!((k.dims(), v.dims()), ([0, heads, dims[0]], [0, heads, dims[1]]));
        }
    }
}

/// A cache of codes: forks copy the page they write to, sequences go to the host and come back, bit for bit.
fn caches_of_codes(target: Target) {
    let rng = &mut Rng::new("fp8 cache");
    let config = CacheConfig::new(2, 8, 4, 2, 16).fp8(Fp8::E4m3);
    assert_eq!(config.bytes(), 2 * 2 * 8 * 4 * 2 * 16);
    let mut cache = PagedKvCache::new(&config, &target.device).expect("a cache");
    let mut append = |cache: &mut PagedKvCache, sequence, tokens: usize| {
        let slots = cache.reserve(&[(sequence, tokens)]).expect("room");
        for layer in 0..2 {
            let [k, v] = [(); 2].map(|()| Host::random([tokens, 2, 16], DType::F32, rng));
            let [k, v] = [k, v].map(|new| new.tensor(&target.device));
            append_paged_kv(cache.layer_mut(layer).expect("a layer"), k, v, &slots).expect("it fits");
        }
    };
    let contents = |cache: &PagedKvCache, sequence| {
        let table = cache.page_table(&[sequence]).expect("a sequence");
        [0, 1].map(|layer| {
            let layer = cache.layer(layer).expect("a layer");
            let (k, v) = gather_paged_kv(layer, &table, DType::F32).expect("it fits");
            [bits(k), bits(v)]
        })
    };
    let story = cache.create();
    append(&mut cache, story, 6);
    let before = contents(&cache, story);
    let fork = cache.fork(story).expect("a fork");
    append(&mut cache, fork, 3);
    assert_eq!(contents(&cache, story), before, "{}", target.name);
    let forked = contents(&cache, fork);
    for (old, new) in before.iter().flatten().zip(forked.iter().flatten()) {
        assert_eq!(old[..], new[..old.len()], "{}", target.name);
    }
    let waiting = cache.swap_out(fork).expect("a sequence");
    assert_eq!(waiting.bytes(), 2 * 2 * 9 * 2 * 16);
    append(&mut cache, story, 5);
    let back = cache.swap_in(&waiting).expect("room");
    assert_eq!(contents(&cache, back), forked, "{}", target.name);

    // Codes of another format are other numbers.
    let config = CacheConfig::new(2, 8, 4, 2, 16).fp8(Fp8::E5m2);
    let mut other = PagedKvCache::new(&config, &target.device).expect("a cache");
    refused(
        other.swap_in(&waiting),
        "PagedKvCache::swap_in: `swapped` is Some(E4m3), expected Some(E5m2), as the cache has it",
    );
}

fn refusals(target: Target) {
    let device = &target.device;
    let floats = || Tensor::<4>::ones([PAGES, 4, 2, 8], (device, DType::F32));
    let bytes = || Tensor::<4, Int>::zeros([PAGES, 4, 2, 8], (device, DType::U8));
    let ints = Tensor::<4, Int>::zeros([PAGES, 4, 2, 8], (device, DType::I32));
    let nhd = KvLayout::Nhd;
    refused(
        KvPages::new_fp8(ints, bytes(), nhd, Fp8::E4m3),
        "KvPages::new_fp8: `k` is of type I32, expected U8",
    );
    let short = Tensor::<4, Int>::zeros([PAGES, 3, 2, 8], (device, DType::U8));
    refused(
        KvPages::new_fp8(bytes(), short, nhd, Fp8::E4m3),
        "KvPages::new_fp8: `v` has shape [6, 3, 2, 8], expected [6, 4, 2, head_dim], as `k`",
    );
    let one = |n: usize| Tensor::<1>::ones([n], (device, DType::F32));
    let mut numbers = KvPages::new(floats(), floats(), nhd).expect("pages");
    refused(
        numbers.set_scales(one(1), one(1)),
        "KvPages::set_scales: `self` is of type F32 pages, expected pages of codes, of KvPages::new_fp8",
    );
    let mut pages = KvPages::new_fp8(bytes(), bytes(), nhd, Fp8::E4m3).expect("pages");
    refused(
        pages.set_scales(one(1), one(3)),
        "KvPages::set_scales: `v_scale` has shape [3], expected [1] or [2], one for each head",
    );
    refused(Quantization::new(Fp8::E4m3, one(2)), "Quantization::new: `scale` has shape [2], expected [1]");
    let half = Tensor::<1>::ones([1], (device, DType::F16));
    refused(Quantization::new(Fp8::E4m3, half), "Quantization::new: `scale` is of type F16, expected F32");
    let table = PageTable::new(&[0, 1], &[5], &[4], 4, PAGES, device).expect("valid");
    refused(
        gather_paged_kv(&numbers, &table, DType::F16),
        "gather_paged_kv: `dtype` is of type F16, expected F32, as the other arguments",
    );
    refused(
        gather_paged_kv(&pages, &table, DType::F64),
        "gather_paged_kv: `dtype` is of type F64, expected F32, F16 or BF16",
    );
    let large = PageTable::new(&[0, 1], &[6], &[4], 4, 7, device).expect("valid");
    refused(
        gather_paged_kv(&pages, &large, DType::F32),
        "gather_paged_kv: `table` is naming page 6, expected a page of the pool, below 6",
    );
    let wide = PageTable::new(&[0, 1], &[0], &[4], 5, PAGES, device).expect("valid");
    refused(
        gather_paged_kv(&pages, &wide, DType::F32),
        "gather_paged_kv: `table` is of pages of 5 tokens, expected pages of 4 tokens, as `pages`",
    );
    // A plan of numbers does not read codes, nor one of codes those of another format.
    let q = Tensor::<3>::ones([1, 2, 8], (device, DType::F32));
    let config = PlanConfig::for_pages(2, &pages).dtype(DType::F32);
    for (config, planned) in
        [(PlanConfig::new(2, 2, 8, DType::F32), "F32"), (config.clone().fp8(Fp8::E5m2), "codes of E5m2")]
    {
        let plan = PagedPlan::decode(&config, &table).expect("a plan");
        let expected =
            format!("PagedPlan::run: `pages` is of type codes of E4m3, expected {planned}, as planned");
        refused(plan.run(q.clone(), &pages), &expected);
    }
    let rows = Indptr::from_lengths(&[1], device).expect("valid");
    let plan = RaggedPlan::new(&config, &rows, &rows).expect("a plan");
    let heads = || Tensor::<3>::ones([1, 2, 8], (device, DType::F32));
    let of_codes = |format| KvTensor::fp8(Tensor::zeros([1, 2, 8], (device, DType::U8)), one(1), format);
    for (k, v, expected) in [
        (heads().into(), heads().into(), "`k` is of type F32, expected codes of E4m3, as planned"),
        (of_codes(Fp8::E4m3), heads().into(), "`v` is of type F32, expected codes of E4m3, as `k`"),
        (
            of_codes(Fp8::E4m3),
            of_codes(Fp8::E5m2),
            "`v` is of type codes of E5m2, expected codes of E4m3, as `k`",
        ),
    ] {
        refused(plan.run(heads(), k, v), format!("RaggedPlan::run: {expected}"));
    }
    let long = KvTensor::fp8(Tensor::zeros([1, 2, 8], (device, DType::U8)), one(3), Fp8::E4m3);
    refused(
        single_prefill(heads(), long, of_codes(Fp8::E4m3), &Default::default()),
        "single_prefill: `k_scale` has shape [3], expected [1] or [2], one for each head",
    );
    let mask = VariableBlockMask::new(&[true; 2], &[1, 1], &[1, 1], 2).expect("valid");
    refused(
        VariableBlockSparsePlan::new(&config, &mask, device),
        "VariableBlockSparsePlan::new: `fp8` is E4m3, expected not to be set, as this plan is of numbers",
    );
}
