"""Rules that see tensors, as meta-training is tested with them."""

from interchange.rule.rule import Rule

# Of Muon's kind: the two kinds of tensors have state and constants of their own.
MUON_LIKE = Rule.from_text(
    "by_matrix(-0.2 * sqrt(max(rows, cols)) * polar(k * g + ema(g, b)), -c * ema(g, b))",
    {"k": 0.3, "b": 0.9, "c": 0.5},
    scale=0.02,
    name="muon-like",
)
# Of Adafactor's kind: state by row and by column, a decay of t, a size of the whole tensor.
ADAFACTOR_LIKE = Rule.from_text(
    "-c * g / (sqrt(by_matrix(ema(row_mean(square(g)), b) * ema(col_mean(square(g)), 1 - powabs(t, -0.8)) "
    "/ (ema(mean(square(g)), b) + d), ema(square(g), b))) + e)",
    {"c": 0.02, "b": 0.9, "d": 1e-6, "e": 1e-3},
    name="adafactor-like",
)
# Features of both kinds, state of another, and weight decay.
FEATURES = Rule.from_text(
    "-c0 * tanh(evened / c1) - c2 * lag(m, 1) * row_max(abs(m)) - c3 * theta",
    {"c0": 0.03, "c1": 0.5, "c2": 0.1, "c3": 0.2},
    {"m": "ema(g, 0.8)", "evened": "orth(g + ema(g, 0.9)) / (cummax(mean(abs(g))) + 1e-3)"},
    name="features",
)
RULES = {rule.name: rule for rule in (MUON_LIKE, ADAFACTOR_LIKE, FEATURES)}
