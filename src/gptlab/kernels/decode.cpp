// One more token for each row of a batch, through a whole GPT-2, in one parallel region.
//
// A token meets every weight once, so it can be had as fast as the weights come from memory. Through torch it is not:
// a product of one row reaches a third of the memory's speed, and 300 calls a token cost a millisecond or two. Here a
// weight is read once for all rows of the batch, in the precision that it is kept in; all else is float32.

#include <cstdint>
#include <cstring>

#include <omp.h>

#include "vectors.h"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 vector registers
constexpr int PASS = 4;    // rows that meet a weight while it is in a register,
constexpr int SINGLE = 8;  // or the outputs that a single row meets at once: enough sums to hide an addition's latency
#else  // 16
constexpr int PASS = 2;
constexpr int SINGLE = 4;
#endif
constexpr int TILE = 16;   // outputs of a product that are finished together; words that are packed together
constexpr int BLOCK = 16;  // rows that meet a weight while it is in the core's own cache

// How weights are kept: PARTS in a word of 32 bits, TILE apart, so that shifts take a vector of words apart into
// vectors of neighbours. (Neighbouring bytes are widened in many more steps, by gcc at least.)
struct Float32 {
    static constexpr int PARTS = 1;
    template <int PART>
    static vec part(ivec words) {
        return (vec)words;
    }
};

struct BFloat16 {
    static constexpr int PARTS = 2;
    template <int PART>
    static vec part(ivec words) {
        return (vec)(PART == 0 ? words << 16 : words & int32_t(0xffff0000));
    }
};

struct Int8 {
    static constexpr int PARTS = 4;
    template <int PART>
    static vec part(ivec words) {
        return __builtin_convertvector(words << (24 - 8 * PART) >> 24, vec);
    }
};

struct Norm {
    const float *weight, *bias;  // (width)
};

struct Product {
    const char* weight;  // (out, in) floats, or (out, padded(in)) packed
    const float* scale;  // (out), what the outputs are multiplied by; or null
    const float* bias;   // (out) or null
};

struct Layer {
    Norm ln_1;
    Product c_attn, attn_c_proj;
    Norm ln_2;
    Product c_fc, mlp_c_proj;
};

struct Model {
    int64_t vocab, width, context, heads, n_layer;
    double epsilon;
    const float *wte, *wpe;
    const Layer* layers;
    Norm ln_f;
    Product head;
};

struct Batch {
    int64_t rows, capacity;
    const int64_t *ids, *lengths;        // (rows)
    float *const *keys, *const *values;  // of each layer: (rows, heads, capacity, size)
    float* logits;                       // (rows, vocab) out
    float* scratch;                      // decode_scratch floats, all 0
};

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The length of a row of activations, or of packed weights; what stands behind the real ones is 0.
inline int64_t padded(int64_t n) { return (n + 4 * TILE - 1) / (4 * TILE) * (4 * TILE); }

template <typename W>
inline int64_t row_bytes(int64_t in) {
    return W::PARTS == 1 ? in * 4 : padded(in) / W::PARTS * 4;
}

// total[r][o] += weight[o] · x[r] over a vector of words of each output.
template <typename W, int ROWS, int OUTS, int PART = 0>
inline void multiply_words(const ivec* words, const float* x, int64_t stride, vec (*total)[OUTS]) {
    if constexpr (PART < W::PARTS) {
        vec weights[OUTS];
#pragma GCC unroll 8
        for (int o = 0; o < OUTS; o++) weights[o] = W::template part<PART>(words[o]);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const vec activations = held(load(x + r * stride + PART * TILE));
#pragma GCC unroll 8
            for (int o = 0; o < OUTS; o++) total[r][o] += weights[o] * activations;
        }
        multiply_words<W, ROWS, OUTS, PART + 1>(words, x, stride, total);
    }
}

// totals[r][o], summed, is weight[o] · x[r] for OUTS outputs and ROWS rows. Meanwhile `ahead` is fetched, as long as a
// weight's row: the processor's own prefetching starts anew with every row, and reached a third of the memory's speed.
template <typename W, int ROWS, int OUTS>
void dot_products(const char* const* weight, const char* const* ahead, int64_t bytes, const float* x, int64_t stride,
                  vec (*totals)[TILE]) {
    vec total[ROWS][OUTS] = {};
    int64_t at = 0;
    for (; at + TILE * 4 <= bytes; at += TILE * 4) {
#pragma GCC unroll 8
        for (int o = 0; o < OUTS; o++) __builtin_prefetch(ahead[o] + at);
#pragma GCC unroll 4
        for (int lane = 0; lane < TILE; lane += LANES) {
            ivec words[OUTS];
#pragma GCC unroll 8
            for (int o = 0; o < OUTS; o++) words[o] = held(read<ivec>(weight[o] + at + lane * 4));
            multiply_words<W, ROWS, OUTS>(words, x + at / 4 * W::PARTS + lane, stride, total);
        }
    }
    for (; at < bytes; at += LANES * 4) {  // only of floats, which are not packed
        ivec words[OUTS];
        for (int o = 0; o < OUTS; o++) words[o] = (ivec)load((const float*)(weight[o] + at), (bytes - at) / 4);
        multiply_words<W, ROWS, OUTS>(words, x + at / 4, stride, total);
    }
    for (int r = 0; r < ROWS; r++)
        for (int o = 0; o < OUTS; o++) totals[r][o] = total[r][o];
}

// The same for the first of `rows` rows, at most PASS; how many they were.
template <typename W, int OUTS, int ROWS = PASS>
inline int64_t dot_products(const char* const* weight, const char* const* ahead, int64_t bytes, const float* x,
                            int64_t stride, int64_t rows, vec (*totals)[TILE]) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return dot_products<W, OUTS, ROWS - 1>(weight, ahead, bytes, x, stride, rows, totals);
    dot_products<W, ROWS, OUTS>(weight, ahead, bytes, x, stride, totals);
    return ROWS;
}

// values[r][o] = weight[o] · x[r] for `outs` <= TILE outputs and `rows` <= BLOCK rows, OUTS outputs at a time.
template <typename W, int OUTS>
void multiply_tile(const char* weight, int64_t in, int64_t outs, const float* x, int64_t rows, float (*values)[TILE]) {
    const int64_t bytes = row_bytes<W>(in), passes = (rows + PASS - 1) / PASS;
    vec totals[BLOCK][TILE];
    for (int first = 0; first < outs; first += OUTS) {
        const char *w[OUTS], *ahead[OUTS];
        for (int o = 0; o < OUTS; o++) w[o] = weight + smaller(first + o, outs - 1) * bytes;  // the last one again
        for (int64_t r = 0; r < rows;) {
            // Each pass fetches its share of the next OUTS outputs, so that memory never waits for arithmetic.
            for (int o = 0; o < OUTS; o++) ahead[o] = w[o] + (o % passes == r / PASS ? OUTS * bytes : 0);
            vec(*group)[TILE] = reinterpret_cast<vec(*)[TILE]>(&totals[r][first]);
            r += dot_products<W, OUTS>(w, ahead, bytes, x + r * padded(in), padded(in), rows - r, group);
        }
    }
    for (int64_t r = 0; r < rows; r++)
        for (int o = 0; o < TILE; o += LANES) store(values[r] + o, sums(totals[r] + o));
}

template <typename W>
void multiply_tile(const char* weight, int64_t in, int64_t outs, const float* x, int64_t rows, float (*values)[TILE]) {
    if (rows == 1)
        multiply_tile<W, SINGLE>(weight, in, outs, x, rows, values);
    else
        multiply_tile<W, 4>(weight, in, outs, x, rows, values);
}

// The product of all rows of x (rows, padded(in)), its outputs shared among the threads; what becomes of them is
// finish(row, first output, how many, values).
template <typename W, typename Finish>
void multiply(const Product& product, int64_t out, int64_t in, const float* x, int64_t rows, Finish finish) {
#pragma omp for schedule(static)
    for (int64_t first = 0; first < out; first += TILE) {
        const int64_t outs = smaller(TILE, out - first);
        for (int64_t row = 0; row < rows; row += BLOCK) {
            const int64_t block = smaller(BLOCK, rows - row);
            float values[BLOCK][TILE];
            multiply_tile<W>(product.weight + first * row_bytes<W>(in), in, outs, x + row * padded(in), block, values);
            for (int64_t r = 0; r < block; r++) {
                for (int64_t o = 0; o < outs; o++) {
                    const float value = product.scale ? values[r][o] * product.scale[first + o] : values[r][o];
                    values[r][o] = product.bias ? value + product.bias[first + o] : value;
                }
                finish(row + r, first, outs, values[r]);
            }
        }
    }
}

void normalize(const Norm& norm, double epsilon, int64_t width, const float* x, float* out) {
    vec total = {}, squares = {};
    for (int64_t i = 0; i < width; i += LANES) total += load(x + i, width - i);
    const float mean = sum(total) / width;
    for (int64_t i = 0; i < width; i++) out[i] = x[i] - mean;
    for (int64_t i = 0; i < width; i += LANES) {
        const vec difference = load(out + i, width - i);
        squares += difference * difference;
    }
    const float scale = float(1 / __builtin_sqrt(sum(squares) / width + epsilon));
    for (int64_t i = 0; i < width; i++) out[i] = out[i] * scale * norm.weight[i] + norm.bias[i];
}

// One head of one row: its query, key and value (size) follow `length` keys and values (length, size), behind which
// there is room for them. scores: room for length + TILE.
void attend(const float* query, const float* key, const float* value, float* keys, float* values, int64_t length,
            int64_t size, float* scores, float* out) {
    std::memcpy(keys + length * size, key, size * sizeof(float));
    std::memcpy(values + length * size, value, size * sizeof(float));
    const int64_t seen = length + 1;
    float largest = -__builtin_inff();
    for (int64_t t = 0; t < seen; t += TILE) {
        float dots[1][TILE];
        multiply_tile<Float32>((const char*)(keys + t * size), size, smaller(TILE, seen - t), query, 1, dots);
        std::memcpy(scores + t, dots, sizeof dots);
        for (int64_t i = t; i < smaller(t + TILE, seen); i++) largest = scores[i] > largest ? scores[i] : largest;
    }
    const float scale = float(1 / __builtin_sqrt(double(size)));
    vec total = {};
    for (int64_t t = 0; t < seen; t += LANES) {
        store(scores + t, exp((load(scores + t) - largest) * scale));
        total += load(scores + t, seen - t);
    }
    const float share = 1 / sum(total);
    for (int64_t first = 0; first < size; first += 4 * LANES) {
        vec mixed[4] = {};
        for (int64_t t = 0; t < seen; t++)
            for (int64_t i = first, n = 0; n < 4 && i < size; n++, i += LANES)
                mixed[n] += load(values + t * size + i, size - i) * scores[t];
        for (int64_t i = first, n = 0; n < 4 && i < size; n++, i += LANES) store(out + i, mixed[n] * share, size - i);
    }
}

// The room for activations: x, queries with keys and values, what attention gives, the insides of the MLP; and of each
// thread alone normalized rows and scores.
struct Scratch {
    int64_t x, qkv, mixed, hidden, shared, normed, own;
    Scratch(const Model& model, int64_t rows, int64_t capacity)
        : x(rows * model.width),
          qkv(rows * 3 * model.width),
          mixed(rows * padded(model.width)),
          hidden(rows * padded(4 * model.width)),
          shared(padded(x + qkv + mixed + hidden)),
          normed(rows * padded(model.width)),
          own(normed + padded(capacity)) {}
};

// What each thread does; `omp for` shares work and waits for all.
template <typename W>
void step(const Model& model, const Batch& batch) {
    const int64_t width = model.width, rows = batch.rows, size = width / model.heads;
    const Scratch room(model, rows, batch.capacity);
    float* const x = batch.scratch;
    float* const qkv = x + room.x;
    float* const mixed = qkv + room.qkv;
    float* const hidden = mixed + room.mixed;
    float* const normed = x + room.shared + omp_get_thread_num() * room.own;
    float* const scores = normed + room.normed;

    // Every thread for itself: that is cheaper than to wait for each other.
    const auto norm = [&](const Norm& norm) {
        for (int64_t r = 0; r < rows; r++)
            normalize(norm, model.epsilon, width, x + r * width, normed + r * padded(width));
    };
    const auto add = [&](int64_t r, int64_t first, int64_t n, const float* values) {
        for (int64_t o = 0; o < n; o++) x[r * width + first + o] += values[o];
    };
    const auto keep = [&](float* to, int64_t stride) {
        return [=](int64_t r, int64_t first, int64_t n, const float* values) {
            std::memcpy(to + r * stride + first, values, n * sizeof(float));
        };
    };
    const auto keep_gelu = [&](int64_t r, int64_t first, int64_t n, float* values) {
        for (int o = 0; o < TILE; o += LANES) store(values + o, gelu(load(values + o)));
        std::memcpy(hidden + r * padded(4 * width) + first, values, n * sizeof(float));
    };

#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++)
            x[r * width + i] = model.wte[batch.ids[r] * width + i] + model.wpe[batch.lengths[r] * width + i];
    for (int64_t l = 0; l < model.n_layer; l++) {
        const Layer& layer = model.layers[l];
        norm(layer.ln_1);
        multiply<W>(layer.c_attn, 3 * width, width, normed, rows, keep(qkv, 3 * width));
#pragma omp for schedule(static, 1)
        for (int64_t n = 0; n < rows * model.heads; n++) {
            const int64_t r = n / model.heads, place = n % model.heads * size, cached = n * batch.capacity * size;
            const float* query = qkv + 3 * r * width + place;
            attend(query, query + width, query + 2 * width, batch.keys[l] + cached, batch.values[l] + cached,
                   batch.lengths[r], size, scores, mixed + r * padded(width) + place);
        }
        multiply<W>(layer.attn_c_proj, width, width, mixed, rows, add);
        norm(layer.ln_2);
        multiply<W>(layer.c_fc, 4 * width, width, normed, rows, keep_gelu);
        multiply<W>(layer.mlp_c_proj, width, 4 * width, hidden, rows, add);
    }
    norm(model.ln_f);
    multiply<W>(model.head, model.vocab, width, normed, rows, keep(batch.logits, model.vocab));
}

// Whether there is each id and a place for it; if not, nothing is done.
template <typename W>
int decode(const Model& model, const Batch& batch, int threads) {
    for (int64_t r = 0; r < batch.rows; r++)
        if (batch.ids[r] < 0 || batch.ids[r] >= model.vocab || batch.lengths[r] < 0 ||
            batch.lengths[r] >= smaller(model.context, batch.capacity))
            return 0;
#pragma omp parallel num_threads(threads)
    step<W>(model, batch);
    return 1;
}

}  // namespace

extern "C" {

// How many floats of scratch a call needs.
int64_t decode_scratch(const Model* model, int64_t rows, int64_t capacity, int threads) {
    const Scratch room(*model, rows, capacity);
    return room.shared + threads * room.own;
}

int decode_float32(const Model* model, const Batch* batch, int threads) {
    return decode<Float32>(*model, *batch, threads);
}

int decode_bfloat16(const Model* model, const Batch* batch, int threads) {
    return decode<BFloat16>(*model, *batch, threads);
}

int decode_int8(const Model* model, const Batch* batch, int threads) { return decode<Int8>(*model, *batch, threads); }

}
