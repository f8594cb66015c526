// What the portable drivers share: how functions are exported, what they return, and the choice of
// instruction set.
#pragma once

#include "plan.h"

#if defined(_WIN32)
#define NIF_EXPORT extern "C" __declspec(dllexport)
#else
#define NIF_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace nif {

enum Status { kOk = 0, kPhaseTooLarge = 1, kNoMemory = 2, kNotFinite = 3 };

// The instruction set of that name, or null if this machine cannot run it.
const Isa* find_isa(const char* name);

}  // namespace nif
