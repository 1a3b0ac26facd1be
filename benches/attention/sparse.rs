//! Blocks of queries and keys: requests that share a pool, whose pages are the columns of a block.

use crate::case::{Bench, Pool, Shape};

/// A tenth of a square in blocks, and single keys beside as many in blocks.
pub fn rows(bench: &mut Bench, base: &Shape) {
    let sparse = Shape { causal: false, paged: true, ..base.clone() };
    let keys = 16384_usize;
    for (op, block) in [("block-sparse-128x128", 128_usize), ("block-sparse-64x64", 64)] {
        let blocks = keys / block;
        let lengths = vec![(block, blocks / 10 * block); blocks];
        bench.row(&Shape { op, lengths, shared: Some(Pool { page_size: block, keys }), ..sparse.clone() });
    }
    let shared = Some(Pool { page_size: 1, keys: 8192 });
    bench.row(&Shape { op: "vector-sparse-64x1", lengths: vec![(64, 819); 128], shared, ..sparse.clone() });
    for (op, page_size) in [("vector-sparse-64x1", 1), ("block-sparse-64x64", 64)] {
        let lengths = vec![(64, 8192); 64];
        bench.row(&Shape { op, lengths, shared: Some(Pool { page_size, keys }), ..sparse.clone() });
    }
}
