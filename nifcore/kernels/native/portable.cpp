// Compiled for any machine of this architecture: SSE2 on x86-64, NEON on AArch64, and whatever the
// compiler makes of four floats at a time elsewhere.
#define NIF_NAMESPACE portable
#define NIF_VECTOR_BYTES 16
#define NIF_RUNS_HERE true
#if defined(__aarch64__)
#define NIF_NAME "neon"
#define NIF_REGISTERS 32
#elif defined(__SSE2__)
#define NIF_NAME "sse2"
#define NIF_REGISTERS 16
#else
#define NIF_NAME "generic"
#define NIF_REGISTERS 16
#endif
#include "tile.h"
