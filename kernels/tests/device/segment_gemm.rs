//! Segments of rows times matrices of their own, with every size of tile that the device has, and a work list in any order.

use burn_flashinfer_kernels::segment_gemm::{SegmentGemm, launch};
use cubecl::client::Client;

use crate::host::{Device, Random, TYPES, assert_close, device_tests, ints};

device_tests!(every_size_of_tile);

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
