// float32 and bfloat16 in plain loops that compilers turn into AVX2, AVX-512 or NEON, without intrinsics.

#pragma once

#include <cstdint>
#include <cstring>

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

// e^x for -87.3 <= x <= 88, to 1 unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, the polynomial is Cephes' expf
// (Moshier). Of a float, or of a vector of them with integers of the same width.
template <typename Float, typename Int>
inline Float exp_of(Float x) {
    const Float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Float n = shifted - 12582912.0f;
    const Float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    Int bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + 0x3f800000;
    Float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

// Of x <= 0. Below -87.3 it gives 1.2e-38 in place of a smaller number or 0. A NaN stays one.
inline float exp_negative(float x) { return exp_of<float, uint32_t>(x < -87.3f ? -87.3f : x); }
