//! Sparse attention: the keys of each query are chosen, in blocks or one by one.

mod block;
mod heads;
mod tokens;

use burn_flashinfer::{AttentionOptions, AttentionOutput, AttentionVariant, Result, Row};

use crate::devices::Target;
use crate::problem::{Case, Got, Problem};
use crate::setting::{Setting, Tensors};

/// The host's words for a choice of keys, of one request: those of each query, of each key head or of all.
#[derive(Clone)]
struct Chosen {
    scale: f32,
    keys: usize,
    heads: Vec<Vec<bool>>,
}

/// Not printed: there are too many.
impl std::fmt::Debug for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} masks", self.heads.len())
    }
}

impl AttentionVariant for Chosen {
    fn scale(&self) -> f32 {
        self.scale
    }

    fn keep(&self, row: &Row<'_>, key: usize) -> bool {
        self.heads[row.kv_head % self.heads.len()][row.query * self.keys + key]
    }
}

impl Chosen {
    fn new(case: &Case, heads: Vec<Vec<bool>>) -> Self {
        Self { scale: 1.0 / (case.dim as f32).sqrt(), keys: case.lengths[0].1, heads }
    }

    /// A problem whose keys and values are NaN where no query of their head sees them.
    fn problem(&self, case: &Case, label: &str) -> Problem {
        let mut problem = case.problem(label);
        for (key, head) in (0..self.keys).flat_map(|key| (0..case.kv_heads).map(move |head| (key, head))) {
            let of_head = &self.heads[head % self.heads.len()];
            let is_seen = of_head.iter().skip(key).step_by(self.keys).any(|&seen| seen);
            for (x, dim) in [(&mut problem.k, case.dim), (&mut problem.v, case.v_dim)] {
                if !is_seen {
                    x.values[(key * case.kv_heads + head) * dim..][..dim].fill(f32::NAN);
                }
            }
        }
        problem
    }

    fn check(&self, what: &str, target: &Target, problem: &Problem, got: Result<AttentionOutput>) {
        let got = Got::of(got.expect("runs"));
        let options = AttentionOptions::new().variant(self.clone()).return_lse(true);
        let oracle = Setting { problem: problem.clone(), options, tensors: Tensors::default() };
        oracle.check(what, target, &got);
        let empty = got.lse.iter().zip(got.output.chunks(problem.case.v_dim));
        for (_, row) in empty.filter(|(lse, _)| **lse == f32::NEG_INFINITY) {
            assert!(row.iter().all(|&x| x == 0.0), "{what}: a row without keys is {row:?}");
        }
    }
}
