"""Tensor operators in C and the frame of a file whose rule sees tensors; ``real`` stands for the type."""

# Sums are kept in double. x has rows * cols numbers, row after row.
OPERATORS = {
    "dot": """/* Eight sums at once: vector code, and less rounding. */
static real dot_(const real *a, const real *b, ptrdiff_t n) {
    real part[8] = {0}, sum = 0;
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++) part[k] += a[i + k] * b[i + k];
    for (; i < n; i++) sum += a[i] * b[i];
    for (int k = 0; k < 8; k++) sum += part[k];
    return sum;
}""",
    "row_mean": """static void row_mean_(const real *x, ptrdiff_t rows, ptrdiff_t cols, real *out) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        double sum = 0;
        for (ptrdiff_t c = 0; c < cols; c++) sum += (double)x[r * cols + c];
        out[r] = (real)(sum / (double)cols);
    }
}""",
    "col_mean": """static void col_mean_(const real *x, ptrdiff_t rows, ptrdiff_t cols, real *out) {
    for (ptrdiff_t from = 0; from < cols; from += BLOCK) {
        const ptrdiff_t to = cols - from < BLOCK ? cols : from + BLOCK;
        double sum[BLOCK] = {0};
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t c = from; c < to; c++) sum[c - from] += (double)x[r * cols + c];
        for (ptrdiff_t c = from; c < to; c++) out[c] = (real)(sum[c - from] / (double)rows);
    }
}""",
    "row_max": """static void row_max_(const real *x, ptrdiff_t rows, ptrdiff_t cols, real *out) {
    for (ptrdiff_t r = 0; r < rows; r++) {
        out[r] = x[r * cols];
        for (ptrdiff_t c = 1; c < cols; c++) out[r] = max_(x[r * cols + c], out[r]);
    }
}""",
    "col_max": """static void col_max_(const real *x, ptrdiff_t rows, ptrdiff_t cols, real *out) {
    for (ptrdiff_t c = 0; c < cols; c++) out[c] = x[c];
    for (ptrdiff_t r = 1; r < rows; r++)
        for (ptrdiff_t c = 0; c < cols; c++) out[c] = max_(x[r * cols + c], out[c]);
}""",
    "polar": """/* Five Newton-Schulz steps towards the polar factor of x, with the smaller side first; of
   one row or column x / norm(x). With orth at the size of x. work: room for x and two squares of the smaller
   side. */
static void polar_(const real *x, ptrdiff_t rows, ptrdiff_t cols, real *out, real *work, int orth) {
    const ptrdiff_t n = rows * cols, small = rows < cols ? rows : cols, large = n / small;
    real *m = work, *next = out, *const a = work + n, *const b = a + small * small;
    real size = 0;
    for (ptrdiff_t i = 0; i < n; i++) size = max_(fabs(x[i]), size);
    if (size == 0 || (orth && small == 1)) {
        memcpy(out, x, (size_t)n * sizeof *x);
        return;
    }
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < cols; c++)
            m[rows <= cols ? r * cols + c : c * rows + r] = x[r * cols + c] / size;
    const real length = sqrt(dot_(m, m, n));
    for (ptrdiff_t i = 0; i < n; i++) m[i] /= length;
    for (int step = 0; step < 5 && small > 1; step++) {
        for (ptrdiff_t i = 0; i < small; i++)
            for (ptrdiff_t k = 0; k <= i; k++)
                a[i * small + k] = a[k * small + i] = dot_(m + i * large, m + k * large, large);
        for (ptrdiff_t i = 0; i < small; i++)
            for (ptrdiff_t k = 0; k < small; k++)
                b[i * small + k] = (real)2.0315 * dot_(a + i * small, a + k * small, small)
                    - (real)4.7750 * a[i * small + k];
        for (ptrdiff_t i = 0; i < small; i++) {
            real *const to = next + i * large;
            for (ptrdiff_t c = 0; c < large; c++) to[c] = (real)3.4445 * m[i * large + c];
            for (ptrdiff_t k = 0; k < small; k++)
                for (ptrdiff_t c = 0; c < large; c++) to[c] += b[i * small + k] * m[k * large + c];
        }
        real *const before = m;
        m = next, next = before;
    }
    const real ratio = orth ? length / sqrt(dot_(m, m, n)) : 1, rest = orth ? size : 1;
    if (m != work) memcpy(work, m, (size_t)n * sizeof *m);
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t c = 0; c < cols; c++)
            out[r * cols + c] = rest * (work[rows <= cols ? r * cols + c : c * rows + r] * ratio);
}""",
}

USAGE = """/* An optimizer that is one equation and sees matrices, in C99; needs the C library only (-lm).

       static float m[...], ..., scratch[...];  zeros, RULE(state_size)(slot, rows, cols, matrix) of them;
       float *const state[] = {m, ...};         RULE(slots) arrays; scratch: RULE(scratch)(rows, cols, matrix)
       double t = 0;                            steps taken, one number for every array theta
       RULE(step_float)(rows, cols, matrix, theta, g, state, scratch, &t, RULE(constants), lr, 0.0);

   theta and g are one matrix, row after row: a row for every output, a column for every input. So torch lays
   out weights: [out, in], and kernels [out, in, high, wide] with cols = in * high * wide. What Keras and JAX
   have, [in, out] and [high, wide, in, out], is to be transposed: rows = out. matrix = 0 is for what is no
   matrix, a bias or an embedding: a vector of rows * cols numbers. scratch may be that of any other array, as
   it holds nothing between two steps.

   theta <- (1 - lr * weight_decay) * theta + lr * u. A coordinate whose update, new state or new theta is not
   finite is left as it was; the function returns how many were. State of a row, of a column or of the matrix
   is new where any of its coordinates moved. t stands still where none did.
   Functions are called rule_step_float and so on: define RULE to give them other names. */
"""

SIZES = """/* How many numbers of state a slot has, and how many of scratch a step needs. */
size_t RULE(state_size)(int slot, size_t rows, size_t cols, int matrix) {{
    if (!matrix) cols *= rows, rows = 1;
    const size_t n = rows * cols, sizes[][{slots}] = {{{sizes}}};
    (void)n;
    return slot < 0 || slot >= {slots} ? 0 : sizes[{matrix}][slot];
}}

size_t RULE(scratch)(size_t rows, size_t cols, int matrix) {{
    if (!matrix) cols *= rows, rows = 1;
    const size_t n = rows * cols, least = rows < cols ? rows : cols;
    (void)n, (void)least;
    return {scratch};
}}
"""

STEP = """size_t RULE(step_real)(size_t rows, size_t cols, int matrix, real *theta, const real *g,
    real *const *state, real *scratch, double *steps, const double *constant,
    double lr, double weight_decay) {{
    const ptrdiff_t high = (ptrdiff_t)(matrix ? rows : 1), wide = (ptrdiff_t)(matrix ? cols : rows * cols);
    return {call};
}}
"""

FUNCTION = """static size_t {name}_(ptrdiff_t rows, ptrdiff_t cols, real *theta, const real *g,
    real *const *state, real *scratch, double *steps, const double *constant,
    double lr, double weight_decay) {{
    const real scale = (real){scale}, rate = (real)lr, keep = (real)(1.0 - lr * weight_decay);
    const double t = *steps + 1.0;
    const ptrdiff_t n = rows * cols, least = rows < cols ? rows : cols;
    const size_t size = (size_t)n;
    const int first = t == 1.0;
    size_t left = 0;
{slots}    (void)first, (void)constant, (void)state, (void)g, (void)scratch, (void)least;
    if (!n) return *steps = t, left;
{text}    if (left < size) *steps = t;
    return left;
}}
"""
