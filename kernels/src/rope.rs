//! Rotary position embedding, and what stands beside it between the projections and attention: the norm of each head, the
//! rounding to 8 bits, the write to pages.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind},
    prelude::*,
    std::FastDivmod,
};

use crate::fp8::{Code, Quantized, encode, scale_of};
use crate::math::widen;
use crate::pages::{KvQuantized, Pools, row_of, unzip};
use crate::team::{self, Team};
use crate::tensor::{KvLayout, Result, addresses, alignment, contiguous, one_page, rows, shape, vector};

const KERNEL: &str = "rope";

/// How the elements of a head are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Style {
    /// Element `i` with `i + rotary_dim / 2`.
    Halves,
    /// Element `2i` with `2i + 1`.
    Interleaved,
}

/// Who works on a head, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Blueprint {
    style: Style,
    team: Team,
    q_code: Option<Code>,
    k_code: Option<Code>,
    v_code: Option<Code>,
}

/// `(a, b) -> (a cos - b sin, b cos + a sin)` for each pair of a head of `q` and `k`, at the angle of the token's position.
/// With weights, the head is first divided by its root mean square and multiplied with them. Heads of `v` only move.
///
/// A unit has some pairs of vectors of a head: of first elements and of second ones where it is rotated, and of neighbours
/// where it is not. It reads both before it writes them and no other unit does either, so outputs may be inputs.
#[allow(clippy::too_many_arguments, reason = "a kernel takes its buffers one by one")]
#[cube(launch_unchecked, address_type = "dynamic")]
fn rope<F: Float, Q: Numeric, K: Numeric, N: Size, M: Size>(
    q: &Tensor<Vector<F, N>>,
    k: &Tensor<Vector<F, N>>,
    v: &Tensor<Vector<F, N>>,
    cos_sin: &Tensor<Vector<f32, M>>,
    positions: &[i32],
    q_out: &mut Tensor<Vector<Q, N>>,
    k_out: &mut Tensor<Vector<K, N>>,
    v_out: &mut Tensor<Vector<K, N>>,
    slots: &ComptimeOption<Box<[i32]>>,
    q_weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    k_weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    q_scale: &ComptimeOption<Box<[f32]>>,
    k_scale: &ComptimeOption<Box<[f32]>>,
    v_scale: &ComptimeOption<Box<[f32]>>,
    epsilon: f32,
    rotary_dim: usize,
    heads: FastDivmod<usize>,
    page_size: FastDivmod<usize>,
    total: usize,
    #[comptime] blueprint: Blueprint,
    #[define(F, Q, K)] _dtypes: [ElemType; 3],
) {
    let (rows, units) = comptime!((blueprint.team.rows, blueprint.team.units));
    let unit = UNIT_POS as usize % units;
    let row = CUBE_POS * rows + UNIT_POS as usize / units;
    let (q_heads, k_heads) = (q.shape(2), k.shape(2));
    let (token, head) = heads.div_mod(row);
    // Who has no row still waits with the others.
    let is_row = row < total;
    let is_q = is_row && head < q_heads;
    let is_k = is_row && head >= q_heads && head < q_heads + k_heads;
    let (k_head, v_head) = (head - min(q_heads, head), head - min(q_heads + k_heads, head));
    let q_row = token * q.stride(1) + head * q.stride(2);
    let k_row = token * k.stride(1) + k_head * k.stride(2);

    let mut factor = 1.0f32;
    if comptime!(q_weight.is_some()) {
        let mut part = 0.0f32;
        if is_q {
            part = squares::<F, N>(q, q_row, unit, units);
        } else if is_k {
            part = squares::<F, N>(k, k_row, unit, units);
        }
        let sum = team::total(part, unit, blueprint.team);
        factor = 1.0f32 / (sum / f32::cast_from(q.shape(3)) + epsilon).sqrt();
    }

    if is_row {
        let angles = usize::cast_from(positions[token]) * cos_sin.stride(0);
        if is_q {
            let to = (token * q_heads + head) * q.shape(3);
            let scale = scale_of(q_scale, head, blueprint.q_code);
            rotate::<F, Q, N, M>(
                q,
                q_row,
                q_out,
                to,
                q_weight,
                factor,
                scale,
                cos_sin,
                angles,
                rotary_dim,
                unit,
                blueprint,
                blueprint.q_code,
            );
        } else {
            let slot = slot_of(slots, token);
            if slot >= 0i32 {
                let slot = usize::cast_from(slot);
                if is_k {
                    let to =
                        row_of(slot, k_head, page_size, k_out.stride(0), k_out.stride(1), k_out.stride(2));
                    let scale = scale_of(k_scale, k_head, blueprint.k_code);
                    rotate::<F, K, N, M>(
                        k,
                        k_row,
                        k_out,
                        to,
                        k_weight,
                        factor,
                        scale,
                        cos_sin,
                        angles,
                        rotary_dim,
                        unit,
                        blueprint,
                        blueprint.k_code,
                    );
                } else {
                    let to =
                        row_of(slot, v_head, page_size, v_out.stride(0), v_out.stride(1), v_out.stride(2));
                    let scale = scale_of(v_scale, v_head, blueprint.v_code);
                    let row = token * v.stride(1) + v_head * v.stride(2);
                    let no_weight = ComptimeOption::new_None();
                    rotate::<F, K, N, M>(
                        v,
                        row,
                        v_out,
                        to,
                        &no_weight,
                        1.0f32,
                        scale,
                        cos_sin,
                        angles,
                        0usize,
                        unit,
                        blueprint,
                        blueprint.v_code,
                    );
                }
            }
        }
    }
}

/// Where a token of keys and values goes: to its slot, or to its own row.
#[cube]
fn slot_of(slots: &ComptimeOption<Box<[i32]>>, token: usize) -> i32 {
    #[comptime]
    match slots {
        ComptimeOption::Some(slots) => slots[token],
        ComptimeOption::None => i32::cast_from(token),
    }
}

/// What a unit has of `Σ x²` over the head that begins at `x[row]`.
#[cube]
fn squares<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    row: usize,
    unit: usize,
    #[comptime] units: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut i = unit;
    while i < x.shape(3) / N::value() {
        let value = widen::<F, N>(x[row / N::value() + i]);
        sum += value * value;
        i += units;
    }
    sum.vector_sum()
}

/// Rotates the head that begins at `x[row]` and writes it to `y[to]`, a unit some vectors of it.
#[allow(clippy::too_many_arguments, reason = "it stands for three parts of a kernel")]
#[cube]
fn rotate<F: Float, E: Numeric, N: Size, M: Size>(
    x: &Tensor<Vector<F, N>>,
    row: usize,
    y: &mut Tensor<Vector<E, N>>,
    to: usize,
    weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    factor: f32,
    scale: f32,
    cos_sin: &Tensor<Vector<f32, M>>,
    angles: usize,
    rotary_dim: usize,
    unit: usize,
    #[comptime] blueprint: Blueprint,
    #[comptime] code: Option<Code>,
) {
    let vectors = x.shape(3) / N::value();
    let pairs = rotary_dim / 2 / N::value();
    let (from, to) = (row / N::value(), to / N::value());
    let mut i = unit;
    while 2 * i < vectors {
        let is_rotated = i < pairs;
        let (mut first, mut second) = (2 * i, 2 * i + 1);
        if comptime!(blueprint.style == Style::Halves) {
            first = select(is_rotated, i, first);
            second = select(is_rotated, i + pairs, second);
        }
        // The last vector of an odd number is alone.
        let partner = min(second, vectors - 1);
        let mut a = scaled::<F, N>(x[from + first], weight, first, factor);
        let mut b = scaled::<F, N>(x[from + partner], weight, partner, factor);
        if is_rotated {
            let cos = angles_at::<N, M>(cos_sin, angles + i * N::value());
            let sin = angles_at::<N, M>(cos_sin, angles + rotary_dim / 2 + i * N::value());
            match comptime!(blueprint.style) {
                Style::Halves => {
                    let rotated = a * cos - b * sin;
                    b = b * cos + a * sin;
                    a = rotated;
                }
                Style::Interleaved => {
                    let (x, y) = (every_other::<N>(a, b, 0usize), every_other::<N>(a, b, 1usize));
                    let (x, y) = (x * cos - y * sin, y * cos + x * sin);
                    a = zipped::<N>(x, y, 0usize);
                    b = zipped::<N>(x, y, 1usize);
                }
            }
        }
        if comptime!(code.is_some()) {
            a *= Vector::new(1.0f32 / scale);
            b *= Vector::new(1.0f32 / scale);
        }
        y[to + first] = encode::<E, N>(a, code);
        if second < vectors {
            y[to + second] = encode::<E, N>(b, code);
        }
        i += comptime!(blueprint.team.units);
    }
}

/// A vector of a head in f32, normalised if there is a weight.
#[cube]
fn scaled<F: Float, N: Size>(
    x: Vector<F, N>,
    weight: &ComptimeOption<Box<[Vector<F, N>]>>,
    column: usize,
    factor: f32,
) -> Vector<f32, N> {
    let x = widen::<F, N>(x);
    #[comptime]
    match weight {
        ComptimeOption::Some(weight) => x * Vector::new(factor) * widen::<F, N>(weight[column]),
        ComptimeOption::None => x,
    }
}

/// `N` numbers of the table, whose vectors may be shorter.
#[cube]
fn angles_at<N: Size, M: Size>(table: &Tensor<Vector<f32, M>>, at: usize) -> Vector<f32, N> {
    let (lanes, width) = (N::value(), M::value());
    let mut angles = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for part in 0..comptime!(lanes / width) {
        let some = table[at / width + part];
        #[unroll]
        for lane in 0..width {
            angles.insert(comptime!(part * width + lane), some.extract(lane));
        }
    }
    angles
}

/// Elements `offset`, `offset + 2`, .. of `a` and then `b`.
#[cube]
fn every_other<N: Size>(a: Vector<f32, N>, b: Vector<f32, N>, #[comptime] offset: usize) -> Vector<f32, N> {
    let lanes = N::value();
    let mut taken = a;
    #[unroll]
    for lane in 0..lanes {
        let at = comptime!(2 * lane + offset);
        let element = if comptime!(at < lanes) { a.extract(at) } else { b.extract(comptime!(at - lanes)) };
        taken.insert(lane, element);
    }
    taken
}

/// Undoes [`every_other`]: the first half of `x_0, y_0, x_1, y_1, ..`, or the second.
#[cube]
fn zipped<N: Size>(x: Vector<f32, N>, y: Vector<f32, N>, #[comptime] half: usize) -> Vector<f32, N> {
    let lanes = N::value();
    let mut both = x;
    #[unroll]
    for lane in 0..lanes {
        let at = comptime!(half * lanes + lane);
        let pair = comptime!(at / 2);
        let element = if comptime!(at % 2 == 0) { x.extract(pair) } else { y.extract(pair) };
        both.insert(lane, element);
    }
    both
}

/// Queries and keys, and where their rotations go.
pub struct Rope {
    /// `[tokens, q_heads, head_dim]`.
    pub q: TensorBinding,
    /// `[tokens, k_heads, head_dim]`.
    pub k: TensorBinding,
    /// `[max_positions, rotary_dim]` of f32: the cosines of a position, then its sines.
    pub cos_sin: TensorBinding,
    /// `[tokens]` of `i32`, contiguous.
    pub positions: TensorBinding,
    /// The pairing.
    pub style: Style,
    /// The norm of each head before it is rotated.
    pub norm: Option<HeadNorm>,
    /// As `q`, contiguous. Without it the rotations replace `q`, which is contiguous then.
    pub q_out: Option<TensorBinding>,
    /// If `q_out` takes codes, with a scale for all heads or one for each.
    pub q_quantized: Option<Quantized>,
    /// Where keys go.
    pub to: To,
}

/// Root mean square norms of heads of queries and of keys.
pub struct HeadNorm {
    /// `[head_dim]`, contiguous.
    pub q_weight: TensorBinding,
    /// `[head_dim]`, contiguous.
    pub k_weight: TensorBinding,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// Where rotated keys go.
#[allow(clippy::large_enum_variant, reason = "there is one for a launch")]
pub enum To {
    /// They replace `k`, which is contiguous.
    InPlace,
    /// As `k`, contiguous; as codes, if there is a scale: one for all heads or one for each.
    Tensor(TensorBinding, Option<Quantized>),
    /// Into pages, and with them the values.
    Pages {
        /// `[tokens, k_heads, v_dim]`.
        v: TensorBinding,
        /// The pages.
        pools: Pools,
        /// `[tokens]` of `i32`, contiguous: `page * page_size + offset` for each token, negative to skip it.
        slots: TensorBinding,
    },
}

/// Where keys and values go, as pages.
struct Places {
    k_out: TensorBinding,
    /// The values; where there are none, the keys, of which no head is one.
    v: TensorBinding,
    v_heads: usize,
    v_out: TensorBinding,
    slots: Option<TensorBinding>,
    quantized: Option<KvQuantized>,
    in_place: bool,
}

impl Places {
    fn of(to: To, k: &TensorBinding) -> Result<Self> {
        let [tokens, heads, dim] = [k.shape[0], k.shape[1], k.shape[2]];
        // A token for each slot of one page.
        let keys_alone = |k_out: TensorBinding, quantized: Option<Quantized>, in_place| {
            contiguous(KERNEL, "k_out", &k_out, &[tokens, heads, dim])?;
            let quantized = quantized.map(|Quantized { format, scale }| KvQuantized {
                format,
                k_scale: scale.clone(),
                v_scale: scale,
            });
            let pools =
                Pools { k: one_page(k_out.clone()), v: one_page(k_out), layout: KvLayout::Nhd, quantized };
            let Pools { k: k_out, v: v_out, quantized, .. } = pools.by_slot(KERNEL, heads, [dim; 2])?;
            Ok(Self { k_out, v: k.clone(), v_heads: 0, v_out, slots: None, quantized, in_place })
        };
        match to {
            To::InPlace => keys_alone(k.clone(), None, true),
            To::Tensor(k_out, quantized) => keys_alone(k_out, quantized, false),
            To::Pages { v, pools, slots } => {
                rows(KERNEL, "v", &v, 3)?;
                let v_dim = v.shape[2];
                if v.shape.to_vec() != [tokens, heads, v_dim] {
                    let expected = format!("[{tokens}, {heads}, v_dim], as `k`");
                    return Err(shape(KERNEL, "v", &v, expected));
                }
                contiguous(KERNEL, "slots", &slots, &[tokens])?;
                let Pools { k: k_out, v: v_out, quantized, .. } =
                    pools.by_slot(KERNEL, heads, [dim, v_dim])?;
                Ok(Self { k_out, v, v_heads: heads, v_out, slots: Some(slots), quantized, in_place: false })
            }
        }
    }
}

/// Rotates the first `rotary_dim` elements of every head of `q` and `k`, after its norm if there is one, and moves the
/// others. Inputs are of type `dtype`. Positions are trusted to be rows of `cos_sin`; slots to lie in the pools, no two being
/// the same.
///
/// # Errors
///
/// If the shapes do not fit each other. Nothing is launched then.
pub fn launch(client: &Client, rope: Rope, dtype: ElemType) -> Result<()> {
    let Rope { q, k, cos_sin, positions, style, norm, q_out, q_quantized, to } = rope;
    rows(KERNEL, "q", &q, 3)?;
    rows(KERNEL, "k", &k, 3)?;
    rows(KERNEL, "cos_sin", &cos_sin, 2)?;
    let [tokens, q_heads, dim] = [q.shape[0], q.shape[1], q.shape[2]];
    let k_heads = k.shape[1];
    let like_k = [tokens, k_heads, dim];
    if k.shape.to_vec() != like_k {
        return Err(shape(KERNEL, "k", &k, format!("[{tokens}, k_heads, {dim}], as `q`")));
    }
    let rotary_dim = cos_sin.shape[1];
    if rotary_dim > dim || !rotary_dim.is_multiple_of(2) {
        return Err(shape(KERNEL, "cos_sin", &cos_sin, format!("an even number of columns up to {dim}")));
    }
    contiguous(KERNEL, "positions", &positions, &[tokens])?;
    contiguous(KERNEL, "q_out", q_out.as_ref().unwrap_or(&q), &[tokens, q_heads, dim])?;
    if let Some(HeadNorm { q_weight, k_weight, .. }) = &norm {
        contiguous(KERNEL, "q_weight", q_weight, &[dim])?;
        contiguous(KERNEL, "k_weight", k_weight, &[dim])?;
    }
    if let Some(Quantized { scale, .. }) = &q_quantized {
        let scales = if scale.size() == 1 { 1 } else { q_heads };
        contiguous(KERNEL, "q_scale", scale, &[scales])?;
    }
    let to = Places::of(to, &k)?;
    if tokens == 0 {
        return Ok(());
    }
    if q_heads * k_heads * dim * cos_sin.size() * to.v.size() == 0 {
        return Err(shape(KERNEL, "q", &q, "no empty axis but the first"));
    }

    let outputs = [q_out.as_ref().unwrap_or(&q), &to.k_out, &to.v_out];
    let align = [&q, &k, &to.v].into_iter().chain(outputs).map(alignment).min().unwrap_or(1);
    let v_dim = to.v.shape[2];
    let lanes = vector(client, dtype, &[rotary_dim / 2, dim, v_dim], align);
    let f32s = ElemType::Float(FloatKind::F32);
    let angles = vector(client, f32s, &[lanes, rotary_dim / 2], alignment(&cos_sin));
    let heads = q_heads + k_heads + to.v_heads;
    let total = tokens * heads;
    let pairs = (dim.max(v_dim) / lanes).div_ceil(2);
    let (team, count, cube_dim) = Team::of_neighbours(KERNEL, client, total, pairs)?;
    let size = dtype.size();
    let address = addresses(&[
        (&q, size),
        (&k, size),
        (&to.v, size),
        (&cos_sin, 4),
        (outputs[0], size),
        (outputs[1], size),
        (outputs[2], size),
    ]);
    let page_size = to.k_out.shape[1];
    let element = KvQuantized::element(to.quantized.as_ref(), dtype);
    let q_dtype = Quantized::element(q_quantized.as_ref(), dtype);
    let (q_code, q_scale) = Quantized::unzip(q_quantized, client);
    let [(k_code, k_scale), (v_code, v_scale)] = unzip(to.quantized, client);
    let blueprint = Blueprint { style, team, q_code, k_code, v_code };
    let (q_weight, k_weight, epsilon) = match norm {
        None => (None, None, 0.0),
        Some(HeadNorm { q_weight, k_weight, epsilon }) => {
            (Some(q_weight.into_buffer_arg()), Some(k_weight.into_buffer_arg()), epsilon)
        }
    };
    // All have four axes, as pages do: an alias has the shape of what it stands for.
    let [q, k, v] = [q, k, to.v].map(one_page);
    let q_out = q_out.map_or_else(|| q.as_alias(0), TensorBinding::into_tensor_arg);
    let [k_out, v_out] = [to.k_out, to.v_out].map(|out| match to.in_place {
        true => out.as_alias(1),
        false => out.into_tensor_arg(),
    });
    // SAFETY: a row beyond `total` does nothing; below it token and head are within `q`, `k` or `v`, of which the outputs
    // have the shapes. Vectors stay below the head dimension, which `lanes` divides, as it does half of what is rotated.
    // Positions are rows of `cos_sin`, and slots within the pools, by contract.
    unsafe {
        rope::launch_unchecked(
            client,
            count,
            cube_dim,
            address,
            lanes,
            angles,
            q.into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            cos_sin.into_tensor_arg(),
            positions.into_buffer_arg(),
            q_out,
            k_out,
            v_out,
            to.slots.map(TensorBinding::into_buffer_arg).into(),
            q_weight.into(),
            k_weight.into(),
            q_scale.into(),
            k_scale.into(),
            v_scale.into(),
            epsilon,
            rotary_dim,
            heads,
            page_size,
            total,
            blueprint,
            [dtype, q_dtype, element],
        );
    }
    Ok(())
}
