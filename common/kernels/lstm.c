/* The coordinate-wise LSTM optimizer: one step, and the gradient of an unroll in its weights.

   Network (common/tables/teachers.py): an optional linear layer with ELU, LSTM cells (gates i, f, g, o, one bias), a
   linear output, tanh where the teacher says so. Arrays are [unit, coordinate], coordinates contiguous; weights
   lie one after the other in canonical order. A block of coordinates goes through the whole network while it is
   in the cache; weights stay packed so that the four gates of a unit are one sum. Compiled by common/kernels/lstm.py.

   L2O_DOUBLE: in float64. L2O_BFLOAT16: state in bfloat16 between steps, arithmetic in float32. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "pool.h"

#ifdef L2O_DOUBLE
typedef double real;
typedef int64_t word;
#else
typedef float real;
typedef int32_t word;
#endif
#ifdef L2O_BFLOAT16
typedef uint16_t stored;
#else
typedef real stored;
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define LANES ((int)(BYTES / sizeof(real)))
/* Vectors of a row: sums of four gates times these are under way at once, and stay in registers. */
#if defined(__AVX512F__)
#define PARTS 4
#else
#define PARTS 2
#endif
#define BLOCK (PARTS * LANES)
#define MOST_LAYERS 8
#define WINDOW 20 /* steps whose activations are kept at once; longer unrolls are computed once more */
/* Compilers would read a vector from memory for every use of it, which is what limits the sums then. */
#if defined(__x86_64__)
#define ONCE(x) __asm__("" : "+x"(x))
#else
#define ONCE(x) ((void)0)
#endif
#define INLINE static inline __attribute__((always_inline))

typedef real vec __attribute__((vector_size(BYTES)));
typedef word bits __attribute__((vector_size(BYTES)));
typedef struct { vec v[PARTS]; } row;

typedef struct { int32_t inputs, pre, layers, squash, size[MOST_LAYERS]; } shape;

typedef struct {
    int in, units, width;            /* width: in + units, rows of [input; hidden] */
    real *forward, *bias, *backward; /* [unit][width][4], [unit][4], [width / 4][4 units][4] */
} layer;

typedef struct {
    int inputs, pre, layers, squash, count; /* count: of all weights */
    int groups;
    real *entry, *entryBias, *out, outBias, *memory;
    layer layer[MOST_LAYERS];
} net;

INLINE vec fill(real a) { vec x; for (int l = 0; l < LANES; l++) x[l] = a; return x; }

INLINE vec choose(bits m, vec a, vec b) { return (vec)((m & (bits)a) | (~m & (bits)b)); }

#ifdef L2O_DOUBLE
INLINE vec exp_(vec x) { for (int l = 0; l < LANES; l++) x[l] = exp(x[l]); return x; }
INLINE vec tanh_(vec x) { for (int l = 0; l < LANES; l++) x[l] = tanh(x[l]); return x; }
INLINE vec expm1_(vec x) { for (int l = 0; l < LANES; l++) x[l] = expm1(x[l]); return x; }
#endif
#define value vec
#define as_bits(x) ((bits)(x))
#define as_value(x) ((vec)(x))
#include "vector.h"
#undef value

INLINE real total(vec x) { real s = 0; for (int l = 0; l < LANES; l++) s += x[l]; return s; }

static int up4(int n) { return (n + 3) / 4 * 4; }

static void *aligned(size_t bytes) {
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 64) ? NULL : p;
}

/* Weights packed for the sums below; 0 where memory is short. */
static int pack(net *n, const shape *s, const real *phi) {
    size_t need = 0;
    int in = s->pre ? s->pre : s->inputs;
    n->inputs = s->inputs, n->pre = s->pre, n->layers = s->layers, n->squash = s->squash;
    n->groups = up4(s->pre) / 4;
    need += (size_t)up4(s->pre) * (s->inputs + 1);
    for (int l = 0, d = in; l < s->layers; d = s->size[l++]) {
        size_t h = s->size[l], k = d + h;
        need += 4 * h * k + 4 * h + 4 * h * up4(k);
    }
    real *at = n->memory = aligned(need * sizeof(real));
    if (!at) return 0;
    memset(at, 0, need * sizeof(real));
    const real *from = phi;
    n->entry = at, at += (size_t)up4(s->pre) * s->inputs;
    n->entryBias = at, at += up4(s->pre);
    for (int r = 0; r < s->pre; r++)
        for (int k = 0; k < s->inputs; k++)
            n->entry[((size_t)(r / 4) * s->inputs + k) * 4 + r % 4] = from[r * s->inputs + k];
    if (s->pre) {
        from += s->pre * s->inputs;
        memcpy(n->entryBias, from, s->pre * sizeof(real));
        from += s->pre;
    }
    for (int l = 0; l < s->layers; l++) {
        layer *y = &n->layer[l];
        int h = y->units = s->size[l], d = y->in = l ? s->size[l - 1] : in, w = y->width = d + h;
        const real *input = from, *hidden = input + 4 * h * d, *bias = hidden + 4 * h * h;
        y->forward = at, at += (size_t)4 * h * w;
        y->bias = at, at += 4 * h;
        y->backward = at, at += (size_t)4 * h * up4(w);
        for (int j = 0; j < h; j++)
            for (int q = 0; q < 4; q++) {
                int r = q * h + j;
                y->bias[4 * j + q] = bias[r];
                for (int k = 0; k < w; k++) {
                    real v = k < d ? input[r * d + k] : hidden[r * h + k - d];
                    y->forward[((size_t)j * w + k) * 4 + q] = v;
                    y->backward[((size_t)(k / 4) * 4 * h + 4 * j + q) * 4 + k % 4] = v;
                }
            }
        from = bias + 4 * h;
    }
    n->out = (real *)from, n->outBias = from[s->size[s->layers - 1]];
    n->count = (int)(from - phi) + s->size[s->layers - 1] + 1;
    return 1;
}

/* sum[q] += sum_k w[k][q] x[k], four rows at once. */
INLINE void four(const real *w, int count, const row *x, row sum[4]) {
    vec a[4][PARTS];
    for (int q = 0; q < 4; q++)
        for (int p = 0; p < PARTS; p++) a[q][p] = sum[q].v[p];
    for (int k = 0; k < count; k++, w += 4)
        for (int p = 0; p < PARTS; p++) {
            vec value = x[k].v[p];
            ONCE(value);
            a[0][p] += w[0] * value, a[1][p] += w[1] * value;
            a[2][p] += w[2] * value, a[3][p] += w[3] * value;
        }
    for (int q = 0; q < 4; q++)
        for (int p = 0; p < PARTS; p++) sum[q].v[p] = a[q][p];
}

INLINE void start4(row sum[4], const real *bias) {
    for (int q = 0; q < 4; q++)
        for (int p = 0; p < PARTS; p++) sum[q].v[p] = fill(bias ? bias[q] : 0);
}

/* One cell; gates [unit][4] and squashed (tanh c) are kept where not NULL. */
static void cell(const layer *y, const row *x, const row *before, row *c, row *h, row *gates, row *squashed) {
    for (int j = 0; j < y->units; j++) {
        row sum[4];
        start4(sum, y->bias + 4 * j);
        four(y->forward + (size_t)j * y->width * 4, y->width, x, sum);
        for (int p = 0; p < PARTS; p++) {
            vec i = sigmoid_(sum[0].v[p]), f = sigmoid_(sum[1].v[p]);
            vec g = tanh_(sum[2].v[p]), o = sigmoid_(sum[3].v[p]);
            vec now = f * before[j].v[p] + i * g, t = tanh_(now);
            c[j].v[p] = now;
            h[j].v[p] = o * t;
            if (gates) {
                gates[4 * j].v[p] = i, gates[4 * j + 1].v[p] = f;
                gates[4 * j + 2].v[p] = g, gates[4 * j + 3].v[p] = o;
                squashed[j].v[p] = t;
            }
        }
    }
}

static void enter(const net *n, const row *x, row *out) {
    for (int group = 0; group < n->groups; group++) {
        row sum[4];
        start4(sum, n->entryBias + 4 * group);
        four(n->entry + (size_t)group * n->inputs * 4, n->inputs, x, sum);
        for (int q = 0; q < 4 && 4 * group + q < n->pre; q++)
            for (int p = 0; p < PARTS; p++) {
                vec a = sum[q].v[p];
                out[4 * group + q].v[p] = choose(a > fill(0), a, expm1_(a));
            }
    }
}

INLINE row leave(const net *n, const row *h, int units) {
    row out;
    for (int p = 0; p < PARTS; p++) {
        vec a = fill(n->outBias);
        for (int j = 0; j < units; j++) a += n->out[j] * h[j].v[p];
        out.v[p] = n->squash ? tanh_(a) : a;
    }
    return out;
}

/* Rows of an array [rows, n] with distance `apart`, `count` coordinates of them; the rest of the block is 0. */
static void load(row *to, const real *from, long apart, int rows, int count) {
    for (int r = 0; r < rows; r++, from += apart) {
        if (count < BLOCK) memset(&to[r], 0, sizeof(row));
        memcpy(&to[r], from, (size_t)(count < BLOCK ? count : BLOCK) * sizeof(real));
    }
}

#ifdef L2O_BFLOAT16
INLINE uint16_t narrow(float a) {
    uint32_t u;
    memcpy(&u, &a, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)(u >> 16 | 0x40); /* stays NaN */
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
INLINE float widen(uint16_t a) {
    uint32_t u = (uint32_t)a << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static void recall(row *to, const stored *from, long apart, int rows, int count) {
    for (int r = 0; r < rows; r++, from += apart) {
        float *a = (float *)&to[r];
        if (count < BLOCK) memset(a, 0, sizeof(row));
        for (int l = 0; l < count; l++) a[l] = widen(from[l]);
    }
}
static void keep(stored *to, const row *from, long apart, int rows, int count) {
    for (int r = 0; r < rows; r++, to += apart)
        for (int l = 0; l < count; l++) to[l] = narrow(((const float *)&from[r])[l]);
}
static void narrowed(row *x, int rows) { /* as the rollout kept it */
    float *a = (float *)x;
    for (long l = 0; l < (long)rows * BLOCK; l++) a[l] = widen(narrow(a[l]));
}
#else
#define recall load
static void keep(stored *to, const row *from, long apart, int rows, int count) {
    for (int r = 0; r < rows; r++, to += apart)
        memcpy(to, &from[r], (size_t)(count < BLOCK ? count : BLOCK) * sizeof(real));
}
#define narrowed(x, rows) ((void)0)
#endif

static int widest(const net *n) {
    int most = n->inputs > n->pre ? n->inputs : n->pre;
    for (int l = 0; l < n->layers; l++) most = most > n->layer[l].width ? most : n->layer[l].width;
    return up4(most) + 4;
}

/* Where share `k` of `count` coordinates begins, in whole blocks. */
static long border(long count, long k) {
    long blocks = (count + BLOCK - 1) / BLOCK, at = blocks * k / SHARES * BLOCK;
    return at < count ? at : count;
}

typedef struct {
    const net *net;
    long n, apart;
    const real *x;
    const stored *const *before;
    stored *const *after;
    real *out;
} stepping;

static void step_share(void *job, long share, void *scratch) {
    const stepping *s = job;
    const net *w = s->net;
    int rows = widest(w);
    row *in = scratch, *xh = in + rows, *c = xh + rows, *now = c + rows, *h = now + rows;
    long end = border(s->n, share + 1);
    for (long at = border(s->n, share); at < end; at += BLOCK) {
        int count = end - at < BLOCK ? (int)(end - at) : BLOCK, units = 0;
        load(w->pre ? in : xh, s->x + at, s->apart, w->inputs, count);
        if (w->pre) enter(w, in, xh);
        for (int l = 0; l < w->layers; l++) {
            const layer *y = &w->layer[l];
            units = y->units;
            recall(xh + y->in, s->before[2 * l] + at, s->n, units, count);
            recall(c, s->before[2 * l + 1] + at, s->n, units, count);
            cell(y, xh, c, now, h, NULL, NULL);
            keep(s->after[2 * l] + at, h, s->n, units, count);
            keep(s->after[2 * l + 1] + at, now, s->n, units, count);
            memcpy(xh, h, sizeof(row) * units);
        }
        row y = leave(w, xh, units);
        memcpy(s->out + at, &y, (size_t)count * sizeof(real));
    }
}

/* One step: out [n] from x [inputs, n] (rows `apart` apart); before and after: h, c of every layer, [units, n],
   which may be the same arrays. 0: memory is short. */
int step(const shape *s, const real *phi, long n, long apart, const real *x, const stored *const *before,
         stored *const *after, real *out, share_out_type *share_out, int threads) {
    net w;
    if (!pack(&w, s, phi)) return 0;
    stepping job = {&w, n, apart, x, before, after, out};
    int good = share_out(step_share, &job, sizeof(row) * 5 * widest(&w), threads);
    free(w.memory);
    return good;
}

/* What one step of the window keeps. */
typedef struct { row *x, *xh[MOST_LAYERS], *gates[MOST_LAYERS], *c[MOST_LAYERS], *squashed[MOST_LAYERS]; row *pre, *out; } kept;

static size_t rows_kept(const net *n) {
    size_t rows = n->inputs + up4(n->pre) + 1;
    for (int l = 0; l < n->layers; l++) rows += up4(n->layer[l].width) + 6 * n->layer[l].units;
    return rows;
}

static void divide(const net *n, kept *k, row *at) {
    k->x = at, at += n->inputs;
    k->pre = at, at += up4(n->pre);
    k->out = at, at += 1;
    for (int l = 0; l < n->layers; l++) {
        const layer *y = &n->layer[l];
        k->xh[l] = at, at += up4(y->width);
        k->gates[l] = at, at += 4 * y->units;
        k->c[l] = at, at += y->units;
        k->squashed[l] = at, at += y->units;
    }
}

/* One step forward; the state before stands in now (hidden part of xh, c), the state after goes to next's. */
static void onward(const net *n, const real *x, long apart, int count, kept *now, kept *next) {
    load(now->x, x, apart, n->inputs, count);
    if (n->pre) enter(n, now->x, now->xh[0]);
    else memcpy(now->xh[0], now->x, sizeof(row) * n->inputs);
    for (int l = 0; l < n->layers; l++) {
        const layer *y = &n->layer[l];
        row *h = next->xh[l] + y->in;
        cell(y, now->xh[l], now->c[l], next->c[l], h, now->gates[l], now->squashed[l]);
        if (l + 1 < n->layers) memcpy(now->xh[l + 1], h, sizeof(row) * y->units);
        else now->out[0] = leave(n, h, y->units);
        narrowed(h, y->units);
        narrowed(next->c[l], y->units);
    }
}

/* One step backward: gates become their derivatives. dh, dc: of the state after, then of the state before. */
static void backward(const net *n, const kept *now, const row *c, row *const *dh, row *const *dc, row *below) {
    int top = n->layers - 1;
    for (int p = 0; p < PARTS; p++) {
        vec y = now->out->v[p], d = c->v[p];
        now->out->v[p] = n->squash ? d * (1 - y * y) : d;
    }
    for (int j = 0; j < n->layer[top].units; j++)
        for (int p = 0; p < PARTS; p++) dh[top][j].v[p] += n->out[j] * now->out->v[p];
    for (int l = top; l >= 0; l--) {
        const layer *y = &n->layer[l];
        for (int j = 0; j < y->units; j++) {
            row *gate = now->gates[l] + 4 * j;
            for (int p = 0; p < PARTS; p++) {
                vec i = gate[0].v[p], f = gate[1].v[p], g = gate[2].v[p], o = gate[3].v[p];
                vec t = now->squashed[l][j].v[p], up = dh[l][j].v[p];
                vec d = dc[l][j].v[p] + up * o * (1 - t * t);
                gate[0].v[p] = d * g * i * (1 - i);
                gate[1].v[p] = d * now->c[l][j].v[p] * f * (1 - f);
                gate[2].v[p] = d * i * (1 - g * g);
                gate[3].v[p] = up * t * o * (1 - o);
                dc[l][j].v[p] = d * f;
            }
        }
        /* Nothing is asked of the features' derivatives. */
        int first = l || n->pre ? 0 : y->in / 4 * 4;
        for (int k = first; k < y->width; k += 4) {
            row sum[4];
            start4(sum, NULL);
            four(y->backward + (size_t)k * 4 * y->units, 4 * y->units, now->gates[l], sum);
            memcpy(below + k, sum, sizeof(sum));
        }
        memcpy(dh[l], below + y->in, sizeof(row) * y->units);
        if (l)
            for (int j = 0; j < y->in; j++)
                for (int p = 0; p < PARTS; p++) dh[l - 1][j].v[p] += below[j].v[p];
    }
    for (int j = 0; j < n->pre; j++)
        for (int p = 0; p < PARTS; p++) {
            vec a = now->xh[0][j].v[p];
            now->pre[j].v[p] = below[j].v[p] * choose(a > fill(0), fill(1), a + 1);
        }
}

/* to[r][k] += sum over steps and lanes of a[r] x[k], for four rows r and four columns k. */
INLINE void outer(const kept *steps, int count, size_t a, size_t x, double to[4][4]) {
    vec sum[4][4];
    for (int r = 0; r < 4; r++)
        for (int k = 0; k < 4; k++) sum[r][k] = fill(0);
    for (int t = 0; t < count; t++) {
        const row *base = steps[t].x;
        for (int p = 0; p < PARTS; p++) {
            vec value[4];
            for (int k = 0; k < 4; k++) {
                value[k] = base[x + k].v[p];
                ONCE(value[k]);
            }
            for (int r = 0; r < 4; r++) {
                vec d = base[a + r].v[p];
                ONCE(d);
                for (int k = 0; k < 4; k++) sum[r][k] += d * value[k];
            }
        }
    }
    for (int r = 0; r < 4; r++)
        for (int k = 0; k < 4; k++) to[r][k] = total(sum[r][k]);
}

static double along(const kept *steps, int count, size_t a) {
    vec sum = fill(0);
    for (int t = 0; t < count; t++)
        for (int p = 0; p < PARTS; p++) sum += steps[t].x[a].v[p];
    return total(sum);
}

/* Adds what the steps of a window give to the gradient, in canonical order of the weights. */
static void gather(const net *n, const kept *steps, int count, double *grad) {
    double part[4][4];
    if (n->pre) {
        size_t pre = steps->pre - steps->x;
        for (int r = 0; r < n->pre; r += 4) {
            for (int k = 0; k < n->inputs; k += 4) {
                outer(steps, count, pre + r, k, part);
                for (int q = 0; q < 4 && r + q < n->pre; q++)
                    for (int m = 0; m < 4 && k + m < n->inputs; m++)
                        grad[(r + q) * n->inputs + k + m] += part[q][m];
            }
            for (int q = 0; q < 4 && r + q < n->pre; q++)
                grad[n->pre * n->inputs + r + q] += along(steps, count, pre + r + q);
        }
        grad += n->pre * (n->inputs + 1);
    }
    for (int l = 0; l < n->layers; l++) {
        const layer *y = &n->layer[l];
        size_t gates = steps->gates[l] - steps->x, xh = steps->xh[l] - steps->x;
        double *hidden = grad + 4 * y->units * y->in, *bias = hidden + 4 * y->units * y->units;
        for (int j = 0; j < y->units; j++) {
            for (int k = 0; k < y->width; k += 4) {
                outer(steps, count, gates + 4 * j, xh + k, part);
                for (int q = 0; q < 4; q++)
                    for (int m = 0; m < 4 && k + m < y->width; m++) {
                        int r = q * y->units + j, col = k + m;
                        if (col < y->in) grad[r * y->in + col] += part[q][m];
                        else hidden[r * y->units + col - y->in] += part[q][m];
                    }
            }
            for (int q = 0; q < 4; q++) bias[q * y->units + j] += along(steps, count, gates + 4 * j + q);
        }
        grad = bias + 4 * y->units;
    }
    const layer *y = &n->layer[n->layers - 1];
    size_t out = steps->out - steps->x;
    for (int j = 0; j < y->units; j++) {
        vec sum = fill(0);
        for (int t = 0; t < count; t++) {
            const row *h = steps[t + 1].xh[n->layers - 1] + y->in + j;
            for (int p = 0; p < PARTS; p++) sum += steps[t].out->v[p] * h->v[p];
        }
        grad[j] += total(sum);
    }
    grad[y->units] += along(steps, count, out);
}

typedef struct {
    const net *net;
    long steps, n, window, windows;
    const real *x, *c;
    const stored *const *start;
    double *parts;
    size_t units, each; /* of all layers; rows that a step keeps */
} slope;

static size_t scratch_rows(const slope *s) {
    return s->each * (s->window + 1) + s->units * 2 * (s->windows + 1) + widest(s->net) + 4;
}

/* The state of every layer, between a step and a mark: h then c, layer by layer. */
static void mark(const net *n, kept *k, row *at, int back) {
    for (int l = 0; l < n->layers; l++) {
        size_t size = sizeof(row) * n->layer[l].units;
        row *h = k->xh[l] + n->layer[l].in, *c = k->c[l];
        memcpy(back ? h : at, back ? at : h, size), at += n->layer[l].units;
        memcpy(back ? c : at, back ? at : c, size), at += n->layer[l].units;
    }
}

static void slope_share(void *job, long share, void *scratch) {
    const slope *s = job;
    const net *w = s->net;
    long end = border(s->n, share + 1), apart = s->n, window = s->window;
    kept *steps = scratch; /* then the rows, on a border of 64 bytes */
    row *at = (row *)((char *)scratch + (sizeof(kept) * (window + 1) + 63) / 64 * 64);
    memset(at, 0, sizeof(row) * scratch_rows(s));
    for (long t = 0; t <= window; t++, at += s->each) divide(w, &steps[t], at);
    row *marks = at, *dh[MOST_LAYERS], *dc[MOST_LAYERS], up;
    at += s->units * 2 * s->windows;
    for (int l = 0; l < w->layers; l++) {
        dh[l] = at, at += w->layer[l].units;
        dc[l] = at, at += w->layer[l].units;
    }
    row *below = at;
    for (long from = border(s->n, share); from < end; from += BLOCK) {
        int count = end - from < BLOCK ? (int)(end - from) : BLOCK;
        const real *x = s->x + from, *c = s->c + from;
        for (int l = 0; l < w->layers; l++) {
            int units = w->layer[l].units;
            recall(steps->xh[l] + w->layer[l].in, s->start[2 * l] + from, apart, units, count);
            recall(steps->c[l], s->start[2 * l + 1] + from, apart, units, count);
            memset(dh[l], 0, sizeof(row) * units);
            memset(dc[l], 0, sizeof(row) * units);
        }
        mark(w, steps, marks, 0);
        for (long k = 1, t = 0; k < s->windows; k++) { /* to the start of every window */
            for (long last = t + window; t < last; t++) {
                onward(w, x + t * w->inputs * apart, apart, count, &steps[0], &steps[1]);
                mark(w, &steps[1], marks + 2 * s->units * k, 0);
                mark(w, &steps[0], marks + 2 * s->units * k, 1);
            }
        }
        for (long k = s->windows - 1; k >= 0; k--) {
            long first = k * window, many = s->steps - first < window ? s->steps - first : window;
            mark(w, steps, marks + 2 * s->units * k, 1);
            for (long t = 0; t < many; t++)
                onward(w, x + (first + t) * w->inputs * apart, apart, count, &steps[t], &steps[t + 1]);
            for (long t = many - 1; t >= 0; t--) {
                load(&up, c + (first + t) * apart, apart, 1, count);
                backward(w, &steps[t], &up, dh, dc, below);
            }
            gather(w, steps, (int)many, s->parts + share * w->count);
        }
    }
}

/* The gradient of sum_t <c[t], out[t]> in the weights, grad [count], added up in float64.

   x [steps, inputs, n], c [steps, n]; start: h, c of every layer before the first step, [units, n]. Activations
   are computed anew, WINDOW steps at a time, so memory does not grow with the steps. 0: memory is short. */
int gradient(const shape *s, const real *phi, long steps, long n, const real *x, const real *c,
             const stored *const *start, double *grad, share_out_type *share_out, int threads) {
    net w;
    if (!pack(&w, s, phi)) return 0;
    double *parts = aligned(sizeof(double) * SHARES * w.count);
    slope job = {&w, steps, n, steps < WINDOW ? steps : WINDOW, 0, x, c, start, parts, 0, rows_kept(&w)};
    job.windows = (steps + job.window - 1) / job.window;
    for (int l = 0; l < w.layers; l++) job.units += w.layer[l].units;
    size_t bytes = sizeof(kept) * (job.window + 1) + 64 + sizeof(row) * scratch_rows(&job);
    if (parts) memset(parts, 0, sizeof(double) * SHARES * w.count);
    int good = parts && share_out(slope_share, &job, bytes, threads);
    for (int i = 0; good && i < w.count; i++) {
        grad[i] = 0;
        for (int share = 0; share < SHARES; share++) grad[i] += parts[(size_t)share * w.count + i];
    }
    free(parts);
    free(w.memory);
    return good;
}
