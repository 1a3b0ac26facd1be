// Kernels with an error each, and what they would be without it.
#include "device.h"
typedef _Float16 half4 __attribute__((ext_vector_type(4)));
typedef float float4 __attribute__((ext_vector_type(4)));

// A tile of 16 x 16 values for each workgroup, transposed through LDS.
template <bool correct> static DEVICE void transpose(const float *in, float *out) {
  SHARED float tile[16][17];
  u32 row = tid() / 16, column = tid() % 16;
  tile[row][column] = in[bid() * 256 + tid()];
  if (correct) barrier();
  out[bid() * 256 + tid()] = tile[column][row];
}
GLOBAL void transpose_tile(const float *in, float *out) { transpose<true>(in, out); }
GLOBAL void transpose_tile_without_barrier(const float *in, float *out) { transpose<false>(in, out); }

// Workgroup i copies page table[i]: 4 tokens of 16 values.
GLOBAL void gather_pages(const float *pool, const int *table, float *out) {
  if (tid() < 64) out[bid() * 64 + tid()] = pool[table[bid()] * 64 + (int)tid()];
}

// A lane of the lower half adds what a lane of the upper half holds.
GLOBAL void fold_halves(u32 *values) {
  u32 value = values[tid()];
  u32 other = __builtin_amdgcn_ds_bpermute(4 * (tid() + 32), value);
  if (tid() < 32) values[tid()] = value + other;
}
// The upper half has gone when the lower one asks.
GLOBAL void fold_halves_too_late(u32 *values) {
  u32 value = values[tid()];
  asm volatile("" : "+v"(value));
  if (tid() < 32) {
    u32 other;
    asm volatile("ds_bpermute_b32 %0, %1, %2\ns_waitcnt lgkmcnt(0)" : "=v"(other) : "v"(4 * (tid() + 32)), "v"(value));
    values[tid()] = value + other;
  }
}

// D = A B for 16 x 16 tiles, A by rows and B by columns; each lane loads of A what is `lane_of_a`'s.
static DEVICE void product(const half4 *a, const half4 *b, float *d, u32 lane_of_a) {
  u32 lane = tid() % 64;
  float4 sum = {0, 0, 0, 0};
  // A lane holds four neighbours of the row of its last four bits; which four is in the other two.
  half4 mine = a[lane_of_a % 16 * 4 + lane_of_a / 16], theirs = b[lane % 16 * 4 + lane / 16];
  sum = __builtin_amdgcn_mfma_f32_16x16x16f16(mine, theirs, sum, 0, 0, 0);
  for (int i = 0; i < 4; i++) d[(lane / 16 * 4 + i) * 16 + lane % 16] = sum[i];
}
GLOBAL void matrix_product(const half4 *a, const half4 *b, float *d) { product(a, b, d, tid() % 64); }
GLOBAL void matrix_product_with_a_wrong_lane(const half4 *a, const half4 *b, float *d) {
  // Lane 37, which holds columns 8 to 11 of row 5, loads what is lane 38's.
  product(a, b, d, tid() == 37 ? 38 : tid());
}

// Turns 256 values round, of which the first wave forgets to write its own.
GLOBAL void sum_of_unwritten(const float *in, float *out) {
  SHARED float partial[256];
  if (tid() >= 64) partial[tid()] = in[tid()];
  barrier();
  out[tid()] = partial[255 - tid()];
}
GLOBAL void beyond_lds(u32 *out, u32 offset) {
  SHARED u32 local[256];
  local[tid()] = tid();
  barrier();
  out[tid()] = *(volatile u32 *)&local[tid() + offset];
}
