// Uniform numbers of (seed, position, token): the bits of noise.py's torch code, in one pass over
// memory where that makes thirty.
//
// Built and called by noise.py; plain C interface, no dependency but the compiler.

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kSerial = 1 << 16;  // numbers that one thread makes sooner than two agree on it

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

inline float uniform(uint32_t token, uint32_t low, uint32_t high) {
  const uint32_t bits = ~lowbias32(lowbias32(token * 0x9E3779B1u + low) ^ high);
  return std::min((float(bits) + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
}

}  // namespace

extern "C" {

// out[i][j] = 1 - u of token tokens[i][j], or of token j where tokens is null.
void zipar_complements(const int64_t* seeds, const int64_t* positions, int64_t rows,
                       const int64_t* tokens, int64_t count, float* out) {
#pragma omp parallel for if (rows * count > kSerial)
  for (int64_t i = 0; i < rows; ++i) {
    const uint64_t hash = hash_position(seeds[i], positions[i]);
    const uint32_t low = uint32_t(hash), high = uint32_t(hash >> 32);
    float* row = out + i * count;
    if (tokens == nullptr) {
      for (int64_t j = 0; j < count; ++j) row[j] = uniform(uint32_t(j), low, high);
    } else {
      const int64_t* own = tokens + i * count;
      for (int64_t j = 0; j < count; ++j) row[j] = uniform(uint32_t(own[j]), low, high);
    }
  }
}

}  // extern "C"
