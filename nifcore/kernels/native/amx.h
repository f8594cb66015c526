// The tile code's products on AMX: bfloat16 factors, float32 sums. Included by tile.h.
//
// Only loss and gradient are computed so; phases, sines and everything outside the products stay
// float32, and rendering never comes here. A fit does not notice the rounding (docs/decisions.md
// has the measurement), for it is far below the noise that quantisation adds to the weights.
//
// C (M, N) += A (M, K) B (K, N) works on 16 x 16 sums with 32 values of k at a time, from rows of A
// and from B with the values of two successive k side by side.

typedef uint16_t bf16;

constexpr int kPairs = 16;  // pairs of k in one step
constexpr int64_t whole_steps(int64_t n) { return (n + 31) / 32 * 32; }

// Own assembly, since the compiler's intrinsics do not tell it that tile loads read memory.
#define NIF_TILE_LOAD(tile, from, stride)                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)) \
                     : "memory")
#define NIF_TILE_STORE(tile, to, stride)                                                   \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) \
                     : "memory")
#define NIF_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::: "memory")
#define NIF_TILE_PRODUCT(sum, a, b) \
    __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: "memory")

struct TileShape {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

NIF_INLINE void use_tiles() {
    TileShape shape = {};
    shape.palette = 1;
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(shape) : "memory");
}

NIF_INLINE void leave_tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

// One operand or result: where its tiles lie, in bytes.
struct Tiles {
    char* base;
    int64_t row;    // from one row to the next
    int64_t down;   // from one tile to the next along M, or N
    int64_t along;  // from one tile to the next along K
};

// `start` gives the sums' first values: null for zero, else tiles placed like `sum`, or the same
// for all columns where `start_across` is 0.
void tile_product(int64_t M, int64_t N, int64_t K, Tiles a, Tiles b, Tiles sum, int64_t sum_across,
                  const Tiles* start, int64_t start_across) {
    for (int64_t m = 0; m < M; m += 2) {
        const bool two_down = m + 1 < M;
        for (int64_t n = 0; n < N; n += 2) {
            const bool two_across = n + 1 < N;
            if (start) {
                const char* at = start->base + m * start->down + n * start_across;
                NIF_TILE_LOAD(0, at, start->row);
                if (two_across) NIF_TILE_LOAD(1, at + start_across, start->row);
                if (two_down) NIF_TILE_LOAD(2, at + start->down, start->row);
                if (two_down && two_across)
                    NIF_TILE_LOAD(3, at + start->down + start_across, start->row);
            } else {
                NIF_TILE_ZERO(0);
                NIF_TILE_ZERO(1);
                NIF_TILE_ZERO(2);
                NIF_TILE_ZERO(3);
            }
            for (int64_t k = 0; k < K; k++) {
                const char* left = a.base + m * a.down + k * a.along;
                const char* right = b.base + n * b.down + k * b.along;
                NIF_TILE_LOAD(4, left, a.row);
                NIF_TILE_LOAD(6, right, b.row);
                NIF_TILE_PRODUCT(0, 4, 6);
                if (two_across) {
                    NIF_TILE_LOAD(7, right + b.down, b.row);
                    NIF_TILE_PRODUCT(1, 4, 7);
                }
                if (two_down) {
                    NIF_TILE_LOAD(5, left + a.down, a.row);
                    NIF_TILE_PRODUCT(2, 5, 6);
                    if (two_across) NIF_TILE_PRODUCT(3, 5, 7);
                }
            }
            char* at = sum.base + m * sum.down + n * sum_across;
            NIF_TILE_STORE(0, at, sum.row);
            if (two_across) NIF_TILE_STORE(1, at + sum_across, sum.row);
            if (two_down) NIF_TILE_STORE(2, at + sum.down, sum.row);
            if (two_down && two_across) NIF_TILE_STORE(3, at + sum.down + sum_across, sum.row);
        }
    }
}

template <class T>
NIF_INLINE char* bytes(T* p) {
    return reinterpret_cast<char*>(const_cast<std::remove_const_t<T>*>(p));
}

// 32 values in bfloat16, `low` first.
NIF_INLINE __m512i narrow(vf low, vf high) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

// 16 pairs (even, odd) in bfloat16.
NIF_INLINE __m512i narrow_pairs(vf even, vf odd) {
    const __m512i both = narrow(even, odd);
    alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                   21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                   11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

inline bf16 narrowed(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Weights as operand A: (out, in) for the way forward, (in, out) for the way back, and the biases
// as first values of the sums.
struct Packed {
    bf16 *weight, *transposed;
    float* bias;
};

size_t packed_size(const Net& net, float* room, Packed* packed) {
    size_t used = 0;
    auto take = [&](int64_t floats) {
        float* at = room ? room + used : nullptr;
        used += (size_t)padded(floats);
        return at;
    };
    for (int l = 1; l < net.layers; l++) {
        const int64_t out = net.width[l], in = net.inputs(l);
        packed[l].weight = (bf16*)take(padded(out) * whole_steps(in) / 2);
        packed[l].transposed = (bf16*)take(padded(in) * whole_steps(out) / 2);
        packed[l].bias = take(padded(out) * kLanes);
    }
    return used;
}

size_t prepared_floats(const Net* net) {
    Packed packed[kMostLayers];
    return packed_size(*net, nullptr, packed);
}

void prepare(Net* net, float* room) {
    Packed packed[kMostLayers];
    net->prepared = room;
    const size_t size = packed_size(*net, room, packed);
    __builtin_memset(room, 0, size * sizeof(float));
    for (int l = 1; l < net->layers; l++) {
        const int64_t out = net->width[l], in = net->inputs(l);
        for (int64_t o = 0; o < out; o++) {
            for (int64_t i = 0; i < in; i++)
                packed[l].weight[o * whole_steps(in) + i] = narrowed(net->weight[l][o * in + i]);
            for (int64_t i = 0; i < kLanes; i++) packed[l].bias[o * kLanes + i] = net->bias[l][o];
        }
        for (int64_t i = 0; i < in; i++)
            for (int64_t o = 0; o < out; o++)
                packed[l].transposed[i * whole_steps(out) + o] =
                    narrowed(net->transposed[l][i * out + o]);
    }
}

struct MatrixWorker : Worker {
    static constexpr bool kWholeTiles = true;
    static constexpr bool kOutputLanes = true;

    Packed packed[kMostLayers];
    bf16* sine_rows[kMostLayers];   // (features, pixels): operand A of the weights' gradient
    bf16* sine_pairs[kMostLayers];  // (feature pairs, pixels, 2): operand B of the next sums
    bf16* delta_pairs;              // the same of a gradient
    float* delta_turned;            // (pixel pairs, features) of two bfloat16 each

    static int64_t pair_rows(int64_t features) { return whole_steps(features) / 2; }

    void take(Arena* arena, const Net* of, const Job* job) {
        Worker::take(arena, of, job);
        if (!job->backward) return;
        int64_t widest = 0;
        for (int l = 0; l < net->layers; l++) {
            widest = most(widest, net->width[l]);
            if (l == net->layers - 1) break;
            sine_rows[l] = (bf16*)arena->take(padded(net->width[l]) * kTile / 2);
            sine_pairs[l] = (bf16*)arena->take(pair_rows(net->width[l]) * kTile);
        }
        delta_pairs = (bf16*)arena->take(pair_rows(widest) * kTile);
        delta_turned = arena->take(padded(widest) * kTile / 2);
    }

    void begin(const Job* job, const float* y, const float* x, int64_t row, int64_t rows,
               int64_t col, int64_t cols) {
        Worker::begin(job, y, x, row, rows, col, cols);
        if (!job->backward) return;
        packed_size(*net, net->prepared, packed);
        for (int l = 0; l < net->layers - 1; l++) {
            const int64_t used = (net->width[l] + 1) / 2;
            __builtin_memset(sine_pairs[l] + used * kTile * 2, 0,
                             (size_t)((pair_rows(net->width[l]) - used) * kTile * 4));
        }
    }

    // Store the sines of features f and f + 1 (or zeros) in both forms.
    static NIF_FLAT void keep(bf16* rows, bf16* pairs, int64_t f, bool two,
                              const vf (&sine)[2][kRows]) {
        for (int v = 0; v < kRows; v += 2) {
            _mm512_store_si512(rows + f * kTile + v * kLanes, narrow(sine[0][v], sine[0][v + 1]));
            if (two)
                _mm512_store_si512(rows + (f + 1) * kTile + v * kLanes,
                                   narrow(sine[1][v], sine[1][v + 1]));
        }
        for (int v = 0; v < kRows; v++)
            _mm512_store_si512(pairs + f * kTile + v * kLanes * 2,
                               narrow_pairs(sine[0][v], sine[1][v]));
    }

    // Take the sines of layer l on a tile; `phase(f, v)` gives a vector of phases.
    template <class Phase>
    NIF_FLAT void all_sines(int l, Phase phase) {
        const int64_t width = net->width[l];
        for (int64_t f = 0; f < width; f += 2) {
            const bool two = f + 1 < width;
            vf sine[2][kRows];
            for (int v = 0; v < kRows; v++) {
                float* cosine = cosines[l] + f * kTile + v * kLanes;
                sine[0][v] = sine_and_cosine(phase(f, v), cosine);
                sine[1][v] = two ? sine_and_cosine(phase(f + 1, v), cosine + kTile) : vf{};
            }
            keep(sine_rows[l], sine_pairs[l], f, two, sine);
        }
    }

    template <bool kBackward>
    void forward(int64_t row, int64_t rows, int64_t col, const float* period) {
        if (!kBackward) return Worker::forward<false>(row, rows, col, period);
        const int last = net->layers - 1;
        vf w[kRows];
        for (int v = 0; v < kRows; v++) w[v] = load(period + v * kLanes);
        all_sines(0, [&](int64_t f, int v) NIF_ALWAYS {
            const vf across = load(col_term + f * block_cols + col);
            return (row_term[f * block_rows + row + v] + across) * w[v];
        });
        for (int l = 1; l <= last; l++) {
            const int64_t out = net->width[l], in = net->inputs(l), depth = whole_steps(in);
            const Tiles bias{bytes(packed[l].bias), 64, 16 * 64, 0};
            tile_product(padded(out) / 16, kRows, depth / 32,
                         {bytes(packed[l].weight), depth * 2, 16 * depth * 2, 64},
                         {bytes(sine_pairs[l - 1]), kTile * 4, 64, kPairs * kTile * 4},
                         {bytes(sums[l]), kTile * 4, 16 * kTile * 4, 0}, 64, &bias, 0);
            if (l == last) break;
            all_sines(l, [&](int64_t f, int v) NIF_ALWAYS {
                return load(sums[l] + f * kTile + v * kLanes) * w[v];
            });
        }
    }

    // Turn a gradient (features, tile) into both of its operands B.
    void narrow_delta(const float* dz, int64_t features) {
        const int64_t pairs = pair_rows(features), stride = padded(features);
        for (int64_t f = 0; f < 2 * pairs; f += 2) {
            for (int v = 0; v < kRows; v++) {
                const float* at = dz + f * kTile + v * kLanes;
                const vf even = f < features ? load(at) : vf{};
                const vf odd = f + 1 < features ? load(at + kTile) : vf{};
                _mm512_store_si512(delta_pairs + f * kTile + v * kLanes * 2,
                                   narrow_pairs(even, odd));
            }
        }
        for (int64_t f = 0; f < features; f += kLanes) {
            for (int v = 0; v < kRows; v += 2) {
                vf square[kLanes];
                for (int i = 0; i < kLanes; i++) {
                    const float* at = dz + (f + i) * kTile + v * kLanes;
                    square[i] = f + i < features ? (vf)narrow(load(at), load(at + kLanes)) : vf{};
                }
                transpose_square(square);
                for (int i = 0; i < kLanes; i++)
                    store(delta_turned + (v * kLanes / 2 + i) * stride + f, square[i]);
            }
        }
    }

    template <bool kPeriod>
    void backward(const float* d_out, int64_t row, int64_t rows, int64_t col, const float* period,
                  float* d_period, float* gradient) {
        const float* dz = d_out;
        for (int l = net->layers - 1; l > 0; l--) {
            const int64_t out = net->width[l], in = net->inputs(l), depth = whole_steps(out);
            add_to_bias(gradient + net->bias_at[l], dz, out, rows);
            narrow_delta(dz, out);
            const int64_t stride = padded(out) * 4;
            const Tiles weight{bytes(gradient + net->weight_at[l]), stride, 16 * stride, 0};
            tile_product(padded(in) / 16, padded(out) / 16, kTile / 32,
                         {bytes(sine_rows[l - 1]), kTile * 2, 16 * kTile * 2, 64},
                         {bytes(delta_turned), stride, 64, kPairs * stride}, weight, 64, &weight,
                         64);
            float* d = delta[l & 1];
            tile_product(padded(in) / 16, kRows, depth / 32,
                         {bytes(packed[l].transposed), depth * 2, 16 * depth * 2, 64},
                         {bytes(delta_pairs), kTile * 4, 64, kPairs * kTile * 4},
                         {bytes(d), kTile * 4, 16 * kTile * 4, 0}, 64, nullptr, 0);
            if (l > 1)
                through_sines<kPeriod>(l - 1, d, rows, period, d_period);
            else
                through_first_sines<kPeriod>(d, row, rows, col, period, d_period);
            dz = d;
        }
    }
};
