// 3x3 convolutions of stride 1 and padding 1 by F(4x4, 3x3) of Lavin and Gray 2016, channels last, float32, AVX2.
#include <immintrin.h>
#include <cstring>
#include <cstdlib>
#include <cstdint>

typedef __m256 v8;
static inline v8 ld(const float* p) { return _mm256_loadu_ps(p); }
static inline void st(float* p, v8 a) { _mm256_storeu_ps(p, a); }
static inline v8 c8(float a) { return _mm256_set1_ps(a); }
static inline v8 fma(v8 a, v8 b, v8 c) { return _mm256_fmadd_ps(a, b, c); }
static inline v8 nfma(v8 a, v8 b, v8 c) { return _mm256_fnmadd_ps(a, b, c); }
#define ADD _mm256_add_ps
#define SUB _mm256_sub_ps
#define MUL _mm256_mul_ps

// y = B^T x
static inline void bt(const v8 x0, const v8 x1, const v8 x2, const v8 x3, const v8 x4, const v8 x5, v8* y) {
    const v8 two = c8(2), four = c8(4), five = c8(5);
    v8 a = nfma(four, x2, x4), b = nfma(four, x1, x3), c = SUB(x4, x2), d = MUL(two, SUB(x3, x1));
    y[0] = fma(four, x0, nfma(five, x2, x4));
    y[1] = ADD(a, b); y[2] = SUB(a, b); y[3] = ADD(c, d); y[4] = SUB(c, d);
    y[5] = fma(four, x1, nfma(five, x3, x5));
}
// y = B x, the transpose of bt
static inline void bb(const v8 x0, const v8 x1, const v8 x2, const v8 x3, const v8 x4, const v8 x5, v8* y) {
    const v8 two = c8(2), four = c8(4), five = c8(5);
    v8 s = ADD(x1, x2), m = SUB(x1, x2), p = ADD(x3, x4), q = MUL(two, SUB(x3, x4));
    y[0] = MUL(four, x0);
    y[1] = nfma(four, m, SUB(MUL(four, x5), q));
    y[2] = nfma(four, s, nfma(five, x0, SUB(c8(0), p)));
    y[3] = nfma(five, x5, ADD(m, q));
    y[4] = ADD(x0, ADD(s, p));
    y[5] = x5;
}
// y = A^T x
static inline void at(const v8 x0, const v8 x1, const v8 x2, const v8 x3, const v8 x4, const v8 x5, v8* y) {
    v8 s = ADD(x1, x2), m = SUB(x1, x2), p = ADD(x3, x4), q = SUB(x3, x4);
    y[0] = ADD(x0, ADD(s, p));
    y[1] = fma(c8(2), q, m);
    y[2] = fma(c8(4), p, s);
    y[3] = fma(c8(8), q, ADD(m, x5));
}
// y = A x
static inline void aa(const v8 x0, const v8 x1, const v8 x2, const v8 x3, v8* y) {
    v8 e = ADD(x0, x2), o = ADD(x1, x3), f = fma(c8(4), x2, x0), g = fma(c8(8), x3, MUL(c8(2), x1));
    y[0] = x0; y[1] = ADD(e, o); y[2] = SUB(e, o); y[3] = ADD(f, g); y[4] = SUB(f, g); y[5] = x3;
}

// C[R][16] (+)= sum_l A[i*rs+l*cs] B[l*ldb+j]
template <int R, bool ACC>
static __attribute__((noinline)) void micro(const float* A, long rs, long cs, const float* B, long ldb, float* C, long ldc, int L) {
    v8 acc[R][2];
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) {
        acc[i][0] = ACC ? ld(C + i * ldc) : _mm256_setzero_ps();
        acc[i][1] = ACC ? ld(C + i * ldc + 8) : _mm256_setzero_ps();
    }
    const float* rows[R];
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) rows[i] = A + i * rs;
#pragma GCC unroll 1
    for (int l = 0; l < L; l++, B += ldb) {
        v8 b0 = ld(B), b1 = ld(B + 8);
#pragma GCC unroll 6
        for (int i = 0; i < R; i++) {
            v8 a = _mm256_broadcast_ss(rows[i]);
            rows[i] += cs;
            acc[i][0] = fma(a, b0, acc[i][0]);
            acc[i][1] = fma(a, b1, acc[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++) { st(C + i * ldc, acc[i][0]); st(C + i * ldc + 8, acc[i][1]); }
}
template <bool ACC>
static void gemm(int M, int N, int L, const float* A, long rs, long cs, const float* B, long ldb, float* C, long ldc) {
    for (int j = 0; j < N; j += 16) {
        int i = 0;
        for (; i + 6 <= M; i += 6) micro<6, ACC>(A + i * rs, rs, cs, B + j, ldb, C + i * ldc + j, ldc, L);
        switch (M - i) {
            case 5: micro<5, ACC>(A + i * rs, rs, cs, B + j, ldb, C + i * ldc + j, ldc, L); break;
            case 4: micro<4, ACC>(A + i * rs, rs, cs, B + j, ldb, C + i * ldc + j, ldc, L); break;
            case 3: micro<3, ACC>(A + i * rs, rs, cs, B + j, ldb, C + i * ldc + j, ldc, L); break;
            case 2: micro<2, ACC>(A + i * rs, rs, cs, B + j, ldb, C + i * ldc + j, ldc, L); break;
            case 1: micro<1, ACC>(A + i * rs, rs, cs, B + j, ldb, C + i * ldc + j, ldc, L); break;
        }
    }
}

// U[36][O][I], of w[O][3][3][I]; I a multiple of 8
static void weights(const float* w, int O, int I, float* U) {
    for (int o = 0; o < O; o++)
        for (int i = 0; i < I; i += 8) {
            v8 g[6][3];
#pragma GCC unroll 3
            for (int q = 0; q < 3; q++) {
                const float* p = w + (o * 9L + q) * I + i;
                v8 x0 = ld(p), x1 = ld(p + 3L * I), x2 = ld(p + 6L * I);
                v8 e = MUL(c8(1.f / 6), ADD(x0, x2)), f = MUL(c8(1.f / 6), x1);
                v8 h = fma(c8(1.f / 24), x0, MUL(c8(1.f / 6), x2)), k = MUL(c8(1.f / 12), x1);
                g[0][q] = MUL(c8(.25f), x0); g[1][q] = SUB(c8(0), ADD(e, f)); g[2][q] = SUB(f, e);
                g[3][q] = ADD(h, k); g[4][q] = SUB(h, k); g[5][q] = x2;
            }
            float* u = U + (long)o * I + i;
            long step = (long)O * I;
#pragma GCC unroll 6
            for (int r = 0; r < 6; r++) {
                v8 x0 = g[r][0], x1 = g[r][1], x2 = g[r][2];
                v8 e = MUL(c8(1.f / 6), ADD(x0, x2)), f = MUL(c8(1.f / 6), x1);
                v8 h = fma(c8(1.f / 24), x0, MUL(c8(1.f / 6), x2)), k = MUL(c8(1.f / 12), x1);
                float* v = u + r * 6 * step;
                st(v, MUL(c8(.25f), x0)); st(v + step, SUB(c8(0), ADD(e, f))); st(v + 2 * step, SUB(f, e));
                st(v + 3 * step, ADD(h, k)); st(v + 4 * step, SUB(h, k)); st(v + 5 * step, x2);
            }
        }
}
// dw[O][3][3][I] of D[36][O][I]
static void weight_cotangents(const float* D, int O, int I, float* dw) {
    for (int o = 0; o < O; o++)
        for (int i = 0; i < I; i += 8) {
            const float* d = D + (long)o * I + i;
            long step = (long)O * I;
            v8 g[3][6];
#pragma GCC unroll 6
            for (int q = 0; q < 6; q++) {
                v8 x0 = ld(d + q * step), x1 = ld(d + (6 + q) * step), x2 = ld(d + (12 + q) * step);
                v8 x3 = ld(d + (18 + q) * step), x4 = ld(d + (24 + q) * step), x5 = ld(d + (30 + q) * step);
                v8 s = MUL(c8(1.f / 6), ADD(x1, x2)), p = ADD(x3, x4);
                g[0][q] = fma(c8(.25f), x0, fma(c8(1.f / 24), p, SUB(c8(0), s)));
                g[1][q] = fma(c8(1.f / 6), SUB(x2, x1), MUL(c8(1.f / 12), SUB(x3, x4)));
                g[2][q] = fma(c8(1.f / 6), p, SUB(x5, s));
            }
#pragma GCC unroll 3
            for (int r = 0; r < 3; r++) {
                v8 s = MUL(c8(1.f / 6), ADD(g[r][1], g[r][2])), p = ADD(g[r][3], g[r][4]);
                float* v = dw + (o * 9L + r * 3) * I + i;
                st(v, fma(c8(.25f), g[r][0], fma(c8(1.f / 24), p, SUB(c8(0), s))));
                st(v + I, fma(c8(1.f / 6), SUB(g[r][2], g[r][1]), MUL(c8(1.f / 12), SUB(g[r][3], g[r][4]))));
                st(v + 2 * I, fma(c8(1.f / 6), p, SUB(g[r][5], s)));
            }
        }
}

static const int BLOCK = 60;  // tiles
static const int LARGEST = 64;  // channels
static float zeros[512] __attribute__((aligned(64)));

struct Shape { int H, W, th, tw; long each; };

// V[36][n][C] of tiles first..first+n
static void input_tiles(const float* x, const Shape& s, int C, long first, int n, float* V, long step) {
    for (int t = 0; t < n; t++) {
        long tile = first + t, image = tile / s.each;
        int at_ = tile % s.each, ty = at_ / s.tw, tx = at_ % s.tw;
        const float* base = x + image * s.H * s.W * C;
        const float* p[36];
        for (int r = 0; r < 6; r++) {
            int y = ty * 4 - 1 + r;
            for (int q = 0; q < 6; q++) {
                int z = tx * 4 - 1 + q;
                p[r * 6 + q] = (y < 0 || y >= s.H || z < 0 || z >= s.W) ? zeros : base + (y * (long)s.W + z) * C;
            }
        }
        for (int c = 0; c < C; c += 8) {
            v8 m[6][6], y[6];
            _Pragma("GCC unroll 6") for (int q = 0; q < 6; q++) {
                bt(ld(p[q] + c), ld(p[6 + q] + c), ld(p[12 + q] + c), ld(p[18 + q] + c), ld(p[24 + q] + c), ld(p[30 + q] + c), y);
                _Pragma("GCC unroll 6") for (int r = 0; r < 6; r++) m[r][q] = y[r];
            }
            float* out = V + t * (long)C + c;
            _Pragma("GCC unroll 6") for (int r = 0; r < 6; r++) {
                bt(m[r][0], m[r][1], m[r][2], m[r][3], m[r][4], m[r][5], y);
                _Pragma("GCC unroll 6") for (int q = 0; q < 6; q++) st(out + (r * 6 + q) * step, y[q]);
            }
        }
    }
}
static void output_tiles(const float* M, long step, const Shape& s, int K, long first, int n, float* out) {
    for (int t = 0; t < n; t++) {
        long tile = first + t, image = tile / s.each;
        int at_ = tile % s.each, ty = at_ / s.tw, tx = at_ % s.tw;
        float* base = out + ((image * s.H + ty * 4) * (long)s.W + tx * 4) * K;
        for (int k = 0; k < K; k += 8) {
            v8 m[4][6], y[4];
            const float* in = M + t * (long)K + k;
            _Pragma("GCC unroll 6") for (int q = 0; q < 6; q++) {
                at(ld(in + q * step), ld(in + (6 + q) * step), ld(in + (12 + q) * step), ld(in + (18 + q) * step),
                   ld(in + (24 + q) * step), ld(in + (30 + q) * step), y);
                _Pragma("GCC unroll 6") for (int r = 0; r < 4; r++) m[r][q] = y[r];
            }
            _Pragma("GCC unroll 6") for (int r = 0; r < 4; r++) {
                at(m[r][0], m[r][1], m[r][2], m[r][3], m[r][4], m[r][5], y);
                _Pragma("GCC unroll 6") for (int q = 0; q < 4; q++) st(base + (r * (long)s.W + q) * K + k, y[q]);
            }
        }
    }
}
// dM[36][n][K] of dY
static void cotangent_tiles(const float* dy, const Shape& s, int K, long first, int n, float* M, long step) {
    for (int t = 0; t < n; t++) {
        long tile = first + t, image = tile / s.each;
        int at_ = tile % s.each, ty = at_ / s.tw, tx = at_ % s.tw;
        const float* base = dy + ((image * s.H + ty * 4) * (long)s.W + tx * 4) * K;
        for (int k = 0; k < K; k += 8) {
            v8 m[6][4], y[6];
            _Pragma("GCC unroll 6") for (int q = 0; q < 4; q++) {
                const float* b = base + q * K + k;
                long row = (long)s.W * K;
                aa(ld(b), ld(b + row), ld(b + 2 * row), ld(b + 3 * row), y);
                _Pragma("GCC unroll 6") for (int r = 0; r < 6; r++) m[r][q] = y[r];
            }
            float* out = M + t * (long)K + k;
            _Pragma("GCC unroll 6") for (int r = 0; r < 6; r++) {
                aa(m[r][0], m[r][1], m[r][2], m[r][3], y);
                _Pragma("GCC unroll 6") for (int q = 0; q < 6; q++) st(out + (r * 6 + q) * step, y[q]);
            }
        }
    }
}
// dx += B dV B^T, tiles overlap
static void add_tiles(const float* V, long step, const Shape& s, int C, long first, int n, float* dx) {
    for (int t = 0; t < n; t++) {
        long tile = first + t, image = tile / s.each;
        int at_ = tile % s.each, ty = at_ / s.tw, tx = at_ % s.tw;
        float* base = dx + image * s.H * s.W * C;
        for (int c = 0; c < C; c += 8) {
            v8 m[6][6], y[6];
            const float* in = V + t * (long)C + c;
            _Pragma("GCC unroll 6") for (int q = 0; q < 6; q++) {
                bb(ld(in + q * step), ld(in + (6 + q) * step), ld(in + (12 + q) * step), ld(in + (18 + q) * step),
                   ld(in + (24 + q) * step), ld(in + (30 + q) * step), y);
                _Pragma("GCC unroll 6") for (int r = 0; r < 6; r++) m[r][q] = y[r];
            }
            for (int r = 0; r < 6; r++) {
                int yy = ty * 4 - 1 + r;
                if (yy < 0 || yy >= s.H) continue;
                bb(m[r][0], m[r][1], m[r][2], m[r][3], m[r][4], m[r][5], y);
                for (int q = 0; q < 6; q++) {
                    int z = tx * 4 - 1 + q;
                    if (z < 0 || z >= s.W) continue;
                    float* o = base + (yy * (long)s.W + z) * C + c;
                    st(o, ADD(ld(o), y[q]));
                }
            }
        }
    }
}
static float* space(long floats) { return (float*)aligned_alloc(64, (floats * 4 + 63) / 64 * 64); }

struct Space {
    float *U, *V, *M, *D;
    Space() : U(space(36L * LARGEST * LARGEST)), V(space(36 * (BLOCK * (long)LARGEST + 16))), M(space(36 * (BLOCK * (long)LARGEST + 16))), D(space(36L * LARGEST * LARGEST)) {}
};
static const int THREADS = 1024;
static Space* own(int thread) {
    static Space* all[THREADS];
    if (!all[thread]) all[thread] = new Space();
    return all[thread];
}

// out[N][H][W][K] of x[N][H][W][C] and w[C][3][3][K]
extern "C" void forward(const float* x, const float* w, float* out, int N, int H, int W, int C, int K, int threads) {
    Shape s{H, W, H / 4, W / 4, (long)(H / 4) * (W / 4)};
    long sv = BLOCK * (long)C + 16, sm = BLOCK * (long)K + 16;
    float* U = own(0)->U;
    weights(w, C, K, U);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        float *V = own(part)->V, *M = own(part)->M;
        long begin = (long)N * part / threads * s.each, end = (long)N * (part + 1) / threads * s.each;
        for (long first = begin; first < end; first += BLOCK) {
            int n = end - first < BLOCK ? end - first : BLOCK;
            input_tiles(x, s, C, first, n, V, sv);
            for (int a = 0; a < 36; a++) gemm<false>(n, K, C, V + a * sv, C, 1, U + a * (long)C * K, K, M + a * sm, K);
            output_tiles(M, sm, s, K, first, n, out);
        }
    }
}
// dx[N][H][W][C] (or null) and dw[K][3][3][C] of dy, and of x and w[K][3][3][C]
extern "C" void backward(const float* x, const float* w, const float* dy, float* dx, float* dw, int N, int H, int W, int C, int K, int threads) {
    Shape s{H, W, H / 4, W / 4, (long)(H / 4) * (W / 4)};
    long sv = BLOCK * (long)C + 16, sm = BLOCK * (long)K + 16, size = 36L * C * K;
    float* U = own(0)->U;
    weights(w, K, C, U);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        float *V = own(part)->V, *M = own(part)->M, *D = own(part)->D;
        long begin = (long)N * part / threads * s.each, end = (long)N * (part + 1) / threads * s.each;
        memset(D, 0, size * 4);
        if (dx) memset(dx + begin / s.each * H * W * C, 0, (end - begin) / s.each * H * W * C * 4);
        for (long first = begin; first < end; first += BLOCK) {
            int n = end - first < BLOCK ? end - first : BLOCK;
            input_tiles(x, s, C, first, n, V, sv);
            cotangent_tiles(dy, s, K, first, n, M, sm);
            for (int a = 0; a < 36; a++) {
                gemm<true>(K, C, n, M + a * sm, 1, K, V + a * sv, C, D + a * (long)C * K, C);
                if (dx) gemm<false>(n, C, K, M + a * sm, K, 1, U + a * (long)C * K, C, V + a * sv, C);
            }
            if (dx) add_tiles(V, sv, s, C, first, n, dx);
        }
    }
    float* D = own(0)->D;
    for (int part = 1; part < threads; part++)
        for (long i = 0; i < size; i++) D[i] += own(part)->D[i];
    weight_cotangents(D, K, C, dw);
}
