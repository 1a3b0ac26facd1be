#define GLOBAL extern "C" __attribute__((global))
#define DEVICE __attribute__((device))
#define SHARED __attribute__((shared))
typedef unsigned int u32;
typedef _Float16 f16;
DEVICE inline u32 tid() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE inline u32 bid() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE inline u32 bdim() { return __builtin_amdgcn_workgroup_size_x(); }
DEVICE inline u32 gid() { return bid() * bdim() + tid(); }
DEVICE inline void barrier() { __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup"); __builtin_amdgcn_s_barrier(); __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup"); }
