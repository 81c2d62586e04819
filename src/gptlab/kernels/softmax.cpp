// Softmax cross-entropy and its gradient over a chunk of logits, in place.
//
// torch needs a pass over the chunk for each of maximum, exponential, sum, division, subtraction and the
// conversion from and to bfloat16, every one from and to memory. Here a row is read once and written once:
// while it is worked on it stays in the core's own cache.

#include "numbers.h"

namespace {

// One row of logits: returns -log p(target); with `gradient` the row becomes weight * (softmax - onehot).
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
