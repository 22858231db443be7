/* Functions that compilers turn into vector code: no branches, no calls.

   Included with `value` (a vector of reals, or one real) and its integers `bits`, and with fill(real), choose(mask,
   a, b), as_bits(value), as_value(bits) for them. In float64 they are the C library's, one number at a time, which
   the includer has as exp_, tanh_, expm1_ of a value. */

#ifndef L2O_DOUBLE
/* 2^n of n rounded by adding `shift`, 1.5 2^23: the low bits of the sum are n. */
INLINE value power_of_two(value shifted) { return as_value((as_bits(shifted) << 23) + 0x3f800000); }

/* exp(r + n log 2) without the power of two, to 2e-7; polynomial of degree 6 by least squares of the relative
   error, as those below. `shifted` gives n. */
INLINE value exp_reduced(value x, value *shifted) {
    value s = x * 1.44269504f + 12582912.0f;
    value n = s - 12582912.0f;
    value r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    value p = r * 0.00138357976f + 0.008375645f;
    p = p * r + 0.0416682888f;
    p = p * r + 0.166664102f;
    p = p * r + 0.499999916f;
    p = p * r + 1.00000004f;
    p = p * r + 1.0f;
    *shifted = s;
    return p;
}

/* exp between exp(-87) and exp(88), which saturate it. */
INLINE value exp_(value x) {
    value shifted;
    x = choose(x > fill(88.0f), fill(88.0f), x);
    x = choose(x < fill(-87.0f), fill(-87.0f), x);
    value p = exp_reduced(x, &shifted);
    return p * power_of_two(shifted);
}

/* tanh with a polynomial in x^2 near 0, where 1 - 2 / (exp(2 x) + 1) would lose digits. */
INLINE value tanh_(value x) {
    value z = x * x, e = exp_(x + x);
    value p = z * 0.0205909842f - 0.0056599848f * z * z - 0.0537210666f;
    p = p * z + 0.133311275f;
    p = p * z - 0.333332605f;
    p = p * z + 1.0f;
    return choose(z < fill(0.390625f), x * p, 1.0f - 2.0f / (e + 1.0f));
}

INLINE value expm1_(value x) { /* for x <= 0 */
    value p = x * 0.008375645f + 0.0416682888f;
    p = p * x + 0.166664102f;
    p = p * x + 0.499999916f;
    return choose(x > fill(-0.1f), x + x * x * p, exp_(x) - 1.0f);
}
#endif

INLINE value sigmoid_(value x) { return 1.0f / (1.0f + exp_(-x)); }
