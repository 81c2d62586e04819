// The output layer and its cross-entropy, with gradients, in bfloat16: three products and a softmax in one kernel.
//
// For a chunk of at most 512 positions m, words v and width j, with x the logits:
//
//     1.  x = h Wᵀ,  e = exp(x − x[target]),  total[m] = Σ e,  sums[m] = Σ e W                     W is read once
//         loss = log(total),  scale = weight / total,  rest = scale · e[target] − weight
//     2.  dh = scale · sums + rest · W[target]
//         dW[v] += Σ e (scale · h), and rest · h where v is m's target                             dW is passed once
//
// A softmax need not be known to be multiplied: its divisor belongs to a row, and goes on the product in dh and on h
// in dW. So e leaves the registers that its logits were summed in once, rounded to bfloat16 (2⁻⁹ of a probability,
// where rounded logits would cost 2⁻⁹ |x|), and no pass is spent on the softmax. The target's own share, a difference
// that cancels where a model is sure, is kept out of the products and added in float32.
//
// A thread owns a range of the vocabulary and meets it a block at a time, which stays in the core's caches with its e.
// Of all that is as large as the vocabulary only e, (vocab, chunk), goes through memory. Of the 487 GFLOP/s that a
// core of a Zen 5 has in vdpbf16ps, 400 are got at width 128 and 440 at 256 and 768, everything counted.

#include "tiles.h"

#ifdef TILES
#include <algorithm>
#include <cmath>

namespace {

constexpr int64_t BLOCK = 252;  // words at a time, a multiple of TILE: a panel of 126 pairs × 64 is 32 KB, L1's
constexpr int64_t CHUNK = 512;  // positions at a time: 384 cost 5 % more time, 768 half as much memory again
constexpr float LOG2_E = 1.44269504f;
constexpr double LN_2 = 0.693147180559945309;
constexpr double LARGEST_TOTAL = 0x1p80;  // above it a position's largest logit becomes its reference

// 2^x to 3e-7: x = n + r, |r| <= 1/2, and a minimax polynomial of r. 0 for -inf, infinity for +inf, a NaN for a NaN.
INLINE __m512 power_of_2(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = broadcast(1.3276471564e-3f);
    for (float term : {9.6755413310e-3f, 5.5507132748e-2f, 2.4022119724e-1f, 6.9314696706e-1f, 1.0f})
        p = _mm512_fmadd_ps(p, r, broadcast(term));
    return _mm512_scalef_ps(p, n);
}

struct Worker {
    float *sums, *total, *largest;     // Σ e W (chunk, columns); Σ e of a block; the largest log2 e
    double* totals;                    // Σ e of the thread's words
    uint16_t *words, *word_pairs, *e;  // a block's W (block, columns), and in panels; its e in panels of positions
};

struct Head {
    int64_t n, vocab, width;
    int threads;
    const uint16_t* hidden;
    const int64_t* targets;
    const float *weight, *weights;
    float *losses, *d_hidden, *d_weight;

    int64_t rows = 0, columns = 0;  // a chunk's positions and the width, in whole panels
    uint16_t *e = nullptr, *positions = nullptr, *scaled = nullptr;  // e (vocab, rows); h and scale · h in panels
    float *wanted = nullptr, *reference = nullptr;                   // x[target]; what is subtracted from x · log2 e
    float *scale = nullptr, *rest = nullptr;
    Worker* workers = nullptr;

    // Takes the pieces of the scratch; from null it only counts their bytes.
    int64_t place(uintptr_t start) {
        const int64_t chunks = std::max<int64_t>((n + CHUNK - 1) / CHUNK, 1);
        rows = up((n + chunks - 1) / chunks, LANES), columns = up(width, LANES);
        Pieces pieces{start};
        pieces.take(e, d_weight ? vocab * rows : 0);
        pieces.take(positions, rows * columns);
        pieces.take(scaled, d_weight ? rows * columns : 0);
        for (float** vector : {&wanted, &reference, &scale, &rest}) pieces.take(*vector, rows);
        pieces.take(workers, threads);
        for (int thread = 0; thread < threads; thread++) {
            Worker worker;
            pieces.take(worker.sums, d_hidden ? rows * columns : 0);
            for (float** vector : {&worker.total, &worker.largest}) pieces.take(*vector, rows);
            pieces.take(worker.totals, rows);
            for (uint16_t** block : {&worker.words, &worker.word_pairs}) pieces.take(*block, BLOCK * columns);
            pieces.take(worker.e, d_hidden ? BLOCK * rows : 0);
            if (start) workers[thread] = worker;
        }
        return pieces.bytes();
    }

    void run() {
        for (int64_t first = 0; first < n; first += rows) {
            const int64_t count = std::min(n - first, rows);
            share(threads, up(count, LANES), [&](int64_t m) { start(first, count, m); });
            const auto part_1 = [&](int64_t thread) { exponentials(first, count, workers[thread], thread); };
            share(threads, threads, part_1);
            if (raise_references(count)) share(threads, threads, part_1);
            for (int64_t m = 0; m < count; m++) finish_loss(first, m);
            if (d_hidden) share(threads, count, [&](int64_t m) { finish_hidden(first, m); });
            if (!d_weight) continue;
            share(threads, (count + 1) / 2, [&](int64_t pair) {
                pack_pair(scaled, rows, columns, 2 * pair, count, [&](int64_t m, int64_t j) {
                    const __m512 factor = broadcast(scale[m]);
                    return rounded(_mm512_mul_ps(factor, position(first + m, j)),
                                   _mm512_mul_ps(factor, position(first + m, j + 16)));
                });
            });
            share(threads, threads,
                  [&](int64_t thread) { add_to_weight(first, count, begin(thread), begin(thread + 1)); });
        }
    }

    int64_t begin(int64_t thread) const { return thread == threads ? vocab : vocab / TILE * thread / threads * TILE; }

    // Row m of the panels of h, zeros where there is no position, and x[target], summed in the order of `multiply`.
    void start(int64_t first, int64_t count, int64_t m) {
        uint16_t* panel = positions + m / LANES * LANES * columns + m % LANES * 2;
        const uint16_t* h = hidden + (first + m) * width;
        const float* w = m < count ? weight + targets[first + m] * width : weight;
        __m128 x = _mm_setzero_ps();
        for (int64_t j = 0; j < width; j += 2, panel += 2 * LANES) {
            const __mmask8 there = m >= count ? 0 : width - j > 1 ? 3 : 1;
            const __m128i pair = _mm_maskz_loadu_epi16(there, h + j);
            std::memcpy(panel, &pair, 4);
            x = _mm_dpbf16_ps(x, (__m128bh)_mm_cvtneps_pbh(_mm_maskz_loadu_ps(there, w + j)), (__m128bh)pair);
        }
        wanted[m] = _mm_cvtss_f32(x);
        reference[m] = wanted[m] * LOG2_E;
    }

    // Part 1 for the words of one thread.
    void exponentials(int64_t first, int64_t count, const Worker& worker, int64_t thread) {
        std::fill_n(worker.totals, rows, 0.0);
        std::fill_n(worker.largest, rows, -INFINITY);
        for (int64_t word = begin(thread); word < begin(thread + 1); word += BLOCK) {
            const int64_t words = std::min(begin(thread + 1) - word, BLOCK);
            pack_words(worker, word, words);
            std::fill_n(worker.total, rows, 0.0f);
            for (int64_t m = 0; m < count; m += LANES)
                tiles(words, [&](auto tile, int64_t v) __attribute__((always_inline)) {
                    __m512 x[tile][4];
                    multiply(worker.words + v * columns, columns, 2, positions + m * columns, (width + 1) / 2, x);
                    exponentiate(worker, x, word, v, m);
                });
            for (int64_t m = 0; m < count; m++) {
                worker.totals[m] += worker.total[m];
                const int64_t v = targets[first + m] - word;
                if (v < 0 || v >= words) continue;  // else the target's e, which has its share from `rest`
                if (d_weight) e[(word + v) * rows + m] = 0;
                if (d_hidden) worker.e[m / LANES * LANES * BLOCK + v / 2 * 2 * LANES + m % LANES * 2 + v % 2] = 0;
            }
            if (d_hidden) add_to_sums(worker, count, words, word == begin(thread));
        }
    }

    // A block of W rounded, as rows and in panels. Rows are fetched 32 ahead: the block is new to the caches.
    void pack_words(const Worker& worker, int64_t word, int64_t words) {
        for (int64_t first = 0; first < words; first += 2)
            pack_pair(worker.word_pairs, BLOCK, columns, first, words, [&](int64_t v, int64_t j) {
                const float* w = weight + (word + v) * width + j;
                __builtin_prefetch(w + 32 * width);
                __builtin_prefetch(w + 32 * width + 16);
                const __m512i row = rounded_32(w, width - j);
                _mm512_store_si512(worker.words + v * columns + j, row);
                return row;
            });
    }

    // A tile of logits, of words from v of the block and positions from m, becomes e, here and in the worker's panels.
    template <int ROWS>
    INLINE void exponentiate(const Worker& worker, __m512 (&x)[ROWS][4], int64_t word, int64_t v, int64_t m) {
        UNROLL for (int j = 0; j < 4; j++) {
            const __m512 subtracted = _mm512_load_ps(reference + m + 16 * j);
            float *totals = worker.total + m + 16 * j, *maxima = worker.largest + m + 16 * j;
            __m512 total = _mm512_load_ps(totals), largest = _mm512_load_ps(maxima);
            UNROLL for (int i = 0; i < ROWS; i++) {
                const __m512 power = _mm512_fmsub_ps(x[i][j], broadcast(LOG2_E), subtracted);
                largest = _mm512_max_ps(largest, power);
                x[i][j] = power_of_2(power);
                total = _mm512_add_ps(total, x[i][j]);
            }
            _mm512_store_ps(totals, total);
            _mm512_store_ps(maxima, largest);
        }
        if (!d_hidden && !d_weight) return;
        UNROLL for (int i = 0; i < ROWS; i += 2)
            UNROLL for (int j = 0; j < 4; j += 2) {
                const __m512i a = rounded(x[i][j], x[i][j + 1]);
                const __m512i b = i + 1 < ROWS ? rounded(x[i + 1][j], x[i + 1][j + 1]) : _mm512_setzero_si512();
                uint16_t* row = e + (word + v + i) * rows + m + 16 * j;
                if (d_weight) _mm512_store_si512(row, a);
                if (d_weight && i + 1 < ROWS) _mm512_store_si512(row + rows, b);
                if (d_hidden) store_pairs(worker.e + m * BLOCK + (v + i) * LANES + 32 * j, a, b);
            }
    }

    void add_to_sums(const Worker& worker, int64_t count, int64_t words, bool overwrite) {
        for (int64_t j = 0; j < columns; j += LANES)
            for (int64_t m = 0; m < count; m += LANES)
                tiles(std::min(count - m, LANES), [&](auto tile, int64_t i) __attribute__((always_inline)) {
                    __m512 c[tile][4];
                    const uint16_t* right = worker.word_pairs + j * BLOCK;
                    multiply(worker.e + m * BLOCK + 2 * i, 2, 2 * LANES, right, (words + 1) / 2, c);
                    add(c, worker.sums + (m + i) * columns + j, columns, LANES, overwrite);
                });
    }

    // True if a total, 55 nats above its target, would leave float32: its reference is raised, for a second try.
    bool raise_references(int64_t count) {
        bool any = false;
        for (int64_t m = 0; m < count; m++) {
            if (!(total(m) > LARGEST_TOTAL)) continue;
            float largest = -INFINITY;
            for (int thread = 0; thread < threads; thread++) largest = std::max(largest, workers[thread].largest[m]);
            reference[m] += largest;
            any = true;
        }
        return any;
    }

    double total(int64_t m) const {
        double sum = 0;
        for (int thread = 0; thread < threads; thread++) sum += workers[thread].totals[m];
        return sum;
    }

    void finish_loss(int64_t first, int64_t m) {
        const double sum = total(m), factor = weights ? weights[first + m] : 1;
        const __m512 power = broadcast(std::fma(wanted[m], LOG2_E, -reference[m]));
        const double own = _mm512_cvtss_f32(power_of_2(power));  // bit by bit what the sum has of it
        losses[first + m] = float(std::log(sum) + reference[m] * LN_2 - wanted[m]);
        scale[m] = float(factor / sum);
        rest[m] = float(factor * (own - sum) / sum);
    }

    void finish_hidden(int64_t first, int64_t m) {
        const float* w = weight + targets[first + m] * width;
        for (int64_t j = 0; j < width; j += 16) {
            const __mmask16 there = below(width - j);
            __m512 sum = _mm512_setzero_ps();
            for (int thread = 0; thread < threads; thread++)
                if (begin(thread) < begin(thread + 1))
                    sum = _mm512_add_ps(sum, _mm512_load_ps(workers[thread].sums + m * columns + j));
            const __m512 own = widened((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, w + j)));
            sum = _mm512_fmadd_ps(own, broadcast(rest[m]), _mm512_mul_ps(sum, broadcast(scale[m])));
            _mm512_mask_storeu_ps(d_hidden + (first + m) * width + j, there, sum);
        }
    }

    INLINE __m512 position(int64_t m, int64_t j) const {
        return widened(_mm256_maskz_loadu_epi16(below(width - j), hidden + m * width + j));
    }

    // Part 2 for the words [from, to). While a tile is multiplied the next one's e is fetched: 58 ms instead of 78.
    void add_to_weight(int64_t first, int64_t count, int64_t from, int64_t to) {
        for (int64_t word = from; word < to; word += BLOCK)
            for (int64_t j = 0; j < columns; j += LANES)
                tiles(std::min(to - word, BLOCK), [&](auto tile, int64_t v) __attribute__((always_inline)) {
                    __m512 c[tile][4];
                    const uint16_t* left = e + (word + v) * rows;
                    const uint16_t* next = word + v + 2 * TILE > to ? left : left + TILE * rows;
                    multiply(left, rows, 2, scaled + j * rows, (count + 1) / 2, c, next);
                    add(c, d_weight + (word + v) * width + j, width, width - j, first == 0);
                });
        for (int64_t m = 0; m < count; m++) {
            const int64_t v = targets[first + m];
            if (v < from || v >= to) continue;
            for (int64_t j = 0; j < width; j += 16) {
                const __m512 share[1][4] = {{_mm512_mul_ps(position(first + m, j), broadcast(rest[m]))}};
                add(share, d_weight + v * width + j, width, std::min<int64_t>(width - j, 16), false);
            }
        }
    }
};

}  // namespace

extern "C" {

int fused_head_supported() { return 1; }

// hidden (n, width) bfloat16; weight (vocab, width); targets (n); weights (n) or null; losses (n) out; d_hidden
// (n, width) and d_weight (vocab, width) out, each or both null; scratch on a cache line, of as many bytes as are
// returned. Where it is null nothing else is done.
int64_t fused_head(const uint16_t* hidden, const float* weight, const int64_t* targets, const float* weights,
                   float* losses, float* d_hidden, float* d_weight, int64_t n, int64_t vocab, int64_t width,
                   int threads, void* scratch) {
    Head head{n, vocab, width, threads, hidden, targets, weight, weights, losses, d_hidden, d_weight};
    const int64_t bytes = head.place(uintptr_t(scratch));
    if (scratch) head.run();
    return bytes;
}

}
#else
extern "C" int fused_head_supported() { return 0; }
#endif
