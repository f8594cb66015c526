// The C interface of the optimiser: all tensors of a network in one call.
//
// A step is cut into tasks, by tensor and side, that do not see each other's results; so the number
// of threads changes nothing.
#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "buffer.h"
#include "driver.h"
#include "plan.h"
#include "threads.h"

namespace nif {
namespace {

// Multiplications, about a millisecond's, below which one thread is done sooner than two agree to.
constexpr double kLoneProducts = 3e7;

// One side's covariance, one side's basis, or (side 2) a tensor's update.
struct Task {
    int32_t tensor, side;
    double products;
};

struct Optimiser {
    const Isa* isa;
    std::vector<SoapTensor> tensors;
    std::vector<Task> tasks, turns;         // the longest first
    std::vector<std::vector<int32_t>> order;  // of both sides of every tensor
    size_t scratch_size = 0;
    std::vector<std::unique_ptr<Buffer>> scratch;  // per worker
    std::mutex mutex;
};

constexpr int32_t kUpdate = 2;

void plan_tasks(Optimiser* self) {
    for (int32_t t = 0; t < (int32_t)self->tensors.size(); t++) {
        const SoapTensor& tensor = self->tensors[(size_t)t];
        const double size = (double)tensor.rows * (double)tensor.cols;
        double rotation = 0.0;
        for (int32_t s = 0; s < 2; s++) {
            const SoapSide& side = tensor.side[s];
            const double n = (double)side.size;
            if (side.basis) {
                self->tasks.push_back({t, s, size * n});
                self->turns.push_back({t, s, 4.0 * n * n * n});
                self->order.emplace_back((size_t)side.size);
                rotation += size * n;
            } else {
                self->order.emplace_back();
            }
        }
        self->tasks.push_back({t, kUpdate, 2.0 * rotation + size});
        self->scratch_size = std::max(self->scratch_size, self->isa->soap.scratch(&tensor));
    }
    for (std::vector<Task>* tasks : {&self->tasks, &self->turns})
        std::stable_sort(tasks->begin(), tasks->end(),
                         [](const Task& a, const Task& b) { return a.products > b.products; });
}

struct Call {
    Optimiser* self;
    const float* const* gradients;
    const SoapStep* step;
    bool first;
};

void run_task(void* context, int64_t index, int worker) {
    const Call& call = *static_cast<Call*>(context);
    const Soap& soap = call.self->isa->soap;
    const Task& task = call.self->tasks[(size_t)index];
    const SoapTensor* tensor = &call.self->tensors[(size_t)task.tensor];
    float* scratch = call.self->scratch[(size_t)worker]->data;
    const float* gradient = call.gradients[task.tensor];
    if (task.side != kUpdate)
        soap.measure(tensor, task.side, gradient, call.step, scratch);
    else if (!call.first)
        soap.update(tensor, gradient, call.step, scratch);
}

void run_turn(void* context, int64_t index, int worker) {
    const Call& call = *static_cast<Call*>(context);
    const Task& task = call.self->turns[(size_t)index];
    call.self->isa->soap.turn(&call.self->tensors[(size_t)task.tensor].side[task.side],
                              call.self->scratch[(size_t)worker]->data,
                              call.self->order[2 * (size_t)task.tensor + (size_t)task.side].data());
}

bool all_finite(const Optimiser& self, const float* const* gradients) {
    for (size_t t = 0; t < self.tensors.size(); t++) {
        const int64_t size = self.tensors[t].rows * self.tensors[t].cols;
        // all bits of the exponent set: infinite or no number
        uint32_t bad = 0;
        for (int64_t i = 0; i < size; i++) {
            uint32_t bits;
            std::memcpy(&bits, gradients[t] + i, sizeof bits);
            bad |= (bits & 0x7f800000u) == 0x7f800000u;
        }
        if (bad) return false;
    }
    return true;
}

void share(Optimiser* self, Pool::Work work, Call* call, const std::vector<Task>& tasks,
           int threads) {
    double products = 0.0;
    for (const Task& task : tasks) products += task.products;
    const int wanted = products < kLoneProducts ? 1 : std::min(threads, (int)tasks.size());
    const int workers = std::max(1, wanted);
    while ((int)self->scratch.size() < workers)
        self->scratch.push_back(std::make_unique<Buffer>());
    for (int i = 0; i < workers; i++) self->scratch[(size_t)i]->at_least(self->scratch_size);
    Threads::run(work, call, (int64_t)tasks.size(), workers);
}

}  // namespace
}  // namespace nif

using nif::Optimiser;

// Make an optimiser of `count` tensors with the instruction set of that name; null if there is no
// such name or no memory. `sizes` are rows and columns of every tensor, `memory` its ten arrays:
// parameters, momentum, second moments, rotated momentum, then covariance, basis and transposed
// basis of the left and of the right side, null where a side is unrotated.
NIF_EXPORT Optimiser* nif_soap_new(const char* isa_name, int32_t count, const int64_t* sizes,
                                   float* const* memory) {
    const nif::Isa* isa = nif::find_isa(isa_name);
    if (!isa) return nullptr;
    try {
        auto self = std::make_unique<Optimiser>();
        self->isa = isa;
        for (int32_t t = 0; t < count; t++) {
            float* const* at = memory + 10 * t;
            nif::SoapTensor tensor{sizes[2 * t], sizes[2 * t + 1], at[0], at[1], at[2], at[3], {}};
            for (int s = 0; s < 2; s++)
                tensor.side[s] = {sizes[2 * t + s], at[4 + 3 * s], at[5 + 3 * s], at[6 + 3 * s]};
            self->tensors.push_back(tensor);
        }
        nif::plan_tasks(self.get());
        return self.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

NIF_EXPORT void nif_soap_free(Optimiser* self) { delete self; }

// Take one step. `gradients` are the tensors', without padding; `constants` are the learning rate,
// epsilon, the parts by which first and second moments move, and the factors that make up for their
// start at zero. With `first` only the covariances are measured; with `stale` the rotated momentum
// is computed afresh; with `turn` the bases follow the covariances afterwards. Returns 0, 2 if
// memory is short, or 3 if a gradient is not finite (then nothing has changed).
NIF_EXPORT int nif_soap_step(Optimiser* self, const float* const* gradients,
                             const double* constants, int32_t first, int32_t stale, int32_t turn,
                             int32_t threads) {
    std::lock_guard<std::mutex> lock(self->mutex);
    if (!nif::all_finite(*self, gradients)) return nif::kNotFinite;
    const nif::SoapStep step{(float)constants[0], (float)constants[1], (float)constants[2],
                             (float)constants[3], (float)constants[4], (float)constants[5],
                             stale != 0};
    nif::Call call{self, gradients, &step, first != 0};
    try {
        nif::share(self, nif::run_task, &call, self->tasks, threads);
        if (!turn) return nif::kOk;
        nif::share(self, nif::run_turn, &call, self->turns, threads);
    } catch (const std::bad_alloc&) {
        return nif::kNoMemory;
    }
    for (size_t t = 0; t < self->tensors.size(); t++) {
        const auto &down = self->order[2 * t], &across = self->order[2 * t + 1];
        if (!down.empty() || !across.empty())
            self->isa->soap.reorder(&self->tensors[t], down.empty() ? nullptr : down.data(),
                                    across.empty() ? nullptr : across.data(),
                                    self->scratch[0]->data);
    }
    return nif::kOk;
}
