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

constexpr int64_t kKeys = 128;   // keys that queries are multiplied with at once
constexpr int64_t kChunk = 256;  // keys whose logits are made before their weights are, some blocks of kKeys
constexpr int64_t kGrain = 32;  // keys of a run and queries of a block are rounded up, so that products have few shapes
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

// To the nearest, for what is not negative; between two, upwards. Two operations in place of four.
inline Bits narrowed_weight(float value) {
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
  TORCH_CHECK(tensor.is_cpu() && tensor.scalar_type() == at::kBFloat16 && tensor.stride(-1) == 1, name,
              " must be bfloat16 on the CPU, its last dimension dense");
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
  TORCH_CHECK(cos.size(0) == rows && cos.size(1) == half && sin.sizes() == cos.sizes(),
              "rotate: angles must be [T, D / 2]");
  TORCH_CHECK(size <= 1024 && (!weight || weight->numel() == size), "rotate: shapes differ");
  const Bits *from = bits(heads), *scale = weight ? bits(*weight) : nullptr, *cosines = bits(cos), *sines = bits(sin);
  Bits* to = bits(out);
  const int64_t row_step = heads.stride(0), head_step = heads.stride(1), angle_step = cos.stride(0),
                sine_step = sin.stride(0);
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
          for (int64_t i = 0; i < size; ++i)
            values[i] = rounded(rounded(widened(source[i]) * factor) * widened(scale[i]));
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

int64_t up_to(int64_t length, int64_t grain) { return (length + grain - 1) / grain * grain; }

// A run of tokens whose keys and values are read: where they are, and where they are packed.
struct Tokens {
  const Bits *key, *value;
  int64_t key_head, key_row, value_head, value_row;  // steps
  int64_t length, start, padded, offset;
};

// Packed as oneDNN wants the right side of a product: two neighbours along the summed dimension side by side. Keys come
// in blocks of kKeys, each [D / 2][kKeys][2]; values are [n / 2][D][2].
void pack_keys(const Tokens& run, int64_t head, int64_t size, Bits* to) {
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

void pack_values(const Tokens& run, int64_t head, int64_t size, Bits* to) {
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

// c = a b, or c += a b: a [m, k] with its step, b packed with its step, c [m, n] with its step.
void multiply(int64_t m, int64_t n, int64_t k, const Bits* a, int64_t a_step, const Bits* b, int64_t b_step, float* c,
              int64_t c_step, bool add) {
  at::native::cpublas::brgemm(m, n, k, a_step, b_step, c_step, add, reinterpret_cast<const BFloat16*>(a),
                              reinterpret_cast<const BFloat16*>(b), c);
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
inline float weigh(const float* logits, int64_t from, int64_t to, int64_t keys, float scale, float& highest,
                   float& total, Bits* weights) {
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
    weights[i] = narrowed_weight(weight);
  }
  if (to < keys) std::memset(weights + to, 0, (keys - to) * sizeof(Bits));
  highest = most;
  total = total * shrunk + sum;
  return shrunk;
}

// Neighbouring queries, at neighbouring positions, and the stretch of paths that they see.
struct Block {
  int64_t first, count, position, path, path_end;
};

// One attention: all that any block of queries needs to read.
struct Reader {
  const Bits* query;
  int64_t query_head, query_row;  // steps
  Bits* out;
  int64_t out_row, out_head;  // steps
  std::vector<Tokens> runs;
  const int64_t* paths;
  const Bits *keys, *values;  // packed, [Hk, tokens, D]
  int64_t tokens, size, group, window;
  float scale;  // to powers of two

  // Let a block of the queries of a key head read.
  void operator()(const Block& block, int64_t head, Desk& desk) const {
    const int64_t rows = group * block.count;
    for (int64_t row = 0; row < rows; ++row) {
      const Bits* source = query + (head * group + row / block.count) * query_head;
      std::memcpy(desk.queries.data() + row * size, source + (block.first + row % block.count) * query_row,
                  size * sizeof(Bits));
    }
    std::fill_n(desk.highest.data(), rows, kLowest);
    std::fill_n(desk.total.data(), rows, 0.0f);
    bool fresh = true;
    for (int64_t step = block.path; step < block.path_end; ++step) {
      const Tokens& run = runs[paths[step]];
      const int64_t seen = std::min(run.length, block.position + block.count - run.start);
      for (int64_t key = 0; key < seen; key += kChunk) {
        const int64_t real = std::min(kChunk, seen - key);
        if (window > 0 && run.start + key + real <= block.position - window + 1) continue;
        add_chunk(block, run.start + key, real, (head * tokens + run.offset + key) * size, fresh, desk);
        fresh = false;
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      const float* sums = desk.sums.data() + row * size;
      const float inverse = 1.0f / desk.total[row];
      Bits* target = out + (block.first + row % block.count) * out_row + (head * group + row / block.count) * out_head;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) target[i] = narrowed(sums[i] * inverse);
    }
  }

  // Add what some keys have, from position start and from place `at` on, to the sums of a block.
  void add_chunk(const Block& block, int64_t start, int64_t real, int64_t at, bool fresh, Desk& desk) const {
    const int64_t rows = group * block.count, rounded_rows = up_to(rows, kGrain), some = up_to(real, kGrain);
    for (int64_t column = 0; column < some; column += kKeys) {
      multiply(rounded_rows, std::min(kKeys, some - column), size, desk.queries.data(), size, keys + at + column * size,
               kKeys, desk.logits.data() + column, kChunk, false);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t own = block.position + row % block.count;
      const int64_t to = std::min(real, own + 1 - start);
      const int64_t from = window > 0 ? std::max<int64_t>(0, own + 1 - window - start) : 0;
      const float shrunk = weigh(desk.logits.data() + row * kChunk, from, to, some, scale, desk.highest[row],
                                 desk.total[row], desk.weights.data() + row * kChunk);
      if (fresh || shrunk == 1.0f) continue;
      float* sums = desk.sums.data() + row * size;
#pragma omp simd
      for (int64_t i = 0; i < size; ++i) sums[i] *= shrunk;
    }
    multiply(rounded_rows, size, some, desk.weights.data(), kChunk, values + at, size, desk.sums.data(), size, !fresh);
  }
};

// What queries [Hq, Q, D] read from keys and values of runs, to out [Q, Hq, D].
//
// Sources are pairs of keys and values, [Hk, n, D] each. A row of runs: source, first token in it, tokens, position of
// the first. A row of blocks: first query, queries, position of the first, first and last (one behind) in paths, which
// has the runs that the block sees, in order; a query sees no token behind its own position.
void attend(const Tensor& query, at::TensorList keys, at::TensorList values, const Tensor& runs, const Tensor& blocks,
            const Tensor& paths, double scale, int64_t window, Tensor& out) {
  check_rows(query, "query"), check_rows(out, "out");
  const int64_t heads = query.size(0), size = query.size(2), key_heads = keys[0].size(0), group = heads / key_heads;
  TORCH_CHECK(heads == group * key_heads && size % 2 == 0 && keys.size() == values.size(), "attend: shapes differ");
  TORCH_CHECK(out.size(0) == query.size(1) && out.size(1) == heads && out.size(2) == size,
              "attend: out must be [Q, Hq, D]");
  TORCH_CHECK(paths.is_contiguous(), "attend: paths must be dense");
  Reader reader{bits(query),
                query.stride(0),
                query.stride(1),
                bits(out),
                out.stride(0),
                out.stride(1),
                {},
                paths.data_ptr<int64_t>(),
                nullptr,
                nullptr,
                0,
                size,
                group,
                window,
                static_cast<float>(scale * 1.4426950408889634)};

  const auto run_rows = runs.accessor<int64_t, 2>();
  for (int64_t i = 0; i < runs.size(0); ++i) {
    const Tensor &key = keys[run_rows[i][0]], &value = values[run_rows[i][0]];
    check_rows(key, "keys"), check_rows(value, "values");
    const int64_t first = run_rows[i][1], length = run_rows[i][2], padded = up_to(length, kGrain);
    TORCH_CHECK(first >= 0 && first + length <= key.size(1) && key.size(2) == size && key.sizes() == value.sizes(),
                "attend: a run is outside its source");
    reader.runs.push_back({bits(key) + first * key.stride(1), bits(value) + first * value.stride(1), key.stride(0),
                           key.stride(1), value.stride(0), value.stride(1), length, run_rows[i][3], padded,
                           reader.tokens});
    reader.tokens += up_to(padded, kKeys);
  }
  const auto block_rows = blocks.accessor<int64_t, 2>();
  std::vector<Block> queue;
  int64_t most = 1;
  for (int64_t i = 0; i < blocks.size(0); ++i) {
    const auto row = block_rows[i];
    queue.push_back({row[0], row[1], row[2], row[3], row[4]});
    TORCH_CHECK(row[0] >= 0 && row[0] + row[1] <= query.size(1) && row[3] >= 0 && row[4] <= paths.size(0),
                "attend: a block is outside the queries or the paths");
    most = std::max(most, row[1]);
  }

  const Tensor room = at::empty({2, key_heads, reader.tokens, size}, query.options());
  Bits* packed_keys = bits(room);
  Bits* packed_values = packed_keys + key_heads * reader.tokens * size;
  reader.keys = packed_keys, reader.values = packed_values;
  const int64_t run_count = reader.runs.size(), block_count = queue.size(), work = block_count * key_heads;
  at::parallel_for(0, run_count * key_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Tokens& run = reader.runs[i % run_count];
      const int64_t at = (i / run_count * reader.tokens + run.offset) * size;
      pack_keys(run, i / run_count, size, packed_keys + at);
      pack_values(run, i / run_count, size, packed_values + at);
    }
  });
  std::atomic<int64_t> next{0};  // blocks differ in length: whoever is free takes the next one
  at::parallel_for(0, std::min<int64_t>(at::get_num_threads(), work), 1, [&](int64_t, int64_t) {
    thread_local Desk desk;
    desk.resize(up_to(group * most, kGrain), size);
    for (int64_t task; (task = next.fetch_add(1)) < work;) reader(queue[task % block_count], task / block_count, desk);
    at::native::cpublas::brgemm_release();
  });
}

TORCH_LIBRARY(paragone, library) {
  library.def("rms_norm(Tensor rows, Tensor weight, float epsilon, Tensor(a!) out) -> ()", &rms_norm);
  library.def("rotate(Tensor heads, Tensor? weight, float epsilon, Tensor cos, Tensor sin, Tensor(a!) out) -> ()",
              &rotate);
  library.def("silu_multiply(Tensor(a!) gate, Tensor up) -> ()", &silu_multiply);
  library.def(
      "attend(Tensor query, Tensor[] keys, Tensor[] values, Tensor runs, Tensor blocks, Tensor paths, float scale, "
      "int window, Tensor(a!) out) -> ()",
      &attend);
}

}  // namespace
