"""The page of a report, taken apart: figures against hand-made runs, nothing that loads or runs, names that try to be code."""

from __future__ import annotations

import base64
import csv
import io
import random
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_inputs import CASES, asked, evaluation, layers, record, shown_case

from medquant.errors import UsageError
from medquant.report import page as page_module
from medquant.report.case_choice import choose_cases, shown_record, worst_first
from medquant.report.case_images import case_images, picture_uri
from medquant.report.comparison import group_runs
from medquant.report.folds import fold_groups
from medquant.report.overlay import FALSE_RGB, RIGHT_RGB
from medquant.report.page import MOST_CASE_ROWS, Report, make_report
from medquant.report.pareto import pareto_front
from medquant.report.plots import training_figure
from medquant.report.record import ReportInput, RunDetails
from medquant.report.summary import baseline_sentence, headline, interval_note, limits
from medquant.report.svg import bar_paths, inline_svg

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{ 7*7 }}"
SECTIONS = ["summary", "memory", "cases", "networks", "provenance", "use"]
_VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Every element with its attributes, the text, and whether elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def made() -> Report:
    return make_report(asked())


@pytest.fixture(scope="module")
def page(made: Report) -> Page:
    return Page(made.html)


# --- content ------------------------------------------------------------------------------------------------------------


def test_every_section_is_there_and_every_link_leads_somewhere(page: Page) -> None:
    assert [given["id"] for tag, given in page.elements if tag == "section" and given.get("class") is None] == SECTIONS
    ids = [given["id"] for _, given in page.elements if given.get("id")]
    assert len(ids) == len(set(ids))
    linked = {str(given[key])[1:] for _, given in page.elements for key in ("href",) if str(given.get(key, "")).startswith("#")}
    assert linked <= set(ids)
    assert page.open == []


def test_the_summary_says_dice_memory_twin_and_baseline_in_words(page: Page) -> None:
    # 86 and 88 are 87 on average, deviate by sqrt(2), and Student's t with one degree of freedom is 12.7062; the larger file counts.
    assert (
        "Smallest: W4A6 in 7.91 KiB, 4.0 times less than its parameters in float. Dice × 100: lesion 87.00, 1.00 below its float"
        in page.words
    )
    assert "lesion 87.00 (74.29–99.71), 1.00 below its float twin" in page.words
    assert "unet, 2 channels, depth 3, 2D; weights in 4 bits, activations in 6 bits, method fixed_point (2 runs)" in page.words
    assert "one image or block of 64 × 48 took 4.77 MiB above idle" in page.words
    assert "Without looking at the image, Dice × 100 would be: lesion 25.00 (everything is called lesion)" in page.words
    assert "Tested on 6 cases of made_up, part “test”" in page.words


def test_a_single_run_carries_the_interval_over_its_cases(made: Report) -> None:
    rows = {row[0]: row for row in made.tables[0].table.rows}
    assert rows["float"][2:4] == ("90.00 (88.00–92.00)", "–")
    assert rows["W4A6"][2:4] == ("87.00 (74.29–99.71)", "-1.00")


def test_cases_are_sorted_worst_first_and_averaged_over_seeds(made: Report) -> None:
    table = next(each.table for each in made.tables if each.name == "cases")
    assert [row[0] for row in table.rows] == list(CASES)
    assert table.rows[1] == ("second", "91.00", "88.00")
    chosen = choose_cases(asked())
    assert [(case.id, case.why) for case in chosen[:3]] == list(zip(CASES, ("worst", "second worst", "third worst"), strict=False))
    assert [case.id for case in chosen[3:]] == ["fourth", "fifth"]


def test_the_run_in_the_middle_is_shown() -> None:
    given = [record(f"s{n}", evaluation((4, 6), dice, 8000)) for n, dice in enumerate((0.9, 0.7, 0.8))]
    made_up = ReportInput("", tuple(given), tuple(group_runs([each.evaluation for each in given])))
    assert shown_record(made_up, made_up.groups[0]).name == "s2"


def test_the_layer_table_has_the_recorded_figures(made: Report) -> None:
    table = next(each.table for each in made.tables if each.name == "layers")
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["W exponent"], row["W rounding error"], row["W zero"], row["W saturated"]) == ("5 to 6", "0.012", "25.00 %", "3.12 %")
    # 100 + 20 + 3 + 3 bytes of the ledger's row
    assert (row["bytes"], row["A zero"]) == ("126 B", "–")


def test_what_is_missing_is_said_with_the_reason(page: Page) -> None:
    assert "Missing: no checkpoint." in page.words
    with_reason = {"W4A6": RunDetails(asked().records[1], cases_missing="the data are gone")}
    assert "W4A6: the data are gone" in Page(make_report(asked(details=with_reason, cases=())).html).words


def test_where_it_comes_from_is_told(page: Page) -> None:
    for text in ("0123456789ab (modified)", "f" * 64, "2026-01-01T01:00:00Z", "For tests.", "medquant train", "Not a medical device"):
        assert text in page.words


def test_many_cases_are_cut_in_the_page_and_whole_in_the_file() -> None:
    names = tuple(f"case-{n:04d}" for n in range(MOST_CASE_ROWS + 50))
    given = record("many", evaluation((4, 6), 0.1, 8000, names))
    made = make_report(ReportInput("", (given,), tuple(group_runs([given.evaluation]))))
    assert "50 more cases stand in the CSV file" in Page(made.html).words
    assert f"case-{MOST_CASE_ROWS + 49}" not in made.html.partition('id="networks"')[0]
    table = next(each.table for each in made.tables if each.name == "cases")
    assert len(table.rows) == MOST_CASE_ROWS + 50


def test_networks_that_differ_stand_side_by_side() -> None:
    given = [record(f"c{n}", evaluation((4, 6), 0.8, 1000 * n, channels=n)) for n in (2, 4)]
    made = make_report(ReportInput("", tuple(given), tuple(group_runs([each.evaluation for each in given]))))
    assert [row[0] for row in made.tables[0].table.rows] == ["W4A6 channels=2", "W4A6 channels=4"]
    assert "unet, 4 channels" in Page(made.html).words


def test_words_of_special_runs() -> None:
    one = record("sim", evaluation((2, 4), 0.8, None))
    made_up = ReportInput("", (one,), tuple(group_runs([one.evaluation])))
    assert headline(made_up) == ""
    assert any("simulation" in each for each in limits(made_up))
    one.evaluation["baseline"] = {}  # type: ignore[index]
    assert baseline_sentence(made_up) == ""
    assert worst_first(made_up) == list(CASES)
    assert worst_first(replace(made_up, records=(replace(one, evaluation={**one.evaluation, "cases": "none"}),))) == []


def test_dice_of_folds_is_said_to_be_the_mean_of_their_means() -> None:
    # Three cases and one: the page shows the mean of two means, table.md that of four cases.
    documents = [evaluation((4, 6), 0.5, 8000, ("a", "b", "c")), evaluation((4, 6), 0.7, 8000, ("d",))]
    records = tuple(record(f"fold{number}", each) for number, each in enumerate(documents))
    made_up = ReportInput("", records, tuple(fold_groups(documents)), folds=True)
    assert "mean of the folds' means" in interval_note(made_up)
    assert "mean over the folds, with its interval" in make_report(made_up).html


# --- nothing is loaded, nothing runs ------------------------------------------------------------------------------------


def _assert_inert(text: str) -> None:
    parsed = Page(text)
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "nav", "ul", "li", "a", "main", "section", "p"}
    allowed |= {"div", "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "figure", "figcaption", "span", "details", "summary"}
    allowed |= {"strong", "br", "footer", "img", "svg", "g", "path", "defs", "use", "text", "tspan", "image", "clippath", "rect", "line"}
    assert {tag for tag, _ in parsed.elements} <= allowed
    for tag, given in parsed.elements:
        assert not any(name.startswith("on") for name in given), (tag, given)
        for key in ("href", "src", "xlink:href"):
            assert key not in given or re.match(r"#[\w-]+$|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", str(given[key])), (
                tag,
                given[key],
            )
    bare = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|@import|url\((?!#)", bare)
    assert not re.search(r"[\"'(=]\s*//", bare)


def test_the_page_loads_nothing_and_runs_nothing(made: Report, page: Page) -> None:
    _assert_inert(made.html)
    policy = next(str(given["content"]) for tag, given in page.elements if given.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def _hostile() -> ReportInput:
    document = evaluation((4, 6), 0.8, 8000, (HOSTILE, "b"), name=HOSTILE)
    document["dice"] = {HOSTILE: {"mean": 0.8}}
    document["cases"] = [{"id": HOSTILE, "dice": {HOSTILE: 0.8}}, {"id": "b", "dice": {HOSTILE: 0.9}}]
    document["baseline"] = {HOSTILE: {HOSTILE: 0.5}}
    document["bits"] = {"weights": 4, "activations": 6, "method": HOSTILE, "options": {HOSTILE: HOSTILE}}
    document["split"]["rule"] = document["data"]["name"] = HOSTILE
    one = record(HOSTILE, document, HOSTILE)
    run = {
        **one.run,
        "split": {"rule": HOSTILE, HOSTILE: [HOSTILE]},
        "seed": HOSTILE,
        "git": {"commit": HOSTILE},
        "versions": {"torch": HOSTILE},
    }
    epochs = tuple({**epoch, "stage": HOSTILE, "val_dice": {HOSTILE: 0.5}} for epoch in one.epochs)
    settings = {"card": {"intended_use": HOSTILE, "licence": HOSTILE}, HOSTILE: {HOSTILE: HOSTILE}}
    one = replace(one, run=run, epochs=epochs, settings=settings)
    groups = tuple(group_runs([one.evaluation]))
    label = groups[0].label
    details = {label: RunDetails(one, layers(HOSTILE), HOSTILE, None, HOSTILE)}
    case = replace(shown_case(HOSTILE, (label,)), class_name=HOSTILE, why=HOSTILE)
    return ReportInput(HOSTILE, (one,), groups, details, (case,), (HOSTILE,))


def test_names_that_try_to_be_code_are_text_everywhere() -> None:
    made = make_report(_hostile())
    _assert_inert(made.html)
    assert made.html.count("<script") == 0
    assert "49" not in re.findall(r"&amp;(\d+)", made.html), "a name was run as a template"
    page = Page(made.html)
    assert page.words.count(HOSTILE) > 10
    labels = [str(given["aria-label"]) for _, given in page.elements if "aria-label" in given]
    assert any(HOSTILE in label for label in labels)
    assert page.open == []
    assert "<script" not in made.markdown
    assert "<img" not in made.markdown


def test_a_name_that_is_a_formula_is_none_in_the_csv() -> None:
    given = record("=cmd()", evaluation((4, 6), 0.8, 8000, ("=1+1", "b")))
    made = make_report(ReportInput("", (given,), tuple(group_runs([given.evaluation]))))
    text = next(each.table.to_csv() for each in made.tables if each.name == "cases")
    assert [row[0] for row in csv.reader(io.StringIO(text))] == ["case", "'=1+1", "b"]


def test_the_same_runs_give_the_same_bytes(made: Report) -> None:
    assert make_report(asked()).html == made.html


# --- parts --------------------------------------------------------------------------------------------------------------


def test_the_front_is_what_no_other_point_beats() -> None:
    chance = random.Random(5)
    for _ in range(300):
        points = [(chance.randint(1, 6), chance.randint(1, 6)) for _ in range(chance.randint(0, 9))]
        beaten = {
            i
            for i, (size, score) in enumerate(points)
            for other_size, other_score in points
            if other_size <= size and other_score >= score and (other_size, other_score) != (size, score)
        }
        front = pareto_front(points)
        assert sorted(front) == [i for i in range(len(points)) if i not in beaten]
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_bars_rise_to_their_own_highest_bin() -> None:
    before, after = bar_paths([0, 1, 2, 0], [4, 4, 0, 0])
    # Four bins of 25; heights of 19 and 38 below a ceiling of 40.
    assert before == "M0 40H25V21H50V2H75V40H100V40"
    assert after == "M0 40H0V2H50V40H100V40Z"
    assert bar_paths(None, [0, 0]) == ("", "")


def test_a_figure_follows_the_colours_of_the_page_and_refers_to_itself_alone() -> None:
    records = [{"stage": "a<b", "epoch": n, "train_loss": 1.0, "val_dice": {"url(#x)": 0.5}, "lr": 0.1} for n in range(3)]
    text = str(inline_svg(training_figure(records), "name-1", 'say "it"'))
    assert 'aria-label="say &#34;it&#34;"' in text
    assert "a&lt;b" in text
    assert "var(--c0)" in text
    assert "#0072b2" not in text.lower()
    ids = re.findall(r' id="([^"]*)"', text)
    assert ids
    assert all(name.startswith("name-1-") for name in ids)
    assert len(ids) == len(set(ids))
    assert not re.search("xmlns|<metadata|<style|DOCTYPE|http", text)


def _pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


def test_outlines_and_differences_are_what_the_masks_say() -> None:
    drawn = case_images(shown_case("x", ("W4A6",)))
    assert (drawn.width, drawn.height) == (8, 6)
    # Pictures are (j, i); a block of 3 × 2 is all outline, the fourth column is what the prediction has too much.
    truth, difference = _pixels(drawn.truth), _pixels(drawn.differences[0])
    assert [tuple(place) for place in np.argwhere(truth[..., 3] > 0)] == [(2, 2), (2, 3), (2, 4), (3, 2), (3, 3), (3, 4)]
    assert tuple(difference[2, 2, :3]) == RIGHT_RGB
    assert tuple(difference[2, 5, :3]) == FALSE_RGB
    assert (difference[..., 3] > 0).sum() == 8


def test_a_large_slice_is_thinned_out() -> None:
    case = shown_case("x", ("a",))
    big = replace(
        case,
        image=np.kron(case.image, np.ones((100, 100))),
        truth=np.kron(case.truth, np.ones((100, 100), bool)),
        predictions=(replace(case.predictions[0], mask=np.kron(case.truth, np.ones((100, 100), bool))),),
    )
    drawn = case_images(big)
    assert (drawn.width, drawn.height) == (267, 200)
    assert _pixels(drawn.image).shape[:2] == _pixels(drawn.truth).shape[:2] == (200, 267)


def test_a_picture_that_is_none_is_left_out() -> None:
    assert picture_uri(b"no picture") is None
    target = io.BytesIO()
    Image.new("RGB", (3000, 100)).save(target, format="PNG")
    uri = picture_uri(target.getvalue())
    assert uri is not None
    assert _pixels(uri).shape[:2] == (27, 820)


def test_pictures_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    target = io.BytesIO()
    Image.new("RGB", (90, 90)).save(target, format="PNG")
    given = asked()
    details = {each.label: RunDetails(given.records[0], picture=target.getvalue()) for each in given.groups}
    monkeypatch.setattr(page_module, "MOST_IMAGE_BYTES", len(picture_uri(target.getvalue()) or ""))
    made = make_report(replace(given, details=details, cases=()))
    assert made.html.count("<img") == 1
    assert "so that the page stays small: W4A6." in Page(made.html).words


def test_the_files_stand_beside_the_page(made: Report, tmp_path: Path) -> None:
    written = made.write(tmp_path / "em.html")
    assert {file.name for file in written} == {file.name for file in tmp_path.iterdir()}
    names = {"em.html", "em.md", "em-summary.csv", "em-memory.csv", "em-cases.csv", "em-layers.csv", "em-provenance.csv", "em-commands.csv"}
    assert names <= {file.name for file in written}
    headings = [line for line in (tmp_path / "em.md").read_text().splitlines() if line.startswith("## ")]
    assert len(headings) == len(made.tables)
    with pytest.raises(UsageError, match="does not exist"):
        made.write(tmp_path / "missing" / "em.html")


@pytest.mark.slow
def test_a_browser_shows_it_without_a_request_and_without_an_alert(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    make_report(_hostile()).write(tmp_path / "page.html")
    log = tmp_path / "net.json"
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)
    dom = Page(done.stdout)
    assert not any(tag == "script" or any(name.startswith("on") for name in given) for tag, given in dom.elements)
    requests = set(re.findall(r'"url":"((?!data:)[^"]*)"', log.read_text()))
    own = {url for url in requests if not re.search(r"google|gstatic|chrome", url)}
    assert {url for url in own if not url.startswith("file:")} == set()
