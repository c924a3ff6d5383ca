// 3x3 convolutions with stride 1 and padding 1, their input and weight cotangents, by F(4x4, 3x3): Lavin and Gray 2016,
// "Fast Algorithms for Convolutional Neural Networks", section 4.3. An output tile of 4x4 is Y = A^T [U . V] A, with
// V = B^T d B of the 6x6 inputs d it sees, U = G g G^T of the filter g, and . summed over channels: 36 products of
// matrices. The cotangents are the transposes of these steps.
//
// float32, channels last, AVX-512, or AVX2 and FMA. Height and width are multiples of 4, channels multiples of 16 up to
// LARGEST.

#include <immintrin.h>

#include <cstdlib>
#include <cstring>

namespace {

constexpr int LARGEST = 64;    // channels
constexpr int BLOCK = 60;      // tiles that are transformed together; a multiple of the rows of product()
constexpr int APART = 16;      // floats between two of the 36 matrices, so that they do not share cache sets
constexpr int THREADS = 1024;  // at most

#ifdef __AVX512F__
using Some = __m512;  // channels

inline Some load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Some value) { _mm512_storeu_ps(to, value); }
inline Some all(float value) { return _mm512_set1_ps(value); }
inline Some fused(Some x, Some y, Some more) { return _mm512_fmadd_ps(x, y, more); }
#else
using Some = __m256;

inline Some load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Some value) { _mm256_storeu_ps(to, value); }
inline Some all(float value) { return _mm256_set1_ps(value); }
inline Some fused(Some x, Some y, Some more) { return _mm256_fmadd_ps(x, y, more); }
#endif
constexpr int SOME = sizeof(Some) / sizeof(float);

inline Some times(float number, Some value) { return all(number) * value; }
inline Some plus(float number, Some value, Some more) { return fused(all(number), value, more); }

// The 1D transforms; y may not be x.

inline void input_transform(const Some (&x)[6], Some (&y)[6]) {  // B^T
    const Some a = plus(-4, x[2], x[4]), b = plus(-4, x[1], x[3]), c = x[4] - x[2], d = times(2, x[3] - x[1]);
    y[0] = plus(4, x[0], plus(-5, x[2], x[4]));
    y[1] = a + b;
    y[2] = a - b;
    y[3] = c + d;
    y[4] = c - d;
    y[5] = plus(4, x[1], plus(-5, x[3], x[5]));
}

inline void input_cotangent(const Some (&x)[6], Some (&y)[6]) {  // B
    const Some s = x[1] + x[2], m = x[1] - x[2], p = x[3] + x[4], q = times(2, x[3] - x[4]);
    y[0] = times(4, x[0]);
    y[1] = plus(-4, m, plus(4, x[5], -q));
    y[2] = plus(-4, s, plus(-5, x[0], -p));
    y[3] = plus(-5, x[5], m + q);
    y[4] = x[0] + s + p;
    y[5] = x[5];
}

inline void output_transform(const Some (&x)[6], Some (&y)[4]) {  // A^T
    const Some s = x[1] + x[2], m = x[1] - x[2], p = x[3] + x[4], q = x[3] - x[4];
    y[0] = x[0] + s + p;
    y[1] = plus(2, q, m);
    y[2] = plus(4, p, s);
    y[3] = plus(8, q, m + x[5]);
}

inline void output_cotangent(const Some (&x)[4], Some (&y)[6]) {  // A
    const Some e = x[0] + x[2], o = x[1] + x[3], f = plus(4, x[2], x[0]), g = plus(8, x[3], times(2, x[1]));
    y[0] = x[0];
    y[1] = e + o;
    y[2] = e - o;
    y[3] = f + g;
    y[4] = f - g;
    y[5] = x[3];
}

inline void filter_transform(const Some (&x)[3], Some (&y)[6]) {  // G
    const Some e = times(1.f / 6, x[0] + x[2]), f = times(1.f / 6, x[1]);
    const Some h = plus(1.f / 24, x[0], times(1.f / 6, x[2])), k = times(1.f / 12, x[1]);
    y[0] = times(.25f, x[0]);
    y[1] = -(e + f);
    y[2] = f - e;
    y[3] = h + k;
    y[4] = h - k;
    y[5] = x[2];
}

inline void filter_cotangent(const Some (&x)[6], Some (&y)[3]) {  // G^T
    const Some s = times(1.f / 6, x[1] + x[2]), p = x[3] + x[4];
    y[0] = plus(.25f, x[0], plus(1.f / 24, p, -s));
    y[1] = plus(1.f / 6, x[2] - x[1], times(1.f / 12, x[3] - x[4]));
    y[2] = plus(1.f / 6, p, x[5] - s);
}

// Y = T X T^T of an M x M tile, which is read and written a row at a time.
template <int M, int N, class Transform, class Read, class Write>
inline void both_ways(Transform transform, Read read, Write write) {
    Some half[N][M];
#pragma GCC unroll 6
    for (int column = 0; column < M; column++) {
        Some x[M], y[N];
#pragma GCC unroll 6
        for (int row = 0; row < M; row++) x[row] = read(row, column);
        transform(x, y);
#pragma GCC unroll 6
        for (int row = 0; row < N; row++) half[row][column] = y[row];
    }
#pragma GCC unroll 6
    for (int row = 0; row < N; row++) {
        Some y[N];
        transform(half[row], y);
#pragma GCC unroll 6
        for (int column = 0; column < N; column++) write(row, column, y[column]);
    }
}

// to[ROWS][16] = sum over `inner` of a[row * down + i * along] b[i][0..16], added to what is there or not.
template <int ROWS, bool ADD>
__attribute__((noinline)) void rows_of_product(const float* a, long down, long along, const float* b, long b_step,
                                               float* to, long to_step, int inner) {
    constexpr int PARTS = 16 / SOME, EVERY = 4;  // a pointer for every fourth row, which registers have room for
    Some sums[ROWS][PARTS];
    const float* rows[(ROWS + EVERY - 1) / EVERY];
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; row++) {
        if (row % EVERY == 0) rows[row / EVERY] = a + row * down;
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++)
            sums[row][part] = ADD ? load(to + row * to_step + part * SOME) : all(0);
    }
#pragma GCC unroll 1
    for (int i = 0; i < inner; i++, b += b_step) {
        Some right[PARTS];
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) right[part] = load(b + part * SOME);
#pragma GCC unroll 12
        for (int row = 0; row < ROWS; row++) {
            const Some left = all(rows[row / EVERY][row % EVERY * down]);
#pragma GCC unroll 2
            for (int part = 0; part < PARTS; part++) sums[row][part] = fused(left, right[part], sums[row][part]);
        }
#pragma GCC unroll 3
        for (const float*& row : rows) row += along;
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 2
        for (int part = 0; part < PARTS; part++) store(to + row * to_step + part * SOME, sums[row][part]);
}

// to[rows][columns] = a b, of b[inner][columns]; columns a multiple of 16.
template <bool ADD>
void product(int rows, int columns, int inner, const float* a, long down, long along, const float* b, float* to) {
    constexpr int MOST = SOME == 16 ? 12 : 6;  // as many sums as hide the latency of their additions
    for (int column = 0; column < columns; column += 16) {
        int row = 0;
        for (; row + MOST <= rows; row += MOST)
            rows_of_product<MOST, ADD>(a + row * down, down, along, b + column, columns, to + row * columns + column,
                                       columns, inner);
        for (; row + 4 <= rows; row += 4)
            rows_of_product<4, ADD>(a + row * down, down, along, b + column, columns, to + row * columns + column,
                                    columns, inner);
        for (; row < rows; row++)
            rows_of_product<1, ADD>(a + row * down, down, along, b + column, columns, to + row * columns + column,
                                    columns, inner);
    }
}

// U[36][outer][inner] of g[outer][3][3][inner]
void transform_filters(const float* g, int outer, int inner, float* u) {
    const long step = (long)outer * inner;
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i += SOME)
            both_ways<3, 6>(
                filter_transform, [=](int row, int column) { return load(g + (o * 9L + row * 3 + column) * inner + i); },
                [=](int row, int column, Some value) { store(u + (row * 6 + column) * step + o * inner + i, value); });
}

// The transpose of transform_filters.
void filter_cotangents(const float* u, int outer, int inner, float* g) {
    const long step = (long)outer * inner;
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i += SOME)
            both_ways<6, 3>(
                filter_cotangent, [=](int row, int column) { return load(u + (row * 6 + column) * step + o * inner + i); },
                [=](int row, int column, Some value) { store(g + (o * 9L + row * 3 + column) * inner + i, value); });
}

// Where the tiles of images lie: 4x4 outputs each, row by row, image by image.
struct Tiles {
    int height, width;

    long each() const { return (long)(height / 4) * (width / 4); }
    long image(long tile) const { return tile / each() * height * width; }
    int top(long tile) const { return (int)(tile % each() / (width / 4)) * 4; }
    int left(long tile) const { return (int)(tile % each() % (width / 4)) * 4; }
    bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
};

const float NOTHING[LARGEST] = {};

// V[36][count][channels] of images
void transform_inputs(const float* images, Tiles tiles, int channels, long first, int count, float* v, long step) {
    for (int t = 0; t < count; t++) {
        const long tile = first + t;
        const int top = tiles.top(tile) - 1, left = tiles.left(tile) - 1;
        const float* image = images + tiles.image(tile) * channels;
        const float* seen[6][6];
        for (int row = 0; row < 6; row++)
            for (int column = 0; column < 6; column++) {
                const int y = top + row, x = left + column;
                seen[row][column] =
                    tiles.inside(y, x) ? image + (y * (long)tiles.width + x) * channels : NOTHING;
            }
        float* to = v + t * (long)channels;
        for (int c = 0; c < channels; c += SOME)
            both_ways<6, 6>(
                input_transform, [&](int row, int column) { return load(seen[row][column] + c); },
                [=](int row, int column, Some value) { store(to + (row * 6 + column) * step + c, value); });
    }
}

// The transpose of transform_inputs, added to the images' cotangents, because tiles overlap in what they see.
void add_input_cotangents(const float* v, long step, Tiles tiles, int channels, long first, int count, float* images) {
    for (int t = 0; t < count; t++) {
        const long tile = first + t;
        const int top = tiles.top(tile) - 1, left = tiles.left(tile) - 1;
        float* image = images + tiles.image(tile) * channels;
        const float* from = v + t * (long)channels;
        for (int c = 0; c < channels; c += SOME)
            both_ways<6, 6>(
                input_cotangent, [=](int row, int column) { return load(from + (row * 6 + column) * step + c); },
                [=](int row, int column, Some value) {
                    if (!tiles.inside(top + row, left + column)) return;
                    float* to = image + ((top + row) * (long)tiles.width + left + column) * channels + c;
                    store(to, load(to) + value);
                });
    }
}

void transform_outputs(const float* m, long step, Tiles tiles, int channels, long first, int count, float* images) {
    for (int t = 0; t < count; t++) {
        const long tile = first + t, corner = tiles.top(tile) * (long)tiles.width + tiles.left(tile);
        float* to = images + (tiles.image(tile) + corner) * channels;
        const float* from = m + t * (long)channels;
        for (int c = 0; c < channels; c += SOME)
            both_ways<6, 4>(
                output_transform, [=](int row, int column) { return load(from + (row * 6 + column) * step + c); },
                [=](int row, int column, Some value) {
                    store(to + (row * (long)tiles.width + column) * channels + c, value);
                });
    }
}

// The transpose of transform_outputs.
void output_cotangents(const float* images, Tiles tiles, int channels, long first, int count, float* m, long step) {
    for (int t = 0; t < count; t++) {
        const long tile = first + t, corner = tiles.top(tile) * (long)tiles.width + tiles.left(tile);
        const float* from = images + (tiles.image(tile) + corner) * channels;
        float* to = m + t * (long)channels;
        for (int c = 0; c < channels; c += SOME)
            both_ways<4, 6>(
                output_cotangent,
                [=](int row, int column) { return load(from + (row * (long)tiles.width + column) * channels + c); },
                [=](int row, int column, Some value) { store(to + (row * 6 + column) * step + c, value); });
    }
}

// What a thread works in; kept from call to call.
struct Space {
    float *filters, *inputs, *outputs, *sums;

    Space() {
        const size_t tiles = 36L * (BLOCK * LARGEST + APART), channels = 36L * LARGEST * LARGEST;
        filters = allocate(channels);
        inputs = allocate(tiles);
        outputs = allocate(tiles);
        sums = allocate(channels);
    }
    static float* allocate(size_t floats) { return (float*)std::aligned_alloc(64, floats * sizeof(float)); }
    static Space& of(int thread) {
        static Space* all[THREADS];
        if (all[thread] == nullptr) all[thread] = new Space();
        return *all[thread];
    }
};

int most(int threads, int images) {
    const int some = threads < images ? threads : images;
    return some < THREADS ? some : THREADS;
}

}  // namespace

extern "C" {

// outputs[images][height][width][outer] of inputs[images][height][width][inner] and filters[inner][3][3][outer]
void forward(const float* inputs, const float* filters, float* outputs, int images, int height, int width, int inner,
             int outer, int threads) {
    const Tiles tiles{height, width};
    const long in_step = BLOCK * (long)inner + APART, out_step = BLOCK * (long)outer + APART;
    const int parts = most(threads, images);
    float* u = Space::of(0).filters;
    transform_filters(filters, inner, outer, u);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; part++) {
        const Space& own = Space::of(part);
        const long end = (long)images * (part + 1) / parts * tiles.each();
        for (long first = (long)images * part / parts * tiles.each(); first < end; first += BLOCK) {
            const int count = end - first < BLOCK ? end - first : BLOCK;
            transform_inputs(inputs, tiles, inner, first, count, own.inputs, in_step);
            for (int i = 0; i < 36; i++)
                product<false>(count, outer, inner, own.inputs + i * in_step, inner, 1, u + i * (long)inner * outer,
                               own.outputs + i * out_step);
            transform_outputs(own.outputs, out_step, tiles, outer, first, count, outputs);
        }
    }
}

// of_inputs, like inputs, or null, and of_filters[outer][3][3][inner], of filters of the same shape
void backward(const float* inputs, const float* filters, const float* of_outputs, float* of_inputs, float* of_filters,
              int images, int height, int width, int inner, int outer, int threads) {
    const Tiles tiles{height, width};
    const long in_step = BLOCK * (long)inner + APART, out_step = BLOCK * (long)outer + APART;
    const long each = (long)inner * outer;
    const int parts = most(threads, images);
    float* u = Space::of(0).filters;
    transform_filters(filters, outer, inner, u);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (int part = 0; part < parts; part++) {
        const Space& own = Space::of(part);
        const long begin = (long)images * part / parts, end = (long)images * (part + 1) / parts;
        const long image = (long)height * width * inner;
        std::memset(own.sums, 0, 36 * each * sizeof(float));
        if (of_inputs) std::memset(of_inputs + begin * image, 0, (end - begin) * image * sizeof(float));
        for (long first = begin * tiles.each(); first < end * tiles.each(); first += BLOCK) {
            const long left = end * tiles.each() - first;
            const int count = left < BLOCK ? left : BLOCK;
            transform_inputs(inputs, tiles, inner, first, count, own.inputs, in_step);
            output_cotangents(of_outputs, tiles, outer, first, count, own.outputs, out_step);
            for (int i = 0; i < 36; i++) {
                float *v = own.inputs + i * in_step, *m = own.outputs + i * out_step;
                product<true>(outer, inner, count, m, 1, outer, v, own.sums + i * each);
                if (of_inputs) product<false>(count, inner, outer, m, outer, 1, u + i * each, v);
            }
            if (of_inputs) add_input_cotangents(own.inputs, in_step, tiles, inner, first, count, of_inputs);
        }
    }
    float* sums = Space::of(0).sums;
    for (int part = 1; part < parts; part++)
        for (long i = 0; i < 36 * each; i++) sums[i] += Space::of(part).sums[i];
    filter_cotangents(sums, outer, inner, of_filters);
}
}
