// Compiled with AVX-512 F, BW, DQ and VL and FMA.
#define NIF_NAMESPACE avx512
#define NIF_NAME "avx512"
#define NIF_VECTOR_BYTES 64
#define NIF_REGISTERS 32
#define NIF_RUNS_HERE                                                              \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&    \
     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&   \
     __builtin_cpu_supports("fma"))
#include "tile.h"
