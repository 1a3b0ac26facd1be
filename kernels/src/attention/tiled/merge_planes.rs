//! The merge of planes with the same rows.

use cubecl::prelude::*;

use super::softmax::Softmax;
use crate::mma::{Mma, TileShape, Vec16, plane_words};

/// Merges the results of the planes with the same rows into the first of them.
#[allow(clippy::too_many_arguments, reason = "the state of the softmax")]
#[cube]
pub(super) fn merge_planes<U: Mma>(
    shared: &mut [Vec16],
    lane: usize,
    plane: usize,
    softmax: &mut Softmax,
    o: &mut Array<Vector<f32, U::Acc>>,
    scale_log2: f32,
    #[comptime] tiles: TileShape,
) {
    let lane_rows = comptime!(tiles.q_tiles * U::LANE_ROWS);
    let registers = comptime!(tiles.q_tiles * tiles.dims.vo.div_ceil(U::COLUMNS) * U::ACC);
    let words = shared.with_vector_size_mut::<Const<1>>();
    let per_plane = comptime!(plane_words::<U>(tiles));
    // Copies that are still in flight must not overwrite what is written here.
    U::wait_all_stages();
    if plane >= tiles.q_planes {
        let mine = (plane - tiles.q_planes) * per_plane + lane;
        #[unroll]
        for r in 0..lane_rows {
            words[mine + comptime!(2 * r * U::PLANE)] = Vector::new(u32::reinterpret(softmax.row_max[r]));
            words[mine + comptime!((2 * r + 1) * U::PLANE)] =
                Vector::new(u32::reinterpret(softmax.row_sum[r]));
        }
        #[unroll]
        for i in 0..comptime!(registers / U::ACC) {
            #[unroll]
            for e in 0..comptime!(U::ACC) {
                words[mine + comptime!((2 * lane_rows + i * U::ACC + e) * U::PLANE)] =
                    Vector::new(u32::reinterpret(o[i].extract(e)));
            }
        }
    }
    sync_cube();
    if plane < tiles.q_planes {
        let mut mine_scales = Array::<f32>::new(lane_rows);
        let mut their_scales = Array::<f32>::new(lane_rows);
        #[unroll]
        for p in 1..tiles.kv_planes {
            let theirs = ((plane + comptime!((p - 1) * tiles.q_planes)) * per_plane) + lane;
            #[unroll]
            for r in 0..lane_rows {
                let maximum = f32::reinterpret(words[theirs + comptime!(2 * r * U::PLANE)].extract(0usize));
                let total =
                    f32::reinterpret(words[theirs + comptime!((2 * r + 1) * U::PLANE)].extract(0usize));
                let m_new = max(softmax.row_max[r], maximum);
                let base = select(m_new == f32::NEG_INFINITY, 0.0f32, m_new);
                let a = U::exp2((softmax.row_max[r] - base) * scale_log2);
                let b = U::exp2((maximum - base) * scale_log2);
                softmax.row_sum[r] = softmax.row_sum[r] * a + total * b;
                softmax.row_max[r] = m_new;
                mine_scales[r] = a;
                their_scales[r] = b;
            }
            #[unroll]
            for i in 0..comptime!(registers / U::ACC) {
                let m = comptime!(i * U::ACC * tiles.q_tiles / registers);
                let a = U::spread(&mine_scales, m);
                let b = U::spread(&their_scales, m);
                let mut theirs_sum = Vector::<f32, U::Acc>::empty();
                #[unroll]
                for e in 0..comptime!(U::ACC) {
                    let word = words[theirs + comptime!((2 * lane_rows + i * U::ACC + e) * U::PLANE)];
                    theirs_sum.insert(e, f32::reinterpret(word.extract(0usize)));
                }
                o[i] = o[i] * a + theirs_sum * b;
            }
        }
    }
}
