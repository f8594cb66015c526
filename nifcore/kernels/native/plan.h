// What the portable driver (fused.cpp) and the tile code (tile.h, compiled once per instruction
// set) tell each other. Plain data only: the tile code must not instantiate anything of the
// standard library, or the linker might keep a copy that uses instructions this machine lacks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nif {

constexpr int kMostLayers = 17;  // 16 hidden ones and the output

enum class Loss : int32_t { mse = 0, l1 = 1, log_cosh = 2, given = 3 };

// One network: `layers` linear maps with sines between them.
struct Net {
    int32_t layers;
    int32_t axis;                 // features per axis: 1 + 2F
    int32_t width[kMostLayers];   // outputs of each linear map
    const float* bias[kMostLayers];
    const float* weight[kMostLayers];      // (out, in), from map 1 on
    const float* transposed[kMostLayers];  // (in, out), from map 1 on
    const float* first_y;  // (axis, width[0]): the first map's columns that see y
    const float* first_x;  // (axis, width[0]): and those that see x

    float* prepared;  // what the instruction set made of all this before the blocks

    // Where a block's gradient keeps each map's share, in floats. From map 1 on a matrix is stored
    // either as (in, out padded) or as (out, in padded); biases as (out, lanes) partial sums.
    size_t weight_at[kMostLayers];
    size_t bias_at[kMostLayers];
    bool lanes_are_outputs[kMostLayers];
    size_t first_y_at, first_x_at, first_bias_at;  // (width[0], axis padded) twice, (width[0])

    int32_t inputs(int layer) const { return width[layer - 1]; }
    int32_t last() const { return width[layers - 1]; }
};

// One call: a rectangle of pixels and what is wanted of them.
struct Job {
    Net genesis, modulation;
    bool modulated;
    float omega, sigma;
    const float *genesis_y, *genesis_x;        // (axis, rows), (axis, cols)
    const float *modulation_y, *modulation_x;
    int64_t rows, cols;
    int64_t block_rows, block_cols;  // a block's size; those at the far edges may be smaller
    int64_t blocks_down, blocks_across;
    bool backward;
    // forward only: colour is written here, (channels, rows, cols)
    float* output;
    // backward: colour is compared with this, (channels, rows, cols)
    const float* target;
    const float* output_gradient;  // of the same shape, for Loss::given
    Loss loss;
    float gradient_scale;  // on the derivative of the fused losses
};

// Rows of the optimiser's matrices are padded to this many floats.
constexpr int64_t kSoapLine = 16;
constexpr int64_t soap_padded(int64_t n) { return (n + kSoapLine - 1) / kSoapLine * kSoapLine; }

// One side of a matrix under SOAP; all null where the side is unrotated.
struct SoapSide {
    int64_t size;
    float *covariance, *basis;  // (size, size)
    float* turned;              // the transpose of the basis
};

// A tensor under SOAP: a matrix, or a vector as one row. Basis and turned have as many rows as
// padded columns.
struct SoapTensor {
    int64_t rows, cols;
    float* params;                        // (rows, cols), not padded
    float *momentum, *second, *rotated;   // (rows, cols); the last is the momentum in the bases
    SoapSide side[2];
};

// One step of the optimiser.
struct SoapStep {
    float rate, eps;
    float keep_first, keep_second;    // how far the moments move towards the new gradient
    float first_scale, second_scale;  // what makes up for their start at zero
    bool stale;                       // the rotated momentum is to be computed afresh
};

// SOAP's arithmetic, one tensor or one side at a time; see soap.h.
struct Soap {
    size_t (*scratch)(const SoapTensor*);
    void (*measure)(const SoapTensor*, int side, const float* gradient, const SoapStep*,
                    float* scratch);
    void (*update)(const SoapTensor*, const float* gradient, const SoapStep*, float* scratch);
    void (*turn)(const SoapSide*, float* scratch, int32_t* order);
    void (*reorder)(const SoapTensor*, const int32_t* down, const int32_t* across, float* scratch);
};

// What one instruction set offers.
struct Isa {
    const char* name;
    bool (*runs_here)();
    int32_t lanes;      // floats per vector
    int32_t tile_rows;  // rows that are worked on together
    // Fill in the gradient layout of a net from `offset` on; return the offset behind it.
    size_t (*lay_out)(Net*, size_t offset);
    // Floats that `prepare` fills in for a call that wants gradients; both null if it needs none.
    size_t (*prepared_floats)(const Net*);
    void (*prepare)(Net*, float* room);
    // Floats of scratch memory per thread.
    size_t (*scratch)(const Job*);
    // Work on one block. `gradient` (zeroed here) receives the sums over its pixels, `sums` the
    // squared error and the loss.
    void (*block)(const Job*, int64_t index, float* scratch, float* gradient, size_t gradient_size,
                  double* sums);
    Soap soap;
};

}  // namespace nif
