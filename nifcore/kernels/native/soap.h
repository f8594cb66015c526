// SOAP's arithmetic for one tensor, for one vector width; part of tile.h. What is computed stands
// in nifcore/soap.py.
//
// Matrices of the optimiser's own have rows padded with zeros to kSoapLine floats, whatever the
// vector width. Nothing here depends on the number of threads.

// ---------------------------------------------------------------- products

// c[m, n] = sum over k of a(m, k) b[k, n], where a(m, k) lies at a[m * am + k * ak], so that a
// matrix and its transpose serve alike; with kMix, c moves towards that by the part `mix`.
template <int M, int N, bool kMix>
void soap_block(int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t bk,
                float* c, int64_t cm, float mix) {
    vf sum[M][N] = {};
    for (int64_t k = 0; k < K; k++) {
        vf row[N];
        NIF_UNROLL for (int n = 0; n < N; n++) row[n] = load(b + n * kLanes);
        NIF_UNROLL for (int m = 0; m < M; m++)
            NIF_UNROLL for (int n = 0; n < N; n++) sum[m][n] += a[m * am] * row[n];
        a += ak;
        b += bk;
    }
    NIF_UNROLL for (int m = 0; m < M; m++) {
        NIF_UNROLL for (int n = 0; n < N; n++) {
            float* to = c + m * cm + n * kLanes;
            if (kMix) {
                const vf old = load(to);
                store(to, old + mix * (sum[m][n] - old));
            } else {
                store(to, sum[m][n]);
            }
        }
    }
}

using SoapProduct = void (*)(int64_t, const float*, int64_t, int64_t, const float*, int64_t,
                             float*, int64_t, float);

template <int N, class Rows>
struct SoapBlocks;

template <int N, int... M>
struct SoapBlocks<N, std::integer_sequence<int, M...>> {
    static constexpr SoapProduct plain[] = {soap_block<M + 1, N, false>...};
    static constexpr SoapProduct mixed[] = {soap_block<M + 1, N, true>...};
};

template <int N>
NIF_INLINE SoapProduct soap_product_of(int64_t rows, bool mixed) {
    using Of = SoapBlocks<N, std::make_integer_sequence<int, rows_beside(N)>>;
    return mixed ? Of::mixed[rows - 1] : Of::plain[rows - 1];
}

NIF_INLINE SoapProduct soap_product_for(int64_t rows, int64_t vectors, bool mixed) {
    switch (vectors) {
#if NIF_REGISTERS >= 32
        case 4: return soap_product_of<4>(rows, mixed);
        case 3: return soap_product_of<3>(rows, mixed);
#endif
        case 2: return soap_product_of<2>(rows, mixed);
        default: return soap_product_of<1>(rows, mixed);
    }
}

// A matrix as a product reads it.
struct Read {
    const float* at;
    int64_t down, across;  // from row to row, from column to column
};

NIF_INLINE Read as_is(const float* at, int64_t stride) { return {at, stride, 1}; }
NIF_INLINE Read turned(const float* at, int64_t stride) { return {at, 1, stride}; }

// c (M, N) = a (M, K) b (K, N), or c moved towards it by the part `mix`
void soap_product(int64_t M, int64_t N, int64_t K, Read a, const float* b, int64_t bk, float* c,
                  int64_t cm, const float* mix = nullptr) {
    in_parts(soap_padded(N) / kLanes, kWidest, [&](int64_t n, int64_t across) {
        in_parts(M, rows_beside((int)across), [&](int64_t m, int64_t down) {
            soap_product_for(down, across, mix)(K, a.at + m * a.down, a.down, a.across,
                                                b + n * kLanes, bk, c + m * cm + n * kLanes, cm,
                                                mix ? *mix : 0.0f);
        });
    });
}

// ---------------------------------------------------------------- one step

constexpr float kSoapLeastAgreement = 1e-3f;

// (rows, cols) to rows padded with zeros, or back
void soap_pad(const float* from, int64_t rows, int64_t cols, float* to) {
    const int64_t stride = soap_padded(cols);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) to[r * stride + c] = from[r * cols + c];
        for (int64_t c = cols; c < stride; c++) to[r * stride + c] = 0.0f;
    }
}

// Move one side's covariance towards that of a gradient.
void soap_measure(const SoapTensor* tensor, int side, const float* gradient, const SoapStep* step,
                  float* scratch) {
    const int64_t rows = tensor->rows, cols = tensor->cols, stride = soap_padded(cols);
    const SoapSide& mine = tensor->side[side];
    float* g = scratch;
    soap_pad(gradient, rows, cols, g);
    if (side == 1) {
        soap_product(cols, cols, rows, turned(g, stride), g, stride, mine.covariance, stride,
                     &step->keep_second);
        return;
    }
    const int64_t across = soap_padded(rows);
    float* g_t = g + soap_padded(rows) * stride;
    for (int64_t r = rows; r < across; r++)
        for (int64_t c = 0; c < stride; c++) g[r * stride + c] = 0.0f;
    transpose(g, stride, rows, stride, g_t, across);
    soap_product(rows, rows, cols, as_is(g, stride), g_t, across, mine.covariance, across,
                 &step->keep_second);
}

// out = left^T in right; `between` and `out` may not be `in`
const float* soap_rotate(const SoapTensor* tensor, const float* in, float* between, float* out) {
    const int64_t rows = tensor->rows, cols = tensor->cols, stride = soap_padded(cols);
    const SoapSide &left = tensor->side[0], &right = tensor->side[1];
    if (left.basis) {
        soap_product(rows, cols, rows, turned(left.basis, soap_padded(rows)), in, stride, between,
                     stride);
        in = between;
    }
    if (right.basis) {
        soap_product(rows, cols, cols, as_is(in, stride), right.basis, stride, out, stride);
        in = out;
    }
    return in;
}

// Adam in the rotated frame, and the update of the parameters.
void soap_update(const SoapTensor* tensor, const float* gradient, const SoapStep* step,
                 float* scratch) {
    const int64_t rows = tensor->rows, cols = tensor->cols, stride = soap_padded(cols);
    const SoapSide &left = tensor->side[0], &right = tensor->side[1];
    const int64_t size = rows * stride;
    float *g = scratch, *between = g + size, *out = between + size;
    float *momentum = tensor->momentum, *second = tensor->second;
    const bool is_rotated = left.basis || right.basis;
    float* rotated = is_rotated ? tensor->rotated : momentum;
    if (is_rotated && step->stale) {
        const float* found = soap_rotate(tensor, momentum, between, out);
        for (int64_t i = 0; i < size; i++) rotated[i] = found[i];
    }
    soap_pad(gradient, rows, cols, g);
    if (is_rotated)
        for (int64_t i = 0; i < size; i++)
            momentum[i] += step->keep_first * (g[i] - momentum[i]);
    const float* here = soap_rotate(tensor, g, between, out);
    float* update = g;
    int64_t agreed = 0;  // entries in which momentum and gradient have the same sign
    for (int64_t i = 0; i < size; i++) {
        const float r = rotated[i] + step->keep_first * (here[i] - rotated[i]);
        const float v = second[i] + step->keep_second * (here[i] * here[i] - second[i]);
        rotated[i] = r;
        second[i] = v;
        const float moved = r * step->first_scale /
                            (__builtin_sqrtf(v * step->second_scale) + step->eps);
        const bool agrees = moved * here[i] > 0.0f;
        agreed += agrees;
        update[i] = agrees ? moved : 0.0f;
    }
    const float share = (float)agreed / (float)(rows * cols);
    const float rate = step->rate / (share > kSoapLeastAgreement ? share : kSoapLeastAgreement);
    if (left.basis) {
        soap_product(rows, cols, rows, as_is(left.basis, soap_padded(rows)), update, stride,
                     between, stride);
        update = between;
    }
    if (right.basis) {
        soap_product(rows, cols, cols, as_is(update, stride), right.turned, stride, out, stride);
        update = out;
    }
    float* params = tensor->params;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            params[r * cols + c] -= rate * update[r * stride + c];
}

// ---------------------------------------------------------------- turning the bases

// a -= tau v (v^T a) for the rows from `first` on and the columns of whole vectors around
// `first` and behind it
template <int N>
NIF_FLAT void soap_reflect_part(const float* v, float tau, int64_t first, int64_t n, float* a,
                                int64_t stride) {
    vf sum[N] = {};
    for (int64_t i = first; i < n; i++)
        NIF_UNROLL for (int j = 0; j < N; j++) sum[j] += v[i] * load(a + i * stride + j * kLanes);
    NIF_UNROLL for (int j = 0; j < N; j++) sum[j] *= tau;
    for (int64_t i = first; i < n; i++)
        NIF_UNROLL for (int j = 0; j < N; j++) {
            float* to = a + i * stride + j * kLanes;
            store(to, load(to) - v[i] * sum[j]);
        }
}

void soap_reflect(const float* v, float tau, int64_t first, int64_t n, float* a, int64_t stride) {
    int64_t at = first / kLanes * kLanes;
    const int64_t end = padded(n);
    for (; at + 4 * kLanes <= end; at += 4 * kLanes)
        soap_reflect_part<4>(v, tau, first, n, a + at, stride);
    for (; at < end; at += kLanes) soap_reflect_part<1>(v, tau, first, n, a + at, stride);
}

// Replace a square matrix by the orthogonal factor of its QR decomposition, by Householder
// reflections with LAPACK's choice of signs (each diagonal entry of R against the entry that it
// comes from). `vectors` holds as many floats, and n more.
void soap_orthogonalise(float* a, int64_t n, int64_t stride, float* vectors) {
    float* tau = vectors + n * stride;
    for (int64_t k = 0; k < n; k++) {
        float* v = vectors + k * stride;
        // squares of small covariances leave float's range
        double below = 0.0;
        for (int64_t i = k + 1; i < n; i++) {
            v[i] = a[i * stride + k];
            below += (double)v[i] * (double)v[i];
        }
        v[k] = 1.0f;
        tau[k] = 0.0f;
        if (!(below > 0.0)) continue;
        const double alpha = (double)a[k * stride + k];
        const double length = __builtin_sqrt(alpha * alpha + below);
        const double beta = alpha < 0.0 ? length : -length;
        tau[k] = (float)((beta - alpha) / beta);
        const double scale = 1.0 / (alpha - beta);
        for (int64_t i = k + 1; i < n; i++) v[i] = (float)((double)v[i] * scale);
        soap_reflect(v, tau[k], k, n, a, stride);
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < stride; j++) a[i * stride + j] = i == j ? 1.0f : 0.0f;
    for (int64_t k = n - 1; k >= 0; k--)
        if (tau[k] != 0.0f) soap_reflect(vectors + k * stride, tau[k], k, n, a, stride);
}

// Follow one side's covariance by a power iteration and a QR decomposition; `order` receives the
// old columns in their new order, most energy first.
void soap_turn(const SoapSide* side, float* scratch, int32_t* order) {
    const int64_t n = side->size, stride = soap_padded(n);
    float *power = scratch, *vectors = power + n * stride, *energy = vectors + (n + 1) * stride;
    soap_product(n, n, n, as_is(side->covariance, stride), side->basis, stride, power, stride);
    for (int64_t j = 0; j < stride; j++) energy[j] = 0.0f;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < stride; j++)
            energy[j] += side->basis[i * stride + j] * power[i * stride + j];
    // nearly in order already: insertion, which is stable, and safe whatever the numbers are
    for (int64_t j = 0; j < n; j++) {
        int64_t at = j;
        for (; at > 0 && energy[order[at - 1]] < energy[j]; at--) order[at] = order[at - 1];
        order[at] = (int32_t)j;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            side->basis[i * stride + j] = power[i * stride + order[j]];
    soap_orthogonalise(side->basis, n, stride, vectors);
    for (int64_t i = n; i < stride; i++)
        for (int64_t j = 0; j < stride; j++) side->basis[i * stride + j] = 0.0f;
    transpose(side->basis, stride, n, stride, side->turned, stride);
}

// Bring a tensor's second moments into the order of its turned bases; null leaves a side as it is.
void soap_reorder(const SoapTensor* tensor, const int32_t* down, const int32_t* across,
                  float* scratch) {
    const int64_t rows = tensor->rows, cols = tensor->cols, stride = soap_padded(cols);
    float* second = tensor->second;
    for (int64_t i = 0; i < rows * stride; i++) scratch[i] = second[i];
    for (int64_t r = 0; r < rows; r++) {
        const float* from = scratch + (down ? down[r] : r) * stride;
        for (int64_t c = 0; c < cols; c++) second[r * stride + c] = from[across ? across[c] : c];
    }
}

// Floats of scratch memory that any of the above needs for a tensor.
size_t soap_scratch(const SoapTensor* tensor) {
    const int64_t rows = soap_padded(tensor->rows), cols = soap_padded(tensor->cols);
    const int64_t side = most(tensor->side[0].basis ? rows : 0, tensor->side[1].basis ? cols : 0);
    return (size_t)most(3 * rows * cols, (2 * side + 2) * side);
}
