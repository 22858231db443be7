/* What generated steps of a rule stand on (interchange/emit/c_source.py writes them): types, functions without
   branches, and the test for finite numbers.

   `real` is what is computed in, `stored` what parameters and gradients are kept in. L2O_DOUBLE: both are double.
   L2O_BFLOAT16, L2O_FLOAT16: stored in half precision. Compiled by common/kernels/build.py. */

#include <stdint.h>
#include <string.h>
#include <tgmath.h>

#include "pool.h"

#ifdef L2O_DOUBLE
typedef double real;
typedef int64_t word;
#define EXPONENT INT64_C(0x7ff0000000000000)
#else
typedef float real;
typedef int32_t word;
#define EXPONENT 0x7f800000
#endif
#define INLINE static inline __attribute__((always_inline))
#define BLOCK 128 /* coordinates whose intermediate values are kept where a loop cannot be one loop */
#if defined(__clang__)
#define NO_CARRY _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define NO_CARRY _Pragma("GCC ivdep")
#else
#define NO_CARRY
#endif

INLINE word as_bits(real x) { word b; memcpy(&b, &x, sizeof b); return b; }
INLINE real as_value(word b) { real x; memcpy(&x, &b, sizeof x); return x; }

/* By its bits: no option of a compiler makes it true of nan or inf. */
INLINE word finite_(real x) { return (as_bits(x) & EXPONENT) != EXPONENT; }

#if defined(L2O_BFLOAT16)
typedef uint16_t stored;
INLINE real widen(stored a) { return as_value((word)((uint32_t)a << 16)); }
INLINE stored narrow(real x) {
    uint32_t u = (uint32_t)as_bits(x);
    return (stored)((u + 0x7fff + (u >> 16 & 1)) >> 16); /* of nan anything: it is looked for before */
}
#elif defined(L2O_FLOAT16)
typedef _Float16 stored;
INLINE real widen(stored a) { return (real)a; }
INLINE stored narrow(real x) { return (stored)x; }
#else
typedef real stored;
INLINE real widen(stored a) { return a; }
INLINE stored narrow(real x) { return x; }
#endif

#ifdef L2O_DOUBLE
INLINE real exp_(real x) { return exp(x); }
INLINE real tanh_(real x) { return tanh(x); }
INLINE real log_(real x) { return log(x); }
INLINE real pow_(real x, real y) { return pow(x, y); }
#else
#define value real
#define bits word
#define fill(a) (a)
#define choose(m, a, b) ((m) ? (a) : (b))
#define exp_ exp_clamped
#define sigmoid_ sigmoid_clamped
#include "vector.h"
#undef exp_
#undef sigmoid_
#undef value
#undef bits

/* exp with its whole range: the power of two in two halves, each of which is a float. */
INLINE real exp_(real x) {
    real shifted;
    x = x > 89.0f ? 89.0f : x < -104.0f ? -104.0f : x;
    real p = exp_reduced(x, &shifted);
    word n = as_bits(shifted) - 0x4b400000, half = n >> 1;
    return p * as_value((half + 127) << 23) * as_value((n - half + 127) << 23);
}

/* In double precision, to 1e-10: a power multiplies the error of the logarithm by up to 100. */
INLINE double double_of(int64_t b) { double x; memcpy(&x, &b, sizeof x); return x; }
INLINE int64_t bits_of(double x) { int64_t b; memcpy(&b, &x, sizeof b); return b; }

INLINE double log_wide(double x) { /* of x >= 0 that was a float */
    int64_t b = bits_of(x);
    double e = double_of((b >> 52) | INT64_C(0x4330000000000000)) - 4503599627371519.0;
    double m = double_of((b & INT64_C(0x000fffffffffffff)) | INT64_C(0x3ff0000000000000));
    double above = m > 1.4142135623730951 ? 1.0 : 0.0;
    m = m * (1.0 - 0.5 * above), e = e + above;
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = z * (1.0 / 11.0) + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    p = p * z + 1.0;
    double y = 2.0 * s * p + e * 0.6931471805599453;
    y = x > 3.5e38 ? (double)INFINITY : y;
    y = x == 0.0 ? -(double)INFINITY : y;
    return x != x ? x : y;
}

INLINE double exp_wide(double x) { /* saturates where a float does */
    x = x > 200.0 ? 200.0 : x < -200.0 ? -200.0 : x;
    double shifted = x * 1.4426950408889634 + 6755399441055744.0;
    double n = shifted - 6755399441055744.0;
    double r = x - n * 0.6931471803691238 - n * 1.9082149292705877e-10;
    double p = r * (1.0 / 362880.0) + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return p * double_of((bits_of(shifted) << 52) + INT64_C(0x3ff0000000000000));
}

INLINE real log_(real x) { return (real)log_wide(x); }

INLINE real pow_(real x, real y) { /* of x >= 0, as the C library's */
    real z = (real)exp_wide((double)y * log_wide(x));
    z = x == 1.0f ? 1.0f : z;
    return y == 0.0f ? 1.0f : z;
}
#endif

INLINE real max_(real a, real b) { return (a > b) | (a != a) ? a : b; }
INLINE real min_(real a, real b) { return (a < b) | (a != a) ? a : b; }
INLINE real sign_(real a) { return a > 0 ? (real)1 : a < 0 ? (real)-1 : a == 0 ? (real)0 : a; }
INLINE real sigmoid_(real a) {
    real tail = exp_(-fabs(a));
    return (a >= 0 ? (real)1 : tail) / ((real)1 + tail);
}

/* What a step of an optimizer does with the update u: theta <- theta * keep + rate * scale * u. */
typedef struct { double scale, rate, keep; int32_t maximize, guard; } settings;

/* Where share `k` of `count` coordinates begins. */
INLINE long border(long count, long k) {
    long at = (count + 63) / 64 * k / SHARES * 64;
    return at < count ? at : count;
}
