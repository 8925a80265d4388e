"""The report says it all in one file, takes nothing from outside, and lets no name from the data become markup."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rcmnet_jax.evaluation.compare import compare
from rcmnet_jax.evaluation.metrics import chance_level, compute
from rcmnet_jax.evaluation.tables import join, make_table
from rcmnet_jax.report import DataFacts, ReportInputs, render, sentences
from rcmnet_jax.report.inputs import Embedding
from rcmnet_jax.report.plots import parts_plot

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{a$ & 'b'",
    "<!-- a --> ]]> &amp;",
    "var(--x)",
    "var(--ink)",
    "font-family: serif",
    "font: 12px a",
    ' id="x"',
    "url(#a)",
    ' version="1"',
    "#010203",
    "a\x08b",
    "\u8840\u7403",  # in no script that Matplotlib's font has
)


def example(n=90, classes=("blast", "lymphocyte", "monocyte"), groups=12, signal=2.0, seed=0):
    rng = np.random.default_rng(seed)
    truth, logits = rng.integers(0, len(classes), n), rng.normal(size=(n, len(classes)))
    logits[np.arange(n), truth] += signal
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    group = [f"donor {i % groups}" for i in range(n)] if groups else None
    label = [classes[k] for k in truth]
    paths = [f"{name}/{i}.png" for i, name in enumerate(label)]
    fold = np.arange(n) % 3
    more = {"seed": 0, "fold": fold, "split": "oof", "abstain": p.max(1) < 0.5}
    return make_table(paths, p, classes, label=label, group=group, **more)


def picture(path):
    return np.full((40, 60, 3), len(path) % 255, np.uint8)


class Page(HTMLParser):
    """Tags, attributes and text of a page, and whether tags nest."""

    VOID = ("meta", "img", "br", "link", "hr")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def full(table):
    metrics = compute(table)
    other = make_table(table.path, np.roll(table.probabilities, 1, 1), table.classes, label=table.label)
    comparison = {**compare({"transfer": table, "scratch": other}), "sentences": ["transfer beats scratch."]}
    counts = dict.fromkeys(table.classes, 9)
    data = DataFacts("source", "synthetic:pbc", 80, 0, 82, {"no image": 2}, counts, synthetic=True)
    log = [
        {"stage": f"transfer/seed_0/fold_{f}", "kind": "train", "step": s, "loss": 2 / s, "learning_rate": 0.1}
        for f in range(2)
        for s in range(1, 9)
    ]
    return ReportInputs(
        table=table,
        metrics=metrics,
        title="A to B",
        model="rcmnet, 64 px",
        data=[data],
        arms={"transfer": metrics, "scratch": compute(example(signal=0.5))},
        log=log,
        images=picture,
        findings=[{"level": "error", "name": "leak", "message": "a.png is b.png"}],
        comparison=comparison,
        notes=["a note"],
        provenance={"Config": {"seed": 0}},
    )


@pytest.fixture(scope="module")
def text():
    """A report of all parts."""
    return render(full(example()))


def test_a_full_report_shows_every_part(text):
    words = " ".join(Page(text).words)
    for part in (
        "A to B",
        "SYNTHETIC DATA",
        "Research use only, not a medical device",
        "80 images",
        "Weakest class",
        "95% interval",
        "Most confident errors",
        "no image",
        "a.png is b.png",
        "transfer beats scratch.",
        "a note",
        "Learning curves",
        "each predicted by a model that never saw it (3 folds)",
    ):
        assert part in words, part
    assert len(text) < 1_000_000


def test_it_loads_and_links_nothing_from_outside(text):
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "data"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:image/"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_names_from_the_data_stay_text():
    table = example(classes=HOSTILE)
    inputs = full(table)
    inputs = dataclasses.replace(
        inputs,
        title=HOSTILE[0],
        model=HOSTILE[1],
        data=[DataFacts(HOSTILE[0], HOSTILE[1], 1, skipped={HOSTILE[0]: 1}, classes={HOSTILE[1]: 3})],
        arms={HOSTILE[0]: inputs.metrics, HOSTILE[1]: inputs.metrics},
        findings=[{"level": HOSTILE[1], "name": HOSTILE[0], "message": HOSTILE[0]}],
        provenance={HOSTILE[0]: {"x": HOSTILE[0]}},
        log=[{"stage": HOSTILE[0], "kind": "train", "step": 1, "loss": 1.0}],
    )
    text = render(inputs)
    page = Page(text)
    assert page.open == []
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert all(str(a.get("src", "data:")).startswith("data:") for _, a in page.tags)
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_every_image_and_figure_has_a_text_and_the_page_can_be_walked_by_keyboard(text):
    page = Page(text)
    for tag, attributes in page.tags:
        if tag == "img":
            assert len(attributes["alt"]) > 10
        if tag == "svg":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"]) > 10
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert targets[0] == "main"
    assert set(targets) <= set(ids)
    assert ("html", {"lang": "en"}) in page.tags


def test_every_table_can_be_scrolled_by_keyboard_and_has_a_name(text):
    boxes = [a for tag, a in Page(text).tags if a.get("class") == "scroll"]
    assert len(boxes) == sum(tag == "table" for tag, _ in Page(text).tags) == 10
    assert all((box.get("tabindex"), box.get("role")) == ("0", "region") for box in boxes)
    assert len({box["aria-label"] for box in boxes}) == 10


def test_reasons_of_values_that_are_undefined_can_be_read_without_a_mouse():
    table = example(groups=0)
    words = " ".join(Page(render(ReportInputs(table=table.select(table.label == "blast")))).words)
    for reason in ("fewer than two classes are present", "no image of this class", "no image of another class"):
        assert reason in words
    alone = table.select(np.arange(1))
    comparison = compare({"a": alone, "b": alone})
    words = " ".join(Page(render(ReportInputs(table=alone, comparison=comparison))).words)
    assert "there is but one group or image" in words
    assert "one image alone" in words


def test_a_table_alone_makes_a_report_that_says_what_it_lacks():
    text = render(ReportInputs(table=example(groups=0)))
    words = " ".join(Page(text).words)
    assert "What this report lacks" in words
    assert "no groups are given" in words
    assert "run `python -m rcmnet_jax audit DATA`" in words
    assert "SYNTHETIC DATA" not in words


@pytest.mark.parametrize("n", [1, 3])
def test_a_tiny_or_perfect_table_still_makes_a_report(n):
    assert "<h1>" in render(ReportInputs(table=example(n, groups=0, signal=60.0)))
    assert "<h1>" in render(ReportInputs(table=example(n, groups=0, signal=-60.0)))


def looked(table):
    views = {"heat": np.full((32, 32, 3), 90, np.uint8), "attention": np.zeros((32, 32, 3), np.uint8)}
    return [views] * len(table)


def rich(table):
    """All that a run's report has."""
    random = np.random.default_rng(0)
    embedding = Embedding(table.path, random.normal(size=(len(table), 6)), "a network of nobody")
    return dataclasses.replace(full(table), explain=looked, embedding=embedding, doubts=["a shortcut does as well"])


def test_errors_are_shown_with_what_the_network_looked_at_and_doubts_before_the_numbers():
    page = render(rich(example()))
    wrong = page.split("Most confident errors")[1].split("Right, for comparison")[0]
    assert wrong.count("<img") == 3 * wrong.count("<li>") > 0
    assert "From left to right: input, heat, attention" in wrong
    assert page.index("a shortcut does as well") < page.index("What was trained on what")
    assert page.count("a shortcut does as well") == 1


def test_the_explainer_is_asked_once_with_the_rows_that_are_shown():
    asked = []

    def explain(table):
        asked.append(table)
        return looked(table)

    render(dataclasses.replace(full(example()), explain=explain))
    wrong = asked[0]
    assert len(asked) == 2
    assert 0 < len(wrong) <= 18
    assert (wrong.label != wrong.prediction).all()
    assert (np.diff(wrong.confidence) <= 0).all()


def test_the_map_of_the_images_says_what_its_neighbours_say():
    table = example()
    truth = np.array([table.classes.index(name) for name in table.label])
    apart = np.eye(3)[truth] * 100 + np.random.default_rng(0).normal(size=(len(table), 3))
    text = render(dataclasses.replace(full(table), embedding=Embedding(table.path, apart, "a network of nobody")))
    assert "100% of the images have a nearest neighbour of their own class" in text
    assert "outside their own group" in text


def test_equal_inputs_give_an_equal_page(text):
    assert render(full(example())) == text


def test_three_thousand_images_stay_under_five_megabytes():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (128, 128, 3), np.uint8)
    table = example(3000, tuple(f"class {i}" for i in range(12)), groups=150)
    noisy = dict.fromkeys(("heat", "attention"), noise)
    inputs = dataclasses.replace(rich(table), images=lambda _: noise, explain=lambda rows: [noisy] * len(rows))
    assert len(render(inputs).encode()) < 5_000_000


def told(right, confidence=0.9, *, group=None, truth=None, seed=0):
    """What a report says of images of two classes that are right or not."""
    right = np.asarray(right)
    truth = np.arange(len(right)) % 2 if truth is None else np.asarray(truth)
    p = np.full((len(right), 2), 1 - np.broadcast_to(confidence, len(right))[:, None])
    p[np.arange(len(right)), np.where(right, truth, 1 - truth)] = confidence
    names = [("a", "b")[k] for k in truth]
    paths = [f"{i}.png" for i in range(len(right))]
    return make_table(paths, p, ("a", "b"), label=names, group=group, seed=seed)


def test_groups_are_said_to_differ_only_where_chance_does_not_part_them():
    few = told([True] * 90 + [False] * 10 + [True] * 4 + [False], group=["A"] * 100 + ["B"] * 5)
    assert "Top-1 of the 2 groups is 80.0% to 90.0%; no two have" in " ".join(sentences.fails(compute(few)))
    apart = told([True] * 95 + [False] * 105, group=["A"] * 100 + ["B"] * 100)
    assert "Groups differ: B has top-1 0.0% of 100 images, A 95.0% of 100." in sentences.fails(compute(apart))


def test_confidences_that_are_off_both_ways_are_not_said_to_be_off_one_way():
    right = np.tile([True] * 9 + [False] + [True] * 7 + [False] * 3, 20)
    mixed = told(right, np.tile([0.6] * 10 + [0.999] * 10, 20))
    assert sentences.confidence(compute(mixed))[0].startswith("Confidences are off both ways")
    sure = told(np.tile([True] * 7 + [False] * 3, 40), 0.97)
    assert sentences.confidence(compute(sure))[0].startswith("The model is too sure of itself")


def test_one_class_leaves_nothing_to_guess():
    metrics = compute(told([True] * 8 + [False] * 2, truth=np.zeros(10, int)))
    assert chance_level(metrics) is None
    assert "guessing" not in sentences.certainty(metrics)[0]
    assert chance_level(compute(told([True] * 10))) == 0.5


def test_a_class_that_one_of_the_seeds_lacks_is_no_weakest_class():
    one = told([True, False] * 10)
    two = told([True] * 9 + [False], truth=np.zeros(10, int), seed=1)
    said = " ".join(sentences.fails(compute(join([one, two]))))
    assert "Weakest class: a" in said


def test_more_groups_than_can_be_seen_do_not_make_the_page_larger():
    many = told(np.ones(3000, bool) & (np.arange(3000) % 7 > 0), group=[f"g{i // 2}" for i in range(3000)])
    drawing = parts_plot(compute(many)["per_group"], "group", compute(many)["top1"])
    assert "of which 500 are drawn" in drawing.alt
    assert len(drawing.svg) < 400_000
