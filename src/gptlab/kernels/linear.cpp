// A linear layer in bfloat16 with float32 weights, and its gradients:
//
//     y = x Wᵀ + bias        dx = dy W        dW = dyᵀ x,  db = Σ dy
//
// All sums are float32. The right operand of each product is packed a panel at a time, by the thread that then has
// every row meet it in the core's own cache; so W is rounded on its way there, and no copy of it is written and read.
// x and dy are met as they lie, but for dyᵀ, which is packed before in tiles.

#include "tiles.h"

#ifdef TILES
#include <algorithm>

namespace {

constexpr int64_t STRIP = 5 * TILE;  // columns of dy that are packed at a time: what one register has room for
constexpr int64_t CHUNK = 2048;      // positions at a time in dW: a panel of x is 256 KB, a quarter of L2
constexpr int64_t AHEAD = 16;        // rows: panels are cut across them, and nothing else would fetch the next

// 16 registers of 16, transposed. A round takes the highest bit of a register's number to the end of the places in
// it, and the highest of the places to the end of the numbers: after four rounds number and place are exchanged.
INLINE void transpose(__m512i (&a)[16]) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    UNROLL for (int round = 0; round < 4; round++) {
        __m512i b[16];
        UNROLL for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm512_permutex2var_epi32(a[i], low, a[i + 8]);
            b[2 * i + 1] = _mm512_permutex2var_epi32(a[i], high, a[i + 8]);
        }
        std::memcpy(a, b, sizeof b);
    }
}

// Stores a tile in rows of bfloat16, of which `columns` are there.
template <int ROWS>
INLINE void store(const __m512 (&c)[ROWS][4], uint16_t* out, int64_t row, int64_t columns) {
    UNROLL for (int j = 0; j < 4; j += 2) {
        const __mmask32 there = below_32(columns - 16 * j);
        UNROLL for (int i = 0; i < ROWS; i++)
            _mm512_mask_storeu_epi16(out + i * row + 16 * j, there, rounded(c[i][j], c[i][j + 1]));
    }
}

template <int ROWS>
INLINE void add_bias(__m512 (&c)[ROWS][4], const float* bias, int64_t columns) {
    UNROLL for (int j = 0; j < 4; j++) {
        const __m512 lanes = _mm512_maskz_loadu_ps(below(columns - 16 * j), bias + 16 * j);
        UNROLL for (int i = 0; i < ROWS; i++) c[i][j] = _mm512_add_ps(c[i][j], lanes);
    }
}

struct Linear {
    int64_t n, in, out;
    int threads;
    uint16_t *panels = nullptr, *turned = nullptr;  // a panel a thread; a chunk of dyᵀ [out / 6][positions / 2][6][2]

    int64_t even_in() const { return up(in, 2); }    // between two rows of x
    int64_t even_out() const { return up(out, 2); }  // and of dy
    int64_t chunk() const { return std::min(up(n, 2), CHUNK); }

    // Takes the pieces of the scratch; from null it only counts their bytes.
    int64_t place(uintptr_t start) {
        Pieces pieces{start};
        pieces.take(panels, threads * LANES * std::max({even_in(), even_out(), chunk()}));
        pieces.take(turned, up(out, STRIP) * chunk());
        return pieces.bytes();
    }

    // A product of `rows` × `columns`, as many tiles a thread, one panel after the other: pack(panel, column) packs the
    // panel from this column on, work(tile, panel, row, column) makes a tile. A sum does not depend on `threads`.
    template <typename Pack, typename Work>
    void product(int64_t rows, int64_t columns, int64_t terms, const Pack& pack, const Work& work) const {
        const int64_t height = (rows + TILE - 1) / TILE, count = height * (up(columns, LANES) / LANES);
        share(threads, threads, [&](int64_t thread) {
            uint16_t* panel = panels + thread * LANES * terms;
            const int64_t end = count * (thread + 1) / threads;
            for (int64_t begin = count * thread / threads, next; begin < end; begin = next) {
                const int64_t column = begin / height * LANES, first = begin % height * TILE;
                next = std::min(end, (begin / height + 1) * height);
                pack(panel, column);
                tiles(std::min(rows - first, (next - begin) * TILE), [&](auto tile, int64_t row)
                          __attribute__((always_inline)) { work(tile, panel, first + row, column); });
            }
        });
    }

    void forward(const uint16_t* x, const float* weight, const float* bias, uint16_t* y) const {
        const int64_t terms = even_in();
        const auto pack = [&](uint16_t* panel, int64_t column) { pack_turned(weight, column, panel); };
        product(n, out, terms, pack, [&](auto tile, const uint16_t* panel, int64_t m, int64_t o)
                    __attribute__((always_inline)) {
            __m512 c[tile][4];
            multiply(x + m * terms, terms, 2, panel, terms / 2, c, x + (m + TILE) * terms);
            if (bias) add_bias(c, bias + o, out - o);
            store(c, y + m * out + o, out, out - o);
        });
    }

    // Rows [first, first + 64) of W as the columns of a panel. Beyond the last it is taken again, and not stored later.
    INLINE void pack_turned(const float* weight, int64_t first, uint16_t* panel) const {
        for (int64_t o = 0; o < LANES; o += 16)
            for (int64_t j = 0; j < in; j += 32) {
                __m512i pairs[16];
                for (int64_t i = 0; i < 16; i++)
                    pairs[i] = rounded_32(weight + std::min(first + o + i, out - 1) * in + j, in - j);
                transpose(pairs);
                for (int64_t k = 0; k < std::min<int64_t>(even_in() - j, 32) / 2; k++)
                    _mm512_store_si512(panel + (j / 2 + k) * 2 * LANES + 2 * o, pairs[k]);
            }
    }

    template <typename Real>
    void input_gradient(const uint16_t* dy, const float* weight, Real* dx) const {
        const int64_t terms = even_out();
        const auto pack = [&](uint16_t* panel, int64_t column) {
            for (int64_t first = 0; first < out; first += 2)
                pack_pair(panel, terms, LANES, first, out, [&](int64_t o, int64_t j) {
                    const float* w = weight + o * in + column + j;
                    for (int64_t line : {0, 16}) __builtin_prefetch(w + AHEAD * in + line);
                    return rounded_32(w, in - column - j);
                });
        };
        product(n, in, terms, pack, [&](auto tile, const uint16_t* panel, int64_t m, int64_t i)
                    __attribute__((always_inline)) {
            __m512 c[tile][4];
            multiply(dy + m * terms, terms, 2, panel, terms / 2, c, dy + (m + TILE) * terms);
            if constexpr (std::is_same_v<Real, float>)
                add(c, dx + m * in + i, in, in - i, true);
            else
                store(c, dx + m * in + i, in, in - i);
        });
    }

    void weight_gradient(const uint16_t* dy, const uint16_t* x, float* d_weight, float* d_bias) const {
        for (int64_t first = 0; first < n; first += CHUNK) {
            const int64_t count = std::min(n - first, CHUNK), terms = up(count, 2);
            share(threads, up(out, STRIP) / STRIP,
                  [&](int64_t strip) { turn(dy, first, count, strip * STRIP, d_bias); });
            const auto pack = [&](uint16_t* panel, int64_t column) {
                for (int64_t pair = 0; pair < count; pair += 2)
                    pack_pair(panel, terms, LANES, pair, count, [&](int64_t m, int64_t j) {
                        const uint16_t* row = x + (first + m) * even_in() + column + j;
                        __builtin_prefetch(row + AHEAD * even_in());
                        return _mm512_maskz_loadu_epi16(below_32(in - column - j), row);
                    });
            };
            product(out, in, terms, pack, [&](auto tile, const uint16_t* panel, int64_t o, int64_t i)
                        __attribute__((always_inline)) {
                __m512 c[tile][4];
                const uint16_t* left = turned + o * terms;  // o is where a tile begins
                multiply(left, 2, 2 * TILE, panel, terms / 2, c, left + TILE * terms);
                add(c, d_weight + o * in + i, in, in - i, first == 0);
            });
        }
    }

    // Positions [first, first + count) and columns [o, o + STRIP) of dy into tiles, and their sums to d_bias, if any.
    void turn(const uint16_t* dy, int64_t first, int64_t count, int64_t o, float* d_bias) const {
        alignas(64) static constexpr uint16_t ORDER[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37};
        const __m512i order = _mm512_load_si512(ORDER);
        const __m256bh ones = (__m256bh)_mm256_set1_epi16(0x3f80);
        const __mmask32 there = below_32(std::min(out - o, STRIP));
        __m256 sums[STRIP / TILE];
        for (auto& sum : sums) sum = _mm256_setzero_ps();
        for (int64_t m = 0; m < count; m += 2) {
            const uint16_t* row = dy + (first + m) * even_out() + o;
            for (int64_t ahead : {AHEAD, AHEAD + 1}) __builtin_prefetch(row + ahead * even_out());
            const __m512i a = _mm512_maskz_loadu_epi16(there, row);
            const __m512i b = _mm512_maskz_loadu_epi16(m + 1 < count ? there : 0, row + even_out());
            UNROLL for (int64_t i = 0; i < STRIP; i += TILE) {
                const __m512i mine = _mm512_add_epi16(order, _mm512_set1_epi16(i));
                const __m256i pairs = _mm512_castsi512_si256(_mm512_permutex2var_epi16(a, mine, b));
                _mm256_mask_storeu_epi32(turned + (o + i) * up(count, 2) + m * TILE, (1 << TILE) - 1, pairs);
                sums[i / TILE] = _mm256_dpbf16_ps(sums[i / TILE], (__m256bh)pairs, ones);
            }
        }
        if (!d_bias) return;
        for (int64_t i = 0; i < STRIP; i += TILE) {
            const __mmask8 mine = below(std::min<int64_t>(out - o - i, TILE));
            const __m256 before = _mm256_maskz_loadu_ps(first == 0 ? 0 : mine, d_bias + o + i);
            _mm256_mask_storeu_ps(d_bias + o + i, mine, _mm256_add_ps(before, sums[i / TILE]));
        }
    }
};

}  // namespace

extern "C" {

int linear_supported() { return 1; }

// x (n, in) and dy (n, out) bfloat16, rows an even number of elements apart, with a 0 where that is one more than they
// have; weight (out, in); bias (out) or null; y (n, out) bfloat16 out; dx (n, in) out, in one of two types; d_weight
// (out, in) and d_bias (out) or null, out. scratch is on a cache line and has as many bytes as the first one says.
int64_t linear_scratch_bytes(int64_t n, int64_t in, int64_t out, int threads) {
    return Linear{n, in, out, threads}.place(0);
}

void linear_forward(int64_t n, int64_t in, int64_t out, int threads, void* scratch, const uint16_t* x,
                    const float* weight, const float* bias, uint16_t* y) {
    Linear linear{n, in, out, threads};
    linear.place(uintptr_t(scratch));
    linear.forward(x, weight, bias, y);
}

void linear_input_gradient(int64_t n, int64_t in, int64_t out, int threads, void* scratch, const uint16_t* dy,
                           const float* weight, float* dx_float32, uint16_t* dx_bfloat16) {
    Linear linear{n, in, out, threads};
    linear.place(uintptr_t(scratch));
    if (dx_float32) linear.input_gradient(dy, weight, dx_float32);
    if (dx_bfloat16) linear.input_gradient(dy, weight, dx_bfloat16);
}

void linear_weight_gradient(int64_t n, int64_t in, int64_t out, int threads, void* scratch, const uint16_t* dy,
                            const uint16_t* x, float* d_weight, float* d_bias) {
    Linear linear{n, in, out, threads};
    linear.place(uintptr_t(scratch));
    linear.weight_gradient(dy, x, d_weight, d_bias);
}

}
#else
extern "C" int linear_supported() { return 0; }
#endif
