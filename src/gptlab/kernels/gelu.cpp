// GPT-2's GELU (the tanh approximation) and its derivative, elementwise.
//
// torch computes tanh by a slow routine for bfloat16: 2.1 ns an element forward and 1.6 backward on one core of a
// Zen 5, 8 % of a small model's step. With s(x) = 1 / (1 + e^(-2u)) and u = sqrt(2/pi) (x + 0.044715 x^3),
// (1 + tanh u) / 2 is s, so one exponential does it.

#include "numbers.h"

namespace {

constexpr float SCALE = 1.5957691216f;  // 2 sqrt(2 / pi)
constexpr float CUBE = 0.044715f;

inline float sigmoid(float x) {
    const float e = exp_negative(x < 0 ? x : -x);  // of -|x|, which overflows nowhere
    return (x < 0 ? e : 1.0f) / (1.0f + e);
}

template <typename T>
void forward(const T* x, T* y, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float v = load(x[i]);
        store(y[i], v * sigmoid(SCALE * (v + CUBE * v * v * v)));
    }
}

// dx = dy (s + x s' ), s' = s (1 - s) 2u'. Beyond 100 it is dy or 0, and powers of x would overflow.
template <typename T>
void backward(const T* x, const T* dy, T* dx, int64_t n, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float wide = load(x[i]), high = wide > 100.0f ? 100.0f : wide, v = high < -100.0f ? -100.0f : high;
        const float s = sigmoid(SCALE * (v + CUBE * v * v * v));
        const float slope = s + v * s * (1.0f - s) * SCALE * (1.0f + 3.0f * CUBE * v * v);
        store(dx[i], load(dy[i]) * slope);
    }
}

}  // namespace

extern "C" {

void gelu_forward_float32(const float* x, float* y, int64_t n, int threads) { forward(x, y, n, threads); }
void gelu_forward_bfloat16(const bfloat16* x, bfloat16* y, int64_t n, int threads) { forward(x, y, n, threads); }

void gelu_backward_float32(const float* x, const float* dy, float* dx, int64_t n, int threads) {
    backward(x, dy, dx, n, threads);
}
void gelu_backward_bfloat16(const bfloat16* x, const bfloat16* dy, bfloat16* dx, int64_t n, int threads) {
    backward(x, dy, dx, n, threads);
}

}
