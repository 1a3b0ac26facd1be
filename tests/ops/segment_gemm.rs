//! Products of segments of rows with matrices of their own.

use burn::tensor::{DType, Tensor};
use burn_flashinfer::WeightLayout::{self, ColumnMajor, RowMajor};
use burn_flashinfer::{Indptr, SegmentGemm, reference, segment_gemm};

use crate::devices::{Target, device_tests};
use crate::support::{Host, Rng, VIEWS, bits, check, round};

device_tests!(
    shapes,
    depths,
    random_batches,
    empty_and_without_indices,
    views,
    not_a_number,
    sums_in_f32_and_the_same_bits
);

const LAYOUTS: [WeightLayout; 2] = [RowMajor, ColumnMajor];

/// A batch; the matrices are `[matrices, d_in, d_out]` here.
struct Case {
    lengths: Vec<usize>,
    indices: Vec<usize>,
    x: Host<2>,
    weights: Host<3>,
}

impl Case {
    fn random(lengths: &[usize], [d_in, d_out]: [usize; 2], dtype: DType, rng: &mut Rng) -> Self {
        let matrices = 1 + rng.below(4);
        Self {
            lengths: lengths.to_vec(),
            indices: lengths.iter().map(|_| rng.below(matrices)).collect(),
            x: Host::random([lengths.iter().sum(), d_in], dtype, rng),
            weights: Host::random([matrices, d_in, d_out], dtype, rng),
        }
    }

    /// The matrices as a layout stores them.
    fn stored(&self, layout: WeightLayout) -> Host<3> {
        let [matrices, d_in, d_out] = self.weights.shape;
        match layout {
            RowMajor => self.weights.clone(),
            ColumnMajor => Host::from_fn([matrices, d_out, d_in], self.weights.dtype, |at| {
                let (matrix, output, input) = (at / d_in / d_out, at / d_in % d_out, at % d_in);
                self.weights.values[(matrix * d_in + input) * d_out + output]
            }),
        }
    }

    fn plan(&self, target: &Target) -> SegmentGemm {
        let segments = Indptr::from_lengths(&self.lengths, &target.device).expect("valid");
        SegmentGemm::new(&segments, Some(&self.indices)).expect("valid")
    }

    fn check(&self, what: &str, target: &Target, got: Tensor<2>) {
        let ([rows, d_in], [_, _, d_out], dtype) = (self.x.shape, self.weights.shape, self.x.dtype);
        assert_eq!((got.dims(), got.dtype()), ([rows, d_out], dtype));
        let mut indptr = vec![0];
        for len in &self.lengths {
            indptr.push(indptr[indptr.len() - 1] + len);
        }
        let (x, weights) = (self.x.f64(), self.weights.f64());
        let oracle = reference::segment_gemm(&x, &weights, [d_in, d_out], &indptr, &self.indices);
        let mut baseline = Vec::with_capacity(rows * d_out);
        let matrix_of_row =
            self.lengths.iter().zip(&self.indices).flat_map(|(&len, &matrix)| vec![matrix; len]);
        for (x, matrix) in self.x.values.chunks_exact(d_in).zip(matrix_of_row) {
            let matrix = &self.weights.values[matrix * d_in * d_out..][..d_in * d_out];
            let column = |o: usize| matrix.iter().skip(o).step_by(d_out);
            let sum = |o: usize| x.iter().zip(column(o)).map(|(x, w)| x * w).sum::<f32>();
            baseline.extend((0..d_out).map(|o| round(sum(o), dtype)));
        }
        let what = format!(
            "segment_gemm {what} on {}, {:?} of {:?}, {d_in} to {d_out}, {dtype:?}",
            target.name, self.indices, self.lengths
        );
        check(what, &Host::of(got).values, &baseline, &oracle.expect("it fits"), dtype);
    }

    fn run_and_check(&self, what: &str, target: &Target, layout: WeightLayout) {
        let (x, weights) = (self.x.tensor(&target.device), self.stored(layout).tensor(&target.device));
        let got = self.plan(target).layout(layout).run(x, weights).expect("it fits");
        self.check(&format!("{what} {layout:?}"), target, got);
    }
}

/// Segments of every length for which there are tiles, empty ones among them.
fn batches() -> Vec<Vec<usize>> {
    vec![
        vec![1, 0, 1, 1],
        vec![3, 4, 0, 1],
        vec![9, 0, 16, 5, 21],
        vec![37, 54, 17, 97],
        vec![129, 0, 1, 127],
        vec![1],
        vec![200],
    ]
}

fn shapes(target: Target) {
    let rng = &mut Rng::new("segment gemm shapes");
    for (i, dtype) in target.dtypes().into_iter().enumerate() {
        // Shapes that a matrix unit takes, with a depth and columns that are not whole tiles, and shapes that it refuses.
        let dims = vec![[64, 128], [40, 136], [264, 16], [16, 72], [17, 37], [33, 8], [8, 1], [1, 5]];
        for (j, dims) in target.thin(3, dims).into_iter().enumerate() {
            for (k, lengths) in batches().into_iter().enumerate() {
                // Each meets each, though not all at once.
                if target.name == "flex" || (i + j + k).is_multiple_of(2) {
                    let case = Case::random(&lengths, dims, dtype, rng);
                    LAYOUTS.into_iter().for_each(|layout| case.run_and_check("shapes", &target, layout));
                }
            }
        }
    }
}

/// A depth of many stages: what is on its way arrives before it is read.
fn depths(target: Target) {
    let rng = &mut Rng::new("segment gemm depths");
    for dtype in target.dtypes() {
        for (lengths, dims) in [
            (vec![1, 1], [1000, 24]),
            (vec![2, 4], [776, 16]),
            (vec![12, 9], [1032, 40]),
            (vec![70, 3, 100], [520, 136]),
            (vec![130], [328, 264]),
        ] {
            let case = Case::random(&lengths, dims, dtype, rng);
            LAYOUTS.into_iter().for_each(|layout| case.run_and_check("depths", &target, layout));
        }
    }
}

fn random_batches(target: Target) {
    let rng = &mut Rng::new("segment gemm batches");
    for dtype in target.dtypes() {
        for most in [2, 6, 30, 150] {
            let lengths: Vec<usize> = (0..1 + rng.below(12)).map(|_| rng.below(most)).collect();
            let dims = [8 * (1 + rng.below(12)), 8 * (1 + rng.below(20))];
            Case::random(&lengths, dims, dtype, rng).run_and_check("random", &target, LAYOUTS[most % 2]);
        }
    }
}

/// No rows, or only empty segments: no result, but of the right shape. Without indices segment `i` has matrix `i`.
fn empty_and_without_indices(target: Target) {
    let rng = &mut Rng::new("segment gemm empty");
    let device = &target.device;
    for dtype in target.dtypes() {
        for lengths in [vec![0], vec![0, 0, 0]] {
            let segments = Indptr::from_lengths(&lengths, device).expect("valid");
            let x = Tensor::<2>::zeros([0, 16], (device, dtype));
            let weights = Tensor::<3>::zeros([3, 16, 24], (device, dtype));
            let got = segment_gemm(x, weights, &segments, None, RowMajor).expect("it fits");
            assert_eq!((got.dims(), got.dtype()), ([0, 24], dtype));
            assert!(Host::of(got).values.is_empty());
        }
        let lengths = [2, 7, 0, 3];
        let segments = Indptr::from_lengths(&lengths, device).expect("valid");
        let mut case = Case::random(&lengths, [24, 40], dtype, rng);
        (case.weights, case.indices) = (Host::random([5, 24, 40], dtype, rng), vec![0, 1, 2, 3]);
        for layout in LAYOUTS {
            let (x, weights) = (case.x.tensor(device), case.stored(layout).tensor(device));
            let got = segment_gemm(x, weights, &segments, None, layout).expect("it fits");
            case.check("without indices", &target, got);
        }
    }
}

/// Rows and matrices that are views into tensors of NaN, matrices with their axes in any order.
fn views(target: Target) {
    let rng = &mut Rng::new("segment gemm views");
    let device = &target.device;
    for dtype in target.dtypes() {
        for (lengths, [d_in, d_out], gap) in
            [(vec![3, 1], [40, 24], 8), (vec![20, 33, 6], [40, 72], 8), (vec![20, 9], [40, 24], 3)]
        {
            let case = Case::random(&lengths, [d_in, d_out], dtype, rng);
            let [rows, _] = case.x.shape;
            let padded = Host::from_fn([rows + 2, d_in + gap], dtype, |at| {
                let (row, column) = (at / (d_in + gap), at % (d_in + gap));
                if row < rows && column < d_in { case.x.values[row * d_in + column] } else { f32::NAN }
            });
            let x = || padded.tensor(device).slice([0..rows, 0..d_in]);
            for layout in LAYOUTS {
                let stored = case.stored(layout);
                for view in VIEWS {
                    let plan = case.plan(&target).layout(layout);
                    let got = plan.run(x(), stored.view(view, device)).expect("it fits");
                    case.check(&format!("{view:?} {layout:?}, gap {gap}"), &target, got);
                }
                let other = if layout == RowMajor { ColumnMajor } else { RowMajor };
                let turned = stored.tensor(device).swap_dims(1, 2);
                let got = case.plan(&target).layout(other).run(x(), turned).expect("it fits");
                case.check(&format!("turned {layout:?}"), &target, got);
            }
        }
    }
}

/// A NaN or an infinity stays in its row, and in the segments of its matrix; matrices that no segment names do not count.
fn not_a_number(target: Target) {
    let rng = &mut Rng::new("segment gemm NaN");
    for dtype in target.dtypes() {
        for lengths in [vec![2, 1, 3], vec![30, 17, 50]] {
            let mut case = Case::random(&lengths, [48, 40], dtype, rng);
            case.weights = Host::random([4, 48, 40], dtype, rng);
            case.indices = vec![2, 0, 2];
            case.x.values[48 + 5] = f32::NAN;
            case.weights.values[3 * 48 + 7] = f32::INFINITY;
            for matrix in [1, 3] {
                case.weights.values[matrix * 48 * 40..][..48 * 40].fill(f32::NAN);
            }
            LAYOUTS.into_iter().for_each(|layout| case.run_and_check("NaN", &target, layout));
        }
    }
}

/// Sums are f32, a plan serves many layers, and gives the same bits each time.
fn sums_in_f32_and_the_same_bits(target: Target) {
    let rng = &mut Rng::new("segment gemm bits");
    let device = &target.device;
    for dtype in target.dtypes() {
        for lengths in [vec![1, 2], vec![20, 40]] {
            let case = Case::random(&lengths, [1024, 16], dtype, rng);
            let plan = case.plan(&target);
            assert_eq!(plan.rows(), lengths.iter().sum::<usize>());
            let run = || plan.run(case.x.tensor(device), case.weights.tensor(device)).expect("it fits");
            let first = run();
            case.check("first", &target, first.clone());
            assert_eq!(bits(first), bits(run()), "{} {dtype:?}", target.name);

            let ones = Tensor::<2>::ones(case.x.shape, (device, dtype));
            let weights = Tensor::<3>::ones(case.weights.shape, (device, dtype));
            let got = Host::of(plan.run(ones, weights).expect("it fits"));
            assert!(got.values.iter().all(|&y| y == 1024.0), "{} {dtype:?}", target.name);
        }
    }
}
