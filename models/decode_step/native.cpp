// The decoder for one new token per row, on a CPU: the numbers of `Decoder.forward` for T = 1.
//
// All threads go through the layers together. Each computes some heads of the attention and some
// rows of every matrix, so that every weight is read once, by one core, in the order in which it
// lies in memory. models/decode_step/native.py compiles this file, fills the structures and calls it.
//
// R rows (row r belongs to image r / (R / B)), D width, M hidden units of the MLP, nh heads of
// size hd, T places in the cache, S image tokens; D, M and hd are multiples of 16. Weights and
// cache are of type Number: float32, or bfloat16, which is half to read; all else is float32.
// With INT8 the matrices are of type Weight, int8 with a float32 scale per output, a quarter to read,
// and the keys and values of images, of type Memory, are bfloat16.
// Tokens lie in G groups of W rows, the rows of a group side by side: (G, features, W).
// One row alone is W = 1: the lanes of the processor go along the features. Otherwise they go
// along the rows, the last group is filled up, and a number of a matrix meets W rows at once.

#ifdef __AVX2__
#include <immintrin.h>
#endif
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, OUTS_OF_TWO_GROUPS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, OUTS_OF_TWO_GROUPS = 4;  // as many sums as there are registers for
#else
constexpr int LANES = 4, OUTS_OF_TWO_GROUPS = 4;
#endif
constexpr int OUTS = 8;  // rows of a matrix that are multiplied together
constexpr int BLOCK = 4 * OUTS;

template <int W>
struct Vectors {
  typedef float floats __attribute__((vector_size(4 * W)));
  typedef int32_t ints __attribute__((vector_size(4 * W)));
  typedef uint32_t words __attribute__((vector_size(4 * W)));
  typedef float anywhere __attribute__((vector_size(4 * W), aligned(4)));  // in an array
  typedef uint16_t halves_anywhere __attribute__((vector_size(2 * W), aligned(2)));
  typedef int8_t bytes_anywhere __attribute__((vector_size(W), aligned(1)));
};
template <int W>
using Vec = typename Vectors<W>::floats;
template <int W>
using Ints = typename Vectors<W>::ints;

template <int W>
Vec<W> load(const float* p) {
  return *reinterpret_cast<const typename Vectors<W>::anywhere*>(p);
}
template <int W>
void store(float* p, const Vec<W>& values) {
  *reinterpret_cast<typename Vectors<W>::anywhere*>(p) = values;
}

using Bfloat16 = uint16_t;  // the upper half of a float

// Each of these is used with some types alone.
[[maybe_unused]] float value(float number) { return number; }
[[maybe_unused]] float value(Bfloat16 number) {
  const uint32_t bits = static_cast<uint32_t>(number) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

[[maybe_unused]] void round_to(float* number, float x) { *number = x; }
[[maybe_unused]] void round_to(Bfloat16* number, float x) {  // the nearest; a tie goes to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  *number = x != x ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

template <int W>
Vec<W> load(const Bfloat16* p) {
  const auto halves = *reinterpret_cast<const typename Vectors<W>::halves_anywhere*>(p);
  return (Vec<W>)(__builtin_convertvector(halves, typename Vectors<W>::words) << 16);
}

// Compilers widen bytes in more instructions: a token took twice as long.
template <int W>
Vec<W> load(const int8_t* p) {
#ifdef __AVX512F__
  if constexpr (W == 16)
    return (Vec<W>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#endif
#ifdef __AVX2__
  if constexpr (W == 8)
    return (Vec<W>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#endif
  const auto bytes = *reinterpret_cast<const typename Vectors<W>::bytes_anywhere*>(p);
  return __builtin_convertvector(__builtin_convertvector(bytes, Ints<W>), Vec<W>);
}

#if defined(BFLOAT16)
using Number = Bfloat16;
using Weight = Bfloat16;
using Memory = Bfloat16;
#elif defined(INT8)
using Number = float;
using Weight = int8_t;
using Memory = Bfloat16;
#else
using Number = float;
using Weight = float;
using Memory = float;
#endif

// n numbers, a multiple of 16, as floats, in `room` if they are not.
template <typename T>
const float* floats(const T* p, int64_t n, std::vector<float>& room) {
  if constexpr (std::is_same_v<T, float>) {
    return p;
  } else {
    if (static_cast<int64_t>(room.size()) < n) room.resize(n);
    for (int64_t i = 0; i < n; i += LANES) store<LANES>(room.data() + i, load<LANES>(p + i));
    return room.data();
  }
}

template <typename T>
struct Matrix {
  const T* weight;     // (out, in)
  const Number* bias;  // (out,) or null
  const float* scale;  // (out,), by which the rows of `weight` are multiplied, or null
  int64_t out, in;
};
using Linear = Matrix<Weight>;

struct Norm {
  const Number *weight, *bias;  // (D,); null: no norm
  float eps;
};

struct Layer {
  Norm self_ln, cross_ln, mlp_ln;
  Linear qkv, self_out, q, cross_out, dense1, dense2;
  Number *k, *v;                      // (R, nh, T, hd)
  const Memory *memory_k, *memory_v;  // (B, nh, S, hd)
};

struct Decoder {
  const Layer* layers;
  Norm output_ln;
  Linear head;
  int64_t num_layers, num_rows, num_images, num_heads, dim, mlp_dim, max_len, memory_len;
  int32_t post_norm;  // LayerNorms after the sums, and ReLU instead of GELU
};

// The exponential of numbers <= 0, within 2e-7 of it: 2^n * e^f with |f| <= ln(2) / 2 (Cephes).
// That of -87, 1.6e-38, stands for all below.
template <int W>
Vec<W> exponential(Vec<W> x) {
  x = x < -87.0f ? Vec<W>{} - 87.0f : x;
  const Ints<W> n = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints<W>);
  const Vec<W> whole = __builtin_convertvector(n, Vec<W>);
  const Vec<W> f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vec<W> p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  return (p * f * f + f + 1.0f) * (Vec<W>)((n + 127) << 23);
}

// x * Phi(x); the error function after Abramowitz and Stegun 7.1.26, within 2e-7 of it.
template <int W>
Vec<W> gelu(Vec<W> x) {
  const Vec<W> a = (x < 0.0f ? -x : x) * 0.70710678f, t = 1.0f / (a * 0.3275911f + 1.0f);
  Vec<W> p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec<W> tail = p * t * exponential<W>(-a * a);  // 1 - erf(a)
  return x * 0.5f * (x < 0.0f ? tail : 2.0f - tail);
}

using Line = Vec<LANES>;

// Of two vectors made of blocks of 2 * HALF lanes: the halves of each block summed, in order.
template <int HALF, int... I>
Line fold(const Line& a, const Line& b, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, (I / HALF * 2 * HALF + I % HALF)...) +
         __builtin_shufflevector(a, b, (I / HALF * 2 * HALF + I % HALF + HALF)...);
#else
  const Ints<LANES> low{(I / HALF * 2 * HALF + I % HALF)...};
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + HALF);
#endif
}

// Sums over the lanes of each of LANES vectors, which are overwritten.
template <int HALF = LANES / 2>
Line totals(Line* sums) {
  for (int i = 0; i < HALF; i++)
    sums[i] = fold<HALF>(sums[2 * i], sums[2 * i + 1], std::make_integer_sequence<int, LANES>());
  if constexpr (HALF == 1)
    return sums[0];
  else
    return totals<HALF / 2>(sums);
}

float total(const Line& v) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}

// The products of the lanes of two arrays of n numbers, summed up; n is a multiple of 16.
template <typename T>
Line dot(const T* a, const float* b, int64_t n) {
  Line sums[4] = {};  // none waits for another
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES)
    for (int c = 0; c < 4; c++)
      sums[c] += load<LANES>(a + i + c * LANES) * load<LANES>(b + i + c * LANES);
  for (; i < n; i += LANES) sums[0] += load<LANES>(a + i) * load<LANES>(b + i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Sums over i < n of matrix[o][i] * x[g][i], a number times the W rows of a group, for N
// outputs o (`outputs[o]` is where they begin, `step` apart) and GROUPS groups (x: (GROUPS, n, W)).
template <int W, int GROUPS, int N>
void multiply(const float* const* outputs, int64_t step, const float* x, int64_t n,
              Vec<W> (&result)[GROUPS][N]) {
  Vec<W> sums[GROUPS][N] = {}, some[GROUPS];  // in registers
  for (int64_t i = 0; i < n; i++) {
    for (int g = 0; g < GROUPS; g++) some[g] = load<W>(x + (g * n + i) * W);
    for (int o = 0; o < N; o++) {
      const float number = outputs[o][i * step];
      for (int g = 0; g < GROUPS; g++) sums[g][o] += number * some[g];
    }
  }
  std::copy_n(&sums[0][0], GROUPS * N, &result[0][0]);
}

// The outputs [first, last) of a linear layer of x (G, in, W): calls put(g, o, values), with the W
// rows of one output, or for W = 1 with LANES outputs, of which those from `last` on mean nothing.
template <int W, typename T, typename Put>
void product(const Matrix<T>& l, const float* x, int64_t groups, int64_t first, int64_t last,
             Put put) {
  if constexpr (W == 1) {
    for (int64_t o = first; o < last; o += LANES) {
      Line sums[LANES], bias = {}, scale = Line{} + 1.0f;
      for (int j = 0; j < LANES; j++)
        sums[j] = dot(l.weight + std::min(o + j, last - 1) * l.in, x, l.in);
      for (int j = 0; l.scale && j < LANES && o + j < last; j++) scale[j] = l.scale[o + j];
      for (int j = 0; l.bias && j < LANES && o + j < last; j++) bias[j] = value(l.bias[o + j]);
      put(0, o, totals(sums) * scale + bias);
    }
  } else {
    const auto put_one = [&](int64_t g, int64_t o, const Vec<W>& sum) {
      if (o >= last) return;
      put(g, o, sum * (l.scale ? l.scale[o] : 1.0f) + (l.bias ? value(l.bias[o]) : 0.0f));
    };
    static thread_local std::vector<float> room;
    for (int64_t block = first; block < last; block += BLOCK) {  // near while the groups pass
      const int64_t end = std::min(block + BLOCK, last);
      const float* weight = floats(l.weight + block * l.in, (end - block) * l.in, room);
      for (int64_t g = 0; g < groups; g += 2)
        for (int64_t o = block; o < end; o += OUTS) {
          const float *rows[OUTS], *some = x + g * l.in * W;
          for (int j = 0; j < OUTS; j++)
            rows[j] = weight + (std::min(o + j, end - 1) - block) * l.in;
          if (g + 1 == groups) {
            Vec<W> sums[1][OUTS];
            multiply<W>(rows, 1, some, l.in, sums);
            for (int j = 0; j < OUTS; j++) put_one(g, o + j, sums[0][j]);
            continue;
          }
          for (int part = 0; part < OUTS; part += OUTS_OF_TWO_GROUPS) {
            Vec<W> sums[2][OUTS_OF_TWO_GROUPS];
            multiply<W>(rows + part, 1, some, l.in, sums);
            for (int j = 0; j < 2 * OUTS_OF_TWO_GROUPS; j++)
              put_one(g + j % 2, o + part + j / 2, sums[j % 2][j / 2]);
          }
        }
    }
  }
}

// y = LayerNorm(x), (G, dim, W); x and y may be the same.
template <int W>
void normalize(const Norm& norm, const float* x, float* y, int64_t groups, int64_t dim) {
  constexpr int STEP = W == 1 ? LANES : W, PLACES = STEP / W;  // numbers and features at a time
  for (int64_t g = 0; g < groups; g++, x += dim * W, y += dim * W) {
    Vec<STEP> sums[2] = {}, squares[2] = {};
    for (int64_t i = 0, c = 0; i < dim * W; i += STEP, c ^= 1) sums[c] += load<STEP>(x + i);
    const auto mean_of = [&](const Vec<STEP>& sum) {
      if constexpr (W == 1)
        return total(sum) / dim;
      else
        return sum / static_cast<float>(dim);
    };
    const auto mean = mean_of(sums[0] + sums[1]);
    for (int64_t i = 0, c = 0; i < dim * W; i += STEP, c ^= 1) {
      const Vec<STEP> from_mean = load<STEP>(x + i) - mean;
      squares[c] += from_mean * from_mean;
    }
    auto scale = mean_of(squares[0] + squares[1]) + norm.eps;
    if constexpr (W == 1)
      scale = 1 / std::sqrt(scale);
    else
      for (int r = 0; r < W; r++) scale[r] = 1 / std::sqrt(scale[r]);
    for (int64_t i = 0; i < dim; i += PLACES) {
      const Vec<STEP> unit = (load<STEP>(x + i * W) - mean) * scale;
      if constexpr (W == 1)
        store<STEP>(y + i, unit * load<STEP>(norm.weight + i) + load<STEP>(norm.bias + i));
      else
        store<STEP>(y + i * W, unit * value(norm.weight[i]) + value(norm.bias[i]));
    }
  }
}

template <typename T>
void prefetch(const T* p, int64_t n) {
  constexpr int64_t LINE = 64 / sizeof(T);  // of the processor's cache
  for (int64_t i = 0; i < n; i += LINE) __builtin_prefetch(p + i, 0, 2);
}

// out (hd,): the values v (n, hd) weighted by the softmax of the query q (hd,) on the keys k
// (n, hd). `scores` has room for n and LANES more; `next` are keys that may be asked next.
template <typename T>
void attend(const float* q, const T* k, const T* v, int64_t n, int64_t hd, float* scores,
            float* out, const T* next) {
  const float scale = 1 / std::sqrt(static_cast<float>(hd));
  const Matrix<T> keys{k, nullptr, nullptr, n, hd};
  product<1>(keys, q, 1, 0, n, [&](int64_t, int64_t s, const Line& sums) {
    prefetch(v + s * hd, LANES * hd);
    store<LANES>(scores + s, sums * scale);
  });
  std::fill(scores + n, scores + n + LANES, -INFINITY);  // the last vector reaches into these
  Line best = load<LANES>(scores);
  for (int64_t s = 0; s < n; s += LANES) {
    const Line some = load<LANES>(scores + s);
    best = some > best ? some : best;
  }
  float most = best[0];
  for (int i = 1; i < LANES; i++) most = std::max(most, best[i]);
  Line sums = {};
  for (int64_t s = 0; s < n; s += LANES) {
    const Line weights = exponential<LANES>(load<LANES>(scores + s) - most);
    store<LANES>(scores + s, weights);
    sums += weights;
  }
  const float sum = total(sums);
  for (int64_t i = 0; i < hd; i += LANES) {
    Line parts[4] = {};
    int64_t s = 0;
    for (; s + 4 <= n; s += 4) {
      if (i == 0) prefetch(next + s * hd, 4 * hd);
      for (int c = 0; c < 4; c++) parts[c] += load<LANES>(v + (s + c) * hd + i) * scores[s + c];
    }
    for (; s < n; s++) parts[0] += load<LANES>(v + s * hd + i) * scores[s];
    store<LANES>(out + i, ((parts[0] + parts[1]) + (parts[2] + parts[3])) / sum);
  }
}

// The same for GROUPS groups of W queries on the same keys: q (GROUPS, hd, W), scores
// (GROUPS, n, W), out (GROUPS, hd, W).
template <int W, int GROUPS>
void attend_together(const float* q, const Memory* k, const Memory* v, int64_t n, int64_t hd,
                     float* scores, float* out) {
  constexpr int N = GROUPS == 1 ? OUTS : OUTS_OF_TWO_GROUPS;
  const float scale = 1 / std::sqrt(static_cast<float>(hd));
  Vec<W> most[GROUPS], sum[GROUPS] = {};
  std::fill_n(most, GROUPS, Vec<W>{} - INFINITY);
  const Matrix<Memory> keys{k, nullptr, nullptr, n, hd};
  product<W>(keys, q, GROUPS, 0, n, [&](int64_t g, int64_t s, const Vec<W>& score) {
    const Vec<W> scaled = score * scale;
    store<W>(scores + (g * n + s) * W, scaled);
    most[g] = scaled > most[g] ? scaled : most[g];
  });
  for (int64_t g = 0; g < GROUPS; g++)
    for (int64_t s = 0; s < n; s++) {
      float* place = scores + (g * n + s) * W;
      const Vec<W> weights = exponential<W>(load<W>(place) - most[g]);
      store<W>(place, weights);
      sum[g] += weights;
    }
  static thread_local std::vector<float> room;
  const float* values = floats(v, n * hd, room);
  for (int64_t i = 0; i < hd; i += N) {
    const float* columns[N];
    for (int j = 0; j < N; j++) columns[j] = values + i + j;
    Vec<W> sums[GROUPS][N];
    multiply<W>(columns, hd, scores, n, sums);
    for (int g = 0; g < GROUPS; g++)
      for (int j = 0; j < N; j++) store<W>(out + (g * hd + i + j) * W, sums[g][j] / sum[g]);
  }
}

// What one thread does in a step; `barrier` where it reads what others wrote.
template <int W>
struct Worker {
  static constexpr int LENGTH = W == 1 ? LANES : W;
  using Values = Vec<LENGTH>;  // what `product` puts

  const Decoder& d;
  float *x, *wide, *context;  // shared: tokens (G, D, W), (G, max(3 D, M), W), (G, D, W)
  const int64_t thread, threads;
  const int64_t groups = (d.num_rows + W - 1) / W, hd = d.dim / d.num_heads;
  const int64_t most_keys = std::max(d.memory_len, d.max_len);
  // its own: normalised tokens; queries, scores and values of two groups in attention
  std::vector<float> h = std::vector<float>(groups * W * d.dim);
  std::vector<float> q = std::vector<float>(2 * LANES * hd), out = q;
  std::vector<float> scores = std::vector<float>(2 * LANES * (most_keys + 1));

  // the part of n that is its own, in whole units
  std::pair<int64_t, int64_t> share(int64_t n, int64_t unit) const {
    const int64_t units = (n + unit - 1) / unit;
    return {units * thread / threads * unit, std::min(n, units * (thread + 1) / threads * unit)};
  }

  // where the number of a row and a feature lies in (G, features, W)
  static int64_t index_of(int64_t row, int64_t feature, int64_t features) {
    return (row / W * features + feature) * W + row % W;
  }

  const float* before(const Norm& norm) {  // the input of a branch
    if (d.post_norm) return x;
    normalize<W>(norm, x, h.data(), groups, d.dim);
    return h.data();
  }

  void write(const Linear& linear, const float* input, int64_t first, int64_t last) {  // to wide
    product<W>(linear, input, groups, first, last, [&](int64_t g, int64_t o, const Values& values) {
      store<LENGTH>(wide + (g * linear.out + o) * W, values);
    });
  }

  void add(const Linear& linear, const float* input, const Norm& norm) {  // x += linear(input)
    const auto [first, last] = share(d.dim, 16);
    product<W>(linear, input, groups, first, last, [&](int64_t g, int64_t o, const Values& values) {
      float* place = x + (g * d.dim + o) * W;
      store<LENGTH>(place, load<LENGTH>(place) + values);
    });
#pragma omp barrier
    if (!d.post_norm) return;
#pragma omp single
    normalize<W>(norm, x, x, groups, d.dim);
  }

  void self_attention(const Layer& layer, int64_t position) {
    const auto [first, last] = share(d.num_heads, 1);
    const float* input = before(layer.self_ln);
    for (int64_t part = 0; part < 3; part++)  // queries, keys, values of its heads
      write(layer.qkv, input, part * d.dim + first * hd, part * d.dim + last * hd);
    for (int64_t r = 0; r < d.num_rows; r++)
      for (int64_t head = first; head < last; head++) {
        const int64_t cache = (r * d.num_heads + head) * d.max_len * hd;
        Number *k = layer.k + cache, *v = layer.v + cache;
        const float* from = wide + index_of(r, head * hd, 3 * d.dim);
        for (int64_t i = 0; i < hd; i++) {
          q[i] = from[i * W];
          round_to(k + position * hd + i, from[(i + d.dim) * W]);
          round_to(v + position * hd + i, from[(i + 2 * d.dim) * W]);
        }
        const Number* next = k + d.max_len * hd;
        attend<Number>(q.data(), k, v, position + 1, hd, scores.data(), out.data(), next);
        float* to = context + index_of(r, head * hd, d.dim);
        for (int64_t i = 0; i < hd; i++) to[i * W] = out[i];
      }
#pragma omp barrier
    add(layer.self_out, context, layer.self_ln);
  }

  void cross_attention(const Layer& layer) {
    const auto [first, last] = share(d.num_heads, 1);
    write(layer.q, before(layer.cross_ln), first * hd, last * hd);
    const int64_t rows_per_image = d.num_rows / d.num_images;
    for (int64_t head = first; head < last; head++)
      for (int64_t image = 0; image < d.num_images; image++) {
        const int64_t memory = (image * d.num_heads + head) * d.memory_len * hd;
        const Memory *k = layer.memory_k + memory, *v = layer.memory_v + memory;
        int64_t row = image * rows_per_image, end = row + rows_per_image;
        while (row < end) row += attend_some(k, v, head, row, end - row);
      }
#pragma omp barrier
    add(layer.cross_out, context, layer.cross_ln);
  }

  // Of the next `left` rows of an image as many as pay together; returns how many these were.
  int64_t attend_some(const Memory* k, const Memory* v, int64_t head, int64_t row, int64_t left) {
    constexpr int HALF = std::min(8, LANES);
    if (left <= 4) return attend_rows<1, 1>(k, v, head, row, 1);
    if (left <= HALF) return attend_rows<HALF, 1>(k, v, head, row, left);
    if (left <= LANES) return attend_rows<LANES, 1>(k, v, head, row, left);
    return attend_rows<LANES, 2>(k, v, head, row, std::min<int64_t>(2 * LANES, left));
  }

  template <int N, int GROUPS>
  int64_t attend_rows(const Memory* k, const Memory* v, int64_t head, int64_t row, int64_t count) {
    for (int64_t r = 0; r < count; r++) {
      const float* from = wide + index_of(row + r, head * hd, d.dim);
      float* to = q.data() + r / N * hd * N + r % N;
      for (int64_t i = 0; i < hd; i++) to[i * N] = from[i * W];
    }
    const Memory* next = k + d.num_heads * d.memory_len * hd;  // of this head of the next image
    if constexpr (N == 1)
      attend(q.data(), k, v, d.memory_len, hd, scores.data(), out.data(), next);
    else
      attend_together<N, GROUPS>(q.data(), k, v, d.memory_len, hd, scores.data(), out.data());
    for (int64_t r = 0; r < count; r++) {
      const float* from = out.data() + r / N * hd * N + r % N;
      float* to = context + index_of(row + r, head * hd, d.dim);
      for (int64_t i = 0; i < hd; i++) to[i * W] = from[i * N];
    }
    return count;
  }

  void mlp(const Layer& layer) {
    const auto [first, last] = share(d.mlp_dim, 16);
    const float* input = before(layer.mlp_ln);
    const auto activate = [&](int64_t g, int64_t o, const Values& v) {
      const Values unit = d.post_norm ? (v < 0.0f ? Values{} : v) : gelu<LENGTH>(v);
      store<LENGTH>(wide + (g * d.mlp_dim + o) * W, unit);
    };
    product<W>(layer.dense1, input, groups, first, last, activate);
#pragma omp barrier
    add(layer.dense2, wide, layer.mlp_ln);
  }

  void logits(float* to) {  // (R, head.out)
    const auto [first, last] = share(d.head.out, 16);
    const float* hidden = d.output_ln.weight ? before(d.output_ln) : x;
    const int64_t end = last, rows = d.num_rows, outs = d.head.out;
    product<W>(d.head, hidden, groups, first, end, [=](int64_t g, int64_t o, const Values& values) {
      if constexpr (W == 1)
        for (int64_t j = 0; j < LANES && o + j < end; j++) to[o + j] = values[j];
      else
        for (int64_t r = 0; r < W && g * W + r < rows; r++) to[(g * W + r) * outs + o] = values[r];
    });
  }
};

template <int W>
void step(const Decoder& d, const float* embedded, float* scratch, float* logits,
          int64_t position, int32_t num_threads) {
  const int64_t padded = (d.num_rows + W - 1) / W * W;
  float *x = scratch, *context = x + padded * d.dim, *wide = context + padded * d.dim;
  for (int64_t r = 0; r < padded; r++)
    for (int64_t i = 0; i < d.dim; i++)
      x[Worker<W>::index_of(r, i, d.dim)] = r < d.num_rows ? embedded[r * d.dim + i] : 0.0f;
#pragma omp parallel num_threads(num_threads)
  {
    Worker<W> worker{d, x, wide, context, omp_get_thread_num(), omp_get_num_threads()};
    for (int64_t i = 0; i < d.num_layers; i++) {
      worker.self_attention(d.layers[i], position);
      worker.cross_attention(d.layers[i]);
      worker.mlp(d.layers[i]);
    }
    worker.logits(logits);
  }
}

}  // namespace

// embedded (R, D): the tokens at `position`; scratch: (R + 15) * (2 D + max(3 D, M)) numbers, none
// of them nan; logits (R, head.out).
extern "C" void decoder_step(const Decoder* decoder, const float* embedded, float* scratch,
                             float* logits, int64_t position, int32_t num_threads) {
  const auto run = decoder->num_rows == 1                  ? step<1>
                   : decoder->num_rows <= 4 || LANES == 4  ? step<4>
                   : decoder->num_rows <= 8 || LANES == 8  ? step<std::min(8, LANES)>
                                                           : step<LANES>;
  run(*decoder, embedded, scratch, logits, position, num_threads);
}
