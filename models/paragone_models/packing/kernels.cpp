// Packed attention and what stands between the matrix products of a decoder, in bfloat16 on a CPU.
//
// Compiled on the machine it runs on (native.py): the loops are plain ones, for the compiler to make vectors of, and
// the products are oneDNN's small ones, through torch, which use the tiles or dot products that the CPU has.
//
// Shapes: T rows, Q queries, Hq query heads, Hk key heads, D head size, H hidden size, n tokens of a run.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

namespace {

using at::BFloat16;
using at::Tensor;
using Bits = uint16_t;

constexpr int64_t kKeys = 128;    // keys that queries are multiplied with at once
constexpr int64_t kChunk = 256;   // keys whose logits are made before their weights are, some blocks of kKeys
constexpr int64_t kGrain = 32;    // keys of a run, and queries of a block, are rounded up to this: few shapes of products
constexpr float kLowest = std::numeric_limits<float>::lowest();

inline float widened(Bits bits) {
  uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// To the nearest, to even between two. Infinities stay; what is not a number may become another such.
inline Bits narrowed(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return static_cast<Bits>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

inline Bits narrowed_up(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return static_cast<Bits>((word + 0x8000u) >> 16);
}

inline float rounded(float value) { return widened(narrowed(value)); }

// 2 to the power of x, for x from -126 to 127: relative error below 4e-6. Lower is 2^-126.
inline float power_of_two(float x) {
  x = x > -126.0f ? x : -126.0f;
  const float whole = std::nearbyint(x);
  const float rest = x - whole;
  float value = 9.6181291e-3f;
  value = value * rest + 5.5504109e-2f;
  value = value * rest + 2.4022651e-1f;
  value = value * rest + 6.9314718e-1f;
  value = value * rest + 1.0f;
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  word += static_cast<uint32_t>(static_cast<int32_t>(whole)) << 23;
  std::memcpy(&value, &word, sizeof word);
  return value;
}

Bits* bits(const Tensor& tensor) { return reinterpret_cast<Bits*>(tensor.data_ptr<BFloat16>()); }

void check_rows(const Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.scalar_type() == at::kBFloat16 && tensor.stride(-1) == 1, name, " must be bfloat16, its last dimension dense");
}

inline float inverse_root(const Bits* row, int64_t size, float epsilon) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    float value = widened(row[i]);
    sum += value * value;
  }
  return 1.0f / std::sqrt(sum / static_cast<float>(size) + epsilon);
}

// rows [T, H] divided by their root mean square, times weight [H], to out [T, H].
void rms_norm(const Tensor& rows, const Tensor& weight, double epsilon, Tensor& out) {
  check_rows(rows, "rows"), check_rows(weight, "weight"), check_rows(out, "out");
  const int64_t count = rows.size(0), size = rows.size(1);
  TORCH_CHECK(out.sizes() == rows.sizes() && weight.numel() == size, "rms_norm: shapes differ");
  const Bits *from = bits(rows), *scale = bits(weight);
  Bits* to = bits(out);
  const int64_t step = rows.stride(0), stride = out.stride(0);
  at::parallel_for(0, count, std::max<int64_t>(1, 16384 / size), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const Bits* source = from + row * step;
      Bits* target = to + row * stride;
      const float factor = inverse_root(source, size, static_cast<float>(epsilon));
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) target[i] = narrowed(rounded(widened(source[i]) * factor) * widened(scale[i]));
    }
  });
}

// heads [T, h, D], normed if there is a weight [D], turned by angles [T, D / 2], to out [h, T, D].
void rotate(const Tensor& heads, const std::optional<Tensor>& weight, double epsilon, const Tensor& cos,
            const Tensor& sin, Tensor& out) {
  check_rows(heads, "heads"), check_rows(cos, "cos"), check_rows(sin, "sin"), check_rows(out, "out");
  const int64_t rows = heads.size(0), count = heads.size(1), size = heads.size(2), half = size / 2;
  TORCH_CHECK(out.size(0) == count && out.size(1) == rows && out.size(2) == size, "rotate: out must be [h, T, D]");
  TORCH_CHECK(cos.size(0) == rows && cos.size(1) == half && sin.sizes() == cos.sizes(), "rotate: angles must be [T, D / 2]");
  TORCH_CHECK(size <= 1024 && (!weight || weight->numel() == size), "rotate: shapes differ");
  const Bits *from = bits(heads), *scale = weight ? bits(*weight) : nullptr, *cosines = bits(cos), *sines = bits(sin);
  Bits* to = bits(out);
  const int64_t row_step = heads.stride(0), head_step = heads.stride(1), angle_step = cos.stride(0), sine_step = sin.stride(0);
  const int64_t out_head = out.stride(0), out_row = out.stride(1);
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / (count * size)), [&](int64_t begin, int64_t end) {
    float values[1024];
    for (int64_t row = begin; row < end; ++row) {
      const Bits *c = cosines + row * angle_step, *s = sines + row * sine_step;
      for (int64_t head = 0; head < count; ++head) {
        const Bits* source = from + row * row_step + head * head_step;
        Bits* target = to + head * out_head + row * out_row;
        if (scale) {
          const float factor = inverse_root(source, size, static_cast<float>(epsilon));
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) values[i] = rounded(rounded(widened(source[i]) * factor) * widened(scale[i]));
        } else {
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) values[i] = widened(source[i]);
        }
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          const float first = values[i], second = values[half + i], cosine = widened(c[i]), sine = widened(s[i]);
          target[i] = narrowed(first * cosine - second * sine);
          target[half + i] = narrowed(second * cosine + first * sine);
        }
      }
    }
  });
}

// silu(gate) * up, both [T, I] and dense, to gate.
void silu_multiply(Tensor& gate, const Tensor& up) {
  check_rows(gate, "gate"), check_rows(up, "up");
  TORCH_CHECK(gate.is_contiguous() && up.is_contiguous() && gate.numel() == up.numel(), "silu_multiply: shapes differ");
  Bits* target = bits(gate);
  const Bits* other = bits(up);
  at::parallel_for(0, gate.numel(), 8192, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float gated = widened(target[i]);
      const float value = gated < -87.0f ? -87.0f : gated;  // silu of what is lower is nothing, and this 1e-36
      target[i] = narrowed(value / (1.0f + power_of_two(-1.44269504f * value)) * widened(other[i]));
    }
  });
}

// Keys and values of a run of tokens, as oneDNN wants the right side of a product: two neighbours along the summed
// dimension side by side. Keys come in blocks of kKeys, each [D / 2][kKeys][2]; values are [n / 2][D][2].
struct Packed {
  const Bits *key, *value;
  int64_t key_head, key_row, value_head, value_row;  // steps
  int64_t length, start, padded, offset;
};

int64_t up_to(int64_t length, int64_t grain) { return (length + grain - 1) / grain * grain; }

void pack_keys(const Packed& run, int64_t head, int64_t size, Bits* to) {
  const int64_t half = size / 2;
  uint32_t* words = reinterpret_cast<uint32_t*>(to);
  for (int64_t block = 0; block < run.padded; block += kKeys) {
    uint32_t* target = words + block * half;
    for (int64_t key = 0; key < std::min(kKeys, run.padded - block); ++key) {
      if (block + key < run.length) {
        const Bits* source = run.key + head * run.key_head + (block + key) * run.key_row;
        for (int64_t i = 0; i < half; ++i) std::memcpy(target + i * kKeys + key, source + 2 * i, sizeof(uint32_t));
      } else {
        for (int64_t i = 0; i < half; ++i) target[i * kKeys + key] = 0;
      }
    }
  }
}

void pack_values(const Packed& run, int64_t head, int64_t size, Bits* to) {
  uint32_t* target = reinterpret_cast<uint32_t*>(to);
  for (int64_t key = 0; key < run.padded; key += 2, target += size) {
    const Bits* first = run.value + head * run.value_head + key * run.value_row;
    const Bits* second = first + run.value_row;
    if (key + 1 < run.length) {
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) target[i] = first[i] | static_cast<uint32_t>(second[i]) << 16;
    } else if (key < run.length) {
      for (int64_t i = 0; i < size; ++i) target[i] = first[i];
    } else {
      std::memset(target, 0, size * sizeof(uint32_t));
    }
  }
}

// What a thread needs to let a block of queries read.
struct Desk {
  std::vector<Bits> queries, weights;
  std::vector<float> logits, sums, highest, total;

  void resize(int64_t rows, int64_t size) {
    queries.resize(rows * size), weights.resize(rows * kChunk);
    logits.resize(rows * kChunk), sums.resize(rows * size);
    highest.resize(rows), total.resize(rows);
  }
};

// One row of logits to weights: those from `from` to `to` (of `keys`) count. Returns what the row's sums shrink by.
inline float weigh(const float* logits, int64_t from, int64_t to, int64_t keys, float scale, float& highest, float& total,
                   Bits* weights) {
  if (from >= to) {
    std::memset(weights, 0, keys * sizeof(Bits));
    return 1.0f;
  }
  float most = kLowest;
#pragma omp simd reduction(max : most)
  for (int64_t i = from; i < to; ++i) most = logits[i] > most ? logits[i] : most;
  most = std::max(highest, most * scale);
  const float shrunk = highest == kLowest ? 0.0f : power_of_two(highest - most);
  float sum = 0;
  if (from) std::memset(weights, 0, from * sizeof(Bits));
#pragma omp simd reduction(+ : sum)
  for (int64_t i = from; i < to; ++i) {
    const float weight = power_of_two(logits[i] * scale - most);
    sum += weight;
    weights[i] = narrowed_up(weight);
  }
  if (to < keys) std::memset(weights + to, 0, (keys - to) * sizeof(Bits));
  highest = most;
  total = total * shrunk + sum;
  return shrunk;
}

// What queries [Hq, Q, D] read from keys and values of runs, to out [Q, Hq, D].
//
// sources are pairs of keys and values, [Hk, n, D] each. A row of runs: source, first token in it, tokens, position of
// the first. A row of blocks: first query, queries (at neighbouring positions), position of the first, first and last
// (one behind) in paths, which has the runs that a block sees, in order; it sees no token behind its own position.
void attend(const Tensor& query, at::TensorList keys, at::TensorList values, const Tensor& runs, const Tensor& blocks,
            const Tensor& paths, double scale, int64_t window, Tensor& out) {
  check_rows(query, "query"), check_rows(out, "out");
  const int64_t heads = query.size(0), size = query.size(2), key_heads = keys[0].size(0), group = heads / key_heads;
  TORCH_CHECK(heads == group * key_heads && size % 2 == 0 && keys.size() == values.size(), "attend: shapes differ");
  TORCH_CHECK(out.size(0) == query.size(1) && out.size(1) == heads && out.size(2) == size, "attend: out must be [Q, Hq, D]");
  const auto run_rows = runs.accessor<int64_t, 2>();
  const auto block_rows = blocks.accessor<int64_t, 2>();
  const auto path = paths.accessor<int64_t, 1>();

  std::vector<Packed> packed;
  int64_t tokens = 0;
  for (int64_t i = 0; i < runs.size(0); ++i) {
    const Tensor &key = keys[run_rows[i][0]], &value = values[run_rows[i][0]];
    check_rows(key, "keys"), check_rows(value, "values");
    const int64_t first = run_rows[i][1], length = run_rows[i][2], padded = up_to(length, kGrain);
    TORCH_CHECK(first >= 0 && first + length <= key.size(1) && key.sizes() == value.sizes(), "attend: a run is outside its source");
    packed.push_back({bits(key) + first * key.stride(1), bits(value) + first * value.stride(1), key.stride(0), key.stride(1),
                      value.stride(0), value.stride(1), length, run_rows[i][3], padded, tokens});
    tokens += up_to(padded, kKeys);
  }
  const Tensor room = at::empty({2, key_heads, tokens, size}, query.options());
  Bits* packed_keys = bits(room);
  Bits* packed_values = packed_keys + key_heads * tokens * size;
  const int64_t run_count = packed.size();
  at::parallel_for(0, run_count * key_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Packed& run = packed[i % run_count];
      const int64_t at = (i / run_count * tokens + run.offset) * size;
      pack_keys(run, i / run_count, size, packed_keys + at);
      pack_values(run, i / run_count, size, packed_values + at);
    }
  });

  int64_t most = 1;
  for (int64_t i = 0; i < blocks.size(0); ++i) most = std::max(most, block_rows[i][1]);
  const float factor = static_cast<float>(scale * 1.4426950408889634);
  const Bits* queries = bits(query);
  Bits* read = bits(out);
  std::atomic<int64_t> next{0};
  const int64_t block_count = blocks.size(0), work = block_count * key_heads;
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), work), 1, [&](int64_t, int64_t) {
    thread_local Desk desk;
    desk.resize(up_to(group * most, kGrain), size);
    for (int64_t task; (task = next.fetch_add(1)) < work;) {
      const int64_t head = task / block_count, block = task % block_count;
      const int64_t first = block_rows[block][0], count = block_rows[block][1], position = block_rows[block][2];
      const int64_t rows = group * count, rounded_rows = up_to(rows, kGrain);
      for (int64_t member = 0; member < group; ++member) {
        const Bits* source = queries + (head * group + member) * query.stride(0) + first * query.stride(1);
        for (int64_t row = 0; row < count; ++row)
          std::memcpy(desk.queries.data() + (member * count + row) * size, source + row * query.stride(1), size * sizeof(Bits));
      }
      std::fill_n(desk.highest.data(), rows, kLowest);
      std::fill_n(desk.total.data(), rows, 0.0f);
      bool fresh = true;
      for (int64_t step = block_rows[block][3]; step < block_rows[block][4]; ++step) {
        const Packed& run = packed[path[step]];
        const int64_t seen = std::min(run.length, position + count - run.start);
        for (int64_t key = 0; key < seen; key += kChunk) {
          const int64_t start = run.start + key, real = std::min(kChunk, seen - key), some = up_to(real, kGrain);
          if (window > 0 && start + real <= position - window + 1) continue;
          const int64_t at = (head * tokens + run.offset + key) * size;
          for (int64_t column = 0; column < some; column += kKeys) {
            at::native::cpublas::brgemm(rounded_rows, std::min(kKeys, some - column), size, size, kKeys, kChunk, false,
                                        reinterpret_cast<const BFloat16*>(desk.queries.data()),
                                        reinterpret_cast<const BFloat16*>(packed_keys + at + column * size),
                                        desk.logits.data() + column);
          }
          for (int64_t row = 0; row < rows; ++row) {
            const int64_t own = position + row % count;
            const int64_t to = std::min(real, own + 1 - start);
            const int64_t from = window > 0 ? std::max<int64_t>(0, own + 1 - window - start) : 0;
            const float shrunk = weigh(desk.logits.data() + row * kChunk, from, to, some, factor, desk.highest[row],
                                       desk.total[row], desk.weights.data() + row * kChunk);
            if (!fresh && shrunk != 1.0f) {
              float* sums = desk.sums.data() + row * size;
#pragma omp simd
              for (int64_t i = 0; i < size; ++i) sums[i] *= shrunk;
            }
          }
          at::native::cpublas::brgemm(rounded_rows, size, some, kChunk, size, size, !fresh,
                                      reinterpret_cast<const BFloat16*>(desk.weights.data()),
                                      reinterpret_cast<const BFloat16*>(packed_values + at), desk.sums.data());
          fresh = false;
        }
      }
      for (int64_t row = 0; row < rows; ++row) {
        const float* sums = desk.sums.data() + row * size;
        Bits* target = read + (first + row % count) * out.stride(0) + (head * group + row / count) * out.stride(1);
        const float inverse = 1.0f / desk.total[row];
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) target[i] = narrowed(sums[i] * inverse);
      }
    }
    at::native::cpublas::brgemm_release();
  });
}

TORCH_LIBRARY(paragone, library) {
  library.def("rms_norm(Tensor rows, Tensor weight, float epsilon, Tensor(a!) out) -> ()", &rms_norm);
  library.def("rotate(Tensor heads, Tensor? weight, float epsilon, Tensor cos, Tensor sin, Tensor(a!) out) -> ()", &rotate);
  library.def("silu_multiply(Tensor(a!) gate, Tensor up) -> ()", &silu_multiply);
  library.def(
      "attend(Tensor query, Tensor[] keys, Tensor[] values, Tensor runs, Tensor blocks, Tensor paths, float scale, "
      "int window, Tensor(a!) out) -> ()",
      &attend);
}

}  // namespace
