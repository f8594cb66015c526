// The C interface of the fused kernel: plans, threads, and the choice of instruction set.
//
// A call cuts the pixels into blocks that depend on nothing but the sizes, lets threads take them
// one by one, and adds the blocks' gradients up in order. So one thread and many give the same
// bits, and a thread that the machine holds up delays nothing but its own block.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "buffer.h"
#include "driver.h"
#include "plan.h"
#include "threads.h"

#if !defined(NIF_FINGERPRINT)
#define NIF_FINGERPRINT "unknown"
#endif

namespace nif {
#if defined(NIF_WITH_AMX)
namespace amx {
extern const Isa isa;
}
#endif
#if defined(NIF_WITH_AVX512)
namespace avx512 {
extern const Isa isa;
}
#endif
#if defined(NIF_WITH_AVX2)
namespace avx2 {
extern const Isa isa;
}
#endif
namespace portable {
extern const Isa isa;
}

namespace {

// Best first; build.py says which of them the compiler took.
const Isa* const kIsas[] = {
#if defined(NIF_WITH_AMX)
    &amx::isa,
#endif
#if defined(NIF_WITH_AVX512)
    &avx512::isa,
#endif
#if defined(NIF_WITH_AVX2)
    &avx2::isa,
#endif
    &portable::isa,
};

constexpr int64_t kBlockPixels = 768;
constexpr int64_t kMostBlocks = 64;
// Gradients of all blocks together, in floats: 64 MB.
constexpr int64_t kMostGradients = int64_t{1} << 24;
// Beyond this many radians the reduction of a sine's argument loses bits; reason is lost before.
constexpr double kLargestPhase = 2e5;
// Additions below which one thread adds up faster than several agree to.
constexpr size_t kLoneAdditions = size_t{1} << 18;

// ---------------------------------------------------------------- plans

struct Plan {
    const Isa* isa;
    Net genesis{}, modulation{};
    bool modulated;
    float omega, sigma;
    size_t gradient_size;
    Buffer packed, prepared, gradients, total;
    std::vector<std::unique_ptr<Buffer>> scratch;  // per worker
    std::vector<double> sums;                      // per block: squared error, loss
    std::mutex mutex;
};

void shape(Net* net, const int32_t* hidden, int32_t count, int32_t frequencies, int32_t outputs) {
    net->layers = count + 1;
    net->axis = 1 + 2 * frequencies;
    for (int i = 0; i < count; i++) net->width[i] = hidden[i];
    net->width[count] = outputs;
}

size_t packed_floats(const Net& net) {
    size_t floats = 2 * (size_t)net.axis * net.width[0];
    for (int l = 1; l < net.layers; l++) floats += (size_t)net.width[l] * net.inputs(l);
    return floats;
}

// Set a net's weights from its tensors (weight, bias, weight, ...), packed the way the tiles read
// them; return a bound of its output and raise `largest` to one of its sums before the sines.
double take_weights(Net* net, const float* const* tensors, float*& room, double* largest) {
    const int32_t width = net->width[0], inputs = 2 * net->axis;
    float *y = room, *x = room + (size_t)net->axis * width;
    room = x + (size_t)net->axis * width;
    net->first_y = y;
    net->first_x = x;
    double bound = 0.0;
    for (int32_t o = 0; o < width; o++) {
        const float* row = tensors[0] + (size_t)o * inputs;
        double total = std::fabs((double)tensors[1][o]);
        // columns: y, x, then sin, cos of y and sin, cos of x for every frequency
        for (int32_t k = 0; k < net->axis; k++) {
            const int32_t y_at = k == 0 ? 0 : 2 + (k - 1) / 2 * 4 + (k - 1) % 2;
            const int32_t x_at = k == 0 ? 1 : y_at + 2;
            y[(size_t)k * width + o] = row[y_at];
            x[(size_t)k * width + o] = row[x_at];
            total += std::fabs((double)row[y_at]) + std::fabs((double)row[x_at]);
        }
        if (!(total <= bound)) bound = total;
    }
    *largest = bound <= *largest ? *largest : bound;
    net->bias[0] = tensors[1];
    for (int l = 1; l < net->layers; l++) {
        const int32_t out = net->width[l], in = net->inputs(l);
        const float* weight = tensors[2 * l];
        net->weight[l] = weight;
        net->bias[l] = tensors[2 * l + 1];
        net->transposed[l] = room;
        bound = 0.0;
        for (int32_t o = 0; o < out; o++) {
            float total = std::fabs(net->bias[l][o]);
            for (int32_t i = 0; i < in; i++) {
                const float w = weight[(size_t)o * in + i];
                room[(size_t)i * out + o] = w;
                total += std::fabs(w);
            }
            if (!(total <= bound)) bound = total;
        }
        room += (size_t)out * in;
        if (l < net->layers - 1) *largest = bound <= *largest ? *largest : bound;
    }
    return bound;
}

// Cut the pixels into blocks of about equal sides.
void cut(Job* job, const Isa& isa, size_t gradient_size) {
    const int64_t pixels = job->rows * job->cols;
    int64_t blocks = std::min(kMostBlocks, std::max<int64_t>(1, pixels / kBlockPixels));
    if (job->backward)
        blocks = std::min(blocks, std::max<int64_t>(8, kMostGradients / (int64_t)gradient_size));
    const double side = std::sqrt((double)pixels / (double)blocks);
    auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    const int64_t across = std::max<int64_t>(
        1, std::min<int64_t>(std::llround((double)job->cols / side),
                             ceil_div(job->cols, isa.lanes)));
    job->block_cols = ceil_div(ceil_div(job->cols, across), isa.lanes) * isa.lanes;
    job->blocks_across = ceil_div(job->cols, job->block_cols);
    const int64_t down = std::max<int64_t>(1, blocks / job->blocks_across);
    job->block_rows = ceil_div(ceil_div(job->rows, down), isa.tile_rows) * isa.tile_rows;
    job->block_rows = std::min(job->block_rows, job->rows);
    job->blocks_down = ceil_div(job->rows, job->block_rows);
}

struct Call {
    Plan* plan;
    const Job* job;
    int64_t blocks;
};

void run_block(void* context, int64_t task, int worker) {
    const Call& call = *static_cast<Call*>(context);
    Plan& plan = *call.plan;
    float* gradient =
        call.job->backward ? plan.gradients.data + (size_t)task * plan.gradient_size : nullptr;
    plan.isa->block(call.job, task, plan.scratch[(size_t)worker]->data, gradient,
                    call.job->backward ? plan.gradient_size : 0, plan.sums.data() + 2 * task);
}

constexpr size_t kSumPart = 1024;

void add_up(void* context, int64_t task, int) {
    const Call& call = *static_cast<Call*>(context);
    Plan& plan = *call.plan;
    const size_t first = (size_t)task * kSumPart;
    const size_t last = std::min(plan.gradient_size, first + kSumPart);
    float* total = plan.total.data;
    std::memcpy(total + first, plan.gradients.data + first, (last - first) * sizeof(float));
    for (int64_t block = 1; block < call.blocks; block++) {
        const float* part = plan.gradients.data + (size_t)block * plan.gradient_size;
        for (size_t i = first; i < last; i++) total[i] += part[i];
    }
}

// Write a net's gradient out in the order and layout of its tensors; return the end.
float* deliver(const Net& net, const Isa& isa, const float* total, float* out) {
    auto padded = [&](int32_t n) { return (size_t)((n + isa.lanes - 1) / isa.lanes * isa.lanes); };
    const int32_t inputs = 2 * net.axis;
    for (int32_t o = 0; o < net.width[0]; o++) {
        const float* y = total + net.first_y_at + o * padded(net.axis);
        const float* x = total + net.first_x_at + o * padded(net.axis);
        for (int32_t k = 0; k < net.axis; k++) {
            const int32_t y_at = k == 0 ? 0 : 2 + (k - 1) / 2 * 4 + (k - 1) % 2;
            out[y_at] = y[k];
            out[k == 0 ? 1 : y_at + 2] = x[k];
        }
        out += inputs;
    }
    std::memcpy(out, total + net.first_bias_at, (size_t)net.width[0] * sizeof(float));
    out += net.width[0];
    for (int l = 1; l < net.layers; l++) {
        const int32_t rows = net.width[l], in = net.inputs(l);
        const float* weight = total + net.weight_at[l];
        const size_t stride = padded(net.lanes_are_outputs[l] ? rows : in);
        for (int32_t o = 0; o < rows; o++)
            for (int32_t i = 0; i < in; i++)
                *out++ = net.lanes_are_outputs[l] ? weight[i * stride + o] : weight[o * stride + i];
        for (int32_t o = 0; o < rows; o++) {
            const float* lanes = total + net.bias_at[l] + (size_t)o * isa.lanes;
            float sum = 0.0f;
            for (int32_t i = 0; i < isa.lanes; i++) sum += lanes[i];
            *out++ = sum;
        }
    }
    return out;
}

int run(Plan& plan, Job* job, const float* const* params, float* gradients, double* result,
        int threads) {
    std::lock_guard<std::mutex> lock(plan.mutex);
    job->genesis = plan.genesis;
    job->modulation = plan.modulation;
    job->modulated = plan.modulated;
    job->omega = plan.omega;
    job->sigma = plan.sigma;
    float* room = plan.packed.at_least(packed_floats(plan.genesis) +
                                       (plan.modulated ? packed_floats(plan.modulation) : 0));
    double largest = 0.0, period = std::fabs((double)plan.omega);
    take_weights(&job->genesis, params, room, &largest);
    if (plan.modulated) {
        double sums = 0.0;
        const double shift =
            take_weights(&job->modulation, params + 2 * plan.genesis.layers, room, &sums);
        if (!(sums * period <= kLargestPhase)) return kPhaseTooLarge;
        period += std::fabs((double)plan.sigma) * shift;
    }
    if (!(largest * period <= kLargestPhase)) return kPhaseTooLarge;

    if (job->backward && plan.isa->prepare) {
        const size_t first = plan.isa->prepared_floats(&job->genesis);
        const size_t second = plan.modulated ? plan.isa->prepared_floats(&job->modulation) : 0;
        float* prepared = plan.prepared.at_least(first + second);
        plan.isa->prepare(&job->genesis, prepared);
        if (plan.modulated) plan.isa->prepare(&job->modulation, prepared + first);
    }
    cut(job, *plan.isa, plan.gradient_size);
    Call call{&plan, job, job->blocks_down * job->blocks_across};
    const int workers = (int)std::max<int64_t>(1, std::min<int64_t>(threads, call.blocks));
    while ((int)plan.scratch.size() < workers) plan.scratch.push_back(std::make_unique<Buffer>());
    const size_t scratch = plan.isa->scratch(job);
    for (int i = 0; i < workers; i++) plan.scratch[(size_t)i]->at_least(scratch);
    plan.sums.resize(2 * (size_t)call.blocks);
    if (job->backward) {
        plan.gradients.at_least((size_t)call.blocks * plan.gradient_size);
        plan.total.at_least(plan.gradient_size);
    }
    Threads::run(run_block, &call, call.blocks, workers);
    if (!job->backward) return kOk;

    const size_t additions = (size_t)call.blocks * plan.gradient_size;
    const int64_t parts = (int64_t)((plan.gradient_size + kSumPart - 1) / kSumPart);
    Threads::run(add_up, &call, parts, additions < kLoneAdditions ? 1 : workers);
    result[0] = result[1] = 0.0;
    for (int64_t i = 0; i < call.blocks; i++) {
        result[0] += plan.sums[2 * (size_t)i];
        result[1] += plan.sums[2 * (size_t)i + 1];
    }
    float* end = deliver(job->genesis, *plan.isa, plan.total.data, gradients);
    if (plan.modulated) deliver(job->modulation, *plan.isa, plan.total.data, end);
    return kOk;
}

}  // namespace

const Isa* find_isa(const char* name) {
    for (const Isa* isa : kIsas)
        if (std::strcmp(isa->name, name) == 0 && isa->runs_here()) return isa;
    return nullptr;
}

}  // namespace nif

using nif::Plan;

// The sources that this was made from.
NIF_EXPORT const char* nif_fingerprint() { return NIF_FINGERPRINT; }

// Names of the instruction sets that this machine can run, best first, separated by commas.
NIF_EXPORT const char* nif_isas() {
    static const std::string names = [] {
        std::string all;
        for (const nif::Isa* isa : nif::kIsas)
            if (isa->runs_here()) all += (all.empty() ? "" : ",") + std::string(isa->name);
        return all;
    }();
    return names.c_str();
}

// Make a plan for one architecture and one of the names above; null if there is no such name.
// `modulation_layers` 0 means no Modulation network.
NIF_EXPORT Plan* nif_plan_new(const char* isa_name, const int32_t* genesis, int32_t genesis_layers,
                              int32_t genesis_frequencies, const int32_t* modulation,
                              int32_t modulation_layers, int32_t modulation_frequencies,
                              int32_t channels, float omega, float sigma) {
    const nif::Isa* isa = nif::find_isa(isa_name);
    if (!isa || std::max(genesis_layers, modulation_layers) >= nif::kMostLayers) return nullptr;
    Plan* plan = new (std::nothrow) Plan;
    if (!plan) return nullptr;
    plan->isa = isa;
    plan->modulated = modulation_layers > 0;
    plan->omega = omega;
    plan->sigma = sigma;
    nif::shape(&plan->genesis, genesis, genesis_layers, genesis_frequencies, channels);
    plan->gradient_size = isa->lay_out(&plan->genesis, 0);
    if (plan->modulated) {
        nif::shape(&plan->modulation, modulation, modulation_layers, modulation_frequencies, 1);
        plan->gradient_size = isa->lay_out(&plan->modulation, plan->gradient_size);
    }
    return plan;
}

NIF_EXPORT void nif_plan_free(Plan* plan) { delete plan; }

// Evaluate on a grid. `params` are the tensors in file order; `tables` the four axis tables
// (features, positions): Genesis y, x, Modulation y, x. Returns 0, 1 if phases are too large for
// the arithmetic here, or 2 if memory is short.
NIF_EXPORT int nif_forward(Plan* plan, const float* const* params, const float* const* tables,
                           int64_t rows, int64_t cols, float* output, int32_t threads) {
    nif::Job job{};
    job.genesis_y = tables[0];
    job.genesis_x = tables[1];
    job.modulation_y = tables[2];
    job.modulation_x = tables[3];
    job.rows = rows;
    job.cols = cols;
    job.output = output;
    try {
        return nif::run(*plan, &job, params, nullptr, nullptr, threads);
    } catch (const std::bad_alloc&) {
        return nif::kNoMemory;
    }
}

// Loss and gradient on a grid. `loss` is 0 for squares, 1 for magnitudes, 2 for log cosh, 3 where
// `output_gradient` brings the gradient of the colour. `gradients` receives all tensors' in one
// row, `result` the summed squared error and the summed loss.
NIF_EXPORT int nif_gradient(Plan* plan, const float* const* params, const float* const* tables,
                            int64_t rows, int64_t cols, const float* target, int32_t loss,
                            const float* output_gradient, float scale, float* gradients,
                            double* result, int32_t threads) {
    nif::Job job{};
    job.genesis_y = tables[0];
    job.genesis_x = tables[1];
    job.modulation_y = tables[2];
    job.modulation_x = tables[3];
    job.rows = rows;
    job.cols = cols;
    job.backward = true;
    job.target = target;
    job.output_gradient = output_gradient;
    job.loss = static_cast<nif::Loss>(loss);
    job.gradient_scale = scale;
    try {
        return nif::run(*plan, &job, params, gradients, result, threads);
    } catch (const std::bad_alloc&) {
        return nif::kNoMemory;
    }
}
