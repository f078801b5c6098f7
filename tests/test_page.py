"""The audit's page: its sections and numbers, and how a real browser shows it."""

from __future__ import annotations

import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from cell_results import BATCH, audit_results, cell_result, compared, failed_result
from PIL import Image

from dlg.audit import page as page_module
from dlg.audit.findings import findings
from dlg.audit.frontier import COLOURS
from dlg.audit.page import SECTIONS, render

# The best image's PSNR under each defence.
BEST = {
    "none": 90.0,
    "gaussian:0.001": 41.0,
    "gaussian:0.01": 16.0,
    "prune:0.5": 33.0,
    "prune:0.7": 23.0,
    "clip:1:0.01": 9.0,
    "clip:1:0.1": 8.0,
    "int8": 50.0,
    "sign": 5.0,
}
# The attack's own verdict, where it is not that the gradients leave something open.
ATTACKS_VERDICT = {"none": "explained", "gaussian:0.01": "failed", "clip:1:0.1": "failed", "sign": "failed"}
# Two networks under each of these, a cell whose images are equal, one that SSIM decides, and one that could not be run.
PICTURES = 2 * BATCH * (2 * len(BEST) + 2)
# One figure for each network of which two defences were tried; softmax has one and the gradients without any.
FIGURES = 3


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with every kind of thing on it, and the results behind it."""
    folder = tmp_path_factory.mktemp("report")
    rows = [
        cell_result(
            network,
            spec,
            best=best,
            mean_ssim=best / 200,
            best_ssim=best / 100,
            verdict=ATTACKS_VERDICT.get(spec, "undetermined"),
            gradient_scale=0.25,
            bound_psnr=(31.0, 29.0) if spec.startswith(("gaussian", "clip")) else None,
            **compared(),
        )
        for network in ("mlp", "lenet")
        for spec, best in BEST.items()
    ]
    equal = {"best_psnr": math.inf, "mean_psnr": math.inf, "psnr": (math.inf, math.inf), "mean_ssim": 1.0}
    rows.append(cell_result("softmax", "none", **equal))
    rows.append(cell_result("softmax", "sign", best=9.0, best_ssim=0.3))
    rows.append(failed_result("softmax", "gaussian:0.001", error="<script>alert('the defence broke')</script>"))
    rng = np.random.default_rng(0)
    for which in ("target", "recovered"):
        Image.fromarray(rng.integers(0, 256, (28, 28 * BATCH), np.uint8)).save(folder / f"{which}.png")
    results = audit_results(rows, cells=len(rows) + 1)
    file = folder / "report.html"
    file.write_text(render(results, lambda cell, which: folder / f"{which}.png"))
    return file, results


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.headers, self.addresses, self.ids, self.tables = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attributes)
        if tag == "th":
            self.headers.append(attributes)
        if tag == "table":
            self.tables.append(0)
        if tag == "caption":
            self.tables[-1] += 1
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.addresses += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page[0].read_text())


def test_nothing_is_loaded_from_anywhere(page, outline):
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert not re.search(r"url\((?!#)|@import", page[0].read_text())


def test_what_a_row_says_is_text_and_no_markup(page):
    text = page[0].read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text


def test_a_screen_reader_finds_its_way(page, outline):
    assert outline.headings[0] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(outline.headings, outline.headings[1:]))
    assert outline.headings.count(1) == 1
    assert len(outline.images) == PICTURES
    assert all(image["alt"] for image in outline.images)
    assert all(header.get("scope") in ("col", "row") for header in outline.headers)
    assert set(outline.tables) == {1}
    assert len(set(outline.ids)) == len(outline.ids)
    assert {address[1:] for address in outline.addresses if address.startswith("#")} <= set(outline.ids)
    assert page[0].read_text().count('role="img" aria-label="') == FIGURES


def table(text, caption):
    """The rows of a table of the page, as lists of text."""
    body = text[text.index(caption) :]
    body = body[body.index("<tbody>") : body.index("</tbody>")]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body.split("<tr")[1:]]
    return [
        [" ".join(re.sub(r"<[^>]*>", "", re.sub("<br>|<summary>|</summary>", " ", cell)).split()) for cell in row]
        for row in cells
    ]


def test_what_leaked_is_shown_with_what_decided(page):
    rows = table(page[0].read_text(), "<caption>What leaked under each defence on each network")
    found = {row[0]: row[1:] for row in rows}
    assert found["gaussian:0.001"] == ["leaks PSNR 41.0 dB (0.062)"] * 2 + ["could not be run"]
    assert found["gaussian:0.01"][0] == "leaks in part PSNR 16.0 dB (0.062)"
    assert found["clip:1:0.01"][0] == "not recovered PSNR 9.0 dB (0.062)"
    assert found["clip:1:0.1"][0] == "the attack failed: nothing is known PSNR 8.0 dB (0.062)"
    assert found["sign"][1:] == [
        "the attack failed: nothing is known PSNR 5.0 dB (0.062)", "leaks in part SSIM 0.30 (0.062)"
    ]  # fmt: skip


def test_a_cell_is_shown_with_the_attacks_own_verdict_and_why(page):
    text = page[0].read_text()
    rows = {(row[0], row[2]): row[4:9] for row in table(text, "<caption>One row for each cell")}
    reason = cell_result().scores.reason
    assert rows["mlp", "gaussian:0.01"][:2] == ["leaks in part", "PSNR"]
    assert rows["mlp", "gaussian:0.01"][3].startswith("failed ")
    assert rows["mlp", "clip:1:0.1"][:2] == ["the attack failed: nothing is known", "the attack&#39;s verdict"]
    assert rows["mlp", "clip:1:0.01"][3] == f"undetermined {reason}".replace("'", "&#39;")
    assert rows["softmax", "sign"][:2] == ["leaks in part", "SSIM"]
    assert rows["softmax", "gaussian:0.001"][0] == "could not be run"
    cards = text[text.index('id="pictures-mlp"') : text.index('id="pictures-lenet"')]
    assert cards.count('<details class="reason">') == len(BEST)


def test_the_attacks_are_compared_where_they_were_run(page):
    rows = table(page[0].read_text(), "<caption>lenet: pictures recovered at")
    assert [row[0] for row in rows] == list(BEST)
    assert rows[0][1:] == [
        "2 of 2 (34–100 %) 60.0 dB 2 of 2 (34–100 %) labels",
        "1 of 2 (9–91 %) 20.0 dB 2 of 2 (34–100 %) labels",
        "0 of 2 (0–66 %) 10.0 dB 0 of 2 (0–66 %) labels",
    ]
    # On softmax they were not.
    assert "<caption>softmax: pictures recovered at" not in page[0].read_text()


@pytest.fixture
def summary_of(tmp_path):
    """What the page's first section says of rows, as text."""
    strip = tmp_path / "strip.png"
    Image.new("L", (28 * BATCH, 28)).save(strip)

    def read(*rows):
        text = render(audit_results(rows), lambda cell, which: strip)
        section = text[text.index('id="verdict"') : text.index('id="pictures"')]
        return " ".join(re.sub(r"<[^>]*>", "", section).split())

    return read


def test_an_attack_that_failed_never_reads_like_a_defence_that_works(summary_of):
    dark = {"best": 9.0, "best_ssim": 0.1}
    text = summary_of(cell_result(best=90.0), cell_result(defense="sign", verdict="failed", **dark))
    assert "Under these defences the attack failed, so nothing is known." in text
    assert not re.search(
        r"stopped|safe\b(?<!no sign of safe)", text.replace("does not prove that gradients are safe", "")
    )
    hidden = summary_of(cell_result(best=90.0), cell_result(defense="sign", **dark))
    assert "the pictures were not recovered" in hidden
    assert "attack failed, so" not in hidden


def test_the_price_of_a_defence_is_that_on_the_networks_that_are_named(summary_of):
    text = summary_of(
        cell_result("softmax", "prune:0.5", best=79.0, relative_error=0.021),
        cell_result("lenet", "prune:0.5", best=14.0, best_ssim=0.1, relative_error=0.057),
    )
    assert "prune:0.5 on softmax: 2 of 2 (34–100 %) pictures, 2 of 2 (34–100 %) labels; price 0.021; 1 seed" in text
    assert "0.021 to 0.057" not in text


def test_networks_whose_undefended_pictures_stay_hidden_are_named(summary_of):
    dark = {"best": 9.0, "best_ssim": 0.1}
    assert "Not comparable: on mlp no" in summary_of(cell_result(**dark), cell_result(defense="sign", **dark))
    assert "Not comparable" not in summary_of(cell_result(best=90.0), cell_result(defense="sign", **dark))


@pytest.mark.parametrize(("kind", "word"), [("tokens", "texts"), ("table", "samples")])
def test_what_is_no_picture_is_not_called_one(tmp_path, kind, word):
    for which in ("target", "recovered"):
        (tmp_path / f"{which}.json").write_text("[[1, 2], [3, 4]]")
    dark = {"best": 9.0, "best_ssim": 0.1, "sample_kind": kind}
    rows = [
        cell_result(sample_kind=kind, best=90.0),
        cell_result(defense="int8", sample_kind=kind),
        cell_result(defense="prune:0.9", **dark),
        cell_result(defense="sign", verdict="failed", **dark),
    ]
    text = render(audit_results(rows), lambda cell, which: tmp_path / f"{which}.png")
    assert ("share of right tokens" in text) is (kind == "tokens")
    assert ("share of right numbers" in text) is (kind == "table")
    assert ("PSNR of a table" in text) is (kind == "table")
    assert "SSIM" not in text
    assert f'2 of 2 <span class="soft">(34–100 %)</span> {word}' in text
    # But for names of elements and of the style.
    read = re.sub(r"<style>.*?</style>|<[^>]*>|id=\S*", "", text, flags=re.DOTALL)
    assert not re.search("picture", read)


def test_a_defence_of_ones_own_is_called_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = "def halved(gradients):\n    return {name: gradient / 2 for name, gradient in gradients.items()}\n"
    specs = [f"{folder}/same.py:halved" for folder in ("a", "b")]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(content)
    text = render(audit_results([failed_result(defense=spec, error="it ends") for spec in specs]), None)
    assert all(f"<code>{spec}</code>" in text for spec in specs)


def test_a_reason_with_the_words_of_the_page_is_shown_as_it_is(tmp_path):
    rows = [failed_result(error="SSIM is <not> defined"), cell_result(defense="int8", sample_kind="tokens")]
    for which in ("target", "recovered"):
        (tmp_path / f"{which}.json").write_text("[[1, 2], [3, 4]]")
    text = render(audit_results(rows), lambda cell, which: tmp_path / f"{which}.png")
    assert "SSIM is &lt;not&gt; defined" in text
    assert "best share of right tokens" in text
    assert "Tokens count as right in another order too" in text


def test_every_section_is_shown_and_linked(page, outline):
    for section in SECTIONS:
        assert section.id in outline.ids
        assert f"#{section.id}" in outline.addresses
        assert page[0].read_text().count(f">{section.title}<") == 2


def test_a_section_without_context_is_left_out(monkeypatch):
    template = SECTIONS[0].template
    hidden = page_module.Section("hidden", "Hidden section", template, lambda report: None)
    monkeypatch.setattr(page_module, "SECTIONS", (*SECTIONS, hidden))
    assert "Hidden section" not in render(audit_results([]), None)


@pytest.mark.parametrize(
    ("spec", "title"), [("int8", "Differential privacy"), ("clip:1:0.01", "Compared with Zhu et al. 2019")]
)
def test_what_was_not_tried_has_no_section(spec, title):
    assert title not in render(audit_results([failed_result("lenet", spec)]), None)


def test_only_defences_that_promise_privacy_are_in_its_section(page):
    text = page[0].read_text()
    section = text[text.index('id="privacy"') : text.index('id="reading"')]
    specs = re.findall(r'<th scope="row"><code>(.*?)</code>', section)
    assert specs == ["clip:1:0.01", "clip:1:0.1"]


def test_nothing_finished_is_a_page_too():
    text = render(audit_results([], cells=3), None)
    assert "No cell is finished, so nothing is known" in text
    assert "The audit was interrupted" in text


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with a chromedriver on this machine (Debian: apt install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    quiet = (
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "disable-quic",
    )
    for flag in ("headless=new", "no-sandbox", "disable-gpu", *quiet):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield chrome
    chrome.quit()


def show(browser, page, width=1280, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
    browser.get(page[0].as_uri())
    from selenium.webdriver.support.ui import WebDriverWait

    # On a busy machine the page is there before its tables are.
    WebDriverWait(browser, 30).until(lambda shown: shown.find_elements("css selector", ".scroll"))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_every_picture_without_complaint(browser, page, width, scheme):
    show(browser, page, width, scheme)
    assert browser.get_log("browser") == []
    sizes = browser.execute_script(
        "return [...document.images].map(image => [image.complete, image.naturalWidth, image.offsetWidth])"
    )
    assert len(sizes) == PICTURES
    assert all(complete and natural == 28 and shown == 56 for complete, natural, shown in sizes)
    plots = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(plot => plot.getBoundingClientRect())"
        ".filter(box => box.width).map(box => [box.width, box.height, box.right])"
    )
    assert len(plots) == FIGURES
    assert all(w > 150 and h > 100 and right <= width for w, h, right in plots)


def test_a_phone_need_not_scroll_sideways(browser, page):
    show(browser, page, 390)
    # What is wider scrolls in its own box, which the keyboard reaches.
    too_wide = browser.execute_script(
        "return [...document.querySelectorAll('main *')].filter(element => !element.closest('.scroll, pre, svg'))"
        ".filter(element => element.getBoundingClientRect().right > 390).map(element => element.outerHTML.slice(0, 99))"
    )
    assert too_wide == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].every(box => box.tabIndex === 0 && box.ariaLabel)"
    )


def test_a_table_that_scrolls_shows_that_it_does_until_its_end(browser, page):
    from io import BytesIO

    def edges(scrolled):
        """How far the right and the left edge of the widest table's box are from the page's colour."""
        browser.execute_script("arguments[0].scrollLeft = arguments[1]", box, scrolled)
        picture = np.asarray(Image.open(BytesIO(box.screenshot_as_png)).convert("L"), float)
        paper = np.median(picture)
        return [float(np.median(np.abs(picture[:, columns] - paper))) for columns in (slice(-8, -3), slice(3, 8))]

    show(browser, page, 390)
    box = browser.find_elements("css selector", ".scroll")[0]
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    right, left = edges(0)
    assert right > 20 > left
    right, left = edges(10_000)
    assert left > 20 > right


def luminance(colour):
    parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_plots_stand_out_in_both_schemes(browser, page, scheme):
    show(browser, page, scheme=scheme)

    def style(selector, name):
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return browser.execute_script(script, selector, name)

    paper, panel = style("body", "backgroundColor"), style(".card", "backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    for selector in ("body", "nav a", ".soft", ".leaks", ".partly", ".unknown", ".not_run", ".not_recovered"):
        assert contrast(style(selector, "color"), paper) >= 4.5
        assert contrast(style(selector, "color"), panel) >= 4.5
    assert contrast(style("svg text", "fill"), paper) >= 4.5
    for colour in COLOURS:
        rgb = str([int(colour[place : place + 2], 16) for place in (1, 3, 5)])
        assert contrast(rgb, paper) >= 3


def test_the_numbers_shown_are_those_of_the_results(browser, page):
    show(browser, page)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#all-cells tbody tr')].map(row => Object.fromEntries("
        "  [...row.querySelectorAll('[data-name]')].map(cell => [cell.dataset.name,"
        "    cell.querySelector('data') ? Number(cell.querySelector('data').value) : cell.innerText])))"
    )
    rows = [row.to_json() for row in page[1].rows]
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows):
        if row["error"]:
            assert line == {}
            continue
        assert len(line) == 15
        # In JSON, null stands for what the page shows as a dash or, of a PSNR, as "equal".
        assert {name: None if value in ("–", "equal") else value for name, value in line.items()} == {
            name: row[name] for name in line
        }


def test_the_findings_shown_are_those_of_the_results(browser, page):
    show(browser, page)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('[data-finding]')].map(row =>"
        "  [row.dataset.finding, [...row.querySelectorAll('data')].map(number => Number(number.value))])"
    )
    found = findings(page[1].rows)
    assert [name for name, _ in shown] == [f"{finding.network} {finding.defense}" for finding in found]
    for finding, (_, line) in zip(found, shown):
        numbers = (finding.best_psnr, finding.mean_psnr, finding.best_ssim, finding.mean_ssim)
        numbers += (finding.relative_error, finding.cosine)
        expected = [number for number in (*numbers, finding.epsilon) if number is not None and math.isfinite(number)]
        assert line == expected


def test_the_keyboard_can_skip_to_the_report(browser, page):
    from selenium.webdriver.common.keys import Keys

    show(browser, page)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    link = browser.switch_to.active_element
    assert link.text == "Skip to the report"
    assert link.is_displayed()
    link.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "main"
