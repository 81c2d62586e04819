// Softmax cross-entropy and its gradient over a chunk of logits, in place.
//
// torch needs a pass over the chunk for each of maximum, exponential, sum, division, subtraction and the
// conversion from and to bfloat16, every one from and to memory. Here a row is read once and written once:
// while it is worked on it stays in the core's own cache.
//
// Plain loops that compilers turn into AVX2, AVX-512 or NEON; no intrinsics, so one source serves all machines.

#include <cstdint>
#include <cstring>

namespace {

inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

struct bfloat16 {
    uint16_t bits;
};

inline float load(const float& x) { return x; }
inline float load(const bfloat16& x) { return bits_to_float(uint32_t(x.bits) << 16); }
inline void store(float& x, float value) { x = value; }
inline void store(bfloat16& x, float value) {
    const uint32_t bits = float_to_bits(value);  // rounds to nearest, ties to even, as torch does
    x.bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^x for x <= 0, to 1 unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, the polynomial is Cephes' expf
// (Moshier). Below -87.3 it gives 1.2e-38 in place of a smaller number or 0. A NaN stays one.
inline float exp_negative(float x) {
    x = x < -87.3f ? -87.3f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * bits_to_float((float_to_bits(shifted) << 23) + 0x3f800000u);
}

// One row of logits: returns -log p(target); where `weight` is not 0 the row becomes weight * (softmax - onehot).
// `e` is room for the row's exponentials. Sums run over 16 lanes of blocks and then in double, which keeps the
// rounding of 50,257 additions away.
template <typename T>
float row_loss(T* row, int64_t vocab, int64_t target, float weight, bool gradient, float* e) {
    float largest = load(row[0]);
#pragma omp simd reduction(max : largest)
    for (int64_t v = 0; v < vocab; v++) {
        const float x = load(row[v]);
        e[v] = x;
        largest = x > largest ? x : largest;
    }
    const float wanted = e[target];
    double total = 0;
    for (int64_t begin = 0; begin < vocab; begin += 4096) {
        const int64_t end = begin + 4096 < vocab ? begin + 4096 : vocab;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = begin; v < end; v++) {
            const float value = exp_negative(e[v] - largest);
            e[v] = value;
            sum += value;
        }
        total += sum;
    }
    // __builtin_log, because <cmath> would bring nothing else that is used
    const float loss = float(__builtin_log(total)) + (largest - wanted);
    if (gradient) {
        const float scale = float(weight / total);
#pragma omp simd
        for (int64_t v = 0; v < vocab; v++) store(row[v], e[v] * scale);
        store(row[target], e[target] * scale - weight);
    }
    return loss;
}

template <typename T>
void chunk_loss(T* logits, int64_t rows, int64_t vocab, const int64_t* targets, const float* weights, float* losses,
                int gradient, float* scratch, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int thread = 0; thread < threads; thread++) {
        float* e = scratch + thread * vocab;
        for (int64_t r = rows * thread / threads; r < rows * (thread + 1) / threads; r++)
            losses[r] = row_loss(logits + r * vocab, vocab, targets[r], weights ? weights[r] : 1.0f, gradient, e);
    }
}

}  // namespace

extern "C" {

// logits (rows, vocab); targets (rows); weights (rows) or null; losses (rows) out; scratch (threads, vocab)
void softmax_loss_float32(float* logits, int64_t rows, int64_t vocab, const int64_t* targets, const float* weights,
                          float* losses, int gradient, float* scratch, int threads) {
    chunk_loss(logits, rows, vocab, targets, weights, losses, gradient, scratch, threads);
}

void softmax_loss_bfloat16(bfloat16* logits, int64_t rows, int64_t vocab, const int64_t* targets, const float* weights,
                           float* losses, int gradient, float* scratch, int threads) {
    chunk_loss(logits, rows, vocab, targets, weights, losses, gradient, scratch, threads);
}

}
