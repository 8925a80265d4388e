"""What the card asks: the items of TRIPOD+AI and CLAIM, in our words and merged where the two ask the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One thing that a reporting guideline asks for; `sources` name its items there."""

    key: str
    section: str
    question: str
    sources: str


# TRIPOD+AI: Collins et al. 2024, 27 items. CLAIM: Mongan et al. 2020, 42 items. Each of them is named at least once.
_ASKED = {
    "Study": (
        ("summary", "What is it, made how, and how good, in two sentences?", "TRIPOD+AI 1-2; CLAIM 1-2"),
        ("objectives", "What was to be found out, with which expectation?", "TRIPOD+AI 4; CLAIM 4"),
        ("design", "Were the images gathered for this (prospective) or there before?", "TRIPOD+AI 5; CLAIM 5"),
        ("goal", "Is a model made, tested or compared?", "TRIPOD+AI 4; CLAIM 6"),
    ),
    "Intended use": (
        ("use", "What is it for, and who would use it at which point of care?", "TRIPOD+AI 3, 27; CLAIM 3, 39"),
        ("out_of_scope", "For what must it not be used?", "TRIPOD+AI 27; CLAIM 39"),
        ("involvement", "Had patients or the public a part in planning it?", "TRIPOD+AI 19"),
    ),
    "Model": (
        ("classes", "What does it tell apart?", "TRIPOD+AI 8; CLAIM 14"),
        ("architecture", "Which network, in which version, with how many parameters?", "TRIPOD+AI 22; CLAIM 22"),
        ("input", "What must an input look like, and how is it prepared?", "TRIPOD+AI 7, 9; CLAIM 9-10"),
        ("initial", "From which weights did training start?", "CLAIM 24"),
        ("updating", "Was an earlier model carried on, and what did that change?", "TRIPOD+AI 12, 24"),
        ("ensemble", "Do several networks or views answer together?", "CLAIM 27"),
    ),
    "Data": (
        ("sources", "Which data, how many images, of how many people?", "TRIPOD+AI 5, 20-21; CLAIM 7"),
        ("dates", "When and where were they taken, with which stain, scanner and magnification?", "TRIPOD+AI 5-6"),
        ("people", "Who were the patients: age, sex, disease, treatment?", "TRIPOD+AI 6, 20; CLAIM 34"),
        ("definitions", "How is each class defined, and why so?", "TRIPOD+AI 8; CLAIM 11, 14-15"),
        (
            "labels",
            "Who labelled, with which tool, how many readers, how well do they agree?",
            "TRIPOD+AI 8; CLAIM 16-18",
        ),
        ("exclusions", "What was left out, and why?", "TRIPOD+AI 6, 20; CLAIM 8, 33"),
        ("missing", "What happened where a label, a group or an image is missing?", "TRIPOD+AI 11; CLAIM 13"),
        ("deidentified", "How were names and other marks of patients removed?", "CLAIM 12"),
        ("ethics", "Which ethics board, consent and licence?", "TRIPOD+AI 17"),
        ("audit", "Were duplicates, leakage and shortcuts looked for?", "TRIPOD+AI 7; CLAIM 21"),
    ),
    "Evaluation": (
        ("partitions", "How were training and test parted, and at which level?", "TRIPOD+AI 12; CLAIM 20-21"),
        ("size", "Why is the number of images enough?", "TRIPOD+AI 10; CLAIM 19"),
        ("measures", "By which measures is it judged?", "TRIPOD+AI 12; CLAIM 28"),
        ("uncertainty", "How were intervals and differences computed?", "TRIPOD+AI 12; CLAIM 29"),
        ("results", "How good is it, with which certainty?", "TRIPOD+AI 23; CLAIM 35-36"),
        ("groups", "For whom or where is it worse?", "TRIPOD+AI 23"),
        ("fairness", "What was done so that it serves everyone alike?", "TRIPOD+AI 3, 14"),
        ("failures", "What does it get wrong?", "CLAIM 37"),
        ("robustness", "How much hangs on the seed and on the division of the data?", "CLAIM 30"),
        ("explanation", "How can one see what it looked at, and what is that worth?", "CLAIM 31"),
        ("baselines", "Against what was it compared?", "TRIPOD+AI 25"),
        ("calibration", "Are its probabilities true, and when does it abstain?", "TRIPOD+AI 12, 15, 27"),
        ("external", "Was it tried on data from elsewhere, and how do these differ?", "TRIPOD+AI 16; CLAIM 32"),
    ),
    "Limits": (("limits", "What are its known limits?", "TRIPOD+AI 26; CLAIM 38"),),
    "Reproduction": (
        ("training", "Which settings, seed and software made it?", "TRIPOD+AI 12; CLAIM 23, 25"),
        ("imbalance", "What was done about rare classes?", "TRIPOD+AI 13"),
        ("selection", "How was the final model chosen?", "TRIPOD+AI 12; CLAIM 26"),
        ("code", "Where are code, weights and data?", "TRIPOD+AI 18"),
        ("registration", "Where are the protocol and the registration?", "TRIPOD+AI 18; CLAIM 40-41"),
        ("funding", "Who paid, and who has an interest?", "TRIPOD+AI 18; CLAIM 42"),
    ),
}
ITEMS = tuple(
    Item(key, section, question, sources) for section, entries in _ASKED.items() for key, question, sources in entries
)
