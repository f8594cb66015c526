// Compiled with AMX-BF16, AVX-512 BF16 and what avx512.cpp needs. Loss and gradient take their
// products in bfloat16; rendering is float32 as everywhere.
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

// Whether the processor has the instructions and Linux lets this process use their registers.
static bool amx_runs_here() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return false;
    const long ask_for_registers = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, ask_for_registers, tile_data) == 0;
}

#define NIF_NAMESPACE amx
#define NIF_NAME "amx"
#define NIF_AMX 1
#define NIF_VECTOR_BYTES 64
#define NIF_REGISTERS 32
#define NIF_RUNS_HERE amx_runs_here()
#include "tile.h"
