// Products of bfloat16, summed in float32, on CPUs with AVX512-BF16: register tiles of 6 × 64, and how their operands
// are packed. The left operand of a tile is 6 rows; the right is a panel, 64 columns of all terms of the sums, in
// pairs: [terms / 2][64][2]. TILES is defined where the compiler's target has the instructions.

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define TILES

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

namespace {

constexpr int TILE = 6;        // rows of a register tile: 6 × 64 float32 are 24 of the 32 registers
constexpr int64_t LANES = 64;  // its columns, and those of a panel

inline int64_t up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

INLINE __mmask16 below(int64_t columns) {
    return columns >= 16 ? 0xffff : columns <= 0 ? 0 : __mmask16((1 << columns) - 1);
}
INLINE __mmask32 below_32(int64_t columns) { return below(columns) | __mmask32(below(columns - 16)) << 16; }

INLINE __m512 broadcast(float x) { return _mm512_set1_ps(x); }
INLINE __m512 widened(__m256i x) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
INLINE __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// 32 of a row of float32, of which `columns` are there, rounded.
INLINE __m512i rounded_32(const float* row, int64_t columns) {
    return rounded(_mm512_maskz_loadu_ps(below(columns), row), _mm512_maskz_loadu_ps(below(columns - 16), row + 16));
}

// Stores a[0] b[0] a[1] b[1] … of two rows of 32: how `multiply` wants two terms of one sum in its right operand.
INLINE void store_pairs(uint16_t* panel, __m512i a, __m512i b) {
    alignas(64) static constexpr uint16_t ORDER[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(ORDER), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_store_si512(panel, _mm512_permutex2var_epi16(a, low, b));
    _mm512_store_si512(panel + 32, _mm512_permutex2var_epi16(a, high, b));
}

// Rows `first` and `first` + 1 into panels [columns / 64][height / 2][64][2]; load(row, j) gives 32 columns of
// bfloat16, and where there is no second row it is zeros.
template <typename Load>
INLINE void pack_pair(uint16_t* panels, int64_t height, int64_t columns, int64_t first, int64_t rows, Load load) {
    for (int64_t j = 0; j < columns; j += 32) {
        const __m512i second = first + 1 < rows ? load(first + 1, j) : _mm512_setzero_si512();
        store_pairs(panels + j / LANES * LANES * height + first * LANES + j % LANES * 2, load(first, j), second);
    }
}

// c[i] = Σ over pairs k of left[i · row + k · step, +1] · right[k], with right one panel [pairs][64][2]: ten loads for
// 24 instructions of 64 operations. `next`, if any, is memory wanted soon, of which each pair fetches 24 bytes.
template <int ROWS>
INLINE void multiply(const uint16_t* left, int64_t row, int64_t step, const uint16_t* right, int64_t pairs,
                     __m512 (&c)[ROWS][4], const uint16_t* next = nullptr) {
    for (auto& lanes : c)
        for (auto& sum : lanes) sum = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; k++, left += step, right += 2 * LANES) {
        if (next && k % 2 == 0) __builtin_prefetch(next + 2 * TILE * k);
        __m512bh terms[4];
        UNROLL for (int j = 0; j < 4; j++) terms[j] = (__m512bh)_mm512_load_si512(right + 32 * j);
        UNROLL for (int i = 0; i < ROWS; i++) {
            int32_t pair;
            std::memcpy(&pair, left + i * row, 4);
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
            UNROLL for (int j = 0; j < 4; j++) c[i][j] = _mm512_dpbf16_ps(c[i][j], factor, terms[j]);
        }
    }
}

// Adds a tile to rows of float32 in memory, of which `columns` are there, or overwrites them.
template <int ROWS>
INLINE void add(const __m512 (&c)[ROWS][4], float* out, int64_t row, int64_t columns, bool overwrite) {
    UNROLL for (int j = 0; j < 4; j++) {
        const __mmask16 there = below(columns - 16 * j);
        UNROLL for (int i = 0; i < ROWS; i++) {
            float* lanes = out + i * row + 16 * j;
            const __m512 before = overwrite ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(there, lanes);
            _mm512_mask_storeu_ps(lanes, there, _mm512_add_ps(before, c[i][j]));
        }
    }
}

// Covers [0, rows) with tiles: calls work(a tile's rows, as a constant, its first row).
template <int ROWS = TILE, typename Work>
INLINE void tiles(int64_t rows, const Work& work, int64_t first = 0) {
    for (; first + ROWS <= rows; first += ROWS) work(std::integral_constant<int, ROWS>(), first);
    if constexpr (ROWS > 1) tiles<ROWS - 1>(rows, work, first);
}

// Calls work(item) for [0, items), a range of them on each thread.
template <typename Work>
void share(int threads, int64_t items, const Work& work) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < items; item++) work(item);
}

// Hands out pieces of a scratch, each on cache lines of its own; from null it only counts them.
struct Pieces {
    uintptr_t start, next = start;

    template <typename T>
    void take(T*& piece, int64_t count) {
        piece = reinterpret_cast<T*>(next);
        next += up(count * sizeof(T), 64);
    }
    int64_t bytes() const { return next - start; }
};

}  // namespace
#endif
