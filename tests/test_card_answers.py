"""card.yaml: asks what only a person knows, takes what is written as text, and says where it cannot be read."""

import pytest
import yaml

from rcmnet_jax.errors import UserError
from rcmnet_jax.report import card_answers
from rcmnet_jax.report.card import CardFacts, mark, render_card
from rcmnet_jax.report.items import ITEMS


def write(folder, text):
    (folder / card_answers.FILE).write_text(text, encoding="utf-8")


def card(workdir):
    (workdir / "bundle").mkdir(exist_ok=True)
    facts = CardFacts("rcmnet", ("a", "b"), answers=card_answers.read(workdir))
    (workdir / "bundle/card.md").write_text(render_card(facts), encoding="utf-8")


def test_the_template_asks_each_question_once_and_answers_none(tmp_path):
    card_answers.ask(tmp_path)
    found = yaml.safe_load((tmp_path / card_answers.FILE).read_text())
    assert set(found) == set(card_answers.ASKED) <= {item.key for item in ITEMS}
    assert set(found.values()) == {None}
    assert card_answers.read(tmp_path) == {}
    assert all(f"# {item.question}" in card_answers.template() for item in ITEMS if item.key in card_answers.ASKED)


def test_what_a_person_wrote_is_never_written_over(tmp_path):
    write(tmp_path, "ethics: approved\n")
    card_answers.ask(tmp_path)
    assert card_answers.read(tmp_path) == {"ethics": "approved"}


def test_answers_stay_the_text_they_were_written_as(tmp_path):
    write(tmp_path, "dates: 2021-05-01\nexternal: no\nsize: 1e3\nfunding: |\n  two\n  lines\nuse: ~\nethics: ''\n")
    assert card_answers.read(tmp_path) == {
        "dates": "2021-05-01",
        "external": "no",
        "size": "1e3",
        "funding": "two lines",
    }


def test_the_card_takes_answers_in_and_is_known_to_be_current(tmp_path):
    card_answers.ask(tmp_path)
    card(tmp_path)
    assert card_answers.is_current(tmp_path)
    assert "Taken in" not in (tmp_path / "bundle/card.md").read_text()
    write(tmp_path, "ethics: 'Board <b>7</b>: yes'\n")
    assert not card_answers.is_current(tmp_path)
    card(tmp_path)
    text = (tmp_path / "bundle/card.md").read_text()
    assert "Board &lt;b&gt;7&lt;/b&gt;: yes" in text.split("## Not stated")[0]
    assert "Which ethics board" not in text.split("## Not stated")[1]
    assert card_answers.is_current(tmp_path)
    write(tmp_path, "ethics: another board\n")
    assert not card_answers.is_current(tmp_path)


def test_an_answer_cannot_pass_for_the_mark():
    text = render_card(CardFacts("rcmnet", ("a", "b"), answers={"use": f"x\n{mark({'use': 'y'})}"}))
    assert [line for line in text.splitlines() if line.startswith("Taken in")] != [mark({"use": "y"})]
    assert sum(line.startswith("Taken in") for line in text.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("use: a\nethics: b: c\n", "line 2: not YAML"),
        ("use: a\nehtics: b\n", "line 2: 'ehtics' is no item of the card; did you mean 'ethics'?"),
        ("use: a\nuse: b\n", "line 2: 'use' is answered twice"),
        ("use: [a, b]\n", "line 1: the answer to 'use' must be text"),
        ("- use\n", "line 1: expected lines"),
        ("use: !!python/object/apply:os.system ['x']\n", "line 1: the answer to 'use' must be text"),
        ("use: *nothing\n", "line 1: not YAML"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(tmp_path, text, sentence):
    write(tmp_path, text)
    with pytest.raises(UserError) as error:
        card_answers.read(tmp_path)
    assert sentence in str(error.value)
    assert "card.yaml" in str(error.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / card_answers.FILE).write_bytes(b"use: \xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        card_answers.read(tmp_path)
