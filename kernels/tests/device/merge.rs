//! Merging attention states.

use burn_flashinfer_kernels::merge::{self, Merge, State, States};
use cubecl::client::Client;

use crate::host::{Device, Random, TYPES, Type, assert_close, device_tests, ints};

device_tests!(merge_weighs_by_lse, merges_into_the_first);

const HEADS: usize = 3;
const EMPTY: f64 = f64::NEG_INFINITY;

/// States in rows of `HEADS` heads of `dim` elements.
struct Rows {
    dtype: Type,
    dim: usize,
    v: Vec<f64>,
    s: Vec<f64>,
}

impl Rows {
    /// Some of them did not see a key, and hold NaN.
    fn new(random: &mut Random, dtype: Type, rows: usize, dim: usize) -> Self {
        let mut v = random.floats(rows * HEADS * dim, dtype, 1.0);
        let mut s = random.floats(rows * HEADS, Type::F32, 20.0);
        for row in (0..rows * HEADS).filter(|row| row % 4 == 1) {
            s[row] = EMPTY;
            v[row * dim..(row + 1) * dim].fill(f64::NAN);
        }
        Self { dtype, dim, v, s }
    }

    /// With a gap of a row after each row of heads.
    fn state(&self, client: &Client, axes: &[usize]) -> State {
        let strides = |width: usize| {
            let mut strides: Vec<_> = (0..axes.len())
                .map(|at| (HEADS + 1) * width * axes[at + 1..].iter().product::<usize>())
                .collect();
            strides.extend([width, 1]);
            strides
        };
        let with = |rest: &[usize]| [axes, rest].concat();
        let s_strides = &strides(1)[..axes.len() + 1];
        State {
            v: Device::strided(client, self.dtype, &self.v, &with(&[HEADS, self.dim]), &strides(self.dim))
                .binding(),
            s: Device::strided(client, Type::F32, &self.s, &with(&[HEADS]), s_strides).binding(),
        }
    }

    /// The state of `head` that the states in `rows` become.
    fn merged(&self, rows: &[usize], head: usize) -> (Vec<f64>, f64) {
        let s = |row: usize| self.s[row * HEADS + head];
        let highest = rows.iter().map(|&row| s(row)).fold(EMPTY, f64::max);
        let mut v = vec![0.0; self.dim];
        let mut sum = 0.0;
        for &row in rows.iter().filter(|&&row| s(row) != EMPTY) {
            let weight = (s(row) - highest).exp2();
            sum += weight;
            let x = &self.v[(row * HEADS + head) * self.dim..][..self.dim];
            v.iter_mut().zip(x).for_each(|(v, x)| *v += weight * x);
        }
        v.iter_mut().for_each(|v| *v /= if sum == 0.0 { 1.0 } else { sum });
        (v, highest + if sum == 0.0 { 0.0 } else { sum.log2() })
    }

    /// Checks the states of tokens, each made of the states in some rows.
    fn check(&self, what: &str, tokens: &[Vec<usize>], v: &[f64], s: &[f64]) {
        let rows = tokens.iter().flat_map(|rows| (0..HEADS).map(move |head| self.merged(rows, head)));
        let (wanted_v, wanted_s): (Vec<_>, Vec<_>) = rows.unzip();
        let rounded = |xs: &[f64], dtype: Type| xs.iter().map(|&x| dtype.round(x)).collect::<Vec<_>>();
        let wanted_v = wanted_v.concat();
        assert_close(&format!("{what}: v"), v, &wanted_v, &rounded(&wanted_v, self.dtype));
        assert_close(&format!("{what}: s"), s, &wanted_s, &rounded(&wanted_s, Type::F32));
    }
}

/// Where the states of `tokens` tokens go.
fn outputs(client: &Client, dtype: Type, tokens: usize, dim: usize) -> [Device; 2] {
    let v = Device::poisoned(client, dtype, &[tokens, HEADS, dim]);
    [v, Device::poisoned(client, Type::F32, &[tokens, HEADS])]
}

fn merge_weighs_by_lse(client: Client) {
    let mut random = Random::new(3);
    for (dtype, dim) in TYPES.into_iter().flat_map(|dtype| [17, 64].map(|dim| (dtype, dim))) {
        let all = Rows::new(&mut random, dtype, 12, dim);
        let indptr = [0, 0, 1, 3, 12];
        let ragged: Vec<Vec<usize>> =
            indptr.windows(2).map(|pair| (pair[0] as usize..pair[1] as usize).collect()).collect();
        let equal = (0..4).map(|token| (3 * token..3 * (token + 1)).collect()).collect();
        for (what, states, tokens) in [
            ("equal", States::Equal(all.state(&client, &[4, 3])), equal),
            (
                "ragged",
                States::Ragged { states: all.state(&client, &[12]), indptr: ints(&client, &indptr) },
                ragged,
            ),
        ] {
            let [v, s] = outputs(&client, dtype, 4, dim);
            let merge = Merge { states, v: Some(v.binding()), s: Some(s.binding()) };
            // SAFETY: the row pointer ends at the 12 rows.
            unsafe { merge::launch(&client, merge, dtype.elem()) }.expect("launches");
            all.check(&format!("{what} {dtype:?} {dim}"), &tokens, &v.read(&client), &s.read(&client));
        }
    }
}

/// The second state goes into the first, which is replaced or not; where the mask is 0 its bits stay.
fn merges_into_the_first(client: Client) {
    let mut random = Random::new(4);
    let masks = [None, Some([1, 0, 7, 0, 1])];
    for (dtype, dim) in TYPES.into_iter().flat_map(|dtype| [17, 64].map(|dim| (dtype, dim))) {
        // Rows 0..5 are those of the first state, the others of the second.
        let all = Rows::new(&mut random, dtype, 10, dim);
        let half = |at: usize| {
            let v = all.v[at * 5 * HEADS * dim..][..5 * HEADS * dim].to_vec();
            Rows { dtype, dim, v, s: all.s[at * 5 * HEADS..][..5 * HEADS].to_vec() }
        };
        let (a, b) = (half(0), half(1));
        for (mask, kept) in masks.into_iter().flat_map(|mask| (0..4).map(move |kept| (mask, kept))) {
            let into = [
                Device::new(&client, dtype, &a.v, &[5, HEADS, dim]),
                Device::new(&client, Type::F32, &a.s, &[5, HEADS]),
            ];
            let fresh = outputs(&client, dtype, 5, dim);
            let keeps = [1, 2].map(|bit| kept & bit != 0);
            let first = if kept == 3 {
                a.state(&client, &[5])
            } else {
                State { v: into[0].binding(), s: into[1].binding() }
            };
            let merge = Merge {
                states: States::Two {
                    a: first,
                    b: b.state(&client, &[5]),
                    mask: mask.map(|mask| ints(&client, &mask)),
                },
                v: keeps[0].then(|| fresh[0].binding()),
                s: keeps[1].then(|| fresh[1].binding()),
            };
            // SAFETY: there is no row pointer.
            unsafe { merge::launch(&client, merge, dtype.elem()) }.expect("launches");
            let [v, s] = [0, 1].map(|i| if keeps[i] { &fresh[i] } else { &into[i] }.read(&client));
            let merges = |token: usize| mask.is_none_or(|mask| mask[token] != 0);
            let width = HEADS * dim;
            let what = format!("{dtype:?} {dim} {mask:?} {kept}");
            let bits = |xs: &[f64]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for token in 0..5 {
                let (v, s) = (&v[token * width..][..width], &s[token * HEADS..][..HEADS]);
                if merges(token) {
                    all.check(&what, &[vec![token, token + 5]], v, s);
                } else {
                    assert_eq!(bits(v), bits(&a.v[token * width..][..width]), "{what}");
                    assert_eq!(bits(s), bits(&a.s[token * HEADS..][..HEADS]), "{what}");
                }
            }
        }
    }
}
