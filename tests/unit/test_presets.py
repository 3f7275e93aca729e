"""Presets: what a file may say, with the line of each mistake, and what a request becomes in one."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serve.document import Document
from serve.errors import InvalidConfig, InvalidRequest
from serve.presets.banned import first_banned, fold
from serve.presets.catalog import Catalog, check_file, parse, problems, warm_up_shapes
from serve.presets.choice import Choice
from serve.settings import Settings
from serve.sizes import parse_size

SHIPPED = Path("config/presets.yaml")
TITLE = "{en: A, zh: 甲}"
MODELS = ("embedded", "Tongyi-MAI/Z-Image-Turbo")
HEAD = f"presets:\n  - name: a\n    title: {TITLE}\n"


def catalog(text: str, **settings: object) -> Catalog:
    return parse("presets.yaml", text, Settings(**settings))


def told(text: str, **settings: object) -> list[str]:
    return [str(problem) for problem in problems(Document("presets.yaml", text), Settings(**settings))]


@pytest.mark.parametrize("model", MODELS)
def test_the_shipped_file_serves_every_model(model: str) -> None:
    settings = Settings(model=model)
    assert check_file(SHIPPED, settings) == []
    found = parse(SHIPPED.name, SHIPPED.read_text(), settings)
    assert {"draft", "wallpaper"} < set(found.presets)
    assert found.styles
    assert all(len(entry.title.zh) > 0 for entry in found.presets.values())
    assert {parse_size(entry.size, settings.cap_px) for entry in found.presets.values()} == set(
        warm_up_shapes(settings)
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEAD + "    promt: x\n", "presets.yaml:4: presets[0].promt: unknown key; did you mean 'prompt'?"),
        ("preset: []\n", "presets.yaml:1: preset: unknown key; did you mean 'presets'?"),
        (HEAD + "    prompt: no slot\n", "presets.yaml:4: presets[0].prompt: holds 0 times {prompt}, exactly one"),
        (HEAD + '    prompt: "{prompt} {prompt}"\n', "presets.yaml:4: presets[0].prompt: holds 2 times {prompt}"),
        (
            HEAD + "    size: 100x100\n",
            "presets.yaml:4: presets[0].size: '100x100': both sides must be multiples of 16",
        ),
        (HEAD + "    size: 512x512\n", "presets[0].size: '512x512': 512 is over this model's 256 pixels"),
        (HEAD + "    num_inference_steps: 90\n", "presets.yaml:4: presets[0].num_inference_steps: "),
        (HEAD + "    quality: {best: 3}\n", "presets.yaml:4: presets[0].quality.best: "),
        (HEAD + "    limits: {max_m: 3}\n", "presets[0].limits.max_m: unknown key; did you mean 'max_n'?"),
        (HEAD + "    locked: [seed]\n", "presets.yaml:4: presets[0].locked[0]: "),
        (HEAD + '    banned: [ok, " \\u200b"]\n', "presets.yaml:4: presets[0].banned[1]: is blank"),
        (HEAD + "    name: b\n", "presets.yaml:4: presets[0].name: is given twice"),
        (HEAD + f"  - name: a\n    title: {TITLE}\n", "presets.yaml:4: presets[1].name: 'a' is taken for this model"),
        (HEAD + "    size: 128x128\n    limits: {max_side_px: 64}\n", "presets[0].size: is over its own limits"),
        (HEAD + "    quality: {high: 9}\n    limits: {max_steps: 8}\n", "presets[0].quality.high: is 9, over its own"),
        (HEAD + "model_aliases: [{name: x, preset: b}]\n", "presets.yaml:4: model_aliases[0].preset: there is no 'b'"),
        ("model_aliases: [{name: z-image-turbo}]\n", "model_aliases[0].name: 'z-image-turbo' is taken"),
        (f"presets:\n  - title: {TITLE}\n", "presets.yaml:2: presets[0].name: Field required"),
        ("presets:\n  - {name: a, title: A}\n", "presets.yaml:2: presets[0].title: "),
        ("- 1\n", "presets.yaml:1: is not a mapping"),
        ("", "presets.yaml:1: is empty"),
    ],
)
def test_a_mistake_has_file_line_key_and_reason(text: str, problem: str) -> None:
    assert any(problem in line for line in told(text)), told(text)


def test_what_is_not_yaml_is_refused_with_its_line() -> None:
    with pytest.raises(InvalidConfig, match=r"presets\.yaml:3: is not YAML"):
        catalog("presets:\n  - {a: [1\n")
    with pytest.raises(InvalidConfig, match="is not YAML"):
        catalog("presets: 2024-99-99\n")


def test_the_services_own_limits_bound_those_of_presets() -> None:
    assert (
        "the service's limits.max_steps is 4" in told(HEAD + "    num_inference_steps: 8\n", limits={"max_steps": 4})[0]
    )


def test_models_are_chosen_by_pattern() -> None:
    text = HEAD + '    models: ["*Turbo*"]\n' + f'  - {{name: a, title: {TITLE}, models: ["!*Turbo*"], size: 64x64}}\n'
    assert catalog(text).presets["a"].size == "64x64"
    assert catalog(text, model="org/Z-Turbo").presets["a"].size is None


def test_a_size_of_another_model_is_no_mistake() -> None:
    assert told(HEAD + "    models: ['!embedded']\n    size: 1024x1024\n") == []


# --- words


@pytest.mark.parametrize(
    ("prompt", "banned", "found"),
    [
        ("a NUDE man", "nude", "NUDE"),
        ("a ｎｕｄｅ man", "nude", "ｎｕｄｅ"),
        ("a nu\u200bde man", "nude", "nu\u200bde"),
        ("STRASSE, gross", "straße", "STRASSE"),
        ("eine Straße", "STRASSE", "Straße"),
        ("blood \n bath", "blood bath", "blood \n bath"),
        ("un cafe\u0301 noir", "café", "cafe\u0301"),
        ("血腥的画面", "血腥", "血腥"),
        ("一张裸体照片", "裸体", "裸体"),
        ("nudes", "nude*", "nudes"[:4]),
        ("ﬁre!", "fire", "ﬁre"),
        ("(nude)", "nude", "nude"),
    ],
)
def test_a_banned_word_is_found_where_it_stands(prompt: str, banned: str, found: str) -> None:
    fragment = first_banned(prompt, [banned])
    assert fragment is not None
    assert fragment.text == found == prompt[fragment.start : fragment.end]


@pytest.mark.parametrize(
    ("prompt", "banned"),
    [("a catalogue", "cat"), ("a bobcat", "cat"), ("nudes", "nude"), ("bobcats", "cat*"), ("a c at", "cat"), ("", "a")],
)
def test_other_words_are_not(prompt: str, banned: str) -> None:
    assert first_banned(prompt, [banned]) is None


def test_the_leftmost_and_longest_is_named() -> None:
    fragment = first_banned("a red fox and a dog", ["dog", "red", "red fox"])
    assert fragment is not None
    assert (fragment.start, fragment.end, fragment.text) == (2, 9, "red fox")


@given(st.text(max_size=40))
def test_folding_keeps_every_place(text: str) -> None:
    folded = fold(text)
    assert len(folded.text) == len(folded.spans)
    assert all(0 <= start < end <= len(text) for start, end in folded.spans)
    starts = [start for start, _ in folded.spans]
    assert starts == sorted(starts)


@given(st.text(max_size=12), st.text(max_size=12), st.sampled_from(["nude", "straße", "血腥", "café", "a b"]))
def test_a_banned_word_among_anything_is_found_in_any_case_and_width(before: str, after: str, banned: str) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in banned.upper())
    prompt = f"{before}, {wide} ,{after}"
    fragment = first_banned(prompt, [banned])
    assert fragment is not None
    assert fragment.text == prompt[fragment.start : fragment.end]
    assert fold(banned).text in fold(fragment.text).text
    assert unicodedata.is_normalized("NFKC", fold(fragment.text).text)


# --- what a request becomes

TEXT = yaml.safe_dump(
    {
        "presets": [
            {
                "name": "fixed",
                "title": {"en": "Fixed", "zh": "固定"},
                "prompt": "one {prompt} two",
                "negative_prompt": "blur",
                "size": "128x64",
                "num_inference_steps": 6,
                "guidance_scale": 1.5,
                "quality": {"low": 2},
                "limits": {"max_n": 2, "max_side_px": 128, "max_steps": 10},
                "locked": ["size", "num_inference_steps"],
            },
            {"name": "free", "title": {"en": "Free", "zh": "自由"}, "num_inference_steps": 6},
        ],
        "styles": [
            {
                "name": "ink",
                "title": {"en": "Ink", "zh": "水墨"},
                "prompt": "ink of {prompt}!",
                "negative_prompt": "colour",
            }
        ],
        "model_aliases": [{"name": "gpt-ink", "preset": "fixed", "style_preset": "ink"}],
    }
)


def choice(preset: str | None = None, style: str | None = None, model: str | None = None) -> Choice:
    found = catalog(TEXT)
    return Choice.of(found, found.aliases.get(model or ""), preset, style)


def test_words_go_around_the_prompt_and_are_never_a_template() -> None:
    wrapped = choice("fixed", "ink").wrap("{prompt} {0} %s")
    assert wrapped.text == "one ink of {prompt} {0} %s! two"
    assert wrapped.text[wrapped.start : wrapped.end] == "{prompt} {0} %s"


def test_without_a_preset_nothing_changes() -> None:
    plain = choice()
    assert not plain
    assert plain.wrap("a fox").text == "a fox"
    assert (plain.size(None), plain.size("64x64"), plain.steps(5, None), plain.guidance(2)) == (None, "64x64", 5, 2)


def test_what_is_left_out_is_the_presets() -> None:
    fixed = choice("fixed", "ink")
    assert (fixed.size(None), fixed.size("auto"), fixed.steps(None, None)) == ("128x64", "128x64", 6)
    assert fixed.guidance(None) == 1.5
    assert fixed.negative(None) == "blur, colour"


def test_what_is_explicit_wins() -> None:
    assert choice("free").steps(4, None) == 4
    assert choice("fixed").guidance(3.0) == 3.0
    assert choice("fixed").negative("snow") == "snow"


def test_but_not_over_a_lock() -> None:
    fixed = choice("fixed")
    assert fixed.size("128x64") == "128x64"
    with pytest.raises(InvalidRequest, match="size is '64x64', but preset 'fixed' fixes it at '128x64'"):
        fixed.size("64x64")
    with pytest.raises(InvalidRequest, match="num_inference_steps is '7'"):
        fixed.steps(7, None)


def test_a_quality_is_mapped_by_the_preset_or_has_no_effect_on_locked_steps() -> None:
    fixed = choice("fixed")
    assert fixed.steps(None, "low") == 2
    assert fixed.ignores("high")
    assert fixed.steps(None, "high") == 6
    assert choice("free").steps(None, "high") is None  # the service's own map


@pytest.mark.parametrize(("n", "side", "steps", "param"), [(3, 64, 6, "n"), (1, 256, 6, "size"), (1, 64, 11, "num_")])
def test_limits(n: int, side: int, steps: int, param: str) -> None:
    choice("fixed").check_limits(2, 128, 64, 10)
    with pytest.raises(InvalidRequest, match="the limit of preset 'fixed' is") as refused:
        choice("fixed").check_limits(n, side, 64, steps)
    assert str(refused.value.param).startswith(param)


def test_a_model_alias_stands_for_presets_unless_others_are_named() -> None:
    aliased = choice(model="gpt-ink")
    assert aliased.preset is not None
    assert aliased.style is not None
    assert (aliased.preset.name, aliased.style.name) == ("fixed", "ink")
    assert choice("free", model="gpt-ink").preset == catalog(TEXT).presets["free"]


def test_an_unknown_name_is_told_with_near_ones() -> None:
    with pytest.raises(InvalidRequest, match="unknown preset 'Fixd'") as refused:
        choice("Fixd")
    assert refused.value.hint.startswith("did you mean 'fixed'? send one of: fixed, free")
