//! Attention over pages of codes: against the oracle over what the codes mean.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_flashinfer::{
    AttentionOptions, CacheConfig, CascadePlan, DecodeStep, Fp8, Indptr, KvLayout, KvPages, KvSplit,
    KvTensor, PagedKvCache, PagedPlan, PlanConfig, PodPlan, RaggedPlan, append_paged_kv, batch_decode_paged,
    batch_prefill_paged, cascade_attention, gather_paged_kv, single_prefill,
};

use crate::cascade::{cascade, sharing};
use crate::devices::{Target, device_tests};
use crate::fp8::FORMATS;
use crate::problem::{Case, Got, Paging, Problem};
use crate::setting::{Setting, Tensors, got};
use crate::support::{Host, Rng, bits, epsilon};

device_tests!(
    pages_and_scales,
    dims_and_groups,
    every_option,
    decode_and_split_keys,
    without_pages,
    every_code,
    nan_stays_nan,
    shared_pages,
    prefill_and_decode,
    caches_and_steps
);

const LAYOUTS: [KvLayout; 2] = [KvLayout::Nhd, KvLayout::Hnd];
/// Decode, append, prefill, and nothing to do: last pages of every kind.
const LENGTHS: [(usize, usize); 8] = [(1, 97), (3, 64), (0, 16), (21, 65), (1, 1), (0, 0), (1, 150), (6, 6)];

/// A problem whose keys and values are codes times their scales.
pub struct Coded {
    pub problem: Problem,
    format: Fp8,
    /// The scales of keys and of values: one, or one for each head.
    pub scales: [Vec<f32>; 2],
}

impl Coded {
    /// Rounds keys and values of the problem to codes.
    pub fn new(problem: Problem, format: Fp8, of_heads: bool) -> Self {
        let rng = &mut Rng::new(&format!("scales {format:?} {:?}", problem.case));
        let heads = if of_heads { problem.case.kv_heads } else { 1 };
        // The largest code is beyond the largest number.
        let mut scale = || (4.0 + rng.normal().abs()) / format.max();
        let scales = [(); 2].map(|()| (0..heads).map(|_| scale()).collect());
        Self::of(problem, format, scales)
    }

    /// Rounds keys and values of the problem to codes of these scales.
    pub fn of(mut problem: Problem, format: Fp8, scales: [Vec<f32>; 2]) -> Self {
        for (x, scales) in [&mut problem.k, &mut problem.v].into_iter().zip(&scales) {
            x.dtype = DType::F32;
            each_head(x, |head, x| {
                let scale = scales[head.min(scales.len() - 1)];
                *x = format.decode(format.encode(*x / scale)) * scale;
            });
        }
        Self { problem, format, scales }
    }

    /// The pages; NaN in every slot that no token owns.
    pub fn pages(&self, paging: &Paging, layout: KvLayout, device: &Device) -> KvPages {
        let [k, v] =
            [(&self.problem.k, &self.scales[0]), (&self.problem.v, &self.scales[1])].map(|(x, scales)| {
                let mut numbers = x.clone();
                each_head(&mut numbers, |head, x| *x /= scales[head.min(scales.len() - 1)]);
                codes_of(&paging.pool(&numbers, layout), self.format, device)
            });
        let mut pages = KvPages::new_fp8(k, v, layout, self.format).expect("pages");
        let [k_scale, v_scale] = self.scales.each_ref().map(|scales| scale_of(scales, device));
        pages.set_scales(k_scale, v_scale).expect("scales");
        pages
    }

    pub fn config(&self, pages: &KvPages) -> PlanConfig {
        let case = &self.problem.case;
        PlanConfig::for_pages(case.kv_heads * case.group, pages).dtype(case.dtype).options(case.options())
    }

    pub fn plan(&self, config: &PlanConfig, paging: &Paging, device: &Device) -> PagedPlan {
        let qo = Indptr::new(&self.problem.qo_indptr(), device).expect("valid");
        PagedPlan::new(config, &qo, &paging.table(device)).expect("a plan")
    }

    /// As planned, and without a plan.
    fn paged(&self, page_size: usize, layout: KvLayout, device: &Device) -> Got {
        let paging = self.problem.paging(page_size);
        let pages = self.pages(&paging, layout, device);
        let plan = self.plan(&self.config(&pages), &paging, device);
        let planned = Got::of(plan.run(self.problem.q.tensor(device), &pages).expect("runs"));
        let (qo, q) = (self.problem.qo_indptr(), self.problem.q.tensor(device));
        let qo = Indptr::new(&qo, device).expect("valid");
        let options = self.problem.case.options();
        let unplanned = batch_prefill_paged(q, &qo, &pages, &paging.table(device), &options).expect("runs");
        assert_eq!(planned.bits(), Got::of(unplanned).bits(), "with a plan and without");
        planned
    }
}

/// Keys or values that are codes times their scales, without pages.
pub fn codes_by_token(
    x: &Host<3>,
    scales: &[f32],
    format: Fp8,
    layout: KvLayout,
    device: &Device,
) -> KvTensor {
    let mut numbers = x.clone();
    each_head(&mut numbers, |head, x| *x /= scales[head.min(scales.len() - 1)]);
    let numbers = if layout == KvLayout::Nhd { numbers } else { numbers.swapped() };
    KvTensor::fp8(codes_of(&numbers, format, device), scale_of(scales, device), format)
}

fn scale_of(scales: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from(scales), (device, DType::F32))
}

fn each_head(x: &mut Host<3>, mut change: impl FnMut(usize, &mut f32)) {
    let [_, heads, dim] = x.shape;
    x.values.iter_mut().enumerate().for_each(|(at, x)| change(at / dim % heads, x));
}

pub fn codes_of<const D: usize>(numbers: &Host<D>, format: Fp8, device: &Device) -> Tensor<D, Int> {
    let codes: Vec<u8> = numbers.values.iter().map(|&x| format.encode(x)).collect();
    Tensor::from_data(TensorData::new(codes, numbers.shape), (device, DType::U8))
}

/// Every page size and layout, format, type of queries, and both kinds of scales.
fn pages_and_scales(target: Target) {
    let mut cases = vec![];
    for (format, dtype) in
        FORMATS.into_iter().flat_map(|format| target.dtypes().into_iter().map(move |d| (format, d)))
    {
        for (page_size, layout) in
            [1, 7, 16].into_iter().flat_map(|size| LAYOUTS.map(|layout| (size, layout)))
        {
            cases.push((format, dtype, page_size, layout));
        }
    }
    for (at, (format, dtype, page_size, layout)) in target.thin(11, cases).into_iter().enumerate() {
        let case = Case::new(dtype, 64, &LENGTHS).heads(2, 4).causal();
        let coded = Coded::new(case.problem("codes"), format, at % 2 == 1);
        let what = format!("{format:?}, pages of {page_size} {layout:?}");
        let got = coded.paged(page_size, layout, &target.device);
        coded.problem.check(&what, &target, &coded.problem.expected(), &got);
    }
}

/// Head dimensions of any number of vectors, or of none; values of another; one head and many.
fn dims_and_groups(target: Target) {
    let dims = [(16, 16), (80, 80), (128, 128), (256, 256), (40, 24), (48, 112), (192, 128), (96, 64)];
    let dtypes = target.dtypes();
    for (at, (dim, v_dim)) in target.thin(3, dims.into_iter().enumerate().collect()) {
        let (kv_heads, group) = [(1, 8), (3, 1), (2, 5)][at % 3];
        let dtype = dtypes[at % dtypes.len()];
        let case =
            Case { v_dim, ..Case::new(dtype, dim, &[(17, 54), (1, 97), (40, 40)]).heads(kv_heads, group) };
        let coded = Coded::new(case.causal().problem("codes"), FORMATS[(at + at / 3) % 3], true);
        let got = coded.paged(16, LAYOUTS[at % 2], &target.device);
        coded.problem.check("dims of codes", &target, &coded.problem.expected(), &got);
    }
}

/// Mask, window, cap, scale, sinks and slopes, and a mask of single keys.
fn every_option(target: Target) {
    let mut cases = vec![];
    for (at, (causal, window, soft_cap, scale)) in [
        (true, None, None, None),
        (false, Some(40), Some(5.0), None),
        (true, Some(19), None, Some(0.3)),
        (true, None, Some(5.0), Some(-0.2)),
    ]
    .into_iter()
    .enumerate()
    {
        let dtypes = target.dtypes();
        let lengths = [(1, 70), (5, 5), (0, 9), (37, 150)];
        let case = Case::new(dtypes[at % dtypes.len()], 64, &lengths).heads(2, 3);
        cases.push((at, Case { causal, window, soft_cap, scale, ..case }));
    }
    for (at, case) in target.thin(2, cases) {
        let coded = Coded::new(case.problem("options of codes"), FORMATS[at % 3], at % 2 == 0);
        let rng = &mut Rng::new(&format!("sinks {at}"));
        let heads = case.kv_heads * case.group;
        let of_heads = |rng: &mut Rng| (0..heads).map(|_| rng.normal()).collect();
        let slopes = (0..heads).map(|head| (-(head as f32)).exp2()).collect();
        let tensors = Tensors { sinks: of_heads(rng), slopes, ..Tensors::default() };
        let setting = Setting { problem: coded.problem.clone(), options: case.options(), tensors };
        let device = &target.device;
        let paging = coded.problem.paging(7);
        let pages = coded.pages(&paging, KvLayout::Hnd, device);
        let mut plan = coded.plan(&coded.config(&pages), &paging, device);
        let run = |plan: &PagedPlan| {
            got(plan
                .run_with(coded.problem.q.tensor(device), &pages, setting.tensors.on(device))
                .expect("runs"))
        };
        let plain = run(&plan);
        setting.check("sinks and slopes over codes", &target, &plain);
        // A mask of all keys hides none.
        let pairs = case.lengths.iter().map(|(queries, keys)| queries * keys).sum::<usize>();
        let mask = TensorData::new(vec![true; pairs], [pairs]);
        plan.set_custom_mask(Tensor::<1, Bool>::from_data(mask, device)).expect("a mask");
        assert_eq!(run(&plan).bits(), plain.bits(), "{case:?}");
    }
}

/// One token of each request, with all its keys at once and in chunks.
fn decode_and_split_keys(target: Target) {
    let dtypes = target.dtypes();
    for (at, format) in target.thin(2, FORMATS.into_iter().enumerate().collect()) {
        let lengths = [(1, 97), (1, 1), (1, 64), (1, 0), (1, 700)];
        let case =
            Case::new(dtypes[(at + 2) % dtypes.len()], [128, 64, 80][at], &lengths).heads(2, [4, 8, 1][at]);
        let coded = Coded::new(case.problem("decode of codes"), format, true);
        let (expected, device) = (coded.problem.expected(), &target.device);
        let paging = coded.problem.paging(16);
        let (pages, q) = (coded.pages(&paging, KvLayout::Nhd, device), || coded.problem.q.tensor(device));
        let options = case.options();
        let decoded = batch_decode_paged(q(), &pages, &paging.table(device), &options).expect("runs");
        coded.problem.check("decode of codes", &target, &expected, &Got::of(decoded));
        let config = coded.config(&pages).split(KvSplit::Fixed(64));
        let split = coded.plan(&config, &paging, device).run(q(), &pages).expect("runs");
        coded.problem.check("split keys of codes", &target, &expected, &Got::of(split));
    }
}

/// Keys and values one request after the other, in both orders of axes; planned, and of one request without a plan.
fn without_pages(target: Target) {
    let (device, dtypes) = (&target.device, target.dtypes());
    for (at, format) in target.thin(2, FORMATS.into_iter().enumerate().collect()) {
        let case =
            Case::new(dtypes[at % dtypes.len()], 64, &[(17, 54), (1, 97), (0, 3)]).heads(2, 4).causal();
        let coded = Coded::new(case.problem("ragged codes"), format, at != 1);
        let expected = coded.problem.expected();
        let options = case.options().kv_layout(LAYOUTS[at % 2]);
        let tensor = |x: &Host<3>, scales: &[f32]| codes_by_token(x, scales, format, LAYOUTS[at % 2], device);
        let Problem { q, k, v, .. } = &coded.problem;
        let [qo, kv] = [coded.problem.qo_indptr(), coded.problem.kv_indptr()];
        let [qo_rows, kv_rows] = [&qo, &kv].map(|rows| Indptr::new(rows, device).expect("valid"));
        let config = PlanConfig::new(8, 2, 64, case.dtype).fp8(format).options(options.clone());
        let plan = RaggedPlan::new(&config, &qo_rows, &kv_rows).expect("a plan");
        let got = plan.run(q.tensor(device), tensor(k, &coded.scales[0]), tensor(v, &coded.scales[1]));
        let got = Got::of(got.expect("runs"));
        coded.problem.check("ragged codes", &target, &expected, &got);
        let [q, k, v] = [(q, &qo), (k, &kv), (v, &kv)].map(|(x, rows)| x.tokens(rows[0]..rows[1]));
        let (k, v) = (tensor(&k, &coded.scales[0]), tensor(&v, &coded.scales[1]));
        let single = Host::of(single_prefill(q.tensor(device), k, v, &options).expect("runs").output).values;
        let away = single.iter().zip(&got.output).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(f64::from(away) <= 4.0 * epsilon(case.dtype).max(1e-6), "{} {case:?}: {away}", target.name);
    }
}

/// Each code as a value of the only key, and each that is finite as a key of the query that sees nothing else of it.
fn every_code(target: Target) {
    const DIM: usize = 256;
    let device = &target.device;
    let all = |format: Fp8| (0..DIM).map(move |code| format.decode(code as u8));
    let pool = |codes: Vec<u8>| {
        Tensor::<4, Int>::from_data(TensorData::new(codes, [1, 1, 1, DIM]), (device, DType::U8))
    };
    for (at, format) in FORMATS.into_iter().enumerate() {
        let dtypes = target.dtypes();
        let dtype = dtypes[(at + 1) % dtypes.len()];
        let of_keys: Vec<f32> = all(format).map(|x| if x.is_finite() { x } else { 0.0 }).collect();
        let keys = of_keys.iter().map(|&x| format.encode(x)).collect();
        let values = (0..DIM).map(|code| code as u8).collect();
        let mut pages = KvPages::new_fp8(pool(keys), pool(values), KvLayout::Nhd, format).expect("pages");
        let [k_scale, v_scale] = [0.5, 2.0]
            .map(|scale: f32| Tensor::<1>::from_data(TensorData::from([scale]), (device, DType::F32)));
        pages.set_scales(k_scale, v_scale).expect("scales");
        let one_hot = Host::from_fn([DIM, 1, DIM], dtype, |at| f32::from(at / DIM == at % DIM));
        let options = AttentionOptions::new().scale(0.25).return_lse(true);
        let table = burn_flashinfer::PageTable::new(&[0, 1], &[0], &[1], 1, 1, device).expect("valid");
        let rows = Indptr::from_lengths(&[DIM], device).expect("valid");
        let attended = batch_prefill_paged(one_hot.tensor(device), &rows, &pages, &table, &options);
        let got = Got::of(attended.expect("runs"));
        let wanted = Host::from_fn([DIM], dtype, |code| 2.0 * format.decode(code as u8)).values;
        for (at, got) in got.output.iter().enumerate() {
            let wanted = wanted[at % DIM];
            let what = format!("{format:?} {:#x} in {dtype:?} on {}: {got}", at % DIM, target.name);
            assert!(*got == wanted || got.is_nan() && wanted.is_nan(), "{what}, not {wanted}");
        }
        for (code, (lse, key)) in got.lse.iter().zip(of_keys).enumerate() {
            let wanted = 0.125 * key * std::f32::consts::LOG2_E;
            let error = (lse - wanted).abs();
            assert!(
                error <= 1e-6 * wanted.abs(),
                "{format:?} {code:#x} on {}: {lse}, not {wanted}",
                target.name
            );
        }
    }
}

/// A NaN among the codes of a key makes its queries NaN, and one of a value its element.
fn nan_stays_nan(target: Target) {
    let dtypes = target.dtypes();
    for (at, format) in target.thin(2, FORMATS.into_iter().enumerate().collect()) {
        let case = Case::new(dtypes[at % dtypes.len()], 64, &[(1, 40), (1, 40), (20, 40)]).heads(1, 2);
        let mut coded = Coded::new(case.problem("NaN codes"), format, false);
        coded.problem.k.values[(40 + 3) * 64 + 17] = f32::NAN;
        coded.problem.v.values[(80 + 30) * 64 + 5] = f32::NAN;
        let got = coded.paged(16, KvLayout::Nhd, &target.device);
        for (element, o) in got.output.iter().enumerate() {
            let (token, at) = (element / 128, element % 64);
            let is_nan = token == 1 || token > 1 && at == 5;
            assert_eq!(o.is_nan(), is_nan, "{format:?} token {token}, element {at} on {}: {o}", target.name);
        }
    }
}

/// A cascade, planned and not.
fn shared_pages(target: Target) {
    let dtypes = target.dtypes();
    for (at, format) in target.thin(3, FORMATS.into_iter().enumerate().collect()) {
        let case =
            Case::new(dtypes[at % dtypes.len()], 64, &[(7, 97), (3, 101), (1, 97)]).heads(2, 4).causal();
        let (problem, paging) = sharing(&case, "shared codes", 5, &[0, 18, 16]);
        let coded = Coded::new(problem, format, true);
        let (device, expected) = (&target.device, coded.problem.expected());
        let found = cascade(&coded.problem, &paging, device, 1);
        let pages = coded.pages(&paging, KvLayout::Hnd, device);
        let q = || coded.problem.q.tensor(device);
        let got = Got::of(cascade_attention(q(), &pages, &found, &case.options()).expect("it fits"));
        coded.problem.check("cascade over codes", &target, &expected, &got);
        let plan = CascadePlan::new(&coded.config(&pages), &found).expect("a plan");
        assert_eq!(Got::of(plan.run(q(), &pages).expect("as planned")).bits(), got.bits());
    }
}

/// Prefill and decode as two tensors: the same as in one.
fn prefill_and_decode(target: Target) {
    let (device, dtypes) = (&target.device, target.dtypes());
    let case = Case::new(dtypes[1 % dtypes.len()], 64, &[(17, 54), (1, 97), (1, 40)]).causal();
    let coded = Coded::new(case.problem("pods of codes"), Fp8::E4m3, true);
    let paging = coded.problem.paging(16);
    let pages = coded.pages(&paging, KvLayout::Nhd, device);
    let (config, q) = (coded.config(&pages), coded.problem.q.tensor(device));
    let one = coded.plan(&config, &paging, device).run(q.clone(), &pages).expect("runs");
    let rows = Indptr::from_lengths(&[17], device).expect("valid");
    let pod = PodPlan::new(&config, &rows, &paging.table(device)).expect("a plan");
    let (prefill, decode) =
        pod.run(q.clone().slice_dim(0, 0..17), q.slice_dim(0, 17..19), &pages).expect("runs");
    let two = Tensor::cat(vec![prefill.output, decode.output], 0);
    assert_eq!(bits(two), bits(one.output), "{}", target.name);
}

/// Tokens are appended to a cache of codes, and attention is that over what `gather_paged_kv` reads: in plans of a step, and in
/// a step for every number of tokens.
fn caches_and_steps(target: Target) {
    let (device, format) = (&target.device, Fp8::E4m3);
    let dtype = target.dtypes()[0];
    let (q_heads, kv_heads, dim) = (4, 2, 64);
    let rng = &mut Rng::new("caches of codes");
    let mut cache =
        PagedKvCache::new(&CacheConfig::new(1, 40, 4, kv_heads, dim).fp8(format), device).expect("a cache");
    let scales = || Tensor::<1>::from_data(TensorData::from([0.02f32, 0.01]), (device, DType::F32));
    cache.layer_mut(0).expect("a layer").set_scales(scales(), scales()).expect("scales");
    let options = AttentionOptions::new().causal(true);
    let config = PlanConfig::for_pages(q_heads, cache.layer(0).expect("a layer"))
        .dtype(dtype)
        .options(options.clone());
    let sequences = [(cache.create(), 21), (cache.create(), 3)];
    let mut heads = |tokens, heads| Host::random([tokens, heads, dim], dtype, rng).tensor(device);

    let step = cache.step(&sequences).expect("room");
    let kv = heads(24, kv_heads);
    append_paged_kv(cache.layer_mut(0).expect("a layer"), kv.clone(), kv, step.slots()).expect("it fits");
    let (q, layer) = (heads(24, q_heads), cache.layer(0).expect("a layer"));
    let plan = PagedPlan::for_step(&config, &step).expect("a plan");
    let got = plan.run(q.clone(), layer).expect("runs").output;
    let (k, v) = gather_paged_kv(layer, step.table(), DType::F32).expect("it fits");
    let rows = Indptr::from_lengths(&[21, 3], device).expect("valid");
    let wide = q.cast(DType::F32);
    let wanted =
        burn_flashinfer::batch_prefill_ragged(wide, k, v, &rows, &rows, &options).expect("runs").output;
    let off = (got.cast(DType::F32) - wanted).abs().max().into_scalar::<f32>();
    // Probabilities and outputs are rounded to the type, of numbers up to 4.
    assert!(f64::from(off) <= 8.0 * epsilon(dtype).max(1e-6), "{} {dtype:?}: {off}", target.name);

    let mut decode = DecodeStep::new(&config, 2, 100, &cache).expect("a step");
    for _ in 0..2 {
        let tokens = sequences.map(|(sequence, _)| (sequence, vec![0]));
        decode.update(&mut cache, &tokens).expect("room");
        let kv = heads(2, kv_heads);
        append_paged_kv(cache.layer_mut(0).expect("a layer"), kv.clone(), kv, &decode.slots())
            .expect("it fits");
        let (q, layer) = (heads(2, q_heads), cache.layer(0).expect("a layer"));
        let got = decode.plan().run(q.clone(), layer).expect("runs").output;
        let table = cache.page_table(&sequences.map(|(sequence, _)| sequence)).expect("alive");
        let alone = batch_decode_paged(q, layer, &table, &options).expect("runs").output;
        let (got, alone) = (bits(got), bits(alone));
        assert_eq!(got.len(), alone.len());
        assert!(got == alone || target.has_matrix_cores(), "{}", target.name);
    }
}
