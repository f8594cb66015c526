// Forward, loss and backward over one block of pixels, for one vector width.
//
// Included once per instruction set, with NIF_VECTOR_BYTES, NIF_NAMESPACE, NIF_NAME and
// NIF_REGISTERS (vector registers) set and the compiler told which instructions it may use.
//
// A tile is kRows rows of one vector's width of columns; everything about it stays in the first
// and second level caches. Activations are feature-major: feature f of the tile's pixels lies at
// f * kTile. The first layer on a grid is A[row] + B[column], so its gradient needs only sums over
// columns and over rows, which two small products per block turn into weights' gradients.
#include "plan.h"

#include <type_traits>
#include <utility>

#if defined(__clang__)
#define NIF_UNROLL _Pragma("clang loop unroll(full)")
#else
#define NIF_UNROLL _Pragma("GCC unroll 16")
#endif
#define NIF_ALWAYS __attribute__((always_inline))
#define NIF_FLAT inline NIF_ALWAYS
#define NIF_INLINE static NIF_FLAT

namespace nif {
namespace NIF_NAMESPACE {
namespace {

constexpr int kLanes = NIF_VECTOR_BYTES / 4;
constexpr int kRows = kLanes >= 16 ? 4 : 8;
constexpr int kTile = kRows * kLanes;
constexpr bool kManyRegisters = NIF_REGISTERS >= 32;
constexpr int kWidest = kManyRegisters ? 4 : 2;  // vectors across one register block

typedef float vf __attribute__((vector_size(NIF_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(NIF_VECTOR_BYTES)));
typedef float vf_anywhere __attribute__((vector_size(NIF_VECTOR_BYTES), aligned(4), may_alias));

NIF_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_anywhere*>(p); }
NIF_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_anywhere*>(p) = v; }
NIF_INLINE vf splat(float x) { return x - vf{}; }
NIF_INLINE vf select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
NIF_INLINE vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

NIF_INLINE float sum_of_lanes(vf v) {
    float total = 0.0f;
    for (int i = 0; i < kLanes; i++) total += v[i];
    return total;
}

NIF_INLINE double precise_sum_of_lanes(vf v) {
    double total = 0.0;
    for (int i = 0; i < kLanes; i++) total += (double)v[i];
    return total;
}

constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
NIF_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
NIF_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ---------------------------------------------------------------- elementary functions

// x = k pi + r with |r| <= pi/2. Adding 1.5 * 2^23 rounds to an integer whose parity is the lowest
// bit; this must not be "simplified", so never compile with -ffast-math.
NIF_INLINE vf reduce(vf x, vi* odd) {
    const float magic = 12582912.0f;
    vf shifted = x * 0.318309886183790672f + magic;
    *odd = (vi)shifted << 31;
    vf k = shifted - magic;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    vf r = x - k * 3.14159274101257324f;
    return r + k * 8.74227800037247e-8f;
#else
    // three parts of pi, the first two short enough for exact products
    vf r = x - k * 3.140625f;
    r = r - k * 9.67502593994140625e-4f;
    return r - k * 1.509957990978376432e-7f;
#endif
}

// Minimax polynomials on [-pi/2, pi/2]; absolute errors 5e-9 and 3e-10 before rounding.
NIF_INLINE vf sine_of_reduced(vf r, vf q) {
    vf p = 2.60002447286e-6f * q + -1.98066015913e-4f;
    p = p * q + 8.33301710454e-3f;
    p = p * q + -1.66666570889e-1f;
    return r + (r * q) * p;
}

NIF_INLINE vf cosine_of_reduced(vf q) {
    vf p = -2.60768167458e-7f * q + 2.47618706302e-5f;
    p = p * q + -1.38884032205e-3f;
    p = p * q + 4.16666407075e-2f;
    p = p * q + -4.99999995491e-1f;
    return p * q + 1.0f;
}

NIF_INLINE vf sine(vf x) {
    vi odd;
    vf r = reduce(x, &odd);
    return (vf)((vi)sine_of_reduced(r, r * r) ^ odd);
}

// Return the sine and store the cosine.
NIF_INLINE vf sine_and_cosine(vf x, float* cosine) {
    vi odd;
    vf r = reduce(x, &odd);
    vf q = r * r;
    store(cosine, (vf)((vi)cosine_of_reduced(q) ^ odd));
    return (vf)((vi)sine_of_reduced(r, q) ^ odd);
}

// log cosh d and its derivative tanh d, from t = exp(-2|d|), or from series where |d| is small.
NIF_INLINE void log_cosh(vf d, vf* value, vf* slope) {
    vf a = magnitude(d);
    vf clamped = select(a < 40.0f, a, splat(40.0f));
    // exp(-2a) = 2^n * e^f
    vf scaled = clamped * -2.885390081777926815f;
    vf shifted = scaled + 12582912.0f;
    vf n = shifted - 12582912.0f;
    vf f = (scaled - n) * 0.693147180559945309f;
    vf e = f * 1.3888889e-3f + 8.3333333e-3f;
    e = e * f + 4.1666667e-2f;
    e = e * f + 1.6666667e-1f;
    e = e * f + 0.5f;
    e = e * f + 1.0f;
    e = e * f + 1.0f;
    vi exponent = ((vi)shifted - (vi)splat(12582912.0f)) + 127;
    vf t = e * (vf)(exponent << 23);
    vf u = t / (t + 2.0f), w = u * u;  // log(1 + t) = 2 artanh(t / (2 + t))
    vf artanh = w * 0.11111111f + 0.14285714f;
    artanh = artanh * w + 0.2f;
    artanh = artanh * w + 0.33333333f;
    artanh = artanh * w * u + u;
    vf far = a - 0.693147180559945309f + 2.0f * artanh;
    vf far_slope = (1.0f - t) / (1.0f + t);
    vf q = a * a;
    vf near = q * (31.0f / 14175.0f) + -17.0f / 2520.0f;
    near = near * q + 1.0f / 45.0f;
    near = near * q + -1.0f / 12.0f;
    near = (near * q + 0.5f) * q;
    vf near_slope = q * (-1382.0f / 155925.0f) + 62.0f / 2835.0f;
    near_slope = near_slope * q + -17.0f / 315.0f;
    near_slope = near_slope * q + 2.0f / 15.0f;
    near_slope = near_slope * q + -1.0f / 3.0f;
    near_slope = near_slope * q * a + a;
    vi small = a < 0.4f;
    *value = select(small, near, far);
    vf size = select(small, near_slope, far_slope);
    *slope = (vf)((vi)size | ((vi)d & (int32_t)0x80000000));
}

// ---------------------------------------------------------------- products

// c[m, n] = start[m] + sum over k of a[k, m] b[k, n]; M scalars times N vectors in registers.
template <int M, int N, bool kStart>
void product_block(int64_t K, const float* a, int64_t ak, const float* b, int64_t bk, float* c,
                   int64_t cm, const float* start) {
    vf sum[M][N];
    NIF_UNROLL for (int m = 0; m < M; m++) {
        NIF_UNROLL for (int n = 0; n < N; n++) sum[m][n] = kStart ? splat(start[m]) : vf{};
    }
    for (int64_t k = 0; k < K; k++) {
        vf row[N];
        NIF_UNROLL for (int n = 0; n < N; n++) row[n] = load(b + n * kLanes);
        NIF_UNROLL for (int m = 0; m < M; m++)
            NIF_UNROLL for (int n = 0; n < N; n++) sum[m][n] += a[m] * row[n];
        a += ak;
        b += bk;
    }
    NIF_UNROLL for (int m = 0; m < M; m++)
        NIF_UNROLL for (int n = 0; n < N; n++) store(c + m * cm + n * kLanes, sum[m][n]);
}

// c[m, n] += sum over the tile's pixels p of a[m, p] b[p, n]
template <int M, int N>
void outer_block(int64_t pixels, const float* a, const float* b, int64_t bk, float* c, int64_t cm) {
    vf sum[M][N];
    NIF_UNROLL for (int m = 0; m < M; m++)
        NIF_UNROLL for (int n = 0; n < N; n++) sum[m][n] = load(c + m * cm + n * kLanes);
    for (int64_t p = 0; p < pixels; p++) {
        vf row[N];
        NIF_UNROLL for (int n = 0; n < N; n++) row[n] = load(b + n * kLanes);
        NIF_UNROLL for (int m = 0; m < M; m++)
            NIF_UNROLL for (int n = 0; n < N; n++) sum[m][n] += a[m * kTile + p] * row[n];
        b += bk;
    }
    NIF_UNROLL for (int m = 0; m < M; m++)
        NIF_UNROLL for (int n = 0; n < N; n++) store(c + m * cm + n * kLanes, sum[m][n]);
}

// Rows of a register block that leave registers for its vectors and one broadcast.
constexpr int rows_beside(int n) {
    return kManyRegisters ? (n == 4 ? 6 : n == 3 ? 8 : 12) : (n == 2 ? 6 : 12);
}

using Product = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t,
                         const float*);
using Outer = void (*)(int64_t, const float*, const float*, int64_t, float*, int64_t);

template <int N, class Rows>
struct Blocks;

template <int N, int... M>
struct Blocks<N, std::integer_sequence<int, M...>> {
    static constexpr Product product[] = {product_block<M + 1, N, false>...};
    static constexpr Product started_product[] = {product_block<M + 1, N, true>...};
    static constexpr Outer outer[] = {outer_block<M + 1, N>...};
};

template <int N>
using BlocksOf = Blocks<N, std::make_integer_sequence<int, rows_beside(N)>>;

template <int N>
NIF_INLINE Product product_of(int64_t rows, bool started) {
    return started ? BlocksOf<N>::started_product[rows - 1] : BlocksOf<N>::product[rows - 1];
}

NIF_INLINE Product product_for(int64_t rows, int64_t vectors, bool started) {
    switch (vectors) {
#if NIF_REGISTERS >= 32
        case 4: return product_of<4>(rows, started);
        case 3: return product_of<3>(rows, started);
#endif
        case 2: return product_of<2>(rows, started);
        default: return product_of<1>(rows, started);
    }
}

NIF_INLINE Outer outer_for(int64_t rows, int64_t vectors) {
    switch (vectors) {
#if NIF_REGISTERS >= 32
        case 4: return BlocksOf<4>::outer[rows - 1];
        case 3: return BlocksOf<3>::outer[rows - 1];
#endif
        case 2: return BlocksOf<2>::outer[rows - 1];
        default: return BlocksOf<1>::outer[rows - 1];
    }
}

// Call f(start, count) for parts of 0..total that are about equal and at most `limit` long.
template <class F>
NIF_INLINE void in_parts(int64_t total, int64_t limit, F f) {
    int64_t parts = (total + limit - 1) / limit, begin = 0;
    for (int64_t i = 0; i < parts; i++) {
        int64_t count = total / parts + (i < total % parts);
        f(begin, count);
        begin += count;
    }
}

// c (M, vectors) = start + a^T b, where a is (K, M) and b is (K, vectors)
void product(int64_t M, int64_t vectors, int64_t K, const float* a, int64_t ak, const float* b,
             int64_t bk, float* c, int64_t cm, const float* start) {
    in_parts(vectors, kWidest, [&](int64_t n, int64_t across) {
        in_parts(M, rows_beside((int)across), [&](int64_t m, int64_t down) {
            product_for(down, across, start)(K, a + m, ak, b + n * kLanes, bk,
                                             c + m * cm + n * kLanes, cm,
                                             start ? start + m : nullptr);
        });
    });
}

// c (M, vectors) += a b, where a is (M, pixels) feature-major and b is (pixels, vectors)
void outer(int64_t M, int64_t vectors, int64_t pixels, const float* a, const float* b, int64_t bk,
           float* c, int64_t cm) {
    in_parts(vectors, kWidest, [&](int64_t n, int64_t across) {
        in_parts(M, rows_beside((int)across), [&](int64_t m, int64_t down) {
            outer_for(down, across)(pixels, a + m * kTile, b + n * kLanes, bk,
                                    c + m * cm + n * kLanes, cm);
        });
    });
}

// ---------------------------------------------------------------- transposition

template <int D, int... L>
NIF_INLINE void exchange(vf& a, vf& b, std::integer_sequence<int, L...>) {
#if defined(__clang__)
    vf low = __builtin_shufflevector(a, b, ((L & D) ? kLanes + L - D : L)...);
    vf high = __builtin_shufflevector(a, b, ((L & D) ? kLanes + L : L + D)...);
#else
    vf low = __builtin_shuffle(a, b, vi{((L & D) ? kLanes + L - D : L)...});
    vf high = __builtin_shuffle(a, b, vi{((L & D) ? kLanes + L : L + D)...});
#endif
    a = low;
    b = high;
}

template <int D>
NIF_INLINE void transpose_stage(vf* rows) {
    for (int i = 0; i < kLanes; i++)
        if (!(i & D)) exchange<D>(rows[i], rows[i | D], std::make_integer_sequence<int, kLanes>{});
}

NIF_INLINE void transpose_square(vf* rows) {
    transpose_stage<1>(rows);
    transpose_stage<2>(rows);
#if NIF_VECTOR_BYTES >= 32
    transpose_stage<4>(rows);
#endif
#if NIF_VECTOR_BYTES >= 64
    transpose_stage<8>(rows);
#endif
}

// (features, columns) with row stride `from_stride` to (columns, features padded with zeros) with
// row stride `stride`; columns is a multiple of kLanes
void transpose(const float* from, int64_t from_stride, int64_t features, int64_t columns, float* to,
               int64_t stride) {
    for (int64_t f = 0; f < features; f += kLanes) {
        const int64_t there = least(kLanes, features - f);
        for (int64_t p = 0; p < columns; p += kLanes) {
            vf rows[kLanes];
            if (there == kLanes) {
                for (int i = 0; i < kLanes; i++) rows[i] = load(from + (f + i) * from_stride + p);
            } else {
                for (int i = 0; i < kLanes; i++)
                    rows[i] = i < there ? load(from + (f + i) * from_stride + p) : vf{};
            }
            transpose_square(rows);
            for (int i = 0; i < kLanes; i++) store(to + (p + i) * stride + f, rows[i]);
        }
    }
}

void transpose(const float* from, int64_t from_stride, int64_t features, int64_t columns,
               float* to) {
    transpose(from, from_stride, features, columns, to, padded(features));
}

// ---------------------------------------------------------------- one network on a block

// Scratch memory, handed out piece by piece.
struct Arena {
    float* base;  // null while only counting
    size_t used;

    float* take(int64_t floats) {
        size_t at = used;
        used += (size_t)padded(floats) + (64 / 4 - (size_t)padded(floats) % (64 / 4)) % (64 / 4);
        return base ? base + at : nullptr;
    }
};

struct Worker {
    static constexpr bool kWholeTiles = false;   // work on rows beyond the block's end too
    static constexpr bool kOutputLanes = false;  // keep every weight gradient as (in, out)

    const Net* net;
    int64_t block_rows, block_cols;  // rows padded and columns padded of the largest block

    float *row_term, *col_term;  // (width, rows), (width, cols) of the first layer's sum
    float *axis;                 // one axis' features of the block, padded
    float *axis_t;               // the same, transposed
    float *row_lanes;            // (width, tile rows, lanes) sums over the columns done
    float *row_sums, *col_sums;  // (rows, width), (width, cols) of the first layer's gradient
    float *col_sums_t;
    float *sines[kMostLayers], *cosines[kMostLayers], *sums[kMostLayers];
    float *delta[2];    // gradients of two layers in turn
    float *turned;      // (pixels, features padded): a transposed operand

    void take(Arena* arena, const Net* of, const Job* job) {
        net = of;
        block_rows = padded(job->block_rows);
        block_cols = padded(job->block_cols);
        const int64_t width = net->width[0], longest = most(block_rows, block_cols);
        int64_t widest = 0;
        row_term = arena->take(width * block_rows);
        col_term = arena->take(width * block_cols);
        axis = arena->take(net->axis * longest);
        for (int l = 0; l < net->layers; l++) {
            widest = most(widest, net->width[l]);
            if (l > 0) sums[l] = arena->take(padded(net->width[l]) * kTile);
            if (l < net->layers - 1) {
                sines[l] = arena->take(net->width[l] * kTile);
                if (job->backward) cosines[l] = arena->take(net->width[l] * kTile);
            }
        }
        if (!job->backward) return;
        axis_t = arena->take(padded(net->axis) * longest);
        row_lanes = arena->take(width * kTile);
        row_sums = arena->take(width * block_rows);
        col_sums = arena->take(width * block_cols);
        col_sums_t = arena->take(padded(width) * block_cols);
        delta[0] = arena->take(padded(widest) * kTile);
        delta[1] = arena->take(padded(widest) * kTile);
        turned = arena->take(padded(widest) * kTile);
    }

    const float* output() const { return sums[net->layers - 1]; }

    // Copy `count` positions from `first` on of a (axis, length) table, padded with zeros.
    void slice(const float* table, int64_t length, int64_t first, int64_t count) {
        const int64_t stride = padded(count);
        for (int64_t i = 0; i < net->axis; i++)
            for (int64_t j = 0; j < stride; j++)
                axis[i * stride + j] = j < count ? table[i * length + first + j] : 0.0f;
    }

    // Compute the first layer's terms for a block.
    void begin(const Job* job, const float* y, const float* x, int64_t row, int64_t rows,
               int64_t col, int64_t cols) {
        const int64_t width = net->width[0];
        slice(y, job->rows, row, rows);
        product(width, padded(rows) / kLanes, net->axis, net->first_y, width, axis, padded(rows),
                row_term, block_rows, nullptr);
        slice(x, job->cols, col, cols);
        product(width, padded(cols) / kLanes, net->axis, net->first_x, width, axis, padded(cols),
                col_term, block_cols, net->bias[0]);
        if (!job->backward) return;
        for (int64_t i = 0; i < width * block_cols; i++) col_sums[i] = 0.0f;
    }

    // Evaluate a tile; `period` holds one vector per row.
    template <bool kBackward>
    void forward(int64_t row, int64_t rows, int64_t col, const float* period) {
        const int last = net->layers - 1;
        for (int64_t f = 0; f < net->width[0]; f++) {
            const vf across = load(col_term + f * block_cols + col);
            const float* down = row_term + f * block_rows + row;
            for (int64_t v = 0; v < rows; v++) {
                const int64_t at = f * kTile + v * kLanes;
                const vf phase = (down[v] + across) * load(period + v * kLanes);
                store(sines[0] + at,
                      kBackward ? sine_and_cosine(phase, cosines[0] + at) : sine(phase));
            }
        }
        for (int l = 1; l <= last; l++) {
            product(net->width[l], rows, net->inputs(l), net->transposed[l], net->width[l],
                    sines[l - 1], kTile, sums[l], kTile, net->bias[l]);
            if (l == last) break;
            for (int64_t f = 0; f < net->width[l]; f++) {
                for (int64_t v = 0; v < rows; v++) {
                    const int64_t at = f * kTile + v * kLanes;
                    const vf phase = load(sums[l] + at) * load(period + v * kLanes);
                    store(sines[l] + at,
                          kBackward ? sine_and_cosine(phase, cosines[l] + at) : sine(phase));
                }
            }
        }
    }

    // Turn the gradient of layer l's sines in `d` into that of its sums, in place; add that of the
    // period to `d_period` if wanted.
    template <bool kPeriod>
    void through_sines(int l, float* d, int64_t rows, const float* period, float* d_period) {
        for (int64_t v = 0; v < rows; v++) {
            const vf w = load(period + v * kLanes);
            vf share = kPeriod ? load(d_period + v * kLanes) : vf{};
            for (int64_t f = 0; f < net->width[l]; f++) {
                const int64_t at = f * kTile + v * kLanes;
                const vf e = load(d + at) * load(cosines[l] + at);
                if (kPeriod) share += load(sums[l] + at) * e;
                store(d + at, e * w);
            }
            if (kPeriod) store(d_period + v * kLanes, share);
        }
    }

    // The same for the first layer, whose sums over rows and columns are all that is needed.
    template <bool kPeriod>
    void through_first_sines(const float* d, int64_t row, int64_t rows, int64_t col,
                             const float* period, float* d_period) {
        vf share[kRows], w[kRows];
        for (int64_t v = 0; v < rows; v++) {
            w[v] = load(period + v * kLanes);
            share[v] = kPeriod ? load(d_period + v * kLanes) : vf{};
        }
        for (int64_t f = 0; f < net->width[0]; f++) {
            const vf across = load(col_term + f * block_cols + col);
            const float* down = row_term + f * block_rows + row;
            float* cols = col_sums + f * block_cols + col;
            vf column = load(cols);
            for (int64_t v = 0; v < rows; v++) {
                const int64_t at = f * kTile + v * kLanes;
                const vf e = load(d + at) * load(cosines[0] + at);
                if (kPeriod) share[v] += (down[v] + across) * e;
                const vf dz = e * w[v];
                column += dz;
                store(row_lanes + at, load(row_lanes + at) + dz);
            }
            store(cols, column);
        }
        if (kPeriod)
            for (int64_t v = 0; v < rows; v++) store(d_period + v * kLanes, share[v]);
    }

    static void add_to_bias(float* bias, const float* dz, int64_t out, int64_t rows) {
        for (int64_t o = 0; o < out; o++) {
            vf total = load(bias + o * kLanes);
            for (int64_t v = 0; v < rows; v++) total += load(dz + o * kTile + v * kLanes);
            store(bias + o * kLanes, total);
        }
    }

    // Add a tile's gradient. `d_out` (outputs, tile) is the gradient of the last sums.
    template <bool kPeriod>
    void backward(const float* d_out, int64_t row, int64_t rows, int64_t col, const float* period,
                  float* d_period, float* gradient) {
        const float* dz = d_out;
        for (int l = net->layers - 1; l > 0; l--) {
            const int64_t out = net->width[l], in = net->inputs(l), pixels = rows * kLanes;
            add_to_bias(gradient + net->bias_at[l], dz, out, rows);
            float* weight = gradient + net->weight_at[l];
            if (net->lanes_are_outputs[l]) {
                transpose(dz, kTile, out, pixels, turned);
                outer(in, padded(out) / kLanes, pixels, sines[l - 1], turned, padded(out), weight,
                      padded(out));
            } else {
                transpose(sines[l - 1], kTile, in, pixels, turned);
                outer(out, padded(in) / kLanes, pixels, dz, turned, padded(in), weight, padded(in));
            }
            float* d = delta[l & 1];
            product(in, rows, out, net->weight[l], in, dz, kTile, d, kTile, nullptr);
            if (l > 1)
                through_sines<kPeriod>(l - 1, d, rows, period, d_period);
            else
                through_first_sines<kPeriod>(d, row, rows, col, period, d_period);
            dz = d;
        }
    }

    void begin_rows() {
        for (int64_t i = 0; i < (int64_t)net->width[0] * kTile; i++) row_lanes[i] = 0.0f;
    }

    void end_rows(int64_t row, int64_t rows) {
        const int64_t width = net->width[0];
        for (int64_t f = 0; f < width; f++)
            for (int64_t v = 0; v < rows; v++)
                row_sums[(row + v) * width + f] =
                    sum_of_lanes(load(row_lanes + f * kTile + v * kLanes));
    }

    // (axis, padded) of one side to (positions, axis padded)
    void turn_axis(int64_t count) {
        transpose(axis, padded(count), net->axis, padded(count), axis_t);
    }

    // Turn the block's row and column sums into the first layer's gradient.
    void end(const Job* job, const float* y, const float* x, int64_t row, int64_t rows, int64_t col,
             int64_t cols, float* gradient) {
        const int64_t width = net->width[0], stride = padded(net->axis);
        slice(y, job->rows, row, rows);
        turn_axis(rows);
        product(width, stride / kLanes, rows, row_sums, width, axis_t, stride,
                gradient + net->first_y_at, stride, nullptr);
        slice(x, job->cols, col, cols);
        turn_axis(cols);
        transpose(col_sums, block_cols, width, padded(cols), col_sums_t);
        product(width, stride / kLanes, cols, col_sums_t, padded(width), axis_t, stride,
                gradient + net->first_x_at, stride, nullptr);
        for (int64_t f = 0; f < width; f++) {
            float total = 0.0f;
            for (int64_t c = 0; c < cols; c++) total += col_sums[f * block_cols + c];
            gradient[net->first_bias_at + f] = total;
        }
    }
};

#if NIF_AMX
#include "amx.h"
using Trainer = MatrixWorker;
#else
using Trainer = Worker;
#endif

// ---------------------------------------------------------------- pixels

NIF_INLINE vf load_some(const float* p, int64_t count) {
    if (count >= kLanes) return load(p);
    vf v = {};
    for (int64_t i = 0; i < count; i++) v[i] = p[i];
    return v;
}

NIF_INLINE void store_some(float* p, vf v, int64_t count) {
    if (count >= kLanes) {
        store(p, v);
    } else {
        for (int64_t i = 0; i < count; i++) p[i] = v[i];
    }
}

NIF_INLINE vf first_lanes(vf v, int64_t count) {
    if (count >= kLanes) return v;
    vf kept = {};
    for (int64_t i = 0; i < count; i++) kept[i] = v[i];
    return kept;
}

struct Sums {
    vf error, loss;
};

// Compare a tile with the target at `at`; leave the gradient of the colour in `d`.
template <Loss kLoss>
void compare(const Job* job, const float* colour, int64_t at, int64_t rows, int64_t lanes, float* d,
             Sums* sums) {
    const int64_t plane = job->rows * job->cols;
    for (int64_t channel = 0; channel < job->genesis.last(); channel++) {
        for (int64_t v = 0; v < rows; v++) {
            const int64_t here = channel * kTile + v * kLanes;
            const int64_t there = channel * plane + at + v * job->cols;
            const vf e =
                first_lanes(load(colour + here) - load_some(job->target + there, lanes), lanes);
            sums->error += e * e;
            vf slope;
            if (kLoss == Loss::mse) {
                slope = 2.0f * e;
            } else if (kLoss == Loss::l1) {
                sums->loss += magnitude(e);
                slope = select(e > 0.0f, splat(1.0f), select(e < 0.0f, splat(-1.0f), vf{}));
            } else if (kLoss == Loss::log_cosh) {
                vf value;
                log_cosh(e, &value, &slope);
                sums->loss += value;
            } else {
                store(d + here, load_some(job->output_gradient + there, lanes));
                continue;
            }
            store(d + here, slope * job->gradient_scale);
        }
    }
    if (kLoss == Loss::mse) sums->loss = sums->error;
}

void compare(const Job* job, const float* colour, int64_t at, int64_t rows, int64_t lanes, float* d,
             Sums* sums) {
    switch (job->loss) {
        case Loss::mse: return compare<Loss::mse>(job, colour, at, rows, lanes, d, sums);
        case Loss::l1: return compare<Loss::l1>(job, colour, at, rows, lanes, d, sums);
        case Loss::log_cosh: return compare<Loss::log_cosh>(job, colour, at, rows, lanes, d, sums);
        case Loss::given: return compare<Loss::given>(job, colour, at, rows, lanes, d, sums);
    }
}

// ---------------------------------------------------------------- the interface

size_t lay_out(Net* net, size_t offset) {
    auto take = [&](int64_t floats) {
        size_t at = offset;
        offset += (size_t)floats;
        return at;
    };
    const int64_t axis = padded(net->axis);
    net->first_y_at = take(net->width[0] * axis);
    net->first_x_at = take(net->width[0] * axis);
    net->first_bias_at = take(padded(net->width[0]));
    for (int l = 1; l < net->layers; l++) {
        const int64_t out = net->width[l], in = net->inputs(l);
        // vector operations per pixel, a transposed vector costing about as much as eight products
        const int64_t by_outputs = padded(out) / kLanes * (in + 8);
        const int64_t by_inputs = padded(in) / kLanes * (out + 8);
        net->lanes_are_outputs[l] = Trainer::kOutputLanes || by_outputs <= by_inputs;
        net->weight_at[l] = take(net->lanes_are_outputs[l] ? padded(in) * padded(out)
                                                           : out * padded(in));
        net->bias_at[l] = take(out * kLanes);
    }
    return offset;
}

template <class W>
struct Block {
    W genesis, modulation;
    float *period, *d_period, *d_shift, *d_colour;

    size_t take(float* scratch, const Job* job) {
        Arena arena{scratch, 0};
        genesis.take(&arena, &job->genesis, job);
        if (job->modulated) modulation.take(&arena, &job->modulation, job);
        period = arena.take(kTile);
        d_period = arena.take(kTile);
        d_shift = arena.take(kTile);
        d_colour = arena.take(job->genesis.last() * kTile);
        return arena.used;
    }
};

size_t scratch_floats(const Job* job) {
    return job->backward ? Block<Trainer>{}.take(nullptr, job) : Block<Worker>{}.take(nullptr, job);
}

template <bool kBackward>
struct Either {
    using Worker_ = Trainer;
};
template <>
struct Either<false> {
    using Worker_ = Worker;
};

template <bool kBackward, bool kModulated>
void run_block(const Job* job, int64_t index, float* scratch, float* gradient, double* sums) {
    using W = typename Either<kBackward>::Worker_;
    Block<W> block{};
    block.take(scratch, job);
    W &genesis = block.genesis, &modulation = block.modulation;
    const int64_t row = index / job->blocks_across * job->block_rows;
    const int64_t col = index % job->blocks_across * job->block_cols;
    const int64_t rows = least(job->block_rows, job->rows - row);
    const int64_t cols = least(job->block_cols, job->cols - col);
    alignas(64) float steady[kTile];  // the Modulation network's own period
    for (int i = 0; i < kTile; i++) steady[i] = job->omega;

    genesis.begin(job, job->genesis_y, job->genesis_x, row, rows, col, cols);
    if (kModulated)
        modulation.begin(job, job->modulation_y, job->modulation_x, row, rows, col, cols);
    double error = 0.0, loss = 0.0;
    for (int64_t r = 0; r < rows; r += kRows) {
        const int64_t there = least(kRows, rows - r);
        const int64_t count = W::kWholeTiles ? kRows : there;
        if (kBackward) {
            genesis.begin_rows();
            if (kModulated) modulation.begin_rows();
        }
        Sums found = {};
        for (int64_t c = 0; c < cols; c += kLanes) {
            const float* period = steady;
            if (kModulated) {
                modulation.template forward<kBackward>(r, count, c, steady);
                for (int64_t v = 0; v < count; v++) {
                    const vf shift = load(modulation.output() + v * kLanes);
                    store(block.period + v * kLanes, job->omega + job->sigma * shift);
                }
                period = block.period;
            }
            genesis.template forward<kBackward>(r, count, c, period);
            const int64_t lanes = least(kLanes, cols - c);
            const int64_t at = (row + r) * job->cols + col + c;
            if (!kBackward) {
                for (int64_t channel = 0; channel < job->genesis.last(); channel++) {
                    float* to = job->output + channel * job->rows * job->cols + at;
                    const float* from = genesis.output() + channel * kTile;
                    for (int64_t v = 0; v < count; v++)
                        store_some(to + v * job->cols, load(from + v * kLanes), lanes);
                }
                continue;
            }
            compare(job, genesis.output(), at, there, lanes, block.d_colour, &found);
            for (int64_t channel = 0; channel < job->genesis.last(); channel++)
                for (int64_t v = there; v < count; v++)
                    store(block.d_colour + channel * kTile + v * kLanes, vf{});
            if (kModulated)
                for (int64_t v = 0; v < count; v++) store(block.d_period + v * kLanes, vf{});
            genesis.template backward<kModulated>(block.d_colour, r, count, c, period,
                                                  block.d_period, gradient);
            if (kModulated) {
                for (int64_t v = 0; v < count; v++) {
                    const vf d = load(block.d_period + v * kLanes);
                    store(block.d_shift + v * kLanes, job->sigma * d);
                }
                modulation.template backward<false>(block.d_shift, r, count, c, steady, nullptr,
                                                    gradient);
            }
        }
        if (kBackward) {
            genesis.end_rows(r, there);
            if (kModulated) modulation.end_rows(r, there);
            error += precise_sum_of_lanes(found.error);
            loss += precise_sum_of_lanes(found.loss);
        }
    }
    if (!kBackward) return;
    genesis.end(job, job->genesis_y, job->genesis_x, row, rows, col, cols, gradient);
    if (kModulated)
        modulation.end(job, job->modulation_y, job->modulation_x, row, rows, col, cols, gradient);
    sums[0] = error;
    sums[1] = loss;
}

void block(const Job* job, int64_t index, float* scratch, float* gradient, size_t gradient_size,
           double* sums) {
    for (size_t i = 0; i < gradient_size; i++) gradient[i] = 0.0f;
#if NIF_AMX
    if (job->backward) use_tiles();
#endif
    if (job->backward) {
        if (job->modulated)
            run_block<true, true>(job, index, scratch, gradient, sums);
        else
            run_block<true, false>(job, index, scratch, gradient, sums);
#if NIF_AMX
        leave_tiles();
#endif
    } else {
        if (job->modulated)
            run_block<false, true>(job, index, scratch, gradient, sums);
        else
            run_block<false, false>(job, index, scratch, gradient, sums);
    }
}

#include "soap.h"

bool runs_here() { return NIF_RUNS_HERE; }

constexpr Soap kSoap = {soap_scratch, soap_measure, soap_update, soap_turn, soap_reorder};

}  // namespace

extern const Isa isa;
#if NIF_AMX
const Isa isa = {NIF_NAME, runs_here,      kLanes, kRows, lay_out, prepared_floats,
                 prepare,  scratch_floats, block,  kSoap};
#else
const Isa isa = {NIF_NAME, runs_here,      kLanes, kRows, lay_out, nullptr,
                 nullptr,  scratch_floats, block,  kSoap};
#endif

}  // namespace NIF_NAMESPACE
}  // namespace nif
