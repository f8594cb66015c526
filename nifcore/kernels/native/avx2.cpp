// Compiled with AVX2 and FMA.
#define NIF_NAMESPACE avx2
#define NIF_NAME "avx2"
#define NIF_VECTOR_BYTES 32
#define NIF_REGISTERS 16
#define NIF_RUNS_HERE (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "tile.h"
