"""`distgan report` as a person sees it, in a headless Chromium; CI without one fails in launch/test.sh."""

import json
import re
from math import log

import fake_run
import pytest
from browser import Browser

from distgan import cli

OPENING_SECONDS = 2
EVIL = "</script><img src=x onerror=\"document.title='got in'\">"


ODD = [
    1.0,
    -1.0,
    0,
    1e308,
    -1e308,
    5e-324,
    None,
    float("nan"),
    float("inf"),
    10**400,
    -(10**400),
    1e149,
    -2.5,
    3,
    1e-300,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs and their reports."""
    folder = tmp_path_factory.mktemp("reports")
    spike = (6003, 500.0)
    fake_run.make(folder / "long", 10_000, grids=250, restarts=(2500, 7500), spike=spike, evaluations=50, checkpoints=3)
    fake_run.make(folder / "short", 400, 20, restarts=(100,), not_finite=range(200, 220), data__path=EVIL)
    fake_run.make(folder / "other", 300, 10, evaluations=4, seed=1, train__global_batch=128)
    odd = fake_run.make(folder / "odd", 200)
    for number, each in enumerate(odd):
        each |= {key: ODD[(number + place) % len(ODD)] for place, key in enumerate(each) if "progress" not in key}
    lines = [json.dumps(each) for each in odd] + [json.dumps({"progress/images_seen": seen}) for seen in ODD]
    (folder / "odd" / "metrics.jsonl").write_text("\n".join(lines))
    for runs in (["long"], ["short"], ["short", "other"], ["odd"]):
        words = f"--run_dir={','.join(str(folder / run) for run in runs)}", f"--out={folder / '-'.join(runs)}.html"
        assert cli.main(["report", *words]) == 0
    return folder


@pytest.fixture
def browse(folder):
    """Opens a report; at the end the page must have complained of nothing and asked for nothing."""
    opened = []

    def browse(name, **more):
        browser = Browser(folder, **more).__enter__()
        opened.append(browser)
        browser.seconds = browser.open(folder / f"{name}.html")
        return browser

    yield browse
    for browser in opened:
        browser.__exit__()
        assert browser.errors == []
        (page,) = [url for url in browser.requests if not url.startswith("data:")]
        assert page.startswith("file:")


def rows(folder, run):
    return [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]


def svg(title):
    return f'[data-chart="{title}"] svg'


def point_at(browser, title, images_seen):
    """Moves the pointer to a place on the axis of a chart; returns what the chart tells: words, and values by name."""
    _, y = browser.place(svg(title))
    left = browser.script(f"document.querySelector('{svg(title)}').getBoundingClientRect().left")
    place = browser.script(f"charts.find((each) => each.title === '{title}').px({images_seen})")
    browser.point(left + place, y)
    return told(browser, title)


def told(browser, title):
    tip = f"document.querySelector('[data-chart=\"{title}\"] .tip')"
    if browser.script(f"{tip}.hidden"):
        return None, {}
    cells = browser.script(f"[...{tip}.querySelectorAll('tr')].map((r) => [...r.cells].map((c) => c.textContent))")
    return browser.script(f"{tip}.querySelector('b').textContent"), {name: value for name, value, *_ in cells}


def number(words):
    return float(words.replace(",", ""))


def heights(browser, title):
    """The heights on the screen of the values at the pointer, and of the axis' ticks by their value."""
    rings = browser.script(f"[...document.querySelectorAll('{svg(title)} .ring')].map((c) => +c.getAttribute('cy'))")
    texts = f"[...document.querySelectorAll('{svg(title)} text[text-anchor=end]')]"
    ticks = browser.script(f"{texts}.map((t) => [t.textContent, t.getAttribute('y') - 4])")
    return rings, {number(words): y for words, y in ticks if words != "kimg"}


def test_a_long_run_opens_soon_and_answers(browse, folder):
    browser = browse("long")
    assert browser.seconds < 3 * OPENING_SECONDS
    charts = browser.script("charts.length")
    assert charts > 15
    lines = "[...document.querySelectorAll('main svg')].map((s) => s.querySelectorAll('path.curve').length)"
    assert all(browser.script(lines))
    assert browser.script("document.querySelectorAll('.restart').length") == 2 * charts
    # A spike of one row of 10,000 reaches its height.
    band = browser.script(
        f"document.querySelector('{svg('Losses')} [data-key=\"loss/discriminator\"] .band').getAttribute('d')"
    )
    _, ticks = heights(browser, "Losses")
    highest = min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", band))
    assert highest == pytest.approx(_between(ticks, 500), abs=1.5)


def _between(ticks, value):
    """The height of a value on a linear axis, from the places of two of its ticks."""
    (low, low_y), *_, (high, high_y) = sorted(ticks.items())
    return low_y + (high_y - low_y) * (value - low) / (high - low)


def test_the_slider_changes_the_picture(browse):
    browser = browse("long")
    image = "document.querySelector('.grids img')"
    gray = (
        f"{image}.decode().then(() => {{ const c = document.createElement('canvas').getContext('2d'); "
        f"c.drawImage({image}, 0, 0, 1, 1); return c.getImageData(0, 0, 1, 1).data[0]; }})"
    )
    caption = "document.querySelector('.grids figcaption').textContent"
    output = "document.querySelector('.slide output').textContent"
    assert browser.script(gray) == 250
    assert browser.script(caption) == "samples at 6,400 kimg"
    browser.script("document.querySelector('#samples-slider').focus()")
    browser.press("ArrowLeft")
    assert 240 < browser.script(gray) < 250
    browser.press("Home")
    assert browser.script(gray) == 0
    assert browser.script(caption) == "samples at 0 kimg"
    browser.click("#samples-slider")
    assert 110 < browser.script(gray) < 140
    assert 3000 < number(browser.script(output).removesuffix(" kimg")) < 3400
    assert browser.script("document.querySelectorAll('.grids img')[1].alt") == "Real images of long"
    assert browser.script("document.querySelector('.grids img').naturalWidth") == 64


def test_hover_tells_the_rows_values(browse, folder):
    browser, written = browse("short"), rows(folder, "short")
    for place in (0, 123, 399):
        row = written[place]
        place, values = point_at(browser, "Losses", row["progress/images_seen"])
        assert place == f"{row['progress/kimg']:g} kimg"
        assert number(values["discriminator"]) == pytest.approx(row["loss/discriminator"], rel=1e-4)
        assert number(values["generator"]) == pytest.approx(row["loss/generator"], rel=1e-4)
        rings, ticks = heights(browser, "Losses")
        expected = [_between(ticks, row[key]) for key in ("loss/discriminator", "loss/generator")]
        assert rings == pytest.approx(expected, abs=1)
    # Rows that are not finite: a gap with a mark.
    _, values = point_at(browser, "Losses", written[210]["progress/images_seen"])
    assert values["generator"] == "not finite"
    curve = f"document.querySelector('{svg('Losses')} [data-key=\"loss/generator\"]')"
    assert browser.script(f"{curve}.querySelector('.curve').getAttribute('d')").count("M") == 2
    assert browser.script(f"{curve}.querySelectorAll('.bad').length") >= 1
    browser.point(1, 1)
    assert told(browser, "Losses") == (None, {})


def test_scales_smoothing_legend_and_zoom(browse, folder):
    browser, written = browse("short"), rows(folder, "short")
    row = written[300]
    browser.click('[data-scale="log"]')
    point_at(browser, "Gradient norms", row["progress/images_seen"])
    rings, ticks = heights(browser, "Gradient norms")
    expected = _between({log(value): y for value, y in ticks.items()}, log(row["grad_norm/discriminator"]))
    assert rings[0] == pytest.approx(expected, abs=1)
    browser.click('[data-scale="linear"]')
    point_at(browser, "Gradient norms", row["progress/images_seen"])
    rings, ticks = heights(browser, "Gradient norms")
    assert rings[0] == pytest.approx(_between(ticks, row["grad_norm/discriminator"]), abs=1)

    browser.script("document.querySelector('#smoothing').focus()")
    for _ in range(50):
        browser.press("ArrowRight")
    browser.script("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.script("document.querySelector('#smoothing-value').textContent") == "0.5"
    _, values = point_at(browser, "Losses", row["progress/images_seen"])
    assert number(values["generator"]) == pytest.approx(row["loss/generator"], rel=1e-4)
    smooth = browser.script("smoothed(charts.find((each) => each.title === 'Losses').lines[0])[300]")
    weights = [0.5**back for back in range(40)]
    average = sum(w * written[300 - back]["loss/discriminator"] for back, w in enumerate(weights)) / sum(weights)
    assert smooth == pytest.approx(average, rel=1e-4)

    curves = f"[...document.querySelectorAll('{svg('Losses')} [data-key]')].map((g) => g.dataset.key)"
    key = '[data-chart="Losses"] .key'
    browser.click(key)
    assert browser.script(curves) == ["loss/generator"]
    assert browser.script(f"document.querySelector('{key}').getAttribute('aria-pressed')") == "false"
    browser.click(key)
    assert browser.script(curves) == ["loss/discriminator", "loss/generator"]

    x, y = browser.place(svg("Losses"))
    browser.point(x - 60, y, "mousePressed", 1)
    browser.point(x + 60, y, buttons=1)
    browser.point(x + 60, y, "mouseReleased")
    low, high = browser.script("range()")
    assert written[0]["progress/images_seen"] < low < high < written[-1]["progress/images_seen"]
    browser.click("#whole")
    assert browser.script("range()") == [640, 640 * 400]
    assert browser.script("document.querySelector('#whole').hidden")


def test_a_keyboard_is_enough(browse, folder):
    browser, written = browse("short"), rows(folder, "short")
    browser.script(f"document.querySelector('{svg('Losses')}').focus()")
    for keys, row in ((["Home"], 0), (["ArrowRight", "ArrowRight"], 2), (["ArrowLeft"], 1), (["End"], 399)):
        for key in keys:
            browser.press(key)
        place, values = told(browser, "Losses")
        assert place == f"{written[row]['progress/kimg']:g} kimg"
        assert number(values["discriminator"]) == pytest.approx(written[row]["loss/discriminator"], rel=1e-4)
    # Everything that answers to the pointer can be reached.
    outside = (
        "[...document.querySelectorAll('button, input, a, summary, main svg')].filter((e) => e.tabIndex < 0).length"
    )
    assert browser.script(outside) == 0
    nameless = "[...document.querySelectorAll('button')].filter((b) => !(b.ariaLabel || b.textContent)).length"
    assert browser.script(nameless) == 0


def test_several_runs_in_the_same_charts(browse):
    browser = browse("short-other", dark=True)
    curves = f"[...document.querySelectorAll('{svg('Losses: generator')} [data-run]')].map((g) => g.dataset.run)"
    assert browser.script(curves) == ["0", "1"]
    browser.click("#runs .key")
    assert browser.script(curves) == ["1"]
    browser.click("#runs .key")
    assert browser.script("document.querySelectorAll('.grids img').length") == 4
    shown = (
        "[...document.querySelectorAll('#configuration tbody tr')].filter((r) => !r.hidden)"
        ".map((r) => [...r.cells].map((c) => c.textContent))"
    )
    assert browser.script(shown) == [
        ["data.path", EVIL, ""],
        ["train.total_kimg", "256", "192"],
        ["train.global_batch", "64", "128"],
    ]
    browser.click("#configuration input[type=checkbox]")
    assert len(browser.script(shown)) > 40
    assert browser.script("document.title") == "short, other · distgan"
    dark = browser.script("getComputedStyle(document.body).backgroundColor")
    browser.click("#theme")
    assert browser.script("document.documentElement.dataset.theme") == "light"
    assert browser.script("getComputedStyle(document.body).backgroundColor") != dark


def test_odd_values_are_drawn_as_numbers(browse):
    """Whatever the rows hold, on any axis and however smooth: no coordinate is NaN or infinite."""
    browser = browse("odd")
    attributes = (
        "[...document.querySelectorAll('main svg, main svg *')].flatMap((e) => [...e.attributes])"
        ".map((a) => a.value).filter((v) => /NaN|Infinity|undefined/.test(v))"
    )
    for scale in ("auto", "linear", "log"):
        for smoothing in (0, 0.5, 0.99):
            browser.script(
                f"Object.assign(view, {{scale: '{scale}', smoothing: {smoothing}}}) && charts.forEach((c) => c.render())"
            )
            assert browser.script(attributes) == [], (scale, smoothing)
    assert browser.script("document.querySelectorAll('path.curve').length") > 15
