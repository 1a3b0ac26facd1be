#include "device.h"

GLOBAL void add(const float *a, const float *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] + b[i]; }
GLOBAL void divide(const float *a, const float *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] / b[i]; }
GLOBAL void divide64(const double *a, const double *b, double *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] / b[i]; }
GLOBAL void root(const float *a, const float *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_sqrtf(a[i]); }
GLOBAL void root64(const double *a, const double *b, double *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_sqrt(a[i]); }
GLOBAL void power(const float *a, const float *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_exp2f(a[i]); }
GLOBAL void natural(const float *a, const float *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_expf(a[i]); }
GLOBAL void logarithm(const float *a, const float *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_logf(a[i]); }
GLOBAL void divide_i64(const long *a, const long *b, long *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] / b[i]; }
GLOBAL void remainder_u64(const unsigned long *a, const unsigned long *b, unsigned long *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] % b[i]; }
GLOBAL void divide_i32(const int *a, const int *b, int *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] / b[i]; }
GLOBAL void remainder_u32(const u32 *a, const u32 *b, u32 *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] % b[i]; }
GLOBAL void divide16(const f16 *a, const f16 *b, f16 *c, u32 n) { u32 i = gid(); if (i < n) c[i] = a[i] / b[i]; }
GLOBAL void fma16(const f16 *a, const f16 *b, f16 *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_fmaf16(a[i], b[i], a[i]); }
GLOBAL void axpy16(const f16 *a, const f16 *b, f16 *c, u32 n) { u32 i = gid(); if (4 * i + 3 < n) for (int k = 0; k < 4; k++) c[4*i+k] = a[4*i+k] * b[4*i+k] + b[4*i+k]; }
GLOBAL void to_bf16(const float *a, const float *b, __bf16 *c, u32 n) { u32 i = gid(); if (i < n) c[i] = (__bf16)a[i]; }
GLOBAL void to_f16(const float *a, const float *b, f16 *c, u32 n) { u32 i = gid(); if (i < n) c[i] = (f16)a[i]; }
GLOBAL void to_i64(const float *a, const float *b, long *c, u32 n) { u32 i = gid(); if (i < n) c[i] = (long)a[i]; }
GLOBAL void from_i64(const long *a, const long *b, float *c, u32 n) { u32 i = gid(); if (i < n) c[i] = (float)a[i]; }
GLOBAL void from_u64(const unsigned long *a, const unsigned long *b, double *c, u32 n) { u32 i = gid(); if (i < n) c[i] = (double)a[i]; }
GLOBAL void bits(const u32 *a, const u32 *b, u32 *c, u32 n) { u32 i = gid(); if (i < n) c[i] = __builtin_popcount(a[i]) + __builtin_clz(b[i] | 1) * 64 + __builtin_ctz(a[i] | 0x80000000) * 4096 + (__builtin_rotateleft32(a[i], b[i] & 31) & 0xff000000); }
GLOBAL void bytes(const signed char *a, const unsigned char *b, short *c, u32 n) { u32 i = gid(); if (i < n) c[i] = (short)(a[i] * 3 + b[i]); }

GLOBAL void sum(const float *a, float *c, u32 n) {
  SHARED float partial[256];
  float s = 0; for (u32 i = gid(); i < n; i += bdim() * 4) s += a[i];
  partial[tid()] = s; barrier();
  for (u32 k = 128; k > 0; k /= 2) { if (tid() < k) partial[tid()] += partial[tid() + k]; barrier(); }
  if (tid() == 0) c[bid()] = partial[0];
}
GLOBAL void racy(const float *a, float *c, u32 n) {
  SHARED float partial[256];
  partial[tid()] = a[gid()];
  c[gid()] = partial[255 - tid()];
}
GLOBAL void count(u32 *c, const u32 *a) { __hip_atomic_fetch_add(&c[a[gid()]], 1u, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); }
GLOBAL void add_atomically(float *c, const float *a) { __hip_atomic_fetch_add(c, a[gid()], __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT); }
GLOBAL void spill(const u32 *a, u32 *c, u32 n) {
  u32 local[40]; for (u32 k = 0; k < 40; k++) local[k] = a[k] * (tid() + 1);
  u32 s = 0; for (u32 k = 0; k < n; k++) s = s * 31 + local[(a[k] + tid()) % 40];
  c[gid()] = s;
}
GLOBAL void where(u32 *c) {
  u32 x = __builtin_amdgcn_workitem_id_x(), y = __builtin_amdgcn_workitem_id_y(), z = __builtin_amdgcn_workitem_id_z();
  u32 g = (__builtin_amdgcn_workgroup_id_z() * __builtin_amdgcn_grid_size_y() / __builtin_amdgcn_workgroup_size_y() + __builtin_amdgcn_workgroup_id_y()) * (__builtin_amdgcn_grid_size_x() / __builtin_amdgcn_workgroup_size_x()) + __builtin_amdgcn_workgroup_id_x();
  u32 t = (z * __builtin_amdgcn_workgroup_size_y() + y) * __builtin_amdgcn_workgroup_size_x() + x;
  c[g * 24 + t] = g << 16 | z << 8 | y << 4 | x;
}
GLOBAL void permute(const u32 *a, u32 *c) {
  u32 v = a[tid()];
  u32 s = __builtin_amdgcn_ds_bpermute(4 * (tid() ^ 5), v);
  u32 d = __builtin_amdgcn_update_dpp(7, v, 0x111, 0xf, 0xf, false);
  u32 m = __builtin_amdgcn_mov_dpp(v, 0x140, 0xf, 0xf, true);
  u32 w = __builtin_amdgcn_ds_swizzle(v, 0x041f);
  u32 r = __builtin_amdgcn_readlane(v, 17) + __builtin_amdgcn_readfirstlane(v);
  u32 b = __builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0));
  c[tid() * 6] = s; c[tid() * 6 + 1] = d; c[tid() * 6 + 2] = m; c[tid() * 6 + 3] = w; c[tid() * 6 + 4] = r; c[tid() * 6 + 5] = b;
}
GLOBAL void out_of_bounds(u32 *c) { c[gid() + 100000000] = 1; }
GLOBAL void missed(u32 *c) { if (tid() < 64) barrier(); c[gid()] = 1; }
