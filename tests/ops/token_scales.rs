//! Pages of codes with a scale for each token and head.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, DecodeStep, Fp8, Indptr, KvLayout, KvPages, KvSplit, PageCopies,
    PageTable, PagedKvCache, PagedPlan, PlanConfig, Positions, Qkv, Rope, RopeConfig, SlotMapping,
    append_paged_kv, apply_rope, batch_decode_paged, batch_prefill_paged, copy_pages, gather_paged_kv,
    rope_append_paged_kv,
};

use crate::devices::{Target, device_tests};
use crate::problem::{Case, Got, Paging, Problem};
use crate::support::{Host, Rng, bits, check, epsilon, read, refused, round};

device_tests!(append_and_gather, attention_over_pages, caches, rotated_keys, refusals);

const LAYOUTS: [KvLayout; 2] = [KvLayout::Nhd, KvLayout::Hnd];
/// The format of pages.
#[derive(Debug, Clone, Copy)]
enum Format {
    Fp8(Fp8),
    Int8,
}

const FORMATS: [Format; 4] =
    [Format::Fp8(Fp8::E4m3), Format::Int8, Format::Fp8(Fp8::E5m2), Format::Fp8(Fp8::E4m3Fnuz)];

impl Format {
    fn max(self) -> f32 {
        match self {
            Self::Fp8(format) => format.max(),
            Self::Int8 => 127.0,
        }
    }

    fn encode(self, x: f32) -> u8 {
        match self {
            Self::Fp8(format) => format.encode(x),
            Self::Int8 => x.round_ties_even() as i8 as u8,
        }
    }

    fn decode(self, code: u8) -> f32 {
        match self {
            Self::Fp8(format) => format.decode(code),
            Self::Int8 => f32::from(code as i8),
        }
    }

    /// A code that no number gets: NaN, if there is one.
    fn poison(self) -> i64 {
        match self {
            Self::Fp8(Fp8::E4m3 | Fp8::E5m2) => 0x7f,
            _ => 0x80,
        }
    }

    fn pages(self, [k, v]: [Tensor<4, Int>; 2], [ks, vs]: [Tensor<3>; 2], layout: KvLayout) -> KvPages {
        let pages = match self {
            Self::Fp8(format) => KvPages::new_fp8_per_token(k, v, ks, vs, layout, format),
            Self::Int8 => KvPages::new_int8(k, v, ks, vs, layout),
        };
        pages.expect("pages")
    }
}

/// Pages of NaN, scales and all.
fn empty(shape: [usize; 4], layout: KvLayout, format: Format, device: &Device) -> KvPages {
    let [pages, page_size, heads, dim] = shape;
    let (a, b) = if layout == KvLayout::Nhd { (page_size, heads) } else { (heads, page_size) };
    let codes = || Tensor::<4, Int>::full([pages, a, b, dim], format.poison(), (device, DType::U8));
    let scales = || Tensor::<3>::full([pages, a, b], f32::NAN, (device, DType::F32));
    format.pages([codes(), codes()], [scales(), scales()], layout)
}

/// The scale that a head gets.
fn scale_for(numbers: &[f32], format: Format) -> f32 {
    let scale = numbers.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())) / format.max();
    if scale == 0.0 { 1.0 } else { scale }
}

/// Rounds each head of each token to codes, and returns codes and scales `[tokens, heads, 1]`; `x` becomes what they mean.
fn rounded(x: &mut Host<3>, format: Format) -> (Host<3>, Host<3>) {
    let [tokens, heads, dim] = x.shape;
    x.dtype = DType::F32;
    let mut codes = x.clone();
    let mut scales = Host::full([tokens, heads, 1], DType::F32, 0.0);
    for (row, numbers) in x.values.chunks_exact_mut(dim).enumerate() {
        let scale = scale_for(numbers, format);
        scales.values[row] = scale;
        for (x, code) in numbers.iter_mut().zip(&mut codes.values[row * dim..]) {
            *code = format.decode(format.encode(*x / scale));
            *x = *code * scale;
        }
    }
    (codes, scales)
}

/// A head gets the least scale that reaches its largest number, no other slot is written, and it comes back; copies are exact.
fn append_and_gather(target: Target) {
    const PAGES: usize = 5;
    let rng = &mut Rng::new("append with scales");
    let (page_size, heads, device) = (3, 3, &target.device);
    let dtypes = target.dtypes();
    let cases = FORMATS.into_iter().zip(LAYOUTS.into_iter().cycle()).enumerate().collect();
    for (at, (format, layout)) in target.thin(2, cases) {
        let (dim, dtype) = ([40, 128, 3][at % 3], dtypes[at % dtypes.len()]);
        let what = format!("{format:?} {layout:?} {dtype:?} of {dim} on {}", target.name);
        let mut pages = empty([PAGES, page_size, heads, dim], layout, format, device);
        let table = PageTable::new(&[0, 2], &[4, 1], &[2], page_size, PAGES, device).expect("valid");
        let requests = [Some(0), None, Some(0), Some(0)];
        let slots = SlotMapping::new(&table, &requests, &[4, 0, 0, 2]).expect("slots");
        let mut k = Host::random([4, heads, dim], dtype, rng);
        // Heads of zeros, of subnormal numbers, and of one that is far larger than the rest.
        k.values[..dim].fill(0.0);
        k.values[dim] = round(1000.0, dtype);
        let v = Host::from_fn([4, heads, dim], dtype, |at| round((at % 7) as f32 - 3.0, dtype));
        append_paged_kv(&mut pages, k.tensor(device), v.tensor(device), &slots).expect("it fits");

        let (k_codes, v_codes) = pages.codes().expect("codes");
        let (k_scales, v_scales) = pages.token_scales().expect("scales");
        for (new, codes, scales) in [(&k, k_codes, k_scales), (&v, v_codes, v_scales)] {
            let codes: Vec<u8> = codes.clone().into_data().try_to_vec().expect("bytes");
            let (scales, mut written) = (read(scales), 0);
            for slot in 0..PAGES * page_size {
                let token = [(1, 1, 0), (4, 0, 2), (4, 2, 3)]
                    .into_iter()
                    .find(|&(page, offset, _)| (page, offset) == (slot / page_size, slot % page_size));
                for head in 0..heads {
                    let row = match layout {
                        KvLayout::Nhd => slot * heads + head,
                        KvLayout::Hnd => (slot / page_size * heads + head) * page_size + slot % page_size,
                    };
                    let (codes, scale) = (&codes[row * dim..][..dim], scales[row]);
                    let Some((_, _, token)) = token else {
                        let untouched = codes.iter().all(|&code| i64::from(code) == format.poison());
                        assert!(untouched && scale.is_nan(), "{what}: slot {slot} was written");
                        continue;
                    };
                    let numbers = new.row(token, head);
                    let wanted = scale_for(numbers, format);
                    assert!((scale / wanted - 1.0).abs() < 2e-7, "{what}: scale {scale}, not {wanted}");
                    for (code, x) in codes.iter().zip(numbers) {
                        let (got, wanted) = (format.decode(*code), format.decode(format.encode(x / scale)));
                        assert!(got == wanted, "{what}: {x} is {got} times {scale}, not {wanted}");
                    }
                    written += 1;
                }
            }
            assert_eq!(written, 3 * heads);
        }

        // The first page has a slot that was not written.
        let some = PageTable::new(&[0, 1], &[1], &[2], page_size, PAGES, device).expect("valid");
        let got = gather_paged_kv(&pages, &some, dtype).expect("it fits");
        let first = read(got.0.slice_dim(0, 1..2));
        let mut exact = k.tokens(0..1);
        rounded(&mut exact, format);
        let baseline: Vec<f32> = exact.values.iter().map(|&x| round(x, dtype)).collect();
        let oracle: Vec<f64> = exact.values.iter().map(|&x| f64::from(x)).collect();
        check(format!("gather {what}"), &first, &baseline, &oracle, dtype);

        let state = |pages: &KvPages, page: usize| {
            let (k, v) = pages.codes().expect("codes");
            let (k_scales, v_scales) = pages.token_scales().expect("scales");
            let codes = [k, v].map(|codes| codes.clone().slice_dim(0, page..page + 1).into_data());
            (codes, [k_scales, v_scales].map(|scales| bits(scales.slice_dim(0, page..page + 1))))
        };
        let copies = PageCopies::new(&[4, 1], &[0, 2], page_size, PAGES, device).expect("pages");
        copy_pages(&mut pages, &copies).expect("it fits");
        assert_eq!([state(&pages, 0), state(&pages, 2)], [state(&pages, 4), state(&pages, 1)], "{what}");
    }
}

/// A problem over pages with scales of tokens; NaN where no token is.
struct Scaled {
    problem: Problem,
    format: Format,
    /// Codes and scales of keys, and of values.
    parts: [(Host<3>, Host<3>); 2],
}

impl Scaled {
    fn new(mut problem: Problem, format: Format) -> Self {
        // Tokens of very different sizes.
        for x in [&mut problem.k, &mut problem.v] {
            let row = x.shape[1] * x.shape[2];
            x.values.iter_mut().enumerate().for_each(|(at, x)| *x *= [1.0, 0.01, 0.5, 2.0][at / row % 4]);
        }
        let parts = [rounded(&mut problem.k, format), rounded(&mut problem.v, format)];
        Self { problem, format, parts }
    }

    fn pages(&self, paging: &Paging, layout: KvLayout, device: &Device) -> KvPages {
        let [(k, k_scales), (v, v_scales)] = self.parts.each_ref().map(|(codes, scales)| {
            let pool = paging.pool(codes, layout);
            let code = |&x: &f32| if x.is_nan() { self.format.poison() as u8 } else { self.format.encode(x) };
            let codes: Vec<u8> = pool.values.iter().map(code).collect();
            let codes = Tensor::<4, Int>::from_data(TensorData::new(codes, pool.shape), (device, DType::U8));
            let scales = paging.pool(scales, layout);
            let [pages, a, b, _] = scales.shape;
            (codes, scales.tensor(device).reshape([pages, a, b]))
        });
        self.format.pages([k, v], [k_scales, v_scales], layout)
    }
}

/// Decode, append and prefill, planned and not, at once and in chunks, with masks and caps.
fn attention_over_pages(target: Target) {
    let lengths = [(1, 97), (3, 64), (0, 16), (21, 65), (1, 1), (0, 0), (1, 150), (6, 6)];
    let dtypes = target.dtypes();
    let cases =
        [(64, 16, 2, 4), (128, 1, 2, 1), (80, 7, 1, 3), (64, 5, 3, 2)].into_iter().enumerate().collect();
    for (at, (dim, page_size, kv_heads, group)) in target.thin(3, cases) {
        let (format, layout, device) = (FORMATS[at], LAYOUTS[at % 2], &target.device);
        let lengths = if at == 1 { lengths.map(|(rows, keys)| (rows.min(1), keys)) } else { lengths };
        let case = Case::new(dtypes[at % dtypes.len()], dim, &lengths).heads(kv_heads, group).causal();
        let case = Case { soft_cap: (at == 2).then_some(5.0), window: (at == 2).then_some(40), ..case };
        let scaled = Scaled::new(case.problem("scales of tokens"), format);
        let (problem, expected) = (&scaled.problem, scaled.problem.expected());
        let paging = problem.paging(page_size);
        let pages = scaled.pages(&paging, layout, device);
        let (q, options) = (|| problem.q.tensor(device), case.options());
        let what = format!("{format:?}, pages of {page_size} {layout:?}");
        let qo = Indptr::new(&problem.qo_indptr(), device).expect("valid");
        let table = paging.table(device);
        let got = Got::of(batch_prefill_paged(q(), &qo, &pages, &table, &options).expect("runs"));
        problem.check(&what, &target, &expected, &got);
        let config = PlanConfig::for_pages(kv_heads * group, &pages).dtype(case.dtype).options(options);
        for split in [KvSplit::Auto, KvSplit::Fixed(64)] {
            let plan = PagedPlan::new(&config.clone().split(split), &qo, &table).expect("a plan");
            problem.check(&what, &target, &expected, &Got::of(plan.run(q(), &pages).expect("runs")));
        }
    }
}

/// A cache appends with scales, steps read them, and a sequence that waited on the host has them again.
fn caches(target: Target) {
    let (device, dtype, dim) = (&target.device, target.dtypes()[0], 64);
    let rng = &mut Rng::new("caches with scales");
    let config = CacheConfig::new(1, 20, 4, 2, dim).fp8_per_token(Fp8::E4m3);
    assert_eq!(config.bytes(), 2 * 20 * 4 * 2 * (dim + 4));
    let mut cache = PagedKvCache::new(&config, device).expect("a cache");
    let options = AttentionOptions::new().causal(true);
    let plan =
        PlanConfig::for_pages(4, cache.layer(0).expect("a layer")).dtype(dtype).options(options.clone());
    let sequences = [(cache.create(), 21), (cache.create(), 3)];
    let mut heads = |tokens, heads| Host::random([tokens, heads, dim], dtype, rng).tensor(device);
    let step = cache.step(&sequences).expect("room");
    let kv = heads(24, 2);
    append_paged_kv(cache.layer_mut(0).expect("a layer"), kv.clone(), kv, step.slots()).expect("it fits");
    let q = heads(24, 4);
    let got = PagedPlan::for_step(&plan, &step).expect("a plan");
    let got = got.run(q.clone(), cache.layer(0).expect("a layer")).expect("runs").output;
    let (k, v) =
        gather_paged_kv(cache.layer(0).expect("a layer"), step.table(), DType::F32).expect("it fits");
    let rows = Indptr::from_lengths(&[21, 3], device).expect("valid");
    let wanted = burn_flashinfer::batch_prefill_ragged(q.cast(DType::F32), k, v, &rows, &rows, &options);
    let off = (got.cast(DType::F32) - wanted.expect("runs").output).abs().max().into_scalar::<f32>();
    assert!(f64::from(off) <= 8.0 * epsilon(dtype).max(1e-6), "{} {dtype:?}: {off}", target.name);

    let mut decode = DecodeStep::new(&plan, 2, 30, &cache).expect("a step");
    decode.update(&mut cache, &sequences.map(|(sequence, _)| (sequence, vec![0]))).expect("room");
    let kv = heads(2, 2);
    append_paged_kv(cache.layer_mut(0).expect("a layer"), kv.clone(), kv, &decode.slots()).expect("it fits");
    let (q, layer) = (heads(2, 4), cache.layer(0).expect("a layer"));
    let got = read(decode.plan().run(q.clone(), layer).expect("runs").output);
    let table = cache.page_table(&sequences.map(|(sequence, _)| sequence)).expect("alive");
    let alone = read(batch_decode_paged(q.clone(), layer, &table, &options).expect("runs").output);
    let off = got.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(f64::from(off) <= 4.0 * epsilon(dtype).max(1e-6), "{} {dtype:?}: {off}", target.name);

    let swapped = cache.swap_out(sequences[0].0).expect("room on the host");
    assert_eq!(swapped.bytes(), 2 * 22 * 2 * (dim + 4));
    let other = cache.create();
    cache.reserve(&[(other, 9)]).expect("room");
    let back = cache.swap_in(&swapped).expect("room");
    let table = cache.page_table(&[back, sequences[1].0]).expect("alive");
    let again =
        batch_decode_paged(q, cache.layer(0).expect("a layer"), &table, &options).expect("runs").output;
    assert_eq!(read(again), alone, "{}", target.name);

    let mut fixed =
        PagedKvCache::new(&CacheConfig::new(1, 20, 4, 2, dim).fp8(Fp8::E4m3), device).expect("a cache");
    let integers = CacheConfig::new(1, 20, 4, 2, dim).int8();
    assert_eq!(integers.bytes(), config.bytes());
    let mut integers = PagedKvCache::new(&integers, device).expect("a cache");
    refused(
        integers.swap_in(&swapped),
        "PagedKvCache::swap_in: `swapped` is Some(E4m3), expected Some(Int8), as the cache has it",
    );
    refused(
        fixed.swap_in(&swapped),
        "PagedKvCache::swap_in: `swapped` is with scales for each token, expected scales for all tokens, as the cache has them",
    );
}

/// Keys are rotated and rounded to their type, and appended as any others.
fn rotated_keys(target: Target) {
    let (device, dtype) = (&target.device, target.dtypes()[0]);
    let rng = &mut Rng::new("rotated with scales");
    let rope = Rope::new(&RopeConfig::new(32), 16, device).expect("a table");
    let mut heads = |heads| Host::random([5, heads, 32], dtype, rng).tensor(device);
    let (q, k, v) = (heads(4), heads(2), heads(2));
    let table = PageTable::new(&[0, 2], &[2, 0], &[3], 4, 3, device).expect("valid");
    let places: Vec<usize> = (2..7).collect();
    let slots = SlotMapping::new(&table, &[Some(0); 5], &places).expect("slots");
    let positions = Positions::new(&places, device).expect("positions");
    let [mut at_once, mut one_by_one] =
        [(); 2].map(|()| empty([3, 4, 2, 32], KvLayout::Nhd, Format::Int8, device));
    let qkv = Qkv { q: q.clone(), k: k.clone(), v: v.clone() };
    let rotated = rope_append_paged_kv(&mut at_once, qkv, None, &rope, &positions, &slots).expect("it fits");
    let (wanted, k) = apply_rope(q, k, &rope, &positions).expect("it fits");
    append_paged_kv(&mut one_by_one, k, v, &slots).expect("it fits");
    assert_eq!(bits(rotated), bits(wanted), "{}", target.name);
    let state = |pages: &KvPages| {
        let (k, v) = pages.codes().expect("codes");
        let (k_scales, v_scales) = pages.token_scales().expect("scales");
        ([k, v].map(|codes| codes.clone().into_data()), [k_scales, v_scales].map(bits))
    };
    assert_eq!(state(&at_once), state(&one_by_one), "{}", target.name);
}

/// Plans and pages of other codes.
fn refusals(target: Target) {
    let device = &target.device;
    let codes = || Tensor::<4, Int>::zeros([6, 4, 2, 8], (device, DType::U8));
    let scales = |shape: [usize; 3]| Tensor::<3>::ones(shape, (device, DType::F32));
    let new = |k, v| KvPages::new_fp8_per_token(codes(), codes(), k, v, KvLayout::Nhd, Fp8::E4m3);
    refused(
        new(scales([6, 4, 2]), scales([6, 2, 4])),
        "KvPages::new_fp8_per_token: `v_scales` has shape [6, 2, 4], expected [6, 4, 2], as the pages",
    );
    let halves = scales([6, 4, 2]).cast(DType::F16);
    refused(
        new(halves, scales([6, 4, 2])),
        "KvPages::new_fp8_per_token: `k_scales` is of type F16, expected F32",
    );
    let mut pages = new(scales([6, 4, 2]), scales([6, 4, 2])).expect("pages");
    let one = || Tensor::<1>::ones([1], (device, DType::F32));
    refused(
        pages.set_scales(one(), one()),
        "KvPages::set_scales: `self` is of type pages of codes with scales of their own for tokens, expected pages of \
         codes, of KvPages::new_fp8",
    );
}
