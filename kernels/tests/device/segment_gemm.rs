//! Segments of rows times matrices of their own, with every size of tile that the device has, and a work list in any order.

use burn_flashinfer_kernels::activation::Activation;
use burn_flashinfer_kernels::gemm::Epilogue;
use burn_flashinfer_kernels::segment_gemm::{SegmentGemm, launch};
use cubecl::client::Client;

use crate::host::{Device, Random, TYPES, assert_close, device_tests, ints};

device_tests!(every_size_of_tile, gated_and_empty_work_items);

fn every_size_of_tile(client: Client) {
    let mut random = Random::new(31);
    for (i, dtype) in TYPES.into_iter().enumerate() {
        for (tile_rows, lengths) in
            [(1usize, [1, 1, 1]), (4, [3, 4, 1]), (16, [17, 5, 16]), (64, [65, 3, 64]), (128, [129, 128, 7])]
        {
            for by_input in [true, false] {
                let [d_in, d_out] = [[72, 136], [200, 24], [37, 19]][(i + tile_rows.ilog2() as usize) % 3];
                let rows: usize = lengths.iter().sum();
                let x = random.floats(rows * d_in, dtype, 1.0);
                let weights = random.floats(2 * d_in * d_out, dtype, 1.0);
                let (mut work_items, mut first) = (vec![], 0);
                for (segment, len) in lengths.into_iter().enumerate() {
                    for tile in (first..first + len).step_by(tile_rows) {
                        let end = (first + len).min(tile + tile_rows);
                        work_items.push([tile as i32, end as i32, (segment % 2) as i32]);
                    }
                    first += len;
                }
                // An empty work item is skipped, wherever it is.
                work_items.extend([[0; 3]; 2]);
                random.shuffle(&mut work_items);
                let y = Device::poisoned(&client, dtype, &[rows, d_out]);
                let [a, b] = if by_input { [d_in, d_out] } else { [d_out, d_in] };
                // Rows with gaps of NaN; matrices too.
                let gap = if d_in % 8 == 0 { 8 } else { 3 };
                let gemm = SegmentGemm {
                    x: Device::strided(&client, dtype, &x, &[rows, d_in], &[d_in + gap, 1]).binding(),
                    weights: Device::strided(
                        &client,
                        dtype,
                        &weights,
                        &[2, a, b],
                        &[a * (b + 8) + 16, b + 8, 1],
                    )
                    .binding(),
                    y: y.binding(),
                    work_items: ints(&client, work_items.as_flattened()),
                    tile_rows,
                    by_input,
                    epilogue: Default::default(),
                };
                // SAFETY: the work items divide the rows of `x`, and there are two matrices.
                unsafe { launch(&client, gemm, dtype.elem()) }.expect("launches");
                let (mut wanted, mut baseline) = (vec![0.0; rows * d_out], vec![0.0; rows * d_out]);
                for [first, end, matrix] in work_items {
                    for row in first as usize..end as usize {
                        for output in 0..d_out {
                            let at = |input: usize| match by_input {
                                true => input * d_out + output,
                                false => output * d_in + input,
                            };
                            let pairs = (0..d_in).map(|i| {
                                (x[row * d_in + i], weights[matrix as usize * d_in * d_out + at(i)])
                            });
                            wanted[row * d_out + output] = pairs.clone().map(|(x, w)| x * w).sum();
                            let sum: f32 = pairs.map(|(x, w)| x as f32 * w as f32).sum();
                            baseline[row * d_out + output] = dtype.round(sum.into());
                        }
                    }
                }
                let what = format!("{dtype:?}, tiles of {tile_rows}, {d_in} to {d_out}, by input {by_input}");
                assert_close(&what, &y.read(&client), &wanted, &baseline);
            }
        }
    }
}

/// The gated epilogue, with matrices in both orders; most work items are empty, and no row is in the first matrix.
fn gated_and_empty_work_items(client: Client) {
    let mut random = Random::new(32);
    for (i, dtype) in TYPES.into_iter().enumerate() {
        for tile_rows in [1usize, 4, 16, 64, 128] {
            for by_input in [true, false] {
                let [d_in, d_out] = [[72, 136], [200, 24], [37, 19]][(i + tile_rows.ilog2() as usize) % 3];
                let (rows, outputs) = (tile_rows + tile_rows.div_ceil(3), 2 * d_out);
                let x = random.floats(rows * d_in, dtype, 1.0);
                let weights = random.floats(2 * d_in * outputs, dtype, 0.25);
                let mut work_items = vec![[0; 3]; 9];
                work_items.extend([[0, tile_rows as i32, 1], [tile_rows as i32, rows as i32, 1]]);
                random.shuffle(&mut work_items);
                let y = Device::poisoned(&client, dtype, &[rows, d_out]);
                let [a, b] = if by_input { [d_in, outputs] } else { [outputs, d_in] };
                let gemm = SegmentGemm {
                    x: Device::new(&client, dtype, &x, &[rows, d_in]).binding(),
                    weights: Device::new(&client, dtype, &weights, &[2, a, b]).binding(),
                    y: y.binding(),
                    work_items: ints(&client, work_items.as_flattened()),
                    tile_rows,
                    by_input,
                    epilogue: Epilogue { gate: Some(Activation::Silu), ..Epilogue::default() },
                };
                // SAFETY: the work items divide the rows of `x`, and there are two matrices.
                unsafe { launch(&client, gemm, dtype.elem()) }.expect("launches");
                let (mut wanted, mut baseline) = (vec![], vec![]);
                for (row, output) in (0..rows).flat_map(|row| (0..d_out).map(move |output| (row, output))) {
                    let pairs = |output: usize| {
                        let at =
                            move |i: usize| if by_input { i * outputs + output } else { output * d_in + i };
                        let (x, matrix) = (&x[row * d_in..][..d_in], &weights[d_in * outputs..]);
                        (0..d_in).map(move |i| (x[i], matrix[at(i)]))
                    };
                    let [gate, up] =
                        [output, d_out + output].map(|o| pairs(o).map(|(x, w)| x * w).sum::<f64>());
                    wanted.push(gate / (1.0 + (-gate).exp()) * up);
                    let [gate, up] = [output, d_out + output]
                        .map(|o| pairs(o).map(|(x, w)| x as f32 * w as f32).sum::<f32>());
                    baseline.push(dtype.round((gate / (1.0 + (-gate).exp()) * up).into()));
                }
                let what =
                    format!("{dtype:?}, gated, tiles of {tile_rows}, {d_in} to {d_out}, by input {by_input}");
                assert_close(&what, &y.read(&client), &wanted, &baseline);
            }
        }
    }
}
