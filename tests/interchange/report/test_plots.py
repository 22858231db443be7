"""Figures: well-formed, no black, unique ids, contrast, and what they say."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from common.errors import L2OError
from common.metrics import LOSS_FLOOR, SummaryRow
from interchange.report import drawing, grid_plots, plots

HOSTILE = '$x^{ $<b>&"#000000" url(#a)\x00\ud800'


def row(name, mean, spread=0.1, diverged=0):
    low, high = (mean - spread, mean + spread) if not diverged else (np.nan, np.nan)
    return SummaryRow(name, "quadratic", 40, mean, low, high, 5, diverged, 0.1, 1.0, 2.0, 7)


def draw_all(name="adam"):
    steps = np.arange(1, 41.0)
    curves = {name: np.stack([3 / steps, 4 / steps]), "teacher": np.stack([1 / steps, 2 / steps])}
    curves["lion"] = np.where(steps > 30, np.inf, curves[name])
    return {
        "training": plots.training_curve([1, 2, 3], [3.0, 2.0, 1.0], [None, 2.5, float("nan")]),
        "pareto": plots.pareto_front([(1, -5.0), (3, 0.5), (9, 0.9), (10, float("nan"))], 2),
        "curves": plots.loss_curves(curves, ["teacher"], window=2),
        "final": plots.final_losses([row(name, 0.3), row("teacher", 0.2), row("lion", np.inf, diverged=2)]),
    }


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


@pytest.fixture(scope="module")
def drawn():
    return draw_all()


def test_svgs_are_well_formed_and_labelled(drawn):
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("role") == "img" and len(root.get("aria-label")) > 20
        assert root.get("viewBox") and root.get("width") == "100%" and "height" not in root.attrib


def test_page_decides_colour_and_font(drawn):
    for svg in drawn.values():
        assert not re.search(r"#000\b|#000000|\bblack\b|rgb\(0", svg)
        assert "currentColor" in svg and "fill: currentColor" in ElementTree.fromstring(svg).get("style")
        assert set(re.findall(r"font-family: ([^;\"]*)", svg)) == {"inherit"} and "font: " not in svg
        assert "<style" not in svg  # would apply to the whole page
        used = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert used <= set(drawing.PALETTE)


def test_ids_are_unique_across_plots_and_references_resolve(drawn):
    page = "".join(drawn.values())
    page += plots.loss_curves({"adam": np.full((2, 40), 2.0)}) + plots.final_losses([row("sgd", 0.4)])
    page += plots.training_curve([1, 2, 3], [3.0, 2.0, 1.0], [None, 2.5, float("nan")], prefix="other")
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 4
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) == set(ids)


def test_same_input_gives_same_text_whatever_the_users_settings(drawn):
    import matplotlib

    assert draw_all() == drawn
    with matplotlib.rc_context({"xtick.color": "red", "font.size": 30, "text.parse_math": True}):
        assert draw_all() == drawn
        assert matplotlib.rcParams["font.size"] == 30


def test_hostile_names_are_text():
    for svg in draw_all(HOSTILE).values():
        ElementTree.fromstring(svg)
        assert "<b>" not in svg and "\x00" not in svg
    assert any(text.startswith("$x^{ $<b>&") for text in texts(draw_all(HOSTILE)["curves"]))


def luminance(color):
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


@pytest.mark.parametrize("background", ["#ffffff", "#16181d"])
@pytest.mark.parametrize("color", drawing.PALETTE)
def test_contrast(color, background):
    """WCAG 2.2, 1.4.11: at least 3:1 for graphical objects."""
    light, dark = sorted((luminance(color), luminance(background)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.0


def test_styles_tell_series_apart():
    names = [f"optimizer {k}" for k in range(12)]
    looks = drawing.styles(names, ["optimizer 7"])
    assert len(set(looks.values())) == 12
    assert looks["optimizer 7"] == (drawing.PALETTE[0], ())
    assert drawing.PALETTE[0] not in {color for name, (color, _) in looks.items() if name != "optimizer 7"}
    assert drawing.styles(names[::-1], ["optimizer 7"]) == looks


def test_what_the_plots_say(drawn):
    assert {"adam", "teacher", "lion (diverged)"} <= set(texts(drawn["curves"]))
    assert {"adam", "0.2000", "2 of 5 diverged", "loss at step 40"} <= set(texts(drawn["final"]))
    assert {"3", "9 nodes: R² 0.900", "1 node: R² −5.000"} <= set(texts(drawn["pareto"]))
    assert {"training", "validation", "meta-epoch"} <= set(texts(drawn["training"]))
    label = ElementTree.fromstring(drawn["final"]).get("aria-label")
    assert label.index("teacher 0.2") < label.index("adam 0.3") < label.index("lion")


def test_the_label_of_a_point_beside_the_axis_leaves_its_numbers_free():
    svg = plots.pareto_front([(6, 0.966), (9, 0.9685), (13, 0.9375)], 0)
    found = {e.text: e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")}
    label, number = found["6 nodes: R² 0.966"], found["0.970"]
    room = 4.0 * len(label.text) * ("middle" in label.get("style"))  # to the left of where it is put
    assert float(label.get("x")) - room > float(number.get("x"))


def test_losses_of_zero_are_drawn_and_named():
    solved = plots.loss_curves({"a": np.repeat([[1.0, 0.0]], [5, 40], 1).repeat(2, 0)}, window=2)
    assert "nan" not in solved and "a" in texts(solved)
    assert "≤ 9.31e−10" in texts(plots.final_losses([row("a", LOSS_FLOOR, 0.0), row("b", 1.0)]))


def test_end_labels_do_not_overlap():
    names = [f"o{k}" for k in range(12)]
    falling = np.geomspace(10, 1, 30)
    svg = plots.loss_curves(
        {name: np.stack([falling + 1e-3 * k] * 2) for k, name in enumerate(names)}, window=1
    )
    labels = {e.text: e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")}
    heights = [float(labels[name].get("y")) for name in names]
    assert min(-np.diff(heights)) > 9.0  # points of the view box; a line of text is 9 high
    assert max(heights) < float(ElementTree.fromstring(svg).get("viewBox").split()[3])


@pytest.mark.parametrize("spread", [1.01, 3.0])
def test_band_is_the_interval_of_logarithms(spread):
    """Seeds at 10 / spread, 10 and 10 * spread: of far ones too the lower bound is positive.

    The log axis spans 10 / 1.15 to 2 * 10 * 1.15 over 3.9 - 0.58 inches of 72 points.
    """
    losses = np.array([[10.0 / spread] * 9, [10.0] * 9, [10.0 * spread] * 9])
    half = np.log(spread) * 4.3026527 / np.sqrt(3)
    for height, svg in (
        (np.log(2 * 1.15**2) / (3.9 - 0.58), plots.loss_curves({"a": losses}, window=1)),
        (np.log(2 * 1.15**2) / (1.95 - 0.66), grid_plots.panels({"p": {"a": losses}}, ["a"], window=1)),
    ):
        band = max(re.findall(r'd="([^"]*z)', svg), key=len)
        heights = np.array(re.findall(r"-?\d[\d.]*", band), dtype=float)[1::2]
        assert np.ptp(heights) == pytest.approx(2.0 * half / height * 72, rel=2e-3, abs=0.05)


def test_long_runs_stay_small_and_long_names_are_cut():
    assert len(plots.loss_curves({"a": np.random.default_rng(0).uniform(1, 2, (3, 20_000))})) < 60_000
    assert f"rule:{'x' * 16}…" in texts(plots.final_losses([row("rule:" + "x" * 90, 1.0)]))


@pytest.mark.filterwarnings("error")
def test_little_or_nothing_to_draw():
    with pytest.raises(L2OError, match="at least one curve"):
        plots.loss_curves({})
    with pytest.raises(L2OError, match="at least one row"):
        plots.final_losses([])
    for svg in (
        plots.training_curve([], [], []),
        plots.pareto_front([]),
        plots.loss_curves({"a": np.full((2, 3), np.nan)}),
        plots.final_losses([row("a", np.inf, diverged=5)]),
        plots.final_losses([row("a", 0.0, 0.0), row("b", -1.0)]),
        plots.final_losses([row("a", 1.0, 0.0)]),
        plots.loss_curves({"a": np.array([[1.0, -1.0, -2.0]])}),
        plots.pareto_front([(3, 0.5)], 0),
    ):
        ElementTree.fromstring(svg)


def ends_of(svg):
    """Text -> from where to where it reaches along x, in points, letters taken as 0.6 of their size."""
    found = {}
    for element in ElementTree.fromstring(svg).iter():
        if element.tag.endswith("text") and element.text and "x" in element.attrib:
            width, x = 0.6 * drawing.FONT * len(element.text), float(element.get("x"))
            start = x - width * (0.5 if "middle" in element.get("style") else 1.0)
            found[element.text] = start, start + width
    return found


def test_numbers_below_an_axis_do_not_touch():
    rows = [row("teacher", 0.00125, 0.0009), row("adam", 0.005), row("sgd", 0.12)]
    svg = plots.final_losses(rows)
    ticks = sorted(end for text, end in ends_of(svg).items() if re.fullmatch(r"0\.0*[1-9]|1", text))
    assert len(ticks) >= 2 and all(left[1] < right[0] for left, right in itertools.pairwise(ticks))


def test_the_label_of_a_point_at_the_edge_stays_in_the_figure():
    points = [(3, 0.81), (5, 0.85), (12, 0.949)]
    start, end = ends_of(plots.pareto_front(points, 2))["12 nodes: R² 0.949"]
    assert start >= 0 and end <= 72 * 5.4


def test_no_number_of_a_small_loss_pushes_the_axis_label_over_the_edge():
    losses = np.geomspace(2.0, 3e-7, 40)[None]
    for svg in (
        plots.loss_curves({"adam": losses, "sgd": losses[:, ::-1]}, window=1),
        plots.training_curve(range(40), losses[0], [None] * 40),
    ):
        parts = [part for part in ElementTree.fromstring(svg).iter() if part.tag.endswith("text")]
        (label,) = [part for part in parts if re.search("loss", part.text or "")]
        baseline = float(re.search(r"rotate\(-90 ([-\d.]+)", label.get("transform"))[1])
        assert baseline >= drawing.FONT  # its letters are above the baseline: to the left of it
        numbers = [start for text, (start, _) in ends_of(svg).items() if re.fullmatch(r"[\d.e-]+", text)]
        assert len(numbers) > 3 and min(numbers) > baseline
