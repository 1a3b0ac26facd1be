//! The merge of planes with the same rows.

use cubecl::prelude::*;

use super::super::state::finite;
use super::super::variant::Variant;
use super::softmax::Softmax;
use crate::mma::{Fragment, Mma, TileShape, plane_words};
use crate::staging::{Ring, Staging};

/// Merges the results of the planes with the same rows into the first of them.
#[cube]
pub(super) fn merge_planes<M: Mma, V: Variant>(
    ring: &mut Ring,
    softmax: &mut Softmax,
    o: &mut Fragment<M>,
    #[comptime] tiles: TileShape,
) {
    let (lane, plane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let lane_rows = comptime!(tiles.q_tiles * M::LANE_ROWS);
    let registers = comptime!(tiles.q_tiles * tiles.dims.vo.div_ceil(M::COLUMNS) * M::ACC);
    let per_plane = comptime!(plane_words::<M>(tiles));
    // Copies that are still in flight must not overwrite what is written here.
    M::Staging::wait(0usize);
    let words = ring.shared.with_vector_size_mut::<Const<1>>();
    if plane >= tiles.q_planes {
        let mine = (plane - tiles.q_planes) * per_plane + lane;
        #[unroll]
        for r in 0..lane_rows {
            words[mine + comptime!(2 * r * M::PLANE)] = Vector::new(u32::reinterpret(softmax.row_max[r]));
            words[mine + comptime!((2 * r + 1) * M::PLANE)] =
                Vector::new(u32::reinterpret(softmax.row_sum[r]));
        }
        #[unroll]
        for i in 0..comptime!(registers / M::ACC) {
            #[unroll]
            for e in 0..comptime!(M::ACC) {
                words[mine + comptime!((2 * lane_rows + i * M::ACC + e) * M::PLANE)] =
                    Vector::new(u32::reinterpret(o.tiles[i].extract(e)));
            }
        }
    }
    sync_cube();
    if plane < tiles.q_planes {
        let mut their_alpha = Array::<f32>::new(lane_rows);
        #[unroll]
        for p in 1..tiles.kv_planes {
            let theirs = ((plane + comptime!((p - 1) * tiles.q_planes)) * per_plane) + lane;
            #[unroll]
            for r in 0..lane_rows {
                if comptime!(V::SOFTMAX) {
                    let m = f32::reinterpret(words[theirs + comptime!(2 * r * M::PLANE)].extract(0usize));
                    let l =
                        f32::reinterpret(words[theirs + comptime!((2 * r + 1) * M::PLANE)].extract(0usize));
                    let m_new = max(softmax.row_max[r], m);
                    let base = finite(m_new);
                    let a = M::exp2((softmax.row_max[r] - base) * softmax.scale_log2);
                    let b = M::exp2((m - base) * softmax.scale_log2);
                    softmax.row_sum[r] = softmax.row_sum[r] * a + l * b;
                    softmax.row_max[r] = m_new;
                    softmax.alpha[r] = a;
                    their_alpha[r] = b;
                } else {
                    softmax.alpha[r] = 1.0f32;
                    their_alpha[r] = 1.0f32;
                }
            }
            #[unroll]
            for i in 0..comptime!(registers / M::ACC) {
                let m = comptime!(i * M::ACC * tiles.q_tiles / registers);
                let mut their_o = Vector::<f32, M::Acc>::empty();
                #[unroll]
                for e in 0..comptime!(M::ACC) {
                    let word = words[theirs + comptime!((2 * lane_rows + i * M::ACC + e) * M::PLANE)];
                    their_o.insert(e, f32::reinterpret(word.extract(0usize)));
                }
                o.tiles[i] = o.tiles[i] * M::spread(&softmax.alpha, m) + their_o * M::spread(&their_alpha, m);
            }
        }
    }
}
