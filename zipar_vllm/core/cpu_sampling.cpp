// Guidance, noise and draws in one pass over the logits, where torch's operations make tens.
//
// Built and loaded by cpu_sampling.py; plain C interface, no dependency but the compiler.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int64_t kSerial = 1 << 16;  // numbers that one thread makes sooner than two agree on it
constexpr int64_t kSerialDraws = 1 << 14;  // logits that one thread draws from sooner
constexpr int64_t kBlock = 64;  // logits that are looked at together
constexpr float kLog2 = 0.6931472f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline uint64_t hash_position(uint64_t seed, uint64_t position) {
  uint64_t x = seed + (position + 1) * 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline uint32_t lowbias32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// 1 - u of each token of one (seed, position).
struct Complements {
  uint32_t low, high;

  Complements(uint64_t seed, uint64_t position) {
    const uint64_t hash = hash_position(seed, position);
    low = uint32_t(hash);
    high = uint32_t(hash >> 32);
  }

  inline float operator()(uint32_t token) const {
    const uint32_t bits = ~lowbias32(lowbias32(token * 0x9E3779B1u + low) ^ high);
    return std::min((float(bits) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
  }
};

struct BFloat16 {
  uint16_t bits;

  inline operator float() const {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

// The first of the highest logits; -1 where that is no number, or any logit is NaN.
template <typename Logit>
int64_t find_highest(const Logit* logits, int64_t count) {
  float highest = -kInfinity;
  int nan = 0;
#pragma omp simd reduction(max : highest) reduction(| : nan)
  for (int64_t j = 0; j < count; ++j) {
    const float x = logits[j];
    highest = x > highest ? x : highest;
    nan |= x != x;
  }
  if (nan || !std::isfinite(highest)) return -1;
  int32_t first = int32_t(count);
#pragma omp simd reduction(min : first)
  for (int32_t j = 0; j < int32_t(count); ++j) {
    const int32_t own = float(logits[j]) == highest ? j : int32_t(count);
    first = own < first ? own : first;
  }
  return first;
}

// Noise is at most -log(v), so at most log(2) for each power of two that v is below 1.
inline float bound_noise(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return kLog2 * float(127 - int32_t(bits >> 23));
}

// Bounds of logit / temperature + noise of the tokens from start on; the highest of them.
template <typename Logit>
inline float bound_scores(const Logit* logits, int64_t start, int64_t length, float temperature,
                          float least, Complements complement, float* bounds) {
  float complements[kBlock], highest = -kInfinity;
  // A loop of its own: compilers make vector code of it so, but not of both in one.
  for (int64_t j = 0; j < length; ++j) complements[j] = complement(uint32_t(start + j));
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < length; ++j) {
    const float scaled = float(logits[start + j]) / temperature;
    const float bound = scaled + bound_noise(complements[j]);
    bounds[j] = scaled < least ? -kInfinity : bound;
    highest = bounds[j] > highest ? bounds[j] : highest;
  }
  return highest;
}

// The token of the highest logit / temperature + noise; -1 where the two highest are as close as
// float32 may round them.
template <typename Logit>
int64_t draw(const Logit* logits, int64_t count, float temperature, float log_min_p,
             Complements complement) {
  const int64_t first = find_highest(logits, count);
  if (first < 0) return -1;
  const float top = float(logits[first]) / temperature;
  if (!std::isfinite(top)) return -1;
  const float least = top + log_min_p;
  const auto score = [&](int64_t j) {
    const double noise = -std::log(-std::log1p(-double(complement(uint32_t(j)))));
    return double(float(logits[j]) / temperature) + noise;
  };
  int64_t token = first;
  double best = score(first), second = -kInfinity;
  const double margin = 2e-5 + 1e-6 * std::fabs(double(top));
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t length = std::min(kBlock, count - start);
    float bounds[kBlock];
    // Called with the constant where it can be: its loops then need no ends.
    const float highest =
        length == kBlock
            ? bound_scores(logits, start, kBlock, temperature, least, complement, bounds)
            : bound_scores(logits, start, length, temperature, least, complement, bounds);
    if (highest < best - margin) continue;
    for (int64_t j = 0; j < length; ++j) {
      if (bounds[j] < best - margin || start + j == first) continue;
      const double own = score(start + j);
      if (own > best) {
        second = best;
        best = own;
        token = start + j;
      } else {
        second = std::max(second, own);
      }
    }
  }
  return best - second > margin ? token : -1;
}

template <typename Logit>
int64_t draw_rows(const Logit* logits, int64_t stride, int64_t rows, int64_t count,
                  float least_temperature, const float* temperatures, const float* log_min_p,
                  const int64_t* seeds, const int64_t* positions, int64_t* tokens) {
  int64_t undecided = 0;
#pragma omp parallel for reduction(+ : undecided) if (rows * count > kSerialDraws)
  for (int64_t i = 0; i < rows; ++i) {
    const Logit* row = logits + i * stride;
    const bool is_greedy = temperatures == nullptr || temperatures[i] < least_temperature;
    tokens[i] = is_greedy ? find_highest(row, count)
                          : draw(row, count, temperatures[i], log_min_p ? log_min_p[i] : -kInfinity,
                                 Complements(seeds[i], positions[i]));
    undecided += tokens[i] < 0;
  }
  return undecided;
}

template <typename Logit>
void guide_rows(const Logit* logits, int64_t stride, int64_t rows, int64_t count,
                const int64_t* guided, const float* scales, int64_t num_guided, float* out) {
#pragma omp parallel for if (num_guided * count > kSerial)
  for (int64_t k = 0; k < num_guided; ++k) {
    const Logit* conditional = logits + guided[k] * stride;
    const Logit* unconditional = logits + (rows + k) * stride;
    float* row = out + guided[k] * count;
    for (int64_t j = 0; j < count; ++j) {
      const float u = unconditional[j];
      row[j] = u + scales[k] * (float(conditional[j]) - u);
    }
  }
  for (int64_t i = 0, k = 0; i < rows; ++i) {
    if (k < num_guided && guided[k] == i) {
      ++k;
    } else {
      std::copy(logits + i * stride, logits + i * stride + count, out + i * count);
    }
  }
}

}  // namespace

extern "C" {

// out[i][j] = 1 - u of token tokens[i][j], or of token j where tokens is null.
void zipar_complements(const int64_t* seeds, const int64_t* positions, int64_t rows,
                       const int64_t* tokens, int64_t count, float* out) {
#pragma omp parallel for if (rows * count > kSerial)
  for (int64_t i = 0; i < rows; ++i) {
    const Complements complement(seeds[i], positions[i]);
    float* row = out + i * count;
    if (tokens == nullptr) {
      for (int64_t j = 0; j < count; ++j) row[j] = complement(uint32_t(j));
    } else {
      const int64_t* own = tokens + i * count;
      for (int64_t j = 0; j < count; ++j) row[j] = complement(uint32_t(own[j]));
    }
  }
}

// tokens[i] of row i of the logits, float32 or bfloat16 by their size; -1 where that is not decided.
// Returns how many are not. All are greedy where temperatures is null; no min-p where that is.
int64_t zipar_draw(int size, const void* logits, int64_t stride, int64_t rows, int64_t count,
                   float least_temperature, const float* temperatures, const float* log_min_p,
                   const int64_t* seeds, const int64_t* positions, int64_t* tokens) {
  if (size == sizeof(float)) {
    return draw_rows(static_cast<const float*>(logits), stride, rows, count, least_temperature,
                     temperatures, log_min_p, seeds, positions, tokens);
  }
  return draw_rows(static_cast<const BFloat16*>(logits), stride, rows, count, least_temperature,
                   temperatures, log_min_p, seeds, positions, tokens);
}

// out[i] = row i of the logits after guidance: rows that are guided have an unconditional one, in
// their order, behind the rows.
void zipar_guide(int size, const void* logits, int64_t stride, int64_t rows, int64_t count,
                 const int64_t* guided, const float* scales, int64_t num_guided, float* out) {
  if (size == sizeof(float)) {
    guide_rows(static_cast<const float*>(logits), stride, rows, count, guided, scales, num_guided,
               out);
  } else {
    guide_rows(static_cast<const BFloat16*>(logits), stride, rows, count, guided, scales,
               num_guided, out);
  }
}

}  // extern "C"
