// Vectors as wide as the machine's: loading, storing, adding up, e^x. For kernels that work in registers.
//
// GCC's vector extensions, which clang has too, and no intrinsics: one source serves AVX-512, AVX2, SSE and NEON.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "numbers.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));

template <typename V>
inline V read(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline vec load(const float* p) { return read<vec>(p); }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec all(float x) { return vec{} + x; }

// n of LANES; what is loaded behind them is 0.
inline vec load(const float* p, int64_t n) {
    if (n >= LANES) return load(p);
    vec v = {};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
inline void store(float* p, vec v, int64_t n) { std::memcpy(p, &v, (n < LANES ? n : LANES) * sizeof(float)); }

// A vector that stays in a register: gcc would rather load it again for each use, and loads are what is scarce.
template <typename V>
inline V held(V v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
}

// Where each lane of `merge` comes from, in a and b laid end to end.
template <int GROUP, int HALF, int... LANE>
inline vec pick(vec a, vec b, std::integer_sequence<int, LANE...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (LANE / (GROUP / 2) * GROUP + LANE % (GROUP / 2) + HALF * GROUP / 2)...);
#else
    return __builtin_shuffle(a, b, ivec{(LANE / (GROUP / 2) * GROUP + LANE % (GROUP / 2) + HALF * GROUP / 2)...});
#endif
}

// Each group of GROUP lanes of a, then of b, becomes GROUP / 2 lanes, its halves added.
template <int GROUP>
inline vec merge(vec a, vec b) {
    using lanes = std::make_integer_sequence<int, LANES>;
    return pick<GROUP, 0>(a, b, lanes()) + pick<GROUP, 1>(a, b, lanes());
}

// The sums of N vectors, LANES / N lanes for each; LANES at once take 3 instructions each, where one alone takes 9.
template <int N = LANES>
inline vec sums(const vec* v) {
    if constexpr (N == 1)
        return *v;
    else
        return merge<2 * LANES / N>(sums<N / 2>(v), sums<N / 2>(v + N / 2));
}

inline float sum(vec v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

// Of x <= 88; below -87.3 it is 1.2e-38.
inline vec exp(vec x) { return exp_of<vec, ivec>(x < -87.3f ? all(-87.3f) : x); }

// x/2 (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3): Hendrycks and Gimpel (2016).
inline vec gelu(vec x) {
    const vec exponent = x * (x * x * 0.044715f + 1.0f) * -1.5957691216f;
    return x / (exp(exponent > 87.0f ? all(87.0f) : exponent) + 1.0f);
}

}  // namespace
