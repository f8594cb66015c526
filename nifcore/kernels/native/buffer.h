// Memory of the portable drivers, aligned to cache lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace nif {

struct Buffer {
    float* data = nullptr;
    size_t size = 0;

    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(raw_); }

    float* at_least(size_t floats) {
        if (floats > size) {
            std::free(raw_);
            data = nullptr;
            size = 0;
            raw_ = std::malloc(floats * sizeof(float) + 64);
            if (!raw_) throw std::bad_alloc();
            auto address = reinterpret_cast<uintptr_t>(raw_);
            data = reinterpret_cast<float*>((address + 63) & ~uintptr_t{63});
            size = floats;
        }
        return data;
    }

  private:
    void* raw_ = nullptr;
};

}  // namespace nif
