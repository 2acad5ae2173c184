// Attention by visibility order over paged KV slots on a CPU: one pass over each lane's keys serves
// all its queries, and nothing is gathered, padded or masked in memory beforehand.
//
// A block holds, for each key head, its keys with slots innermost, [head_size][block_size], so
// that the scores of 16 slots are one vector, and then its values, [block_size][head_size].
// Softmax runs online over blocks (Milakov and Gimelshein, arXiv 1805.02867), in float.
//
// Built and called by cpu_attention.py; plain C interface, no dependency but the compiler.

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

// Numbers in a vector, no more than a register holds: of wider ones compilers make single numbers
// where they compare or choose. And how many registers there are.
#if defined(__AVX512F__)
constexpr int kVector = 16, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVector = 8, kRegisters = 16;
#else
constexpr int kVector = 4, kRegisters = 32;
#endif
constexpr int kMaxRows = 8;        // queries that share one pass over a lane's keys
constexpr int kMaxHeadSize = 256;
constexpr int kMaxBlock = 256;
constexpr float kMasked = -1e30f;  // finite: a block with nothing visible must not make NaNs

typedef float Floats __attribute__((vector_size(kVector * 4)));
typedef int32_t Ints __attribute__((vector_size(kVector * 4)));
typedef uint16_t Halves __attribute__((vector_size(kVector * 2)));

struct BFloat16 {
  uint16_t bits;
};

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats load(const BFloat16* p) {
#if defined(__AVX512F__)  // one instruction, of which gcc 12 makes five
  const Ints wide = (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#else
  Halves h;
  std::memcpy(&h, p, sizeof h);
  const Ints wide = __builtin_convertvector(h, Ints);
#endif
  return (Floats)(wide << 16);
}

inline void store(Floats v, float* p) { std::memcpy(p, &v, sizeof v); }

inline float widen(float v) { return v; }

inline float widen(BFloat16 v) {
  uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline void narrow(float v, float* out) { *out = v; }

inline void narrow(float v, BFloat16* out) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  out->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Ints load(const int32_t* p) {
  Ints v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Floats splat(float v) { return Floats{} + v; }

// e^x for x <= 0: 2^n from the exponent bits, the rest by its Taylor series; relative error
// below 2e-7.
inline Floats exponential(Floats x) {
  const Floats low = splat(-87.0f);
  x = x < low ? low : x;
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Floats n = (x * 1.44269504f + magic) - magic;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * (Floats)exponent;
}

inline float sum(Floats v) {
  float total = 0;
  for (int i = 0; i < kVector; ++i) total += v[i];
  return total;
}

inline float maximum(Floats v) {
  float best = v[0];
  for (int i = 1; i < kVector; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

struct Shape {
  int64_t heads, kv_heads, head_size, block_size;
};

// What a query may see: slots up to a position whose order is at most a limit.
struct Sight {
  int64_t position;
  int32_t limit;
};

// Vectors to sum up side by side, so that no multiply-add waits for the one before it: as many as
// have room in the registers, times `rows`, beside what is multiplied.
constexpr int unroll(int rows) {
  return 4 * rows + 5 <= kRegisters ? 4 : 2 * rows + 3 <= kRegisters ? 2 : 1;
}

// sums[r][first + i] += sum over k < depth of factors[r * row_stride + k] * matrix[k][first + i],
// for i in whole groups of `Unroll` vectors up to `width`, then of half as many.
template <int Rows, int Unroll, typename T, int Width>
inline void multiply_add(const float* factors, int64_t row_stride, const T* matrix, int64_t depth,
                         int64_t width, int64_t first, float (*sums)[Width]) {
  for (; first + Unroll * kVector <= width; first += Unroll * kVector) {
    Floats sum[Rows][Unroll];
    for (int r = 0; r < Rows; ++r)
      for (int u = 0; u < Unroll; ++u) sum[r][u] = load(&sums[r][first + u * kVector]);
    for (int64_t k = 0; k < depth; ++k) {
      Floats column[Unroll];
      for (int u = 0; u < Unroll; ++u) column[u] = load(matrix + k * width + first + u * kVector);
      for (int r = 0; r < Rows; ++r)
        for (int u = 0; u < Unroll; ++u) sum[r][u] += column[u] * factors[r * row_stride + k];
    }
    for (int r = 0; r < Rows; ++r)
      for (int u = 0; u < Unroll; ++u) store(sum[r][u], &sums[r][first + u * kVector]);
  }
  if constexpr (Unroll > 1)
    multiply_add<Rows, Unroll / 2>(factors, row_stride, matrix, depth, width, first, sums);
}

// Attention of `Rows` queries of one lane and key head.
template <typename T, int Rows>
void attend_rows(const float* query, const Sight* sights, const T* cache, int64_t block_stride,
                 int64_t head_offset, const int64_t* blocks, const int32_t* orders,
                 const Shape& shape, T* const* outputs) {
  const int64_t size = shape.head_size, block_size = shape.block_size;
  float accumulated[Rows][kMaxHeadSize] = {};
  float top[Rows], weight[Rows] = {};
  int64_t last = 0;
  for (int r = 0; r < Rows; ++r) {
    top[r] = kMasked;
    last = sights[r].position > last ? sights[r].position : last;
  }
  Ints slot_index;
  for (int i = 0; i < kVector; ++i) slot_index[i] = i;

  for (int64_t first = 0; first <= last; first += block_size) {
    const T* keys = cache + blocks[first / block_size] * block_stride + head_offset;
    const T* values = keys + size * block_size;
    float scores[Rows][kMaxBlock];
    for (int r = 0; r < Rows; ++r) std::memset(scores[r], 0, block_size * sizeof(float));
    multiply_add<Rows, unroll(Rows)>(query, size, keys, size, block_size, 0, scores);

    for (int r = 0; r < Rows; ++r) {
      Floats highest = splat(top[r]);
      for (int64_t s = 0; s < block_size; s += kVector) {
        const Ints order = load(orders + first + s);
        const int32_t end = int32_t(sights[r].position - first - s);
        const Ints visible = (order <= (Ints{} + sights[r].limit)) & (slot_index <= (Ints{} + end));
        const Floats score = visible ? load(&scores[r][s]) : splat(kMasked);
        store(score, &scores[r][s]);
        highest = score > highest ? score : highest;
      }
      const float best = maximum(highest);
      const float shrink = exponential(splat(top[r] - best))[0];
      top[r] = best;
      Floats total{};
      for (int64_t s = 0; s < block_size; s += kVector) {
        const Floats score = load(&scores[r][s]);
        const Floats p = score > splat(kMasked) ? exponential(score - best) : Floats{};
        store(p, &scores[r][s]);
        total += p;
      }
      weight[r] = weight[r] * shrink + sum(total);
      for (int64_t d = 0; d < size; d += kVector)
        store(load(&accumulated[r][d]) * shrink, &accumulated[r][d]);
    }
    multiply_add<Rows, unroll(Rows)>(&scores[0][0], kMaxBlock, values, block_size, size, 0,
                                     accumulated);
  }

  for (int r = 0; r < Rows; ++r)
    for (int64_t d = 0; d < size; ++d) narrow(accumulated[r][d] / weight[r], outputs[r] + d);
}

template <typename T>
using RowsFunction = void (*)(const float*, const Sight*, const T*, int64_t, int64_t,
                              const int64_t*, const int32_t*, const Shape&, T* const*);

template <typename T>
constexpr RowsFunction<T> kByRows[kMaxRows + 1] = {
    nullptr,           attend_rows<T, 1>, attend_rows<T, 2>, attend_rows<T, 3>, attend_rows<T, 4>,
    attend_rows<T, 5>, attend_rows<T, 6>, attend_rows<T, 7>, attend_rows<T, 8>};

// All queries of one lane and key head, in passes of up to kMaxRows.
template <typename T>
void attend_lane(const T* query, int64_t query_stride, T* output, int64_t output_stride,
                 const T* cache, int64_t block_stride, const int64_t* blocks,
                 const int32_t* orders, const int64_t* positions, const int32_t* limits,
                 int64_t begin, int64_t end, int64_t kv_head, float scale, const Shape& shape) {
  const int64_t group = shape.heads / shape.kv_heads, size = shape.head_size;
  const int64_t rows = (end - begin) * group;
  const int64_t head_offset = kv_head * shape.block_size * size * 2;
  for (int64_t row = 0; row < rows; row += kMaxRows) {
    const int count = rows - row < kMaxRows ? int(rows - row) : kMaxRows;
    float scaled[kMaxRows * kMaxHeadSize];
    Sight sights[kMaxRows];
    T* outputs[kMaxRows];
    for (int r = 0; r < count; ++r) {
      const int64_t input = begin + (row + r) / group;
      const int64_t head = kv_head * group + (row + r) % group;
      const T* q = query + input * query_stride + head * size;
      for (int64_t d = 0; d < size; ++d) scaled[r * size + d] = widen(q[d]) * scale;
      sights[r] = {positions[input], limits[input]};
      outputs[r] = output + input * output_stride + head * size;
    }
    kByRows<T>[count](scaled, sights, cache, block_stride, head_offset, blocks, orders, shape,
                      outputs);
  }
}

template <typename T>
void run(const T* query, int64_t query_stride, const T* key, int64_t key_stride, const T* value,
         int64_t value_stride, T* output, int64_t output_stride, T* cache, int64_t block_stride,
         const int64_t* slots, const int64_t* positions, const int32_t* limits,
         const int64_t* lane_starts, int64_t lanes, const int64_t* const* lane_blocks,
         const int32_t* const* lane_orders, float scale, const Shape& shape) {
  const int64_t size = shape.head_size, block_size = shape.block_size;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < lane_starts[lanes]; ++i) {
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        T* keys = cache + slots[i] / block_size * block_stride + h * block_size * size * 2;
        T* values = keys + size * block_size + slots[i] % block_size * size;
        const T* k = key + i * key_stride + h * size;
        for (int64_t d = 0; d < size; ++d) keys[d * block_size + slots[i] % block_size] = k[d];
        std::memcpy(values, value + i * value_stride + h * size, size * sizeof(T));
      }
    }
#pragma omp for schedule(dynamic) collapse(2)
    for (int64_t lane = 0; lane < lanes; ++lane)
      for (int64_t h = 0; h < shape.kv_heads; ++h)
        attend_lane(query, query_stride, output, output_stride, cache, block_stride,
                    lane_blocks[lane], lane_orders[lane], positions, limits, lane_starts[lane],
                    lane_starts[lane + 1], h, scale, shape);
  }
}

}  // namespace

extern "C" {

int zipar_max_head_size() { return kMaxHeadSize; }
int zipar_max_block_size() { return kMaxBlock; }

// Writes the inputs' keys and values, then attends. Strides are in elements; a bfloat16 array is
// one of its 16-bit patterns. `element_size` is 2 for bfloat16, 4 for float.
void zipar_attend(int element_size, const void* query, int64_t query_stride, const void* key,
                  int64_t key_stride, const void* value, int64_t value_stride, void* output,
                  int64_t output_stride, void* cache, int64_t block_stride, const int64_t* slots,
                  const int64_t* positions, const int32_t* limits, const int64_t* lane_starts,
                  int64_t lanes, const int64_t* const* lane_blocks,
                  const int32_t* const* lane_orders, float scale, int64_t heads, int64_t kv_heads, int64_t head_size,
                  int64_t block_size) {
  const Shape shape{heads, kv_heads, head_size, block_size};
  if (element_size == 2) {
    run((const BFloat16*)query, query_stride, (const BFloat16*)key, key_stride,
        (const BFloat16*)value, value_stride, (BFloat16*)output, output_stride, (BFloat16*)cache,
        block_stride, slots, positions, limits, lane_starts, lanes, lane_blocks, lane_orders,
        scale, shape);
  } else {
    run((const float*)query, query_stride, (const float*)key, key_stride, (const float*)value,
        value_stride, (float*)output, output_stride, (float*)cache, block_stride, slots, positions,
        limits, lane_starts, lanes, lane_blocks, lane_orders, scale, shape);
  }
}
}
